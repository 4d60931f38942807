//! `tunnel`: forwards a port of this machine to a port of a lease while the command runs.

use std::os::fd::AsFd as _;

use crabbox_core::fault::{Fault, Kind};
use crabbox_core::state::LeaseState;
use crabbox_workspace::tunnel;

use crate::args::TunnelArgs;
use crate::commands::engine;
use crate::commands::lease::entry;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// No lease or no port.
    #[error("usage: crabbox tunnel --id <lease-id-or-slug> [--local-port <port>] <remote-port>")]
    Operands,
    /// An invalid port.
    #[error("invalid port {word:?}: expected a number from 1 to 65535")]
    Port {
        /// What was given.
        word: String,
    },
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &TunnelArgs) -> Result<Exit, CommandError> {
    let name = args
        .id
        .as_deref()
        .filter(|id| !id.trim().is_empty())
        .ok_or(Usage::Operands)?;
    let remote_port = port(args.remote_port.as_deref().ok_or(Usage::Operands)?)?;
    // Port 0 requests a free port, as in other programs.
    let local_port = args.local_port.filter(|port| *port > 0);
    let entry = if args.reclaim {
        entry::enter(ctx, &args.keys.values, name, "tunnel", true)?
    } else {
        entry::visit(ctx, &args.keys.values, name, "tunnel")?
    };
    let interrupts = engine::interrupts()?;
    let Some(tunnel) = tunnel::open(&entry.target, local_port, remote_port, interrupts.as_fd())? else {
        return Ok(Exit::SUCCESS);
    };
    entry.touch(&LeaseState::Running)?;
    ctx.printer
        .line(format_args!("http://127.0.0.1:{}", tunnel.local_port()));
    let held = tunnel::hold(
        tunnel,
        &entry.target,
        remote_port,
        interrupts.as_fd(),
        &mut |reason| {
            ctx.printer.warn(format!(
                "a connection to port {remote_port} was not made in the lease: {reason}"
            ));
        },
    );
    entry.leave(ctx, Some(&LeaseState::Ready));
    held?;
    Ok(Exit::SUCCESS)
}

fn port(word: &str) -> Result<u16, Usage> {
    word.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Usage::Port {
            word: word.to_owned(),
        })
}
