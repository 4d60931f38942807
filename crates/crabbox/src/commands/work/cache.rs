//! `cache`: the caches of package managers and Docker in a lease: sizes, warming, purging.
//!
//! Nothing is removed without `--force`, and never a kind that the configuration disables.

use std::os::fd::AsFd as _;

use crabbox_core::config::settings::CacheSettings;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::size::human_bytes;
use crabbox_engine::run::request::{CommandOptions, LeaseOptions, RunRequest, SyncOptions};
use crabbox_workspace::caches::{self, CacheEntry, CacheKind};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::{CacheCommand, CachePurgeArgs, CacheStatsArgs, CacheWarmArgs};
use crate::commands::engine;
use crate::commands::lease::entry;
use crate::commands::work::run::{self, Invocation, Manner};
use crate::commands::work::volumes;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// `stats` without a lease.
    #[error("usage: crabbox cache stats --id <lease-id-or-slug>")]
    Stats,
    /// `purge` without a lease.
    #[error("usage: crabbox cache purge --id <lease-id-or-slug> --kind <kind> --force")]
    Purge,
    /// It was not confirmed.
    #[error("cache purge requires --force")]
    Force,
    /// `warm` without a lease.
    #[error("cache warm requires --id")]
    WarmLease,
    /// `warm` without a command.
    #[error("usage: crabbox cache warm --id <lease-id-or-slug> -- <command...>")]
    Warm,
    /// The configuration disables it.
    #[error("cache kind {kind:?} is disabled by config")]
    Disabled {
        /// Its name.
        kind: &'static str,
    },
    /// There is no such kind.
    #[error("unknown cache kind {kind:?}; there are pnpm, npm, docker, git and all")]
    Unknown {
        /// The requested kind.
        kind: String,
    },
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Disabled { kind } => vec![format!("cache.{kind} in a configuration file switches it on")],
            _ => Vec::new(),
        }
    }
}

/// A cache, as `--json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct CacheView {
    /// `pnpm`, `npm`, `git` or `docker`.
    kind: String,
    /// Its directory in the lease; absent for Docker's.
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    /// What it takes on the disk; absent where that was not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// What its own program says of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

impl From<CacheEntry> for CacheView {
    fn from(entry: CacheEntry) -> Self {
        Self {
            kind: entry.kind,
            path: entry.path,
            bytes: entry.bytes,
            note: entry.note,
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, command: &CacheCommand) -> Result<Exit, CommandError> {
    match command {
        CacheCommand::Stats(args) => stats(ctx, args),
        CacheCommand::Warm(args) => warm(ctx, args),
        CacheCommand::Purge(args) => purge(ctx, args),
        CacheCommand::Volumes(args) => volumes::run(ctx, args),
    }
}

/// The kinds that the configuration enables.
fn enabled(settings: &CacheSettings) -> Vec<CacheKind> {
    let is_on = |kind: &CacheKind| match kind {
        CacheKind::Pnpm => settings.pnpm.value,
        CacheKind::Npm => settings.npm.value,
        CacheKind::Git => settings.git.value,
        CacheKind::Docker => settings.docker.value,
    };
    CacheKind::ALL.into_iter().filter(is_on).collect()
}

fn stats(ctx: &Ctx<'_>, args: &CacheStatsArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage::Stats)?;
    let kinds = enabled(&ctx.settings_on_leases(&args.keys.values)?.settings.cache);
    let entry = entry::enter(ctx, &args.keys.values, name, "cache stats", args.reclaim)?;
    let seen = caches::measure(&entry.target, &kinds, engine::interrupts()?.as_fd())?;
    let views: Vec<CacheView> = seen.into_iter().map(CacheView::from).collect();
    if args.json {
        ctx.printer.json(&views)?;
    } else {
        for view in &views {
            ctx.printer.line(line(view));
        }
    }
    entry.leave(ctx, None);
    Ok(Exit::SUCCESS)
}

fn line(view: &CacheView) -> String {
    let CacheView {
        kind,
        path,
        bytes,
        note,
    } = view;
    if !note.is_empty() {
        return format!("{kind:<8} {note}");
    }
    let size = bytes.map_or_else(|| "-".to_owned(), human_bytes);
    format!("{kind:<8} {size:<32} {path}").trim_end().to_owned()
}

fn purge(ctx: &Ctx<'_>, args: &CachePurgeArgs) -> Result<Exit, CommandError> {
    let name = args.lease.get().ok_or(Usage::Purge)?;
    if !args.force {
        return Err(Usage::Force.into());
    }
    let mut kinds = enabled(&ctx.settings_on_leases(&args.keys.values)?.settings.cache);
    if args.kind != "all" {
        let kind = CacheKind::by_name(&args.kind).ok_or_else(|| Usage::Unknown {
            kind: args.kind.clone(),
        })?;
        if !kinds.contains(&kind) {
            return Err(Usage::Disabled { kind: kind.name() }.into());
        }
        kinds = vec![kind];
    }
    let entry = entry::enter(ctx, &args.keys.values, name, "cache purge", args.reclaim)?;
    caches::purge(&entry.target, &kinds, engine::interrupts()?.as_fd())?;
    ctx.printer.line(format_args!(
        "purged cache kind={} lease={}",
        args.kind, entry.lease.id
    ));
    entry.leave(ctx, None);
    Ok(Exit::SUCCESS)
}

/// A normal run in the existing tree, so that it has exclusive use of the tree, and a failure leaves the usual bundle.
fn warm(ctx: &Ctx<'_>, args: &CacheWarmArgs) -> Result<Exit, CommandError> {
    let id = args.id.as_deref().filter(|id| !id.trim().is_empty());
    let id = id.ok_or(Usage::WarmLease)?;
    if args.words.is_empty() {
        return Err(Usage::Warm.into());
    }
    let invocation = Invocation {
        request: RunRequest {
            lease: LeaseOptions {
                id: Some(id.to_owned()),
                reclaim: args.reclaim,
                ..LeaseOptions::default()
            },
            sync: SyncOptions {
                no_sync: true,
                ..SyncOptions::default()
            },
            command: CommandOptions {
                words: args.words.clone(),
                ..CommandOptions::default()
            },
            ..RunRequest::default()
        },
        flags: args.keys.values.clone(),
        manner: Manner::default(),
    };
    run::run(ctx, &invocation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_columns_of_the_reference() {
        let view = |path: &str, bytes, note: &str| CacheView {
            kind: "npm".to_owned(),
            path: path.to_owned(),
            bytes,
            note: note.to_owned(),
        };
        assert_eq!(
            line(&view("/var/cache/crabbox/npm", Some(1_288_490_189), "")),
            "npm      1.2 GiB                          /var/cache/crabbox/npm"
        );
        assert_eq!(line(&view("", None, "Images=2GB")), "npm      Images=2GB");
        assert_eq!(line(&view("", None, "")), "npm      -");
    }
}
