//! `proof`: runs the whole life of a lease once and records it for others to check, or checks such a record.
//!
//! It must never overwrite a file, and never print or write an identifying name of this host where the
//! document redacts it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use crabbox_core::config::firecracker::{FirecrackerPlan, Jailer};
use crabbox_core::config::key::Kind as KeyKind;
use crabbox_core::config::layer::Layer;
use crabbox_core::config::{FlagValue, Provider as Which, firecracker};
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::proof::Proof;
use crabbox_engine::fleet::address::KvmHost;
use crabbox_engine::host::proof::{self, ProofEvent, ProofOptions};
use crabbox_host::beneath::{BeneathError, Existing};
use crabbox_host::place::{Access, Place, PlaceError};

use crate::args::ProofArgs;
use crate::commands::engine;
use crate::context::Ctx;
use crate::go;
use crate::settings::{self, CONFIG_VARIABLE};
use crate::ui::{CommandError, Exit};

/// The file's name when `--output` names a directory.
const FILE: &str = "crabbox-proof.md";

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
enum CommandFault {
    /// Only `firecracker` has machines of its own.
    #[error("proof requires provider=firecracker, found provider={0}")]
    Provider(&'static str),
    /// The lease would be on a different machine than the recorded facts.
    #[error("proof runs on this machine only, but firecracker.host is set")]
    Elsewhere,
    /// The commands of a proof run in a tree of their own, from which a relative path would name another
    /// file, or one that is trusted more.
    #[error(
        "{CONFIG_VARIABLE} names a file of this repository or one relative to it, and a proof runs outside of it"
    )]
    Config,
    /// Whether it would be trusted cannot be said.
    #[error("{CONFIG_VARIABLE} names {}, which does not exist", .0.display())]
    NoConfig(PathBuf),
    /// Every command of a proof loads the configuration itself.
    #[error(
        "{CONFIG_VARIABLE} names a pipe, which can be read only once, but each command of a proof reads it"
    )]
    Pipe,
    /// The document cannot be written there.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The file exists already.
    #[error("{} exists", .0.display())]
    Exists(PathBuf),
    /// The proof was made but could not be written.
    #[error("the proof is on standard output, because it could not be written")]
    Unwritten(#[source] PlaceError),
}

