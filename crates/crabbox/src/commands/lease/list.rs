//! `list`: the leases of this host, or of remote KVM hosts.

use crabbox_core::labels;
use crabbox_engine::provider::Leases;
use crabbox_engine::provider::lease::Lease;

use crate::args::ListArgs;
use crate::commands::lease::route;
use crate::commands::lease::screen::{Row, Watching};
use crate::commands::lease::views;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Lists leases; with `all` including those that wait in a pool.
pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ListArgs, all: bool) -> Result<Exit, CommandError> {
    let provider = route::to_provider(ctx, &args.keys.values)?;
    let list = || -> Result<Leases, CommandError> {
        let mut found = provider.list()?;
        found
            .leases
            .retain(|lease| all || labels::pool(&lease.labels).is_none());
        Ok(found)
    };
    let Leases {
        leases,
        unusable,
        away,
    } = list()?;
    for bad in &unusable {
        ctx.printer.warn(format_args!(
            "lease {} is left out: {}",
            bad.name,
            crabbox_core::fault::chain(&bad.error)
        ));
    }
    for away in &away {
        ctx.printer.warn(format_args!(
            "leases on {} are left out: {}",
            away.host,
            crabbox_core::fault::chain(&away.error)
        ));
    }
    if args.watch {
        return watch(ctx, args.json, leases, list);
    }
    if args.json {
        let views: Vec<views::ListItem> = leases.iter().map(views::ListItem::new).collect();
        ctx.printer.json(&views)?;
        return Ok(Exit::SUCCESS);
    }
    for lease in &leases {
        ctx.printer.line(line(lease));
    }
    Ok(Exit::SUCCESS)
}

/// Keeps listing until interrupted.
fn watch(
    ctx: &Ctx<'_>,
    json: bool,
    mut leases: Vec<Lease>,
    list: impl Fn() -> Result<Leases, CommandError>,
) -> Result<Exit, CommandError> {
    let mut watching = Watching::begin(ctx, json)?;
    let mut is_whole = true;
    loop {
        let rows: Vec<Row> = leases
            .iter()
            .map(|lease| Row {
                lease: lease.id.clone(),
                facts: line(lease),
                line: line(lease),
            })
            .collect();
        // Print no document for a listing that missed some leases.
        if is_whole && watching.show(&rows, json) && json {
            ctx.printer
                .json(&leases.iter().map(views::ListItem::new).collect::<Vec<_>>())?;
        }
        if !watching.goes_on() {
            return Ok(Exit::SUCCESS);
        }
        let mut now = list()?;
        is_whole = !json || now.away.is_empty() && now.unusable.is_empty();
        // A lease that could not be looked at is not gone.
        now.leases.extend(leases.into_iter().filter(|old| {
            now.unusable.iter().any(|bad| bad.name == old.id)
                || now
                    .away
                    .iter()
                    .any(|away| old.kvm_host.as_ref() == Some(&away.host))
        }));
        leases = now.leases;
    }
}

fn line(lease: &Lease) -> String {
    let pool = labels::pool(&lease.labels).map(|pool| format!(" pool={pool}"));
    let host = lease.kvm_host.as_ref().map(|host| format!(" host={host}"));
    format!(
        "{:<20} {:<28} {:<12} {:<14} {:<15} lease={} slug={} keep={} target=linux{}{}",
        lease.display_id(),
        lease.name,
        lease.state,
        lease.server_type,
        lease.address,
        lease.id,
        lease.slug,
        lease.is_kept(),
        pool.unwrap_or_default(),
        host.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::lease::views::sample;

    #[test]
    fn a_line_has_the_columns_of_the_reference() {
        let lease = sample();
        assert_eq!(
            line(&lease),
            "crabbox-jade-krill-1a2b3c4d crabbox-jade-krill-1a2b3c4d  ready        microvm        192.168.127.5   \
             lease=cbx_0123456789ab slug=jade-krill keep=true target=linux"
        );
        let fresh = Lease {
            name: "short".into(),
            cloud_id: "short".into(),
            address: String::new(),
            state: crabbox_core::state::LeaseState::Provisioning,
            ..lease
        };
        assert_eq!(
            line(&fresh),
            "short                short                        provisioning microvm                        \
             lease=cbx_0123456789ab slug=jade-krill keep=true target=linux"
        );
    }

    #[test]
    fn an_element_is_the_reference_s() {
        let mut lease = sample();
        lease.labels.retain(|name, _| name == "state");
        assert_eq!(
            serde_json::to_string(&views::ListItem::new(&lease)).unwrap(),
            r#"{"CloudID":"crabbox-jade-krill-1a2b3c4d","Provider":"firecracker","HostID":"","id":0,"name":"crabbox-jade-krill-1a2b3c4d","status":"ready","labels":{"state":"ready"},"public_net":{"ipv4":{"ip":"192.168.127.5"}},"private_net":{"ipv4":{"ip":""}},"server_type":{"name":"microvm"}}"#
        );
    }
}
