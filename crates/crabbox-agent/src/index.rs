//! Updates git's index so that a file which is clean on the client is clean here: git trusts the times that
//! its index holds for a file.
//!
//! A file that the client's git considered unchanged gets the times of the file that arrived, so git does not
//! look into it; the filter (or whatever else made the two equal on the client) need not exist here. All
//! other entries get no times, and git compares them. The format is that of gitformat-index(5), versions 2
//! and 3; if the guest left another version, the index is rebuilt.

mod entries;
pub(crate) mod marks;
mod signed;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;
use sha2::{Digest as _, Sha256};

use crate::bytes::{BUFFER, Replacing, discard, listed, parent, path, push, read, write};
use crate::failure::{At as _, Failure};
use crate::git::{Feed, INDEX, must_git};
use crate::names::Names;
use crate::record::Place;
use crate::seed::{Extent, hex, known_index, write_seed};
use crate::seen::{Dirs, FileState};
use entries::{EXTENDED, Entries, Entry, Part, number};
use marks::{ASSUMED, INTENDED, Marks, SKIPPED};
use signed::{Hash, Signed};

/// Bits of an entry's flags.
const VALID: u16 = 0x8000;
const STAGE: u16 = 0x3000;
/// Bits of an entry's extended flags.
const BIT_SKIPPED: u16 = 0x4000;
const BIT_INTENDED: u16 = 0x2000;
const GITLINK: u32 = 0o160_000;

/// The length of the stat(2) data of an entry, in bytes.
const STAT: usize = 40;

/// The length of the header, in bytes.
const HEAD: u64 = 12;

/// Up to this many paths are passed to git by name; with more, git is asked about all paths.
const ASKED: usize = 1000;

/// An index file.
#[derive(Debug)]
struct Index {
    file: File,
    count: u32,
    /// Where the entries end; `stop` is where the checksum begins.
    end: u64,
    stop: u64,
    /// The length of an object id: 20 or 32 bytes.
    ids: usize,
    /// Whether any entry has extended flags.
    is_extended: bool,
    /// Digest of everything but the times, which change whenever git refreshes the index.
    digest: String,
}

/// New contents of an entry.
struct Change {
    times: [u8; STAT],
    flags: u16,
    more: u16,
}

/// Describes an error from reading an index.
fn short(error: std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Failure::Refused("git's index ends too early".to_owned());
    }
    Failure::System {
        path: Path::new(INDEX).to_owned(),
        source: error,
    }
}

impl Index {
    fn load() -> Result<Self, Failure> {
        let path = Path::new(INDEX);
        Self::read(File::open(path).at(path)?)
    }

    /// Reads and checks the whole index, so that later reads can rely on it.
    fn read(file: File) -> Result<Self, Failure> {
        let length = file.metadata().map_err(short)?.len();
        let (ids, stop) = [20, 32]
            .into_iter()
            .find_map(|ids| match checks(&file, length, ids) {
                Ok(is_so) => is_so.map(|stop| Ok((ids, stop))),
                Err(error) => Some(Err(short(error))),
            })
            .ok_or_else(|| Failure::Refused("git's index has another checksum than its own".to_owned()))??;
        let mut head = [0; 12];
        file.read_exact_at(&mut head, 0).map_err(short)?;
        let [version, count] = [4, 8].map(|at| number(&head, at).unwrap_or(0));
        if !head.starts_with(b"DIRC") || !matches!(version, 2 | 3) {
            return Err(Failure::Refused(format!("git's index has version {version}")));
        }
        let (mut hash, mut is_extended, mut words) = (Sha256::new(), false, Vec::new());
        let mut entries = Entries::of(&file, (HEAD, stop), count, ids);
        let mut is_first = true;
        while let Some(entry) = entries.entry().map_err(short)? {
            words.clear();
            if !is_first {
                words.push(0);
            }
            words.extend_from_slice(&entry.stat[24..28]);
            words.push(0);
            entry.words(&mut words, entry.flags, entry.more);
            hash.update(&words);
            is_extended |= entry.flags & EXTENDED != 0;
            is_first = false;
        }
        let end = entries.at;
        Ok(Self {
            file,
            count,
            end,
            stop,
            ids,
            is_extended,
            digest: hex(&hash.finalize()),
        })
    }

