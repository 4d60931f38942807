//! The far side of a sync: the program in `agent/`, sent along with every call, and what it answers.
//!
//! Nothing is installed in the lease. What comes back was written by a machine that runs foreign code: it is bounded and
//! checked, and it must never make this side do more than send files of the manifest.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crabbox_host::clock::poll_until;
use crabbox_host::command::CommandError;
use crabbox_ssh::beginning::{Beginning, Instead, NotBegun, await_mark};
use crabbox_ssh::quote;
use crabbox_ssh::remote_line::{RemoteLine, START_LIMIT, Start};
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::python::{self, NO_PYTHON};
use crate::seed::Seed;

const PROGRAM: &str = concat!(
    include_str!("agent/base.py"),
    include_str!("agent/look.py"),
    include_str!("agent/record.py"),
    include_str!("agent/remove.py"),
    include_str!("agent/receive.py"),
    include_str!("agent/seed.py"),
    include_str!("agent/index.py"),
    include_str!("agent/steps.py"),
);

/// What runs in the lease, with the workdir, the agent's directory and `trust` as its arguments. The shell alone answers "same":
/// `stat` over the lists of the last sync, several at a time, must give what the agent wrote down (whatever changes a file or its
/// name changes the ctime or the inode), and the fingerprint that comes over standard input must be the one of that sync. It waits
/// for a line before it looks; the looking goes on while this side still looks at its own tree. A path that is gone has no line, so
/// that lines in the order of the list need no name; and `xargs` hands out a megabyte of names at once, or what the system takes.
/// Otherwise python reads the program from standard input and goes into it, and is told whether the tree was kept as it was.
const SCRIPT: &str = r#"
read -r s || exit 0
s=- h= f=- k=-
[ "$3" = trust ] && cd "$1" 2>/dev/null && read -r f s <"$2/stamp" && h=$({
  for p in "$2"/paths.*; do
    [ -e "$p" ] && xargs -0 -s 1000000 stat --printf "%.9Z %i\0" -- <"$p" | sha256sum &
  done
  [ -e "$2/ways" ] && xargs -0 stat --printf "%f %n\0" -- <"$2/ways" | sha256sum
  wait
} 2>/dev/null | LC_ALL=C sort | sha256sum)
[ "${h%% *}" = "$s" ] && k=kept
read -r w || exit 0
[ "$w$k" = "${f}kept" ] && echo '{"state":"same"}' && exit 0
"#;

/// The program that python is started with.
const LOADER: &str = "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))";

/// A fingerprint that equals no other, for a comparison that must not say "same".
const NONE: &str = "none";

/// OpenSSH's exit status when the connection, not the command, failed.
const SSH_FAILED: i32 = 255;

/// A reply longer than this many bytes is not one.
const REPLY_LIMIT: u64 = 64 << 20;

/// How many replies may wait to be read: each question has one. Whoever sends more waits, and fills no memory of ours.
const WAITING_REPLIES: usize = 1;

/// How much of standard error is kept.
const STDERR_KEPT: usize = 16 * 1024;

/// When somebody else is taken to read our input. A handshake comes first where no connection is open, and rsync is not used after
/// it, so this is more than a slow login takes.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a sync asks for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request<'a> {
    /// `<workRoot>/<leaseID>`.
    pub(crate) lease_dir: &'a str,
    /// The directory in it.
    pub(crate) name: &'a str,
    /// Equal to that of the last sync only if nothing changed here.
    pub(crate) fingerprint: &'a str,
    /// The fingerprint of the manifest that this side can tell the changes since; empty when there is none.
    pub(crate) base: &'a str,
    /// Prune what earlier syncs brought and the manifest has no more.
    pub(crate) delete: bool,
    /// Remove the workdir first.
    pub(crate) reset: bool,
    /// Do not believe the record: everything is to be compared by rsync.
    pub(crate) distrust: bool,
    /// The repository that the workdir is to be, if any.
    pub(crate) seed: Option<&'a Seed>,
}

/// What the far side says.
#[derive(Debug, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum Reply {
    /// Nothing to do.
    Same,
    /// Send the manifest.
    Differs,
    /// Send what changed since the base.
    Patch,
    /// The files arrived.
    Received,
    /// Send these entries of the manifest, by their place in it.
    Stale {
        #[serde(default)]
        all: bool,
        #[serde(default)]
        stale: Vec<usize>,
        seed: SeedState,
    },
    /// Written down; these entries are not as they were to be.
    Done {
        #[serde(default)]
        unsettled: Vec<usize>,
        /// Why git's index does not say what it says here, which harms nothing else.
        #[serde(default)]
        unseeded: Option<String>,
    },
    /// The repository is as asked.
    Seeded,
    /// It is not, which harms nothing else.
    Unseeded { why: String },
    /// A step could not be done.
    Failed { why: String },
}

