//! Tests the stand-in for Firecracker with the client for the real one.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crabbox_fc::launch::{Cgroup, VmmOptions};
use crabbox_fc::types::{Action, BootSource, Drive, MachineConfig, Vsock};
use crabbox_fc::{BootPlan, Client, ClientError, DirectLaunch, JailLaunch, JailLayout, Request, boot};
use crabbox_guest_protocol::READY_PORT;
use crabbox_host::command::Cmd;
use crabbox_host::unix::DeadlineStream;
use crabbox_host::{clock, unix};
use crabbox_testkit::fake_vmm::Script;

/// A fake in a temporary directory; killed on drop.
struct Fake {
    child: Child,
    vm: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn prepare(vm: &Path, script: &Script) {
    std::fs::create_dir_all(vm).expect("the directory is ours");
    for name in ["vmlinux", "disk.ext4"] {
        std::fs::write(vm.join(name), "x").expect("the directory is ours");
    }
    script.write_to(vm).expect("the directory is ours");
}

fn spawn(argv: &[std::ffi::OsString], cwd: &Path) -> Child {
    let cmd = Cmd::new(&argv[0]).args(&argv[1..]).cwd(cwd);
    let mut command: Command = cmd.to_std();
    cmd.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))
        .expect("cargo built the fake")
}

fn start(script: &Script) -> Fake {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let vm = dir.path().join("vm");
    prepare(&vm, script);
    let binary = env!("CARGO_BIN_EXE_fake-firecracker").into();
    let id = "fake-1".parse().expect("a good id");
    let launch = DirectLaunch {
        binary,
        id,
        options: VmmOptions::new("api.sock"),
    };
    Fake {
        child: spawn(&launch.argv(), &vm),
        vm,
        _dir: dir,
    }
}

fn client(vm: &Path) -> Client<DeadlineStream<'static>> {
    let socket = vm.join("api.sock");
    let stream = clock::poll_until(Duration::from_secs(10), || unix::connect(&socket).ok());
    let stream = DeadlineStream::new(stream.expect("the fake listens"));
    stream.set_limit(Duration::from_secs(10));
    Client::new(stream)
}

/// The response to `GET /`.
fn info(client: &mut Client<DeadlineStream<'static>>) -> serde_json::Value {
    let response = client.send(&Request::get("/")).expect("it answers");
    serde_json::from_slice(&response.body).expect("an answer in JSON")
}

fn plan() -> BootPlan {
    let machine = MachineConfig {
        vcpu_count: 1,
        mem_size_mib: 128,
        smt: false,
        track_dirty_pages: false,
        huge_pages: None,
    };
    let source = BootSource {
        kernel_image_path: "vmlinux".into(),
        initrd_path: None,
        boot_args: Some("quiet".into()),
    };
    let mut plan = BootPlan::new(machine, source);
    plan.drives.push(Drive {
        drive_id: "disk".into(),
        path_on_host: "disk.ext4".into(),
        is_root_device: true,
        is_read_only: false,
        cache_type: None,
        io_engine: None,
        rate_limiter: None,
    });
    plan.vsock = Some(Vsock {
        guest_cid: 3,
        uds_path: "vsock.sock".into(),
    });
    plan
}

