//! A real OpenSSH server on a loopback port, as the current user, for tests.
//!
//! It has its own keys, configuration and home directory in a temporary directory, and kills all of its
//! children when dropped. It must never read or change the machine's own SSH setup, and a test that needs it
//! must fail, not pass, if it cannot start.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;

/// Where Debian and its derivatives install the server, which must be called by its full path.
const SSHD: &str = "/usr/sbin/sshd";

/// A running server. Dropping it ends the server and every session.
#[derive(Debug)]
pub struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    user: String,
}

impl Sshd {
    /// Starts a server on a free port of 127.0.0.1 and waits until it accepts connections.
    ///
    /// # Panics
    /// When the server is not installed or does not start; the message says how to fix it.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Like [`Sshd::start`], with `sshd_config` lines that override the usual ones.
    ///
    /// # Panics
    /// As [`Sshd::start`] does.
    pub fn start_with(config: &str) -> Self {
        assert!(
            Path::new(SSHD).exists(),
            "{SSHD} is missing, which this test needs; fix it with: apt-get install openssh-server"
        );
        let dir = tempfile::Builder::new()
            .prefix("crabbox-sshd-")
            .tempdir()
            .expect("a temporary directory");
        std::fs::create_dir(dir.path().join("home")).expect("a home directory");
        make_key(&dir.path().join("host_key"));
        make_key(&dir.path().join("client_key"));
        let user = Cmd::new("id")
            .arg("-un")
            .run()
            .expect("the current user")
            .stdout_text();
        if user == "root" {
            // The unprivileged part of a server started by root lives in this empty directory.
            std::fs::create_dir_all("/run/sshd").expect("the server's empty directory");
        }
        let (child, port) = listen(dir.path(), config);
        Self {
            child,
            dir,
            port,
            user,
        }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The user to log in as: the one who runs the test.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The private key that may log in.
    pub fn client_key(&self) -> PathBuf {
        self.dir.path().join("client_key")
    }

    /// The server's public host key: `ssh-ed25519 AAAA… comment`.
    ///
    /// # Panics
    /// When the file is gone.
    pub fn host_key(&self) -> String {
        let text =
            std::fs::read_to_string(self.dir.path().join("host_key.pub")).expect("the key made at the start");
        text.trim_end().to_owned()
    }

    /// The temporary directory, which the test may use too.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `$HOME` of every session. (The working directory of a session is the home in the password file.)
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A fresh `known_hosts` with this server's key.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn known_hosts(&self) -> PathBuf {
        let path = self.dir.path().join("known_hosts");
        let line = format!("[127.0.0.1]:{} {}\n", self.port, self.host_key());
        std::fs::write(&path, line).expect("a writable directory");
        path
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// How many logins it has accepted so far. Counts connections, not commands.
    pub fn logins(&self) -> usize {
        self.log()
            .lines()
            .filter(|line| line.starts_with("Accepted publickey"))
            .count()
    }

    /// Kills every connection and its processes, and leaves the server listening: a client sees a broken
    /// connection.
    ///
    /// # Panics
    /// When `/proc` cannot be read.
    pub fn kill_connections(&self) {
        let server = i32::try_from(self.child.id()).expect("a pid is an i32");
        for pid in descendants(server) {
            kill(pid);
        }
    }

    /// Ends the server and every session now.
    ///
    /// # Panics
    /// When `/proc` cannot be read.
    pub fn stop(&mut self) {
        // Kill the listener first, so that no new connection appears while the old ones are killed. Its
        // children are looked up before, because they lose their parent with it.
        let server = i32::try_from(self.child.id()).expect("a pid is an i32");
        let sessions = descendants(server);
        self.child.kill().ok();
        self.child.wait().ok();
        for pid in sessions {
            kill(pid);
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn make_key(path: &Path) {
    Cmd::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "crabbox test", "-f"])
        .arg(path)
        .run()
        .expect("ssh-keygen of openssh-client");
}

/// Starts the server on a free port. If another process takes that port first, the next one is tried.
fn listen(dir: &Path, config: &str) -> (Child, u16) {
    for _ in 0..5 {
        let port = free_port();
        let mut child = launch(dir, port, config);
        let answer = poll_until(Duration::from_secs(10), || {
            if child.try_wait().ok().flatten().is_some() {
                return Some(false);
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(|_| true)
        });
        if answer == Some(true) {
            return (child, port);
        }
        child.kill().ok();
        child.wait().ok();
        let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(log.contains("already in use"), "{SSHD} did not start:\n{log}");
    }
    unreachable!("five free ports in a row were taken by somebody else")
}

fn launch(dir: &Path, port: u16, config: &str) -> Child {
    let at = dir.display();
    // The first value of a keyword wins, so the caller's lines come first.
    let text = format!(
        "{config}\nPort {port}\nListenAddress 127.0.0.1\nHostKey {at}/host_key\n\
         AuthorizedKeysFile {at}/client_key.pub\nSetEnv HOME={at}/home\nUsePAM no\nStrictModes no\nPidFile none\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PrintMotd no\nPrintLastLog no\nMaxStartups 100\nMaxSessions 64\nLogLevel VERBOSE\n"
    );
    let path = dir.join("sshd_config");
    std::fs::write(&path, text).expect("a writable directory");
    std::fs::remove_file(dir.join("log")).ok();
    let cmd = Cmd::new(SSHD)
        .arg("-D")
        .arg("-f")
        .arg(&path)
        .arg("-E")
        .arg(dir.join("log"));
    let mut command = cmd.to_std();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    cmd.spawn(&mut command).expect("a server that can be started")
}

fn free_port() -> u16 {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback");
    probe.local_addr().expect("its address").port()
}

/// All processes below `root`, children before grandchildren. The fourth field of `/proc/<pid>/stat` is the
/// parent; the second one is in parentheses and may contain anything.
fn descendants(root: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = std::fs::read_dir("/proc")
        .expect("a mounted /proc")
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|pair| pair.1 == parent).map(|pair| pair.0));
        next += 1;
    }
    found.split_off(1)
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // It may have ended together with its parent.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say_hello(sshd: &Sshd) -> String {
        let known_hosts = format!("UserKnownHostsFile={}", sshd.known_hosts().display());
        Cmd::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", &known_hosts, "-i"])
            .arg(sshd.client_key())
            .args([
                "-p",
                &sshd.port().to_string(),
                &format!("{}@127.0.0.1", sshd.user()),
            ])
            .arg("echo hello from $HOME")
            .run()
            .unwrap()
            .stdout_text()
    }

    #[test]
    fn it_runs_a_command_in_its_own_home_and_counts_the_login() {
        let sshd = Sshd::start();
        assert_eq!(say_hello(&sshd), format!("hello from {}", sshd.home().display()));
        assert_eq!(sshd.logins(), 1);
    }

    #[test]
    fn two_servers_do_not_get_in_each_others_way_and_nothing_listens_after_the_end() {
        let (mut first, second) = (Sshd::start(), Sshd::start());
        assert_ne!(first.port(), second.port());
        first.stop();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, first.port())).is_err());
        say_hello(&second);
    }
}
