//! The system calls that rustix does not wrap, each in a safe function; the only `unsafe` code of this
//! program.
//!
//! It must never keep a pointer beyond its system call.

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use rustix::process::Pid;

/// Signals that process 1 waits for instead of handling.
const WAITED: [libc::c_int; 6] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// The kernel's `struct rtentry` (`linux/route.h`), the argument of `SIOCADDRT`; libc has it for musl only.
#[repr(C)]
struct RouteEntry {
    pad1: libc::c_ulong,
    destination: libc::sockaddr,
    gateway: libc::sockaddr,
    mask: libc::sockaddr,
    flags: libc::c_ushort,
    pad2: libc::c_short,
    pad3: libc::c_ulong,
    pad4: *mut libc::c_void,
    metric: libc::c_short,
    device: *mut libc::c_char,
    mtu: libc::c_ulong,
    window: libc::c_ulong,
    rtt: libc::c_ushort,
}

/// `struct rand_pool_info` (`linux/random.h`) with room for the largest pool that [`credit_entropy`] takes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    length: libc::c_int,
    bytes: [u8; ENTROPY_LIMIT],
}

/// The maximum of random bytes credited per call; more than the kernel's pool (256 bits) can hold.
pub(crate) const ENTROPY_LIMIT: usize = 512;

/// `RNDADDENTROPY` of `linux/random.h`: `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;

/// `RNDRESEEDCRNG` of `linux/random.h`: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `FIFREEZE` and `FITHAW` of `linux/fs.h`: `_IOWR('X', 119, int)` and the next number; the kernel ignores
/// the argument.
const FIFREEZE: libc::c_ulong = 0xC004_5877;
const FITHAW: libc::c_ulong = 0xC004_5878;

/// `RTF_UP | RTF_GATEWAY` of `linux/route.h`.
const ROUTE_UP_GATEWAY: libc::c_ushort = 0x3;

#[expect(
    clippy::cast_possible_truncation,
    reason = "an address family is a number below 64"
)]
const FAMILY_INET: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;

#[expect(
    clippy::cast_possible_truncation,
    reason = "an address family is a number below 64"
)]
const FAMILY_VSOCK: libc::sa_family_t = libc::AF_VSOCK as libc::sa_family_t;

#[expect(clippy::cast_possible_truncation, reason = "16 bytes")]
const VSOCK_ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

#[expect(
    clippy::cast_possible_truncation,
    reason = "both flags are among the lower sixteen bits"
)]
const INTERFACE_UP: libc::c_short = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[expect(unsafe_code, reason = "signal sets are C structs that libc fills in")]
fn waited_set() -> libc::sigset_t {
    // SAFETY: an all-zero `sigset_t` is a valid value, `sigemptyset` and `sigaddset` only write into it, and
    // every number in `WAITED` is a signal, so neither can fail.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in WAITED {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}

/// Blocks the signals that [`next_signal`] takes, so that none is lost and process 1 needs no handlers.
#[expect(unsafe_code, reason = "sigprocmask has no safe wrapper")]
pub(crate) fn block_signals() {
    let set = waited_set();
    // SAFETY: `set` is an initialised signal set, the old set is not asked for; the process has one thread.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Waits for the next blocked signal, at most for `limit` if given; `None` on timeout.
#[expect(unsafe_code, reason = "sigtimedwait has no safe wrapper")]
pub(crate) fn next_signal(limit: Option<Duration>) -> Option<libc::c_int> {
    let set = waited_set();
    let time = limit.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `set` and, when not null, `time` live until the call returns; no signal information is asked
    // for.
    let signal = unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), time) };
    (signal > 0).then_some(signal)
}

/// Sends `signal` to every process but the caller.
#[expect(unsafe_code, reason = "rustix has no kill(-1)")]
pub(crate) fn signal_all(signal: libc::c_int) {
    // SAFETY: `kill` takes plain numbers. It fails only if there is no other process, which is what the
    // caller wants.
    unsafe { libc::kill(-1, signal) };
}

/// Sends `signal` to process 1.
#[expect(unsafe_code, reason = "SIGUSR2 to process 1 by number")]
pub(crate) fn signal_init(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: `kill` takes plain numbers.
    checked(unsafe { libc::kill(1, signal) }).map(drop)
}

