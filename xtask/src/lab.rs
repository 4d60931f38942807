//! `lab`: the command line only. The commands themselves are in `crabbox-lab`.

use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::stage::stage;
use crabbox_lab::lab::{Lab, Options, SILENCE, down};

/// `cargo xtask lab`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which lab; several can run side by side
    #[arg(long, global = true, default_value = "main")]
    name: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Boot the lab; the first time builds its images (about two minutes)
    Up {
        /// A directory to mount read-only at /artefacts in the lab
        #[arg(long, value_name = "DIR")]
        artefacts: Option<PathBuf>,
        /// Memory of the lab in MiB
        #[arg(long, default_value_t = Options::default().memory_mib)]
        memory: u32,
        /// Processors of the lab
        #[arg(long, default_value_t = Options::default().cpus)]
        cpus: u32,
        /// Seconds that booting may take
        #[arg(long, default_value_t = Options::default().limit.as_secs())]
        timeout: u64,
    },
    /// Enter the lab, or have its shell run a command line
    Ssh {
        /// Joined with blanks and left to the lab's shell, as ssh does
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Run a command in the lab, its arguments kept verbatim; its exit code is ours
    Run {
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Copy files with rsync's rules; a path in the lab begins with `lab:`, and without one DST is in the lab
    Copy {
        /// From where
        source: String,
        /// To where
        target: String,
    },
    /// Say whether the lab runs (exit code 1: it does not)
    Status {
        /// One JSON document instead of a line
        #[arg(long)]
        json: bool,
    },
    /// Reset the lab as a power cut would; its disk stays
    Reset,
    /// End the lab and remove everything of it but the cached images
    Down,
}

/// Does what was asked.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    let name = &arguments.name;
    match &arguments.action {
        Action::Up {
            artefacts,
            memory,
            cpus,
            timeout,
        } => {
            let options = Options {
                artefacts: artefacts.clone(),
                memory_mib: *memory,
                cpus: *cpus,
                limit: Duration::from_secs(*timeout),
            };
            let lab = Lab::up(name, &options)?;
            let record = lab.record();
            eprintln!(
                "lab: `{name}` has /dev/kvm and answers on port {} (pid {})",
                record.port, record.pid
            );
            Ok(ExitCode::SUCCESS)
        }
        Action::Ssh { command } => Ok(exit_code(Lab::find(name)?.attach(command, false)?)),
        Action::Run { command } => Ok(exit_code(Lab::find(name)?.attach(command, true)?)),
        Action::Copy { source, target } => {
            let remote = |path: &String| path.starts_with("lab:");
            let target = if remote(source) || remote(target) {
                target.clone()
            } else {
                format!("lab:{target}")
            };
            Lab::find(name)?.copy(source, &target)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Status { json } => status(name, *json),
        Action::Reset => {
            stage(&format!("reset `{name}`"), || {
                Lab::find(name)?.reset(Options::default().limit)
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Down => {
            let there = down(name)?;
            eprintln!(
                "lab: `{name}` {}",
                if there { "is down" } else { "was not there" }
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn status(name: &str, json: bool) -> Result<ExitCode> {
    let Ok(lab) = Lab::find(name) else {
        if json {
            println!("{}", serde_json::json!({ "name": name, "state": "down" }));
        } else {
            println!("{name}: down");
        }
        return Ok(ExitCode::FAILURE);
    };
    let answers = lab.answers(SILENCE);
    let record = lab.record();
    if json {
        let mut document = serde_json::to_value(record)?;
        document["answers"] = answers.into();
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        let answers = if answers { "answers" } else { "does not answer" };
        let (pid, port, kernel) = (record.pid, record.port, &record.kernel_version);
        println!("{name}: running and {answers}, pid {pid}, port {port}, kernel {kernel}");
    }
    if !answers {
        eprintln!("{}", lab.last_words());
    }
    Ok(if answers {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The code a shell would give: 128 and the signal for a killed child.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
