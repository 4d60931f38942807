//! One step of a test run: a child process, measured in wall-clock time and in processor time, including its
//! children.
//!
//! It never judges a step by how long it took.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crabbox_host::command::Cmd;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Serialize;

/// Ticks per second in `/proc/<pid>/stat` (proc(5)): constant for programs on x86_64, whatever the kernel's
/// own rate is.
const USER_HZ: f64 = 100.0;

/// The measurements of a step.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    /// The step, or the file and the test.
    pub(super) name: String,
    /// Its wall-clock time.
    #[serde(rename = "wallSeconds")]
    pub(super) wall: f64,
    /// Its processor time; for a test in a lab, including the emulator's.
    #[serde(rename = "processorSeconds")]
    pub(super) processor: f64,
    /// Whether it succeeded.
    pub(super) passed: bool,
}

/// A step that was started.
#[derive(Debug)]
pub(super) struct Started {
    name: String,
    child: Child,
    /// Notices the end of the child without reaping it, so that its pid is not reused.
    ended: Option<JoinHandle<(Duration, f64)>>,
    words: Option<File>,
}

impl Started {
    /// Starts a step with its output shown.
    pub(super) fn shown(name: &str, cmd: &Cmd) -> Result<Self> {
        eprintln!("xtask: {name}: {}", line(cmd));
        Self::start(name, cmd, cmd.to_std(), None)
    }

    /// Starts a step whose output is kept until its end, so that it does not mix with that of others.
    pub(super) fn kept(name: &str, cmd: &Cmd) -> Result<Self> {
        let words = tempfile::tempfile()?;
        let mut command = cmd.to_std();
        // Both share one file offset.
        command.stdout(words.try_clone()?).stderr(words.try_clone()?);
        Self::start(name, cmd, command, Some(words))
    }

    /// Starts a step whose standard output is captured, and whose standard error is shown.
    pub(super) fn stdout_kept(name: &str, cmd: &Cmd) -> Result<Self> {
        eprintln!("xtask: {name}: {}", line(cmd));
        let words = tempfile::tempfile()?;
        let mut command = cmd.to_std();
        command.stdout(words.try_clone()?);
        Self::start(name, cmd, command, Some(words))
    }

    fn start(name: &str, cmd: &Cmd, mut command: Command, words: Option<File>) -> Result<Self> {
        let began = Instant::now();
        command.stdin(Stdio::null());
        let child = cmd.spawn(&mut command)?;
        let pid = Pid::from_child(&child);
        let ended = std::thread::spawn(move || {
            let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            // It is our child and is not reaped before this thread has ended, so waiting cannot fail; a
            // signal only interrupts it.
            while matches!(waitid(WaitId::Pid(pid), exited), Err(rustix::io::Errno::INTR)) {}
            let wall = began.elapsed();
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            (wall, stat.map_or(0.0, |stat| processor_seconds(&stat)))
        });
        Ok(Self {
            name: name.to_owned(),
            child,
            ended: Some(ended),
            words,
        })
    }

    /// Waits for its end.
    pub(super) fn end(mut self) -> Result<Ended> {
        let waited = self.ended.take().map(JoinHandle::join);
        let (wall, processor) = waited.and_then(Result::ok).unwrap_or_default();
        let status = self.child.wait().context("cannot wait for a step")?;
        let mut words = String::new();
        if let Some(mut file) = self.words.take() {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
            words = String::from_utf8_lossy(&bytes).into_owned();
        }
        Ok(Ended {
            measured: Measured {
                name: self.name.clone(),
                wall: wall.as_secs_f64(),
                processor,
                passed: status.success(),
            },
            status,
            words,
        })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Already ended, unless a parallel step has failed.
        if let Some(ended) = self.ended.take() {
            self.child.kill().ok();
            ended.join().ok();
            self.child.wait().ok();
        }
    }
}

/// A step that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) measured: Measured,
    pub(super) status: ExitStatus,
    /// Its output, if that was kept.
    pub(super) words: String,
}

/// A command as a person would type it.
fn line(cmd: &Cmd) -> String {
    let argv = cmd.argv();
    let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// The processor time of this process and its reaped children so far, in seconds.
pub(super) fn processor_here() -> f64 {
    std::fs::read_to_string("/proc/self/stat").map_or(0.0, |stat| processor_seconds(&stat))
}

/// The processor time of a process and its reaped children (`utime`, `stime`, `cutime` and `cstime` of
/// proc(5)), in seconds.
fn processor_seconds(stat: &str) -> f64 {
    // The name in brackets may contain spaces; `utime` is field 14, and the state after the name is field 3.
    let fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / USER_HZ
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_is_its_own_and_that_of_its_children() {
        let stat = "7 (a) b) Z 1 2 3 4 5 6 7 8 9 10 100 20 3000 400 0 0";
        assert!((processor_seconds(stat) - 35.2).abs() < 1e-9);
        assert!(processor_seconds("nothing").abs() < 1e-9);
    }

    #[test]
    fn a_step_is_measured_with_what_its_children_computed() {
        let cmd = Cmd::inheriting("sh").args([
            "-c",
            "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; echo said; exit 3",
        ]);
        let ended = Started::kept("count", &cmd).unwrap().end().unwrap();
        assert_eq!((ended.words.as_str(), ended.status.code()), ("said\n", Some(3)));
        assert!(!ended.measured.passed);
        assert!(ended.measured.processor > 0.0, "{:?}", ended.measured);
        // This machine may be busy otherwise; one thread cannot compute longer than it lives, except for the
        // size of a tick.
        assert!(
            ended.measured.wall + 0.1 > ended.measured.processor,
            "{:?}",
            ended.measured
        );
    }

    #[test]
    fn a_step_that_nobody_waits_for_is_ended() {
        let started = Started::kept("sleep", &Cmd::inheriting("sleep").arg("1000")).unwrap();
        let stat = format!("/proc/{}/stat", started.child.id());
        assert!(std::fs::exists(&stat).unwrap());
        drop(started);
        assert!(!std::fs::exists(&stat).unwrap());
    }
}
