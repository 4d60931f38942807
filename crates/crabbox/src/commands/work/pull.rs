//! `pull`: brings changes that a command made in a lease back into the working tree.

use std::os::fd::AsFd as _;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::id::RunId;
use crabbox_host::console::harmless;
use crabbox_host::entry_path::{EntryPath, EntryPathError};
use crabbox_workspace::owner;
use crabbox_workspace::pull::{self, Left, Only, Plan, PullAction};
use crabbox_workspace::sync;

use crate::args::PullArgs;
use crate::commands::engine;
use crate::commands::lease::entry;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Why the pull failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// No lease was named.
    #[error("usage: crabbox pull --id <lease-id-or-slug> [flags] [path...]")]
    Usage,
    /// Files have changed on both sides.
    #[error("{count} file(s) changed on both sides; nothing was pulled")]
    Conflicts {
        /// How many.
        count: usize,
    },
    /// Some files could not be read in the lease.
    #[error("{count} file(s) could not be read in the lease; the local copies are unchanged")]
    Unread {
        /// How many.
        count: usize,
    },
    /// No random name could be drawn for a directory.
    #[error("cannot generate a name")]
    Random(#[source] std::io::Error),
    /// The drawn name is invalid.
    #[error("cannot name a directory")]
    Name(#[source] EntryPathError),
}

impl Fault for Failure {
    fn kind(&self) -> Kind {
        match self {
            Self::Usage | Self::Random(_) | Self::Name(_) => Kind::Usage,
            Self::Conflicts { .. } => Kind::Sync,
            Self::Unread { .. } => Kind::Remote,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Conflicts { .. } => vec![
                "--skip-conflicts pulls the others; `crabbox cp` fetches a single file under another name"
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &PullArgs) -> Result<Exit, CommandError> {
    let name = args
        .id
        .as_deref()
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .ok_or(Failure::Usage)?;
    let settings = ctx.settings(&args.keys.values)?.settings;
    let repo = ctx.repo()?;
    let only = Only::new(&repo.root, &args.paths)?;
    sync::check(&repo)?;
    let entry = entry::enter(ctx, &args.keys.values, name, "pull", false)?;
    let interrupts = engine::interrupts()?;
    let target = &entry.target;
    let destination = sync::destination(&entry.lease.work_root, &entry.lease.id, &repo);
    let mut owner = owner::own(target, &entry.lease.id, None, interrupts.as_fd(), &|_, state| {
        ctx.printer
            .note(format_args!("waiting for reusable workspace owner state={state}"));
    })?;
    let outcome = pull::plan(&mut owner, &destination, &repo, &settings.sync, &only)
        .map_err(CommandError::from)
        .and_then(|plan| {
            show(ctx, &plan);
            if args.dry_run || plan.changes.is_empty() && plan.conflicts.is_empty() {
                return Ok(());
            }
            if !plan.conflicts.is_empty() && !args.skip_conflicts {
                let count = plan.conflicts.len();
                return Err(Failure::Conflicts { count }.into());
            }
            let id = RunId::from_random(crabbox_host::random::bytes().map_err(Failure::Random)?);
            let kept =
                EntryPath::exact(format!(".crabbox/runs/pull-{id}").as_bytes()).map_err(Failure::Name)?;
            let brought = pull::apply(
                &mut owner,
                target,
                &destination.workdir(),
                &repo.root,
                &plan.changes,
                &kept,
            )?;
            ctx.printer.note(format_args!("pulled {} file(s)", brought.count));
            if brought.any_kept {
                let path = repo.root.join(kept.as_path()).join("before");
                ctx.printer.note(format_args!(
                    "files that git does not have were kept as they were in {}",
                    path.display()
                ));
            }
            for why in &brought.unread {
                ctx.printer.note(format_args!("not brought: {}", harmless(why)));
            }
            match brought.unread.len() {
                0 => Ok(()),
                count => Err(Failure::Unread { count }.into()),
            }
        });
    owner.release();
    entry.leave(ctx, None);
    outcome.map(|()| Exit::SUCCESS)
}

/// Prints `M`, `A` or `D` for each file brought; what is not brought is reported separately.
fn show(ctx: &Ctx<'_>, plan: &Plan) {
    for change in &plan.changes {
        let letter = match change.act {
            PullAction::Replace(_) => 'M',
            PullAction::Add => 'A',
            PullAction::Remove(_) => 'D',
        };
        let path = harmless(&String::from_utf8_lossy(&change.path));
        ctx.printer.line(format_args!("{letter} {path}"));
    }
    let tell = |what: &str, left: &[Left]| {
        for Left { path, why } in left {
            ctx.printer.note(format_args!("{what}: {path}: {why}"));
        }
    };
    for path in &plan.unmatched {
        ctx.printer.warn(format_args!(
            "{} exists neither here nor in the lease; paths are relative to the root of the repository",
            harmless(&format!("{path:?}"))
        ));
    }
    tell("conflict", &plan.conflicts);
    tell("skipped", &plan.skipped);
}
