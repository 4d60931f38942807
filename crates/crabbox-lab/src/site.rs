//! The KVM host on which leases are made: this machine if a boot proved that its KVM works, else the lab.
//!
//! In the lab our program, Firecracker, the image and a CNI network are installed as a user would do it. On
//! this machine nothing is installed and the user's files are not touched: home, state and caches are below
//! `target/lab/local`. Either way a record `lab.json` says how to run a command there, which is all that the
//! end-to-end tests know.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crabbox_core::shell::single_quoted;
use crabbox_host::command::{Captured, Cmd};
use crabbox_host::lock::FileLock;
use serde::{Deserialize, Serialize};

use crate::lab::{self, Alone, Lab, Options, packages};
use crate::payload::{self, Build, Images, Payload};
use crate::stage::stage;
use crate::workspace;

/// Prepares the lab for leases; run as root in it, possibly more than once.
const INSTALL: &str = include_str!("site/install.sh");
/// Prints a line for each object that a lease could leave behind.
pub const RESIDUE: &str = include_str!("site/residue.sh");
/// The file below the labs' directory with the names of the hosts that the tests use, one per line.
const CURRENT: &str = "current";
/// The name of this machine as a host of tests.
pub const LOCAL: &str = "local";
/// How long a guest on this machine's own KVM may be silent. On hardware the boot takes a quarter of a
/// second; with more than this limit the tests would be no faster than in a lab, so a lab is the right choice
/// even if the guest would come up eventually.
const BOOT_LIMIT: Duration = Duration::from_secs(5);
/// How long one command may take.
const LIMIT: Duration = Duration::from_mins(15);
/// How long it may take to end after being told to, since it may be giving a lease back.
const GRACE: Duration = Duration::from_mins(2);

/// A host prepared for the end-to-end tests.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The name of the lab, or [`LOCAL`].
    pub name: String,
    /// The directory with its record.
    pub dir: PathBuf,
    /// The words to put before a shell command line to run it there.
    pub argv: Vec<String>,
    /// `None` for this machine.
    lab: Option<Lab>,
    /// The lock on its use.
    _used: Option<Arc<FileLock>>,
}

impl Prepared {
    /// The existing hosts, as the last [`choose`] or [`labs`] left them.
    pub fn all() -> Vec<Self> {
        let names = fs::read_to_string(workspace::lab_dir().join(CURRENT)).unwrap_or_default();
        names.lines().filter_map(Self::find).collect()
    }

    fn find(name: &str) -> Option<Self> {
        let dir = workspace::lab_dir().join(name);
        if name == LOCAL {
            let known: Local = serde_json::from_slice(&fs::read(dir.join("lab.json")).ok()?).ok()?;
            let (name, argv) = (name.to_owned(), known.ssh_argv);
            return Some(Self {
                name,
                dir,
                argv,
                lab: None,
                _used: None,
            });
        }
        let lab = Lab::find(name).ok()?;
        Some(Self {
            name: name.to_owned(),
            dir,
            argv: lab.record().ssh_argv.clone(),
            lab: Some(lab),
            _used: None,
        })
    }

    /// The existing hosts, each locked against removal while it is held; without those that another task has
    /// exclusively.
    pub fn all_used() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for name in Self::all().into_iter().map(|host| host.name) {
            if let Some(used) = lab::share(&name)? {
                // Look it up again: its previous user may have rebuilt it.
                all.extend(Self::find(&name).map(|host| Self {
                    _used: Some(Arc::new(used)),
                    ..host
                }));
            }
        }
        Ok(all)
    }

    /// Whether it responds over a new connection within `patience`.
    pub fn answers(&self, patience: Duration) -> bool {
        self.lab.as_ref().is_none_or(|lab| lab.answers(patience))
    }

    /// Resets it like a power cut, and waits until it responds again.
    pub fn reset(&self) -> Result<()> {
        let lab = self
            .lab
            .as_ref()
            .context("this machine is not reset for a test")?;
        lab.reset(Options::default().limit)
    }

    /// The processor time used by the lab's emulator, in milliseconds.
    pub fn processor_ms(&self) -> Option<f64> {
        emulated_ms(self.lab.as_ref()?.record().pid)
    }
}

/// The record of this machine as a host of tests.
#[derive(Debug, Serialize, Deserialize)]
struct Local {
    ssh_argv: Vec<String>,
}

