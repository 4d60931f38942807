//! Connects to the host: finds the port that answers, and checks that the host has what a sync needs.
//!
//! A host that refuses the key or has another host key will not change, so that is reported at once. A host
//! that does not respond is not waited for like a booting machine, because it exists already: only as long as
//! a restart of its sshd takes.

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

/// How long the host's ready check may take to succeed after the login; the Go program's limit.
const BOOTSTRAP_LIMIT: Duration = Duration::from_mins(20);
/// How long to retry a host that does not respond: a restarting sshd is away for a moment.
const AWAY: Duration = Duration::from_secs(3);
/// How long to retry a host that responds but cuts us off, for example because of too many concurrent logins
/// (`MaxStartups`).
const CUT_OFF: Duration = Duration::from_secs(8);
/// The time limit for a port to accept a connection; the Go program's.
const PORT_LIMIT: Duration = Duration::from_secs(5);
/// The time limit of one handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two rounds over the ports.
const PAUSE: Duration = Duration::from_millis(500);
/// The delay until the first line about the wait, and the interval after that.
const LINES: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));

/// Opens the shared connection to `host` and waits until the host is ready. Then the port that answered is
/// the host's only one.
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
        cancel: Some(interrupts.as_fd()),
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
            // A terminal's interrupt ends the ssh process, too, so its error has no meaning then.
            if interrupts.caught().is_some() {
                let host = host.address.clone();
                return Err(StaticError::Interrupted { host });
            }
        }
        // The error of a port that responds says more than that of one that does not.
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

/// How long to repeat an attempt before reporting its failure; zero if trying again cannot help. An existing
/// host has its keys already, and a name that does not resolve is more likely a typo than a machine about to
/// appear.
fn told_after(error: &ConnectError) -> Duration {
    match error {
        ConnectError::Unreachable { .. } if !error.is_of_the_name() => AWAY,
        // ssh has already waited for ten seconds, three times.
        ConnectError::TimedOut { .. } => AWAY,
        // Only a connection that was cut off may succeed next time.
        error if error.is_cut_off() => CUT_OFF,
        _ => Duration::ZERO,
    }
}

/// Moves the first port that accepts a connection to the front. Used if neither a claim nor a setting
/// determines the port.
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
    fn a_refusal_of_ssh_itself_is_told_at_once_and_a_cut_off_connection_is_tried_again() {
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
