//! SIGINT, SIGTERM and SIGHUP: the first one requests an orderly end, the second one ends the program at
//! once.
//!
//! The first signal is recorded in a flag and on a pipe that poll can watch; the handler does nothing else. A
//! program that installed this must check it in every wait, or one Ctrl-C cannot stop it.

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::process::Signal;

/// The signals that request an end, with their numbers.
const ASKING: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

/// The handlers could not be installed.
#[derive(Debug, thiserror::Error)]
#[error("cannot install a handler for signal {signal}")]
pub struct SignalError {
    /// The number of the signal.
    pub signal: i32,
    /// The system's error.
    #[source]
    pub source: std::io::Error,
}

/// A pending request to end. Readable in poll from the first signal on, and stays readable.
#[derive(Debug)]
pub struct Interrupts {
    first: Arc<AtomicUsize>,
    pipe: OwnedFd,
    writer: UnixStream,
}

/// The first [`Interrupts`] of this process, for waits to which it cannot be passed as an argument.
static WATCH: OnceLock<(Arc<AtomicUsize>, OwnedFd)> = OnceLock::new();

/// The state of [`watching`], in a program that catches signals only during certain waits.
static GATE: OnceLock<Gate> = OnceLock::new();

struct Gate {
    /// Whether a signal ends the program at once, because no current wait handles it.
    is_shut: Arc<AtomicBool>,
    /// The number of current waits that handle a signal.
    waits: Mutex<usize>,
    /// Whether the program has installed its own [`Interrupts`] since, which remain in effect.
    is_open: AtomicBool,
}

/// What ends a wait: which requests to end, if any, a wait heeds. It is made once for all waits of one
/// operation, so that a signal between two of them ends the second.
#[derive(Debug, Clone, Copy)]
pub struct Cancellation(Option<BorrowedFd<'static>>);

impl Cancellation {
    /// Heeds requests to end from now on. If there was one before, this heeds none: the caller is already
    /// cleaning up, and the next signal ends the program. Without a handler the first signal ends it.
    pub fn from_now_on() -> Self {
        Self(watched().filter(|_| !is_asked()))
    }

    /// Heeds all requests to end, also an earlier one: for work that should not be started after one.
    pub fn ever() -> Self {
        Self(watched())
    }

    /// Heeds no request, for work that must be completed.
    pub fn never() -> Self {
        Self(None)
    }

    /// Readable once there is a request to end; `None` if none is heeded.
    pub fn fd(self) -> Option<BorrowedFd<'static>> {
        self.0
    }

    /// Whether there is a request to end that this heeds.
    pub fn is_asked(self) -> bool {
        self.0.is_some() && is_asked()
    }
}

fn watched() -> Option<BorrowedFd<'static>> {
    WATCH.get().map(|(_, pipe)| pipe.as_fd())
}

fn is_asked() -> bool {
    WATCH
        .get()
        .is_some_and(|(first, _)| first.load(Ordering::SeqCst) != 0)
}

impl Interrupts {
    /// Installs the handlers for the rest of the program's life. Call it once, early, in the main thread.
    pub fn install() -> Result<Self, SignalError> {
        let asked = Arc::new(AtomicBool::new(false));
        let first = Arc::new(AtomicUsize::new(0));
        let failed = |signal: Signal| {
            move |source| SignalError {
                signal: signal.as_raw(),
                source,
            }
        };
        let (pipe, writer) = UnixStream::pair().map_err(failed(Signal::INT))?;
        for signal in ASKING {
            // Under `nohup` a hang-up must not end the program.
            if signal == Signal::HUP && is_ignored(signal) {
                continue;
            }
            let (number, failed) = (signal.as_raw(), failed(signal));
            // The order matters: handlers run in the order of registration, so the second signal finds the
            // flag that the first one set, and only then does the default action run. Not for SIGHUP: a
            // closed terminal may send it twice (from the kernel and the shell), without any user who
            // insists.
            if signal != Signal::HUP {
                signal_hook::flag::register_conditional_default(number, Arc::clone(&asked))
                    .map_err(failed)?;
            }
            signal_hook::flag::register(number, Arc::clone(&asked)).map_err(failed)?;
            let value = usize::try_from(number).unwrap_or(0);
            signal_hook::flag::register_usize(number, Arc::clone(&first), value).map_err(failed)?;
            let writer = writer.try_clone().map_err(failed)?;
            signal_hook::low_level::pipe::register(number, writer).map_err(failed)?;
        }
        let pipe = OwnedFd::from(pipe);
        let copy = pipe.try_clone().map_err(failed(Signal::INT))?;
        WATCH.set((Arc::clone(&first), copy)).ok();
        if let Some(gate) = GATE.get() {
            gate.is_open.store(true, Ordering::SeqCst);
            gate.is_shut.store(false, Ordering::SeqCst);
        }
        Ok(Self { first, pipe, writer })
    }

