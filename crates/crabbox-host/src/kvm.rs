//! What `/dev/kvm` says of itself: that it opens, its API version, and that it makes a virtual machine and a processor.
//!
//! All of it is undone when the descriptors close, so looking leaves nothing behind. It must never be taken for proof: a KVM
//! that answers every question here can still be unable to run a guest, and only a boot tells.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

/// The one stable version of the API (`Documentation/virt/kvm/api.rst`).
pub const API_VERSION: i32 = 12;

/// `KVM_GET_API_VERSION`, `_IO(0xAE, 0x00)`.
const GET_API_VERSION: libc::Ioctl = 0xAE00;
/// `KVM_CREATE_VM`, `_IO(0xAE, 0x01)`.
const CREATE_VM: libc::Ioctl = 0xAE01;
/// `KVM_CREATE_VCPU`, `_IO(0xAE, 0x41)`, on a machine.
const CREATE_VCPU: libc::Ioctl = 0xAE41;

/// How far KVM could be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device cannot be opened for reading and writing.
    #[error("open {}", path.display())]
    Open {
        /// The device.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A request was refused.
    #[error("KVM cannot {attempt}")]
    Refused {
        /// What was asked of it.
        attempt: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It speaks another version.
    #[error("KVM speaks API version {found}, and {API_VERSION} is the only one known")]
    Version {
        /// The version that it speaks.
        found: i32,
    },
}

/// Opens the device at `path` and asks for its version, a machine and a processor in it.
pub fn ask(path: &Path) -> Result<(), KvmError> {
    let device = File::options().read(true).write(true).open(path);
    let device = device.map_err(|source| KvmError::Open {
        path: path.to_owned(),
        source,
    })?;
    let found = call(device.as_raw_fd(), GET_API_VERSION, "tell its API version")?;
    if found != API_VERSION {
        return Err(KvmError::Version { found });
    }
    let machine = own(call(device.as_raw_fd(), CREATE_VM, "make a virtual machine")?);
    drop(own(call(
        machine.as_raw_fd(),
        CREATE_VCPU,
        "make a virtual processor",
    )?));
    Ok(())
}

/// One request with the argument 0; the answer is a number or a new descriptor.
fn call(fd: RawFd, request: libc::Ioctl, attempt: &'static str) -> Result<i32, KvmError> {
    #[expect(unsafe_code, reason = "no safe wrapper knows the requests of KVM")]
    // SAFETY: the three requests used here take a plain integer, and zero is a valid one for each (no machine type, processor 0).
    let answer = unsafe { libc::ioctl(fd, request, 0 as libc::c_ulong) };
    if answer < 0 {
        return Err(KvmError::Refused {
            attempt,
            source: io::Error::last_os_error(),
        });
    }
    Ok(answer)
}

fn own(fd: RawFd) -> OwnedFd {
    #[expect(unsafe_code, reason = "a new descriptor comes out of an ioctl as a number")]
    // SAFETY: KVM has just made this descriptor for us and nobody else knows its number.
    unsafe {
        OwnedFd::from_raw_fd(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_kvm_is_told_from_one_that_is_not_there() {
        assert!(matches!(
            ask(Path::new("/nowhere/kvm")),
            Err(KvmError::Open { .. })
        ));
        assert!(matches!(
            ask(Path::new("/dev/null")),
            Err(KvmError::Refused { .. })
        ));
    }
}