    fn entries(&self) -> Entries<'_> {
        Entries::of(&self.file, (HEAD, self.stop), self.count, self.ids)
    }

    /// Writes the index to `new`, with each entry changed as `change` says; `extended` if any entry is to
    /// have extended flags.
    fn write(
        &self,
        new: &Replacing,
        extended: bool,
        mut change: impl FnMut(&Entry) -> Result<Option<Change>, Failure>,
    ) -> Result<(), Failure> {
        let mut out = Signed::new(&new.file, self.ids);
        let mut words = b"DIRC".to_vec();
        words.extend_from_slice(&(if extended { 3_u32 } else { 2 }).to_be_bytes());
        words.extend_from_slice(&self.count.to_be_bytes());
        out.put(&words).at(&new.path)?;
        let mut entries = self.entries();
        while let Some(entry) = entries.entry().map_err(short)? {
            words.clear();
            if let Some(Change { times, flags, more }) = change(entry)? {
                words.extend_from_slice(&times);
                let is_extended = if more == 0 { 0 } else { EXTENDED };
                entry.words(&mut words, flags & !EXTENDED | is_extended, more);
            } else {
                words.extend_from_slice(&entry.stat);
                entry.words(&mut words, entry.flags, entry.more);
            }
            words.extend_from_slice(&[0; 8][..8 - words.len() % 8]);
            out.put(&words).at(&new.path)?;
        }
        let (at, end) = self.trees()?;
        let (mut trees, mut chunk) = (Part::of(&self.file, at, end), vec![0; BUFFER]);
        loop {
            match trees.read(&mut chunk).map_err(short)? {
                0 => return out.end().at(&new.path),
                count => out.put(&chunk[..count]).at(&new.path)?,
            }
        }
    }

    /// Where the TREE extension (the trees of directories) is. The other extensions are dropped: they are
    /// hints, and some hold file offsets.
    fn trees(&self) -> Result<(u64, u64), Failure> {
        let (mut at, mut head) = (self.end, [0; 8]);
        while at + 8 <= self.stop {
            self.file.read_exact_at(&mut head, at).map_err(short)?;
            let size = number(&head, 4).unwrap_or(0);
            let next = at.saturating_add(8).saturating_add(size.into()).min(self.stop);
            if head.starts_with(b"TREE") {
                return Ok((at, next));
            }
            at = next;
        }
        Ok((self.stop, self.stop))
    }
}

/// Where the checksum begins, if the file ends with a valid checksum of `ids` bytes.
fn checks(file: &File, length: u64, ids: usize) -> std::io::Result<Option<u64>> {
    let Some(stop) = length.checked_sub(ids as u64) else {
        return Ok(None);
    };
    let (mut hash, mut part, mut chunk) = (Hash::new(ids), Part::of(file, 0, stop), vec![0; BUFFER]);
    loop {
        match part.read(&mut chunk)? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    let mut told = vec![0; ids];
    file.read_exact_at(&mut told, stop)?;
    Ok((hash.end() == told).then_some(stop))
}

/// The stat(2) data that the index keeps of a file: the low 32 bits of each field.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the format keeps the low 32 bits"
)]
fn times_of(stat: &Stat, mode: u32) -> [u8; STAT] {
    let words = [
        stat.st_ctime as u32,
        stat.st_ctime_nsec as u32,
        stat.st_mtime as u32,
        stat.st_mtime_nsec as u32,
        stat.st_dev as u32,
        stat.st_ino as u32,
        mode,
        stat.st_uid,
        stat.st_gid,
        stat.st_size as u32,
    ];
    let mut bytes = [0; STAT];
    for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// Reads these bytes as an index.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_bytes(bytes: &[u8]) {
    use std::io::Write as _;
    let Ok(file) = rustix::fs::memfd_create("index", rustix::fs::MemfdFlags::CLOEXEC) else {
        return;
    };
    let mut file = File::from(file);
    // With a wrong checksum, nothing else would be read.
    let mut hash = Hash::new(20);
    hash.update(bytes);
    if file
        .write_all(bytes)
        .and_then(|()| file.write_all(&hash.end()))
        .is_ok()
        && let Ok(index) = Index::read(file)
    {
        assert!(index.end <= index.stop);
        index.trees().ok();
        let mut entries = index.entries();
        while let Ok(Some(entry)) = entries.entry() {
            entry.mode();
        }
    }
}

