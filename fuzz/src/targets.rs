//! Parsers of untrusted bytes, by name: for the fuzzer, and for the test that replays its corpora.
//!
//! A parser may reject anything. It must never panic, wait, exceed its memory limits, or accept something impossible.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crabbox_core::claim::Claim;
use crabbox_core::config::layer::Layer;
use crabbox_core::config::{ConfigFile, Inputs, resolve};
use crabbox_core::journal::Journal;
use crabbox_core::record::LeaseRecord;
use crabbox_host::archive::Reader;
use crabbox_host::budget::{Bound, Budget};
use crabbox_host::holes::Holes;
use crabbox_host::tree::Tree;
use crabbox_image::debugfs::listing;
use crabbox_image::source::Source;
use crabbox_image::store::Store;
use crabbox_workspace::results;

/// A parser.
pub(crate) type Read = fn(&[u8]);

/// Every parser, with the name of its corpus.
pub(crate) const TARGETS: [(&str, Read); 17] = [
    ("answers", crabbox_ssh::fuzzing::answers),
    ("archive", archive),
    ("bundle", bundle),
    ("claim", claim),
    ("cpio", crabbox_image::fuzzing::cpio),
    ("debugfs", debugfs),
    ("dns", crabbox_net::fuzzing::dns),
    ("journal", journal),
    ("junit", junit),
    ("kernel", kernel),
    ("metadata", metadata),
    ("mux", crabbox_ssh::fuzzing::packets),
    ("oci", oci),
    ("replies", crabbox_sync::fuzzing::replies),
    ("requests", crabbox_agent::fuzzing::requests),
    ("trim", trim),
    ("yaml", yaml),
];

/// The most that a target may store, in bytes.
const ROOM: u64 = 1 << 20;

/// A directory in memory for what a target unpacks.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("there is room for a directory")
}

fn file_of(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("input");
    let mut file = File::create_new(&path).expect("the directory is new");
    file.write_all(bytes).expect("there is room for the input");
    path
}

fn archive(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let mut budget = Budget::of(ROOM, Bound::Declared);
    while let Ok(Some(member)) = reader.next_member() {
        assert!(!member.path.contains(&0) && !member.link.contains(&0));
        let to = tempfile::tempfile_in("/dev/shm").expect("there is room for a file");
        if reader.extract(&member, &to, &mut budget).is_ok() {
            let length = to.metadata().expect("the file is open").len();
            assert_eq!(length, member.size);
        }
        assert!(to.metadata().expect("the file is open").len() <= ROOM);
    }
}

fn bundle(bytes: &[u8]) {
    let dir = place();
    let path = file_of(dir.path(), bytes);
    let store = Store::open(&dir.path().join("store")).expect("the directory is new");
    if crabbox_image::bundle::import(&path, None, &store, "name", None, &|_: &str| {}).is_err() {
        let images = store.list().expect("the store is whole").images;
        assert!(images.is_empty(), "nothing of a refused bundle stays");
    }
}

fn claim(bytes: &[u8]) {
    serde_json::from_slice::<Claim>(bytes).ok();
}

fn debugfs(bytes: &[u8]) {
    let Ok(Some(entries)) = listing::parse(bytes) else {
        return;
    };
    for entry in entries {
        let mut parts = Path::new(&entry.name).components();
        assert!(matches!(parts.next(), Some(std::path::Component::Normal(_))));
        assert!(parts.next().is_none() && !entry.name.contains(['/', '\n', '\0']));
    }
}

fn journal(bytes: &[u8]) {
    Journal::parse(&String::from_utf8_lossy(bytes)).ok();
}

fn junit(bytes: &[u8]) {
    let mut report = results::junit::Report::default();
    if results::junit::read("report.xml", bytes, &mut report).is_err() {
        assert!(report.files.is_empty(), "half a report counts for nothing");
    }
}

fn kernel(bytes: &[u8]) {
    if let Ok(elf) = crabbox_image::kernel::elf_from_bzimage(bytes) {
        assert!(elf.starts_with(b"\x7fELF"));
    }
    crabbox_image::kernel::version(bytes);
}

fn metadata(bytes: &[u8]) {
    serde_json::from_slice::<LeaseRecord>(bytes).ok();
}

/// The first byte selects the format of the rest: a tree, an OCI archive, or the output of `docker save`.
fn oci(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let dir = place();
    let path = file_of(dir.path(), rest);
    let source = match first % 3 {
        0 => Source::Tar(path),
        1 => Source::Oci { path, tag: None },
        _ => Source::Docker { path, tag: None },
    };
    let tree = Tree::create(&dir.path().join("tree")).expect("the directory is new");
    source.unpack(&tree, dir.path()).ok();
    let names = std::fs::read_dir(dir.path())
        .expect("the directory is there")
        .count();
    assert!(names <= 3, "the input, the tree, and what the input unpacks to");
}

/// Two messages of a guest: that it is ready, and the blocks it has freed.
fn trim(bytes: &[u8]) {
    crabbox_machine::resource::ready::read_report(bytes);
    let dir = place();
    let path = dir.path().join("disk");
    let disk = File::create_new(&path).expect("the directory is new");
    disk.set_len(ROOM).expect("a hole takes no room");
    let owner = std::os::unix::fs::MetadataExt::uid(&disk.metadata().expect("the file is open"));
    let holes = Holes::open(&path, owner).expect("the file is ours");
    crabbox_machine::resource::trim::read_batch(bytes, &holes);
}

fn yaml(bytes: &[u8]) {
    for layer in [Layer::RepoFile, Layer::UserFile] {
        let files = [ConfigFile {
            path: "/w/repo/crabbox.yaml".into(),
            layer,
            text: String::from_utf8_lossy(bytes).into_owned(),
        }];
        resolve(&Inputs {
            files: &files,
            environment: &|_| None,
            flags: &[],
            home: Some(Path::new("/h")),
            cwd: Path::new("/w/repo"),
            user_file: None,
        })
        .ok();
    }
}
