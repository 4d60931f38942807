//! A proof's leftovers on the host: everything with its lease's id or tag, and new objects of ours without a
//! lease.
//!
//! Whatever existed before, or belongs to another lease, is never counted. Only looks.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use crabbox_core::id::LeaseId;
use crabbox_core::proof::{Left, Residue};
use crabbox_host::command::{Cmd, find_on_path};
use crabbox_host::{mounts, process};
use crabbox_machine::lifecycle::orphans::{self, Orphan, OrphanError};
use crabbox_net::nat;
use crabbox_store::places::Places;

/// Where CNI plugins store allocated addresses.
const CNI: &str = "/var/lib/cni";
/// Where the cgroup hierarchy is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How deep to search below each directory.
const DEPTH: usize = 4;
/// The largest file of a CNI plugin to read, in bytes.
const SMALL: u64 = 64 * 1024;
/// The time limit for listing the rules.
const LIMIT: Duration = Duration::from_secs(30);
/// Directories of administrators' programs, which are not on every user's `PATH`.
const ADMIN: [&str; 2] = ["/usr/sbin", "/sbin"];
/// The programs that list rules, with their arguments.
const RULES: [(&str, &[&str]); 3] = [
    ("nft", &["list", "ruleset"]),
    ("iptables-save", &[]),
    ("ip6tables-save", &[]),
];

/// Why leftovers cannot be determined.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ResidueError(#[from] OrphanError);

type Found = BTreeSet<(Residue, String)>;

/// The objects that existed before.
#[derive(Debug)]
pub(super) struct Before(Found);

/// What marks an object as the lease's.
struct Marks<'a> {
    id: &'a str,
    tag: String,
    root: &'a Path,
}

impl Marks<'_> {
    fn on(&self, text: &[u8]) -> bool {
        let has =
            |word: &str| !word.is_empty() && text.windows(word.len()).any(|part| part == word.as_bytes());
        has(self.id) || has(&self.tag)
    }
}

impl Before {
    /// Takes the snapshot.
    pub(super) fn look(places: &Places) -> Result<Self, ResidueError> {
        Ok(Self(without_a_lease(places)?))
    }

    /// The leftovers of `lease`, and of anything that ran in `root`, a directory of the proof's own.
    pub(super) fn left(&self, places: &Places, lease: Option<&str>, root: &Path, path: &OsStr) -> Vec<Left> {
        let mut found = Found::new();
        match without_a_lease(places) {
            Ok(now) => found.extend(now.difference(&self.0).cloned()),
            Err(_) => unseen(&mut found, "objects"),
        }
        let id = lease.and_then(|lease| LeaseId::parse(lease).ok());
        let marks = Marks {
            id: id.as_ref().map_or("", LeaseId::as_str),
            tag: id.as_ref().map(LeaseId::tag).unwrap_or_default(),
            root,
        };
        processes(&marks, &mut found);
        if id.is_some() {
            mounted(&marks, &mut found);
            links_and_tables(&marks, &mut found);
            rules(&marks, path, &mut found);
            files(&marks, places, &mut found);
        }
        let mut left: Vec<Left> = Vec::new();
        for (kind, _) in found {
            match left.last_mut().filter(|last| last.kind == kind) {
                Some(last) => last.count += 1,
                None => left.push(Left { kind, count: 1 }),
            }
        }
        left
    }
}

fn unseen(found: &mut Found, what: &str) {
    found.insert((Residue::Unseen, what.to_owned()));
}

/// All objects of ours without a lease, whichever lease they belonged to.
fn without_a_lease(places: &Places) -> Result<Found, OrphanError> {
    let found = orphans::find(places).whole()?;
    Ok(found
        .iter()
        .map(|orphan| {
            let kind = match orphan {
                Orphan::Process { .. } => Residue::Process,
                Orphan::Link { .. } => Residue::Link,
                Orphan::Table { .. } => Residue::Table,
                Orphan::Cgroup { .. } => Residue::ControlGroup,
                Orphan::Lock { .. } => Residue::Lock,
                Orphan::Entry { .. } => Residue::Entry,
            };
            (kind, orphan.name())
        })
        .collect())
}

/// Processes with a mark in their arguments, or running in our directory. A process of a left-over shared
/// connection has its socket's path in its arguments.
fn processes(marks: &Marks<'_>, found: &mut Found) {
    let Ok(running) = process::list() else {
        return unseen(found, "processes");
    };
    let root = marks.root.as_os_str().as_bytes();
    for process in running {
        let inside =
            |at: &Option<std::path::PathBuf>| at.as_ref().is_some_and(|at| at.starts_with(marks.root));
        let words = process.cmdline.iter().map(|word| word.as_bytes());
        let ours = words
            .clone()
            .any(|word| marks.on(word) || word.windows(root.len()).any(|part| part == root));
        if ours || inside(&process.cwd) || inside(&process.root) {
            found.insert((Residue::Process, process.id.pid.to_string()));
        }
    }
}

fn mounted(marks: &Marks<'_>, found: &mut Found) {
    match mounts::all() {
        Ok(points) => found.extend(
            points
                .iter()
                .filter(|point| marks.on(point.as_os_str().as_bytes()))
                .map(|point| (Residue::Mount, point.display().to_string())),
        ),
        Err(_) => unseen(found, "mounts"),
    }
}

