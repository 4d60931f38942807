//! The base of a branch (`sync.baseRef`): a ref of the local repository that is also sent to the lease, with
//! the history of it and of `HEAD` back to their merge base, so that `git diff base...` gives the same result
//! there as here.
//!
//! It uses local objects only. It must never accept an expression in place of a name: only branches, tags and
//! full commit ids are sent, not arbitrary objects of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crabbox_host::command::CommandError;

use crate::git::{Contents, git, unreplaced_git};
use crate::repo::Repo;

/// The ref in the lease for a commit that has none here.
const OWN_REF: &str = "refs/crabbox/base";

/// The prefix of the branches of the remote `origin`.
const ORIGIN: &str = "refs/remotes/origin/";

/// The base, in the form that is sent to the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// The commit, hex.
    pub(crate) id: String,
    /// The refs that point to it in the lease.
    pub(crate) refs: Vec<String>,
}

/// Why there is no base.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaseError {
    /// It cannot be the name of a branch or tag.
    #[error("{name:?} is not a valid name of a branch, tag or commit")]
    Name { name: String },
    /// Nothing has this name.
    #[error("{name:?} is not a branch, tag or commit of this repository; fetch it, or name another one")]
    Unknown { name: String },
    /// git failed.
    #[error("cannot resolve {name:?}")]
    Git {
        name: String,
        #[source]
        source: CommandError,
    },
}

impl Base {
    /// Finds `name` in `repo`: first as a branch of the origin, then in the order of git itself. `None` for
    /// an empty name.
    pub(crate) fn find(repo: &Repo, name: &str) -> Result<Option<Self>, BaseError> {
        let name = name.trim();
        if name.is_empty() {
            return Ok(None);
        }
        let unknown = || BaseError::Unknown {
            name: name.to_owned(),
        };
        let failed = |source| BaseError::Git {
            name: name.to_owned(),
            source,
        };
        if !is_name(name) {
            return Err(BaseError::Name {
                name: name.to_owned(),
            });
        }
        if is_id(name) {
            let asked = git(&repo.root, Contents::Unread)
                .args(["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")])
                .capture()
                .map_err(failed)?;
            let id = asked.stdout_text();
            return if asked.status.success() && is_id(&id) {
                let refs = vec![OWN_REF.to_owned()];
                Ok(Some(Self { id, refs }))
            } else {
                Err(unknown())
            };
        }
        let places = places(name);
        // `*` dereferences a tag.
        let asked = git(&repo.root, Contents::Unread)
            .args([
                "for-each-ref",
                "--format=%(objecttype) %(objectname) %(*objecttype) %(*objectname) %(refname)",
            ])
            .args(&places)
            .run()
            .map_err(failed)?;
        let listed = String::from_utf8_lossy(&asked.stdout);
        let commits: BTreeMap<&str, &str> = listed.lines().filter_map(commit_of).collect();
        let (place, id) = places
            .iter()
            .find_map(|place| Some((place, *commits.get(place.as_str())?)))
            .ok_or_else(unknown)?;
        let mut refs = vec![place.clone()];
        // A branch that exists only here also gets the name `origin/<branch>`, which commands use: `git diff
        // origin/main...`.
        let local = place.strip_prefix("refs/heads/").filter(|short| *short == name);
        refs.extend(local.map(|short| format!("{ORIGIN}{short}")));
        // Also under its short name, as here, unless that branch is checked out.
        let short = place.strip_prefix(ORIGIN).filter(|short| *short == name);
        refs.extend(short.map(|short| format!("refs/heads/{short}")));
        let checked_out = repo.branch.as_ref().map(|branch| format!("refs/heads/{branch}"));
        // git has no two refs of which one is a directory of the other.
        let clashes =
            |one: &str, other: &str| Path::new(one).starts_with(other) || Path::new(other).starts_with(one);
        refs.retain(|one| !checked_out.as_ref().is_some_and(|branch| clashes(one, branch)));
        Ok(Some(Self {
            id: id.to_owned(),
            refs,
        }))
    }
}

