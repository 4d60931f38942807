//! `crabbox __serve`: the other end of a client's conversation, on the KVM host.
//!
//! Serves one owner, whom the login key determines. What the client says may shape its lease, but decides
//! nothing about what runs on the host. Another owner's lease is never listed, named, touched, ended or
//! connected to, and no reply distinguishes it from a lease that does not exist. The owner's name comes from
//! the `authorized_keys` line that lets the client in, or, on a host of a fleet, from its gateway.

mod carry;
mod placing;
mod relay;
mod taking;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crabbox_core::config::key::{KEYS, Name};
use crabbox_core::config::{FlagValue, Settings, firecracker};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::normalise;
use crabbox_core::labels::{self, OwnerNameError};
use crabbox_core::state::LeaseState;
use crabbox_host::signals::Interrupts;
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::{NameError, Purpose, ResolveError};
use crabbox_machine::lease::logs::{self, Source};
use crabbox_machine::lease::touch;
use crabbox_machine::lifecycle::hold::{JobCredentials, LONGEST_WAIT};
use crabbox_machine::protocol::{self, Failure};
use crabbox_machine::request::Owner;
use crabbox_ssh::keys::{self, KeyError};

use self::taking::{Gone, Taking};
use super::client::FleetError;
use super::lines::{self, LineError, Lines};
use super::wire::{
    Bound, FarLease, FleetRequest, FleetRequestError, GATEWAY, Greeting, HOST, LEASES, LOG, LogSource, Reply,
    ResolvePurpose, SAYABLE, SPOKEN, crossing,
};
use crate::host::prepare::NewLease;
use crate::placement::PlacementError;
use crate::placement::gateway::{Gateway, GatewayError};
use crate::provider::error::LeaseError;
use crate::provider::firecracker::{Firecracker, For, HeldJob, lookup};
use crate::provider::lease::Lease;
use crate::provider::{Notice, Provider as _};

/// How long a client may be silent between two requests.
pub(crate) const SILENCE: Duration = Duration::from_mins(10);

/// How long a client may take to read a reply.
const HEARING: Duration = Duration::from_secs(30);

/// How much of a refused state or name is quoted, in characters.
const NAME: usize = 80;

