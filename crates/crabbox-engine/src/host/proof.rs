//! A proof: the whole life of a lease, performed once with the program's own commands and recorded for
//! strangers.
//!
//! The commands are the ones that a user types, started as a user starts them, so that they prove the whole
//! program. It must never keep the machine: whatever happens, the lease is released before the document is
//! made.

mod facts;
mod fixture;
mod residue;
mod step;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::LeaseId;
use crabbox_core::labels;
use crabbox_core::proof::redact::Redactor;
use crabbox_core::proof::rung::GuestKernel;
use crabbox_core::proof::{
    self, LINES, Left, Line, Moment, Observations, Program, Proof, ProofError, SAME, SESSION, Stage,
    StageName, Version,
};
use crabbox_core::timestamp;
use crabbox_host::command::Cmd;
use crabbox_host::signals::Interrupts;
use crabbox_host::{clock, digest, files, process, random};
use crabbox_machine::context::Engine;
use crabbox_store::leases;
use crabbox_store::places::Places;

use fixture::Fixture;
use residue::Before;
use step::{Ran, Step};

/// The lease's TTL, in case the proof is killed before it can release the lease.
const TTL: &str = "45m";
/// The lease's idle limit.
const IDLE: &str = "20m";
/// How long to wait, after the last command, for things that end by themselves.
const SETTLES: Duration = Duration::from_secs(10);

/// Parameters of a proof.
#[derive(Debug)]
pub struct ProofOptions {
    /// This program's version.
    pub version: &'static str,
    /// The user's flags for the lease.
    pub flags: Vec<OsString>,
    /// Whether to set up the host first if it has never been set up.
    pub set_up: bool,
    /// Names of the host and its user, all of which are redacted.
    pub names: Vec<String>,
}

/// Progress, for a person who waits.
#[derive(Debug)]
pub enum ProofEvent<'a> {
    /// A stage begins.
    Begins(StageName),
    /// The stage is over.
    Ended(&'a Stage),
    /// The user interrupted, and the machine is being released first.
    GivesBack,
}

