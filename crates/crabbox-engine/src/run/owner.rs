//! One client at a time in a lease's tree: a lock in the guest that lives exactly as long as a session of its holder.
//!
//! A session takes the lock, says so, and waits for the end of its input. The kernel gives the lock back when the session
//! ends, however it ends, so that nothing has to expire or be renewed. A client that goes without a word takes its command
//! with it; the next client must never start while that command still runs.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::exec::{self, Exec, ExecError, RemoteStatus, Sink, Stdin};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lease::Target;

/// How long to wait for another client, as the Go program has it.
pub const WAIT_LIMIT: Duration = Duration::from_mins(2);
/// How often waiting is told.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The exit code of a guest that has no tool for a lock, as in the Go program.
const NO_TOOL: u8 = 73;
/// How much of what the session says is kept, in bytes.
const WORDS_LIMIT: u64 = 4000;

/// Why the tree is not ours.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Somebody else is in it.
    #[error("timed out after 2m0s waiting for reusable workspace owner")]
    Timeout,
    /// The guest has nothing to make a lock with.
    #[error("the lease has neither flock nor mv -T, which keep two runs out of one tree")]
    NoTool,
    /// The lock was not given.
    #[error("cannot own the workspace in the lease: {said}")]
    Refused {
        /// What the lease said.
        said: String,
    },
    /// The lease could not be spoken to.
    #[error("cannot own the workspace in the lease")]
    Exec(#[from] ExecError),
    /// Pipes could not be had from this machine.
    #[error("cannot prepare the session that owns the workspace")]
    Local(#[from] io::Error),
    /// The user interrupted.
    #[error("interrupted while waiting for reusable workspace owner")]
    Interrupted,
}

impl Fault for OwnerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Interrupted => Kind::Passthrough(130),
            _ => Kind::Remote,
        }
    }
}

/// The tree of a lease, ours until this is released or abandoned.
#[derive(Debug)]
pub struct Owner {
    words: PipeWriter,
    /// Kept open: its end would stop the session.
    stopping: PipeWriter,
    session: JoinHandle<Result<RemoteStatus, ExecError>>,
    key: String,
    /// How long the wait was.
    pub wait: Duration,
    /// Whether the last owner went without a word.
    pub recovered: bool,
}

/// Waits for the tree of lease `id`. `held` is called once, as soon as it is known that somebody else has it; `waiting` is told every
/// ten seconds how long it has been and for what: `busy` is another client, `child` a command whose client has gone.
pub fn own(
    target: &Target,
    id: &str,
    cancel: BorrowedFd<'_>,
    held: &mut dyn FnMut(),
    waiting: &dyn Fn(Duration, &str),
) -> Result<Owner, OwnerError> {
    let key = key(id);
    let (input, words) = io::pipe()?;
    let (mut said, mut output) = io::pipe()?;
    let (stop, mut stopping) = io::pipe()?;
    let (target, script) = (target.clone(), script(&key));
    let started = Instant::now();
    let session = std::thread::spawn(move || {
        exec::run(
            &target,
            Exec {
                script,
                stdin: Stdin::Reader(Box::new(input)),
                stdout: Sink::Writer(&mut output),
                stderr: Sink::Discard,
                cancel: Some(stop.as_fd()),
                limit: None,
            },
        )
    });
    match wait(&mut said, cancel, started, held, waiting) {
        Ok(recovered) => Ok(Owner {
            words,
            stopping,
            session,
            key,
            wait: started.elapsed(),
            recovered,
        }),
        Err(error) => {
            // One that still waits over there would get the lock some day.
            stopping.write_all(b"s").ok();
            drop((words, said));
            match (join(session), error) {
                (Err(cause), OwnerError::Refused { .. }) => Err(cause.into()),
                (Ok(RemoteStatus::Exited(NO_TOOL)), OwnerError::Refused { .. }) => Err(OwnerError::NoTool),
                (_, error) => Err(error),
            }
        }
    }
}

impl Owner {
    /// Shell lines for the front of a command's script: they note which process it is, for whoever comes next.
    pub fn mark(&self) -> String {
        mark(&self.key)
    }

    /// The file that [`Self::mark`] writes when the command starts, as a word for a remote shell.
    pub fn marker(&self) -> String {
        format!("\"$HOME/.crabbox/workspace-owners/{}.child\"", self.key)
    }

    /// Gives the tree back; true if the other side has confirmed it.
    pub fn release(mut self) -> bool {
        self.words.write_all(b"release\n").is_ok() && self.end()
    }

    /// Leaves the tree without a word, as a client does that is killed: a command that still runs there is stopped first.
    /// True if the other side has confirmed it.
    pub fn abandon(self) -> bool {
        self.end()
    }

    fn end(self) -> bool {
        drop(self.words);
        let ended = join(self.session).is_ok_and(|status| status == RemoteStatus::Exited(0));
        drop(self.stopping);
        ended
    }
}

