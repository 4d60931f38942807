//! Confinement of a child that parses one untrusted file, because a malicious file may compromise the parser.
//!
//! As root, the child gets a uid without an account, no capability, and a private root directory with only
//! the system's programs and libraries, read-only, and that file; it has no network and cannot start a
//! process. A child that changes its file, or reads a tree for it, has one capability: to open these
//! regardless of their owner. For any other user only starting processes is forbidden, and the limits apply.
//! It must never start the child with less confinement than promised: if something cannot be set up, that is
//! an error.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    unshare_unsafe,
};

use crate::files::FileError;
use crate::seccomp;

/// Path of the file in the child's root directory.
const FILE: &str = "/file";

/// Path of the tree in the child's root directory.
const TREE: &str = "/tree";

/// The files that dynamically linked programs of the system need.
const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "nix"];

/// The child's uid is this number plus our process id. The range is above all uids that systemd, container
/// managers and subordinate ids use (`systemd.io/UIDS-GIDS`), and below 2^31, since process ids end at 2^22.
const FIRST_UID: u32 = 0x7000_0000;

/// Limit on the memory that the child may map, in bytes. A program that changes a file reads it with one
/// thread per processor, each with a stack of [`STACK_LIMIT`].
const MEMORY_LIMIT: u64 = 2 << 30;
const MEMORY_LIMIT_OF_CHANGES: u64 = 4 << 30;

/// Stack size, in bytes: the C library maps that much for each thread, whatever the caller's limit is.
const STACK_LIMIT: u64 = 2 << 20;

/// Maximum number of threads of a child with its own uid.
const THREAD_LIMIT: u64 = 512;

/// CPU time limit, in seconds; the caller limits the waiting time. A program that changes a file reads a
/// whole file system.
const CPU_LIMIT: u64 = 120;
const CPU_LIMIT_OF_CHANGES: u64 = 600;

/// What the child may do with its file.
#[derive(Debug, Clone, Copy)]
enum Right {
    Read,
    /// The maximum length that it may give the file, in bytes.
    Change(u64),
}

/// A child's confinement; it must live as long as the child.
#[derive(Debug)]
pub struct Confinement {
    file: PathBuf,
    tree: Option<PathBuf>,
    right: Right,
    /// For root: the plan of its root directory, and the empty directory on which it is mounted.
    inside: Option<(Arc<Inside>, tempfile::TempDir)>,
}

impl Confinement {
    /// A confinement for a child that may read the file at `path`. Root's child must be able to read the file
    /// with the permissions of others; otherwise it is an error.
    pub fn to_read(path: &Path) -> Result<Self, FileError> {
        let fail = |source| FileError::io("inspect", path, source);
        let file = path.canonicalize().map_err(fail)?;
        let facts = file.metadata().map_err(fail)?;
        let root = rustix::process::geteuid().is_root();
        if root && std::os::unix::fs::MetadataExt::mode(&facts) & 0o004 == 0 {
            let why = "it is read as user nobody, but only its owner may read it";
            let source = io::Error::new(io::ErrorKind::PermissionDenied, why);
            return Err(FileError::io("inspect", path, source));
        }
        Self::new(file, None, Right::Read)
    }

    /// A confinement for a child that may change the file at `path`, which belongs to us, and make it at most
    /// `bytes` long.
    pub fn to_change(path: &Path, bytes: u64) -> Result<Self, FileError> {
        let fail = |source| FileError::io("inspect", path, source);
        Self::new(path.canonicalize().map_err(fail)?, None, Right::Change(bytes))
    }

    /// The same for a child that fills the file from the directory `tree`, which it can read completely and
    /// not change.
    pub fn to_fill(path: &Path, bytes: u64, tree: &Path) -> Result<Self, FileError> {
        let whole = |path: &Path| {
            path.canonicalize()
                .map_err(|source| FileError::io("inspect", path, source))
        };
        Self::new(whole(path)?, Some(whole(tree)?), Right::Change(bytes))
    }

