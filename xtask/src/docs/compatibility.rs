//! The table of everything in the reference, with its status here.
//!
//! `docs/compatibility.list` is kept by hand and names the reference's commands, flags, keys and variables.
//! What this program supports is determined by running it and from the registry; a row that contradicts the
//! program fails, and so does one without a status for a name that the program lacks.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use crabbox_core::config::key::{JOBS, KEYS, Key, PRESETS, PROFILES, PROOF_TEMPLATES};

use super::program::{Answer, Program};
use crate::workspace;

/// The status of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Same,
    Better,
    NotYet,
    WillNot,
}

impl Status {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Same, "same"),
        (Self::Better, "better"),
        (Self::NotYet, "not yet"),
        (Self::WillNot, "will not"),
    ];

    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(status, _)| *status == self)
            .map_or("", |(_, name)| name)
    }

    /// Whether the program has names with this status.
    const fn is_here(self) -> bool {
        matches!(self, Self::Same | Self::Better)
    }
}

/// A section of the list: `[commands]`, `[flags of run, warmup]`, `[keys]`, `[variables]`.
#[derive(Debug, PartialEq, Eq)]
enum Section<'a> {
    Commands,
    Flags(Vec<&'a str>),
    Keys,
    Variables,
}

/// A line of the list: `name`, or `name = status: note`.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    name: &'a str,
    status: Option<Status>,
    note: &'a str,
}

/// How the program treats a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Here,
    /// Known by name, and refused.
    Refused,
    Absent,
}

impl From<bool> for Found {
    fn from(is_here: bool) -> Self {
        if is_here { Self::Here } else { Self::Absent }
    }
}

/// All tables, with the totals first and what the reference lacks last.
pub(super) fn generate(program: &Program) -> Result<String> {
    let list = fs::read_to_string(workspace::root().join("docs/compatibility.list"))
        .context("cannot read the list")?;
    // The binary reads the environment, and `run` sets its command's variables.
    let mut variables = String::new();
    for part in ["crates/crabbox/src", "crates/crabbox-engine/src/run"] {
        variables.push_str(&sources(&workspace::root().join(part))?);
    }
    let variables = Variables(variables);
    let (mut tables, mut wrong, mut statuses) = (String::new(), Vec::new(), Vec::new());
    let mut named: BTreeSet<(String, String)> = BTreeSet::new();
    for (title, section, rows) in parse(&list)? {
        write!(
            tables,
            "\n## {title}\n\n| Name | Status | Note |\n|---|---|---|\n"
        )?;
        let helps = match &section {
            Section::Flags(commands) => commands
                .iter()
                .map(|command| Ok((*command, program.help(command)?)))
                .collect::<Result<Vec<_>>>()?,
            _ => Vec::new(),
        };
        for row in rows {
            let found = match &section {
                Section::Commands => program.has_command(row.name)?.into(),
                Section::Keys => {
                    let sections = [JOBS, PRESETS, PROFILES, PROOF_TEMPLATES];
                    (Key::by_path(row.name).is_some() || sections.contains(&row.name)).into()
                }
                Section::Variables => variables.are_read(row.name).into(),
                Section::Flags(_) => {
                    named.extend(
                        helps
                            .iter()
                            .map(|(command, _)| ((*command).to_owned(), row.name.to_owned())),
                    );
                    flag(program, &helps, row.name)?
                }
            };
            if matches!(section, Section::Commands) {
                named.insert((row.name.to_owned(), String::new()));
            }
            match judge(&row, found) {
                Ok(status) => {
                    statuses.push(status);
                    let dashes = if matches!(section, Section::Flags(_)) {
                        "--"
                    } else {
                        ""
                    };
                    writeln!(
                        tables,
                        "| `{dashes}{}` | {} | {} |",
                        row.name,
                        status.name(),
                        row.note
                    )?;
                }
                Err(problem) => wrong.push(format!("{title}: {}: {problem}", row.name)),
            }
        }
    }
    wrong.extend(unlisted_keys(&list)?);
    if !wrong.is_empty() {
        bail!(
            "docs/compatibility.list and the program differ:\n  {}",
            wrong.join("\n  ")
        );
    }
    Ok(format!(
        "{}{tables}{}",
        sums(&statuses),
        only_here(program, &named)?
    ))
}

