//! What a provider can do, for commands that must know this in advance.
//!
//! Commands ask for a capability and never for a provider, so adding a provider only means adding a list.
//! Nothing here may depend on settings or on the host.

/// Something that not every provider can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// It makes the machine of a lease, which ends with the lease.
    MakesMachine,
    /// It keeps its own records on this host, and so knows leases without a claim.
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
    /// Its category in the output of `providers`.
    pub category: &'static str,
    /// The prefix of its leases' ids, if it has one of its own.
    pub id_prefix: Option<&'static str>,
    /// Its capabilities.
    pub can: &'static [Capability],
}

impl Capabilities {
    /// Whether it has `capability`.
    pub fn has(&self, capability: Capability) -> bool {
        self.can.contains(&capability)
    }
}