/// The possible full names of a ref `name`, in the order in which they are tried.
fn places(name: &str) -> Vec<String> {
    let below = |dir: &str| format!("{dir}{name}");
    let mut places = Vec::new();
    if ["refs/heads/", "refs/tags/", "refs/remotes/"]
        .iter()
        .any(|dir| name.starts_with(dir))
    {
        places.push(name.to_owned());
    }
    if !name.starts_with("refs/") && !name.starts_with("origin/") {
        places.push(below(ORIGIN));
    }
    places.extend(["refs/tags/", "refs/heads/", "refs/remotes/"].map(below));
    places
}

/// Parses a line of for-each-ref: the ref, and the commit that it points to.
fn commit_of(line: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["commit", id, "", "", place] | ["tag", _, "commit", id, place] => Some((place, id)),
        _ => None,
    }
}

/// Whether it is a valid ref name (git-check-ref-format(1)), and therefore neither an expression, a pattern
/// nor a flag.
fn is_name(name: &str) -> bool {
    let odd = |c: char| c.is_ascii_control() || c.is_whitespace() || r"~^:?*[\@{".contains(c);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']);
    !name.contains(odd) && !name.contains("..") && !name.ends_with('.') && name.split('/').all(is_part)
}

/// Whether it is a full object id.
fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A set of commits, and where their history is cut off.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// All commits.
    pub(crate) commits: BTreeSet<String>,
    /// Those that have no parents in the lease.
    pub(crate) roots: BTreeSet<String>,
}

impl Span {
    /// The history of `head` and `base` back to their merge bases; the whole history if there is none, or if
    /// cutting there would disconnect them.
    pub(crate) fn of(root: &Path, head: &str, base: &str) -> Result<Self, CommandError> {
        let ask = || unreplaced_git(root);
        // It exits with 1 if there is none.
        let merge_bases = ask()
            .args(["merge-base", "--all", head, base])
            .capture()?
            .stdout_text();
        let merge_bases: Vec<&str> = merge_bases.lines().collect();
        let behind = |cuts: &[String]| {
            let list = ask()
                .args(["rev-list", "--parents", head, base, "--not"])
                .args(cuts);
            Ok::<_, CommandError>(Self::read(&String::from_utf8_lossy(&list.run()?.stdout)))
        };
        if !merge_bases.is_empty() {
            let cuts: Vec<String> = merge_bases.iter().map(|commit| format!("{commit}^@")).collect();
            let (span, parents) = behind(&cuts)?;
            let leads = |from: &str| {
                merge_bases
                    .iter()
                    .all(|commit| span.leads(&parents, from, commit))
            };
            if leads(head) && leads(base) {
                return Ok(span);
            }
        }
        Ok(behind(&[])?.0)
    }

    /// Parses lines with a commit and its parents.
    fn read(output: &str) -> (Self, BTreeMap<String, Vec<String>>) {
        let lines = output.lines().filter_map(|line| {
            let mut ids = line.split(' ').map(str::to_owned);
            Some((ids.next()?, ids.collect()))
        });
        let parents: BTreeMap<String, Vec<String>> = lines.collect();
        let known = |ids: &Vec<String>| !ids.is_empty() && ids.iter().all(|id| parents.contains_key(id));
        let roots = parents.iter().filter(|(_, ids)| !known(ids));
        let span = Self {
            commits: parents.keys().cloned().collect(),
            roots: roots.map(|(id, _)| id.clone()).collect(),
        };
        (span, parents)
    }

    /// Whether `to` is an ancestor of `from` in the history that the lease will have.
    fn leads(&self, parents: &BTreeMap<String, Vec<String>>, from: &str, to: &str) -> bool {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(commit) = next.pop() {
            if commit == to {
                return true;
            }
            if seen.insert(commit) && !self.roots.contains(commit) {
                next.extend(parents.get(commit).into_iter().flatten().map(String::as_str));
            }
        }
        false
    }
}
