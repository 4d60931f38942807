//! Port publishing, `pause`, `resume`: known commands that no provider of this program supports, refused in
//! the Go program's words.

use crabbox_core::fault::{Fault, Kind};

use crate::args::{PauseArgs, PortsArgs};
use crate::commands::lease::route;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// The provider lacks the feature.
#[derive(Debug, thiserror::Error)]
enum Unsupported {
    /// Publishing ports.
    #[error("provider={provider} does not support ports; use a provider with native port publishing")]
    Ports {
        /// The provider.
        provider: &'static str,
    },
    /// Pausing and resuming.
    #[error("provider={provider} does not support {action}")]
    Pause {
        /// The provider.
        provider: &'static str,
        /// `pause` or `resume`.
        action: &'static str,
    },
}

impl Fault for Unsupported {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Ports { .. } => {
                vec![
                    "`crabbox ports --help` shows how to forward a port of a lease to this machine"
                        .to_owned(),
                ]
            }
            Self::Pause { .. } => Vec::new(),
        }
    }
}

/// The Go program's form of `ports`.
pub(in crate::commands) fn ports(ctx: &Ctx<'_>, args: &PortsArgs) -> Result<Exit, CommandError> {
    let name = args.id.as_deref().or(args.words.first().map(String::as_str));
    let provider = route::provider(ctx, &args.keys.values, name)?.name();
    Err(Unsupported::Ports { provider }.into())
}

pub(in crate::commands) fn pause(
    ctx: &Ctx<'_>,
    args: &PauseArgs,
    action: &'static str,
) -> Result<Exit, CommandError> {
    let provider = route::provider(ctx, &args.keys.values, args.lease.get())?.name();
    Err(Unsupported::Pause { provider, action }.into())
}
