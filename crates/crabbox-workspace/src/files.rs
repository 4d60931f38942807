//! Files of the lease, as its agent sends them.
//!
//! A number from the other side only selects which of the files that were asked for it is; as many bytes are taken as were announced, and not one
//! more.

use std::io;

use crabbox_agent_protocol::{Reply, Request, Stream};
use crabbox_ssh::far::{Far, FarError, Heard, short};

/// A file that is about to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Coming {
    /// Its place among those that were asked for.
    pub(crate) number: usize,
    /// Permission bits.
    pub(crate) mode: u32,
    /// When it was modified, unix seconds.
    pub(crate) seconds: i64,
    /// How many bytes will come.
    pub(crate) size: u64,
}

/// What happens while files come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fetched<'a> {
    /// One begins.
    Begins(&'a Coming),
    /// The next bytes of it.
    Piece(&'a [u8]),
    /// Something is wrong with one.
    Problem {
        /// Its place.
        number: usize,
        /// The path and the reason, as the lease has it.
        text: &'a str,
        /// Whether its contents did not come.
        lost: bool,
    },
}

/// Why files did not come.
#[derive(Debug)]
pub(crate) enum FetchError {
    /// The lease.
    Far(FarError),
    /// What came could not be handed on.
    Sink(io::Error),
}

impl From<FarError> for FetchError {
    fn from(error: FarError) -> Self {
        Self::Far(error)
    }
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The directory that the names are seen from, absolute.
    pub(crate) dir: &'a str,
    /// The files.
    pub(crate) names: &'a [Vec<u8>],
    /// Whether a link in the last place of a path is followed.
    pub(crate) follow: bool,
    /// Files of more bytes do not come.
    pub(crate) limit: Option<u64>,
}

/// Asks for files, and gives to `take` what happens. When `take` fails, the conversation is over: there may be more to come than anybody waits for.
pub(crate) fn fetch(
    far: &mut Far,
    wanted: &Wanted<'_>,
    take: &mut dyn FnMut(Fetched<'_>) -> io::Result<()>,
) -> Result<(), FetchError> {
    let names = wanted.names;
    far.ask(&Request::Fetch {
        dir: wanted.dir.to_owned(),
        follow: wanted.follow,
        limit: wanted.limit,
    })?;
    far.send_list(&list(names))?;
    let (mut left, mut problems) = (0, 0);
    loop {
        let told;
        let heard = far.hear()?;
        let event = match &heard {
            Heard::Bytes(Stream::Data) if far.bytes().len() as u64 <= left => {
                left -= far.bytes().len() as u64;
                Fetched::Piece(far.bytes())
            }
            Heard::Reply(Reply::File {
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
            // One that does not come has one, and one that came may have another.
            Heard::Reply(Reply::Problem { number, text, lost })
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
            Heard::Reply(Reply::End {}) if left == 0 => return Ok(()),
            Heard::Reply(Reply::Failed { why }) => {
                return Err(FetchError::Far(FarError::Failed { why: why.clone() }));
            }
            other => return Err(far.out_of_order(other).into()),
        };
        let taken = take(event);
        give(far, taken)?;
    }
}

fn give(far: &mut Far, taken: io::Result<()>) -> Result<(), FetchError> {
    taken.map_err(|error| {
        far.give_up();
        FetchError::Sink(error)
    })
}

fn is_one_of(number: u32, names: &[Vec<u8>]) -> bool {
    usize::try_from(number).is_ok_and(|number| number < names.len())
}

/// Names, NUL after each.
fn list(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}
