//! The line that a remote login shell gets, the script that follows it, and the mark that shows that the line
//! runs.
//!
//! Every remote command of this program is such a line: the script itself travels over standard input. Output
//! of start-up files before the mark is skipped, within a limit. A truncated script must never be run, and no
//! byte of a script may be sent before the mark has arrived, because until then something else may be
//! reading.

use std::io;
use std::time::Duration;

/// Runs in any POSIX shell. `$1` is the nonce; the script sees neither it nor the variables used here. `read`
/// takes no byte beyond its line, so what follows the script is the command's own input. The shell stays as
/// the parent of what it runs, so a signal that kills the command arrives as 128 plus its number.
///
/// csh allows no newline inside quotes and expands `!` there, fish gives a backslash there a meaning, and sh,
/// bash, dash, zsh, fish, csh and tcsh agree on the rest. The third character of a shell's initial `IFS` is
/// the newline.
const READER: &str = concat!(
    r#"cbx_n=${IFS#??}; cbx_s=; echo "$1=errors" >&2; echo "$1=begins"; "#,
    r#"while IFS= read -r cbx_l; do case $cbx_l in "$1+") cbx_s=;; "#,
    r#""$1") eval "unset cbx_n cbx_s cbx_l; set --; $cbx_s"; exit;; "#,
    r#"*) cbx_s=$cbx_s$cbx_l$cbx_n;; esac; done; exit 255"#,
);

/// The exit code of a line that did not get its whole script: the last word of [`READER`].
pub const UNREAD: u8 = 255;

/// How long a session may take from its opening to the mark: generous for emulated machines and slow start-up
/// files.
pub const START_LIMIT: Duration = Duration::from_mins(1);

/// How many empty lines to send to start-up files that ask for input.
const SPARE_LINES: usize = 16;

/// How much of the output before the mark is kept, in bytes.
const KEPT: usize = 8 * 1024;

/// How much output is allowed before the mark, in bytes.
const NOISE_LIMIT: usize = 1 << 20;

/// How much of it a message repeats, in characters.
const QUOTED: usize = 300;

/// One remote command line; each is used once.
#[derive(Debug)]
pub struct RemoteLine {
    nonce: String,
}

impl RemoteLine {
    /// A line with a fresh nonce.
    pub fn new() -> io::Result<Self> {
        let number = u128::from_be_bytes(crabbox_host::random::bytes()?);
        Ok(Self {
            nonce: format!("{number:032x}"),
        })
    }

    /// The command for the login shell: one line that means the same in sh, bash, dash, zsh, fish, csh and
    /// tcsh.
    pub fn text(&self) -> String {
        let nonce = &self.nonce;
        format!("exec sh -c '{READER}' crabbox-{nonce} {nonce}")
    }

    /// Sent when the mark does not come: empty lines for start-up files that read one each, then our line for
    /// a shell that reads its commands from standard input. Our own shell ignores all of it.
    pub(crate) fn rescue(&self) -> Vec<u8> {
        format!("{}{}\n", "\n".repeat(SPARE_LINES), self.text()).into_bytes()
    }

    /// The script, as it is sent after the mark.
    pub fn preamble(&self, script: &str) -> Vec<u8> {
        let nonce = &self.nonce;
        format!("{nonce}+\n{script}\n{nonce}\n").into_bytes()
    }

    /// Waits for the mark on standard output.
    pub fn start(&self) -> Start {
        Start::at(format!("{}=begins\n", self.nonce))
    }

    /// Waits for the mark on standard error, which comes first.
    pub fn start_of_errors(&self) -> Start {
        Start::at(format!("{}\n", self.mark_of_errors()))
    }

    /// The line that is the mark on standard error, for a reader of lines, who skips it.
    pub fn mark_of_errors(&self) -> String {
        format!("{}=errors", self.nonce)
    }

