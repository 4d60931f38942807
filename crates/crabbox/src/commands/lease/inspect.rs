//! `inspect`: everything about a lease, one `key=value` a line or one document.

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::console::harmless;
use crabbox_machine::lease::find::Purpose;

use crate::args::InspectArgs;
use crate::commands::lease::route;
use crate::commands::lease::status;
use crate::commands::lease::views::StatusView;
use crate::context::Ctx;
use crate::go::blank;
use crate::ui::{CommandError, Exit};

/// No lease was named.
#[derive(Debug, thiserror::Error)]
#[error("usage: crabbox inspect --id <lease-id-or-slug>")]
struct Usage;

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &InspectArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage)?;
    let (_, provider) = route::to_lease(ctx, &args.keys.values, name, "inspect")?;
    let lease = provider.resolve(name, Purpose::Look)?;
    if args.json {
        ctx.printer.json(&status::view(&lease))?;
    } else {
        // Only the JSON document says whether the lease answers; finding out costs a connection.
        let now = crabbox_host::clock::unix_seconds();
        for line in lines(&StatusView::new(&lease, false, now)) {
            ctx.printer.line(line);
        }
    }
    Ok(Exit::SUCCESS)
}

/// The lines; labels come last, sorted. Label values may come from other programs, so a line break in one
/// must not start a new line.
fn lines(view: &StatusView) -> Vec<String> {
    let text = |value: &Option<String>| blank(value.as_deref().unwrap_or_default()).to_owned();
    let fallback_ports = view.ssh_fallback_ports.join(",");
    let fields = [
        ("id", view.id.as_str()),
        ("slug", blank(&view.slug)),
        ("provider", view.provider),
        ("target", view.target),
        ("windows_mode", "-"),
        ("state", &view.state),
        ("server", &view.server_id),
        ("host", blank(&view.host)),
        ("network", view.network),
        ("ssh", &view.ssh()),
        ("ssh_fallback_ports", blank(&fallback_ports)),
        ("idle_for", &text(&view.idle_for)),
        ("idle_timeout", &text(&view.idle_timeout)),
        ("last_touched", &text(&view.last_touched_at)),
        ("expires", &text(&view.expires_at)),
    ];
    let fields = fields.iter().map(|(name, value)| format!("{name}={value}"));
    let labels = view.labels.iter();
    fields
        .chain(labels.map(|(name, value)| format!("label.{}={}", harmless(name), harmless(value))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::lease::views::sample;

    #[test]
    fn the_lines_are_those_of_the_reference_and_labels_come_last() {
        let mut lease = sample();
        lease.labels.insert("note".into(), "a\nid=evil\u{1b}[2J".into());
        let lines = lines(&StatusView::new(&lease, false, 1_754_000_090)).join("\n");
        assert_eq!(
            lines,
            "id=cbx_0123456789ab\n\
             slug=jade-krill\n\
             provider=firecracker\n\
             target=linux\n\
             windows_mode=-\n\
             state=ready\n\
             server=crabbox-jade-krill-1a2b3c4d\n\
             host=192.168.127.5\n\
             network=public\n\
             ssh=/k/id_ed25519 -p 22 crabbox@192.168.127.5\n\
             ssh_fallback_ports=-\n\
             idle_for=1m30s\n\
             idle_timeout=30m0s\n\
             last_touched=2025-07-31T22:13:20Z\n\
             expires=2025-07-31T22:43:20Z\n\
             label.expires_at=1754001800\n\
             label.idle_timeout_secs=1800\n\
             label.keep=true\n\
             label.last_touched_at=1754000000\n\
             label.note=aid=evil\n\
             label.server_type=microvm\n\
             label.state=ready"
        );
    }

    #[test]
    fn a_lease_without_an_address_has_no_ssh_line_to_copy() {
        let mut lease = sample();
        lease.address.clear();
        lease.target = None;
        lease.labels.clear();
        let lines = lines(&StatusView::new(&lease, false, 0));
        assert!(
            lines.contains(&"ssh=-".to_owned()) && lines.contains(&"host=-".to_owned()),
            "{lines:?}"
        );
        assert!(lines.contains(&"expires=-".to_owned()), "{lines:?}");
    }
}
