//! A guest for the fake: an sshd in its own namespaces, behind the lease's tap, with the keys of the lease's
//! seed.
//!
//! It allows testing a whole lease where nothing can boot: addresses, rules, host key and login are real,
//! only the machine is not. It shares the host's files, so it must only run where those belong to a test. It
//! dies with the VMM, as a guest does.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use crabbox_host::clock;
use crabbox_host::command::Cmd;
use crabbox_host::process;

/// How long the namespaces and the server may take to start.
const LIMIT: Duration = Duration::from_secs(20);
/// The addresses of the lease's end of the link, and of the guest's.
const ENDS: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(172, 16, 0, 2));
/// Waits for its end of the link, then serves.
const SERVE: &str = "until ip link show eth0 >/dev/null 2>&1; do sleep 0.01; done; \
     ip link set lo up && ip addr add \"$1\"/30 dev eth0 && ip link set eth0 up && ip route add default via \"$2\" && \
     exec /usr/sbin/sshd -D -e -f \"$3\"";

/// The seed of the VMM whose directory is the current one.
pub(super) fn seed() -> io::Result<Vec<u8>> {
    ["initrd.img", "cidata.img"]
        .iter()
        .find_map(|name| std::fs::read(name).ok())
        .ok_or_else(|| io::Error::other("no seed"))
}

/// Starts the guest of the VMM whose directory is the current one, with the keys of `seed`, and waits until
/// its sshd answers.
pub(super) fn start(seed: &[u8]) -> io::Result<()> {
    let dir = std::env::current_dir()?;
    let config = configure(&dir, seed)?;
    let (ours, theirs) = ENDS;
    let (sent, received) = std::sync::mpsc::channel();
    // The guest dies with the thread that starts it, so this thread lives as long as the VMM.
    std::thread::spawn(move || {
        let cmd = Cmd::new("unshare")
            .args([
                "--net",
                "--pid",
                "--fork",
                // As in a real guest, only its own processes are visible.
                "--mount-proc",
                "--kill-child=KILL",
                "sh",
                "-c",
                SERVE,
                "sh",
            ])
            .args([theirs.to_string(), ours.to_string()])
            .arg(&config);
        let mut command = cmd.to_std();
        let child = cmd.spawn(process::die_with_us(&mut command)).ok();
        sent.send(child.as_ref().map(Child::id)).ok();
        child.map(|mut child| child.wait().ok());
    });
    let pid = received
        .recv()
        .ok()
        .flatten()
        .ok_or_else(|| io::Error::other("unshare did not start"))?;
    let namespace = |pid: &str| std::fs::metadata(format!("/proc/{pid}/ns/net")).map(|facts| facts.ino());
    let here = namespace("self")?;
    let there = pid.to_string();
    clock::poll_until(LIMIT, || namespace(&there).ok().filter(|inode| *inode != here))
        .ok_or_else(|| io::Error::other("the guest got no namespace"))?;
    // Keep the address of the lease's end on `lo` while the tap is replaced, because the DNS forwarder
    // listens there.
    let wire = format!(
        "ip addr add {ours}/32 dev lo; ip link del tap0; ip link add tap0 type veth peer name eth0 && ip link set eth0 netns {pid} && \
         ip addr add {ours}/30 dev tap0 && ip link set tap0 up"
    );
    Cmd::new("sh")
        .args(["-c", &wire])
        .run()
        .map_err(io::Error::other)?;
    let answers = || std::net::TcpStream::connect((theirs, 22)).ok();
    clock::poll_until(LIMIT, answers).ok_or_else(|| io::Error::other("the guest's sshd does not answer"))?;
    Ok(())
}

/// Writes the server's configuration from `seed` into `dir`, and returns its path.
fn configure(dir: &Path, seed: &[u8]) -> io::Result<PathBuf> {
    let (host_key, user_key) =
        keys(&String::from_utf8_lossy(seed)).ok_or_else(|| io::Error::other("no keys in the seed"))?;
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok::<PathBuf, io::Error>(path)
    };
    let host_key = file("fake-host-key", &host_key)?;
    let user_key = file("fake-user-key", &user_key)?;
    std::fs::create_dir_all("/run/sshd")?;
    let config = format!(
        "ListenAddress {}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n\
         LogLevel ERROR\nMaxSessions 100\n",
        ENDS.1,
        host_key.display(),
        user_key.display()
    );
    file("fake-sshd-config", &config)
}

/// The private host key and the user's public key from a seed of either kind, both of which contain them as
/// lines.
fn keys(seed: &str) -> Option<(String, String)> {
    // cloud-init's form is YAML with escaped line ends.
    let seed = &seed.replace("\\n", "\n");
    let (first, last) = (
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----END OPENSSH PRIVATE KEY-----",
    );
    let start = seed.find(first)?;
    let length = seed[start..].find(last)? + last.len();
    let mut host_key = String::new();
    for line in seed[start..start + length].lines() {
        host_key.push_str(line.trim());
        host_key.push('\n');
    }
    let user = seed.match_indices("ssh-ed25519 ").find_map(|(at, _)| {
        let line = seed[at..].split(['\n', '\0', '"']).next()?;
        line.contains(" crabbox cbx_")
            .then(|| line.trim().to_owned() + "\n")
    })?;
    Some((host_key, user))
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_found_indented_and_not() {
        let seed = "x\0authorized_keys\0ssh-ed25519 AAAAhost crabbox host cbx_1\n  - ssh-ed25519 AAAAuser crabbox cbx_1\n\
             ssh_keys:\n    -----BEGIN OPENSSH PRIVATE KEY-----\n    b3Bl\n    -----END OPENSSH PRIVATE KEY-----\n\0\0";
        let (host, user) = super::keys(seed).unwrap();
        assert_eq!(
            host,
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n"
        );
        assert_eq!(user, "ssh-ed25519 AAAAuser crabbox cbx_1\n");
        let escaped = seed.replace("b3Bl\n", "b3Bl\\n");
        assert_eq!(super::keys(&escaped).unwrap().0, host);
        assert!(super::keys("nothing").is_none());
    }
}
