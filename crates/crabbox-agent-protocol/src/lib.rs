//! What this side and the agent in a lease say to each other.
//!
//! Both are built of one source and find each other by the agent's digest, so that there is one version and no negotiation. Whatever is read
//! here was written by somebody else: it is bounded, and a message that is none must never become one.
//!
//! ```text
//!  frame     tag (1 byte), length (4 bytes, big-endian), payload
//!  message   the tag says which one; its fields, one behind the other (`wire`)
//!  bytes     tags below MESSAGES: a piece of a file, of a list, or of a stream of the command
//! ```

mod frame;
mod message;
mod wire;

pub use frame::{Frame, FrameError, Frames, PAYLOAD_LIMIT, PIECE, Stream, put, put_bytes};
pub use message::{Base, Command, Reply, Request, Seed, SyncRequest};
pub use wire::{Fields, Malformed, Wire};

/// The first word of an agent, so that nobody else is taken for one.
pub const HELLO: u32 = 0x6372_6232;