/// What the repository in the lease needs.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct SeedState {
    pub(crate) needed: bool,
    /// The commit that it has from the last seed, hex, or empty.
    #[serde(default)]
    pub(crate) have: String,
    /// What it was told then to be the base, hex, or empty.
    #[serde(default)]
    pub(crate) have_base: String,
}

/// Why a step on the far side gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// ssh could not be run.
    #[error("cannot run the command that reaches the lease")]
    Run {
        /// How it failed.
        #[source]
        source: CommandError,
    },
    /// No answer in time.
    #[error("timed out after {}s", limit.as_secs())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The connection failed.
    #[error("the connection to the lease failed: {said}")]
    Connection {
        /// The end of what ssh said.
        said: String,
    },
    /// Pipes or random numbers could not be had from this machine.
    #[error("cannot prepare the session of a sync")]
    Local {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The login shell of the lease did not run our line.
    #[error("the lease's side of the sync was not started: {0}")]
    NotBegun(NotBegun),
    /// The lease has no Python that is new enough.
    #[error("{said}, or pass --no-sync")]
    NoPython {
        /// What it said of that, with those that are too old.
        said: String,
    },
    /// The far side broke off.
    #[error("the lease's side of the sync ended with exit code {code}: {said}")]
    Broke {
        /// Its exit code; -1 when a signal ended it.
        code: i32,
        /// The last line it said.
        said: String,
    },
    /// The answer is not an answer.
    #[error("the lease's side of the sync answered {text:?}")]
    Nonsense {
        /// The beginning of the answer.
        text: String,
    },
}

/// One conversation: a single remote process from the first question to the last line.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    input: Input,
    lines: Receiver<Vec<u8>>,
    stderr: Option<JoinHandle<(Start, Vec<u8>)>>,
    noisy: bool,
    limit: Option<Duration>,
}

/// The way to the far side's standard input.
#[derive(Debug)]
enum Input {
    /// The login shell has not come to our line yet. A word to the first lets it look; the second has the input then.
    Opening(Sender<()>, Receiver<Result<Opened, Unopened>>),
    Open(ChildStdin),
    /// It broke, or the line never ran: then only the exit code is of interest.
    Broken,
}

/// Where the script runs.
#[derive(Debug)]
struct Opened {
    input: ChildStdin,
    noisy: bool,
}

/// Why it does not.
#[derive(Debug)]
enum Unopened {
    /// The output ended before the mark.
    Ended(Start),
    /// The mark did not come in time.
    Late(Start),
    Local(io::Error),
}

impl Session {
    /// Starts the far side, which waits for [`Self::look`]. With `trust` it may answer by the record of the last sync.
    pub(crate) fn start(
        channel: &Channel,
        workdir: &str,
        meta: &str,
        trust: bool,
        limit: Option<Duration>,
    ) -> Result<Self, AgentError> {
        let line = RemoteLine::new().map_err(|source| AgentError::Local { source })?;
        let trust = if trust { "trust" } else { "distrust" };
        let words = quote::join([workdir, meta, trust]);
        let script = format!("set -- {words}{SCRIPT}{}", python::script(LOADER, "\"$k\""));
        let cmd = channel.command(&line);
        let mut command = cmd.to_std();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = cmd
            .spawn(&mut command)
            .map_err(|source| AgentError::Run { source })?;
        let (sender, lines) = sync_channel(WAITING_REPLIES);
        let (look, looks) = mpsc::channel();
        let (open, opening) = mpsc::channel();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let start = line.start_of_errors();
        if let (Some(input), Some(output)) = (stdin, stdout) {
            std::thread::spawn(move || converse(&line, &script, (input, output), &looks, &open, &sender));
        }
        Ok(Self {
            child,
            input: Input::Opening(look, opening),
            lines,
            stderr: stderr.map(|stream| std::thread::spawn(move || hear(stream, start))),
            noisy: false,
            limit,
        })
    }

    /// Lets the far side look at what it has, as soon as it is there.
    pub(crate) fn look(self) -> Self {
        if let Input::Opening(look, _) = &self.input {
            // A thread that has ended already has said why.
            look.send(()).ok();
        }
        self
    }

    /// Whether the start-up files there print something or take their time.
    pub(crate) fn is_noisy(&self) -> bool {
        self.noisy
    }

