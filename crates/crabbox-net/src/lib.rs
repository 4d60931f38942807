//! The network of a lease: an outer address from CNI or our own NAT, one tap with a fixed inner network, and
//! between them the mapping and the policy.
//!
//! ```text
//!   host                      namespace of the lease                        guest
//!   bridge/veth  <-- outer --> veth0 10.x.y.z --nft 1:1-- tap0 172.16.0.1 <-- virtio --> 172.16.0.2
//! ```
//! All that the undo of an attachment needs is in its saved struct. Teardown must never read the current
//! configuration, and must never delete a link or table whose name and label are not those of the lease.

pub mod cni;
pub mod dns;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod inner;
pub mod nat;
mod nft;
pub mod outer;
pub mod policy;

pub use cni::{AttachCniError, CniSpec, DetachCniError, attach_cni, detach_cni, plan_cni};
pub use inner::{
    GUEST_ADDRESS, GUEST_MAC, INNER_PREFIX, Inner, MapError, TAP_ADDRESS, make_tap, map_inner, map_outer,
};
pub use nat::{NatError, NatSpec, attach_nat, detach_nat};
pub use nft::NftError;
pub use outer::{Mode, Outer, TapPartner};
pub use policy::Policy;
