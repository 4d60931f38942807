//! What a run tells on its way, for whoever words it.
//!
//! An event has the facts and no wording. What a person, a script or a program is told of it is the listener's affair; it must never
//! decide how the run goes on.

use std::path::Path;
use std::time::Duration;

use crabbox_core::config::FlagValue;
use crabbox_core::config::allow::Allow;
use crabbox_core::config::layer::{Origin, Sourced};
use crabbox_workspace::command::RemoteError;
use crabbox_workspace::results::junit;
use crabbox_workspace::results::pattern::Pattern;
use crabbox_workspace::results::schema;
use crabbox_workspace::sync::{Repo, SyncEvents};

use crate::entry::EntryEvents;
use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;
use crate::run::error::{BundleError, EvidenceError};
use crate::run::failure::Class;
use crate::run::report::{Artifact, Ended, Outcome, RunReport};
use crate::run::request::StopAfter;

/// How a run begins.
#[derive(Debug)]
pub enum StartEvent<'a> {
    /// A variable stays here: only the repository asks for it, and it looks like a secret.
    Withheld {
        /// The variable.
        name: &'a str,
        /// Who asks for it.
        origin: &'a Origin,
    },
    /// A value that was given for placeholders has none.
    Unused {
        /// Its name.
        name: &'a str,
    },
    /// The command is one of the configuration.
    Preset {
        /// Its name there.
        name: &'a str,
        /// The variables that it is given.
        variables: &'a [(String, String)],
        /// The command.
        command: &'a str,
    },
    /// A variable stays here that was to be handed on: its value is no text.
    NotText {
        /// The variable.
        name: &'a str,
    },
    /// A lease was made.
    Made {
        /// The lease.
        lease: &'a Lease,
        /// How long that took.
        took: Duration,
    },
    /// A lease that was there is used.
    Using(&'a Lease),
    /// The tree at `root` is going to be brought.
    Bringing {
        /// To the lease.
        lease: &'a Lease,
        /// The root of the tree here.
        root: &'a Path,
        /// The directory there.
        workdir: &'a str,
    },
    /// Where the run takes place.
    Context {
        /// The lease.
        lease: &'a Lease,
        /// The run's id.
        run: &'a str,
        /// The directory there.
        workdir: &'a str,
    },
}

/// What becomes of its tree.
#[derive(Debug)]
pub enum TreeEvent<'a> {
    /// Somebody else is in the tree.
    Waiting {
        /// How long they have been waited for.
        elapsed: Duration,
        /// For what.
        state: &'a str,
    },
    /// The tree is this run's.
    Owned {
        /// How long it was waited for.
        wait: Duration,
        /// Whether the last owner went without a word.
        recovered: bool,
    },
    /// A base is configured, and no repository in the lease that could have it.
    BaseRef(&'a Sourced<String>),
    /// The tree was looked at: the line that says how much it is, then warnings.
    Looked(&'a [String]),
    /// The directory there is emptied first.
    Emptying {
        /// The directory.
        workdir: &'a str,
    },
    /// The machine went down while files were sent.
    WentDown,
    /// The tree is there.
    Synced {
        /// How many files were sent.
        sent: u64,
        /// Whether nothing had to be.
        skipped: bool,
        /// How long it took.
        took: Duration,
        /// How long each step took.
        steps: &'a [(&'static str, Duration)],
    },
    /// The tree is there, and nothing else was asked for.
    OnlySynced {
        /// The directory there.
        workdir: &'a str,
    },
}

