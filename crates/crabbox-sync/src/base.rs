//! The base of a branch (`sync.baseRef`): a ref of the local repository that the lease gets too, with the history behind it and
//! `HEAD` up to where they meet, so that `git diff base...` says there what it says here.
//!
//! All of it comes from local objects. It must never take an expression for a name: only branches, tags and whole commit ids are
//! sent, not what happens to lie in the object store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crabbox_host::command::CommandError;

use crate::git::{Contents, git};
use crate::repo::Repo;

/// Where a commit goes that has no ref here.
const OWN_REF: &str = "refs/crabbox/base";

/// Where the branches of the remote `origin` are.
const ORIGIN: &str = "refs/remotes/origin/";

/// The base, as the lease is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// The commit, hex.
    pub(crate) id: String,
    /// The refs that lead to it there.
    pub(crate) refs: Vec<String>,
}

/// Why there is no base.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaseError {
    /// It cannot be the name of a branch or tag.
    #[error("{name:?} is no name of a branch, tag or commit")]
    Name { name: String },
    /// Nothing is called so.
    #[error("{name:?} is no branch, tag or commit of this repository; fetch it, or name another one")]
    Unknown { name: String },
    /// git could not say.
    #[error("cannot look for {name:?}")]
    Git {
        name: String,
        #[source]
        source: CommandError,
    },
}

impl Base {
    /// What is called `name` in `repo`: first a branch of the origin, then as git itself looks for names. None for an empty name.
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
        // `*` is what a tag leads to.
        let asked = git(&repo.root, Contents::Unread)
            .args([
                "for-each-ref",
                "--format=%(objecttype) %(objectname) %(*objecttype) %(*objectname) %(refname)",
            ])
            .args(&places)
            .run()
            .map_err(failed)?;
        let said = String::from_utf8_lossy(&asked.stdout);
        let commits: BTreeMap<&str, &str> = said.lines().filter_map(commit_of).collect();
        let (place, id) = places
            .iter()
            .find_map(|place| Some((place, *commits.get(place.as_str())?)))
            .ok_or_else(unknown)?;
        let mut refs = vec![place.clone()];
        // By its short name too, as here, but for the branch that is checked out.
        let short = place.strip_prefix(ORIGIN).filter(|short| *short == name);
        refs.extend(short.map(|short| format!("refs/heads/{short}")));
        let checked_out = repo.branch.as_ref().map(|branch| format!("refs/heads/{branch}"));
        refs.retain(|one| Some(one) != checked_out.as_ref());
        Ok(Some(Self {
            id: id.to_owned(),
            refs,
        }))
    }
}

/// Where a ref called `name` may be, in the order in which it is looked for.
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

/// A line of for-each-ref: the ref, and the commit that it leads to.
fn commit_of(line: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["commit", id, "", "", place] | ["tag", _, "commit", id, place] => Some((place, id)),
        _ => None,
    }
}

/// Whether it may be the name of a ref (git-check-ref-format(1)), and so is neither an expression, a pattern nor a flag.
fn is_name(name: &str) -> bool {
    let odd = |c: char| c.is_ascii_control() || c.is_whitespace() || r"~^:?*[\@{".contains(c);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']);
    !name.contains(odd) && !name.contains("..") && !name.ends_with('.') && name.split('/').all(is_part)
}

/// Whether it is a whole id of an object.
fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Commits, and where they are cut off from what is before them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// All of them.
    pub(crate) commits: BTreeSet<String>,
    /// Those that have no parents in the lease.
    pub(crate) roots: BTreeSet<String>,
}

impl Span {
    /// What is behind `head` and `base` up to where they meet; all that is behind them where they never do, or where cutting there
    /// would part them.
    pub(crate) fn of(root: &Path, head: &str, base: &str) -> Result<Self, CommandError> {
        let ask = || git(root, Contents::Unread);
        // It exits with 1 where there is none.
        let met = ask()
            .args(["merge-base", "--all", head, base])
            .capture()?
            .stdout_text();
        let met: Vec<&str> = met.lines().collect();
        let behind = |cuts: &[String]| {
            let list = ask()
                .args(["rev-list", "--parents", head, base, "--not"])
                .args(cuts);
            Ok::<_, CommandError>(Self::read(&String::from_utf8_lossy(&list.run()?.stdout)))
        };
        if !met.is_empty() {
            let cuts: Vec<String> = met.iter().map(|commit| format!("{commit}^@")).collect();
            let (span, parents) = behind(&cuts)?;
            let leads = |from: &str| met.iter().all(|commit| span.leads(&parents, from, commit));
            if leads(head) && leads(base) {
                return Ok(span);
            }
        }
        Ok(behind(&[])?.0)
    }

    /// Of lines with a commit and its parents.
    fn read(said: &str) -> (Self, BTreeMap<String, Vec<String>>) {
        let lines = said.lines().filter_map(|line| {
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

    /// Whether `to` is behind `from` in what the lease will see.
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