fn links_and_tables(marks: &Marks<'_>, found: &mut Found) {
    match nat::owned_links() {
        Ok(links) => found.extend(
            links
                .into_iter()
                .filter(|link| link.tag == marks.tag)
                .map(|link| (Residue::Link, format!("cbx{}", link.tag))),
        ),
        Err(_) => unseen(found, "links"),
    }
}

/// Rules that name the lease. A program that is not installed cannot have made any.
fn rules(marks: &Marks<'_>, path: &OsStr, found: &mut Found) {
    // Only root can make rules, and only root can list them.
    if !process::is_root() {
        return;
    }
    for (name, words) in RULES {
        let admin = || {
            ADMIN
                .iter()
                .find_map(|dir| find_on_path(Path::new(dir).join(name).as_os_str(), path))
        };
        let Some(program) = find_on_path(OsStr::new(name), path).or_else(admin) else {
            continue;
        };
        match Cmd::new(program).args(words).limit(LIMIT).capture() {
            Ok(listed) if listed.status.success() => found.extend(
                listed
                    .stdout_text()
                    .lines()
                    .filter(|line| marks.on(line.as_bytes()))
                    .map(|line| (Residue::Rule, line.to_owned())),
            ),
            // A kernel without this family has no rules of it.
            Ok(_) if name != "nft" => {}
            Ok(_) | Err(_) => unseen(found, name),
        }
    }
}

fn files(marks: &Marks<'_>, places: &Places, found: &mut Found) {
    let claims = places.claims();
    for (dir, kind) in [
        (places.state.clone(), Residue::File),
        (places.config.join("testboxes"), Residue::File),
        (places.registry.clone(), Residue::Entry),
        (CGROUPS.into(), Residue::ControlGroup),
        (std::env::temp_dir(), Residue::File),
    ] {
        // In the user's temporary directory, only look at the names of the entries.
        let depth = if kind == Residue::File && dir == std::env::temp_dir() {
            1
        } else {
            DEPTH
        };
        walk(&dir, depth, &mut |path, name| {
            if marks.on(name.as_bytes()) {
                let kind = match kind {
                    Residue::File if path.starts_with(&claims) => Residue::Claim,
                    Residue::File if path.extension().is_some_and(|extension| extension == "lock") => {
                        Residue::Lock
                    }
                    kind => kind,
                };
                found.insert((kind, path.display().to_string()));
            }
        });
    }
    walk(Path::new(CNI), DEPTH, &mut |path, name| {
        let small = path
            .symlink_metadata()
            .is_ok_and(|facts| facts.is_file() && facts.len() <= SMALL);
        let inside = || std::fs::read(path).is_ok_and(|bytes| marks.on(&bytes));
        if marks.on(name.as_bytes()) || (small && inside()) {
            found.insert((Residue::Address, path.display().to_string()));
        }
    });
}

/// Shows everything below `dir`, without following links.
fn walk(dir: &Path, depth: usize, show: &mut dyn FnMut(&Path, &OsString)) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path();
        show(&path, &entry.file_name());
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, depth - 1, show);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No other test has processes with this id, which would be found here.
    const ID: &str = "cbx_0f1e2d3c4b5a";

    #[test]
    fn what_bears_the_lease_is_found_and_what_another_has_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let places = Places::below(&dir.join("home"));
        let root = dir.join("root");
        std::fs::create_dir_all(&root).unwrap();
        let before = Before::look(&places).unwrap();
        let left = |lease| before.left(&places, Some(lease), &root, OsStr::new("/nowhere"));
        let kinds = |lease| -> Vec<(Residue, u32)> {
            let left = left(lease);
            left.iter()
                .map(|left| (left.kind, left.count))
                .filter(|(kind, _)| *kind != Residue::Unseen)
                .collect()
        };
        assert_eq!(kinds(ID), []);
        std::fs::create_dir_all(places.leases().join(ID)).unwrap();
        std::fs::create_dir_all(places.keys(ID)).unwrap();
        std::fs::create_dir_all(places.claims()).unwrap();
        std::fs::write(places.claims().join(format!("{ID}.json")), "").unwrap();
        let lock = places.lease_lock(ID);
        std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
        std::fs::write(&lock, "").unwrap();
        assert_eq!(
            kinds(ID),
            [(Residue::File, 2), (Residue::Claim, 1), (Residue::Lock, 1)]
        );
        assert_eq!(kinds("cbx_0f1e2d3c4b5b"), []);
    }

    #[test]
    fn a_process_in_the_proof_s_own_directory_is_found_without_a_lease() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let places = Places::below(&root.join("home"));
        let before = Before::look(&places).unwrap();
        let cmd = Cmd::new("sleep").arg("30").cwd(&root).dies_with_us();
        let mut child = cmd.spawn(&mut cmd.to_std()).unwrap();
        let left = before.left(&places, None, &root, OsStr::new("/nowhere"));
        child.kill().unwrap();
        child.wait().unwrap();
        let process = Left {
            kind: Residue::Process,
            count: 1,
        };
        assert!(left.contains(&process), "{left:?}");
    }
}
