//! The far side of a sync: the program in `agent/`, sent along with every call, and what it answers.
//!
//! Nothing is installed in the lease. What comes back was written by a machine that runs foreign code: it is bounded and
//! checked, and it must never make this side do more than send files of the manifest.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use crabbox_host::clock::poll_until;
use crabbox_host::command::CommandError;
use crabbox_ssh::quote;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::seed::Seed;

const PROGRAM: &str = concat!(
    include_str!("agent/base.py"),
    include_str!("agent/look.py"),
    include_str!("agent/record.py"),
    include_str!("agent/remove.py"),
    include_str!("agent/receive.py"),
    include_str!("agent/seed.py"),
    include_str!("agent/steps.py"),
);

/// What runs in the lease. The shell alone answers "same": `stat` over the lists of the last sync, several at a time, must
/// give what the agent wrote down (whatever changes a file or its name changes the ctime or the inode), and the fingerprint
/// that comes over standard input must be the one of that sync. It waits for a line before it looks; the looking goes on while
/// this side still looks at its own tree. A path that is gone has no line, so that lines in the order of the list need no name;
/// and `xargs` hands out a megabyte of names at once, or what the system takes. Otherwise python reads the program from standard
/// input and goes into it, and is told whether the tree was kept as it was. One line, no single quotes and no `!`, so that every
/// login shell passes it on.
const BOOTSTRAP: &str = concat!(
    r#"read -r s || exit 0; s=-; h=; f=-; k=-; [ "$3" = trust ] && cd "$1" 2>/dev/null && read -r f s <"$2/stamp" && h=$({ "#,
    r#"for p in "$2"/paths.*; do [ -e "$p" ] && xargs -0 -s 1000000 stat --printf "%.9Z %i\0" -- <"$p" | sha256sum & done; "#,
    r#"[ -e "$2/ways" ] && xargs -0 stat --printf "%f %n\0" -- <"$2/ways" | sha256sum; "#,
    r#"wait; } 2>/dev/null | LC_ALL=C sort | sha256sum); [ "${h%% *}" = "$s" ] && k=kept; "#,
    r#"read -r w || exit 0; [ "$w$k" = "${f}kept" ] && echo "{\"state\":\"same\"}" && exit 0; "#,
    r#"exec python3 -IS -c "import sys;exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))" "$k""#,
);

/// A fingerprint that equals no other, for a comparison that must not say "same".
const NONE: &str = "none";

/// OpenSSH's exit status when the connection, not the command, failed.
const SSH_FAILED: i32 = 255;

/// A reply longer than this many bytes is not one.
const REPLY_LIMIT: u64 = 64 << 20;

/// How much of standard error is kept.
const STDERR_KEPT: u64 = 16 * 1024;

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
    /// The lease has no python3.
    #[error("the lease has no python3, which a sync needs there: install it in the image, or pass --no-sync")]
    NoPython,
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
    /// None once it broke: then only the exit code is of interest.
    input: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    limit: Option<Duration>,
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
        let trust = if trust { "trust" } else { "distrust" };
        let script = format!(
            "exec sh -c {}",
            quote::join([BOOTSTRAP, "sh", workdir, meta, trust])
        );
        let cmd = channel.command(&script);
        let mut command = cmd.to_std();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = cmd
            .spawn(&mut command)
            .map_err(|source| AgentError::Run { source })?;
        let (sender, lines) = std::sync::mpsc::channel();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        std::thread::spawn(move || stdout.map(|stream| forward(stream, &sender)));
        let stderr = std::thread::spawn(move || {
            let mut kept = Vec::new();
            if let Some(mut stream) = stderr {
                // A stream that cannot be read has nothing to say; the exit code still counts.
                (&mut stream).take(STDERR_KEPT).read_to_end(&mut kept).ok();
                std::io::copy(&mut stream, &mut std::io::sink()).ok();
            }
            kept
        });
        Ok(Self {
            child,
            input: stdin,
            lines,
            stderr: Some(stderr),
            limit,
        })
    }

    /// Lets the far side look at what it has.
    pub(crate) fn look(mut self) -> Self {
        self.send(b"look\n");
        self
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
        self.send(format!("{fingerprint}\n{}\n{PROGRAM}{header}\n", PROGRAM.len()).as_bytes());
        self.reply()
    }

    /// Sends bytes. A pipe that breaks is not an error here: the missing answer is, and its exit code says why.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if let Some(input) = &mut self.input
            && input.write_all(bytes).and_then(|()| input.flush()).is_err()
        {
            self.input = None;
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
        let Some(mut input) = self.input.take() else {
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
        self.input = Some(input);
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
        self.input = None;
        let status = match self.child.wait() {
            Ok(status) => status.code(),
            Err(_) => None,
        };
        let said = self
            .stderr
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said = said
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or("no message")
            .to_owned();
        match status {
            Some(SSH_FAILED) => AgentError::Connection { said },
            Some(127) => AgentError::NoPython,
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
        self.input = None;
        let ended = poll_until(Duration::from_millis(500), || {
            self.child.try_wait().ok().flatten()
        });
        if ended.is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Hands on line after line, without their ends, until the stream or the listener ends.
fn forward(stream: impl Read, lines: &Sender<Vec<u8>>) {
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