/// Why a request failed, or why a conversation ended before the client closed it.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The owner's name is not valid.
    #[error(transparent)]
    Owner(#[from] OwnerNameError),
    /// No line could be read from the client.
    #[error("the client disconnected")]
    Line(#[from] LineError),
    /// The request is not served.
    #[error(transparent)]
    Request(#[from] FleetRequestError),
    /// A message arrived when it has no meaning.
    #[error("unexpected \"claimed\": no lease is waiting to be claimed")]
    OutOfOrder,
    /// The client's public key is not valid.
    #[error("the lease's public key cannot be used")]
    Key(#[from] KeyError),
    /// The client may not set this configuration key.
    #[error("a client cannot set {key} on this host; it can set {}", SAYABLE.join(", "))]
    NotSayable {
        /// The key of the configuration.
        key: String,
    },
    /// The client may not put a lease into this state.
    #[error("a client cannot set the state of a lease to {state:?}; allowed are \"ready\" and \"running\"")]
    State {
        /// The state.
        state: String,
    },
    /// The lease cannot be found or made.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A lease record here cannot be read, and it may be the requested lease.
    #[error("cannot tell whether lease {name:?} exists: some lease records on this host are unreadable")]
    Unreadable {
        /// What was asked for.
        name: String,
    },
    /// The lease's guest accepts no connection.
    #[error("cannot connect to lease {id}")]
    Connect {
        /// The lease.
        id: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The gateway did not say first on whose behalf this host of a fleet is to serve.
    #[error("this host serves only the gateway of its fleet, which must name the owner first")]
    NotForAnybody,
    /// The request is for another kind of host: a gateway instead of a host, or the reverse.
    #[error("{what} is not supported here: this host is {role}")]
    NotHere {
        /// What was asked for.
        what: &'static str,
        /// What this host is.
        role: &'static str,
    },
    /// The client does not support queues.
    #[error("this host is the gateway of a fleet, and the client's crabbox does not support fleets")]
    NoQueue,
    /// The gateway's configuration cannot be used.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The scheduler failed.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The job ended before the lease could be made.
    #[error("the lease's job {job} ended before it had a host: {how}")]
    JobOver {
        /// The job.
        job: u32,
        /// The job's final state, in the scheduler's word.
        how: String,
    },
    /// A host of the fleet failed.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// Not all hosts of the fleet could be asked.
    #[error("some hosts of the fleet did not report their leases")]
    Unlisted,
    /// Every host that was tried refused.
    #[error("no host of the fleet could make the lease: {}", .refusals.join("; "))]
    NoHost {
        /// Host and reason of each refusal.
        refusals: Vec<String>,
    },
    /// A reply cannot be serialized.
    #[error("cannot encode a reply")]
    Words(#[source] serde_json::Error),
    /// Our own standard streams cannot be used.
    #[error("cannot use the standard streams")]
    Streams(#[source] std::io::Error),
}

impl ServeError {
    fn fault(&self) -> Option<&dyn Fault> {
        match self {
            Self::Request(error) => Some(error),
            Self::Lease(error) => Some(error),
            Self::Gateway(error) => Some(error),
            Self::Placement(error) => Some(error),
            Self::Fleet(error) => Some(error),
            _ => None,
        }
    }

    /// Whether it ends the conversation.
    fn is_the_end(&self) -> bool {
        matches!(self, Self::Line(_) | Self::Words(_) | Self::Streams(_))
    }
}

impl Fault for ServeError {
    fn kind(&self) -> Kind {
        match (self.fault(), self) {
            (Some(fault), _) => fault.kind(),
            (
                None,
                Self::Line(_)
                | Self::Connect { .. }
                | Self::Streams(_)
                | Self::Unreadable { .. }
                | Self::NotHere { .. }
                | Self::Unlisted
                | Self::JobOver { .. }
                | Self::NoHost { .. },
            ) => Kind::Unavailable,
            (None, _) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoQueue => vec!["update crabbox on your machine: the gateway's is newer".to_owned()],
            Self::JobOver { .. } => {
                vec!["try again; the administrator of the fleet may have ended it".to_owned()]
            }
            Self::NoHost { .. } => {
                vec!["try again later, or request less; the scheduler expected room".to_owned()]
            }
            Self::NotHere { role: GATEWAY, .. } => vec![
                "leases of a fleet are found by the claim on the machine that made them: run it there"
                    .to_owned(),
            ],
            // A remote owner can do nothing with the hints for that host.
            Self::Fleet(_) => {
                vec![
                    "ask the administrator of the fleet about that host; its leases are not affected"
                        .to_owned(),
                ]
            }
            _ => self.fault().map_or_else(Vec::new, Fault::hints),
        }
    }
}

/// Computes the settings of this host with the client's values on top; no repository's configuration is read.
pub type SettingsWith<'a> = &'a dyn Fn(&[FlagValue]) -> Result<Settings, LeaseError>;

/// The role of a host towards its clients.
#[derive(Debug, Clone, Copy)]
pub enum Role<'a> {
    /// It makes leases for the owner that the login names.
    Host,
    /// It makes leases for the owner that the fleet's gateway names, each bound to a job.
    Node,
    /// It has leases made on the hosts of its fleet.
    Gateway(&'a Gateway),
}

/// One conversation with a client.
pub struct Serve<'a> {
    /// The engine, which knows where leases are kept.
    pub engine: &'a Engine,
    /// The owner who is served; for [`Role::Node`] the gateway's first line replaces it.
    pub owner: String,
    /// The role of this host.
    pub role: Role<'a>,
    /// The settings of the host.
    pub settings: SettingsWith<'a>,
    /// Becomes readable when we should end.
    pub interrupts: &'a Interrupts,
}

impl std::fmt::Debug for Serve<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Serve")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// The stream to the client.
#[derive(Debug)]
struct Out<'a>(&'a File);

impl Out<'_> {
    fn put(&self, reply: &Reply) -> Result<(), ServeError> {
        let line = protocol::line(reply).map_err(ServeError::Words)?;
        Ok(lines::put(self.0.as_fd(), &line, Instant::now() + HEARING)?)
    }
}

impl Serve<'_> {
    /// Serves until the client has no more requests.
    pub fn run(self, input: File, output: &File) -> Result<(), ServeError> {
        let mut lines = Lines::new(input);
        let owner = match self.role {
            Role::Node => self.named(&mut lines)?,
            Role::Host | Role::Gateway(_) => self.owner,
        };
        Self { owner, ..self }.converse(lines, output)
    }

    /// The owner on whose behalf the gateway speaks, from its first line.
    fn named(&self, lines: &mut Lines<File>) -> Result<String, ServeError> {
        let until = Some(Instant::now() + HEARING);
        let line = lines.next(Some(self.interrupts.as_fd()), until)?;
        match line.map(|line| FleetRequest::read(&line)).transpose()? {
            Some(FleetRequest::SpeakFor { owner }) => Ok(owner),
            _ => Err(ServeError::NotForAnybody),
        }
    }

    fn converse(&self, mut lines: Lines<File>, output: &File) -> Result<(), ServeError> {
        labels::check_owner_name(&self.owner)?;
        let out = Out(output);
        let greeting = Greeting {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: SPOKEN,
            role: match self.role {
                Role::Gateway(_) => GATEWAY,
                Role::Host | Role::Node => HOST,
            }
            .to_owned(),
            owner: self.owner.clone(),
        };
        let line = protocol::line(&greeting).map_err(ServeError::Words)?;
        lines::put(output.as_fd(), &line, Instant::now() + HEARING)?;
        loop {
            // Check between requests, so that a client that never stops asking cannot keep us running.
            if self.interrupts.caught().is_some() {
                return Ok(());
            }
            let until = Some(Instant::now() + SILENCE);
            let line = match lines.next(Some(self.interrupts.as_fd()), until) {
                Ok(Some(line)) => line,
                Ok(None) | Err(LineError::Cancelled) => return Ok(()),
                Err(error) => {
                    let error = error.into();
                    out.put(&failed(&error)).ok();
                    return Err(error);
                }
            };
            match self.serve(&line, &mut lines, &out) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.is_the_end() => return Err(error),
                Err(error) => out.put(&failed(&error))?,
            }
        }
    }

    /// Serves one request; `false` once another protocol has used the streams.
    fn serve(&self, line: &[u8], lines: &mut Lines<File>, out: &Out<'_>) -> Result<bool, ServeError> {
        let ask = FleetRequest::read(line)?;
        match self.role {
            Role::Gateway(gateway) => self.serve_fleet(gateway, ask, lines, out),
            Role::Host | Role::Node => self.serve_here(ask, lines, out),
        }
    }

    fn serve_here(
        &self,
        ask: FleetRequest,
        lines: &mut Lines<File>,
        out: &Out<'_>,
    ) -> Result<bool, ServeError> {
        match ask {
            FleetRequest::Acquire {
                key,
                settings,
                slug,
                keep,
                external,
                queue: _,
                job,
            } => {
                let job = self.bound(job)?;
                let new = NewLease {
                    slug,
                    keep,
                    reclaim: false,
                    external,
                };
                self.acquire(&key, &settings, &new, job.as_ref(), (lines, out))?;
            }
            FleetRequest::Claimed => return Err(ServeError::OutOfOrder),
            FleetRequest::Resolve { lease, aim } => {
                let lease = self.owned(&lease)?;
                let purpose = match aim {
                    ResolvePurpose::Use => Purpose::Use,
                    ResolvePurpose::Look => Purpose::Look,
                };
                let lease = self.provider(&[])?.resolve(&lease.id, purpose)?;
                out.put(&Reply::Lease(far(&lease)?))?;
            }
            FleetRequest::List => {
                for lease in self.leases()?.0.iter().take(LEASES) {
                    out.put(&Reply::Lease(far(lease)?))?;
                }
                out.put(&Reply::Done)?;
            }
            FleetRequest::Touch {
                lease,
                state,
                idle_seconds,
            } => {
                let lease = self.owned(&lease)?;
                let state = in_use(state.as_deref())?;
                let idle = idle_seconds.map(Duration::from_secs);
                let labels = touch::touch(&self.engine.places, &lease.id, state.as_ref(), idle)
                    .map_err(LeaseError::from)?;
                out.put(&Reply::Labels { labels })?;
            }
            FleetRequest::Release { lease, discard } => {
                let lease = self.owned(&lease)?;
                let released = crabbox_machine::lifecycle::release::stop(self.engine, &lease.id, discard)
                    .map_err(LeaseError::from)?;
                out.put(&Reply::Released {
                    id: released.id,
                    name: released.name,
                    kept: released.kept.map(|path| path.to_string_lossy().into_owned()),
                })?;
            }
            FleetRequest::Logs { lease, source } => self.log(&lease, source, out)?,
            FleetRequest::Connect { lease } => {
                self.connect(&lease, lines, out)?;
                return Ok(false);
            }
            FleetRequest::Enter { .. } | FleetRequest::Fate { .. } | FleetRequest::SpeakFor { .. } => {
                return Err(ServeError::NotHere {
                    what: "what a gateway is asked, or says,",
                    role: HOST,
                });
            }
        }
        Ok(true)
    }

    fn log(&self, lease: &str, source: LogSource, out: &Out<'_>) -> Result<(), ServeError> {
        let lease = self.owned(lease)?;
        let source = match source {
            LogSource::Console => Source::Console,
            LogSource::Vmm => Source::Vmm,
            LogSource::Supervisor => Source::Supervisor,
        };
        let opened = logs::open(self.engine, &lease.id, source);
        let (_, bytes) = opened.map_err(LeaseError::new)?;
        let last = &bytes[bytes.len().saturating_sub(LOG)..];
        out.put(&Reply::Log {
            text: String::from_utf8_lossy(last).into_owned(),
        })
    }

    /// The job that a new lease is bound to. Only a gateway may name one. A host of a fleet makes no lease
    /// without a job, because the scheduler allots its capacity.
    fn bound(&self, job: Option<Bound>) -> Result<Option<Bound>, ServeError> {
        match (self.role, job) {
            (Role::Node, Some(job)) => Ok(Some(job)),
            (Role::Node, None) => Err(ServeError::NotHere {
                what: "a lease without a job",
                role: "a host of a fleet",
            }),
            (_, Some(_)) => Err(ServeError::NotHere {
                what: "a lease of a job",
                role: HOST,
            }),
            (_, None) => Ok(None),
        }
    }

    /// Connects the streams to the guest's SSH server.
    fn connect(&self, text: &str, lines: &mut Lines<File>, out: &Out<'_>) -> Result<(), ServeError> {
        let lease = self.owned(text)?;
        let lease = self.provider(&[])?.resolve(&lease.id, Purpose::Use)?;
        let guest = carry::connect(&lease)?;
        out.put(&Reply::Lease(far(&lease)?))?;
        out.put(&Reply::Done)?;
        let idle = Duration::from_secs(u64::try_from(lease.idle_seconds()).unwrap_or(0));
        carry::carry(
            &self.engine.places,
            (&lease.id, idle),
            guest,
            (lines, out.0),
            self.interrupts.as_fd(),
        )
    }

    fn acquire(
        &self,
        key: &str,
        settings: &BTreeMap<String, String>,
        new: &NewLease,
        job: Option<&Bound>,
        (lines, out): (&mut Lines<File>, &Out<'_>),
    ) -> Result<(), ServeError> {
        let mut settings = (self.settings)(&flags(settings)?)?;
        settings.leave_volumes();
        let plan = firecracker::plan(&settings).map_err(LeaseError::from)?;
        let owner = Owner {
            name: self.owner.clone(),
            public_key: keys::public(key, "")?,
            quota: plan.quota,
        };
        let credentials = job.map(|job| JobCredentials {
            job: job.id,
            lease: job.lease.clone(),
            owner: self.owner.clone(),
            nonce: job.nonce.clone(),
        });
        let whose = For {
            owner: Some(&owner),
            job: job.zip(credentials.as_ref()).map(|(job, credentials)| {
                // A cap on the requested wait: the job's process does not wait longer either.
                let waits = Duration::from_secs(job.seconds).min(LONGEST_WAIT);
                HeldJob {
                    node: &job.node,
                    credentials,
                    deadline: Instant::now() + waits,
                }
            }),
        };
        let provider = Firecracker::new(self.engine.clone(), settings);
        // A client that disconnects while its machine is being made has given up the lease.
        let gone = Gone::watch(lines.as_fd(), self.interrupts).map_err(ServeError::Streams)?;
        let mut taking = Taking::new(lines, out, gone);
        let acquired = provider.acquire_for(new, &whose, &mut taking, self.interrupts, &mut |notice| {
            let reply = match notice {
                Notice::Stage(stage) => Reply::Stage((*stage).clone()),
                Notice::Cold { why, .. } => Reply::Cold {
                    why: (*why).to_owned(),
                },
                _ => return,
            };
            // Ignore failures: a client that cannot hear this cannot claim the lease either.
            out.put(&reply).ok();
        })?;
        out.put(&Reply::Lease(far(&acquired.lease)?))?;
        out.put(&Reply::Done)
    }

    fn provider(&self, flags: &[FlagValue]) -> Result<Firecracker, LeaseError> {
        Ok(Firecracker::new(self.engine.clone(), (self.settings)(flags)?))
    }

    /// The owner's leases, and whether there are unreadable records, whose owner is unknown.
    fn leases(&self) -> Result<(Vec<Lease>, bool), LeaseError> {
        let mut listing = lookup::list(self.engine)?;
        listing
            .leases
            .retain(|lease| labels::owner(&lease.labels) == Some(&self.owner));
        Ok((listing.leases, !listing.unusable.is_empty()))
    }

    /// The owner's lease that `text` names. "Not found" makes the client delete the lease's key, so it is
    /// said only when it is certain, and in the same words for every name.
    fn owned(&self, text: &str) -> Result<Lease, ServeError> {
        let slug = normalise(text);
        let (leases, some_unreadable) = self.leases()?;
        let mut found: Vec<Lease> = leases
            .into_iter()
            .filter(|lease| {
                lease.id == text || lease.name == text || (!slug.is_empty() && lease.slug == slug)
            })
            .collect();
        if let Some(exact) = found.iter().position(|lease| lease.id == text) {
            return Ok(found.swap_remove(exact));
        }
        match found.len() {
            1 => Ok(found.swap_remove(0)),
            0 if some_unreadable => Err(ServeError::Unreadable {
                name: text.chars().take(NAME).collect(),
            }),
            0 => Err(LeaseError::from(ResolveError::from(NameError::NotFound {
                text: text.to_owned(),
            }))
            .into()),
            _ => Err(LeaseError::from(ResolveError::from(NameError::Ambiguous {
                slug,
                matches: found.iter().map(|lease| format!("lease={}", lease.id)).collect(),
            }))
            .into()),
        }
    }
}

/// The state that a client may give to a lease in use. All other states are set by the processes that make,
/// watch and end it: the supervisor would, for instance, leave a lease alone that is marked `released`.
fn in_use(state: Option<&str>) -> Result<Option<LeaseState>, ServeError> {
    match state.map(LeaseState::from) {
        None => Ok(None),
        Some(state @ (LeaseState::Ready | LeaseState::Running)) => Ok(Some(state)),
        Some(state) => Err(ServeError::State {
            state: state.to_string().chars().take(NAME).collect(),
        }),
    }
}

/// The client's settings for its lease, as flags.
fn flags(settings: &BTreeMap<String, String>) -> Result<Vec<FlagValue>, ServeError> {
    let mut flags = vec![FlagValue {
        key: Name::ProviderName,
        values: vec!["firecracker".to_owned()],
    }];
    for (path, value) in settings {
        let key = KEYS
            .iter()
            .find(|key| key.path == path && SAYABLE.contains(&key.path))
            .ok_or_else(|| ServeError::NotSayable { key: path.clone() })?;
        flags.push(FlagValue {
            key: key.name,
            values: vec![value.clone()],
        });
    }
    Ok(flags)
}

fn failed(error: &ServeError) -> Reply {
    let console = match error {
        ServeError::Lease(error) => error.console().to_vec(),
        _ => Vec::new(),
    };
    let mut failure = Failure::of(error, console, Vec::new());
    failure.kind = crossing(failure.kind);
    if let ServeError::Lease(error) = error {
        failure.machine_ended = error.remedy() == Some(crate::provider::error::Recovery::Again);
    }
    Reply::Failed(failure)
}

/// A lease in the form that its owner receives.
fn far(lease: &Lease) -> Result<FarLease, LeaseError> {
    let not_ours = || {
        LeaseError::from(ResolveError::from(NameError::NotFound {
            text: lease.id.clone(),
        }))
    };
    let label = |name: &str| lease.labels.get(name).cloned().unwrap_or_default();
    let (user, port) = match &lease.target {
        Some(target) => (target.user.clone(), target.port),
        None => (label("ssh_user"), label("ssh_port").parse().unwrap_or(22)),
    };
    Ok(FarLease {
        id: crabbox_core::id::LeaseId::parse(&lease.id).map_err(|_| not_ours())?,
        slug: lease.slug.clone(),
        name: lease.name.clone(),
        server_type: lease.server_type.clone(),
        state: lease.state.to_string(),
        labels: lease.labels.clone(),
        user,
        port,
        work_root: lease.work_root.clone(),
        has_address: !lease.address.is_empty(),
        unjailed: lease.unjailed,
        capacity: lease.target.as_ref().and_then(|target| target.capacity),
    })
}

#[cfg(test)]
mod tests;
