use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use crabbox_host::unix;
use proptest::prelude::*;

use super::*;
use crate::resource::disk::VSOCK;

const SIZE: u64 = 4 << 20;

/// A full disk between two files that must not change.
struct Dir {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.ext4");
        for name in ["base.ext4", "disk.ext4", "other"] {
            std::fs::write(dir.path().join(name), vec![7; 4 << 20]).unwrap();
        }
        Self { dir, path }
    }

    fn holes(&self) -> Holes {
        Holes::open(&self.path, owner(None)).unwrap()
    }

    fn assert_others_are_whole(&self) {
        for name in ["base.ext4", "other"] {
            assert!(
                std::fs::read(self.dir.path().join(name)).unwrap() == vec![7; 4 << 20],
                "{name}"
            );
        }
        assert_eq!(self.path.metadata().unwrap().len(), SIZE);
    }
}

/// The replies to a guest that sends `text` in a new session, and then nothing more.
fn told(disk: &Holes, budget: Duration, text: &[u8]) -> Vec<String> {
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let (ended, _stop) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut session = Session {
                stream: ours,
                ended: ended.as_fd(),
                budget,
            };
            session.run(disk);
        });
        // The session may be closed while we still write.
        guest.write_all(text).ok();
        guest.shutdown(std::net::Shutdown::Write).ok();
        BufReader::new(guest).lines().map_while(Result::ok).collect()
    })
}

#[test]
fn what_a_guest_names_comes_back_and_the_rest_stays() {
    let dir = Dir::new();
    let before = dir.path.metadata().unwrap().blocks();
    let said = told(&dir.holes(), BUDGET, b"4096 8192\n1048576 1048576\nend\n");
    assert_eq!(said, [format!("go {SIZE}"), "done 1056768".to_owned()]);
    assert_eq!((before - dir.path.metadata().unwrap().blocks()) * 512, 1_056_768);
    let bytes = std::fs::read(&dir.path).unwrap();
    for (at, byte) in bytes.iter().enumerate() {
        let punched = (4096..12288).contains(&at) || (1 << 20..2 << 20).contains(&at);
        assert_eq!(*byte, if punched { 0 } else { 7 }, "{at}");
    }
    dir.assert_others_are_whole();
}

#[test]
fn what_is_no_list_of_whole_blocks_of_the_disk_is_refused_and_nothing_of_it_happens() {
    let dir = Dir::new();
    let endless = "0 4096\n".repeat(BATCH + 1) + "end\n";
    for text in [
        "0 4096\n4194304 4096\nend\n",
        "0 4096\n0 4198400\nend\n",
        "0 4096\n18446744073709547520 8192\nend\n",
        "0 4096\n-4096 4096\nend\n",
        "0 4096\n512 4096\nend\n",
        "0 4096\n4096 0\nend\n",
        "0 4096\n4096 100\nend\n",
        "0 4096\n4096\nend\n",
        "0 4096\n\nend\n",
        "0 4096\n4096 4096 4096\nend\n",
        "0 4096\n99999999999999999999 4096\nend\n",
        "0 4096\nx end\n",
        endless.as_str(),
    ] {
        let said = told(&dir.holes(), BUDGET, text.as_bytes());
        assert_eq!(said.len(), 2, "{text}: {said:?}");
        assert_eq!(
            said[1], "refused that is not a list of parts of the disk",
            "{text}"
        );
        assert!(std::fs::read(&dir.path).unwrap() == vec![7; 4 << 20], "{text}");
    }
    let said = told(&dir.holes(), BUDGET, &vec![b'1'; BATCH_BYTES * 3]);
    assert_eq!(said[1], "refused that is too much at once");
    assert_eq!(
        told(&dir.holes(), BUDGET, b"0 4096\n"),
        [format!("go {SIZE}")],
        "it never ended"
    );
    assert!(std::fs::read(&dir.path).unwrap() == vec![7; 4 << 20]);
    dir.assert_others_are_whole();
}

