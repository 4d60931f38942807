//! Makes the workdir in the lease equal to the manifest: one remote process, and one rsync when much goes over a network.
//!
//! How a skip can be believed. After each transfer the agent writes down, for every path, the identity of the local file
//! that was sent and the kind, mode, size, mtime, ctime and inode that the remote file then had; only for paths whose
//! remote mode, size and mtime are those of the manifest. A later sync leaves a path alone only if both sides still match
//! that record exactly. A program in the lease cannot change a file, its mode or its name and keep its ctime, whatever it
//! does to the mtime; a new file in its place has another inode or a later ctime; a directory replaced by a link is seen
//! because every directory on the way is looked at. Writes within one tick of the clock around the look are handled on
//! both sides: here a just touched file has no identity, there the agent waits a tick and looks again. So the record
//! needs no invalidation before a command runs, and an interrupted sync only leaves paths without a matching record.
//! This module must never delete: the agent prunes what earlier syncs brought, nothing else.

use std::io::Write as _;
use std::time::{Duration, Instant};

use crabbox_agent_protocol::{Reply, Request, SyncRequest};
use crabbox_host::command::CommandError;
use crabbox_ssh::far::{Far, FarError};
use sha2::{Digest as _, Sha256};

use crate::base::Base;
use crate::channel::Channel;
use crate::direct::{self, DirectError};
use crate::entry::{Entry, Kind, Standing, hex};
use crate::events::{Stage, SyncEvents};
use crate::manifest::Manifest;
use crate::rsync::{RsyncError, Sent, Transfer};
use crate::seed::{Packing, Seed, SeedState};

/// Linux's `PATH_MAX`, the NUL included.
const PATH_MAX: usize = 4096;

/// Tracked files that may be gone at once before it looks like an accident, as in the Go program.
const MASS_DELETION: usize = 200;

/// Over a network, more bytes than this are worth rsync's differences and compression.
const DIRECT_OVER_NETWORK: u64 = 1 << 20;

/// Where to and how.
#[derive(Debug, Clone)]
pub struct Destination {
    /// `<workRoot>`, absolute.
    pub work_root: String,
    /// The lease id.
    pub lease_id: String,
    /// The repository's name, one path component.
    pub name: String,
}

impl Destination {
    /// `<workRoot>/<leaseID>`.
    pub fn lease_dir(&self) -> String {
        format!("{}/{}", self.work_root.trim_end_matches('/'), self.lease_id)
    }

    /// `<workRoot>/<leaseID>/<repoName>`.
    pub fn workdir(&self) -> String {
        format!("{}/{}", self.lease_dir(), self.name)
    }
}

/// The part of the configuration that shapes a transfer.
#[derive(Debug, Clone)]
pub struct Options {
    /// `sync.delete`: prune what earlier syncs brought and the manifest has no more.
    pub delete: bool,
    /// `sync.checksum`: believe no record, compare every file by checksum.
    pub checksum: bool,
    /// `--full-resync`: remove the workdir first.
    pub full_resync: bool,
    /// `sync.fingerprint`: false compares every file anew, as if there were no record.
    pub fingerprint: bool,
    /// `CRABBOX_ALLOW_MASS_DELETIONS=1`.
    pub allow_mass_deletions: bool,
    /// Compress on the way: pays over a network, not into a microVM on this machine.
    pub compress: bool,
    /// `sync.gitSeed`: whether the workdir is to be a git repository with the local commit and staged changes.
    pub git_seed: GitSeed,
    /// `sync.baseRef`: the branch, tag or commit that the repository in the lease is to have beside `HEAD`; empty for none.
    pub base_ref: String,
    /// `sync.timeout`, for each step.
    pub timeout: Option<Duration>,
}

/// What repository the workdir is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitSeed {
    /// None.
    Off,
    /// The local `HEAD` without its history, or with that up to the base, from the local objects.
    Shallow,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            delete: true,
            checksum: false,
            full_resync: false,
            fingerprint: true,
            allow_mass_deletions: false,
            compress: false,
            git_seed: GitSeed::Shallow,
            base_ref: String::new(),
            timeout: Some(Duration::from_mins(15)),
        }
    }
}

/// What a sync did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Nothing had changed on either side.
    pub skipped: bool,
    /// Files and links that were sent.
    pub sent: u64,
    /// Files that changed here while they were sent: the lease has them, and the next sync sends them again.
    pub unsettled: u64,
    /// How long each step took, by the names of the run summary's `sync_steps`.
    pub steps: Vec<(&'static str, Duration)>,
}

