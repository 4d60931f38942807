//! `image`: builds and manages guest images.

use std::path::PathBuf;

use crabbox_core::config::firecracker;
use crabbox_core::fault::chain;
use crabbox_core::fault::{Fault, Kind};
use crabbox_core::timestamp;
use crabbox_engine::fleet::address::KvmHost;
use crabbox_engine::host::images::{
    self, Broken, Build, Image, Init, Listed, Manifest, OwnInit, Policy, Reason, Source,
};
use crabbox_engine::host::warm::{self, Swept};
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::{
    ImageBuildArgs, ImageCommand, ImageExportArgs, ImageGcArgs, ImageImportArgs, ImageListArgs,
    ImageNameArgs, ImageRemoveArgs, ImageWarmArgs, InitChoice,
};
use crate::commands::engine;
use crate::commands::host::template::{self, WarmView, abbreviated, mebibytes};
use crate::commands::lease::entering::console_tail;
use crate::commands::lease::stages::Stages;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// Not one of the two ways to import.
    #[error("usage: crabbox image import [--name NAME] (--kernel PATH --rootfs PATH | BUNDLE)")]
    Import,
    /// `--sha256` with a kernel and a root file system.
    #[error("--sha256 is the digest of a bundle; a kernel and a root file system have none")]
    Digest,
    /// The image or the file is missing.
    #[error("usage: crabbox image export <name-or-digest> <file>")]
    Export,
    /// No image was named.
    #[error("usage: crabbox image rm <name-or-digest>")]
    Remove,
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// An image as `--json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ImageView<'a> {
    /// The image's identity, SHA-256 in hexadecimal digits.
    digest: &'a str,
    /// Its names.
    names: &'a [String],
    /// When it was made, RFC 3339 in UTC.
    created_at: String,
    /// The length of its files together.
    bytes: u64,
    /// The processor it is for.
    arch: &'a str,
    /// The distribution's suite.
    suite: &'a str,
    /// The kernel's release.
    kernel: &'a str,
    /// `crabbox` or `cloud-init`.
    init: &'static str,
    /// Its directory.
    path: PathBuf,
    /// Whether new leases use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<bool>,
    /// The leases that hold on to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<&'a [String]>,
}

impl<'a> ImageView<'a> {
    fn new(image: &'a Image) -> Self {
        let record = &image.manifest;
        Self {
            digest: &record.digest,
            names: &image.names,
            created_at: timestamp::rfc3339(record.created_unix),
            bytes: image.bytes(),
            arch: &record.arch,
            suite: &record.suite,
            kernel: &record.kernel_release,
            init: match record.init {
                Init::Ours => "crabbox",
                Init::CloudInit => "cloud-init",
            },
            path: image.dir.clone(),
            default: None,
            leases: None,
        }
    }

    fn listed(listed: &'a Listed) -> Self {
        Self {
            default: Some(listed.default),
            leases: Some(&listed.leases),
            ..Self::new(&listed.image)
        }
    }
}

/// A directory of the store that is no image.
#[derive(Debug, Serialize, JsonSchema)]
struct BrokenView {
    path: PathBuf,
    error: String,
}

impl BrokenView {
    fn new(broken: &Broken) -> Self {
        Self {
            path: broken.dir.clone(),
            error: chain(&broken.error),
        }
    }
}

/// `image inspect --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct InspectView<'a> {
    #[serde(flatten)]
    image: ImageView<'a>,
    manifest: &'a Manifest,
}

/// `image list --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct ListView<'a> {
    images: Vec<ImageView<'a>>,
    broken: Vec<BrokenView>,
}

/// `image build --json` and `image import --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct MadeView<'a> {
    image: ImageView<'a>,
}

/// `image export --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct ExportView {
    file: PathBuf,
    bytes: u64,
}

/// `image verify --json`: printed only when every byte is as it was.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct VerifyView<'a> {
    ok: bool,
    digest: &'a str,
    bytes: u64,
}

/// `image rm --json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in crate::commands) struct RemovedView<'a> {
    /// The digest of what is gone.
    removed: &'a str,
    bytes: u64,
}

