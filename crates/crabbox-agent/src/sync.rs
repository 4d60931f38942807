//! A sync, as the lease does it: look, clear the way, take, write down what was seen.
//!
//! It must never call a file unchanged whose inode does not carry the very times that it carried right after
//! the last sync. What is to go stays known until it is gone, and what a sync brings is known before it
//! comes, so that one that broke off is finished by the next.

mod lost;
mod patch;
mod whole;

use std::fs::File;
use std::io::BufRead as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use crabbox_agent_protocol::{PIECE, Reply, Request, Stream, SyncRequest};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::time::ClockId;

use crate::bytes::{Replacing, discard, moment, open, parent, show};
use crate::failure::{At as _, Failure};
use crate::index::marks::Marks;
use crate::index::{Tree, Work};
use crate::receive::{Into, receive};
use crate::record::{Head, Place, is_unchanged};
use crate::remove::remove_tree;
use crate::rows::{Coming, Rows, unread};
use crate::seed::{self, Came, Extent, State, go_dir};
use crate::seen::Dirs;
use crate::sights::ScanResults;
use crate::talk::{ClientMessage, Conversation, out_of_order};
use patch::Patch;
use whole::Whole;

/// A look at a tree before its client has said what it wants.
#[derive(Debug)]
pub(crate) struct Looked {
    place: Place,
    head: Option<Head>,
    /// Whether the tree is as the record has it.
    is_kept: bool,
}

/// Looks whether the tree is as the last sync left it.
pub(crate) fn look(lease_dir: &str, name: &str) -> Looked {
    let place = Place::new(lease_dir, name);
    let head = Head::load(&place);
    let is_kept = head.as_ref().is_some_and(|head| {
        // A sync that broke off may have brought what no record has; a tree that cannot be entered is not as
        // it was left.
        !place.of("pending").exists()
            && std::env::set_current_dir(&place.workdir).is_ok()
            && is_unchanged(&place, head)
    });
    Looked { place, head, is_kept }
}

impl Looked {
    /// Whether nothing is to be done.
    fn is_same(&self, request: &SyncRequest) -> Result<bool, Failure> {
        let head = self
            .head
            .as_ref()
            .filter(|head| self.is_kept && head.fingerprint == request.fingerprint);
        match (head, &request.seed) {
            (None, _) => Ok(false),
            (Some(_), None) => Ok(true),
            (Some(_), Some(seed)) => Ok(!seed::state(&self.place, seed)?.needed),
        }
    }

    /// Whether the changes since the record are enough.
    fn may_patch(&self, request: &SyncRequest) -> Option<&Head> {
        let base = |head: &&Head| {
            !request.base.is_empty()
                && head.fingerprint.split('.').next() == Some(&request.base)
                && head.fingerprint != request.fingerprint
        };
        self.head.as_ref().filter(|_| self.is_kept).filter(base)
    }
}

/// What there is to lay down when everything has come.
#[derive(Debug)]
struct PendingChanges {
    parts: u32,
    count: usize,
    unsettled: u64,
}

/// The two ways of a sync: by the whole manifest, or by what changed since the last one.
trait Way: Tree + Send {
    /// What was sent of the manifest.
    fn rows(&mut self) -> &mut Rows;
    /// The places of those that are to be sent.
    fn stale(&self) -> &[u32];
    /// Looks at what is there, and writes down what was seen.
    fn lay(&mut self) -> Result<PendingChanges, Failure>;
    /// Tells the Go program what of the tree a sync brought.
    fn tell(&mut self) -> Result<(), Failure>;
}

/// One conversation.
pub(crate) fn sync(
    talk: &mut Conversation,
    request: &SyncRequest,
    looked: Option<Looked>,
) -> Result<(), Failure> {
    let place = Place::new(&request.lease_dir, &request.name);
    let believed = !(request.reset || request.distrust);
    let looked = looked
        .filter(|looked| looked.place == place)
        .or_else(|| believed.then(|| look(&request.lease_dir, &request.name)))
        .filter(|_| believed);
    let head = match &looked {
        Some(looked) if looked.is_same(request)? => return talk.say(&Reply::Same {}),
        Some(looked) => looked.may_patch(request),
        None => None,
    };
    // The manifest goes into a file of the tree's.
    let lock = enter(&place)?;
    if let Some(head) = head {
        talk.say(&Reply::Patch {})?;
        let (rows, removed, unlike) = (manifest(talk, &place)?, talk.names()?, talk.names()?);
        occupy(&place, request.reset)?;
        let way = Patch::begin(&place, request, head, rows, removed, unlike)?;
        return bring(talk, &place, request, way, &lock).inspect(|()| lock.tidy(&place));
    }
    talk.say(&Reply::Differs {})?;
    let (rows, unlike) = (manifest(talk, &place)?, talk.names()?);
    occupy(&place, request.reset)?;
    let way = Whole::begin(&place, request, rows, unlike)?;
    bring(talk, &place, request, way, &lock).inspect(|()| lock.tidy(&place))
}