/// Why the workdir could not be made equal to the manifest.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Too many tracked files are gone.
    #[error(
        "{count} tracked files are missing from the working tree, which looks like an accident: \
         restore them, or set CRABBOX_ALLOW_MASS_DELETIONS=1 to delete them in the lease too"
    )]
    MassDeletion {
        /// How many.
        count: usize,
    },
    /// A path does not fit below the workdir.
    #[error("{path} is too long for the lease: with {workdir} before it, it exceeds {} bytes", PATH_MAX - 1)]
    PathTooLong {
        /// The path.
        path: String,
        /// The workdir.
        workdir: String,
    },
    /// The comparison got no answer.
    #[error("write sync manifests to {workdir}")]
    Compare {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: FarError,
    },
    /// The lease's side could not make ready.
    #[error("remote sync prune failed: {why}")]
    Prepare {
        /// The path and the reason.
        why: String,
    },
    /// The transfer failed.
    #[error("send files to {workdir}")]
    Rsync {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: RsyncError,
    },
    /// Files could not be sent.
    #[error("send files to {workdir}")]
    Direct {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: DirectError,
    },
    /// The record of what arrived could not be written.
    #[error("remote sync finalize failed: {why}")]
    Finalize {
        /// The path and the reason.
        why: String,
    },
    /// The same, without an answer.
    #[error("finalize the sync of {workdir}")]
    FinalizeCall {
        /// The workdir.
        workdir: String,
        /// How it failed.
        #[source]
        source: FarError,
    },
    /// The lease's side answered out of order.
    #[error("the lease's side of the sync of {workdir} answered out of order: {answer}")]
    OutOfOrder {
        /// The workdir.
        workdir: String,
        /// What it answered.
        answer: String,
    },
}

impl TransferError {
    /// Whether the lease could not be reached or spoken to (exit code 7), rather than the sync itself failing (6).
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Compare { .. } | Self::OutOfOrder { .. })
    }

    /// Whether the connection to the lease broke; rsync says 12 or passes ssh's 255 on, see rsync(1).
    pub fn lost_connection(&self) -> bool {
        let answer = match self {
            Self::Compare { source, .. }
            | Self::FinalizeCall { source, .. }
            | Self::Direct {
                source: DirectError::Call { source },
                ..
            } => source,
            Self::Rsync {
                source: RsyncError::Failed { code, .. },
                ..
            } => return matches!(*code, 12 | 255),
            _ => return false,
        };
        matches!(answer, FarError::Connection { .. })
    }
}

/// A sync whose far side looks at what it has; this side may look at its own tree meanwhile.
#[derive(Debug)]
pub struct Begun {
    way: Way,
    asked: Result<(), FarError>,
}

/// Where a sync goes, and how.
#[derive(Debug)]
struct Way {
    channel: Channel,
    destination: Destination,
    options: Options,
}

/// Lets the far side begin to look. Nobody else may change the workdir from here on. rsync, if it pays, goes over `channel`.
pub fn begin(far: &mut Far, channel: &Channel, destination: &Destination, options: &Options) -> Begun {
    let way = Way {
        channel: channel.clone(),
        destination: destination.clone(),
        options: options.clone(),
    };
    far.limit(options.timeout);
    // What is wrong with it is told when the answer is wanted.
    let asked = if way.trusts() {
        far.ask(&Request::Look {
            lease_dir: destination.lease_dir(),
            name: destination.name.clone(),
        })
        .and_then(|()| far.flush())
    } else {
        Ok(())
    };
    Begun { way, asked }
}

/// Brings the workdir in the lease to the state of `manifest`.
pub fn sync(
    far: &mut Far,
    channel: &Channel,
    destination: &Destination,
    manifest: &Manifest,
    options: &Options,
    events: &dyn SyncEvents,
) -> Result<Outcome, TransferError> {
    begin(far, channel, destination, options).finish(far, manifest, events)
}

impl Way {
    /// Whether the far side may answer by the record of the last sync.
    fn trusts(&self) -> bool {
        !(self.options.full_resync || self.options.checksum || !self.options.fingerprint)
    }

    fn meta(&self) -> String {
        format!(
            "{}/.crabbox-sync/{}",
            self.destination.lease_dir(),
            self.destination.name
        )
    }
}

