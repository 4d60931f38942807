//! `status`: one line or one document about a lease, at once or when it is ready.

use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::state::LeaseState;
use crabbox_engine::provider::Provider;
use crabbox_engine::provider::lease::Lease;
use crabbox_host::clock;
use crabbox_machine::lease::find::Purpose;
use crabbox_workspace::session;

use crate::args::StatusArgs;
use crate::commands::lease::route;
use crate::commands::lease::screen::{Row, Watching};
use crate::commands::lease::views::StatusView;
use crate::context::Ctx;
use crate::go::blank;
use crate::ui::{CommandError, Exit};

/// How often the line is repeated while waiting.
const REPEAT: Duration = Duration::from_secs(5);
/// How often a waiting command looks: at a lease of this machine, and at one that is reached over the
/// network.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Why the wait failed.
#[derive(Debug, thiserror::Error)]
enum StatusError {
    /// No lease was named.
    #[error("usage: crabbox status --id <lease-id-or-slug>")]
    Usage,
    /// The wait timed out.
    #[error("timed out waiting for {id} to become ready")]
    TimedOut {
        /// The lease as the user named it.
        id: String,
    },
    /// It will never become ready.
    #[error("lease {id} reached terminal state {state} before ready")]
    Terminal {
        /// The lease.
        id: String,
        /// Its state.
        state: LeaseState,
    },
}

