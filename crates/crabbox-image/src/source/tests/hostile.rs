//! Archives and layouts that declare more than they contain: files with holes in every form, impossible
//! sizes, and entries that are not files.

use super::*;

/// A header of `kind`, whose size is written in base 256 so that it can have any value.
fn header(name: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124] = 0x80;
    block[128..136].copy_from_slice(&size.to_be_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar  \0");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A complete entry with its content.
fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, kind, content.len() as u64).to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// PAX records for the following entry.
fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        text.extend([&length.to_string(), " ", key, "=", value, "\n"].map(|part: &str| part.to_owned()));
    }
    entry("pax", b'x', text.as_bytes())
}

fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), vec![0; 1024]].concat()
}

impl Place {
    fn archive(&self, bytes: &[u8]) -> Result<PathBuf, SourceError> {
        std::fs::write(self.path("a.tar"), bytes).unwrap();
        self.unpack("a.tar")
    }

    /// Disk space of the tree, in bytes.
    fn taken(&self) -> u64 {
        let done = Cmd::new("du")
            .args(["-s", "-B1"])
            .arg(self.path("root"))
            .run()
            .unwrap();
        let text = done.stdout_text();
        text.split('\t').next().unwrap().parse().unwrap()
    }
}

#[test]
fn a_file_with_holes_has_its_content_and_its_holes_whatever_form_the_archive_has() {
    let place = Place::new();
    std::fs::create_dir(place.path("t")).unwrap();
    let made = place.path("t/data");
    let file = File::create(&made).unwrap();
    file.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"tail", 8 << 20).unwrap();
    let long = "n".repeat(150);
    std::fs::copy(&made, place.path("t").join(&long)).unwrap();
    let content = std::fs::read(&made).unwrap();
    for form in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        Cmd::new("tar")
            .arg("-S")
            .args(form)
            .arg("-C")
            .args([
                &place.path("t"),
                Path::new("-cf"),
                &place.path("a.tar"),
                Path::new("."),
            ])
            .run()
            .unwrap();
        let root = place.unpack("a.tar").unwrap();
        let names = crate::small::Small::names(&root);
        assert_eq!(names, ["data".to_owned(), long.clone()], "{form:?}");
        for name in names {
            assert!(
                std::fs::read(root.join(&name)).unwrap() == content,
                "{form:?} {name}"
            );
        }
        assert!(place.taken() < 1 << 20, "{form:?}: holes stay holes");
    }
}

#[test]
fn what_pax_records_say_counts_before_the_header() {
    let place = Place::new();
    let records = [
        ("path", "dir/real"),
        ("uid", "70000"),
        ("gid", "80000"),
        ("mtime", "12.5"),
    ];
    let bytes = ended(&[
        pax(&records),
        entry("other", b'0', b"content"),
        pax(&[("linkpath", "dir/real"), ("path", "again")]),
        entry("x", b'1', b""),
    ]);
    let root = place.archive(&bytes).unwrap();
    let facts = root.join("dir/real").metadata().unwrap();
    assert_eq!(
        (facts.uid(), facts.gid(), facts.mtime(), facts.nlink()),
        (70000, 80000, 12, 2)
    );
    assert_eq!(std::fs::read(root.join("again")).unwrap(), b"content");
    // If a PAX record's size differs from the header's, the record's is used.
    let mut sized = header("sized", b'0', 0).to_vec();
    sized.extend(b"four");
    sized.resize(1024, 0);
    let root = place.archive(&ended(&[pax(&[("size", "4")]), sized])).unwrap();
    assert_eq!(std::fs::read(root.join("sized")).unwrap(), b"four");
}

#[test]
fn an_owner_that_cannot_be_is_refused_by_name() {
    let place = Place::new();
    for id in ["4294967295", "4294967296", "18446744073709551615"] {
        for key in ["uid", "gid"] {
            let error = place
                .archive(&ended(&[pax(&[(key, id)]), entry("file", b'0', b"")]))
                .unwrap_err();
            let said = error.to_string();
            assert!(said.contains(&format!("\"file\" belongs to {id}")), "{said}");
        }
    }
}

