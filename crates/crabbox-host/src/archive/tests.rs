use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use super::*;
use crate::budget::Bound;
use crate::command::Cmd;

fn plenty() -> Budget {
    Budget::of(16 << 40, Bound::Declared)
}

/// A header for `size` bytes of content, with a valid checksum.
fn header(kind: u8, name: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000755");
    block[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let length = (1..5)
        .map(|digits| rest + digits)
        .find(|all| all.to_string().len() + rest == *all);
    format!("{} {key}={value}\n", length.unwrap())
}

#[test]
fn what_tar_writes_is_read_in_each_of_its_formats() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let at = |name: &str| dir.path().join("in").join(name);
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(130));
    std::fs::create_dir_all(at(&long).parent().unwrap()).unwrap();
    std::fs::write(at(&long), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(150), at("link")).unwrap();
    let disk = File::create(at("disk")).unwrap();
    // More pieces than fit into the header of the old form, and a hole at the end.
    for piece in 0..40 {
        disk.write_all_at(&[7; 5000], piece << 20).unwrap();
    }
    disk.set_len(64 << 20).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let file = dir.path().join("a.tar");
        Cmd::new("tar")
            .args(format)
            .args(["--sparse", "-cf"])
            .arg(&file)
            .args(["-C"])
            .arg(dir.path().join("in"))
            .arg(".")
            .run()
            .unwrap();
        let mut reader = Reader::new(File::open(&file).unwrap());
        let mut seen = Vec::new();
        while let Some(member) = reader.next_member().unwrap() {
            let path = String::from_utf8(member.path.clone()).unwrap();
            if member.kind == MemberKind::Symlink {
                assert_eq!(member.link, "t".repeat(150).as_bytes(), "{format:?}");
            }
            if path == "./disk" {
                let out = dir.path().join("out");
                let file = File::create(&out).unwrap();
                reader.extract(&member, &file, &mut plenty()).unwrap();
                let facts = file.metadata().unwrap();
                assert_eq!(facts.len(), 64 << 20, "{format:?}");
                assert!(facts.blocks() * 512 < 2 << 20, "holes stay holes: {format:?}");
                Cmd::new("cmp").arg(&out).arg(at("disk")).run().unwrap();
            } else if path == format!("./{long}") {
                assert_eq!(reader.read_small(10).unwrap(), b"long");
            }
            seen.push(path);
        }
        seen.sort();
        let dirs = format!("./{}/", "d".repeat(120));
        assert_eq!(
            seen,
            ["./", &dirs, &format!("./{long}"), "./disk", "./link"],
            "{format:?}"
        );
        reader.finish().unwrap();
    }
}

#[test]
fn metadata_of_any_declared_size_is_refused_before_it_is_read() {
    for kind in *b"LKxg" {
        let archive = header(kind, "././@LongLink", 1 << 40);
        let endless = archive.as_slice().chain(io::repeat(b'a'));
        let error = Reader::new(endless).next_member().unwrap_err();
        assert!(
            matches!(error, ArchiveError::Metadata { .. }),
            "{}: {error}",
            kind as char
        );
        // Many small headers for one member do not get around the limit.
        let mut block = header(kind, "m", 1024);
        block.extend(padded(record("comment", &"c".repeat(1010)).as_bytes()));
        let endless = block.repeat(100);
        let error = Reader::new(&endless[..]).next_member().unwrap_err();
        assert!(
            matches!(error, ArchiveError::Metadata { .. }),
            "{}: {error}",
            kind as char
        );
    }
}

