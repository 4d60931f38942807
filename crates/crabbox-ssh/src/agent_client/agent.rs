//! The agents embedded in this program, and how one gets to the remote side: uploaded once, stored under its
//! digest.
//!
//! Our images have it already. Elsewhere it is stored in a directory that only the user of the lease may
//! write to, and only after it was checked against the digest.

use std::io::{self, Read as _};

use flate2::read::GzDecoder;

/// SHA-256 of the agent for this architecture, in hex: its file name on the remote side.
pub const DIGEST: &str = AGENTS[0].digest;

/// Where our images have agents.
const IMAGE_DIRECTORY: &str = "/usr/lib/crabbox/agents";

/// Our exit code on a machine that there is no agent for.
pub(super) const ABSENT: u8 = 71;

/// Our exit code where the first of [`AGENTS`] is wanted, and one more for each that follows. A start-up file
/// may have taken standard error away, so the line below alone would not be heard.
const WANTED: u8 = 80;

/// The agent that is wanted where the script of [`start`] ended with this code.
pub(super) fn wanted(code: u8) -> Option<&'static Agent> {
    AGENTS.get(usize::from(code.checked_sub(WANTED)?))
}

/// The beginning of the line on standard error that reports the architecture, printed unless the agent comes
/// from the image.
pub(super) const MACHINE: &str = "crabbox-machine: ";

/// Our exit code if it could not be stored; standard error says why.
pub(super) const UNPLACED: u8 = 73;

/// An embedded agent.
#[derive(Debug)]
pub(super) struct Agent {
    /// The architecture that it is for, as in `uname -m`.
    pub(super) machine: &'static str,
    digest: &'static str,
    packed: &'static [u8],
}

/// All embedded agents; the first is for the architecture of this build. Releases also have one for aarch64,
/// as do builds after `cargo xtask cross`.
pub(super) const AGENTS: &[Agent] = include!(concat!(env!("OUT_DIR"), "/agents.rs"));

/// The agent for an architecture.
pub(super) fn of_machine(machine: &str) -> Option<&'static Agent> {
    AGENTS.iter().find(|agent| agent.machine == machine)
}

/// The architectures that have an agent, for messages.
pub(super) fn machines() -> String {
    let names: Vec<&str> = AGENTS.iter().map(|agent| agent.machine).collect();
    names.join(" and ")
}

impl Agent {
    /// The agent, decompressed.
    pub(super) fn program(&self) -> io::Result<Vec<u8>> {
        let mut program = Vec::new();
        GzDecoder::new(self.packed).read_to_end(&mut program)?;
        Ok(program)
    }
}

/// The agent for this architecture.
pub fn program() -> io::Result<Vec<u8>> {
    AGENTS[0].program()
}

/// The kernel's architecture, in a file since Linux 6.1; reading it saves the process that uname(1) would
/// cost.
const ARCH: &str = "/proc/sys/kernel/arch";

/// Checks without a process that a directory is as [`place`] left it. `chmod 777` clears its sticky bit; and
/// while the bit is set, other users cannot replace our files even if they may write there (inode(7)).
const AS_PLACED: &str = r#"[ -k "$cbx_d" ] && "#;

/// A script that execs the agent.
pub(super) fn start() -> String {
    start_one(AGENTS, IMAGE_DIRECTORY, ARCH, AS_PLACED)
}

/// The same, right after the upload, without the check: some file systems do not keep a sticky bit.
pub(super) fn start_placed() -> String {
    start_one(AGENTS, IMAGE_DIRECTORY, ARCH, "")
}

/// A script that execs one of `agents`. An image has only the one for its own architecture. A home directory
/// may be shared by machines of several architectures, so the matching one is chosen. A file with its name
/// was checked by [`place`], and only the user could have replaced it since.
fn start_one(agents: &[Agent], image: &str, arch: &str, as_placed: &str) -> String {
    let digests: Vec<&str> = agents.iter().map(|agent| agent.digest).collect();
    let one =
        |(code, agent): (u8, &Agent)| format!("{}) cbx_a={} cbx_e={code} ;;\n", agent.machine, agent.digest);
    format!(
        r#"for cbx_a in {}; do
cbx_b={image}/$cbx_a
[ -s "$cbx_b" ] && [ -x "$cbx_b" ] && exec "$cbx_b"
done
{{ read -r cbx_m < {arch}; }} 2>/dev/null || cbx_m=$(uname -m)
echo "{MACHINE}$cbx_m" >&2
case $cbx_m in
{}*) exit {ABSENT} ;;
esac
cbx_d=$HOME/.cache/crabbox/agents
cbx_b=$cbx_d/$cbx_a
[ -O "$cbx_d" ] && {as_placed}[ -O "$cbx_b" ] && [ -f "$cbx_b" ] && [ ! -L "$cbx_b" ] && [ -s "$cbx_b" ] && [ -x "$cbx_b" ] && exec "$cbx_b"
exit $cbx_e"#,
        digests.join(" "),
        (WANTED..).zip(agents).map(one).collect::<String>(),
    )
}