/// The processor time used by all threads of the emulator `pid`, in milliseconds.
fn emulated_ms(pid: u32) -> Option<f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    // `schedstat` (Documentation/scheduler/sched-stats.rst): the first number is nanoseconds on a processor.
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(tasks.filter_map(Result::ok).filter_map(of).sum::<f64>() / 1e6)
}

/// A KVM host with our program on it.
#[derive(Debug)]
pub struct Site {
    /// `lab`, or `this host`.
    pub name: &'static str,
    argv: Vec<String>,
    /// The process of the lab's emulator.
    emulator: Option<u32>,
    /// While this is held, no other task can remove the lab.
    _alone: Option<Alone>,
}

/// Builds missing parts, then chooses and prepares the site: this machine if a boot proved that its KVM
/// works, else the lab `name`.
pub fn choose(images: Images, build: Build, name: &str) -> Result<(Payload, Site)> {
    let (payload, kvm_works) = prepare(images, build)?;
    let site = if kvm_works {
        Site::here(&payload)?
    } else {
        Site::lab(name, &payload)?
    };
    Ok((payload, site))
}

/// The same for the end-to-end tests, which can use several labs in parallel.
pub fn choose_for_tests(names: &[&str]) -> Result<()> {
    let (payload, kvm_works) = prepare(Images::All, Build::Tested)?;
    if kvm_works {
        Site::here(&payload)?;
        return are_current(&[LOCAL]);
    }
    for name in names {
        Site::lab(name, &payload)?;
    }
    are_current(names)
}

/// Builds missing parts, and finds out whether this machine's KVM works. Installing packages, making an image
/// and waiting for a guest use at most one processor, so the program is compiled in parallel. If this is a
/// virtual machine, whose KVM seldom works, the lab's system is also made in parallel with the image: waiting
/// for the verdict first would take as long as making it. The verdict comes from the program.
fn prepare(images: Images, build: Build) -> Result<(Payload, bool)> {
    // Only root can install missing packages; report it to others before minutes of compiling.
    if !rustix::process::geteuid().is_root() {
        packages::ensure_tools()?;
    }
    std::thread::scope(|scope| {
        let tools = scope.spawn(packages::ensure_tools);
        let carried = payload::carried()?;
        let guest = carried.guest.clone();
        let made = scope.spawn(move || {
            joined(tools)?;
            let ahead = payload::is_missing(&carried, images)? && is_virtual();
            let lab = ahead.then(|| scope.spawn(lab::prepare));
            let artefacts = payload::artefacts(&carried, images)?;
            lab.map_or(Ok(()), joined)?;
            anyhow::Ok((artefacts, ahead))
        });
        let crabbox = payload::program(build)?;
        let (artefacts, prepared) = joined(made)?;
        let payload = Payload {
            crabbox,
            guest,
            artefacts,
        };
        let works = kvm_works(&payload)?;
        if !works && !prepared {
            lab::prepare()?;
        }
        Ok((payload, works))
    })
}

/// A thread's result.
fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that prepares leases panicked")))
}

/// Whether this is a virtual machine, according to its processor flags.
fn is_virtual() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = processors.lines().filter(|line| line.starts_with("flags"));
    flags.any(|line| line.split_ascii_whitespace().any(|flag| flag == "hypervisor"))
}

/// The result of the program's probe (`crabbox __probe`).
#[derive(Debug, Deserialize)]
struct Judged {
    works: bool,
    words: String,
    remembered: bool,
}

/// Finds out by booting a tiny guest on this machine, and reports the reason for the choice.
fn kvm_works(payload: &Payload) -> Result<bool> {
    let image = payload.image()?;
    let judged: Judged = stage("asking this host's KVM to boot a guest", || {
        let out = Cmd::inheriting(&payload.crabbox)
            .args(["__probe", "--cache"])
            .arg(workspace::target_dir().join("probe"))
            .arg("--firecracker")
            .arg(payload.program("firecracker"))
            .arg("--kernel")
            .arg(image.kernel())
            .arg("--guest")
            .arg(&payload.guest)
            .args(["--limit-millis", &BOOT_LIMIT.as_millis().to_string()])
            .limit(LIMIT)
            .run()?;
        serde_json::from_slice(&out.stdout).context("cannot read what the probe found")
    })?;
    let remembered = if judged.remembered {
        " (as found earlier since this boot)"
    } else {
        ""
    };
    eprintln!("xtask: {}{remembered}", judged.words);
    if judged.works && rustix::process::geteuid().is_root() {
        packages::ensure_host_tools()?;
        return Ok(true);
    }
    if judged.works {
        eprintln!("xtask: leases on this host itself need root");
    }
    eprintln!("xtask: leases are made in the lab, a KVM host emulated by QEMU");
    Ok(false)
}

