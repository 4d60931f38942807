//! Whether git can use the repository in the tree, and what makes it usable again: whatever a command left
//! behind, the next seed must succeed.
//!
//! A repository is moved away and never deleted here unless a later one follows it. It must never write
//! through a link into another repository, nor take the lock of a git that is still at work.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::bytes::{discard, moment, read};
use crate::failure::{At as _, Failure};
use crate::git::{Feed, git, init, isolated_git, must_git};
use crate::record::Place;
use crate::remove::remove_tree;

/// Where a repository goes that git cannot use any more, below what is kept of the tree's syncs: the guest
/// may have commits in it.
const ASIDE: &str = "git-aside";

/// The digits of an id in a repository with `--object-format=sha256` (git-init(1)).
pub(super) const LONG_ID: usize = 64;

/// Replaces the repository if git cannot use it, or if its ids are not as long as those that come, where that
/// is known. Whether it did.
pub(super) fn replace_unusable(place: &Place, is_long: Option<bool>) -> Result<bool, Failure> {
    if is_usable(is_long)? {
        return Ok(false);
    }
    // Made first: a git that cannot even do this says nothing about the repository.
    let new = place.of("tmp/new");
    init(&new, is_long == Some(true))?;
    let is_own = is_own_directory()? == Some(true);
    let aside = set_aside(place)?;
    if let Err(error) = std::fs::rename(new.join(".git"), ".git") {
        // It is no worse than before.
        std::fs::rename(&aside, ".git").ok();
        return Err(error).at(&new);
    }
    std::fs::remove_dir(&new).ok();
    // Submodules have their repositories there, which are whole by themselves. Linked worktrees stay with the
    // refs and objects that they need.
    if is_own {
        std::fs::rename(aside.join("modules"), ".git/modules").ok();
    }
    // Only now, because the one that was moved away before may have the only copy of a commit.
    forget_all_but(place, aside.file_name());
    // It fails if one of another user is there, which could not be removed.
    std::fs::rename(&aside, place.of(ASIDE)).ok();
    Ok(true)
}

/// Whether there is none, or one that git can use and whose ids are as long as those that come, where that is
/// known.
fn is_usable(is_long: Option<bool>) -> Result<bool, Failure> {
    match is_own_directory()? {
        None => return Ok(true),
        Some(false) => return Ok(false),
        Some(true) => {}
    }
    if !Path::new(".git/objects").is_dir() {
        return Ok(false);
    }
    let asked = isolated_git(&["rev-parse", "--show-object-format"])?;
    if !asked.success && asked.code != FATAL {
        return Err(Failure::Refused(format!(
            "git ended with {} when asked about the repository",
            asked.code
        )));
    }
    // A git that does not know the word repeats it, and knows sha1 only.
    let has_long = asked.out.trim_ascii() == b"sha256";
    Ok(asked.is_clean() && is_long.is_none_or(|is_long| is_long == has_long))
}

/// git's exit code when it gives up by itself (usage.c of git).
const FATAL: i32 = 128;

/// Whether `.git` is a directory and a repository of its own: neither a link, nor a file that leads to
/// another one, nor a part of another one. `None` if there is nothing.
pub(super) fn is_own_directory() -> Result<Option<bool>, Failure> {
    let git_dir = Path::new(".git");
    match git_dir.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        found => {
            let is_link = |part: &str| {
                git_dir
                    .join(part)
                    .symlink_metadata()
                    .is_ok_and(|found| found.is_symlink())
            };
            let is_directory = found.at(git_dir)?.is_dir();
            let is_shared = ["config", "objects", "refs"].into_iter().any(is_link)
                || git_dir.join("commondir").symlink_metadata().is_ok();
            Ok(Some(is_directory && !is_shared))
        }
    }
}

/// Moves the repository away; to where.
fn set_aside(place: &Place) -> Result<PathBuf, Failure> {
    let mut aside = place.of(ASIDE);
    if aside.symlink_metadata().is_ok() {
        aside = place.of(format!("{ASIDE}-{}", moment()));
    }
    std::fs::rename(".git", &aside).at(&aside)?;
    Ok(aside)
}

/// Removes what was moved away. What cannot be removed (files of another user) stays, and disturbs nothing.
pub(crate) fn forget_aside(place: &Place) {
    forget_all_but(place, None);
}

fn forget_all_but(place: &Place, kept: Option<&OsStr>) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let meta = rustix::fs::openat(CWD, &place.meta, flags, Mode::empty());
    let (Ok(meta), Ok(all)) = (meta, std::fs::read_dir(&place.meta)) else {
        return;
    };
    for name in all.flatten().map(|entry| entry.file_name()) {
        if name.as_encoded_bytes().starts_with(ASIDE.as_bytes()) && Some(name.as_os_str()) != kept {
            remove_tree(&meta, Path::new(&name)).ok();
        }
    }
}

pub(super) const CONFIG: &str = ".git/config";

/// The settings of a configuration that decide whether git takes the tree for a repository at all, and where
/// it looks for the files, as `name=value` lines in lower case. Text outside of every section is included,
/// because git rejects the file for it.
pub(super) fn nature(config: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(config).to_ascii_lowercase();
    let (mut section, mut lines) = (String::new(), String::new());
    for line in text.lines().map(str::trim) {
        let setting = match line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            Some((name, rest)) => {
                name.clone_into(&mut section);
                rest.trim()
            }
            None => line,
        };
        let (key, value) = setting.split_once('=').unwrap_or((setting, "true"));
        let (key, value) = (key.trim(), value.trim());
        let counts = match section.as_str() {
            "core" => ["bare", "worktree", "repositoryformatversion"].contains(&key),
            "" | "extensions" => !key.is_empty(),
            _ => false,
        };
        if counts {
            lines.extend([&section, ".", key, "=", value, "\n"]);
        }
    }
    lines.into_bytes()
}