    /// A handle with which another thread can request the end.
    pub fn asker(&self) -> std::io::Result<Asker> {
        Ok(Asker {
            first: Arc::clone(&self.first),
            writer: self.writer.try_clone()?,
        })
    }

    /// The signal that requested an end, if one did.
    pub fn caught(&self) -> Option<Signal> {
        let number = self.first.load(Ordering::SeqCst);
        ASKING
            .into_iter()
            .find(|signal| usize::try_from(signal.as_raw()) == Ok(number))
    }
}

impl Gate {
    /// A closed gate. Its handlers are registered before those of the watch, so that a signal ends the
    /// program before it is recorded.
    fn install() -> Option<Self> {
        let is_shut = Arc::new(AtomicBool::new(true));
        for signal in ASKING.into_iter().filter(|signal| !is_ignored(*signal)) {
            signal_hook::flag::register_conditional_default(signal.as_raw(), Arc::clone(&is_shut)).ok()?;
        }
        Some(Self {
            is_shut,
            waits: Mutex::new(0),
            is_open: AtomicBool::new(false),
        })
    }

    fn change(&self, by: impl FnOnce(usize) -> usize) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        *waits = by(*waits);
        let is_shut = *waits == 0 && !self.is_open.load(Ordering::SeqCst);
        self.is_shut.store(is_shut, Ordering::SeqCst);
    }
}

/// Runs `act` in a program that a first signal would otherwise kill, and makes the signal end those waits in
/// `act` that use a [`Cancellation`]. If a signal arrived and the outcome does not report it (`is_told`), it
/// ends the program afterwards, as it would have before. If the whole program handles signals already, this
/// only runs `act`.
pub fn watching<T>(act: impl FnOnce() -> T, is_told: impl FnOnce(&T) -> bool) -> T {
    static INSTALLED: OnceLock<Option<Interrupts>> = OnceLock::new();
    if GATE.get().is_none() && WATCH.get().is_some() {
        return act();
    }
    let watch = INSTALLED.get_or_init(|| {
        let gate = Gate::install()?;
        let watch = Interrupts::install().ok()?;
        GATE.set(gate).ok()?;
        Some(watch)
    });
    let (Some(watch), Some(gate)) = (watch, GATE.get()) else {
        return act();
    };
    let before = watch.caught();
    gate.change(|waits| waits + 1);
    let outcome = act();
    gate.change(|waits| waits - 1);
    if let (None, Some(signal)) = (before, watch.caught())
        && !gate.is_open.load(Ordering::SeqCst)
        && !is_told(&outcome)
    {
        signal_hook::low_level::emulate_default_handler(signal.as_raw()).ok();
    }
    outcome
}

/// Requests an orderly end like SIGTERM, for a program whose user has gone away without a signal.
#[derive(Debug)]
pub struct Asker {
    first: Arc<AtomicUsize>,
    writer: UnixStream,
}

impl Asker {
    /// Requests an end. An earlier request by a signal is kept.
    pub fn ask(&self) {
        let term = usize::try_from(Signal::TERM.as_raw()).unwrap_or(0);
        self.first
            .compare_exchange(0, term, Ordering::SeqCst, Ordering::SeqCst)
            .ok();
        // If the pipe is full, it is readable already.
        (&self.writer).write_all(&[0]).ok();
    }
}