#[test]
fn a_member_that_is_larger_than_the_budget_is_refused_before_a_byte_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("f")).unwrap();
    let mut reader = Reader::new(io::Cursor::new(header(b'0', "big", 1 << 40)).chain(io::repeat(1)));
    let member = reader.next_member().unwrap().unwrap();
    let mut budget = Budget::of(1 << 20, Bound::Lease);
    let error = reader.extract(&member, &file, &mut budget).unwrap_err();
    assert!(matches!(error, ArchiveError::Over { .. }), "{error}");
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn a_sparse_file_of_a_tebibyte_spans_no_more_than_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("f")).unwrap();
    let records = [
        record("GNU.sparse.size", &(1_u64 << 40).to_string()),
        record("GNU.sparse.map", "0,5"),
        record("GNU.sparse.name", "huge"),
    ];
    let records = records.concat();
    let mut archive = header(b'x', "p", records.len() as u64);
    archive.extend(padded(records.as_bytes()));
    archive.extend(header(b'0', "GNUSparseFile/huge", 5));
    archive.extend(padded(b"12345"));
    let read = |budget: &mut Budget| {
        let mut reader = Reader::new(&archive[..]);
        let member = reader.next_member().unwrap().unwrap();
        assert_eq!((member.path.as_slice(), member.size), (&b"huge"[..], 1 << 40));
        reader.extract(&member, &file, budget)
    };
    let error = read(&mut Budget::of(1 << 30, Bound::Lease)).unwrap_err();
    assert!(matches!(error, ArchiveError::Over { .. }), "{error}");
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn maps_that_lie_are_refused() {
    for (map, size) in [
        ("0,5,3,5", "100"),
        ("10,5,0,5", "100"),
        ("0,10", "5"),
        ("0,5", "100"),
        ("18446744073709551615,10", "100"),
        ("0", "100"),
        ("0,x", "100"),
    ] {
        let records = [record("GNU.sparse.size", size), record("GNU.sparse.map", map)].concat();
        let mut archive = header(b'x', "p", records.len() as u64);
        archive.extend(padded(records.as_bytes()));
        archive.extend(header(b'0', "f", 10));
        archive.extend(padded(&[1; 10]));
        let error = Reader::new(&archive[..]).next_member().unwrap_err();
        assert!(matches!(error, ArchiveError::Garbled { .. }), "{map}: {error}");
    }
    // Form 1.0 with an endless map, and the old form with an endless sequence of map blocks.
    let records = [
        record("GNU.sparse.major", "1"),
        record("GNU.sparse.minor", "0"),
        record("GNU.sparse.realsize", "9"),
    ];
    let records = records.concat();
    let mut archive = header(b'x', "p", records.len() as u64);
    archive.extend(padded(records.as_bytes()));
    archive.extend(header(b'0', "f", 1 << 40));
    let endless = archive.chain(io::repeat(b'1'));
    let error = Reader::new(endless).next_member().unwrap_err();
    assert!(matches!(error, ArchiveError::Garbled { .. }), "{error}");
    let mut block = header(b'S', "f", 1 << 20);
    block[482] = 1;
    seal(&mut block);
    let endless = block.chain(io::repeat(1));
    let error = Reader::new(endless).next_member().unwrap_err();
    assert!(matches!(error, ArchiveError::Garbled { .. }), "{error}");
}

#[test]
fn damaged_archives_are_errors_and_never_more() {
    let mut whole = header(b'0', "f", 600);
    whole.extend(padded(&[7; 600]));
    whole.extend([0; 1024]);
    for end in (0..whole.len()).step_by(37) {
        let mut reader = Reader::new(&whole[..end]);
        let mut seen = 0;
        while let Ok(Some(_)) = reader.next_member() {
            seen += 1;
        }
        assert!(seen <= 1);
    }
    let mut wrong = whole.clone();
    wrong[0] = b'g';
    let error = Reader::new(&wrong[..]).next_member().unwrap_err();
    assert!(error.to_string().contains("sum is wrong"), "{error}");
    let cut = &whole[..BLOCK + 100];
    let mut reader = Reader::new(cut);
    let member = reader.next_member().unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("f")).unwrap();
    let error = reader.extract(&member, &file, &mut plenty()).unwrap_err();
    assert!(matches!(error, ArchiveError::Read(_)), "{error}");
}

#[test]
fn numbers_of_every_form_are_read() {
    for (field, value) in [
        (&b"0000644\0"[..], 0o644),
        (b"  644 \0\0", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (&[0x80, 0, 0, 0, 0, 0, 1, 0], 256),
    ] {
        assert_eq!(header::number(field).unwrap(), value, "{field:?}");
    }
    for bad in [&b"9999999\0"[..], b"-0000001", &[0xff; 12], b"12x45670"] {
        assert!(header::number(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn links_have_no_content_and_the_stream_is_read_to_its_end() {
    let mut archive = header(b'2', "l", 1 << 40);
    archive.extend(header(b'5', "d/", 0));
    archive.extend([0; 1024]);
    archive.extend([9; 5000]);
    let mut reader = Reader::new(&archive[..]);
    let kinds: Vec<MemberKind> = std::iter::from_fn(|| reader.next_member().unwrap())
        .map(|member| member.kind)
        .collect();
    assert_eq!(kinds, [MemberKind::Symlink, MemberKind::Directory]);
    assert!(reader.finish().unwrap().is_empty());
}

#[test]
fn an_archive_is_known_by_its_first_header_whether_or_not_it_has_a_magic_number() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    for flags in [
        &["--format=v7"][..],
        &["--format=gnu", "--label=backup"],
        &["--format=pax", "--label=backup"],
    ] {
        let made = Cmd::new("tar")
            .args(["-c"])
            .args(flags)
            .arg("-C")
            .arg(dir.path())
            .arg("file")
            .run()
            .unwrap();
        assert!(is_archive(&made.stdout), "{flags:?}");
        let mut archive = Reader::new(made.stdout.as_slice());
        let member = archive.next_member().unwrap().unwrap();
        assert_eq!(
            (member.path.as_slice(), member.size),
            (&b"file"[..], 1),
            "{flags:?}"
        );
        assert!(archive.next_member().unwrap().is_none(), "{flags:?}");
    }
    for other in [&b"x"[..], &[0; BLOCK], &[b'7'; BLOCK], b"\x7fELF"] {
        assert!(!is_archive(other));
    }
}
