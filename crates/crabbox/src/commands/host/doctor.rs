//! `doctor`: whether this host can lease machines, and if not, how to fix it.

use std::path::PathBuf;

use crabbox_core::config::key::Name;
use crabbox_core::config::layer::{Origin, Sourced};
use crabbox_core::config::{FlagValue, Provider as Which, ProviderError, Settings};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::host::doctor::{self, Check, Options, Status};
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::lease::Lease;
use crabbox_engine::provider::{registry, route as routing};
use crabbox_machine::context::Engine;
use crabbox_machine::lease::find::Purpose;
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::commands::engine;
use crate::commands::lease::route;
use crate::context::Ctx;
use crate::env::EnvError;
use crate::hint;
use crate::ui::{CommandError, Exit};

/// The document of `--json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct DoctorView<'a> {
    /// Whether no check came out as `missing` or `failed`.
    ok: bool,
    /// The provider that was chosen; empty when none was.
    provider: &'a str,
    /// The checks, in the order in which they are shown.
    checks: &'a [Check],
}

/// The document of `--all --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct AllView<'a> {
    /// Whether all of them are.
    ok: bool,
    /// What `doctor --json` says of each.
    providers: Vec<DoctorView<'a>>,
}

/// Errors of `doctor`.
#[derive(Debug, thiserror::Error)]
enum DoctorError {
    /// A check found something.
    #[error("doctor found problems")]
    Problems,
    /// A flag that belongs to another provider than the chosen one.
    #[error("{flag} needs provider={provider}")]
    OtherProvider {
        /// The flag.
        flag: &'static str,
        /// The provider that it belongs to.
        provider: &'static str,
    },
    /// The list of providers without the flag that it belongs to.
    #[error("--providers needs --all")]
    NotAll,
    /// One provider, and all of them.
    #[error("--all cannot be combined with --provider; --providers says which of them")]
    AllAndOne,
}

impl Fault for DoctorError {
    fn kind(&self) -> Kind {
        match self {
            Self::Problems => Kind::Problems,
            Self::OtherProvider { .. } | Self::NotAll | Self::AllAndOne => Kind::Usage,
        }
    }
}

