//! Checks `/dev/kvm`: that it opens, and its API version.
//!
//! No VM is created, because creating the first and destroying the last VM on a host switches virtualization
//! on and off on all processors, which is too much for a check. The result must never be taken for proof: KVM
//! may answer and still be unable to run a guest, which only a boot shows.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// The one stable version of the API (`Documentation/virt/kvm/api.rst`).
pub(crate) const API_VERSION: i32 = 12;

/// `KVM_GET_API_VERSION`, `_IO(0xAE, 0x00)`.
const GET_API_VERSION: libc::Ioctl = 0xAE00;
/// Why KVM is not usable.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device cannot be opened for reading and writing.
    #[error("open {}", path.display())]
    Open {
        /// The device.
        path: std::path::PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It does not know the request, so it is not KVM.
    #[error("it is not a KVM device")]
    Refused {
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It has another API version.
    #[error("KVM has API version {found}, but only {API_VERSION} is supported")]
    Version {
        /// Its version.
        found: i32,
    },
}

/// Opens the device at `path` and asks for its version.
pub fn ask(path: &Path) -> Result<(), KvmError> {
    let device = File::options().read(true).write(true).open(path);
    let device = device.map_err(|source| KvmError::Open {
        path: path.to_owned(),
        source,
    })?;
    #[expect(unsafe_code, reason = "no safe wrapper knows the requests of KVM")]
    // SAFETY: KVM_GET_API_VERSION takes the plain integer 0 and reads and writes no memory of ours.
    let found = unsafe { libc::ioctl(device.as_raw_fd(), GET_API_VERSION, 0 as libc::c_ulong) };
    match found {
        API_VERSION => Ok(()),
        found if found < 0 => Err(KvmError::Refused {
            source: io::Error::last_os_error(),
        }),
        found => Err(KvmError::Version { found }),
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
