use std::os::unix::fs::{MetadataExt as _, symlink};

use super::*;

fn entry(path: &str) -> EntryPath {
    EntryPath::exact(path.as_bytes()).unwrap()
}

/// A tree, and a directory outside it to which links in the tree lead.
fn tree() -> (tempfile::TempDir, Beneath) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["tree/real", "victim"] {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
    }
    symlink("../victim", dir.path().join("tree/out")).unwrap();
    symlink("real", dir.path().join("tree/inner")).unwrap();
    let beneath = Beneath::open(&dir.path().join("tree")).unwrap();
    (dir, beneath)
}

fn put(beneath: &Beneath, path: &str, bytes: &[u8], existing: Existing) -> Result<(), BeneathError> {
    let mut placing = beneath.begin(&entry(path), 0o666)?;
    placing.write_all(bytes).unwrap();
    placing.commit(existing).map(drop)
}

#[test]
fn no_part_of_a_path_may_be_a_link() {
    let (dir, beneath) = tree();
    for path in ["out/f", "inner/f"] {
        let error = put(&beneath, path, b"x", Existing::Replace).unwrap_err();
        assert!(matches!(error, BeneathError::Link { .. }), "{path}: {error}");
        let read = beneath.open_file(&entry(path), OFlags::RDONLY, Mode::empty());
        for error in [
            read.unwrap_err(),
            beneath.append(&entry(path), 0o600).unwrap_err(),
            beneath.kind(&entry(path)).unwrap_err(),
        ] {
            assert!(matches!(error, BeneathError::Link { .. }), "{path}: {error:?}");
        }
    }
    for path in ["out", "out/deep", "inner/deep"] {
        let error = beneath.make_dirs(Some(&entry(path)), 0o755).unwrap_err();
        assert!(matches!(error, BeneathError::Link { .. }), "{path}: {error}");
    }
    for empty in ["victim", "tree/real"] {
        assert!(
            std::fs::read_dir(dir.path().join(empty))
                .unwrap()
                .next()
                .is_none()
        );
    }
}

#[test]
fn a_link_under_the_name_is_replaced_and_what_it_leads_to_is_whole() {
    let (dir, beneath) = tree();
    std::fs::write(dir.path().join("victim/f"), "precious").unwrap();
    symlink("../victim/f", dir.path().join("tree/f")).unwrap();
    let error = beneath.append(&entry("f"), 0o600).unwrap_err();
    assert!(matches!(error, BeneathError::Link { .. }), "{error:?}");
    put(&beneath, "f", b"new", Existing::Replace).unwrap();
    assert_eq!(std::fs::read(dir.path().join("victim/f")).unwrap(), b"precious");
    assert_eq!(std::fs::read(dir.path().join("tree/f")).unwrap(), b"new");
}

#[test]
fn a_file_that_is_not_finished_leaves_what_was_there_and_no_other_name() {
    let (dir, beneath) = tree();
    std::fs::write(dir.path().join("tree/f"), "old").unwrap();
    let mut placing = beneath.begin(&entry("f"), 0o666).unwrap();
    placing.write_all(b"half").unwrap();
    drop(placing);
    let refused = put(&beneath, "f", b"new", Existing::Refuse).unwrap_err();
    assert!(matches!(refused, BeneathError::Exists { .. }), "{refused}");
    let refused = put(&beneath, "real", b"new", Existing::Replace).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("real is there already and is a directory"),
        "{refused}"
    );
    assert_eq!(std::fs::read(dir.path().join("tree/f")).unwrap(), b"old");
    assert_eq!(beneath.names().unwrap().len(), 4, "no temporary file may stay");
}

#[test]
fn directories_are_made_and_modes_are_no_more_open_than_asked() {
    let (dir, beneath) = tree();
    let made = beneath.make_dirs(Some(&entry("a/b")), 0o700).unwrap();
    assert_eq!(made.path(), dir.path().join("tree/a/b"));
    let mode = |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("tree/a"), mode("tree/a/b")), (0o700, 0o700));
    let placing = made.begin(&entry("secret"), 0o600).unwrap();
    placing.make_executable().unwrap();
    placing.commit(Existing::Refuse).unwrap();
    assert_eq!(mode("tree/a/b/secret"), 0o700);
    std::fs::write(dir.path().join("tree/file"), "").unwrap();
    let error = beneath.make_dirs(Some(&entry("file/x")), 0o700).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("file is there already and is not a directory"),
        "{error}"
    );
}

#[test]
fn a_pipe_neither_holds_nor_takes_what_is_appended() {
    let (dir, beneath) = tree();
    let pipe = dir.path().join("tree/pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from_raw_mode(0o600)).unwrap();
    // ENXIO: nobody reads from it.
    let error = beneath.append(&entry("pipe"), 0o600).unwrap_err();
    assert!(
        matches!(&error, BeneathError::Io { source, .. } if source.raw_os_error() == Some(6)),
        "{error:?}"
    );
    let kept = rustix::fs::open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    let error = beneath.append(&entry("pipe"), 0o600).unwrap_err();
    assert!(error.to_string().contains("a named pipe"), "{error}");
    drop(kept);
    let refused = put(&beneath, "pipe", b"x", Existing::Replace).unwrap_err();
    assert!(matches!(refused, BeneathError::InTheWay { .. }), "{refused}");
}

#[test]
fn a_new_name_without_the_kernel_s_help_is_one_that_nobody_has() {
    let dir = tempfile::tempdir().unwrap();
    let here = Beneath::open(dir.path()).unwrap();
    std::fs::write(dir.path().join("file"), "new").unwrap();
    std::fs::create_dir(dir.path().join("tree")).unwrap();
    std::fs::write(dir.path().join("taken"), "old").unwrap();
    for name in ["file", "tree"] {
        assert_eq!(
            link_anew((&here, name), (&here, "taken")),
            Err(Errno::EXIST),
            "{name}"
        );
        assert_eq!(link_anew((&here, name), (&here, "moved")), Ok(()));
        assert!(dir.path().join("moved").exists() && !dir.path().join(name).exists());
        std::fs::rename(dir.path().join("moved"), dir.path().join(format!("{name} moved"))).unwrap();
    }
    assert_eq!(std::fs::read(dir.path().join("taken")).unwrap(), b"old");
}
