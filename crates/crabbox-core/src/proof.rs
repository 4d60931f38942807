//! The content of a proof: that the complete lifecycle of a lease ran on some host, and which kind of host
//! that was.
//!
//! It is a closed set of typed fields, none of which can hold a name, an address or a path of the host. Its
//! conclusions must never be stored independently of the observations: a reader derives them again and
//! refuses the document if they differ.

pub mod redact;
pub mod rung;
mod shape;
mod text;

use serde::{Deserialize, Serialize};

use crate::network::NetworkMode;
use rung::{Firmware, GuestKernel, Hypervisor, Rung};

pub use shape::{Line, Moment, Sha256, ShapeError, Version};
pub use text::{FILE_LIMIT, ProofError, parse, render};

/// The version of the format.
pub const SCHEMA_VERSION: u32 = 1;
/// Maximum number of output lines of a stage; the last ones are kept.
pub const LINES: usize = 80;
/// Lines that the guest prints when the changes of the tree have arrived.
pub const DIRTY_TREE: [&str; 3] = ["hello from the working tree", "untracked", "gone"];
/// Output of the shell session.
pub const SESSION: &str = "session in the guest";
/// Output for a file that came back from the guest unchanged.
pub const SAME: &str = "the copy is the same";

/// The stages, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StageName {
    /// A machine is leased.
    Warmup,
    /// The guest's kernel version is queried.
    Look,
    /// A tree with uncommitted changes is synced, and read in the guest.
    Run,
    /// A command fails.
    Fail,
    /// A shell is opened.
    Connect,
    /// A file is copied into the guest.
    CopyIn,
    /// The file is copied back.
    CopyOut,
    /// The lease is released.
    Stop,
    /// Cleanup runs.
    Cleanup,
    /// Leftovers are searched for.
    Scan,
}

impl StageName {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Warmup,
        Self::Look,
        Self::Run,
        Self::Fail,
        Self::Connect,
        Self::CopyIn,
        Self::CopyOut,
        Self::Stop,
        Self::Cleanup,
        Self::Scan,
    ];

    /// Its command line as a person would type it, without the user's own flags.
    pub fn command(self) -> &'static str {
        match self {
            Self::Warmup => "crabbox warmup --provider firecracker --slug proof",
            Self::Look => {
                "crabbox run --id proof --no-sync -- sh -c 'uname -s; cat /proc/sys/kernel/random/boot_id'"
            }
            Self::Run => {
                "crabbox run --id proof -- sh -c 'cat greeting untracked; test -e removed || echo gone'"
            }
            Self::Fail => "crabbox run --id proof --no-sync -- sh -c 'exit 7'",
            Self::Connect => "echo 'echo session in the guest; exit 5' | crabbox connect proof",
            Self::CopyIn => "crabbox cp --id proof greeting SANDBOX:/tmp/greeting",
            Self::CopyOut => "crabbox cp --id proof SANDBOX:/tmp/greeting copy && cmp greeting copy",
            Self::Stop => "crabbox stop proof",
            Self::Cleanup => "crabbox cleanup --provider firecracker",
            Self::Scan => {
                "what bears the lease's id or tag, or is an object of crabbox without a lease and was not there before"
            }
        }
    }

    /// The expected exit code.
    pub fn expected(self) -> u8 {
        match self {
            Self::Fail => 7,
            Self::Connect => 5,
            _ => 0,
        }
    }

    /// Its name in a line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Warmup => "warmup",
            Self::Look => "look",
            Self::Run => "run",
            Self::Fail => "fail",
            Self::Connect => "connect",
            Self::CopyIn => "copy in",
            Self::CopyOut => "copy out",
            Self::Stop => "stop",
            Self::Cleanup => "cleanup",
            Self::Scan => "scan",
        }
    }
}

/// A completed stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// The stage.
    pub name: StageName,
    /// Its exit code; `null` if a signal ended it, or it could not be started.
    pub exit: Option<u8>,
    /// Its duration, in milliseconds.
    pub millis: u64,
    /// Number of output lines that are not shown, because there were too many, or they are about other
    /// leases.
    pub cut: u32,
    /// Its output on both streams, in order, redacted.
    pub transcript: Vec<Line>,
}

/// The assertions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AssertionName {
    /// A machine was leased.
    Leased,
    /// Uncommitted changes arrived: an edited, a new and a removed file.
    DirtyTree,
    /// A command's exit code becomes the program's.
    ExitCode,
    /// A shell could be opened, and its exit code becomes the program's.
    Connected,
    /// A file that was copied to the guest and back is unchanged.
    Copied,
    /// The lease was released.
    Stopped,
    /// Cleanup reported no problem.
    Cleaned,
    /// Nothing is left on the host.
    NothingLeft,
}

