//! git, as the agent calls it in the tree.
//!
//! It must never run a hook or a monitor of the repository, nor be led elsewhere by the environment.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::bytes::BUFFER;
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

/// Git with these arguments, in the current directory.
fn quiet(args: &[&str]) -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
        }
    }
    command.args(QUIET).args(args).env("LC_ALL", "C");
    command
}

fn started(command: &mut Command) -> Result<Child, Failure> {
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::Refused("there is no git in the lease".to_owned()),
        _ => Failure::Refused(format!("git cannot be started: {}", said(&error))),
    })
}

/// Runs git in the current directory, and gives each name that it prints, NUL behind it, to `take`; whether it succeeded, without which it may not
/// have named all of them.
pub(crate) fn names(
    args: &[&str],
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let mut command = quiet(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = started(&mut command)?;
    let mut taken = Ok(());
    if let Some(out) = child.stdout.take() {
        let (mut out, mut name) = (BufReader::with_capacity(BUFFER, out), Vec::new());
        while taken.is_ok() && out.read_until(0, &mut name).trying("read what git says")? > 0 {
            if name.pop_if(|byte| *byte == 0).is_some() {
                taken = take(&name);
            }
            name.clear();
        }
    }
    // Nobody reads any more, which ends one that still writes.
    let status = child.wait().trying("wait for git")?;
    taken.map(|()| status.success())
}

/// Runs git in the current directory.
pub(crate) fn git(args: &[&str], feed: &Feed) -> Result<Said, Failure> {
    let stdin = match feed {
        Feed::Nothing => Stdio::null(),
        Feed::File(file) => file.try_clone().trying("start git")?.into(),
    };
    let mut command = quiet(args);
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = started(&mut command)?;
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
