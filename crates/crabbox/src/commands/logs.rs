//! `logs`: the guest's console, or the VMM's log, at once or as it grows.

use std::time::Duration;

use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::logs::{self, Log, Source};
use crabbox_host::clock;
use crabbox_host::console::harmless;

use crate::args::LogsArgs;
use crate::commands::route;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit, Printer};

/// How often a followed log is looked at; a person's eye is no quicker.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// No lease was named.
    #[error("usage: crabbox logs [--console|--vmm] [--tail N] [--follow] <lease-id-or-slug>")]
    Lease,
    /// Both logs at once.
    #[error("--console and --vmm exclude each other")]
    Both,
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(super) fn run(ctx: &Ctx<'_>, args: &LogsArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage::Lease)?;
    let source = match (args.console, args.vmm) {
        (true, true) => return Err(Usage::Both.into()),
        (_, true) => Source::Vmm,
        (_, false) => Source::Console,
    };
    let (engine, _) = route::to_lease(ctx, &args.keys.values, name, "logs")?;
    let (mut log, bytes) = logs::open(&engine, name, source)?;
    let mut shown = Shown::new(ctx.printer);
    shown.put(last_lines(&bytes, args.tail));
    if args.follow {
        follow(ctx, &mut log, &mut shown)?;
    }
    shown.finish();
    Ok(Exit::SUCCESS)
}

/// Shows what is written until the lease ends or nobody reads any more. A Ctrl-C ends the program: there is nothing to undo.
fn follow(ctx: &Ctx<'_>, log: &mut Log, shown: &mut Shown<'_>) -> Result<(), CommandError> {
    loop {
        // Asked before the read: what was written until then is certainly read.
        let over = log.is_over();
        shown.put(&log.more()?);
        if over || ctx.printer.is_deaf() {
            return Ok(());
        }
        clock::nap(LOOK_EVERY);
    }
}

/// The last `count` lines, all for 0.
fn last_lines(bytes: &[u8], count: usize) -> &[u8] {
    if count == 0 {
        return bytes;
    }
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let breaks = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1);
    let start = breaks.take(count).nth(count - 1).unwrap_or(0);
    &bytes[start..]
}

/// Log text on its way to standard output: as it is into a pipe or file, without control characters to a terminal.
struct Shown<'a> {
    printer: &'a Printer,
    /// The beginning of a line whose end has not come; only used for terminals.
    open: Vec<u8>,
}

impl<'a> Shown<'a> {
    fn new(printer: &'a Printer) -> Self {
        Self {
            printer,
            open: Vec::new(),
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if !self.printer.is_terminal() {
            self.printer.bytes(bytes);
            return;
        }
        self.open.extend_from_slice(bytes);
        // A terminal sequence may be cut anywhere, a line may not.
        while let Some(end) = self.open.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.open.drain(..=end).collect();
            self.printer.line(harmless(
                String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']),
            ));
        }
    }

    fn finish(self) {
        if !self.open.is_empty() {
            self.printer.line(harmless(&String::from_utf8_lossy(&self.open)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_last_lines_are_whole_ones() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"c");
        assert_eq!(last_lines(b"a\nb\n", 5), b"a\nb\n");
        assert_eq!(last_lines(b"a\nb\n", 0), b"a\nb\n");
        assert_eq!(last_lines(b"", 1), b"");
        assert_eq!(last_lines(b"\n\n", 1), b"\n");
    }
}
