//! Network namespaces bound to files: created on a temporary thread, entered by a scoped thread, removed by
//! unmounting.
//!
//! The file keeps the namespace alive, so that no process is needed for it; a [`Scratch`] has no file and
//! ends with this process. This module must never change the namespace of a thread that it did not start
//! itself, and never unmount anything but a namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::files::remove_if_there;

/// `NSFS_MAGIC` of `linux/magic.h`: the file system type of every namespace file.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Maximum number of mounts that are removed from one file, in case several namespaces were mounted on it by
/// mistake.
const MOST_MOUNTS: usize = 64;

/// The network namespace of the calling thread, as a file.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a network namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The namespace's file could not be created; `AlreadyExists` if it exists.
    #[error("cannot create the namespace file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel created no namespace: root or `CAP_SYS_ADMIN` is needed.
    #[error("cannot create a network namespace for {}", path.display())]
    Unshare {
        /// The file that was to hold it.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The new namespace could not be mounted on its file.
    #[error("cannot mount the new network namespace on {}", path.display())]
    Bind {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file exists but no namespace is mounted on it, as after a reboot.
    #[error("{} holds no network namespace", path.display())]
    NotANamespace {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be opened, or its namespace could not be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Enter {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be unmounted from its file.
    #[error("cannot unmount the network namespace {}", path.display())]
    Unmount {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The namespace's file could not be deleted.
    #[error("cannot delete the namespace file {}", path.display())]
    Unlink {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A namespace without a file could not be made or entered: root or `CAP_SYS_ADMIN` is needed.
    #[error("cannot {action} a network namespace of our own")]
    Scratch {
        /// `create` or `enter`.
        action: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// No thread could be started to work in a namespace.
    #[error("cannot start a thread for the network namespace {}", path.display())]
    Thread {
        /// The file of the namespace.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Makes a new, empty network namespace and mounts it on `path`, which must not exist; its directory must.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    let owned = || path.to_owned();
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| NetnsError::File {
            path: owned(),
            source,
        })?;
    let made = on_thread(path, || {
        unshare_network().map_err(|source| NetnsError::Unshare {
            path: owned(),
            source,
        })?;
        mount_bind(OWN, path).map_err(|source| NetnsError::Bind {
            path: owned(),
            source: source.into(),
        })
    });
    let made = made.and_then(|result| result);
    if made.is_err() {
        // Nothing is mounted on it. If it cannot be deleted, `remove` handles it later.
        std::fs::remove_file(path).ok();
    }
    made
}

/// Moves the calling thread into a new network namespace. Only a thread that ends right afterwards may call
/// it.
fn unshare_network() -> io::Result<()> {
    #[expect(
        unsafe_code,
        reason = "unshare is unsafe for the flags that change the file table; this one does not"
    )]
    // SAFETY: NEWNET changes only the network namespace of this thread; no descriptor is touched.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// A network namespace without a file. It ends with its last descriptor, socket and child, so that nothing is
/// left if this process dies.
#[derive(Debug)]
pub struct Scratch(OwnedFd);

impl Scratch {
    /// Makes an empty one.
    pub fn new() -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Scratch {
            action: "create",
            source,
        };
        on_thread(Path::new(OWN), || {
            unshare_network()?;
            current()
        })?
        .map(Self)
        .map_err(failed)
    }

    /// Runs `work` inside, as [`within`] does.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_thread(Path::new(OWN), || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
                |source| NetnsError::Scratch {
                    action: "enter",
                    source: source.into(),
                },
            )?;
            Ok(work())
        })
        .and_then(|result| result)
    }
}

/// Unmounts the namespace from `path` and deletes the file. Succeeds if there is nothing. The namespace
/// itself ends with its last process.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    for _ in 0..MOST_MOUNTS {
        if !exists(path) {
            break;
        }
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(source) => {
                return Err(NetnsError::Unmount {
                    path: path.to_owned(),
                    source: source.into(),
                });
            }
        }
    }
    remove_if_there(path)
        .map(drop)
        .map_err(|source| NetnsError::Unlink {
            path: path.to_owned(),
            source,
        })
}