/// The findings for one provider.
#[derive(Debug)]
struct Report {
    provider: &'static str,
    checks: Vec<Check>,
    /// The summary line for a person, when all is well and when not.
    verdict: [&'static str; 2],
}

/// Verdicts about a host.
const OF_HOST: [&str; 2] = [
    "This host can lease machines",
    "This host cannot lease machines yet",
];

/// Verdicts about a fleet, of which only the configuration was checked.
const OF_FLEET: [&str; 2] = [
    "Slurm's configuration fits leases",
    "Slurm's configuration does not fit leases yet",
];

impl Report {
    fn view(&self) -> DoctorView<'_> {
        DoctorView {
            ok: doctor::is_well(&self.checks),
            provider: self.provider,
            checks: &self.checks,
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &DoctorArgs) -> Result<Exit, CommandError> {
    check(args)?;
    let mut flags = args.keys.values.clone();
    flags.extend(args.profile.iter().map(|profile| FlagValue {
        key: Name::Profile,
        values: vec![profile.clone()],
    }));
    if args.all {
        return all(ctx, args, &flags);
    }
    let report = if args.fleet {
        fleet(ctx, &flags)?
    } else {
        look(ctx, args, &flags)?
    };
    if args.json {
        ctx.printer.json(&report.view())?;
    } else {
        show(ctx, &report);
    }
    ended(report.view().ok)
}

/// Refuses flags that would have no effect together.
fn check(args: &DoctorArgs) -> Result<(), DoctorError> {
    let mut values = args.keys.values.iter();
    let chosen = values.find(|flag| flag.key == Name::ProviderName);
    if !args.all && !args.providers.is_empty() {
        return Err(DoctorError::NotAll);
    }
    let Some(chosen) = chosen else { return Ok(()) };
    if args.all {
        return Err(DoctorError::AllAndOne);
    }
    let fleets = Which::Firecracker;
    let is_other = |name: &String| Which::by_name(name.trim()).is_ok_and(|which| which != fleets);
    if args.fleet && chosen.values.iter().any(is_other) {
        return Err(DoctorError::OtherProvider {
            flag: "--fleet",
            provider: fleets.name(),
        });
    }
    Ok(())
}

/// The fleet that this host belongs to.
fn fleet(ctx: &Ctx<'_>, flags: &[FlagValue]) -> Result<Report, CommandError> {
    let settings = ctx.settings(flags)?.settings;
    let reserve = settings.firecracker.reserve_memory_mib.value;
    let checks = doctor::fleet::checks(&ctx.env.places()?.config, u64::try_from(reserve).unwrap_or(0));
    Ok(Report {
        provider: "firecracker",
        checks,
        verdict: OF_FLEET,
    })
}

/// Each provider separately, as if it were the chosen one.
fn all(ctx: &Ctx<'_>, args: &DoctorArgs, flags: &[FlagValue]) -> Result<Exit, CommandError> {
    let mut reports = Vec::new();
    let mut providers: Vec<Which> = Vec::new();
    if args.providers.is_empty() {
        providers.extend(Which::ALL);
    }
    for name in &args.providers {
        let provider = Which::by_name(name.trim())?;
        // The list may name one provider twice, by alias.
        if !providers.contains(&provider) {
            providers.push(provider);
        }
    }
    for provider in providers {
        let chosen = FlagValue {
            key: Name::ProviderName,
            values: vec![provider.name().to_owned()],
        };
        let others = flags.iter().filter(|flag| flag.key != Name::ProviderName);
        let flags: Vec<FlagValue> = others.cloned().chain([chosen]).collect();
        reports.push(look(ctx, args, &flags)?);
    }
    let providers: Vec<DoctorView<'_>> = reports.iter().map(Report::view).collect();
    let ok = providers.iter().all(|report| report.ok);
    if args.json {
        ctx.printer.json(&AllView { ok, providers })?;
    } else {
        for report in &reports {
            ctx.printer.line(format_args!("provider={}", report.provider));
            show(ctx, report);
        }
    }
    ended(ok)
}

fn ended(ok: bool) -> Result<Exit, CommandError> {
    if ok {
        Ok(Exit::SUCCESS)
    } else {
        Err(DoctorError::Problems.into())
    }
}

/// Checks the provider chosen by these flags and the configuration.
fn look(ctx: &Ctx<'_>, args: &DoctorArgs, flags: &[FlagValue]) -> Result<Report, CommandError> {
    let mut settings = ctx.settings(flags)?.settings;
    let lease = match &args.id {
        Some(name) => Some(named(ctx, &mut settings, flags, name)?),
        None => None,
    };
    // Having chosen none is a finding of its own; an unknown name is a typo and an error.
    if let Err(error @ ProviderError::Unknown { .. }) = settings.provider() {
        return Err(error.into());
    }
    let is_ssh = settings
        .provider()
        .is_ok_and(|which| registry::capabilities(which).has(Capability::SshProbe));
    if args.doctor_probe_ssh && !is_ssh && !args.all {
        return Err(DoctorError::OtherProvider {
            flag: "--doctor-probe-ssh",
            provider: Which::Ssh.name(),
        }
        .into());
    }
    let engine = onlooker(ctx)?;
    let options = Options {
        config_file: ctx.env.user_config()?,
        ssh_key: ctx.env.os("CRABBOX_SSH_KEY").map(PathBuf::from),
        probe: args.probe,
        prepare: args.prepare_check,
        probe_ssh: args.doctor_probe_ssh && is_ssh,
    };
    let mut checks = doctor::run(&engine, &settings, &options);
    if let Some(lease) = &lease {
        let remote = doctor::remote(lease)?;
        let place = checks
            .iter()
            .position(|check| check.check == "ssh-key")
            .unwrap_or(checks.len());
        checks.insert(place, remote);
    }
    for check in &mut checks {
        if let Some(fix) = check.details.get_mut("fix") {
            *fix = hint::complete(fix, flags);
        }
    }
    let provider = settings.provider().map_or("", |provider| provider.name());
    Ok(Report {
        provider,
        checks,
        verdict: OF_HOST,
    })
}

/// The lease called `name`. From then on, `settings` are those for its provider, as the lease chose it, and
/// for its host.
fn named(
    ctx: &Ctx<'_>,
    settings: &mut Settings,
    flags: &[FlagValue],
    name: &str,
) -> Result<Lease, CommandError> {
    let engine = engine::looking(ctx)?;
    let by_lease = routing::by_lease(&engine.places, settings, name)?;
    let provider = route::of_lease(&engine, settings, name, "doctor")?;
    let lease = provider.resolve(name, Purpose::Look)?;
    // What only the claim knows of a host, the checks of its provider must know too.
    if let Some(facts) = provider.after_release(&lease) {
        *settings = ctx.settings(&[flags, &facts].concat())?.settings;
    }
    if let Some(which) = by_lease {
        settings.provider = Sourced {
            value: which.name().to_owned(),
            origin: Origin::Lease,
        };
    }
    Ok(lease)
}

/// An engine that only looks: it starts no programs and opens no connections.
fn onlooker(ctx: &Ctx<'_>) -> Result<Engine, EnvError> {
    Ok(Engine {
        places: ctx.env.places()?,
        exe: PathBuf::new(),
        path: ctx.env.path().to_owned(),
        runtime: None,
        failpoint: String::new(),
    })
}

/// Prints the Go program's lines on standard output, and how to fix each check on standard error. On a terminal, the same lines are grouped below a
/// summary line.
fn show(ctx: &Ctx<'_>, report: &Report) {
    let checks = &report.checks;
    if ctx.printer.is_terminal() {
        for line in grouped(checks, report.verdict) {
            ctx.printer.line(line);
        }
        return;
    }
    for check in checks {
        ctx.printer.line(check);
        if let Some(fix) = check.details.get("fix") {
            ctx.printer.note(format_args!("        fix: {fix}"));
        }
    }
}

/// The groups, worst first.
const GROUPS: [(&str, &[Status]); 4] = [
    ("To be fixed", &[Status::Missing, Status::Failed]),
    ("Works, less well than it could", &[Status::Warning]),
    ("Well", &[Status::Ok]),
    ("Not looked at", &[Status::Skip]),
];

/// A summary, then each non-empty group, with how to fix its checks.
fn grouped(checks: &[Check], [well, unwell]: [&str; 2]) -> Vec<String> {
    let of = |statuses: &[Status]| -> Vec<&Check> {
        checks
            .iter()
            .filter(|check| statuses.contains(&check.status))
            .collect()
    };
    // In that case nothing about a lease was checked.
    let is_chosen = |check: &Check| check.details.get("selected").map(String::as_str) != Some("false");
    let verdict = if !checks.iter().all(is_chosen) {
        "No provider is chosen, so only this machine's tools were looked at"
    } else if doctor::is_well(checks) {
        well
    } else {
        unwell
    };
    let counts = [
        (0, "to be fixed"),
        (1, "to be better"),
        (2, "well"),
        (3, "not looked at"),
    ];
    let counted: Vec<String> = counts
        .iter()
        .map(|(group, words)| (of(GROUPS[*group].1).len(), words))
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{count} {words}"))
        .collect();
    let width = checks
        .iter()
        .map(|check| check.check.len())
        .max()
        .unwrap_or_default();
    let mut lines = vec![format!("{verdict}: {}", counted.join(", "))];
    for (title, statuses) in GROUPS {
        let found = of(statuses);
        if found.is_empty() {
            continue;
        }
        lines.extend([String::new(), title.to_owned()]);
        for check in found {
            // `mutation=false` is meant for programs.
            let message = check.message.replace(" mutation=false", "");
            let line = format!("  {:<7} {:<width$} {message}", check.status.name(), check.check);
            lines.push(line.trim_end().to_owned());
            if let Some(fix) = check.details.get("fix") {
                lines.push(format!("{:width$}fix: {fix}", "", width = width + 11));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_what_came_of_it_first_and_what_is_worst_before_the_rest() {
        let check = |status, name, message: &str| Check::generic(status, name, message);
        let checks = [
            check(Status::Ok, "git", "version=2.39.5"),
            check(Status::Warning, "swap", "slow").with("fix", "less of it"),
            check(Status::Missing, "binary", "none").with("fix", "crabbox setup firecracker"),
        ];
        assert_eq!(
            grouped(&checks, OF_HOST),
            [
                "This host cannot lease machines yet: 1 to be fixed, 1 to be better, 1 well",
                "",
                "To be fixed",
                "  missing binary none",
                "                 fix: crabbox setup firecracker",
                "",
                "Works, less well than it could",
                "  warning swap   slow",
                "                 fix: less of it",
                "",
                "Well",
                "  ok      git    version=2.39.5",
            ]
        );
        let well = grouped(&checks[..1], OF_FLEET);
        assert_eq!(well[0], "Slurm's configuration fits leases: 1 well");
    }
}
