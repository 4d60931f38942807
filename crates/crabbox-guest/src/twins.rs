//! Shows what two machines resumed from one frozen moment draw before and after the reseed: with
//! `crabbox.twins` on the kernel's command line, the machine exists only to be frozen and to print that.
//!
//! A test uses it to show that the reseed of [`crate::park`] is what makes clones differ. It must never
//! become a lease, nor touch a disk, a module or the network.

use std::path::Path;
use std::time::Duration;

use crate::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::park;
use crate::power;

/// The argument on the kernel's command line.
const WORD: &str = "crabbox.twins";

/// The machine's age before it can be frozen. The kernel (6.1, `drivers/char/random.c`) draws a new key by
/// itself when its own is older than half of the uptime, or a minute: so the host has 20 s in which only our
/// reseed does.
const AGE: Duration = Duration::from_secs(40);

/// How long it waits to be frozen. A clock that jumps on resume ends this at once, one that does not a little
/// later.
const NAP: Duration = Duration::from_secs(5);

/// How many numbers each machine draws. The kernel also draws for its allocators, at different moments in
/// each machine, so the same sequence may be shifted by a few steps.
const DRAWS: usize = 32;

/// Waits to be frozen, draws, reseeds, draws and ends the machine, if the command line asks for it. `/proc`
/// must be mounted.
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
    // From here on the kernel's key is young, and made like that of a boot: from the host's bytes.
    park::reseed(&[1; park::LEAST_ENTROPY])?;
    console.say("twin naps");
    // Output still in the serial port at the freeze would never be sent.
    console.drain();
    clock::poll_until(NAP, Duration::from_millis(50), || None::<()>);
    let before = draws()?;
    // The worst case: the host sends the same bytes to both.
    park::reseed(&[2; park::LEAST_ENTROPY])?;
    let after = draws()?;
    console.say(&format!("twin before {before}"));
    console.say(&format!("twin after {after}"));
    Ok(())
}

/// Several draws, separated by commas.
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
