//! Reaching the host: which of its ports answers, and whether what a sync needs is there.
//!
//! A host that refuses the key or has another host key will not change its mind: that is told at once, not after the wait.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_host::clock;
use crabbox_host::signals::Interrupts;
use crabbox_ssh::master::{self, ConnectError};
use crabbox_ssh::ready::{Progress, READY_STATIC, ReadyError, Stage, Wait, wait_ssh};

use super::StaticError;
use super::host::Host;
use crate::provider::Notice;

/// How long a host may take to come up, as the Go program has it.
const BOOTSTRAP_LIMIT: Duration = Duration::from_mins(20);
/// How long one port may take to accept a connection, as the Go program has it.
const PORT_LIMIT: Duration = Duration::from_secs(5);
/// How long one handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two rounds over the ports.
const PAUSE: Duration = Duration::from_millis(500);
/// When the first line about the wait is due, and how often after it.
const LINES: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));

/// Opens the shared connection to `host` and waits until it is ready. Afterwards the port that answered is the host's only one.
pub(super) fn reach(
    host: &mut Host,
    control_dir: &Path,
    interrupts: &Interrupts,
    on_notice: &mut dyn FnMut(&Notice<'_>),
) -> Result<(), StaticError> {
    let deadline = Instant::now() + BOOTSTRAP_LIMIT;
    find_port(host, control_dir, deadline, interrupts, on_notice)?;
    let mut target = host.target()?;
    target.control = Some(host.control(control_dir)?);
    let wait = Wait {
        target: &target,
        phase: "bootstrap",
        ready_command: Some(READY_STATIC),
        deadline,
        probe_port: false,
        cancelled: &|| interrupts.caught().is_some(),
    };
    match wait_ssh(&wait, &mut |progress| on_notice(&Notice::Waiting(progress))) {
        Ok(_) => Ok(()),
        Err(ReadyError::Cancelled { host }) => Err(StaticError::Interrupted { host }),
        Err(error) => Err(error.into()),
    }
}

/// Tries the ports in turn until one lets us in.
fn find_port(
    host: &mut Host,
    control_dir: &Path,
    deadline: Instant,
    interrupts: &Interrupts,
    on_notice: &mut dyn FnMut(&Notice<'_>),
) -> Result<(), StaticError> {
    let (began, ports) = (Instant::now(), host.ports.clone());
    let mut next_line = began + LINES.0;
    loop {
        let mut failures = Vec::new();
        for port in &ports {
            if interrupts.caught().is_some() {
                let host = host.address.clone();
                return Err(StaticError::Interrupted { host });
            }
            host.ports = vec![*port];
            match master::open(&host.target()?, &host.control(control_dir)?, HANDSHAKE_LIMIT) {
                Ok(()) => return Ok(()),
                Err(error) => failures.push(error),
            }
        }
        let hopeless = failures.iter().position(is_final);
        let source = failures.swap_remove(hopeless.unwrap_or(0));
        if hopeless.is_some() {
            let host = host.address.clone();
            return Err(StaticError::Login { host, source });
        }
        if Instant::now() >= deadline {
            let host = host.address.clone();
            return Err(StaticError::TimedOut { host, source });
        }
        if Instant::now() >= next_line {
            next_line = Instant::now() + LINES.1;
            on_notice(&Notice::Waiting(&Progress {
                host: host.address.clone(),
                port: ports[0],
                phase: "bootstrap".to_owned(),
                stage: Stage::Port,
                elapsed: began.elapsed(),
                remaining: deadline.saturating_duration_since(Instant::now()),
            }));
        }
        clock::nap(PAUSE);
    }
}

/// Whether the same attempt cannot do better later. An existing host has its keys already, and a name without an address is
/// a typing error more often than a machine about to be born.
fn is_final(error: &ConnectError) -> bool {
    match error {
        ConnectError::AuthDenied { .. } => true,
        ConnectError::Unreachable { said, .. } => said.contains("Could not resolve hostname"),
        other => !other.is_passing(),
    }
}

/// Puts the first port that accepts a connection first. Only asked where nothing tells which one it is: no claim, no setting.
pub(super) fn choose_port(host: &mut Host) {
    if host.ports.len() < 2 {
        return;
    }
    let accepts = |port: &u16| {
        let addresses = (host.address.as_str(), *port).to_socket_addrs();
        addresses.is_ok_and(|mut addresses| {
            addresses.any(|address| TcpStream::connect_timeout(&address, PORT_LIMIT).is_ok())
        })
    };
    if let Some(at) = host.ports.iter().position(accepts) {
        host.ports = vec![host.ports[at]];
    }
}
