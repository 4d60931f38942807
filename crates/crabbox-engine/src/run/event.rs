//! The events of a run, for a listener that puts them into words.
//!
//! An event has facts and no wording. How to present it is up to the listener, which must never influence how
//! the run goes on.

use std::io;
use std::path::Path;
use std::time::Duration;

use crabbox_core::config::FlagValue;
use crabbox_core::config::allow::Allow;
use crabbox_core::config::layer::{Origin, Sourced};
use crabbox_workspace::command::RemoteError;
use crabbox_workspace::env_profile::Unread;
use crabbox_workspace::results::junit;
use crabbox_workspace::results::pattern::Pattern;
use crabbox_workspace::results::schema;
use crabbox_workspace::sync::{Repo, SyncEvents};

use crate::entry::EntryEvents;
use crate::provider::error::LeaseError;
use crate::provider::lease::Lease;
use crate::run::error::{BundleError, EvidenceError, RunError};
use crate::run::failure::Class;
use crate::run::report::{Artifact, Ended, Outcome, RunReport};
use crate::run::request::StopAfter;

/// The beginning of a run.
#[derive(Debug)]
pub enum StartEvent<'a> {
    /// A variable is not passed on: only the repository asks for it, and it looks like a secret.
    Withheld {
        /// The variable.
        name: &'a str,
        /// The configuration source that asks for it.
        origin: &'a Origin,
    },
    /// A value that was given for placeholders is not used by any.
    Unused {
        /// Its name.
        name: &'a str,
    },
    /// The command is a preset of the configuration.
    Preset {
        /// The preset's name.
        name: &'a str,
        /// The variables that the preset sets.
        variables: &'a [(String, String)],
        /// The command.
        command: &'a str,
    },
    /// A variable that should be passed on is not, because its value is not valid UTF-8.
    NotText {
        /// The variable.
        name: &'a str,
    },
    /// An entry of the list of allowed variables can match none.
    Unmatchable {
        /// The entry, without anything that may be a value.
        entry: &'a str,
    },
    /// Lines of a file of variables were ignored.
    Unread(&'a Unread),
    /// A lease was made.
    Made {
        /// The lease.
        lease: &'a Lease,
        /// How long it took.
        took: Duration,
    },
    /// An existing lease is used.
    Using(&'a Lease),
    /// The tree at `root` will be synced.
    Bringing {
        /// The lease.
        lease: &'a Lease,
        /// The root of the local tree.
        root: &'a Path,
        /// The directory in the lease.
        workdir: &'a str,
    },
    /// Where the run takes place.
    Context {
        /// The lease.
        lease: &'a Lease,
        /// The run's id.
        run: &'a str,
        /// The directory in the lease.
        workdir: &'a str,
    },
}

/// Events of the working tree.
#[derive(Debug)]
pub enum TreeEvent<'a> {
    /// Another run is using the tree.
    Waiting {
        /// How long we have been waiting.
        elapsed: Duration,
        /// What we are waiting for.
        state: &'a str,
    },
    /// This run has locked the tree.
    Owned {
        /// How long it waited.
        wait: Duration,
        /// Whether the previous owner died without releasing it.
        recovered: bool,
    },
    /// A base is configured, but the lease has no repository that could contain it.
    BaseRef(&'a Sourced<String>),
    /// The local tree was examined: a line with its size, followed by warnings.
    Looked(&'a [String]),
    /// The directory in the lease is emptied first.
    Emptying {
        /// The directory.
        workdir: &'a str,
    },
    /// The machine went down while files were sent.
    WentDown,
    /// The tree is synced.
    Synced {
        /// How many files were sent.
        sent: u64,
        /// Whether nothing had to be sent.
        skipped: bool,
        /// How long it took.
        took: Duration,
        /// How long each step took.
        steps: &'a [(&'static str, Duration)],
    },
    /// The tree is synced, and nothing else was requested.
    OnlySynced {
        /// The directory in the lease.
        workdir: &'a str,
    },
}

