//! The probe of the host's KVM: with `crabbox.probe` on the kernel's command line, the machine only reports
//! that it booted. It must never touch a disk, a module or the network.

use std::path::Path;

use crate::console::Console;
use crate::power;

/// The argument on the kernel's command line.
const WORD: &str = "crabbox.probe";

/// The line that the host looks for on the console; `crabbox-engine` has the same.
const LINE: &str = "probe ok";

/// Prints the line and resets, if the command line asks for it. `/proc` must be mounted.
pub(crate) fn run_if_asked(console: &mut Console) {
    let line = std::fs::read_to_string(Path::new("/proc/cmdline")).unwrap_or_default();
    if is_asked(&line) {
        console.say(LINE);
        power::reset(console);
    }
}

fn is_asked(command_line: &str) -> bool {
    command_line.split_whitespace().any(|word| word == WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_word_asks() {
        assert!(is_asked("console=ttyS0 crabbox.probe quiet\n"));
        assert!(!is_asked("console=ttyS0 crabbox.probe=0 xcrabbox.probe\n"));
    }
}
