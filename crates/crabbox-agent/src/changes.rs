//! What has changed in a tree since its last sync; it only looks.
//!
//! `<state> <identity> <mode> <path>` records, NUL after each. States: M changed, N new, D gone, L a link or something else that is no file. The
//! record `-` comes first when there is a record of a sync to compare with, and nothing at all when there is none.

use std::io::Write as _;

use crate::bytes::{listed, path, push};
use crate::failure::Failure;
use crate::files::walk;
use crate::git::{Feed, git};
use crate::names::Names;
use crate::record::{Head, Place, each};
use crate::seen::{Dirs, Kind, Seen};
use crate::talk::Talk;

/// Directories that nobody syncs.
const SKIPPED: [&[u8]; 2] = [b".git", b".crabbox"];

/// Sends the list.
pub(crate) fn send(talk: &mut Talk, lease_dir: &str, name: &str) -> Result<(), Failure> {
    let place = Place::new(lease_dir, name);
    let list = match Head::load(&place) {
        Some(head) if std::env::set_current_dir(&place.workdir).is_ok() => changes(&place, &head)?,
        _ => Vec::new(),
    };
    talk.send_list(&list)
}

fn say(out: &mut Vec<u8>, state: char, identity: &[u8], mode: u32, name: &[u8]) {
    // Writing to a vector does not fail.
    write!(out, "{state} {} {mode:o} ", String::from_utf8_lossy(identity)).ok();
    push(out, name);
}

fn changes(place: &Place, head: &Head) -> Result<Vec<u8>, Failure> {
    let (mut out, mut known, mut dirs) = (b"-\0".to_vec(), Vec::new(), Dirs::default());
    each(place, Some(head), |was| {
        push(&mut known, was.path);
        let now = dirs.look(was.path);
        match now {
            None => say(&mut out, 'D', was.identity, 0, was.path),
            Some(now) if is_directory(&now, was.path) => say(&mut out, 'D', was.identity, 0, was.path),
            Some(now) if was.seen.kind != Kind::File || now.kind != Kind::File => {
                let same = was.seen.kind == Kind::Link
                    && now.kind == Kind::Link
                    && (now.changed, now.inode) == (was.seen.changed, was.seen.inode);
                if !same {
                    say(&mut out, 'L', was.identity, 0, was.path);
                }
            }
            Some(now) => {
                let facts = |seen: Seen| (seen.size, seen.modified, seen.changed, seen.inode);
                if facts(now) != facts(was.seen) {
                    say(&mut out, 'M', was.identity, now.mode, was.path);
                }
            }
        }
        Ok(())
    })?;
    let known = Names::of(known)?;
    wanted(&mut |name| {
        if !known.contains(name)
            && let Some(now) = dirs.look(name).filter(|now| !is_directory(now, name))
        {
            let state = if now.kind == Kind::File { 'N' } else { 'L' };
            say(&mut out, state, b"0", now.mode, name);
        }
    });
    Ok(out)
}

fn is_directory(now: &Seen, name: &[u8]) -> bool {
    now.kind == Kind::Other && path(name).symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

/// Gives every path that could be wanted to `take`; git leaves out what is ignored, if it is there.
fn wanted(take: &mut dyn FnMut(&[u8])) {
    if path(b".git").is_dir()
        && let Ok(said) = git(
            &["ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            &Feed::Nothing,
        )
        && said.success
    {
        for name in listed(&said.out).filter(|name| !name.ends_with(b"/")) {
            if path(name).symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
                // A submodule came without its repository: git here knows its name alone.
                walk(name, &SKIPPED, &mut |name, _| take(&name), &mut |_| {});
            }
            take(name);
        }
        return;
    }
    walk(b"", &SKIPPED, &mut |name, _| take(&name), &mut |_| {});
}
