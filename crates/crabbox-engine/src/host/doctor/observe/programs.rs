//! The programs that leases are made with: their paths and versions.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_host::command::{Cmd, find_on_path};
use crabbox_host::digest;
use crabbox_image::fetch;
use crabbox_machine::context::Engine;

use super::super::world::{Binary, ObserveError, Tool, Tools, Vmm};
use crate::host::prepare::{self, PrepareError};

/// The time limit for a program to report its version.
const VERSION_LIMIT: Duration = Duration::from_secs(2);

/// Directories of administrators' programs, which are not on every user's `PATH`.
const ADMIN: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The programs, each with the argument that makes it print its version, if it has one.
const TOOLS: [(&str, Option<&str>); 9] = [
    ("git", Some("--version")),
    ("ssh", Some("-V")),
    ("ssh-keygen", None),
    ("rsync", Some("--version")),
    ("nft", Some("--version")),
    ("mke2fs", Some("-V")),
    ("e2fsck", Some("-V")),
    ("resize2fs", None),
    ("debugfs", None),
];

/// Looks for the programs and asks each for its version, all in parallel.
pub(in super::super) fn tools(path: &OsStr) -> Tools {
    std::thread::scope(|scope| {
        let asked = TOOLS.map(|(name, argument)| (name, scope.spawn(move || tool(name, argument, path))));
        asked
            .into_iter()
            .map(|(name, answer)| (name, answer.join().unwrap_or_default()))
            .collect()
    })
}

fn tool(name: &str, argument: Option<&str>, path: &OsStr) -> Option<Tool> {
    let admin = || {
        ADMIN
            .iter()
            .find_map(|dir| find_on_path(Path::new(dir).join(name).as_os_str(), path))
    };
    let path = find_on_path(OsStr::new(name), path).or_else(admin)?;
    let version = argument.and_then(|argument| {
        let said = Cmd::new(&path)
            .arg(argument)
            .limit(VERSION_LIMIT)
            .own_group()
            .capture()
            .ok()?;
        // ssh and the ext4 tools print it on standard error.
        version_in(&said.stdout_text()).or_else(|| version_in(&said.stderr_text()))
    });
    Some(Tool { path, version })
}

/// The first number with a dot in the first line of `text`.
fn version_in(text: &str) -> Option<Vec<u32>> {
    let line = text.lines().find(|line| !line.trim().is_empty())?;
    let numbers = line.split(|c: char| !c.is_ascii_digit() && c != '.');
    numbers.filter(|word| word.contains('.')).find_map(|word| {
        word.trim_matches('.')
            .split('.')
            .map(|number| number.parse().ok())
            .collect::<Option<Vec<u32>>>()
    })
}

/// Firecracker and its jailer, as leases will use them.
pub(super) fn vmm(engine: &Engine, plan: &FirecrackerPlan) -> Vmm {
    let pinned = [
        fetch::FIRECRACKER_SHA256.to_owned(),
        fetch::JAILER_SHA256.to_owned(),
    ];
    match prepare::programs(engine, plan) {
        Ok(programs) => Vmm {
            firecracker: Ok(binary(programs.firecracker)),
            jailer: Ok(programs.jailer.map(|jail| binary(jail.jailer))),
            pinned,
        },
        Err(PrepareError::NoJailer { firecracker, .. }) => Vmm {
            firecracker: Ok(binary(firecracker)),
            jailer: Ok(None),
            pinned,
        },
        Err(error) => {
            let words = look_path(&error);
            // Firecracker is looked for first, so if the jailer is missing, Firecracker was found.
            let found = find_on_path(plan.binary.as_path().as_os_str(), &engine.path);
            match (error, found) {
                (
                    PrepareError::Program {
                        key: "firecracker.jailer",
                        ..
                    },
                    Some(path),
                ) => Vmm {
                    firecracker: Ok(binary(path)),
                    jailer: Err(words),
                    pinned,
                },
                _ => Vmm {
                    firecracker: Err(words),
                    jailer: Ok(None),
                    pinned,
                },
            }
        }
    }
}

/// The error for a program that was not found, in the Go program's words.
fn look_path(error: &PrepareError) -> ObserveError {
    let PrepareError::Program { path, .. } = error else {
        return ObserveError::chain(error);
    };
    let shown = path.display();
    if path.components().count() == 1 {
        return ObserveError::new(format!("exec: \"{shown}\": executable file not found in $PATH"));
    }
    match std::fs::metadata(path) {
        Err(error) => ObserveError::new(format!(
            "exec: \"{shown}\": {}",
            ObserveError::call("stat", path, &error)
        )),
        Ok(facts) if facts.is_dir() => ObserveError::new(format!("exec: \"{shown}\": is a directory")),
        Ok(_) => ObserveError::new(format!("exec: \"{shown}\": permission denied")),
    }
}

fn binary(path: PathBuf) -> Binary {
    let version = fetch::probe_version(&path).map_err(|error| ObserveError::chain(&error));
    let digest = digest::sha256_file(&path).map_err(|error| ObserveError::chain(&error));
    Binary {
        version,
        digest,
        loose: loose(&path),
        path,
    }
}

/// The first of `path` and its parent directories that a user other than root may change. A directory with
/// the sticky bit is safe, because others cannot replace what is in it.
pub(in crate::host::doctor) fn loose(path: &Path) -> Option<PathBuf> {
    let real = std::fs::canonicalize(path).ok()?;
    let found = real.ancestors().find(|place| {
        std::fs::symlink_metadata(place).is_ok_and(|facts| {
            let open = facts.mode() & 0o022 != 0 && !(facts.is_dir() && facts.mode() & 0o1000 != 0);
            facts.uid() != 0 || open
        })
    });
    found.map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn versions_are_read_as_the_programs_print_them() {
        for (text, version) in [
            ("git version 2.39.5", vec![2, 39, 5]),
            (
                "OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026",
                vec![9, 2],
            ),
            ("rsync  version 3.5.0  protocol version 32", vec![3, 5, 0]),
            ("nftables v1.0.6 (Lester Gooch #5)", vec![1, 0, 6]),
            ("mke2fs 1.47.0 (5-Feb-2023)", vec![1, 47, 0]),
        ] {
            assert_eq!(version_in(text), Some(version), "{text}");
        }
        assert_eq!(version_in("no version here.\n1.2"), None);
        assert_eq!(version_in(""), None);
    }

    #[test]
    fn a_program_that_anyone_may_change_is_loose() {
        let dir = tempfile::tempdir_in("/").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = dir.path().join("firecracker");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(loose(&program), None);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(loose(&program).as_deref(), Some(dir.path()));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o775)).unwrap();
        assert_eq!(loose(&program), Some(program));
    }
}
