//! git, as the agent calls it in the tree.
//!
//! It must never run a hook or a monitor of the repository, nor be led elsewhere by the environment.

use std::fs::File;
use std::process::{Command, Stdio};

use crate::failure::{At as _, Failure, said};

/// Nothing of the repository runs but git itself.
const QUIET: [&str; 6] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
];

/// Where a repository has its index, seen from the tree.
pub(crate) const INDEX: &str = ".git/index";

/// What git reads.
#[derive(Debug)]
pub(crate) enum Feed {
    Nothing,
    File(File),
}

/// What git said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) success: bool,
    code: i32,
    pub(crate) out: Vec<u8>,
    err: String,
}

/// Runs git in the current directory.
pub(crate) fn git(args: &[&str], feed: &Feed) -> Result<Said, Failure> {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
        }
    }
    let stdin = match feed {
        Feed::Nothing => Stdio::null(),
        Feed::File(file) => file.try_clone().trying("start git")?.into(),
    };
    command.args(QUIET).args(args).env("LC_ALL", "C");
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::Refused("there is no git in the lease".to_owned()),
        _ => Failure::Refused(format!("git cannot be started: {}", said(&error))),
    })?;
    let output = child.wait_with_output().trying("read what git says")?;
    Ok(Said {
        success: output.status.success(),
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs git, which must succeed; what it printed.
pub(crate) fn must_git(args: &[&str], feed: &Feed) -> Result<Vec<u8>, Failure> {
    let done = git(args, feed)?;
    if done.success {
        return Ok(done.out);
    }
    let verb = args
        .iter()
        .find(|word| !word.starts_with('-') && !word.contains('='))
        .unwrap_or(&"");
    let why = match done.err.lines().last() {
        Some(line) => line.to_owned(),
        None => format!("exit code {}", done.code),
    };
    Err(Failure::Refused(format!("git {verb}: {why}")))
}