    fn new(file: PathBuf, tree: Option<PathBuf>, right: Right) -> Result<Self, FileError> {
        let inside = if rustix::process::geteuid().is_root() {
            // Make it beside a file of ours, so that it is removed with the lease or the build if we are
            // killed; a file that is only read may be anywhere.
            let place = match (right, file.parent()) {
                (Right::Change(_), Some(parent)) => parent.to_owned(),
                _ => std::env::temp_dir(),
            };
            let root = tempfile::Builder::new()
                .prefix("crabbox-root-")
                .tempdir_in(&place);
            let root = root.map_err(|source| FileError::io("make a directory in", &place, source))?;
            let inside = Inside::new(root.path(), &file, tree.as_deref(), right)
                .map_err(|source| FileError::io("confine a program to", &file, source))?;
            Some((Arc::new(inside), root))
        } else {
            None
        };
        Ok(Self {
            file,
            tree,
            right,
            inside,
        })
    }

    /// The child's path of the tree, or of the file if there is no tree.
    pub fn tree_name(&self) -> &Path {
        match (&self.tree, &self.inside) {
            (Some(_), Some(_)) => Path::new(TREE),
            (Some(tree), None) => tree,
            (None, _) => self.name(),
        }
    }

    /// The child's path of the file.
    pub fn name(&self) -> &Path {
        match self.inside {
            Some(_) => Path::new(FILE),
            None => &self.file,
        }
    }

    /// Confines the child of `command`; its environment has only a usual `PATH`.
    pub(crate) fn apply(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C");
        let inside = self.inside.as_ref().map(|(inside, _)| Arc::clone(inside));
        let right = self.right;
        let enter = move || {
            if let Some(inside) = &inside {
                inside.enter()?;
                lower(Resource::Nproc, THREAD_LIMIT)?;
            }
            limit(right)
        };
        #[expect(
            unsafe_code,
            reason = "code between fork and exec can only be given through pre_exec"
        )]
        // SAFETY: `enter` makes system calls with arguments that were made before the fork; it neither
        // allocates nor takes a lock, and turning an errno into an `io::Error` stores a number.
        unsafe {
            command.pre_exec(enter);
        }
    }
}

/// All that root's child needs to set up its root directory without allocating memory.
#[derive(Debug)]
struct Inside {
    root: CString,
    /// Directories of the system, with their paths for the child.
    shared: Vec<(CString, CString)>,
    /// Links of the system, with target and path.
    links: Vec<(CString, CString)>,
    file: CString,
    file_in_root: CString,
    /// The tree and its path for the child.
    tree: Option<(CString, CString)>,
    right: Right,
    id: u32,
}

impl Inside {
    fn new(root: &Path, file: &Path, tree: Option<&Path>, right: Right) -> io::Result<Self> {
        let (mut shared, mut links) = (Vec::new(), Vec::new());
        for name in SYSTEM {
            let (from, to) = (Path::new("/").join(name), root.join(name));
            let Ok(facts) = std::fs::symlink_metadata(&from) else {
                continue;
            };
            if facts.is_symlink() {
                links.push((text(&std::fs::read_link(&from)?)?, text(&to)?));
            } else if facts.is_dir() {
                shared.push((text(&from)?, text(&to)?));
            }
        }
        let tree = match tree {
            Some(tree) => Some((text(tree)?, text(&root.join(TREE.trim_start_matches('/')))?)),
            None => None,
        };
        Ok(Self {
            tree,
            right,
            root: text(root)?,
            shared,
            links,
            file: text(file)?,
            file_in_root: text(&root.join(FILE.trim_start_matches('/')))?,
            id: FIRST_UID.saturating_add(std::process::id()),
        })
    }

