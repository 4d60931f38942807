//! The constant line that the remote login shell gets, and the script that goes in front of a command's input.
//!
//! The line reads lines up to a nonce, then runs them. `read` takes no byte beyond its line, so what follows is the
//! command's own input. A script that a broken line cut short must never be run.

use std::io;

use crate::quote;

/// Read by any POSIX shell. `$1` is the nonce; the script sees neither it nor the variables used here. The shell stays as
/// the parent of what it runs, so a signal that kills the command arrives as 128 plus its number.
const READER: &str = r#"cbx_s=; while IFS= read -r cbx_l; do if [ "x$cbx_l" = "x$1" ]; then
eval "unset cbx_s cbx_l; set --
$cbx_s"; exit; fi; cbx_s="$cbx_s$cbx_l
"; done; exit 255"#;

/// One use of the line.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    nonce: String,
}

impl Bootstrap {
    /// With a nonce of its own.
    pub(crate) fn new() -> io::Result<Self> {
        let number = u128::from_be_bytes(crabbox_host::random::bytes()?);
        Ok(Self {
            nonce: format!("{number:032x}"),
        })
    }

    /// The command for the login shell.
    pub(crate) fn line(&self) -> String {
        let nonce = &self.nonce;
        format!("exec sh -c {} crabbox-{nonce} {nonce}", quote::single(READER))
    }

    /// What comes first on standard input.
    pub(crate) fn preamble(&self, script: &str) -> Vec<u8> {
        format!("{script}\n{}\n", self.nonce).into_bytes()
    }

    /// A script that ends the process group which runs this line, and prints `gone`, `alive` or `none`.
    ///
    /// sshd makes each session without a terminal the leader of a process group. Its number is found by the nonce in the
    /// argument vector of the waiting shell, so nothing has to be written down for it on the usual path. (`[c]` keeps
    /// `grep` from finding itself.) Zombies do not count: some containers have nobody to reap them.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;
    use proptest::prelude::*;

    fn run_in(shell: &[&str], bootstrap: &Bootstrap, input: Vec<u8>) -> crabbox_host::command::Captured {
        // As sshd does it: the login shell gets the line after -c.
        Cmd::new(shell[0])
            .args(&shell[1..])
            .args(["-c", &bootstrap.line()])
            .stdin(input)
            .capture()
            .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_script_and_the_input_behind_it_arrive_whole(
            words in prop::collection::vec("[^\0]{0,30}", 1..5),
            input in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bootstrap = Bootstrap::new().unwrap();
            let script = format!("printf '%s\\0' {}; cat; exit 7", quote::join(&words));
            let mut sent = bootstrap.preamble(&script);
            sent.extend(&input);
            let mut expected = words.iter().flat_map(|w| [w.as_bytes(), b"\0"].concat()).collect::<Vec<_>>();
            expected.extend(&input);
            let seen = run_in(&["bash"], &bootstrap, sent);
            prop_assert_eq!(seen.status.code(), Some(7), "{}", seen.stderr_text());
            prop_assert_eq!(seen.stdout, expected);
        }
    }

    #[test]
    fn a_script_cut_short_is_not_run() {
        let bootstrap = Bootstrap::new().unwrap();
        let whole = bootstrap.preamble("echo ran");
        let seen = run_in(&["sh"], &bootstrap, whole[..whole.len() - 2].to_vec());
        assert_eq!((seen.status.code(), seen.stdout_text().as_str()), (Some(255), ""));
    }

    #[test]
    fn the_script_sees_nothing_of_the_reader_and_a_signal_becomes_a_code() {
        let bootstrap = Bootstrap::new().unwrap();
        let input = bootstrap.preamble("echo \"$# ${cbx_s-unset} ${cbx_l-unset}\"; sh -c 'kill -TERM $$'");
        let seen = run_in(&["sh"], &bootstrap, input);
        assert_eq!(
            (seen.status.code(), seen.stdout_text().as_str()),
            (Some(143), "0 unset unset")
        );
    }
}