/// Why a proof was not begun.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The working tree could not be made.
    #[error("cannot make the working tree that the proof syncs")]
    Fixture(#[from] fixture::FixtureError),
    /// This host's objects cannot be listed, so leftovers could not be detected afterwards.
    #[error("cannot inspect this host, so leftovers could not be detected")]
    Residue(#[from] residue::ResidueError),
    /// This program's version is malformed.
    #[error("this program has an invalid version: {0}")]
    Version(&'static str),
    /// The clock shows an impossible time.
    #[error("the time of this host's clock cannot be written")]
    Clock,
    /// No random bytes are available.
    #[error("cannot generate a name for the lease")]
    Random(#[source] std::io::Error),
}

impl Fault for MakeError {
    fn kind(&self) -> Kind {
        Kind::General
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Fixture(error) => error.hints(),
            Self::Residue(_) => vec![
                "run it as the user who makes leases here; `crabbox doctor` says what is missing".to_owned(),
            ],
            Self::Version(_) | Self::Clock | Self::Random(_) => Vec::new(),
        }
    }
}

/// Makes the proof. A failed stage is part of the document and not an error: the machine is released either
/// way.
pub fn make(
    engine: &Engine,
    plan: &FirecrackerPlan,
    options: &ProofOptions,
    interrupts: &Interrupts,
    tell: &mut dyn FnMut(&ProofEvent<'_>),
) -> Result<Proof, MakeError> {
    let made_at =
        Moment::try_from(timestamp::rfc3339(clock::unix_seconds())).map_err(|_| MakeError::Clock)?;
    let version = Version::leading(options.version).ok_or(MakeError::Version(options.version))?;
    let fixture = Fixture::make()?;
    let before = Before::look(&engine.places)?;
    let drawn = random::bytes::<3>().map_err(MakeError::Random)?;
    let slug = format!("proof-{}", digest::hex(&drawn));
    let mut redactor = Redactor::new(
        options
            .names
            .iter()
            .cloned()
            .chain([fixture.root().display().to_string()]),
    );
    redactor.own(&slug);
    let mut way = Way {
        engine,
        options,
        interrupts,
        tell,
        redactor,
        slug,
        fixture: &fixture,
        stages: Vec::new(),
        lease: None,
        kernel: GuestKernel::Unseen,
    };
    way.there();
    if interrupts.caught().is_some() && !way.stages.is_empty() {
        (way.tell)(&ProofEvent::GivesBack);
    }
    way.back();
    let left = way.scan(&before);
    let Way { stages, kernel, .. } = way;
    let guest = facts::guest(engine, plan, kernel, interrupts);
    Ok(Proof::of(Observations {
        made_at,
        // Check this last: the teardown, the scan and the digests take long, and an interrupt during those
        // counts, too.
        interrupted: interrupts.caught().is_some(),
        program: Program {
            version,
            sha256: facts::sha256(&engine.exe),
        },
        host: facts::host(),
        firecracker: facts::vmm(engine, plan),
        guest,
        stages,
        left,
    }))
}

/// The life of one lease.
struct Way<'a> {
    engine: &'a Engine,
    options: &'a ProofOptions,
    interrupts: &'a Interrupts,
    tell: &'a mut dyn FnMut(&ProofEvent<'_>),
    redactor: Redactor,
    slug: String,
    fixture: &'a Fixture,
    stages: Vec<Stage>,
    lease: Option<LeaseId>,
    kernel: GuestKernel,
}

impl Way<'_> {
    /// Everything that is done with the lease. Later steps run even if one fails, except that nothing can run
    /// without a machine.
    fn there(&mut self) {
        let mut warmup = vec!["warmup".into()];
        warmup.extend(self.options.flags.iter().cloned());
        warmup.extend(
            [
                "--provider",
                "firecracker",
                "--slug",
                &self.slug,
                "--ttl",
                TTL,
                "--idle-timeout",
                IDLE,
                "--firecracker-pool",
                "0",
            ]
            .map(OsString::from),
        );
        if self.options.set_up {
            warmup.push("--yes".into());
        }
        let warmup = self.run(StageName::Warmup, warmup, None);
        if warmup.exit != Some(0) {
            return;
        }
        let slug = self.slug.clone();
        let run = |script: &str, more: &[&str]| -> Vec<OsString> {
            let words = ["run", "--id", &slug].into_iter().chain(more.iter().copied());
            words
                .chain(["--", "sh", "-c", script])
                .map(OsString::from)
                .collect()
        };
        let cp = |from: &str, to: &str| ["cp", "--id", &slug, from, to].map(OsString::from).to_vec();
        let looked = self.run(
            StageName::Look,
            run("uname -s; cat /proc/sys/kernel/random/boot_id", &["--no-sync"]),
            None,
        );
        self.kernel = kernel_in(&looked);
        let read = "cat greeting untracked; test -e removed || echo gone";
        self.run(StageName::Run, run(read, &[]), None);
        self.run(StageName::Fail, run("exit 7", &["--no-sync"]), None);
        let session = format!("echo {SESSION}; exit {}\n", StageName::Connect.expected());
        self.run(
            StageName::Connect,
            ["connect", &slug].map(OsString::from).to_vec(),
            Some(&session),
        );
        let there = "SANDBOX:/tmp/greeting";
        self.run(StageName::CopyIn, cp("greeting", there), None);
        let fixture = self.fixture;
        self.stage(StageName::CopyOut, |way| {
            let mut ran = way.step(cp(there, "copy"), None, Some(way.interrupts));
            if ran.exit == Some(0) {
                let same = fixture.same("greeting", "copy");
                ran.output
                    .push_str(if same { SAME } else { "the copy is another" });
                ran.exit = Some(u8::from(!same));
            }
            ran
        });
    }

    /// The teardown, which ignores interrupts.
    fn back(&mut self) {
        let stop = ["stop", &self.slug].map(OsString::from).to_vec();
        let ran = self.stage(StageName::Stop, |way| way.step(stop, None, None));
        // The slug may match several leases. Only the records can tell which is ours: the warm-up's output
        // may contain the guest's words, which must never choose the lease that we end.
        if ran.exit != Some(0)
            && let Some(lease) = recorded(&self.engine.places, &self.slug)
        {
            self.stages.pop();
            let again = ["stop", lease.as_str()].map(OsString::from).to_vec();
            self.stage(StageName::Stop, |way| way.step(again, None, None));
        }
        let mut cleanup: Vec<OsString> = vec!["cleanup".into()];
        cleanup.extend(["--provider", "firecracker"].map(OsString::from));
        self.stage(StageName::Cleanup, |way| way.step(cleanup, None, None));
    }

    /// The leftovers; waits for whatever ends by itself.
    fn scan(&mut self, before: &Before) -> Vec<Left> {
        let mut left = Vec::new();
        let (places, lease, root) = (
            &self.engine.places,
            self.lease.clone(),
            self.fixture.root().to_owned(),
        );
        let path = self.engine.path.clone();
        self.stage(StageName::Scan, |_| {
            let began = Instant::now();
            let look = || before.left(places, lease.as_ref().map(LeaseId::as_str), &root, &path);
            let settled = clock::poll_until(SETTLES, || Some(look()).filter(Vec::is_empty));
            left = settled.unwrap_or_else(look);
            Ran {
                exit: Some(0),
                output: if left.is_empty() { "nothing" } else { "something" }.to_owned() + " is left",
                millis: step::millis(began),
            }
        });
        left
    }

    /// A stage with one command. Skipped after an interrupt.
    fn run(&mut self, name: StageName, words: Vec<OsString>, input: Option<&str>) -> Ran {
        if self.interrupts.caught().is_some() {
            return Ran::default();
        }
        self.stage(name, |way| way.step(words, input, Some(way.interrupts)))
    }

    fn stage(&mut self, name: StageName, work: impl FnOnce(&Self) -> Ran) -> Ran {
        if name < StageName::Stop && self.interrupts.caught().is_some() {
            return Ran::default();
        }
        (self.tell)(&ProofEvent::Begins(name));
        let ran = work(self);
        if name == StageName::Warmup {
            self.lease =
                recorded(&self.engine.places, &self.slug).or_else(|| lease_in(&ran.output, &self.slug));
            if let Some(lease) = &self.lease {
                self.redactor.own(lease.as_str());
            }
        }
        let mut own = vec![self.slug.as_str()];
        own.extend(self.lease.as_ref().map(LeaseId::as_str));
        let (lines, cut) = shown(name, &ran.output, &own);
        self.stages.push(Stage {
            name,
            exit: ran.exit,
            millis: ran.millis,
            cut: u32::try_from(cut).unwrap_or(u32::MAX),
            transcript: lines
                .iter()
                .map(|line| Line::seen(&self.redactor, line))
                .collect(),
        });
        if let Some(stage) = self.stages.last() {
            (self.tell)(&ProofEvent::Ended(stage));
        }
        ran
    }

    /// One command of this program in the fixture's tree.
    fn step(&self, words: Vec<OsString>, input: Option<&str>, interrupts: Option<&Interrupts>) -> Ran {
        let cmd = Cmd::inheriting(&self.engine.exe)
            .args(words)
            .cwd(self.fixture.tree())
            // With this directory, leftovers of its connections can be recognised as ours.
            .env("XDG_RUNTIME_DIR", self.fixture.runtime())
            .env_remove("GIT_DIR")
            .env_remove("GIT_WORK_TREE")
            .env_remove("GIT_INDEX_FILE")
            .own_group()
            .dies_with_us();
        Step {
            cmd,
            input,
            interrupts,
        }
        .run()
    }
}

