//! git's index, so that what is clean on the client's side is clean here: git trusts the times that the index has of a file.
//!
//! What the client's git took for unchanged gets the times of the file that came, and git does not look into it: the filter, or whatever else
//! made the two alike there, need not exist here. Everything else has no times, and git compares it. The format is that of
//! gitformat-index(5), versions 2 and 3; in another one, the guest's, the index is made anew.

mod signed;

use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use crate::bytes::{Replacing, discard, listed, parent, path, push, read, write};
use crate::failure::{At as _, Failure};
use crate::git::{Feed, INDEX, must_git};
use crate::record::Place;
use crate::seed::{hex, known_index, write_seed};
use crate::seen::{Dirs, Seen};
use signed::{Signed, digest_of};

/// What a mark says of a path, as the client has it.
const ASSUMED: u8 = 1;
const SKIPPED: u8 = 2;
const INTENDED: u8 = 4;
pub(crate) const HOLLOW: u8 = 8;

/// Bits of an entry's flags.
const VALID: u16 = 0x8000;
const EXTENDED: u16 = 0x4000;
const STAGE: u16 = 0x3000;
const LENGTH: u16 = 0x0fff;
/// Bits of its second flags.
const BIT_SKIPPED: u16 = 0x4000;
const BIT_INTENDED: u16 = 0x2000;
const GITLINK: u32 = 0o160_000;

/// What is kept of a file's stat(2), in bytes.
const STAT: usize = 40;

/// Paths that git is asked about one by one; more are asked about all together.
const ASKED: usize = 1000;

/// One entry: where it and the end of its name are. There may be hundreds of thousands.
#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u32,
    stop: u32,
    flags: u16,
}

impl Entry {
    fn at(&self) -> usize {
        usize::try_from(self.at).unwrap_or(usize::MAX)
    }

    fn stop(&self) -> usize {
        usize::try_from(self.stop).unwrap_or(usize::MAX)
    }
}

/// Where the next entry begins: names end with one to eight NULs.
fn behind(at: usize, stop: usize) -> usize {
    at + (stop - at) / 8 * 8 + 8
}

#[derive(Debug)]
struct Index {
    data: Vec<u8>,
    entries: Vec<Entry>,
    end: usize,
    /// How long an object's name is: 20 bytes, or 32.
    ids: usize,
}

/// What an entry is to say.
struct Change {
    times: [u8; STAT],
    flags: u16,
    more: u16,
}

impl Index {
    fn load() -> Result<Self, Failure> {
        Self::parse(read(Path::new(INDEX))?)
    }

    fn parse(data: Vec<u8>) -> Result<Self, Failure> {
        let short = || Failure::Refused("git's index ends too early".to_owned());
        let checks = |ids: usize| {
            let cut = data.len().checked_sub(ids)?;
            (digest_of(ids, &data[..cut]) == data[cut..]).then_some(ids)
        };
        let ids = checks(20)
            .or_else(|| checks(32))
            .ok_or_else(|| Failure::Refused("git's index has another checksum than its own".to_owned()))?;
        let (version, count) = (
            number(&data, 4).ok_or_else(short)?,
            number(&data, 8).ok_or_else(short)?,
        );
        if !data.starts_with(b"DIRC") || !matches!(version, 2 | 3) {
            return Err(Failure::Refused(format!("git's index has version {version}")));
        }
        // No entry is shorter than this, whatever the count says.
        let most = usize::try_from(count)
            .unwrap_or(usize::MAX)
            .min(data.len() / (42 + ids));
        let (mut at, rest, mut entries) = (12, 42 + ids, Vec::with_capacity(most));
        for _ in 0..count {
            let flags = data.get(at + rest - 2..at + rest).ok_or_else(short)?;
            let flags = u16::from_be_bytes([flags[0], flags[1]]);
            let name = at + rest + if flags & EXTENDED == 0 { 0 } else { 2 };
            let stop = if flags & LENGTH < LENGTH {
                name + usize::from(flags & LENGTH)
            } else {
                let tail = data.get(name..).ok_or_else(short)?;
                name + tail.iter().position(|byte| *byte == 0).ok_or_else(short)?
            };
            if stop > data.len() {
                return Err(short());
            }
            let place = |at: usize| {
                u32::try_from(at).map_err(|_| Failure::Refused("git's index is too long".to_owned()))
            };
            entries.push(Entry {
                at: place(at)?,
                stop: place(stop)?,
                flags,
            });
            at = behind(at, stop);
        }
        if at > data.len() - ids {
            return Err(short());
        }
        Ok(Self {
            end: at,
            data,
            entries,
            ids,
        })
    }