/// Has git find the files in the tree again, whatever the guest has set.
pub(super) fn own_the_tree() -> Result<(), Failure> {
    let nature = String::from_utf8_lossy(&nature(&read(Path::new(CONFIG))?)).into_owned();
    let is_led = |line: &str| line.starts_with("core.worktree=") || line.starts_with("core.bare=");
    if nature
        .lines()
        .any(|line| is_led(line) && line != "core.bare=false")
    {
        // It fails if nothing is set, which is usual.
        git(&["config", "--unset-all", "core.worktree"], &Feed::Nothing)?;
        must_git(&["config", "--replace-all", "core.bare", "false"], &Feed::Nothing)?;
    }
    Ok(())
}

/// Removes the locks that a dead git left, those of these refs among them. While a git is at work in the
/// tree, which an editor or a shell of the user's may have started, they may be its; the index is replaced in
/// any case.
pub(super) fn unlock<'a>(refs: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    discard(Path::new(".git/index.lock"))?;
    let names = ["HEAD", "config", "packed-refs", "shallow"]
        .into_iter()
        .chain(refs);
    let locks = names.map(|name| Path::new(".git").join(format!("{name}.lock")));
    let locks: Vec<PathBuf> = locks.filter(|lock| lock.symlink_metadata().is_ok()).collect();
    if !locks.is_empty() && !is_git_running() {
        for lock in locks {
            discard(&lock)?;
        }
    }
    Ok(())
}

/// Whether a git, or one of its helpers, is at work in the tree or in a linked worktree, which shares these
/// locks. Those of other users cannot be seen.
fn is_git_running() -> bool {
    let (Ok(all), Ok(tree)) = (std::fs::read_dir("/proc"), std::env::current_dir()) else {
        return true;
    };
    let linked = std::fs::read_dir(".git/worktrees")
        .into_iter()
        .flatten()
        .flatten();
    // Each file has the path of the worktree's `.git`, which may be relative to its own directory
    // (gitrepository-layout(5), `worktree.useRelativePaths`).
    let worktree = |admin: PathBuf| {
        let path = std::fs::read_to_string(admin.join("gitdir")).ok()?;
        let git = admin.join(path.trim_end()).canonicalize().ok()?;
        Some(git.parent()?.to_owned())
    };
    let mut trees: Vec<PathBuf> = linked.filter_map(|entry| worktree(entry.path())).collect();
    trees.push(tree);
    let is_here = |cwd: PathBuf| trees.iter().any(|tree| cwd.starts_with(tree));
    all.flatten().any(|entry| {
        let name = std::fs::read(entry.path().join("comm")).unwrap_or_default();
        let name = name.trim_ascii_end();
        let is_git = name == b"git" || name.starts_with(b"git-");
        is_git && std::fs::read_link(entry.path().join("cwd")).is_ok_and(is_here)
    })
}

/// Has the ref `name` lead to `id`, whatever was in its way.
pub(super) fn set_ref(name: &str, id: &str) -> Result<(), Failure> {
    let args = ["update-ref", "--no-deref", name, id];
    match must_git(&args, &Feed::Nothing) {
        Err(_) if make_way(name)? => must_git(&args, &Feed::Nothing).map(drop),
        done => done.map(drop),
    }
}

/// Removes the refs that git cannot have beside `name`: those below it, and those that it is below. Their
/// commits keep a ref each. Whether there were any. A branch that is checked out, also in a linked worktree
/// of the guest's, stays.
fn make_way(name: &str) -> Result<bool, Failure> {
    let above = name.match_indices('/').skip(2).map(|(at, _)| &name[..at]);
    let mut ask = vec!["for-each-ref", "--format=%(objectname) %(refname)", name];
    ask.extend(above);
    let said = String::from_utf8_lossy(&must_git(&ask, &Feed::Nothing)?).into_owned();
    // By whole parts, as directories: `topic` is not above `topic2`.
    let is_in = |low: &str, high: &str| low != high && Path::new(low).starts_with(high);
    let used = String::from_utf8_lossy(&must_git(&["worktree", "list", "--porcelain"], &Feed::Nothing)?)
        .into_owned();
    let mut is_made = false;
    for (id, other) in said.lines().filter_map(|line| line.split_once(' ')) {
        if !is_checked_out(&used, other) && (is_in(other, name) || is_in(name, other)) {
            let kept = format!("refs/crabbox/aside/{id}");
            must_git(&["update-ref", &kept, id], &Feed::Nothing)?;
            must_git(&["update-ref", "--no-deref", "-d", other], &Feed::Nothing)?;
            is_made = true;
        }
    }
    Ok(is_made)
}

/// Whether one of these worktrees (`git worktree list --porcelain`) that are still there has a branch checked
/// out.
fn is_checked_out(worktrees: &str, branch: &str) -> bool {
    worktrees.split("\n\n").any(|worktree| {
        let value = |key: &str| worktree.lines().find_map(|line| line.strip_prefix(key));
        value("branch ") == Some(branch) && value("worktree ").is_some_and(|path| Path::new(path).exists())
    })
}
