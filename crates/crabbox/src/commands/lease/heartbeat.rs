//! `heartbeat`: keeps a lease from running into its idle timeout.

use std::time::Duration;

use crabbox_core::duration::GoDuration;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::labels;
use crabbox_core::timestamp;
use crabbox_engine::provider::heartbeat;
use crabbox_engine::provider::lease::Lease;
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::HeartbeatArgs;
use crate::commands::lease::route;
use crate::context::Ctx;
use crate::go::{self, blank};
use crate::ui::{CommandError, Exit};

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// No lease was named.
    #[error("usage: crabbox heartbeat --id <lease-id-or-slug>")]
    Lease,
    /// The idle timeout would end the lease at once.
    #[error("idle timeout must be positive")]
    Idle,
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// What was done, as `--json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct HeartbeatView {
    /// The lease id.
    id: String,
    /// The lease's name for people.
    slug: String,
    /// The provider, by its canonical name.
    provider: &'static str,
    /// Its state.
    state: String,
    /// Now, RFC 3339 in UTC.
    last_touched_at: String,
    /// How long it may stand idle from now on, as Go writes durations.
    idle_timeout: String,
    /// When it ends unless it is used before, RFC 3339 in UTC.
    expires_at: String,
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &HeartbeatArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage::Lease)?;
    let idle = args.idle_timeout.map(positive).transpose()?;
    let (engine, provider) = route::to_lease(ctx, &args.keys.values, name, "heartbeat")?;
    let view = HeartbeatView::new(&heartbeat::heartbeat(
        &engine.places,
        provider.as_ref(),
        name,
        idle,
    )?);
    if args.json {
        ctx.printer.json(&view)?;
    } else {
        ctx.printer.line(view.line());
    }
    Ok(Exit::SUCCESS)
}

/// Labels count whole seconds, so a shorter timeout would be stored as zero.
fn positive(idle: GoDuration) -> Result<Duration, Usage> {
    Some(idle.to_std())
        .filter(|idle| idle.as_secs() > 0)
        .ok_or(Usage::Idle)
}

impl HeartbeatView {
    fn new(lease: &Lease) -> Self {
        let time = |name| {
            labels::time(&lease.labels, name)
                .map(timestamp::rfc3339)
                .unwrap_or_default()
        };
        Self {
            id: lease.id.clone(),
            slug: lease.slug.clone(),
            provider: lease.provider,
            state: lease.state.to_string(),
            last_touched_at: time("last_touched_at"),
            idle_timeout: go::seconds(lease.idle_seconds()),
            expires_at: time("expires_at"),
        }
    }

    fn line(&self) -> String {
        format!(
            "heartbeat lease={} slug={} provider={} state={} idle_timeout={} last_touched={} expires={}",
            self.id,
            blank(&self.slug),
            self.provider,
            self.state,
            self.idle_timeout,
            blank(&self.last_touched_at),
            blank(&self.expires_at),
        )
    }
}
