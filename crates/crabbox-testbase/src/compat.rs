//! The compatibility contract as a table: the Go program's behaviour recorded as facts, and compared with
//! this program's.
//!
//! A case runs in its own home and repository, without network and without a lease. No text of the Go program
//! is kept here beyond the lines that scripts read, and a case may only say `differs` if a row of
//! `docs/differences.md` explains it.

#![expect(
    clippy::expect_used,
    reason = "the exception for tests does not reach their fixtures"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crabbox_host::command::Cmd;
use serde::Deserialize;
use serde_json::Value;

/// One line of the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its unique name.
    pub name: String,
    /// The source of the facts about the Go program: one of its files.
    pub from: String,
    /// The arguments.
    pub args: Vec<String>,
    /// Files below the test's directory (`home/...`, `repo/...`) with their contents, of mode 0600.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether `repo` is a git repository in which the files are committed.
    #[serde(default)]
    pub git: bool,
    /// What the Go program does.
    pub go: Facts,
    /// What this program does, if it differs on purpose.
    pub ours: Option<Facts>,
    /// The first cell of the row of `docs/differences.md` that explains the difference.
    pub differs: Option<String>,
}

/// The known facts about an answer. Anything not named is not checked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    #[serde(default)]
    pub out: Text,
    /// Standard error.
    #[serde(default)]
    pub err: Text,
    /// JSON pointers into the document on standard output (RFC 6901), with their values.
    #[serde(default)]
    pub json: BTreeMap<String, Value>,
    /// JSON pointers that must not exist.
    #[serde(default)]
    pub absent: Vec<String>,
}

/// The known facts about a stream; `{home}` and `{repo}` stand for the directories of the case.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// The whole text.
    pub is: Option<String>,
    /// Its prefix.
    pub begins: Option<String>,
    /// Substrings.
    #[serde(default)]
    pub has: Vec<String>,
    /// Absent substrings.
    #[serde(default)]
    pub lacks: Vec<String>,
}

/// A fact that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The subject: `exit code`, `stdout`, `stderr`, a JSON pointer, or the case itself.
    pub what: String,
    /// What was expected.
    pub expected: String,
    /// The actual value.
    pub got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, expected, got } = self;
        write!(f, "{what}: expected {expected}, got {got}")
    }
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Both programs do the same.
    Same,
    /// They differ, as the named row says.
    Differs(String),
    /// The table is wrong, or this program is.
    Failed(Vec<Mismatch>),
}

/// A program's answer.
#[derive(Debug)]
struct Answer {
    code: i32,
    out: String,
    err: String,
}

/// The table's directory: every `*.json` in it is a list of cases.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crabbox/tests/compat")
}

/// Reads the table. A duplicate name is an error, and so is an unknown field.
pub fn cases(directory: &Path) -> io::Result<Vec<Case>> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "json"));
    files.sort();
    let mut all: Vec<Case> = Vec::new();
    for path in files {
        let wrong = |why: String| io::Error::other(format!("{}: {why}", path.display()));
        let cases: Vec<Case> =
            serde_json::from_slice(&fs::read(&path)?).map_err(|error| wrong(error.to_string()))?;
        for case in cases {
            if all.iter().any(|known| known.name == case.name) {
                return Err(wrong(format!("the case {:?} is there twice", case.name)));
            }
            all.push(case);
        }
    }
    Ok(all)
}

/// The first cells of the rows of the tables in `docs/differences.md`.
pub fn rows() -> io::Result<BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/differences.md");
    let text = fs::read_to_string(path)?;
    let cell = |line: &str| Some(line.strip_prefix("| ")?.split_once(" |")?.0.to_owned());
    Ok(text.lines().filter_map(cell).collect())
}

/// Runs `case` on `program`. `rows` are those of [`rows`].
pub fn judge(program: &Path, case: &Case, rows: &BTreeSet<String>) -> io::Result<Verdict> {
    let wrong = |expected: &str, got: &str| {
        Ok(Verdict::Failed(vec![Mismatch {
            what: "the case".to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        }]))
    };
    let place = tempfile::tempdir()?;
    let root = fs::canonicalize(place.path())?;
    let answer = answer(program, case, &root)?;
    let theirs = mismatches(&case.go, &answer, &root);
    match (&case.differs, &case.ours) {
        (None, None) if theirs.is_empty() => Ok(Verdict::Same),
        (None, None) => Ok(Verdict::Failed(theirs)),
        (None, Some(_)) => wrong("`differs` with a row of docs/differences.md", "`ours` alone"),
        (Some(_), None) => wrong("`ours`, what this program does", "`differs` alone"),
        (Some(row), Some(_)) if !rows.contains(row) => {
            wrong(&format!("a row {row:?} in docs/differences.md"), "none")
        }
        (Some(_), Some(_)) if theirs.is_empty() => wrong("a difference", "what the Go program does"),
        (Some(row), Some(ours)) => {
            let ours = mismatches(ours, &answer, &root);
            Ok(if ours.is_empty() {
                Verdict::Differs(row.clone())
            } else {
                Verdict::Failed(ours)
            })
        }
    }
}

