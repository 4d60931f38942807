//! A session for a person: `crabbox connect`.
//!
//! OpenSSH itself speaks to the terminal. It must never be used for a command whose status or output the
//! program needs.

use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;

use crabbox_host::command::{Cmd, CommandError};

use crate::target::{ArgvOptions, Target};

/// The `ssh` that [`connect`] runs; `tty` asks for a terminal on the other side.
pub fn command(target: &Target, tty: bool) -> Cmd {
    let argv = target.ssh_argv(ArgvOptions {
        tty,
        ..ArgvOptions::default()
    });
    let mut words = argv.into_iter();
    Cmd::new(words.next().unwrap_or_default())
        .args(words)
        .environment(target.environment())
}

/// Runs an interactive session on our own standard streams and returns its exit code: the remote shell's, 255
/// when the connection failed, 128 plus the number when a signal ended `ssh`.
pub fn connect(target: &Target) -> Result<i32, CommandError> {
    let cmd = command(target, std::io::stdin().is_terminal());
    let failed = |source| CommandError::Spawn {
        program: "ssh".to_owned(),
        source,
    };
    let mut child = cmd.spawn(&mut cmd.to_std())?;
    let status = child.wait().map_err(failed)?;
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}
