//! The compatibility contract as a table: what the Go program does, recorded as facts, held against what this program does.
//!
//! A case is run in a home and a repository of its own, without network and without a lease. No text of the Go program is kept here
//! beyond the lines that scripts read, and no case may say `differs` without a row of `docs/differences.md` that says why.

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
    /// What it is about, one of its kind.
    pub name: String,
    /// Where the facts about the Go program are from: a file of its text.
    pub from: String,
    /// The arguments.
    pub args: Vec<String>,
    /// Files below the place (`home/...`, `repo/...`) with their text, of mode 0600.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether `repo` is a git repository in which the files are committed.
    #[serde(default)]
    pub git: bool,
    /// What the Go program does.
    pub go: Facts,
    /// What this program does, where that is another thing on purpose.
    pub ours: Option<Facts>,
    /// The first cell of the row of `docs/differences.md` that it belongs to then.
    pub differs: Option<String>,
}

/// What is known of an answer. What is not named is not held.
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
    /// Places in the document on standard output (RFC 6901), with their values.
    #[serde(default)]
    pub json: BTreeMap<String, Value>,
    /// Places that the document has not.
    #[serde(default)]
    pub absent: Vec<String>,
}

/// What is known of a stream; `{home}` and `{repo}` stand for the directories of the case.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// All of it.
    pub is: Option<String>,
    /// How it begins.
    pub begins: Option<String>,
    /// What it contains.
    #[serde(default)]
    pub has: Vec<String>,
    /// What it does not contain.
    #[serde(default)]
    pub lacks: Vec<String>,
}

/// A fact that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What it is about: `exit code`, `stdout`, `stderr`, a place in the document, the case itself.
    pub what: String,
    /// What was expected.
    pub expected: String,
    /// What was seen.
    pub got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, expected, got } = self;
        write!(f, "{what}: expected {expected}, got {got}")
    }
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Both programs do the same.
    Same,
    /// They differ, as the row says.
    Differs(String),
    /// The table is wrong, or this program.
    Failed(Vec<Mismatch>),
}

/// What a program did.
#[derive(Debug)]
struct Answer {
    code: i32,
    out: String,
    err: String,
}

/// Where the table is: every `*.json` here is a list of cases.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crabbox/tests/compat")
}

/// Reads the table. A name that is there twice is an error, as is what no case has.
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

/// The table with its verdicts, its columns aligned; then what failed.
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

/// What does not hold of a case: its name, the command, each fact.
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

/// `text` with the directories of the case in it.
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
