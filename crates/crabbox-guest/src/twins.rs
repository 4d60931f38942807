//! What two machines that go on from one frozen moment draw before and after the reseed: with `crabbox.twins` on the kernel's command
//! line this machine exists only to be frozen and to say so.
//!
//! It is how a test sees that the reseed of [`crate::park`] is what tells clones apart. It must never become a lease, nor touch a disk, a
//! module or the network.

use std::path::Path;
use std::time::Duration;

use crate::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::park;
use crate::power;

/// The argument on the kernel's command line.
const WORD: &str = "crabbox.twins";

/// How old the machine gets before it can be frozen. The kernel (6.1, `drivers/char/random.c`) draws a new key by
/// itself when its own is older than half of the uptime, or a minute: so the host has 20 s in which nothing but our reseed does.
const AGE: Duration = Duration::from_secs(40);

/// How long it can be frozen. A clock that jumps when the machine goes on ends this at once, and one that does not a little later.
const NAP: Duration = Duration::from_secs(5);

/// How many numbers each machine draws. The kernel draws for itself as well, for its allocators, in one machine sooner than in the other: the
/// same sequence may be met a few steps further on.
const DRAWS: usize = 32;

/// Waits to be frozen, draws, reseeds, draws and ends the machine, when the command line asks for it. `/proc` must be mounted.
pub(crate) fn run_if_asked(console: &mut Console) {
    let line = std::fs::read_to_string(Path::new("/proc/cmdline")).unwrap_or_default();
    if !is_asked(&line) {
        return;
    }
    if let Err(failure) = be_one(console) {
        console.say(&format!("FAILED as a twin: {failure}"));
    }
    power::reset(console);
}

fn is_asked(command_line: &str) -> bool {
    command_line.split_whitespace().any(|word| word == WORD)
}

fn be_one(console: &mut Console) -> Result<(), Failure> {
    clock::poll_until(AGE, Duration::from_millis(50), || {
        (clock::uptime() >= AGE).then_some(())
    });
    // From here on its key is young, and made of what a boot's is: bytes of the host.
    park::reseed(&[1; park::LEAST_ENTROPY])?;
    console.say("twin naps");
    // What the serial port still has when it is frozen would never leave it.
    console.drain();
    clock::poll_until(NAP, Duration::from_millis(50), || None::<()>);
    let before = draws()?;
    // The worst host: it has the same bytes for both.
    park::reseed(&[2; park::LEAST_ENTROPY])?;
    let after = draws()?;
    console.say(&format!("twin before {before}"));
    console.say(&format!("twin after {after}"));
    Ok(())
}

/// Several draws, with commas between them.
fn draws() -> Result<String, Failure> {
    let draws: Result<Vec<String>, Failure> = (0..DRAWS).map(|_| park::draw()).collect();
    Ok(draws?.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_asks() {
        assert!(is_asked("console=ttyS0 crabbox.twins quiet\n"));
        assert!(!is_asked("console=ttyS0 crabbox.twins=0 xcrabbox.twins\n"));
    }
}
