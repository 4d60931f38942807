//! Turns the user's command into a request to the agent.
//!
//! It runs in the same shell as with the Go program (`bash -lc` after `cd`), except that environment values
//! never appear in an argument vector, and win over what the login profile sets. A word of the user must
//! never be split, expanded or dropped on the way.

use crabbox_agent_protocol::Command;
use crabbox_core::config::allow::is_name;

use crate::agent_client::Ran;
use crate::exec::RemoteStatus;
use crate::quote;

mod form;

pub use form::Form;

/// The prefix of the variables that carry values past the login profile; a number follows.
const COPY: &str = "CRABBOX_PAST_PROFILE_";

/// The longest of these variables in bytes, below the kernel's limit.
const COPY_LIMIT: usize = 96 * 1024;

/// The longest variable in bytes, counting name, `=`, value and NUL: `MAX_ARG_STRLEN` of execve(2).
const VARIABLE_LIMIT: usize = 128 * 1024;

/// The limit for all variables together, each counted twice (itself and its copy), in bytes: a quarter of the
/// usual 8 MiB stack (execve(2)), less what the lease itself has of variables and arguments.
const VARIABLES_LIMIT: usize = 7 << 18;

/// Variables that bash does not let anyone set or unset.
const BASHS_OWN: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

/// Expands to `builtin` in bash, where a profile may define functions of any name, and to nothing in another
/// shell that a profile may have started instead, which may not have it.
const BUILTIN: &str = "${BASH_VERSION:+builtin}";

/// Shell code that tells the waiting process that the login profile was read. It uses a signal because a
/// process left running by the profile would hold a pipe open, and a file would need a place. The signal goes
/// to a given pid because a profile may start another shell for the command. It is tried again without
/// `builtin` because a profile may have disabled the builtin `kill`. `command` has to be the shell's own:
/// with `set -e` in a profile, `builtin command` ignores `||`.
fn past_profile() -> String {
    format!(
        "{BUILTIN} unset -f command 2>/dev/null || :; command trap - EXIT; {{ {BUILTIN} kill -USR1 \"$CRABBOX_SHELL\" || kill -USR1 \"$CRABBOX_SHELL\"; }} 2>/dev/null || :; \
         command unset CRABBOX_SHELL; "
    )
}

/// The variable that holds that pid.
const TELLS: &str = "CRABBOX_SHELL";

/// Names bash, because the user did not ask for it and would otherwise not know why it is needed.
const NO_BASH: &str =
    "the command was not run: there is no bash in the lease, or none on its PATH, and bash starts it\n";

/// The message for a profile that ends the shell or replaces it (`exec zsh`), which must not pass for a
/// successful command.
const NOT_PAST: &str = "the command was not run: the login profile there (.bash_profile, .profile or /etc/profile) ended the shell or started \
     another one in its place\n";

/// The POSIX exit code for a command that cannot be executed.
const NOT_EXECUTED: u8 = 126;
/// Exit codes of a shell that was killed: 128 plus the signal number (signal(7)).
const SIGNALS: std::ops::RangeInclusive<u8> = 129..=192;
/// The POSIX exit code for a command that is not found.
const NOT_FOUND: u8 = 127;

/// The meaning of the end of a prepared command.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It ended with this status; the text, if any, is for its standard error.
    Ended(RemoteStatus, Option<&'static str>),
    /// It was not started; the reason.
    Unstarted(String),
}

/// Interprets the end of a command that was [prepared](UserCommand::prepared).
pub fn meaning(ran: Ran) -> Meaning {
    match ran {
        Ran::Ended {
            status: RemoteStatus::Exited(code),
            told: false,
        } if !SIGNALS.contains(&code) => Meaning::Ended(RemoteStatus::Exited(NOT_EXECUTED), Some(NOT_PAST)),
        Ran::Ended { status, .. } => Meaning::Ended(status, None),
        Ran::Unstarted { absent: true, .. } => Meaning::Ended(RemoteStatus::Exited(NOT_FOUND), Some(NO_BASH)),
        Ran::Unstarted { why, .. } => Meaning::Unstarted(why),
    }
}

/// A command and what it needs around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCommand {
    /// Absolute path of the directory to run in.
    pub workdir: String,
    /// Variables to export, in this order; they win over the profile that the login shell reads.
    pub env: Vec<(String, String)>,
    /// The command.
    pub form: Form,
}

