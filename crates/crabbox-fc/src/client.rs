//! The conversation with one Firecracker: a request, its response, the next request, over one connection.
//!
//! The caller opens the stream and sets its deadlines. If a request ends without a response, the position in
//! the stream is unknown, so the client refuses to continue: it must never take the response to one request
//! for that of another.

use std::io::{ErrorKind, Read, Write};

use crate::request::{Endpoint, Request};
use crate::response::{self, ReadFailure};
use crate::types::FaultMessage;

pub use crate::response::Response;

/// How much of a refusal that is not Firecracker's JSON is included in a message, in bytes.
const FAULT_TEXT_LIMIT: usize = 400;

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed.
    #[error("cannot communicate with Firecracker ({endpoint})")]
    Io {
        /// The request.
        endpoint: Endpoint,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Firecracker closed the connection without a complete response, usually because it ended; its log says
    /// why.
    #[error("Firecracker closed the connection before it answered {endpoint}")]
    Closed {
        /// The request.
        endpoint: Endpoint,
    },
    /// No complete response came before the stream's deadline.
    #[error("Firecracker did not answer {endpoint} in time")]
    TimedOut {
        /// The request.
        endpoint: Endpoint,
    },
    /// The bytes are not a response of Firecracker's API.
    #[error("invalid answer to {endpoint}: {problem}")]
    MalformedResponse {
        /// The request.
        endpoint: Endpoint,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The response is longer than any that Firecracker gives.
    #[error("the answer to {endpoint} is longer than {limit} bytes")]
    TooLarge {
        /// The request.
        endpoint: Endpoint,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Firecracker refused.
    #[error("Firecracker refused {endpoint} (status {status}): {message}")]
    Fault {
        /// The request.
        endpoint: Endpoint,
        /// The HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
    /// An earlier request ended without a response, so this connection can no longer be used.
    #[error("cannot send {endpoint}: an earlier request on this connection was not answered")]
    Unusable {
        /// The request that was not sent.
        endpoint: Endpoint,
    },
}

/// A connection to one Firecracker.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    unread: Vec<u8>,
    usable: bool,
}

impl<S> Client<S> {
    /// A client over a connected stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            unread: Vec::new(),
            usable: true,
        }
    }

    /// The stream, for its deadline.
    pub fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends `request` and reads its response. A refusal is an error, after which the client can still be
    /// used.
    pub fn send(&mut self, request: &Request) -> Result<Response, ClientError> {
        let endpoint = &request.endpoint;
        if !self.usable {
            return Err(ClientError::Unusable {
                endpoint: endpoint.clone(),
            });
        }
        let outcome = self.exchange(request);
        self.usable = outcome.is_ok();
        let response = outcome.map_err(|failure| describe(failure, endpoint.clone()))?;
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let message = fault_text(&response.body);
        Err(ClientError::Fault {
            endpoint: endpoint.clone(),
            status: response.status,
            message,
        })
    }

    fn exchange(&mut self, request: &Request) -> Result<Response, ReadFailure> {
        let sent = self
            .stream
            .write_all(&request.encode())
            .and_then(|()| self.stream.flush());
        match sent {
            Ok(()) => {}
            // Firecracker may have responded and closed the connection before reading everything (a body that
            // is too long), so read on.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
                return Err(ReadFailure::TimedOut);
            }
            Err(error) => return Err(ReadFailure::Io(error)),
        }
        let response = response::read(&mut self.stream, &mut self.unread)?;
        if self.unread.is_empty() {
            Ok(response)
        } else {
            Err(ReadFailure::Malformed("bytes follow its end"))
        }
    }
}

fn describe(failure: ReadFailure, endpoint: Endpoint) -> ClientError {
    match failure {
        ReadFailure::Closed => ClientError::Closed { endpoint },
        ReadFailure::TimedOut => ClientError::TimedOut { endpoint },
        ReadFailure::Malformed(problem) => ClientError::MalformedResponse { endpoint, problem },
        ReadFailure::TooLarge(limit) => ClientError::TooLarge { endpoint, limit },
        ReadFailure::Io(source) => ClientError::Io { endpoint, source },
    }
}

/// The message of a refusal; if it is not Firecracker's JSON, its beginning as text.
fn fault_text(body: &[u8]) -> String {
    match serde_json::from_slice::<FaultMessage>(body) {
        Ok(fault) => fault.fault_message,
        Err(_) => String::from_utf8_lossy(&body[..body.len().min(FAULT_TEXT_LIMIT)])
            .trim()
            .to_owned(),
    }
}

#[cfg(test)]
mod tests;
