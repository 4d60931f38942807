//! Makes the workdir in the lease equal to the manifest: one remote process, and one rsync when much goes
//! over a network.
//!
//! How a skip can be believed. After each transfer the agent writes down, for every path, the identity of the
//! local file that was sent and the kind, mode, size, mtime, ctime and inode that the remote file then had;
//! only for paths whose remote mode, size and mtime are those of the manifest. A later sync leaves a path
//! alone only if both sides still match that record exactly. A program in the lease cannot change a file, its
//! mode or its name and keep its ctime, whatever it does to the mtime; a new file in its place has another
//! inode or a later ctime; a directory replaced by a link is seen because every directory on the way is
//! looked at. Writes within one tick of the clock around the look are handled on both sides: here a just
//! touched file has no identity, there the agent waits a tick and looks again. So the record needs no
//! invalidation before a command runs, and an interrupted sync only leaves paths without a matching record.
//! This module must never delete: the agent prunes what earlier syncs brought, nothing else.

use std::time::{Duration, Instant};

use crabbox_agent_protocol::{Reply, Request, SyncRequest};
use crabbox_host::command::CommandError;
use crabbox_ssh::agent_client::{AgentClient, AgentError};

use crate::base::Base;
use crate::channel::Channel;
use crate::direct::{self, DirectError, Streamed};
use crate::entry::{Entry, Standing};
use crate::events::{Stage, SyncEvents};
use crate::lists::{numbers, send_manifest, send_paths, unlike_id};
use crate::manifest::Manifest;
use crate::rsync::{RsyncError, Sent, Transfer};
use crate::seed::{Packing, Seed, SeedState};

mod error;

pub use self::error::TransferError;

/// Linux's `PATH_MAX`, the NUL included.
const PATH_MAX: usize = 4096;

/// Tracked files that may be gone at once before it looks like an accident, as in the Go program.
const MASS_DELETION: usize = 200;

/// Over a network, more bytes than this are worth rsync's differences and compression.
const DIRECT_OVER_NETWORK: u64 = 1 << 20;

/// So many files, and so many bytes of them, go before they are asked for.
const EARLY_FILES: usize = 256;
const EARLY_BYTES: u64 = 1 << 20;

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
    /// `sync.gitSeed`: whether the workdir is to be a git repository with the local commit and staged
    /// changes.
    pub git_seed: GitSeed,
    /// `sync.baseRef`: the branch, tag or commit that the repository in the lease is to have beside `HEAD`;
    /// empty for none.
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

/// A sync whose far side looks at what it has; this side may look at its own tree meanwhile.
#[derive(Debug)]
pub struct Begun {
    way: Way,
    asked: Result<(), AgentError>,
}

/// Where a sync goes, and how.
#[derive(Debug)]
struct Way {
    channel: Channel,
    destination: Destination,
    options: Options,
}

