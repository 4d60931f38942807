//! What a proof says: that the whole way of a lease was gone on some host, and which kind of host that was.
//!
//! A closed set of typed fields, of which none can hold a name, an address or a path of the host. What it claims follows from what
//! was seen and is never said beside it: a reader who works it out again finds the same, or the document is refused.

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
/// The most lines of output that a stage shows; its last ones.
pub const LINES: usize = 80;
/// What the guest says when the changes of the tree have arrived, a line each.
pub const DIRTY_TREE: [&str; 3] = ["hello from the working tree", "untracked", "gone"];
/// What a session says.
pub const SESSION: &str = "session in the guest";
/// What is said of a file that went to the guest and came back as it was.
pub const SAME: &str = "the copy is the same";

/// What is done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StageName {
    /// A machine is leased.
    Warmup,
    /// The guest is asked which kernel it runs.
    Look,
    /// A tree with changes that are not committed is synced, and read there.
    Run,
    /// A command fails.
    Fail,
    /// A shell is opened.
    Connect,
    /// A file goes there.
    CopyIn,
    /// It comes back.
    CopyOut,
    /// The lease is given back.
    Stop,
    /// What nobody needs is removed.
    Cleanup,
    /// What is left is looked for.
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

    /// Its command line as a person would type it, without what the user's own flags are.
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

    /// The exit code that it is to have.
    pub fn expected(self) -> u8 {
        match self {
            Self::Fail => 7,
            Self::Connect => 5,
            _ => 0,
        }
    }

    /// The word for it in a line.
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

/// A stage that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// Which.
    pub name: StageName,
    /// Its exit code; `null` when a signal ended it, or it could not be started.
    pub exit: Option<u8>,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// How many lines of its output are not shown, because there were too many, or they are about other leases.
    pub cut: u32,
    /// What it wrote to both streams, in order, redacted.
    pub transcript: Vec<Line>,
}

/// What is asserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AssertionName {
    /// A machine was leased.
    Leased,
    /// Changes that nobody committed arrived: an edit, a new file, a removed one.
    DirtyTree,
    /// A command's exit code is the program's.
    ExitCode,
    /// A shell could be opened, and its exit code is the program's.
    Connected,
    /// A file that went to the guest and came back is the same.
    Copied,
    /// The lease was given back.
    Stopped,
    /// Cleanup had nothing to complain of.
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

    /// What it says, as a sentence without its full stop.
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

/// An assertion, and whether it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Assertion {
    /// Which.
    pub name: AssertionName,
    /// Whether it holds.
    pub holds: bool,
}

/// What keeps a proof from being one of success though every assertion may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Somebody asked for an end.
    Interrupted,
    /// Nobody could tell what exactly was proved.
    Unknown,
    /// A stage was not done, or not in its place.
    Stages,
    /// Nobody could tell whether there was a machine.
    Rung,
}

impl Lack {
    /// What it says, as a sentence without its full stop.
    pub fn words(self) -> &'static str {
        match self {
            Self::Interrupted => "it was interrupted",
            Self::Unknown => "a digest or a version is not known",
            Self::Stages => "a stage is missing, or not in its place",
            Self::Rung => "no command ran in a guest, so it stands for no kind of host",
        }
    }
}

/// A kind of thing that a lease makes on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Residue {
    /// A process.
    Process,
    /// A mount, a network namespace that is held by one among them.
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
    /// Something that could not be looked at.
    Unseen,
}

/// What was found after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Left {
    /// What.
    pub kind: Residue,
    /// How many.
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
    /// Another one.
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

/// The host, as far as it may be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// Its processor.
    pub arch: Arch,
    /// The numbers of its kernel's release.
    pub kernel: Option<Version>,
    /// How many processors this program may use.
    pub cpus: u32,
    /// Its memory, in GiB, rounded.
    pub memory_gib: u32,
    /// Who its processor says it is run by.
    pub hypervisor: Hypervisor,
    /// What its firmware says of its maker.
    pub firmware: Firmware,
}

/// The VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vmm {
    /// The version that it says it has.
    pub version: Option<Version>,
    /// The digest of its file.
    pub sha256: Option<Sha256>,
    /// Whether that is the digest of the one that everything is tested with.
    pub pinned: bool,
    /// Whether leases run in a jail.
    pub jailed: bool,
}

/// What the guest is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Guest {
    /// Whose kernel its commands ran on.
    pub kernel: GuestKernel,
    /// The digest of its kernel's file.
    pub kernel_sha256: Option<Sha256>,
    /// The digest of its image: of the whole one from the store, else of the root file system.
    pub image_sha256: Option<Sha256>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the disk in MiB.
    pub disk_mib: u32,
    /// How it gets its address.
    pub network: NetworkMode,
}

/// What was seen, from which everything else follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// When it was begun.
    pub made_at: Moment,
    /// Whether a signal asked for an end before everything was done.
    pub interrupted: bool,
    /// The program.
    pub program: Program,
    /// The host.
    pub host: Host,
    /// The VMM, if there is one.
    pub firecracker: Option<Vmm>,
    /// The guest, as far as it is known what it is made of.
    pub guest: Option<Guest>,
    /// The stages that were done.
    pub stages: Vec<Stage>,
    /// What is left.
    pub left: Vec<Left>,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proof {
    /// [`SCHEMA_VERSION`].
    schema_version: u32,
    /// Whether every assertion holds, the rung is known, and nobody interrupted it.
    passed: bool,
    /// What kind of host it stands for.
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

impl Seen {
    fn rung(&self) -> Rung {
        let kernel = self
            .guest
            .as_ref()
            .map_or(GuestKernel::Unseen, |guest| guest.kernel);
        Rung::of(kernel, self.host.hypervisor, self.host.firmware)
    }

    /// All that it lacks beside assertions.
    fn lacks(&self) -> Vec<Lack> {
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
            (Lack::Interrupted, self.interrupted),
            (Lack::Unknown, !known),
            (Lack::Stages, !in_order),
            (Lack::Rung, self.rung().ladder == 0),
        ]
        .into_iter()
        .filter_map(|(lack, is_so)| is_so.then_some(lack))
        .collect()
    }
}

impl Proof {
    /// The proof that follows from what was seen.
    pub fn of(seen: Seen) -> Self {
        let (rung, lacks) = (seen.rung(), seen.lacks());
        let Seen {
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

    /// Whether it is one of success.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// Whether somebody asked for an end before it was done.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// What it lacks beside assertions that do not hold; whoever says that it did not pass has to say one or the other.
    pub fn lacks(&self) -> Vec<Lack> {
        self.seen().lacks()
    }

    /// The rung that it stands for.
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

    /// What was seen, without what follows from it.
    fn seen(&self) -> Seen {
        Seen {
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
