//! The install script, against releases on a loopback server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};

use super::*;

/// Serves the files below a directory over HTTP on loopback, until dropped.
struct Server {
    port: u16,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The request that ends it.
const END: &str = "/end";

impl Server {
    fn start(root: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            for stream in listener.incoming() {
                if respond(&root, stream.unwrap()).unwrap_or_default() == END {
                    return;
                }
            }
        };
        let thread = Some(std::thread::spawn(serve));
        Self { port, thread }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) {
            write!(stream, "GET {END} HTTP/1.0\r\n\r\n").ok();
        }
        self.thread.take().map(|thread| thread.join().ok());
    }
}

/// Sends the requested file, or its first half if there is a file named like it plus `.half`.
fn respond(root: &Path, stream: TcpStream) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let wanted = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let path = root.join(wanted.trim_start_matches('/'));
    let mut stream = stream;
    let Ok(bytes) = fs::read(&path) else {
        write!(stream, "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(wanted);
    };
    let half = PathBuf::from(format!("{}.half", path.display())).exists();
    let sent = if half { bytes.len() / 2 } else { bytes.len() };
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    )?;
    stream.write_all(&bytes[..sent])?;
    Ok(wanted)
}

/// Releases of both versions behind a server, and a prefix.
struct Place {
    dir: tempfile::TempDir,
    server: Server,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let components = components();
        for version in VERSIONS {
            let program = stand_in(dir.path(), version);
            packed(
                &program,
                version,
                &components,
                &dir.path().join(format!("www/v{version}")),
            );
        }
        let server = Server::start(dir.path().join("www"));
        Self { dir, server }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn tarball(&self, version: &str) -> PathBuf {
        self.at(&format!("www/v{version}/crabbox-{version}-x86_64-linux.tar.gz"))
    }

    fn sh(&self, version: &str, words: &[&str]) -> Captured {
        Cmd::new("sh")
            .arg(self.at(&format!("www/v{version}/install.sh")))
            .arg("--prefix")
            .arg(self.at("prefix"))
            .args(words)
            .env("TMPDIR", self.dir.path())
            .env("CRABBOX_REGISTRY_DIR", self.at("registry"))
            .capture()
            .unwrap()
    }

    fn install(&self, version: &str, words: &[&str]) -> Captured {
        let url = self.server.url();
        self.sh(version, &[&["--releases", url.as_str()], words].concat())
    }

    fn installed(&self) -> Option<String> {
        let said = Cmd::new(self.at("prefix/bin/crabbox")).arg("--version").run();
        said.ok().map(|said| said.stdout_text().trim().to_owned())
    }

    /// Asserts that the script refuses with these words and changes nothing.
    #[track_caller]
    fn refuses(&self, version: &str, words: &[&str], because: &str) {
        let before = (files(self.dir.path()), self.installed());
        let done = self.install(version, words);
        assert!(!done.status.success(), "{}", done.stdout_text());
        assert!(done.stderr_text().contains(because), "{}", done.stderr_text());
        assert_eq!((files(self.dir.path()), self.installed()), before);
    }
}

#[test]
fn the_script_installs_replaces_only_when_told_to_and_takes_all_away() {
    let [this, later] = VERSIONS;
    let place = Place::new();
    fs::create_dir_all(place.at("prefix/bin")).unwrap();
    fs::write(place.at("prefix/bin/other"), "mine").unwrap();
    ok(&place.install(this, &[]));
    assert_eq!(place.installed().as_deref(), Some(this));
    assert!(place.at("prefix/share/man/man1/crabbox.1.gz").exists());
    place.refuses(later, &[], "--replace puts");
    fs::write(
        place.at("prefix/share/crabbox/installed"),
        format!(
            "{}\nshare/old\n",
            fs::read_to_string(place.at("prefix/share/crabbox/installed"))
                .unwrap()
                .trim_end()
        ),
    )
    .unwrap();
    fs::write(place.at("prefix/share/old"), "of an old version").unwrap();
    ok(&place.install(later, &["--replace"]));
    assert_eq!(place.installed().as_deref(), Some(later));
    assert!(
        !place.at("prefix/share/old").exists(),
        "a file that is no more goes"
    );
    ok(&place.install(this, &["--replace"]));

    fs::create_dir_all(place.at("registry/leases")).unwrap();
    fs::write(place.at("registry/leases/cbx_0123456789ab.json"), "{}").unwrap();
    let refused = place.sh(this, &["--remove"]);
    assert!(
        refused.stderr_text().contains("cbx_0123456789ab"),
        "{}",
        refused.stderr_text()
    );
    assert_eq!(place.installed().as_deref(), Some(this));
    fs::remove_dir_all(place.at("registry")).unwrap();
    ok(&place.sh(this, &["--remove"]));
    assert_eq!(files(&place.at("prefix")), ["./bin/other"]);
}

#[test]
fn a_script_that_was_cut_does_nothing_and_says_so() {
    let [this, _] = VERSIONS;
    let place = Place::new();
    let script = place.at(&format!("www/v{this}/install.sh"));
    let whole = fs::read_to_string(&script).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    for count in 2..lines.len() {
        fs::write(&script, lines[..count].concat()).unwrap();
        let done = place.install(this, &[]);
        assert!(!done.status.success(), "cut after line {count}");
        assert!(!place.at("prefix").exists(), "cut after line {count}");
    }
}

#[test]
fn what_an_installation_that_fails_half_way_has_put_there_can_be_removed() {
    let [this, _] = VERSIONS;
    let place = Place::new();
    fs::create_dir_all(place.at("prefix/share")).unwrap();
    fs::write(place.at("prefix/share/man"), "mine").unwrap();
    assert!(!place.install(this, &[]).status.success());
    assert!(place.at("prefix/bin/crabbox").exists());
    ok(&place.sh(this, &["--remove"]));
    assert_eq!(files(&place.at("prefix")), ["./share/man"]);
}

#[test]
fn the_script_refuses_what_is_not_whole_not_the_digests_or_not_there() {
    let [this, _] = VERSIONS;
    let place = Place::new();
    place.refuses(this, &["--version", "0.0.1"], "cannot fetch");
    let tarball = place.tarball(this);
    let half = format!("{}.half", tarball.display());
    fs::write(&half, "").unwrap();
    place.refuses(this, &[], "cannot fetch");
    fs::remove_file(half).unwrap();
    let whole = fs::read(&tarball).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    fs::write(&tarball, changed).unwrap();
    place.refuses(this, &[], "SHA256SUMS says");
    fs::write(&tarball, whole).unwrap();
    let sums = tarball.with_file_name("SHA256SUMS");
    let text = fs::read_to_string(&sums).unwrap();
    fs::write(&sums, text.replace("tar.gz", "zip")).unwrap();
    place.refuses(this, &[], "names no");
    assert!(!place.at("prefix").exists());
    fs::write(&sums, text).unwrap();
    // A program installed by hand.
    fs::create_dir_all(place.at("prefix/bin")).unwrap();
    fs::write(place.at("prefix/bin/crabbox"), "#!/bin/sh\necho 7\n").unwrap();
    place.refuses(this, &[], "did not install");
    for (words, because) in [
        (&["--prefix", "here"][..], "not an absolute path"),
        (&["--what"], "what is --what?"),
        (&["--releases"], "needs a value"),
    ] {
        place.refuses(this, words, because);
    }
}