impl AssertionName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Leased,
        Self::DirtyTree,
        Self::ExitCode,
        Self::Connected,
        Self::Copied,
        Self::Stopped,
        Self::Cleaned,
        Self::NothingLeft,
    ];

    /// Its sentence, without a full stop.
    pub fn words(self) -> &'static str {
        match self {
            Self::Leased => "a machine was leased",
            Self::DirtyTree => "an edit, a new file and a removed one arrived uncommitted",
            Self::ExitCode => "a failing command's exit code came through",
            Self::Connected => "a shell was opened, and its exit code came through",
            Self::Copied => "a file went there and came back the same",
            Self::Stopped => "the lease was given back",
            Self::Cleaned => "cleanup found nothing that it could not remove",
            Self::NothingLeft => "nothing is left on the host",
        }
    }
}

/// The result of an assertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assertion {
    /// The assertion.
    pub name: AssertionName,
    /// Whether it holds.
    pub holds: bool,
}

/// Why a proof does not pass although every assertion may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortfall {
    /// It was interrupted.
    Interrupted,
    /// The program, the VMM, the kernel or the image could not be identified.
    Unknown,
    /// A stage is missing, or out of order.
    Stages,
    /// It is unknown whether there was a virtual machine.
    Rung,
}

impl Shortfall {
    /// Its sentence, without a full stop.
    pub fn words(self) -> &'static str {
        match self {
            Self::Interrupted => "it was interrupted",
            Self::Unknown => "a digest or a version is not known",
            Self::Stages => "a stage is missing, or not in its place",
            Self::Rung => "no command ran in a guest, so it stands for no kind of host",
        }
    }
}

/// A kind of object that a lease makes on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Residue {
    /// A process.
    Process,
    /// A mount, including that of a network namespace.
    Mount,
    /// A network interface.
    Link,
    /// An nft table.
    Table,
    /// A rule of nft or iptables.
    Rule,
    /// A control group.
    ControlGroup,
    /// An address that a CNI plugin keeps.
    Address,
    /// A file or directory.
    File,
    /// A claim.
    Claim,
    /// An entry of the host's registry.
    Entry,
    /// A lock file.
    Lock,
    /// An object that could not be inspected.
    Unseen,
}

/// Leftovers of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Left {
    /// The kind.
    pub kind: Residue,
    /// The number.
    pub count: u32,
}

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arch {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86,
    /// 64-bit ARM.
    #[serde(rename = "aarch64")]
    Arm,
    /// Any other.
    #[serde(rename = "other")]
    Other,
}

impl Arch {
    /// The processor called `name` by the compiler.
    pub fn by_name(name: &str) -> Self {
        match name {
            "x86_64" => Self::X86,
            "aarch64" => Self::Arm,
            _ => Self::Other,
        }
    }
}

/// The program that made the proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Program {
    /// Its version.
    pub version: Version,
    /// The digest of its file.
    pub sha256: Option<Sha256>,
}

/// The properties of the host that may be published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// Its processor.
    pub arch: Arch,
    /// The numbers of its kernel release.
    pub kernel: Option<Version>,
    /// Number of processors available to this program.
    pub cpus: u32,
    /// Its memory, in GiB, rounded.
    pub memory_gib: u32,
    /// The hypervisor reported by its processor.
    pub hypervisor: Hypervisor,
    /// The manufacturer according to its firmware.
    pub firmware: Firmware,
}

/// The VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vmm {
    /// Its reported version.
    pub version: Option<Version>,
    /// The digest of its file.
    pub sha256: Option<Sha256>,
    /// Whether that is the digest of the tested Firecracker.
    pub pinned: bool,
    /// Whether leases run in a jail.
    pub jailed: bool,
}

/// The properties of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Guest {
    /// The kernel on which its commands ran.
    pub kernel: GuestKernel,
    /// The digest of its kernel's file.
    pub kernel_sha256: Option<Sha256>,
    /// The digest of its image: of the image in the store, or else of the root file system.
    pub image_sha256: Option<Sha256>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the disk in MiB.
    pub disk_mib: u32,
    /// Its network mode.
    pub network: NetworkMode,
}

