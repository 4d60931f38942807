//! The properties of a host: from the settings, and from its claim where the settings say nothing.

use std::path::PathBuf;

use crabbox_core::claim::{Claim, is_valid_claim_id};
use crabbox_core::config::Settings;
use crabbox_core::config::layer::Sourced;
use crabbox_core::id::normalise;
use crabbox_core::labels::{self, Labels};
use crabbox_core::state::LeaseState;
use crabbox_host::clock;
use crabbox_host::private_dir::PrivateDir;
use crabbox_ssh::target::Target;
use crabbox_store::places::Places;

use super::NAME;
use super::error::StaticError;
use crate::provider::lease::Lease;

/// The machine type of a Linux host, as the Go program labels it.
const SERVER_TYPE: &str = "ssh";

/// An existing host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// The lease id.
    pub(super) id: String,
    /// Its slug.
    pub(super) slug: String,
    /// Its name.
    pub(super) name: String,
    /// Its address.
    pub(super) address: String,
    /// User to log in as.
    pub(super) user: String,
    /// Ports to try, in order of preference; never empty.
    pub(super) ports: Vec<u16>,
    /// The ports after the first before one of them answered.
    fallback_ports: Vec<u16>,
    /// The user's key; `None` leaves the choice to OpenSSH.
    pub(super) key: Option<PathBuf>,
    /// The file with its host key.
    pub(super) known_hosts: PathBuf,
    /// Directory under which trees are synced.
    pub(super) work_root: String,
    /// The claim's labels; empty without a claim.
    pub(super) labels: Labels,
    /// Whether new labels mark the lease as kept.
    pub(super) keep: bool,
}

impl Host {
    /// The host of `claim`, or the configured one without a claim. The machine type that the settings ask for
    /// is not considered, since it only matters when a lease is made.
    pub(super) fn new(
        settings: &Settings,
        places: &Places,
        claim: Option<&Claim>,
    ) -> Result<Self, StaticError> {
        let configured = configured_host(settings);
        let remembered = claim.map_or("", |claim| &claim.static_host);
        let host = if remembered.is_empty() {
            configured
        } else {
            remembered
        };
        if host.is_empty() {
            return Err(StaticError::NoHost {
                user_file: places.config.join("config.yaml"),
            });
        }
        // Settings for one host say nothing about another.
        let about_it = configured.is_empty() || configured == host;
        let own = |value: &Sourced<String>| about_it && !value.is_default() && !value.value.is_empty();
        let pick = |own_value: &Sourced<String>, generic: &Sourced<String>, remembered: &str| {
            if own(own_value) {
                own_value.value.clone()
            } else if own(generic) || remembered.is_empty() {
                generic.value.clone()
            } else {
                remembered.to_owned()
            }
        };
        let fixed = &settings.static_host;
        let named = Some(&fixed.name.value).filter(|name| about_it && !name.is_empty());
        let slug = match claim.map(|claim| claim.slug.as_str()) {
            Some(slug) if !slug.is_empty() => slug.to_owned(),
            _ => normalise(named.map_or(host, |name| name)),
        };
        let id = match claim {
            Some(claim) => claim.lease_id.clone(),
            None if fixed.id.value.is_empty() => format!("static_{}", normalise(host)),
            None => fixed.id.value.clone(),
        };
        if !is_valid_claim_id(&id) {
            return Err(StaticError::Id { id });
        }
        let remember = |take: fn(&Claim) -> &String| claim.map_or("", |claim| take(claim).as_str());
        let work_root = pick(
            &fixed.work_root,
            &fixed.general_work_root,
            remember(|claim| &claim.static_work_root),
        );
        if !work_root.starts_with('/') || work_root.split('/').any(|part| part == "..") {
            return Err(StaticError::WorkRoot { path: work_root });
        }
        let (key, known_hosts) = key(settings)?;
        let ports = ports(settings, claim, about_it)?;
        Ok(Self {
            name: named.cloned().unwrap_or_else(|| format!("crabbox-{slug}")),
            id,
            slug,
            user: pick(&fixed.user, &fixed.ssh_user, remember(|claim| &claim.static_user)),
            fallback_ports: ports.iter().skip(1).copied().collect(),
            ports,
            address: host.to_owned(),
            key,
            known_hosts,
            work_root,
            labels: claim.map_or_else(Labels::new, |claim| claim.labels.clone()),
            keep: true,
        })
    }

