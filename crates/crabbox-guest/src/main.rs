//! The first process inside crabbox's own guest images: from the kernel's start to an SSH server, then as
//! process 1.
//!
//! It runs as `/init` of the initramfs and prints one line per stage on the console, so that a failed boot
//! can be diagnosed. It must never continue with an incomplete instance: a failure is printed, and the
//! machine is reset, which ends the VMM. Called as `poweroff`, `reboot`, `halt` or `shutdown` it asks process
//! 1 to end the machine; as `crabbox-trim` or `fstrim`, to return freed blocks to the host.

#[cfg(not(target_os = "linux"))]
compile_error!("crabbox-guest is the first process of a Linux guest");

mod accounts;
mod clock;
mod console;
mod crc32c;
mod ext4;
mod failure;
mod freeze;
mod handover;
mod identity;
mod modules;
mod network;
mod park;
mod power;
mod probe;
mod root;
mod seed;
mod settle;
mod sshd;
mod sys;
mod trim;
mod trim_command;
mod twins;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crabbox_guest_protocol::READY_PORT;
use crabbox_guest_protocol::seed::NOT_MOUNTED;
use rustix::process::{Pid, Resource, Rlimit};

use crate::accounts::Account;
use crate::console::Console;
use crate::failure::Failure;
use crate::seed::{Seed, Volume};

/// The limits of open files per process: a large build needs more than the kernel's 4096 (systemd's values).
const FILE_LIMIT: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// Minimum time between two starts of sshd.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        return serve_command(std::env::args_os()).into();
    }
    sys::block_signals();
    let mut console = Console::open();
    match boot(&mut console) {
        Ok(booted) => {
            // The machine works without trims; clients that ask for one get no reply.
            if let Err(failure) = trim::start(booted.layer) {
                console.say(&failure.to_string());
            }
            serve(&mut console, booted.server)
        }
        Err(failure) => {
            let stage = console.current();
            console.say(&format!("FAILED at {stage}: {failure}"));
            power::reset(&mut console)
        }
    }
}

/// Runs this program as a process other than process 1; returns its exit code.
fn serve_command(mut words: std::env::ArgsOs) -> u8 {
    let name = words.next().unwrap_or_default();
    let name = name.to_string_lossy();
    match name.rsplit('/').next().unwrap_or_default() {
        handover::WAITER => {
            handover::wait_and_tell(&words.next().unwrap_or_default().to_string_lossy());
            0
        }
        settle::SERVER => {
            settle::serve_paths(words);
            0
        }
        name @ (trim_command::TRIM | trim_command::FSTRIM) => {
            trim_command::run(name, &words.collect::<Vec<_>>())
        }
        name => power::ask(name),
    }
}

/// The state of process 1 when the machine is up.
struct Booted {
    server: Pid,
    /// The root of the private layer.
    layer: OwnedFd,
}

/// Boots from the initramfs to a listening SSH server; a template waits on the way until it is frozen and
/// thawed. With an init of the image's own, it returns only if that could not be started.
fn boot(console: &mut Console) -> Result<Booted, Failure> {
    // The time before this program began.
    console.begin("kernel");
    console.begin("mounts");
    root::mount_kernel_filesystems()?;
    console.reopen();
    probe::run_if_asked(console);
    twins::run_if_asked(console);

    console.begin("modules");
    modules::load(Path::new("/modules"))?;
    if let Some(init) = handover::asked() {
        return Err(handover::to_image(console, &init));
    }

    console.begin("disks");
    root::wait_for_disks()?;

    console.begin("layers");
    let layer = root::assemble()?;

    console.begin("seed");
    let seeds = Path::new("/").join(crabbox_guest_protocol::seed::DIRECTORY);
    let template = seed::is_template(&seeds);
    let seed = if template {
        Seed::read_template(&seeds)?
    } else {
        Seed::read(&seeds)?
    };
    seed::wipe(&seeds)?;

    console.begin("root");
    root::switch()?;
    root::mount_runtime_filesystems(&layer)?;

    console.begin("clock");
    set_clock(&seed)?;
    credit_entropy(&seed)?;

    console.begin("network");
    network::bring_up(seed.network.as_ref())?;
    if !template {
        let booted = become_instance(console, seed, layer)?;
        tell_host(console);
        return Ok(booted);
    }
    let (seed, mut woken) = park::until_woken(console, seed)?;
    let booted = become_instance(console, seed, layer).inspect_err(|failure| woken.refuse(failure))?;
    woken.ready(console)?;
    Ok(booted)
}

