//! The lab: a real KVM host on a machine without virtualization, made of Debian packages and QEMU's software
//! emulation of AMD-V. The claims of tests and demo about microVMs are tested here; it must never become part
//! of the product.
//!
//! Files: immutable images are in the user's cache; `target/lab/<name>/` is one lab (disk overlay, logs and
//! the record `lab.json`), and is gone after `down`.

mod artefacts;
mod boot;
mod connection;
pub(crate) mod images;
mod initrd;
mod monitor;
pub mod packages;
mod recipe;
mod record;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use crabbox_host::clock;
use crabbox_host::command::Cmd;
use crabbox_host::lock::FileLock;
use crabbox_host::process::{self, ProcessId};

use crate::cache::Cache;
use crate::stage::stage;
use crate::workspace;
use boot::Machine;
use connection::Address;
use record::{Record, State};

/// How long a machine may be silent before it counts as hung: a new connection takes a second on an idle
/// host.
pub const SILENCE: Duration = Duration::from_secs(90);
/// The file in a lab's directory with the diagnostics taken before it was reset because it had hung.
pub const LAST_WORDS: &str = "last-words";

/// Options for starting a lab.
#[derive(Debug, Clone)]
pub struct Options {
    /// A directory to mount read-only at `/artefacts`.
    pub artefacts: Option<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// How long booting may take.
    pub limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            artefacts: None,
            memory_mib: 6144,
            // With more than one, QEMU 7.2 keeps executing code that the kernel has since patched: on static
            // keys (making or closing a VM switches one), all processors then trap forever. Seen within 500
            // rounds of making and closing a VM; never with one.
            cpus: 1,
            limit: Duration::from_mins(2),
        }
    }
}

/// One running lab.
#[derive(Debug, Clone)]
pub struct Lab {
    record: Record,
}

impl Lab {
    /// The running lab `name`.
    pub fn find(name: &str) -> Result<Self> {
        let dir = dir_of(name)?;
        let record = Record::load(&dir)
            .filter(|record| record.state == State::Running && process::is_alive(&record.process()));
        let record = record
            .with_context(|| format!("the lab `{name}` is not running; start it: cargo xtask lab up"))?;
        Ok(Self { record })
    }

