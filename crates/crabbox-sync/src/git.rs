//! How this crate calls git: without the caller's redirecting environment, without taking locks, with plain messages.
//!
//! It must never let a `GIT_*` variable of the shell (a hook, an editor's terminal) point at another repository, and it
//! never writes into the user's repository.

use std::path::Path;

use crabbox_host::command::Cmd;

/// Variables that would redirect git to another repository, index or configuration, or change how it reads paths.
const REDIRECTS: [&str; 27] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INDEX_VERSION",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
    "GIT_LITERAL_PATHSPECS",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_EXTERNAL_DIFF",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
    "GIT_REPLACE_REF_BASE",
    "GIT_QUARANTINE_PATH",
    "GIT_TRACE",
    "GIT_TRACE2",
    "GIT_TRACE2_EVENT",
    "GIT_TRACE_SETUP",
];

/// `git -C <dir>` with a clean environment; locks that are only an optimisation are not taken.
pub(crate) fn git(dir: &Path) -> Cmd {
    let mut cmd = Cmd::new("git").arg("--no-optional-locks").arg("-C").arg(dir);
    for name in REDIRECTS {
        cmd = cmd.env_remove(name);
    }
    cmd.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0")
}

/// The first line of what git said on standard error.
pub(crate) fn first_line(stderr: &str) -> String {
    stderr
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirecting_variables_are_taken_away() {
        let command = git(Path::new("/")).to_std();
        let removed: Vec<_> = command
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name)
            .collect();
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_COUNT"] {
            assert!(removed.contains(&std::ffi::OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn the_first_line_is_the_message() {
        assert_eq!(first_line("\n fatal: no\nhint: yes\n"), "fatal: no");
        assert_eq!(first_line(""), "no message");
    }
}
