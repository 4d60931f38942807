//! The far side of a lease: what runs there for the client that is connected, and ends with it.
//!
//! It speaks over its standard streams (`crabbox-agent-protocol`): takes the lock of the tree, makes it what the manifest says, runs the
//! command, lists and sends files. It must never outlive its client with the lock in its hands, follow a link out of the tree when it removes
//! something, or believe a number that the client has not sent.

mod bytes;
mod caches;
mod carry;
mod changes;
mod command;
mod copy;
mod failure;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod git;
mod index;
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

use crabbox_agent_protocol::{HELLO, Reply, Request};

use failure::Failure;
use files::{Choice, Taste};
use talk::{Heard, Talk};

/// Serves the client at the other end of the standard streams.
pub fn main() -> ExitCode {
    // Whoever has gone hears nothing, and has no use for an exit code.
    match serve() {
        Ok(()) | Err(Failure::Gone) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            ExitCode::FAILURE
        }
    }
}

fn make_directory(talk: &mut Talk, dir: &str) -> Result<(), Failure> {
    sync::make_private(Path::new(dir))?;
    talk.say(&Reply::Made {})
}

/// Whether a program of this name is on the path.
fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Answers one question after the other until the client goes.
fn serve() -> Result<(), Failure> {
    let mut talk = Talk::new()?;
    let past = command::Past::listen()?;
    talk.say(&Reply::Hello {
        word: HELLO,
        rsync: has("rsync"),
    })?;
    sweep::sweep();
    let mut owner = None;
    let mut looked = None;
    let ended = loop {
        let request = match talk.hear() {
            Ok(Heard::Request(request)) => request,
            // The rest of a list that nobody reads any more.
            Ok(Heard::Piece) => continue,
            Err(failure) => break Err(failure),
        };
        let done = match request {
            Request::Own { key, token, make } => owner::own(&mut talk, &key, &token).and_then(|own| {
                owner = Some(own);
                make.map_or(Ok(()), |dir| make_directory(&mut talk, &dir))
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
                skipped,
                written,
                named,
            } => {
                let choice = Choice {
                    skipped,
                    written,
                    since: owner.as_ref().and_then(|own| own.began),
                    named,
                };
                files::list(&mut talk, &dir, &choice)
            }
            Request::Fetch { dir, follow, limit } => files::fetch(&mut talk, &dir, &Taste { follow, limit }),
            Request::Make { dir } => make_directory(&mut talk, &dir),
            Request::Tree { path, follow } => copy::tree(&mut talk, &path, follow),
            Request::Put { to, name, make } => copy::put(&mut talk, &to, &name, make),
            Request::Size { dir } => caches::size(&mut talk, Path::new(&dir)),
            Request::Clear { dir } => caches::clear(&mut talk, Path::new(&dir)),
            // What belongs to a conversation that has failed, or to a command that has ended.
            _ => Ok(()),
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
