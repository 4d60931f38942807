use super::*;
use std::fs;
use std::os::fd::AsFd as _;

fn tree(list: &[u8]) -> Result<Tree, CopyError> {
    Tree::parse(list, "top")
}

#[test]
fn a_tree_of_files_and_directories_is_taken_and_of_one_file_its_name() {
    let entries = |names: &[&str]| -> Vec<EntryPath> {
        names.iter().map(|name| entry(name.as_bytes()).unwrap()).collect()
    };
    let want = Tree {
        is_file: false,
        dirs: entries(&["d", "d/e\n"]),
        files: entries(&["d/f", "g"]),
        sockets: entries(&["d/socket"]),
    };
    assert_eq!(tree(b"d\0dd\0dd/e\n\0fd/f\0fg\0sd/socket\0").unwrap(), want);
    let want = Tree {
        is_file: true,
        dirs: Vec::new(),
        files: entries(&["top"]),
        sockets: Vec::new(),
    };
    assert_eq!(tree(b"f\0").unwrap(), want);
}

#[test]
fn what_could_leave_the_copy_or_is_no_copy_is_refused() {
    for list in [
        &b"d\0f../evil\0"[..],
        b"d\0fa/../../evil\0",
        b"d\0f/evil\0",
        b"d\0f./evil\0",
        b"d\0fa//evil\0",
        b"d\0d..\0",
        b"d\0ll\0fl/evil\0",
        b"d\0pp\0",
        b"d\0bp\0",
        b"d\0cp\0",
        b"d\0?p\0",
        b"d\0d\0",
        b"d\0fx\0fx\0",
        b"d\0dx\0fx\0",
        b"d\0fa/b\0",
        b"d\0fa\0fa/b\0",
        b"d\0da/b\0da\0",
        b"f\0fg\0",
        b"f\0d\0",
        b"fa\0",
        b"l\0",
        b"s\0",
        b"\0",
        b"",
    ] {
        let refused = tree(list);
        assert!(
            matches!(refused, Err(CopyError::Refused { .. })),
            "{}: {refused:?}",
            list.escape_ascii()
        );
    }
    let long = [b"d\0f", vec![b'x'; 256].as_slice(), b"\0"].concat();
    assert!(matches!(tree(&long), Err(CopyError::Refused { .. })));
}

#[test]
fn a_list_without_end_or_floor_is_refused() {
    let mut deep = b"d\0".to_vec();
    for depth in 1..=DEPTH_LIMIT {
        deep.extend([b"d", vec!["a"; depth].join("/").as_bytes(), b"\0"].concat());
    }
    assert_eq!(tree(&deep).unwrap().dirs.len(), DEPTH_LIMIT);
    deep.extend([b"d", vec!["a"; DEPTH_LIMIT + 1].join("/").as_bytes(), b"\0"].concat());
    assert!(matches!(tree(&deep), Err(CopyError::Refused { what, .. }) if what.contains("deep")));
    let mut many = b"d\0".to_vec();
    for number in 0..=NAMES_LIMIT {
        many.extend(format!("f{number:x}\0").bytes());
    }
    assert!(matches!(tree(&many), Err(CopyError::Refused { what, .. }) if what.contains("more than")));
}

#[test]
fn directories_cost_their_part_of_the_budget_and_can_be_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let here = Beneath::open(dir.path()).unwrap();
    let dirs = ["a", "b"].map(|name| entry(name.as_bytes()).unwrap());
    let (silent, writer) = io::pipe().unwrap();
    let mut budget = Budget::of(ENTRY, crabbox_host::budget::Bound::Lease);
    let over = make_dirs(&here, &dirs, &mut budget, silent.as_fd());
    assert!(matches!(over, Err(CopyError::Over { .. })), "{over:?}");
    assert!(dir.path().join("a").exists() && !dir.path().join("b").exists());
    drop(writer);
    let ended = make_dirs(&here, &dirs, &mut budget, silent.as_fd());
    assert!(matches!(ended, Err(CopyError::Interrupted)), "{ended:?}");
}

