//! `book`: the documents as HTML in target/book/html, made by mdBook from the chapters listed in
//! docs/SUMMARY.md, with every link of the result checked.
//!
//! Chapters keep their paths in the repository, so that their links work. It must never change a document,
//! nor use the network to check a link within the book.

mod html;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;

use crate::docs::links;
use crate::{stage, workspace};

/// The tool, from its registry.
const TOOL: &str = "mdbook";
const VERSION: &str = "0.5.4";

/// The order of the chapters.
const SUMMARY: &str = "docs/SUMMARY.md";

/// The arguments of `book`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Use this mdBook instead of compiling one below target/tools
    #[arg(long, value_name = "PATH")]
    mdbook: Option<PathBuf>,
}

/// Makes the book, and fails when a link in it leads nowhere.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    let tool = match &arguments.mdbook {
        Some(path) => path.clone(),
        None => installed()?,
    };
    let dir = workspace::target_dir().join("book");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let count = lay_out(workspace::root(), &dir)?;
    stage::stage("making the book", || {
        let made = Cmd::inheriting(&tool).arg("build").arg(&dir).run()?;
        // A warning means that something is wrong with a chapter.
        let said = made.stderr_text();
        ensure!(
            !said.contains("WARN") && !said.contains("ERROR"),
            "mdBook is not content:\n{said}"
        );
        Ok(())
    })?;
    let html = dir.join("html");
    let (links, broken) = html::follow(&html)?;
    ensure!(
        broken.is_empty(),
        "links of the book lead nowhere:\n  {}",
        broken.join("\n  ")
    );
    println!(
        "book: {count} chapters, {links} links that lead somewhere; {}",
        html.join("index.html").display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Path of mdBook, compiled once.
fn installed() -> Result<PathBuf> {
    let root = workspace::target_dir()
        .join("tools")
        .join(format!("{TOOL}-{VERSION}"));
    let program = root.join("bin").join(TOOL);
    if !program.is_file() {
        stage::stage("compiling mdBook", || {
            let install = Cmd::inheriting(env!("CARGO"))
                .args(["install", "--quiet", "--locked", "--no-default-features"])
                .args(["--version", VERSION, "--root"])
                .arg(&root)
                .arg(TOOL)
                // In a directory below, cargo would use this workspace's toolchain and settings for the tool.
                .cwd(workspace::root());
            Ok(install.run()?)
        })?;
    }
    Ok(program)
}

/// Copies the chapters, the files they show and mdBook's settings to `dir`; returns the number of chapters.
fn lay_out(root: &Path, dir: &Path) -> Result<usize> {
    let src = dir.join("src");
    let summary = fs::read_to_string(root.join(SUMMARY)).with_context(|| format!("cannot read {SUMMARY}"))?;
    let mut chapters = BTreeSet::new();
    let summary = links::replaced(&summary, |link| {
        let chapter = links::from_root(SUMMARY, link)?;
        let renamed = renamed(&chapter);
        chapters.insert(chapter);
        Some(renamed)
    });
    put(&src.join("SUMMARY.md"), summary.as_bytes())?;
    put(&dir.join("book.toml"), include_bytes!("book/book.toml"))?;
    let mut shown = BTreeSet::new();
    for chapter in &chapters {
        let text =
            fs::read_to_string(root.join(chapter)).with_context(|| format!("cannot read {chapter}"))?;
        let text = links::replaced(&text, |link| {
            let target = links::from_root(chapter, link)?;
            if root.join(&target).is_file() && !chapters.contains(&target) {
                shown.insert(target);
            }
            Some(renamed(link))
        });
        put(&src.join(renamed(chapter)), text.as_bytes())?;
    }
    for path in shown {
        let bytes = fs::read(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        put(&src.join(&path), &bytes)?;
    }
    Ok(chapters.len())
}

/// A directory's page has another name in a book than in a repository.
fn renamed(link: &str) -> String {
    let (file, section) = link.split_at(link.find('#').unwrap_or(link.len()));
    match file.strip_suffix("README.md") {
        Some(dir) if dir.is_empty() || dir.ends_with('/') => format!("{dir}index.md{section}"),
        _ => link.to_owned(),
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chapters_lie_where_their_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for (path, text) in [
            (
                SUMMARY,
                "[All](../README.md)\n- [Docs](README.md)\n- [A](a/a.md)\n",
            ),
            ("README.md", "[a](docs/README.md#x) [licence](LICENCE)\n"),
            ("docs/README.md", "[a](a/a.md) [up](../README.md)\n"),
            (
                "docs/a/a.md",
                "[home](../README.md) ![p](p.svg) [far](scheme://README.md)\n",
            ),
            ("docs/a/p.svg", "<svg/>"),
            ("docs/a/unused.svg", "<svg/>"),
            ("LICENCE", "free"),
        ] {
            put(&root.join(path), text.as_bytes()).unwrap();
        }
        let book = dir.path().join("book");
        assert_eq!(lay_out(&root, &book).unwrap(), 3);
        let read = |path: &str| fs::read_to_string(book.join("src").join(path)).unwrap();
        assert_eq!(
            read("SUMMARY.md"),
            "[All](index.md)\n- [Docs](docs/index.md)\n- [A](docs/a/a.md)\n"
        );
        assert_eq!(read("index.md"), "[a](docs/index.md#x) [licence](LICENCE)\n");
        assert_eq!(
            read("docs/a/a.md"),
            "[home](../index.md) ![p](p.svg) [far](scheme://README.md)\n"
        );
        assert_eq!(read("docs/a/p.svg"), "<svg/>");
        assert_eq!(read("LICENCE"), "free");
        assert!(!book.join("src/docs/a/unused.svg").exists());
        assert!(book.join("book.toml").is_file());
    }
}
