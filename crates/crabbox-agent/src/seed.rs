//! The git repository in the lease: it gets the client's commit, branch and staged changes, so that commands
//! find a repository.
//!
//! It leaves the files of the tree alone, and a repository that is of no use is moved away and made again.
//! What cannot be done is told, and must never fail the sync that it is part of.

mod repository;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use crabbox_agent_protocol::{Base, Seed};
use sha2::{Digest as _, Sha256};

use crate::bytes::{discard, listed, path, read, write};
use crate::failure::{At as _, Failure};
use crate::git::{Feed, INDEX, git, init, must_git};
use crate::record::Place;
use crate::seen::FileState;
use crate::talk::Conversation;
pub(crate) use repository::forget_aside;
use repository::{
    CONFIG, LONG_ID, is_own_directory, nature, own_the_tree, replace_unusable, set_ref, unlock,
};

/// A file below `.git`, beside the Go program's own files.
const SETTINGS: &str = "crabbox/settings";

/// Options that make git write the plainest index format.
const PLAIN_INDEX: [&str; 10] = [
    "-c",
    "index.version=2",
    "-c",
    "index.sparse=false",
    "-c",
    "index.skipHash=false",
    "-c",
    "core.splitIndex=false",
    "-c",
    "core.untrackedCache=false",
];

/// The directory of the Go program's own files, so that both may sync into one lease.
pub(crate) fn go_dir(place: &Place) -> PathBuf {
    let git = place.workdir.join(".git");
    if git.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        git.join("crabbox")
    } else {
        place.workdir.join(".crabbox")
    }
}

/// Hexadecimal digits of bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
    }
    text
}

/// What the last seed left: six lines.
#[derive(Debug, Default)]
struct Known {
    id: String,
    head: String,
    heads: String,
    /// Digest of the index as the seed left it.
    index: String,
    base: String,
    lacks: String,
}

impl Known {
    fn load(place: &Place) -> Result<Option<Self>, Failure> {
        let text = String::from_utf8_lossy(&read(&place.of("seed"))?).into_owned();
        let mut lines = text.split('\n').map(str::to_owned);
        let mut line = || lines.next();
        let (Some(id), Some(head), Some(heads), Some(index), Some(base), Some(lacks)) =
            (line(), line(), line(), line(), line(), line())
        else {
            return Ok(None);
        };
        Ok(Some(Self {
            id,
            head,
            heads,
            index,
            base,
            lacks,
        }))
    }
}

/// What the repository needs.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) needed: bool,
    /// The commit that it has from the last sync.
    pub(crate) have: String,
    pub(crate) have_base: String,
    /// What was said then of objects that were left out.
    pub(crate) lacks: String,
}

/// Whether the repository must be brought up to date, and the commits that it has from the last sync.
pub(crate) fn state(place: &Place, seed: &Seed) -> Result<State, Failure> {
    let known = Known::load(place)?.filter(|_| Path::new(".git/objects").is_dir());
    let Some(known) = known else {
        return Ok(State {
            needed: true,
            ..State::default()
        });
    };
    Ok(State {
        needed: known.id != seed.id || known.heads != heads(seed)?,
        have: known.head,
        have_base: known.base,
        lacks: known.lacks,
    })
}

/// Replaces a repository that git cannot use, or whose ids are of another length than those that come: all of
/// it is then asked for. If that fails, the repository is as it was, and writing to it fails too.
pub(crate) fn make_usable(place: &Place, seed: &Seed, state: &mut State) {
    // Without a commit it is not known yet how long the ids are.
    if !seed.head.is_empty()
        && matches!(
            replace_unusable(place, Some(seed.head.len() == LONG_ID)),
            Ok(true)
        )
    {
        *state = State {
            needed: true,
            ..State::default()
        };
    }
}

/// The digest of the index as the last seed left it.
pub(crate) fn known_index(place: &Place) -> Result<Option<String>, Failure> {
    Ok(Known::load(place)?.map(|known| known.index))
}

/// The ref of the branch that is to be checked out.
fn branch(seed: &Seed) -> String {
    format!("refs/heads/{}", seed.branch)
}

/// Stands for the files that say which commit is checked out and what kind of repository it is: if the guest
/// changes them, the sync is not in sync.
fn heads(seed: &Seed) -> Result<String, Failure> {
    let mut files = vec![".git/HEAD".to_owned()];
    if !seed.branch.is_empty() {
        files.push(format!(".git/{}", branch(seed)));
    }
    let mut text = Vec::new();
    for file in files {
        if Path::new(&file).is_file() {
            if !text.is_empty() {
                text.push(0);
            }
            text.extend_from_slice(file.as_bytes());
            text.push(b' ');
            FileState::at(file.as_bytes())
                .at(Path::new(&file))?
                .put(&mut text);
        }
    }
    text.push(0);
    text.extend(nature(&read(Path::new(CONFIG)).unwrap_or_default()));
    Ok(hex(&Sha256::digest(text)))
}

