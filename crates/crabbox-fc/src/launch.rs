//! How Firecracker and its jailer are called, and where the jailer puts things. Pure: it computes arguments
//! and paths, and runs nothing.
//!
//! The jailer's rules in this file were found by running version 1.12.1. A path given to Firecracker itself
//! must stay relative to its working directory, which under the jailer is the jail.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest id, in bytes, that firecracker and jailer accept.
const ID_LIMIT: usize = 64;

/// The id of a machine: 1 to 64 letters, digits and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VmId(String);

/// Not an id that Firecracker accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id:?} cannot be the id of a microVM: 1 to {ID_LIMIT} letters, digits and '-' are allowed")]
pub struct InvalidVmId {
    /// The given value.
    pub id: String,
}

impl FromStr for VmId {
    type Err = InvalidVmId;

    fn from_str(id: &str) -> Result<Self, InvalidVmId> {
        let fits = (1..=ID_LIMIT).contains(&id.len());
        if fits
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            Ok(Self(id.to_owned()))
        } else {
            Err(InvalidVmId { id: id.to_owned() })
        }
    }
}

impl VmId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// The options of Firecracker itself that are the same with and without a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmOptions {
    /// The API socket, relative to the working directory; its name must be free.
    pub api_socket: String,
    /// Where Firecracker logs from its first line on: an existing file or pipe, relative to the working
    /// directory.
    pub log_path: Option<String>,
    /// The least severe level that is logged, as in [`crate::types::LogLevel`].
    pub level: Option<crate::types::LogLevel>,
    /// A device by which the guest can report that it has booted; Firecracker then logs the time since its
    /// start.
    pub boot_timer: bool,
    /// The guest's devices on PCI instead of MMIO, since 1.13.
    pub enable_pci: bool,
}

impl VmmOptions {
    /// Only the API socket.
    pub fn new(api_socket: impl Into<String>) -> Self {
        let api_socket = api_socket.into();
        Self {
            api_socket,
            log_path: None,
            level: None,
            boot_timer: false,
            enable_pci: false,
        }
    }

    fn add_to(&self, argv: &mut Argv) {
        argv.option("--api-sock", &self.api_socket);
        if let Some(path) = &self.log_path {
            argv.option("--log-path", path);
        }
        if let Some(level) = self.level {
            argv.option("--level", level.name());
        }
        argv.switch("--boot-timer", self.boot_timer);
        argv.switch("--enable-pci", self.enable_pci);
    }
}

/// Launches Firecracker without a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectLaunch {
    /// The program.
    pub binary: PathBuf,
    /// The id of the machine.
    pub id: VmId,
    /// Everything else.
    pub options: VmmOptions,
}

impl DirectLaunch {
    /// Program and arguments. The caller chooses the working directory.
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv::new(&self.binary);
        argv.option("--id", self.id.as_str());
        self.options.add_to(&mut argv);
        argv.0
    }
}

/// Launches Firecracker in a jail: the jailer makes it, drops its privileges and becomes Firecracker, with
/// the same pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailLaunch {
    /// The jailer.
    pub jailer: PathBuf,
    /// Where the jail is.
    pub layout: JailLayout,
    /// The user that Firecracker becomes.
    pub uid: u32,
    /// The group that Firecracker becomes.
    pub gid: u32,
    /// The file of a network namespace to enter.
    pub netns: Option<PathBuf>,
    /// The control group.
    pub cgroup: Cgroup,
    /// Limits of the process, as in `no-file=1024` or `fsize=4096`.
    pub resource_limits: Vec<(ResourceLimit, u64)>,
    /// Everything else.
    pub options: VmmOptions,
}

/// The jailer's settings for control groups (version 2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cgroup {
    /// The parent, relative to the root of the cgroup file system. Without `values` the process itself goes
    /// there, so it must exist and have no children; with them it goes to `<parent>/<id>`, which the jailer
    /// makes and never removes.
    pub parent: Option<String>,
    /// Files to write, as (`cpu.max`, `50000 100000`).
    pub values: Vec<(String, String)>,
}

/// A limit that the jailer can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResourceLimit {
    /// One more than the highest descriptor.
    NoFile,
    /// The longest file that may be written, in bytes.
    FileSize,
}

impl ResourceLimit {
    const fn name(self) -> &'static str {
        match self {
            Self::NoFile => "no-file",
            Self::FileSize => "fsize",
        }
    }
}

impl JailLaunch {
    /// Program and arguments. The jailer stays in the foreground, so standard output is the guest's console.
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv::new(&self.jailer);
        argv.option("--id", self.layout.id.as_str());
        argv.option("--exec-file", &self.layout.exec_file);
        argv.option("--uid", self.uid.to_string());
        argv.option("--gid", self.gid.to_string());
        argv.option("--chroot-base-dir", &self.layout.base);
        if let Some(netns) = &self.netns {
            argv.option("--netns", netns);
        }
        argv.option("--cgroup-version", "2");
        if let Some(parent) = &self.cgroup.parent {
            argv.option("--parent-cgroup", parent);
        }
        for (file, value) in &self.cgroup.values {
            argv.option("--cgroup", format!("{file}={value}"));
        }
        for (limit, value) in &self.resource_limits {
            argv.option("--resource-limit", format!("{}={value}", limit.name()));
        }
        argv.0.push("--".into());
        // The jailer itself passes `--id` to Firecracker, which refuses a second one.
        self.options.add_to(&mut argv);
        argv.0
    }
}

