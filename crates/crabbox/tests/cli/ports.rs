//! `ports`: forwards that outlive the command, against a real sshd.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use crabbox_host::command::Cmd;
use serde_json::{Value, json};

use crate::place::{Answer, Place};
use crate::remote::Entered;
use crate::static_host::{ID, configure, connected, existing};

/// A server on a free port that answers every connection with `word`.
fn server(word: &'static str) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(word.as_bytes()).unwrap();
        }
    });
    port
}

fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn ports(place: &Place, lease: &str, words: &[&str]) -> Answer {
    place.run(&[&["ports", "--id", lease], words].concat())
}

fn ok(place: &Place, lease: &str, words: &[&str]) -> String {
    let answer = ports(place, lease, words);
    assert_eq!(answer.code, 0, "{words:?}: {}", answer.err);
    answer.out
}

/// The local port that `add` reports.
fn local(line: &str) -> u16 {
    let rest = line.split_once("127.0.0.1:").unwrap().1;
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

fn listed(place: &Place, lease: &str) -> Value {
    serde_json::from_str(&ok(place, lease, &["list", "--json"])).unwrap()
}

#[test]
fn forwards_stay_have_names_and_end_one_by_one_or_with_the_lease() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    assert_eq!(place.run(&["warmup"]).code, 0);
    let (one, two) = (server("one"), server("two"));
    let first = ok(&place, ID, &["add", "web", &one.to_string()]);
    let at = local(&first);
    assert_eq!(
        first,
        format!("web http://127.0.0.1:{at} remote={one} state=open\n")
    );
    assert_eq!(ask(at).as_deref(), Some("one"));
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    ok(&place, ID, &["add", "db", &format!("{free}:{two}")]);
    assert_eq!(
        (ask(free).as_deref(), ask(at).as_deref()),
        (Some("two"), Some("one"))
    );
    assert_eq!(
        listed(&place, ID),
        json!({"lease": ID, "forwards": [
            {"name": "web", "local": at, "remote": one, "state": "open"},
            {"name": "db", "local": free, "remote": two, "state": "open"}
        ]})
    );
    assert_eq!(
        ok(&place, ID, &["add", "web", &one.to_string()]),
        first,
        "once more changes nothing"
    );
    let other = ports(&place, ID, &["add", "web", &two.to_string()]);
    assert_eq!(other.code, 2, "{}", other.err);
    let taken = ports(&place, ID, &["add", "more", &format!("{at}:{two}")]);
    assert_eq!(taken.code, 2, "{}", taken.err);
    assert!(
        taken
            .err
            .starts_with(&format!("cannot listen on 127.0.0.1:{at}\n")),
        "{}",
        taken.err
    );
    assert_eq!(ok(&place, ID, &["rm", "web"]), "");
    assert_eq!((ask(at), ask(free).as_deref()), (None, Some("two")));
    assert_eq!(ports(&place, ID, &["rm", "web"]).code, 4);
    assert_eq!(place.run(&["stop", ID]).code, 0);
    assert_eq!(ask(free), None);
    assert!(!connected(&place), "no connection and no list is left");
}

#[test]
fn a_forward_of_a_microvm_whose_connection_broke_is_told_and_opened_again() {
    let lease = Entered::new();
    let place = &lease.place;
    let (one, two) = (server("one"), server("two"));
    let at = local(&ok(place, "jade-krill", &["add", "web", &one.to_string()]));
    ok(place, "jade-krill", &["add", "db", &two.to_string()]);
    let sockets = std::fs::read_dir(place.path("run/crabbox")).unwrap();
    let paths = sockets.map(|entry| entry.unwrap().path());
    let socket = paths
        .into_iter()
        .find(|path| path.extension().is_some_and(|end| end == "p"))
        .unwrap();
    let kept: Value =
        serde_json::from_slice(&std::fs::read(socket.with_extension("ports")).unwrap()).unwrap();
    let command = std::fs::read(format!("/proc/{}/cmdline", kept[0]["pid"])).unwrap();
    let command = String::from_utf8(command).unwrap();
    assert!(
        command.contains("\0ControlPersist=yes\0"),
        "it stays without being used: {command}"
    );
    let ended = Cmd::new("ssh")
        .args(["-O", "exit", "-S"])
        .arg(&socket)
        .arg("x")
        .run();
    ended.unwrap();
    assert_eq!(ask(at), None);
    let states = || {
        let listed = listed(place, "jade-krill");
        let forwards = listed["forwards"].as_array().unwrap().clone();
        forwards
            .into_iter()
            .map(|forward| forward["state"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(), ["broken", "broken"]);
    assert_eq!(
        local(&ok(place, "jade-krill", &["add", "web", &one.to_string()])),
        at,
        "the same port as before"
    );
    assert_eq!(ask(at).as_deref(), Some("one"));
    assert_eq!(
        states(),
        ["broken", "open"],
        "the other one is not opened behind anybody's back"
    );
    ok(place, "jade-krill", &["rm", "db"]);
    assert_eq!(ask(at).as_deref(), Some("one"));
    ok(place, "jade-krill", &["rm", "web"]);
    assert_eq!(ask(at), None);
    assert!(!connected(place), "with the last forward its connection ends");
    let at = local(&ok(place, "jade-krill", &["add", "web", &one.to_string()]));
    assert_eq!(ask(at).as_deref(), Some("one"));
    let stop = place.run(&["stop", "jade-krill"]);
    assert_eq!(stop.code, 0, "{}", stop.err);
    assert_eq!(ask(at), None);
    assert!(!connected(place), "no connection and no list is left");
}

#[test]
fn words_that_make_no_sense_change_nothing() {
    let lease = Entered::new();
    for words in [
        &["add"][..],
        &["add", "web"],
        &["add", "web", "0"],
        &["add", "web", "80:"],
        &["add", "web", "1:2:3"],
        &["add", "a b", "80"],
        &["rm"],
        &["list", "more"],
    ] {
        let answer = ports(&lease.place, "jade-krill", words);
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (2, ""),
            "{words:?}: {}",
            answer.err
        );
    }
    assert!(!connected(&lease.place));
}