#[test]
fn a_size_that_nothing_has_is_refused_before_anything_is_kept() {
    let place = Place::new();
    let huge = 1 << 40;
    // A long name, PAX records, a file, and a file that is a hole except for its end: each claims a terabyte
    // in an archive of a kilobyte.
    let sparse = [
        ("GNU.sparse.major", "0"),
        ("GNU.sparse.minor", "1"),
        ("GNU.sparse.size", "1099511627776"),
        ("GNU.sparse.map", "1099511627772,4"),
    ];
    for bytes in [
        header("././@LongLink", b'L', huge).to_vec(),
        header("././@LongLink", b'K', huge).to_vec(),
        header("pax", b'x', huge).to_vec(),
        header("pax", b'g', huge).to_vec(),
        header("file", b'0', huge).to_vec(),
        [pax(&sparse), entry("file", b'0', b"tail")].concat(),
    ] {
        let said = crabbox_core::fault::chain(&place.archive(&ended(&[bytes])).unwrap_err());
        let named = said.contains("metadata for one member") || said.contains("file\" cannot be stored");
        assert!(named, "{said}");
        assert!(place.taken() < 1 << 20);
    }
}

#[test]
fn a_map_that_contradicts_itself_is_refused() {
    let place = Place::new();
    for map in [
        "0,4,2,4",
        "100,4",
        "0,4000",
        "x",
        "0",
        "4,4,0,4",
        "18446744073709551615,4",
    ] {
        let records = [
            ("GNU.sparse.major", "0"),
            ("GNU.sparse.minor", "1"),
            ("GNU.sparse.size", "50"),
            ("GNU.sparse.map", map),
        ];
        let result = place.archive(&ended(&[pax(&records), entry("file", b'0', b"tail")]));
        assert!(
            matches!(result, Err(SourceError::Archive { .. })),
            "{map}: {result:?}"
        );
    }
}

