//! The agent: the program that runs in a lease on behalf of one connected client, and ends with that
//! connection.
//!
//! It speaks the protocol of `crabbox-agent-protocol` over its standard streams: it locks the tree, brings it
//! in line with the client's manifest, runs commands, lists and sends files. It must never keep holding the
//! lock after its client has gone, follow a link out of the tree when it removes something, or act on a
//! number that the client has not sent.

mod bytes;
mod caches;
mod carry;
mod changes;
mod command;
mod copy;
mod digest;
mod failure;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod git;
mod index;
mod list;
mod local_time;
mod names;
mod owner;
mod process;
mod receive;
mod record;
mod remove;
mod rows;
mod seed;
mod seen;
mod sights;
mod sweep;
mod sync;
mod talk;

use std::path::Path;
use std::process::ExitCode;

use crabbox_agent_protocol::{Glob, HELLO, Reply, Request};

use failure::Failure;
use files::FetchFilter;
use list::Choice;
use talk::{ClientMessage, Conversation};

/// Serves the client at the other end of the standard streams.
pub fn main() -> ExitCode {
    // A client that has gone needs neither a message nor an exit code.
    match serve() {
        Ok(()) | Err(Failure::Gone) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            ExitCode::FAILURE
        }
    }
}

fn make_tree(talk: &mut Conversation, dir: &str) -> Result<(), Failure> {
    sync::make_tree(Path::new(dir))?;
    talk.say(&Reply::Made {})
}

/// Whether `PATH` has a program of this name.
fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Answers requests one after the other until the client goes.
fn serve() -> Result<(), Failure> {
    let mut talk = Conversation::new()?;
    let past = command::ProfileSignal::listen()?;
    talk.say(&Reply::Hello {
        word: HELLO,
        rsync: has("rsync"),
    })?;
    sweep::sweep();
    let mut owner = None;
    let mut looked = None;
    let ended = loop {
        let request = match talk.hear() {
            Ok(ClientMessage::Request(request)) => request,
            // The rest of a list whose request has failed.
            Ok(ClientMessage::Piece) => continue,
            Err(failure) => break Err(failure),
        };
        let done = match request {
            Request::Own { key, token, make } => owner::own(&mut talk, &key, &token).and_then(|own| {
                owner = Some(own);
                make.map_or(Ok(()), |dir| make_tree(&mut talk, &dir))
            }),
            Request::Release {} => {
                if let Some(own) = owner.take() {
                    owner::Owner::release(own);
                }
                talk.say(&Reply::Released {})
            }
            Request::Look { lease_dir, name } => {
                looked = Some(sync::look(&lease_dir, &name));
                Ok(())
            }
            Request::Sync { sync } => sync::sync(&mut talk, &sync, looked.take()),
            Request::Changes { lease_dir, name } => changes::send(&mut talk, &lease_dir, &name),
            Request::Run { command } => command::run(&mut talk, &command, owner.as_mut(), &past),
            Request::List {
                dir,
                patterns,
                skipped,
                written,
                once,
            } => {
                let choice = Choice {
                    patterns: patterns.iter().map(|text| Glob::of(text.as_bytes())).collect(),
                    skipped,
                    written,
                    since: owner.as_ref().and_then(|own| own.began),
                    once,
                };
                list::list(&mut talk, &dir, &choice)
            }
            Request::Fetch {
                dir,
                follow,
                within,
                limit,
            } => {
                let taste = FetchFilter {
                    follow,
                    within,
                    limit,
                };
                files::fetch(&mut talk, &dir, &taste)
            }
            Request::Digest { dir } => digest::digest(&mut talk, &dir),
            Request::Make { dir } => make_tree(&mut talk, &dir),
            Request::Tree { path, follow } => copy::tree(&mut talk, &path, follow),
            Request::Put { to, name, make } => copy::put(&mut talk, &to, &name, make),
            Request::Size { dir } => caches::size(&mut talk, Path::new(&dir)),
            Request::Clear { dir } => caches::clear(&mut talk, Path::new(&dir)),
            // They belong to a sync that has failed or a command that has ended, and have no answer.
            Request::End {}
            | Request::Directory { .. }
            | Request::File { .. }
            | Request::Hole { .. }
            | Request::Link { .. }
            | Request::Received {}
            | Request::Pack {}
            | Request::Finish {}
            | Request::Stop {}
            | Request::Ping {} => Ok(()),
        };
        match done {
            Ok(()) => {}
            Err(Failure::Gone) => break Err(Failure::Gone),
            Err(failure) => {
                if let Err(gone) = talk.say(&Reply::Failed { why: failure.why() }) {
                    break Err(gone);
                }
            }
        }
    };
    if let Some(own) = owner {
        own.abandon();
    }
    ended
}