/// Permission bits of directories that are this user's alone.
const PRIVATE: u32 = 0o700;
/// Those of everybody else.
const OTHERS: u32 = 0o077;
/// Where a manifest is until it is what a sync is about to do.
const MANIFEST: &str = "tmp/manifest";

/// Takes a manifest.
fn manifest(talk: &mut Conversation, place: &Place) -> Result<Rows, Failure> {
    let path = place.of(MANIFEST);
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .at(&path)?;
    let mut coming = Coming::into(file, path);
    talk.pieces(|piece| coming.take(piece))?;
    coming.end()
}

/// Held for as long as a sync is at work in a tree.
struct Lock {
    /// Its end is the lock's.
    _file: std::os::fd::OwnedFd,
    /// The name of the directory in `tmp` for another program's files in the making.
    stage: String,
}

impl Lock {
    /// After a sync that failed, the other program may still be at work; the next sync removes what is left.
    fn tidy(&self, place: &Place) {
        std::fs::remove_dir(place.of("tmp").join(&self.stage)).ok();
    }
}

/// Makes a directory with those above it, for this user alone: on a shared host others need not read what is
/// worked on.
fn make_private(dir: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE)
        .create(dir)
        .at(dir)
}

/// Has a lease's directory that only this user can enter. One that stood there open is closed with the tree
/// in it, and what is above them is left alone: a work root may be the user's home. Behind a closed one the
/// tree's own mode is up to those who work in it: a command may open it for a container that runs as somebody
/// else.
fn make_lease(lease: &Path, workdir: &Path) -> Result<(), Failure> {
    make_private(lease)?;
    if close(lease)? {
        close(workdir)?;
    }
    Ok(())
}

/// The same, and the tree in it, empty where there is none.
pub(crate) fn make_tree(workdir: &Path) -> Result<(), Failure> {
    if let Some(lease) = workdir.parent() {
        make_lease(lease, workdir)?;
    }
    make_private(workdir)
}

/// Closes a directory of this user's to others; whether it was open. A link, and what belongs to somebody
/// else, is not ours to close, and a file system without modes has nothing to close.
fn close(dir: &Path) -> Result<bool, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = match rustix::fs::openat(CWD, dir, flags, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(errno).at(dir),
    };
    let stat = rustix::fs::fstat(&handle).at(dir)?;
    let is_ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if !is_ours || stat.st_mode & OTHERS == 0 {
        return Ok(false);
    }
    Ok(rustix::fs::fchmod(&handle, Mode::from_raw_mode(stat.st_mode & 0o7000 | PRIVATE)).is_ok())
}

/// Makes the tree its own, and goes there; with `is_reset` it is removed before. Only when all that was to be
/// heard has come whole: whoever is not heard to the end has changed nothing.
fn occupy(place: &Place, is_reset: bool) -> Result<(), Failure> {
    if is_reset {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lease = rustix::fs::openat(CWD, &place.lease, flags, Mode::empty()).at(&place.lease)?;
        remove_tree(&lease, Path::new(&place.name))?;
        for leaf in ["index", "pending", "seed", "unlike", "hollow", "attributes"] {
            discard(&place.of(leaf))?;
        }
        seed::forget_aside(place);
    }
    make_directory(&place.workdir)?;
    std::env::set_current_dir(&place.workdir).at(&place.workdir)
}

/// Makes a directory, where none is, for this user alone.
fn make_directory(dir: &Path) -> Result<(), Failure> {
    match std::fs::DirBuilder::new().mode(PRIVATE).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            if dir.symlink_metadata().at(dir)?.is_dir() {
                Ok(())
            } else {
                Err(Failure::Refused(format!("{} is not a directory", show(dir))))
            }
        }
        made => made.at(dir),
    }
}

