//! The network beyond the configuration of CNI: its programs, the packet filter, and what others drop.

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::network::NetworkMode;
use crabbox_net::nat::{Filters, ForwardChain, Passage};

use super::super::check::{Check, Class, Status};
use super::super::world::World;

/// The oldest nft whose JSON and `ifname` sets are as they are used here.
const OLDEST_NFT: [u32; 3] = [0, 9, 3];

/// The mode that a lease will have.
pub(super) fn chosen(plan: &FirecrackerPlan, world: &World) -> NetworkMode {
    NetworkMode::choose(plan.network, || world.network.chain.is_ok())
}

pub(super) fn checks(plan: &FirecrackerPlan, world: &World) -> Vec<Check> {
    let mut checks = Vec::new();
    let cni = chosen(plan, world) == NetworkMode::Cni;
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

/// Forwarding itself is switched on where a lease needs it, so what counts is whether a packet passes the filters of others.
fn forwarding(world: &World) -> Check {
    let on = if world.network.forwards { "on" } else { "per-lease" };
    let facts = |filters: &str| format!("forwarding={on} filters={filters} probe=packet mutation=false");
    let dropped = match &world.network.passage {
        Err(trouble) => {
            let message = format!("forwarding={on} filters=unknown mutation=false");
            return Check::firecracker(Status::Skip, "forwarding", message).with("reason", trouble);
        }
        Ok(Passage::Open) => return Check::firecracker(Status::Ok, "forwarding", facts("open")),
        Ok(Passage::OpenByUplink) => {
            return Check::firecracker(Status::Ok, "forwarding", facts("open-by-uplink"));
        }
        Ok(Passage::Outward) => "what an interface cbx* sends is dropped",
        Ok(Passage::Reply) => "the replies to what an interface cbx* sends are dropped",
    };
    let filters = &world.network.filters;
    let mut names: Vec<String> = filters
        .chains
        .iter()
        .map(|chain| format!("{} {} {}", chain.family, chain.table, chain.chain))
        .collect();
    names.extend(filters.legacy.then(|| "legacy iptables FORWARD".to_owned()));
    let by = if names.is_empty() {
        "by no forward chain that can be listed".to_owned()
    } else {
        format!("by a filter chain of others ({})", names.join(", "))
    };
    let message = format!(
        "leases would be without the internet: {dropped} {by}; {}",
        facts("closed")
    );
    Check::firecracker(Status::Warning, "forwarding", message).trouble(Class::Degraded, let_pass(filters))
}

/// The commands, to be pasted, that let the packets of leases pass every filter of others. Each chain is passed in turn, so each gets the rules.
fn let_pass(filters: &Filters) -> String {
    let mut commands: Vec<String> = Vec::new();
    let mut managed = false;
    for chain in &filters.chains {
        let ForwardChain {
            family,
            table,
            chain,
            owned,
            ..
        } = chain;
        if *owned || ![family, table, chain].iter().all(|name| is_plain(name)) {
            managed |= *owned && table == "firewalld";
            continue;
        }
        let insert =
            |direction| format!("insert rule {family} {table} {chain} {direction} \"cbx*\" counter accept");
        commands.push(format!("sudo nft '{}; {}'", insert("iifname"), insert("oifname")));
    }
    if filters.legacy {
        commands.push("sudo iptables-legacy -I FORWARD -i cbx+ -j ACCEPT".to_owned());
        commands.push("sudo iptables-legacy -I FORWARD -o cbx+ -j ACCEPT".to_owned());
    }
    if managed {
        // The kernel lets only firewalld change its table.
        commands.push("sudo firewall-cmd --permanent --zone=trusted --add-interface=cbx+".to_owned());
        commands.push("sudo firewall-cmd --reload".to_owned());
    }
    if commands.is_empty() {
        return "sudo nft list ruleset".to_owned();
    }
    commands.join("; ")
}

/// Whether a name needs no quotes, neither nft's nor a shell's.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}
