//! The SSH keys of a lease: the user's login key for the guest, and the guest's own host key.
//!
//! The bytes of a private key must never be written anywhere but to its file and the guest's seed.

use std::path::PathBuf;

use crabbox_ssh::keys::{self, KeyPair};

use crate::resource::network::Outer;

/// The keys of a lease.
#[derive(Debug)]
pub struct LeaseKeys {
    /// The private key's file; it does not exist if the lease's owner has the key on another machine.
    pub private: PathBuf,
    /// The `known_hosts` file in which the host key is pinned.
    pub known_hosts: PathBuf,
    /// The public login key, in OpenSSH format.
    pub authorized: String,
    /// The guest's own host key.
    pub host: KeyPair,
}

impl LeaseKeys {
    /// Pins the guest's host key under the address at which the guest is reached.
    pub(crate) fn pin(&self, outer: &Outer, port: u16) -> Result<(), keys::KeyError> {
        keys::pin(
            &self.known_hosts,
            &outer.address.to_string(),
            port,
            &self.host.public_openssh,
        )
    }
}
