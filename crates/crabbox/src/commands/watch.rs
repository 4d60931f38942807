//! `watch`: a command in a lease, again each time that the working tree has changed.

use std::os::fd::AsFd as _;
use std::time::Duration;

use crabbox_core::duration::GoDuration;
use crabbox_core::fault::Kind;
use crabbox_engine::lease::Lease;
use crabbox_engine::provider::Provider;
use crabbox_engine::resolve::Purpose;
use crabbox_engine::run as engine_run;
use crabbox_engine::watch::{Change, Watched};
use crabbox_host::signals::Interrupts;

use crate::args::WatchArgs;
use crate::commands::acquire::{self, Wanted};
use crate::commands::compose::Words;
use crate::commands::{route, run};
use crate::context::Ctx;
use crate::go;
use crate::ui::{CommandError, Exit};

pub(super) fn run(ctx: &Ctx<'_>, args: &WatchArgs) -> Result<Exit, CommandError> {
    if args.json_events {
        ctx.printer.tell_events();
    }
    // What is wrong with the words is told before a lease is made.
    words(args, "none").run()?;
    let settings = ctx.settings(&args.keys.values)?.settings;
    let repo = engine_run::look(ctx.env.cwd()?)?;
    engine_run::check(&repo)?;
    if args.words.is_empty() {
        return Err(Usage.into());
    }
    let engine = acquire::engine(ctx)?;
    let interrupts = acquire::interrupts()?;
    let (provider, lease, new) = if let Some(name) = &args.id {
        let provider = route::of_lease(&engine, &settings, name, "watch")?;
        let lease = provider.resolve(name, Purpose::Use)?;
        provider.claim(&lease, &repo.root, args.reclaim)?;
        (provider, lease, false)
    } else {
        let wanted = Wanted {
            slug: args.slug.clone(),
            keep: args.keep,
            set_up: args.yes,
            reclaim: args.reclaim,
        };
        let (provider, acquired) = acquire::acquire(ctx, &engine, &settings, &wanted, &interrupts)?;
        (provider, acquired.lease, true)
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

/// Nothing to run.
#[derive(Debug, thiserror::Error)]
#[error("usage: crabbox watch [flags] -- <command...>")]
struct Usage;

impl crabbox_core::fault::Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

fn words(args: &WatchArgs, lease: &str) -> Words {
    let words = Words::new("run")
        .flag("id", lease)
        .switch("shell", args.shell)
        .keys(&args.keys.values);
    args.allow_env
        .iter()
        .fold(words, |words, name| words.flag("allow-env", name))
        .rest(args.words.iter().cloned())
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
    ctx.printer.note(format_args!(
        "releasing {} server={}",
        lease.id,
        lease.display_id()
    ));
    let stage = ctx.printer.stage("release");
    let released = provider.release(&lease.id);
    stage.end(released.is_ok());
    released?;
    ctx.printer.note(format_args!(
        "lease cleanup stopped=true policy=auto lease={} slug={}",
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
    /// Runs, waits for a change, and runs again; a command that fails ends nothing.
    fn until_the_end(&self, watched: &mut Watched<'_>) -> Result<(), CommandError> {
        let printer = self.ctx.printer;
        if watched.is_blind {
            printer.warn("this system has too few inotify watches for this tree, which is looked at every two seconds instead; raise fs.inotify.max_user_watches");
        }
        let again = words(self.args, &self.lease.id).run()?;
        let debounce = self.args.debounce.to_std();
        loop {
            if let Err(error) = run::within(self.ctx, &again, self.interrupts) {
                // A lease that is gone or out of reach will not come back by waiting.
                if self.interrupts.caught().is_some()
                    || matches!(error.kind(), Kind::NotFound | Kind::Unavailable | Kind::Usage)
                {
                    return Err(error);
                }
                printer.note(error.text());
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
