//! Leases that are made ahead of their use: which of them a command may take, and how a pool is filled, swept and drained.
//!
//! Members of a pool are alike in all that cannot be given to a lease later. Nothing here may end a lease that is somebody's, and
//! nothing of a pool may keep somebody from a lease.

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

/// How long another command may be filling the pool that somebody wants filled or drained.
const LOCK_LIMIT: Duration = Duration::from_mins(5);
/// How many hexadecimal digits of each half of a key count: 64 bits.
const HALF: usize = 16;

/// Why a pool is not as it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A lease was not made.
    #[error(transparent)]
    Unowned(#[from] UnownedError),
    /// None is configured.
    #[error("firecracker.pool is 0: no leases are kept ready")]
    None,
    /// It cannot be told what its leases have alike.
    #[error("cannot look at what the leases are made of")]
    Facts(#[source] std::io::Error),
    /// Its lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Somebody else fills it.
    #[error("another command fills the pool")]
    Busy,
    /// What its leases are made of is another one by now.
    #[error("the image or the programs of the pool changed meanwhile; nothing was made or ended")]
    Stale,
    /// The user interrupted.
    #[error("interrupted; what was made or ended until then stays so")]
    Interrupted,
    /// The records cannot be listed.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A lease could not be ended.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// Leases that wait still: somebody is at them.
    #[error("somebody is at {}, which may wait in the pool still", .leases.join(", "))]
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
                vec!["set firecracker.pool in your own configuration, or say --firecracker-pool 2".to_owned()]
            }
            Self::Busy => vec!["try again when it is done".to_owned()],
            Self::Stay { .. } => vec!["`crabbox pool drain` again, when it is done".to_owned()],
            Self::Stale => vec!["fill it again".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// The pool of a lease that `request` asks for; `None` where none is kept.
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

/// The key of a pool: first what was configured, then what that means on this host now. Two with the same first half and different second
/// ones are the same pool before and after a change of its image or programs.
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

/// The second half of a key: what `request` means on this host now.
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

/// Whether what `order` asks for is still what its pool stands for: images and programs may have changed since it was written.
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
    // What cannot be looked at is not what it was.
    is_same_image && found(order).is_ok_and(|found| pool.key.get(HALF + 1..) == Some(&found))
}

/// The ids of leases that may be taken from the pool `key`, the oldest first. One that cannot be listed is one that is not taken.
pub(crate) fn waiting(engine: &Engine, key: &str) -> Vec<String> {
    let members = pool::members(&engine.places).unwrap_or_default();
    let waiting = members
        .into_iter()
        .filter(|member| member.waits && member.pool == key);
    waiting.map(|member| member.stored.record.lease_id).collect()
}

/// What became of a wish to have a pool full.
#[derive(Debug)]
pub struct Filled {
    /// The pool's key.
    pub key: String,
    /// How many leases there were to be.
    pub size: u32,
    /// The leases that wait, the oldest first.
    pub members: Vec<Member>,
    /// The ids of those that were made for it.
    pub made: Vec<String>,
}

/// Fills the pool of leases of `plan`, and waits until that is done. `on_made` hears of each lease.
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

/// Fills the pool of `order` up for whoever comes next, unless somebody is at it: started by a lease that has become somebody's.
pub fn refill(engine: &Engine, order: &AcquireRequest, interrupts: &Interrupts) -> Result<(), PoolError> {
    let Some(pool) = &order.pool else { return Ok(()) };
    // One that has only come of age was taken by nobody: a pool that is not used any more is empty after that time.
    if !pool.member {
        pool::tell_used(&pool::members(&engine.places)?, &pool.key);
    }
    let making = Making {
        engine,
        order,
        pool,
        interrupts,
    };
    // Looked at again after the lock is given up: whoever found it held has left the lease that it took to us.
    while making.members()?.len() < size(pool) {
        let Some(lock) = FileLock::try_acquire(&engine.places.pool_lock(&pool.key))? else {
            return Ok(());
        };
        let outcome = making.fill(&mut |_| ());
        lock.remove_while_held()?;
        match outcome {
            // Leases that come of age or end as fast as they are made would be made for ever.
            Ok(made) if !made.is_empty() => return Ok(()),
            Ok(_) => {}
            // Whoever takes a lease of what there is now has that pool filled up.
            Err(PoolError::Stale) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The lock of a pool, which somebody may hold who fills it; an interrupt ends the wait.
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

/// Somebody who fills a pool, whose lock is held.
struct Making<'a> {
    engine: &'a Engine,
    order: &'a AcquireRequest,
    pool: &'a Pool,
    interrupts: &'a Interrupts,
}

impl Making<'_> {
    /// Those that wait.
    fn members(&self) -> Result<Vec<Member>, PoolError> {
        let mut members = pool::members(&self.engine.places)?;
        members.retain(|member| member.waits && member.pool == self.pool.key);
        Ok(members)
    }

    /// Makes leases until enough of them wait; returns the ids of those that it made.
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

    /// Ends leases of the same pool that were made of something else than there is now.
    fn sweep(&self) -> Result<(), PoolError> {
        // Listed before it is asked whether the order still holds: one that is newer than the order is not among them then.
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

    /// Makes one lease beside `count` that wait: of a template where one fits, and else by a boot.
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

    /// What is asked for of a lease that is nobody's yet.
    fn member(&self) -> Result<AcquireRequest, UnownedError> {
        Ok(AcquireRequest {
            lease_id: unowned::lease_id()?,
            slug: None,
            // The order may be of another program's lease; what waits is nobody's.
            external: None,
            keep: false,
            // Its supervisor ends it in time; these are for whoever finds it without one.
            idle: self.pool.max_age,
            ttl: self.pool.max_age + self.pool.launch_timeout,
            // The order may be of a lease that came of a template, within what was left of its time.
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

/// Whether `key` is that of the same pool as `current` before something changed.
fn is_outdated(key: &str, current: &str) -> bool {
    key != current && key.get(..HALF) == current.get(..HALF)
}

fn actor(engine: &Engine) -> Actor<'_> {
    Actor {
        who: Who::Cli,
        failpoint: &engine.failpoint,
    }
}

/// How long a lease that is ending may take until it is gone.
const ENDS_LIMIT: Duration = Duration::from_secs(10);

/// Ends every lease that waits in a pool of this state directory, and returns the ids; `on_ended` hears of each.
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
    // Whoever fills one is let finish, and nobody begins to until all are empty.
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
            // One that somebody is at may be in the making still, and would wait once it is made.
            Ok(has_ended) if has_ended || pool::give_way(&member, &|| interrupts.caught().is_some()) => {
                on_ended(&member.stored.record.lease_id);
                ended.push(member.stored.record.lease_id);
            }
            Ok(_) => stay.push(member.stored.record.lease_id),
            // The others go all the same.
            Err(error) => failed = Some(error),
        }
    }
    for lock in locks {
        lock.remove_while_held()?;
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    // One that is ending is gone in a moment, and one that has been taken meanwhile is somebody's.
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

/// Ends leases in pools that were made of what is not there any more, and removes locks of makers that died. `plan` says what there is
/// now, where that is known.
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
            // One that is held belongs to somebody who fills the pool.
            if let Ok(Some(lock)) = FileLock::try_acquire(&path) {
                // An empty file that stays is tried again by the next cleanup.
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