impl Site {
    /// The processor time used by all threads of the lab's emulator, in milliseconds; unaffected by other
    /// load on this machine.
    pub fn processor_ms(&self) -> Option<f64> {
        emulated_ms(self.emulator?)
    }

    /// Starts the lab `name` from scratch and installs `payload` in it: no test may see leftovers of an
    /// earlier one.
    pub fn lab(name: &str, payload: &Payload) -> Result<Self> {
        let alone = Alone::wait(name)?;
        alone.remove()?;
        let options = Options {
            artefacts: Some(payload.artefacts.clone()),
            ..Options::default()
        };
        let lab = Lab::up(name, &options)?;
        let site = Self {
            name: "the lab",
            argv: lab.record().ssh_argv.clone(),
            emulator: Some(lab.record().pid),
            _alone: Some(alone),
        };
        stage("installing crabbox in the lab", || {
            lab.copy(
                &payload.crabbox.to_string_lossy(),
                "lab:/usr/local/bin/.crabbox.new",
            )?;
            site.script("mv -f /usr/local/bin/.crabbox.new /usr/local/bin/crabbox")?;
            site.script(INSTALL)
        })?;
        Ok(site)
    }

    /// This machine, with a home directory for the tests.
    fn here(payload: &Payload) -> Result<Self> {
        let dir = workspace::lab_dir().join(LOCAL);
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
            // Use a new inode each time, because the old program may be running.
            let (new, place) = (bin.join(format!(".{name}")), bin.join(name));
            fs::remove_file(&new).ok();
            Cmd::inheriting("cp").arg(&from).arg(&new).run()?;
            fs::rename(new, place)?;
        }
        let images = payload.artefacts.join("images");
        Cmd::inheriting("cp")
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
            _alone: None,
        };
        let known = Local {
            ssh_argv: site.argv.clone(),
        };
        fs::write(dir.join("lab.json"), serde_json::to_vec_pretty(&known)?)?;
        site.script("cd && git config --global user.name lab && git config --global user.email lab@example.invalid && git config --global init.defaultBranch main")?;
        Ok(site)
    }

    /// Whether it is an emulated host.
    pub fn is_lab(&self) -> bool {
        self.emulator.is_some()
    }

    /// A local command that runs a shell script there.
    fn cmd(&self, script: &str) -> Cmd {
        let quoted = format!("sh -c {}", single_quoted(script));
        let (program, args) = self
            .argv
            .split_first()
            .map_or(("false", &[][..]), |(program, args)| (program.as_str(), args));
        Cmd::inheriting(program).args(args).arg(quoted).limit(LIMIT)
    }

    /// Runs a shell script there in the home directory, even if it fails.
    pub fn run(&self, script: &str) -> Result<Captured> {
        Ok(self.cmd(&format!("cd && {script}")).capture()?)
    }

    /// Runs a shell script there in the home directory, and passes every line to `heard` as it comes, with
    /// standard output and standard error interleaved as in a terminal. Everything that the script started is
    /// told to end when this process ends, so that an interrupt leaves no command behind.
    pub fn listen(&self, script: &str, heard: impl FnMut(&str)) -> Result<ExitStatus> {
        self.listen_for(LIMIT, script, heard)
    }

    /// The same within `limit`. `timeout` has its own process group, so that it can end all of it; an
    /// interrupt at a terminal goes to the other group, ours. So the kernel signals `timeout` when its parent
    /// ends, and `timeout` signals its child and then its group. Its child is always the shell: a command
    /// that was signalled twice would end at once and not give its lease back. The shell waits until
    /// `timeout` sleeps: before that it may not know the child that it has just made, and a signal ends it
    /// alone (coreutils 9.1, `cleanup` in timeout.c).
    fn listen_for(&self, limit: Duration, script: &str, mut heard: impl FnMut(&str)) -> Result<ExitStatus> {
        let within = format!(
            "exec setpriv --pdeathsig TERM timeout --kill-after {} {} sh -c {}",
            GRACE.as_secs(),
            limit.as_secs(),
            single_quoted(&format!(
                "while grep -qs '^State:.R' /proc/$PPID/status; do :; done\n{script}\nexit $?"
            ))
        );
        let cmd = self.cmd(&format!("cd && {{ {within}; }} 2>&1")).dies_with_us();
        let mut command = cmd.to_std();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = cmd.spawn(&mut command)?;
        let output = child.stdout.take().context("a child without an output")?;
        for line in BufReader::new(output).split(b'\n') {
            heard(String::from_utf8_lossy(&line?).trim_end());
        }
        Ok(child.wait()?)
    }

    /// Runs a shell script there; it must succeed.
    pub fn script(&self, script: &str) -> Result<Captured> {
        let done = self.run(script)?;
        ensure!(
            done.status.success(),
            "a script failed there: {}",
            done.stderr_text()
        );
        Ok(done)
    }

    /// Puts a program of this machine into the home directory there, under this name.
    pub fn put_program(&self, program: &Path, name: &str) -> Result<()> {
        let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        let put = self.cmd(&format!("cd && cat >{name} && chmod 755 {name}"));
        put.stdin(bytes).run()?;
        Ok(())
    }

    /// The objects present that a lease could leave behind: one line per object, sorted.
    pub fn residue(&self) -> Result<Vec<String>> {
        let found = self.script(RESIDUE).context("cannot look for residue")?;
        let mut lines: Vec<String> = found.stdout_text().lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    }
}