/// Lets the far side begin to look. Nobody else may change the workdir from here on. rsync, if it pays, goes
/// over `channel`.
pub fn begin(
    far: &mut AgentClient,
    channel: &Channel,
    destination: &Destination,
    options: &Options,
) -> Begun {
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
    far: &mut AgentClient,
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
        far: &mut AgentClient,
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
    fn unasked(&self, error: AgentError) -> TransferError {
        match error {
            AgentError::Failed { why } => TransferError::Prepare { why },
            source => TransferError::Compare {
                workdir: self.workdir.clone(),
                source,
            },
        }
    }

    /// Sends the lists that the first answer wants. What the far side then numbers from zero, when that is
    /// not the whole manifest.
    fn lists(&self, far: &mut AgentClient, reply: &Reply) -> Result<Option<&[usize]>, AgentError> {
        let (entries, deleted) = (&self.manifest.entries, &self.manifest.deleted);
        match (reply, &self.manifest.since) {
            (Reply::Patch {}, Some(since)) => {
                let rows = since.changed.iter().filter_map(|place| entries.get(*place));
                send_manifest(far, rows, deleted)?;
                send_paths(far, since.removed.iter())?;
                // What is sent and not of the index need not be looked for in it.
                let strange = |(at, entry): &(usize, &Entry)| match entry.standing {
                    Standing::Same => false,
                    Standing::Unlike => true,
                    Standing::Untracked => since.changed.binary_search(at).is_ok(),
                };
                let strangers = entries.iter().enumerate().filter(strange);
                send_paths(far, strangers.map(|(_, entry)| &entry.path))?;
                Ok(Some(&since.changed))
            }
            (Reply::Differs {}, _) => {
                send_manifest(far, entries.iter(), deleted)?;
                let unlike = entries.iter().filter(|entry| entry.standing == Standing::Unlike);
                send_paths(far, unlike.map(|entry| &entry.path))?;
                Ok(None)
            }
            (other, _) => Err(far.out_of_order(other)),
        }
    }

    fn answered(
        &self,
        far: &mut AgentClient,
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
        // What changed since the base is wanted whatever the answer says: a few files of it go along.
        let early = changed.map(|changed| self.numbered(0..changed.len(), Some(changed)));
        let early = early.transpose()?.filter(|entries| self.is_small(entries));
        let mut streamed = match early {
            Some(entries) => Some(self.stream(far, entries, true, &mut outcome)?),
            None => None,
        };
        let reply = far.reply().map_err(|error| self.unasked(error))?;
        // What was sent meanwhile has a line of its own, behind this one.
        let sent: Duration = outcome.steps.iter().map(|(_, took)| *took).sum();
        let compared = started.elapsed().saturating_sub(sent);
        outcome.steps.insert(0, ("manifest_write", compared));
        match reply {
            Reply::Done { unsettled, unseeded } => self.done(unsettled, unseeded, &mut outcome),
            Reply::Stale {
                all,
                seed: is_wanted,
                have,
                have_base,
                lacks,
                stage,
            } => {
                if stage.is_empty() || !stage.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(self.out_of_order(&stage));
                }
                let count = changed.map_or(self.manifest.entries.len(), <[usize]>::len);
                let numbers = if all {
                    (0..count).collect()
                } else if streamed.is_some() {
                    return Err(self.out_of_order(&"a part of what changed is not wanted"));
                } else {
                    numbers(&far.list().map_err(|error| self.unasked(error))?.0)
                };
                let state = SeedState {
                    have,
                    have_base,
                    lacks,
                };
                let seed = seed.filter(|_| is_wanted);
                let packed = seed.map(|seed| (seed, seed.pack(self.manifest, &state)));
                if streamed.is_none() && !numbers.is_empty() {
                    let entries = self.numbered(numbers.into_iter(), changed)?;
                    streamed = self.send(far, entries, &stage, &mut outcome)?;
                }
                if let Some((seed, packing)) = packed {
                    if let Some(streamed) = streamed.take() {
                        self.received(far, streamed)?;
                    }
                    self.seed(far, seed, packing, &mut outcome);
                }
                self.finish(far, streamed, &mut outcome)?;
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

    /// Entries by the numbers that the far side gives them.
    fn numbered(
        &self,
        numbers: impl Iterator<Item = usize>,
        changed: Option<&[usize]>,
    ) -> Result<Vec<(usize, &Entry)>, TransferError> {
        let place = |number: usize| changed.map_or(Some(number), |changed| changed.get(number).copied());
        let entry = |number: usize| {
            let entry = place(number).and_then(|place| self.manifest.entries.get(place));
            entry
                .map(|entry| (number, entry))
                .ok_or_else(|| self.out_of_order(&number))
        };
        numbers.map(entry).collect()
    }

    /// Whether these are some, so few that nobody would want another way for them, and no disk is full of
    /// them.
    fn is_small(&self, entries: &[(usize, &Entry)]) -> bool {
        let bytes = |entries: &[(usize, &Entry)]| entries.iter().map(|(_, entry)| entry.size).sum::<u64>();
        !self.way.options.checksum
            && (1..=EARLY_FILES).contains(&entries.len())
            && bytes(entries) <= EARLY_BYTES
    }

    /// Sends entries, by rsync where that pays; what is on its way when it does not.
    fn send(
        &self,
        far: &mut AgentClient,
        entries: Vec<(usize, &Entry)>,
        stage: &str,
        outcome: &mut Outcome,
    ) -> Result<Option<Streamed>, TransferError> {
        let bytes: u64 = entries.iter().map(|(_, entry)| entry.size).sum();
        let options = &self.way.options;
        // The receiver takes its destination for a pattern, and would write into whatever else it matches.
        let is_plain = !self.workdir.contains(['*', '?', '[', '\\']);
        let for_rsync = is_plain && (options.checksum || (options.compress && bytes > DIRECT_OVER_NETWORK));
        if !(for_rsync && far.can_rsync()) {
            return self.stream(far, entries, false, outcome).map(Some);
        }
        let started = self.begin_send(&entries, outcome);
        match self.rsync(&entries, stage) {
            // What it is worth is time alone.
            Err(TransferError::Rsync {
                source:
                    RsyncError::Run {
                        source: CommandError::NotFound { .. },
                    },
                ..
            }) => self.stream(far, entries, false, outcome).map(Some),
            sent => {
                self.tell_vanished(sent?);
                outcome.steps.push(("rsync", started.elapsed()));
                Ok(None)
            }
        }
    }

    fn begin_send(&self, entries: &[(usize, &Entry)], outcome: &mut Outcome) -> Instant {
        outcome.sent = entries.len() as u64;
        self.events.stage(Stage::Send {
            files: outcome.sent,
            bytes: entries.iter().map(|(_, entry)| entry.size).sum(),
        });
        Instant::now()
    }

    /// Sends entries through the conversation. `is_awaited` as in [`direct::send`].
    fn stream(
        &self,
        far: &mut AgentClient,
        entries: Vec<(usize, &Entry)>,
        is_awaited: bool,
        outcome: &mut Outcome,
    ) -> Result<Streamed, TransferError> {
        let started = self.begin_send(&entries, outcome);
        let root = &self.manifest.root;
        let streamed = direct::send(far, root, entries.into_iter(), is_awaited, self.events);
        // The name that the summary has for it, whoever sends.
        outcome.steps.push(("rsync", started.elapsed()));
        streamed.map_err(|source| self.not_sent(source))
    }

    fn not_sent(&self, source: DirectError) -> TransferError {
        TransferError::Direct {
            workdir: self.workdir.clone(),
            source,
        }
    }

    /// Waits until what was sent has arrived.
    fn received(&self, far: &mut AgentClient, streamed: Streamed) -> Result<(), TransferError> {
        let sent = streamed.received(far).map_err(|source| self.not_sent(source))?;
        self.tell_vanished(sent);
        Ok(())
    }

    fn tell_vanished(&self, sent: Sent) {
        if sent == Sent::SomeVanished {
            self.events
                .warning("some files vanished from the working tree while they were sent");
        }
    }

    fn rsync(&self, entries: &[(usize, &Entry)], stage: &str) -> Result<Sent, TransferError> {
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
            temp_dir: &format!("{}/tmp/{stage}", self.way.meta()),
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
    fn seed(&self, far: &mut AgentClient, seed: &Seed, packing: Packing, outcome: &mut Outcome) {
        self.events.stage(Stage::Seed);
        let started = Instant::now();
        let why = match seed.send(self.manifest, packing, far, self.events) {
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

    /// Has what was seen written down. What is still on its way is answered before that, and is not waited
    /// for by itself.
    fn finish(
        &self,
        far: &mut AgentClient,
        streamed: Option<Streamed>,
        outcome: &mut Outcome,
    ) -> Result<(), TransferError> {
        self.events.stage(Stage::Finish);
        let started = Instant::now();
        let asked = far.ask(&Request::Finish {});
        if let Some(streamed) = streamed {
            self.received(far, streamed)?;
        }
        let reply = asked.and_then(|()| far.reply());
        let reply = reply.map_err(|error| match error {
            AgentError::Failed { why } => TransferError::Finalize { why },
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
