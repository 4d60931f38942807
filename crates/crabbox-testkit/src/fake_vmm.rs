//! A stand-in for Firecracker: it takes the same command line and answers the same API, but runs nothing.
//!
//! It is for tests of crabbox's handling of a VMM (crashes, faults, timeouts, leftovers), hundreds of times a
//! minute. It must never support a claim about a microVM or about speed.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crabbox_guest_protocol::READY_PORT;
use crabbox_guest_protocol::report::{READY, STAGE};
use crabbox_guest_protocol::seed::VOLUMES;
use crabbox_host::{clock, unix};
use serde::{Deserialize, Serialize};

mod frozen;
mod guest;
mod http;
mod jail;
mod machine;
mod settle;

pub use jail::jailer_main;
use machine::Machine;

/// The version that the fake claims, whose API it implements.
pub const VERSION: &str = "1.12.1";

/// The name of the file that holds the fake's [`Script`]: in its working directory, else beside the program.
pub(crate) const SCRIPT_FILE: &str = "fake-vmm.json";

/// Deviations from the normal behaviour. An endpoint is written as `PUT /actions`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// A file that gets a line per request, `PUT /actions {"action_type":"InstanceStart"}`.
    pub trace: Option<PathBuf>,
    /// This request, counted from 1, is refused with status 400.
    pub fail_request: Option<u32>,
    /// A request that is never answered.
    pub stall_on: Option<String>,
    /// A request whose answer is cut off in the middle.
    pub close_on: Option<String>,
    /// A request at which the fake exits with code 1.
    pub exit_on: Option<String>,
    /// The fake exits with code 0 this many milliseconds after the start, as after a guest's reboot.
    pub exit_after_start_ms: Option<u64>,
    /// Lines that appear on the guest's console after the start.
    pub console: Vec<String>,
    /// Whether the guest says `ready` on its vsock port after the start.
    pub ready: bool,
    /// Whether an sshd answers behind the lease's tap after the start, with the keys of the lease's seed.
    /// Needs root.
    pub sshd: bool,
    /// The numbers of the volumes that the guest reports as not mounted.
    pub not_mounted: Vec<usize>,
    /// Whether the guest confirms that it has written out its volumes, when the host asks before the end;
    /// otherwise it hangs up.
    pub settles: bool,
    /// Whether machines restored from a snapshot all report the same identity.
    pub alike: bool,
}

impl Script {
    /// Puts the script where a fake that runs in `dir` finds it.
    pub fn write_to(&self, dir: &Path) -> std::io::Result<()> {
        std::fs::write(dir.join(SCRIPT_FILE), serde_json::to_vec(self)?)
    }

    fn read_here() -> std::io::Result<Self> {
        let beside = std::env::current_exe()?.with_file_name(SCRIPT_FILE);
        for place in [Path::new(SCRIPT_FILE), &beside] {
            match std::fs::read(place) {
                Ok(bytes) => return Ok(serde_json::from_slice(&bytes)?),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::default())
    }
}

/// The part of the command line that the fake uses.
#[derive(Debug, Default)]
struct Options {
    api_sock: Option<PathBuf>,
    id: Option<String>,
    log_path: Option<PathBuf>,
    version: bool,
}

/// Options of the real one that take a value and have no effect here.
const IGNORED: [&str; 6] = [
    "--level",
    "--metrics-path",
    "--start-time-us",
    "--start-time-cpu-us",
    "--parent-cpu-time-us",
    "--http-api-max-payload-size",
];

/// Reads the command line; the error is the word that the real one would reject too, or that lacks its value.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or_else(|| name.clone());
        match name.as_str() {
            "--version" => options.version = true,
            "--boot-timer" | "--no-seccomp" | "--show-level" => {}
            "--api-sock" => options.api_sock = Some(value()?.into()),
            "--log-path" => options.log_path = Some(value()?.into()),
            "--id" => options.id = Some(value()?.to_string_lossy().into_owned()),
            other if IGNORED.contains(&other) => drop(value()?),
            _ => return Err(name),
        }
    }
    Ok(options)
}

