//! The only crate that touches the operating system, and the only one with `unsafe` code.
//!
//! Everything that opens a file, starts a process, uses netlink or reads the clock goes through a module
//! here, so that the other crates contain only decisions. Nothing in this crate may know what a lease is.

pub mod archive;
pub mod beneath;
pub mod bounded_log;
pub mod budget;
pub mod clock;
pub mod clone;
pub mod command;
pub mod confine;
pub mod console;
pub mod digest;
#[cfg(feature = "download")]
pub mod download;
pub mod entry_path;
pub mod environment;
pub mod files;
pub mod hard_links;
pub mod hardware;
pub mod holes;
pub mod hypervisor;
pub mod kvm;
pub mod lock;
pub mod memory;
pub mod mounts;
pub mod netlink;
pub mod netns;
pub mod place;
pub mod private_dir;
pub mod private_file;
pub mod process;
pub mod random;
pub mod reflink;
mod resolved;
mod seccomp;
pub mod signals;
pub mod small;
pub mod sockets;
pub mod tap;
pub mod terminal;
pub mod tree;
pub mod unix;
pub mod wait;
pub mod watch;