impl Fault for CommandFault {
    fn kind(&self) -> Kind {
        match self {
            Self::Provider(_)
            | Self::Elsewhere
            | Self::Config
            | Self::NoConfig(_)
            | Self::Pipe
            | Self::Place(_)
            | Self::Exists(_)
            | Self::Unwritten(PlaceError::Beneath(BeneathError::Exists { .. })) => Kind::Usage,
            Self::Unwritten(_) => Kind::General,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Place(_) => {
                vec!["name a file in a directory that can be written, with --output".to_owned()]
            }
            Self::Config => {
                vec![format!(
                    "put the file outside of the repository, and its absolute path into {CONFIG_VARIABLE}"
                )]
            }
            Self::NoConfig(_) => vec![format!("unset {CONFIG_VARIABLE}, or name a file that exists")],
            Self::Pipe => vec![format!(
                "put it into a file, and the file's absolute path into {CONFIG_VARIABLE}"
            )],
            Self::Elsewhere => {
                vec!["run it on that host, or unset firecracker.host to prove this machine".to_owned()]
            }
            Self::Unwritten(_) => Vec::new(),
            Self::Provider(_) => vec!["add --provider firecracker".to_owned()],
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

/// A value's name as it appears in the document.
fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Reports the assertions that do not hold.
fn ended(ctx: &Ctx<'_>, proof: &Proof) -> Exit {
    for assertion in proof.assertions().iter().filter(|assertion| !assertion.holds) {
        ctx.printer
            .note(format_args!("does not hold: {}", assertion.name.words()));
    }
    for lack in proof.lacks() {
        ctx.printer.note(format_args!("does not pass: {}", lack.words()));
    }
    if proof.passed() {
        Exit::SUCCESS
    } else {
        Exit::passed_through(Kind::Problems.exit_code())
    }
}

fn make(ctx: &Ctx<'_>, args: &ProofArgs) -> Result<Exit, CommandError> {
    let settings = ctx.settings(&args.keys.values)?.settings;
    // Having chosen no provider does not conflict with a proof.
    if let Ok(chosen) = settings.provider()
        && chosen != Which::Firecracker
    {
        return Err(CommandFault::Provider(chosen.name()).into());
    }
    // The facts would describe this machine while the lease is on another.
    if KvmHost::configured(&settings)?.is_some() {
        return Err(CommandFault::Elsewhere.into());
    }
    check_config(ctx)?;
    let plan = firecracker::plan(&settings)?;
    let place = place(ctx, &args.output)?;
    let engine = engine::adopting(ctx)?;
    let interrupts = engine::interrupts()?;
    let options = ProofOptions {
        version: env!("CARGO_PKG_VERSION"),
        flags: sizes(&plan)
            .into_iter()
            .chain(words(&args.keys.values, ctx.env.cwd()?))
            .collect(),
        set_up: args.yes,
        names: names(ctx, &plan)?,
    };
    let proof = proof::make(&engine, &plan, &options, &interrupts, &mut |event| {
        show(ctx, event);
    })?;
    let file = proof::file(&proof);
    if let Err(error) = place.write(file.as_bytes(), Existing::Refuse) {
        // The proof took minutes and cannot be repeated exactly, so print it.
        ctx.printer.bytes(file.as_bytes());
        return Err(CommandFault::Unwritten(error).into());
    }
    ctx.printer.line(verdict(&place.path(), &proof));
    let exit = ended(ctx, &proof);
    // Go by the file, not by interrupts that came after it was made: exit code and file must agree.
    Ok(if proof.is_interrupted() {
        Exit::passed_through(130)
    } else {
        exit
    })
}

/// Refuses a configuration file that the commands of a proof, in a tree of their own, would not find, or
/// would trust more than here.
fn check_config(ctx: &Ctx<'_>) -> Result<(), CommandError> {
    let Some(file) = settings::named_file(&ctx.env)? else {
        return Ok(());
    };
    let facts = std::fs::metadata(&file.path);
    if facts.as_ref().is_ok_and(|facts| facts.file_type().is_fifo()) {
        return Err(CommandFault::Pipe.into());
    }
    if file.is_relative {
        return Err(CommandFault::Config.into());
    }
    if facts.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Err(CommandFault::NoConfig(file.path).into());
    }
    if file.layer != Layer::UserFile {
        return Err(CommandFault::Config.into());
    }
    Ok(())
}

/// Where the file goes, checked before anything is leased.
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

fn show(ctx: &Ctx<'_>, event: &ProofEvent<'_>) {
    let stage = match event {
        ProofEvent::Begins(_) => return,
        ProofEvent::GivesBack => return ctx.printer.note("releasing the machine..."),
        ProofEvent::Ended(stage) => stage,
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

/// The machine's sizes as flags: the commands of a proof do not read the user's repository files, which may
/// have set them.
fn sizes(plan: &FirecrackerPlan) -> Vec<OsString> {
    [
        ("--firecracker-cpus", plan.cpus.to_string()),
        ("--firecracker-memory-mib", plan.memory_mib.to_string()),
        ("--firecracker-disk-mib", plan.disk_mib.to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.into(), value.into()])
    .collect()
}

/// The user's flags as words for the proof's commands. Those start in another directory, so paths are made
/// absolute.
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

/// Names that identify this host or its user, and names that the user chose; words of a path with blanks look
/// like ordinary language.
fn names(ctx: &Ctx<'_>, plan: &FirecrackerPlan) -> Result<Vec<String>, CommandError> {
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
    names.extend([&plan.image, &plan.cni_network].map(|name| name.as_str().to_owned()));
    let mut paths = vec![
        plan.binary.as_path(),
        plan.kernel.value.as_path(),
        plan.rootfs.value.as_path(),
    ];
    if let Jailer::Program(jailer) = &plan.jailer {
        paths.push(jailer.as_path());
    }
    names.extend(paths.iter().map(|path| path.display().to_string()));
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
