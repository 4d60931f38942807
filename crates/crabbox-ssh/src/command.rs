//! The user's command, as the agent on the other side is asked for it.
//!
//! The same shell as the Go program's (`bash -lc` after `cd`), except that values of the environment never stand in an argument vector, and win
//! over what the login profile sets. A word of the user must never be split, expanded or dropped on the way.

use crabbox_agent_protocol::Command;

use crate::exec::RemoteStatus;
use crate::far::Ran;
use crate::quote;

mod form;

pub use form::{Form, is_name};

/// How the variables are called that carry values past the login profile; a number follows.
const COPY: &str = "CRABBOX_PAST_PROFILE_";

/// How long one of them is at most, in bytes: less than what the kernel takes.
const COPY_LIMIT: usize = 96 * 1024;

/// How long a variable may be, name, `=`, value and the byte that ends it: `MAX_ARG_STRLEN` of execve(2).
const VARIABLE_LIMIT: usize = 128 * 1024;

/// How long all of them may be together, each once as it is and once as a copy: a quarter of the usual 8 MiB of a stack (execve(2)), less
/// what the lease itself has of variables and words.
const VARIABLES_LIMIT: usize = 7 << 18;

/// What bash keeps for itself and lets nobody set or unset.
const BASHS_OWN: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

/// Tells the shell around a login shell that the profile is behind it. A signal, because what a profile leaves running would hold a
/// pipe open, and a file would have to be put somewhere; to the number that it was given, because a profile may start one more shell
/// for the command. `builtin`, because a profile may have a `kill` of its own, and then without, for a shell that does not know it.
const PAST_PROFILE: &str = "command trap - EXIT; { builtin kill -USR1 \"$CRABBOX_SHELL\" || kill -USR1 \"$CRABBOX_SHELL\"; } 2>/dev/null || :; \
     command unset CRABBOX_SHELL; ";

/// The variable that it finds that number in.
const TELLS: &str = "CRABBOX_SHELL";

/// What whoever reads it looks for is what starts their command.
const NO_BASH: &str =
    "the command was not run: there is no bash in the lease, or none on its PATH, and bash starts it\n";

/// A profile that ends the shell or starts another one in its place (`exec zsh`) must not pass for a command that succeeded.
const NOT_PAST: &str = "the command was not run: the login profile there (.bash_profile, .profile or /etc/profile) ended the shell or started \
     another one in its place\n";

/// POSIX: what cannot be executed, and from there on a code speaks for itself.
const NOT_EXECUTED: u8 = 126;
/// And what is not there.
const NOT_FOUND: u8 = 127;

/// What the end of a prepared command means.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It ended so; what is to be said of that on its standard error.
    Ended(RemoteStatus, Option<&'static str>),
    /// It was not started, for this reason.
    Unstarted(String),
}

/// What the end of a command means that was [prepared](UserCommand::prepared).
pub fn meaning(ran: Ran) -> Meaning {
    match ran {
        Ran::Ended {
            status: RemoteStatus::Exited(code),
            told: false,
        } if code < NOT_EXECUTED => {
            let code = if code == 0 { NOT_EXECUTED } else { code };
            Meaning::Ended(RemoteStatus::Exited(code), Some(NOT_PAST))
        }
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
    /// The name of a variable is not one.
    #[error("{name:?} is not a name for an environment variable")]
    Name {
        /// The name.
        name: String,
    },
    /// No shell can carry a NUL byte. The text itself may be a secret.
    #[error("{part} holds a NUL byte, which no command can carry")]
    Nul {
        /// Which part it is.
        part: String,
    },
    /// No program can be given a variable of that length. The value itself may be a secret.
    #[error(
        "the variable {name} has {bytes} bytes, and no program takes one of more than {VARIABLE_LIMIT}; hand it on in a file"
    )]
    Long {
        /// Its name.
        name: String,
        /// How long it is, with its name.
        bytes: usize,
    },
    /// No program can be given so much.
    #[error("the variables for the command are too long together ({bytes} bytes); hand them on in a file")]
    Many {
        /// How long they are.
        bytes: usize,
    },
    /// There is no word at all.
    #[error("there is no command to run")]
    Empty,
}