/// The program `fake-firecracker`, without its own name in `args`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match parse(args) {
        Ok(options) => options,
        Err(word) => {
            say(&format!(
                "Arguments parsing error: Found argument '{word}' which wasn't expected"
            ));
            // The exit code of the real one.
            return ExitCode::from(153);
        }
    };
    if options.version {
        say(&format!("Firecracker v{VERSION}\n"));
        return ExitCode::SUCCESS;
    }
    match serve(&options) {
        Ok(code) => code,
        Err(error) => {
            log(&options, &format!("RunWithApiError error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line on standard output, which is also the guest's console.
fn say(line: &str) {
    let mut out = std::io::stdout();
    // A VMM does not care whether its output is still read.
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

fn log(options: &Options, line: &str) {
    let line = format!(
        "[{}:main] {line}",
        options.id.as_deref().unwrap_or("anonymous-instance")
    );
    match &options.log_path {
        None => say(&line),
        Some(path) => {
            let file = std::fs::File::options().append(true).open(path);
            file.and_then(|mut file| writeln!(file, "{line}")).ok();
        }
    }
}

fn serve(options: &Options) -> std::io::Result<ExitCode> {
    let script = Script::read_here()?;
    let path = options
        .api_sock
        .clone()
        .unwrap_or_else(|| "/run/firecracker.socket".into());
    log(options, &format!("Running Firecracker v{VERSION}"));
    let listener = unix::bind(&path).map_err(|error| {
        let used = "Check that it is not already used.";
        std::io::Error::other(format!(
            "Failed to open the API socket at: {}. {used} ({})",
            path.display(),
            with_cause(&error)
        ))
    })?;
    log(options, "API server started.");
    let machine = Arc::new(Mutex::new(Machine::new(options.id.clone().unwrap_or_default())));
    let (ended, end) = mpsc::channel();
    let connections = Connections {
        script: Arc::new(script),
        machine,
        ended,
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut connections = connections.clone();
            std::thread::spawn(move || connections.talk(stream));
        }
    });
    // The other threads hold the sender for as long as the process lives.
    Ok(end.recv().unwrap_or(ExitCode::FAILURE))
}

/// What every connection shares.
#[derive(Clone)]
struct Connections {
    script: Arc<Script>,
    machine: Arc<Mutex<Machine>>,
    ended: Sender<ExitCode>,
}

impl Connections {
    fn talk(&mut self, mut stream: std::os::unix::net::UnixStream) {
        let mut unread = Vec::new();
        while let Some(request) = http::read_request(&mut stream, &mut unread) {
            self.trace(&request);
            let endpoint = request.endpoint();
            let is = |wanted: &Option<String>| wanted.as_deref() == Some(endpoint.as_str());
            if is(&self.script.exit_on) {
                self.ended.send(ExitCode::FAILURE).ok();
                return;
            }
            if is(&self.script.stall_on) {
                // Nothing more is read or written, but the connection stays open.
                std::thread::park();
            }
            let answer = self.answer(&request);
            let bytes = answer.encode();
            let cut = if is(&self.script.close_on) {
                bytes.len() / 2
            } else {
                bytes.len()
            };
            if stream.write_all(&bytes[..cut]).is_err() || cut < bytes.len() {
                return;
            }
            if answer.started {
                self.run_guest();
            }
        }
    }

    fn answer(&self, request: &http::Request) -> machine::Answer {
        let Ok(mut machine) = self.machine.lock() else {
            return machine::Answer::fault("a thread of the fake died");
        };
        machine.requests += 1;
        if self.script.fail_request == Some(machine.requests) {
            return machine::Answer::fault("refused because the script of the fake says so");
        }
        machine.answer(request)
    }

    fn trace(&self, request: &http::Request) {
        let Some(path) = &self.script.trace else { return };
        let file = std::fs::File::options().create(true).append(true).open(path);
        let line = format!(
            "{} {}\n",
            request.endpoint(),
            String::from_utf8_lossy(&request.body)
        );
        file.and_then(|mut file| file.write_all(line.as_bytes())).ok();
    }

    /// Acts as the guest: prints on its console, reports that it is ready, and perhaps ends.
    fn run_guest(&self) {
        self.script.console.iter().for_each(|line| say(line));
        let machine = self.machine.lock().ok();
        let (socket, token) = machine.map_or((None, None), |machine| {
            (machine.vsock_path(), machine.token.clone())
        });
        if let Some(token) = token {
            let habits = frozen::Habits {
                sshd: self.script.sshd,
                alike: self.script.alike,
            };
            let woken = frozen::wake(&socket.unwrap_or_default(), &token, habits);
            if let Err(error) = woken {
                say(&format!("fake guest: {error}"));
            }
            return;
        }
        let seed = guest::seed().unwrap_or_default();
        self.serve_host(&seed);
        if frozen::is_template(&seed) {
            self.park(&socket.unwrap_or_default());
            return;
        }
        if self.script.sshd
            && let Err(error) = guest::start(&seed)
        {
            say(&format!("fake guest: {error}"));
        }
        if let Some(socket) = socket.filter(|_| self.script.ready) {
            let mut port = socket.into_os_string();
            port.push(format!("_{READY_PORT}"));
            let mounts = if settle::has_volumes(&seed) {
                let not_mounted = |number: &usize| format!("{STAGE} no-volume-{number} 0.15\n");
                let others: Vec<String> = self.script.not_mounted.iter().map(not_mounted).collect();
                format!("{STAGE} {VOLUMES} 0.15\n{}", others.concat())
            } else {
                String::new()
            };
            let words = format!("{STAGE} init 0.10\n{mounts}{READY} 0.20\n");
            let told = unix::connect(Path::new(&port)).map(|mut stream| stream.write_all(words.as_bytes()));
            if told.is_err() {
                say(&format!("fake guest: nobody listens on vsock port {READY_PORT}"));
            }
        }
        if let Some(wait) = self.script.exit_after_start_ms {
            let ended = self.ended.clone();
            std::thread::spawn(move || {
                clock::poll_until(Duration::from_millis(wait), || None::<()>);
                ended.send(ExitCode::SUCCESS).ok();
            });
        }
    }
}

impl Connections {
    /// Accepts the host's connections to a port of the guest, for as long as the machine lives.
    fn serve_host(&self, seed: &[u8]) {
        let machine = self.machine.lock().ok();
        let Some(listener) = machine.and_then(|machine| machine.vsock_listener()) else {
            return;
        };
        let (settles, trace) = (
            self.script.settles && settle::has_volumes(seed),
            self.script.trace.clone(),
        );
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                settle::serve(stream, settles, trace.as_deref());
            }
        });
    }

    /// Acts as a guest that is about to be frozen.
    fn park(&self, vsock: &Path) {
        match frozen::park(vsock) {
            Ok((token, connection)) => {
                if let Ok(mut machine) = self.machine.lock() {
                    machine.token = Some(token);
                }
                // Keep it open for as long as the machine lives.
                std::mem::forget(connection);
            }
            Err(error) => say(&format!("fake guest: {error}")),
        }
    }
}

/// An error with its cause, as the real one prints it.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
