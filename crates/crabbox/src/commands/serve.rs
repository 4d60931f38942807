//! `__serve` and `__proxy`: the two ends of the connection between a laptop and its KVM host. Neither is
//! started by hand.
//!
//! Their standard output carries the protocol or an SSH connection: nothing else may be printed there.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use crabbox_core::config::{FlagValue, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::fleet::address::{Access, KvmHost};
use crabbox_engine::fleet::proxy::{self, Proxy};
use crabbox_engine::fleet::serve::{Role, Serve, ServeError};
use crabbox_engine::placement::gateway::Gateway;
use crabbox_engine::provider::error::LeaseError;
use crabbox_engine::provider::remote;
use crabbox_machine::context::Engine;

use crate::args::{ProxyArgs, ServeArgs};
use crate::commands::engine;
use crate::context::Ctx;
use crate::settings::{self, SettingsError};
use crate::ui::{CommandError, Exit};

/// This host's settings are invalid, whatever the client adds to them.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Unsettled(#[from] SettingsError);

impl Fault for Unsettled {
    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn hints(&self) -> Vec<String> {
        self.0.hints()
    }
}

pub(super) fn run(ctx: &Ctx<'_>, args: &ServeArgs) -> Result<Exit, CommandError> {
    // A login may start in any directory, but no repository may influence this host, so read the settings as
    // if in `/`.
    let env = ctx.env.clone().standing_in(Path::new("/"));
    let settings = |flags: &[FlagValue]| -> Result<Settings, LeaseError> {
        let loaded = settings::load(&env, flags).map_err(|error| LeaseError::new(Unsettled(error)))?;
        Ok(loaded.resolution.settings)
    };
    let engine = engine::adopting(ctx)?;
    // To its gateway this host is a plain node, even if it is a gateway itself.
    let gateway = if args.for_gateway {
        None
    } else {
        Gateway::find(&engine.places.config)?
    };
    let serve = Serve {
        engine: &engine,
        role: match &gateway {
            _ if args.for_gateway => Role::Node,
            Some(gateway) => Role::Gateway(gateway),
            None => Role::Host,
        },
        owner: args.owner.clone().unwrap_or_else(account),
        settings: &settings,
        interrupts: &engine::interrupts()?,
    };
    let own = |fd: std::io::Result<std::os::fd::OwnedFd>| fd.map(File::from).map_err(ServeError::Streams);
    let input = own(std::io::stdin().as_fd().try_clone_to_owned())?;
    let output = own(std::io::stdout().as_fd().try_clone_to_owned())?;
    serve.run(input, &output)?;
    Ok(Exit::SUCCESS)
}

/// The owner name of a login without `--as`: the account's uid.
fn account() -> String {
    format!("uid-{}", crabbox_host::process::euid())
}

pub(super) fn proxy(ctx: &Ctx<'_>, args: &ProxyArgs) -> Result<Exit, CommandError> {
    let engine: Engine = engine::looking(ctx)?;
    let to = Proxy {
        host: KvmHost::parse(&args.host)?,
        access: Access {
            key: args.key.clone(),
            known_hosts: args.known_hosts.clone(),
            pinned: false,
        },
        lease: args.lease.clone(),
    };
    proxy::run(&engine, &to, &|lease| {
        remote::control(&engine, &to.host, &to.access, lease)
    })?;
    Ok(Exit::SUCCESS)
}
