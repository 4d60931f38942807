//! `--env-from-profile` and `--env-helper`: variables from a file in `.env` syntax, read as the Go program
//! does.
//!
//! Nothing in the file is ever executed, and values never appear in an argument vector or in printed output.

use std::fmt;
use std::path::{Path, PathBuf};

use crabbox_core::config::allow::{is_name, is_secret};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::shell::single_quoted;

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// Why a profile gives no variables.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be read.
    #[error("read env profile {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is too large for a profile.
    #[error("env profile {} is larger than 1 MiB", path.display())]
    Large {
        /// The file.
        path: PathBuf,
    },
    /// A helper was requested without values for it.
    #[error("--env-helper requires --env-from-profile values selected by --allow-env")]
    NothingForHelper,
    /// A helper's name is not valid.
    #[error(
        "--env-helper must contain only letters, numbers, dash, or underscore, and not begin with a dash, found {name:?}"
    )]
    HelperName {
        /// The name.
        name: String,
    },
}

impl Fault for ProfileError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The contents of the files.
#[derive(Debug, Default)]
pub struct Profile {
    /// The variables in their order; a later one replaces an earlier one.
    pub variables: Vec<(String, String)>,
    /// The files with ignored lines.
    pub unread: Vec<Unread>,
}

/// The ignored lines of a file: neither a variable nor a comment. Only their numbers are kept, because a line
/// may contain a value.
#[derive(Debug, PartialEq, Eq)]
pub struct Unread {
    /// The file.
    pub path: PathBuf,
    /// Line numbers, from 1; never empty.
    pub lines: Vec<usize>,
}

/// Maximum number of lines that a warning names.
const NAMED_LINES: usize = 10;

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (named, more) = self.lines.split_at(self.lines.len().min(NAMED_LINES));
        let named: Vec<_> = named.iter().map(usize::to_string).collect();
        let word = if self.lines.len() == 1 { "line" } else { "lines" };
        write!(
            f,
            "env profile {}: {word} {}",
            self.path.display(),
            named.join(", ")
        )?;
        if !more.is_empty() {
            write!(f, " and {} more", more.len())?;
        }
        f.write_str(" ignored: not NAME=value on one line, or only a shell can evaluate it")
    }
}

/// Reads the files in order.
pub fn read(paths: &[PathBuf], cwd: &Path) -> Result<Profile, ProfileError> {
    let mut profile = Profile::default();
    let found = &mut profile.variables;
    for path in paths {
        let path = cwd.join(path);
        let failed = |source| ProfileError::Read {
            path: path.clone(),
            source,
        };
        let size = std::fs::metadata(&path).map_err(failed)?.len();
        if size > LIMIT {
            return Err(ProfileError::Large { path });
        }
        let (variables, lines) = parse(&std::fs::read_to_string(&path).map_err(failed)?);
        for (name, value) in variables {
            found.retain(|(known, _)| *known != name);
            found.push((name, value));
        }
        if !lines.is_empty() {
            profile.unread.push(Unread { path, lines });
        }
    }
    Ok(profile)
}

/// Checks a helper's name.
pub fn helper(name: &str) -> Result<(), ProfileError> {
    // With a dot, it could be the name of another helper's file of variables.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if name.is_empty() || name.starts_with('-') || !name.chars().all(allowed) {
        return Err(ProfileError::HelperName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Parses `NAME=value` lines: the variables, and the numbers of ignored lines, such as those that need a
/// shell.
fn parse(text: &str) -> (Vec<(String, String)>, Vec<usize>) {
    // Editors on Windows put a byte order mark first.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut variables, mut unread) = (Vec::new(), Vec::new());
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match variable(line) {
            Some(variable) => variables.push(variable),
            None => unread.push(number),
        }
    }
    (variables, unread)
}

fn variable(line: &str) -> Option<(String, String)> {
    let line = line
        .strip_prefix("export ")
        .or_else(|| line.strip_prefix("export\t"))
        .unwrap_or(line);
    let (name, value) = line.trim_start().split_once('=')?;
    let name = name.trim_end();
    is_name(name).then_some(())?;
    Some((name.to_owned(), value_of(value.trim())?))
}

fn value_of(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('\'') {
        return rest.split_once('\'').map(|(value, _)| value.to_owned());
    }
    let needs_shell = |text: &str| text.contains("$(") || text.contains('`');
    let Some(rest) = text.strip_prefix('"') else {
        // A comment begins after white space.
        let end = if text.starts_with('#') {
            0
        } else {
            text.find(" #").or_else(|| text.find("\t#")).unwrap_or(text.len())
        };
        let value = text[..end].trim_end();
        return (!needs_shell(value)).then(|| value.to_owned());
    };
    let (mut value, mut letters) = (String::new(), rest.chars());
    loop {
        match letters.next()? {
            '"' => return (!needs_shell(&value)).then_some(value),
            '\\' => match letters.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                letter @ ('"' | '\\' | '$') => value.push(letter),
                other => value.extend(['\\', other]),
            },
            letter => value.push(letter),
        }
    }
}

