//! Whether the repository that git found is the one of the directory that it was found in.
//!
//! A repository's own files can name another one: `core.worktree` another working tree, a `.git` file or link and `commondir` another
//! repository's objects, a link in `.git` another one's index or references. It must never let a tree that others wrote bring in a repository of the user that lies elsewhere.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::git::{Contents, git};

/// The longest `.git` file, in bytes: a word and a path (`PATH_MAX` of limits.h), which git bounds as well.
const LINK_LIMIT: u64 = 8 * 1024;

/// How a repository leads away from where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Its working tree is not the one that it lies in, or does not hold the current directory.
    WorkTree {
        /// The working tree that it names.
        named: PathBuf,
    },
    /// Its `.git` leads to a repository that belongs to another working tree.
    GitDir {
        /// The working tree.
        root: PathBuf,
        /// Where its `.git` leads.
        led: PathBuf,
    },
    /// Its `.git` takes objects and references from another repository, whose working tree this is not.
    CommonDir {
        /// The `.git` directory.
        dir: PathBuf,
    },
    /// What says which commits and files it has is a link out of it.
    Linked {
        /// The link.
        path: PathBuf,
    },
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkTree { named } => write!(
                f,
                "its git configuration names another working tree ({}): unset core.worktree, or run crabbox there",
                named.display()
            ),
            Self::GitDir { root, led } => write!(
                f,
                "its .git leads to {led}, which belongs to another working tree; if it is this one's, run \
                 `git --git-dir={led} config core.worktree {root}`",
                led = led.display(),
                root = root.display()
            ),
            Self::CommonDir { dir } => write!(
                f,
                "{}/commondir names another repository, of which this is no working tree",
                dir.display()
            ),
            Self::Linked { path } => write!(
                f,
                "{} is a link out of it, to what may be another repository: a second working tree is made with `git worktree add`",
                path.display()
            ),
        }
    }
}

/// How the repository at `git_dir`, found from `cwd` and with the working tree `root`, leads away. All three are canonical, and the last
/// two are what git says.
pub(crate) fn find(cwd: &Path, root: &Path, git_dir: &Path) -> Option<Redirect> {
    let link = root.join(".git");
    // A repository further in may name a directory around it, and then the files there are its own.
    let is_of_root = link.canonicalize().is_ok_and(|found| found == git_dir)
        || leads_to(root, &link).is_some_and(|led| led == git_dir);
    if !cwd.starts_with(root) || !is_of_root {
        return Some(Redirect::WorkTree {
            named: root.to_owned(),
        });
    }
    if link.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        // The usual case. `commondir` there is git's only in the directory of a linked working tree.
        if link.join("commondir").symlink_metadata().is_ok() {
            return Some(Redirect::CommonDir { dir: link });
        }
        return linked_out(git_dir, git_dir);
    }
    if !leads_back(git_dir, &link, root) {
        return Some(Redirect::GitDir {
            root: root.to_owned(),
            led: git_dir.to_owned(),
        });
    }
    // A linked working tree has an index and a HEAD of its own; what it leads back to is `<common>/worktrees/<name>`.
    let common = if git_dir.join("commondir").symlink_metadata().is_ok() {
        git_dir.ancestors().nth(2).unwrap_or(git_dir)
    } else {
        git_dir
    };
    linked_out(git_dir, common)
}

/// What of HEAD, the index and the references is a link that leads out of both directories. Objects may be anybody's: they are shared
/// with links and `alternates` in ordinary use, and say nothing of what is asked for.
fn linked_out(git_dir: &Path, common: &Path) -> Option<Redirect> {
    let dirs = [git_dir, common];
    let leads_out = |path: &Path| {
        path.symlink_metadata().is_ok_and(|meta| meta.is_symlink())
            && !path
                .canonicalize()
                .is_ok_and(|led| dirs.iter().any(|dir| led.starts_with(dir)))
    };
    let names = ["index", "packed-refs", "refs", "reftable"];
    let fixed = names.iter().flat_map(|name| dirs.map(|dir| dir.join(name)));
    let mut found = fixed.into_iter().find(|path| leads_out(path));
    // From HEAD along the names that each name leads to, as git goes, which gives up sooner.
    let mut at = vec![git_dir.join("HEAD")];
    for _ in 0..SYMBOLIC_LIMIT {
        if found.is_some() {
            break;
        }
        let mut next = None;
        for path in &at {
            match symbolic(path) {
                Symbolic::Name(name) => next = Some(name),
                Symbolic::Strange => found = Some(path.clone()),
                Symbolic::Other => {}
            }
        }
        let Some(name) = next else { break };
        let parts: Vec<&Path> = name.ancestors().filter(|part| part.parent().is_some()).collect();
        let mut below = parts.iter().flat_map(|part| dirs.map(|dir| dir.join(part)));
        found = found.or_else(|| below.find(|path| leads_out(path)));
        at = dirs.map(|dir| dir.join(&name)).into();
    }
    found.map(|path| Redirect::Linked { path })
}