/// The lease with the slug `slug`, according to the warm-up's line about it. The guest's console may be part
/// of the same text and can name any lease, so the result must not be used to end a lease.
fn lease_in(text: &str, slug: &str) -> Option<LeaseId> {
    text.lines().find_map(|line| {
        let mut words = line.strip_prefix("leased ")?.split(' ');
        let id = LeaseId::parse(words.next()?).ok()?;
        (words.next()?.strip_prefix("slug=")? == slug).then_some(id)
    })
}

/// The lease with the slug `slug` according to the records, pool members excluded.
fn recorded(places: &Places, slug: &str) -> Option<LeaseId> {
    let leases = leases::list(&places.leases()).ok()?.leases;
    let ours = |record: &&leases::StoredLease| {
        record.record.slug == slug && labels::pool(&record.record.labels).is_none()
    };
    leases
        .iter()
        .find(ours)
        .and_then(|found| LeaseId::parse(&found.record.lease_id).ok())
}

/// The lines of a stage's output to show, and how many are left out. Cleanup covers the whole host, so only
/// its lines with an `own` word are shown: other leases must stay private.
fn shown<'t>(name: StageName, output: &'t str, own: &[&str]) -> (Vec<&'t str>, usize) {
    let all = || output.lines().filter(|line| !line.trim().is_empty());
    let is_own = |line: &&str| name != StageName::Cleanup || own.iter().any(|word| line.contains(word));
    let mut lines: Vec<&str> = all().filter(is_own).collect();
    lines.drain(..lines.len().saturating_sub(LINES));
    let cut = all().count() - lines.len();
    (lines, cut)
}

/// Which kernel a command ran on, according to the boot id that it printed.
fn kernel_in(looked: &Ran) -> GuestKernel {
    // The kernel prints it as five groups of hexadecimal digits.
    let is_id = |line: &&str| {
        line.len() == 36
            && line.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
            && line.matches('-').count() == 4
    };
    match (
        looked.exit,
        looked.output.lines().map(str::trim).find(is_id),
        process::boot_id(),
    ) {
        (Some(0), Some(theirs), Ok(ours)) if theirs == ours.trim() => GuestKernel::Hosts,
        (Some(0), Some(_), Ok(_)) => GuestKernel::Own,
        _ => GuestKernel::Unseen,
    }
}

