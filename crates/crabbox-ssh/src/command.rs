//! The user's command as a script for the other side.
//!
//! The same shells in the same order as the Go program (`bash -lc` after `cd`), except that values of the environment are
//! exported by the script instead of standing in an argument vector. A word of the user must never be split, expanded or
//! dropped on the way.

use crate::quote;

/// What a word must hold, alone on the line, to be taken for a shell script.
const SCRIPT_CHARACTERS: &[char] = &[
    ' ', '\t', '\r', '\n', '&', '|', ';', '<', '>', '*', '$', '`', '(', ')',
];

/// Words that only a shell understands.
const OPERATORS: [&str; 9] = ["&&", "||", ";", "|", ">", ">>", "<", "2>", "2>>"];

/// How the words are to be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A program and its arguments, passed as they are.
    Argv(Vec<String>),
    /// A script for bash.
    Shell(String),
}

impl Form {
    /// The form that the words of a command line ask for. A script is: one word with a blank or one of `& | ; < > * $ ( )`
    /// or a backquote; several words of which the first is `NAME=value`; any word that is a shell operator.
    pub fn detect(words: &[String]) -> Self {
        let script = match words {
            [only] => only.contains(SCRIPT_CHARACTERS),
            [first, _, ..] => assignment(first).is_some(),
            [] => false,
        };
        if script || words.iter().any(|word| OPERATORS.contains(&word.as_str())) {
            Self::Shell(script_of(words))
        } else {
            Self::Argv(words.to_vec())
        }
    }

    /// `--shell`: the words joined by spaces are the script.
    pub fn shell(words: &[String]) -> Self {
        Self::Shell(words.join(" "))
    }
}

/// One word is the script itself. Of several, the operators stand as they are, the values of leading assignments and all
/// other words are quoted.
fn script_of(words: &[String]) -> String {
    if let [only] = words {
        return only.clone();
    }
    let mut leading = true;
    let mut parts = Vec::with_capacity(words.len());
    for word in words {
        if OPERATORS.contains(&word.as_str()) {
            parts.push(word.clone());
            // A new command begins, and with it a new place for assignments.
            leading = matches!(word.as_str(), "&&" | "||" | ";" | "|");
            continue;
        }
        match assignment(word) {
            Some((name, value)) if leading => parts.push(format!("{name}={}", quote::single(value))),
            _ => {
                leading = false;
                parts.push(quote::single(word));
            }
        }
    }
    parts.join(" ")
}

/// `NAME=value` taken apart, if it is one.
fn assignment(word: &str) -> Option<(&str, &str)> {
    word.split_once('=').filter(|(name, _)| is_name(name))
}

/// Whether `name` can be the name of a variable.
pub fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// A command and what it needs around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserCommand {
    /// Absolute path of the directory to run in.
    pub workdir: String,
    /// A file to read variables from first, when it exists; relative to `workdir` or absolute.
    pub env_file: Option<String>,
    /// Variables to export, in this order; they win over the file.
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
    /// There is no word at all.
    #[error("there is no command to run")]
    Empty,
}

