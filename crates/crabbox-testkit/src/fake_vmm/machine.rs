//! The state of the fake's machine, and its answers.
//!
//! Field names are checked as strictly as by the real one, against a separate list: it must not share the
//! types whose spelling it checks.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crabbox_host::unix;
use serde_json::{Map, Value, json};

use super::{VERSION, http::Request};

/// One kind of body: method, path prefix, required fields, optional fields.
struct Form {
    method: &'static str,
    path: &'static str,
    required: &'static [&'static str],
    optional: &'static [&'static str],
    when: When,
}

/// In which states a request is allowed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
    Always,
}

const fn form(
    method: &'static str,
    path: &'static str,
    when: When,
    required: &'static [&'static str],
    optional: &'static [&'static str],
) -> Form {
    Form {
        method,
        path,
        required,
        optional,
        when,
    }
}

/// The API of 1.12.1, as far as crabbox may use it. A path that ends in a slash is followed by an id.
const FORMS: [Form; 15] = [
    form(
        "PUT",
        "/machine-config",
        When::Before,
        &["vcpu_count", "mem_size_mib"],
        &["smt", "cpu_template", "track_dirty_pages", "huge_pages"],
    ),
    form(
        "PUT",
        "/boot-source",
        When::Before,
        &["kernel_image_path"],
        &["initrd_path", "boot_args"],
    ),
    form(
        "PUT",
        "/drives/",
        When::Before,
        &["drive_id", "is_root_device"],
        &[
            "path_on_host",
            "is_read_only",
            "cache_type",
            "io_engine",
            "rate_limiter",
            "partuuid",
            "socket",
        ],
    ),
    form(
        "PATCH",
        "/drives/",
        When::After,
        &["drive_id"],
        &["path_on_host", "rate_limiter"],
    ),
    form(
        "PUT",
        "/network-interfaces/",
        When::Before,
        &["iface_id", "host_dev_name"],
        &["guest_mac", "rx_rate_limiter", "tx_rate_limiter"],
    ),
    form(
        "PUT",
        "/vsock",
        When::Before,
        &["guest_cid", "uds_path"],
        &["vsock_id"],
    ),
    form(
        "PUT",
        "/logger",
        When::Before,
        &[],
        &["log_path", "level", "show_level", "show_log_origin", "module"],
    ),
    form("PUT", "/metrics", When::Before, &["metrics_path"], &[]),
    form("PUT", "/entropy", When::Before, &[], &["rate_limiter"]),
    form(
        "PUT",
        "/balloon",
        When::Before,
        &["amount_mib", "deflate_on_oom"],
        &["stats_polling_interval_s"],
    ),
    form("PUT", "/actions", When::Always, &["action_type"], &[]),
    form("PATCH", "/vm", When::After, &["state"], &[]),
    form(
        "PUT",
        "/snapshot/create",
        When::After,
        &["snapshot_path", "mem_file_path"],
        &["snapshot_type"],
    ),
    form(
        "PUT",
        "/snapshot/load",
        When::Before,
        &["snapshot_path"],
        &[
            "mem_backend",
            "mem_file_path",
            "enable_diff_snapshots",
            "resume_vm",
            "network_overrides",
        ],
    ),
    form(
        "PUT",
        "/mmds/config",
        When::Before,
        &["network_interfaces"],
        &["version", "ipv4_address"],
    ),
];

const NOT_BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const NOT_AFTER: &str = "The requested operation is not supported after starting the microVM.";

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    body: Option<Value>,
    /// Whether this was the start of the machine.
    pub(super) started: bool,
}

impl Answer {
    fn done() -> Self {
        Self {
            status: 204,
            body: None,
            started: false,
        }
    }

    fn json(body: Value) -> Self {
        Self {
            status: 200,
            body: Some(body),
            started: false,
        }
    }

