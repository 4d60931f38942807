//! The program behind `cargo xtask`: it compiles the tasks and replaces itself with them.
//!
//! The first compilation takes minutes, so it says so, and meanwhile installs the Debian packages that the
//! task will need. It uses nothing but the standard library, and must never decide anything that the tasks do
//! not check themselves.
#![expect(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "it is compiled before any other crate of the workspace, and by itself"
)]

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Error, IsTerminal as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Packages of this machine for building and running a lab, one per line.
const LAB: &str = include_str!("../../../crates/crabbox-lab/src/lab/packages/lab.list");

/// Installs its arguments, after `update`, because a fresh machine has no package lists.
const INSTALL: &str = r#"
options="-qq -o DPkg::Lock::Timeout=300 -o APT::Sandbox::User=root"
apt-get update $options && exec apt-get install -y --no-install-recommends $options "$@"
"#;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let first = !built().is_file();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("run");
    if first {
        eprintln!("xtask: compiling the developers' tasks, which takes a few minutes the first time");
        install_ahead(&needed(&arguments));
    }
    // Show cargo's progress only to a person who has to wait.
    if !first || !std::io::stderr().is_terminal() {
        cargo.arg("--quiet");
    }
    cargo.args(["--package", "xtask", "--"]).args(arguments);
    // cargo's variables about this package must not reach the next one: build scripts that depend on them
    // would run again.
    for (name, _) in env::vars_os() {
        let of_package = name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if of_package {
            cargo.env_remove(name);
        }
    }
    let error: Error = cargo.exec();
    eprintln!("xtask: cannot start {}: {error}", env!("CARGO"));
    ExitCode::FAILURE
}

/// The path of the compiled tasks.
fn built() -> PathBuf {
    let here = env::current_exe().unwrap_or_default();
    here.with_file_name("xtask")
}

/// The packages that a task requires.
fn needed(arguments: &[OsString]) -> Vec<&'static str> {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    // Only for command lines that the task will accept; for all others the task installs what it needs by
    // itself.
    let is_plain = matches!(
        words.as_slice(),
        ["demo" | "provision" | "test"]
            | ["test", "all" | "e2e" | "crash"]
            | ["demo" | "provision" | "test", "--name", _]
            | ["demo", "--record", _]
    );
    // Not the packages of the tests: the SSH server among them must be kept from starting.
    if is_plain && words.len() == arguments.len() {
        LAB.lines().collect()
    } else {
        Vec::new()
    }
}

/// Starts installing packages without waiting: the task installs those still missing by then, and reports
/// errors.
fn install_ahead(packages: &[&str]) {
    let is_there = |program: &str| Path::new("/usr/bin").join(program).is_file();
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|of| of.uid() == 0);
    if packages.is_empty() || !is_root || !is_there("apt-get") {
        return;
    }
    // dpkg-query fails if a package is unknown.
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status}\n"])
        .args(packages)
        .stderr(Stdio::null())
        .output();
    let installed = |text: &[u8]| {
        String::from_utf8_lossy(text)
            .lines()
            .all(|line| line == "installed")
    };
    if query.is_ok_and(|out| out.status.success() && installed(&out.stdout)) {
        return;
    }
    let log = built().with_file_name("xtask-packages.log");
    let Ok(output) = File::create(&log) else { return };
    let Ok(errors) = output.try_clone() else { return };
    // A separate process group: Ctrl-C must not kill dpkg in the middle of a package.
    let started = Command::new("sh")
        .args(["-c", INSTALL, "sh"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn();
    // The child is never reaped, which does not matter: it ends by itself.
    if started.is_ok() {
        eprintln!(
            "xtask: installing {} meanwhile (log: {})",
            packages.join(" "),
            log.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tasks_that_lease_wait_for_packages() {
        let needed = |line: &str| needed(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
        assert!(needed("demo --name main").contains(&"qemu-system-x86"));
        assert!(needed("test").contains(&"mmdebstrap"));
        for line in [
            "docs",
            "",
            "test --help",
            "demo -h",
            "test --bogus",
            "demo --nmae x",
            "test local",
        ] {
            assert_eq!(needed(line), [""; 0], "{line}");
        }
    }
}
