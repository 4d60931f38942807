//! `__reference`: man pages and JSON schemas as files, for packages and for `docs/`.
//!
//! Both are made from the program itself. It must never write outside the directory that it was given.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};

use crate::args::{self, ReferenceArgs};
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

/// Writes `man/*.1` and `schemas/*.json` into a directory.
pub(super) fn run(ctx: &Ctx<'_>, args: &ReferenceArgs) -> Result<Exit, CommandError> {
    let dir = ctx.env.cwd()?.join(&args.dir);
    man(&dir.join("man"))?;
    schemas(&dir.join("schemas"))?;
    Ok(Exit::SUCCESS)
}

/// One page a command, hidden ones left out.
fn man(dir: &Path) -> Result<(), WriteError> {
    make(dir)?;
    let failed = |source| WriteError {
        path: dir.to_owned(),
        source,
    };
    clap_mangen::generate_to(args::command(), dir).map_err(failed)
}

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
