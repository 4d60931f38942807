//! Reaching the host: which of its ports answers, and whether what a sync needs is there.
//!
//! A host that refuses the key or has another host key will not change its mind: that is told at once. One that does not respond
//! exists already, so it is not waited for like a machine that boots: only as long as its sshd takes to start again.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crabbox_host::clock;
use crabbox_host::private_dir::PrivateDir;
use crabbox_host::signals::Interrupts;
use crabbox_ssh::master::{self, ConnectError};
use crabbox_ssh::ready::{Progress, READY_STATIC, ReadyError, Stage, Wait, wait_ssh};

use super::error::StaticError;
use super::host::Host;
use crate::provider::Notice;

/// How long the host's check may take to come true after the login, as the Go program has it.
const BOOTSTRAP_LIMIT: Duration = Duration::from_mins(20);
/// How long a host is tried that does not respond: an sshd that is started again is away for a moment.
const AWAY: Duration = Duration::from_secs(3);
/// How long a host is tried that responds and cuts us off, as one does that has too many logins at a time (`MaxStartups`).
const CUT_OFF: Duration = Duration::from_secs(8);
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
    control_dir: &PrivateDir,
    interrupts: &Interrupts,
    on_notice: &mut dyn FnMut(&Notice<'_>),
) -> Result<(), StaticError> {
    let deadline = Instant::now() + BOOTSTRAP_LIMIT;
    find_port(host, control_dir, interrupts, on_notice)?;
    let mut target = host.target()?;
    target.control = Some(host.control(control_dir)?);
    let wait = Wait {
        target: &target,
        phase: "bootstrap",
        ready_command: Some(READY_STATIC),
        settled: true,
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
    control_dir: &PrivateDir,
    interrupts: &Interrupts,
    on_notice: &mut dyn FnMut(&Notice<'_>),
) -> Result<(), StaticError> {
    let (began, ports) = (Instant::now(), host.ports.clone());
    let mut next_line = began + LINES.0;
    loop {
        let mut failures = Vec::new();
        for port in &ports {
            host.ports = vec![*port];
            let cancel = Some(interrupts.as_fd());
            match master::open(
                &host.target()?,
                &host.control(control_dir)?,
                HANDSHAKE_LIMIT,
                cancel,
            ) {
                Ok(()) => return Ok(()),
                Err(error) => failures.push(error),
            }
            // The interrupt of a terminal ends the ssh too, whose words then mean nothing.
            if interrupts.caught().is_some() {
                let host = host.address.clone();
                return Err(StaticError::Interrupted { host });
            }
        }
        // A port that responds says more than one that does not.
        let least = (0..failures.len()).min_by_key(|at| told_after(&failures[*at]));
        let most = failures.iter().map(told_after).max().unwrap_or_default();
        let source = failures.swap_remove(least.unwrap_or(0));
        let patience = if told_after(&source).is_zero() {
            Duration::ZERO
        } else {
            most
        };
        if began.elapsed() >= patience {
            let host = host.address.clone();
            return Err(StaticError::Login { host, source });
        }
        if Instant::now() >= next_line {
            next_line = Instant::now() + LINES.1;
            on_notice(&Notice::Waiting(&Progress {
                host: host.address.clone(),
                port: ports[0],
                phase: "bootstrap".to_owned(),
                stage: Stage::Port,
                elapsed: began.elapsed(),
                remaining: patience.saturating_sub(began.elapsed()),
            }));
        }
        clock::nap(PAUSE);
    }
}

/// How long the same attempt is repeated before its failure is told; zero where it cannot do better later. An existing host has
/// its keys already, and a name without an address is a typing error more often than a machine about to be born.
fn told_after(error: &ConnectError) -> Duration {
    match error {
        ConnectError::Unreachable { said, .. } if !said.contains("Could not resolve hostname") => AWAY,
        // ssh has waited three times ten seconds already.
        ConnectError::TimedOut { .. } => AWAY,
        // Anything else is ssh's own refusal: an option it does not know, a configuration that others may write. Only a
        // connection that was cut off may fare better the next time.
        ConnectError::Failed { said, .. }
            if [
                "Connection closed",
                "Connection reset",
                "exchange_identification",
                "Broken pipe",
            ]
            .iter()
            .any(|phrase| said.contains(phrase)) =>
        {
            CUT_OFF
        }
        _ => Duration::ZERO,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_itself_refuses_is_told_at_once_and_a_connection_that_was_cut_off_is_tried_again() {
        let failed = |said: &str| ConnectError::Failed {
            destination: "u@h".to_owned(),
            said: said.to_owned(),
        };
        for said in [
            "/h/.ssh/config: line 2: Bad configuration option: usekeychain; /h/.ssh/config: terminating, 1 bad configuration options",
            "Bad owner or permissions on /h/.ssh/config",
            "Unable to negotiate with 192.0.2.1 port 22: no matching host key type found. Their offer: ssh-rsa",
            "command-line: line 0: Bad number of arguments",
        ] {
            assert_eq!(told_after(&failed(said)), Duration::ZERO, "{said}");
        }
        for said in [
            "kex_exchange_identification: read: Connection reset by peer",
            "Connection closed by 192.0.2.1 port 22",
        ] {
            assert_eq!(told_after(&failed(said)), CUT_OFF, "{said}");
        }
    }
}
