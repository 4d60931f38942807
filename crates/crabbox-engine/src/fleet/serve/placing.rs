//! A new lease of a fleet: submits a job, waits for it, and has the job's host make the lease, while the
//! client hears of every step.
//!
//! A client that disconnects ends its job. A host that refuses is excluded from the next try, a few times.
//! Nothing is retried once the client has been told about the lease.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use crabbox_core::admission::VMM_OVERHEAD_MIB;
use crabbox_core::config::firecracker::{self, FirecrackerPlan};
use crabbox_core::external::External;
use crabbox_core::fault::{self, Kind};
use crabbox_core::id::LeaseId;
use crabbox_host::signals::Cancellation;
use crabbox_host::wait::{Ready, wait};
use crabbox_machine::lifecycle::hold::HOLD;
use crabbox_machine::protocol::Failure;
use crabbox_ssh::keys;
use rustix::event::PollFlags;

use super::taking::{GRACE, Gone};
use super::{Out, Serve, ServeError, flags};
use crate::fleet::client::{ANSWER_LIMIT, Conversation, FleetError};
use crate::fleet::lines::Lines;
use crate::fleet::wire::{Bound, FarLease, FleetRequest, GATEWAY, LEASES, Reply};
use crate::placement::gateway::Gateway;
use crate::placement::queue::{self, Need};
use crate::placement::{JOB, JobRequest, JobState, Placement, PlacementError};
use crate::provider::error::LeaseError;

/// The longest reason of a host or of the scheduler that is passed on, in characters.
const WHY: usize = 500;

/// How many hosts may refuse one lease before we give up.
const TRIES: usize = 3;

/// How many minutes longer than its lease a job may run: the supervisor ends the lease first, and then the
/// job ends.
const SLACK: u64 = 5;

/// The delay between a job's submission and the first look at it: a free host takes it at once.
const FIRST_LOOK: Duration = Duration::from_millis(300);

/// The interval at which a waiting client hears something, even if nothing has changed.
const SIGN_OF_LIFE: Duration = Duration::from_mins(1);

/// How long a job may stay unseen by the scheduler before its client is told that it is queued.
const UNSEEN: Duration = Duration::from_secs(10);

/// How many times in a row the scheduler may fail to answer while a job waits.
const SILENCES: u32 = 3;

/// How long a host may take to roll back an abandoned lease.
const ROLLBACK_LIMIT: Duration = Duration::from_mins(1);

/// What the client asked for.
struct Wanted {
    key: String,
    settings: BTreeMap<String, String>,
    slug: Option<String>,
    keep: bool,
    external: Option<External>,
    /// The lease according to the settings of this host.
    plan: FirecrackerPlan,
}

/// The outcome of a host's try.
enum Answer {
    /// The client has the lease.
    Taken,
    /// The host did not make the lease, and the client has not been told about it yet.
    Refused(String),
    /// It failed too late for another try, or for a reason that applies on every host. The client has been
    /// told.
    Told,
}