    fn enter(&self) -> io::Result<()> {
        let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
        #[expect(
            unsafe_code,
            reason = "unshare is unsafe for the flags that change the file table; these do not"
        )]
        // SAFETY: no file descriptor is shared or dropped by these flags.
        unsafe { unshare_unsafe(flags) }?;
        // From here on, only this process sees what is mounted.
        mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        let bare = MountFlags::NOSUID | MountFlags::NODEV;
        let data = c"mode=0755,size=64k,nr_inodes=64";
        mount(c"crabbox", self.root.as_c_str(), c"tmpfs", bare, data)?;
        for (from, to) in &self.shared {
            rustix::fs::mkdirat(CWD, to.as_c_str(), Mode::from_raw_mode(0o755))?;
            bind_read_only(from, to, bare)?;
        }
        for (target, place) in &self.links {
            rustix::fs::symlinkat(target.as_c_str(), CWD, place.as_c_str())?;
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, self.file_in_root.as_c_str(), flags, Mode::empty())?;
        match self.right {
            Right::Read => bind_read_only(&self.file, &self.file_in_root, bare)?,
            Right::Change(_) => {
                mount_bind(self.file.as_c_str(), self.file_in_root.as_c_str())?;
                mount_remount(self.file_in_root.as_c_str(), MountFlags::BIND | bare, c"")?;
            }
        }
        if let Some((from, to)) = &self.tree {
            rustix::fs::mkdirat(CWD, to.as_c_str(), Mode::from_raw_mode(0o755))?;
            bind_read_only(from, to, bare)?;
        }
        mount_remount(self.root.as_c_str(), MountFlags::RDONLY | bare, c"")?;
        rustix::process::chroot(self.root.as_c_str())?;
        rustix::process::chdir(c"/")?;
        // Drop the groups while we still may. Changing the last uid drops all capabilities.
        let (user, group) = (Uid::from_raw(self.id), Gid::from_raw(self.id));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        match self.right {
            Right::Read => Ok(set_thread_res_uid(user, user, user)?),
            Right::Change(_) => {
                set_keep_capabilities(true)?;
                set_thread_res_uid(user, user, user)?;
                keep_one_capability()
            }
        }
    }
}

/// Keeps only the capability to open a file regardless of its owner, also after exec. Everything else that
/// the child sees is mounted read-only. A capability to read any file would also permit opening files by
/// handle, which ignores the root directory.
fn keep_one_capability() -> io::Result<()> {
    let capability = CapabilitySet::DAC_OVERRIDE;
    let sets = CapabilitySets {
        effective: capability,
        permitted: capability,
        inheritable: capability,
    };
    set_capabilities(None, sets)?;
    Ok(configure_capability_in_ambient_set(capability, true)?)
}

fn bind_read_only(from: &CStr, to: &CStr, bare: MountFlags) -> Result<(), Errno> {
    mount_bind(from, to)?;
    mount_remount(to, MountFlags::BIND | MountFlags::RDONLY | bare, c"")
}

/// From here on the child cannot start processes, gain privileges, or write without permission.
fn limit(right: Right) -> io::Result<()> {
    let exactly = |bytes| Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    set_no_new_privs(true)?;
    let (bytes, seconds, memory) = match right {
        Right::Read => (0, CPU_LIMIT, MEMORY_LIMIT),
        Right::Change(bytes) => (bytes, CPU_LIMIT_OF_CHANGES, MEMORY_LIMIT_OF_CHANGES),
    };
    setrlimit(Resource::Fsize, exactly(bytes))?;
    setrlimit(Resource::Core, exactly(0))?;
    lower(Resource::Stack, STACK_LIMIT)?;
    lower(Resource::As, memory)?;
    lower(Resource::Cpu, seconds)?;
    seccomp::start_no_process()
}

/// A limit that is already lower is not raised.
fn lower(resource: Resource, most: u64) -> Result<(), Errno> {
    let bytes = rustix::process::getrlimit(resource)
        .maximum
        .map_or(most, |now| now.min(most));
    setrlimit(
        resource,
        Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        },
    )
}

