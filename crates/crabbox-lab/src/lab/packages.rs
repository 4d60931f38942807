//! The Debian packages of this machine: reports which are missing, and installs exactly those if permitted.
//! It never names a mirror; apt's own configuration decides where packages come from.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use crabbox_host::clock;
use crabbox_host::command::{Captured, Cmd};

use super::recipe;
use crate::stage::stage;

/// How long to wait for another apt on this machine.
const LOCK_PATIENCE: Duration = Duration::from_mins(5);

/// The packages whose installation starts a service, and that service.
const SERVERS: [(&str, &str); 4] = [
    ("openssh-server", "ssh.service"),
    ("munge", "munge.service"),
    ("slurmctld", "slurmctld.service"),
    ("slurmd", "slurmd.service"),
];

/// Exists if systemd is the init (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// Makes sure that the tools of a lab are installed.
pub(crate) fn ensure_tools() -> Result<()> {
    ensure(&[recipe::TOOLS], "the lab needs")
}

/// Makes sure that leases can be made on this host itself.
pub(crate) fn ensure_host_tools() -> Result<()> {
    ensure(&[recipe::HOST_TOOLS], "leases on this host need")
}

/// Makes sure that the tools called by tests are installed, including all of the above.
pub fn ensure_test_tools() -> Result<()> {
    let all = [
        recipe::TOOLS,
        recipe::HOST_TOOLS,
        recipe::TEST_TOOLS,
        recipe::DIST_TOOLS,
        recipe::CROSS_TOOLS,
    ];
    ensure(&all, "the tests need")
}

/// Makes sure that the tools for cross-compiling are installed.
pub fn ensure_cross_tools() -> Result<()> {
    ensure(
        &[recipe::CROSS_TOOLS],
        "programs for other machines are made with",
    )
}

/// Makes sure that the tools for packing a release are installed, limited to those that are `called` for.
pub fn ensure_dist_tools(called: impl Fn(&str) -> bool) -> Result<()> {
    let wanted: Vec<&'static str> = recipe::DIST_TOOLS.lines().filter(|name| called(name)).collect();
    ensure_all(&wanted, "packages are made with")
}

fn ensure(lists: &[&'static str], needs: &str) -> Result<()> {
    let wanted: Vec<&str> = lists.iter().flat_map(|list| list.lines()).collect();
    ensure_all(&wanted, needs)
}

fn ensure_all(wanted: &[&'static str], needs: &str) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!(
            "{needs} Debian packages that are not installed; run:\n  sudo apt-get update && sudo apt-get install --no-install-recommends {list}"
        );
    }
    stage(&format!("install {list}"), || {
        update()?;
        apt(Cmd::inheriting("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing))?;
        for (package, service) in SERVERS {
            if missing.contains(&package) && Path::new(SYSTEMD).exists() {
                // Only its program is needed: do not leave an unrequested port open on this machine.
                Cmd::inheriting("systemctl")
                    .args(["disable", "--now", "--quiet", service])
                    .run()?;
            }
        }
        Ok(())
    })
}

/// Unpacks into `dir` the packages that this machine lacks to have `wanted`, and each of `foreign` for the
/// Debian architecture `architecture`. Nothing is installed, and apt's state of this machine is not changed.
pub fn unpack(wanted: &[&str], architecture: &str, foreign: &[&str], dir: &Path) -> Result<()> {
    let own = dir.join("packages");
    let lists = own.join("lists");
    std::fs::create_dir_all(lists.join("partial"))?;
    let get = |words: &[&str]| {
        apt(Cmd::inheriting("apt-get")
            .arg("-o")
            .arg(format!("Dir::State::lists={}", lists.display()))
            .arg("-o")
            .arg(format!("Dir::Cache={}", own.display()))
            .args(["-o", "APT::Architectures::=amd64", "-o"])
            .arg(format!("APT::Architectures::={architecture}"))
            .args(words)
            .cwd(&own))
    };
    get(&["update", "-qq"])?;
    let simulated = get(&[&["install", "--simulate", "--no-install-recommends"], wanted].concat())?;
    let others = foreign.iter().map(|name| format!("{name}:{architecture}"));
    let names: Vec<String> = to_install(&simulated.stdout_text()).chain(others).collect();
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    get(&[&["download", "-qq"], &words[..]].concat())?;
    for entry in std::fs::read_dir(&own)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            Cmd::inheriting("dpkg").arg("-x").arg(&path).arg(dir).run()?;
        }
    }
    std::fs::remove_dir_all(&own)?;
    Ok(())
}