impl Begun {
    /// Brings the workdir to the state of `manifest`.
    pub fn finish(
        self,
        far: &mut Far,
        manifest: &Manifest,
        events: &dyn SyncEvents,
    ) -> Result<Outcome, TransferError> {
        let Self { way, asked } = self;
        let run = Run {
            way: &way,
            workdir: way.destination.workdir(),
            lease_dir: way.destination.lease_dir(),
            manifest,
            events,
        };
        run.check_before()?;
        events.stage(Stage::Compare);
        let started = Instant::now();
        let seed = (way.options.git_seed == GitSeed::Shallow).then(|| run.seed_of());
        let fingerprint = match &seed {
            Some(seed) => format!("{}.{}.{}", manifest.fingerprint, seed.id, unlike_id(manifest)),
            None => manifest.fingerprint.clone(),
        };
        let since = manifest.since.as_ref();
        let sync = SyncRequest {
            lease_dir: run.lease_dir.clone(),
            name: way.destination.name.clone(),
            fingerprint,
            base: since.map_or_else(String::new, |since| since.fingerprint.clone()),
            delete: way.options.delete,
            reset: way.options.full_resync,
            distrust: way.options.checksum || !way.options.fingerprint,
            seed: seed.as_ref().map(Seed::wire),
        };
        let asked = asked.and_then(|()| far.ask(&Request::Sync { sync }));
        let reply = asked
            .and_then(|()| far.reply())
            .map_err(|error| run.unasked(error))?;
        let outcome = run.answered(far, &reply, seed.as_ref(), started);
        far.limit(None);
        outcome
    }
}

struct Run<'a> {
    way: &'a Way,
    workdir: String,
    lease_dir: String,
    manifest: &'a Manifest,
    events: &'a dyn SyncEvents,
}