    /// Of all that it says, but for the times: these change whenever git looks.
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (place, entry) in self.entries.iter().enumerate() {
            if place > 0 {
                hash.update([0]);
            }
            hash.update(&self.data[entry.at() + 24..entry.at() + 28]);
            hash.update([0]);
            hash.update(&self.data[entry.at() + STAT..entry.stop()]);
        }
        hex(&hash.finalize())
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        &self.data[self.name_at(entry)..entry.stop()]
    }

    fn name_at(&self, entry: &Entry) -> usize {
        entry.at() + 42 + self.ids + if entry.flags & EXTENDED == 0 { 0 } else { 2 }
    }

    fn mode(&self, entry: &Entry) -> u32 {
        number(&self.data, entry.at() + 24).unwrap_or(0)
    }

    fn more(&self, entry: &Entry) -> u16 {
        if entry.flags & EXTENDED == 0 {
            return 0;
        }
        let name = self.name_at(entry);
        u16::from_be_bytes([self.data[name - 2], self.data[name - 1]])
    }

    /// Writes it to `new` with what `change` says of each entry in place of what it has; `extended` when any of that has second flags.
    fn write(
        &self,
        new: &File,
        extended: bool,
        mut change: impl FnMut(&Entry) -> Option<Change>,
    ) -> std::io::Result<()> {
        let data = &self.data;
        let mut out = Signed::new(new, self.ids);
        out.put(b"DIRC")?;
        out.put(&(if extended { 3_u32 } else { 2 }).to_be_bytes())?;
        out.put(&u32::try_from(self.entries.len()).unwrap_or(0).to_be_bytes())?;
        let mut last = 12;
        for entry in &self.entries {
            let Some(change) = change(entry) else {
                continue;
            };
            let at = entry.at();
            out.put(&data[last..at])?;
            out.put(&change.times)?;
            out.put(&data[at + STAT..at + STAT + self.ids])?;
            let name = self.name(entry);
            let mut length = STAT + self.ids + 2 + name.len();
            if change.more == 0 {
                out.put(&(change.flags & !EXTENDED).to_be_bytes())?;
            } else {
                out.put(&(change.flags | EXTENDED).to_be_bytes())?;
                out.put(&change.more.to_be_bytes())?;
                length += 2;
            }
            out.put(name)?;
            out.put(&[0; 8][..8 - length % 8])?;
            last = behind(at, entry.stop());
        }
        out.put(&data[last..self.end])?;
        out.put(self.trees())?;
        out.end()
    }

    /// The extension that knows the trees of directories; others are hints, and some hold places in the file.
    fn trees(&self) -> &[u8] {
        let (mut at, stop) = (self.end, self.data.len() - self.ids);
        while at + 8 <= stop {
            let Some(size) = number(&self.data, at + 4).and_then(|size| usize::try_from(size).ok()) else {
                break;
            };
            let next = at.saturating_add(8).saturating_add(size).min(stop);
            if self.data[at..].starts_with(b"TREE") {
                return &self.data[at..next];
            }
            at = next;
        }
        &[]
    }
}

