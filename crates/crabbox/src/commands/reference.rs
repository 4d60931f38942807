//! `__reference`: man pages as files for packages, and in a development build JSON schemas for `docs/`.
//!
//! Both are generated from the program itself. It must never write outside the given directory.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap_mangen::Man;
use crabbox_core::fault::{Fault, Kind};

use crate::args::{self, ReferenceArgs};
#[cfg(debug_assertions)]
use crate::commands::documents;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// A file was not written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", .path.display())]
struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Fault for WriteError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Writes `man/*.1` and, in a development build, `schemas/*.json` into a directory.
pub(super) fn run(ctx: &Ctx<'_>, args: &ReferenceArgs) -> Result<Exit, CommandError> {
    let dir = ctx.env.cwd()?.join(&args.dir);
    man(&dir.join("man"))?;
    #[cfg(debug_assertions)]
    schemas(&dir.join("schemas"))?;
    Ok(Exit::SUCCESS)
}

/// One page per command, without hidden ones.
fn man(dir: &Path) -> Result<(), WriteError> {
    make(dir)?;
    page(&args::command(), dir)
}

fn page(command: &clap::Command, dir: &Path) -> Result<(), WriteError> {
    let version = format!("crabbox {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(version).manual("crabbox");
    let path = dir.join(man.get_filename());
    let written = render(&man, command).and_then(|text| fs::write(&path, text));
    written.map_err(|source| WriteError { path, source })?;
    command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
        .try_for_each(|inner| page(inner, dir))
}

/// The library's page with our one-line usage: its own synopsis would list each of some forty flags.
fn render(man: &Man, command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    writeln!(
        text,
        ".SH SYNOPSIS\n.nf\n{}\n.fi",
        usage.replace('\\', "\\e").replace('-', "\\-")
    )?;
    man.render_description_section(&mut text)?;
    if command
        .get_opts()
        .chain(command.get_positionals())
        .any(|arg| !arg.is_hide_set())
    {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    Ok(text)
}

#[cfg(debug_assertions)]
fn schemas(dir: &Path) -> Result<(), WriteError> {
    make(dir)?;
    for (name, schema) in documents::schemas() {
        let path = dir.join(format!("{name}.json"));
        fs::write(&path, format!("{:#}\n", schema.as_value()))
            .map_err(|source| WriteError { path, source })?;
    }
    Ok(())
}

fn make(dir: &Path) -> Result<(), WriteError> {
    fs::create_dir_all(dir).map_err(|source| WriteError {
        path: dir.to_owned(),
        source,
    })
}
