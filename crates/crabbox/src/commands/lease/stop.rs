//! `stop`: gives a lease back.

use crabbox_core::fault::{Fault, Kind};

use crabbox_engine::provider::lease::Lease;
use crabbox_machine::lease::find::Purpose;

use crate::args::{ExpectedArgs, StopArgs};
use crate::commands::lease::route;
use crate::context::Ctx;
use crate::go::blank;
use crate::ui::{CommandError, Exit};

/// Why nothing was stopped.
#[derive(Debug, thiserror::Error)]
enum StopError {
    /// No lease was named.
    #[error("usage: crabbox stop --id <lease-or-server-id>")]
    Usage,
    /// Only some of the `--expected-` flags were given.
    #[error(
        "--expected-provider-lease-id, --expected-attempt-lease-id, --expected-slug and --expected-resource-id go together"
    )]
    Half,
    /// The lease is not the expected one.
    #[error("refusing to stop: expected {field}={expected}, found {field}={found}")]
    Other {
        /// The expectation that failed.
        field: &'static str,
        /// What was expected.
        expected: String,
        /// What there is.
        found: String,
    },
    /// `--reclaim`.
    #[error("provider={provider} does not support stop --reclaim")]
    Reclaim {
        /// The provider.
        provider: &'static str,
    },
}

impl Fault for StopError {
    fn kind(&self) -> Kind {
        match self {
            Self::Other { .. } => Kind::NotFound,
            _ => Kind::Usage,
        }
    }
}

/// The properties that the lease must have.
struct Expected<'a>([(&'static str, &'a str); 4]);

impl<'a> Expected<'a> {
    /// The expectations given; either all or none.
    fn of(args: &'a ExpectedArgs) -> Result<Option<Self>, StopError> {
        let given = [
            ("provider-lease-id", &args.expected_provider_lease_id),
            ("attempt-lease-id", &args.expected_attempt_lease_id),
            ("slug", &args.expected_slug),
            ("resource-id", &args.expected_resource_id),
        ]
        .map(|(name, value)| (name, value.as_deref().unwrap_or_default().trim()));
        match given.iter().filter(|(_, value)| !value.is_empty()).count() {
            0 => Ok(None),
            4 => Ok(Some(Self(given))),
            _ => Err(StopError::Half),
        }
    }

    fn check(&self, lease: &Lease) -> Result<(), StopError> {
        let found = [&lease.id, &lease.id, &lease.slug, &lease.cloud_id];
        match self
            .0
            .iter()
            .zip(found)
            .find(|((_, expected), found)| *expected != *found)
        {
            None => Ok(()),
            Some(((field, expected), found)) => Err(StopError::Other {
                field,
                expected: (*expected).to_owned(),
                found: found.clone(),
            }),
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &StopArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(StopError::Usage)?;
    let (_, provider) = route::to_lease(ctx, &args.keys.values, name, "stop")?;
    if args.reclaim {
        let provider = provider.name();
        return Err(StopError::Reclaim { provider }.into());
    }
    let expected = Expected::of(&args.expected)?;
    if let Some(expected) = expected {
        expected.check(&provider.resolve(name, Purpose::Look)?)?;
    }
    let released = provider.release(name)?;
    let (id, name) = (&released.id, &released.name);
    match &released.host {
        Some(host) => ctx
            .printer
            .note(format_args!("released static lease={id} host={}", blank(host))),
        None => ctx
            .printer
            .note(format_args!("deleted lease={id} server={name} name={name}")),
    }
    if let Some(dir) = &released.kept {
        ctx.printer.note(format_args!(
            "kept lease={id} disk in {}: it was made with deleteOnRelease=false; `crabbox stop --firecracker-delete-on-release {id}` removes it",
            dir.display()
        ));
    }
    Ok(Exit::SUCCESS)
}
