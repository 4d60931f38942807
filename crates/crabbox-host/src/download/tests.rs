//! A test server on loopback, which cuts connections, changes its file and stops supporting ranges.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;

/// What the server does with one request.
#[derive(Clone, Copy)]
struct Answer {
    content: &'static [u8],
    tag: &'static str,
    /// Bytes after which the connection is cut.
    cut: usize,
    ranges: bool,
}

const WHOLE: &[u8] = b"0123456789abcdefghij";

const GOOD: Answer = Answer {
    content: WHOLE,
    tag: "\"one\"",
    cut: usize::MAX,
    ranges: true,
};

/// Serves these answers, one per connection, and then no more; returns the URL and the `Range` of each
/// request.
fn serve(answers: Vec<Answer>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut range, mut condition) = (String::new(), String::new());
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap();
                if line.is_empty() {
                    break;
                }
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("range: bytes=") {
                    value.clone_into(&mut range);
                }
                if lower.starts_with("if-range: ") {
                    line["if-range: ".len()..].clone_into(&mut condition);
                }
            }
            log.lock().unwrap().push(range.clone());
            let from = range.trim_end_matches('-').parse().unwrap_or(0);
            let partial = answer.ranges && from > 0 && condition == answer.tag;
            let body = if partial {
                &answer.content[from..]
            } else {
                answer.content
            };
            let status = if partial {
                let length = answer.content.len();
                format!(
                    "206 Partial\r\nContent-Range: bytes {from}-{}/{length}",
                    length - 1
                )
            } else {
                "200 OK".to_owned()
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: {}\r\nConnection: close\r\n\r\n",
                body.len(),
                answer.tag
            );
            stream.write_all(head.as_bytes()).unwrap();
            // A client without disk space closes the connection.
            stream.write_all(&body[..body.len().min(answer.cut)]).ok();
        }
    });
    (url, asked)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("file");
    let (url, asked) = serve(vec![Answer { cut: 7, ..GOOD }, GOOD]);
    let mut told = Vec::new();
    fetch(&url, &to, None, &mut |got, of| told.push((got, of))).unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), WHOLE);
    assert_eq!(*asked.lock().unwrap(), ["", "7-"]);
    assert_eq!(names(dir.path()), ["file"]);
    assert_eq!(told.last(), Some(&(20, Some(20))));
}

#[test]
fn another_version_is_never_joined_to_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("file");
    let other = Answer {
        content: b"ABCDEFGHIJKLMNOPQRST",
        tag: "\"two\"",
        ..GOOD
    };
    let (url, _) = serve(vec![Answer { cut: 7, ..GOOD }, other]);
    fetch(&url, &to, None, &mut |_, _| {}).unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), other.content);
}

#[test]
fn a_server_without_ranges_is_asked_for_everything_again() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("file");
    let (url, _) = serve(vec![
        Answer { cut: 7, ..GOOD },
        Answer {
            ranges: false,
            ..GOOD
        },
    ]);
    fetch(&url, &to, None, &mut |_, _| {}).unwrap();
    assert_eq!(std::fs::read(&to).unwrap(), WHOLE);
}

#[test]
fn a_download_that_never_ends_is_an_error_and_its_beginning_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("file");
    let nothing = Answer { cut: 0, ..GOOD };
    let (url, _) = serve([vec![Answer { cut: 7, ..GOOD }], vec![nothing; 10]].concat());
    let error = fetch(&url, &to, None, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().ends_with("stopped at byte 7 of 20"), "{error}");
    assert_eq!(names(dir.path()), ["file.part", "file.tag"]);
}

#[test]
fn wrong_content_is_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("file");
    let (url, _) = serve(vec![GOOD]);
    let error = fetch(&url, &to, Some(&"0".repeat(64)), &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, DownloadError::WrongDigest { .. }), "{error:?}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
    let (url, _) = serve(vec![GOOD]);
    fetch(&url, &to, Some(&digest::sha256(WHOLE)), &mut |_, _| {}).unwrap();
}

#[test]
fn a_disk_that_fills_is_told_and_given_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    rustix::mount::mount(
        "tmpfs",
        &small,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"size=64k",
    )
    .unwrap();
    let large = Answer {
        content: Box::leak(vec![7; 1 << 20].into_boxed_slice()),
        ..GOOD
    };
    let (url, _) = serve(vec![large]);
    let result = fetch(&url, &small.join("file"), None, &mut |_, _| {});
    let left = names(&small);
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = result.unwrap_err();
    assert!(
        error.to_string().contains("small/file.part") && matches!(error, DownloadError::File(_)),
        "{error:?}"
    );
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn nobody_there_is_told_with_the_address() {
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("http://127.0.0.1:{port}/file");
    let error = fetch(&url, &dir.path().join("file"), None, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains(&url), "{error}");
    assert!(matches!(error, DownloadError::Request { .. }), "{error:?}");
}