    /// Whether `text` may mean this host.
    pub(super) fn is_called(&self, text: &str) -> bool {
        [&self.id, &self.name, &self.address].contains(&&text.to_owned())
            || (!self.slug.is_empty() && normalise(text) == self.slug)
    }

    /// How to enter it at the first port, without a shared connection.
    pub(super) fn target(&self) -> Result<Target, StaticError> {
        let port = self.ports.first().copied().unwrap_or(22);
        let mut target = Target::new(&self.user, &self.address, port, &self.known_hosts)?;
        target.offer(self.key.as_deref())?;
        // The user set this host up, so the proxies and aliases of their configuration apply.
        target.user_config = true;
        Ok(target)
    }

    /// The socket of its shared connection.
    pub(super) fn control(&self, dir: &PrivateDir) -> Result<PathBuf, StaticError> {
        Ok(crabbox_ssh::control::path(dir, &self.target()?)?)
    }

    /// Whether it has a claim.
    pub(super) fn is_claimed(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Its lease, for commands.
    pub(super) fn lease(&self, settings: &Settings, control_dir: &PrivateDir) -> Result<Lease, StaticError> {
        let mut target = self.target()?;
        let others = self.fallback_ports.iter().copied();
        let fallback_ports = others.filter(|port| *port != target.port).collect();
        target.control = Some(self.control(control_dir)?);
        let labels = if self.labels.is_empty() {
            self.new_labels(settings)
        } else {
            self.labels.clone()
        };
        let state = Some(labels::state(&labels)).filter(|state| !state.as_str().is_empty());
        Ok(Lease {
            id: self.id.clone(),
            slug: self.slug.clone(),
            name: self.name.clone(),
            cloud_id: self.id.clone(),
            provider: NAME,
            server_type: SERVER_TYPE.to_owned(),
            state: state.unwrap_or(LeaseState::Ready),
            labels,
            address: self.address.clone(),
            target: Some(target),
            fallback_ports,
            work_root: self.work_root.clone(),
            kvm_host: None,
            is_claimed: self.is_claimed(),
            unjailed: false,
        })
    }

    /// The labels of a lease that has not been entered yet.
    fn new_labels(&self, settings: &Settings) -> Labels {
        let mut labels = labels::new_lease(
            &labels::NewLease {
                lease: &self.id,
                slug: &self.slug,
                name: &self.name,
                provider: NAME,
                profile: &settings.profile.value,
                class: &settings.class.value,
                server_type: SERVER_TYPE,
                target: "linux",
                keep: self.keep,
                idle: settings.idle_timeout.value.to_std(),
                ttl: settings.ttl.value.to_std(),
                ssh_user: &self.user,
                ssh_port: self.ports.first().copied().unwrap_or(22),
                work_root: &self.work_root,
                network: "",
                cni_network: "",
                exposed: &labels::exposed(&settings.expose.value),
            },
            clock::unix_seconds(),
        );
        // These labels only apply to microVMs.
        labels.retain(|name, _| !["instance", "vmid", "network"].contains(&name.as_str()));
        labels
    }
}

/// The configured host.
fn configured_host(settings: &Settings) -> &str {
    let host = settings.static_host.host.value.trim();
    // URLs put an IPv6 address in brackets; ssh does not.
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inside.filter(|inside| inside.contains(':')).unwrap_or(host)
}

/// The ports of a host, in the order in which they are tried.
pub(super) struct Ports {
    /// The first one.
    pub(super) first: u16,
    /// The others.
    pub(super) fallback: Vec<u16>,
}

/// The ports of the configured host. An explicit port has no fallbacks, unless those are explicit, too.
pub(super) fn configured_ports(settings: &Settings) -> Ports {
    let host = &settings.static_host;
    let general = Some(host.ssh_port.value).filter(|_| !host.ssh_port.is_default());
    match host.port.value.or(general) {
        Some(first) if settings.ssh.fallback_ports.is_default() => Ports {
            first,
            fallback: Vec::new(),
        },
        explicit => with_fallbacks(explicit.unwrap_or(host.ssh_port.value), settings),
    }
}

/// The port `first`, then `ssh.fallbackPorts`.
fn with_fallbacks(first: u16, settings: &Settings) -> Ports {
    let others = settings.ssh.fallback_ports.value.iter().copied();
    Ports {
        first,
        fallback: others.filter(|other| *other != first).collect(),
    }
}

/// The ports of the host of `claim`, which remembers the one that answered; `about_it` says whether the
/// settings are about that host.
fn ports(settings: &Settings, claim: Option<&Claim>, about_it: bool) -> Result<Vec<u16>, StaticError> {
    let host = &settings.static_host;
    let is_explicit = about_it && (host.port.value.is_some() || !host.ssh_port.is_default());
    let remembered = claim.filter(|claim| !is_explicit && !claim.static_port.is_empty());
    if let Some(claim) = remembered {
        return match claim.static_port.parse() {
            Ok(port) if port > 0 => Ok(vec![port]),
            _ => Err(StaticError::Port {
                id: claim.lease_id.clone(),
                port: claim.static_port.clone(),
            }),
        };
    }
    let Ports { first, fallback } = if about_it {
        configured_ports(settings)
    } else {
        with_fallbacks(host.ssh_port.value, settings)
    };
    Ok(std::iter::once(first).chain(fallback).collect())
}

/// The user's key and the `known_hosts` file next to it, chosen as in the Go program.
fn key(settings: &Settings) -> Result<(Option<PathBuf>, PathBuf), StaticError> {
    let key = &settings.ssh.key;
    let known_hosts = key.value.with_file_name("known_hosts");
    if key.value.is_file() {
        Ok((Some(key.value.clone()), known_hosts))
    } else if key.is_default() {
        Ok((None, known_hosts))
    } else {
        Err(StaticError::Key {
            path: key.value.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crabbox_core::config::key::Name;
    use crabbox_core::config::{FlagValue, Inputs, resolve};

    use super::super::terms;
    use super::*;

    /// The settings with these variables.
    fn settings(variables: &[(&str, &str)]) -> Settings {
        let text = |name: &str| {
            let set = variables.iter().find(|(variable, _)| *variable == name);
            set.map(|(_, value)| (*value).to_owned())
        };
        let host = FlagValue {
            key: Name::StaticHost,
            values: vec!["192.0.2.1".to_owned()],
        };
        let inputs = Inputs {
            files: &[],
            environment: &text,
            flags: &[host],
            home: Some(Path::new("/h")),
            cwd: Path::new("/w"),
            user_file: None,
        };
        resolve(&inputs).unwrap().settings
    }

    #[test]
    fn a_lease_tries_the_ports_that_the_configuration_shows() {
        let (port, fixed) = (("CRABBOX_SSH_PORT", "2200"), ("CRABBOX_STATIC_PORT", "2300"));
        let others = ("CRABBOX_SSH_FALLBACK_PORTS", "2200,2400");
        let none = ("CRABBOX_SSH_FALLBACK_PORTS", "none");
        for (variables, tried) in [
            (&[][..], &[2222, 22][..]),
            (&[port], &[2200]),
            (&[fixed], &[2300]),
            (&[port, fixed], &[2300]),
            (&[others], &[2222, 2200, 2400]),
            (&[port, others], &[2200, 2400]),
            (&[fixed, others], &[2300, 2200, 2400]),
            (&[none], &[2222]),
        ] {
            let settings = settings(variables);
            assert_eq!(ports(&settings, None, true).unwrap(), tried, "{variables:?}");
            let terms = terms(&settings);
            let shown = [&[terms.port], &terms.fallback_ports[..]].concat();
            assert_eq!(shown, tried, "{variables:?}");
        }
    }
}
