//! One command of a proof: runs it and records both output streams in order.
//!
//! It must never wait for ever, neither for the command nor for a pipe that another process holds open.

use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crabbox_host::clock;
use crabbox_host::command::Cmd;
use crabbox_host::process::Signal;
use crabbox_host::signals::Interrupts;
use rustix::process::{Pid, kill_process, kill_process_group};

/// The longest that a command may take: making a lease on an emulated host, with everything that it waits
/// for.
const LIMIT: Duration = Duration::from_mins(15);
/// How long an interrupted command may take to clean up.
const GRACE: Duration = Duration::from_mins(2);
/// How long its output is read after it has ended.
const LINGER: Duration = Duration::from_secs(2);
/// How much of the end of its output is kept, in bytes.
const KEPT: usize = 256 * 1024;

/// A command to run.
pub(super) struct Step<'a> {
    pub(super) cmd: Cmd,
    /// Its standard input.
    pub(super) input: Option<&'a str>,
    /// Interrupts to forward to it; `None` if it must run to its end.
    pub(super) interrupts: Option<&'a Interrupts>,
}

/// The result of a command.
#[derive(Debug, Default)]
pub(super) struct Ran {
    /// Its exit code; `None` if a signal ended it, or it was never started.
    pub(super) exit: Option<u8>,
    /// Its output.
    pub(super) output: String,
    pub(super) millis: u64,
}

/// Milliseconds since `began`.
pub(super) fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Step<'_> {
    pub(super) fn run(self) -> Ran {
        let began = Instant::now();
        let (exit, output) = match self.to_its_end() {
            Ok((exit, output)) => (exit, output),
            Err(error) => (None, format!("cannot run it: {error}")),
        };
        Ran {
            exit,
            output,
            millis: millis(began),
        }
    }

    fn to_its_end(&self) -> std::io::Result<(Option<u8>, String)> {
        let (mut reader, writer) = std::io::pipe()?;
        let mut command = self.cmd.to_std();
        command.stdout(writer.try_clone()?).stderr(writer);
        command.stdin(if self.input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let mut child = self.cmd.spawn(&mut command).map_err(std::io::Error::other)?;
        // The command holds our ends of the pipe, and would keep it open.
        drop(command);
        if let (Some(text), Some(mut pipe)) = (self.input, child.stdin.take()) {
            // A command that ends without reading its input is judged by its status. The text always fits
            // into the pipe, so this cannot block.
            pipe.write_all(text.as_bytes()).ok();
        }
        let kept = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&kept);
        let reading = std::thread::spawn(move || {
            let mut piece = [0; 8192];
            while let Ok(count @ 1..) = reader.read(&mut piece) {
                let mut kept = into.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&piece[..count]);
                let over = kept.len().saturating_sub(KEPT);
                kept.drain(..over);
            }
        });
        let pid = Pid::from_child(&child);
        let began = Instant::now();
        let mut asked: Option<Instant> = None;
        let status = clock::poll_until(LIMIT + GRACE, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            let wanted = self
                .interrupts
                .is_some_and(|interrupts| interrupts.caught().is_some());
            if asked.is_none() && (wanted || began.elapsed() > LIMIT) {
                asked = Some(Instant::now());
                kill_process(pid, Signal::INT).ok();
            }
            if asked.is_some_and(|asked| asked.elapsed() > GRACE) {
                kill_process_group(pid, Signal::KILL).ok();
            }
            None
        });
        if status.is_none() {
            kill_process_group(pid, Signal::KILL).ok();
            child.wait().ok();
        }
        // A surviving child may hold the pipe open; do not wait for it any longer.
        clock::poll_until(LINGER, || reading.is_finished().then_some(()));
        let bytes = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let exit = status
            .filter(|status| status.signal().is_none())
            .and_then(|status| status.code());
        Ok((
            exit.and_then(|code| u8::try_from(code).ok()),
            String::from_utf8_lossy(&bytes).into_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(script: &str, input: Option<&str>) -> Ran {
        let cmd = Cmd::new("sh").args(["-c", script]).own_group().dies_with_us();
        Step {
            cmd,
            input,
            interrupts: None,
        }
        .run()
    }

    #[test]
    fn both_streams_are_seen_in_their_order_with_the_exit_code() {
        let ran = ran("echo one; echo two >&2; cat; exit 5", Some("three\n"));
        assert_eq!((ran.exit, ran.output.as_str()), (Some(5), "one\ntwo\nthree\n"));
    }

    #[test]
    fn one_that_a_signal_ends_has_no_exit_code_and_one_that_is_not_there_says_so() {
        assert_eq!(ran("kill -9 $$", None).exit, None);
        let cmd = Cmd::new("/nonexistent/program").own_group();
        let step = Step {
            cmd,
            input: None,
            interrupts: None,
        };
        let ran = step.run();
        assert!(
            ran.exit.is_none() && ran.output.contains("cannot run it"),
            "{ran:?}"
        );
    }

    #[test]
    fn who_holds_the_pipe_open_is_not_waited_for() {
        let began = Instant::now();
        let ran = ran("sleep 30 & echo done", None);
        assert_eq!((ran.exit, ran.output.as_str()), (Some(0), "done\n"));
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
