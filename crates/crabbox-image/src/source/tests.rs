//! Trees from every kind of source, and the entries that must be refused.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use crabbox_host::command::Cmd;
use crabbox_host::digest;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use std::io;

use super::*;

mod hostile;
mod layers;

/// A layer: `(name, content)`. The content `-> x` means a symbolic link, `=> x` a hard link; `dir`, `char`
/// and `fifo` mean those types.
fn layer(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = Header::new_ustar();
        header.set_mode(0o4755);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1000);
        header.set_size(0);
        // Write the name directly, because the crate would refuse some of these.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let mut body: &[u8] = b"";
        if let Some(target) = content
            .strip_prefix("-> ")
            .or_else(|| content.strip_prefix("=> "))
        {
            let kind = if content.starts_with('-') {
                EntryType::Symlink
            } else {
                EntryType::Link
            };
            header.set_entry_type(kind);
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        } else {
            match *content {
                "dir" => header.set_entry_type(EntryType::Directory),
                "char" => header.set_entry_type(EntryType::Char),
                "fifo" => header.set_entry_type(EntryType::Fifo),
                _ => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(content.len() as u64);
                    body = content.as_bytes();
                }
            }
        }
        header.set_cksum();
        archive.append(&header, body).unwrap();
    }
    archive.into_inner().unwrap()
}

fn packed(program: &str, bytes: &[u8]) -> Vec<u8> {
    Cmd::new(program)
        .arg("-c")
        .stdin(bytes.to_vec())
        .run()
        .unwrap()
        .stdout
}

