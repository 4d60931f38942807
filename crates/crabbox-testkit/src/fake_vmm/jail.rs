//! A stand-in for the jailer: it lays out the jail, enters the network namespace and executes the program.
//!
//! It sets resource limits, but drops no privileges, does not change the root directory and uses no cgroup:
//! confinement must be tested with the real one.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crabbox_host::command::Cmd;
use rustix::process::{Resource, Rlimit};

use super::say;

/// The flags that the fake uses.
#[derive(Debug, Default)]
struct Flags {
    id: Option<String>,
    exec_file: Option<PathBuf>,
    base: Option<PathBuf>,
    netns: Option<PathBuf>,
    limits: Vec<(Resource, u64)>,
    rest: Vec<OsString>,
}

/// Flags with a value that have no effect here.
const IGNORED: [&str; 5] = [
    "--uid",
    "--gid",
    "--cgroup-version",
    "--parent-cgroup",
    "--cgroup",
];

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Flags, String> {
    let mut flags = Flags::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or_else(|| format!("no value for {name}"));
        match name.as_str() {
            "--id" => flags.id = Some(value()?.to_string_lossy().into_owned()),
            "--exec-file" => flags.exec_file = Some(value()?.into()),
            "--chroot-base-dir" => flags.base = Some(value()?.into()),
            "--netns" => flags.netns = Some(value()?.into()),
            "--resource-limit" => flags.limits.push(limit(&value()?.to_string_lossy())?),
            other if IGNORED.contains(&other) => drop(value()?),
            "--" => {
                flags.rest = args.collect();
                break;
            }
            _ => return Err(format!("unknown flag {name}")),
        }
    }
    Ok(flags)
}

/// A limit in the real one's format, `fsize=4096`.
fn limit(text: &str) -> Result<(Resource, u64), String> {
    let invalid = || format!("Invalid format for resources limits: {text}");
    let (name, value) = text.split_once('=').ok_or_else(invalid)?;
    let resource = match name {
        "fsize" => Resource::Fsize,
        "no-file" => Resource::Nofile,
        _ => return Err(invalid()),
    };
    Ok((resource, value.parse().map_err(|_| invalid())?))
}

/// The program `fake-jailer`, without its own name in `args`. Returns only on failure.
pub fn jailer_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if args.iter().any(|arg| arg == "--version") {
        say(&format!("Jailer v{}\n", super::VERSION));
        return ExitCode::SUCCESS;
    }
    let problem = parse(args).and_then(|flags| enter(&flags));
    say(&format!("Jailer error: {}", problem.err().unwrap_or_default()));
    // The real one panics, with the exit code of an abort.
    ExitCode::from(134)
}

fn enter(flags: &Flags) -> Result<(), String> {
    let id = flags.id.as_deref().unwrap_or_default();
    if !(1..=64).contains(&id.len())
        || !id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        return Err(format!("Invalid instance ID: {id}"));
    }
    let exec_file = flags.exec_file.as_deref().unwrap_or(Path::new(""));
    let exec_file = exec_file
        .canonicalize()
        .map_err(|error| format!("{}: {error}", exec_file.display()))?;
    let name = exec_file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    if !name.contains("firecracker") {
        return Err(format!(
            "Invalid filename. The filename of `--exec-file` option must contain \"firecracker\": {name}"
        ));
    }
    let base = flags.base.as_deref().unwrap_or(Path::new("/srv/jailer"));
    let root = base.join(&name).join(id).join("root");
    let io = |error: std::io::Error| format!("{}: {error}", root.display());
    std::fs::create_dir_all(root.join("dev/net")).map_err(io)?;
    std::fs::create_dir_all(root.join("run")).map_err(io)?;
    std::fs::write(root.join(format!("{name}.pid")), std::process::id().to_string()).map_err(io)?;
    for (resource, value) in &flags.limits {
        let both = Rlimit {
            current: Some(*value),
            maximum: Some(*value),
        };
        rustix::process::setrlimit(*resource, both).map_err(|errno| format!("setrlimit: {errno}"))?;
    }
    if let Some(netns) = &flags.netns {
        let file = std::fs::File::open(netns).map_err(|error| format!("{}: {error}", netns.display()))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)
            .map_err(|error| format!("{}: {error}", netns.display()))?;
    }
    let times = [
        "--start-time-us",
        "0",
        "--start-time-cpu-us",
        "0",
        "--parent-cpu-time-us",
        "0",
    ];
    let program = Cmd::new(&exec_file)
        .args(["--id", id])
        .args(times)
        .args(&flags.rest)
        .cwd(&root);
    Err(program.to_std().exec().to_string())
}