/// How much of what was asked for the client could send.
#[derive(Debug, Default, Clone)]
pub(crate) struct Extent {
    /// Identifies the objects that it does not have itself.
    pub(crate) lacks: String,
    /// Whether the base is among it.
    pub(crate) based: bool,
}

impl Extent {
    /// The base that has come.
    fn base<'s>(&self, seed: &'s Seed) -> Option<&'s Base> {
        seed.base.as_ref().filter(|_| self.based)
    }
}

/// The repository data that the client sent.
#[derive(Debug)]
pub(crate) struct Came {
    pack: PathBuf,
    /// The staged changes, as git update-index reads them.
    staged: PathBuf,
    /// The flags of index entries, by path.
    pub(crate) marks: Vec<u8>,
    settings: Vec<u8>,
    attributes: Vec<u8>,
    /// What git ignores only on the client, as a file of rules.
    excludes: Vec<u8>,
    /// Commits that are to have no parents.
    roots: Vec<u8>,
    pub(crate) extent: Extent,
}

impl Came {
    /// Receives all of it from the client.
    pub(crate) fn take(talk: &mut Conversation, place: &Place, extent: Extent) -> Result<Self, Failure> {
        let (pack, staged) = (place.of("tmp/seed.pack"), place.of("tmp/seed.staged"));
        let first = keep(talk, &staged)?;
        let (marks, settings, attributes) = (talk.list()?, talk.list()?, talk.list()?);
        let (excludes, roots) = (talk.list()?, talk.list()?);
        let second = keep(talk, &pack)?;
        if let Some(failure) = first.or(second) {
            discard(&staged)?;
            discard(&pack)?;
            return Err(failure);
        }
        Ok(Self {
            pack,
            staged,
            marks,
            settings,
            attributes,
            excludes,
            roots,
            extent,
        })
    }

    /// Makes `.git` match the client's repository.
    pub(crate) fn apply(&self, place: &Place, seed: &Seed) -> Result<(), Failure> {
        let (is_long, base) = (self.has_long_ids(seed)?, self.extent.base(seed));
        // Without a commit it was not known before how long the ids are; and then all objects have come.
        if seed.head.is_empty() {
            replace_unusable(place, is_long)?;
        }
        // It could not be moved away, and what is written now would be written elsewhere.
        match is_own_directory()? {
            Some(false) => {
                return Err(Failure::Refused(
                    ".git in the workdir leads to another repository, and cannot be moved away: remove it there".to_owned(),
                ));
            }
            // Whose it is git says here, and the next command would not say it.
            Some(true) if Path::new(".git/objects").is_dir() => {
                must_git(&["rev-parse", "--git-dir"], &Feed::Nothing)?;
            }
            _ => {}
        }
        discard(&place.of("seed"))?;
        if !Path::new(".git/objects").is_dir() {
            init(Path::new("."), is_long == Some(true))?;
        }
        let base_refs = base.iter().flat_map(|base| &base.refs).map(String::as_str);
        unlock(base_refs.chain([branch(seed).as_str()]))?;
        own_the_tree()?;
        let pack = File::open(&self.pack).at(&self.pack)?;
        if pack.metadata().at(&self.pack)?.len() > 0 {
            must_git(&["index-pack", "--stdin"], &Feed::File(pack))?;
        }
        if !seed.head.is_empty() {
            cut_off(&seed.head, base.is_some(), &self.roots)?;
        }
        if seed.branch.is_empty() {
            must_git(&["update-ref", "--no-deref", "HEAD", &seed.head], &Feed::Nothing)?;
        } else {
            let branch = branch(seed);
            must_git(&["symbolic-ref", "HEAD", &branch], &Feed::Nothing)?;
            if seed.head.is_empty() {
                // The branch may not exist.
                git(&["update-ref", "-d", &branch], &Feed::Nothing)?;
            } else {
                set_ref(&branch, &seed.head)?;
            }
        }
        // Start with a new index: nothing that the guest put into the old one is needed.
        discard(Path::new(INDEX))?;
        let read_tree: &[&str] = if seed.head.is_empty() {
            &["read-tree", "--empty"]
        } else {
            &["read-tree", "--reset", &seed.head]
        };
        must_git(&[&PLAIN_INDEX[..], read_tree].concat(), &Feed::Nothing)?;
        let staged = File::open(&self.staged).at(&self.staged)?;
        // Usually nothing is staged, which saves a process.
        if staged.metadata().at(&self.staged)?.len() > 0 {
            let stage = [&PLAIN_INDEX[..], &["update-index", "-z", "--index-info"]].concat();
            must_git(&stage, &Feed::File(staged))?;
        }
        if !seed.origin.is_empty() {
            must_git(&["config", "remote.origin.url", &seed.origin], &Feed::Nothing)?;
        }
        let mut done = Ok(());
        if let Some(base) = base {
            for name in &base.refs {
                done = done.and(set_ref(name, &base.id));
            }
        }
        exclude(&self.excludes)?;
        self.configure(place)?;
        done
    }

