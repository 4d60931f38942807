//! A host, its LAN and an internet, each a namespace of the test, and a guest: a namespace behind the tap of
//! a lease.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crabbox_host::command::Cmd;
use crabbox_host::netlink::{Link, Netlink};
use crabbox_host::{netns, tap};
use crabbox_net::{GUEST_ADDRESS, Inner, Outer, Policy, TAP_ADDRESS};
use rustix::event::{PollFd, PollFlags, poll};

/// The stand-in for the internet: an address outside every special range. It belongs to one of the lab's
/// namespaces and leads nowhere else.
pub(crate) const INTERNET: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 2);
/// A machine of the host's LAN.
pub(crate) const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// The host's own public address.
pub(crate) const HOST_PUBLIC: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 1);
/// A second address on the internet, one of many.
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// How long to wait for a connection that must fail.
const PATIENCE: Duration = Duration::from_millis(700);

pub(crate) struct Lab {
    dir: tempfile::TempDir,
    pub(crate) host: PathBuf,
    pub(crate) lan: PathBuf,
    pub(crate) internet: PathBuf,
}

impl Lab {
    /// Runs `work` inside a fresh host.
    pub(crate) fn run(work: impl FnOnce(&Lab) + Send) {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab {
            host: dir.path().join("host"),
            lan: dir.path().join("lan"),
            internet: dir.path().join("internet"),
            dir,
        };
        for namespace in [&lab.host, &lab.lan, &lab.internet] {
            netns::create(namespace).unwrap();
            netns::within(namespace, || Netlink::open().unwrap().set_up("lo").unwrap()).unwrap();
        }
        netns::within(&lab.host, || {
            wire("lan0", "192.168.77.1/24", &lab.lan, "eth0", "192.168.77.2/24");
            wire("up0", "9.9.9.1/24", &lab.internet, "eth0", "9.9.9.2/24");
            let mut netlink = Netlink::open().unwrap();
            netlink.add_route("0.0.0.0/0".parse().unwrap(), INTERNET).unwrap();
        })
        .unwrap();
        netns::within(&lab.internet, || {
            Netlink::open()
                .unwrap()
                .add_address("lo", format!("{ELSEWHERE}/32").parse().unwrap())
                .unwrap();
            serve(Ipv4Addr::UNSPECIFIED, 80, "internet");
        })
        .unwrap();
        netns::within(&lab.lan, || serve(Ipv4Addr::UNSPECIFIED, 80, "lan")).unwrap();
        netns::within(&lab.host, || work(&lab)).unwrap();
    }

    /// A path in the lab's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A fresh namespace.
    pub(crate) fn namespace(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        netns::create(&path).unwrap();
        path
    }

    /// A file of the lab.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
            if netns::exists(&entry.path()) {
                netns::remove(&entry.path()).unwrap();
            }
        }
    }
}

/// A veth pair between the namespace of the caller and `other`.
pub(crate) fn wire(name: &str, address: &str, other: &Path, far: &str, far_address: &str) {
    let mut netlink = Netlink::open().unwrap();
    netlink.add_veth(name, "far-end").unwrap();
    netlink.rename("far-end", far).unwrap();
    netlink.move_to(far, File::open(other).unwrap().as_fd()).unwrap();
    netlink.add_address(name, address.parse().unwrap()).unwrap();
    netlink.set_up(name).unwrap();
    netns::within(other, || {
        let mut netlink = Netlink::open().unwrap();
        netlink.add_address(far, far_address.parse().unwrap()).unwrap();
        netlink.set_up(far).unwrap();
    })
    .unwrap();
}

/// The complete ruleset of the host.
pub(crate) fn rules() -> String {
    Cmd::new("nft")
        .args(["list", "ruleset"])
        .run()
        .unwrap()
        .stdout_text()
}

/// A kernel setting of the namespace of the caller.
pub(crate) fn setting(name: &str) -> String {
    std::fs::read_to_string(Path::new("/proc/sys/net/ipv4").join(name))
        .unwrap()
        .trim()
        .to_owned()
}

/// The links of the host except those of the lab itself.
pub(crate) fn links() -> Vec<Link> {
    let mut links = Netlink::open().unwrap().links().unwrap();
    links.retain(|link| !["lo", "lan0", "up0"].contains(&link.name.as_str()));
    links
}

/// A TCP server that sends `word` as its greeting, in the namespace of the caller.
pub(crate) fn serve(address: Ipv4Addr, port: u16, word: &'static str) {
    let listener = TcpListener::bind((address, port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(word.as_bytes()).ok();
        }
    });
}

/// The greeting of the server at `address`, from the namespace of the caller.
pub(crate) fn greeting(address: Ipv4Addr, port: u16) -> io::Result<String> {
    ask(address, port, Duration::from_secs(10))
}

/// The same with a short timeout, for a connection that must fail.
pub(crate) fn greeting_soon(address: Ipv4Addr, port: u16) -> io::Result<String> {
    ask(address, port, PATIENCE)
}

/// The error of a connection that must fail.
pub(crate) fn refusal(address: Ipv4Addr, port: u16) -> io::Error {
    ask(address, port, PATIENCE).unwrap_err()
}

fn ask(address: Ipv4Addr, port: u16, limit: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut word = String::new();
    stream.read_to_string(&mut word)?;
    Ok(word)
}

pub(crate) fn inner(netns: &Path, outer: Outer, policy: Policy) -> Inner {
    Inner {
        netns: netns.to_owned(),
        tap: "tap0".to_owned(),
        owner: None,
        outer,
        policy,
    }
}

/// A guest: a namespace whose only link is the other end of the lease's tap. Two threads carry the frames, as
/// a VMM would.
pub(crate) struct Guest {
    pub(crate) netns: PathBuf,
    stop: Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
}

impl Guest {
    pub(crate) fn behind(lab: &Lab, lease: &Path, name: &str) -> Self {
        let namespace = lab.namespace(name);
        let outside = netns::within(lease, || tap::open("tap0").unwrap()).unwrap();
        let inside = netns::within(&namespace, || {
            tap::create("eth0", None).unwrap();
            let nic = tap::open("eth0").unwrap();
            let mut netlink = Netlink::open().unwrap();
            netlink.set_up("lo").unwrap();
            netlink
                .add_address("eth0", format!("{GUEST_ADDRESS}/30").parse().unwrap())
                .unwrap();
            netlink.set_up("eth0").unwrap();
            netlink
                .add_route("0.0.0.0/0".parse().unwrap(), TAP_ADDRESS)
                .unwrap();
            nic
        })
        .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let pumps = [
            (outside.try_clone().unwrap(), inside.try_clone().unwrap()),
            (inside, outside),
        ]
        .into_iter()
        .map(|(from, to)| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || pump(&from, &to, &stop))
        })
        .collect();
        Self {
            netns: namespace,
            stop,
            pumps,
        }
    }

    /// Runs `work` in the guest.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(&self.netns, work).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for pump in self.pumps.drain(..) {
            pump.join().unwrap();
        }
    }
}

fn pump(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let wait = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let mut frame = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&wait)).unwrap();
        if ready > 0 {
            // Reading fails once the device is gone or down; the guest notices by silence.
            let Ok(length) = from.read(&mut frame) else { return };
            to.write_all(&frame[..length]).ok();
        }
    }
}
