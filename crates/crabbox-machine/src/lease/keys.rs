//! The SSH keys of a lease: the one that opens its guest, and the guest's own host key.
//!
//! A private key's bytes must never be written anywhere but into its file and the guest's seed.

use std::path::PathBuf;

use crabbox_ssh::keys::{self, KeyPair};

use crate::resource::network::Outer;

/// The keys of a lease.
#[derive(Debug)]
pub struct LeaseKeys {
    /// The private key's file; none is there when the lease's owner has the key on another machine.
    pub private: PathBuf,
    /// Where the host key is pinned.
    pub known_hosts: PathBuf,
    /// The public key that opens the guest, in OpenSSH's form.
    pub authorized: String,
    /// The guest's own host key.
    pub host: KeyPair,
}

impl LeaseKeys {
    /// Pins the guest's host key under the address that it is reached at.
    pub(crate) fn pin(&self, outer: &Outer, port: u16) -> Result<(), keys::KeyError> {
        keys::pin(
            &self.known_hosts,
            &outer.address.to_string(),
            port,
            &self.host.public_openssh,
        )
    }
}
