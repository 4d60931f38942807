//! The Debian package, made by dpkg-deb: its name, dependencies and scripts in addition to the files.
//!
//! It must never depend on a library that the program does not use, nor on a version older than it needs.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use crabbox_host::command::Cmd;

use super::contents::Content;
use super::{DEBIAN, Release, written, zipped};

/// Packages of the programs that a lease calls. rsync is optional, used for large trees if both sides have
/// it.
const NEEDS: &str = "e2fsprogs, git, libgcc-s1, nftables, openssh-client";

/// The licence statement in Debian's format.
const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: crabbox

Files: *
Copyright: 2026 The crabbox developers
License: MIT or Apache-2.0
 The texts are LICENSE-MIT and LICENSE-APACHE beside this file (Apache-2.0 also
 /usr/share/common-licenses/Apache-2.0); those of what is compiled in, each with
 its copyright, are in LICENSES-DEPENDENCIES.
";

/// Puts the package into `scratch`.
pub(super) fn package(release: &Release<'_>, contents: &[Content], scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("deb");
    for content in contents {
        content.place(&root.join("usr"), content.debian)?;
    }
    let doc = root.join("usr/share/doc/crabbox");
    written(&doc, "copyright", COPYRIGHT)?;
    let plain = written(scratch, "changelog", &changelog(release)?)?;
    let packed = Content::packed(zipped(&plain)?, "changelog.gz");
    packed.place(&root.join("usr"), packed.debian)?;
    let sums = md5sums(&root)?;
    let control = root.join("DEBIAN");
    fs::create_dir(&control)?;
    written(&control, "md5sums", &sums)?;
    written(&control, "control", &fields(release, &root)?)?;
    for (name, text) in [
        ("prerm", include_str!("prerm")),
        ("postrm", include_str!("postrm")),
    ] {
        let script = written(&control, name, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    let name = format!("crabbox_{}_{}.deb", release.version.replace('-', "~"), DEBIAN);
    let path = scratch.join(name);
    Cmd::inheriting("dpkg-deb")
        // One thread: with several, the boundaries of the compressed blocks could differ.
        .args(["--root-owner-group", "--threads-max=1", "-Zxz"])
        .arg(format!("-z{}", release.effort))
        .arg("--build")
        .args([&root, &path])
        .env("SOURCE_DATE_EPOCH", release.epoch.to_string())
        .run()?;
    Ok(path)
}

/// The file `control`.
fn fields(release: &Release<'_>, root: &Path) -> Result<String> {
    let glibc = glibc(&fs::read(release.program)?).context("the program names no version of glibc")?;
    let kib = installed_kib(root)?;
    Ok(format!(
        "Package: crabbox\nVersion: {}\nArchitecture: {}\nMaintainer: The crabbox developers <crabbox@localhost>\n\
         Installed-Size: {kib}\nDepends: libc6 (>= {}.{}), {NEEDS}\nRecommends: mmdebstrap, rsync\nSuggests: containernetworking-plugins, python3-pip\n\
         Section: devel\nPriority: optional\nDescription: throw-away Firecracker microVMs for your working tree\n \
         Leases a Firecracker microVM on this KVM host, syncs the working tree into\n it, runs a command there, gives it back and leaves \
         nothing behind.\n .\n `crabbox setup firecracker` brings Firecracker and a guest image.\n",
        release.version.replace('-', "~"),
        DEBIAN,
        glibc.0,
        glibc.1,
    ))
}

/// The changelog in Debian's own format; ours is beside it.
fn changelog(release: &Release<'_>) -> Result<String> {
    let date = Cmd::inheriting("date")
        .args(["--utc", "--rfc-email", &format!("--date=@{}", release.epoch)])
        .run()?;
    Ok(format!(
        "crabbox ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md beside this file.\n\n -- The crabbox developers <crabbox@localhost>  {}\n",
        release.version.replace('-', "~"),
        date.stdout_text().trim()
    ))
}

/// The digests against which `dpkg --verify` checks installed files.
fn md5sums(root: &Path) -> Result<String> {
    let mut text = String::new();
    for path in files(root)? {
        let sum = Cmd::inheriting("md5sum").arg(&path).cwd(root).run()?;
        text.push_str(sum.stdout_text().trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// The installed size as dpkg counts it: each file rounded up to KiB, plus one KiB per directory.
fn installed_kib(root: &Path) -> Result<u64> {
    let mut kib = 0;
    for path in files(root)? {
        kib += fs::metadata(root.join(path))?.len().div_ceil(1024);
    }
    Ok(kib)
}

/// Every file below `root`, relative to it, sorted.
pub(super) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut todo) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The newest version of glibc in the symbols of the ELF file `program`: `GLIBC_2.34` is 2 and 34.
pub(super) fn glibc(program: &[u8]) -> Option<(u32, u32)> {
    const MARK: &[u8] = b"GLIBC_";
    let mut newest = None;
    for (at, _) in program
        .windows(MARK.len())
        .enumerate()
        .filter(|(_, part)| *part == MARK)
    {
        let mut text = String::new();
        for byte in program[at + MARK.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit() || **byte == b'.')
        {
            // Writing to a string cannot fail.
            write!(text, "{}", char::from(*byte)).ok();
        }
        let mut numbers = text.split('.').map(str::parse);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            newest = newest.max(Some((major, minor)));
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_that_is_named_is_needed() {
        let names = b"\x7fELF\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.3.4\0GLIBC_PRIVATE\0GLIBC_";
        assert_eq!(glibc(names), Some((2, 34)));
        assert_eq!(glibc(b"static"), None);
    }
}