/// Reaps one ended child without waiting: `Ok(None)` if there are children but none has ended.
pub(crate) fn reap() -> io::Result<Option<Pid>> {
    let reaped = rustix::process::wait(rustix::process::WaitOptions::NOHANG)?;
    Ok(reaped.map(|(pid, _)| pid))
}

/// Adds `bytes` to the kernel's entropy pool and credits eight bits for each.
#[expect(unsafe_code, reason = "RNDADDENTROPY is an ioctl without a wrapper")]
pub(crate) fn credit_entropy(random: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let mut info = PoolInfo {
        entropy_bits: 0,
        length: 0,
        bytes: [0; ENTROPY_LIMIT],
    };
    let taken = bytes.len().min(ENTROPY_LIMIT);
    info.bytes[..taken].copy_from_slice(&bytes[..taken]);
    info.length = libc::c_int::try_from(taken).unwrap_or(0);
    info.entropy_bits = info.length * 8;
    // SAFETY: the kernel reads the two numbers and `length` bytes behind them, all inside `info`.
    checked(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, &raw const info) }).map(drop)
}

/// Makes the kernel draw a new key for its generator from its pool at once, regardless of its own schedule.
#[expect(unsafe_code, reason = "RNDRESEEDCRNG is an ioctl without a wrapper")]
pub(crate) fn reseed(random: impl AsFd) -> io::Result<()> {
    // SAFETY: there is no argument; the descriptor lives until the call returns.
    checked(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) }).map(drop)
}

/// Writes out the file system in which `inside` is an open descriptor, and blocks every write to it until
/// [`thaw`]. Fails (`EBUSY`) if it is already frozen.
#[expect(unsafe_code, reason = "FIFREEZE is an ioctl without a wrapper")]
pub(crate) fn freeze(inside: impl AsFd) -> io::Result<()> {
    // SAFETY: the argument is not used; the descriptor lives until the call returns.
    checked(unsafe { libc::ioctl(inside.as_fd().as_raw_fd(), FIFREEZE, 0) }).map(drop)
}

/// Lets writes go on.
#[expect(unsafe_code, reason = "FITHAW is an ioctl without a wrapper")]
pub(crate) fn thaw(inside: impl AsFd) -> io::Result<()> {
    // SAFETY: the argument is not used; the descriptor lives until the call returns.
    checked(unsafe { libc::ioctl(inside.as_fd().as_raw_fd(), FITHAW, 0) }).map(drop)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // A `sockaddr_in`: two bytes of port, then the address in network order.
    for (slot, octet) in data[2..6].iter_mut().zip(address.octets()) {
        *slot = libc::c_char::from_ne_bytes([octet]);
    }
    libc::sockaddr {
        sa_family: FAMILY_INET,
        sa_data: data,
    }
}

