//! Where bytes from a guest may be written locally: not through symlinks committed to a repository, not more
//! of them than fit, and not more readable than they should be.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use crabbox_host::command::Cmd;

use crate::forged::{forged, in_place_of_the_agent, with_agent};
use crate::place::{Answer, Place};
use crate::remote::Entered;
use crate::run::entered;

/// A lease, and a repository with links that lead to `outside` and to its own `.git`.
fn trapped() -> Entered {
    let lease = entered();
    symlink("../outside", lease.place.path("repo/out")).unwrap();
    symlink(".git", lease.place.path("repo/git")).unwrap();
    lease
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).unwrap().next().is_none()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The only file below `.crabbox/<kind>`, in a directory of its own or not.
fn kept(lease: &Entered, kind: &str) -> std::path::PathBuf {
    let mut at = lease.place.path("repo/.crabbox").join(kind);
    while at.is_dir() {
        let mut inside = fs::read_dir(&at).unwrap();
        at = inside.next().expect("something is kept").unwrap().path();
    }
    at
}

#[test]
fn nothing_of_a_run_goes_through_a_link_of_the_repository() {
    let lease = trapped();
    let outside = lease.place.path("outside");
    let absolute = lease.place.path("repo/out/f");
    let absolute = format!("f={}", absolute.display());
    for flags in [
        &["--download", "f=out/f"][..],
        &["--download", "f=out/deep/f"],
        &["--download", "f=./out/../out/f"],
        &["--download", &absolute],
        &["--download", "f=git/hooks/post-commit"],
        &["--capture-stdout", "out/f"],
        &["--capture-stderr", "git/f"],
        &["--timing-record", "out/f"],
    ] {
        let refused = lease.script(flags, "echo x > f; chmod 755 f");
        assert_ne!(refused.code, 0, "{flags:?}: {}", refused.err);
        assert!(
            refused.err.contains("symbolic link"),
            "{flags:?}: {}",
            refused.err
        );
        assert!(is_empty(&outside), "{flags:?}");
        assert!(!lease.place.path("repo/.git/hooks/post-commit").exists());
    }
    assert!(!lease.place.path("repo/.git/f").exists());
    let ran = lease.script(&[], "test ! -e f");
    assert_eq!(ran.code, 0, "nothing ran: {}", ran.err);
    // The symlink itself is replaced, and its target stays intact.
    fs::write(outside.join("precious"), "old").unwrap();
    symlink("../outside/precious", lease.place.path("repo/link")).unwrap();
    let replaced = lease.script(&["--download", "f=link"], "echo x > f");
    assert_eq!(replaced.code, 0, "{}", replaced.err);
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"old");
    assert_eq!(fs::read(lease.place.path("repo/link")).unwrap(), b"x\n");
}

#[test]
fn a_committed_crabbox_directory_that_is_a_link_gets_nothing() {
    let lease = trapped();
    let outside = lease.place.path("outside");
    for link in [".crabbox", ".crabbox/runs"] {
        if link.contains('/') {
            fs::remove_file(lease.place.path("repo/.crabbox")).unwrap();
            fs::create_dir(lease.place.path("repo/.crabbox")).unwrap();
        }
        symlink(&outside, lease.place.path("repo").join(link)).unwrap();
        let refused = lease.script(&["--artifact-glob", "f"], "echo x > f");
        assert_ne!(refused.code, 0, "{}", refused.err);
        assert!(refused.err.contains("symbolic link"), "{}", refused.err);
        assert!(is_empty(&outside), "{link}");
    }
    symlink(&outside, lease.place.path("repo/.crabbox/captures")).unwrap();
    let failed = lease.script(&[], "exit 3");
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(
        failed.err.contains("warning: no failure bundle was written: "),
        "{}",
        failed.err
    );
    assert!(is_empty(&outside));
}

