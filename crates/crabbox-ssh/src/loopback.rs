//! Which loopback address of the other side a port is served on: node, vite and others listen on `::1` alone.
//!
//! It only looks, and never connects: a service that takes one connection must not lose it to us.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::capture;
use crate::exec::Stdin;
use crate::master;
use crate::target::Target;

/// How long the look may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Where the other side's end of a forward connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Loopback {
    /// `127.0.0.1`.
    #[default]
    V4,
    /// `::1`.
    V6,
    /// By the name, whose addresses sshd tries one after the other: nobody listens yet, or nobody could look.
    Name,
}

impl Loopback {
    /// As ssh takes it in a forward.
    pub(crate) fn host(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1",
            Self::V6 => "::1",
            Self::Name => "localhost",
        }
    }

    /// Where `port` is served now; asked over the target's shared connection, or over one for this alone where it is not open: whoever
    /// opens it has to close it, and a forward does not. Where nothing is shared it is not worth a login.
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

/// Rows of proc(5)'s `net/tcp` and `net/tcp6` that listen (state 0A) on loopback or on every address. Without a name for loopback
/// there is nothing but its usual address.
fn script(port: u16) -> String {
    format!(
        "at() {{ grep -qs \"^ *[0-9]*: $2:{port:04X} 0*:0000 0A\" /proc/net/$1; }}\n\
         if at tcp '0100007F' || at tcp '7F000001' || at tcp '00000000'; then echo v4\n\
         elif at tcp6 '0*10*' || at tcp6 '0*'; then echo v6\n\
         elif grep -qsw localhost /etc/hosts || getent hosts localhost >/dev/null 2>&1; then echo name\n\
         else echo v4\nfi"
    )
}