/// The packages that apt would install, from its simulation.
fn to_install(simulated: &str) -> impl Iterator<Item = String> {
    simulated
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .map(str::to_owned)
}

/// The version of `package` that would be installed.
pub fn candidate(package: &str) -> Result<String> {
    let look_up = || -> Result<Option<String>> {
        let out = Cmd::inheriting("apt-cache")
            .args(["policy", package])
            .env("LC_ALL", "C")
            .capture()?;
        let text = out.stdout_text();
        let version = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
    };
    if let Some(version) = look_up()? {
        return Ok(version);
    }
    if rustix::process::geteuid().is_root() {
        stage("update the package lists", update)?;
    }
    look_up()?.with_context(|| format!("apt knows no {package}; run `sudo apt-get update`"))
}

/// The version of the current cloud kernel, for example `6.1.0-56-cloud-amd64`, according to apt's lists.
pub(super) fn kernel_version() -> Result<String> {
    let look_up = || -> Result<Option<String>> {
        let out = Cmd::inheriting("apt-cache")
            .args(["depends", recipe::KERNEL_META_PACKAGE])
            .capture()?;
        Ok(parse_kernel_version(&out.stdout_text()))
    };
    if let Some(version) = look_up()? {
        return Ok(version);
    }
    if rustix::process::geteuid().is_root() {
        stage("update the package lists", update)?;
    }
    look_up()?.with_context(|| {
        format!(
            "apt knows no {}; run `sudo apt-get update` (the lab needs Debian 12)",
            recipe::KERNEL_META_PACKAGE
        )
    })
}

/// Refreshes apt's lists.
pub(super) fn update() -> Result<()> {
    apt(Cmd::inheriting("apt-get").args(["update", "-qq"]))?;
    Ok(())
}

fn parse_kernel_version(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .find(|version| version.starts_with(|first: char| first.is_ascii_digit()))
        .map(str::to_owned)
}

fn missing(wanted: &[&'static str]) -> Result<Vec<&'static str>> {
    // dpkg-query fails if one is unknown, but still prints the others.
    let out = Cmd::inheriting("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Abbrev}\n"])
        .args(wanted)
        .capture()
        .context("the lab is built from Debian packages and needs dpkg")?;
    let text = out.stdout_text();
    let installed: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_once(" ii").map(|(name, _)| name))
        .collect();
    Ok(wanted
        .iter()
        .copied()
        .filter(|name| !installed.contains(name))
        .collect())
}

/// Runs apt non-interactively, waiting for another one: for dpkg's lock by apt's own option, for the lists'
/// lock by retrying.
pub(super) fn apt(command: Cmd) -> Result<Captured> {
    let command = command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .args(["-o", "DPkg::Lock::Timeout=300", "-o", "APT::Sandbox::User=root"]);
    let mut waited = Duration::ZERO;
    loop {
        match command.run() {
            Ok(captured) => return Ok(captured),
            Err(error) if error.to_string().contains("Could not get lock") && waited < LOCK_PATIENCE => {
                let pause = Duration::from_secs(1);
                clock::poll_until(pause, || None::<()>);
                waited += pause;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_read_from_a_simulation() {
        let said = "NOTE: This is only a simulation!\nInst one (1.2 Debian:12 [amd64])\nInst two:arm64 [1] (2 Debian:12 [arm64])\nConf one (1.2)\n";
        let names: Vec<String> = to_install(said).collect();
        assert_eq!(names, ["one", "two:arm64"]);
    }

    #[test]
    fn finds_the_kernel_in_aptitudes_words() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Provides: <x>\n";
        assert_eq!(
            parse_kernel_version(text).as_deref(),
            Some("6.1.0-56-cloud-amd64")
        );
        assert_eq!(parse_kernel_version("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn a_package_that_is_not_there_is_missing_and_dpkg_is_not() {
        assert_eq!(
            missing(&["dpkg", "crabbox-no-such-package"]).unwrap(),
            ["crabbox-no-such-package"]
        );
    }
}
