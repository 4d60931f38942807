//! The serial console and the record of completed stages: the host reads them to see why a boot failed or
//! where its time went.
//!
//! It must never print anything from the seed but the host name: the host keeps this output in a file.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use crabbox_guest_protocol::report::{READY, STAGE};

use crate::clock;

/// Console and stage record of one boot.
#[derive(Debug)]
pub(crate) struct Console {
    device: Option<File>,
    /// Stage lines from an earlier process of this boot.
    before: String,
    stages: Vec<(String, Duration)>,
    current: Option<&'static str>,
    /// The uptime from which times count: zero, or when the machine was thawed.
    start: Duration,
}

impl Console {
    /// The console, if the kernel has one; without one the boot goes on without output.
    pub(crate) fn open() -> Self {
        Self {
            device: open_device(),
            before: String::new(),
            stages: Vec::new(),
            current: None,
            start: Duration::ZERO,
        }
    }

    /// Clears the stages and restarts the clock: the machine was frozen for an unknown time.
    pub(crate) fn restart(&mut self) {
        self.before.clear();
        self.stages.clear();
        self.current = None;
        self.start = clock::uptime();
    }

    /// Seconds since the machine's start, or since it was thawed.
    pub(crate) fn since_start(&self) -> String {
        seconds(clock::uptime().saturating_sub(self.start))
    }

    /// Opens the device again, once `/dev` exists.
    pub(crate) fn reopen(&mut self) {
        self.device = open_device().or_else(|| self.device.take());
    }

    /// Prints one line.
    pub(crate) fn say(&mut self, line: &str) {
        if let Some(device) = &mut self.device {
            // There is nowhere to report a broken console to.
            device
                .write_all(format!("crabbox-guest: {line}\n").as_bytes())
                .ok();
        }
    }

    /// Ends the current stage, if any, and begins `stage`.
    pub(crate) fn begin(&mut self, stage: &'static str) {
        self.end();
        self.current = Some(stage);
    }

    /// Ends the current stage: records it and prints its name and the uptime.
    pub(crate) fn end(&mut self) {
        if let Some(stage) = self.current.take() {
            let at = clock::uptime().saturating_sub(self.start);
            self.stages.push((stage.to_owned(), at));
            self.say(&format!("{stage} {}", seconds(at)));
        }
    }

    /// Records the event `what`, reported as a stage.
    pub(crate) fn note(&mut self, what: String) {
        self.end();
        let at = clock::uptime().saturating_sub(self.start);
        self.stages.push((what, at));
    }

    /// The current stage, for a failure message.
    pub(crate) fn current(&self) -> &'static str {
        self.current.unwrap_or("start")
    }

    /// Continues the stages that another process obtained from [`Console::stages`].
    pub(crate) fn resume(&mut self, stages: &str) {
        stages.clone_into(&mut self.before);
    }

    /// The stages so far, one per line.
    pub(crate) fn stages(&self) -> String {
        let mut text = self.before.clone();
        for (stage, at) in &self.stages {
            writeln!(text, "{STAGE} {stage} {}", seconds(*at)).ok();
        }
        text
    }

    /// The record in the form sent to the host: `stage` lines, then the `ready` line.
    pub(crate) fn report(&self) -> String {
        let mut text = self.stages();
        writeln!(text, "{READY} {}", self.since_start()).ok();
        text
    }

    /// Waits until the serial port has sent everything: an immediate reset would cut it off.
    pub(crate) fn drain(&self) {
        if let Some(device) = &self.device {
            rustix::termios::tcdrain(device).ok();
        }
    }
}

fn open_device() -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let noctty = i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).unwrap_or(0);
    File::options()
        .write(true)
        .custom_flags(noctty)
        .open("/dev/console")
        .ok()
}

fn seconds(at: Duration) -> String {
    format!("{}.{:03}", at.as_secs(), at.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_lists_stages_in_order_and_ends_with_ready() {
        let mut console = Console {
            device: None,
            before: "stage mounts 0.001\n".to_owned(),
            stages: Vec::new(),
            current: None,
            start: Duration::ZERO,
        };
        assert_eq!(console.current(), "start");
        console.begin("modules");
        console.begin("sshd");
        assert_eq!(console.current(), "sshd");
        console.end();
        let report = console.report();
        let words: Vec<_> = report
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .collect();
        assert_eq!(words[0], ["stage", "mounts", "0.001"]);
        assert_eq!(words[1][..2], ["stage", "modules"]);
        assert_eq!(words[2][..2], ["stage", "sshd"]);
        assert_eq!(words[3][0], "ready");
        assert_eq!(seconds(Duration::from_millis(1234)), "1.234");
        console.restart();
        console.begin("wake");
        console.end();
        let stages = console.stages();
        assert!(
            stages.starts_with("stage wake 0.") && stages.lines().count() == 1,
            "{stages}"
        );
    }
}
