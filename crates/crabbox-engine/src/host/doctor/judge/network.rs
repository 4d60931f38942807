//! The network beyond CNI's configuration: its programs, the packet filter, and packets dropped by others'
//! rules.

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::network::NetworkMode;
use crabbox_net::nat::{DEFAULT_RANGE, FilterChain, Filters, Hook, Passage};

use super::super::check::{Check, Class, Status};
use super::super::world::World;

/// The oldest nft whose JSON and `ifname` sets work as we use them.
const OLDEST_NFT: [u32; 3] = [0, 9, 3];

/// The network mode that a lease will use.
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
    // A network that does not load is reported by the check `network`.
    let chain = world.network.chain.as_ref().ok()?;
    let missing: Vec<&str> = chain
        .plugins
        .iter()
        .filter(|(_, path)| path.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    let names: Vec<&str> = chain.plugins.iter().map(|(name, _)| name.as_str()).collect();
    let facts = format!(
        "plugins={} conflist={} mutation=false",
        names.join(","),
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

/// A lease switches forwarding on itself if needed, so the check is whether a packet passes other programs'
/// filters.
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
        Ok(Passage::Outward(hook)) => Dropped {
            what: "what an interface cbx* sends is dropped",
            hook: *hook,
            is_reply: false,
        },
        Ok(Passage::Reply(hook)) => Dropped {
            what: "the replies to what an interface cbx* sends are dropped",
            hook: *hook,
            is_reply: true,
        },
    };
    let (filters, place) = (&world.network.filters, place(dropped.hook));
    let mut names: Vec<String> = filters
        .chains
        .iter()
        .filter(|chain| chain.hook == dropped.hook)
        .map(|chain| format!("{} {} {}", chain.family, chain.table, chain.chain))
        .collect();
    let legacy = legacy_tables(filters, dropped.hook);
    names.extend(legacy.map(|table| match table {
        "filter" => format!("legacy iptables {}", place.to_uppercase()),
        table => format!("legacy iptables {table} {}", place.to_uppercase()),
    }));
    let by = if names.is_empty() {
        format!("by no {place} chain that can be listed")
    } else {
        format!("by a filter chain of others ({})", names.join(", "))
    };
    let message = format!(
        "leases would be without the internet: {} {by}; {}",
        dropped.what,
        facts("closed")
    );
    Check::firecracker(Status::Warning, "forwarding", message)
        .trouble(Class::Degraded, let_pass(filters, &dropped))
}

/// What is dropped, and where.
#[derive(Debug, Clone, Copy)]
struct Dropped {
    what: &'static str,
    hook: Hook,
    is_reply: bool,
}

/// nft's name of a hook; in capitals it is the name of the iptables chain.
fn place(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Forward => "forward",
        Hook::Postrouting => "postrouting",
        Hook::Egress => "egress",
    }
}

/// The legacy iptables tables that have a chain at `hook` and can drop packets there.
fn legacy_tables(filters: &Filters, hook: Hook) -> impl Iterator<Item = &str> {
    let with_hook: &[&str] = match hook {
        Hook::Prerouting => &["raw", "mangle"],
        Hook::Forward => &["filter", "mangle", "security"],
        Hook::Postrouting => &["mangle"],
        Hook::Egress => &[],
    };
    let tables = filters.legacy.iter().map(String::as_str);
    tables.filter(move |table| with_hook.contains(table))
}

/// Shell commands that let packets of leases pass other programs' filters at the hook where they are dropped.
/// A packet traverses every chain at the hook, so each chain gets the rules. If a rule could not match
/// packets of leases alone, the commands show the chains instead.
fn let_pass(filters: &Filters, dropped: &Dropped) -> String {
    let (mut commands, mut managed): (Vec<String>, _) = (Vec::new(), false);
    // In prerouting a reply still has the host's own address, because NAT has not been undone yet. On egress
    // the incoming interface is unknown.
    let can_name = match dropped.hook {
        Hook::Prerouting => !dropped.is_reply,
        Hook::Forward | Hook::Postrouting => true,
        Hook::Egress => false,
    };
    for chain in filters.chains.iter().filter(|chain| chain.hook == dropped.hook) {
        let FilterChain {
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
        if !can_name {
            commands.push(format!("sudo nft list chain {family} {table} {chain}"));
            continue;
        }
        let insert =
            |direction| format!("insert rule {family} {table} {chain} {direction} \"cbx*\" counter accept");
        let rules = match dropped.hook {
            Hook::Prerouting => insert("iifname"),
            _ => format!("{}; {}", insert("iifname"), insert("oifname")),
        };
        commands.push(format!("sudo nft '{rules}'"));
    }
    for table in legacy_tables(filters, dropped.hook) {
        let table = match table {
            "filter" => String::new(),
            table => format!("-t {table} "),
        };
        let insert = |rule: &str| format!("sudo iptables-legacy {table}-I {rule} -j ACCEPT");
        match dropped.hook {
            _ if !can_name => {
                let place = place(dropped.hook).to_uppercase();
                commands.push(format!("sudo iptables-legacy {table}-S {place}"));
            }
            Hook::Prerouting => commands.push(insert("PREROUTING -i cbx+")),
            Hook::Forward => commands.extend([insert("FORWARD -i cbx+"), insert("FORWARD -o cbx+")]),
            // In postrouting, iptables cannot match the incoming interface.
            _ => {
                let from = format!("POSTROUTING -s {DEFAULT_RANGE}");
                commands.extend([insert(&from), insert("POSTROUTING -o cbx+")]);
            }
        }
    }
    if managed {
        // firewalld owns its table, and the kernel lets nobody else change it.
        commands.push("sudo firewall-cmd --permanent --zone=trusted --add-interface=cbx+".to_owned());
        commands.push("sudo firewall-cmd --reload".to_owned());
    }
    if commands.is_empty() {
        return "sudo nft list ruleset".to_owned();
    }
    commands.join("; ")
}

/// Whether a name needs no quotes in nft or in a shell.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}