/// Where a jail is: `<base>/<name of the program>/<id>/root`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailLayout {
    base: PathBuf,
    exec_file: PathBuf,
    id: VmId,
}

/// The jailer would refuse this program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the jailer takes only a program with 'firecracker' in its file name, not {}", exec_file.display())]
pub struct InvalidExecFile {
    /// The given value.
    pub exec_file: PathBuf,
}

impl JailLayout {
    /// The layout of the jail of `id` below `base`. `exec_file` must be the real path of the program: the
    /// jailer resolves symbolic links, and the last name that it finds becomes a part of the jail's path.
    pub fn new(base: &Path, exec_file: &Path, id: VmId) -> Result<Self, InvalidExecFile> {
        let named = exec_file
            .file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| name.contains("firecracker"));
        if named {
            Ok(Self {
                base: base.to_owned(),
                exec_file: exec_file.to_owned(),
                id,
            })
        } else {
            Err(InvalidExecFile {
                exec_file: exec_file.to_owned(),
            })
        }
    }

    /// The directory that belongs to this machine alone: removing it removes the jail.
    pub fn home(&self) -> PathBuf {
        self.base
            .join(self.exec_file.file_name().unwrap_or_default())
            .join(self.id.as_str())
    }

    /// The root directory of the jailed process, which is its working directory, too.
    pub fn root(&self) -> PathBuf {
        self.home().join("root")
    }
}

/// An argument vector that is being built.
struct Argv(Vec<OsString>);

impl Argv {
    fn new(program: &Path) -> Self {
        Self(vec![program.into()])
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.extend([name.into(), value.as_ref().to_owned()]);
    }

    fn switch(&mut self, name: &str, on: bool) {
        if on {
            self.0.push(name.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogLevel;

    fn id(text: &str) -> VmId {
        text.parse().unwrap()
    }

    fn words(argv: Vec<OsString>) -> String {
        argv.into_iter()
            .map(|word| word.into_string().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn an_id_is_what_the_real_programs_accept() {
        for good in ["a", "cbx-0123456789ab", &"a".repeat(64)] {
            assert_eq!(id(good).as_str(), good);
        }
        for bad in ["", "cbx_0123456789ab", "a/b", "..", "a b", "é", &"a".repeat(65)] {
            assert!(bad.parse::<VmId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_direct_launch_names_id_and_socket() {
        let mut options = VmmOptions::new("api.sock");
        options.log_path = Some("vmm.log".into());
        options.level = Some(LogLevel::Info);
        let launch = DirectLaunch {
            binary: "/opt/firecracker".into(),
            id: id("a-1"),
            options,
        };
        let expected = "/opt/firecracker --id a-1 --api-sock api.sock --log-path vmm.log --level Info";
        assert_eq!(words(launch.argv()), expected);
    }

    #[test]
    fn a_jailed_launch_gives_the_jailer_its_flags_and_firecracker_the_rest() {
        let launch = JailLaunch {
            jailer: "/opt/jailer".into(),
            layout: JailLayout::new("/jails".as_ref(), "/opt/firecracker-v1.12.1".as_ref(), id("a-1"))
                .unwrap(),
            uid: 1000,
            gid: 1001,
            netns: Some("/leases/netns".into()),
            cgroup: Cgroup {
                parent: Some("crabbox".into()),
                values: vec![
                    ("cpu.max".into(), "200000 100000".into()),
                    ("pids.max".into(), "64".into()),
                ],
            },
            resource_limits: vec![(ResourceLimit::NoFile, 1024), (ResourceLimit::FileSize, 4096)],
            options: VmmOptions::new("api.sock"),
        };
        let argv = launch.argv();
        assert!(
            argv.contains(&OsString::from("cpu.max=200000 100000")),
            "one argument, with its space"
        );
        let expected = "/opt/jailer --id a-1 --exec-file /opt/firecracker-v1.12.1 --uid 1000 --gid 1001 \
            --chroot-base-dir /jails --netns /leases/netns --cgroup-version 2 --parent-cgroup crabbox \
            --cgroup cpu.max=200000 100000 --cgroup pids.max=64 --resource-limit no-file=1024 \
            --resource-limit fsize=4096 -- --api-sock api.sock";
        assert_eq!(words(argv), expected);
    }

    #[test]
    fn a_jail_lies_where_the_real_jailer_puts_it() {
        let layout = JailLayout::new("/jails".as_ref(), "/opt/firecracker-v1".as_ref(), id("a-1")).unwrap();
        assert_eq!(layout.home(), Path::new("/jails/firecracker-v1/a-1"));
        assert_eq!(layout.root(), Path::new("/jails/firecracker-v1/a-1/root"));
        for bad in ["/opt/vmm", "/opt/firecracker/..", "/"] {
            assert!(
                JailLayout::new("/jails".as_ref(), bad.as_ref(), id("a")).is_err(),
                "{bad}"
            );
        }
    }
}
