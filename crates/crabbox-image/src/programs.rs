//! The programs of the guest contract: what a lease needs in a guest, and their paths in distributions.
//!
//! It is the only list: build, import and doctor each use their part of it. It must never contain a path that
//! only one of them checks.

use crabbox_guest_protocol::image::SSHD;

/// One program of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its paths in distributions; one of these is enough.
    pub places: &'static [&'static str],
    /// The Debian package.
    pub package: &'static str,
    /// The checks that require it.
    asked_by: &'static [Check],
}

/// A check of an image's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// `image build --from`, of a tree that gets our process 1.
    Tree,
    /// `image import`, of a root file system with its own init.
    Import,
    /// `doctor`, of the image that leases boot.
    Doctor,
}

use Check::{Doctor, Import, Tree};

/// The name of the program by which the lease's user becomes root. It must be set-uid root.
pub const SUDO: &str = "sudo";
/// The shell that runs every command in a lease, as `bash -lc`.
pub const BASH: &str = "bash";

/// The paths of a program that is found on `PATH`: the directories that an sshd without any configuration
/// searches for a user who is not root, in Debian's build of it as in the original. `sbin` is not among them.
macro_rules! on_path {
    ($name:literal) => {
        &[
            concat!("/usr/bin/", $name),
            concat!("/bin/", $name),
            concat!("/usr/local/bin/", $name),
        ]
    };
}

const PROGRAMS: [Program; 11] = [
    // `crabbox-guest` starts it by this path only.
    program("sshd", &[SSHD], "openssh-server", &[Tree]),
    program(
        "sshd",
        &[SSHD, "/usr/bin/sshd"],
        "openssh-server",
        &[Import, Doctor],
    ),
    program(
        BASH,
        &["/bin/bash", "/usr/bin/bash"],
        "bash",
        &[Tree, Import, Doctor],
    ),
    program("git", on_path!("git"), "git", &[Tree, Import, Doctor]),
    program("rsync", on_path!("rsync"), "rsync", &[Tree, Import, Doctor]),
    program("tar", on_path!("tar"), "tar", &[Tree, Doctor]),
    program("curl", on_path!("curl"), "curl", &[Tree]),
    program("jq", on_path!("jq"), "jq", &[Tree]),
    program(SUDO, on_path!("sudo"), "sudo", &[Tree]),
    program("sh", &["/bin/sh"], "dash", &[Tree]),
    program(
        "cloud-init",
        on_path!("cloud-init"),
        "cloud-init",
        &[Import, Doctor],
    ),
];

const fn program(
    name: &'static str,
    places: &'static [&'static str],
    package: &'static str,
    asked_by: &'static [Check],
) -> Program {
    Program {
        name,
        places,
        package,
        asked_by,
    }
}

/// The programs required by `check`, in the order in which they are reported.
pub fn of(check: Check) -> impl Iterator<Item = &'static Program> {
    PROGRAMS
        .iter()
        .filter(move |program| program.asked_by.contains(&check))
}

impl Program {
    /// Whether an image with the files `present` has it.
    pub fn is_among(&self, present: &[&str]) -> bool {
        self.places.iter().any(|place| present.contains(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(check: Check) -> Vec<&'static str> {
        of(check).map(|program| program.name).collect()
    }

    #[test]
    fn each_check_asks_once_for_a_program_at_all_its_places() {
        assert_eq!(
            names(Tree),
            ["sshd", "bash", "git", "rsync", "tar", "curl", "jq", "sudo", "sh"]
        );
        assert_eq!(names(Import), ["sshd", "bash", "git", "rsync", "cloud-init"]);
        assert_eq!(
            names(Doctor),
            ["sshd", "bash", "git", "rsync", "tar", "cloud-init"]
        );
        for program in PROGRAMS {
            for place in program.places {
                assert!(place.starts_with('/') && program.is_among(&[*place]), "{place}");
            }
            assert!(!program.is_among(&["/opt/x"]) && !program.is_among(&[]));
        }
    }
}