    /// Whether the ids that come are those of sha256; `None` if none comes.
    fn has_long_ids(&self, seed: &Seed) -> Result<Option<bool>, Failure> {
        // The first id follows a mode.
        let mut begun = Vec::new();
        let staged = File::open(&self.staged).at(&self.staged)?;
        staged.take(100).read_to_end(&mut begun).at(&self.staged)?;
        let staged = begun.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let ids = [seed.head.as_bytes(), staged];
        let id = ids.into_iter().find(|id| !id.is_empty());
        Ok(id.map(|id| id.len() == LONG_ID))
    }

    /// Takes over the settings and attributes that decide whether git finds a file unchanged. Settings that
    /// the guest made for itself stay as long as the client has none.
    fn configure(&self, place: &Place) -> Result<(), Failure> {
        let settings = Path::new(".git").join(SETTINGS);
        if !self.settings.is_empty() || settings.exists() {
            make_dirs(Path::new(".git/crabbox"))?;
            write(&settings, &[&self.settings])?;
            let config = read(Path::new(".git/config"))?;
            if !config
                .windows(SETTINGS.len())
                .any(|part| part == SETTINGS.as_bytes())
            {
                must_git(&["config", "--add", "include.path", SETTINGS], &Feed::Nothing)?;
            }
        }
        let (ours, theirs) = (place.of("attributes"), Path::new(".git/info/attributes"));
        if !self.attributes.is_empty() {
            make_dirs(Path::new(".git/info"))?;
            write(theirs, &[&self.attributes])?;
            write(&ours, &[&self.attributes])?;
        } else if ours.exists() {
            if read(theirs)? == read(&ours)? {
                discard(theirs)?;
            }
            discard(&ours)?;
        }
        Ok(())
    }
}

impl Drop for Came {
    fn drop(&mut self) {
        // If this fails, the next sync empties the directory.
        std::fs::remove_file(&self.pack).ok();
        std::fs::remove_file(&self.staged).ok();
    }
}

/// Receives a list into a file. If writing fails (disk full), the rest of the list is still received; the
/// first error is returned as the inner value.
fn keep(talk: &mut Conversation, path: &Path) -> Result<Option<Failure>, Failure> {
    let mut file = File::create(path).at(path);
    let mut failed = None;
    talk.pieces(|piece| {
        if let Ok(open) = &mut file
            && failed.is_none()
        {
            failed = open.write_all(piece).at(path).err();
        }
        Ok(())
    })?;
    Ok(failed.or(file.err()))
}

pub(crate) fn make_dirs(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).at(dir)
}

/// The lines around the client's rules in `info/exclude`.
const RULES: &[u8] =
    b"# The rules of this clone, and of its user, where crabbox runs. Each sync replaces them.\n";
const RULES_END: &[u8] = b"# The end of these rules.\n";

/// Has git ignore the Go program's directory, and what it ignores only on the client.
fn exclude(rules: &[u8]) -> Result<(), Failure> {
    let file = Path::new(".git/info/exclude");
    let before = read(file)?;
    let after = excluding(&before, rules);
    if after == before {
        return Ok(());
    }
    make_dirs(Path::new(".git/info"))?;
    write(file, &[&after])
}

/// The text of an `info/exclude` with these rules of the client's. They come first, because the last rule
/// that matches counts, and the guest may have its own.
fn excluding(text: &[u8], rules: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    if let Some(begin) = lines.iter().position(|line| *line == RULES) {
        // The client's rules may have any lines. Without an end, the guest has changed them.
        let end = lines.iter().rposition(|line| *line == RULES_END);
        lines.drain(begin..=end.filter(|end| *end > begin).unwrap_or(begin));
    }
    let mut out = Vec::new();
    if !rules.is_empty() {
        out.extend([RULES, rules, RULES_END].concat());
    }
    out.extend(lines.concat());
    if !lines.iter().any(|line| line.trim_ascii_end() == b"/.crabbox/") {
        if !out.is_empty() && !out.ends_with(b"\n") {
            out.push(b'\n');
        }
        out.extend_from_slice(b"/.crabbox/\n");
    }
    out
}

