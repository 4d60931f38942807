//! `bench`: measured and recorded runs, and reports of the records.
//!
//! A record is a line of JSON in the Go program's format, in a file that both programs append to. Nothing
//! here may change or remove a record, and every number in a report must come from records.

mod record;
mod report;
mod store;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crabbox_core::comma_list;
use crabbox_core::config::Provider as Which;
use crabbox_core::fault::{Fault, Kind};
use crabbox_host::clock;
use crabbox_host::place::{Access, Place};

pub(in crate::commands) use record::{Record, Repository};
pub(in crate::commands) use report::Report;

use crate::args::{
    BenchCommand, BenchRecordArgs, BenchReportArgs, BenchRunArgs, ColdArgs, Command, parse_with_flags,
};
use crate::commands::engine;
use crate::commands::work::run::{self, Bench, Invocation};
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// The largest line of timings that is read, in bytes.
const TIMING_LIMIT: u64 = 10 << 20;

/// What is wrong with a measurement.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    /// Nothing to run.
    #[error("usage: crabbox bench run --providers a,b [--repeats n] -- <command...>")]
    Usage,
    /// Fewer than one repeat.
    #[error("--repeats must be >= 1")]
    Repeats,
    /// It cannot be both.
    #[error("--cold and --warm are mutually exclusive")]
    ColdAndWarm,
    /// `bench` needs a store.
    #[error("--store cannot be off for bench {0}")]
    Off(&'static str),
    /// A negative repeat index.
    #[error("--repeat-index must be >= 0")]
    RepeatIndex,
    /// The command was given twice.
    #[error("use either --command or command args after --, not both")]
    TwoCommands,
    /// Fewer than one sample.
    #[error("--min-samples must be >= 1")]
    MinSamples,
    /// Timings that cannot be read.
    #[error("read timing JSON {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// Invalid timings.
    #[error("decode timing JSON: {0}")]
    Decode(String),
    /// The timings do not name their provider.
    #[error("timing JSON is missing provider")]
    NoProvider,
    /// A word that is not valid UTF-8.
    #[error("the command has a word that is not valid UTF-8: {0}")]
    NotText(String),
    /// Some runs failed; each has reported its error.
    #[error("benchmark run failed: {0}")]
    Failed(String),
}

