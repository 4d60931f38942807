//! `ports`: named forwards of a lease's ports to this machine, which outlive the command.

use crabbox_core::fault::{Fault, Kind};
use crabbox_workspace::forwards::{Forward, Ports};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::PortsArgs;
use crate::commands::lease::entry;
use crate::commands::lease::unsupported;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// The longest name, in bytes.
const NAME_LIMIT: usize = 63;

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// Words are missing or too many.
    #[error(
        "usage: crabbox ports --id <lease-id-or-slug> add <name> [<local-port>:]<remote-port>, list [--json], or rm <name>"
    )]
    Operands,
    /// An invalid name.
    #[error("invalid name {word:?}: expected letters, digits, `.`, `_` and `-`, at most {NAME_LIMIT}")]
    Name {
        /// What was given.
        word: String,
    },
    /// Invalid ports.
    #[error(
        "invalid ports {word:?}: expected <remote-port> or <local-port>:<remote-port>, each from 1 to 65535"
    )]
    Ports {
        /// What was given.
        word: String,
    },
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The forwards of a lease, as `--json` prints them.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct PortsView {
    /// The lease.
    lease: String,
    /// In the order in which they were opened.
    forwards: Vec<ForwardView>,
}

/// One of them.
#[derive(Debug, Serialize, JsonSchema)]
struct ForwardView {
    name: String,
    /// The port on 127.0.0.1 of this machine.
    local: u16,
    /// The port on 127.0.0.1 of the lease.
    remote: u16,
    /// `open`, or `broken` when its connection has ended; `ports add` with the same words opens it again.
    state: &'static str,
}

/// The requested action.
enum Action<'a> {
    Add {
        name: &'a str,
        local: Option<u16>,
        remote: u16,
    },
    List,
    Remove {
        name: &'a str,
    },
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &PortsArgs) -> Result<Exit, CommandError> {
    let Some(action) = action(&args.words)? else {
        return unsupported::ports(ctx, args);
    };
    let id = args.id.as_deref().filter(|id| !id.trim().is_empty());
    let id = id.ok_or(Usage::Operands)?;
    let entry = entry::visit(ctx, &args.keys.values, id, "ports")?;
    let ports = Ports::of(&entry.lease.id, &entry.target)?;
    match action {
        Action::Add { name, local, remote } => {
            let forward = ports.add(name, local, remote)?;
            ctx.printer.line(line(&forward, true));
            entry.leave(ctx, None);
        }
        Action::Remove { name } => ports.remove(name)?,
        Action::List => {
            let forwards = ports.list()?;
            for (reason, times) in ports.refusals() {
                ctx.printer.warn(format_args!(
                    "connections through these forwards were not made in the lease ({times} since the last look): {reason}; \
                     `ports add` with the same words looks for the service again"
                ));
            }
            if args.json {
                ctx.printer.json(&view(&entry.lease.id, &forwards))?;
                return Ok(Exit::SUCCESS);
            }
            for (forward, open) in &forwards {
                ctx.printer.line(line(forward, *open));
            }
        }
    }
    Ok(Exit::SUCCESS)
}

fn state(open: bool) -> &'static str {
    if open { "open" } else { "broken" }
}

fn line(forward: &Forward, open: bool) -> String {
    let Forward {
        name, local, remote, ..
    } = forward;
    format!(
        "{name} http://127.0.0.1:{local} remote={remote} state={}",
        state(open)
    )
}

fn view(id: &str, forwards: &[(Forward, bool)]) -> PortsView {
    let forwards = forwards.iter().map(|(forward, open)| ForwardView {
        name: forward.name.clone(),
        local: forward.local,
        remote: forward.remote,
        state: state(*open),
    });
    PortsView {
        lease: id.to_owned(),
        forwards: forwards.collect(),
    }
}

/// The action that the words ask for; `None` for the Go program's form.
fn action(words: &[String]) -> Result<Option<Action<'_>>, Usage> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(Some(match words[..] {
        ["add", name, ports] => {
            let (local, remote) = parse(ports).ok_or_else(|| Usage::Ports {
                word: ports.to_owned(),
            })?;
            let name = named(name)?;
            Action::Add { name, local, remote }
        }
        ["list"] => Action::List,
        ["rm", name] => Action::Remove { name: named(name)? },
        ["add" | "list" | "rm", ..] => return Err(Usage::Operands),
        _ => return Ok(None),
    }))
}

fn named(word: &str) -> Result<&str, Usage> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if word.is_empty() || word.len() > NAME_LIMIT || !word.chars().all(plain) {
        return Err(Usage::Name {
            word: word.to_owned(),
        });
    }
    Ok(word)
}

fn parse(word: &str) -> Option<(Option<u16>, u16)> {
    let port = |word: &str| word.parse().ok().filter(|port: &u16| *port > 0);
    match word.split_once(':') {
        Some((local, remote)) => Some((Some(port(local)?), port(remote)?)),
        None => Some((None, port(word)?)),
    }
}