/// The row's status, if it agrees with the program.
fn judge(row: &Row<'_>, found: Found) -> Result<Status, &'static str> {
    match (row.status, found) {
        (None, Found::Here) => Ok(Status::Same),
        (None, _) => Err("the program does not have it: say `not yet` or `will not`"),
        (Some(Status::Better), Found::Here) if row.note.is_empty() => Err("`better` has to say how"),
        // The reference refuses it too, as the note says.
        (Some(Status::Same), Found::Refused) if !row.note.is_empty() => Ok(Status::Same),
        // Accepted, but without effect yet, as the note says.
        (Some(Status::NotYet), Found::Here) if !row.note.is_empty() => Ok(Status::NotYet),
        (Some(status), found) if status.is_here() == (found == Found::Here) => Ok(status),
        (Some(_), Found::Here) => Err("the program has it, and the list says otherwise"),
        (Some(_), _) => Err("the program does not have it, and the list says otherwise"),
    }
}

/// How all of the commands treat the flag; they must agree.
fn flag(program: &Program, helps: &[(&str, String)], flag: &str) -> Result<Found> {
    let mut answers = Vec::new();
    for (command, help) in helps {
        answers.push(match program.answer(command, flag, help)? {
            Answer::Shown | Answer::Accepted => Found::Here,
            Answer::Refused => Found::Refused,
            Answer::Unknown => Found::Absent,
        });
    }
    let first = answers.first().copied().unwrap_or(Found::Absent);
    ensure!(
        answers.iter().all(|found| *found == first),
        "the commands do not agree on --{flag}: give them sections of their own"
    );
    Ok(first)
}

/// A section: its title, its subject, and its rows.
type Parsed<'a> = (&'a str, Section<'a>, Vec<Row<'a>>);

fn parse(list: &str) -> Result<Vec<Parsed<'_>>> {
    let mut sections: Vec<Parsed<'_>> = Vec::new();
    for line in list.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let section = match title.split_once(" of ") {
                Some(("flags", commands)) => Section::Flags(commands.split(", ").collect()),
                _ if title == "commands" => Section::Commands,
                _ if title == "keys" => Section::Keys,
                _ if title == "variables" => Section::Variables,
                _ => bail!("the list has an unknown section {title:?}"),
            };
            sections.push((title, section, Vec::new()));
            continue;
        }
        let (_, _, rows) = sections
            .last_mut()
            .context("the list has a row before its first section")?;
        rows.push(row(line)?);
    }
    Ok(sections)
}

fn row(line: &str) -> Result<Row<'_>> {
    let Some((name, rest)) = line.split_once(" = ") else {
        return Ok(Row {
            name: line,
            status: None,
            note: "",
        });
    };
    let (word, note) = rest.split_once(": ").unwrap_or((rest, ""));
    let status = Status::ALL
        .iter()
        .find(|(_, known)| *known == word)
        .map(|(status, _)| *status);
    ensure!(
        status.is_some(),
        "the list's row {name:?} has the unknown status {word:?}"
    );
    Ok(Row { name, status, note })
}

/// Keys and variables of this program that the list does not mention: each must be the reference's or be
/// marked as ours.
fn unlisted_keys(list: &str) -> Result<Vec<String>> {
    let mut known = BTreeSet::new();
    for (_, section, rows) in parse(list)? {
        if matches!(section, Section::Keys | Section::Variables) {
            known.extend(rows.into_iter().map(|row| row.name));
        }
    }
    let ours = KEYS
        .iter()
        .flat_map(|key| [key.path].into_iter().chain(key.variables.iter().copied()));
    Ok(ours
        .filter(|name| !known.contains(name))
        .map(|name| format!("{name} is not in the list"))
        .collect())
}

/// The source of the binary, the only crate that reads the environment.
struct Variables(String);

impl Variables {
    /// Whether the variable is in the registry, or named in the binary's source.
    fn are_read(&self, name: &str) -> bool {
        KEYS.iter().any(|key| key.variables.contains(&name)) || self.0.contains(&format!("\"{name}\""))
    }
}