    /// A script that ends the process group which runs this line, and prints `gone`, `alive` or `none`.
    ///
    /// sshd makes each session without a terminal the leader of a process group. Its number is found through
    /// the nonce in the argument vector of the waiting shell, so nothing needs to be recorded in advance.
    /// (`[c]` keeps `grep` from finding itself.) Zombies do not count: in some containers nothing reaps them.
    pub(crate) fn stop_script(&self) -> String {
        let nonce = &self.nonce;
        format!(
            r#"g=
for f in $(grep -ls '[c]rabbox-{nonce}' /proc/[0-9]*/cmdline); do
  read -r a < "${{f%cmdline}}stat" || continue
  set -- ${{a##*) }}
  g=$3
done
[ "${{g:-0}}" -gt 1 ] || {{ echo none; exit; }}
kill -TERM "-$g"
i=0
while grep -qs "^[0-9]* (.*) [^ZX] [0-9]* $g " /proc/[0-9]*/stat; do
  i=$((i + 1))
  [ "$i" -ne 20 ] || kill -KILL "-$g"
  [ "$i" -lt 40 ] || {{ echo alive; exit; }}
  sleep 0.1
done
echo gone"#
        )
    }
}

/// Skips the output before a mark.
#[derive(Debug)]
pub struct Start {
    mark: Vec<u8>,
    /// The end of the output before it.
    before: Vec<u8>,
    skipped: usize,
    begun: bool,
}

impl Start {
    fn at(mark: String) -> Self {
        Self {
            mark: mark.into_bytes(),
            before: Vec::new(),
            skipped: 0,
            begun: false,
        }
    }

    /// Takes a chunk and returns the part of it after the mark.
    pub fn take<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        if self.begun {
            return chunk;
        }
        let known = self.before.len();
        self.before.extend_from_slice(chunk);
        let from = known.saturating_sub(self.mark.len());
        let found = self.before[from..]
            .windows(self.mark.len())
            .position(|part| part == self.mark);
        let mut behind: &[u8] = &[];
        if let Some(at) = found {
            self.begun = true;
            behind = &chunk[from + at + self.mark.len() - known..];
            self.before.truncate(from + at);
            self.skipped += self.before.len();
        }
        let surplus = self.before.len().saturating_sub(KEPT);
        self.before.drain(..surplus);
        if !self.begun {
            self.skipped += surplus;
        }
        behind
    }

    /// Whether the mark has come.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether more came before the mark than is allowed.
    pub fn is_flooded(&self) -> bool {
        !self.begun && self.skipped > NOISE_LIMIT
    }

    /// Whether anything was skipped.
    pub(crate) fn was_noisy(&self) -> bool {
        self.skipped > 0
    }

    /// The end of the output before the mark, on one line, for a message.
    pub fn printed(&self) -> String {
        let text = String::from_utf8_lossy(&self.before);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines.collect::<Vec<_>>().join("; ");
        let surplus = line.chars().count().saturating_sub(QUOTED);
        line.chars().skip(surplus).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quote;
    use crabbox_host::command::{Captured, Cmd};
    use proptest::prelude::*;

    /// Shells that may be login shells. The last two differ from the others in what they allow inside quotes.
    const SHELLS: [&[&str]; 5] = [&["sh"], &["bash"], &["dash"], &["busybox", "sh"], &["tcsh"]];

    /// Runs a line as sshd does, with -c. Returns what follows the mark of each stream.
    fn run_in(shell: &[&str], line: &RemoteLine, input: Vec<u8>) -> (Option<i32>, Vec<u8>, Captured) {
        let home = tempfile::tempdir().unwrap();
        let seen = Cmd::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &line.text()])
            .env("HOME", home.path())
            .stdin(input)
            .capture()
            .unwrap();
        let (mut out, mut errors) = (line.start(), line.start_of_errors());
        let stdout = out.take(&seen.stdout).to_vec();
        errors.take(&seen.stderr);
        assert!(out.has_begun() && errors.has_begun(), "{shell:?}: {seen:?}");
        (seen.status.code(), stdout, seen)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_script_and_the_input_behind_it_arrive_whole(
            words in prop::collection::vec("[^\0]{0,30}", 1..5),
            input in prop::collection::vec(any::<u8>(), 0..300),
            shell in 0..SHELLS.len(),
            rescued in any::<bool>(),
        ) {
            let line = RemoteLine::new().unwrap();
            let script = format!("printf '%s\\0' {}; cat; exit 7", quote::join(&words));
            let mut sent = if rescued { line.rescue() } else { Vec::new() };
            sent.extend(line.preamble(&script));
            sent.extend(&input);
            let mut expected = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect::<Vec<_>>();
            expected.extend(&input);
            let (code, stdout, seen) = run_in(SHELLS[shell], &line, sent);
            prop_assert_eq!(code, Some(7), "{}", seen.stderr_text());
            prop_assert_eq!(stdout, expected);
        }

        #[test]
        fn the_mark_is_found_wherever_the_stream_is_cut(
            noise in prop::collection::vec(any::<u8>(), 0..20_000),
            behind in prop::collection::vec(any::<u8>(), 0..100),
            cut in 1_usize..400,
        ) {
            let line = RemoteLine::new().unwrap();
            let mut start = line.start();
            let mark = format!("{}=begins\n", line.nonce);
            let stream = [noise.as_slice(), mark.as_bytes(), &behind].concat();
            let taken: Vec<u8> = stream.chunks(cut).flat_map(|chunk| start.take(chunk).to_vec()).collect();
            prop_assert!(start.has_begun());
            prop_assert_eq!(taken, behind);
            prop_assert_eq!(start.was_noisy(), !noise.is_empty());
            prop_assert!(start.before.len() <= KEPT);
        }
    }

