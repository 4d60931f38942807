//! The client of a supervisor's control socket. Every request has one deadline for connection, request and
//! reply.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::unix::{self, DeadlineStream, SocketError};
use crabbox_store::places::LeaseDir;

use super::{LIMIT, LineError, Reply, Verb};

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// Nothing listens: the supervisor has ended.
    #[error("no supervisor listens on {}", .0.display())]
    Absent(std::path::PathBuf),
    /// No process of a job waits there: it has not started yet, or has ended.
    #[error("no job is listening on {}", .0.display())]
    NoJob(std::path::PathBuf),
    /// The process of the job has already accepted a request.
    #[error("it has already accepted a request")]
    JobTaken,
    /// The socket cannot be reached, or belongs to another user.
    #[error("cannot reach the lease's supervisor")]
    Socket(#[source] SocketError),
    /// It was reached, and the request could not be sent.
    #[error("cannot send a request to the lease's supervisor")]
    Send(#[source] std::io::Error),
    /// The supervisor refuses to give its lease away.
    #[error("the lease is not available: {why}")]
    Refused {
        /// Why.
        why: String,
    },
    /// The answer is not a valid reply.
    #[error("invalid reply from the lease's supervisor")]
    Reply(#[source] LineError),
}

impl Fault for ReplyError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Absent(_) => {
                vec!["a supervisor that was killed is replaced by the next command".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

/// Sends a request to the supervisor of the lease in `dir`. The reply must not decide whether anything is
/// destroyed or kept.
pub fn ask(dir: &LeaseDir, verb: &Verb) -> Result<Reply, ReplyError> {
    say(dir, verb).map(|(reply, _)| reply)
}

/// Takes the lease in `dir`, a member of `pool`. From here on the connection is that of a lease that is being
/// made.
pub(crate) fn claim(dir: &LeaseDir, pool: &str) -> Result<UnixStream, ReplyError> {
    let verb = Verb::Claim {
        pool: pool.to_owned(),
    };
    match say(dir, &verb)? {
        (Reply::Yours, stream) => stream.into_inner().map_err(ReplyError::Send),
        (Reply::Refused { why }, _) => Err(ReplyError::Refused { why }),
        (reply, _) => Err(ReplyError::Refused {
            why: format!("its supervisor said {reply:?}"),
        }),
    }
}

fn say(dir: &LeaseDir, verb: &Verb) -> Result<(Reply, DeadlineStream<'static>), ReplyError> {
    let path = dir.supervisor_socket();
    let stream = unix::connect_to_own(&path).map_err(|error| {
        if error.is_absent() {
            ReplyError::Absent(path.clone())
        } else {
            ReplyError::Socket(error)
        }
    })?;
    let mut stream = DeadlineStream::new(stream);
    stream.set_limit(LIMIT);
    let request = super::line(verb).map_err(|error| ReplyError::Send(error.into()))?;
    stream.write_all(&request).map_err(ReplyError::Send)?;
    // `read` may read ahead, but the supervisor sends nothing more until the client's next request, so
    // nothing is lost.
    let reply = super::read(&mut stream).map_err(ReplyError::Reply)?;
    Ok((reply, stream))
}
