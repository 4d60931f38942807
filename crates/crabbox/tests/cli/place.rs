//! A temporary home and repository for a test, and the binary run in them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use rustix::process::{Pid, Signal, kill_process};

use crate::documents;

/// A home and a repository of one test.
pub(crate) struct Place {
    root: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["home/.config/crabbox", "repo/.git", "repo/sub", "outside"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        Self {
            root,
            variables: Vec::new(),
        }
    }

    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        fs::canonicalize(self.root.path()).unwrap().join(inside)
    }

    pub(crate) fn write(&self, inside: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(inside);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        self.variables
            .push((name.to_owned(), value.as_ref().to_str().unwrap().to_owned()));
        self
    }

    pub(crate) fn command(&self, words: &[&str]) -> std::process::Command {
        self.prepared(&Cmd::new(env!("CARGO_BIN_EXE_crabbox")).args(words))
    }

    /// The same with the default action for SIGHUP: under nohup it is ignored from the start, which the
    /// program respects.
    pub(crate) fn command_that_hears(&self, words: &[&str]) -> std::process::Command {
        let cmd = Cmd::new("/usr/bin/env").args(["--default-signal=HUP", env!("CARGO_BIN_EXE_crabbox")]);
        self.prepared(&cmd.args(words))
    }

    fn prepared(&self, cmd: &Cmd) -> std::process::Command {
        let mut command = cmd.to_std();
        command
            .env_clear()
            .env("HOME", self.path("home"))
            .env("CRABBOX_REGISTRY_DIR", self.path("registry"))
            .current_dir(self.path("repo"));
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Answer {
        let answer = answer(&mut self.command(words));
        documents::check(words, &answer);
        answer
    }

    /// Starts it in the background; nobody reads what it prints.
    pub(crate) fn start(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Starts it, and checks that one interrupt ends it once `begun` holds.
    pub(crate) fn interrupt(&self, words: &[&str], begun: impl Fn() -> bool) {
        let mut child = self.start(words);
        let has_begun = poll_until(Duration::from_mins(1), || begun().then_some(())).is_some();
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let status = poll_until(Duration::from_secs(30), || child.try_wait().unwrap());
        if status.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(has_begun, "{words:?}: it does not begin");
        let code = status.and_then(|status| status.code());
        assert_eq!(code, Some(130), "{words:?}: one interrupt is enough");
    }

    /// Like `run`, without the right to change networks, as for an ordinary user.
    pub(crate) fn run_without_net_admin(&self, words: &[&str]) -> Answer {
        let cmd =
            Cmd::new("/usr/bin/setpriv").args(["--bounding-set=-net_admin", env!("CARGO_BIN_EXE_crabbox")]);
        let answer = answer(&mut self.prepared(&cmd.args(words)));
        documents::check(words, &answer);
        answer
    }

    /// Pastes `line` into a shell that finds this program as `crabbox`.
    pub(crate) fn paste(&self, line: &str) -> Answer {
        let program = Path::new(env!("CARGO_BIN_EXE_crabbox"));
        let standing = self.variables.iter().find(|(name, _)| name == "PATH");
        let path = standing.map_or("/usr/bin:/bin", |(_, path)| path);
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let mut command = Cmd::new("/bin/sh").args(["-c", line]).to_std();
        command
            .env_clear()
            .env("HOME", self.path("home"))
            .current_dir(self.path("repo"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .env("PATH", path)
            .stdin(Stdio::null());
        answer(&mut command)
    }

    /// The value that `config explain` gives for a key, and its source.
    pub(crate) fn explain(&self, key: &str) -> (String, String) {
        let answer = self.run(&["config", "explain", "--json", key]);
        assert_eq!(answer.code, 0, "{}", answer.err);
        let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
        (
            json["value"].as_str().unwrap().to_owned(),
            json["source"].as_str().unwrap().to_owned(),
        )
    }
}

fn answer(command: &mut std::process::Command) -> Answer {
    let output = command.output().unwrap();
    Answer {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the binary in a place of its own.
pub(crate) fn run(words: &[&str]) -> Answer {
    Place::new().run(words)
}