impl Serve<'_> {
    /// Serves one request as a gateway; `false` once another protocol has used the streams.
    pub(super) fn serve_fleet(
        &self,
        gateway: &Gateway,
        ask: FleetRequest,
        lines: &mut Lines<File>,
        out: &Out<'_>,
    ) -> Result<bool, ServeError> {
        match ask {
            FleetRequest::Acquire { queue: false, .. } => return Err(ServeError::NoQueue),
            FleetRequest::Acquire {
                key,
                settings,
                slug,
                keep,
                external,
                queue: true,
                job: None,
            } => {
                let plan =
                    firecracker::plan(&(self.settings)(&flags(&settings)?)?).map_err(LeaseError::from)?;
                // Refuse a bad key here, before the client waits in a queue.
                keys::public(&key, "")?;
                let wanted = Wanted {
                    key,
                    settings: sized(settings, &plan),
                    slug,
                    keep,
                    external,
                    plan,
                };
                self.place(gateway, &wanted, lines, out)?;
            }
            FleetRequest::Claimed => return Err(ServeError::OutOfOrder),
            FleetRequest::List => {
                for lease in self.list_behind(gateway)? {
                    out.put(&Reply::Lease(lease))?;
                }
                out.put(&Reply::Done)?;
            }
            FleetRequest::Enter { node } => {
                self.enter(gateway, &node, lines, out)?;
                return Ok(false);
            }
            FleetRequest::Fate { lease, job } => {
                let how = match gateway.placement().state(job, &lease)? {
                    JobState::Pending { .. } => Some("PENDING".to_owned()),
                    JobState::Running { .. } => Some("RUNNING".to_owned()),
                    JobState::Over { how } => Some(how),
                    JobState::Unknown => None,
                };
                out.put(&Reply::Fate { how })?;
            }
            FleetRequest::Acquire { .. }
            | FleetRequest::SpeakFor { .. }
            | FleetRequest::Resolve { .. }
            | FleetRequest::Touch { .. }
            | FleetRequest::Release { .. }
            | FleetRequest::Logs { .. }
            | FleetRequest::Connect { .. } => {
                return Err(ServeError::NotHere {
                    what: "this",
                    role: GATEWAY,
                });
            }
        }
        Ok(true)
    }

    /// The owner's leases on all hosts of the fleet, which are asked in parallel. Fails if any host fails: a
    /// client would take a lease missing from a partial list for gone and make it again.
    fn list_behind(&self, gateway: &Gateway) -> Result<Vec<FarLease>, ServeError> {
        let dir = self.engine.control_dir().map_err(FleetError::from)?;
        let (owner, access) = (&self.owner, gateway.access());
        std::thread::scope(|scope| {
            let mut asked = Vec::new();
            for node in gateway.names() {
                let (host, access, dir) = (gateway.node(node)?, &access, &dir);
                asked.push(scope.spawn(move || {
                    Conversation::open_for(owner, host, access, dir, Cancellation::ever())?.list()
                }));
            }
            let mut leases = Vec::new();
            for asking in asked {
                leases.extend(asking.join().map_err(|_| ServeError::Unlisted)??);
            }
            if leases.len() > LEASES {
                return Err(ServeError::Unlisted);
            }
            Ok(leases)
        })
    }

    /// Has the lease made on a host that the scheduler chooses, and hands it over.
    fn place(
        &self,
        gateway: &Gateway,
        wanted: &Wanted,
        lines: &mut Lines<File>,
        out: &Out<'_>,
    ) -> Result<(), ServeError> {
        let placement = gateway.placement();
        let (mut refusals, mut exclude) = (Vec::new(), Vec::new());
        while refusals.len() < TRIES {
            let (lease, nonce) = (drawn()?, drawn()?.to_string());
            let command = self.held(gateway, &lease, &nonce);
            let request = JobRequest {
                lease: &lease,
                owner: &self.owner,
                memory_mib: u64::from(wanted.plan.memory_mib) + VMM_OVERHEAD_MIB,
                cpus: wanted.plan.cpus,
                disk_gib: wanted.plan.disk_mib.div_ceil(1024),
                minutes: wanted.plan.ttl.to_std().as_secs().div_ceil(60) + SLACK,
                exclude: &exclude,
                command: &command,
            };
            let job = match placement.submit(&request) {
                Ok(job) => job,
                // All remaining hosts are excluded.
                Err(PlacementError::Never { .. }) if !refusals.is_empty() => break,
                Err(error) => return Err(error.into()),
            };
            let mut ending = Ending {
                placement: &*placement,
                job: Some((job, &lease)),
            };
            let gone = Gone::watch(lines.as_fd(), self.interrupts).map_err(ServeError::Streams)?;
            let node = match self.wait_for(&*placement, (job, &request), out) {
                Ok(node) => node,
                Err(ServeError::Placement(PlacementError::Never { .. })) if !refusals.is_empty() => break,
                Err(error) => return Err(error),
            };
            let bound = Bound {
                id: job,
                lease: lease.clone(),
                node: node.clone(),
                nonce,
                seconds: gateway.request_wait().as_secs(),
            };
            match self.make_there(gateway, wanted, bound, (gone, &mut ending), (lines, out))? {
                Answer::Taken | Answer::Told => return Ok(()),
                Answer::Refused(why) => {
                    let why = short(&why);
                    refusals.push(format!("{node}: {why}"));
                    // An external name may exist only once, and this host may have made the lease although it
                    // reported a failure.
                    if wanted.external.is_some() {
                        break;
                    }
                    let next = if refusals.len() < TRIES {
                        ", trying another one"
                    } else {
                        ""
                    };
                    out.put(&Reply::Queued {
                        text: format!("host {node} refused{next}: {why}"),
                    })?;
                    exclude.push(node);
                }
            }
        }
        Err(ServeError::NoHost { refusals })
    }

    /// The command line of the job's process.
    fn held(&self, gateway: &Gateway, lease: &LeaseId, nonce: &str) -> Vec<String> {
        let exe = self.engine.exe.to_string_lossy().into_owned();
        let wait = gateway.request_wait().as_secs().to_string();
        [
            &exe,
            HOLD,
            "--lease",
            lease.as_str(),
            "--owner",
            &self.owner,
            "--nonce",
            nonce,
            "--wait",
            &wait,
            JOB,
        ]
        .map(str::to_owned)
        .into()
    }

    /// Waits until the job has a host, and reports its state meanwhile.
    fn wait_for(
        &self,
        placement: &dyn Placement,
        (job, request): (u32, &JobRequest<'_>),
        out: &Out<'_>,
    ) -> Result<String, ServeError> {
        let need = Need {
            memory_mib: request.memory_mib,
            cpus: request.cpus,
        };
        let began = Instant::now();
        let (mut last_report, mut silences) = ((String::new(), began), 0);
        let mut pause = FIRST_LOOK;
        loop {
            let until = Some(Instant::now() + pause);
            let asked = wait(self.interrupts.as_fd(), PollFlags::IN, None, until);
            if asked.map_err(ServeError::Streams)? != Ready::Neither {
                return Err(ServeError::JobOver {
                    job,
                    how: "the gateway was told to end it, or its client has disconnected".to_owned(),
                });
            }
            pause = queue::pause(began.elapsed());
            match placement.state(job, request.lease) {
                Ok(JobState::Running { node }) => return Ok(node),
                Ok(JobState::Pending { reason }) if queue::is_never(&reason) => {
                    return Err(PlacementError::Never { why: reason }.into());
                }
                Ok(JobState::Pending { reason }) => {
                    silences = 0;
                    if queue::is_unseen(&reason) && began.elapsed() < UNSEEN {
                        continue;
                    }
                    // Rank and hosts only add detail to the text; go on without them if they are unavailable.
                    let rank = placement.rank(job).unwrap_or_default();
                    let nodes = queue::is_short(&reason).then(|| placement.nodes().ok()).flatten();
                    let text = short(&queue::words(rank, &reason, need, nodes.as_deref()));
                    if text != last_report.0 || last_report.1.elapsed() >= SIGN_OF_LIFE {
                        out.put(&Reply::Queued { text: text.clone() })?;
                        last_report = (text, Instant::now());
                    }
                }
                Ok(JobState::Over { how }) => return Err(ServeError::JobOver { job, how }),
                Ok(JobState::Unknown) => {
                    let how = "the scheduler does not know it any more".to_owned();
                    return Err(ServeError::JobOver { job, how });
                }
                Err(error) => {
                    silences += 1;
                    if silences >= SILENCES {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    /// Has the job's host make the lease, and relays the messages of both sides.
    fn make_there(
        &self,
        gateway: &Gateway,
        wanted: &Wanted,
        bound: Bound,
        (gone, ending): (Gone, &mut Ending<'_>),
        (lines, out): (&mut Lines<File>, &Out<'_>),
    ) -> Result<Answer, ServeError> {
        let node = bound.node.clone();
        let limit = wanted.plan.launch_timeout.to_std() * 2 + ANSWER_LIMIT;
        let opened = self.open(gateway, &node).and_then(|mut talk| {
            talk.say(&FleetRequest::Acquire {
                key: wanted.key.clone(),
                settings: wanted.settings.clone(),
                slug: wanted.slug.clone(),
                keep: wanted.keep,
                external: wanted.external.clone(),
                queue: false,
                job: Some(bound),
            })?;
            Ok(talk)
        });
        let mut talk = match opened {
            Ok(talk) => talk,
            Err(ServeError::Fleet(error @ FleetError::Interrupted { .. })) => return Err(error.into()),
            Err(error) => return Ok(Answer::Refused(fault::chain(&error))),
        };
        let answer = self.pass_on(&mut talk, limit, (gone, ending), (lines, out));
        if !matches!(answer, Ok(Answer::Taken)) {
            talk.give_up(ROLLBACK_LIMIT);
        }
        answer
    }

    fn open(&self, gateway: &Gateway, node: &str) -> Result<Conversation, ServeError> {
        let host = gateway.node(node)?;
        let dir = self.engine.control_dir().map_err(FleetError::from)?;
        Ok(Conversation::open_for(
            &self.owner,
            host,
            &gateway.access(),
            &dir,
            Cancellation::ever(),
        )?)
    }

    fn pass_on(
        &self,
        talk: &mut Conversation,
        limit: Duration,
        (gone, ending): (Gone, &mut Ending<'_>),
        (lines, out): (&mut Lines<File>, &Out<'_>),
    ) -> Result<Answer, ServeError> {
        let until = Instant::now() + limit;
        let mut gone = Some(gone);
        loop {
            match talk.hear(until) {
                Ok(Reply::Ready { .. }) if gone.is_none() => return Err(talk.nonsense().into()),
                Ok(reply @ (Reply::Stage(_) | Reply::Cold { .. })) => out.put(&reply)?,
                Ok(reply @ Reply::Ready { seconds, .. }) => {
                    let left = Duration::from_secs(seconds).min(limit);
                    // From here on the client is expected to send something.
                    gone = None;
                    out.put(&reply)?;
                    let said =
                        lines.next(Some(self.interrupts.as_fd()), Some(Instant::now() + left + GRACE))?;
                    match said.map(|line| FleetRequest::read(&line)).transpose()? {
                        Some(FleetRequest::Claimed) => {
                            // The client has claimed it, so an interrupt no longer abandons the lease; it
                            // would have to be stopped.
                            talk.heed_no_more();
                            talk.say(&FleetRequest::Claimed)?;
                        }
                        _ => return Err(ServeError::OutOfOrder),
                    }
                }
                Ok(reply @ Reply::Lease(_)) if gone.is_none() => {
                    ending.hand_over(out, &reply)?;
                    return Ok(Answer::Taken);
                }
                Ok(_) => return Err(talk.nonsense().into()),
                // Lack of room or of a prerequisite may be this host's problem only. A bad request would fail
                // on every host.
                Err(FleetError::Refused(failure, _)) if gone.is_some() && is_the_host_s(&failure) => {
                    return Ok(Answer::Refused(whole(&failure)));
                }
                Err(FleetError::Refused(failure, _)) => {
                    out.put(&Reply::Failed(failure))?;
                    return Ok(Answer::Told);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A reason, cut to the length that is passed on: three of them with the text around them must fit into one
/// line.
fn short(why: &str) -> String {
    why.chars().take(WHY).collect()
}

/// A failure with its causes, as one line.
fn whole(failure: &Failure) -> String {
    let causes = failure.causes.iter().map(String::as_str);
    let messages: Vec<&str> = std::iter::once(failure.message.as_str()).chain(causes).collect();
    messages.join(": ")
}

/// Whether a failure is due to the host, such as its capacity or its configuration; the gateway has validated
/// the request itself already. A guest that did not come up does not count as a refusal, because its console
/// is worth more than another try.
fn is_the_host_s(failure: &Failure) -> bool {
    matches!(failure.kind, Kind::Unavailable | Kind::Usage)
        && !failure.machine_ended
        && failure.console.is_empty()
}

/// The client's settings with the sizes and the TTL that its job was submitted with, so that a host's own
/// defaults cannot change the lease.
fn sized(mut settings: BTreeMap<String, String>, plan: &FirecrackerPlan) -> BTreeMap<String, String> {
    for (key, value) in [
        ("firecracker.cpus", plan.cpus.to_string()),
        ("firecracker.memoryMiB", plan.memory_mib.to_string()),
        ("firecracker.diskMiB", plan.disk_mib.to_string()),
        ("ttl", plan.ttl.to_string()),
    ] {
        settings.insert(key.to_owned(), value);
    }
    settings
}

fn drawn() -> Result<LeaseId, ServeError> {
    Ok(LeaseId::from_random(
        crabbox_host::random::bytes().map_err(ServeError::Streams)?,
    ))
}

/// Cancels the job on drop, unless the lease has been handed over; from then on the lease ends its job and
/// never the reverse. A job that cannot be cancelled ends by itself when nobody asks it for a lease.
struct Ending<'a> {
    placement: &'a dyn Placement,
    job: Option<(u32, &'a LeaseId)>,
}

impl Ending<'_> {
    /// Tells the client that the lease is theirs. It is theirs from the host's reply on, even if they do not
    /// hear of it: they have its key and can find it by that.
    fn hand_over(&mut self, out: &Out<'_>, lease: &Reply) -> Result<(), ServeError> {
        self.job = None;
        out.put(lease)?;
        out.put(&Reply::Done)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Some((job, lease)) = self.job {
            self.placement.cancel(job, lease).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::placement::Node;

    /// A scheduler that counts its cancelled jobs.
    #[derive(Debug, Default)]
    struct Counts(Cell<usize>);

    impl Placement for Counts {
        fn submit(&self, _: &JobRequest<'_>) -> Result<u32, PlacementError> {
            Ok(7)
        }

        fn state(&self, _: u32, _: &LeaseId) -> Result<JobState, PlacementError> {
            Ok(JobState::Unknown)
        }

        fn rank(&self, _: u32) -> Result<Option<usize>, PlacementError> {
            Ok(None)
        }

        fn cancel(&self, _: u32, _: &LeaseId) -> Result<(), PlacementError> {
            self.0.set(self.0.get() + 1);
            Ok(())
        }

        fn nodes(&self) -> Result<Vec<Node>, PlacementError> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_lease_that_is_its_client_s_lives_although_its_client_does_not_hear_of_it() {
        let lease = LeaseId::parse("cbx_0123456789ab").unwrap();
        let (deaf, ear) = std::io::pipe().unwrap();
        drop(deaf);
        let nobody = File::from(std::os::fd::OwnedFd::from(ear));
        for (is_handed_over, ended) in [(true, 0), (false, 1)] {
            let placement = Counts::default();
            let mut ending = Ending {
                placement: &placement,
                job: Some((7, &lease)),
            };
            if is_handed_over {
                let unheard = ending.hand_over(&Out(&nobody), &Reply::Done);
                assert!(unheard.is_err());
            }
            drop(ending);
            assert_eq!(placement.0.get(), ended);
        }
    }

    #[test]
    fn whatever_hosts_say_at_length_is_a_reply_that_a_client_bears() {
        let said = "\u{1f980}".repeat(5 * 1024);
        let why = short(&said);
        let text = format!("host {} refused, trying another one: {why}", "h".repeat(64));
        assert!(Reply::Queued { text }.judged().is_ok());
        assert!(Reply::Queued { text: said }.judged().is_err());
        assert_eq!(short("full"), "full");
    }
}