/// What the index needs to know from a sync.
pub(crate) trait Tree {
    /// The paths whose content differs from git's index.
    fn unlike(&self) -> Arc<Names>;
    /// Whether this sync sends a path.
    fn sends(&mut self, path: &[u8]) -> Result<bool, Failure>;
    /// Calls `take` with each path that this sync sends until it returns true; returns whether it did.
    fn any_sent(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, Failure>;
    /// What was seen at a path after everything had arrived; `None` if the path is not part of this tree.
    fn known(&mut self, path: &[u8]) -> Result<Option<FileState>, Failure>;
}

/// What a sync has to do about the index.
#[derive(Debug)]
pub(crate) struct Work {
    /// Paths that the last sync left without times.
    before: Names,
    /// Paths that this sync is to leave without times.
    unlike: Arc<Names>,
    /// Set if the index was rebuilt, with the client's flags for its entries.
    pub(crate) anew: Option<Marks>,
    /// How much of the repository came with it.
    pub(crate) extent: Extent,
    /// The index of this commit could not be made; in another index, no file may look unchanged.
    pub(crate) is_failed: bool,
    has_some: bool,
}

/// Files that git would have to compare because they are not older than the index ("racily clean").
#[derive(Debug, Default)]
struct RacilyClean {
    names: Names,
    /// When each was modified, unix seconds.
    modified: Vec<u32>,
}

impl Work {
    pub(crate) fn of(place: &Place, tree: &mut dyn Tree) -> Result<Self, Failure> {
        let before = Names::of(read(&place.of("unlike"))?)?;
        let unlike = tree.unlike();
        let mut has_some = before.iter().any(|path| !unlike.contains(path));
        for path in unlike.iter().filter(|path| !before.contains(path)) {
            has_some = has_some || !tree.sends(path)?;
        }
        let has_some = has_some || tree.any_sent(&mut |path| !unlike.contains(path))?;
        Ok(Self {
            before,
            unlike,
            anew: None,
            extent: Extent::default(),
            is_failed: false,
            has_some,
        })
    }

    /// Whether a path is to get the times of its file.
    fn trusts(&self, tree: &mut dyn Tree, path: &[u8]) -> Result<bool, Failure> {
        Ok(!self.unlike.contains(path) && (self.before.contains(path) || tree.sends(path)?))
    }

    /// Whether a path is to lose its times.
    fn doubts(&self, tree: &mut dyn Tree, path: &[u8]) -> Result<bool, Failure> {
        Ok(self.unlike.contains(path) && !self.before.contains(path) && !tree.sends(path)?)
    }

    /// Whether there is work to do, but the index is not as the last sync left it.
    pub(crate) fn is_lost(&self, place: &Place) -> Result<bool, Failure> {
        if !self.has_some {
            return Ok(false);
        }
        let known = known_index(place)?;
        Ok(Index::load().ok().map(|index| index.digest) != known)
    }

    /// Updates the index, once the files have arrived. A failure does not fail the sync; it is returned as
    /// text to report.
    pub(crate) fn finish(
        &self,
        place: &Place,
        seed: Option<&crabbox_agent_protocol::Seed>,
        tree: &mut dyn Tree,
    ) -> Result<Option<String>, Failure> {
        let Some(seed) = seed.filter(|_| !self.is_failed) else {
            return Ok(None);
        };
        match self.try_finish(place, seed, tree) {
            Ok(()) => Ok(None),
            Err(failure) => {
                discard(&place.of("seed"))?;
                Ok(Some(failure.why()))
            }
        }
    }

    fn try_finish(
        &self,
        place: &Place,
        seed: &crabbox_agent_protocol::Seed,
        tree: &mut dyn Tree,
    ) -> Result<(), Failure> {
        if self.anew.is_some() || self.has_some {
            let index = Index::load()?;
            let late = self.write(&index, tree)?;
            outlive(&late)?;
            if let Some(marks) = &self.anew {
                let digest = if marks.is_empty() {
                    index.digest
                } else {
                    Index::load()?.digest
                };
                write_seed(place, seed, &self.extent, &digest)?;
            }
        }
        let mut list = Vec::new();
        for path in self.unlike.iter() {
            push(&mut list, path);
        }
        write(&place.of("unlike"), &[&list])?;
        for hollow in listed(&read(&place.of("hollow"))?) {
            make_directory(hollow)?;
        }
        Ok(())
    }