/// Why a command cannot be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserCommandError {
    /// The name of a variable is not valid.
    #[error("{name:?} is not a name for an environment variable")]
    Name {
        /// The name.
        name: String,
    },
    /// A shell cannot pass on a NUL byte. The text itself is not shown, because it may be a secret.
    #[error("{part} holds a NUL byte, which no command can carry")]
    Nul {
        /// Which part it is.
        part: String,
    },
    /// The kernel does not accept a variable of that length. The value itself is not shown, because it may be
    /// a secret.
    #[error(
        "the variable {name} has {bytes} bytes, and no program takes one of more than {VARIABLE_LIMIT}; hand it on in a file"
    )]
    Long {
        /// Its name.
        name: String,
        /// Its length in bytes, including the name.
        bytes: usize,
    },
    /// The kernel does not accept so many variables.
    #[error("the variables for the command are too long together ({bytes} bytes); pass them in a file")]
    Many {
        /// How long they are.
        bytes: usize,
    },
    /// There is no word at all.
    #[error("there is no command to run")]
    Empty,
}

impl UserCommand {
    /// The request for the agent.
    pub fn prepared(&self) -> Result<Command, UserCommandError> {
        self.check()?;
        let workdir = quote::single(&self.workdir);
        // The profile sees the values and may set its own; afterwards ours are set again. Further variables
        // carry them past the profile, because `ps` shows the command line of the login shell.
        let (mut env, mut all) = (self.env.clone(), String::new());
        for (index, text) in self.copies().into_iter().enumerate() {
            all.extend(["$", COPY, &index.to_string()]);
            env.push((format!("{COPY}{index}"), text));
        }
        let again = if all.is_empty() {
            String::new()
        } else {
            format!(
                "{}command eval \"{all}\" || :; command unset{} cbx_v cbx_kept CRABBOX_AGAIN; ",
                self.given_up(),
                all.replace('$', " ")
            )
        };
        // The profile may change the directory.
        let inner = format!("{}{again}{BUILTIN} cd {workdir} && ", past_profile());
        let mut words = vec!["bash".to_owned(), "-lc".to_owned()];
        match &self.form {
            Form::Argv(argv) => {
                words.extend([format!("{inner}{BUILTIN} exec \"$@\""), "bash".to_owned()]);
                words.extend(argv.iter().cloned());
            }
            Form::Shell(script) => words.push(format!("{inner}{script}")),
        }
        Ok(Command {
            workdir: self.workdir.clone(),
            words,
            env,
            tells: TELLS.to_owned(),
            input: false,
            noted: true,
        })
    }

    /// Shell code that unsets the variables, with any attributes (`-i`, `-u`, nameref) that the profile gave
    /// them. A variable that the profile made read-only is so only in that shell, so it is replaced with
    /// another shell, which reads no profile. `command`, because otherwise a failure would end a shell in
    /// POSIX mode.
    fn given_up(&self) -> String {
        let names = self.env.iter().map(|(name, _)| name.as_str());
        let names: Vec<&str> = names.filter(|name| !BASHS_OWN.contains(name)).collect();
        if names.is_empty() {
            return String::new();
        }
        format!(
            "cbx_kept=; for cbx_v in {}; do command unset -n \"$cbx_v\" || :; command unset -v \"$cbx_v\" || cbx_kept=y; \
             done 2>/dev/null; case ${{CRABBOX_AGAIN-}}.$cbx_kept in \
             .y) CRABBOX_AGAIN=y {BUILTIN} exec \"$BASH\" -c \"$BASH_EXECUTION_STRING\" \"$0\" \"$@\";; esac; ",
            names.join(" ")
        )
    }

