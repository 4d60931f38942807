//! `doctor`: whether this host can lease machines, and how to fix it where it cannot.

use std::path::PathBuf;

use crabbox_core::config::key::Name;
use crabbox_core::config::{FlagValue, Provider as Which, ProviderError};
use crabbox_core::fault::{Fault, Kind};
use crabbox_engine::host::doctor::{self, Check, Options, Status};
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::registry;
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

/// How the doctor fails.
#[derive(Debug, thiserror::Error)]
enum DoctorError {
    /// A check found something.
    #[error("doctor found problems")]
    Problems,
    /// A flag for another provider than the one that was chosen.
    #[error("--doctor-probe-ssh needs provider=ssh")]
    NotSsh,
}

impl Fault for DoctorError {
    fn kind(&self) -> Kind {
        match self {
            Self::Problems => Kind::Problems,
            Self::NotSsh => Kind::Usage,
        }
    }
}

/// What was found of one provider.
#[derive(Debug)]
struct Report {
    provider: &'static str,
    checks: Vec<Check>,
}

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
        show(ctx, &report.checks);
    }
    ended(report.view().ok)
}

/// The fleet that this host belongs to.
fn fleet(ctx: &Ctx<'_>, flags: &[FlagValue]) -> Result<Report, CommandError> {
    let settings = ctx.settings(flags)?.settings;
    let reserve = settings.firecracker.reserve_memory_mib.value;
    let checks = doctor::fleet::checks(&ctx.env.places()?.config, u64::try_from(reserve).unwrap_or(0));
    Ok(Report {
        provider: "firecracker",
        checks,
    })
}

/// Each provider by itself, as if it were the one that was chosen.
fn all(ctx: &Ctx<'_>, args: &DoctorArgs, flags: &[FlagValue]) -> Result<Exit, CommandError> {
    let mut reports = Vec::new();
    for name in &args.providers {
        let chosen = FlagValue {
            key: Name::ProviderName,
            values: vec![Which::by_name(name.trim())?.name().to_owned()],
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
            show(ctx, &report.checks);
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

/// Looks at the provider that these flags and the configuration choose.
fn look(ctx: &Ctx<'_>, args: &DoctorArgs, flags: &[FlagValue]) -> Result<Report, CommandError> {
    let settings = ctx.settings(flags)?.settings;
    // None chosen is a finding of its own; one that does not exist is a word that was misspelt.
    if let Err(error @ ProviderError::Unknown { .. }) = settings.provider() {
        return Err(error.into());
    }
    let is_ssh = settings
        .provider()
        .is_ok_and(|which| registry::capabilities(which).has(Capability::SshProbe));
    if args.doctor_probe_ssh && !is_ssh && !args.all {
        return Err(DoctorError::NotSsh.into());
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
    if let Some(lease) = &args.id {
        let provider = route::of_lease(&engine::looking(ctx)?, &settings, lease, "doctor")?;
        let remote = doctor::remote(&provider.resolve(lease, Purpose::Look)?)?;
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
    Ok(Report { provider, checks })
}

/// An engine that only looks: it starts nothing and has no connections.
fn onlooker(ctx: &Ctx<'_>) -> Result<Engine, EnvError> {
    Ok(Engine {
        places: ctx.env.places()?,
        exe: PathBuf::new(),
        path: ctx.env.path().to_owned(),
        runtime: None,
        failpoint: String::new(),
    })
}

/// The lines that the Go program prints, on standard output; how to fix a check follows on standard error. A person, whom a terminal shows
/// them to, gets the same lines in groups below a line that says what came of it.
fn show(ctx: &Ctx<'_>, checks: &[Check]) {
    if ctx.printer.is_terminal() {
        for line in grouped(checks) {
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

/// The groups, what is worst first.
const GROUPS: [(&str, &[Status]); 4] = [
    (
        "To be fixed, before anything can be leased",
        &[Status::Missing, Status::Failed],
    ),
    ("Works, less well than it could", &[Status::Warning]),
    ("Well", &[Status::Ok]),
    ("Not looked at", &[Status::Skip]),
];

/// A summary, then each group that is not empty, with how to fix what is in it.
fn grouped(checks: &[Check]) -> Vec<String> {
    let of = |statuses: &[Status]| -> Vec<&Check> {
        checks
            .iter()
            .filter(|check| statuses.contains(&check.status))
            .collect()
    };
    // Nothing of a lease was looked at then.
    let is_chosen = |check: &Check| check.details.get("selected").map(String::as_str) != Some("false");
    let verdict = if !checks.iter().all(is_chosen) {
        "No provider is chosen, so only this machine's tools were looked at"
    } else if doctor::is_well(checks) {
        "This host can lease machines"
    } else {
        "This host cannot lease machines yet"
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
            // That nothing was changed is for programs, which ask for it.
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
            grouped(&checks),
            [
                "This host cannot lease machines yet: 1 to be fixed, 1 to be better, 1 well",
                "",
                "To be fixed, before anything can be leased",
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
        let well = grouped(&checks[..1]);
        assert_eq!(well[0], "This host can lease machines: 1 well");
    }
}