fn number(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// What the index keeps of a file's stat(2): the low 32 bits of each.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the format keeps the low 32 bits"
)]
fn times_of(meta: &Metadata, mode: u32) -> [u8; STAT] {
    let words = [
        meta.ctime() as u32,
        meta.ctime_nsec() as u32,
        meta.mtime() as u32,
        meta.mtime_nsec() as u32,
        meta.dev() as u32,
        meta.ino() as u32,
        mode,
        meta.uid(),
        meta.gid(),
        meta.size() as u32,
    ];
    let mut bytes = [0; STAT];
    for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// Reads these bytes as an index.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_bytes(bytes: Vec<u8>) {
    // Without the checksum nothing would be looked at.
    let mut whole = bytes;
    let digest = digest_of(20, &whole);
    whole.extend(digest);
    if let Ok(index) = Index::parse(whole) {
        index.digest();
        index.trees();
        for entry in &index.entries {
            index.name(entry);
            index.mode(entry);
            index.more(entry);
        }
    }
}

/// What a sync knows of its tree, for the index.
pub(crate) trait Tree {
    /// The paths that are something else than git's index has.
    fn unlike(&self) -> &HashSet<Vec<u8>>;
    /// Whether this sync sends a path.
    fn sends(&self, path: &[u8]) -> bool;
    /// Calls `take` with each path that this sync sends, until it says so.
    fn any_sent(&self, take: &mut dyn FnMut(&[u8]) -> bool) -> bool;
    /// What was seen at a path when everything was there; none when it is not of this tree.
    fn known(&mut self, path: &[u8]) -> Option<Seen>;
}

/// What a sync has to do about the index.
#[derive(Debug)]
pub(crate) struct Work {
    /// Paths that the last sync left without times.
    before: HashSet<Vec<u8>>,
    /// The index was made anew, with these bits.
    pub(crate) anew: Option<HashMap<Vec<u8>, u8>>,
    /// There is no index of this commit: in another one nothing is to look unchanged.
    pub(crate) is_failed: bool,
    has_some: bool,
}

impl Work {
    pub(crate) fn of(place: &Place, tree: &dyn Tree) -> Result<Self, Failure> {
        let before: HashSet<Vec<u8>> = listed(&read(&place.of("unlike"))?).map(<[u8]>::to_vec).collect();
        let unlike = tree.unlike();
        let has_some = before.iter().any(|path| !unlike.contains(path))
            || unlike
                .iter()
                .any(|path| !before.contains(path) && !tree.sends(path))
            || tree.any_sent(&mut |path| !unlike.contains(path));
        Ok(Self {
            before,
            anew: None,
            is_failed: false,
            has_some,
        })
    }

    /// Whether a path is to have the times of its file.
    fn trusts(&self, tree: &dyn Tree, path: &[u8]) -> bool {
        (tree.sends(path) || self.before.contains(path)) && !tree.unlike().contains(path)
    }

    /// Whether a path is to have none.
    fn doubts(&self, tree: &dyn Tree, path: &[u8]) -> bool {
        tree.unlike().contains(path) && !self.before.contains(path) && !tree.sends(path)
    }

    /// Whether there is something to do in an index that is not as a sync left it.
    pub(crate) fn is_lost(&self, place: &Place) -> Result<bool, Failure> {
        if !self.has_some {
            return Ok(false);
        }
        let known = known_index(place)?;
        Ok(Index::load().ok().map(|index| index.digest()) != known)
    }

