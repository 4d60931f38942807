//! The messages shown while a command enters a lease, and the offer to set up this host where it cannot make
//! one.

use std::time::Duration;

use crabbox_engine::entry::{Entry, EntryEvent, EntryEvents};
use crabbox_engine::provider::Notice;
use crabbox_engine::provider::error::LeaseError;
use crabbox_engine::stage::Stages;

use crate::commands::host::setup;
use crate::commands::lease::route;
use crate::context::Ctx;
use crate::ui::{Event, Printer};

/// Reports the steps of entering a lease.
pub(in crate::commands) struct Entering<'a> {
    /// Where it is printed.
    pub(in crate::commands) ctx: &'a Ctx<'a>,
    /// The command.
    pub(in crate::commands) command: &'static str,
}

impl Stages for Entering<'_> {
    fn began(&self, stage: &'static str) {
        self.ctx.printer.began(stage);
    }

    fn ended(&self, stage: &'static str, took: Duration, ok: bool) {
        self.ctx.printer.ended(stage, took, ok);
    }
}

impl EntryEvents for Entering<'_> {
    fn entry(&self, event: &EntryEvent<'_>) {
        let printer = self.ctx.printer;
        match event {
            EntryEvent::Routed { lease, provider } => route::log(lease, *provider, self.command),
            EntryEvent::Unfollowed { lease, flags } => {
                let [apply, flags] = match flags {
                    [one] => ["applies", &format!("--{one}")],
                    several => ["apply", &format!("--{}", several.join(", --"))],
                };
                printer.warn_once(format_args!(
                    "{flags} {apply} only when a lease is made; lease {} stays as it is",
                    lease.id
                ));
            }
            EntryEvent::Notice(notice) => show(self.ctx, notice),
            EntryEvent::Retrying(error) => printer.warn(format_args!(
                "bootstrap failed; retrying with fresh lease: {error}"
            )),
            EntryEvent::Console(lines) => console_tail(printer, lines),
            EntryEvent::Leased { lease, new } => printer.event(&Event::Leased {
                lease: &lease.id,
                slug: &lease.slug,
                provider: lease.provider,
                address: &lease.address,
                new: *new,
            }),
            EntryEvent::Provisioned(lease) => printer.detail(format_args!(
                "provisioned provider={} lease={} vmid={} ip={}",
                lease.provider, lease.id, lease.name, lease.address
            )),
        }
    }

    fn set_up(
        &self,
        entry: &Entry<'_>,
        agreed: bool,
        error: Option<&LeaseError>,
    ) -> Result<bool, LeaseError> {
        setup::offer(self.ctx, entry.engine, entry.settings, agreed, error)
    }
}

/// The last console lines of a machine that did not come up.
pub(in crate::commands) fn console_tail(printer: &Printer, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    printer.note(format_args!("console tail last {} lines:", lines.len()));
    for line in lines {
        printer.note(format_args!("  {line}"));
    }
}

/// A provider's notice on the way.
fn show(ctx: &Ctx<'_>, notice: &Notice<'_>) {
    match notice {
        Notice::Stage(stage) => {
            let name = format!("lease/{}", stage.name);
            ctx.printer.event(&Event::StageEnded {
                stage: &name,
                seconds: Duration::from_micros(stage.micros).as_secs_f64(),
                ok: true,
            });
        }
        Notice::Using {
            lease,
            slug,
            host,
            keep,
        } => ctx.printer.detail(format_args!(
            "using static target lease={lease} slug={slug} target=linux windows_mode=normal host={host} keep={keep}"
        )),
        Notice::NotPooled { lease, why } => ctx.printer.detail(format_args!(
            "not taken from the pool: lease={}: {why}",
            lease.unwrap_or("-")
        )),
        Notice::Waiting(progress) => ctx.printer.note(progress),
        Notice::Queued(text) => ctx.printer.note(text),
        Notice::Without { text } => ctx.printer.warn(crabbox_host::console::harmless(text)),
        Notice::Cold { why, console } => {
            console_tail(ctx.printer, console);
            ctx.printer.warn(format_args!(
            "the machine boots, since its template cannot be used: {why}; `crabbox image warm` makes a new one"
            ));
        }
    }
}
