//! The RPM package, made by rpmbuild, for Fedora and its relatives.
//!
//! It must never use one of this machine's macros, nor let rpmbuild scan the program for dependencies: both
//! would give different bytes on another machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;

use super::contents::Content;
use super::{MACHINE, Release, deb, written};

/// Fedora's packages of the programs that a lease calls, and of the library besides glibc.
const NEEDS: &str = "e2fsprogs, git-core, libgcc, nftables, openssh-clients, util-linux-core";

/// The revision of the packaging; a version is never packaged twice.
const REVISION: u32 = 1;

/// The packager: otherwise rpmbuild takes it from this machine's macros.
const DEVELOPERS: &str = "The crabbox developers";

/// rpmbuild settings for reproducible bytes, and to disable its automatic changes to the tree.
const SETTINGS: &str = "\
%global _buildhost localhost
%global use_source_date_epoch_as_buildtime 1
%global clamp_mtime_to_source_date_epoch 1
%global source_date_epoch_from_changelog 0
%global debug_package %{nil}
%global _build_id_links none
%global __os_install_post %{nil}
%global __spec_install_post %{nil}
%global _source_filedigest_algorithm 8
%global _binary_filedigest_algorithm 8
%global optflags %{nil}
";

/// Only the macros that rpm itself brings, without those of a vendor, of this machine or of a user.
const MACROS: &str = "/usr/lib/rpm/macros:/usr/lib/rpm/platform/%{_target}/macros";

/// The directories owned by Fedora's package `filesystem`; all others below `usr` are also owned by this
/// package, and are removed with their last owner.
const OF_THE_SYSTEM: [&str; 6] = [
    "usr",
    "usr/bin",
    "usr/share",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/man/man1",
];

/// Puts the package into `scratch`.
pub(super) fn package(release: &Release<'_>, contents: &[Content], scratch: &Path) -> Result<PathBuf> {
    package_by(Cmd::inheriting("rpmbuild"), release, contents, scratch)
}

/// The same with another command line for `rpmbuild`.
pub(super) fn package_by(
    rpmbuild: Cmd,
    release: &Release<'_>,
    contents: &[Content],
    scratch: &Path,
) -> Result<PathBuf> {
    let home = scratch.join("rpm");
    let tree = home.join("tree");
    for content in contents {
        content.place(&tree.join("usr"), content.portable)?;
    }
    date(&tree, release.epoch)?;
    let spec = written(&home, "crabbox.spec", &spec(release, &tree)?)?;
    let built = rpmbuild
        .arg(format!("--macros={MACROS}"))
        .args([
            "--rcfile=/usr/lib/rpm/rpmrc",
            "-bb",
            "--quiet",
            "--nodeps",
            "--target",
        ])
        .arg(format!("{MACHINE}-linux"))
        .arg("--define")
        .arg(format!("_topdir {}", home.display()))
        .args([
            "--define",
            "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
        ])
        .arg(&spec)
        .env("HOME", &home)
        // It would override the paths above.
        .env_remove("RPM_CONFIGDIR")
        .env("LC_ALL", "C.UTF-8")
        .env("SOURCE_DATE_EPOCH", release.epoch.to_string())
        .run();
    built.context("rpmbuild, of Debian's package rpm, puts the .rpm together")?;
    let name = format!("crabbox-{}-{REVISION}.{MACHINE}.rpm", version(release));
    let (made, path) = (home.join("RPMS").join(&name), scratch.join(&name));
    ensure!(made.is_file(), "rpmbuild made no {name}");
    fs::rename(made, &path)?;
    Ok(path)
}

/// Sets the time of everything below `tree` to that of the sources. rpmbuild by itself only clamps later
/// times, which leaves earlier ones if this machine's clock is behind the commit's.
fn date(tree: &Path, epoch: u64) -> Result<()> {
    let time = UNIX_EPOCH + Duration::from_secs(epoch);
    let files = deb::files(tree)?;
    for path in files.iter().map(PathBuf::as_path).chain(directories(&files)) {
        let file = fs::File::open(tree.join(path))?;
        file.set_modified(time)
            .with_context(|| format!("cannot date {}", path.display()))?;
    }
    Ok(())
}

/// Every directory that contains some of `files`, sorted, except the root.
fn directories(files: &[PathBuf]) -> BTreeSet<&Path> {
    let above = files.iter().flat_map(|file| file.ancestors().skip(1));
    above.filter(|dir| !dir.as_os_str().is_empty()).collect()
}

/// A dash would begin the revision.
fn version(release: &Release<'_>) -> String {
    release.version.replace('-', "~")
}

/// The spec file.
fn spec(release: &Release<'_>, tree: &Path) -> Result<String> {
    let glibc = deb::glibc(&fs::read(release.program)?).context("the program names no version of glibc")?;
    let all = deb::files(tree)?;
    let mut files = String::new();
    for dir in directories(&all) {
        if !OF_THE_SYSTEM.iter().any(|theirs| dir == Path::new(theirs)) {
            // Writing to a string cannot fail.
            writeln!(files, "%dir /{}", dir.display()).ok();
        }
    }
    for file in &all {
        writeln!(files, "/{}", file.display()).ok();
    }
    Ok(format!(
        "{SETTINGS}%global _binary_payload w{}.xzdio\n\
         Name: crabbox\nVersion: {}\nRelease: {REVISION}\nSummary: Throw-away Firecracker microVMs for your working tree\n\
         License: MIT OR Apache-2.0\nVendor: {DEVELOPERS}\nPackager: {DEVELOPERS}\nAutoReqProv: no\nRequires: libc.so.6(GLIBC_{}.{})(64bit), {NEEDS}\nRecommends: rsync\n\n\
         %description\nLeases a Firecracker microVM on this KVM host, syncs the working tree into it,\nruns a command there, gives it back and \
         leaves nothing behind.\n\n`crabbox setup firecracker` brings Firecracker and a guest image.\n\n\
         %install\nmkdir -p %{{buildroot}}\ncp -a '{}/.' %{{buildroot}}/\n\n\
         %preun\n{}\n%postun\n{}\n\
         %files\n%defattr(-,root,root,755)\n{files}",
        release.effort,
        version(release),
        glibc.0,
        glibc.1,
        tree.display(),
        scriptlet(include_str!("prerm"), "remove"),
        scriptlet(include_str!("postrm"), "purge"),
    ))
}

/// The Debian package's script for when rpm removes the last version, which it signals by a 0. rpm has no
/// purge, so the purge is done then, too.
fn scriptlet(script: &str, action: &str) -> String {
    let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
    let script = lines.join("\n").replace('%', "%%");
    format!("[ \"$1\" = 0 ] || exit 0\nset -- {action}\n{script}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_acts_only_when_the_last_version_goes_and_no_macro_is_expanded_in_it() {
        let text = scriptlet(
            "#!/bin/sh\n# About.\n[ \"$1\" = remove ] || exit 0\necho ${a%.b}\n",
            "remove",
        );
        assert_eq!(
            text,
            "[ \"$1\" = 0 ] || exit 0\nset -- remove\n[ \"$1\" = remove ] || exit 0\necho ${a%%.b}\n"
        );
    }
}
