//! `list`: the leases of this host, or of remote KVM hosts.

use crabbox_core::fault;
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
    if args.watch {
        return watch(ctx, args.json, list);
    }
    let found = list()?;
    for (_, text) in left_out(&found) {
        ctx.printer.warn(text);
    }
    let leases = found.leases;
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

/// What a listing could not show: the record's or the host's name, and the warning.
fn left_out(found: &Leases) -> Vec<(String, String)> {
    let records = found.unusable.iter().map(|bad| {
        let why = fault::chain(&bad.error);
        (bad.name.clone(), format!("lease {} is left out: {why}", bad.name))
    });
    let hosts = found.away.iter().map(|away| {
        let why = fault::chain(&away.error);
        let text = format!("leases on {} are left out: {why}", away.host);
        (away.host.to_string(), text)
    });
    records.chain(hosts).collect()
}

/// Keeps listing until interrupted.
fn watch(
    ctx: &Ctx<'_>,
    json: bool,
    list: impl Fn() -> Result<Leases, CommandError>,
) -> Result<Exit, CommandError> {
    let mut found = list()?;
    let mut watching = Watching::begin(ctx, json)?;
    loop {
        watching.warn(left_out(&found));
        let leases = found.leases;
        let rows: Vec<Row> = leases
            .iter()
            .map(|lease| Row {
                lease: lease.id.clone(),
                facts: line(lease),
                line: line(lease),
            })
            .collect();
        if watching.show(&rows, json) && json {
            ctx.printer
                .json(&leases.iter().map(views::ListItem::new).collect::<Vec<_>>())?;
        }
        if !watching.goes_on() {
            return Ok(Exit::SUCCESS);
        }
        found = list()?;
        keep_unseen(&mut found, leases);
    }
}

/// Adds those of `old` that this listing could not look at: they are not gone.
fn keep_unseen(found: &mut Leases, old: Vec<Lease>) {
    let is_away = |lease: &Lease| {
        let host = lease.kvm_host.as_ref();
        // The gateway of a fleet tells about the hosts behind it.
        host.is_some_and(|host| {
            let mut away = found.away.iter().map(|away| &away.host);
            away.any(|away| away == host || *away == host.gateway())
        })
    };
    let is_listed = |lease: &Lease| {
        let mut now = found.leases.iter();
        now.any(|now| now.id == lease.id && now.kvm_host == lease.kvm_host)
    };
    let unseen: Vec<Lease> = old
        .into_iter()
        .filter(|old| found.unusable.iter().any(|bad| bad.name == old.id) || is_away(old))
        .filter(|old| !is_listed(old))
        .collect();
    found.leases.extend(unseen);
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
    use crabbox_engine::fleet::address::KvmHost;
    use crabbox_engine::provider::error::LeaseError;
    use crabbox_engine::provider::{UnreachableHost, Unusable};
    use crabbox_machine::lease::find::NameError;

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
    fn a_lease_that_could_not_be_looked_at_is_not_gone() {
        let host = |text: &str| KvmHost::parse(text).unwrap();
        let on = |id: &str, kvm_host: Option<KvmHost>| Lease {
            id: id.to_owned(),
            kvm_host,
            ..sample()
        };
        let behind = host("a@gw/n1");
        let old = vec![
            on("cbx_000000000001", None),
            on("cbx_000000000002", None),
            on("cbx_000000000003", Some(host("a@kvm1"))),
            on("cbx_000000000004", Some(host("a@kvm2"))),
            on("cbx_000000000005", Some(behind.clone())),
            on("cbx_000000000006", Some(behind.clone())),
        ];
        let error = || LeaseError::new(NameError::NotFound { text: "x".to_owned() });
        let away = |text: &str| UnreachableHost {
            host: host(text),
            error: error(),
        };
        let mut now = Leases {
            leases: vec![on("cbx_000000000006", Some(behind))],
            unusable: vec![Unusable {
                name: "cbx_000000000001".to_owned(),
                error: error(),
            }],
            away: vec![away("a@kvm1"), away("a@gw")],
        };
        keep_unseen(&mut now, old);
        let ids: Vec<&str> = now.leases.iter().map(|lease| &lease.id[15..]).collect();
        assert_eq!(ids, ["6", "1", "3", "5"]);
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
