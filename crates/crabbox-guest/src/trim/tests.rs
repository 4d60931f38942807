//! Against a fake host, with a real file system; freezing is only recorded.

use std::io::BufRead as _;
use std::io::BufReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::*;
use crate::freeze::Turn;

const DISK: u64 = 300 << 20;

#[expect(
    clippy::disallowed_methods,
    reason = "the guest has no crabbox_host, and these are tests"
)]
fn image() -> (tempfile::TempDir, File) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(DISK).unwrap();
    let made = std::process::Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-E",
            "nodiscard",
            "-O",
            "^metadata_csum,^uninit_bg,^resize_inode",
        ])
        .args(["-O", "^has_journal"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    (dir, File::open(&path).unwrap())
}

/// A fake layer that records whether it is frozen and how often it was.
#[derive(Default)]
struct Layer {
    frozen: AtomicBool,
    times: AtomicUsize,
}

fn freezer() -> (Freezer, Arc<Layer>) {
    let layer = Arc::new(Layer::default());
    let switched = Arc::clone(&layer);
    let switch = move |turn| {
        switched.frozen.store(turn == Turn::Freeze, Ordering::SeqCst);
        switched
            .times
            .fetch_add(usize::from(turn == Turn::Freeze), Ordering::SeqCst);
        Ok(())
    };
    (Freezer::with(switch, Duration::from_mins(1)).unwrap(), layer)
}

/// A host that sends `greeting` and replies to successive batches with `answers`, then goes away. Returns the
/// lines that it got, each with whether the layer was frozen when it was read.
fn host(
    greeting: &str,
    answers: &'static [&'static str],
    layer: &Arc<Layer>,
) -> (UnixStream, JoinHandle<Vec<(String, bool)>>) {
    let (guest, mut ours) = UnixStream::pair().unwrap();
    ours.write_all(greeting.as_bytes()).unwrap();
    let layer = Arc::clone(layer);
    let thread = std::thread::spawn(move || {
        let mut told = Vec::new();
        let mut answers = answers.iter();
        for line in BufReader::new(ours.try_clone().unwrap()).lines() {
            let line = line.unwrap();
            let end = line == "end";
            told.push((line, layer.frozen.load(Ordering::SeqCst)));
            match (end, answers.next_if(end)) {
                (true, Some(answer)) => ours.write_all(answer.as_bytes()).unwrap(),
                (true, None) => break,
                _ => {}
            }
        }
        told
    });
    (guest, thread)
}

/// Takes the next item only if wanted.
trait NextIf: Iterator {
    fn next_if(&mut self, wanted: bool) -> Option<Self::Item> {
        if wanted { self.next() } else { None }
    }
}

impl<I: Iterator> NextIf for I {}

fn greeting() -> String {
    format!("go {DISK}\n")
}

#[test]
fn every_block_is_named_while_the_layer_is_frozen_and_it_is_thawed_at_the_end() {
    let (_dir, disk) = image();
    let (freezer, layer) = freezer();
    let answers = &["done 4096\n", "late\n", "done 8192\n", "done 12288\n"];
    let (stream, told) = host(&greeting(), answers, &layer);
    let done = trim(&freezer, &disk, Host::greet(stream).unwrap()).unwrap();
    assert_eq!(
        done,
        Done {
            bytes: 12288,
            skipped: 0
        }
    );
    assert!(!layer.frozen.load(Ordering::SeqCst));
    let told = told.join().unwrap();
    assert!(told.iter().all(|(_, frozen)| *frozen), "{told:?}");
    let ends: Vec<_> = told.split(|(line, _)| line == "end").collect();
    // Three groups; the second was repeated verbatim, because the host was late.
    assert_eq!(ends.len(), 5, "{told:?}");
    assert_eq!(ends[1], ends[2]);
    assert_ne!(ends[2], ends[3]);
    let total: u64 = [ends[0], ends[2], ends[3]]
        .concat()
        .iter()
        .map(|(line, _)| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(total > DISK * 8 / 10 && total < DISK, "{total}");
}

#[test]
fn a_host_that_says_no_goes_away_or_talks_nonsense_leaves_a_thawed_layer() {
    let cases: [(&'static [&'static str], &str); 6] = [
        (
            &["refused its file system has no holes\n"],
            "the host refuses: its file system has no holes",
        ),
        (&[], "the host went away"),
        (&["done 1\n"], "the host went away"),
        (&["done much\n"], "the host said \"done much\""),
        (&["what\n"], "the host said \"what\""),
        (
            &[
                "late\n", "late\n", "late\n", "late\n", "late\n", "late\n", "late\n", "late\n",
            ],
            "too slow",
        ),
    ];
    let (_dir, disk) = image();
    for (answers, said) in cases {
        let (freezer, layer) = freezer();
        let (stream, told) = host(&greeting(), answers, &layer);
        let error = trim(&freezer, &disk, Host::greet(stream).unwrap()).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(!layer.frozen.load(Ordering::SeqCst), "{said}");
        assert_eq!(layer.times.load(Ordering::SeqCst), 1);
        told.join().unwrap();
    }
}

#[test]
fn a_host_that_takes_nothing_or_has_a_shorter_disk_is_told_nothing() {
    let (_dir, disk) = image();
    for (greeting, said) in [
        ("refused it is not ours\n", "the host refuses: it is not ours"),
        ("", "the host went away"),
        ("hello\n", "the host said \"hello\""),
        ("go 4096\n", "longer than its disk"),
    ] {
        let (freezer, layer) = freezer();
        let (stream, told) = if greeting.is_empty() {
            (UnixStream::pair().unwrap().0, std::thread::spawn(Vec::new))
        } else {
            host(greeting, &[], &layer)
        };
        let error = Host::greet(stream)
            .and_then(|host| trim(&freezer, &disk, host))
            .unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(!layer.frozen.load(Ordering::SeqCst));
        assert_eq!(told.join().unwrap(), []);
    }
}

#[test]
fn a_layer_that_is_not_frozen_any_more_is_not_named() {
    let (_dir, disk) = image();
    let layer = Arc::new(Layer::default());
    // Its time limit passed before the first group was read.
    let freezer = Freezer::with(|_| Ok(()), Duration::ZERO).unwrap();
    let (stream, told) = host(&greeting(), &["done 1\n"], &layer);
    let mut host = Host::greet(stream).unwrap();
    let frozen = freezer.freeze().unwrap();
    clock::poll_until(Duration::from_secs(20), Duration::from_millis(1), || {
        frozen.age().is_none().then_some(())
    });
    let error = slice(&disk, &mut host, &frozen, &mut 0, &mut Done::default()).unwrap_err();
    assert!(matches!(error, TrimError::Slow), "{error}");
    drop(host);
    assert_eq!(told.join().unwrap(), []);
}

#[test]
fn a_client_is_told_numbers_or_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trim");
    let listener = UnixListener::bind(&path).unwrap();
    let outcomes = [
        (Ok(Done { bytes: 5, skipped: 1 }), Ok((5, 1))),
        (Err(TrimError::Slow), Err(TrimError::Slow.to_string())),
    ];
    for (outcome, told) in outcomes {
        let line = answer(outcome);
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask(&path));
            listener.accept().unwrap().0.write_all(line.as_bytes()).unwrap();
            assert_eq!(asked.join().unwrap().unwrap(), told);
        });
    }
    drop(listener);
    assert!(ask(&path).is_err());
}