fn sources(dir: &std::path::Path) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            text.push_str(&sources(&path)?);
        } else {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(text)
}

fn sums(statuses: &[Status]) -> String {
    let cells: Vec<String> = Status::ALL
        .iter()
        .map(|(status, name)| {
            format!(
                "{} {name}",
                statuses.iter().filter(|found| *found == status).count()
            )
        })
        .collect();
    format!(
        "{} names of the reference: {}.\n",
        statuses.len(),
        cells.join(", ")
    )
}

/// Commands and flags that the reference does not have.
fn only_here(program: &Program, named: &BTreeSet<(String, String)>) -> Result<String> {
    let mut lines = String::new();
    for (command, about) in program.commands("")? {
        let inner = program.commands(&command)?;
        let is_ours = !named
            .iter()
            .any(|(known, _)| *known == command || known.starts_with(&format!("{command} ")));
        if is_ours {
            writeln!(lines, "| `{command}` | {about} |")?;
            continue;
        }
        for path in std::iter::once(command.clone())
            .chain(inner.into_iter().map(|(sub, _)| format!("{command} {sub}")))
        {
            let flags: Vec<String> = program
                .own_flags(&path)?
                .into_iter()
                .filter(|flag| !named.contains(&(path.clone(), flag.clone())))
                .map(|flag| format!("`--{flag}`"))
                .collect();
            let known = named.contains(&(path.clone(), String::new())) || path == command;
            if !known {
                writeln!(lines, "| `{path}` | |")?;
            } else if !flags.is_empty() {
                writeln!(lines, "| `{path}` | {} |", flags.join(", "))?;
            }
        }
    }
    Ok(format!(
        "\n## only here\n\nFlags that set configuration keys are left out: more commands have them here.\n\n| Command | What it adds |\n|---|---|\n{lines}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_row_by_row() {
        let list = "# why\n[flags of run, warmup]\nslug\npool = will not: no coordinator\n\n[keys]\na.b = better: it: helps\n";
        let sections = parse(list).unwrap();
        assert_eq!(sections[0].1, Section::Flags(vec!["run", "warmup"]));
        assert_eq!(
            sections[0].2[0],
            Row {
                name: "slug",
                status: None,
                note: ""
            }
        );
        assert_eq!(
            sections[0].2[1],
            Row {
                name: "pool",
                status: Some(Status::WillNot),
                note: "no coordinator"
            }
        );
        assert_eq!(sections[1].2[0].note, "it: helps");
        assert!(parse("[flags of run]\nslug = maybe\n").is_err());
        assert!(parse("slug\n").is_err());
    }

    #[test]
    fn a_row_that_contradicts_the_program_fails() {
        use Found::{Absent, Here, Refused};
        let row = |status, note| Row {
            name: "x",
            status,
            note,
        };
        assert_eq!(judge(&row(None, ""), Here), Ok(Status::Same));
        assert!(judge(&row(None, ""), Absent).is_err(), "nothing may stay unknown");
        assert!(judge(&row(None, ""), Refused).is_err());
        assert!(judge(&row(Some(Status::Same), ""), Absent).is_err());
        assert!(judge(&row(Some(Status::Same), ""), Refused).is_err());
        assert_eq!(
            judge(&row(Some(Status::Same), "there too"), Refused),
            Ok(Status::Same)
        );
        assert!(judge(&row(Some(Status::NotYet), ""), Here).is_err());
        assert_eq!(
            judge(&row(Some(Status::NotYet), "idle"), Here),
            Ok(Status::NotYet)
        );
        assert_eq!(judge(&row(Some(Status::NotYet), ""), Refused), Ok(Status::NotYet));
        assert!(
            judge(&row(Some(Status::Better), ""), Here).is_err(),
            "better has to say how"
        );
        assert_eq!(judge(&row(Some(Status::Better), "how"), Here), Ok(Status::Better));
    }

    #[test]
    fn every_key_and_variable_of_ours_must_be_listed() {
        let all = unlisted_keys("[keys]\nprofile\n").unwrap();
        assert!(all.contains(&"ttl is not in the list".to_owned()));
        assert!(!all.contains(&"profile is not in the list".to_owned()));
    }
}