#[test]
fn what_is_mounted_inside_the_destination_is_in_the_way_before_anything_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["c/a", "c/z", "to/z"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    let mounted = dir.path().join("to/z");
    let mount = |words: &[&str]| {
        let done = crabbox_host::command::Cmd::new(words[0])
            .args(&words[1..])
            .arg(&mounted)
            .run();
        done.unwrap();
    };
    let here = Beneath::open(dir.path()).unwrap();
    let (copy, to) = (entry(b"c").unwrap(), entry(b"to").unwrap());
    // Another file system, and a bind mount of the same one, which only differs in its mount id.
    let bound = dir.path().join("c/a");
    for how in [
        &["mount", "-t", "tmpfs", "none"][..],
        &["mount", "--bind", bound.to_str().unwrap()],
    ] {
        mount(how);
        let refused = fits(&here, &copy, &here, &to);
        mount(&["umount"]);
        assert!(
            matches!(&refused, Err(CopyError::InTheWay { path, .. }) if path.ends_with("to/z")),
            "{refused:?}"
        );
    }
    fits(&here, &copy, &here, &to).unwrap();
}

#[test]
fn who_has_a_stage_that_stays_is_told_where_it_is_and_what_became_of_the_copy() {
    let dir = tempfile::tempdir().unwrap();
    let here = Beneath::open(dir.path()).unwrap();
    let stays = |copied| {
        let stage = Stage::new(&here).unwrap();
        let path = stage.dir.path().to_owned();
        // A mount point is the one thing that even root cannot remove.
        let mount = |words: &[&str]| {
            crabbox_host::command::Cmd::new(words[0])
                .args(&words[1..])
                .arg(&path)
                .run()
        };
        mount(&["mount", "-t", "tmpfs", "none"]).unwrap();
        let ended = stage.end(copied).unwrap_err();
        mount(&["umount"]).unwrap();
        assert!(ended.to_string().contains(path.to_str().unwrap()), "{ended}");
        (ended.to_string(), crabbox_core::fault::Fault::kind(&ended))
    };
    let (said, kind) = stays(Err(CopyError::Interrupted));
    assert!(
        said.contains("nothing was copied") && kind == crabbox_core::fault::Kind::Passthrough(130),
        "{said}"
    );
    assert!(stays(Ok(())).0.contains("the copy is in its place"));
}

#[test]
fn directories_are_merged_and_nothing_else_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("from/d")).unwrap();
    fs::create_dir_all(at("to/d")).unwrap();
    fs::write(at("from/d/new"), "new").unwrap();
    fs::write(at("from/d/both"), "new").unwrap();
    fs::write(at("to/d/both"), "old").unwrap();
    fs::write(at("to/d/own"), "own").unwrap();
    let here = Beneath::open(dir.path()).unwrap();
    let name = |name: &str| entry(name.as_bytes()).unwrap();
    let put = |from: &str, to: &str| {
        fits(&here, &name(from), &here, &name(to))?;
        super::put(&here, &name(from), &here, &name(to))
    };
    put("from", "to").unwrap();
    let read = |name: &str| fs::read_to_string(at(name)).unwrap();
    assert_eq!(
        (read("to/d/new"), read("to/d/both"), read("to/d/own")),
        ("new".into(), "new".into(), "own".into())
    );
    fs::write(at("file"), "").unwrap();
    assert!(matches!(put("from", "file"), Err(CopyError::InTheWay { .. })));
    assert!(matches!(put("file", "to"), Err(CopyError::InTheWay { .. })));
    // A conflict for one file leaves all others as they were.
    for made in ["more/d/clash", "more/a"] {
        fs::create_dir_all(at(made)).unwrap();
    }
    fs::write(at("to/d/clash"), "old").unwrap();
    assert!(matches!(put("more", "to"), Err(CopyError::InTheWay { .. })));
    assert!(!at("to/a").exists());
    // A link is replaced, not followed.
    std::os::unix::fs::symlink(at("to/d/own"), at("link")).unwrap();
    put("file", "link").unwrap();
    assert_eq!(read("to/d/own"), "own");
}
