//! The pool of leases made ahead of use: which of them a command may take, and how a pool is filled, swept
//! and drained.
//!
//! All members of a pool agree in everything that cannot be changed on an existing lease. Nothing here may
//! end a claimed lease, and a pool must never keep anyone from getting a lease.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::fault::{Fault, Kind};
use crabbox_host::lock::{FileLock, LockError};
use crabbox_host::signals::Interrupts;
use crabbox_host::{clock, digest};
use crabbox_machine::context::Engine;
use crabbox_machine::failpoint::Who;
use crabbox_machine::lifecycle::client::{self, ClientError};
use crabbox_machine::lifecycle::pool::{self, Member};
use crabbox_machine::lifecycle::release::{Decision, ReleaseError, Subject};
use crabbox_machine::lifecycle::teardown::Actor;
use crabbox_machine::request::{AcquireRequest, GuestSource, Pool, Start};
use crabbox_store::leases::RecordError;

use crate::host::prepare;
use crate::host::unowned::{self, UnownedError};
use crate::host::warm::{self, Source, facts};

/// How long to wait while another command fills the pool that we want to fill or drain.
const LOCK_LIMIT: Duration = Duration::from_mins(5);
/// How many hexadecimal digits each half of a key has: 64 bits.
const HALF: usize = 16;

/// Why a pool could not be filled, swept or drained.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A lease could not be made.
    #[error(transparent)]
    Unowned(#[from] UnownedError),
    /// No pool is configured.
    #[error("firecracker.pool is 0: no leases are kept ready")]
    None,
    /// The images or programs of the leases could not be examined.
    #[error("cannot inspect the image and programs of the pool")]
    Facts(#[source] std::io::Error),
    /// Its lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Another command is filling it.
    #[error("another command is filling the pool")]
    Busy,
    /// The images or programs of its leases have changed meanwhile.
    #[error("the image or the programs of the pool have changed; nothing was created or ended")]
    Stale,
    /// The user interrupted.
    #[error("interrupted; leases already created or ended are not undone")]
    Interrupted,
    /// The records cannot be listed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A lease could not be ended.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Some leases may remain in the pool, because another process is working on them.
    #[error("in use by another process, so they may remain in the pool: {}", .leases.join(", "))]
    Stay {
        /// The leases.
        leases: Vec<String>,
    },
}

impl PoolError {
    /// The end of the console of a machine that did not come up.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Unowned(error) => error.console(),
            _ => &[],
        }
    }
}