/// An interface request (`netdevice(7)`), sent to the kernel by one of the methods.
pub(crate) struct Interface {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Interface {
    /// A handle on the interface called `name`; fails when the name is longer than the kernel's 15 bytes.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut buffer = [0; libc::IFNAMSIZ];
        for (slot, byte) in buffer.iter_mut().zip(name.bytes()) {
            *slot = libc::c_char::from_ne_bytes([byte]);
        }
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, name: buffer })
    }

    #[expect(unsafe_code, reason = "interface ioctls have no wrapper")]
    fn request(&self, code: libc::c_ulong, argument: libc::__c_anonymous_ifr_ifru) -> io::Result<()> {
        let request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: argument,
        };
        // SAFETY: the kernel reads one `ifreq`, which lives until the call returns.
        checked(unsafe { libc::ioctl(self.socket.as_raw_fd(), code, &raw const request) }).map(drop)
    }

    /// Gives the interface its IPv4 address.
    pub(crate) fn set_address(&self, address: Ipv4Addr) -> io::Result<()> {
        let argument = libc::__c_anonymous_ifr_ifru {
            ifru_addr: socket_address(address),
        };
        self.request(libc::SIOCSIFADDR, argument)
    }

    /// Sets the net mask that belongs to the address.
    pub(crate) fn set_mask(&self, prefix: u8) -> io::Result<()> {
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0));
        let argument = libc::__c_anonymous_ifr_ifru {
            ifru_netmask: socket_address(mask),
        };
        self.request(libc::SIOCSIFNETMASK, argument)
    }

    /// Brings the interface up.
    pub(crate) fn up(&self) -> io::Result<()> {
        let argument = libc::__c_anonymous_ifr_ifru {
            ifru_flags: INTERFACE_UP,
        };
        self.request(libc::SIOCSIFFLAGS, argument)
    }

    /// Makes `gateway` the default route.
    #[expect(unsafe_code, reason = "SIOCADDRT is an ioctl without a wrapper")]
    pub(crate) fn default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        let route = RouteEntry {
            pad1: 0,
            destination: socket_address(Ipv4Addr::UNSPECIFIED),
            gateway: socket_address(gateway),
            mask: socket_address(Ipv4Addr::UNSPECIFIED),
            flags: ROUTE_UP_GATEWAY,
            pad2: 0,
            pad3: 0,
            pad4: std::ptr::null_mut(),
            metric: 0,
            device: std::ptr::null_mut(),
            mtu: 0,
            window: 0,
            rtt: 0,
        };
        // SAFETY: the kernel reads one `rtentry`, which lives until the call returns; a null device means
        // "any".
        checked(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) }).map(drop)
    }
}

/// A new vsock socket, and the address of `port` on the machine `cid`.
#[expect(unsafe_code, reason = "rustix has no vsock addresses")]
fn vsock(cid: u32, port: u32) -> io::Result<(OwnedFd, libc::sockaddr_vm)> {
    // SAFETY: `socket` takes plain numbers, and the descriptor is checked and has no other owner; an all-zero
    // `sockaddr_vm` is a valid value.
    let (socket, mut address) = unsafe {
        let number = checked(libc::socket(
            libc::AF_VSOCK,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC,
            0,
        ))?;
        (
            OwnedFd::from_raw_fd(number),
            std::mem::zeroed::<libc::sockaddr_vm>(),
        )
    };
    address.svm_family = FAMILY_VSOCK;
    address.svm_cid = cid;
    address.svm_port = port;
    Ok((socket, address))
}

/// Listens on `port` for connections over vsock.
#[expect(unsafe_code, reason = "rustix has no vsock addresses")]
pub(crate) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let (socket, address) = vsock(libc::VMADDR_CID_ANY, port)?;
    // SAFETY: `bind` reads `size_of::<sockaddr_vm>()` bytes of `address`, which outlives the call; `listen`
    // takes plain numbers.
    unsafe {
        checked(libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            VSOCK_ADDRESS_LENGTH,
        ))?;
        checked(libc::listen(socket.as_raw_fd(), 4))?;
    }
    Ok(socket)
}

/// The next connection on `listener`, and whether it comes from the host.
#[expect(unsafe_code, reason = "rustix has no vsock addresses")]
pub(crate) fn accept_vsock(listener: impl AsFd) -> io::Result<(OwnedFd, bool)> {
    // SAFETY: an all-zero `sockaddr_vm` is a valid value, `accept4` writes at most `length` bytes into it,
    // which is its size, and both outlive the call; the returned descriptor is checked and has no other
    // owner.
    unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        let mut length = VSOCK_ADDRESS_LENGTH;
        let number = checked(libc::accept4(
            listener.as_fd().as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC,
        ))?;
        let is_host = address.svm_family == FAMILY_VSOCK && address.svm_cid == libc::VMADDR_CID_HOST;
        Ok((OwnedFd::from_raw_fd(number), is_host))
    }
}

/// Connects to `port` of the host over vsock.
#[expect(unsafe_code, reason = "rustix has no vsock addresses")]
pub(crate) fn connect_host(port: u32) -> io::Result<OwnedFd> {
    let (socket, address) = vsock(libc::VMADDR_CID_HOST, port)?;
    // SAFETY: `connect` reads `size_of::<sockaddr_vm>()` bytes of `address`, which outlives the call.
    unsafe {
        checked(libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            VSOCK_ADDRESS_LENGTH,
        ))?;
    }
    Ok(socket)
}
