//! The KVM host that leases are made on: this machine where a boot proved its KVM, else the lab.
//!
//! In the lab our program, Firecracker, the image and a CNI network are installed as a user would have them. On this
//! machine nothing is installed and nothing of the user's is touched: home, state and caches are below `target/lab/local`.
//! Either way a record `lab.json` says how to run a command there, which is all that the end-to-end tests know.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crabbox_engine::probe::{self, Probe};
use crabbox_host::command::{Captured, Cmd};
use serde_json::json;

use crate::lab::packages;
use crate::lab::{self, Lab, Options};
use crate::payload::Payload;
use crate::stage::stage;
use crate::workspace;

/// Prepares the lab for leases; run as root in it, more than once if need be.
const INSTALL: &str = include_str!("site/install.sh");
/// Prints one line for each object that a lease could leave behind.
const RESIDUE: &str = include_str!("../../e2e/src/residue.sh");
/// How long one command may take.
const LIMIT: Duration = Duration::from_mins(15);

/// A KVM host with our program on it.
#[derive(Debug)]
pub(crate) struct Site {
    /// `lab`, or `this host`.
    pub(crate) name: &'static str,
    argv: Vec<String>,
    /// The process of the lab's emulator.
    emulator: Option<u32>,
}

/// Chooses the site by booting a tiny guest on this machine, says why, and prepares it.
pub(crate) fn choose(payload: &Payload, lab: &str) -> Result<Site> {
    let image = payload.image()?;
    let initrd = workspace::target_dir().join("probe-initrd.img");
    fs::write(&initrd, probe::initrd(&fs::read(&payload.guest)?))?;
    let judged = stage("asking this host's KVM to boot a guest", || {
        Ok(probe::verdict(&Probe {
            cache: &workspace::target_dir().join("probe"),
            firecracker: &payload.program("firecracker"),
            kernel: &image.kernel(),
            initrd: &initrd,
            limit: probe::LIMIT,
        })?)
    })?;
    let remembered = if judged.remembered {
        " (as found earlier since this boot)"
    } else {
        ""
    };
    eprintln!("xtask: {}{remembered}", judged.verdict);
    if judged.verdict.works() && rustix::process::geteuid().is_root() {
        packages::ensure_host_tools()?;
        return Site::here(payload);
    }
    eprintln!("xtask: leases are made in the lab, a KVM host emulated by QEMU");
    Site::lab(lab, payload)
}

impl Site {
    /// Whether it is the lab, which is nobody's but ours.
    pub(crate) fn is_lab(&self) -> bool {
        self.name == "the lab"
    }

    /// What all threads of the lab's emulator have computed so far, in milliseconds; it does not grow when others keep this machine busy.
    pub(crate) fn processor_ms(&self) -> Option<f64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.emulator?)).ok()?;
        // `schedstat` (Documentation/scheduler/sched-stats.rst): the first number is nanoseconds on a processor.
        let of = |task: fs::DirEntry| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<f64>().ok()
        };
        Some(tasks.filter_map(Result::ok).filter_map(of).sum::<f64>() / 1e6)
    }

    /// Starts the lab `name` anew and installs `payload` in it: no test may see what an earlier one left.
    pub(crate) fn lab(name: &str, payload: &Payload) -> Result<Self> {
        lab::down(name)?;
        let options = Options {
            artefacts: Some(payload.artefacts.clone()),
            ..Options::default()
        };
        let lab = Lab::up(name, &options)?;
        let site = Self {
            name: "the lab",
            argv: lab.record().ssh_argv.clone(),
            emulator: Some(lab.record().pid),
        };
        stage("installing crabbox in the lab", || {
            lab.copy(
                &payload.crabbox.to_string_lossy(),
                "lab:/usr/local/bin/.crabbox.new",
            )?;
            site.script("mv -f /usr/local/bin/.crabbox.new /usr/local/bin/crabbox")?;
            site.script(INSTALL)
        })?;
        is_current(name)?;
        Ok(site)
    }

    /// This machine, with a home of its own.
    fn here(payload: &Payload) -> Result<Self> {
        let dir = workspace::lab_dir().join("local");
        let home = dir.join("home");
        let store = home.join(".cache/crabbox");
        fs::create_dir_all(&store)?;
        let bin = dir.join("bin");
        fs::create_dir_all(&bin)?;
        for (from, name) in [
            (payload.crabbox.clone(), "crabbox"),
            (payload.program("firecracker"), "firecracker"),
            (payload.program("jailer"), "jailer"),
        ] {
            // A new inode each time: an old one may be running.
            let (new, place) = (bin.join(format!(".{name}")), bin.join(name));
            fs::remove_file(&new).ok();
            Cmd::new("cp").arg(&from).arg(&new).run()?;
            fs::rename(new, place)?;
        }
        let images = payload.artefacts.join("images");
        Cmd::new("cp")
            .args(["-rlf", "--no-target-directory"])
            .args([&images, &store.join("images")])
            .run()?;
        let path = format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            bin.display()
        );
        let argv: Vec<String> = [
            "env",
            "-i",
            &format!("PATH={path}"),
            &format!("HOME={}", home.display()),
            "sh",
            "-c",
        ]
        .map(str::to_owned)
        .into();
        let site = Self {
            name: "this host",
            argv,
            emulator: None,
        };
        let identity = json!({ "state": "running", "pid": 1, "ssh_argv": site.argv });
        fs::write(dir.join("lab.json"), serde_json::to_vec_pretty(&identity)?)?;
        site.script("cd && git config --global user.name lab && git config --global user.email lab@example.invalid && git config --global init.defaultBranch main")?;
        is_current("local")?;
        Ok(site)
    }

    /// A shell script there as a command of ours.
    fn cmd(&self, script: &str) -> Cmd {
        let quoted = format!("sh -c '{}'", script.replace('\'', r"'\''"));
        let (program, args) = self
            .argv
            .split_first()
            .map_or(("false", &[][..]), |(program, args)| (program.as_str(), args));
        Cmd::new(program).args(args).arg(quoted).limit(LIMIT)
    }

    /// Runs a shell script there in the home directory, whatever its exit code is.
    pub(crate) fn run(&self, script: &str) -> Result<Captured> {
        Ok(self.cmd(&format!("cd && {script}")).capture()?)
    }

    /// Runs a shell script there; it must succeed.
    pub(crate) fn script(&self, script: &str) -> Result<Captured> {
        let done = self.run(script)?;
        ensure!(
            done.status.success(),
            "a script failed there: {}",
            done.stderr_text()
        );
        Ok(done)
    }

    /// What a lease could leave behind, as it stands now: one line an object, sorted.
    pub(crate) fn residue(&self) -> Result<Vec<String>> {
        let found = self.script(RESIDUE).context("cannot look for residue")?;
        let mut lines: Vec<String> = found.stdout_text().lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    }
}

/// Makes this the host of the end-to-end tests.
fn is_current(name: &str) -> Result<()> {
    fs::write(workspace::lab_dir().join("current"), name).context("cannot note which host the tests use")
}