impl Fault for StatusError {
    fn kind(&self) -> Kind {
        match self {
            Self::Usage => Kind::Usage,
            Self::TimedOut { .. } | Self::Terminal { .. } => Kind::Unavailable,
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &StatusArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(StatusError::Usage)?;
    let (_, provider) = route::to_lease(ctx, &args.keys.values, name, "status")?;
    if args.watch {
        return watch(ctx, args.json, provider.as_ref(), name);
    }
    let deadline = Instant::now() + args.wait_timeout.to_std();
    let mut lease = provider.resolve(name, Purpose::Look)?;
    // Look up by id from here on, since the slug may belong to another lease by now.
    let id = lease.id.clone();
    loop {
        let view = view(&lease);
        if !args.wait || view.ready {
            if args.wait && view.ready {
                refresh(provider.as_ref(), &lease);
            }
            show(ctx, args.json, &view)?;
            warn_of_no_jail(ctx, &lease);
            return Ok(Exit::SUCCESS);
        }
        if !args.json {
            show(ctx, false, &view)?;
        }
        if lease.state.is_terminal() {
            return Err(StatusError::Terminal {
                id: lease.id,
                state: lease.state,
            }
            .into());
        }
        wait_for_change(provider.as_ref(), &lease, deadline);
        if Instant::now() >= deadline {
            return Err(StatusError::TimedOut { id: name.to_owned() }.into());
        }
        lease = provider.resolve(&id, Purpose::Look)?;
    }
}

/// Waits until the line is to be repeated, `deadline`, or another state of the lease: one that became ready
/// is reported at once.
fn wait_for_change(provider: &dyn Provider, lease: &Lease, deadline: Instant) {
    let end = deadline.min(Instant::now() + REPEAT);
    let (here, far) = LOOK_EVERY;
    let pause = if provider.is_far(lease) { far } else { here };
    let mut next = Instant::now() + pause;
    while Instant::now() < end {
        clock::nap(here);
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + pause;
        if provider
            .resolve(&lease.id, Purpose::Look)
            .is_ok_and(|now| now.state != lease.state)
        {
            return;
        }
    }
}

/// Keeps showing the lease until interrupted or the lease is gone.
fn watch(ctx: &Ctx<'_>, json: bool, provider: &dyn Provider, name: &str) -> Result<Exit, CommandError> {
    let mut lease = provider.resolve(name, Purpose::Look)?;
    let id = lease.id.clone();
    let mut watching = Watching::begin(ctx, json)?;
    loop {
        let view = view(&lease);
        let row = Row {
            lease: id.clone(),
            facts: format!("{} {} {} {}", view.state, view.ready, view.host, view.slug),
            line: line(&view),
        };
        if watching.show(&[row], json) && json {
            ctx.printer.json(&view)?;
        }
        if !watching.goes_on() {
            return Ok(Exit::SUCCESS);
        }
        // Look up by id, since the slug may belong to another lease by now.
        match provider.resolve(&id, Purpose::Look) {
            Ok(now) => lease = now,
            Err(error) if error.kind() == Kind::NotFound => {
                watching.show(&[], json);
                drop(watching);
                ctx.printer.note(format_args!("lease {id} is gone"));
                return Ok(Exit::SUCCESS);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The view of a lease, including whether it can be entered now.
pub(in crate::commands) fn view(lease: &Lease) -> StatusView {
    let ready = lease.state.is_usable() && lease.target.as_ref().is_some_and(session::answers);
    StatusView::new(lease, ready, clock::unix_seconds())
}

/// Warns about an unjailed VMM: running as root, it is one Firecracker bug away from the host.
fn warn_of_no_jail(ctx: &Ctx<'_>, lease: &Lease) {
    if lease.unjailed {
        let host = lease.kvm_host.as_ref();
        let host = host.map_or_else(|| "this host".to_owned(), ToString::to_string);
        ctx.printer.warn(format_args!(
            "lease {} runs without a jail: its Firecracker is root on {host} (`crabbox doctor --provider firecracker` says why)",
            lease.id
        ));
    }
}

/// A successful wait counts as use.
fn refresh(provider: &dyn Provider, lease: &Lease) {
    // Ignored: the lease may have been stopped just now, and the printed status was still true.
    provider.touch(lease, None, None).ok();
}

fn show(ctx: &Ctx<'_>, json: bool, view: &StatusView) -> Result<(), CommandError> {
    if json {
        ctx.printer.json(view)?;
        return Ok(());
    }
    ctx.printer.line(line(view));
    Ok(())
}

fn line(view: &StatusView) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!(
        "{} slug={} provider={} target={} windows_mode=- state={} type={} host={} pond=- network={} ready={} has_host={} idle_for={} idle_timeout={} expires={}",
        view.id,
        blank(&view.slug),
        view.provider,
        view.target,
        view.state,
        view.server_type,
        blank(&view.host),
        view.network,
        view.ready,
        view.has_host,
        blank(&text(&view.idle_for)),
        blank(&text(&view.idle_timeout)),
        blank(&text(&view.expires_at)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::lease::views::sample;

    const NOW: i64 = 1_754_000_090;

    #[test]
    fn the_line_is_the_reference_s() {
        assert_eq!(
            line(&StatusView::new(&sample(), true, NOW)),
            "cbx_0123456789ab slug=jade-krill provider=firecracker target=linux windows_mode=- state=ready type=microvm \
             host=192.168.127.5 pond=- network=public ready=true has_host=true idle_for=1m30s idle_timeout=30m0s \
             expires=2025-07-31T22:43:20Z"
        );
        let bare = Lease {
            address: String::new(),
            target: None,
            labels: crabbox_core::labels::Labels::new(),
            ..sample()
        };
        assert_eq!(
            line(&StatusView::new(&bare, false, NOW)),
            "cbx_0123456789ab slug=jade-krill provider=firecracker target=linux windows_mode=- state=ready type=microvm \
             host=- pond=- network=public ready=false has_host=false idle_for=- idle_timeout=30m0s expires=-"
        );
    }

    #[test]
    fn the_document_is_the_reference_s() {
        let lease = sample();
        assert_eq!(
            serde_json::to_string(&StatusView::new(&lease, true, NOW)).unwrap(),
            concat!(
                r#"{"id":"cbx_0123456789ab","slug":"jade-krill","provider":"firecracker","target":"linux","state":"ready","#,
                r#""serverId":"crabbox-jade-krill-1a2b3c4d","serverType":"microvm","host":"192.168.127.5","network":"public","#,
                r#""sshHost":"192.168.127.5","sshUser":"crabbox","sshPort":"22","sshKey":"/k/id_ed25519","#,
                r#""lastTouchedAt":"2025-07-31T22:13:20Z","idleFor":"1m30s","idleTimeout":"30m0s","#,
                r#""expiresAt":"2025-07-31T22:43:20Z","labels":{"expires_at":"1754001800","idle_timeout_secs":"1800","#,
                r#""keep":"true","last_touched_at":"1754000000","server_type":"microvm","state":"ready"},"#,
                r#""hasHost":true,"ready":true}"#
            )
        );
    }
}