#[test]
fn a_boot_runs_to_ready_and_leaves_a_trace() {
    let script = Script {
        ready: true,
        console: vec!["hello from the console".into()],
        trace: Some("trace".into()),
        ..Script::default()
    };
    let mut fake = start(&script);
    let listener = unix::bind(&fake.vm.join(format!("vsock.sock_{READY_PORT}"))).unwrap();
    let mut client = client(&fake.vm);
    boot(&mut client, &plan()).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let words: Vec<String> = std::io::BufReader::new(stream)
        .lines()
        .map(Result::unwrap)
        .collect();
    assert_eq!(words, ["stage init 0.10", "ready 0.20"]);
    let info = info(&mut client);
    assert_eq!(
        (&info["id"], &info["state"]),
        (&"fake-1".into(), &"Running".into())
    );
    let again = client.send(&Request::action(Action::InstanceStart)).unwrap_err();
    assert!(
        again.to_string().contains("not supported after starting"),
        "{again}"
    );
    let console = std::io::BufReader::new(fake.child.stdout.take().unwrap());
    assert!(
        console
            .lines()
            .map_while(Result::ok)
            .any(|line| line == "hello from the console")
    );
    let trace = std::fs::read_to_string(fake.vm.join("trace")).unwrap();
    let second = trace.lines().nth(1).unwrap();
    assert_eq!(
        second,
        r#"PUT /boot-source {"kernel_image_path":"vmlinux","boot_args":"quiet"}"#
    );
}

#[test]
fn each_fault_shows_as_its_own_error() {
    let on = |endpoint: &str| Some(endpoint.to_owned());
    let boot_with = |script: &Script| {
        let fake = start(script);
        let mut client = client(&fake.vm);
        client.stream().set_limit(Duration::from_secs(2));
        boot(&mut client, &plan()).unwrap_err()
    };
    let refused = boot_with(&Script {
        fail_request: Some(2),
        ..Script::default()
    });
    assert!(
        matches!(&refused, ClientError::Fault { endpoint, status: 400, .. } if endpoint.path == "/boot-source")
    );
    let stalled = boot_with(&Script {
        stall_on: on("PUT /vsock"),
        ..Script::default()
    });
    assert!(
        matches!(&stalled, ClientError::TimedOut { endpoint } if endpoint.path == "/vsock"),
        "{stalled:?}"
    );
    for script in [
        Script {
            close_on: on("PUT /actions"),
            ..Script::default()
        },
        Script {
            exit_on: on("PUT /actions"),
            ..Script::default()
        },
    ] {
        let closed = boot_with(&script);
        assert!(
            matches!(&closed, ClientError::Closed { endpoint } if endpoint.path == "/actions"),
            "{closed:?}"
        );
    }
}

