//! `logs`: the log of the guest's console, of the VMM or of the supervisor, printed once or followed.

use std::time::Duration;

use crabbox_core::fault::{self, Fault, Kind};
use crabbox_host::clock;
use crabbox_host::console::harmless;
use crabbox_machine::context::LeaseDir;
use crabbox_machine::control::{Pong, Reply, Verb, client};
use crabbox_machine::lease::logs::{self, Log, Source};
use crabbox_machine::log_filter::LogFilter;
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::LogsArgs;
use crate::commands::lease::route;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit, Printer};

/// How often a followed log is polled; fast enough for a person.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// No lease was named.
    #[error(
        "usage: crabbox logs [--console|--vmm|--supervisor [--level FILTER]] [--tail N] [--follow] <lease-id-or-slug>"
    )]
    Lease,
    /// Two logs at once.
    #[error("{0} and {1} exclude each other")]
    Both(&'static str, &'static str),
    /// A level for a log that has none.
    #[error("--level needs --supervisor")]
    Level,
    /// Only the machine that has the lease can do this.
    #[error("{0} is not supported for a lease on another machine; use it there")]
    Far(&'static str),
    /// The supervisor does not take the level.
    #[error("the supervisor refuses: {0}")]
    Refused(String),
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// A log, as `--json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct LogView {
    /// The lease, as it was named.
    lease: String,
    /// `console`, `vmm` or `supervisor`.
    source: &'static str,
    /// The lines that were asked for. What is not UTF-8 in it is U+FFFD.
    log: String,
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &LogsArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage::Lease)?;
    if args.json && args.follow {
        return Err(Usage::Both("--json", "--follow").into());
    }
    let source = source(args)?;
    let filter = filter(args)?;
    let (engine, provider) = route::to_lease(ctx, &args.keys.values, name, "logs")?;
    let (mut log, bytes) = match provider.far_log(name, source)? {
        Some(_) if args.follow => return Err(Usage::Far("--follow").into()),
        Some(_) if filter.is_some() => return Err(Usage::Far("--level").into()),
        Some(text) => (None, text.into_bytes()),
        None => {
            let (log, bytes) = logs::open(&engine, name, source)?;
            if source == Source::Supervisor {
                ask(ctx, log.dir(), filter)?;
            }
            (Some(log), bytes)
        }
    };
    if args.json {
        ctx.printer.json(&LogView {
            lease: name.to_owned(),
            source: match source {
                Source::Console => "console",
                Source::Vmm => "vmm",
                Source::Supervisor => "supervisor",
            },
            log: String::from_utf8_lossy(last_lines(&bytes, args.tail)).into_owned(),
        })?;
        return Ok(Exit::SUCCESS);
    }
    let mut shown = Shown::new(ctx.printer);
    shown.put(last_lines(&bytes, args.tail));
    if let Some(log) = log.as_mut().filter(|_| args.follow) {
        follow(ctx, log, &mut shown)?;
    }
    shown.finish();
    Ok(Exit::SUCCESS)
}

/// The requested log; the console by default.
fn source(args: &LogsArgs) -> Result<Source, Usage> {
    let choices = [
        (args.console, "--console", Source::Console),
        (args.vmm, "--vmm", Source::Vmm),
        (args.supervisor, "--supervisor", Source::Supervisor),
    ];
    let mut chosen = choices.into_iter().filter(|(given, ..)| *given);
    match (chosen.next(), chosen.next()) {
        (Some((_, one, _)), Some((_, other, _))) => Err(Usage::Both(one, other)),
        (Some((.., source)), None) => Ok(source),
        (None, _) => Ok(Source::Console),
    }
}

/// The requested level, checked before anything else happens.
fn filter(args: &LogsArgs) -> Result<Option<String>, CommandError> {
    let Some(filter) = &args.level else {
        return Ok(None);
    };
    if !args.supervisor {
        return Err(Usage::Level.into());
    }
    filter.parse::<LogFilter>()?;
    Ok(Some(filter.clone()))
}

/// Sets the supervisor's log level, and prints the current one. A supervisor that does not reply is an error only if a level was requested.
fn ask(ctx: &Ctx<'_>, dir: &LeaseDir, filter: Option<String>) -> Result<(), CommandError> {
    if let Some(filter) = filter
        && let Reply::Refused { why } = client::ask(dir, &Verb::LogLevel { filter })?
    {
        return Err(Usage::Refused(why).into());
    }
    match client::ask(dir, &Verb::Ping) {
        Ok(Reply::Pong(pong)) => {
            let Pong {
                pid,
                program,
                phase,
                log,
            } = pong;
            ctx.printer.note(format_args!(
                "supervisor pid={pid} release={program} phase={phase} log={log}"
            ));
        }
        Ok(_) => {}
        Err(error) => tracing::debug!("{}", fault::chain(&error)),
    }
    Ok(())
}

/// Prints what is written until the lease ends or the reader is gone. Ctrl-C ends the program, because there is nothing to undo.
fn follow(ctx: &Ctx<'_>, log: &mut Log, shown: &mut Shown<'_>) -> Result<(), CommandError> {
    loop {
        // Check before reading, so that everything written until then is read.
        let over = log.is_over();
        shown.put(&log.more()?);
        if over || !ctx.printer.has_reader() {
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

/// Log text for standard output: unchanged to a pipe or file, without control characters to a terminal.
struct Shown<'a> {
    printer: &'a Printer,
    /// The start of an incomplete line; only used for terminals.
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
        // Print whole lines only: an escape sequence may be split anywhere else.
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
