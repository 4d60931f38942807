//! The RPM package, put together by rpmbuild: what Fedora and its kin install.
//!
//! It must never take a macro of this machine's into the package, nor look through the program for what it needs: both would be other bytes
//! on another machine.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;

use super::contents::Content;
use super::{MACHINE, Release, deb, written};

/// Programs that a lease calls, and the library beside glibc, as Fedora names the packages.
const NEEDS: &str = "e2fsprogs, git-core, libgcc, nftables, openssh-clients, util-linux-core";

/// Of this packaging, which is never done twice for a version.
const REVISION: u32 = 1;

/// Settings of rpmbuild for the same bytes everywhere, and against all that it does with a tree by itself.
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
";

/// Puts the package into `scratch`.
pub(super) fn package(release: &Release<'_>, contents: &[Content], scratch: &Path) -> Result<PathBuf> {
    let home = scratch.join("rpm");
    let tree = home.join("tree");
    for content in contents {
        content.place(&tree.join("usr"), content.portable)?;
    }
    let spec = written(&home, "crabbox.spec", &spec(release, &tree)?)?;
    let built = Cmd::inheriting("rpmbuild")
        .args(["-bb", "--quiet", "--nodeps", "--target"])
        .arg(format!("{MACHINE}-linux"))
        .arg("--define")
        .arg(format!("_topdir {}", home.display()))
        .args([
            "--define",
            "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
        ])
        .arg(&spec)
        // Macros of a user's own lie there.
        .env("HOME", &home)
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

/// A dash would be the beginning of the revision.
fn version(release: &Release<'_>) -> String {
    release.version.replace('-', "~")
}

/// What rpmbuild is told.
fn spec(release: &Release<'_>, tree: &Path) -> Result<String> {
    let glibc = deb::glibc(&fs::read(release.program)?).context("the program names no version of glibc")?;
    let mut files = String::new();
    for file in deb::files(tree)? {
        // Writing to a text does not fail.
        writeln!(files, "/{}", file.display()).ok();
    }
    Ok(format!(
        "{SETTINGS}%global _binary_payload w{}.xzdio\n\
         Name: crabbox\nVersion: {}\nRelease: {REVISION}\nSummary: Throw-away Firecracker microVMs for your working tree\n\
         License: MIT OR Apache-2.0\nAutoReqProv: no\nRequires: libc.so.6(GLIBC_{}.{})(64bit), {NEEDS}\nRecommends: rsync\n\n\
         %description\nLeases a Firecracker microVM on this KVM host, syncs the working tree into it,\nruns a command there, gives it back and \
         leaves nothing behind.\n\n`crabbox setup firecracker` brings Firecracker and a guest image.\n\n\
         %install\nmkdir -p %{{buildroot}}\ncp -a '{}/.' %{{buildroot}}/\n\n\
         %preun\n{}\n%postun\n{}\n\
         %files\n%defattr(-,root,root,755)\n%dir /usr/share/doc/crabbox\n%dir /usr/share/doc/crabbox/examples\n{files}",
        release.effort,
        version(release),
        glibc.0,
        glibc.1,
        tree.display(),
        scriptlet(include_str!("prerm"), "remove"),
        scriptlet(include_str!("postrm"), "purge"),
    ))
}

/// The script of the Debian package, for when rpm takes the last version away: it says so with a 0. There is no purging, so that is done then.
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
