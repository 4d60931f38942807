//! Warm leases: whether a new one would be restored from a template, and if not, why. None of this prevents a
//! lease, which would boot instead.

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::timestamp;
use crabbox_fc::Version;

use super::super::check::{Check, Class, Status};
use super::super::world::{Frozen, World};
use crate::host::warm::DEAF;

const NAME: &str = "warm";
/// The command that makes a template for the settings given to the doctor.
const MAKE: &str = "crabbox image warm";
/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

pub(super) fn check(plan: &FirecrackerPlan, world: &World) -> Check {
    // To learn what the file system supports, an unnamed temporary file was made.
    let mutation = if plan.warm && world.warm.links.is_some() {
        "unnamed-temporary-file"
    } else {
        "false"
    };
    judged(plan, world, mutation).with("mutation", mutation)
}

fn judged(plan: &FirecrackerPlan, world: &World, mutation: &str) -> Check {
    let skip = |message: String| Check::firecracker(Status::Skip, NAME, message);
    let slow = |message: String, fix: &str| {
        Check::firecracker(Status::Warning, NAME, message).trouble(Class::Degraded, fix)
    };
    let warm = &world.warm;
    if !plan.warm {
        return skip(format!("warm=off mutation={mutation}: firecracker.warm says so"));
    }
    let template = match &warm.template {
        Ok(template) => template,
        // Other checks report the same, with the fix.
        Err(trouble) => return skip(format!("warm=unchecked mutation={mutation}: {trouble}")),
    };
    if *template == Frozen::Foreign {
        return skip(format!(
            "warm=no reason=foreign_image mutation={mutation}: only crabbox's own images can have a template"
        ));
    }
    if warm.gives_tap {
        return skip(format!(
            "warm=no reason=network_gives_tap mutation={mutation}: the chain of the CNI network makes the guest's tap"
        ));
    }
    if deaf(world) {
        let message = format!(
            "warm=no reason=firecracker firecracker={DEAF}: a machine restored by this version cannot communicate with its host"
        );
        return slow(
            message,
            "use Firecracker 1.16.1 or a version before 1.16 (`crabbox setup firecracker` brings one where none is installed)",
        );
    }
    if warm.links == Some(Ok(false)) {
        let dir = world.storage.dir.display();
        return slow(
            format!(
                "warm=no reason=no_hard_links dir={dir}: its file system gives no file two names, which a template needs"
            ),
            "set XDG_STATE_HOME to a directory on ext4, XFS or Btrfs",
        );
    }
    match template {
        Frozen::Foreign => skip(format!("warm=no reason=foreign_image mutation={mutation}")),
        Frozen::Absent => slow(
            "warm=no reason=no_template: leases boot until there is one for these settings".to_owned(),
            MAKE,
        ),
        Frozen::SetAside { failures } => slow(
            format!("warm=no reason=set_aside failures={failures}: its template is not used any more"),
            MAKE,
        ),
        Frozen::Unusable { why } => slow(format!("warm=no reason=damaged: of its template, {why}"), MAKE),
        Frozen::Ready {
            key,
            dir,
            made_at,
            age,
            bytes,
        } => {
            let short = key.get(..12).unwrap_or(key);
            let (age, size) = (span(*age), bytes.div_ceil(MIB));
            Check::firecracker(
                Status::Ok,
                NAME,
                format!("warm=ready template={short} age={age} size_mib={size} mutation={mutation}"),
            )
            .with("path", dir.display())
            .with("made_at", timestamp::rfc3339(*made_at))
            .with("allocated_bytes", bytes)
        }
    }
}

/// Whether a restored machine could not be reached through the installed version of Firecracker.
fn deaf(world: &World) -> bool {
    let version = world.vmm.firecracker.as_ref().ok();
    let version = version.and_then(|binary| binary.version.as_ref().ok());
    version.and_then(|text| text.parse::<Version>().ok()) == Some(DEAF)
}

/// A duration in the largest unit that it fills.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
