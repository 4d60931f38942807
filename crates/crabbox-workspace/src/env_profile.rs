//! `--env-from-profile` and `--env-helper`: variables out of a file in `.env` syntax, as the Go program reads it.
//!
//! Nothing in the file is ever executed, and a value stands in no argument vector and in no line that is printed.

use std::path::{Path, PathBuf};

use crabbox_core::config::allow::{is_name, is_secret};
use crabbox_core::fault::{Fault, Kind};

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
    /// It is too large to be one.
    #[error("env profile {} is larger than 1 MiB", path.display())]
    Large {
        /// The file.
        path: PathBuf,
    },
    /// A helper without values for it.
    #[error("--env-helper requires --env-from-profile values selected by --allow-env")]
    NothingForHelper,
    /// A helper's name that is none.
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

/// The variables of the files in their order; a later one replaces an earlier one.
pub fn read(paths: &[PathBuf], cwd: &Path) -> Result<Vec<(String, String)>, ProfileError> {
    let mut found: Vec<(String, String)> = Vec::new();
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
        for (name, value) in parse(&std::fs::read_to_string(&path).map_err(failed)?) {
            found.retain(|(known, _)| *known != name);
            found.push((name, value));
        }
    }
    Ok(found)
}

/// A helper's name, checked.
pub fn helper(name: &str) -> Result<(), ProfileError> {
    // With a dot in it, it could be the name of another helper's file of variables.
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if name.is_empty() || name.starts_with('-') || !name.chars().all(allowed) {
        return Err(ProfileError::HelperName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// `NAME=value` lines. What would need a shell to be known is left out.
fn parse(text: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let line = line.trim_start();
        let line = line
            .strip_prefix("export ")
            .or_else(|| line.strip_prefix("export\t"))
            .unwrap_or(line);
        let (name, value) = line.trim_start().split_once('=')?;
        let name = name.trim_end();
        is_name(name).then_some(())?;
        Some((name.to_owned(), value_of(value.trim())?))
    };
    text.lines().filter_map(line).collect()
}

fn value_of(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('\'') {
        return rest.split_once('\'').map(|(value, _)| value.to_owned());
    }
    let needs_shell = |text: &str| text.contains("$(") || text.contains('`');
    let Some(rest) = text.strip_prefix('"') else {
        // A comment begins behind a blank.
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
    let one = |(name, value): &(String, String)| {
        let state = if value.is_empty() { "empty" } else { "set" };
        if is_secret(name) {
            format!("{name}={state} len={} secret=true", value.len())
        } else {
            format!("{name}={state}")
        }
    };
    variables.iter().map(one).collect::<Vec<_>>().join(",")
}

/// Shell lines that leave the helper and, beside it, a file of these variables with its name in the working directory. They travel over standard input,
/// and `printf` is built into the shells that run them.
pub fn helper_lines(name: &str, workdir: &str, variables: &[(String, String)]) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let mut lines = vec![format!(
        "( cd {} && umask 077 && mkdir -p .crabbox/env && {{",
        quote(workdir)
    )];
    for (name, value) in variables {
        let line = format!("export {name}={}", quote(value));
        lines.push(format!("printf '%s\\n' {}", quote(&line)));
    }
    let helper = format!("#!/bin/sh\n. \"${{0%/*}}/{name}.env\" && exec \"$@\"");
    lines.push(format!(
        "}} > .crabbox/env/{name}.env && printf '%s\\n' {} > .crabbox/env/{name} && chmod 700 .crabbox/env/{name} ) || exit 74",
        quote(&helper)
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
        assert_eq!(parse(text), want);
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
