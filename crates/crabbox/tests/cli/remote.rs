//! Commands that enter a lease, with a real sshd in place of its machine.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crabbox_host::clock::poll_until;
use crabbox_host::command::Cmd;
use crabbox_testkit::sshd::Sshd;

use crate::place::{Answer, Place};
use crate::world::{ID, Machine, Record, record};

/// A lease that can be entered.
pub(crate) struct Entered {
    pub(crate) place: Place,
    pub(crate) sshd: Sshd,
    /// Dropped last, after everything that uses it.
    _machine: Machine,
}

impl Entered {
    pub(crate) fn new() -> Self {
        Self::on(Sshd::start())
    }

    /// Runs `script` in the lease's directory without a sync, with `flags`.
    pub(crate) fn script(&self, flags: &[&str], script: &str) -> Answer {
        let words = [
            &["run", "--id", "jade-krill", "--no-sync"],
            flags,
            &["--shell", "--", script],
        ];
        self.place.run(&words.concat())
    }

    /// A lease whose machine is this server.
    pub(crate) fn on(sshd: Sshd) -> Self {
        let machine = Machine::start();
        let place = Place::new().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        fs::create_dir(place.path("run")).unwrap();
        fs::set_permissions(place.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
        let run = place.path("run");
        let place = place.env("XDG_RUNTIME_DIR", run);
        let mut lease = Record::new(ID, "jade-krill").on(&machine);
        lease.0["sshUser"] = sshd.user().into();
        lease.0["sshPort"] = sshd.port().to_string().into();
        lease.0["labels"]["work_root"] = sshd.dir().join("work").to_str().unwrap().into();
        lease.write(&place);
        let keys = place.path("home/.config/crabbox/testboxes").join(ID);
        fs::create_dir_all(&keys).unwrap();
        fs::write(keys.join("id_ed25519"), fs::read(sshd.client_key()).unwrap()).unwrap();
        fs::set_permissions(keys.join("id_ed25519"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(keys.join("known_hosts"), fs::read(sshd.known_hosts()).unwrap()).unwrap();
        Self {
            place,
            sshd,
            _machine: machine,
        }
    }

    /// A path in the "machine".
    fn there(&self, name: &str) -> PathBuf {
        self.sshd.dir().join(name)
    }

    fn cp(&self, words: &[&str]) -> Answer {
        self.place.run(&[&["cp", "--id", "jade-krill"], words].concat())
    }

    fn up(&self, local: &str, there: &str) -> Answer {
        self.cp(&[local, &format!("SANDBOX:{}", self.there(there).display())])
    }

    fn down(&self, there: &str, local: &str) -> Answer {
        self.cp(&[&format!("sandbox:{}", self.there(there).display()), local])
    }
}

fn quiet(answer: &Answer) {
    assert_eq!(
        (answer.code, answer.out.as_str(), answer.err.as_str()),
        (0, "", "")
    );
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_goes_there_and_back_under_any_name() {
    let lease = Entered::new();
    let local = lease.place.write("repo/a 'b' [1]*", "content\u{0}\n");
    quiet(&lease.up("a 'b' [1]*", "to [1] $x"));
    let there = lease.there("to [1] $x");
    assert_eq!(fs::read(&there).unwrap(), fs::read(&local).unwrap());
    assert_eq!(mode(&there), 0o600, "the mode goes along");
    fs::set_permissions(&there, fs::Permissions::from_mode(0o711)).unwrap();
    quiet(&lease.down("to [1] $x", "back"));
    let back = lease.place.path("repo/back");
    assert_eq!(
        (fs::read(&back).unwrap(), mode(&back)),
        (fs::read(&local).unwrap(), 0o755)
    );
    // A copy into a directory keeps its name; a trailing slash creates the directory.
    fs::create_dir(lease.there("dir")).unwrap();
    quiet(&lease.up("a 'b' [1]*", "dir"));
    quiet(&lease.up("a 'b' [1]*", "new/deep/"));
    assert_eq!(
        (names(&lease.there("dir")), names(&lease.there("new/deep"))),
        (vec!["a 'b' [1]*".into()], vec!["a 'b' [1]*".into()])
    );
    quiet(&lease.down("to [1] $x", "sub"));
    quiet(&lease.down("to [1] $x", "made/"));
    assert_eq!(
        (
            names(&lease.place.path("repo/sub")),
            names(&lease.place.path("repo/made"))
        ),
        (vec!["to [1] $x".into()], vec!["to [1] $x".into()])
    );
    assert_eq!(lease.sshd.logins(), 1, "one connection for all of it");
}

#[test]
fn a_directory_goes_there_and_back_and_is_merged() {
    let lease = Entered::new();
    let script = "mkdir -p t/empty t/deep; echo run > t/deep/x; chmod 755 t/deep/x; ln -s deep/x t/link; ln t/deep/x t/hard; head -c 300000 /dev/urandom > t/big";
    Cmd::new("sh")
        .args(["-ec", script])
        .cwd(lease.place.path("repo"))
        .run()
        .unwrap();
    quiet(&lease.up("t", "copy"));
    let there = lease.there("copy");
    assert_eq!(names(&there), ["big", "deep", "empty", "hard", "link"]);
    assert_eq!(mode(&there.join("deep/x")), 0o755);
    assert_eq!(fs::read_link(there.join("link")).unwrap(), Path::new("deep/x"));
    assert_eq!(
        fs::read(there.join("big")).unwrap(),
        fs::read(lease.place.path("repo/t/big")).unwrap()
    );
    // Copy again into the existing directory, then over the copy: files that exist only there stay.
    quiet(&lease.up("t", "copy"));
    assert!(lease.there("copy/t/big").exists());
    fs::write(lease.there("copy/t/own"), "own").unwrap();
    fs::write(lease.there("copy/t/deep/x"), "old").unwrap();
    quiet(&lease.up("t", "copy"));
    assert_eq!(
        (
            fs::read(lease.there("copy/t/own")).unwrap(),
            fs::read(lease.there("copy/t/deep/x")).unwrap()
        ),
        (b"own".to_vec(), b"run\n".to_vec())
    );
    // Symlinks are not copied from a lease unless followed.
    let refused = lease.down("copy", "back");
    assert_eq!((refused.code, refused.out.as_str()), (7, ""));
    let why = "link\", which is a symbolic link; nothing was copied\nhint: -L copies the targets of links\n";
    assert!(
        refused.err.starts_with("the lease sent \"./") && refused.err.ends_with(why),
        "{}",
        refused.err
    );
    assert!(!lease.place.path("repo/back").exists());
    let source = format!("SANDBOX:{}", there.display());
    quiet(&lease.cp(&["-L", &source, "back"]));
    let back = lease.place.path("repo/back");
    assert_eq!(
        (
            fs::read(back.join("link")).unwrap(),
            fs::read(back.join("hard")).unwrap()
        ),
        (b"run\n".to_vec(), b"run\n".to_vec())
    );
    assert_eq!(
        (mode(&back.join("deep/x")), mode(&back.join("deep"))),
        (0o755, 0o755)
    );
    // No temporary files are left behind.
    let litter = |dir: &Path| names(dir).into_iter().any(|name| name.starts_with(".crabbox-cp"));
    assert!(!litter(lease.sshd.dir()) && !litter(&there) && !litter(&lease.place.path("repo")));
}

/// Operands of `cp`, the exit code, and the start of the message.
type Case = (Vec<String>, i32, String);

fn sandbox(path: &Path) -> String {
    format!("SANDBOX:{}", path.display())
}

/// Errors on this side.
fn local_cases(lease: &Entered, repo: &Path) -> Vec<Case> {
    let usage = "usage: crabbox cp --id <lease-id-or-slug> [-L] <src> <dst>\n";
    let x = sandbox(&lease.there("x"));
    let dir = sandbox(&lease.there("dir"));
    let at = |name: &str| repo.join(name).display().to_string();
    let case = |words: &[&str], says: String| {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        (words, 2, says)
    };
    vec![
        case(&["file"], usage.into()),
        case(&["file", "other"], usage.into()),
        case(
            &["nothing", &x],
            format!("cannot read {}\n  caused by: No such file", at("nothing")),
        ),
        case(
            &["-L", "loop", &x],
            format!("{} leads back to a directory that it is in", at("loop/up/loop")),
        ),
        case(
            &["pipe", &x],
            format!("{} is a named pipe, which cannot be copied", at("pipe/p")),
        ),
        case(
            &[&sandbox(&lease.there("dir/..")), "sub"],
            "cannot tell what to call the copy of ".into(),
        ),
        case(
            &[&dir, "file"],
            format!("{} is there already and is not a directory\n", at("file")),
        ),
    ]
}

/// Errors in the lease.
fn remote_cases(lease: &Entered) -> Vec<Case> {
    let case = |from: Option<&str>, to: Option<&str>, about: &str, says: &str| {
        let there = |name: &str| sandbox(&lease.there(name));
        let words = vec![
            from.map_or_else(|| "file".to_owned(), there),
            to.map_or_else(|| "x".to_owned(), there),
        ];
        let way = if from.is_some() { "from" } else { "to" };
        let path = lease.there(about).display().to_string();
        (
            words,
            7,
            format!("cannot copy {way} {path:?} in the lease: {path}{says}"),
        )
    };
    let mut cases = vec![
        case(
            None,
            Some("dir"),
            "dir",
            "/file is there already and is a directory\n",
        ),
        case(Some("missing"), None, "missing", " does not exist\n"),
        case(
            Some("link"),
            None,
            "link",
            " is a symbolic link; -L copies what it leads to\n",
        ),
    ];
    let mut directory = case(
        None,
        Some("file"),
        "file",
        " is there already and is not a directory\n",
    );
    "sub".clone_into(&mut directory.0[0]);
    cases.push(directory);
    cases
}

#[test]
fn what_cannot_be_copied_says_why_and_leaves_everything_as_it_was() {
    let lease = Entered::new();
    let repo = lease.place.path("repo");
    fs::create_dir(repo.join("loop")).unwrap();
    symlink("..", repo.join("loop/up")).unwrap();
    fs::create_dir(repo.join("pipe")).unwrap();
    Cmd::new("mkfifo").arg(repo.join("pipe/p")).run().unwrap();
    fs::write(repo.join("file"), "x").unwrap();
    fs::write(lease.there("file"), "there").unwrap();
    fs::create_dir_all(lease.there("dir/file")).unwrap();
    symlink("file", lease.there("link")).unwrap();
    for (words, code, want) in local_cases(&lease, &repo).into_iter().chain(remote_cases(&lease)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = lease.cp(&words);
        assert_eq!(
            (answer.code, answer.out.as_str()),
            (code, ""),
            "{words:?}: {}",
            answer.err
        );
        assert!(answer.err.starts_with(&want), "{words:?}: {}", answer.err);
    }
    assert_eq!(fs::read(lease.there("file")).unwrap(), b"there");
    assert_eq!(fs::read(repo.join("file")).unwrap(), b"x");
    for name in ["x", "missing"] {
        assert!(!lease.there(name).exists() && !repo.join(name).exists());
    }
    let litter = |name: &String| name.starts_with(".crabbox-cp");
    assert!(!names(lease.sshd.dir()).iter().any(litter) && !names(&repo).iter().any(litter));
    let nameless = lease.place.run(&["cp", "a", "SANDBOX:b"]);
    assert_eq!(nameless.code, 2, "no lease is named");
}

#[test]
fn an_interrupted_copy_leaves_nothing_behind() {
    let lease = Entered::new();
    let big = fs::File::create(lease.place.path("repo/big")).unwrap();
    big.set_len(1 << 40).unwrap();
    let to = format!("SANDBOX:{}", lease.there("big").display());
    let child = lease
        .place
        .command(&["cp", "--id", "jade-krill", "big", &to])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let staged = || {
        names(lease.sshd.dir())
            .into_iter()
            .find(|name| name.starts_with(".crabbox-cp"))
    };
    poll_until(Duration::from_secs(20), staged).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr),
        (Some(130), b"interrupted; nothing was copied\n".to_vec())
    );
    poll_until(Duration::from_secs(20), || staged().is_none().then_some(())).unwrap();
    assert!(!lease.there("big").exists());
}

#[test]
fn a_tunnel_serves_until_it_is_interrupted() {
    let lease = Entered::new();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let serving = std::thread::spawn(move || {
        let (mut client, _) = server.accept().unwrap();
        client.write_all(b"hello").unwrap();
    });
    // Flags may follow the port, as in the Go program.
    let mut child = lease
        .place
        .command(&["tunnel", &port, "--id", "jade-krill"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let local: u16 = line
        .strip_prefix("http://127.0.0.1:")
        .unwrap()
        .trim_end()
        .parse()
        .unwrap();
    let mut text = String::new();
    TcpStream::connect((Ipv4Addr::LOCALHOST, local))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "hello");
    serving.join().unwrap();
    assert_eq!(record(&lease.place, ID)["labels"]["state"], "running");
    let taken = lease.place.run(&[
        "tunnel",
        "--id",
        "jade-krill",
        "--local-port",
        &local.to_string(),
        &port,
    ]);
    assert_eq!((taken.code, taken.out.as_str()), (2, ""));
    assert!(
        taken
            .err
            .starts_with(&format!("cannot listen on 127.0.0.1:{local}: it is in use")),
        "{}",
        taken.err
    );
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, local)).is_err());
    assert_eq!(record(&lease.place, ID)["labels"]["state"], "ready");
}

