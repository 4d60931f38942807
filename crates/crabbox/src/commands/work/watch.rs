//! `watch`: runs a command in a lease again each time the working tree changes.

use std::os::fd::AsFd as _;
use std::time::Duration;

use crabbox_core::duration::GoDuration;
use crabbox_core::fault::Kind;
use crabbox_engine::entry::{Entry, LeaseRequest};
use crabbox_engine::host::prepare::NewLease;
use crabbox_engine::provider::Provider;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::run::request::{CommandOptions, LeaseOptions, RunRequest};
use crabbox_host::signals::Interrupts;
use crabbox_workspace::sync;
use crabbox_workspace::watch::{Change, Watched};

use crate::args::WatchArgs;
use crate::commands::engine;
use crate::commands::lease::entering::Entering;
use crate::commands::lease::leaving;
use crate::commands::work::run::{self, Invocation, Manner};
use crate::context::Ctx;
use crate::go;
use crate::ui::{CommandError, Exit};

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &WatchArgs) -> Result<Exit, CommandError> {
    if args.json_events {
        ctx.printer.tell_events();
    }
    if args.verbose {
        ctx.printer.be_verbose();
    }
    check(args)?;
    let settings = ctx.settings(&args.keys.values)?.settings;
    let repo = ctx.repo()?;
    sync::check(&repo)?;
    // Refuse an invalid command before making a lease for it; the lease's name does not matter to that.
    run::judge(ctx, &invocation(args, ""))?;
    let engine = engine::adopting(ctx)?;
    let interrupts = engine::interrupts()?;
    let entering = Entering {
        ctx,
        command: "watch",
    };
    let entry = Entry {
        engine: &engine,
        settings: &settings,
        repo: &repo.root,
        interrupts: &interrupts,
        events: &entering,
    };
    let new = args.id.is_none();
    let (provider, lease) = if let Some(name) = &args.id {
        entry.named(name, args.reclaim)?
    } else {
        let wanted = LeaseRequest {
            lease: NewLease {
                slug: args.slug.clone(),
                keep: args.keep,
                reclaim: args.reclaim,
                external: None,
            },
            set_up: args.yes,
        };
        let (provider, acquired) = entry.new_lease(&wanted)?;
        (provider, acquired.lease)
    };
    let idle = args.idle_exit.map_or_else(
        || Duration::from_secs(u64::try_from(lease.idle_seconds()).unwrap_or(0)),
        GoDuration::to_std,
    );
    announce(ctx, &lease, new, idle);
    let watching = Watching {
        ctx,
        args,
        lease: &lease,
        interrupts: &interrupts,
        idle,
    };
    let watched = Watched::new(&repo, &settings.sync)
        .map_err(CommandError::from)
        .and_then(|mut watched| watching.until_the_end(&mut watched));
    if new && !args.keep {
        give_back(ctx, provider.as_ref(), &lease)?;
    }
    watched.map(|()| Exit::SUCCESS)
}

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// Nothing to run.
    #[error("usage: crabbox watch [flags] -- <command...>")]
    Command,
    /// A flag of a new lease, and an existing one.
    #[error("{0} only applies when creating a new lease; omit it or --id")]
    Existing(&'static str),
}

impl crabbox_core::fault::Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

fn check(args: &WatchArgs) -> Result<(), Usage> {
    let of_new = [
        ("--slug", args.slug.is_some()),
        ("--keep", args.keep),
        ("--yes", args.yes),
    ];
    if args.id.is_some()
        && let Some((flag, _)) = of_new.into_iter().find(|(_, given)| *given)
    {
        return Err(Usage::Existing(flag));
    }
    if args.words.is_empty() && args.preset.is_none() {
        return Err(Usage::Command);
    }
    Ok(())
}

/// The run that is repeated in `lease`.
fn invocation(args: &WatchArgs, lease: &str) -> Invocation {
    Invocation {
        request: RunRequest {
            lease: LeaseOptions {
                id: Some(lease.to_owned()),
                is_entered: true,
                ..LeaseOptions::default()
            },
            command: CommandOptions {
                shell: args.shell,
                preset: args.preset.clone(),
                preset_vars: args.preset_var.clone(),
                scenario: args.scenario.clone(),
                allow_env: args.allow_env.clone(),
                words: args.words.clone(),
                ..CommandOptions::default()
            },
            ..RunRequest::default()
        },
        flags: args.keys.values.clone(),
        manner: Manner::default(),
    }
}

fn announce(ctx: &Ctx<'_>, lease: &Lease, new: bool, idle: Duration) {
    let first = if new {
        format!("leased {}", lease.id)
    } else {
        format!("watch lease={}", lease.id)
    };
    ctx.printer.line(format_args!(
        "{first} slug={} provider={} idle_timeout={} idle_exit={}",
        lease.slug,
        lease.provider,
        go::seconds(lease.idle_seconds()),
        go::milliseconds(idle)
    ));
}

fn give_back(ctx: &Ctx<'_>, provider: &dyn Provider, lease: &Lease) -> Result<(), CommandError> {
    let stopped = leaving::release(ctx, provider, lease)?;
    ctx.printer.note(format_args!(
        "lease cleanup stopped={stopped} policy=auto lease={} slug={}",
        lease.id, lease.slug
    ));
    Ok(())
}

struct Watching<'a> {
    ctx: &'a Ctx<'a>,
    args: &'a WatchArgs,
    lease: &'a Lease,
    interrupts: &'a Interrupts,
    idle: Duration,
}

impl Watching<'_> {
    /// Runs, waits for a change, and runs again; a failing command does not end the loop.
    fn until_the_end(&self, watched: &mut Watched<'_>) -> Result<(), CommandError> {
        let printer = self.ctx.printer;
        if watched.is_blind {
            printer.warn("this system has too few inotify watches for this tree, which is examined every two seconds instead; raise fs.inotify.max_user_watches");
        }
        let again = invocation(self.args, &self.lease.id);
        let debounce = self.args.debounce.to_std();
        loop {
            if let Err(error) = run::within(self.ctx, &again, self.interrupts) {
                // A lease that is gone or unreachable will not come back by waiting, nor will a reader.
                if self.interrupts.caught().is_some()
                    || printer.has_lost_reader()
                    || matches!(error.kind(), Kind::NotFound | Kind::Unavailable | Kind::Usage)
                {
                    return Err(error);
                }
                printer.notes(error.text());
            }
            printer.note("watch waiting for changes");
            match watched.wait(debounce, self.idle, self.interrupts.as_fd())? {
                Change::Changed => printer.note("watch change detected"),
                Change::Idle => {
                    printer.note(format_args!("watch idle for {}", go::milliseconds(self.idle)));
                    return Ok(());
                }
                Change::Cancelled => return Ok(()),
            }
        }
    }
}