/// Events of the command.
#[derive(Debug)]
pub enum CommandEvent<'a> {
    /// The machine's tools are about to be examined.
    LookingAtTools,
    /// A line about the machine or a tool.
    Tool(&'a str),
    /// The script was uploaded.
    Uploaded {
        /// Its source.
        source: &'a str,
        /// Its path in the lease.
        path: &'a str,
    },
    /// The command is about to run.
    Running {
        /// The lease.
        lease: &'a Lease,
        /// The command as a shell command line.
        command: &'a str,
    },
    /// Variables are passed on.
    Forwarding {
        /// The lease.
        lease: &'a Lease,
        /// The variables. Their values must not be shown.
        variables: &'a [(String, String)],
        /// Which variables may be passed on.
        allow: &'a Allow,
    },
    /// A stream will be captured in a file.
    Capturing {
        /// `stdout` or `stderr`.
        stream: &'static str,
        /// The file, as it was named.
        path: &'a Path,
    },
    /// A stream was captured.
    Captured {
        /// `stdout` or `stderr`.
        stream: &'static str,
        /// The file, as it was named.
        path: &'a Path,
        /// How many bytes.
        bytes: u64,
    },
    /// A helper is left in the lease that runs other programs with the variables.
    Helper {
        /// Its name.
        name: &'a str,
    },
    /// Everything in the lease is over, including the command.
    Ended(&'a Outcome),
}

/// Events of the results.
#[derive(Debug)]
pub enum ResultEvent<'a> {
    /// Test reports could not be read.
    ReportsUnread(&'a RemoteError),
    /// Something to be fetched could not be read in the lease.
    Incomplete {
        /// Whether it is a test report, as opposed to an artifact.
        is_report: bool,
        /// The problem.
        problem: &'a str,
    },
    /// Another failure, in addition to the run's error.
    Also(&'a RunError),
    /// Test reports were read.
    Tests(&'a junit::Report),
    /// The test reports fail the run.
    Policy(PolicyFailure),
    /// A required pattern was checked.
    Required {
        /// Its pattern.
        pattern: &'a Pattern,
        /// How many files match it.
        matched: usize,
    },
    /// A file was validated against its schema, or could not be.
    Schema {
        /// The file and its schema.
        required: &'a schema::Required,
        /// The result.
        judgement: &'a schema::Judgement,
    },
    /// A file was downloaded.
    Downloaded {
        /// The local path.
        path: &'a Path,
        /// Its size.
        bytes: u64,
    },
    /// No file matches an artifact pattern.
    NoArtifact(&'a Pattern),
    /// An archive of artifacts was fetched.
    Archived {
        /// Its local path.
        path: &'a str,
        /// Its size.
        bytes: u64,
    },
    /// Evidence of the run was written.
    Evidence(&'a Artifact),
}

/// The end of a run.
#[derive(Debug)]
pub enum EndEvent<'a> {
    /// The machine went down.
    WentDown {
        /// The last lines of its console.
        console: &'a [String],
    },
    /// The run failed before its command; this is the presumed class of the failure.
    Blocked(Class),
    /// The numbers.
    Summary {
        /// The lease.
        lease: &'a Lease,
        /// The run.
        report: &'a RunReport,
    },
    /// The command failed, and there is a way to continue.
    Failed {
        /// The lease.
        lease: &'a Lease,
        /// The run.
        report: &'a RunReport,
        /// What the command left behind.
        ended: &'a Ended,
        /// Where the user can continue.
        onwards: &'a NextStep,
    },
    /// The failed command's remains were put into a bundle.
    Bundled {
        /// The file, below the root of the repository.
        name: &'a str,
        /// Its size.
        bytes: u64,
    },
    /// No bundle could be written.
    NotBundled(&'a BundleError),
    /// No receipt could be written.
    NotAttested(&'a EvidenceError),
    /// The lease is kept because the run failed.
    KeptOnFailure {
        /// The lease.
        lease: &'a Lease,
        /// The run.
        report: &'a RunReport,
    },
    /// The last lines of a failed command's streams.
    Streams {
        /// What the command left behind.
        ended: &'a Ended,
        /// Its exit code.
        code: i32,
    },
    /// The tree was released, and the lease goes on.
    OwnerReleased,
    /// The lease is about to be given back.
    Releasing(&'a Lease),
    /// The lease was given back, or that failed.
    Released {
        /// The lease.
        lease: &'a Lease,
        /// The policy for that.
        policy: Option<StopAfter>,
        /// Whether the lease has ended.
        stopped: Result<bool, &'a LeaseError>,
    },
    /// A new lease is kept.
    Kept(&'a Lease),
    /// Timings were appended to a file.
    Recorded {
        /// The file.
        path: &'a Path,
    },
}

/// Why test reports fail a run whose command succeeded.
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
    /// There is no report.
    NoReport,
    /// The reports have no tests.
    NoTests,
}

/// Where a user can continue after a failed run.
#[derive(Debug)]
pub enum NextStep {
    /// Only in a new lease.
    Nowhere,
    /// In the lease, which is kept.
    Lease,
    /// On the lease's host, which outlives the lease; these flags lead there.
    Host(Vec<FlagValue>),
}

/// What a record of timings is about.
#[derive(Debug)]
pub struct Recorded<'a> {
    /// The words of the command.
    pub command: &'a [String],
    /// The repository that it ran in.
    pub repo: &'a Repo,
    /// Whether the lease was made for it.
    pub new: bool,
}

/// Receives the events of a run.
pub trait RunEvents: EntryEvents + Documents {
    /// The run is beginning.
    fn start(&self, event: &StartEvent<'_>);

    /// Something happened to the tree.
    fn tree(&self, event: &TreeEvent<'_>);

    /// Something happened to the command.
    fn command(&self, event: &CommandEvent<'_>);

    /// Something happened to the results.
    fn result(&self, event: &ResultEvent<'_>);

    /// The run is ending.
    fn end(&self, event: &EndEvent<'_>);

    /// A part of the command's standard output. An error ends the command: a broken pipe because nobody reads
    /// it any more.
    fn stdout(&self, bytes: &[u8]) -> io::Result<()>;

    /// A part of the command's standard error, in the same way.
    fn stderr(&self, bytes: &[u8]) -> io::Result<()>;

    /// Returns a listener for the sync that is beginning.
    fn sync(&self) -> Box<dyn SyncListener + '_>;
}

/// Receives the events of one sync.
pub trait SyncListener: SyncEvents {
    /// It is over; `ok` says whether it succeeded.
    fn end(&self, ok: bool);
}

/// Renders the documents of a run in this program's output formats.
pub trait Documents {
    /// The timings.
    fn timing(&self, lease: &Lease, outcome: &Outcome) -> Result<Vec<u8>, serde_json::Error>;

    /// The timings, with a description of what was timed, for a file of records.
    fn record(
        &self,
        lease: &Lease,
        outcome: &Outcome,
        run: &Recorded<'_>,
    ) -> Result<Vec<u8>, serde_json::Error>;

    /// A description of the run; `command` is a shell command line.
    fn failed_run(
        &self,
        lease: &Lease,
        outcome: &Outcome,
        command: &str,
    ) -> Result<Vec<u8>, serde_json::Error>;

    /// The configuration line by line, without its secrets.
    fn configuration(&self) -> Vec<String>;
}
