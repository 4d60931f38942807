//! Receives files of the lease from its agent.
//!
//! A number from the agent only selects one of the requested files; exactly as many bytes are accepted as
//! were announced.

use std::io;

use crabbox_agent_protocol::{Reply, Request, Stream};
use crabbox_ssh::agent_client::{AgentClient, AgentError, AgentMessage, short};

/// A file that is about to be received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Coming {
    /// Its index among the requested files.
    pub(crate) number: usize,
    /// Permission bits.
    pub(crate) mode: u32,
    /// When it was modified, unix seconds.
    pub(crate) seconds: i64,
    /// How many bytes will follow.
    pub(crate) size: u64,
}

/// Events while files are received.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fetched<'a> {
    /// A file begins.
    Begins(&'a Coming),
    /// The next bytes of the file.
    Piece(&'a [u8]),
    /// There is a problem with a file.
    Problem {
        /// Its index.
        number: usize,
        /// The path and the reason, as the lease reports them.
        text: &'a str,
        /// Whether its contents were not sent.
        lost: bool,
    },
}

/// Why files could not be received.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// The conversation with the lease failed.
    Agent(AgentError),
    /// The received data could not be processed.
    Sink(io::Error),
}

impl From<AgentError> for FetchError {
    fn from(error: AgentError) -> Self {
        Self::Agent(error)
    }
}

/// The requested files.
#[derive(Debug)]
pub(crate) struct FetchRequest<'a> {
    /// The directory that the names are relative to, absolute.
    pub(crate) dir: &'a str,
    /// The files.
    pub(crate) names: &'a [Vec<u8>],
    /// Whether a link in the last component of a path is followed.
    pub(crate) follow: bool,
    /// Whether to accept only files below the directory, wherever links lead.
    pub(crate) within: bool,
    /// Larger files are not sent, in bytes.
    pub(crate) limit: Option<u64>,
}

/// Requests files and passes the events to `take`. If `take` fails, the conversation is closed, because too
/// much unwanted data may follow.
pub(crate) fn fetch(
    far: &mut AgentClient,
    wanted: &FetchRequest<'_>,
    take: &mut dyn FnMut(Fetched<'_>) -> io::Result<()>,
) -> Result<(), FetchError> {
    let names = wanted.names;
    far.ask(&Request::Fetch {
        dir: wanted.dir.to_owned(),
        follow: wanted.follow,
        within: wanted.within,
        limit: wanted.limit,
    })?;
    far.send_list(&list(names))?;
    let (mut left, mut problems) = (0, 0);
    loop {
        let told;
        let heard = far.hear()?;
        let event = match &heard {
            AgentMessage::Bytes(Stream::Data) if far.bytes().len() as u64 <= left => {
                left -= far.bytes().len() as u64;
                Fetched::Piece(far.bytes())
            }
            AgentMessage::Reply(Reply::File {
                number,
                mode,
                seconds,
                size,
            }) if left == 0
                && is_one_of(*number, names)
                && wanted.limit.is_none_or(|limit| *size <= limit) =>
            {
                left = *size;
                let coming = Coming {
                    number: usize::try_from(*number).unwrap_or(usize::MAX),
                    mode: *mode,
                    seconds: *seconds,
                    size: *size,
                };
                give(far, take(Fetched::Begins(&coming)))?;
                continue;
            }
            // A file that is not sent has one problem, and a file that was sent may have one, too.
            AgentMessage::Reply(Reply::Problem { number, text, lost })
                if left == 0 && is_one_of(*number, names) && problems < 2 * names.len() =>
            {
                problems += 1;
                told = short(text.clone());
                Fetched::Problem {
                    number: usize::try_from(*number).unwrap_or(usize::MAX),
                    text: &told,
                    lost: *lost,
                }
            }
            AgentMessage::Reply(Reply::End {}) if left == 0 => return Ok(()),
            AgentMessage::Reply(Reply::Failed { why }) => {
                return Err(FetchError::Agent(AgentError::Failed { why: why.clone() }));
            }
            other => return Err(far.out_of_order(other).into()),
        };
        let taken = take(event);
        give(far, taken)?;
    }
}

fn give(far: &mut AgentClient, taken: io::Result<()>) -> Result<(), FetchError> {
    taken.map_err(|error| {
        far.give_up();
        FetchError::Sink(error)
    })
}

fn is_one_of(number: u32, names: &[Vec<u8>]) -> bool {
    usize::try_from(number).is_ok_and(|number| number < names.len())
}

/// Names, NUL after each.
pub(crate) fn list(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}