impl Run<'_> {
    /// Why the comparison has no answer.
    fn unasked(&self, error: FarError) -> TransferError {
        match error {
            FarError::Failed { why } => TransferError::Prepare { why },
            source => TransferError::Compare {
                workdir: self.workdir.clone(),
                source,
            },
        }
    }

    /// Sends the lists that the first answer wants. What the far side then numbers from zero, when that is not the whole manifest.
    fn lists(&self, far: &mut Far, reply: &Reply) -> Result<Option<&[usize]>, FarError> {
        let (entries, deleted) = (&self.manifest.entries, &self.manifest.deleted);
        match (reply, &self.manifest.since) {
            (Reply::Patch {}, Some(since)) => {
                let rows = since.changed.iter().filter_map(|place| entries.get(*place));
                far.send_list(&encode(rows, deleted))?;
                far.send_list(&list(&since.removed))?;
                // What is sent and not of the index need not be looked for in it.
                let strange = |(at, entry): &(usize, &Entry)| match entry.standing {
                    Standing::Same => false,
                    Standing::Unlike => true,
                    Standing::Untracked => since.changed.binary_search(at).is_ok(),
                };
                let strangers = entries.iter().enumerate().filter(strange);
                far.send_list(&unlike(strangers.map(|(_, entry)| entry)))?;
                Ok(Some(&since.changed))
            }
            (Reply::Differs {}, _) => {
                far.send_list(&encode(entries.iter(), deleted))?;
                far.send_list(&unlike(
                    entries.iter().filter(|entry| entry.standing == Standing::Unlike),
                ))?;
                Ok(None)
            }
            (other, _) => Err(far.out_of_order(other)),
        }
    }

    fn answered(
        &self,
        far: &mut Far,
        reply: &Reply,
        seed: Option<&Seed>,
        started: Instant,
    ) -> Result<Outcome, TransferError> {
        let mut outcome = Outcome {
            skipped: matches!(reply, Reply::Same {}),
            sent: 0,
            unsettled: 0,
            steps: Vec::new(),
        };
        if outcome.skipped {
            outcome.steps.push(("manifest_write", started.elapsed()));
            return Ok(outcome);
        }
        let changed = self.lists(far, reply).map_err(|error| self.unasked(error))?;
        let reply = far.reply().map_err(|error| self.unasked(error))?;
        outcome.steps.push(("manifest_write", started.elapsed()));
        match reply {
            Reply::Done { unsettled, unseeded } => self.done(unsettled, unseeded, &mut outcome),
            Reply::Stale {
                all,
                seed: is_wanted,
                have,
                have_base,
            } => {
                let count = changed.map_or(self.manifest.entries.len(), <[usize]>::len);
                let numbers = if all {
                    (0..count).collect()
                } else {
                    numbers(&far.list().map_err(|error| self.unasked(error))?.0)
                };
                let state = SeedState { have, have_base };
                let seed = seed.filter(|_| is_wanted);
                let packed = seed.map(|seed| (seed, seed.pack(self.manifest, &state)));
                if !numbers.is_empty() {
                    self.send(far, &numbers, changed, &mut outcome)?;
                }
                if let Some((seed, packing)) = packed {
                    self.seed(far, seed, packing, &mut outcome);
                }
                self.finish(far, &mut outcome)?;
            }
            other => return Err(self.out_of_order(&other)),
        }
        Ok(outcome)
    }

    fn check_before(&self) -> Result<(), TransferError> {
        let count = self.manifest.deleted.len();
        if count >= MASS_DELETION && !self.way.options.allow_mass_deletions {
            return Err(TransferError::MassDeletion { count });
        }
        match self
            .manifest
            .entries
            .iter()
            .find(|entry| self.workdir.len() + 1 + entry.path.len() >= PATH_MAX)
        {
            None => Ok(()),
            Some(entry) => Err(TransferError::PathTooLong {
                path: crate::entry::show(&entry.path),
                workdir: self.workdir.clone(),
            }),
        }
    }

    /// Sends entries by the numbers that the far side gives them.
    fn send(
        &self,
        far: &mut Far,
        numbers: &[usize],
        changed: Option<&[usize]>,
        outcome: &mut Outcome,
    ) -> Result<(), TransferError> {
        let place = |number: usize| changed.map_or(Some(number), |changed| changed.get(number).copied());
        let entries = numbers
            .iter()
            .map(|number| {
                let entry = place(*number).and_then(|place| self.manifest.entries.get(place));
                entry
                    .map(|entry| (*number, entry))
                    .ok_or_else(|| self.out_of_order(number))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let bytes = entries.iter().map(|(_, entry)| entry.size).sum();
        outcome.sent = entries.len() as u64;
        self.events.stage(Stage::Send {
            files: outcome.sent,
            bytes,
        });
        let started = Instant::now();
        let options = &self.way.options;
        let for_rsync = options.checksum || (options.compress && bytes > DIRECT_OVER_NETWORK);
        let by_rsync = if for_rsync && far.can_rsync() {
            match self.rsync(&entries) {
                // What it is worth is time alone.
                Err(TransferError::Rsync {
                    source:
                        RsyncError::Run {
                            source: CommandError::NotFound { .. },
                        },
                    ..
                }) => None,
                sent => Some(sent?),
            }
        } else {
            None
        };
        let sent = if let Some(sent) = by_rsync {
            sent
        } else {
            direct::send(far, &self.manifest.root, entries.into_iter(), self.events).map_err(|source| {
                TransferError::Direct {
                    workdir: self.workdir.clone(),
                    source,
                }
            })?
        };
        if sent == Sent::SomeVanished {
            self.events
                .warning("some files vanished from the working tree while they were sent");
        }
        // The name that the summary has for it, whoever sends.
        outcome.steps.push(("rsync", started.elapsed()));
        Ok(())
    }

    fn rsync(&self, entries: &[(usize, &Entry)]) -> Result<Sent, TransferError> {
        let mut files = Vec::new();
        for (_, entry) in entries {
            // rsync takes a name that begins with '#' or ';' for a comment, with --from0 too.
            files.extend_from_slice(b"./");
            files.extend_from_slice(&entry.path);
            files.push(0);
        }
        let transfer = Transfer {
            root: &self.manifest.root,
            workdir: &self.workdir,
            temp_dir: &format!("{}/tmp", self.way.meta()),
            files,
            compress: self.way.options.compress,
            checksum: self.way.options.checksum,
            limit: self.way.options.timeout,
        };
        transfer
            .run(&self.way.channel, self.events)
            .map_err(|source| TransferError::Rsync {
                workdir: self.workdir.clone(),
                source,
            })
    }

    /// What the repository in the lease is to be. Without its base it is worth as much for everything else.
    fn seed_of(&self) -> Seed {
        let base = Base::find(&self.manifest.repo, &self.way.options.base_ref).unwrap_or_else(|error| {
            let why = crabbox_core::fault::chain(&error);
            self.events.warning(&format!("sync.baseRef: {why}"));
            None
        });
        Seed::of(self.manifest, base)
    }

    /// Brings the repository in the lease up to date. A failure is a warning: the files are there either way.
    fn seed(&self, far: &mut Far, seed: &Seed, packing: Packing, outcome: &mut Outcome) {
        self.events.stage(Stage::Seed);
        let started = Instant::now();
        let why = match seed.send(self.manifest, packing, far) {
            Err(error) => Some(crabbox_core::fault::chain(&error)),
            Ok(Reply::Seeded {}) => None,
            Ok(Reply::Unseeded { why }) => Some(why),
            Ok(other) => Some(format!("unexpected answer {other:?}")),
        };
        if let Some(why) = why {
            self.events.warning(&format!("remote git seed failed: {why}"));
        }
        outcome.steps.push(("git_seed", started.elapsed()));
    }

    fn finish(&self, far: &mut Far, outcome: &mut Outcome) -> Result<(), TransferError> {
        self.events.stage(Stage::Finish);
        let started = Instant::now();
        let reply = far.ask(&Request::Finish {}).and_then(|()| far.reply());
        let reply = reply.map_err(|error| match error {
            FarError::Failed { why } => TransferError::Finalize { why },
            source => TransferError::FinalizeCall {
                workdir: self.workdir.clone(),
                source,
            },
        })?;
        match reply {
            Reply::Done { unsettled, unseeded } => self.done(unsettled, unseeded, outcome),
            other => return Err(self.out_of_order(&other)),
        }
        if outcome.unsettled > 0 {
            self.events.warning(&format!(
                "{} files changed in the working tree while they were sent; the next sync sends them again",
                outcome.unsettled
            ));
        }
        outcome.steps.push(("finalize", started.elapsed()));
        Ok(())
    }

    /// Takes in the last answer.
    fn done(&self, unsettled: u64, unseeded: Option<String>, outcome: &mut Outcome) {
        outcome.unsettled = unsettled;
        if let Some(why) = unseeded {
            self.events.warning(&format!("remote git seed failed: {why}"));
        }
    }

    fn out_of_order(&self, answer: &dyn std::fmt::Debug) -> TransferError {
        TransferError::OutOfOrder {
            workdir: self.workdir.clone(),
            answer: format!("{answer:?}").chars().take(200).collect(),
        }
    }
}

/// `<identity> <kind> <mode> <size> <mtime> <path>` records, the record `-`, then the deleted paths; NUL after each.
fn encode<'e>(entries: impl Iterator<Item = &'e Entry>, deleted: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.size_hint().0 * 96);
    for entry in entries {
        let kind = if entry.kind == Kind::File { 'f' } else { 'l' };
        let identity = entry.identity.unwrap_or(0);
        // Writing to a vector does not fail.
        write!(
            bytes,
            "{identity:x} {kind} {:o} {} {} ",
            entry.mode, entry.size, entry.mtime_ns
        )
        .ok();
        bytes.extend_from_slice(&entry.path);
        bytes.push(0);
    }
    bytes.extend_from_slice(b"-\0");
    bytes.extend_from_slice(&list(deleted));
    bytes
}

/// The numbers of a list, four bytes each.
fn numbers(list: &[u8]) -> Vec<usize> {
    let number = |four: &[u8]| four.try_into().map(u32::from_be_bytes).ok();
    let numbers = list.chunks_exact(4).filter_map(number);
    numbers
        .filter_map(|number| usize::try_from(number).ok())
        .collect()
}

/// The paths of these entries, NUL after each.
fn unlike<'e>(entries: impl Iterator<Item = &'e Entry>) -> Vec<u8> {
    entries
        .flat_map(|entry| entry.path.iter().copied().chain([0]))
        .collect()
}

/// Stands for the set of files that are something else than git's index has: it can change while no file does.
fn unlike_id(manifest: &Manifest) -> String {
    let entries = manifest.entries.iter();
    let paths = unlike(entries.filter(|entry| entry.standing == Standing::Unlike));
    hex(&Sha256::digest(paths)[..8])
}

/// Paths, NUL after each.
fn list(paths: &[Vec<u8>]) -> Vec<u8> {
    let each = |path: &Vec<u8>| path.iter().copied().chain([0]).collect::<Vec<u8>>();
    paths.iter().flat_map(each).collect()
}