    #[test]
    fn the_line_holds_nothing_that_a_shell_reads_in_its_own_way() {
        let text = RemoteLine::new().unwrap().text();
        let inner = text.split('\'').nth(1).unwrap();
        assert_eq!(text.matches('\'').count(), 2);
        assert!(!inner.contains(['\n', '!', '\\']), "{inner}");
        // csh limits the length of a word.
        assert!(inner.len() < 1000, "{}", inner.len());
    }

    #[test]
    fn a_script_cut_short_is_not_run() {
        let line = RemoteLine::new().unwrap();
        let whole = line.preamble("echo ran");
        let (code, stdout, _) = run_in(&["sh"], &line, whole[..whole.len() - 2].to_vec());
        assert_eq!((code, stdout), (Some(UNREAD.into()), Vec::new()));
    }

    #[test]
    fn the_script_sees_nothing_of_the_reader_and_a_signal_becomes_a_code() {
        for shell in SHELLS {
            let line = RemoteLine::new().unwrap();
            let script = "echo \"$# ${cbx_s-unset} ${cbx_l-unset} ${cbx_n-unset}\"; sh -c 'kill -TERM $$'";
            let (code, stdout, _) = run_in(shell, &line, line.preamble(script));
            assert_eq!(String::from_utf8_lossy(&stdout), "0 unset unset unset\n");
            assert_eq!(code, Some(143));
        }
    }

    #[test]
    fn a_shell_that_reads_commands_from_standard_input_is_brought_to_our_line() {
        let line = RemoteLine::new().unwrap();
        let mut sent = line.rescue();
        sent.extend(line.preamble("echo ran"));
        let seen = Cmd::new("bash").stdin(sent).capture().unwrap();
        assert_eq!(line.start().take(&seen.stdout), b"ran\n");
    }

    #[test]
    fn noise_without_an_end_is_given_up() {
        let line = RemoteLine::new().unwrap();
        let mut start = line.start();
        let chunks = std::iter::repeat_n([b'x'; 4096], 1000);
        let taken = chunks.take_while(|chunk| {
            start.take(chunk);
            !start.is_flooded()
        });
        assert!(taken.count() < 300);
        assert_eq!(start.printed().len(), QUOTED);
    }
}
