//! Embeds the list of compiled-in crates in the program: the section `.dep-v0`, read by vulnerability
//! scanners.
//!
//! The format is that of cargo-auditable: zlib-compressed JSON. It must never change the program's behaviour:
//! the section is not loaded.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use crabbox_host::command::Cmd;
use flate2::Compression;
use flate2::write::ZlibEncoder;

use super::components::Components;

/// The section's name, including the version of its format.
const SECTION: &str = ".dep-v0";

/// A copy of `program` in `dir` that lists its `components`.
pub(super) fn audited(program: &Path, components: &Components, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Replaced atomically: another task may be packing the existing one, and a killed process must not leave
    // a partial file.
    let scratch = tempfile::Builder::new().prefix(".auditing-").tempdir_in(dir)?;
    let list = scratch.path().join("dependencies.json.z");
    let mut encoder = ZlibEncoder::new(fs::File::create(&list)?, Compression::best());
    encoder.write_all(components.audit().to_string().as_bytes())?;
    encoder.finish()?;
    let name = program.file_name().context("a program without a name")?;
    let (new, copy) = (scratch.path().join(name), dir.join(name));
    let section = format!("{SECTION}={}", list.display());
    Cmd::inheriting("objcopy")
        .args(["--add-section", &section])
        .args(["--set-section-flags", &format!("{SECTION}=noload,readonly")])
        .args([program, &new])
        .run()
        .context("objcopy, of Debian's package binutils, writes the list into the program")?;
    fs::rename(&new, &copy).with_context(|| format!("cannot put {}", copy.display()))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_program_names_what_is_in_it_and_runs_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let components = Components::read(super::super::TARGET).unwrap();
        // Any program will do.
        let program = Path::new("/bin/true").canonicalize().unwrap();
        let one = audited(&program, &components, &dir.path().join("one")).unwrap();
        let two = audited(&program, &components, &dir.path().join("two")).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(two).unwrap());
        Cmd::new(&one).run().unwrap();
        // Made again while it is open, as by a packer: the open file stays intact, and nothing else is left.
        let opened = fs::File::open(&one).unwrap();
        let inode = |file: &fs::File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        audited(&program, &components, &dir.path().join("one")).unwrap();
        assert_ne!(inode(&opened), inode(&fs::File::open(&one).unwrap()));
        assert_eq!(fs::read_dir(dir.path().join("one")).unwrap().count(), 1);

        let dumped = dir.path().join("section");
        Cmd::inheriting("objcopy")
            .arg(format!("--dump-section={SECTION}={}", dumped.display()))
            .args([one.as_os_str(), "/dev/null".as_ref()])
            .run()
            .unwrap();
        let mut text = String::new();
        flate2::read::ZlibDecoder::new(fs::File::open(dumped).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list, components.audit());
        let names: Vec<&str> = list["packages"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|package| package["name"].as_str())
            .collect();
        for name in ["crabbox", "crabbox-agent", "crabbox-guest", "serde", "rustls"] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
    }
}
