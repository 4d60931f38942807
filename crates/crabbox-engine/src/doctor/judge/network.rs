//! The network beyond the configuration of CNI: its programs, the packet filter, and what others drop.

use crabbox_core::config::firecracker::{FirecrackerPlan, NetworkMode};

use super::super::check::{Check, Class, Status};
use super::super::world::World;

/// The oldest nft whose JSON and `ifname` sets are as they are used here.
const OLDEST_NFT: [u32; 3] = [0, 9, 3];

/// The mode that a lease will have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chosen {
    Cni,
    Nat,
}

/// Chooses as `prepare` does: `auto` is CNI where the configured network loads.
pub(super) fn chosen(plan: &FirecrackerPlan, world: &World) -> Chosen {
    match plan.network {
        NetworkMode::Cni => Chosen::Cni,
        NetworkMode::Auto if world.network.chain.is_ok() => Chosen::Cni,
        NetworkMode::Nat | NetworkMode::Auto => Chosen::Nat,
    }
}

pub(super) fn checks(plan: &FirecrackerPlan, world: &World) -> Vec<Check> {
    let mut checks = Vec::new();
    let cni = chosen(plan, world) == Chosen::Cni;
    checks.extend(cni.then(|| plugins(world)).flatten());
    checks.extend([nft(world), forwarding(world)]);
    checks
}

fn plugins(world: &World) -> Option<Check> {
    // A network that does not load is the check `network`'s to tell.
    let chain = world.network.chain.as_ref().ok()?;
    let missing: Vec<&str> = chain
        .plugins
        .iter()
        .filter(|(_, path)| path.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    let all: Vec<&str> = chain.plugins.iter().map(|(name, _)| name.as_str()).collect();
    let facts = format!(
        "plugins={} conflist={} mutation=false",
        all.join(","),
        chain.file.display()
    );
    if missing.is_empty() {
        return Some(Check::firecracker(Status::Ok, "cni-plugins", facts));
    }
    let dirs: Vec<String> = world
        .network
        .bin_dirs
        .iter()
        .map(|dir| dir.path.display().to_string())
        .collect();
    let message = format!(
        "no executable {} in {}: {facts}",
        missing.join(", "),
        dirs.join(" or ")
    );
    Some(
        Check::firecracker(Status::Missing, "cni-plugins", message).trouble(
            Class::EnvironmentBlocked,
            "sudo apt-get install containernetworking-plugins (or use --firecracker-network nat)",
        ),
    )
}

fn nft(world: &World) -> Check {
    const FIX: &str = "sudo apt-get install nftables";
    let Some(tool) = world.tools.get("nft").and_then(Option::as_ref) else {
        return Check::firecracker(Status::Missing, "nft", "the program nft is not installed")
            .trouble(Class::EnvironmentBlocked, FIX);
    };
    let facts = format!(
        "nft={} version={} mutation=false",
        tool.path.display(),
        tool.version_text()
    );
    if tool
        .version
        .as_deref()
        .is_some_and(|version| version < OLDEST_NFT.as_slice())
    {
        return Check::firecracker(Status::Failed, "nft", format!("too old: {facts}"))
            .trouble(Class::EnvironmentBlocked, FIX);
    }
    Check::firecracker(Status::Ok, "nft", facts)
}

/// Forwarding itself is switched on where a lease needs it, so what counts is who drops what is forwarded.
fn forwarding(world: &World) -> Check {
    let on = if world.network.forwards { "on" } else { "per-lease" };
    match &world.network.blocks {
        None => {
            let message = format!("forwarding={on} filters=unknown mutation=false");
            Check::firecracker(Status::Skip, "forwarding", message)
                .with("reason", "nft cannot list the packet filter")
        }
        Some(blocks) if blocks.is_empty() => Check::firecracker(
            Status::Ok,
            "forwarding",
            format!("forwarding={on} filters=open mutation=false"),
        ),
        Some(blocks) => {
            let message = format!(
                "leases would be without the internet: the filter chain {} drops what is forwarded; forwarding={on} mutation=false",
                blocks.join(", ")
            );
            Check::firecracker(Status::Warning, "forwarding", message).trouble(
                Class::Degraded,
                "let packets of the interfaces cbx* pass in that chain, as in: sudo iptables -I FORWARD -i cbx+ -j ACCEPT; sudo iptables -I FORWARD -o cbx+ -j ACCEPT",
            )
        }
    }
}
