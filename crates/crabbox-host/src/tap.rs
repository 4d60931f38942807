//! Tap devices, the one kind of link that netlink cannot create.
//!
//! A device is made persistent and closed again, so that an unprivileged VMM can open it later as its owner.
//! This module must never bring a device up or give it an address: that is the task of `netlink`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use crate::clock::poll_until;
use crate::netlink::{Netlink, NetlinkError, valid_name};

/// The device through which tap devices are created (`Documentation/networking/tuntap.rst` of the kernel).
const TUN: &str = "/dev/net/tun";

/// How long a child may still hold a new device open until its exec.
const RELEASE: Duration = Duration::from_secs(5);

/// Why a tap device could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is empty, longer than 15 bytes, or contains a slash or white space.
    #[error("{name:?} is not a name for a network link")]
    Name {
        /// The requested name.
        name: String,
    },
    /// The tun driver is missing (`modprobe tun`), or access is denied.
    #[error("cannot open {TUN} for the tap device {name} (is the kernel module tun loaded?)")]
    Driver {
        /// The requested device.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another program holds the new device open, so that no VMM could use it.
    #[error("the tap device {name} is held open by another program")]
    Held {
        /// The device.
        name: String,
    },
    /// The new device cannot be inspected.
    #[error("cannot inspect the tap device {name}")]
    Look {
        /// The device.
        name: String,
        /// The underlying error.
        #[source]
        source: NetlinkError,
    },
    /// The driver refused one of the steps.
    #[error("cannot {step} the tap device {name}")]
    Refused {
        /// The step, as a verb.
        step: &'static str,
        /// The device.
        name: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Creates the persistent tap device `name` in the network namespace of the calling thread; the user `owner`
/// (uid, gid) may then open it without privileges. An existing, unused tap device of that name is reused and
/// gets this owner.
pub fn create(name: &str, owner: Option<(u32, u32)>) -> Result<(), TapError> {
    let device = attach(name, libc::IFF_VNET_HDR)?;
    if let Some((uid, gid)) = owner {
        set(&device, name, "set the owner of", libc::TUNSETOWNER, uid)?;
        set(&device, name, "set the group of", libc::TUNSETGROUP, gid)?;
    }
    set(&device, name, "keep", libc::TUNSETPERSIST, 1)?;
    drop(device);
    // A child that another thread has forked holds copies of all descriptors until its exec, including this
    // one; until then, opening the tap fails because it is busy.
    poll_until(RELEASE, || is_released(name).transpose()).unwrap_or_else(|| {
        Err(TapError::Held {
            name: name.to_owned(),
        })
    })
}

/// `Some` when no process holds the tap device any more.
fn is_released(name: &str) -> Result<Option<()>, TapError> {
    let link = Netlink::open()
        .and_then(|mut netlink| netlink.link(name))
        .map_err(|source| TapError::Look {
            name: name.to_owned(),
            source,
        })?;
    Ok(link.is_none_or(|link| !link.carrier).then_some(()))
}

/// Opens the tap device `name` to read and write plain Ethernet frames, as a user-space guest does.
pub fn open(name: &str) -> Result<File, TapError> {
    attach(name, 0)
}

fn attach(name: &str, extra: libc::c_int) -> Result<File, TapError> {
    if !valid_name(name) {
        return Err(TapError::Name {
            name: name.to_owned(),
        });
    }
    let device = File::options()
        .read(true)
        .write(true)
        .open(TUN)
        .map_err(|source| TapError::Driver {
            name: name.to_owned(),
            source,
        })?;
    #[expect(unsafe_code, reason = "ifreq is plain old data with a union")]
    // SAFETY: every field of ifreq is an integer, an array or a union of those; all zero bytes is a valid
    // value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = libc::c_char::from_ne_bytes([byte]);
    }
    // The flags fit: the largest, IFF_VNET_HDR, is 0x4000.
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | extra).unwrap_or_default();
    #[expect(unsafe_code, reason = "no safe wrapper knows TUNSETIFF")]
    // SAFETY: TUNSETIFF reads and writes one ifreq; `request` is one, lives through the call, and its name
    // ends in a zero byte.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    checked(answer, name, "create")?;
    Ok(device)
}

fn set(
    device: &File,
    name: &str,
    step: &'static str,
    request: libc::Ioctl,
    value: u32,
) -> Result<(), TapError> {
    #[expect(unsafe_code, reason = "no safe wrapper knows the tun requests")]
    // SAFETY: the three requests used here take their argument by value and touch no memory of ours.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), request, libc::c_ulong::from(value)) };
    checked(answer, name, step)
}

fn checked(answer: libc::c_int, name: &str, step: &'static str) -> Result<(), TapError> {
    if answer >= 0 {
        return Ok(());
    }
    Err(TapError::Refused {
        step,
        name: name.to_owned(),
        source: io::Error::last_os_error(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns;

    #[test]
    fn a_tap_is_made_inside_the_namespace_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        netns::create(&path).unwrap();
        let facts = netns::within(&path, || {
            create("tap0", Some((1234, 4321))).unwrap();
            let link = Netlink::open().unwrap().link("tap0").unwrap().unwrap();
            let facts = crate::command::Cmd::new("ip")
                .args(["-d", "link", "show", "tap0"])
                .run()
                .unwrap()
                .stdout_text();
            (link.kind, facts)
        });
        netns::remove(&path).unwrap();
        let (kind, facts) = facts.unwrap();
        assert_eq!(kind.as_deref(), Some("tun"));
        for fact in [
            "type tap",
            "pi off",
            "vnet_hdr on",
            "persist on",
            "user 1234",
            "group 4321",
        ] {
            assert!(facts.contains(fact), "{fact}: {facts}");
        }
        assert!(Netlink::open().unwrap().link("tap0").unwrap().is_none());
    }

    #[test]
    fn a_device_that_a_child_still_holds_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        netns::create(&path).unwrap();
        let outcome = netns::within(&path, || {
            create("tap0", None).unwrap();
            let holder = open("tap0").unwrap();
            let held = is_released("tap0").unwrap();
            drop(holder);
            (
                held,
                poll_until(RELEASE, || is_released("tap0").unwrap()),
                open("tap0").is_ok(),
            )
        });
        netns::remove(&path).unwrap();
        assert_eq!(outcome.unwrap(), (None, Some(()), true));
    }

    #[test]
    fn a_name_that_the_kernel_would_cut_is_refused() {
        assert!(matches!(
            create("a-name-of-sixteen", None).unwrap_err(),
            TapError::Name { .. }
        ));
    }
}