    /// Starts the lab `name`, or finds it running (and reports that).
    pub fn up(name: &str, options: &Options) -> Result<Self> {
        let dir = dir_of(name)?;
        let _lock = lock(&dir)?;
        if let Ok(lab) = Self::find(name) {
            let wanted = options.artefacts.as_ref().map(fs::canonicalize).transpose()?;
            ensure!(
                wanted.is_none() || wanted == lab.record.artefacts,
                "the lab `{name}` is already running with other artefacts; take it down first"
            );
            eprintln!(
                "lab: `{name}` is already running (pid {}, port {})",
                lab.record.pid, lab.record.port
            );
            return Ok(lab);
        }
        clean(&dir)?;
        packages::ensure_tools()?;
        let cache = workspace::lab_dir().join("cache");
        let images = images::ensure(&Cache::of_user())?;
        let drive = options
            .artefacts
            .as_ref()
            .map(|source| artefacts::ensure(&cache, source))
            .transpose()?;
        fs::create_dir_all(&dir)?;
        let disk = dir.join("disk.qcow2");
        Cmd::inheriting("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&images.root_disk(), &disk])
            .run()?;
        let machine = Machine {
            program: "qemu-system-x86_64".into(),
            name: name.to_owned(),
            kernel: images.kernel(),
            initrd: images.initrd(),
            disk,
            artefacts: drive,
            console: dir.join("console.log"),
            log: dir.join("qemu.log"),
            monitor: connection::monitor_path(&connection::control_path(&dir)),
            memory_mib: options.memory_mib,
            cpus: options.cpus,
            port: 0,
        };
        let record = stage(&format!("boot `{name}`"), || {
            boot(&dir, machine, &images, options)
        });
        if let (Err(_), Some(failed)) = (&record, Record::load(&dir)) {
            // The logs stay until the next `up` or `down`.
            connection::close(&failed.ssh_argv, &failed.control_path);
        }
        let record = record?;
        Ok(Self { record })
    }

    /// Runs `words` in the lab with this process's standard streams: `exact` as an argument vector, otherwise
    /// interpreted by the remote shell.
    pub fn attach<S: AsRef<OsStr>>(&self, words: &[S], exact: bool) -> Result<ExitStatus> {
        connection::attach(&self.record.ssh_argv, words, exact)
    }

    /// Copies files with rsync's rules; the path in the lab begins with `lab:`.
    pub fn copy(&self, source: &str, target: &str) -> Result<()> {
        connection::copy(&self.record.ssh_argv, source, target)
    }

    /// Whether it runs a command over a new connection within `patience`.
    pub fn answers(&self, patience: Duration) -> bool {
        connection::answers(&self.record.ssh_argv, patience)
    }

    /// Resets the machine like a power cut (nothing is synced, the disk stays) and waits until it responds
    /// again. Also works on a hung machine.
    pub fn reset(&self, limit: Duration) -> Result<()> {
        let record = &self.record;
        if !self.answers(SILENCE) {
            let words = self.last_words();
            eprintln!("lab: `{}` does not answer{words}", record.name);
            if let Some(dir) = record.console.parent() {
                fs::write(dir.join(LAST_WORDS), words)?;
            }
        }
        let said = fs::metadata(&record.console).map_or(0, |meta| meta.len());
        // `cont` in case the machine was stopped over the monitor; a running one ignores it.
        for command in ["system_reset", "cont"] {
            monitor::ask(&connection::monitor_path(&record.control_path), command)?;
        }
        boot::wait_ready_again(&record.process(), &record.console, said, limit)?;
        connection::close_master(&record.ssh_argv, &record.control_path);
        enter(record, limit)
    }

    /// Diagnostics of a machine that does not respond: the end of its console, and the state of its
    /// processors.
    pub fn last_words(&self) -> String {
        let record = &self.record;
        let monitor = connection::monitor_path(&record.control_path);
        let mut told = boot::said("the console", &record.console);
        for command in ["info status", "info cpus", "info registers -a"] {
            let answer = monitor::ask(&monitor, command).unwrap_or_else(|error| format!("{error:#}"));
            let telling =
                |line: &&str| !line.contains("XMM") && !line.contains("YMM") && !line.starts_with("FPR");
            told.extend(["\n", command, ":\n"]);
            told.extend(
                answer
                    .lines()
                    .skip(1)
                    .filter(telling)
                    .map(|line| format!("  {}\n", line.trim_end())),
            );
        }
        told
    }

    /// Its record, the contents of `lab.json`.
    pub fn record(&self) -> &Record {
        &self.record
    }
}

/// Makes sure that the images exist, so that labs can be started without delay.
pub fn prepare() -> Result<()> {
    packages::ensure_tools()?;
    images::ensure(&Cache::of_user()).map(drop)
}

/// Stops the lab `name` and removes everything of it; `false` if there was nothing. Refused while another
/// task uses it.
pub fn down(name: &str) -> Result<bool> {
    let alone = Alone::try_take(name)?.with_context(|| {
        format!("another task uses the lab `{name}`; it ends with that, or end that first")
    })?;
    alone.remove()
}

/// Exclusive use of a lab, whether or not it exists yet: while this is held, no other task can remove it.
#[derive(Debug)]
pub struct Alone {
    dir: PathBuf,
    _used: FileLock,
}

impl Alone {
    /// Waits until no other task uses the lab `name`, and reports the wait.
    pub fn wait(name: &str) -> Result<Self> {
        if let Some(alone) = Self::try_take(name)? {
            return Ok(alone);
        }
        eprintln!("lab: waiting for another task, which uses `{name}`");
        Ok(Self {
            dir: dir_of(name)?,
            _used: FileLock::acquire(&used(name)?)?,
        })
    }

    /// `None` while another task uses it.
    pub fn try_take(name: &str) -> Result<Option<Self>> {
        let dir = dir_of(name)?;
        let used = FileLock::try_acquire(&used(name)?)?;
        Ok(used.map(|used| Self { dir, _used: used }))
    }