/// Whether a commit is present while one of its parents is not.
fn is_cut_off(commit: &str) -> Result<bool, Failure> {
    let text = git(&["cat-file", "commit", commit], &Feed::Nothing)?.out;
    let text = String::from_utf8_lossy(&text).into_owned();
    let head = text.split("\n\n").next().unwrap_or_default();
    for parent in head.lines().filter_map(|line| line.strip_prefix("parent ")) {
        if !git(&["cat-file", "-e", parent], &Feed::Nothing)?.success {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Tells git which commits are shallow: those that the client sent as such, and those whose parents are
/// missing. A commit from an earlier sync stops being shallow once its parents have arrived.
fn cut_off(head: &str, is_based: bool, roots: &[u8]) -> Result<(), Failure> {
    let shallow = Path::new(".git/shallow");
    let words = |bytes: &[u8]| -> BTreeSet<String> {
        String::from_utf8_lossy(bytes)
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let known = words(&read(shallow)?);
    let mut first = words(roots);
    if is_based {
        let mut asked = known.clone();
        asked.insert(head.to_owned());
        for commit in asked.difference(&first.clone()) {
            if is_cut_off(commit)? {
                first.insert(commit.clone());
            }
        }
    } else {
        first.extend(known.iter().cloned());
        if !first.contains(head) && is_cut_off(head)? {
            first.insert(head.to_owned());
        }
    }
    if first != known {
        let lines: String = first.iter().flat_map(|commit| [commit.as_str(), "\n"]).collect();
        write(shallow, &[lines.as_bytes()])?;
    }
    Ok(())
}

/// Records that the repository is as requested, with this digest of its index.
pub(crate) fn write_seed(place: &Place, seed: &Seed, extent: &Extent, index: &str) -> Result<(), Failure> {
    let base = extent.base(seed).map_or("", |base| base.id.as_str());
    // One without the base that was asked for is never what is asked for next.
    let id = if extent.based || seed.base.is_none() {
        seed.id.as_str()
    } else {
        ""
    };
    let lines = [id, &seed.head, &heads(seed)?, index, base, &extent.lacks].join("\n");
    write(&place.of("seed"), &[lines.as_bytes()])
}

/// Records the directories of submodules. A directory that is gone on the client is removed here if it is
/// empty.
pub(crate) fn keep_hollow(place: &Place, paths: &[&[u8]]) -> Result<(), Failure> {
    let file = place.of("hollow");
    let before = read(&file)?;
    for name in listed(&before).filter(|name| !paths.contains(name)) {
        if crate::seen::Dirs::default().own(name) {
            // This fails if the directory has contents, which belong to the guest.
            std::fs::remove_dir(path(name)).ok();
        }
    }
    let mut list = Vec::new();
    for name in paths {
        crate::bytes::push(&mut list, name);
    }
    write(&file, &[&list])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_the_client_replace_the_last_ones_and_leave_those_of_the_guest() {
        let text = |text: &[u8], rules: &[u8]| String::from_utf8(excluding(text, rules)).unwrap();
        let (begin, end) = (
            std::str::from_utf8(RULES).unwrap(),
            std::str::from_utf8(RULES_END).unwrap(),
        );
        assert_eq!(text(b"", b""), "/.crabbox/\n");
        assert_eq!(text(b"*.log", b""), "*.log\n/.crabbox/\n");
        let first = text(b"*.log\n", b"a\n");
        assert_eq!(first, format!("{begin}a\n{end}*.log\n/.crabbox/\n"));
        assert_eq!(text(first.as_bytes(), b"a\n"), first);
        // The rules themselves may look like their end.
        let odd = text(first.as_bytes(), &[RULES_END, b"b\n"].concat());
        assert_eq!(odd, format!("{begin}{end}b\n{end}*.log\n/.crabbox/\n"));
        assert_eq!(text(odd.as_bytes(), b""), "*.log\n/.crabbox/\n");
        let cut = format!("{begin}a\n*.log\n");
        assert_eq!(text(cut.as_bytes(), b""), "a\n*.log\n/.crabbox/\n");
    }

    #[test]
    fn a_record_of_a_seed_that_lacks_a_line_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().to_str().unwrap(), "w");
        std::fs::create_dir_all(&place.meta).unwrap();
        for (text, index) in [
            ("id\nhead\nheads\nindex\nbase\nlacks", Some("index")),
            ("id\nhead\nheads\nindex\n\n", Some("index")),
            ("id\nhead\nheads\nindex\nbase", None),
            ("", None),
        ] {
            std::fs::write(place.of("seed"), text).unwrap();
            assert_eq!(known_index(&place).unwrap().as_deref(), index, "{text:?}");
        }
    }
}