/// An OCI layout of `layers` at `dir` for `architecture`, with the tag `one`; returns the blobs' digests.
fn layout(dir: &Path, architecture: &str, layers: &[Vec<u8>]) -> Vec<String> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let mut digests = Vec::new();
    let mut put = |bytes: &[u8]| {
        let hex = digest::sha256(bytes);
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        digests.push(hex.clone());
        json!({ "mediaType": "x", "digest": format!("sha256:{hex}"), "size": bytes.len() })
    };
    let layers: Vec<_> = layers.iter().map(|layer| put(layer)).collect();
    let config = json!({ "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = put(config.to_string().as_bytes());
    let manifest = put(json!({ "config": config, "layers": layers })
        .to_string()
        .as_bytes());
    let mut named = manifest;
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": "one" });
    std::fs::write(
        dir.join("index.json"),
        json!({ "manifests": [named] }).to_string(),
    )
    .unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    digests
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn unpack(&self, source: &str) -> Result<PathBuf, SourceError> {
        let root = self.path("root");
        std::fs::remove_dir_all(&root).ok();
        // What an earlier compressed archive left, where a build has a directory of its own.
        std::fs::remove_file(self.path("archive.tar")).ok();
        let tree = Tree::create(&root)?;
        Source::named(source, self.dir.path())?.unpack(&tree, self.dir.path())?;
        Ok(root)
    }

    /// Unpacks one layer as a plain archive.
    fn tar(&self, entries: &[(&str, &str)]) -> Result<PathBuf, SourceError> {
        std::fs::write(self.path("a.tar"), layer(entries)).unwrap();
        self.unpack("a.tar")
    }
}

/// Every path of a tree with its type, sorted.
fn listing(root: &Path) -> Vec<String> {
    let said = Cmd::new("find")
        .arg(root)
        .args(["-mindepth", "1", "-printf", "%P %y%l\\n"])
        .run()
        .unwrap()
        .stdout_text();
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn an_archive_keeps_owners_modes_times_and_links() {
    let place = Place::new();
    let root = place
        .tar(&[
            ("./bin/", "dir"),
            ("bin/su", "x"),
            ("/bin/also", "=> bin/su"),
            ("link", "-> /bin/su"),
            ("pipe", "fifo"),
        ])
        .unwrap();
    assert_eq!(
        listing(&root),
        ["bin d", "bin/also f", "bin/su f", "link l/bin/su", "pipe p"]
    );
    let facts = root.join("bin/su").metadata().unwrap();
    assert_eq!(
        (
            facts.mode() & 0o7777,
            facts.uid(),
            facts.gid(),
            facts.mtime(),
            facts.nlink()
        ),
        (0o4755, 12, 34, 1000, 2)
    );
}

#[test]
fn what_a_file_may_do_is_kept() {
    let place = Place::new();
    let tree = place.path("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("ping"), "x").unwrap();
    // CAP_NET_RAW, permitted and effective, version 2.
    let value = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(
        tree.join("ping"),
        "security.capability",
        &value,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    Cmd::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-cf"])
        .arg(place.path("a.tar"))
        .arg("-C")
        .args([&tree, Path::new(".")])
        .run()
        .unwrap();
    for source in ["tree", "a.tar"] {
        let root = place.unpack(source).unwrap();
        let mut found = [0; 64];
        let length = rustix::fs::getxattr(root.join("ping"), "security.capability", &mut found).unwrap();
        assert_eq!(found[..length], value, "{source}");
    }
}

#[test]
fn no_entry_reaches_outside_and_the_refusal_names_it() {
    let place = Place::new();
    std::fs::create_dir(place.path("outside")).unwrap();
    for entries in [
        vec![("../outside/x", "evil")],
        vec![("a/../../outside/x", "evil")],
        vec![("f", "x"), ("h", "=> ../outside/secret")],
    ] {
        let error = place.tar(&entries).unwrap_err();
        assert!(matches!(error, SourceError::Escape { .. }), "{error:?}");
        assert!(error.to_string().contains("outside"), "{error}");
    }
    // Links are resolved as in the guest.
    let outside = place.path("outside");
    let outside = outside.to_str().unwrap();
    let inner = format!("{}/", outside.trim_start_matches('/'));
    let root = place
        .tar(&[
            (&inner, "dir"),
            ("a", &format!("-> {outside}")),
            ("b", "-> ../../../../../../.."),
            ("a/x", "evil"),
            ("b/y", "evil"),
        ])
        .unwrap();
    assert_eq!(listing(Path::new(outside)), Vec::<String>::new());
    assert_eq!(text(root.join("y")), "evil");
    assert_eq!(text(root.join(outside.trim_start_matches('/')).join("x")), "evil");
}

#[test]
fn a_hard_link_never_takes_a_file_of_this_host_in() {
    let place = Place::new();
    std::fs::write(place.path("secret"), "s").unwrap();
    let secret = place.path("secret");
    let error = place
        .tar(&[("h", &format!("=> {}", secret.display()))])
        .unwrap_err();
    assert!(matches!(error, SourceError::Write { .. }), "{error:?}");
    let dir = place.dir.path().display().to_string();
    let error = place
        .tar(&[("d", &format!("-> {dir}")), ("h", "=> d/secret")])
        .unwrap_err();
    assert!(matches!(error, SourceError::Write { .. }), "{error:?}");
    assert_eq!(secret.metadata().unwrap().nlink(), 1);
}

#[test]
fn devices_are_refused_by_name_and_left_out_of_dev() {
    let place = Place::new();
    let error = place.tar(&[("srv/disk", "char")]).unwrap_err();
    assert!(matches!(error, SourceError::Device { .. }), "{error:?}");
    assert!(error.to_string().contains("srv/disk"), "{error}");
    assert_eq!(
        listing(&place.tar(&[("dev/null", "char"), ("x", "1")]).unwrap()),
        ["x f"]
    );
}

#[test]
fn an_archive_that_is_cut_short_is_never_taken_for_a_whole_one() {
    let place = Place::new();
    let whole = layer(&[("a", &"x".repeat(5000)), ("b", "y")]);
    for program in ["cat", "gzip", "zstd", "xz"] {
        let bytes = if program == "cat" {
            whole.clone()
        } else {
            packed(program, &whole)
        };
        // Cut inside a file, between two files, before the end mark; for a compressed archive, in the middle
        // and in the checksum.
        let cuts = if program == "cat" {
            vec![700, 5632, 6656]
        } else {
            vec![bytes.len() / 2, bytes.len() - 2]
        };
        for cut in cuts {
            std::fs::write(place.path("a.tar"), &bytes[..cut]).unwrap();
            let error = place.unpack("a.tar").unwrap_err();
            assert!(
                matches!(error, SourceError::Read { .. }),
                "{program} {cut}: {error:?}"
            );
            assert!(error.to_string().contains("a.tar"), "{error}");
        }
        std::fs::write(place.path("a.tar"), &bytes).unwrap();
        place.unpack("a.tar").unwrap();
    }
}

#[test]
fn a_directory_that_replaces_a_link_takes_nothing_from_where_the_link_led() {
    let place = Place::new();
    let lower = layer(&[
        ("srv/data/", "dir"),
        ("srv/data/kept", "1"),
        ("srv/data/also", "1"),
        ("d", "-> srv/data"),
    ]);
    for upper in [
        layer(&[("d/", "dir"), ("d/.wh..wh..opq", ""), ("d/new", "2")]),
        layer(&[("d/.wh..wh..opq", ""), ("d/", "dir"), ("d/new", "2")]),
        layer(&[("d/", "dir"), ("d/.wh.kept", ""), ("d/new", "2")]),
    ] {
        std::fs::remove_dir_all(place.path("img")).ok();
        layout(&place.path("img"), "amd64", &[lower.clone(), upper]);
        let root = place.unpack("img").unwrap();
        assert_eq!(
            listing(&root),
            [
                "d d",
                "d/new f",
                "srv d",
                "srv/data d",
                "srv/data/also f",
                "srv/data/kept f"
            ]
        );
    }
}

#[test]
fn a_root_tree_with_a_file_of_that_name_is_a_root_tree() {
    let place = Place::new();
    for entries in [
        [("manifest.json", "[]"), ("etc/", "dir")],
        [("./usr/", "dir"), ("./manifest.json", "[]")],
    ] {
        let root = place.tar(&entries).unwrap();
        assert!(root.join("manifest.json").is_file());
    }
}

#[test]
fn a_directory_is_copied_with_its_links_and_without_its_devices() {
    let place = Place::new();
    let tree = place.path("tree");
    std::fs::create_dir_all(tree.join("dev")).unwrap();
    std::fs::write(tree.join("one"), "1").unwrap();
    std::fs::hard_link(tree.join("one"), tree.join("two")).unwrap();
    std::fs::set_permissions(tree.join("one"), Permissions::from_mode(0o6711)).unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    Cmd::new("mknod")
        .arg(tree.join("dev/null"))
        .args(["c", "1", "3"])
        .run()
        .unwrap();
    let root = place.unpack("tree").unwrap();
    assert_eq!(listing(&root), ["dev d", "link l/etc/passwd", "one f", "two f"]);
    let facts = root.join("two").metadata().unwrap();
    assert_eq!((facts.mode() & 0o7777, facts.nlink()), (0o6711, 2));
    Cmd::new("mknod")
        .arg(tree.join("disk"))
        .args(["b", "8", "0"])
        .run()
        .unwrap();
    assert!(matches!(
        place.unpack("tree").unwrap_err(),
        SourceError::Device { .. }
    ));
}

#[test]
fn a_full_disk_is_told_from_a_bad_archive() {
    let place = Place::new();
    std::fs::write(place.path("a.tar"), layer(&[("big", &"x".repeat(3 << 20))])).unwrap();
    let small = place.path("small");
    std::fs::create_dir(&small).unwrap();
    rustix::mount::mount(
        "tmpfs",
        &small,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"size=1m",
    )
    .unwrap();
    let done = Source::named("a.tar", place.dir.path())
        .unwrap()
        .unpack(&Tree::create(&small.join("root")).unwrap(), &small);
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = done.unwrap_err();
    assert!(
        error.is_out_of_space() && error.to_string().contains("big"),
        "{error:?}"
    );
}

#[test]
fn an_archive_without_a_magic_number_is_one_and_a_damaged_one_is_called_that() {
    let place = Place::new();
    std::fs::write(place.path("file"), "x").unwrap();
    for format in [&["--format=v7"][..], &["--format=gnu", "--label=backup"]] {
        Cmd::new("tar")
            .arg("-cf")
            .arg(place.path("a.tar"))
            .args(format)
            .arg("-C")
            .arg(place.dir.path())
            .arg("file")
            .run()
            .unwrap();
        let root = place.unpack("a.tar").unwrap();
        assert_eq!(text(root.join("file")), "x", "{format:?}");
    }
    let mut archive = layer(&[("file", "x")]);
    archive[0] ^= 1;
    std::fs::write(place.path("b.tar"), archive).unwrap();
    let damaged = place.unpack("b.tar").unwrap_err();
    assert!(matches!(damaged, SourceError::Archive { .. }), "{damaged:?}");
}

#[test]
fn what_is_no_source_is_told() {
    let place = Place::new();
    let mut file = File::create(place.path("x")).unwrap();
    file.write_all(b"text").unwrap();
    assert!(matches!(
        place.unpack("x").unwrap_err(),
        SourceError::Unknown { .. }
    ));
    assert!(matches!(place.unpack("none").unwrap_err(), SourceError::File(_)));
    assert!(matches!(
        place.unpack("oci:none").unwrap_err(),
        SourceError::File(_)
    ));
    std::fs::create_dir(place.path("empty")).unwrap();
    assert!(matches!(
        place.unpack("oci:empty").unwrap_err(),
        SourceError::NoBlob { .. }
    ));
}
