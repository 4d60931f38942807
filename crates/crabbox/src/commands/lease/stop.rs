//! `stop`: gives a lease back.

use crabbox_core::config::key::Name;
use crabbox_core::config::{FlagValue, Provider as Which};
use crabbox_core::fault::{Fault, Kind};

use crabbox_engine::provider::Provider;
use crabbox_engine::provider::lease::Lease;
use crabbox_machine::lease::find::Purpose;
use crabbox_machine::lifecycle::release::Released;

use crate::args::{self, ExpectedArgs, StopArgs};
use crate::command_line::CommandLine;
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
    let released = release(provider.as_ref(), name, expected.as_ref())?;
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
        let settings = ctx.settings_on_leases(&args.keys.values)?.settings;
        let discard = discarding(
            &released,
            !settings.firecracker.host.value.as_str().is_empty(),
            &args.keys.values,
        );
        ctx.printer.note(format_args!(
            "kept lease={id} disk in {}: it was made with deleteOnRelease=false; `{}` removes it",
            dir.display(),
            discard.shown()
        ));
    }
    Ok(Exit::SUCCESS)
}

/// Releases the lease called `name`, if it is the `expected` one.
fn release(
    provider: &dyn Provider,
    name: &str,
    expected: Option<&Expected<'_>>,
) -> Result<Released, CommandError> {
    let Some(expected) = expected else {
        return Ok(provider.release(name)?);
    };
    let lease = provider.resolve(name, Purpose::Look)?;
    expected.check(&lease)?;
    // The name may be another lease's by now.
    Ok(provider.release(&lease.id)?)
}

/// The command that removes what is kept of a lease, which no claim leads to any more. `sets_host` says
/// whether the settings name a KVM host.
fn discarding(released: &Released, sets_host: bool, given: &[FlagValue]) -> CommandLine {
    let own = [Name::FirecrackerHost, Name::FirecrackerDeleteOnRelease];
    let given: Vec<FlagValue> = given
        .iter()
        .filter(|flag| !own.contains(&flag.key))
        .cloned()
        .collect();
    let line = CommandLine::new("stop").option("provider", Which::Firecracker.name());
    let line = match &released.kvm_host {
        Some(host) => line.option("firecracker-host", host),
        None if sets_host => line.flag("firecracker-host", ""),
        None => line,
    };
    line.repeated(&given, args::LEASE_GROUPS)
        .switch("firecracker-delete-on-release", true)
        .word(&released.id)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Duration;

    use crabbox_core::labels::Labels;
    use crabbox_core::state::LeaseState;
    use crabbox_engine::host::doctor::check::{Check, Options};
    use crabbox_engine::host::prepare::NewLease;
    use crabbox_engine::provider::capability::Capabilities;
    use crabbox_engine::provider::error::LeaseError;
    use crabbox_engine::provider::{AcquiredLease, Leases, Notice};
    use crabbox_host::signals::Interrupts;
    use crabbox_machine::lifecycle::release::Decision;

    use super::*;
    use crate::args::Command;
    use crate::commands::lease::views::sample;

    /// Has one lease, and notes what was released.
    #[derive(Debug, Default)]
    struct Noting(Mutex<Vec<String>>);

    impl Provider for Noting {
        fn name(&self) -> &'static str {
            "firecracker"
        }

        fn capabilities(&self) -> Capabilities {
            unreachable!("stop does not ask")
        }

        fn checks(&self, _: &Options) -> Vec<Check> {
            unreachable!("stop does not ask")
        }

        fn acquire(
            &self,
            _: &NewLease,
            _: &Path,
            _: &Interrupts,
            _: &mut dyn FnMut(&Notice<'_>),
        ) -> Result<AcquiredLease, LeaseError> {
            unreachable!("stop makes nothing")
        }

        fn resolve(&self, _: &str, _: Purpose) -> Result<Lease, LeaseError> {
            Ok(sample())
        }

        fn is_down(&self, _: &Lease) -> Option<bool> {
            None
        }

        fn list(&self) -> Result<Leases, LeaseError> {
            unreachable!("stop lists nothing")
        }

        fn claim(&self, _: &Lease, _: &Path, _: bool) -> Result<(), LeaseError> {
            unreachable!("stop claims nothing")
        }

        fn touch(
            &self,
            _: &Lease,
            _: Option<&LeaseState>,
            _: Option<Duration>,
        ) -> Result<Labels, LeaseError> {
            unreachable!("stop touches nothing")
        }

        fn release(&self, text: &str) -> Result<Released, LeaseError> {
            self.0.lock().unwrap().push(text.to_owned());
            Ok(Released {
                id: text.to_owned(),
                name: text.to_owned(),
                host: None,
                kvm_host: None,
                kept: None,
            })
        }

        fn cleanup(&self, _: bool, _: &mut dyn FnMut(&Decision)) -> Result<Vec<Decision>, LeaseError> {
            unreachable!("stop cleans nothing up")
        }
    }

    #[test]
    fn the_lease_that_was_checked_is_the_one_that_is_released() {
        let lease = sample();
        let expected = |slug| {
            Expected([
                ("provider-lease-id", lease.id.as_str()),
                ("attempt-lease-id", &lease.id),
                ("slug", slug),
                ("resource-id", &lease.cloud_id),
            ])
        };
        let provider = Noting::default();
        assert!(release(&provider, &lease.slug, Some(&expected("other"))).is_err());
        release(&provider, &lease.slug, Some(&expected(&lease.slug))).unwrap();
        release(&provider, &lease.slug, None).unwrap();
        assert_eq!(
            *provider.0.lock().unwrap(),
            [&lease.id, &lease.slug].map(String::clone)
        );
    }

    #[test]
    fn the_command_that_removes_a_kept_disk_leads_to_its_machine() {
        let shown = |kvm_host: Option<&str>, sets_host: bool, given: &[FlagValue]| {
            let released = Released {
                id: "cbx_0123456789ab".to_owned(),
                name: "n".to_owned(),
                host: None,
                kvm_host: kvm_host.map(str::to_owned),
                kept: Some("/k".into()),
            };
            let line = discarding(&released, sets_host, given);
            let Ok(Command::Stop(parsed)) = line.parse() else {
                panic!("it begins with stop: {}", line.shown());
            };
            assert_eq!(parsed.lease.get(), Some("cbx_0123456789ab"));
            line.shown()
        };
        let rest = "--firecracker-delete-on-release cbx_0123456789ab";
        assert_eq!(
            shown(None, false, &[]),
            format!("crabbox stop --provider firecracker {rest}")
        );
        assert_eq!(
            shown(None, true, &[]),
            format!("crabbox stop --provider firecracker --firecracker-host= {rest}")
        );
        let given = [
            (Name::FirecrackerHost, "b@other"),
            (Name::FirecrackerDeleteOnRelease, "false"),
        ]
        .map(|(key, value)| FlagValue {
            key,
            values: vec![value.to_owned()],
        });
        let there = shown(Some("a@kvm1"), true, &given);
        assert_eq!(
            there,
            format!("crabbox stop --provider firecracker --firecracker-host a@kvm1 {rest}")
        );
    }
}
