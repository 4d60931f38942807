//! Downloads over HTTP: they resume where they stopped, and the target is complete or absent.
//!
//! A partial download is kept next to the target as `<name>.part`, with the server's validator (`ETag` or
//! date) in `<name>.tag`; it is resumed only with the same validator. It must never join two versions of a
//! file, or return one that is shorter than the server announced.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::digest;
use crate::files::{self, FileError};

/// Number of attempts without progress before a download fails.
const TRIES: u32 = 4;

/// Timeout of a connection, and of the first byte of a response.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Bytes per read.
const CHUNK: usize = 256 * 1024;

/// Why a file could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server cannot be reached, or does not speak HTTP.
    #[error("cannot download {url}")]
    Request {
        /// The URL.
        url: String,
        /// The reason.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server returned an error status.
    #[error("cannot download {url}: the server answered with status {status}")]
    Status {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The connection ended too early, repeatedly.
    #[error("the download of {url} stopped at byte {got} of {}", expected.map_or_else(|| "an unknown number".to_owned(), |expected| expected.to_string()))]
    Interrupted {
        /// The URL.
        url: String,
        /// Bytes received.
        got: u64,
        /// Bytes announced by the server.
        expected: Option<u64>,
        /// The system's error; `None` if the connection just ended.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The content is not the expected one.
    #[error("refusing {url}: its SHA-256 is {found}, expected {expected}")]
    WrongDigest {
        /// The URL.
        url: String,
        /// The expected digest.
        expected: String,
        /// The actual digest.
        found: String,
    },
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl DownloadError {
    /// Whether a retry may help.
    fn is_passing(&self) -> bool {
        match self {
            Self::Interrupted { .. } => true,
            Self::Request { source, .. } => matches!(
                **source,
                ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed
            ),
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::WrongDigest { .. } | Self::File(_) => false,
        }
    }
}

/// Downloads `url` to the file `to`, which is complete afterwards or unchanged; `sha256` is the expected
/// digest, if known.
///
/// `told` is called with the number of bytes received and expected. If the server fails, the partial download
/// stays next to `to`, and the next call resumes it; after a write error or with a wrong digest nothing is
/// kept.
pub fn fetch(
    url: &str,
    to: &Path,
    sha256: Option<&str>,
    told: &mut dyn FnMut(u64, Option<u64>),
) -> Result<(), DownloadError> {
    let part = Part::beside(to);
    let agent = agent(url);
    let mut idle_tries = 0;
    loop {
        let before = part.length();
        match attempt(&agent, url, &part, told) {
            Ok(()) => break,
            Err(error) if error.is_passing() && idle_tries < TRIES => {
                idle_tries = if part.length() > before { 0 } else { idle_tries + 1 };
                // Wait a moment, because a busy server may need it.
                clock::poll_until(Duration::from_millis(200) * (idle_tries + 1), || None::<()>);
            }
            Err(error) => {
                // If the disk is full, a useless partial download must not keep it full.
                if matches!(error, DownloadError::File(_)) {
                    part.forget();
                }
                return Err(error);
            }
        }
    }
    if let Some(expected) = sha256 {
        let found = digest::sha256_file(&part.data)?;
        if !found.eq_ignore_ascii_case(expected) {
            part.forget();
            return Err(DownloadError::WrongDigest {
                url: url.to_owned(),
                expected: expected.to_owned(),
                found,
            });
        }
    }
    std::fs::rename(&part.data, to).map_err(|source| FileError::io("put the download at", to, source))?;
    part.forget();
    Ok(())
}

/// A partial file and its version.
#[derive(Debug)]
struct Part {
    data: PathBuf,
    tag: PathBuf,
}

impl Part {
    fn beside(to: &Path) -> Self {
        let with = |end: &str| {
            let mut name = to.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        Self {
            data: with(".part"),
            tag: with(".tag"),
        }
    }

    fn length(&self) -> u64 {
        std::fs::metadata(&self.data).map_or(0, |facts| facts.len())
    }

    /// The server's validator of the partial file; without one the download cannot be resumed.
    fn mark(&self) -> Option<String> {
        std::fs::read_to_string(&self.tag)
            .ok()
            .filter(|mark| !mark.is_empty() && self.length() > 0)
    }

    fn forget(&self) {
        // If they cannot be removed, the next download of the same file resumes or overwrites them.
        std::fs::remove_file(&self.data).ok();
        std::fs::remove_file(&self.tag).ok();
    }

    /// Opens the partial file for the next bytes: at its end, or truncated for the version `mark`.
    fn open(&self, resume: bool, mark: Option<&str>) -> Result<File, FileError> {
        if !resume {
            files::write_atomic(&self.tag, mark.unwrap_or_default().as_bytes(), 0o600)?;
        }
        File::options()
            .create(true)
            .append(resume)
            .write(true)
            .truncate(!resume)
            .open(&self.data)
            .map_err(|source| FileError::io("write", &self.data, source))
    }
}

fn agent(url: &str) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(ANSWER_LIMIT))
        .timeout_recv_response(Some(ANSWER_LIMIT));
    // Use no proxy for loopback: a proxy cannot reach this machine's loopback.
    let host = url.split("://").nth(1).unwrap_or_default();
    if ["127.", "localhost", "[::1]"]
        .iter()
        .any(|local| host.starts_with(local))
    {
        config = config.proxy(None);
    }
    config.build().into()
}

/// One request: from the beginning, or from the end of the partial file.
fn attempt(
    agent: &ureq::Agent,
    url: &str,
    part: &Part,
    told: &mut dyn FnMut(u64, Option<u64>),
) -> Result<(), DownloadError> {
    let (here, mark) = (part.length(), part.mark());
    let mut request = agent.get(url);
    if let Some(mark) = &mark {
        request = request
            .header("Range", format!("bytes={here}-"))
            .header("If-Range", mark);
    }
    let mut response = request.call().map_err(|source| DownloadError::Request {
        url: url.to_owned(),
        source: Box::new(source),
    })?;
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let length = header("content-length").and_then(|length| length.parse::<u64>().ok());
    let resume = match status {
        200 => false,
        // Only a range that begins at the end of the partial file can be appended to it.
        206 if mark.is_some()
            && header("content-range").is_some_and(|range| range.starts_with(&format!("bytes {here}-"))) =>
        {
            true
        }
        // The partial file does not match the server's file: the next request asks for the whole.
        206 | 416 if mark.is_some() => {
            part.forget();
            return Err(DownloadError::Interrupted {
                url: url.to_owned(),
                got: 0,
                expected: None,
                source: None,
            });
        }
        status => {
            let url = url.to_owned();
            return Err(DownloadError::Status { url, status });
        }
    };
    let new_mark = header("etag")
        .filter(|tag| !tag.starts_with("W/"))
        .or_else(|| header("last-modified"))
        .map(str::to_owned);
    let mut got = if resume { here } else { 0 };
    let expected = length.map(|length| length + got);
    let mut file = part.open(resume, new_mark.as_deref())?;
    let interrupted = |got, source| DownloadError::Interrupted {
        url: url.to_owned(),
        got,
        expected,
        source,
    };
    let mut body = response.body_mut().as_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        told(got, expected);
        match body.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                file.write_all(&chunk[..count])
                    .map_err(|source| FileError::io("write", &part.data, source))?;
                got += count as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(interrupted(got, Some(error))),
        }
    }
    if expected.is_some_and(|expected| got != expected) {
        return Err(interrupted(got, None));
    }
    file.sync_all()
        .map_err(|source| FileError::io("make durable", &part.data, source))?;
    Ok(())
}

#[cfg(test)]
mod tests;
