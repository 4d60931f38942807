//! `docs`: the generated parts of the documents, from the key registry and from the program itself.
//!
//! A document contains blocks between `<!-- generated: WHAT -->` and `<!-- end -->`; everything else in it is
//! written by people and never touched. With `--check` nothing is written, and a stale block fails.

mod blocks;
mod book;
mod compatibility;
mod files;
mod keys;
pub(crate) mod links;
mod program;
mod promises;
mod references;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use crabbox_image::guest::Purpose;

use crate::bench::report;
use crate::demo::place;
use crate::workspace;
use files::Reference;
use program::Program;

/// The arguments of `docs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Write nothing, and fail if a document is stale
    #[arg(long)]
    check: bool,
    /// Ask this program instead of building one
    #[arg(long, value_name = "PATH")]
    crabbox: Option<PathBuf>,
}

/// Fails if a document contradicts this built program.
pub(crate) fn check(crabbox: PathBuf) -> Result<()> {
    let arguments = Arguments {
        check: true,
        crabbox: Some(crabbox),
    };
    main(&arguments).map(drop)
}

/// Updates every document, or reports those that are stale.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    let path = match &arguments.crabbox {
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?,
        None => crate::payload::development_binary()?,
    };
    let program = Program::new(path)?;
    let reference = Reference::new(&program)?;
    let (mut problems, mut stale) = (Vec::new(), 0);
    let schemas = reference.settle(!arguments.check)?;
    if arguments.check {
        problems.extend(schemas.iter().map(|name| format!("{name} is stale")));
    } else {
        stale += schemas.len();
    }
    let files = documents()?;
    for file in &files {
        let old = fs::read_to_string(file)?;
        let name = file.strip_prefix(workspace::root()).unwrap_or(file).display();
        let new = blocks::replace(&old, |what| generate(&program, &reference, what))
            .with_context(|| format!("cannot generate {name}"))?;
        problems.extend(
            broken_links(file, &new)
                .into_iter()
                .map(|link| format!("{name}: nothing at {link}")),
        );
        if new == old {
            continue;
        }
        if arguments.check {
            problems.push(format!("{name} is stale"));
        } else {
            fs::write(file, new)?;
            stale += 1;
        }
    }
    problems.extend(pages_missing(&program)?);
    let mut charts = report::settle(!arguments.check)?;
    charts.extend(place::settle(!arguments.check)?);
    if arguments.check {
        problems.extend(charts.iter().map(|name| format!("{name} is stale")));
    } else {
        stale += charts.len();
    }
    problems.extend(figures_missing()?);
    problems.extend(book::check(workspace::root(), &files)?);
    problems.extend(promises::check(workspace::root(), "SECURITY.md")?);
    problems.extend(references::check(workspace::root(), &program, crate::command())?);
    if !problems.is_empty() {
        bail!(
            "the documents are not right (`cargo xtask docs` writes the generated parts anew):\n  {}",
            problems.join("\n  ")
        );
    }
    println!(
        "docs: {} pages, {stale} files written anew; man pages in target/man",
        files.len()
    );
    Ok(ExitCode::SUCCESS)
}

/// The content of one block.
fn generate(program: &Program, reference: &Reference, what: &str) -> Result<String> {
    match what.split_once(' ').unwrap_or((what, "")) {
        ("help", path) => Ok(format!("```\n{}\n```", program.help(path)?)),
        ("keys", section) => keys::table(section),
        ("edges", "") => Ok(crate::arch::picture()),
        ("commands", "") => commands(program),
        ("documents", "") => reference.table(),
        ("compatibility", "") => compatibility::generate(program),
        ("figures", name) => report::block(name),
        ("kernel-arguments", "") => Ok(kernel_arguments()),
        ("demo", "") => place::block(),
        _ => bail!("nothing is known of a block {what:?}"),
    }
}

/// The page about performance, with its blocks of figures regenerated.
pub(crate) fn figures(page: &str) -> Result<String> {
    blocks::replace(page, |what| match what.split_once(' ') {
        Some(("figures", name)) => report::block(name),
        _ => bail!("docs/performance.md has a block {what:?} that is no figure"),
    })
}

/// Files of figures that the page about performance does not show.
fn figures_missing() -> Result<Vec<String>> {
    let page = fs::read_to_string(workspace::root().join("docs/performance.md"))?;
    let shown = |name: &String| page.contains(&blocks::opening(&format!("figures {name}")));
    Ok(report::names()?
        .into_iter()
        .filter(|name| !shown(name))
        .map(|name| format!("docs/performance.md lacks the block `figures {name}`"))
        .collect())
}

/// A table of all commands, each with its page.
fn commands(program: &Program) -> Result<String> {
    let rows: Vec<String> = program
        .commands("")?
        .into_iter()
        .map(|(name, about)| format!("| [`{name}`](commands/{name}.md) | {about} |"))
        .collect();
    Ok(format!(
        "| Command | What it does |\n|---|---|\n{}",
        rows.join("\n")
    ))
}

/// A table of our kernel's arguments.
fn kernel_arguments() -> String {
    let rows: Vec<String> = crabbox_image::guest::arguments()
        .iter()
        .map(|argument| {
            let purpose = match argument.purpose {
                Purpose::Needed => "needed",
                Purpose::Speed => "speed",
            };
            format!("| `{}` | {purpose} | {} |", argument.word, argument.reason)
        })
        .collect();
    format!("| Argument | For | Why |\n|---|---|---|\n{}", rows.join("\n"))
}

/// Every Markdown file of the project: in the root, and anywhere below `docs`.
fn documents() -> Result<Vec<PathBuf>> {
    let root = workspace::root();
    let (mut files, mut todo) = (Vec::new(), vec![root.to_owned(), root.join("docs")]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() && dir != root {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Commands and subcommands whose help is not on a page of its own.
fn pages_missing(program: &Program) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    let commands = program.commands("")?;
    ensure!(!commands.is_empty(), "the program's help names no command");
    for (name, _) in commands {
        let page = format!("docs/commands/{name}.md");
        let text = fs::read_to_string(workspace::root().join(&page)).unwrap_or_default();
        let inner = program.commands(&name)?;
        let paths = std::iter::once(name.clone()).chain(inner.iter().map(|(sub, _)| format!("{name} {sub}")));
        for path in paths {
            if !text.contains(&blocks::opening(&format!("help {path}"))) {
                missing.push(format!("{page} lacks the block `help {path}`"));
            }
        }
    }
    Ok(missing)
}

/// Broken links of a document to another one or to a section.
fn broken_links(file: &Path, text: &str) -> Vec<String> {
    let dir = file.parent().unwrap_or(file);
    links::all(text)
        .filter(|link| {
            let (name, section) = link.split_once('#').unwrap_or((link, ""));
            let other = dir.join(name);
            let there = match (name, section) {
                ("", section) => references::has_section(text, section),
                (_, "") => other.exists(),
                _ => fs::read_to_string(other).is_ok_and(|other| references::has_section(&other, section)),
            };
            !there
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_that_are_committed_are_those_of_their_figures() {
        let page = fs::read_to_string(workspace::root().join("docs/performance.md")).unwrap();
        assert_eq!(figures(&page).unwrap(), page);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let file = workspace::root().join("README.md");
        let text = "# Here\n[a](README.md) [b](docs/) [c](nowhere.md) [d](scheme://host) [e](#here) [f](#there) [g](README.md#there)\n";
        assert_eq!(
            broken_links(&file, text),
            ["nowhere.md", "#there", "README.md#there"]
        );
    }
}
