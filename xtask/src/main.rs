//! Developer tasks: demo, test, lab, bench, arch, docs. One file (or directory) per task; this one only lists
//! them and turns errors into an exit code.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer's tool: its output is its product"
)]

mod arch;
mod bench;
mod book;
mod cache;
mod compat;
mod cross;
mod demo;
mod dist;
mod docs;
mod fuzz;
mod lab;
mod licences;
mod provision;
mod svg;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use crabbox_lab::{payload, site, stage, workspace};

/// Developer tasks of the crabbox workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// A KVM host without KVM hardware: boot it, enter it, put it away
    Lab(lab::Arguments),
    /// Show the main job: a real microVM leased, a tree synced, a command run, nothing left
    Demo {
        /// Which lab, should this host have no working KVM
        #[arg(long, default_value = "main")]
        name: String,
        /// Write down what was seen, line by line with its time, and draw it: the figures go to the file of
        /// the same name that ends in .json
        #[arg(long, value_name = "FILE.svg")]
        record: Option<PathBuf>,
    },
    /// Run the tests, end to end on real microVMs included
    Test {
        /// Which tests
        #[arg(value_enum, default_value_t = test::Which::All)]
        which: test::Which,
        /// The first lab, should this host have no working KVM
        #[arg(long, default_value = "main")]
        name: String,
        /// How many labs side by side; each keeps one processor busy and has 6 GiB of memory [default: 2
        /// where there is room, else 1]
        #[arg(long)]
        labs: Option<usize>,
    },
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
    /// Build everything and make hosts ready for the end-to-end tests: labs, or this machine where its KVM
    /// works
    Provision {
        /// Which labs; with several, so many tests run at a time
        #[arg(long, default_value = "main")]
        name: Vec<String>,
    },
    /// Show what is cached for all clones of this user, or remove it
    Cache(cache::Arguments),
    /// Hold this program against what is recorded of the Go program, case by case
    Compat,
    /// Check the edges between our crates against the picture in ARCHITECTURE.md, and their clippy.toml
    Arch,
    /// Write the generated parts of the documents anew, from the code and the program itself
    Docs(docs::Arguments),
    /// Make the documents a book of HTML pages, and follow every link in it
    Book(book::Arguments),
    /// Fuzz what reads bytes that others wrote, guided by coverage
    Fuzz(fuzz::Arguments),
    /// Get a compiler for aarch64, and build the agent for such machines: what is built from then on carries
    /// it
    Cross(cross::Arguments),
    /// Build what users install: a tarball, a Debian package, a bill of materials, digests
    Dist(dist::Arguments),
    /// Check the licences of all dependencies against deny.toml
    Licences,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Where the time of a lease goes
    Lease {
        /// Which lab, should this host have no working KVM
        #[arg(long, default_value = "main")]
        name: String,
        /// How many leases
        #[arg(long, default_value_t = 5)]
        count: usize,
    },
    /// Where the time of a guest goes, from the kernel's first instruction to `ready`
    Boot {
        /// Which lab, should this host have no working KVM
        #[arg(long, default_value = "main")]
        name: String,
        /// How many boots
        #[arg(long, default_value_t = 7)]
        count: usize,
        /// What each argument of the guest's kernel gains
        #[arg(long)]
        kernel_args: bool,
        /// A further argument to try
        #[arg(long, requires = "kernel_args", value_name = "WORD")]
        with: Vec<String>,
    },
    /// Time to a private writable disk, for a small and a large image (root, loop devices)
    Disk {
        /// In the namespace of the mounts
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// What a KVM host between costs: a command, bytes, and the memory of what serves there (root, a
    /// pretended host, loopback)
    Remote {
        /// How often
        #[arg(long, default_value_t = 15)]
        runs: usize,
    },
    /// Draw what is committed in docs/performance: charts, and the tables of docs/performance.md
    Report,
    /// What a command costs in a microVM that is there already: time, and processes in the guest
    Run {
        /// Over a real sshd on loopback instead: times only
        #[arg(long)]
        loopback: bool,
        /// Which lab, should this host have no working KVM
        #[arg(long, default_value = "main")]
        name: String,
        /// How often
        #[arg(long, default_value_t = 7)]
        runs: usize,
        /// Another crabbox, to be measured turn about
        #[arg(long, value_name = "PATH")]
        against: Option<PathBuf>,
    },
    /// A lease restored from a template, and one out of a pool, beside one that boots
    Warm {
        /// Which lab, should this host have no working KVM
        #[arg(long, default_value = "main")]
        name: String,
        #[command(flatten)]
        order: bench::warm::Order,
    },
    /// What a sync costs over a real sshd on loopback or into a microVM, beside `git status` and `rsync -a`
    Sync {
        /// Into a microVM
        #[arg(long)]
        lease: bool,
        /// Which lab, should this host have no working KVM
        #[arg(long, default_value = "main")]
        name: String,
        /// How many files
        #[arg(long, default_value_t = 100_000, default_value_if("lease", "true", "3000"))]
        files: usize,
        /// How often what is short is done
        #[arg(long, default_value_t = 7)]
        runs: usize,
    },
}

/// The command line of `cargo xtask`, for checking mentions in documents.
fn command() -> clap::Command {
    Arguments::command()
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Lab(arguments) => lab::main(&arguments),
        Task::Demo { name, record } => demo::main(&name, record.as_deref()),
        Task::Test { which, name, labs } => test::main(which, &name, labs),
        Task::Bench(Bench::Lease { name, count }) => bench::lease(&name, count),
        Task::Bench(Bench::Boot {
            name,
            count,
            kernel_args: true,
            with,
        }) => bench::boot::args::main(&name, count, &with),
        Task::Bench(Bench::Boot { name, count, .. }) => bench::boot::main(&name, count),
        Task::Bench(Bench::Disk { inside }) => bench::disk::main(inside),
        Task::Bench(Bench::Remote { runs }) => bench::remote::main(runs),
        Task::Bench(Bench::Report) => bench::report::main(docs::figures),
        Task::Bench(Bench::Run {
            loopback: true,
            runs,
            against,
            ..
        }) => bench::run::loopback(runs, against.as_deref()),
        Task::Bench(Bench::Run {
            name, runs, against, ..
        }) => bench::run::main(&name, runs, against.as_deref()),
        Task::Bench(Bench::Warm { name, order }) => bench::warm::main(&name, order),
        Task::Bench(Bench::Sync {
            lease: true,
            name,
            files,
            runs,
        }) => bench::sync::lease::main(&name, files, runs),
        Task::Bench(Bench::Sync { files, runs, .. }) => bench::sync::main(files, runs),
        Task::Provision { name } => provision::main(&name),
        Task::Cache(arguments) => cache::main(&arguments),
        Task::Compat => compat::main(),
        Task::Arch => arch::main(),
        Task::Docs(arguments) => docs::main(&arguments),
        Task::Book(arguments) => book::main(&arguments),
        Task::Fuzz(arguments) => fuzz::main(&arguments),
        Task::Cross(arguments) => cross::main(arguments),
        Task::Dist(arguments) => dist::main(&arguments),
        Task::Licences => licences::main(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