    /// Stops it and removes everything of it; `false` if there was nothing.
    pub fn remove(&self) -> Result<bool> {
        let there = self.dir.exists();
        let _lock = lock(&self.dir)?;
        clean(&self.dir)?;
        Ok(there)
    }
}

/// Shared use of the lab `name`, which keeps others from removing it; `None` while another task has it
/// exclusively.
pub fn share(name: &str) -> Result<Option<FileLock>> {
    Ok(FileLock::try_share(&used(name)?)?)
}

/// The lock of the users of lab `name`. It is in the cache directory, because the lab's directory comes and
/// goes.
fn used(name: &str) -> Result<PathBuf> {
    dir_of(name)?;
    Ok(workspace::lab_dir().join("cache").join(format!("{name}.used")))
}

/// Starts the machine, records it before anything else can fail, and waits until it can be entered.
fn boot(dir: &Path, mut machine: Machine, images: &images::Images, options: &Options) -> Result<Record> {
    let began = Instant::now();
    let control_path = connection::control_path(dir);
    connection::make_control_dir(&control_path)?;
    let mut attempts = 0;
    loop {
        attempts += 1;
        machine.port = boot::free_port()?;
        let mut booting = machine.start()?;
        // Copied, so that the lab can be entered even if its images are rebuilt or removed meanwhile.
        let (key, known_hosts) = (dir.join("id"), dir.join("known_hosts"));
        for (ours, theirs) in [(&key, images.key()), (&known_hosts, images.known_hosts())] {
            let content = fs::read(&theirs).with_context(|| format!("cannot read {}", theirs.display()))?;
            images::write_file(ours, 0o600, &content)?;
        }
        let address = Address {
            port: machine.port,
            key: &key,
            known_hosts: &known_hosts,
            control_path: &control_path,
        };
        // Wait even if it has already ended: the wait reports why.
        let id = booting.id.clone().unwrap_or(ProcessId {
            pid: 0,
            started: String::new(),
            boot_id: String::new(),
        });
        let mut record = Record {
            name: machine.name.clone(),
            state: State::Starting,
            pid: id.pid,
            start_ticks: id.started.parse().unwrap_or(0),
            boot_id: id.boot_id,
            started: clock::unix_seconds(),
            boot_seconds: 0.0,
            port: machine.port,
            ssh_argv: connection::ssh_argv(address),
            kernel_version: images.kernel_version.clone(),
            kernel_dir: images.kernel_dir(),
            images: images
                .root_disk()
                .parent()
                .map(Path::to_owned)
                .unwrap_or_default(),
            artefacts: options.artefacts.as_ref().map(fs::canonicalize).transpose()?,
            console: machine.console.clone(),
            memory_mib: machine.memory_mib,
            cpus: machine.cpus,
            key,
            known_hosts,
            control_path: control_path.clone(),
        };
        record.save(dir)?;
        match booting.wait_ready(options.limit) {
            Err(error) if attempts < 3 && error.to_string().contains("host forwarding rule") => continue,
            outcome => outcome?,
        }
        if let Err(error) = enter(&record, options.limit) {
            record.end()?;
            return Err(error);
        }
        record.state = State::Running;
        record.boot_seconds = began.elapsed().as_secs_f64();
        record.save(dir)?;
        return Ok(record);
    }
}

/// Opens the shared connection and looks for `/dev/kvm` over it.
fn enter(record: &Record, limit: Duration) -> Result<()> {
    connection::open(&record.ssh_argv, limit)?;
    let kvm = connection::capture(&record.ssh_argv, &["test", "-c", "/dev/kvm"], limit)?;
    ensure!(kvm.status.success(), "the lab has no /dev/kvm");
    Ok(())
}

/// Ends the machine recorded in `dir`, closes its connection, removes `dir`.
fn clean(dir: &Path) -> Result<()> {
    if let Some(record) = Record::load(dir) {
        connection::close(&record.ssh_argv, &record.control_path);
        record.end()?;
    }
    images::remove_tree(dir)
}

/// Allows one `up` or `down` of a lab at a time. The lock is in the cache directory, because the lab's
/// directory comes and goes.
fn lock(dir: &Path) -> Result<fs::File> {
    let cache = workspace::lab_dir().join("cache");
    fs::create_dir_all(&cache)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let path = cache.join(format!("{name}.lock"));
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn dir_of(name: &str) -> Result<PathBuf> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 32 || name == "cache" || !name.bytes().all(fine) {
        bail!("`{name}` cannot be the name of a lab: 1 to 32 of a-z, 0-9 and -, and not `cache`");
    }
    Ok(workspace::lab_dir().join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_that_is_used_is_not_taken_away_under_its_users_and_one_that_is_taken_is_not_used() {
        let name = format!("used-{}", std::process::id());
        let dir = dir_of(&name).unwrap();
        fs::create_dir_all(&dir).unwrap();
        let users = [share(&name).unwrap().unwrap(), share(&name).unwrap().unwrap()];
        let refused = down(&name).unwrap_err().to_string();
        assert!(refused.contains("another task uses the lab"), "{refused}");
        assert!(dir.exists());
        let (told, taken) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let alone = Alone::wait(&name).unwrap();
                told.send(()).unwrap();
                assert!(alone.remove().unwrap());
                alone
            });
            let [first, last] = users;
            drop(first);
            assert!(taken.recv_timeout(Duration::from_millis(200)).is_err());
            drop(last);
            let alone = waiting.join().unwrap();
            assert!(!dir.exists());
            assert!(share(&name).unwrap().is_none() && down(&name).is_err());
            drop(alone);
        });
        assert!(!down(&name).unwrap());
        for kind in ["used", "lock"] {
            fs::remove_file(workspace::lab_dir().join("cache").join(format!("{name}.{kind}"))).unwrap();
        }
    }

    #[test]
    fn a_name_is_never_a_path() {
        for name in ["", "..", "a/b", "cache", "Main", "a.b"] {
            assert!(dir_of(name).is_err(), "{name}");
        }
        assert!(dir_of("side-2").is_ok());
    }

    #[test]
    fn the_record_of_a_dead_lab_is_cleaned() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("lab");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("lab.json"), "not a record").unwrap();
        clean(&dir).unwrap();
        assert!(!dir.exists());
        clean(&dir).unwrap();
    }
}
