//! Warm leases: whether a new one comes of a template, and if not, why. None of it stops a lease: it boots then.

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::timestamp;
use crabbox_fc::Version;

use super::super::check::{Check, Class, Status};
use super::super::world::{Frozen, World};
use crate::host::warm::DEAF;

const NAME: &str = "warm";
/// What makes a template for the settings that the doctor was given.
const MAKE: &str = "crabbox image warm";
/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

pub(super) fn check(plan: &FirecrackerPlan, world: &World) -> Check {
    let check = judged(plan, world);
    if plan.warm && world.warm.links.is_some() {
        return check.with("mutation", "unnamed-temporary-file");
    }
    check
}

fn judged(plan: &FirecrackerPlan, world: &World) -> Check {
    let skip = |message: String| Check::firecracker(Status::Skip, NAME, message);
    let slow = |message: String, fix: &str| {
        Check::firecracker(Status::Warning, NAME, message).trouble(Class::Degraded, fix)
    };
    let warm = &world.warm;
    if !plan.warm {
        return skip("warm=off mutation=false: firecracker.warm says so".to_owned());
    }
    let template = match &warm.template {
        Ok(template) => template,
        // Other checks say the same, and how to fix it.
        Err(trouble) => return skip(format!("warm=unchecked mutation=false: {trouble}")),
    };
    if *template == Frozen::Foreign {
        return skip(
            "warm=no reason=foreign_image mutation=false: only an image of crabbox's own can be frozen"
                .to_owned(),
        );
    }
    if warm.gives_tap {
        return skip(
            "warm=no reason=network_gives_tap mutation=false: the chain of the CNI network makes the guest's tap"
                .to_owned(),
        );
    }
    if deaf(world) {
        let message = format!(
            "warm=no reason=firecracker firecracker={DEAF}: a machine restored by this version cannot speak to its host"
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
        Frozen::Foreign => skip("warm=no reason=foreign_image mutation=false".to_owned()),
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
                format!("warm=ready template={short} age={age} size_mib={size} mutation=false"),
            )
            .with("path", dir.display())
            .with("made_at", timestamp::rfc3339(*made_at))
            .with("allocated_bytes", bytes)
        }
    }
}

/// Whether a restored machine could not speak with the Firecracker that is there.
fn deaf(world: &World) -> bool {
    let version = world.vmm.firecracker.as_ref().ok();
    let version = version.and_then(|binary| binary.version.as_ref().ok());
    version.and_then(|text| text.parse::<Version>().ok()) == Some(DEAF)
}

/// Seconds in the largest unit of which there is one.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