    /// Waits until the script runs.
    fn opened(&mut self) -> Result<(), AgentError> {
        let Input::Opening(_, opening) = &self.input else {
            return Ok(());
        };
        let opened = match self.limit {
            Some(limit) => match opening.recv_timeout(limit) {
                Err(RecvTimeoutError::Timeout) => return Err(AgentError::TimedOut { limit }),
                other => other.ok(),
            },
            None => opening.recv().ok(),
        };
        self.input = Input::Broken;
        match opened {
            Some(Ok(Opened { input, noisy })) => {
                self.input = Input::Open(input);
                self.noisy = noisy;
                Ok(())
            }
            Some(Err(Unopened::Local(source))) => Err(AgentError::Local { source }),
            Some(Err(Unopened::Late(start))) => {
                self.child.kill().ok();
                Err(not_begun(Instead::Waited(START_LIMIT), &start, String::new()))
            }
            Some(Err(Unopened::Ended(start))) if start.is_flooded() => {
                self.child.kill().ok();
                Err(not_begun(Instead::Flooded, &start, String::new()))
            }
            Some(Err(Unopened::Ended(start))) => Err(match self.verdict() {
                AgentError::Broke { code, said } => not_begun(Instead::Exited(code), &start, said),
                AgentError::NoPython { said } => not_begun(Instead::Exited(NO_PYTHON), &start, said),
                error => error,
            }),
            None => Err(self.verdict()),
        }
    }

    /// Asks the question and gets the first answer.
    pub(crate) fn ask(&mut self, request: &Request<'_>) -> Result<Reply, AgentError> {
        let header = serde_json::to_string(request).map_err(|error| AgentError::Nonsense {
            text: error.to_string(),
        })?;
        let fingerprint = if request.reset || request.distrust {
            NONE
        } else {
            request.fingerprint
        };
        self.opened()?;
        self.send(format!("{fingerprint}\n{}\n{PROGRAM}{header}\n", PROGRAM.len()).as_bytes());
        self.reply()
    }

    /// Sends bytes. A pipe that breaks is not an error here: the missing answer is, and its exit code says why.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if let Input::Open(input) = &mut self.input
            && input.write_all(bytes).and_then(|()| input.flush()).is_err()
        {
            self.input = Input::Broken;
        }
    }

    /// Sends bytes with their number before them.
    pub(crate) fn send_counted(&mut self, bytes: &[u8]) {
        self.send(format!("{}\n", bytes.len()).as_bytes());
        self.send(bytes);
    }

    /// Lets `write` send as much as it likes, within the limit of a step.
    pub(crate) fn pour<T: Send>(
        &mut self,
        write: impl FnOnce(&mut ChildStdin) -> T + Send,
    ) -> Result<T, AgentError> {
        let Input::Open(mut input) = std::mem::replace(&mut self.input, Input::Broken) else {
            return Err(self.verdict());
        };
        let (done, finished) = std::sync::mpsc::channel::<()>();
        let (input, written, late) = std::thread::scope(|threads| {
            let writer = threads.spawn(move || {
                let written = write(&mut input);
                drop(done);
                (input, written)
            });
            let late = match self.limit {
                Some(limit) => {
                    (finished.recv_timeout(limit) == Err(RecvTimeoutError::Timeout)).then_some(limit)
                }
                None => finished.recv().err().and(None),
            };
            if late.is_some() {
                // The pipe breaks, and the writer comes back.
                self.child.kill().ok();
            }
            let (input, written) = writer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (input, written, late)
        });
        self.input = Input::Open(input);
        match late {
            Some(limit) => Err(AgentError::TimedOut { limit }),
            None => Ok(written),
        }
    }

    /// Waits for the next answer.
    pub(crate) fn reply(&mut self) -> Result<Reply, AgentError> {
        let line = match self.limit {
            Some(limit) => match self.lines.recv_timeout(limit) {
                Err(RecvTimeoutError::Timeout) => return Err(AgentError::TimedOut { limit }),
                other => other.ok(),
            },
            None => self.lines.recv().ok(),
        };
        match line {
            Some(line) => serde_json::from_slice(&line).map_err(|_| AgentError::Nonsense {
                text: String::from_utf8_lossy(&line).chars().take(200).collect(),
            }),
            None => Err(self.verdict()),
        }
    }

    /// Why there is no answer any more.
    fn verdict(&mut self) -> AgentError {
        self.input = Input::Broken;
        // Whoever still sends gets a broken pipe, not a reader that will never come back.
        self.lines = sync_channel(0).1;
        let status = match self.child.wait() {
            Ok(status) => status.code(),
            Err(_) => None,
        };
        let heard = self.stderr.take().and_then(|thread| thread.join().ok());
        let said = heard.map_or_else(String::new, |(start, kept)| {
            let text = String::from_utf8_lossy(&kept);
            let mut lines = text.lines().rev().map(str::trim);
            let last = lines.find(|line| !line.is_empty()).map(str::to_owned);
            // What ssh itself says of a connection that failed comes where the mark would have been.
            last.unwrap_or_else(|| {
                if start.has_begun() {
                    String::new()
                } else {
                    start.printed()
                }
            })
        });
        let said = if said.is_empty() {
            "no message".to_owned()
        } else {
            said
        };
        match status {
            Some(SSH_FAILED) => AgentError::Connection { said },
            Some(NO_PYTHON) => AgentError::NoPython { said },
            code => AgentError::Broke {
                code: code.unwrap_or(-1),
                said,
            },
        }
    }
}