    fn write(&self, index: &Index, tree: &mut dyn Tree) -> Result<RacilyClean, Failure> {
        let file = Path::new(INDEX);
        let seconds = |meta: std::io::Result<std::fs::Metadata>| -> Result<u32, Failure> {
            Ok(u32::try_from(meta.at(file)?.mtime()).unwrap_or(u32::MAX))
        };
        let written = seconds(file.metadata())?;
        let new = Replacing::begin(file)?;
        // The new index will not be older than this.
        let since = seconds(new.file.metadata())?;
        let (mut dirs, mut late, mut modified) = (Dirs::default(), Vec::new(), Vec::new());
        index.write(&new, self.is_extended(index)?, |entry| {
            let name = entry.name.as_slice();
            let (mut flags, mut more) = (entry.flags, entry.more);
            let is_staged = flags & STAGE != 0;
            let (trust, doubt) = if let Some(all) = &self.anew {
                let marks = all.of(name);
                if marks & ASSUMED != 0 {
                    flags |= VALID;
                }
                if marks & SKIPPED != 0 {
                    more |= BIT_SKIPPED;
                }
                if marks & INTENDED != 0 {
                    more |= BIT_INTENDED;
                }
                (!self.unlike.contains(name), marks != 0)
            } else {
                // Git compares a file that is not older than the index. Such a file must not become trusted
                // just because it is older than the new index.
                let late = entry.modified() >= written;
                (
                    self.trusts(tree, name)?,
                    self.doubts(tree, name)? || (late && !is_staged),
                )
            };
            let mode = entry.mode();
            let times = if trust && !is_staged && mode != GITLINK {
                times_if_known(&mut dirs, name, tree.known(name)?, mode)
            } else {
                None
            };
            let times = match times {
                Some((times, at)) => {
                    if at >= since {
                        push(&mut late, name);
                        modified.push(at);
                    }
                    times
                }
                None if trust || doubt => {
                    let mut none = [0; STAT];
                    none[24..28].copy_from_slice(&mode.to_be_bytes());
                    none
                }
                None => return Ok(None),
            };
            Ok(Some(Change { times, flags, more }))
        })?;
        new.put(file)?;
        let written = seconds(file.metadata())?;
        let mut still = Vec::new();
        for (name, _) in listed(&late).zip(&modified).filter(|(_, at)| **at >= written) {
            push(&mut still, name);
        }
        modified.retain(|at| *at >= written);
        // The names are in order already: git sorts entries by bytes, as we do.
        Ok(RacilyClean {
            names: Names::of(still)?,
            modified,
        })
    }

    /// Whether any entry has extended flags, or is to get some.
    fn is_extended(&self, index: &Index) -> Result<bool, Failure> {
        if let Some(marks) = self.anew.as_ref().filter(|marks| !marks.is_empty()) {
            let mut entries = index.entries();
            while let Some(entry) = entries.entry().map_err(short)? {
                if marks.of(&entry.name) & (SKIPPED | INTENDED) != 0 {
                    return Ok(true);
                }
            }
        }
        Ok(index.is_extended)
    }
}

/// The stat data of a file for the index, if the file is still as this sync saw it, and its modification
/// time.
fn times_if_known(
    dirs: &mut Dirs,
    name: &[u8],
    known: Option<FileState>,
    mode: u32,
) -> Option<([u8; STAT], u32)> {
    let known = known?;
    let stat = dirs.stat(name).ok()?;
    if FileState::of_stat(&stat) != known {
        return None;
    }
    let times = times_of(&stat, mode);
    let modified = number(&times, 8)?;
    Some((times, modified))
}

/// Makes the index younger than those of these files that git finds changed when it compares them. A file
/// modified in the second in which the index is written would look unchanged, so wait until that second has
/// passed.
fn outlive(late: &RacilyClean) -> Result<(), Failure> {
    if late.modified.is_empty() {
        return Ok(());
    }
    let mut args = vec!["--literal-pathspecs", "diff-files", "--name-only", "-z", "--"];
    // A name that is not UTF-8 cannot be passed as an argument; then ask about all paths.
    let names = late.names.iter().map(|name| std::str::from_utf8(name).ok());
    if late.modified.len() <= ASKED {
        args.extend(names.collect::<Option<Vec<_>>>().unwrap_or_default());
    }
    let asked = must_git(&args, &Feed::Nothing)?;
    let modified = |name| late.modified.get(late.names.place(name)?);
    let Some(youngest) = listed(&asked).filter_map(modified).max() else {
        return Ok(());
    };
    let younger = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(*youngest) + 1);
    let left = younger.duration_since(SystemTime::now()).unwrap_or_default();
    std::thread::sleep(left.min(Duration::from_secs(1)));
    let now = SystemTime::now().max(younger);
    let file = std::fs::File::options()
        .write(true)
        .open(INDEX)
        .at(Path::new(INDEX))?;
    file.set_times(std::fs::FileTimes::new().set_accessed(now).set_modified(now))
        .at(Path::new(INDEX))
}

/// Creates a directory of the tree, unless something else is in its place.
fn make_directory(name: &[u8]) -> Result<(), Failure> {
    let mut dirs = Dirs::default();
    let cuts = name
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'/')
        .map(|(cut, _)| cut);
    for cut in cuts.chain([name.len()]) {
        if !dirs.own(parent(&name[..cut])) {
            return Ok(());
        }
        match std::fs::create_dir(path(&name[..cut])) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).at(path(name));
            }
            _ => {}
        }
    }
    Ok(())
}