fn join(session: JoinHandle<Result<RemoteStatus, ExecError>>) -> Result<RemoteStatus, ExecError> {
    session
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The name of the lock, as in the Go program.
fn key(id: &str) -> String {
    crabbox_host::digest::sha256(format!("crabbox-workspace-owner-v1\0{id}").as_bytes())
}

/// Reads until the lock is ours; whether it was found lying about.
fn wait(
    said: &mut PipeReader,
    cancel: BorrowedFd<'_>,
    started: Instant,
    held: &mut dyn FnMut(),
    waiting: &dyn Fn(Duration, &str),
) -> Result<bool, OwnerError> {
    let mut text = String::new();
    let mut known = false;
    let mut tell = started + TELL_EVERY;
    loop {
        for line in text.lines() {
            if let Some(recovered) = line.strip_prefix("acquired ") {
                return Ok(recovered == "true");
            }
        }
        let now = Instant::now();
        if now >= started + WAIT_LIMIT {
            return Err(OwnerError::Timeout);
        }
        // Before the first word it is the connection that we wait for.
        if !known && !text.is_empty() {
            known = true;
            held();
        }
        if now >= tell {
            tell += TELL_EVERY;
            if let Some(state) = text.lines().last() {
                waiting(started.elapsed(), state);
            }
        }
        let until = tell.min(started + WAIT_LIMIT).saturating_duration_since(now);
        let limit = Timespec::try_from(until).ok();
        let mut fds = [
            PollFd::new(&*said, PollFlags::IN),
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
        ];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(OwnerError::Local(error.into())),
        }
        let [words, cancelled] = fds.map(|fd| !fd.revents().is_empty());
        if cancelled {
            return Err(OwnerError::Interrupted);
        }
        if words {
            let mut chunk = [0; 256];
            let count = said.read(&mut chunk)?;
            if count == 0 || text.len() as u64 > WORDS_LIMIT {
                let said = text.trim().to_owned();
                let said = if said.is_empty() {
                    "the session ended".to_owned()
                } else {
                    said
                };
                return Err(OwnerError::Refused { said });
            }
            text.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
    }
}

/// The session. Without `flock`, the lock is a directory that holds one file, named after its owner: renaming a directory
/// over an empty one is atomic and over a full one fails, and only the file of a process that is gone is ever removed.
fn script(key: &str) -> String {
    format!(
        r#"umask 077
dir=$HOME/.crabbox/workspace-owners
[ -d "$dir" ] || mkdir -p "$dir" || exit 74
key=$dir/{key}
said=
tell() {{ [ "$said" = "$1" ] || echo "$1"; said=$1; }}
began() {{ read -r s < "/proc/$1/stat" && set -- ${{s##*) }} && echo "${{20}}"; }} 2>/dev/null
alive() {{ read -r p t g < "$1" && [ -n "$t" ] && [ "$(began "$p")" = "$t" ]; }} 2>/dev/null
if command -v flock >/dev/null; then
  exec 9>>"$key.gate"
  flock -n 9 || {{ tell busy; flock 9 || exit 74; }}
else
  me=$$.$(began $$)
  mkdir "$key.new.$$" && mv -T "$key.new.$$" "$key.try.$$" || exit {NO_TOOL}
  trap 'rm -rf "$key.try.$$"; rm -f "$key.lock/$me"' EXIT
  trap 'exit 1' HUP INT TERM
  : > "$key.try.$$/$me"
  until mv -T "$key.try.$$" "$key.lock" 2>/dev/null; do
    tell busy
    for f in "$key.lock"/*; do
      n=${{f##*/}}
      [ "$(began "${{n%.*}}")" = "${{n#*.}}" ] || rm -f "$f"
    done
    sleep 0.2
  done
fi
while alive "$key.child"; do tell child; sleep 0.2; done
r=false
[ ! -e "$key.owner" ] || r=true
echo v1 > "$key.owner"
echo "acquired $r"
word=
read -r word || :
if [ "$word" = release ]; then
  rm -f "$key.owner" "$key.child"
  exit 0
fi
alive "$key.child" || exit 0
kill -TERM "-$g"
i=0
while grep -qs "^[0-9]* (.*) [^ZX] [0-9]* $g " /proc/[0-9]*/stat; do
  i=$((i + 1))
  [ $i -ne 20 ] || kill -KILL "-$g"
  [ $i -lt 40 ] || exit 74
  sleep 0.1
done
exit 0
"#
    )
}

/// Notes the process that runs this. Where `/proc` is not there, or is another process namespace's, it refuses: its numbers would name
/// somebody else, and the next client could start while this command still runs.
fn mark(key: &str) -> String {
    format!(
        r#"{{ read -r cbx < /proc/self/stat; }} 2>/dev/null || cbx=
[ "${{cbx%% *}}" = $$ ] || {{ echo 'crabbox: /proc in the lease does not show this command: mount it for the process namespace of sshd' >&2; exit 74; }}
set -- ${{cbx##*) }}
echo "$$ ${{20}} $3" > "$HOME/.crabbox/workspace-owners/{key}.child" || exit 74
set --; unset cbx"#
    )
}

#[cfg(test)]
mod tests {
    use crabbox_host::command::Cmd;

    #[test]
    fn a_command_is_noted_with_its_own_number_or_refused() {
        let home = tempfile::tempdir().unwrap();
        let owners = home.path().join(".crabbox/workspace-owners");
        std::fs::create_dir_all(&owners).unwrap();
        let script = super::mark("k") + "\necho $$";
        let here = Cmd::new("sh").args(["-c", &script]).env("HOME", home.path());
        let ran = here.run().unwrap();
        let noted = std::fs::read_to_string(owners.join("k.child")).unwrap();
        let pid = ran.stdout_text().trim().to_owned();
        assert!(noted.starts_with(&format!("{pid} ")), "{noted:?} is not {pid}");
        // In a process namespace of its own, with the /proc of this one.
        let elsewhere = Cmd::new("unshare")
            .args(["--pid", "--fork", "sh", "-c", &script])
            .env("HOME", home.path());
        let refused = elsewhere.capture().unwrap();
        assert_eq!(refused.status.code(), Some(74));
        assert!(
            refused.stderr_text().contains("/proc in the lease"),
            "{refused:?}"
        );
    }
}
