//! `proof`: the whole way of a lease gone once and written down for strangers, or such a file checked.
//!
//! It must never write over a file, and never print or write what names this host where the document hides it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::config::key::Kind as KeyKind;
use crabbox_core::config::{FlagValue, Provider as Which, firecracker};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::proof::Proof;
use crabbox_engine::host::proof::{self, Told, Wish};
use crabbox_host::beneath::Existing;
use crabbox_host::place::{Access, Place, PlaceError};

use crate::args::ProofArgs;
use crate::commands::engine;
use crate::context::Ctx;
use crate::go;
use crate::ui::{CommandError, Exit};

/// The name of the file in a directory that was named.
const FILE: &str = "crabbox-proof.md";

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
enum CommandFault {
    /// Another provider has no machine of its own.
    #[error("a proof is one of provider=firecracker, and provider={0} was chosen")]
    Provider(&'static str),
    /// Leases are made on another machine.
    #[error("a proof is one of this machine, and firecracker.host is set: leases are made there")]
    Elsewhere,
    /// It cannot be written there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file is in the way.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
}

impl Fault for CommandFault {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Place(_) => {
                vec!["name a file in a directory that can be written, with --output".to_owned()]
            }
            Self::Provider(_) => vec!["add --provider firecracker".to_owned()],
            Self::Elsewhere => vec!["run it on that machine, or give an empty --firecracker-host".to_owned()],
            Self::Exists(_) => vec!["name another file with --output, or move that one away".to_owned()],
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ProofArgs) -> Result<Exit, CommandError> {
    match &args.check {
        Some(path) => check(ctx, path),
        None => make(ctx, args),
    }
}

fn check(ctx: &Ctx<'_>, path: &Path) -> Result<Exit, CommandError> {
    let proof = proof::check(path)?;
    ctx.printer.line(verdict(path, &proof));
    ctx.printer
        .line(format_args!("stands for {}", proof.rung().words()));
    Ok(ended(ctx, &proof))
}

fn verdict(path: &Path, proof: &Proof) -> String {
    let word = if proof.passed() { "PASS" } else { "FAIL" };
    let rung = proof.rung();
    format!(
        "{word} {} rung={} kind={} sure={} trust=unsigned",
        path.display(),
        rung.ladder,
        name(&rung.kind),
        name(&rung.sure)
    )
}

/// The name of a value as the document has it.
fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Says which assertions do not hold.
fn ended(ctx: &Ctx<'_>, proof: &Proof) -> Exit {
    for assertion in proof.assertions().iter().filter(|assertion| !assertion.holds) {
        ctx.printer
            .note(format_args!("does not hold: {}", assertion.name.words()));
    }
    if proof.passed() {
        Exit::SUCCESS
    } else {
        Exit::passed_through(Kind::Problems.exit_code())
    }
}

fn make(ctx: &Ctx<'_>, args: &ProofArgs) -> Result<Exit, CommandError> {
    let settings = ctx.settings(&args.keys.values)?.settings;
    // None chosen is no choice against it.
    if let Ok(chosen) = settings.provider()
        && chosen != Which::Firecracker
    {
        return Err(CommandFault::Provider(chosen.name()).into());
    }
    if !settings.firecracker.host.value.as_str().trim().is_empty() {
        return Err(CommandFault::Elsewhere.into());
    }
    let plan = firecracker::plan(&settings)?;
    let place = place(ctx, &args.output)?;
    let engine = engine::adopting(ctx)?;
    let interrupts = engine::interrupts()?;
    let wish = Wish {
        version: env!("CARGO_PKG_VERSION"),
        flags: words(&args.keys.values, ctx.env.cwd()?),
        set_up: args.yes,
        names: names(ctx)?,
    };
    let proof = proof::make(&engine, &plan, &wish, &interrupts, &mut |told| show(ctx, told))?;
    place
        .write(proof::file(&proof).as_bytes(), Existing::Refuse)
        .map_err(CommandFault::from)?;
    ctx.printer.line(verdict(&place.path(), &proof));
    let exit = ended(ctx, &proof);
    Ok(if interrupts.caught().is_some() {
        Exit::passed_through(130)
    } else {
        exit
    })
}

/// Where the file goes, looked at before anything is leased.
fn place(ctx: &Ctx<'_>, output: &Path) -> Result<Place, CommandError> {
    let mut path = ctx.env.cwd()?.join(output);
    if path.is_dir() {
        path.push(FILE);
    }
    if path.symlink_metadata().is_ok() {
        return Err(CommandFault::Exists(path).into());
    }
    let place = Place::new(&ctx.root()?, &path, Access::Shared).map_err(CommandFault::from)?;
    place.directory().map_err(CommandFault::from)?;
    Ok(place)
}

fn show(ctx: &Ctx<'_>, told: &Told<'_>) {
    let Told::Ended(stage) = told else {
        return;
    };
    let expected = stage.name.expected();
    let mark = if stage.exit == Some(expected) {
        "ok"
    } else {
        "FAILED"
    };
    let code = stage
        .exit
        .map_or_else(|| "a signal".to_owned(), |code| code.to_string());
    ctx.printer.note(format_args!(
        "{:<9} {mark} exit={code} expected={expected} {}",
        stage.name.word(),
        go::milliseconds(std::time::Duration::from_millis(stage.millis))
    ));
}

/// The user's flags as words for the commands of the proof, which are started in another directory: a path stays the same file.
fn words(given: &[FlagValue], cwd: &Path) -> Vec<OsString> {
    let mut words = Vec::new();
    for FlagValue { key, values } in given {
        let key = key.key();
        let Some(flag) = key.flag else { continue };
        for value in values {
            let path = Path::new(value);
            let relative = matches!(key.kind, KeyKind::Path | KeyKind::Program)
                && path.is_relative()
                && path.as_os_str().as_bytes().contains(&b'/')
                && !value.starts_with('~');
            let mut word = OsString::from(format!("--{}=", flag.name));
            if relative {
                word.push(cwd.join(path));
            } else {
                word.push(value);
            }
            words.push(word);
        }
    }
    words
}

/// What names this host and its user.
fn names(ctx: &Ctx<'_>) -> Result<Vec<String>, CommandError> {
    let mut names: Vec<String> = [
        "HOME",
        "USER",
        "LOGNAME",
        "SUDO_USER",
        "HOSTNAME",
        "XDG_CONFIG_HOME",
        "XDG_STATE_HOME",
    ]
    .iter()
    .filter_map(|name| ctx.env.os(name))
    .map(|value| value.to_string_lossy().into_owned())
    .collect();
    names.push(ctx.env.cwd()?.display().to_string());
    names.extend(proof::names_of_host());
    Ok(names)
}

#[cfg(test)]
mod tests {
    use crabbox_core::config::key::Name;

    use super::*;

    #[test]
    fn a_path_among_the_flags_is_the_same_file_from_elsewhere() {
        let flag = |key, value: &str| FlagValue {
            key,
            values: vec![value.to_owned()],
        };
        let given = [
            flag(Name::FirecrackerBinary, "./fc/firecracker"),
            flag(Name::FirecrackerKernel, "/k/vmlinux"),
            flag(Name::FirecrackerCpus, "2"),
        ];
        assert_eq!(
            words(&given, Path::new("/here")),
            [
                "--firecracker-binary=/here/./fc/firecracker",
                "--firecracker-kernel=/k/vmlinux",
                "--firecracker-cpus=2"
            ]
        );
    }
}