/// `image gc --json`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct GcView {
    /// Whether nothing was removed.
    dry_run: bool,
    /// The length of what was removed, or would be.
    freed_bytes: u64,
    /// Each image.
    decisions: Vec<GcDecision>,
    /// The templates of no use.
    templates: Vec<GcTemplate>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct GcTemplate {
    key: String,
    /// `remove` or `would_remove`.
    action: &'static str,
    reason: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct GcDecision {
    digest: String,
    names: Vec<String>,
    /// `remove`, `would_remove` or `keep`.
    action: &'static str,
    reason: String,
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, command: &ImageCommand) -> Result<Exit, CommandError> {
    match command {
        ImageCommand::Build(args) => build(ctx, args),
        ImageCommand::Import(args) => import(ctx, args),
        ImageCommand::Export(args) => export(ctx, args),
        ImageCommand::List(args) => list(ctx, args),
        ImageCommand::Inspect(args) => inspect(ctx, args),
        ImageCommand::Verify(args) => verify(ctx, args),
        ImageCommand::Rm(args) => remove(ctx, args),
        ImageCommand::Warm(args) => warm(ctx, args),
        ImageCommand::Gc(args) => gc(ctx, args),
    }
}

/// The image that leases are to use; empty for the default one. A repository cannot choose it, so a fault in one of its files does
/// not matter.
fn configured(ctx: &Ctx<'_>) -> Result<String, CommandError> {
    let settings = ctx.settings_on_leases(&[])?.settings;
    Ok(settings.firecracker.image.value.as_str().to_owned())
}

fn build(ctx: &Ctx<'_>, args: &ImageBuildArgs) -> Result<Exit, CommandError> {
    let cwd = ctx.env.cwd()?;
    let wanted = Build {
        name: args.name.clone(),
        suite: args.suite.clone(),
        packages: args.package.clone(),
        script: args.script.as_ref().map(|path| cwd.join(path)),
        from: args.from.clone().map(|from| (from, cwd.to_owned())),
        init: match args.init {
            InitChoice::None => OwnInit::None,
            InitChoice::Systemd => OwnInit::Systemd,
        },
        kernel_of: args.kernel_of.clone(),
        configured: configured(ctx)?,
        guest_binary: args.guest_binary.as_ref().map(|path| cwd.join(path)),
    };
    let stages = Stages::new(ctx.printer, args.json);
    let image = images::build(&ctx.env.places()?, &wanted, &stages)?;
    stages.done();
    made(ctx, args.json, &image)
}

fn import(ctx: &Ctx<'_>, args: &ImageImportArgs) -> Result<Exit, CommandError> {
    let (places, cwd) = (ctx.env.places()?, ctx.env.cwd()?);
    let stages = Stages::new(ctx.printer, args.json);
    let image = match (&args.kernel, &args.rootfs, &args.bundle) {
        (Some(_), Some(_), None) if args.sha256.is_some() => return Err(Usage::Digest.into()),
        (Some(kernel), Some(rootfs), None) => {
            images::import(&places, &args.name, &cwd.join(kernel), &cwd.join(rootfs), &stages)?
        }
        (None, None, Some(bundle)) => {
            let from = Source::named(bundle, cwd, args.sha256.clone());
            images::import_bundle(&places, &from, &args.name, false, &stages)?.image
        }
        _ => return Err(Usage::Import.into()),
    };
    stages.done();
    made(ctx, args.json, &image)
}

fn made(ctx: &Ctx<'_>, json: bool, image: &Image) -> Result<Exit, CommandError> {
    if json {
        let image = ImageView::new(image);
        ctx.printer.json(&MadeView { image })?;
    } else {
        ctx.printer.line(line(image));
    }
    Ok(Exit::SUCCESS)
}

fn export(ctx: &Ctx<'_>, args: &ImageExportArgs) -> Result<Exit, CommandError> {
    let (Some(image), Some(file)) = (&args.image, &args.file) else {
        return Err(Usage::Export.into());
    };
    let to = ctx.env.cwd()?.join(file);
    let stages = Stages::new(ctx.printer, args.json);
    let bytes = images::export(&ctx.env.places()?, image, &to, &stages)?;
    stages.done();
    if args.json {
        ctx.printer.json(&ExportView { file: to, bytes })?;
    } else {
        ctx.printer
            .line(format_args!("{} {}", to.display(), mebibytes(bytes)));
    }
    Ok(Exit::SUCCESS)
}

fn list(ctx: &Ctx<'_>, args: &ImageListArgs) -> Result<Exit, CommandError> {
    let (listed, broken) = images::list(&ctx.env.places()?, &configured(ctx)?)?;
    if args.json {
        ctx.printer.json(&ListView {
            images: listed.iter().map(ImageView::listed).collect(),
            broken: broken.iter().map(BrokenView::new).collect(),
        })?;
        return Ok(Exit::SUCCESS);
    }
    for item in &listed {
        ctx.printer.line(listed_line(item));
    }
    for broken in broken.iter().map(BrokenView::new) {
        ctx.printer.warn(format_args!(
            "{} is no image: {}",
            broken.path.display(),
            broken.error
        ));
    }
    if listed.is_empty() {
        ctx.printer
            .note("no images; `crabbox setup firecracker` or `crabbox image build` makes one");
    }
    Ok(Exit::SUCCESS)
}

fn inspect(ctx: &Ctx<'_>, args: &ImageNameArgs) -> Result<Exit, CommandError> {
    let listed = images::get(&ctx.env.places()?, &configured(ctx)?, &args.image)?;
    let manifest = &listed.image.manifest;
    if args.json {
        let image = ImageView::listed(&listed);
        ctx.printer.json(&InspectView { image, manifest })?;
        return Ok(Exit::SUCCESS);
    }
    ctx.printer.line(listed_line(&listed));
    ctx.printer.line(format_args!("digest  {}", manifest.digest));
    ctx.printer
        .line(format_args!("path    {}", listed.image.dir.display()));
    ctx.printer.line(format_args!(
        "made    {}",
        timestamp::rfc3339(manifest.created_unix)
    ));
    let guest = &manifest.guest;
    ctx.printer.line(format_args!(
        "guest   user={} uid={} port={} work_root={}",
        guest.user, guest.uid, guest.ssh_port, guest.work_root
    ));
    for (name, facts) in &manifest.files {
        ctx.printer.line(format_args!(
            "file    {name} {} {}",
            mebibytes(facts.bytes),
            facts.sha256
        ));
    }
    for (name, value) in &manifest.provenance {
        ctx.printer.line(format_args!("from    {name}={value}"));
    }
    if !manifest.packages.is_empty() {
        ctx.printer.line(format_args!(
            "packages {} (--json lists them with their versions)",
            manifest.packages.len()
        ));
    }
    Ok(Exit::SUCCESS)
}

fn verify(ctx: &Ctx<'_>, args: &ImageNameArgs) -> Result<Exit, CommandError> {
    let image = images::verify(&ctx.env.places()?, &args.image)?;
    if args.json {
        ctx.printer.json(&VerifyView {
            ok: true,
            digest: &image.manifest.digest,
            bytes: image.bytes(),
        })?;
    } else {
        ctx.printer.line(format_args!(
            "{} is whole: {} read",
            short(&image),
            mebibytes(image.bytes())
        ));
    }
    Ok(Exit::SUCCESS)
}

fn remove(ctx: &Ctx<'_>, args: &ImageRemoveArgs) -> Result<Exit, CommandError> {
    let name = args.image.as_deref().ok_or(Usage::Remove)?;
    let image = images::remove(&ctx.env.places()?, name, args.force)?;
    if args.json {
        ctx.printer.json(&RemovedView {
            removed: &image.manifest.digest,
            bytes: image.bytes(),
        })?;
    } else {
        ctx.printer.line(format_args!(
            "removed {} {}",
            short(&image),
            mebibytes(image.bytes())
        ));
    }
    Ok(Exit::SUCCESS)
}

fn warm(ctx: &Ctx<'_>, args: &ImageWarmArgs) -> Result<Exit, CommandError> {
    let settings = ctx.settings(&args.keys.values)?.settings;
    KvmHost::none_for(&settings, "crabbox image warm")?;
    let plan = firecracker::plan(&settings)?;
    let engine = engine::adopting(ctx)?;
    let stages = Stages::new(ctx.printer, args.json);
    let made = warm::make(&engine, &plan, &engine::interrupts()?, &stages)
        .inspect_err(|error| console_tail(ctx.printer, error.console()))?;
    stages.done();
    template::tell_leftovers(ctx, &made);
    if args.json {
        ctx.printer.json(&WarmView::new(&made))?;
    } else {
        ctx.printer.line(template::line(&made));
    }
    Ok(Exit::SUCCESS)
}

fn gc(ctx: &Ctx<'_>, args: &ImageGcArgs) -> Result<Exit, CommandError> {
    let policy = Policy {
        older_than_seconds: args
            .older_than
            .map(|limit| i64::try_from(limit.to_std().as_secs()).unwrap_or(i64::MAX)),
        max_bytes: args.max_mib.map(|limit| limit.saturating_mul(1 << 20)),
    };
    let decided = images::gc(&ctx.env.places()?, &configured(ctx)?, policy, args.dry_run)?;
    // Count templates of the images just removed as unneeded, too.
    let going = decided.iter().filter(|one| one.reason.goes());
    let going: Vec<&str> = going.map(|one| one.image.manifest.digest.as_str()).collect();
    let swept = warm::sweep(&ctx.env.places()?, &going, args.dry_run)?;
    if swept.is_none() {
        ctx.printer.note("templates are left alone: one is being made");
    }
    let swept = swept.unwrap_or_default();
    let images = decided.iter().filter(|one| one.reason.goes());
    let freed =
        images.map(|one| one.image.bytes()).sum::<u64>() + swept.iter().map(|one| one.bytes).sum::<u64>();
    let verb = if args.dry_run { "would_remove" } else { "remove" };
    let decisions: Vec<_> = decided
        .iter()
        .map(|one| GcDecision {
            digest: one.image.manifest.digest.clone(),
            names: one.image.names.clone(),
            action: if one.reason.goes() { verb } else { "keep" },
            reason: reason(&one.reason),
        })
        .collect();
    if args.json {
        ctx.printer.json(&GcView {
            dry_run: args.dry_run,
            freed_bytes: freed,
            decisions,
            templates: swept.iter().map(|one| gone(one, verb)).collect(),
        })?;
        return Ok(Exit::SUCCESS);
    }
    for (one, decision) in decided.iter().zip(&decisions) {
        let verb = decision.action.replace('_', " ");
        let line = format!("{verb} image={} reason={}", short(&one.image), decision.reason);
        if one.reason.goes() {
            ctx.printer.line(line);
        } else {
            ctx.printer.note(line);
        }
    }
    for one in &swept {
        ctx.printer.line(format_args!(
            "{} template={} reason={}",
            verb.replace('_', " "),
            abbreviated(&one.key),
            one.why
        ));
    }
    ctx.printer.note(format_args!(
        "{} {}",
        if args.dry_run { "would free" } else { "freed" },
        mebibytes(freed)
    ));
    Ok(Exit::SUCCESS)
}

fn gone(swept: &Swept, action: &'static str) -> GcTemplate {
    GcTemplate {
        key: swept.key.clone(),
        action,
        reason: swept.why,
    }
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::InUse { leases } => format!("in use by {}", leases.join(", ")),
        Reason::Default => "new leases use it".to_owned(),
        Reason::Named => "named".to_owned(),
        Reason::Unnamed => "no name".to_owned(),
        Reason::TooOld => "older than asked".to_owned(),
        Reason::TooMuch => "over the size asked".to_owned(),
    }
}

fn short(image: &Image) -> &str {
    abbreviated(&image.manifest.digest)
}

fn line(image: &Image) -> String {
    let record = &image.manifest;
    let names = if image.names.is_empty() {
        "-".to_owned()
    } else {
        image.names.join(",")
    };
    let kind = match record.init {
        Init::Ours => record.suite.as_str(),
        Init::CloudInit => "cloud-init",
    };
    format!(
        "{} {names} {kind} kernel={} {}",
        short(image),
        record.kernel_release,
        mebibytes(image.bytes())
    )
}

fn listed_line(listed: &Listed) -> String {
    let mut text = line(&listed.image);
    if listed.default {
        text.push_str(" default");
    }
    if !listed.leases.is_empty() {
        text.push_str(" leases=");
        text.push_str(&listed.leases.join(","));
    }
    text
}