    /// Shell code that sets the variables, in pieces short enough for a variable.
    fn copies(&self) -> Vec<String> {
        let mut copies: Vec<String> = Vec::new();
        if self.env.is_empty() {
            return copies;
        }
        let words = self
            .env
            .iter()
            .map(|(name, value)| format!(" {name}={}", quote::single(value)));
        let text: String = std::iter::once("command export".to_owned())
            .chain(words)
            .collect();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(rest.floor_char_boundary(COPY_LIMIT));
            copies.push(piece.to_owned());
            rest = behind;
        }
        copies
    }

    /// Checks whether the command can be sent at all, before a lease is needed.
    pub fn check(&self) -> Result<(), UserCommandError> {
        let words: Vec<&String> = match &self.form {
            Form::Argv(words) => words.iter().collect(),
            Form::Shell(script) => vec![script],
        };
        let is_blank = |text: &str| match &self.form {
            Form::Argv(_) => text.is_empty(),
            // The script follows `&&`, so it must not be blank.
            Form::Shell(_) => text.trim_ascii().is_empty(),
        };
        if words.first().is_none_or(|first| is_blank(first)) {
            return Err(UserCommandError::Empty);
        }
        if let Some((name, _)) = self.env.iter().find(|(name, _)| !is_name(name)) {
            return Err(UserCommandError::Name { name: name.clone() });
        }
        let nul = |part: &str| {
            Err(UserCommandError::Nul {
                part: part.to_owned(),
            })
        };
        if words.iter().any(|word| word.contains('\0')) {
            return nul("the command");
        }
        if self.workdir.contains('\0') {
            return nul("a path");
        }
        if let Some((name, _)) = self.env.iter().find(|(_, value)| value.contains('\0')) {
            return nul(&format!("the value of {name}"));
        }
        // The length includes `=` and the final NUL.
        let length = |(name, value): &(String, String)| name.len() + value.len() + 2;
        if let Some(long) = self.env.iter().find(|variable| length(variable) > VARIABLE_LIMIT) {
            return Err(UserCommandError::Long {
                name: long.0.clone(),
                bytes: length(long),
            });
        }
        let bytes: usize = self.env.iter().map(length).sum();
        let copied: usize = self.copies().iter().map(String::len).sum();
        if bytes + copied > VARIABLES_LIMIT {
            return Err(UserCommandError::Many { bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_client::{AgentClient, Streams};
    use proptest::prelude::*;

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    fn command(dir: &std::path::Path, form: Form) -> UserCommand {
        UserCommand {
            workdir: dir.to_str().unwrap().to_owned(),
            env: Vec::new(),
            form,
        }
    }

    /// The result of a command.
    #[derive(Debug)]
    struct Seen {
        code: Option<u8>,
        stdout: Vec<u8>,
        stderr: Vec<u8>,
    }

    impl Seen {
        fn stdout_text(&self) -> String {
            String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
        }

        fn stderr_text(&self) -> String {
            String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
        }
    }

    fn run(command: &UserCommand) -> Seen {
        run_with_profile(command, "")
    }

    /// Runs the command with an agent, for a user with this login profile.
    fn run_with_profile(command: &UserCommand, profile: &str) -> Seen {
        run_prepared(command.prepared().unwrap(), profile)
    }

    fn run_prepared(prepared: Command, profile: &str) -> Seen {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".profile"), profile).unwrap();
        let mut far = AgentClient::local_in(Some(home.path())).unwrap();
        let mut seen = Seen {
            code: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        let streams = Streams {
            out: &mut seen.stdout,
            err: &mut seen.stderr,
        };
        match meaning(far.run(prepared, None, streams, None).unwrap()) {
            Meaning::Ended(RemoteStatus::Exited(code), said) => {
                seen.code = Some(code);
                seen.stderr.extend_from_slice(said.unwrap_or_default().as_bytes());
            }
            Meaning::Ended(status, _) => panic!("{status:?}"),
            Meaning::Unstarted(why) => seen.stderr.extend_from_slice(why.as_bytes()),
        }
        seen
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn words_and_values_arrive_as_they_are(
            argv in prop::collection::vec("[^\0]{0,20}", 1..4),
            value in "[^\0]{0,20}",
        ) {
            let tmp = tempfile::Builder::new().prefix("it's $HOME ").tempdir().unwrap();
            let mut all = words(&["sh", "-c", "printf '%s\\0' \"$PWD\" \"$V\" \"$@\"", "sh"]);
            all.extend(argv.iter().cloned());
            let mut command = command(tmp.path(), Form::Argv(all));
            command.env = vec![("V".to_owned(), value.clone())];
            let mut expected = [vec![command.workdir.clone(), value], argv].concat().join("\0");
            expected.push('\0');
            let seen = run(&command);
            prop_assert_eq!(String::from_utf8_lossy(&seen.stdout), expected, "{}", seen.stderr_text());
        }
    }

    #[test]
    fn the_shell_form_runs_in_the_directory_with_the_environment() {
        let tmp = tempfile::tempdir().unwrap();
        let mut command = command(tmp.path(), Form::shell(&words(&["echo $B; pwd; exit 7"])));
        command.env = vec![("B".to_owned(), "flag".to_owned())];
        let seen = run(&command);
        assert_eq!(seen.code, Some(7));
        assert_eq!(seen.stdout_text(), format!("flag\n{}", tmp.path().display()));
    }

    #[test]
    fn a_value_that_was_asked_for_wins_over_the_profile_and_leaves_no_copy() {
        let tmp = tempfile::tempdir().unwrap();
        let look = "printf '%s|' \"$JAVA_HOME\" \"$SEEN\" \"$OF_PROFILE\" \"$GONE\" \"$PATH\"; env | grep -c PAST_PROFILE";
        // This profile reads the given value, sets its own, and changes the directory.
        let profile = "SEEN=$JAVA_HOME; export SEEN JAVA_HOME=/profile OF_PROFILE=stays PATH=/profile:$PATH; unset GONE; cd /; set -u";
        for form in [
            Form::Argv(words(&["sh", "-c", look])),
            Form::shell(&words(&[look])),
        ] {
            let mut command = command(tmp.path(), form);
            let path = format!("/mine:{}", "/usr/bin:/bin");
            command.env = [("JAVA_HOME", "/m'i\"ne $x"), ("GONE", "here\n"), ("PATH", &path)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
            let seen = run_with_profile(&command, profile);
            assert_eq!(
                seen.stdout_text(),
                format!("/m'i\"ne $x|/m'i\"ne $x|stays|here\n|{path}|0"),
                "{}",
                seen.stderr_text()
            );
        }
    }

    #[test]
    fn no_declaration_of_a_profile_keeps_a_variable_from_having_the_value_that_was_asked_for() {
        let tmp = tempfile::tempdir().unwrap();
        let look = "printf '%s|' \"$V\" \"$W\" \"$1\"; env | grep -c -e PAST_PROFILE -e CRABBOX_ -e cbx_";
        for profile in [
            "readonly V=profile",
            "set -eu; declare -rx V=profile; W=x",
            "set -o posix; readonly V=profile",
            "declare -i V; export V",
            "declare -u V; export V",
            "declare -A V; V[a]=1",
            "declare -n V=HOME",
            "export() { :; }; eval() { :; }; unset() { :; }; command() { echo no; }; V=profile",
            "exec() { echo no; }; command() { echo no; }; readonly V=profile",
        ] {
            for form in [
                Form::Argv(words(&["sh", "-c", look, "sh", "a b"])),
                Form::shell(&words(&["set -- 'a b';", look])),
            ] {
                let mut command = command(tmp.path(), form);
                command.env = [("V", "mine it's"), ("W", "")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .to_vec();
                let seen = run_with_profile(&command, profile);
                assert_eq!(
                    (seen.stdout_text().as_str(), seen.stderr_text().as_str()),
                    ("mine it's||a b|0", ""),
                    "{profile}"
                );
            }
        }
    }

    #[test]
    fn a_variable_that_the_shell_keeps_for_itself_hinders_no_command() {
        let tmp = tempfile::tempdir().unwrap();
        let mut command = command(tmp.path(), Form::Argv(words(&["sh", "-c", "echo $W"])));
        command.env = [("UID", "7"), ("W", "w")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        for profile in ["", "set -o posix"] {
            let seen = run_with_profile(&command, profile);
            assert_eq!(seen.stdout_text(), "w", "{profile}: {}", seen.stderr_text());
        }
    }

    #[test]
    fn a_lease_without_bash_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let command = command(tmp.path(), Form::Argv(words(&["true"])));
        let mut prepared = command.prepared().unwrap();
        assert_eq!(prepared.words[0], "bash");
        "no-such-bash".clone_into(&mut prepared.words[0]);
        let seen = run_prepared(prepared, "");
        assert_eq!(seen.code, Some(127));
        assert!(
            seen.stderr_text().contains("no bash in the lease"),
            "{}",
            seen.stderr_text()
        );
    }

    #[test]
    fn a_profile_that_takes_the_shells_place_does_not_pass_for_the_command() {
        let tmp = tempfile::tempdir().unwrap();
        for form in [
            Form::Argv(words(&["sh", "-c", "echo ran; exit 5"])),
            Form::shell(&words(&["echo ran; exit 5"])),
        ] {
            let command = command(tmp.path(), form);
            for (profile, code) in [
                ("exit 0", 126),
                ("exit 3", 126),
                ("exit 127", 126),
                ("exit 255", 126),
                ("exec sh", 126),
                ("exec true", 126),
            ] {
                let seen = run_with_profile(&command, profile);
                assert_eq!((seen.code, seen.stdout_text()), (Some(code), String::new()));
                let said = seen.stderr_text();
                assert!(said.contains("the login profile there"), "{profile}: {said}");
            }
            // Nothing else that a profile does prevents the command, nor does a shell that cannot catch the
            // signal.
            for profile in [
                "set -e",
                "kill() { exit 1; }; (sleep 30 >/dev/null 2>&1 &)",
                "trap '' USR1",
                "trap 'exit 0' EXIT",
                "cd /",
                "exec() { echo no; }; cd() { echo no; }; command() { echo no; }; trap() { echo no; }; unset() { echo no; }; kill() { echo no; }",
                "enable -n kill",
                "[ -n \"$X\" ] || { export X=1; exec sh -c \"$BASH_EXECUTION_STRING\" \"$0\" \"$@\"; }",
                "[ -n \"$X\" ] || { export X=1; bash -c \"$BASH_EXECUTION_STRING\" \"$0\" \"$@\"; exit; }",
            ] {
                let seen = run_with_profile(&command, profile);
                assert_eq!(seen.stdout_text(), "ran", "{profile}: {}", seen.stderr_text());
                assert_eq!((seen.code, seen.stderr_text()), (Some(5), String::new()));
            }
        }
    }

    #[test]
    fn values_of_any_number_and_length_that_a_kernel_takes_arrive() {
        let tmp = tempfile::tempdir().unwrap();
        let look =
            "LC_ALL=C; printf '%s %s %s' ${#A} ${#B} ${#C}; env | grep -c -e PAST_PROFILE -e CRABBOX_SHELL";
        let mut command = command(tmp.path(), Form::shell(&words(&[look])));
        let quotes = "'".repeat(VARIABLE_LIMIT - "B".len() - 2);
        command.env = [("A", "ä".repeat(45 * 1024)), ("B", quotes), ("C", "c".to_owned())]
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec();
        let seen = run(&command);
        assert_eq!(seen.stdout_text(), "92160 131069 10", "{}", seen.stderr_text());
    }

    #[test]
    fn a_missing_directory_fails_before_the_command_runs() {
        let seen = run(&command(
            std::path::Path::new("/nowhere/at all"),
            Form::Argv(words(&["echo", "ran"])),
        ));
        assert_eq!(seen.stdout_text(), "");
        assert_eq!(seen.code, None);
        assert!(
            seen.stderr_text().contains("/nowhere/at all"),
            "{}",
            seen.stderr_text()
        );
    }

    #[test]
    fn what_no_shell_can_carry_is_refused_without_showing_a_value() {
        let dir = std::path::Path::new("/");
        let with_env = |name: &str, value: &str| UserCommand {
            env: vec![(name.to_owned(), value.to_owned())],
            ..command(dir, Form::Argv(words(&["true"])))
        };
        assert!(matches!(
            with_env("A-B", "").prepared(),
            Err(UserCommandError::Name { .. })
        ));
        assert!(matches!(
            with_env("x;y", "").prepared(),
            Err(UserCommandError::Name { .. })
        ));
        // The kernel's limit applies to the value before quoting.
        let most = VARIABLE_LIMIT - "A".len() - 2;
        assert!(with_env("A", &"'".repeat(most)).prepared().is_ok());
        assert_eq!(
            with_env("A", &"a".repeat(most + 1)).prepared(),
            Err(UserCommandError::Long {
                name: "A".to_owned(),
                bytes: VARIABLE_LIMIT + 1
            })
        );
        let mut many = with_env("A", "");
        many.env = (0..20)
            .map(|at| (format!("A{at}"), "a".repeat(100 * 1024)))
            .collect();
        assert!(matches!(many.prepared(), Err(UserCommandError::Many { .. })));
        let error = with_env("TOKEN", "sec\0ret").prepared().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the value of TOKEN holds a NUL byte, which no command can carry"
        );
        assert_eq!(
            command(dir, Form::Argv(Vec::new())).prepared(),
            Err(UserCommandError::Empty)
        );
        assert_eq!(
            command(dir, Form::shell(&[])).prepared(),
            Err(UserCommandError::Empty)
        );
    }
}
