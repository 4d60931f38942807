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

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
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

/// Where `PATH` has the program of this name.
fn place_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |place: &PathBuf| {
        std::fs::metadata(place).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let is_name = !program.contains('/');
    std::env::split_paths(&path)
        .filter(|dir| is_name && dir.is_absolute())
        .map(|dir| dir.join(program))
        .find(is_program)
}

/// Whether `PATH` has a program of this name.
fn has(program: &str) -> bool {
    place_of(program).is_some()
}

/// A conversation, and what its requests have left for later ones.
struct Session {
    talk: Conversation,
    past: command::ProfileSignal,
    owner: Option<owner::Owner>,
    looked: Option<sync::Looked>,
}

impl Session {
    fn answer(&mut self, request: Request) -> Result<(), Failure> {
        match request {
            Request::Own { key, token, make } => owner::own(&mut self.talk, &key, &token).and_then(|own| {
                self.owner = Some(own);
                make.map_or(Ok(()), |dir| make_tree(&mut self.talk, &dir))
            }),
            Request::Release {} => {
                if let Some(own) = self.owner.take() {
                    owner::Owner::release(own);
                }
                self.talk.say(&Reply::Released {})
            }
            Request::Look { lease_dir, name } => {
                self.looked = Some(sync::look(&lease_dir, &name));
                Ok(())
            }
            Request::Sync { sync } => sync::sync(&mut self.talk, &sync, self.looked.take()),
            Request::Changes { lease_dir, name } => changes::send(&mut self.talk, &lease_dir, &name),
            Request::Run { command } => {
                command::run(&mut self.talk, &command, self.owner.as_mut(), &self.past)
            }
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
                    since: self.owner.as_ref().and_then(|own| own.began),
                    once,
                };
                list::list(&mut self.talk, &dir, &choice)
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
                files::fetch(&mut self.talk, &dir, &taste)
            }
            Request::Digest { dir } => digest::digest(&mut self.talk, &dir),
            Request::Make { dir } => make_tree(&mut self.talk, &dir),
            Request::Tree { path, follow } => copy::tree(&mut self.talk, &path, follow),
            Request::Put { to, name, make } => copy::put(&mut self.talk, &to, &name, make),
            Request::Size { dir } => caches::size(&mut self.talk, Path::new(&dir)),
            Request::Clear { dir } => caches::clear(&mut self.talk, Path::new(&dir)),
            // They belong to a sync that has failed or a command that has ended, and have no answer.
            Request::End {}
            | Request::Directory { .. }
            | Request::File { .. }
            | Request::Hole { .. }
            | Request::Link { .. }
            | Request::Received {}
            | Request::Pack { .. }
            | Request::Finish {}
            | Request::Stop {}
            | Request::Ping {} => Ok(()),
        }
    }
}

/// Answers requests one after the other until the client goes.
fn serve() -> Result<(), Failure> {
    let mut session = Session {
        talk: Conversation::new()?,
        past: command::ProfileSignal::listen()?,
        owner: None,
        looked: None,
    };
    session.talk.say(&Reply::Hello {
        word: HELLO,
        rsync: has("rsync"),
    })?;
    sweep::sweep();
    let ended = loop {
        let request = match session.talk.hear() {
            Ok(ClientMessage::Request(request)) => request,
            // The rest of a list whose request has failed.
            Ok(ClientMessage::Piece) => continue,
            Err(failure) => break Err(failure),
        };
        match session.answer(request) {
            Ok(()) => {}
            Err(Failure::Gone) => break Err(Failure::Gone),
            Err(failure) => {
                if let Err(gone) = session.talk.say(&Reply::Failed { why: failure.why() }) {
                    break Err(gone);
                }
            }
        }
    };
    if let Some(own) = session.owner {
        own.abandon();
    }
    ended
}