#[test]
fn a_hole_of_a_terabyte_in_a_directory_is_refused_by_name() {
    let place = Place::new();
    std::fs::create_dir(place.path("t")).unwrap();
    File::create(place.path("t/hole"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let said = crabbox_core::fault::chain(&place.unpack("t").unwrap_err());
    assert!(said.contains("\"hole\" cannot be stored"), "{said}");
}

#[test]
fn more_zeros_than_any_archive_has_at_its_end_are_an_error() {
    let place = Place::new();
    let zeros = [layer(&[("a", "1")]), vec![0; 64 << 20]].concat();
    std::fs::write(place.path("a.tar"), packed("gzip", &zeros)).unwrap();
    let said = crabbox_core::fault::chain(&place.unpack("a.tar").unwrap_err());
    assert!(said.contains("bytes are behind its end"), "{said}");
}

#[test]
fn something_else_in_place_of_a_part_of_a_layout_is_as_if_it_were_not_there() {
    let zero = |path: &Path| symlink("/dev/zero", path).unwrap();
    let outside = |path: &Path| symlink("/etc/passwd", path).unwrap();
    let pipe = |path: &Path| drop(Cmd::new("mkfifo").arg(path).run().unwrap());
    let device = |path: &Path| drop(Cmd::new("mknod").arg(path).args(["c", "1", "5"]).run().unwrap());
    for make in [&zero as &dyn Fn(&Path), &outside, &pipe, &device] {
        for part in 0..4 {
            let place = Place::new();
            let dir = place.path("oci");
            let digests = layout(&dir, oci::ARCHITECTURE, &[layer(&[("a", "1")])]);
            let path = match digests.get(part) {
                Some(digest) => dir.join("blobs/sha256").join(digest),
                None => dir.join("index.json"),
            };
            std::fs::remove_file(&path).unwrap();
            make(&path);
            let error = place.unpack("oci").unwrap_err();
            assert!(matches!(error, SourceError::NoBlob { .. }), "{error:?}");
        }
    }
}

#[test]
fn a_document_without_an_end_is_not_read() {
    let place = Place::new();
    layout(&place.path("oci"), oci::ARCHITECTURE, &[layer(&[("a", "1")])]);
    File::create(place.path("oci/index.json"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let said = crabbox_core::fault::chain(&place.unpack("oci").unwrap_err());
    assert!(said.contains("index.json has more than"), "{said}");
}

#[test]
fn a_layer_that_changes_while_it_is_used_is_not_believed() {
    let place = Place::new();
    let (one, other) = (layer(&[("a", "1")]), layer(&[("a", "2")]));
    let digest = digest::sha256(&one);
    let tree = Tree::create(&place.path("root")).unwrap();
    let mut opened = 0;
    let open = || {
        opened += 1;
        let bytes = if opened == 1 { one.clone() } else { other.clone() };
        Ok(blobs::Part {
            bytes: bytes.len() as u64,
            content: Box::new(io::Cursor::new(bytes)),
        })
    };
    let mut budget = tree.room().unwrap();
    let expected = archive::Expected::Packed(&digest);
    let error = archive::apply("layer", expected, open, &tree, &mut budget).unwrap_err();
    assert!(matches!(error, SourceError::Digest { .. }), "{error:?}");
}

#[test]
fn a_whiteout_of_dots_hides_nothing_above_it() {
    let place = Place::new();
    let lower = layer(&[("keep", "1"), ("dir/keep", "1")]);
    let upper = layer(&[("dir/.wh...", ""), ("dir/.wh..", ""), ("dir/.wh.", "")]);
    layout(&place.path("oci"), oci::ARCHITECTURE, &[lower, upper]);
    let root = place.unpack("oci").unwrap();
    assert!(root.join("keep").exists() && root.join("dir/keep").exists());
}

#[test]
fn a_path_of_too_many_directories_is_refused_by_name_and_can_be_removed() {
    let place = Place::new();
    let path = |depth: usize| format!("{}f", "d/".repeat(depth));
    let archive = |depth: usize| ended(&[pax(&[("path", &path(depth))]), entry("x", b'0', b"")]);
    for depth in [DEPTH_LIMIT + 1, 2000] {
        let error = place.archive(&archive(depth)).unwrap_err();
        assert!(matches!(error, SourceError::Deep { .. }), "{error:?}");
        let said = error.to_string();
        assert!(
            said.contains("a.tar: its entry \"d/d/") && said.len() < 500,
            "{said}"
        );
    }
    let root = place.archive(&archive(DEPTH_LIMIT)).unwrap();
    assert!(root.join(path(DEPTH_LIMIT)).is_file());
    std::fs::create_dir_all(place.path("t").join(path(DEPTH_LIMIT + 1))).unwrap();
    let error = place.unpack("t").unwrap_err();
    assert!(matches!(error, SourceError::Deep { .. }), "{error:?}");
}

#[test]
fn a_sparse_part_of_an_image_is_called_that() {
    let place = Place::new();
    let mut padded = layer(&[("a", "1")]);
    padded.resize(1 << 20, 0);
    let digests = layout(&place.path("img"), oci::ARCHITECTURE, &[padded.clone()]);
    // tar packs a file as sparse if it has holes.
    let blob = place.path("img/blobs/sha256").join(&digests[0]);
    let file = File::create(&blob).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &padded[..2048], 0).unwrap();
    file.set_len(1 << 20).unwrap();
    Cmd::new("tar")
        .args(["-S", "-C"])
        .args([
            &place.path("img"),
            Path::new("-cf"),
            &place.path("img.tar"),
            Path::new("."),
        ])
        .run()
        .unwrap();
    let error = place.unpack("oci-archive:img.tar").unwrap_err();
    assert!(matches!(error, SourceError::Sparse { .. }), "{error:?}");
}
