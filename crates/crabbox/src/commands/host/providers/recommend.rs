//! `providers recommend`: ranks the providers for a use, by kind and capability.
//!
//! The advice rests on compiled-in facts: whether a provider works on this host is for `doctor` to say, and must never be claimed here.

use std::cmp::Reverse;

use crabbox_core::fault::{Fault, Kind};
use schemars::JsonSchema;
use serde::Serialize;

use super::catalogue::{self, Entry};
use super::filter;
use super::use_case::{self, UseCase};
use crate::args::ProvidersRecommendArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// A provider with what speaks for it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Recommendation {
    provider: &'static str,
    kind: &'static str,
    category: &'static str,
    targets: &'static [&'static str],
    features: &'static [&'static str],
    runtime: &'static [&'static str],
    reachability: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    workspace: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    evidence: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    lifecycle: &'static [&'static str],
    score: u32,
    reasons: Vec<&'static str>,
    #[serde(skip)]
    entry: Entry,
}

impl Recommendation {
    fn new(entry: Entry, case: &UseCase) -> Self {
        let (score, reasons) = case.judge(&entry);
        Self {
            provider: entry.provider,
            kind: entry.kind,
            category: entry.category,
            targets: entry.targets,
            features: entry.features,
            runtime: entry.runtime,
            reachability: entry.reachability,
            workspace: entry.workspace,
            evidence: entry.evidence,
            lifecycle: entry.lifecycle,
            score,
            reasons,
            entry,
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.provider.to_owned(), format!("  score: {}", self.score)];
        lines.extend(self.entry.abilities());
        lines.push(format!("  reasons: {}", self.reasons.join("; ")));
        lines
    }
}

/// Why no advice can be given.
#[derive(Debug, thiserror::Error)]
enum RecommendError {
    #[error("--limit must be greater than 0")]
    Limit,
    #[error("pass the use case either positionally or with --use-case, not both")]
    Twice,
    #[error("usage: crabbox providers recommend <use-case> [--limit N] [--json]")]
    Usage,
    #[error("provider recommendation filters require a use case")]
    OnlyFilters,
    #[error("unknown provider recommendation use case {word:?}; try one of: {}", names().join(", "))]
    Unknown { word: String },
    #[error("no providers matched use case {name:?}{}", if *.filtered { " with the requested filters" } else { "" })]
    None { name: &'static str, filtered: bool },
}

impl Fault for RecommendError {
    fn kind(&self) -> Kind {
        match self {
            Self::None { .. } => Kind::General,
            _ => Kind::Usage,
        }
    }
}

fn names() -> Vec<&'static str> {
    use_case::ALL.iter().map(|case| case.name).collect()
}

/// The requested use, if any.
fn wanted(args: &ProvidersRecommendArgs) -> Result<Option<&str>, RecommendError> {
    let given = |text: &str| !text.trim().is_empty();
    match (
        args.use_case.as_deref().filter(|text| given(text)),
        args.words.as_slice(),
    ) {
        (flag, []) => Ok(flag),
        (None, [word]) => Ok(Some(word.as_str()).filter(|text| given(text))),
        (Some(_), [_]) => Err(RecommendError::Twice),
        _ => Err(RecommendError::Usage),
    }
}

/// `providers recommend`.
pub(super) fn run(ctx: &Ctx<'_>, args: &ProvidersRecommendArgs) -> Result<Exit, CommandError> {
    let limit = usize::try_from(args.limit).unwrap_or(0);
    if limit == 0 {
        return Err(RecommendError::Limit.into());
    }
    let filtered = !filter::is_empty(&args.filters);
    let Some(word) = wanted(args)? else {
        if filtered {
            return Err(RecommendError::OnlyFilters.into());
        }
        return list(ctx, args);
    };
    let case = UseCase::by_name(word).ok_or_else(|| RecommendError::Unknown {
        word: word.to_owned(),
    })?;
    let entries = filter::chosen(&catalogue::entries(), &args.filters)?;
    let mut ranked: Vec<_> = entries
        .into_iter()
        .map(|entry| Recommendation::new(entry, case))
        .filter(|candidate| candidate.score > 0)
        .collect();
    ranked.sort_by_key(|candidate| (Reverse(candidate.score), candidate.provider));
    ranked.truncate(limit);
    if ranked.is_empty() {
        return Err(RecommendError::None {
            name: case.name,
            filtered,
        }
        .into());
    }
    if args.json {
        ctx.printer.json(&ranked)?;
        return Ok(Exit::SUCCESS);
    }
    ctx.printer
        .line(format_args!("recommended providers for {}:", case.name));
    ranked
        .iter()
        .flat_map(Recommendation::lines)
        .for_each(|line| ctx.printer.line(line));
    Ok(Exit::SUCCESS)
}

/// Lists the known uses.
fn list(ctx: &Ctx<'_>, args: &ProvidersRecommendArgs) -> Result<Exit, CommandError> {
    if args.json {
        ctx.printer.json(&names())?;
        return Ok(Exit::SUCCESS);
    }
    ctx.printer.line("provider recommendation use cases:");
    for name in names() {
        ctx.printer.line(format_args!("  {name}"));
    }
    ctx.printer.line("");
    ctx.printer.line("examples:");
    for example in ["self-hosted", "byo-ssh --json", "linux-vm --lifecycle cleanup"] {
        ctx.printer
            .line(format_args!("  crabbox providers recommend {example}"));
    }
    Ok(Exit::SUCCESS)
}