/// The content of a proof's file. Rendering only fails for maps with keys that are not strings, and there are
/// none.
pub fn file(proof: &Proof) -> String {
    proof::render(proof, &digest::sha256).unwrap_or_default()
}

/// The names of this host and of the current user, according to the system.
pub fn names_of_host() -> Vec<String> {
    let system = rustix::system::uname();
    let mut names: Vec<String> = [system.nodename(), system.domainname()]
        .map(|name| name.to_string_lossy().into_owned())
        .into();
    // The kernel's value for a domain that is not set.
    names.retain(|name| name != "(none)");
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let own = process::euid().to_string();
    // `name:password:uid:gid:real name:home:shell` (passwd(5)).
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mine = fields.filter(|fields| fields.get(2) == Some(&own.as_str()));
    names.extend(
        mine.flat_map(|fields| [0, 4, 5].map(|at| fields.get(at).copied().unwrap_or_default().to_owned())),
    );
    names
}

/// Why a file is not a credible proof.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It does not exist or cannot be read.
    #[error("read proof {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It is malformed or contradicts itself.
    #[error("{} is not a valid proof: {source}", path.display())]
    Proof {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        #[source]
        source: ProofError,
    },
}

impl Fault for CheckError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Proof { .. } => {
                vec!["ask its author for the unchanged file, exactly as `crabbox proof` wrote it".to_owned()]
            }
            Self::Read { .. } => Vec::new(),
        }
    }
}

/// Reads the proof in the file `path`, and checks its consistency.
pub fn check(path: &Path) -> Result<Proof, CheckError> {
    let bytes = files::read_regular(path, proof::FILE_LIMIT).map_err(|source| CheckError::Read {
        path: path.to_owned(),
        source,
    })?;
    proof::parse(&bytes, &digest::sha256).map_err(|source| CheckError::Proof {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use crabbox_core::proof::DIRTY_TREE;

    use super::*;

    #[test]
    fn a_kernel_is_the_guest_s_own_only_when_it_said_another_boot_id() {
        let ran = |exit, output: &str| Ran {
            exit,
            output: output.to_owned(),
            millis: 0,
        };
        let ours = process::boot_id().unwrap();
        let theirs = "7d1c1c7e-1111-4222-8333-944455556666";
        for (exit, output, kernel) in [
            (Some(0), format!("Linux\n{ours}\n"), GuestKernel::Hosts),
            (Some(0), format!("note\nLinux\n{theirs}\n"), GuestKernel::Own),
            (Some(1), theirs.to_owned(), GuestKernel::Unseen),
            (None, theirs.to_owned(), GuestKernel::Unseen),
            (Some(0), "Linux".to_owned(), GuestKernel::Unseen),
        ] {
            assert_eq!(kernel_in(&ran(exit, &output)), kernel, "{output}");
        }
    }

    #[test]
    fn the_fixture_s_commands_are_those_that_the_document_shows() {
        assert!(StageName::Connect.command().contains(SESSION));
        for line in &DIRTY_TREE[2..] {
            assert!(StageName::Run.command().contains(line));
        }
    }

    #[test]
    fn a_guest_that_names_another_lease_on_its_console_has_it_neither_ended_nor_shown() {
        let slug = "proof-0a1b2c";
        let id = |text: &str| lease_in(text, slug).map(|id| id.to_string());
        for text in [
            "  cbx_aaaaaaaaaaaa",
            "cbx_aaaaaaaaaaaa",
            "  leased cbx_aaaaaaaaaaaa slug=proof-0a1b2c",
            "leased cbx_aaaaaaaaaaaa slug=proof-ffffff",
            "leased cbx_aaaaaaaaaaaa",
            "leased cbx_012 slug=proof-0a1b2c",
        ] {
            assert_eq!(id(text), None, "{text}");
        }
        let told = "note\nleased cbx_0123456789ab slug=proof-0a1b2c provider=firecracker";
        assert_eq!(id(told), Some("cbx_0123456789ab".to_owned()));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(recorded(&Places::below(dir.path()), slug), None);
    }

    #[test]
    fn of_cleanup_only_what_is_about_the_proof_s_own_lease_is_shown() {
        let own = ["proof-0a1b2c", "cbx_0123456789ab"];
        let output = "kept lease=cbx_aaaaaaaaaaaa slug=jade-krill\n\nremoved lease=cbx_0123456789ab\n";
        assert_eq!(
            shown(StageName::Cleanup, output, &own),
            (vec!["removed lease=cbx_0123456789ab"], 1)
        );
        assert_eq!(shown(StageName::Run, output, &own).0.len(), 2);
        let many = "a\n".repeat(LINES + 3);
        let (lines, cut) = shown(StageName::Run, &many, &own);
        assert_eq!((lines.len(), cut), (LINES, 3));
    }
}