/// What becomes of its command.
#[derive(Debug)]
pub enum CommandEvent<'a> {
    /// The tools of the machine are going to be looked at.
    LookingAtTools,
    /// A line about the machine or a tool.
    Tool(&'a str),
    /// The script is there.
    Uploaded {
        /// Where it came from.
        source: &'a str,
        /// Where it is.
        path: &'a str,
    },
    /// The command is going to run.
    Running {
        /// In this lease.
        lease: &'a Lease,
        /// The command as a line for a shell.
        command: &'a str,
    },
    /// Variables go along.
    Forwarding {
        /// To this lease.
        lease: &'a Lease,
        /// The variables. Their values are not to be told.
        variables: &'a [(String, String)],
        /// What may be handed on.
        allow: &'a Allow,
    },
    /// A stream goes into a file from now on.
    Capturing {
        /// `stdout` or `stderr`.
        stream: &'static str,
        /// The file, as it was named.
        path: &'a Path,
    },
    /// It went there.
    Captured {
        /// `stdout` or `stderr`.
        stream: &'static str,
        /// The file, as it was named.
        path: &'a Path,
        /// How much of it.
        bytes: u64,
    },
    /// A program is left there that runs others with variables.
    Helper {
        /// Its name.
        name: &'a str,
    },
    /// The command is over, and so is everything in the lease.
    Ended(&'a Outcome),
}

/// What comes back, or should.
#[derive(Debug)]
pub enum ResultEvent<'a> {
    /// Test reports could not be read.
    ReportsUnread(&'a RemoteError),
    /// Something of what was to be brought could not be read there.
    Incomplete {
        /// Whether it is a test report, and no artifact.
        is_report: bool,
        /// What is wrong with it.
        problem: &'a str,
    },
    /// Test reports were read.
    Tests(&'a junit::Report),
    /// The reports do not let the run pass.
    Policy(PolicyFailure),
    /// A file had to be there.
    Required {
        /// Its pattern.
        pattern: &'a Pattern,
        /// How many match it.
        matched: usize,
    },
    /// A file was held against its schema, or should have been.
    Schema {
        /// The file and its schema.
        required: &'a schema::Required,
        /// What became of it.
        judgement: &'a schema::Judgement,
    },
    /// A file was fetched.
    Downloaded {
        /// To here.
        path: &'a Path,
        /// Its size.
        bytes: u64,
    },
    /// Nothing matches a pattern of artifacts.
    NoArtifact(&'a Pattern),
    /// An archive of artifacts was brought.
    Archived {
        /// Where it is.
        path: &'a str,
        /// Its size.
        bytes: u64,
    },
    /// Evidence of the run was written.
    Evidence(&'a Artifact),
}

/// How it ends.
#[derive(Debug)]
pub enum EndEvent<'a> {
    /// The run failed before its command; this is what the failure is thought to be.
    Blocked(Class),
    /// The numbers.
    Summary {
        /// The lease.
        lease: &'a Lease,
        /// The run.
        report: &'a RunReport,
    },
    /// A command failed, and there is something to go on with.
    Failed {
        /// The lease.
        lease: &'a Lease,
        /// The run.
        report: &'a RunReport,
        /// What the command left.
        ended: &'a Ended,
        /// Where one can go on.
        onwards: &'a Onwards,
    },
    /// What the failed command left was put into a bundle.
    Bundled {
        /// The file, below the root of the repository.
        name: &'a str,
        /// Its size.
        bytes: u64,
    },
    /// There is no bundle.
    NotBundled(&'a BundleError),
    /// There is no receipt.
    NotAttested(&'a EvidenceError),
    /// The lease is kept because the run failed.
    KeptOnFailure {
        /// The lease.
        lease: &'a Lease,
        /// The run.
        report: &'a RunReport,
    },
    /// The end of the streams of a command that failed.
    Streams {
        /// What it left.
        ended: &'a Ended,
        /// Its exit code.
        code: i32,
    },
    /// The tree is nobody's again, and the lease goes on.
    OwnerReleased,
    /// The lease is going to be given back.
    Releasing(&'a Lease),
    /// The lease was given back, or not.
    Released {
        /// The lease.
        lease: &'a Lease,
        /// By what it was due.
        policy: Option<StopAfter>,
        /// Whether it has ended.
        stopped: Result<bool, &'a LeaseError>,
    },
    /// A new lease goes on.
    Kept(&'a Lease),
    /// Timings were appended to a file.
    Recorded {
        /// The file.
        path: &'a Path,
    },
}

/// Why test reports do not let a run pass whose command succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyFailure {
    /// Tests failed.
    Failed {
        /// Tests that failed.
        failures: u64,
        /// Tests that could not be run.
        errors: u64,
    },
    /// Not every report could be read.
    Unread,
    /// There is none.
    NoReport,
}

/// Where one can go on after a run that failed.
#[derive(Debug)]
pub enum Onwards {
    /// In a new lease alone.
    Nowhere,
    /// In the lease, which goes on.
    Lease,
    /// On the host of the lease, which goes on without it: these flags lead there.
    Host(Vec<FlagValue>),
}

/// Of what a record of timings is.
#[derive(Debug)]
pub struct Recorded<'a> {
    /// The words of the command.
    pub command: &'a [String],
    /// The repository that it ran in.
    pub repo: &'a Repo,
    /// Whether the lease was made for it.
    pub new: bool,
}

/// Hears of a run.
pub trait RunEvents: EntryEvents + Documents {
    /// It begins.
    fn start(&self, event: &StartEvent<'_>);

    /// Something becomes of the tree.
    fn tree(&self, event: &TreeEvent<'_>);

    /// Something becomes of the command.
    fn command(&self, event: &CommandEvent<'_>);

    /// Something comes back, or should.
    fn result(&self, event: &ResultEvent<'_>);

    /// It ends.
    fn end(&self, event: &EndEvent<'_>);

    /// The command's standard output, as it comes.
    fn stdout(&self, bytes: &[u8]);

    /// The command's standard error, as it comes.
    fn stderr(&self, bytes: &[u8]);

    /// Hears of the sync that begins now.
    fn sync(&self) -> Box<dyn SyncListener + '_>;
}

/// Hears of one sync.
pub trait SyncListener: SyncEvents {
    /// It is over, well if `ok`.
    fn end(&self, ok: bool);
}

/// The documents of a run, in the form in which this program prints such.
pub trait Documents {
    /// The timings.
    fn timing(&self, lease: &Lease, outcome: &Outcome) -> Result<Vec<u8>, serde_json::Error>;

    /// The timings with of what they are, for a file of records.
    fn record(
        &self,
        lease: &Lease,
        outcome: &Outcome,
        run: &Recorded<'_>,
    ) -> Result<Vec<u8>, serde_json::Error>;

    /// What was run; `command` is the line for a shell.
    fn failed_run(
        &self,
        lease: &Lease,
        outcome: &Outcome,
        command: &str,
    ) -> Result<Vec<u8>, serde_json::Error>;

    /// The configuration, a line each, without what is secret in it.
    fn configuration(&self) -> Vec<String>;
}
