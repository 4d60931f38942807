//! `cp`: files and directories into a lease or out of it.

use std::os::fd::AsFd as _;

use crabbox_core::fault::{Fault, Kind};
use crabbox_workspace::copy;

use crate::args::CpArgs;
use crate::commands::engine;
use crate::commands::lease::entry;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// The prefix of the operand that is in the lease; case-insensitive.
const REMOTE: &str = "SANDBOX:";

/// The operands do not say what to copy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "usage: crabbox cp --id <lease-id-or-slug> [-L] <src> <dst>\nexactly one of <src> and <dst> must start with {REMOTE}"
)]
struct Usage;

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// The direction of the copy.
#[derive(Debug, PartialEq, Eq)]
enum Way<'a> {
    /// Into the lease.
    Up {
        /// The path here.
        local: &'a str,
        /// The path there.
        remote: &'a str,
    },
    /// Out of the lease.
    Down {
        /// The path there.
        remote: &'a str,
        /// The path here.
        local: &'a str,
    },
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &CpArgs) -> Result<Exit, CommandError> {
    let name = args
        .id
        .as_deref()
        .filter(|id| !id.trim().is_empty())
        .ok_or(Usage)?;
    let way = way(&args.operands)?;
    let entry = entry::visit(ctx, &args.keys.values, name, "cp")?;
    let interrupts = engine::interrupts()?;
    entry.refresh()?;
    let here = ctx.env.cwd()?;
    let cancel = interrupts.as_fd();
    match way {
        // `join` keeps a trailing slash, which means that the target is a directory.
        Way::Up { local, remote } => {
            copy::upload(
                &entry.target,
                &here.join(local),
                remote,
                args.follow_links,
                cancel,
            )?;
        }
        Way::Down { remote, local } => {
            let left_out = copy::download(
                &entry.target,
                remote,
                &here.join(local),
                &ctx.root()?,
                args.follow_links,
                cancel,
            )?;
            for socket in left_out {
                ctx.printer.warn(format_args!(
                    "{} is a socket and was not copied",
                    socket.display()
                ));
            }
        }
    }
    entry.leave(ctx, None);
    Ok(Exit::SUCCESS)
}

fn way(operands: &[String]) -> Result<Way<'_>, Usage> {
    let [source, destination] = operands else {
        return Err(Usage);
    };
    match (remote(source), remote(destination)) {
        (None, Some(remote)) if !remote.is_empty() && !source.is_empty() => Ok(Way::Up {
            local: source,
            remote,
        }),
        (Some(remote), None) if !remote.is_empty() && !destination.is_empty() => Ok(Way::Down {
            remote,
            local: destination,
        }),
        _ => Err(Usage),
    }
}

/// The path in the lease, if the operand names one.
fn remote(operand: &str) -> Option<&str> {
    let (mark, path) = operand.split_at_checked(REMOTE.len())?;
    mark.eq_ignore_ascii_case(REMOTE).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_operand_is_in_the_lease() {
        let way = |operands: &[&str]| {
            let operands: Vec<String> = operands.iter().map(|word| (*word).to_owned()).collect();
            way(&operands).map(|way| format!("{way:?}"))
        };
        assert_eq!(
            way(&["a b", "sandbox:/x [1]"]).unwrap(),
            r#"Up { local: "a b", remote: "/x [1]" }"#
        );
        assert_eq!(
            way(&["SANDBOX:x", "."]).unwrap(),
            r#"Down { remote: "x", local: "." }"#
        );
        for bad in [
            &["a"][..],
            &["a", "b"],
            &["SANDBOX:a", "SANDBOX:b"],
            &["a", "SANDBOX:"],
            &["ü", "b"],
            &["a", "SANDBOX:b", "c"],
        ] {
            assert_eq!(way(bad), Err(Usage), "{bad:?}");
        }
    }
}