/// Whether this process was started with `signal` ignored (`SigIgn` in proc(5); bit 0 is signal 1).
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Cmd;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::unix::process::ExitStatusExt as _;
    use std::time::Duration;

    /// An argument for a copy of this test program, which selects no test and permits the copy to be killed.
    const MAY_DIE: &str = "this-copy-may-die";

    fn readable(interrupts: &Interrupts) -> bool {
        let mut fds = [PollFd::new(interrupts, PollFlags::IN)];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .unwrap()
            == 1
    }

    fn raise(signal: Signal) {
        rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
        // Any thread may handle the signal; wait a little until it is visible in the pipe.
        crate::clock::nap(Duration::from_millis(20));
    }

    /// A copy of this program that runs only the test `name`. `env` starts it, because under nohup SIGHUP is
    /// ignored from the start, which is not what is tested here.
    fn copy(name: &str) -> Cmd {
        Cmd::new("env")
            .arg("--default-signal=HUP")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("signals::tests::{name}"), MAY_DIE])
            .limit(Duration::from_secs(30))
    }

    /// Runs only the test `name` in a copy of this program, which must pass there. A name that no test has
    /// would succeed too, with no test run.
    fn pass_in_copy(name: &str) {
        let ended = copy(name).capture().unwrap();
        let passed = String::from_utf8_lossy(&ended.stdout).contains("1 passed");
        assert!(ended.status.success() && passed, "{ended:?}");
    }

    fn is_copy() -> bool {
        std::env::args().any(|arg| arg == MAY_DIE)
    }

    #[test]
    fn a_hang_up_asks_for_an_end_and_a_second_one_does_not_insist() {
        if !is_copy() {
            pass_in_copy("a_hang_up_asks_for_an_end_and_a_second_one_does_not_insist");
            return;
        }
        let interrupts = Interrupts::install().unwrap();
        raise(Signal::HUP);
        assert_eq!(
            (interrupts.caught(), readable(&interrupts)),
            (Some(Signal::HUP), true)
        );
        raise(Signal::HUP);
    }

    #[test]
    fn what_begins_after_a_signal_does_not_heed_it_again_and_what_began_before_does() {
        if !is_copy() {
            pass_in_copy("what_begins_after_a_signal_does_not_heed_it_again_and_what_began_before_does");
            return;
        }
        assert!(
            Cancellation::ever().fd().is_none(),
            "nothing watches yet, and a signal ends the program"
        );
        let _interrupts = Interrupts::install().unwrap();
        let before = Cancellation::from_now_on();
        assert!(!before.is_asked());
        raise(Signal::INT);
        let ready = crate::wait::wait(
            before.fd().unwrap(),
            PollFlags::IN,
            None,
            Some(std::time::Instant::now() + Duration::from_secs(30)),
        );
        assert_eq!(ready.unwrap(), crate::wait::Ready::First);
        assert!(before.is_asked() && Cancellation::ever().is_asked());
        assert!(!Cancellation::from_now_on().is_asked() && Cancellation::from_now_on().fd().is_none());
        assert!(!Cancellation::never().is_asked());
    }

    #[test]
    fn a_watching_program_dies_of_a_signal_before_and_after_and_of_one_that_is_not_told() {
        let name = "a_watching_program_dies_of_a_signal_before_and_after_and_of_one_that_is_not_told";
        let heard = || {
            let heed = Cancellation::from_now_on();
            assert!(!heed.is_asked());
            raise(Signal::INT);
            heed.is_asked()
        };
        let case = std::env::args().skip_while(|arg| arg != MAY_DIE).nth(1);
        match case.as_deref() {
            Some("told, and again behind it") => {
                assert!(watching(heard, |heard| *heard));
                raise(Signal::TERM);
            }
            Some("not told") => {
                watching(heard, |_| false);
            }
            Some("between two") => {
                watching(|| (), |()| false);
                raise(Signal::TERM);
            }
            Some("a watch of its own") => {
                watching(|| (), |()| false);
                let interrupts = Interrupts::install().unwrap();
                raise(Signal::INT);
                assert_eq!(interrupts.caught(), Some(Signal::INT));
                watching(|| (), |()| false);
                // The program's second signal ends it.
                raise(Signal::TERM);
            }
            Some(other) => panic!("{other}"),
            None => {
                for (case, signal) in [
                    ("told, and again behind it", Signal::TERM),
                    ("not told", Signal::INT),
                    ("between two", Signal::TERM),
                    ("a watch of its own", Signal::TERM),
                ] {
                    let ended = copy(name).arg(case).capture().unwrap();
                    assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{case}: {ended:?}");
                }
                return;
            }
        }
        unreachable!("a signal has ended it");
    }

    #[test]
    fn the_first_signal_is_noted_and_the_second_kills() {
        if !is_copy() {
            let ended = copy("the_first_signal_is_noted_and_the_second_kills")
                .capture()
                .unwrap();
            assert_eq!(ended.status.signal(), Some(Signal::INT.as_raw()), "{ended:?}");
            return;
        }
        let interrupts = Interrupts::install().unwrap();
        let before = (interrupts.caught(), readable(&interrupts));
        raise(Signal::TERM);
        let after = (interrupts.caught(), readable(&interrupts));
        // A failed assertion here ends the copy without a signal, which the original notices.
        assert_eq!((before, after), ((None, false), (Some(Signal::TERM), true)));
        raise(Signal::INT);
        unreachable!("the second signal ends the program");
    }
}