/// Whether `path` itself (no symbolic link) holds a namespace now.
pub fn exists(path: &Path) -> bool {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .is_ok_and(|file| is_namespace(&file))
}

fn is_namespace(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file)
        .is_ok_and(|facts| u64::try_from(facts.f_type).is_ok_and(|kind| kind == NSFS_MAGIC))
}

/// Runs `work` on a thread inside the namespace of `path` and returns its result. Sockets opened and children
/// started by `work` belong to that namespace; `/proc/sys/net` is the namespace's, `/proc/self/net` and
/// `/sys` are not.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let entry = |source: Errno| NetnsError::Enter {
        path: path.to_owned(),
        source: source.into(),
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let namespace = rustix::fs::open(path, flags, Mode::empty()).map_err(entry)?;
    if !is_namespace(&namespace) {
        return Err(NetnsError::NotANamespace {
            path: path.to_owned(),
        });
    }
    on_thread(path, || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(entry)?;
        Ok(work())
    })
    .and_then(|result| result)
}

/// The network namespace of the calling thread, for moving a link into it from elsewhere.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open(OWN)?.into())
}

/// Runs `work` on its own thread and passes a panic on.
fn on_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| NetnsError::Thread {
                path: path.to_owned(),
                source,
            })?;
        Ok(thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Cmd;

    fn own_identity() -> PathBuf {
        std::fs::read_link(OWN).unwrap()
    }

    #[test]
    fn a_namespace_is_made_entered_and_removed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        create(&path).unwrap();
        assert!(exists(&path));
        let outside = own_identity();
        let inside = within(&path, own_identity).unwrap();
        assert_ne!(inside, outside);
        assert_eq!(
            own_identity(),
            outside,
            "the caller's own thread stays where it was"
        );
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
    }

    #[test]
    fn children_started_inside_are_inside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        create(&path).unwrap();
        let inside = within(&path, own_identity).unwrap();
        let child = within(&path, || {
            Cmd::new("readlink")
                .arg("/proc/self/ns/net")
                .run()
                .unwrap()
                .stdout_text()
        })
        .unwrap();
        remove(&path).unwrap();
        assert_eq!(PathBuf::from(child), inside);
    }

    #[test]
    fn a_scratch_namespace_is_another_one_each_time_and_leaves_the_caller_where_it_was() {
        let outside = own_identity();
        let (one, other) = (Scratch::new().unwrap(), Scratch::new().unwrap());
        let inside = one.within(own_identity).unwrap();
        assert_ne!(inside, outside);
        assert_ne!(other.within(own_identity).unwrap(), inside);
        assert_eq!(one.within(own_identity).unwrap(), inside);
        assert_eq!(own_identity(), outside);
    }

    #[test]
    fn an_existing_file_is_never_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        std::fs::write(&path, "theirs").unwrap();
        let error = create(&path).unwrap_err();
        assert!(
            matches!(&error, NetnsError::File { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "theirs");
    }

    #[test]
    fn a_plain_file_as_after_a_reboot_is_told_apart_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        std::fs::write(&path, "").unwrap();
        assert!(!exists(&path));
        assert!(matches!(
            within(&path, || ()).unwrap_err(),
            NetnsError::NotANamespace { .. }
        ));
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn stacked_mounts_are_all_removed_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("netns"), dir.path().join("other"));
        create(&path).unwrap();
        mount_bind(OWN, &path).unwrap();
        create(&other).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        remove(&path).unwrap();
        remove(&link).unwrap();
        assert!(!path.exists() && std::fs::symlink_metadata(&link).is_err());
        assert!(exists(&other), "what the link pointed to is left alone");
        remove(&other).unwrap();
    }
}