/// How far symbolic references are followed; git itself follows five.
const SYMBOLIC_LIMIT: usize = 8;

/// What a file of references says.
enum Symbolic {
    /// The name of another one.
    Name(PathBuf),
    /// Something that git may understand and we do not.
    Strange,
    /// An object, or there is no such file.
    Other,
}

fn symbolic(path: &Path) -> Symbolic {
    let Ok(meta) = path.symlink_metadata() else {
        return Symbolic::Other;
    };
    let name = if meta.is_symlink() {
        // The old form of a symbolic reference (gitrepository-layout(5)): what it names need not be there.
        path.read_link().unwrap_or_default()
    } else if meta.is_dir() {
        return Symbolic::Other;
    } else {
        let Some(text) = small(path) else {
            return Symbolic::Strange;
        };
        match text.strip_prefix(b"ref:") {
            Some(name) => PathBuf::from(OsStr::from_bytes(name.trim_ascii())),
            None => return Symbolic::Other,
        }
    };
    let plain = name
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if plain {
        Symbolic::Name(name)
    } else {
        Symbolic::Strange
    }
}

/// Where a `.git` that is no directory leads (gitrepository-layout(5)), canonical.
fn leads_to(root: &Path, link: &Path) -> Option<PathBuf> {
    let meta = link.symlink_metadata().ok()?;
    if meta.is_symlink() {
        return link.canonicalize().ok().filter(|led| led.is_dir());
    }
    let text = small(link)?;
    let path = text.strip_prefix(b"gitdir: ")?.trim_ascii_end();
    root.join(OsStr::from_bytes(path)).canonicalize().ok()
}

/// Whether the repository at `led` is that of the working tree `root`: it says so, as of a linked one (`gitdir`, git-worktree(1)) or by
/// `core.worktree`, which git sets in a submodule; or it names none and stands in none, as one of `git init --separate-git-dir`.
fn leads_back(led: &Path, link: &Path, root: &Path) -> bool {
    // What it says of itself counts for nothing when its commits are another repository's: `commondir` is right only in
    // `<common>/worktrees/<name>`, which is in that repository (gitrepository-layout(5)).
    if led.join("commondir").symlink_metadata().is_ok() {
        let common = small(&led.join("commondir")).and_then(|text| {
            led.join(OsStr::from_bytes(text.trim_ascii_end()))
                .canonicalize()
                .ok()
        });
        let lies_in = led.parent().filter(|above| above.ends_with("worktrees"));
        if common.is_none() || lies_in.and_then(Path::parent) != common.as_deref() {
            return false;
        }
    }
    if let Some(back) = small(&led.join("gitdir")) {
        let back = led.join(OsStr::from_bytes(back.trim_ascii_end()));
        return back.canonicalize().ok() == link.canonicalize().ok();
    }
    let said = git(root, Contents::Unread)
        .args(["config", "--file"])
        .arg(led.join("config"))
        .args(["--get", "core.worktree"])
        .capture();
    let Ok(said) = said else { return false };
    match said.status.code() {
        Some(0) => {
            let named = led.join(OsStr::from_bytes(
                said.stdout.strip_suffix(b"\n").unwrap_or_default(),
            ));
            named.canonicalize().is_ok_and(|named| named == root)
        }
        // It is not set: git-config(1).
        Some(1) => led.file_name() != Some(OsStr::new(".git")),
        _ => false,
    }
}

/// The content of a small regular file; none of anything else, which is not waited for either.
fn small(path: &Path) -> Option<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .ok()?;
    let mut text = Vec::new();
    let meta = file.metadata().ok()?;
    let fits = meta.is_file() && meta.len() <= LINK_LIMIT;
    fits.then_some(())?;
    file.take(LINK_LIMIT).read_to_end(&mut text).ok()?;
    Some(text)
}