/// A script that stores the agent, which is its input, where [`start`] finds it.
pub(super) fn place(agent: &Agent) -> String {
    let digest = agent.digest;
    format!(
        r#"umask 077
d=${{HOME:?the user of the lease has no home directory}}/.cache/crabbox/agents
f=$d/.new.$$
trap 'rm -f "$f"' EXIT
no() {{ [ $# = 0 ] || echo "$1" >&2; exit {UNPLACED}; }}
mkdir -p "$d" || no
[ -O "$d" ] && [ ! -L "$d" ] || no "$d is not the user's own directory"
t=$d/{digest}
# One that is as we leave it stays so: others start what is there, whatever becomes of this.
{{ [ -k "$d" ] && chmod 1700 "$d"; }} || chmod 700 "$d" || no
cat > "$f" || no
# See whether anybody has opened it since; where the file system keeps no such bit it is put anew each time.
chmod 1700 "$d" 2>/dev/null
s=$({{ sha256sum || shasum -a 256 || busybox sha256sum || openssl dgst -sha256 -r; }} < "$f" 2>/dev/null)
case $s in
  {digest}*) ;;
  '') no 'there is nothing to check it with: install sha256sum (coreutils) there' ;;
  *) no 'what arrived is not what was sent' ;;
esac
sync "$f" 2>/dev/null
# Into a directory it would be moved.
[ ! -d "$t" ] || rm -rf "$t" || no
chmod 700 "$f" && mv -f "$f" "$t" || no
[ -x "$t" ] || no "the file system of $d lets no program run (noexec)""#
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use crabbox_host::command::{Captured, Cmd};

    use super::*;

    fn run(home: &Path, script: &str, input: &[u8]) -> Captured {
        Cmd::new("sh")
            .args(["-c", script])
            .env("HOME", home)
            .stdin(input.to_vec())
            .capture()
            .unwrap()
    }

    #[test]
    fn the_agent_is_what_its_name_says_and_no_larger_than_a_guest_should_bear() {
        for agent in AGENTS {
            let program = agent.program().unwrap();
            assert_eq!(crabbox_host::digest::sha256(&program), agent.digest);
            assert!(program.len() < 1_500_000, "{} bytes", program.len());
            assert_eq!(
                of_machine(agent.machine).map(|found| found.digest),
                Some(agent.digest)
            );
        }
        assert!(of_machine("pdp11").is_none() && of_machine("").is_none());
    }

    #[test]
    fn it_is_placed_once_privately_and_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(".cache/crabbox/agents");
        let program = program().unwrap();
        assert_eq!(run(home.path(), &start(), b"").status.code(), Some(WANTED.into()));
        // Truncated or empty.
        for wrong in [&program[..program.len() - 1], b""] {
            let placed = run(home.path(), &place(&AGENTS[0]), wrong);
            assert_eq!(placed.status.code(), Some(UNPLACED.into()));
            assert!(placed.stderr_text().contains("not what was sent"), "{placed:?}");
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        }
        assert!(run(home.path(), &place(&AGENTS[0]), &program).status.success());
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join(DIGEST))), (0o700, 0o700));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        let mut word = Vec::new();
        let (rsync, greeting) = (true, crabbox_agent_protocol::HELLO);
        crabbox_agent_protocol::Reply::Hello {
            word: greeting,
            rsync,
        }
        .frame(&mut word);
        let greets = |script: &str| {
            let hello = run(home.path(), script, b"");
            hello.status.success() && hello.stdout.len() == word.len()
        };
        assert!(greets(&start()));
        // A failed upload leaves the existing agent alone.
        assert!(!run(home.path(), &place(&AGENTS[0]), b"").status.success());
        assert!(greets(&start()));
        // An agent that other users could have replaced, or that is damaged, is not started but uploaded
        // again.
        let at = dir.join(DIGEST);
        let chmod = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let aside = home.path().join("aside");
        let spoil: [(&str, &dyn Fn()); 6] = [
            ("open to others", &|| chmod(&dir, 0o777)),
            ("a directory", &|| {
                std::fs::remove_file(&at).unwrap();
                std::fs::create_dir(&at).unwrap();
                std::fs::write(at.join("in"), "it").unwrap();
            }),
            ("a link to a directory", &|| {
                std::fs::remove_file(&at).unwrap();
                std::fs::create_dir(&aside).unwrap();
                symlink(&aside, &at).unwrap();
            }),
            ("a link", &|| {
                std::fs::remove_file(&at).unwrap();
                symlink("/bin/true", &at).unwrap();
            }),
            ("empty", &|| std::fs::write(&at, "").unwrap()),
            ("no program", &|| chmod(&at, 0o600)),
        ];
        for (what, spoil) in spoil {
            spoil();
            let absent = run(home.path(), &start(), b"");
            assert_eq!(absent.status.code(), Some(WANTED.into()), "{what}: {absent:?}");
            assert!(absent.stderr_text().starts_with(MACHINE), "{what}: {absent:?}");
            let placed = run(home.path(), &place(&AGENTS[0]), &program);
            assert!(placed.status.success(), "{what}: {placed:?}");
            assert!(greets(&start()), "{what}");
            assert_eq!(
                (mode(&dir), std::fs::read_dir(&dir).unwrap().count()),
                (0o700, 1),
                "{what}"
            );
        }
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 0);
        // A file system without the sticky bit.
        chmod(&dir, 0o700);
        assert!(greets(&start_placed()));
    }

    /// An agent that is a script which prints `word`.
    fn saying(machine: &'static str, word: &str) -> (Agent, String) {
        let text = format!("#!/bin/sh\necho {word}\n");
        let digest: &'static str = crabbox_host::digest::sha256(text.as_bytes()).leak();
        let packed = &[];
        let agent = Agent {
            machine,
            digest,
            packed,
        };
        (agent, text)
    }

    #[test]
    fn of_those_in_a_home_that_machines_share_the_one_for_this_machine_is_started() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let put = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
        };
        let ((one, one_text), (two, two_text)) = (saying("one", "first"), saying("two", "second"));
        let both = [one, two];
        let dir = at(".cache/crabbox/agents");
        put(&dir.join(both[0].digest), &one_text);
        put(&dir.join(both[1].digest), &two_text);
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o1700)).unwrap();
        let image = at("image");
        let (image_text, arch) = (image.to_str().unwrap(), at("arch"));
        let started = || {
            let script = start_one(&both, image_text, arch.to_str().unwrap(), AS_PLACED);
            let path = format!("{}:/usr/bin:/bin", at("bin").display());
            let done = Cmd::new("sh").args(["-c", &script]).env("HOME", home.path());
            let done = done.env("PATH", &path).capture().unwrap();
            (
                done.status.code(),
                done.stdout_text().trim().to_owned(),
                done.stderr_text().trim().to_owned(),
            )
        };
        let said = |machine: &str| format!("{MACHINE}{machine}");
        let runs = |word: &str, machine: &str| (Some(0), word.to_owned(), said(machine));
        let absent = |machine: &str| (Some(ABSENT.into()), String::new(), said(machine));
        // By the kernel's file, or by uname if there is none.
        for (machine, told) in [
            ("one", runs("first", "one")),
            ("two", runs("second", "two")),
            ("three", absent("three")),
            ("on", absent("on")),
        ] {
            std::fs::write(&arch, format!("{machine}\n")).unwrap();
            put(&at("bin/uname"), "#!/bin/sh\necho other\n");
            assert_eq!(started(), told);
            std::fs::remove_file(&arch).unwrap();
            put(&at("bin/uname"), &format!("#!/bin/sh\necho {machine}\n"));
            assert_eq!(started(), told);
        }
        // Which one is wanted is in the exit code, too.
        std::fs::write(&arch, "two\n").unwrap();
        std::fs::remove_file(dir.join(both[1].digest)).unwrap();
        assert_eq!(started(), (Some((WANTED + 1).into()), String::new(), said("two")));
        // The image's own agent has priority.
        std::fs::write(&arch, "one\n").unwrap();
        put(&image.join(both[1].digest), "#!/bin/sh\necho image\n");
        assert_eq!(started(), (Some(0), "image".to_owned(), String::new()));
    }

    #[test]
    fn a_place_that_is_somebody_else_s_or_full_is_named() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(home.path().join(".cache/crabbox")).unwrap();
        symlink(other.path(), home.path().join(".cache/crabbox/agents")).unwrap();
        let placed = run(home.path(), &place(&AGENTS[0]), &program().unwrap());
        assert!(
            placed.stderr_text().contains("not the user's own directory"),
            "{placed:?}"
        );
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
        let placed = run(Path::new("/proc"), &place(&AGENTS[0]), &program().unwrap());
        assert_eq!(placed.status.code(), Some(UNPLACED.into()));
        assert!(placed.stderr_text().contains("/proc/.cache"), "{placed:?}");
    }
}