impl Fault for PoolError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unowned(error) => error.kind(),
            Self::Release(error) => error.kind(),
            Self::Lock(_) | Self::Busy | Self::Stale | Self::Stay { .. } => Kind::Unavailable,
            Self::Interrupted => Kind::Passthrough(130),
            Self::None | Self::Facts(_) | Self::Records(_) => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Unowned(error) => error.hints(),
            Self::Release(error) => error.hints(),
            Self::None => {
                vec!["set firecracker.pool in your own configuration, or add --firecracker-pool 2".to_owned()]
            }
            Self::Busy => vec!["try again when it has finished".to_owned()],
            Self::Stay { .. } => {
                vec!["run `crabbox pool drain` again when that process has finished".to_owned()]
            }
            Self::Stale => vec!["run `crabbox pool fill` again".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// The pool that a lease of `request` belongs to; `None` if no pool is configured.
pub(crate) fn of(
    engine: &Engine,
    plan: &FirecrackerPlan,
    request: &AcquireRequest,
) -> std::io::Result<Option<Pool>> {
    if plan.pool == 0 {
        return Ok(None);
    }
    Ok(Some(Pool {
        key: key(plan, request)?,
        image: plan.image.as_str().to_owned(),
        size: plan.pool,
        max_age: plan.pool_max_age.to_std(),
        warm: plan.warm,
        launch_timeout: request.launch_timeout,
        exe: engine.exe.clone(),
        member: false,
    }))
}

/// The key of a pool: a hash of the configuration, followed by a hash of what it resolves to on this host
/// now. Keys with equal first halves and different second halves belong to the same pool, before and after
/// its image or programs changed.
fn key(plan: &FirecrackerPlan, request: &AcquireRequest) -> std::io::Result<String> {
    let mut configured = String::from("pool 1\n");
    let network = &request.network;
    let jail = request.programs.jailer.as_ref();
    for (name, value) in [
        ("image", plan.image.as_str().to_owned()),
        ("kernel", plan.kernel.value.as_path().display().to_string()),
        ("rootfs", plan.rootfs.value.as_path().display().to_string()),
        ("processors", request.machine.cpus.to_string()),
        ("memory", request.machine.memory_mib.to_string()),
        ("disk", request.machine.disk_mib.to_string()),
        ("user", request.ssh_user.clone()),
        ("port", request.ssh_port.to_string()),
        ("root", request.work_root.clone()),
        ("firecracker", request.programs.firecracker.display().to_string()),
        (
            "jail",
            jail.map(|jail| format!("{} {}", jail.jailer.display(), jail.first_uid))
                .unwrap_or_default(),
        ),
        (
            "network",
            format!(
                "{} {} {}",
                network.mode.name(),
                network.cni_network,
                network.cni_conf_dir.display()
            ),
        ),
    ] {
        // Writing to a String cannot fail.
        writeln!(configured, "{name}={value}").ok();
    }
    Ok(format!("{}-{}", half(&configured), found(request)?))
}

fn half(text: &str) -> String {
    digest::sha256(text.as_bytes())[..HALF].to_owned()
}

/// The second half of a key: what `request` resolves to on this host now.
fn found(request: &AcquireRequest) -> std::io::Result<String> {
    let mut found = String::new();
    match &request.guest {
        GuestSource::Foreign {
            kernel,
            rootfs,
            initrd,
        } => {
            let files = [Some(kernel), Some(rootfs), initrd.as_ref()];
            for file in files.into_iter().flatten() {
                writeln!(found, "{}", facts::stamp(file)?).ok();
            }
            writeln!(found, "{}", facts::stamp(&request.programs.firecracker)?).ok();
        }
        GuestSource::Ours { digest: image, .. } => {
            let program = facts::stamp(&request.programs.firecracker)?;
            found.push_str(&facts::of(image, request.machine, &program).text);
        }
    }
    Ok(half(&found))
}

/// Whether `order` still matches its pool: images and programs may have changed since it was written.
fn is_current(engine: &Engine, order: &AcquireRequest, pool: &Pool) -> bool {
    let images = engine.places.images();
    let named = || prepare::stored_image(&images, &pool.image).ok();
    let is_same_image = match &order.guest {
        GuestSource::Ours { digest: image, .. } => {
            named().is_some_and(|named| named.manifest.digest == *image)
        }
        GuestSource::Foreign { kernel, .. } if kernel.starts_with(&images) => {
            named().is_some_and(|named| named.kernel() == *kernel)
        }
        GuestSource::Foreign { .. } => true,
    };
    // Whatever cannot be examined counts as changed.
    is_same_image && found(order).is_ok_and(|found| pool.key.get(HALF + 1..) == Some(&found))
}

/// The ids of leases that can be taken from the pool `key`, oldest first. Empty if the members cannot be
/// listed.
pub(crate) fn waiting(engine: &Engine, key: &str) -> Vec<String> {
    let members = pool::members(&engine.places).unwrap_or_default();
    let waiting = members
        .into_iter()
        .filter(|member| member.waits && member.pool == key);
    waiting.map(|member| member.stored.record.lease_id).collect()
}

/// The result of filling a pool.
#[derive(Debug)]
pub struct Filled {
    /// The pool's key.
    pub key: String,
    /// The configured size.
    pub size: u32,
    /// The waiting leases, oldest first.
    pub members: Vec<Member>,
    /// The ids of the newly made leases.
    pub made: Vec<String>,
}

/// Fills the pool for leases of `plan` and waits for completion. `on_made` is called for each new lease.
pub fn fill(
    engine: &Engine,
    plan: &FirecrackerPlan,
    interrupts: &Interrupts,
    on_made: &mut dyn FnMut(&str),
) -> Result<Filled, PoolError> {
    if plan.pool == 0 {
        return Err(PoolError::None);
    }
    let mut order = unowned::request(engine, plan).map_err(UnownedError::from)?;
    let pool = of(engine, plan, &order)
        .map_err(PoolError::Facts)?
        .ok_or(PoolError::None)?;
    order.pool = Some(pool.clone());
    let lock = lock(&engine.places.pool_lock(&pool.key), interrupts)?;
    let making = Making {
        engine,
        order: &order,
        pool: &pool,
        interrupts,
    };
    let outcome = making.fill(on_made);
    lock.remove_while_held()?;
    let made = outcome?;
    Ok(Filled {
        members: making.members()?,
        made,
        key: pool.key.clone(),
        size: pool.size,
    })
}

/// Refills the pool of `order` for the next user, unless another process is doing that. Started after a lease
/// has been claimed, or when a member of a used pool has expired.
pub fn refill(engine: &Engine, order: &AcquireRequest, interrupts: &Interrupts) -> Result<(), PoolError> {
    let Some(pool) = &order.pool else { return Ok(()) };
    // An expired member was not used by anyone, so it does not count as use of the pool: an unused pool
    // empties by expiry.
    if !pool.member {
        pool::tell_used(&pool::members(&engine.places)?, &pool.key);
    }
    let making = Making {
        engine,
        order,
        pool,
        interrupts,
    };
    // Check again after releasing the lock: a process that found it held relies on us to replace the lease
    // that it took.
    while making.members()?.len() < size(pool) {
        let Some(lock) = FileLock::try_acquire(&engine.places.pool_lock(&pool.key))? else {
            return Ok(());
        };
        let outcome = making.fill(&mut |_| ());
        lock.remove_while_held()?;
        match outcome {
            // Stop after one round. Otherwise leases that expire or end as fast as they are made would keep
            // us busy for ever.
            Ok(made) if !made.is_empty() => return Ok(()),
            Ok(_) => {}
            // The pool of the new images or programs is refilled when somebody takes a lease of it.
            Err(PoolError::Stale) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Acquires the lock of a pool, which another command may hold while filling it. An interrupt ends the wait.
fn lock(path: &Path, interrupts: &Interrupts) -> Result<FileLock, PoolError> {
    let taken = clock::poll_until(LOCK_LIMIT, || match FileLock::try_acquire(path) {
        Ok(Some(lock)) => Some(Ok(lock)),
        Ok(None) if interrupts.caught().is_some() => Some(Err(PoolError::Interrupted)),
        Ok(None) => None,
        Err(error) => Some(Err(error.into())),
    });
    taken.unwrap_or(Err(PoolError::Busy))
}

fn size(pool: &Pool) -> usize {
    usize::try_from(pool.size).unwrap_or(usize::MAX)
}

/// A pool being filled, with its lock held.
struct Making<'a> {
    engine: &'a Engine,
    order: &'a AcquireRequest,
    pool: &'a Pool,
    interrupts: &'a Interrupts,
}

impl Making<'_> {
    /// The waiting members.
    fn members(&self) -> Result<Vec<Member>, PoolError> {
        let mut members = pool::members(&self.engine.places)?;
        members.retain(|member| member.waits && member.pool == self.pool.key);
        Ok(members)
    }

    /// Makes leases until enough are waiting; returns the ids of the new ones.
    fn fill(&self, on_made: &mut dyn FnMut(&str)) -> Result<Vec<String>, PoolError> {
        self.sweep()?;
        let mut made = Vec::new();
        let wanted = size(self.pool).saturating_sub(self.members()?.len());
        loop {
            let count = self.members()?.len();
            if count >= size(self.pool) || made.len() >= wanted {
                return Ok(made);
            }
            let id = self.one(count)?;
            on_made(&id);
            made.push(id);
        }
    }

    /// Ends members of the same pool that were made from an earlier image or earlier programs.
    fn sweep(&self) -> Result<(), PoolError> {
        // List before checking the order, so that the list has no members newer than the order.
        let members = pool::members(&self.engine.places)?;
        if !is_current(self.engine, self.order, self.pool) {
            return Err(PoolError::Stale);
        }
        for member in members {
            if is_outdated(&member.pool, &self.pool.key) {
                pool::end(&self.engine.places, &member, actor(self.engine))?;
            }
        }
        Ok(())
    }

    /// Makes one lease in addition to the `count` waiting ones: from a template if one fits, otherwise by
    /// booting.
    fn one(&self, count: usize) -> Result<String, UnownedError> {
        let failed = |source| UnownedError::Machine {
            what: format!("only {count} of {} leases wait in the pool", self.pool.size),
            source,
        };
        let (started, limit) = (Instant::now(), self.pool.launch_timeout);
        let mut request = self.member()?;
        let source = warm::choose(self.engine, self.pool.warm, &mut request);
        let Source::Restored { key, token } = source else {
            return self.make(&request).map_err(failed);
        };
        request.launch_timeout = limit / 2;
        match self.make(&request) {
            Ok(id) => {
                warm::note_success(self.engine, &key);
                Ok(id)
            }
            Err(ClientError::Failed(failure, _)) if failure.not_restored && failure.leftovers.is_empty() => {
                if failure.blames_template {
                    warm::note_failure(self.engine, &key, &token);
                }
                let mut again = self.member()?;
                again.launch_timeout = limit.saturating_sub(started.elapsed()).max(limit / 2);
                self.make(&again).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn make(&self, request: &AcquireRequest) -> Result<String, ClientError> {
        client::start(self.engine, request)?.wait_pooled(self.interrupts, &mut |_| ())?;
        Ok(request.lease_id.clone())
    }

    /// The request for an unclaimed lease.
    fn member(&self) -> Result<AcquireRequest, UnownedError> {
        Ok(AcquireRequest {
            lease_id: unowned::lease_id()?,
            slug: None,
            // The order may be for a lease of another program, but pool members are unclaimed.
            external: None,
            keep: false,
            // The supervisor ends the lease in time; these limits are for a lease that lost its supervisor.
            idle: self.pool.max_age,
            ttl: self.pool.max_age + self.pool.launch_timeout,
            // The order may come from a lease restored from a template, with only the rest of its time limit.
            launch_timeout: self.pool.launch_timeout,
            start: Start::Boot,
            delete_on_release: true,
            pool: Some(Pool {
                member: true,
                ..self.pool.clone()
            }),
            failpoint: self.engine.failpoint.clone(),
            ..self.order.clone()
        })
    }
}

/// Whether `key` is the key of the pool of `current` before a change.
fn is_outdated(key: &str, current: &str) -> bool {
    key != current && key.get(..HALF) == current.get(..HALF)
}

fn actor(engine: &Engine) -> Actor<'_> {
    Actor {
        who: Who::Cli,
        failpoint: &engine.failpoint,
    }
}

/// How long a lease that is ending may take to disappear.
const ENDS_LIMIT: Duration = Duration::from_secs(10);

/// Ends every waiting pool member of this state directory and returns the ids. `on_ended` is called for each.
pub fn drain(
    engine: &Engine,
    interrupts: &Interrupts,
    on_ended: &mut dyn FnMut(&str),
) -> Result<Vec<String>, PoolError> {
    let places = &engine.places;
    let mut keys: Vec<String> = pool::members(places)?
        .into_iter()
        .map(|member| member.pool)
        .collect();
    keys.sort();
    keys.dedup();
    // Wait for running fills to finish, and keep new ones from starting until all pools are empty.
    let locks = keys
        .iter()
        .map(|key| lock(&places.pool_lock(key), interrupts))
        .collect::<Result<Vec<_>, _>>()?;
    let (mut ended, mut stay) = (Vec::new(), Vec::new());
    let mut failed = None;
    for member in pool::members(places)? {
        if interrupts.caught().is_some() {
            return Err(PoolError::Interrupted);
        }
        match pool::end(places, &member, actor(engine)) {
            // A member that another process holds may still be in the making, and would join the pool once it
            // is made.
            Ok(has_ended) if has_ended || pool::give_way(&member, &|| interrupts.caught().is_some()) => {
                on_ended(&member.stored.record.lease_id);
                ended.push(member.stored.record.lease_id);
            }
            Ok(_) => stay.push(member.stored.record.lease_id),
            // Go on with the others.
            Err(error) => failed = Some(error),
        }
    }
    for lock in locks {
        lock.remove_while_held()?;
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    // A member that is ending disappears in a moment, and a member taken meanwhile is a claimed lease.
    let settled = clock::poll_until(ENDS_LIMIT, || {
        match pool::members(places) {
            Ok(left) => stay.retain(|id| left.iter().any(|member| member.stored.record.lease_id == *id)),
            Err(error) => return Some(Err(error)),
        }
        (stay.is_empty() || interrupts.caught().is_some()).then_some(Ok(()))
    });
    settled.transpose()?;
    if stay.is_empty() {
        Ok(ended)
    } else {
        Err(PoolError::Stay { leases: stay })
    }
}

/// Ends pool members whose image or programs no longer exist here, and removes locks of dead fillers. `plan`
/// describes the current configuration, if known.
pub(crate) fn sweep(
    engine: &Engine,
    plan: Option<&FirecrackerPlan>,
    dry_run: bool,
) -> Result<Vec<Decision>, RecordError> {
    let members = pool::members(&engine.places)?;
    let mut decisions = Vec::new();
    if !members.is_empty() {
        let current = plan.and_then(|plan| {
            let request = unowned::request(engine, plan).ok()?;
            key(plan, &request).ok()
        });
        for member in members.iter().filter(|member| member.waits) {
            let record = &member.stored.record;
            let files = [&record.binary_path, &record.kernel_path, &record.source_rootfs];
            let gone = files.iter().any(|file| !Path::new(file).exists());
            let outdated = current
                .as_ref()
                .is_some_and(|current| is_outdated(&member.pool, current));
            if !gone && !outdated {
                continue;
            }
            let ended = (!dry_run).then(|| pool::end(&engine.places, member, actor(engine)));
            decisions.push(Decision {
                lease: record.lease_id.clone(),
                subject: Subject::Lease {
                    vmid: record.vmid.clone(),
                },
                remove: !matches!(ended, Some(Ok(false))),
                reason: "made_of_what_is_gone".to_owned(),
                error: ended.and_then(Result::err),
            });
        }
    }
    if !dry_run {
        for path in engine.places.pool_locks() {
            // A held lock belongs to a command that fills the pool.
            if let Ok(Some(lock)) = FileLock::try_acquire(&path) {
                // Ignore failures: the next cleanup tries again.
                lock.remove_while_held().ok();
            }
        }
    }
    Ok(decisions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_outdated_by_its_own_later_key_and_by_no_other() {
        let (one, later) = (
            "00000000000000aa-0000000000000001",
            "00000000000000aa-0000000000000002",
        );
        let other = "00000000000000bb-0000000000000002";
        assert!(is_outdated(one, later));
        assert!(!is_outdated(one, one) && !is_outdated(one, other) && !is_outdated("", later));
    }
}
