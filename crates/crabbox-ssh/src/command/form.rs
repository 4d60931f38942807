//! Decides whether the words of a command line are a program with arguments or a shell script.
//!
//! The rules are the Go program's. A word that is meant to be passed on as it is must never be expanded.

use crabbox_core::config::allow::is_name;

use crate::quote;

/// A single word with one of these is taken for a shell script.
const SCRIPT_CHARACTERS: &[char] = &[
    ' ', '\t', '\r', '\n', '&', '|', ';', '<', '>', '*', '$', '`', '(', ')',
];

/// Words that only a shell understands.
const OPERATORS: [&str; 9] = ["&&", "||", ";", "|", ">", ">>", "<", "2>", "2>>"];

/// How to interpret the words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A program and its arguments, passed as they are.
    Argv(Vec<String>),
    /// A script for bash.
    Shell(String),
}

impl Form {
    /// The form that the words of a command line ask for. A script is: a single word with white space or one
    /// of `& | ; < > * $ ( )` or a backquote; several words of which the first is `NAME=value`; any word that
    /// is a shell operator.
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

/// A single word is the script itself. Of several, operators stay as they are, and the values of leading
/// assignments and all other words are quoted.
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

/// Splits `NAME=value`, if the word is one.
fn assignment(word: &str) -> Option<(&str, &str)> {
    word.split_once('=').filter(|(name, _)| is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