impl Fault for BenchError {
    fn kind(&self) -> Kind {
        match self {
            Self::Failed(_) => Kind::General,
            _ => Kind::Usage,
        }
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, command: &BenchCommand) -> Result<Exit, CommandError> {
    match command {
        BenchCommand::Run(args) => measure(ctx, args),
        BenchCommand::Record(args) => record(ctx, args),
        BenchCommand::Report(args) => show(ctx, args),
    }
}

/// Whether the run counts as cold, if the user said so.
fn cold(args: ColdArgs) -> Result<Option<bool>, BenchError> {
    match (args.cold, args.warm) {
        (true, true) => Err(BenchError::ColdAndWarm),
        (false, false) => Ok(None),
        (cold, _) => Ok(Some(cold)),
    }
}

/// The file of records that `store` names; a path is used as given.
fn store(ctx: &Ctx<'_>, store: &str, command: &'static str) -> Result<PathBuf, CommandError> {
    match store.trim().to_ascii_lowercase().as_str() {
        "" | "off" => Err(BenchError::Off(command).into()),
        "default" => Ok(ctx.env.places()?.state.join("timings.jsonl")),
        _ => Ok(PathBuf::from(store)),
    }
}

/// The providers in these lists, deduplicated and sorted.
fn providers(lists: &[&[String]]) -> Result<Vec<&'static str>, CommandError> {
    let names = lists.iter().copied().flatten();
    let mut found = Vec::new();
    for name in names.flat_map(|list| comma_list::items(list)) {
        found.push(Which::by_name(name)?.name());
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn measure(ctx: &Ctx<'_>, args: &BenchRunArgs) -> Result<Exit, CommandError> {
    if args.words.is_empty() {
        return Err(BenchError::Usage.into());
    }
    if args.repeats < 1 {
        return Err(BenchError::Repeats.into());
    }
    let cold = cold(args.cold)?;
    let store = store(ctx, &args.store, "run")?;
    let mut names = providers(&[&args.providers, &args.provider])?;
    if names.is_empty() {
        names.push(ctx.settings(&[])?.settings.provider()?.name());
    }
    let interrupts = engine::interrupts()?;
    let (mut observations, mut failures) = (0, Vec::new());
    'all: for name in names {
        for repeat in 1..=args.repeats {
            let which = format!("provider={name} repeat={repeat}/{}", args.repeats);
            ctx.printer
                .note(format_args!("benchmark run {which} store={}", store.display()));
            let invocation = invocation(name, &store, args, Bench { repeat, cold });
            let observed = run::observed(ctx, &invocation, &interrupts);
            observations += u64::from(observed.recorded);
            if let Err(error) = observed.ended {
                let reason = error.text();
                ctx.printer
                    .notes(format_args!("benchmark run failed {which} error={reason}"));
                failures.push(format!("{name} repeat={repeat}: {reason}"));
            }
            // Without a reader, every further run would be stopped at its first output.
            if interrupts.caught().is_some() || ctx.printer.has_lost_reader() {
                break 'all;
            }
        }
    }
    ctx.printer.note(format_args!(
        "benchmark run completed path={} observations={observations} failures={}",
        store.display(),
        failures.len()
    ));
    if failures.is_empty() {
        Ok(Exit::SUCCESS)
    } else {
        Err(BenchError::Failed(failures.join("; ")).into())
    }
}

/// The run of one repeat, parsed from its command line, so that it differs from a normal run only by its
/// record.
fn invocation(provider: &str, store: &Path, args: &BenchRunArgs, bench: Bench) -> Invocation {
    let mut argv: Vec<std::ffi::OsString> = ["crabbox", "run", "--provider", provider, "--timing-record"]
        .map(Into::into)
        .into();
    argv.extend([store.into(), "--".into()]);
    argv.extend(args.words.iter().cloned());
    let parsed = parse_with_flags(&argv).map(|parsed| parsed.command);
    let Ok(Command::Run(args)) = parsed else {
        unreachable!("its flags are those of `run`, and everything behind `--` is the command");
    };
    let mut invocation = Invocation::from(*args);
    invocation.manner.bench = Some(bench);
    invocation
}

fn record(ctx: &Ctx<'_>, args: &BenchRecordArgs) -> Result<Exit, CommandError> {
    let display = args.command.trim();
    if !display.is_empty() && !args.words.is_empty() {
        return Err(BenchError::TwoCommands.into());
    }
    let cold = cold(args.cold)?;
    let repeat = u32::try_from(args.repeat_index).map_err(|_| BenchError::RepeatIndex)?;
    let store = store(ctx, &args.store, "record")?;
    let timing = timing(ctx, &args.timing_json)?;
    let mut command = Vec::new();
    for word in &args.words {
        let text = word.to_str();
        command.push(
            text.ok_or_else(|| BenchError::NotText(word.to_string_lossy().into_owned()))?
                .to_owned(),
        );
    }
    if !display.is_empty() {
        command.push(display.to_owned());
    }
    let mut record = Record::new(
        clock::unix_now(),
        args.source.trim(),
        timing,
        &command,
        &Repository::default(),
    );
    record.benchmark.cold_run = cold;
    record.benchmark.repeat_index = repeat;
    if !display.is_empty() {
        display.clone_into(&mut record.benchmark.command_display);
    }
    let place = Place::new(&ctx.root()?, &ctx.env.cwd()?.join(&store), Access::Private);
    let place = place.map_err(store::StoreError::from)?;
    store::append(&place, &record)?;
    ctx.printer.note(format_args!(
        "benchmark timing record appended path={} observations=1",
        store.display()
    ));
    Ok(Exit::SUCCESS)
}

/// The timings in the file `path`, or on standard input.
fn timing(ctx: &Ctx<'_>, path: &Path) -> Result<serde_json::Value, CommandError> {
    let failed = |source| BenchError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    if path.as_os_str().is_empty() || path == Path::new("-") {
        let mut input = std::io::stdin().lock().take(TIMING_LIMIT);
        input.read_to_string(&mut text).map_err(failed)?;
    } else {
        let file = std::fs::File::open(ctx.env.cwd()?.join(path)).map_err(failed)?;
        file.take(TIMING_LIMIT)
            .read_to_string(&mut text)
            .map_err(failed)?;
    }
    // Anything after the first document is ignored, as in the Go program.
    let mut documents = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    let first = documents
        .next()
        .ok_or_else(|| BenchError::Decode("EOF".to_owned()))?;
    let value = first.map_err(|error| BenchError::Decode(error.to_string()))?;
    let read: record::Timing =
        serde_json::from_value(value.clone()).map_err(|error| BenchError::Decode(error.to_string()))?;
    if read.provider.trim().is_empty() {
        return Err(BenchError::NoProvider.into());
    }
    Ok(value)
}

fn show(ctx: &Ctx<'_>, args: &BenchReportArgs) -> Result<Exit, CommandError> {
    let store = store(ctx, &args.store, "report")?;
    let min_samples = usize::try_from(args.min_samples)
        .ok()
        .filter(|number| *number > 0);
    let min_samples = min_samples.ok_or(BenchError::MinSamples)?;
    let (now, _) = clock::unix_now();
    let since = report::since(&args.since, now)?;
    let records = store::read(&store)?;
    let filters = report::Filters {
        since: args.since.trim().to_owned(),
        since_seconds: since,
        providers: providers(&[&args.providers, &args.provider])?,
        command_fingerprint: args.command_fingerprint.trim().to_owned(),
        min_samples,
    };
    let report = Report::new(&store.display().to_string(), &records, filters, now);
    if args.json {
        ctx.printer.json(&report)?;
        return Ok(Exit::SUCCESS);
    }
    for line in report.lines() {
        ctx.printer.line(crabbox_host::console::harmless(&line));
    }
    Ok(Exit::SUCCESS)
}