/// Makes what is kept of the tree's syncs, and keeps others out.
fn enter(place: &Place) -> Result<Lock, Failure> {
    make_lease(&place.lease, &place.workdir)?;
    let tmp = place.of("tmp");
    for dir in [&place.lease.join(".crabbox-sync"), &place.meta, &tmp] {
        make_directory(dir)?;
    }
    let file = place.of("lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = rustix::fs::openat(CWD, &file, flags, Mode::from_raw_mode(0o600)).at(&file)?;
    // The far side of a client that died may still be at work here.
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).at(&file)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(CWD, &tmp, flags, Mode::empty()).at(&tmp)?;
    for entry in std::fs::read_dir(&tmp).at(&tmp)? {
        remove_tree(&handle, Path::new(&entry.at(&tmp)?.file_name()))?;
    }
    // No two of one tree: the lock lies between them.
    let stage = moment();
    make_directory(&tmp.join(&stage))?;
    Ok(Lock { _file: lock, stage })
}

/// Everything behind the lists: what is to be sent, the repository, the end.
fn bring(
    talk: &mut Conversation,
    place: &Place,
    request: &SyncRequest,
    mut way: impl Way,
    lock: &Lock,
) -> Result<(), Failure> {
    let mut work = Work::of(place, &mut way)?;
    let mut state = match &request.seed {
        Some(seed) => seed::state(place, seed)?,
        None => State::default(),
    };
    if request.seed.is_some() && !state.needed && work.is_lost(place)? {
        state.needed = true;
    }
    if let Some(seed) = request.seed.as_ref().filter(|_| state.needed) {
        seed::make_usable(place, seed, &mut state);
    }
    // Until one has come: in the index of another commit nothing is to look unchanged.
    work.is_failed = state.needed;
    let count = way.rows().len();
    let all = way.stale().len() == count && count > 0;
    if way.stale().is_empty() && !state.needed {
        let laid = way.lay()?;
        return finish(talk, place, request, &mut way, &work, &laid);
    }
    talk.say(&Reply::Stale {
        all,
        seed: state.needed,
        have: state.have,
        have_base: state.have_base,
        lacks: state.lacks,
        stage: lock.stage.clone(),
    })?;
    if !all {
        for numbers in way.stale().chunks(PIECE / size_of::<u32>()) {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
            talk.send(Stream::Data, &bytes)?;
        }
        talk.say(&Reply::End {})?;
    }
    let mut laid = None;
    loop {
        match talk.hear()? {
            ClientMessage::Request(Request::Pack { lacks, based }) => {
                let came = Came::take(talk, place, Extent { lacks, based });
                let done = std::thread::scope(|scope| {
                    // Git needs the processor, and the look the disk.
                    let laying = scope.spawn(|| way.lay());
                    let done = came.and_then(|came| apply(place, request, &mut work, &came));
                    // A thread of ours that panicked has ended the process.
                    laid = laying.join().ok();
                    done
                });
                talk.say(&match done {
                    Ok(()) => Reply::Seeded {},
                    Err(failure) => Reply::Unseeded { why: failure.why() },
                })?;
            }
            ClientMessage::Request(Request::Finish {}) => {
                let laid = match laid.take() {
                    Some(laid) => laid?,
                    None => way.lay()?,
                };
                return finish(talk, place, request, &mut way, &work, &laid);
            }
            ClientMessage::Request(
                first @ (Request::Directory { .. }
                | Request::File { .. }
                | Request::Link { .. }
                | Request::Received {}),
            ) => {
                let rows = way.rows();
                let into = Into {
                    root: Path::new(""),
                    dirs: Dirs::default(),
                    aside: place.of("tmp/file"),
                    name: &mut |number| Ok(rows.get(number)?.map(|row| row.path.to_owned())),
                };
                receive(talk, into, first)?;
                talk.say(&Reply::Received {})?;
            }
            ClientMessage::Request(other) => return Err(out_of_order(&other)),
            ClientMessage::Piece => {
                return Err(Failure::Refused("the client sent a piece of nothing".to_owned()));
            }
        }
    }
}

/// Makes the repository what it is to be.
fn apply(place: &Place, request: &SyncRequest, work: &mut Work, came: &Came) -> Result<(), Failure> {
    work.is_failed = true;
    let Some(seed) = &request.seed else {
        return Err(Failure::Refused(
            "the client sent a repository that it did not want".to_owned(),
        ));
    };
    let marks = Marks::parse(&came.marks)?;
    came.apply(place, seed)?;
    work.extent = came.extent.clone();
    seed::keep_hollow(place, &marks.hollow().collect::<Vec<_>>())?;
    work.anew = Some(marks);
    work.is_failed = false;
    Ok(())
}

