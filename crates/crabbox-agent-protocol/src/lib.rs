//! The protocol between this program and the agent in a lease.
//!
//! Both are built from one source and find each other by the agent's digest, so there is only one version and
//! no negotiation. All input is untrusted: it is bounded, and malformed bytes must never decode as a message.
//!
//! ```text
//!  frame     mark (4 bytes), tag (1 byte), length of the payload (4 bytes, big-endian), payload, end (4 bytes)
//!  message   the tag says which one; its fields, one behind the other (`wire`)
//!  bytes     tags below MESSAGES: a piece of a file, of a list, or of a stream of the command
//! ```

mod frame;
mod glob;
mod message;
mod path;
mod wire;

pub use frame::{Frame, FrameError, Frames, PAYLOAD_LIMIT, PIECE, Stream, put, put_bytes};
pub use glob::{Glob, Reach, component};
pub use message::{Base, Command, Reply, Request, Seed, SyncRequest};
pub use path::is_below;
pub use wire::{Fields, Malformed, Wire};

/// The first word that an agent sends, so that nothing else is taken for one.
pub const HELLO: u32 = 0x6372_6232;