#[test]
fn what_comes_too_late_is_asked_for_again_and_not_done() {
    let dir = Dir::new();
    let said = told(&dir.holes(), Duration::ZERO, b"0 4096\nend\n");
    assert_eq!(said, [format!("go {SIZE}"), "late".to_owned()]);
    assert!(std::fs::read(&dir.path).unwrap() == vec![7; 4 << 20]);
    // The time runs from our message on, not from the guest's.
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let (ended, _stop) = std::io::pipe().unwrap();
    let holes = dir.holes();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut session = Session {
                stream: ours,
                ended: ended.as_fd(),
                budget: Duration::from_millis(300),
            };
            session.run(&holes);
        });
        let mut lines = BufReader::new(guest.try_clone().unwrap())
            .lines()
            .map(Result::unwrap);
        assert_eq!(lines.next().unwrap(), format!("go {SIZE}"));
        clock::poll_until(Duration::from_millis(400), || None::<()>);
        guest.write_all(b"0 4096\nend\n").unwrap();
        assert_eq!(lines.next().unwrap(), "late");
        guest.write_all(b"0 4096\nend\n").unwrap();
        assert_eq!(lines.next().unwrap(), "done 4096");
        drop(lines);
        guest.shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn a_guest_that_names_the_same_part_for_ever_is_sent_away() {
    let dir = Dir::new();
    let holes = dir.holes();
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let (ended, _stop) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut session = Session {
                stream: ours,
                ended: ended.as_fd(),
                budget: BUDGET,
            };
            session.run(&holes);
            drop(session);
        });
        let mut lines = BufReader::new(guest.try_clone().unwrap()).lines();
        let mut count = 0;
        let last = loop {
            match lines.next() {
                Some(Ok(line)) if line.starts_with("refused") => break line,
                Some(Ok(_)) => count += 1,
                end => panic!("{end:?}"),
            }
            guest.write_all(format!("0 {SIZE}\nend\n").as_bytes()).unwrap();
        };
        assert_eq!(last, "refused that is more than there is to trim");
        assert!(count < 5, "{count}");
    });
}

#[test]
fn guests_are_served_one_after_the_other_and_the_end_does_not_wait_for_them() {
    let dir = Dir::new();
    let socket = dir.dir.path().join(format!("{VSOCK}_{TRIM_PORT}"));
    let trims = serve(unix::bind(&socket).unwrap(), dir.holes()).unwrap();
    let ask = || {
        let mut guest = unix::connect(&socket).unwrap();
        let mut lines = BufReader::new(guest.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        guest.write_all(b"0 4096\nend\n").unwrap();
        lines.next().unwrap().unwrap()
    };
    let said: Vec<String> = std::thread::scope(|scope| {
        let guests: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
        guests.into_iter().map(|guest| guest.join().unwrap()).collect()
    });
    let mut said = said;
    said.sort();
    assert_eq!(said, ["done 0", "done 4096"]);
    // A guest that sends nothing.
    let silent = unix::connect(&socket).unwrap();
    let mut byte = [0];
    silent.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    (&silent).read_exact(&mut byte).unwrap();
    let begun = Instant::now();
    drop(trims);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!((&silent).read_to_end(&mut Vec::new()).is_ok(), "it is hung up on");
}

#[test]
fn a_dead_supervisors_socket_is_replaced_for_our_own_images_only() {
    let dir = Dir::new();
    let socket = dir.dir.path().join(format!("{VSOCK}_{TRIM_PORT}"));
    drop(unix::bind(&socket).unwrap());
    let record = LeaseRecord {
        rootfs_path: dir.path.to_string_lossy().into_owned(),
        ..LeaseRecord::default()
    };
    let mut journal = Journal::default();
    assert!(resume(&record, &journal).is_none());
    journal.notes.push(("disk".to_owned(), "reflink".to_owned()));
    assert!(resume(&record, &journal).is_none());
    assert!(unix::connect(&socket).is_err());
    journal.notes = vec![("disk".to_owned(), disk::SHARED_BASE.to_owned())];
    let trims = resume(&record, &journal);
    assert!(trims.is_some());
    unix::connect(&socket).unwrap();
    drop(trims);
    // A link that a compromised VMM may have put in place of its disk.
    std::fs::remove_file(&dir.path).unwrap();
    std::os::unix::fs::symlink(dir.dir.path().join("base.ext4"), &dir.path).unwrap();
    assert!(resume(&record, &journal).is_none());
    std::fs::remove_file(&dir.path).unwrap();
    std::fs::hard_link(dir.dir.path().join("base.ext4"), &dir.path).unwrap();
    assert!(resume(&record, &journal).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a guest sends: its disk keeps its length, ranges that it did not name keep their content, and
    /// nothing else changes.
    #[test]
    fn whatever_a_guest_says_only_its_own_disk_changes(bytes in crabbox_testkit::mutate::damaged(vec![
        b"0 4096\n8192 4096\nend\n".to_vec(),
        b"4190208 4096\nend\n1048576 65536\nend\n0 4096\nend\n".to_vec(),
        b"0 4194304\nend\n".to_vec(),
        b"end\nend\n".to_vec(),
    ])) {
        let dir = Dir::new();
        let said = told(&dir.holes(), BUDGET, &bytes);
        let go = format!("go {SIZE}");
        prop_assert!(said.first().is_none_or(|line| *line == go));
        for line in said.iter().skip(1) {
            prop_assert!(line.starts_with("done ") || line.starts_with("refused "), "{line}");
        }
        dir.assert_others_are_whole();
        let disk = std::fs::File::open(&dir.path).unwrap();
        let mut block = [0; 4096];
        for at in (0..SIZE).step_by(4096) {
            disk.read_exact_at(&mut block, at).unwrap();
            prop_assert!(block == [0; 4096] || block == [7; 4096], "{at}");
        }
    }
}
