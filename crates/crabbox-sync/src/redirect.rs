//! Checks that the repository that git found belongs to the directory where it was found.
//!
//! A repository's own files can refer to another repository: `core.worktree` to another working tree, a
//! `.git` file or link and `commondir` to another repository's objects, a link in `.git` to another one's
//! index or refs. It must never let an untrusted tree bring in a repository of the user from elsewhere.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crabbox_ssh::quote;
use rustix::fs::OFlags;

use crate::git::{Contents, git};

/// The longest `.git` file, in bytes: a keyword and a path (`PATH_MAX` of limits.h); git limits it too.
const LINK_LIMIT: u64 = 8 * 1024;

/// How a repository refers to another place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Its working tree is not the one that contains it, or does not contain the current directory.
    WorkTree {
        /// The working tree that it names.
        named: PathBuf,
    },
    /// Its `.git` refers to a repository that belongs to another working tree.
    GitDir {
        /// The working tree.
        root: PathBuf,
        /// The target of its `.git`.
        led: PathBuf,
    },
    /// Its `.git` takes objects and refs from another repository that this is not a working tree of.
    CommonDir {
        /// The `.git` directory.
        dir: PathBuf,
    },
    /// A file that determines its commits and files is a link to outside.
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
                "its .git leads to {}, which belongs to another working tree; if it is this one's, run `{}`",
                led.display(),
                quote::line([
                    "git",
                    &format!("--git-dir={}", led.display()),
                    "config",
                    "core.worktree",
                    &root.display().to_string(),
                ])
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

/// How the repository at `git_dir`, found from `cwd` and with the working tree `root`, refers to another
/// place, if it does. All three paths are canonical; the last two are git's answers.
pub(crate) fn find(cwd: &Path, root: &Path, git_dir: &Path) -> Option<Redirect> {
    let link = root.join(".git");
    // A deeper repository may name a directory above it as its working tree, and would then claim the files
    // there.
    let is_of_root = link.canonicalize().is_ok_and(|found| found == git_dir)
        || leads_to(root, &link).is_some_and(|led| led == git_dir);
    if !cwd.starts_with(root) || !is_of_root {
        return Some(Redirect::WorkTree {
            named: root.to_owned(),
        });
    }
    if link.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        // The usual case. Here `commondir` is not legitimate: git only uses it in the directory of a linked
        // working tree.
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
    // A linked working tree has its own index and HEAD in `<common>/worktrees/<name>`.
    let common = if git_dir.join("commondir").symlink_metadata().is_ok() {
        git_dir.ancestors().nth(2).unwrap_or(git_dir)
    } else {
        git_dir
    };
    linked_out(git_dir, common)
}

/// The first of HEAD, the index and the refs that is a link to outside of both directories. Objects may come
/// from elsewhere: sharing them with links and `alternates` is normal, and does not determine which are used.
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
    // Follow HEAD through symbolic refs as git does, but further than git would.
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

/// How many symbolic refs are followed; git itself follows five.
const SYMBOLIC_LIMIT: usize = 8;

/// The contents of a ref file.
enum Symbolic {
    /// The name of another ref.
    Name(PathBuf),
    /// Something that git may understand but we do not.
    Strange,
    /// An object id, or no such file.
    Other,
}

fn symbolic(path: &Path) -> Symbolic {
    let Ok(meta) = path.symlink_metadata() else {
        return Symbolic::Other;
    };
    let name = if meta.is_symlink() {
        // The old form of a symbolic ref (gitrepository-layout(5)): its target need not exist.
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

/// The target of a `.git` that is not a directory (gitrepository-layout(5)), canonical.
fn leads_to(root: &Path, link: &Path) -> Option<PathBuf> {
    let meta = link.symlink_metadata().ok()?;
    if meta.is_symlink() {
        return link.canonicalize().ok().filter(|led| led.is_dir());
    }
    let text = small(link)?;
    let path = text.strip_prefix(b"gitdir: ")?.trim_ascii_end();
    root.join(OsStr::from_bytes(path)).canonicalize().ok()
}

/// Whether the repository at `led` belongs to the working tree `root`: it says so, with `gitdir` in a linked
/// one (git-worktree(1)) or with `core.worktree`, which git sets in a submodule; or it names no working tree
/// and is not inside one, as after `git init --separate-git-dir`.
fn leads_back(led: &Path, link: &Path, root: &Path) -> bool {
    // Such a claim is worthless if its commits come from another repository: `commondir` is legitimate only
    // in `<common>/worktrees/<name>`, which is inside that repository (gitrepository-layout(5)).
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
    let asked = git(root, Contents::Unread)
        .args(["config", "--file"])
        .arg(led.join("config"))
        .args(["--get", "core.worktree"])
        .capture();
    let Ok(asked) = asked else { return false };
    match asked.status.code() {
        Some(0) => {
            let named = led.join(OsStr::from_bytes(
                asked.stdout.strip_suffix(b"\n").unwrap_or_default(),
            ));
            named.canonicalize().is_ok_and(|named| named == root)
        }
        // Exit code 1: the setting is absent (git-config(1)).
        Some(1) => led.file_name() != Some(OsStr::new(".git")),
        _ => false,
    }
}

/// The content of a small regular file; `None` for anything else, without blocking.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_pasted_is_quoted() {
        let redirect = Redirect::GitDir {
            root: "/a b/wt".into(),
            led: "/a b/real/.git".into(),
        };
        let said = redirect.to_string();
        assert!(
            said.ends_with("run `git '--git-dir=/a b/real/.git' config core.worktree '/a b/wt'`"),
            "{said}"
        );
    }
}
