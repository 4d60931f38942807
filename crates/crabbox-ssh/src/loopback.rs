//! Finds the remote loopback address on which a port is served: node, vite and others listen on `::1` only.
//!
//! It only looks and never connects: a service that accepts a single connection must not lose it to us.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::capture;
use crate::exec::Stdin;
use crate::master;
use crate::target::Target;

/// How long the check may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where the remote end of a forward connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Loopback {
    /// `127.0.0.1`.
    #[default]
    V4,
    /// `::1`.
    V6,
    /// `localhost`, whose addresses sshd tries one after the other: used if nothing listens yet or we cannot
    /// tell.
    Name,
}

impl Loopback {
    /// The host as ssh accepts it in a forward.
    pub(crate) fn host(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1",
            Self::V6 => "::1",
            Self::Name => "localhost",
        }
    }

    /// Where `port` is served now. Asks over the target's shared connection, or over a private one if that is
    /// not open: opening the shared one would oblige us to close it, which a forward does not do. Without
    /// sharing it is not worth a login.
    pub(crate) fn of(target: &Target, port: u16) -> Self {
        let Some(control) = &target.control else {
            return Self::Name;
        };
        let alone;
        let target = if master::check(control).is_some() {
            target
        } else {
            alone = Target {
                control: None,
                ..target.clone()
            };
            &alone
        };
        match capture(target, &script(port), Stdin::Null, Some(LIMIT)) {
            Ok(seen) if seen.stdout == b"v4\n" => Self::V4,
            Ok(seen) if seen.stdout == b"v6\n" => Self::V6,
            _ => Self::Name,
        }
    }
}

/// Looks in proc(5)'s `net/tcp` and `net/tcp6` for rows that listen (state 0A) on loopback or on all
/// addresses. If the lease does not know the name localhost, only the IPv4 address remains.
fn script(port: u16) -> String {
    format!(
        "at() {{ grep -qs \"^ *[0-9]*: $2:{port:04X} 0*:0000 0A\" /proc/net/$1; }}\n\
         if at tcp '0100007F' || at tcp '7F000001' || at tcp '00000000'; then echo v4\n\
         elif at tcp6 '0*10*' || at tcp6 '0*'; then echo v6\n\
         elif grep -qsw localhost /etc/hosts || getent hosts localhost >/dev/null 2>&1; then echo name\n\
         else echo v4\nfi"
    )
}