#[test]
fn jobs_copies_and_new_files_go_through_no_link_either() {
    let lease = trapped();
    let outside = lease.place.path("outside");
    lease.place.write(
        "repo/.crabbox.yaml",
        "jobs:\n  key:\n    command: 'echo x > f'\n    shell: true\n    noSync: true\n    downloads: [f=out/authorized_keys]\n  \
         hook:\n    command: 'echo x > f'\n    shell: true\n    noSync: true\n    downloads: [f=git/hooks/post-commit]\n",
    );
    for job in ["key", "hook"] {
        let refused = lease.place.run(&["job", "run", "--id", "jade-krill", job]);
        assert!(refused.err.contains("symbolic link"), "{job}: {}", refused.err);
    }
    fs::write(lease.sshd.dir().join("f"), "x").unwrap();
    let there = format!("SANDBOX:{}", lease.sshd.dir().join("f").display());
    for to in ["out", "out/", "out/f", "git/hooks/post-commit"] {
        let refused = lease.place.run(&["cp", "--id", "jade-krill", &there, to]);
        assert_eq!(refused.code, 2, "{to}: {}", refused.err);
        assert!(refused.err.contains("symbolic link"), "{to}: {}", refused.err);
    }
    let refused = lease.place.run(&["init", "--config", "out/crabbox.yaml"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(is_empty(&outside));
    assert!(!lease.place.path("repo/.git/hooks/post-commit").exists());
}

#[test]
fn what_is_kept_is_private_under_any_umask_and_a_download_is_as_the_umask_has_it() {
    let lease = entered();
    let under = |umask: &str, words: &[&str], script: &str| {
        let words = [
            &["run", "--id", "jade-krill", "--no-sync"],
            words,
            &["--shell", "--", script],
        ];
        let binary = lease.place.command(&words.concat());
        let line = format!("umask {umask}; exec \"$@\"");
        let done = Cmd::new("sh").args(["-c", &line, "sh"]).arg(binary.get_program());
        let mut command = done.args(binary.get_args()).to_std();
        command.env_clear().current_dir(lease.place.path("repo"));
        command.envs(binary.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.stdin(Stdio::null()).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let script = "echo x > f; echo tool > tool; chmod 755 tool";
    let flags = [
        "--artifact-glob=f",
        "--capture-stdout=cap",
        "--download=f=file",
        "--download=tool=program",
    ];
    let (code, err) = under("000", &flags, script);
    assert_eq!(code, Some(0), "{err}");
    let at = |name: &str| lease.place.path("repo").join(name);
    assert_eq!((mode(&at(".crabbox/runs")), mode(&at("cap"))), (0o700, 0o600));
    let archive = kept(&lease, "runs");
    assert_eq!((mode(archive.parent().unwrap()), mode(&archive)), (0o700, 0o600));
    assert_eq!((mode(&at("file")), mode(&at("program"))), (0o666, 0o777));
    let (code, _) = under("000", &[], "exit 3");
    assert_eq!(code, Some(3));
    assert_eq!(
        (mode(&at(".crabbox/captures")), mode(&kept(&lease, "captures"))),
        (0o700, 0o600)
    );
    let (code, err) = under("027", &flags[2..], script);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!((mode(&at("file")), mode(&at("program"))), (0o640, 0o750));
}

/// A file system of 16 MiB, mounted in a place until this is dropped.
pub(crate) struct Narrow(pub(crate) std::path::PathBuf);

impl Narrow {
    pub(crate) fn new(at: std::path::PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        Cmd::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(&at)
            .run()
            .unwrap();
        Self(at)
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        drop(Cmd::new("umount").arg("-l").arg(&self.0).run());
    }
}

#[test]
fn more_than_there_is_room_for_is_refused_and_what_was_there_is_whole() {
    let lease = entered();
    let narrow = Narrow::new(lease.place.path("repo/narrow"));
    let target = narrow.0.join("f");
    fs::write(&target, "old").unwrap();
    // A sparse file, and a size that no disk has.
    let made = lease.script(
        &[],
        "truncate -s 1G big; mkdir d; truncate -s 8T d/huge; echo x > d/small",
    );
    assert_eq!(made.code, 0, "{}", made.err);
    let refused = lease.script(&["--download", "big=narrow/f"], "true");
    assert_eq!(refused.code, 7, "{}", refused.err);
    assert!(
        refused.err.contains("that are free here, less a reserve"),
        "{}",
        refused.err
    );
    let workdir = lease.script(&[], "pwd");
    let workdir = workdir.out.trim();
    for (there, to) in [("big", "narrow/f"), ("d", "narrow/d")] {
        let there = format!("SANDBOX:{workdir}/{there}");
        let refused = lease.place.run(&["cp", "--id", "jade-krill", &there, to]);
        assert_eq!(refused.code, 7, "{to}: {}", refused.err);
        assert!(
            refused.err.contains("that are free here, less a reserve"),
            "{to}: {}",
            refused.err
        );
    }
    // 64 MiB of incompressible data pass through the archive of artifacts and the capture of a stream.
    let endless = "head -c 67108864 /dev/urandom";
    let captured = lease.script(&["--capture-stdout", "narrow/cap"], endless);
    assert_ne!(captured.code, 0, "{}", captured.err);
    assert!(fs::metadata(narrow.0.join("cap")).unwrap().len() < 16 << 20);
    fs::remove_file(narrow.0.join("cap")).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"old");
    let names: Vec<_> = fs::read_dir(&narrow.0).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing but the old file may stay: {names:?}");
}

#[test]
fn a_first_interrupt_ends_a_download_and_leaves_nothing() {
    let lease = entered();
    let made = lease.script(&[], "truncate -s 4G big");
    assert_eq!(made.code, 0, "{}", made.err);
    fs::create_dir(lease.place.path("repo/to")).unwrap();
    let words = [
        "run",
        "--id",
        "jade-krill",
        "--no-sync",
        "--download",
        "big=to/f",
        "--",
        "true",
    ];
    let to = lease.place.path("repo/to");
    lease.place.interrupt(&words, || !is_empty(&to));
    assert!(is_empty(&to));
}

/// An agent that accepts everything, and sends a list byte by byte, ten per second, without end. It creates
/// the file `begun` in its home first.
const DRIPPING: &str = r#"
while True:
    tag = hear()
    if tag == OWN: own()
    elif tag == RELEASE: say(68)
    elif tag == MAKE: say(84)
    elif tag == RUN: say(79, struct.pack(">I", 0), b"\1")
    elif tag == PUT:
        open(home + "/begun", "w")
        time.sleep(600)
    elif tag in (CHANGES, LIST, FETCH, TREE):
        open(home + "/begun", "w")
        if tag == FETCH: say(82, struct.pack(">IIqQ", 0, 0o644, 0, 1 << 20))
        while True:
            say(1, b"x")
            time.sleep(0.1)
"#;

#[test]
fn a_first_interrupt_ends_whatever_a_lease_is_asked_for_though_it_drips() {
    let run = &["run", "--id", "jade-krill", "--no-sync"][..];
    let lease = with_agent(&forged(DRIPPING));
    let begun = lease.sshd.home().join("begun");
    lease.place.write("repo/large", vec![7; 4 << 20]);
    for words in [
        &["pull", "--id", "jade-krill"][..],
        &[run, &["--artifact-glob", "*.log", "--", "true"]].concat(),
        &[run, &["--junit", "report.xml", "--", "true"]].concat(),
        &[run, &["--download", "a=b", "--", "true"]].concat(),
        &["cp", "--id", "jade-krill", "SANDBOX:/there", "copy"],
        // More than any pipe holds, to a reader that no longer reads.
        &["cp", "--id", "jade-krill", "large", "SANDBOX:/there"],
    ] {
        fs::remove_file(&begun).ok();
        lease.place.interrupt(words, || begun.exists());
    }
}

#[test]
fn an_agent_that_is_none_is_believed_nothing_and_put_anew() {
    let mark = "\\376cb\\377";
    let lease = with_agent("");
    for script in [
        // A different program under the agent's name, and one that echoes its input.
        "#!/bin/sh\necho hello there",
        "#!/bin/cat",
        // Agents that die before they speak.
        "#!/bin/sh\necho out of luck >&2; exit 9",
        "#!/bin/sh\nkill -SEGV $$",
        "#!/bin/sh\nexit 137",
        // Agents that announce a gigabyte, cut a message short, and send without end.
        &format!("#!/bin/sh\nprintf '{mark}\\001\\100\\000\\000\\000'"),
        &format!("#!/bin/sh\nprintf '{mark}\\100\\000\\000\\000\\005cr'"),
        "#!/bin/sh\nexec cat /dev/zero",
        // After a full disk or power loss: all zeros. And an executable for another architecture, of which
        // only the header exists.
        &"\0".repeat(4096),
        "\u{7f}ELF\u{2}\u{1}\u{1}\0\0\0\0\0\0\0\0\0\u{2}\0\u{37}\0\u{1}\0\0\0",
    ] {
        in_place_of_the_agent(&lease, script);
        let done = lease.script(&[], "echo ran");
        assert_eq!(
            (done.code, done.out.as_str()),
            (0, "ran\n"),
            "{script}: {}",
            done.err
        );
    }
}

/// Runs the real agent, and kills it at its `$1`th request; `hear` and `say` pass the frames on.
const DYING: &str = r#"#!/usr/bin/python3
import os, signal, struct, subprocess, sys, threading
home = os.environ["HOME"]
moment = int(open(home + "/moment").read())
real = subprocess.Popen([home + "/.cache/crabbox/agents/real"], stdin=subprocess.PIPE)
source = os.fdopen(0, "rb", 0)
def whole(count):
    data = b""
    while len(data) < count:
        more = source.read(count - len(data))
        if not more: raise EOFError
        data += more
    return data
asked = 0
try:
    while True:
        head = whole(9)
        body = whole(struct.unpack(">I", head[5:])[0] + 4)
        if asked == moment: os.kill(real.pid, signal.SIGKILL); break
        real.stdin.write(head + body)
        real.stdin.flush()
        asked += 1
except EOFError: real.stdin.close()
real.wait()
with open(home + "/asked", "w") as file: file.write(str(asked))
sys.exit(137 if asked == moment else 0)
"#;

#[test]
fn an_agent_that_is_killed_at_any_message_costs_that_run_and_nothing_else() {
    let lease = with_agent(DYING);
    let home = lease.sshd.home();
    fs::create_dir(lease.place.path("repo/d")).unwrap();
    let tree = |number: usize| {
        lease.place.write("repo/a", format!("{number}\n"));
        lease.place.write(&format!("repo/d/f{number}"), "x");
        if number > 0 {
            fs::remove_file(lease.place.path(&format!("repo/d/f{}", number - 1))).unwrap();
        }
    };
    let run = |moment: usize| {
        fs::write(home.join("moment"), moment.to_string()).unwrap();
        lease.place.run(&[
            "run",
            "--id",
            "jade-krill",
            "--artifact-glob",
            "a",
            "--shell",
            "--",
            "cat a; ls d",
        ])
    };
    // Goes through as many messages as an undisturbed run has; after each death the next run finds tree and
    // lock as they should be. Starts at the second message, after the greeting, because an agent that does
    // not even greet is installed again.
    tree(0);
    tree(1);
    let mut moment = 1;
    loop {
        tree(2 * moment);
        let killed = run(moment);
        let asked: usize = fs::read_to_string(home.join("asked")).unwrap().parse().unwrap();
        if killed.code == 0 {
            assert!(asked <= moment && moment > 10, "{moment}: {}", killed.err);
            return;
        }
        assert_eq!(asked, moment, "{}", killed.err);
        assert!(
            [6, 7, 255].contains(&killed.code) || killed.code == 137,
            "{moment}: {} {}",
            killed.code,
            killed.err
        );
        tree(2 * moment + 1);
        let next = run(usize::MAX >> 1);
        assert_eq!(next.code, 0, "{moment}: {}\n{}", killed.err, next.err);
        assert_eq!(
            next.out,
            format!("{0}\nf{0}\n", 2 * moment + 1),
            "{moment}: {}\n{}",
            killed.err,
            next.err
        );
        moment += 1;
        assert!(moment < 200, "it has an end");
    }
}

/// A lease whose agent cannot bypass file modes, as for a user other than root.
fn unprivileged() -> Entered {
    with_agent(
        "#!/bin/sh\nexec setpriv --bounding-set -dac_override,-dac_read_search \"$HOME/.cache/crabbox/agents/real\"\n",
    )
}

#[test]
fn what_cannot_be_read_there_is_named_and_costs_neither_the_others_nor_the_success() {
    let lease = unprivileged();
    let script = "mkdir -p out data; echo r > out/report; echo s > out/secret; echo d > data/f; chmod 000 out/secret data";
    let done = lease.script(
        &[
            "--artifact-glob",
            "out/*",
            "--artifact-glob",
            "data",
            "--require-artifact",
            "out/report",
        ],
        script,
    );
    assert_eq!(done.code, 0, "{}", done.err);
    for name in ["data", "out/secret"] {
        let names =
            |line: &&str| line.starts_with("warning: collect artifacts incomplete: ") && line.contains(name);
        assert!(done.err.lines().any(|line| names(&line)), "{name}: {}", done.err);
    }
    let listed = Cmd::new("tar")
        .args(["-tzf"])
        .arg(kept(&lease, "runs"))
        .run()
        .unwrap();
    assert_eq!(listed.stdout_text(), "./out/report");
}

#[test]
fn an_artifact_that_grows_while_it_is_packed_is_a_warning() {
    let lease = entered();
    let growing = "mkdir out; (i=0; while [ $i -lt 400 ]; do head -c 400000 /dev/zero; i=$((i+1)); done > out/server.log </dev/null) >/dev/null 2>&1 & \
                   while [ ! -s out/server.log ]; do :; done; echo r > out/report";
    let done = lease.script(&["--artifact-glob", "out/*"], growing);
    assert_eq!(done.code, 0, "{}", done.err);
    let listed = Cmd::new("tar")
        .args(["-tzf"])
        .arg(kept(&lease, "runs"))
        .run()
        .unwrap();
    assert!(
        listed.stdout_text().contains("./out/report"),
        "{}",
        listed.stdout_text()
    );
}

#[test]
fn a_policy_on_tests_fails_where_nothing_says_that_they_passed() {
    let lease = entered();
    let policy = |flags: &[&str], script: &str| {
        let flags = [&["--fail-on-test-failures"], flags].concat();
        lease.script(&flags, script)
    };
    let last = |answer: &Answer| {
        let mut lines = answer.err.lines().filter(|line| !line.starts_with("hint: "));
        lines.next_back().unwrap_or_default().to_owned()
    };
    let good = "mkdir -p out; echo '<testsuite><testcase name=\"a\"/></testsuite>' > out/TEST-a.xml";
    let passed = policy(&["--junit", "out/*.xml"], good);
    assert_eq!(passed.code, 0, "{}", passed.err);
    let broken = "echo '<testsuite><testcase' > out/TEST-b.xml";
    let summary = "rm out/*; echo '<testsuite tests=\"3\" failures=\"0\"/>' > out/TEST-s.xml";
    for (flags, script, says) in [
        (
            &["--junit", "none/*.xml"][..],
            "true",
            "not every test report could be read",
        ),
        (
            &["--junit", "missing.xml"],
            "true",
            "not every test report could be read",
        ),
        (&["--results-auto"], "true", "no test report was found"),
        (&[], "true", "no test report was found"),
        (
            &["--junit", "out/*.xml"],
            broken,
            "not every test report could be read",
        ),
        (
            &["--junit", "out/*.xml"],
            summary,
            "not every test report could be read",
        ),
    ] {
        let failed = policy(flags, script);
        assert_eq!(failed.code, 1, "{flags:?} {script}: {}", failed.err);
        assert!(
            last(&failed).ends_with(says),
            "{flags:?} {script}: {}",
            failed.err
        );
    }
    let without = lease.script(&["--junit", "none/*.xml"], "true");
    assert_eq!(without.code, 0, "{}", without.err);
}

#[test]
fn a_tilde_is_the_home_directory_there() {
    let lease = entered();
    lease.place.write("repo/file", "text");
    let up = lease
        .place
        .run(&["cp", "--id", "jade-krill", "file", "SANDBOX:~/deep/x"]);
    assert_eq!(up.code, 0, "{}", up.err);
    assert_eq!(fs::read(lease.sshd.home().join("deep/x")).unwrap(), b"text");
    let down = lease
        .place
        .run(&["cp", "--id", "jade-krill", "SANDBOX:~/deep/x", "back"]);
    assert_eq!(down.code, 0, "{}", down.err);
    assert_eq!(fs::read(lease.place.path("repo/back")).unwrap(), b"text");
}

#[test]
fn a_repositorys_file_that_is_another_one_says_nothing_of_it() {
    let place = Place::new();
    fs::write(
        place.path("outside/shadow"),
        "root:secret-hash:19000\nother: secret-value\n",
    )
    .unwrap();
    symlink("../outside/shadow", place.path("repo/crabbox.yaml")).unwrap();
    let shown = place.run(&["config", "show"]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(
        !shown.err.contains("secret") && shown.err.contains("leads out of the repository"),
        "{}",
        shown.err
    );
    // A symlink to another file of the repository counts as one of its files.
    fs::remove_file(place.path("repo/crabbox.yaml")).unwrap();
    place.write("repo/sub/real.yaml", "class: mine\n");
    symlink("sub/real.yaml", place.path("repo/crabbox.yaml")).unwrap();
    assert_eq!(place.explain("class").0, "mine");
}

/// Puts something in place of a file.
type Make<'a> = &'a dyn Fn(&Path);

#[test]
fn an_ignore_file_that_is_none_is_named_and_holds_nobody() {
    let lease = entered();
    let file = lease.place.path("repo/.crabboxignore");
    let pipe = |path: &Path| {
        rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    };
    let large = |path: &Path| fs::File::create(path).unwrap().set_len(300 << 20).unwrap();
    let cases: [(&str, Make<'_>); 3] = [
        ("is a symbolic link", &|path| symlink("/dev/zero", path).unwrap()),
        ("is a named pipe", &pipe),
        ("is larger than", &large),
    ];
    for (says, make) in cases {
        make(&file);
        for words in [&["sync-plan"][..], &["run", "--id", "jade-krill", "--", "true"]] {
            let refused = lease.place.run(words);
            assert_ne!(refused.code, 0, "{says}: {}", refused.err);
            assert!(refused.err.contains(says), "{says}: {}", refused.err);
        }
        fs::remove_file(&file).unwrap();
    }
}