impl Drop for Session {
    /// The far side ends when its input does; ours is not left to linger.
    fn drop(&mut self) {
        self.input = Input::Broken;
        let ended = poll_until(Duration::from_millis(500), || {
            self.child.try_wait().ok().flatten()
        });
        if ended.is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn not_begun(instead: Instead, start: &Start, said: String) -> AgentError {
    let printed = match start.printed() {
        printed if printed.is_empty() => said,
        printed => printed,
    };
    AgentError::NotBegun(NotBegun { instead, printed })
}

/// The far side's thread: waits for the mark, sends the script, lets it look when that is wanted, and hands on its lines.
fn converse(
    line: &RemoteLine,
    script: &str,
    (mut input, mut output): (ChildStdin, ChildStdout),
    looks: &Receiver<()>,
    open: &Sender<Result<Opened, Unopened>>,
    lines: &SyncSender<Vec<u8>>,
) {
    // Nobody listens to what is said of a session that was given up.
    let (behind, noisy) = match await_mark(line, &mut input, &mut output, PATIENCE, None, None) {
        Ok(Beginning::Begun { behind, noisy }) => (behind, noisy),
        Ok(Beginning::Ended(start)) => return drop(open.send(Err(Unopened::Ended(start)))),
        Ok(Beginning::Late(start)) => return drop(open.send(Err(Unopened::Late(start)))),
        Ok(Beginning::Cancelled) => return,
        Err(error) => return drop(open.send(Err(Unopened::Local(error)))),
    };
    // If it breaks, the missing answer tells.
    input.write_all(&line.preamble(script)).ok();
    if looks.recv().is_err() {
        return;
    }
    input.write_all(b"look\n").ok();
    if open.send(Ok(Opened { input, noisy })).is_ok() {
        forward(io::Cursor::new(behind).chain(output), lines);
    }
}

/// Reads standard error to its end, and keeps the beginning of what comes behind the mark.
fn hear(mut stream: ChildStderr, mut start: Start) -> (Start, Vec<u8>) {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => {
                let behind = start.take(&chunk[..count]);
                let room = STDERR_KEPT.saturating_sub(kept.len());
                kept.extend_from_slice(&behind[..behind.len().min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A stream that cannot be read has nothing to say; the exit code still counts.
            Ok(_) | Err(_) => return (start, kept),
        }
    }
}

/// Hands on line after line, without their ends, until the stream or the listener ends.
fn forward(stream: impl Read, lines: &SyncSender<Vec<u8>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(REPLY_LIMIT).read_until(b'\n', &mut line) {
            Ok(1..) if line.ends_with(b"\n") => {
                line.pop();
                if lines.send(line).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Short lines without an end, and how many bytes of them were taken.
    struct Flood<'a>(&'a AtomicU64);

    impl Read for Flood<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(b'\n');
            self.0.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            Ok(buffer.len())
        }
    }

    #[test]
    fn a_machine_that_floods_fills_no_memory_here() {
        let taken = AtomicU64::new(0);
        std::thread::scope(|threads| {
            let (sender, lines) = sync_channel(WAITING_REPLIES);
            let flood = Flood(&taken);
            let forwarded = threads.spawn(move || forward(flood, &sender));
            for _ in 0..100 {
                assert!(lines.recv().unwrap().is_empty());
            }
            // It waits for a reader of the next line, and ends when there is none any more.
            assert!(!forwarded.is_finished());
            drop(lines);
        });
        // Our reader's own buffer, once or twice, and not a byte more.
        let taken = taken.into_inner();
        assert!(taken <= 64 * 1024, "{taken} bytes were read ahead");
    }
}