#[test]
fn it_refuses_what_the_real_one_refuses() {
    let fake = start(&Script::default());
    let mut client = client(&fake.vm);
    let mut misspelt = Request::get("/machine-config");
    misspelt.endpoint.method = crabbox_fc::Method::Put;
    for (body, words) in [
        (
            r#"{"vcpu_count":1,"mem_size_mib":128,"bogus":1}"#,
            "unknown field `bogus`",
        ),
        (r#"{"vcpu_count":1}"#, "missing field `mem_size_mib`"),
        (r#"{"vcpu_count":0,"mem_size_mib":128}"#, "number of vCPUs"),
    ] {
        misspelt.body = Some(body.into());
        let error = client.send(&misspelt).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let mut absent = plan();
    absent.drives[0].path_on_host = "absent".into();
    let error = boot(&mut client, &absent).unwrap_err();
    assert!(error.to_string().contains("No such file or directory"), "{error}");
}

#[test]
fn a_guest_that_ends_ends_the_fake_and_a_taken_socket_is_refused() {
    let mut fake = start(&Script {
        exit_after_start_ms: Some(1),
        ..Script::default()
    });
    let mut client = client(&fake.vm);
    let again = Cmd::new(env!("CARGO_BIN_EXE_fake-firecracker"))
        .args(["--api-sock", "api.sock"])
        .cwd(&fake.vm);
    assert_eq!(
        again.capture().unwrap().status.code(),
        Some(1),
        "the socket is in use"
    );
    boot(&mut client, &plan()).unwrap();
    let ended = clock::poll_until(Duration::from_secs(10), || fake.child.try_wait().unwrap());
    assert_eq!(ended.unwrap().code(), Some(0));
}

#[test]
fn a_jailed_one_lies_where_the_layout_says_and_joins_the_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let exec_file = std::fs::canonicalize(env!("CARGO_BIN_EXE_fake-firecracker")).unwrap();
    let layout = JailLayout::new(&dir.path().join("jails"), &exec_file, "fake-2".parse().unwrap()).unwrap();
    prepare(&layout.root(), &Script::default());
    // A network namespace for the test, held by a process in it.
    let holder = Cmd::new("unshare").args(["--net", "sleep", "600"]);
    let mut holder = holder
        .spawn(holder.to_std().stdout(Stdio::null()).stderr(Stdio::null()))
        .unwrap();
    let netns = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let other = clock::poll_until(Duration::from_secs(5), || {
        std::fs::read_link(&netns).ok().filter(|found| *found != own)
    });
    let launch = JailLaunch {
        jailer: env!("CARGO_BIN_EXE_fake-jailer").into(),
        layout: layout.clone(),
        uid: 1000,
        gid: 1000,
        netns: Some(netns),
        cgroup: Cgroup::default(),
        resource_limits: Vec::new(),
        options: VmmOptions::new("api.sock"),
    };
    let child = spawn(&launch.argv(), dir.path());
    let mut fake = Fake {
        child,
        vm: layout.root(),
        _dir: dir,
    };
    let mut client = client(&fake.vm);
    let info = info(&mut client);
    let pid = fake.child.id();
    let joined = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    fake.child.kill().unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(info["id"], "fake-2", "the jailer gives the id");
    assert_eq!(
        std::fs::read_to_string(layout.root().join("fake-firecracker.pid")).unwrap(),
        pid.to_string()
    );
    assert_eq!(Some(joined), other);
}

#[test]
fn both_say_their_version_as_the_real_ones_do() {
    for (binary, name) in [
        (env!("CARGO_BIN_EXE_fake-firecracker"), "Firecracker"),
        (env!("CARGO_BIN_EXE_fake-jailer"), "Jailer"),
    ] {
        let said = Cmd::new(binary).arg("--version").run().unwrap().stdout_text();
        assert_eq!(said, format!("{name} v1.12.1"));
        assert_eq!(said.parse(), Ok(crabbox_fc::Version::new(1, 12, 1)));
    }
}

/// One line of the trace that was recorded from a real Firecracker 1.12.1.
#[derive(serde::Deserialize)]
struct Recorded {
    endpoint: String,
    body: Option<String>,
    answer: String,
}

#[test]
fn it_accepts_and_refuses_as_the_real_one_was_recorded_to() {
    let fake = start(&Script::default());
    for name in ["initrd.img", "base.ext4"] {
        std::fs::write(fake.vm.join(name), "x").unwrap();
    }
    let mut client = client(&fake.vm);
    let trace = include_str!("../../crabbox-fc/testdata/api-1.12.1.jsonl");
    let mut compared = 0;
    for line in trace.lines() {
        let recorded: Recorded = serde_json::from_str(line).unwrap();
        if recorded
            .body
            .as_deref()
            .is_some_and(|body| body.contains("InstanceStart"))
        {
            // The real one rejected the kernel, a file of zeros; the fake does not look at it.
            break;
        }
        let (method, path) = recorded.endpoint.split_once(' ').unwrap();
        let mut request = Request::get(path);
        request.endpoint.method = match method {
            "GET" => crabbox_fc::Method::Get,
            "PUT" => crabbox_fc::Method::Put,
            _ => crabbox_fc::Method::Patch,
        };
        request.body = recorded.body.clone().map(String::into_bytes);
        let status = match client.send(&request) {
            Ok(response) => response.status,
            Err(ClientError::Fault { status, .. }) => status,
            Err(error) => panic!("{line}: {error}"),
        };
        assert_eq!(
            Some(status.to_string().as_str()),
            recorded.answer.split(' ').nth(1),
            "{line}"
        );
        compared += 1;
    }
    assert!(compared > 30, "only {compared} requests were compared");
}