#[test]
fn a_tunnel_that_breaks_and_one_that_makes_no_sense_are_told() {
    let lease = Entered::new();
    for words in [
        &["tunnel", "--id", "jade-krill"][..],
        &["tunnel", "80"],
        &["tunnel", "--id", "jade-krill", "0"],
        &["tunnel", "--id", "jade-krill", "http"],
    ] {
        assert_eq!(lease.place.run(words).code, 2, "{words:?}");
    }
    let mut child = lease
        .place
        .command(&["tunnel", "--id", "jade-krill", "80"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    lease.sshd.kill_connections();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{err}");
    assert!(err.starts_with("the tunnel to port 80 ended"), "{err}");
}

#[test]
fn a_lease_that_answers_is_ready() {
    let lease = Entered::new();
    let status = lease.place.run(&["status", "--wait", "jade-krill"]);
    assert_eq!(status.code, 0, "{}", status.err);
    assert!(
        status.out.contains(" state=ready ") && status.out.contains(" ready=true "),
        "{}",
        status.out
    );
    let json: serde_json::Value =
        serde_json::from_str(&lease.place.run(&["inspect", "--json", ID]).out).unwrap();
    assert_eq!(json["ready"], true);
    let ssh = lease.place.run(&["ssh", ID]);
    assert!(
        ssh.out.starts_with("'ssh' '-i' '") && ssh.out.ends_with("@127.0.0.1'\n"),
        "{}",
        ssh.out
    );
}