/// The observations, from which everything else is derived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observations {
    /// Start time.
    pub made_at: Moment,
    /// Whether a signal interrupted it.
    pub interrupted: bool,
    /// The program.
    pub program: Program,
    /// The host.
    pub host: Host,
    /// The VMM, if there is one.
    pub firecracker: Option<Vmm>,
    /// The guest, as far as its properties are known.
    pub guest: Option<Guest>,
    /// The completed stages.
    pub stages: Vec<Stage>,
    /// The leftovers.
    pub left: Vec<Left>,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proof {
    /// [`SCHEMA_VERSION`].
    schema_version: u32,
    /// Whether every assertion holds, the rung is known, and it was not interrupted.
    passed: bool,
    /// The kind of host that it is evidence for.
    rung: Rung,
    made_at: Moment,
    interrupted: bool,
    program: Program,
    host: Host,
    firecracker: Option<Vmm>,
    guest: Option<Guest>,
    assertions: Vec<Assertion>,
    stages: Vec<Stage>,
    left: Vec<Left>,
}

impl Observations {
    fn rung(&self) -> Rung {
        let kernel = self
            .guest
            .as_ref()
            .map_or(GuestKernel::Unseen, |guest| guest.kernel);
        Rung::of(kernel, self.host.hypervisor, self.host.firmware)
    }

    /// Other reasons why it does not pass.
    fn lacks(&self) -> Vec<Shortfall> {
        let known = self.program.sha256.is_some()
            && self
                .firecracker
                .as_ref()
                .is_some_and(|vmm| vmm.version.is_some() && vmm.sha256.is_some())
            && self
                .guest
                .as_ref()
                .is_some_and(|guest| guest.kernel_sha256.is_some() && guest.image_sha256.is_some());
        let in_order = StageName::ALL
            .into_iter()
            .eq(self.stages.iter().map(|stage| stage.name));
        [
            (Shortfall::Interrupted, self.interrupted),
            (Shortfall::Unknown, !known),
            (Shortfall::Stages, !in_order),
            (Shortfall::Rung, self.rung().ladder == 0),
        ]
        .into_iter()
        .filter_map(|(lack, is_so)| is_so.then_some(lack))
        .collect()
    }
}

impl Proof {
    /// Derives the proof from the observations.
    pub fn of(seen: Observations) -> Self {
        let (rung, lacks) = (seen.rung(), seen.lacks());
        let Observations {
            made_at,
            interrupted,
            program,
            host,
            firecracker,
            guest,
            stages,
            left,
        } = seen;
        let assertions: Vec<Assertion> = AssertionName::ALL
            .into_iter()
            .map(|name| Assertion {
                name,
                holds: holds(name, &stages, &left),
            })
            .collect();
        Self {
            schema_version: SCHEMA_VERSION,
            passed: lacks.is_empty() && assertions.iter().all(|assertion| assertion.holds),
            rung,
            made_at,
            interrupted,
            program,
            host,
            firecracker,
            guest,
            assertions,
            stages,
            left,
        }
    }

    /// Whether it passes.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// Whether it was interrupted.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Reasons other than assertions that do not hold; a failed proof has at least one of either.
    pub fn lacks(&self) -> Vec<Shortfall> {
        self.seen().lacks()
    }

    /// Its rung.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// Its assertions.
    pub fn assertions(&self) -> &[Assertion] {
        &self.assertions
    }

    /// Its stages.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The observations only.
    fn seen(&self) -> Observations {
        Observations {
            made_at: self.made_at.clone(),
            interrupted: self.interrupted,
            program: self.program.clone(),
            host: self.host.clone(),
            firecracker: self.firecracker.clone(),
            guest: self.guest.clone(),
            stages: self.stages.clone(),
            left: self.left.clone(),
        }
    }
}

/// Whether the assertion follows from the stages.
fn holds(name: AssertionName, stages: &[Stage], left: &[Left]) -> bool {
    let done = |wanted: StageName| {
        let mut found = stages.iter().filter(move |stage| stage.name == wanted);
        let only = found.next().filter(|stage| stage.exit == Some(wanted.expected()));
        only.filter(|_| found.next().is_none())
    };
    let says = |wanted: StageName, line: &str| {
        done(wanted).is_some_and(|stage| stage.transcript.iter().any(|said| said.as_str() == line))
    };
    match name {
        AssertionName::Leased => done(StageName::Warmup).is_some(),
        AssertionName::DirtyTree => DIRTY_TREE.iter().all(|line| says(StageName::Run, line)),
        AssertionName::ExitCode => done(StageName::Fail).is_some(),
        AssertionName::Connected => says(StageName::Connect, SESSION),
        AssertionName::Copied => done(StageName::CopyIn).is_some() && says(StageName::CopyOut, SAME),
        AssertionName::Stopped => done(StageName::Stop).is_some(),
        AssertionName::Cleaned => done(StageName::Cleanup).is_some(),
        AssertionName::NothingLeft => done(StageName::Scan).is_some() && left.is_empty(),
    }
}

#[cfg(test)]
mod tests;