impl UserCommand {
    /// What the agent is asked for.
    pub fn prepared(&self) -> Result<Command, UserCommandError> {
        self.check()?;
        let workdir = quote::single(&self.workdir);
        // The profile sees the values, may set its own, and they are set once more behind it. Variables carry them past it, because what
        // stands in the line of the login shell is shown by `ps`.
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
        // The login shell may change the directory in its profile.
        let inner = format!("{PAST_PROFILE}{again}cd {workdir} && ");
        let mut words = vec!["bash".to_owned(), "-lc".to_owned()];
        match &self.form {
            Form::Argv(argv) => {
                words.extend([format!("{inner}exec \"$@\""), "bash".to_owned()]);
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

    /// Makes the profile give up the variables, with what it has declared of them (`-i`, `-u`, a reference). One that it has made read-only
    /// is one for that shell alone, so another one, which reads no profile, takes its place. `command`, because a profile may have functions of
    /// these names, and because what fails then ends no shell that keeps to POSIX.
    fn given_up(&self) -> String {
        let names = self.env.iter().map(|(name, _)| name.as_str());
        let names: Vec<&str> = names.filter(|name| !BASHS_OWN.contains(name)).collect();
        if names.is_empty() {
            return String::new();
        }
        format!(
            "cbx_kept=; for cbx_v in {}; do command unset -n \"$cbx_v\" || :; command unset -v \"$cbx_v\" || cbx_kept=y; done 2>/dev/null; \
             case ${{CRABBOX_AGAIN-}}.$cbx_kept in .y) CRABBOX_AGAIN=y exec \"$BASH\" -c \"$BASH_EXECUTION_STRING\" \"$0\" \"$@\";; esac; ",
            names.join(" ")
        )
    }

    /// A shell line that sets the variables, in pieces that a variable can carry.
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

    fn check(&self) -> Result<(), UserCommandError> {
        let words: Vec<&String> = match &self.form {
            Form::Argv(words) => words.iter().collect(),
            Form::Shell(script) => vec![script],
        };
        if words.first().is_none_or(|first| first.is_empty()) {
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
        // Its length is told with the NUL that ends it.
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
    use crate::far::{Far, Streams};
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

    /// What became of a command.
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

    /// Runs it for a user whose profile is `profile`, by an agent.
    fn run_with_profile(command: &UserCommand, profile: &str) -> Seen {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".profile"), profile).unwrap();
        let mut far = Far::local_in(Some(home.path())).unwrap();
        let mut seen = Seen {
            code: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        let streams = Streams {
            out: &mut seen.stdout,
            err: &mut seen.stderr,
        };
        match meaning(far.run(command.prepared().unwrap(), None, streams, None).unwrap()) {
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
        // The profile reads what it was given before it takes its own, and goes elsewhere.
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
            "export() { :; }; eval() { :; }; unset() { :; }; V=profile",
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
        let mut command = command(tmp.path(), Form::Argv(words(&["true"])));
        command.env = vec![("PATH".to_owned(), tmp.path().display().to_string())];
        let seen = run(&command);
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
                ("exit 3", 3),
                ("exec sh", 126),
                ("exec true", 126),
            ] {
                let seen = run_with_profile(&command, profile);
                assert_eq!((seen.code, seen.stdout_text()), (Some(code), String::new()));
                let said = seen.stderr_text();
                assert!(said.contains("the login profile there"), "{profile}: {said}");
            }
            // Whatever else a profile does is no hindrance, nor is a shell that cannot catch the signal.
            for profile in [
                "set -e",
                "kill() { exit 1; }; (sleep 30 >/dev/null 2>&1 &)",
                "trap '' USR1",
                "trap 'exit 0' EXIT",
                "cd /",
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
        // The kernel's own limit, whatever quoting makes of it.
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
