//! `adapter external`: one request from another program on standard input, one answer on standard output.
//!
//! Standard output carries only the protocol; everything else goes to standard error, which the other program
//! shows.

use std::cell::Cell;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use crabbox_core::config::key::Name;
use crabbox_core::config::{FlagValue, Settings};
use crabbox_core::fault::{self, Fault, Kind};
use crabbox_engine::entry::{Entry, EntryEvent, EntryEvents};
use crabbox_engine::external::request::{self, BYTES, Operation, Request};
use crabbox_engine::external::{self, Answer, Conversation, config, input};
use crabbox_engine::host::doctor::Options;
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::error::LeaseError;
use crabbox_engine::provider::registry;
use crabbox_engine::stage::Stages;
use crabbox_machine::lifecycle::release::Decision;

use crate::args::AdapterExternalArgs;
use crate::commands::engine;
use crate::commands::lease::cleanup;
use crate::commands::lease::entering::Entering;
use crate::context::Ctx;
use crate::settings;
use crate::ui::{CommandError, Exit, go_json};

/// The longest error of an answer, in characters.
const ERROR_LIMIT: usize = 8192;

/// Why no answer can be given.
#[derive(Debug, thiserror::Error)]
enum AdapterCommandError {
    /// The provider does not make machines.
    #[error("provider={provider} makes no machines: the adapter needs a provider that does")]
    Provider {
        /// The provider.
        provider: &'static str,
    },
    /// The answer is too large.
    #[error("the answer is larger than {BYTES} bytes")]
    TooLarge,
}

impl Fault for AdapterCommandError {
    fn kind(&self) -> Kind {
        match self {
            Self::Provider { .. } => Kind::Usage,
            Self::TooLarge => Kind::General,
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &AdapterExternalArgs) -> Result<Exit, CommandError> {
    let speaker = Speaker {
        ctx,
        too_large: Cell::new(false),
    };
    serve(ctx, args, &speaker).inspect_err(|error| {
        let text = error.text().replace("\n  caused by: ", ": ");
        speaker.deliver(&Answer::error(text.chars().take(ERROR_LIMIT).collect()));
    })
}

fn serve(ctx: &Ctx<'_>, args: &AdapterExternalArgs, speaker: &Speaker<'_>) -> Result<Exit, CommandError> {
    let bytes = input::take(std::io::stdin().as_fd(), input::PATIENCE)?;
    let request = request::parse(&bytes)?;
    // Only from here on: up to this point the default action of the signals is right.
    let interrupts = engine::interrupts()?;
    let settings = settings(ctx, args, &request)?;
    let repo = match &request.repo {
        Some(repo) => repo.clone(),
        None => ctx.root()?,
    };
    let entry = Entry {
        engine: &engine::looking(ctx)?,
        settings: &settings,
        repo: &repo,
        interrupts: &interrupts,
        events: &Way(Entering {
            ctx,
            command: "adapter",
        }),
    };
    let options = Options {
        config_file: ctx.env.user_config()?,
        ssh_key: ctx.env.os("CRABBOX_SSH_KEY").map(PathBuf::from),
        probe: false,
        prepare: false,
        probe_ssh: false,
    };
    external::serve(&entry, &request, &options, speaker)?;
    if speaker.too_large.get() {
        return Err(AdapterCommandError::TooLarge.into());
    }
    Ok(Exit::SUCCESS)
}

/// The settings for `request`. Only a flag can choose the provider: the other program reads the same files
/// and environment, where the provider is this adapter.
fn settings(ctx: &Ctx<'_>, args: &AdapterExternalArgs, request: &Request) -> Result<Settings, CommandError> {
    let mut flags = args.keys.values.clone();
    if !flags.iter().any(|flag| flag.key == Name::ProviderName) {
        let usual = registry::with(Capability::MakesMachine);
        flags.extend(usual.map(|which| FlagValue {
            key: Name::ProviderName,
            values: vec![which.name().to_owned()],
        }));
    }
    // A broken line of configuration must not keep anyone from giving a machine back.
    let makes = matches!(request.operation, Operation::Acquire { .. } | Operation::Doctor);
    let above = match config::file(&request.config) {
        Ok(file) => Some(file),
        Err(refused) if makes => return Err(refused.into()),
        Err(refused) => {
            tracing::info!("{}; left out", fault::chain(&refused));
            None
        }
    };
    let loaded = settings::load_with(&ctx.env, &flags, above)?;
    // This program's own commands show them; here they would precede all output of the other program.
    for warning in &loaded.notices {
        tracing::info!("{warning}");
    }
    for warning in &loaded.resolution.warnings {
        tracing::info!("{warning}");
    }
    for fault in loaded.faults {
        if makes {
            return Err(fault.into());
        }
        tracing::info!("{}; left out", fault::chain(&fault));
    }
    let settings = loaded.resolution.settings;
    let which = settings.provider()?;
    if !registry::capabilities(which).has(Capability::MakesMachine) {
        let provider = which.name();
        return Err(AdapterCommandError::Provider { provider }.into());
    }
    Ok(settings)
}

/// Writes the answer.
struct Speaker<'a> {
    ctx: &'a Ctx<'a>,
    /// Whether it was too large to send.
    too_large: Cell<bool>,
}

impl Conversation for Speaker<'_> {
    fn deliver(&self, answer: &Answer) -> bool {
        if go_json(answer).is_none_or(|line| line.len() >= BYTES) {
            self.too_large.set(true);
            return false;
        }
        self.ctx.printer.json(answer).is_ok() && !self.ctx.printer.is_deaf()
    }

    fn decided(&self, dry_run: bool, decision: &Decision) {
        cleanup::tell(self.ctx, dry_run, decision);
    }
}

/// Entering a lease without anyone to ask.
struct Way<'a>(Entering<'a>);

impl Stages for Way<'_> {
    fn began(&self, stage: &'static str) {
        self.0.began(stage);
    }

    fn ended(&self, stage: &'static str, took: Duration, ok: bool) {
        self.0.ended(stage, took, ok);
    }
}

impl EntryEvents for Way<'_> {
    fn entry(&self, event: &EntryEvent<'_>) {
        self.0.entry(event);
    }

    fn set_up(&self, _: &Entry<'_>, _: bool, _: Option<&LeaseError>) -> Result<bool, LeaseError> {
        Ok(false)
    }
}