/// Mounts the `volumes` that can be mounted and reports the others to the host, which knows whether the
/// machine is useful without them.
fn mount_volumes(console: &mut Console, volumes: &[Volume], account: &Account) {
    let (mut mounted, mut others) = (Vec::new(), Vec::new());
    for (number, volume) in volumes.iter().enumerate() {
        match root::mount_volume(volume, account) {
            Ok(()) => mounted.push(volume),
            Err(failure) => {
                console.say(&failure.to_string());
                others.push(number);
            }
        }
    }
    for number in others {
        console.note(format!("{NOT_MOUNTED}{number}"));
    }
    if mounted.is_empty() {
        return;
    }
    // The machine works without it: the host's request at the end goes unanswered, and the journals keep the
    // volumes consistent.
    if let Err(failure) = settle::start(&mounted) {
        console.say(&failure.to_string());
    }
}

/// Turns the generic machine into this lease's, with a listening SSH server.
fn become_instance(console: &mut Console, mut seed: Seed, layer: root::Layer) -> Result<Booted, Failure> {
    console.begin("identity");
    identity::write_names(&seed)?;
    let account = identity::write_user(&seed)?;
    identity::write_host_key(&seed)?;
    let init = handover::wanted()?;
    if init.is_none() {
        identity::link_commands()?;
    }
    if let Some(path) = &seed.work_root {
        root::mount_work_root(&layer, path, account.uid, account.gid)?;
    }
    if !seed.volumes.is_empty() {
        console.begin(crabbox_guest_protocol::seed::VOLUMES);
        mount_volumes(console, &seed.volumes, &account);
    }
    seed.forget_secrets();
    let layer = layer.into_whole();
    if let Some(init) = init {
        console.end();
        return Err(handover::with_waiter(console, &init));
    }

    console.begin("sshd");
    rustix::process::setrlimit(Resource::Nofile, FILE_LIMIT).map_err(Failure::path(
        "raise the limit of open files for",
        Path::new(crabbox_guest_protocol::image::SSHD),
    ))?;
    let notifications = sshd::notifications()?;
    let server = sshd::start()?;
    sshd::wait_until_listening(server, &notifications)?;
    console.end();
    Ok(Booted { server, layer })
}

/// Sets the clock if it is behind the host's: it may be slightly ahead, but never before the start of a
/// certificate's validity.
fn set_clock(seed: &Seed) -> Result<(), Failure> {
    let Some(time) = seed.time.filter(|time| *time > clock::unix_seconds()) else {
        return Ok(());
    };
    clock::set(time).map_err(Failure::path("set", Path::new("the clock")))
}

fn credit_entropy(seed: &Seed) -> Result<(), Failure> {
    let Some(entropy) = &seed.entropy else {
        return Ok(());
    };
    let path = Path::new("/dev/random");
    let random = std::fs::File::options()
        .write(true)
        .open(path)
        .map_err(Failure::path("open", path))?;
    sys::credit_entropy(&random, entropy).map_err(Failure::path("credit entropy to", path))
}

/// Reports to the host that the guest is ready. Failure is fine, because a host without vsock polls port 22
/// instead.
fn tell_host(console: &mut Console) {
    let report = console.report();
    let told = sys::connect_host(READY_PORT)
        .and_then(|socket| std::fs::File::from(socket).write_all(report.as_bytes()));
    match told {
        Ok(()) => console.say(report.lines().last().unwrap_or_default()),
        Err(error) => console.say(&format!(
            "{}, host not told: {error}",
            report.lines().last().unwrap_or_default()
        )),
    }
}

/// Process 1 for the rest of the machine's life: reaps children, restarts sshd, ends the machine when asked.
fn serve(console: &mut Console, server: Pid) -> ExitCode {
    let mut server = Some(server);
    let mut started = clock::uptime();
    loop {
        let due = server
            .is_none()
            .then(|| (started + RESTART_PAUSE).saturating_sub(clock::uptime()));
        if let Some(signal) = sys::next_signal(due)
            && power::means_end(signal)
        {
            power::end(console);
        }
        while let Ok(Some(ended)) = sys::reap() {
            if server == Some(ended) {
                console.say(&format!("sshd ended: {}", sshd::log_tail()));
                server = None;
            }
        }
        if server.is_none() && clock::uptime() >= started + RESTART_PAUSE {
            started = clock::uptime();
            server = sshd::start()
                .inspect_err(|failure| console.say(&failure.to_string()))
                .ok();
        }
    }
}
