//! `init`: the files that make a repository ready for crabbox.
//!
//! It checks before it writes: if any of the files exists already, none is written.

use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_host::beneath::Existing;
use crabbox_host::place::{Access, Place, PlaceError};

use crate::args::InitArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
enum InitError {
    /// A file exists already.
    #[error("{} already exists; use --force to overwrite", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] PlaceError),
}

impl Fault for InitError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// Files that identify a kind of project, with its test command; the first that exists wins.
const KINDS: &[(&str, &str)] = &[
    ("Cargo.toml", "cargo test"),
    ("go.mod", "go test ./..."),
    ("pnpm-lock.yaml", "pnpm install --frozen-lockfile && pnpm test"),
    ("yarn.lock", "yarn install --frozen-lockfile && yarn test"),
    ("package-lock.json", "npm ci && npm test"),
    ("package.json", "npm install && npm test"),
    ("pyproject.toml", "python3 -m pytest"),
    ("setup.py", "python3 -m pytest"),
    ("Makefile", "make test"),
];

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &InitArgs) -> Result<Exit, CommandError> {
    let root = ctx.root()?;
    let command = args.detect.then(|| detect(&root)).flatten();
    if args.detect && command.is_none() {
        ctx.printer
            .warn("nothing was found that says how this repository is tested; no job was made");
    }
    let mut wanted = vec![
        (args.config.as_path(), configuration(command)),
        (args.workflow.as_path(), workflow(command)),
    ];
    wanted.extend(args.skill.iter().map(|path| (path.as_path(), skill(command))));
    for (path, _) in &wanted {
        // A dangling symlink counts as existing, too.
        if !args.force && root.join(path).symlink_metadata().is_ok() {
            let path = path.to_path_buf();
            return Err(InitError::Exists { path }.into());
        }
    }
    for (path, text) in wanted {
        // Written atomically, without following the repository's symlinks.
        let place = Place::new(&root, &root.join(path), Access::Shared).map_err(InitError::from)?;
        place
            .write(text.as_bytes(), Existing::Replace)
            .map_err(InitError::from)?;
        ctx.printer.line(format_args!("wrote {}", path.display()));
    }
    Ok(Exit::SUCCESS)
}

fn detect(root: &Path) -> Option<&'static str> {
    let found = KINDS.iter().find(|(file, _)| root.join(file).is_file());
    found.map(|(_, command)| *command)
}

fn configuration(command: Option<&str>) -> String {
    let mut text = String::from(
        "# crabbox: where commands of this repository run. All keys: `crabbox config show`.\n\
         # What selects programs and files of the host is read from your own configuration only.\n\
         provider: firecracker\n\
         sync:\n  exclude: []\n\
         env:\n  allow: [CI]\n",
    );
    if let Some(command) = command {
        text.push_str(
            &format_args!("jobs:\n  detected:\n    shell: true\n    command: '{command}'\n").to_string(),
        );
    }
    text
}

fn workflow(command: Option<&str>) -> String {
    let run = if command.is_some() {
        "crabbox job run detected"
    } else {
        "crabbox run -- uname -a"
    };
    format!(
        "# Runs the tests in a throw-away microVM. The runner needs /dev/kvm and crabbox on its PATH.\n\
         name: crabbox\n\
         on: [workflow_dispatch]\n\
         permissions:\n  contents: read\n\
         jobs:\n  crabbox:\n    runs-on: [self-hosted, linux, kvm]\n    steps:\n      - uses: actions/checkout@v4\n      - run: {run}\n"
    )
}

fn skill(command: Option<&str>) -> String {
    let example = if command.is_some() {
        "crabbox job run detected"
    } else {
        "crabbox run -- <command>"
    };
    format!(
        "---\nname: crabbox\ndescription: Run commands of this repository in a throw-away Linux machine instead of on this one.\n---\n\n\
         # crabbox\n\n\
         `{example}` leases a machine, brings the working tree over as it stands, runs the command there and gives the machine back.\n\n\
         - Several commands on one machine: `crabbox warmup`, then `crabbox run --id <slug> -- <command>`, then `crabbox stop <slug>`.\n\
         - Files that a command made or changed: `crabbox pull --id <slug>`; it never writes over local work.\n\
         - The exit code is the command's own. 5: no machine; 6: the tree could not be brought over; 7: something else in the lease.\n\
         - A run that failed says why under `failure digest`, and what to do next.\n"
    )
}
