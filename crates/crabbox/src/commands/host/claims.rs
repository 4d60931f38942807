//! `claims list`: the local claims as stored, valid or not.

use crabbox_core::fault::Kind;
use crabbox_engine::provider::claims::{self, Claim, Listing, Problem};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::ClaimsListArgs;
use crate::context::Ctx;
use crate::go::quote;
use crate::ui::{CommandError, Exit};

/// At most so many problems are listed, as in the Go program; if there are more, the last says how many.
const PROBLEMS: usize = 100;

/// The document; field names are the Go program's.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct ClaimsView {
    /// Version of this document: 1.
    version: u32,
    /// Always `local-claims`: no provider was asked.
    source: &'static str,
    /// The claims that can be read.
    claims: Vec<ClaimView>,
    /// The files that cannot, at most 100; the last may say how many more there are.
    problems: Vec<ProblemView>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ClaimView {
    lease_id: String,
    slug: String,
    provider: String,
    repo_root: String,
    pond: String,
    #[serde(rename = "targetOS")]
    target_os: String,
    windows_mode: String,
    claimed_at: String,
    last_used_at: String,
    idle_timeout_seconds: i64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ProblemView {
    /// The file's name; empty where it says how many more there are.
    file: String,
    /// What is wrong with it, for programs.
    code: &'static str,
    /// The same for people.
    message: String,
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &ClaimsListArgs) -> Result<Exit, CommandError> {
    let view = ClaimsView::new(claims::list(&ctx.env.places()?)?);
    if args.json {
        ctx.printer.json(&view)?;
    } else {
        for line in view.lines() {
            ctx.printer.line(line);
        }
    }
    if view.problems.is_empty() {
        Ok(Exit::SUCCESS)
    } else {
        Err(CommandError::silent(Kind::Usage))
    }
}

impl ClaimsView {
    fn new(listing: Listing) -> Self {
        Self {
            version: 1,
            source: "local-claims",
            claims: listing.claims.into_iter().map(ClaimView::from).collect(),
            problems: problems(&listing.problems),
        }
    }

    /// YAML-like text; values that come from a file are quoted.
    fn lines(&self) -> Vec<String> {
        let mut lines =
            vec!["Local claims (unverified local state; provider backends were not queried)".to_owned()];
        if self.claims.is_empty() {
            lines.push("No valid local claims found.".to_owned());
        }
        for claim in &self.claims {
            let fields = [
                ("slug", &claim.slug),
                ("provider", &claim.provider),
                ("repoRoot", &claim.repo_root),
                ("pond", &claim.pond),
                ("targetOS", &claim.target_os),
                ("windowsMode", &claim.windows_mode),
                ("claimedAt", &claim.claimed_at),
                ("lastUsedAt", &claim.last_used_at),
            ];
            lines.push(format!("- leaseId: {}", quote(&claim.lease_id)));
            lines.extend(
                fields
                    .iter()
                    .map(|(name, value)| format!("  {name}: {}", quote(value))),
            );
            lines.push(format!("  idleTimeoutSeconds: {}", claim.idle_timeout_seconds));
        }
        if !self.problems.is_empty() {
            lines.push("Problems:".to_owned());
        }
        for problem in &self.problems {
            let ProblemView { file, code, message } = problem;
            lines.push(if file.is_empty() {
                format!("- {message} ({code})")
            } else {
                format!("- {}: {message} ({code})", quote(file))
            });
        }
        lines
    }
}

fn problems(all: &[Problem]) -> Vec<ProblemView> {
    if all.len() <= PROBLEMS {
        return all.iter().map(ProblemView::from).collect();
    }
    let (told, omitted) = all.split_at(PROBLEMS - 1);
    let more = ProblemView {
        file: String::new(),
        code: "problems_truncated",
        message: format!("{} additional malformed claim files omitted", omitted.len()),
    };
    told.iter().map(ProblemView::from).chain([more]).collect()
}

impl From<Claim> for ClaimView {
    fn from(claim: Claim) -> Self {
        Self {
            lease_id: claim.lease_id,
            slug: claim.slug,
            provider: claim.provider,
            repo_root: claim.repo_root,
            pond: claim.pond,
            target_os: claim.target_os,
            windows_mode: claim.windows_mode,
            claimed_at: claim.claimed_at,
            last_used_at: claim.last_used_at,
            idle_timeout_seconds: claim.idle_timeout_seconds,
        }
    }
}

impl From<&Problem> for ProblemView {
    fn from(problem: &Problem) -> Self {
        Self {
            file: problem.file.clone(),
            code: claims::code(&problem.error),
            message: crabbox_core::fault::chain(&problem.error),
        }
    }
}