impl UserCommand {
    /// The script for [`crate::exec::Exec`].
    pub fn script(&self) -> Result<String, UserCommandError> {
        self.check()?;
        let workdir = quote::single(&self.workdir);
        let mut lines = vec![format!("cd {workdir} || exit")];
        if let Some(file) = &self.env_file {
            // A name without a slash would be looked up on PATH by `.`.
            let file = if file.contains('/') {
                file.clone()
            } else {
                format!("./{file}")
            };
            let file = quote::single(&file);
            lines.push(format!("if [ -f {file} ]; then . {file} || exit; fi"));
        }
        for (name, value) in &self.env {
            lines.push(format!("export {name}={}", quote::single(value)));
        }
        // The login shell may change the directory in its profile, hence the second `cd`.
        lines.push(match &self.form {
            Form::Argv(words) => {
                let inner = quote::single(&format!("cd {workdir} && exec \"$@\""));
                format!("bash -lc {inner} bash {}", quote::join(words))
            }
            Form::Shell(script) => {
                format!("bash -lc {}", quote::single(&format!("cd {workdir} && {script}")))
            }
        });
        Ok(lines.join("\n"))
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
        if self.workdir.contains('\0') || self.env_file.as_ref().is_some_and(|file| file.contains('\0')) {
            return nul("a path");
        }
        match self.env.iter().find(|(_, value)| value.contains('\0')) {
            Some((name, _)) => nul(&format!("the value of {name}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::{Captured, Cmd};
    use proptest::prelude::*;

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    fn detected(line: &[&str]) -> Option<String> {
        match Form::detect(&words(line)) {
            Form::Shell(script) => Some(script),
            Form::Argv(argv) => {
                assert_eq!(argv, words(line));
                None
            }
        }
    }

    #[test]
    fn one_word_is_a_script_only_when_it_holds_something_for_a_shell() {
        for letter in SCRIPT_CHARACTERS {
            let word = format!("a{letter}b");
            assert_eq!(detected(&[&word]).as_deref(), Some(word.as_str()));
        }
        for plain in [
            "make", "./run.sh", "a=b", "[x]", "a?b", "it's", "~", "#", "{a,b}", "\"q\"",
        ] {
            assert_eq!(detected(&[plain]), None, "{plain}");
        }
    }

    #[test]
    fn several_words_are_a_script_after_a_leading_assignment() {
        assert_eq!(
            detected(&["FOO=a b", "make", "X=y"]).unwrap(),
            "FOO='a b' 'make' 'X=y'"
        );
        assert_eq!(detected(&["_a1=", "make"]).unwrap(), "_a1='' 'make'");
        for plain in ["1a=b", "a-b=c", "=x", "a.b=c"] {
            assert_eq!(detected(&[plain, "make"]), None, "{plain}");
        }
        assert_eq!(detected(&["make", "FOO=bar"]), None);
        assert_eq!(
            detected(&["echo", "a b", "$HOME", "*"]),
            None,
            "several plain words are never expanded"
        );
    }

    #[test]
    fn an_operator_makes_a_script_and_stays_as_it_is() {
        for operator in OPERATORS {
            let script = detected(&["echo", "a b", operator, "it's"]).unwrap();
            assert_eq!(script, format!("'echo' 'a b' {operator} 'it'\\''s'"));
        }
        assert_eq!(
            detected(&["a", "&&", "X=1 2", "b"]).unwrap(),
            "'a' && X='1 2' 'b'"
        );
        for plain in ["&", "2>&1", "&&&", ">x"] {
            assert_eq!(detected(&["echo", plain]), None, "{plain}");
        }
    }

    #[test]
    fn shell_joins_the_words_with_spaces() {
        assert_eq!(
            Form::shell(&words(&["echo", "$HOME;", "ls"])),
            Form::Shell("echo $HOME; ls".to_owned())
        );
    }

    fn command(dir: &std::path::Path, form: Form) -> UserCommand {
        UserCommand {
            workdir: dir.to_str().unwrap().to_owned(),
            env_file: None,
            env: Vec::new(),
            form,
        }
    }

    fn run(command: &UserCommand) -> Captured {
        // A home of its own: `bash -l` reads the profile there.
        let home = tempfile::tempdir().unwrap();
        Cmd::new("sh")
            .args(["-c", &command.script().unwrap()])
            .env("HOME", home.path())
            .capture()
            .unwrap()
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
    fn the_shell_form_runs_in_the_directory_with_the_file_and_the_environment_over_it() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("vars"), "export A=file B=file").unwrap();
        let mut command = command(tmp.path(), Form::shell(&words(&["echo $A $B; pwd; exit 7"])));
        command.env_file = Some("vars".to_owned());
        command.env = vec![("B".to_owned(), "flag".to_owned())];
        let seen = run(&command);
        assert_eq!(seen.status.code(), Some(7));
        assert_eq!(seen.stdout_text(), format!("file flag\n{}", tmp.path().display()));
    }

    #[test]
    fn a_missing_directory_fails_before_the_command_runs() {
        let seen = run(&command(
            std::path::Path::new("/nowhere/at all"),
            Form::Argv(words(&["echo", "ran"])),
        ));
        assert_eq!(seen.stdout_text(), "");
        assert!(!seen.status.success());
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
            with_env("A-B", "").script(),
            Err(UserCommandError::Name { .. })
        ));
        assert!(matches!(
            with_env("x;y", "").script(),
            Err(UserCommandError::Name { .. })
        ));
        let error = with_env("TOKEN", "sec\0ret").script().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the value of TOKEN holds a NUL byte, which no command can carry"
        );
        assert_eq!(
            command(dir, Form::Argv(Vec::new())).script(),
            Err(UserCommandError::Empty)
        );
        assert_eq!(
            command(dir, Form::shell(&[])).script(),
            Err(UserCommandError::Empty)
        );
    }
}