/// The table with its verdicts in aligned columns, followed by the failures.
#[must_use]
pub fn table(judged: &[(Case, Verdict)]) -> String {
    let width = judged.iter().map(|(case, _)| case.name.chars().count()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for (case, verdict) in judged {
        let name = &case.name;
        let line = match verdict {
            Verdict::Same => format!("{name:<width$}  same"),
            Verdict::Differs(row) => format!("{name:<width$}  differs  {row}"),
            Verdict::Failed(_) => format!("{name:<width$}  FAILED"),
        };
        text.push_str(&line);
        text.push('\n');
    }
    for (case, verdict) in judged {
        if let Verdict::Failed(mismatches) = verdict {
            text.push_str(&failure(case, mismatches));
        }
    }
    text
}

/// The failure of a case: its name, the command, each mismatched fact.
#[must_use]
pub fn failure(case: &Case, mismatches: &[Mismatch]) -> String {
    let facts: String = mismatches
        .iter()
        .flat_map(|mismatch| ["  ".to_owned(), mismatch.to_string(), "\n".to_owned()])
        .collect();
    format!("\n{}: crabbox {}\n{facts}", case.name, case.args.join(" "))
}

fn answer(program: &Path, case: &Case, root: &Path) -> io::Result<Answer> {
    for dir in ["home/.config/crabbox", "repo"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for (name, text) in &case.files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("it is below the place"))?;
        fs::write(&path, placed(text, root))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    }
    if case.git {
        commit(&root.join("repo"))?;
    }
    let args = case.args.iter().map(|word| placed(word, root));
    let mut command = Cmd::new(program).args(args).to_std();
    command
        .env_clear()
        .env("HOME", root.join("home"))
        .env("PATH", "/usr/bin:/bin")
        .env("CRABBOX_REGISTRY_DIR", root.join("registry"))
        .envs(case.env.iter().map(|(name, value)| (name, placed(value, root))))
        .current_dir(root.join("repo"))
        .stdin(Stdio::null());
    let output = command.output()?;
    Ok(Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn commit(repo: &Path) -> io::Result<()> {
    let who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"];
    for words in [&["init", "-q"][..], &["add", "-A"], &["commit", "-q", "-m", "t"]] {
        Cmd::new("git")
            .args(who)
            .args(words)
            .cwd(repo)
            .run()
            .map_err(io::Error::other)?;
    }
    Ok(())
}

/// `text` with the directories of the case filled in.
fn placed(text: &str, root: &Path) -> String {
    let at = |name: &str| root.join(name).display().to_string();
    text.replace("{home}", &at("home")).replace("{repo}", &at("repo"))
}

fn mismatches(facts: &Facts, answer: &Answer, root: &Path) -> Vec<Mismatch> {
    let mut found = Vec::new();
    let mut miss = |what: &str, expected: String, got: String| {
        found.push(Mismatch {
            what: what.to_owned(),
            expected,
            got,
        });
    };
    if facts.code != answer.code {
        miss("exit code", facts.code.to_string(), answer.code.to_string());
    }
    for (what, text, got) in [
        ("stdout", &facts.out, &answer.out),
        ("stderr", &facts.err, &answer.err),
    ] {
        let shown = || format!("{got:?}");
        if let Some(is) = text.is.as_deref().map(|is| placed(is, root))
            && is != *got
        {
            miss(what, format!("{is:?}"), shown());
        }
        if let Some(begins) = text.begins.as_deref().map(|begins| placed(begins, root))
            && !got.starts_with(&begins)
        {
            miss(what, format!("{begins:?} at its beginning"), shown());
        }
        for has in text.has.iter().map(|has| placed(has, root)) {
            if !got.contains(&has) {
                miss(what, format!("{has:?} in it"), shown());
            }
        }
        for lacks in text.lacks.iter().map(|lacks| placed(lacks, root)) {
            if got.contains(&lacks) {
                miss(what, format!("no {lacks:?} in it"), shown());
            }
        }
    }
    if facts.json.is_empty() && facts.absent.is_empty() {
        return found;
    }
    let document: Value = match serde_json::from_str(&answer.out) {
        Ok(document) => document,
        Err(error) => {
            miss("stdout", "one JSON document".to_owned(), error.to_string());
            return found;
        }
    };
    for (pointer, value) in &facts.json {
        let got = document.pointer(pointer);
        let value: Value =
            serde_json::from_str(&placed(&value.to_string(), root)).expect("a path needs no escapes");
        if got != Some(&value) {
            let got = got.map_or_else(|| "nothing".to_owned(), Value::to_string);
            miss(pointer, value.to_string(), got);
        }
    }
    for pointer in &facts.absent {
        if let Some(got) = document.pointer(pointer) {
            miss(pointer, "nothing".to_owned(), got.to_string());
        }
    }
    found
}
