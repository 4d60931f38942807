//! The SSH server: started immediately, watched, and restarted when it dies.
//!
//! Readiness comes from sshd itself if it speaks systemd's notification protocol (Debian's does, and OpenSSH
//! from 9.8 on), and from the kernel's socket table otherwise: a connection would make sshd fork and exec
//! needlessly, and reading the table frequently takes the only processor away from the server.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crabbox_guest_protocol::image::{SSHD, SSHD_SETTINGS};
use rustix::process::{Pid, Signal, kill_process};

use crate::clock;
use crate::failure::Failure;
use crate::sys;

const LOG: &str = "/var/log/crabbox-sshd.log";

/// How much of the log is shown with a failure, in bytes.
const LOG_TAIL: u64 = 2000;

/// The socket to which the server sends `READY=1` (`sd_notify(3)`).
const NOTIFY: &str = "/run/crabbox/notify";

/// How long to wait for a notification before checking the socket table.
const NOTIFY_WAIT: Duration = Duration::from_millis(25);

/// How long the server may take to listen; a second on real hardware, more in emulation.
const LISTEN_WAIT: Duration = Duration::from_mins(1);

/// Starts the server in the foreground and returns its process id.
#[expect(
    clippy::disallowed_methods,
    reason = "process 1 of a guest has no crabbox_host; this is its only child program"
)]
pub(crate) fn start() -> Result<Pid, Failure> {
    let (server, log) = (Path::new(SSHD), Path::new(LOG));
    if !server.exists() {
        return Err(Failure::Content {
            path: server.to_owned(),
            why: "the image has no SSH server",
        });
    }
    std::fs::create_dir_all("/run/sshd").map_err(Failure::path("create", Path::new("/run/sshd")))?;
    std::fs::create_dir_all("/var/log").map_err(Failure::path("create", Path::new("/var/log")))?;
    let output = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(Failure::path("open", log))?;
    let child = std::process::Command::new(server)
        .args(["-D", "-e"])
        .args(settings())
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        // Without it the server sends nothing, and the socket table is used.
        .env("NOTIFY_SOCKET", NOTIFY)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .process_group(0)
        .spawn()
        .map_err(Failure::path("start", server))?;
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Failure::Content {
            path: server.to_owned(),
            why: "the kernel gave it an impossible process id",
        })
}

/// The settings of a lease as arguments, which count before whatever the image's configuration says and
/// includes.
fn settings() -> impl Iterator<Item = String> {
    let all = SSHD_SETTINGS.into_iter().chain([("PidFile", "none")]);
    all.flat_map(|(name, value)| ["-o".to_owned(), format!("{name} {value}")])
}

/// The socket for the server's notification, made before the server starts.
pub(crate) fn notifications() -> Result<UnixDatagram, Failure> {
    let socket = UnixDatagram::bind(NOTIFY).map_err(Failure::path("make the socket", Path::new(NOTIFY)))?;
    socket
        .set_read_timeout(Some(NOTIFY_WAIT))
        .map_err(Failure::path("set the timeout of", Path::new(NOTIFY)))?;
    Ok(socket)
}

/// Waits until port 22 listens. Fails at once when the server ends before that.
pub(crate) fn wait_until_listening(server: Pid, notifications: &UnixDatagram) -> Result<(), Failure> {
    let outcome = clock::poll_until(LISTEN_WAIT, Duration::ZERO, || {
        let mut message = [0; 256];
        let length = notifications.recv(&mut message).unwrap_or(0);
        if says_ready(&message[..length]) {
            return Some(Ok(()));
        }
        while let Ok(Some(ended)) = sys::reap() {
            if ended == server {
                return Some(Err("ended"));
            }
        }
        is_listening().then_some(Ok(()))
    });
    outcome
        .unwrap_or(Err("did not listen on port 22 within 60 s"))
        .map_err(|why| Failure::Sshd { why, log: log_tail() })
}

/// Runs the server until it listens, then ends it, so that the files it reads are in memory. Removes its log.
pub(crate) fn rehearse() -> Result<(), Failure> {
    let notifications = notifications()?;
    let server = start()?;
    wait_until_listening(server, &notifications)?;
    kill_process(server, Signal::KILL).map_err(Failure::path("end", Path::new(SSHD)))?;
    clock::poll_until(LISTEN_WAIT, Duration::from_millis(1), || {
        // An error means that no child is left.
        (!matches!(sys::reap(), Ok(None))).then_some(())
    })
    .ok_or_else(|| Failure::Sshd {
        why: "did not end",
        log: log_tail(),
    })?;
    for left in [NOTIFY, LOG].map(Path::new) {
        std::fs::remove_file(left).map_err(Failure::path("remove", left))?;
    }
    Ok(())
}

/// Whether a notification says that the server is ready.
fn says_ready(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}

/// The last lines of the server's log.
pub(crate) fn log_tail() -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = File::open(LOG)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    tail().unwrap_or_default()
}

/// Whether something listens on port 22, without a connection to it.
pub(crate) fn is_listening() -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .any(|table| std::fs::read_to_string(table).is_ok_and(|text| has_listener(&text, 22)))
}

/// Whether a table in the format of `/proc/net/tcp` has a listening socket on `port`.
fn has_listener(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().is_some_and(|local| local.ends_with(&suffix));
        local && fields.nth(1) == Some(LISTEN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
        0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   \
        1: 0100007F:1F90 0100007F:0016 01 00000000:00000000 00:00000000 00000000     0\n";

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the guest has no crabbox_host, and what sshd makes of its arguments only sshd can say"
    )]
    fn no_configuration_of_an_image_keeps_the_lease_out() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("sshd_config");
        let hostile = "Port 2222\nListenAddress 127.0.0.1\nAuthorizedKeysFile /etc/keys\nAllowUsers somebody\n\
            AllowGroups some\nPubkeyAuthentication no\nAuthenticationMethods password\nPasswordAuthentication yes\n\
            PermitRootLogin yes\nMaxSessions 1\n";
        std::fs::write(&config, hostile).unwrap();
        // What sshd needs to start, even if only to say what it would do.
        std::fs::create_dir_all("/run/sshd").ok();
        let key = dir.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status();
        assert!(made.unwrap().success());
        let done = std::process::Command::new(SSHD)
            .args(["-T", "-f"])
            .args([&config, Path::new("-h"), &key])
            .args(settings())
            .output()
            .unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for line in [
            "port 22",
            "listenaddress 0.0.0.0:22",
            "authorizedkeysfile .ssh/authorized_keys",
            "allowusers *",
            "allowgroups *",
            "pubkeyauthentication yes",
            "authenticationmethods publickey",
            "passwordauthentication no",
            "permitrootlogin no",
            "maxsessions 100",
            "pidfile none",
        ] {
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
    }

    #[test]
    fn only_a_listening_socket_on_the_port_counts() {
        assert!(has_listener(TABLE, 22));
        assert!(!has_listener(TABLE, 8080), "8080 is connected, not listening");
        assert!(!has_listener("", 22) && !has_listener("header\ngarbage\n", 22));
    }

    #[test]
    fn only_the_whole_line_means_ready() {
        assert!(says_ready(b"READY=1") && says_ready(b"STATUS=up\nREADY=1\n"));
        assert!(!says_ready(b"") && !says_ready(b"STATUS=READY=1") && !says_ready(b"READY=12"));
    }

    #[test]
    fn the_kernels_own_table_is_understood() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let table = || std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(has_listener(&table(), port));
        // Closing is not enough: a process that another test is just spawning may hold a copy.
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert!(!has_listener(&table(), port));
    }
}