/// Records these as the hosts of the end-to-end tests.
fn are_current(names: &[&str]) -> Result<()> {
    fs::write(workspace::lab_dir().join(CURRENT), names.join("\n"))
        .context("cannot note which hosts the tests use")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::clock;

    fn here() -> Site {
        Site {
            name: "this host",
            argv: vec!["sh".to_owned(), "-c".to_owned()],
            emulator: None,
            _alone: None,
        }
    }

    /// Whether a command that is listened to at `site` is told when this thread ends.
    fn is_told(site: Site) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("told");
        // A shell in the script, standing in for a command that the script started; it redirects its output
        // because the reader goes away.
        let command = format!(
            "trap \"touch {}; exit 1\" TERM; echo ready; exec >/dev/null 2>&1; for i in $(seq 300); do sleep 0.1; done",
            told.display()
        );
        let script = format!("sh -c {}; echo ended", single_quoted(&command));
        let listener = move || site.listen(&script, |_| std::panic::resume_unwind(Box::new("interrupted")));
        assert!(std::thread::spawn(listener).join().is_err());
        clock::poll_until(Duration::from_secs(20), || told.exists().then_some(())).is_some()
    }

    /// This machine with another program in place of one on its search path.
    fn with(program: &str, put: impl FnOnce(&Path)) -> (Site, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join(program));
        let mut site = here();
        let path = format!("PATH={}:/usr/bin:/bin", dir.path().display());
        site.argv.splice(0..0, ["env".to_owned(), path]);
        (site, dir)
    }

    #[test]
    fn a_command_that_is_listened_to_is_told_when_we_end() {
        assert!(is_told(here()));
    }

    #[test]
    fn a_command_begins_when_what_tells_it_to_end_knows_it() {
        // As coreutils' between its fork and noting the child, but for seconds: a signal ends it alone.
        let slow = "#!/bin/bash\nset -m; shift 3\n\"$@\" &\nuntil=$((SECONDS + 2)); while [ $SECONDS -lt $until ]; do :; done\n\
                    trap 'kill -- -$!' TERM; wait $!; wait $!\n";
        let (site, _dir) = with("timeout", |place| {
            fs::write(place, slow).unwrap();
            fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        });
        assert!(is_told(site));
    }

    #[test]
    fn a_shell_is_between_a_command_that_is_listened_to_and_what_tells_it_to_end() {
        // bash executes its last command without forking, where dash forks.
        let (site, _dir) = with("sh", |place| {
            std::os::unix::fs::symlink("/bin/bash", place).unwrap();
        });
        let mut heard = Vec::new();
        let ended = site
            .listen("sh -c 'cat /proc/$PPID/comm; exit 7'", |line| {
                heard.push(line.to_owned());
            })
            .unwrap();
        assert_eq!((heard, ended.code()), (vec!["sh".to_owned()], Some(7)));
    }

    #[test]
    fn all_of_a_script_ends_at_its_limit() {
        let mut heard = Vec::new();
        let script = "echo began; sh -c 'sleep 30; echo late'; echo later";
        let ended = here()
            .listen_for(Duration::from_secs(1), script, |line| heard.push(line.to_owned()))
            .unwrap();
        assert_eq!(ended.code(), Some(124));
        assert!(!heard.iter().any(|line| line.starts_with("late")), "{heard:?}");
    }
}