fn text(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Captured, Cmd};

    fn confined(script: &str) -> Captured {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("foreign");
        std::fs::write(&file, "content").unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let confinement = Arc::new(Confinement::to_read(&file).unwrap());
        let command = Cmd::new("sh")
            .args(["-c", script, "sh"])
            .arg(confinement.name())
            .arg(&secret);
        command.confined(confinement).capture().unwrap()
    }

    #[test]
    fn it_reads_its_file_and_has_a_uid_that_no_account_has() {
        let done = confined("read -r line < \"$1\"; echo \"$line\"; exec id -u");
        let said = done.stdout_text();
        let (content, id) = said.split_once('\n').unwrap();
        assert_eq!(content, "content");
        assert_eq!(id, (FIRST_UID + std::process::id()).to_string());
    }

    #[test]
    fn nothing_of_this_host_is_there_but_its_programs() {
        let done = confined("echo /*");
        for name in done.stdout_text().split(' ') {
            let name = name.trim_start_matches('/');
            assert!(name == "file" || SYSTEM.contains(&name), "{name}");
        }
        for path in ["/etc/shadow", "/proc/self/environ", "/dev/null", "/tmp/."] {
            let done = confined(&format!("test -e {path}"));
            assert_eq!(done.status.code(), Some(1), "{path}");
        }
        assert_eq!(confined("test -e \"$2\"").status.code(), Some(1));
    }

    #[test]
    fn it_can_neither_write_nor_start_anything() {
        for script in [
            "echo x > \"$1\"",
            "echo x > /new",
            "echo x > /usr/new",
            "/bin/true & wait; /bin/true",
        ] {
            let done = confined(script);
            assert_ne!(done.status.code(), Some(0), "{script}: {}", done.stderr_text());
        }
    }

    /// The actions of a child that may change its file and read a tree, and the file afterwards.
    fn changing(script: &str) -> (Captured, Vec<u8>) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let private = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let (file, tree) = (dir.path().join("disk"), dir.path().join("tree"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(&file, "old").unwrap();
        std::fs::write(tree.join("f"), "content").unwrap();
        private(&file, 0o600);
        private(&tree.join("f"), 0o600);
        private(&tree, 0o700);
        let confinement = Arc::new(Confinement::to_fill(&file, 4096, &tree).unwrap());
        let command = Cmd::new("sh")
            .args(["-c", script, "sh"])
            .arg(confinement.name())
            .arg(confinement.tree_name());
        let done = command.confined(confinement).capture().unwrap();
        assert_eq!(std::fs::read(tree.join("f")).unwrap(), b"content");
        assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 1);
        (done, std::fs::read(&file).unwrap())
    }

    #[test]
    fn what_changes_a_file_reaches_it_and_its_tree_and_nothing_else() {
        let (done, file) = changing("read -r line < \"$2/f\"; echo \"got $line\" > \"$1\"; exec id -u");
        assert_eq!(file, b"got content\n", "{}", done.stderr_text());
        assert_eq!(done.stdout_text(), (FIRST_UID + std::process::id()).to_string());
        for script in [
            "echo x > \"$2/f\"",
            "echo x > \"$2/new\"",
            "echo x > /new",
            "echo x > /usr/new",
            "test -e /etc/shadow",
            "/bin/true & wait; /bin/true",
            "exec chroot / /bin/true",
            "exec mount -t tmpfs x /tree",
            "exec mount -o remount,bind,rw /tree",
            "exec chown 0:0 \"$1\"",
            "exec mknod /tree/d c 1 1",
        ] {
            let (done, _) = changing(script);
            assert_ne!(done.status.code(), Some(0), "{script}: {}", done.stderr_text());
        }
    }

    #[test]
    fn what_changes_a_file_makes_it_no_longer_than_was_said() {
        let (done, file) = changing("exec dd if=/usr/bin/env of=\"$1\" bs=1024 count=16 conv=notrunc");
        assert_ne!(done.status.code(), Some(0));
        assert_eq!(file.len(), 4096);
    }

    #[test]
    fn nothing_is_made_outside_the_directory_of_a_file_that_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::write(&file, "old").unwrap();
        let confinement = Confinement::to_change(&file, 4096).unwrap();
        let (_, root) = confinement.inside.as_ref().unwrap();
        assert_eq!(
            root.path().parent(),
            Some(dir.path().canonicalize().unwrap().as_path())
        );
        drop(confinement);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// An obstacle to the setup is an error before the program starts.
    #[test]
    fn a_child_that_cannot_be_confined_does_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::write(&file, "old").unwrap();
        let run = |confinement: Confinement| {
            let script = "echo new > \"$1\"";
            let command = Cmd::new("sh").args(["-c", script, "sh"]).arg(&file);
            command.confined(Arc::new(confinement)).capture()
        };
        let confinement = Confinement::to_change(&file, 4096).unwrap();
        let (_, root) = confinement.inside.as_ref().unwrap();
        std::fs::remove_dir(root.path()).unwrap();
        run(confinement).unwrap_err();
        let confinement = Confinement::to_change(&file, 4096).unwrap();
        std::fs::rename(&file, dir.path().join("other")).unwrap();
        run(confinement).unwrap_err();
        assert!(!file.exists());
        assert_eq!(std::fs::read(dir.path().join("other")).unwrap(), b"old");
    }

    #[test]
    fn a_file_that_only_root_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        let mode = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(file.path(), mode).unwrap();
        let error = Confinement::to_read(file.path()).unwrap_err();
        assert!(error.to_string().contains("cannot inspect"), "{error}");
    }
}