fn finish(
    talk: &mut Conversation,
    place: &Place,
    request: &SyncRequest,
    way: &mut impl Way,
    work: &Work,
    laid: &PendingChanges,
) -> Result<(), Failure> {
    let unseeded = work.finish(place, request.seed.as_ref(), way)?;
    // Only a sync that brought everything is one that the next can go on from.
    let head = Head {
        fingerprint: if laid.unsettled == 0 {
            request.fingerprint.clone()
        } else {
            String::new()
        },
        parts: laid.parts,
        count: laid.count,
        gone: way.rows().gone.clone(),
    };
    head.write(place)?;
    if laid.unsettled == 0 {
        discard(&place.of("pending"))?;
    }
    way.tell()?;
    talk.say(&Reply::Done {
        unsettled: laid.unsettled,
        unseeded,
    })
}

/// How every path looks now, by its number; those that are not what was to be sent are left out, and so sent
/// again. A path that was left alone keeps what was seen of it: if it is not so any more, the next look finds
/// that out.
fn settle(
    place: &Place,
    rows: &mut Rows,
    mut kept: Option<&mut ScanResults>,
) -> Result<ScanResults, Failure> {
    let mut now = ScanResults::new(&place.of("tmp/now"))?;
    let (tick, mut dirs, mut racy) = (tick(), Dirs::default(), Vec::new());
    for number in 0..rows.len() {
        let was = match &mut kept {
            Some(kept) => kept.get(number)?,
            None => None,
        };
        let row = rows.get(number)?.ok_or_else(unread)?;
        let seen = if was.is_some() {
            was.filter(|_| dirs.own(parent(row.path)))
        } else {
            // Before the look: what is written behind it cannot be older.
            let edge = now_in_ticks();
            let seen = dirs.look(row.path);
            if seen.is_some_and(|seen| seen.changed.nanos() + tick >= edge) {
                racy.push(number);
            }
            seen.filter(|seen| row.is(seen))
        };
        now.put(number, seen.as_ref())?;
    }
    if !racy.is_empty() {
        // A write right after the look must not be able to carry the change time that was just seen.
        std::thread::sleep(Duration::from_nanos(u64::try_from(2 * tick).unwrap_or(0)));
        let mut again = Dirs::default();
        for number in racy {
            let row = rows.get(number)?.ok_or_else(unread)?;
            let seen = again.look(row.path).filter(|seen| row.is(seen));
            now.put(number, seen.as_ref())?;
        }
    }
    Ok(now)
}

/// How far apart two change times are at least that are not one, in nanoseconds: a tick of the kernel, see
/// clock_getres(2).
fn tick() -> i128 {
    let tick = rustix::time::clock_getres(ClockId::RealtimeCoarse);
    let tick = nanos(tick);
    // The slowest kernel has a hundred in a second, the fastest ones a thousand.
    tick.clamp(1_000_000, 10_000_000)
}

/// The change time that a write would have now, in nanoseconds of the unix epoch.
fn now_in_ticks() -> i128 {
    nanos(rustix::time::clock_gettime(ClockId::RealtimeCoarse))
}

fn nanos(time: rustix::time::Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// Tells the Go program what of the tree a sync brought, if it has ever been here.
fn tell_go(place: &Place, put: impl FnOnce(&File, &Path) -> Result<(), Failure>) -> Result<(), Failure> {
    let go = go_dir(place);
    if go.is_dir() || go.ends_with(".git/crabbox") {
        seed::make_dirs(&go)?;
        let manifest = go.join("sync-manifest");
        let new = Replacing::begin(&manifest)?;
        put(&new.file, &new.path)?;
        new.put(&manifest)?;
    }
    Ok(())
}

/// Gives every path that the Go program synced last to `take`.
fn each_of_go(place: &Place, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let manifest = go_dir(place).join("sync-manifest");
    let Some(mut from) = open(&manifest)? else {
        return Ok(());
    };
    let mut path = Vec::new();
    while from.read_until(0, &mut path).at(&manifest)? > 0 {
        // The last one need not have it.
        path.pop_if(|byte| *byte == 0);
        take(&path)?;
        path.clear();
    }
    Ok(())
}

/// The Go program would believe that nothing had changed.
fn drop_go_fingerprint(place: &Place) -> Result<(), Failure> {
    match discard(&go_dir(place).join("sync-fingerprint")) {
        Err(failure) if failure.is(rustix::io::Errno::NOTDIR) => Ok(()),
        done => done,
    }
}

/// Whether `take` says so of a path of `rows` with one of these numbers.
fn any_named(rows: &mut Rows, numbers: &[u32], take: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Failure> {
    for number in numbers {
        let row = rows.get(usize::try_from(*number).unwrap_or(usize::MAX))?;
        if row.is_some_and(|row| take(row.path)) {
            return Ok(true);
        }
    }
    Ok(false)
}
