//! Calls git in the tree.
//!
//! It must never run a hook or a monitor of the repository, nor work in a repository further up: neither the
//! environment, nor the guest's configuration, nor a damaged `.git` may lead it there. Whose the repository
//! is, git itself judges (`safe.directory`).

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::bytes::BUFFER;
use crate::failure::{At as _, Failure, said};

/// Keeps git from running hooks, an fsmonitor, or automatic garbage collection.
const QUIET: [&str; 6] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
];

/// The repository's index, relative to the tree.
pub(crate) const INDEX: &str = ".git/index";

/// What git gets on standard input.
#[derive(Debug)]
pub(crate) enum Feed {
    Nothing,
    File(File),
}

/// The result of a git command.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) success: bool,
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    err: String,
}

impl Said {
    /// Whether it succeeded without an error, which git reports about a configuration and may go on
    /// nevertheless.
    pub(crate) fn is_clean(&self) -> bool {
        self.success && !self.err.lines().any(|line| line.starts_with("error: "))
    }
}

/// The repository, relative to the tree.
const REPOSITORY: &str = ".git";

/// Whether a path can stand in a list of git's, which has colons between them.
fn is_one_word(path: &Path) -> bool {
    !path.as_os_str().as_bytes().contains(&b':')
}

/// Git with these arguments, for the repository in the current directory.
fn quiet(args: &[&str]) -> Command {
    quiet_in(&std::env::current_dir().unwrap_or_default(), args)
}

fn quiet_in(tree: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
        }
    }
    // It wins over `core.worktree` and `core.bare`.
    command.env("GIT_WORK_TREE", ".");
    // Where the repository here is damaged, git looks for one further up.
    match tree.parent().filter(|parent| is_one_word(parent)) {
        Some(parent) => command.env("GIT_CEILING_DIRECTORIES", parent),
        None => command.env("GIT_DIR", REPOSITORY),
    };
    command.args(QUIET).args(args).env("LC_ALL", "C");
    command
}

fn started(command: &mut Command) -> Result<Child, Failure> {
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::Refused("there is no git in the lease".to_owned()),
        _ => Failure::Refused(format!("git cannot be started: {}", said(&error))),
    })
}

/// Runs a git that only lists, whosever the repository is, and passes each NUL-terminated name that it prints
/// to `take`. Returns whether git succeeded; if not, the names may be incomplete.
pub(crate) fn names(
    args: &[&str],
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let mut command = quiet(args);
    command
        .env("GIT_DIR", REPOSITORY)
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
    // The read end is closed by now, so a git that still writes gets SIGPIPE and ends.
    let status = child.wait().trying("wait for git")?;
    taken.map(|()| status.success())
}

/// Runs git in the current directory.
pub(crate) fn git(args: &[&str], feed: &Feed) -> Result<Said, Failure> {
    let stdin = match feed {
        Feed::Nothing => Stdio::null(),
        Feed::File(file) => file.try_clone().trying("start git")?.into(),
    };
    said_by(quiet(args).stdin(stdin))
}

/// Runs git in the current directory, without the configuration of the user and of the host, and whosever the
/// repository is.
pub(crate) fn isolated_git(args: &[&str]) -> Result<Said, Failure> {
    let mut command = quiet(args);
    // HOME for a git older than 2.32, which does not know GIT_CONFIG_GLOBAL.
    for (name, value) in [
        ("GIT_DIR", REPOSITORY),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("HOME", "/nonexistent"),
        ("XDG_CONFIG_HOME", "/nonexistent"),
    ] {
        command.env(name, value);
    }
    said_by(command.stdin(Stdio::null()))
}

/// Makes a repository in `dir`, which need not exist; with ids of sha256 if they are to be long.
pub(crate) fn init(dir: &Path, is_long: bool) -> Result<(), Failure> {
    let args = ["init", "-q", "--template="];
    let mut command = quiet(&args);
    // With them set it would write where it finds the files.
    command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE");
    command.args(is_long.then_some("--object-format=sha256"));
    // Whatever the configuration of the user there prefers (git-init(1), git 2.42 and 2.45).
    command.env("GIT_DEFAULT_HASH", if is_long { "sha256" } else { "sha1" });
    command.env("GIT_DEFAULT_REF_FORMAT", "files");
    judged(&args, said_by(command.arg(dir).stdin(Stdio::null()))?).map(drop)
}

fn said_by(command: &mut Command) -> Result<Said, Failure> {
    let child = started(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let output = child.wait_with_output().trying("read what git says")?;
    Ok(Said {
        success: output.status.success(),
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs git and returns its output; an unsuccessful exit is an error.
pub(crate) fn must_git(args: &[&str], feed: &Feed) -> Result<Vec<u8>, Failure> {
    judged(args, git(args, feed)?)
}

/// What git printed, if it succeeded.
fn judged(args: &[&str], done: Said) -> Result<Vec<u8>, Failure> {
    if done.success {
        return Ok(done.out);
    }
    let verb = args
        .iter()
        .find(|word| !word.starts_with('-') && !word.contains('='))
        .unwrap_or(&"");
    let why = reason(&done.err).unwrap_or_else(|| format!("exit code {}", done.code));
    Err(Failure::Refused(format!("git {verb}: {why}")))
}

/// How git's advice for a repository of another user begins (setup.c of git).
const TRUST: &str = "git config --global --add safe.directory ";

/// The line that says what went wrong, with the command that git advises where it does not trust a
/// repository: the message is read on another machine.
fn reason(err: &str) -> Option<String> {
    let names_it = |line: &&str| line.starts_with("fatal: ") || line.starts_with("error: ");
    let line = err.lines().find(names_it).or_else(|| err.lines().last())?;
    let advised = err.lines().map(str::trim).find(|line| line.starts_with(TRUST));
    Some(match advised {
        Some(command) => format!("{line}; if you trust it, run in the lease: `{command}`"),
        None => line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_advises_about_another_user_s_repository_is_to_be_run_in_the_lease() {
        let said = "fatal: detected dubious ownership in repository at '/w x'\nTo add an exception for this directory, call:\n\n\t\
                    git config --global --add safe.directory '/w x'";
        assert_eq!(
            reason(said).as_deref(),
            Some(
                "fatal: detected dubious ownership in repository at '/w x'; if you trust it, run in the lease: \
                 `git config --global --add safe.directory '/w x'`"
            )
        );
        assert_eq!(
            reason("warning: a\nfatal: b\nhint: c").as_deref(),
            Some("fatal: b")
        );
        assert_eq!(reason("a\nb").as_deref(), Some("b"));
        assert_eq!(reason(""), None);
    }

    #[test]
    fn no_repository_further_up_is_used() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["w", "a:b/w"] {
            let tree = dir.path().join(name);
            std::fs::create_dir_all(tree.join(".git")).unwrap();
            let said = |git: &mut Command| git.current_dir(&tree).output().unwrap();
            let made = said(Command::new("git").args(["init", "-q"]).arg(dir.path()));
            assert!(made.status.success(), "{made:?}");
            let above = said(Command::new("git").args(["rev-parse", "--git-dir"]));
            assert!(above.status.success(), "{above:?}");
            let asked = said(&mut quiet_in(&tree, &["rev-parse", "--git-dir"]));
            assert_eq!(asked.status.code(), Some(128), "{name}: {asked:?}");
        }
    }
}
