//! What a provider can do, for commands that must know before they ask it.
//!
//! Commands ask for a capability and never for a provider, so that one more provider is one more list and no search for
//! matches. Nothing here may depend on settings or on the host.

/// Something that not every provider can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// It makes the machine of a lease, which ends with the lease.
    MakesMachine,
    /// It keeps records of its own on this host, and knows leases that nobody claims.
    KeepsRecords,
    /// It finds and removes what dead leases left behind.
    Cleanup,
    /// Its machines have a console and a VMM whose logs can be read.
    Logs,
    /// `setup` prepares this host for it.
    SetUp,
    /// `doctor --doctor-probe-ssh` can log in to its host without a lease.
    SshProbe,
}

/// What one provider can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// What `providers` files it under.
    pub category: &'static str,
    /// What its leases' ids begin with where they are not those of every other.
    pub id_prefix: Option<&'static str>,
    /// What it can do.
    pub can: &'static [Capability],
}

impl Capabilities {
    /// Whether `capability` is among them.
    pub fn has(&self, capability: Capability) -> bool {
        self.can.contains(&capability)
    }
}