    /// Does it, when the files are there. A failure harms nothing else, and is told.
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
                    index.digest()
                } else {
                    Index::load()?.digest()
                };
                write_seed(place, seed, &digest)?;
            }
        }
        let mut list = Vec::new();
        for path in tree.unlike() {
            push(&mut list, path);
        }
        write(&place.of("unlike"), &[&list])?;
        for hollow in listed(&read(&place.of("hollow"))?) {
            make_directory(hollow)?;
        }
        Ok(())
    }

    /// Gives the files that git would have to compare because they are not older than the index, each with when it was modified.
    fn write(&self, index: &Index, tree: &mut dyn Tree) -> Result<HashMap<Vec<u8>, u32>, Failure> {
        let file = Path::new(INDEX);
        let seconds = |meta: std::io::Result<Metadata>| -> Result<u32, Failure> {
            Ok(u32::try_from(meta.at(file)?.mtime()).unwrap_or(u32::MAX))
        };
        let written = seconds(file.metadata())?;
        let new = Replacing::begin(file)?;
        // The new one will be no older than this.
        let since = seconds(new.file.metadata())?;
        let (mut dirs, mut late) = (Dirs::default(), Vec::new());
        let done = index.write(&new.file, self.is_extended(index), |entry| {
            let name = index.name(entry);
            let (mut flags, mut more) = (entry.flags, index.more(entry));
            let is_staged = flags & STAGE != 0;
            let (trust, doubt) = if let Some(all) = &self.anew {
                let marks = all.get(name).copied().unwrap_or(0);
                if marks & ASSUMED != 0 {
                    flags |= VALID;
                }
                if marks & SKIPPED != 0 {
                    more |= BIT_SKIPPED;
                }
                if marks & INTENDED != 0 {
                    more |= BIT_INTENDED;
                }
                (!tree.unlike().contains(name), marks != 0)
            } else {
                // What git would compare because it is not older than the index must not be trusted for being older than the new one.
                let late = number(&index.data, entry.at() + 8).is_some_and(|modified| modified >= written);
                (
                    self.trusts(tree, name),
                    self.doubts(tree, name) || (late && !is_staged),
                )
            };
            let mode = index.mode(entry);
            let times = if trust && !is_staged && mode != GITLINK {
                times_if_known(&mut dirs, name, tree.known(name), mode)
            } else {
                None
            };
            let times = match times {
                Some((times, modified)) => {
                    if modified >= since {
                        late.push((name.to_vec(), modified));
                    }
                    times
                }
                None if trust || doubt => {
                    let mut none = [0; STAT];
                    none[24..28].copy_from_slice(&mode.to_be_bytes());
                    none
                }
                None => return None,
            };
            Some(Change { times, flags, more })
        });
        done.at(&new.path)?;
        new.put(file)?;
        let written = seconds(file.metadata())?;
        late.retain(|(_, modified)| *modified >= written);
        Ok(late.into_iter().collect())
    }

    /// Whether an entry has second flags, or is to have some.
    fn is_extended(&self, index: &Index) -> bool {
        let is_marked = |entry: &Entry| {
            let marks = self.anew.as_ref().and_then(|all| all.get(index.name(entry)));
            marks.is_some_and(|marks| marks & (SKIPPED | INTENDED) != 0)
        };
        let mut entries = index.entries.iter();
        entries.any(|entry| entry.flags & EXTENDED != 0 || is_marked(entry))
    }
}

/// What the index keeps of a file, if it still is what this sync saw there; and when it was modified.
fn times_if_known(dirs: &mut Dirs, name: &[u8], known: Option<Seen>, mode: u32) -> Option<([u8; STAT], u32)> {
    let known = known?;
    if !dirs.own(parent(name)) {
        return None;
    }
    let meta = path(name).symlink_metadata().ok()?;
    if Seen::of(&meta) != known {
        return None;
    }
    let times = times_of(&meta, mode);
    let modified = number(&times, 8)?;
    Some((times, modified))
}

/// Makes the index younger than those of these files that git would find changed if it compared them. A file that changes in the second in which
/// the index is written looks unchanged, so that second has to pass.
fn outlive(late: &HashMap<Vec<u8>, u32>) -> Result<(), Failure> {
    if late.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = late
        .keys()
        .filter_map(|name| String::from_utf8(name.clone()).ok())
        .collect();
    let mut args = vec!["--literal-pathspecs", "diff-files", "--name-only", "-z", "--"];
    // A name that is no text cannot be asked for by itself.
    if names.len() == late.len() && names.len() <= ASKED {
        args.extend(names.iter().map(String::as_str));
    }
    let asked = must_git(&args, &Feed::Nothing)?;
    let Some(youngest) = listed(&asked).filter_map(|name| late.get(name)).max() else {
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

/// Makes a directory of the tree, where nothing else is in its place.
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
