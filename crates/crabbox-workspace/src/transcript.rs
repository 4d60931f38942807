//! Both streams of a command as one text, in order of arrival: its digest, and its end.
//!
//! The end contains only what was shown; output that went into files counts for the digest only. It must
//! never keep the whole text.

use std::sync::Mutex;

use crabbox_host::console::harmless;
use crabbox_host::digest::Running;

/// How much of the end is kept, in bytes.
const KEPT: usize = 64 * 1024;
/// How many lines of the end are shown.
const LINES: usize = 12;
/// The largest size of these lines, in bytes.
const SHOWN: usize = 4000;

/// The transcript of the streams.
#[derive(Debug, Default)]
pub struct Transcript(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    digest: Running,
    end: Vec<u8>,
}

impl Transcript {
    /// Adds bytes of either stream; `is_shown` means that they do not go into a file.
    pub fn see(&self, bytes: &[u8], is_shown: bool) {
        let Ok(mut seen) = self.0.lock() else { return };
        seen.digest.update(bytes);
        if is_shown {
            seen.end.extend_from_slice(bytes);
            if seen.end.len() > 2 * KEPT {
                let from = seen.end.len() - KEPT;
                seen.end.drain(..from);
            }
        }
    }

    /// The SHA-256 of all output, in hexadecimal digits.
    pub fn sha256(&self) -> String {
        self.0
            .lock()
            .map_or_else(|_| String::new(), |seen| seen.digest.hex())
    }

    /// The last non-empty lines, without terminal sequences; empty if nothing was shown.
    pub fn end(&self) -> String {
        let Ok(seen) = self.0.lock() else {
            return String::new();
        };
        let text = String::from_utf8_lossy(&seen.end);
        let lines: Vec<String> = text
            .split(['\n', '\r'])
            .map(|line| harmless(line).trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        let mut end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        let over = end.len().saturating_sub(SHOWN);
        let from = (over..=end.len()).find(|at| end.is_char_boundary(*at));
        end.drain(..from.unwrap_or(0));
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_both_streams_and_the_end_of_what_was_shown() {
        let transcript = Transcript::default();
        transcript.see(b"one\n", true);
        transcript.see(b"hidden\n", false);
        transcript.see(b"\x1b[31mtwo\x1b[0m\r10%\r100%\n\n  \nla", true);
        transcript.see(b"st", true);
        let all = b"one\nhidden\n\x1b[31mtwo\x1b[0m\r10%\r100%\n\n  \nlast";
        assert_eq!(transcript.sha256(), crabbox_host::digest::sha256(all));
        assert_eq!(transcript.end(), "one\ntwo\n10%\n100%\nlast");
        assert_eq!(Transcript::default().end(), "");
    }

    #[test]
    fn only_an_end_is_kept() {
        let transcript = Transcript::default();
        for number in 0..20_000 {
            transcript.see(format!("line {number} ü\n").as_bytes(), true);
        }
        let end = transcript.end();
        assert_eq!(end.lines().count(), LINES);
        assert!(
            end.starts_with("line 19988 ü\n") && end.ends_with("line 19999 ü"),
            "{end}"
        );
        transcript.see("ü".repeat(40_000).as_bytes(), true);
        let end = transcript.end();
        assert!(
            end.len() <= SHOWN && end.chars().all(|c| c == 'ü'),
            "{}",
            end.len()
        );
        assert!(transcript.0.lock().unwrap().end.len() <= 2 * KEPT);
    }
}
