//! The agent that this program brings along, and how it gets to the other side: once, by its digest.
//!
//! Images of ours have it already. Elsewhere it lies in a directory that only the user of the lease may write to, and nothing is executed there
//! that was not checked against the digest.

use std::io::{self, Read as _};

use flate2::read::GzDecoder;

/// SHA-256 of the agent for machines like this one, hex: its name on the other side.
pub const DIGEST: &str = env!("CRABBOX_AGENT_DIGEST");

/// Where images of ours have agents.
const IMAGE_DIRECTORY: &str = "/usr/lib/crabbox/agents";

/// Our exit code where there is no agent; standard error says which machine it is.
pub(super) const ABSENT: u8 = 71;

/// Our exit code where it could not be put; standard error says why.
pub(super) const UNPLACED: u8 = 73;

/// An agent that this program brings along.
#[derive(Debug)]
pub(super) struct Agent {
    /// The machine that it is for, as `uname -m` has it.
    pub(super) machine: &'static str,
    digest: &'static str,
    packed: &'static [u8],
}

/// All of them; there is none yet but for machines like the one that this was built for (docs/design/agent.md).
pub(super) const AGENTS: &[Agent] = &[Agent {
    machine: env!("CRABBOX_AGENT_MACHINE"),
    digest: DIGEST,
    packed: include_bytes!(concat!(env!("OUT_DIR"), "/crabbox-agent.gz")),
}];

/// The one for a machine.
pub(super) fn of_machine(machine: &str) -> Option<&'static Agent> {
    AGENTS.iter().find(|agent| agent.machine == machine)
}

/// The machines that there is one for, for a message.
pub(super) fn machines() -> String {
    let names: Vec<&str> = AGENTS.iter().map(|agent| agent.machine).collect();
    names.join(" and ")
}

impl Agent {
    /// The agent itself.
    pub(super) fn program(&self) -> io::Result<Vec<u8>> {
        let mut program = Vec::new();
        GzDecoder::new(self.packed).read_to_end(&mut program)?;
        Ok(program)
    }
}

/// The agent for machines like this one.
pub fn program() -> io::Result<Vec<u8>> {
    AGENTS[0].program()
}

/// Where the kernel says for which machine it is, since Linux 6.1: that costs no process, as uname(1) does.
const ARCH: &str = "/proc/sys/kernel/arch";

/// A script that becomes the agent.
pub(super) fn start() -> String {
    start_one(AGENTS, IMAGE_DIRECTORY, ARCH)
}

/// One of `agents`. An image has one for its own machine alone. A home directory may be shared by machines of several kinds: there it is the one
/// for this machine. What has its name there was checked against it by [`place`], and only the user could have put something else there since.
fn start_one(agents: &[Agent], image: &str, arch: &str) -> String {
    let digests: Vec<&str> = agents.iter().map(|agent| agent.digest).collect();
    let one = |agent: &Agent| format!("{}) cbx_a={} ;;\n", agent.machine, agent.digest);
    format!(
        r#"for cbx_a in {}; do
cbx_b={image}/$cbx_a
[ -s "$cbx_b" ] && [ -x "$cbx_b" ] && exec "$cbx_b"
done
{{ read -r cbx_m < {arch}; }} 2>/dev/null || cbx_m=$(uname -m)
case $cbx_m in
{}*) cbx_a= ;;
esac
cbx_b=$HOME/.cache/crabbox/agents/$cbx_a
[ -n "$cbx_a" ] && [ -s "$cbx_b" ] && [ -x "$cbx_b" ] && exec "$cbx_b"
echo "$cbx_m" >&2
exit {ABSENT}"#,
        digests.join(" "),
        agents.iter().map(one).collect::<String>(),
    )
}

/// A script that puts the agent, which is its input, where [`start`] finds it.
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
chmod 700 "$d" && cat > "$f" || no
s=$({{ sha256sum || shasum -a 256 || busybox sha256sum || openssl dgst -sha256 -r; }} < "$f" 2>/dev/null)
case $s in
  {digest}*) ;;
  '') no 'there is nothing to check it with: install sha256sum (coreutils) there' ;;
  *) no 'what arrived is not what was sent' ;;
esac
sync "$f" 2>/dev/null
chmod 700 "$f" && mv -f "$f" "$d/{digest}" || no
[ -x "$d/{digest}" ] || no "the file system of $d lets no program run (noexec)""#
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
        assert_eq!(run(home.path(), &start(), b"").status.code(), Some(ABSENT.into()));
        // Cut, or changed on its way.
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
        let hello = run(home.path(), &start(), b"");
        assert!(hello.status.success() && hello.stdout.len() == 10, "{hello:?}");
    }

    /// An agent that is a script which says `word`.
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
        let image = at("image");
        let (image_text, arch) = (image.to_str().unwrap(), at("arch"));
        let started = || {
            let script = start_one(&both, image_text, arch.to_str().unwrap());
            let path = format!("{}:/usr/bin:/bin", at("bin").display());
            let done = Cmd::new("sh").args(["-c", &script]).env("HOME", home.path());
            let done = done.env("PATH", &path).capture().unwrap();
            (
                done.status.code(),
                done.stdout_text().trim().to_owned(),
                done.stderr_text().trim().to_owned(),
            )
        };
        let runs = |word: &str| (Some(0), word.to_owned(), String::new());
        let absent = |machine: &str| (Some(ABSENT.into()), String::new(), machine.to_owned());
        // By what the kernel says, and by uname where it does not.
        for (machine, told) in [
            ("one", runs("first")),
            ("two", runs("second")),
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
        // An image's own comes first.
        std::fs::write(&arch, "one\n").unwrap();
        put(&image.join(both[1].digest), "#!/bin/sh\necho image\n");
        assert_eq!(started(), runs("image"));
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