    pub(super) fn fault(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            body: Some(json!({ "fault_message": message.into() })),
            started: false,
        }
    }

    /// Encodes it as the real one does: no reason phrase, no length without a body.
    pub(super) fn encode(&self) -> Vec<u8> {
        let head = format!(
            "HTTP/1.1 {} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n",
            self.status
        );
        match &self.body {
            None => format!("{head}\r\n"),
            Some(body) => {
                let body = body.to_string();
                let kind = "Content-Type: application/json";
                format!("{head}{kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
        }
        .into_bytes()
    }
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    id: String,
    state: &'static str,
    config: Value,
    has_kernel: bool,
    vsock: Option<(PathBuf, UnixListener)>,
    drives: Vec<String>,
    /// The token that a parked guest has in its memory.
    pub(super) token: Option<String>,
    /// Files that a loaded machine keeps open.
    open: Vec<File>,
    /// The number of requests so far.
    pub(super) requests: u32,
}

impl Machine {
    pub(super) fn new(id: String) -> Self {
        let config =
            json!({ "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false });
        Self {
            id,
            state: "Not started",
            config,
            has_kernel: false,
            vsock: None,
            drives: Vec::new(),
            token: None,
            open: Vec::new(),
            requests: 0,
        }
    }

    pub(super) fn vsock_path(&self) -> Option<PathBuf> {
        self.vsock.as_ref().map(|(path, _)| path.clone())
    }

    /// Receives the host's connections to the guest.
    pub(super) fn vsock_listener(&self) -> Option<UnixListener> {
        self.vsock
            .as_ref()
            .and_then(|(_, listener)| listener.try_clone().ok())
    }

    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        if request.method == "GET" {
            return self.tell(&request.path);
        }
        let matches = |form: &&Form| {
            form.method == request.method
                && if form.path.ends_with('/') {
                    request
                        .path
                        .strip_prefix(form.path)
                        .is_some_and(|id| !id.is_empty())
                } else {
                    request.path == form.path
                }
        };
        let Some(form) = FORMS.iter().find(matches) else {
            let (method, path) = (&request.method, request.path.trim_start_matches('/'));
            return Answer::fault(format!("Invalid request method and/or path: {method} {path}."));
        };
        let fields = match check(form, &request.body) {
            Ok(fields) => fields,
            Err(problem) => {
                let what = "An error occurred when deserializing the json body of a request";
                return Answer::fault(format!("{what}: {problem}."));
            }
        };
        let started = self.state != "Not started";
        match form.when {
            When::Before if started => Answer::fault(NOT_AFTER),
            When::After if !started => Answer::fault(NOT_BEFORE),
            _ => self
                .apply(form, &request.path, &fields)
                .map_or_else(Answer::fault, |()| {
                    // A loaded machine resumes for the first time.
                    let goes_on = !self.open.is_empty() && form.path == "/vm";
                    let begun = (!started || goes_on) && self.state == "Running";
                    Answer {
                        started: begun,
                        ..Answer::done()
                    }
                }),
        }
    }

    fn tell(&self, path: &str) -> Answer {
        match path {
            "/" => Answer::json(json!({
                "id": self.id, "state": self.state, "vmm_version": VERSION, "app_name": "Firecracker",
            })),
            "/version" => Answer::json(json!({ "firecracker_version": VERSION })),
            "/machine-config" => Answer::json(self.config.clone()),
            _ => Answer::fault(format!(
                "Invalid request method and/or path: GET {}.",
                path.trim_start_matches('/')
            )),
        }
    }

    fn apply(&mut self, form: &Form, path: &str, fields: &Map<String, Value>) -> Result<(), String> {
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        if form.path.ends_with('/') && path.strip_prefix(form.path) != Some(text(form.required[0])) {
            return Err("The id from the path does not match the id from the body!".into());
        }
        match (form.method, form.path) {
            ("PUT", "/machine-config") => {
                let cpus = fields
                    .get("vcpu_count")
                    .and_then(Value::as_u64)
                    .unwrap_or_default();
                if !(1..=32).contains(&cpus) {
                    return Err("Machine config error: The number of vCPUs must be greater than 0".into());
                }
                self.config = Value::Object(fields.clone());
            }
            ("PUT", "/boot-source") => {
                must_exist(
                    text("kernel_image_path"),
                    "Boot source error: The kernel file cannot be opened",
                )?;
                if fields.contains_key("initrd_path") {
                    must_exist(
                        text("initrd_path"),
                        "Boot source error: The initrd file cannot be opened",
                    )?;
                }
                self.has_kernel = true;
            }
            ("PUT", "/drives/") => {
                must_exist(
                    text("path_on_host"),
                    "Drive config error: Error manipulating the backing file",
                )?;
                self.drives.push(text("path_on_host").to_owned());
            }
            ("PUT", "/vsock") => self.bind_vsock(text("uds_path"))?,
            ("PUT", "/actions") => self.act(text("action_type"))?,
            ("PATCH", "/vm") => {
                self.state = if text("state") == "Paused" {
                    "Paused"
                } else {
                    "Running"
                }
            }
            ("PUT", "/snapshot/create") => self
                .save(text("snapshot_path"), text("mem_file_path"))
                .map_err(|error| format!("Create snapshot error: {error}"))?,
            ("PUT", "/snapshot/load") => {
                let memory = fields
                    .get("mem_backend")
                    .and_then(|backend| backend["backend_path"].as_str());
                self.load(text("snapshot_path"), memory.unwrap_or_default())
                    .map_err(|error| format!("Load snapshot error: {error}"))?;
                let resumed = fields.get("resume_vm") == Some(&Value::Bool(true));
                self.state = if resumed { "Running" } else { "Paused" };
            }
            _ => {}
        }
        Ok(())
    }

    fn bind_vsock(&mut self, path: &str) -> Result<(), String> {
        let path = PathBuf::from(path);
        let listener = unix::bind(&path)
            .map_err(|error| format!("Vsock config error: {}", super::with_cause(&error)))?;
        self.vsock = Some((path, listener));
        Ok(())
    }

    /// Writes the fake's substitute for a machine's state; the memory has the right length and a few bytes at
    /// both ends.
    fn save(&self, state: &str, memory: &str) -> std::io::Result<()> {
        let text = json!({ "token": self.token, "drives": self.drives, "vsock": self.vsock_path() });
        std::fs::write(state, text.to_string())?;
        let length = self.config["mem_size_mib"].as_u64().unwrap_or(1) << 20;
        let file = File::create(memory)?;
        file.set_len(length)?;
        file.write_all_at(b"first", 0)?;
        file.write_all_at(b"last", length - 4)
    }

    fn load(&mut self, state: &str, memory: &str) -> std::io::Result<()> {
        let state: Value = serde_json::from_slice(&std::fs::read(state)?)?;
        self.token = state["token"].as_str().map(str::to_owned);
        let drives = state["drives"].as_array().into_iter().flatten();
        for path in drives.filter_map(Value::as_str).chain([memory]) {
            self.open.push(File::open(path)?);
        }
        if let Some(path) = state["vsock"].as_str() {
            self.bind_vsock(path).map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    fn act(&mut self, action: &str) -> Result<(), String> {
        match (action, self.state) {
            ("InstanceStart", "Not started") if self.has_kernel => {
                self.state = "Running";
                Ok(())
            }
            ("InstanceStart", "Not started") => {
                Err("Start microvm error: Cannot start microvm without kernel configuration.".into())
            }
            ("InstanceStart", _) => Err(NOT_AFTER.into()),
            ("FlushMetrics" | "SendCtrlAltDel", "Not started") => Err(NOT_BEFORE.into()),
            ("FlushMetrics" | "SendCtrlAltDel", _) => Ok(()),
            _ => Err(format!("unknown variant `{action}`")),
        }
    }
}

fn must_exist(path: &str, what: &str) -> Result<(), String> {
    if Path::new(path).exists() {
        Ok(())
    } else {
        Err(format!("{what}: No such file or directory (os error 2) {path}"))
    }
}

/// The fields of `body`, if all required ones and only allowed ones are present.
fn check(form: &Form, body: &[u8]) -> Result<Map<String, Value>, String> {
    let fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let known =
        |name: &&String| form.required.contains(&name.as_str()) || form.optional.contains(&name.as_str());
    if let Some(name) = fields.keys().find(|name| !known(name)) {
        return Err(format!("unknown field `{name}`"));
    }
    match form.required.iter().find(|name| !fields.contains_key(**name)) {
        Some(name) => Err(format!("missing field `{name}`")),
        None => Ok(fields),
    }
}