/// `A=set,B=empty,TOKEN=set len=12 secret=true`.
pub fn described(variables: &[(String, String)]) -> String {
    let shown = |(name, value): &(String, String)| {
        let state = if value.is_empty() { "empty" } else { "set" };
        if is_secret(name) {
            format!("{name}={state} len={} secret=true", value.len())
        } else {
            format!("{name}={state}")
        }
    };
    variables.iter().map(shown).collect::<Vec<_>>().join(",")
}

/// Shell code that creates the helper, and beside it a file with these variables, in the working directory.
/// It is sent over standard input, and `printf` is a builtin of the shells that run it, so no value appears
/// in an argument vector.
pub fn helper_lines(name: &str, workdir: &str, variables: &[(String, String)]) -> String {
    let mut lines = vec![format!(
        "( cd {} && umask 077 && mkdir -p .crabbox/env && {{",
        single_quoted(workdir)
    )];
    for (name, value) in variables {
        let line = format!("export {name}={}", single_quoted(value));
        lines.push(format!("printf '%s\\n' {}", single_quoted(&line)));
    }
    let helper = format!("#!/bin/sh\n. \"${{0%/*}}/{name}.env\" && exec \"$@\"");
    lines.push(format!(
        "}} > .crabbox/env/{name}.env && printf '%s\\n' {} > .crabbox/env/{name} && chmod 700 .crabbox/env/{name} ) || exit 74",
        single_quoted(&helper)
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;

    #[test]
    fn a_profile_is_read_and_never_executed() {
        let text = "# comment\nA=1\nexport B = two words # said\nC='$(x) # \"'\nD=\"a\\n\\\"b\\\" \\$c\" # x\nE=$(rm -rf /)\nF=`id`\nG=\"$(id)\"\n1H=x\nnothing\nI=\nJ=#x\nK=\"open\n";
        let pairs = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "$(x) # \""),
            ("D", "a\n\"b\" $c"),
            ("I", ""),
            ("J", ""),
        ];
        let want = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parse(text), (want.to_vec(), vec![6, 7, 8, 9, 10, 13]));
    }

    #[test]
    fn a_mark_of_the_encoding_is_no_part_of_a_name() {
        let one = vec![("Q1".to_owned(), "bom".to_owned())];
        assert_eq!(parse("\u{feff}Q1=bom\r\n"), (one, Vec::new()));
    }

    #[test]
    fn lines_that_are_left_out_are_told_by_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        let text = "K1=\"-----BEGIN\nabc\n-----END\"\n\n # said\nK2=$(id)\nK3:x\nK4=ok\n";
        std::fs::write(dir.path().join("a"), text).unwrap();
        std::fs::write(dir.path().join("b"), "x\n".repeat(12)).unwrap();
        std::fs::write(dir.path().join("c"), "A=1\n").unwrap();
        let profile = read(&["a".into(), "b".into(), "c".into()], dir.path()).unwrap();
        assert_eq!(profile.variables.len(), 2);
        let told: Vec<_> = profile.unread.iter().map(Unread::to_string).collect();
        let why = "ignored: not NAME=value on one line, or only a shell can evaluate it";
        let file = |name: &str| dir.path().join(name).display().to_string();
        assert_eq!(
            told,
            [
                format!("env profile {}: lines 1, 2, 3, 6, 7 {why}", file("a")),
                format!(
                    "env profile {}: lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more {why}",
                    file("b")
                ),
            ]
        );
    }

    #[test]
    fn the_description_shows_no_value() {
        let variables = [("CI", "1"), ("EMPTY", ""), ("MY_TOKEN", "abcdef")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            described(&variables),
            "CI=set,EMPTY=empty,MY_TOKEN=set len=6 secret=true"
        );
    }

    #[test]
    fn the_helper_hands_the_values_on_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let value = "it's $HOME\nand `more`".to_owned();
        let workdir = dir.path().to_str().unwrap();
        let script = helper_lines("with-env", workdir, &[("V".to_owned(), value.clone())]);
        Cmd::new("sh").args(["-c", &script]).run().unwrap();
        let seen = Cmd::new(dir.path().join(".crabbox/env/with-env"))
            .args(["sh", "-c", "printf %s \"$V\""])
            .capture()
            .unwrap();
        assert_eq!(seen.stdout, value.as_bytes(), "{}", seen.stderr_text());
        let file = dir.path().join(".crabbox/env/with-env.env");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(helper("run_x").is_ok());
        for bad in ["", "../x", "a b", "-x", ".x", "a.env"] {
            assert!(helper(bad).is_err(), "{bad}");
        }
    }
}
