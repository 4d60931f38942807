//! Real microVMs from afar: a host prepared by `setup firecracker --serve`, and clients without root and
//! without KVM that reach it through a real sshd, sudo and account; once also a real Slurm that places the
//! lease. Clients, gateway and host are one machine here and share its loopback.

use crabbox_core::shell::single_quoted;
use crabbox_e2e::fleet::{self, EPILOG, GRES};
use crabbox_e2e::{Done, Host, assert_nothing_left};

/// The login of the owners: an sshd of the test.
const KVM: &str = "crabbox@127.0.0.1:2223";

/// The parent of the clients' home directories, each with a key, a program and a repository.
const HOMES: &str = "/tmp/e2e-afar";

const CTRL_C: &str = include_str!("run/ctrl_c.py");

/// Sets up clients and sshd. `daemon` and `nobody` exist on every Debian, and own nothing here.
const MAKE: &str = r#"
set -e
# What a test that was killed has left. A number of an earlier boot is another process by now.
for pid in $(cat /tmp/e2e-afar/*.pid 2>/dev/null); do ! grep -qs e2e-afar /proc/$pid/cmdline || kill $pid; done
rm -rf /tmp/e2e-afar "$HOME/.config/crabbox/fleet"; mkdir -m 755 /tmp/e2e-afar; mkdir -p /run/sshd "$HOME/.config/crabbox/state"
chmod 700 "$HOME/.config/crabbox" "$HOME/.config/crabbox/state"
cp "$(command -v crabbox)" /tmp/e2e-afar/crabbox; chmod 755 /tmp/e2e-afar/crabbox
ssh-keygen -q -t ed25519 -N '' -f /tmp/e2e-afar/host
for who in nobody daemon; do
  mkdir -p /tmp/e2e-afar/$who/repo; cd /tmp/e2e-afar/$who/repo
  ssh-keygen -q -t ed25519 -N '' -C $who -f ../key
  git init -q; echo one > tracked; mkdir sub; echo sub > sub/file; git add -A; git -c user.name=t -c user.email=t@example.invalid commit -qm one
  chown -R $who: /tmp/e2e-afar/$who
done
cat > /tmp/e2e-afar/sshd <<'C'
Port 2223
ListenAddress 127.0.0.1
HostKey /tmp/e2e-afar/host
AllowUsers crabbox
UsePAM no
UseDNS no
PidFile /tmp/e2e-afar/sshd.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
C
/usr/sbin/sshd -f /tmp/e2e-afar/sshd -E /tmp/e2e-afar/sshd.log
"#;

const SETUP: &str =
    "CRABBOX_PROVIDER=firecracker CRABBOX_FIRECRACKER_WARM=off crabbox setup firecracker --serve --yes";

/// Removes everything again, whatever the result of the test.
struct Tidy<'a>(&'a Host);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        self.0.sh(&format!(
            "{SETUP} --remove >&2; kill $(cat {HOMES}/sshd.pid); pkill -u nobody -x ssh; pkill -u daemon -x ssh; rm -rf {HOMES} /tmp/crabbox-ssh-65534 /tmp/crabbox-ssh-1"
        ));
    }
}

/// The shell words that run `command` as `who`.
fn client(who: &str, command: &str) -> String {
    format!(
        "cd {HOMES}/{who}/repo && exec setpriv --reuid {who} --regid $(id -g {who}) --clear-groups env -i HOME={HOMES}/{who} PATH={HOMES}:/usr/bin:/bin \
         LC_ALL=C TERM=dumb CRABBOX_PROVIDER=firecracker CRABBOX_SSH_KEY={HOMES}/{who}/key CRABBOX_FIRECRACKER_HOST={KVM} {command}"
    )
}

#[track_caller]
fn sh(host: &Host, who: &str, script: &str) -> Done {
    host.sh(&client(who, &format!("sh -c {}", single_quoted(script))))
}

/// Everything that its owner does in the lease.
#[track_caller]
fn works(host: &Host) {
    // A dirty tree, the command's own exit code, and separate output streams.
    let run = sh(
        host,
        "nobody",
        "echo two >> tracked; echo new > untracked; rm sub/file; \
         crabbox run --id mine -- sh -c 'uname -n; cat tracked untracked; ls sub 2>/dev/null; echo fixed > tracked; echo to-stderr >&2; exit 7'",
    )
    .exits(7);
    assert!(run.stdout.starts_with("crabbox-mine"), "{run:?}");
    assert!(
        run.stdout.ends_with("\none\ntwo\nnew\n") && run.stderr.contains("to-stderr"),
        "{run:?}"
    );
    let back = sh(
        host,
        "nobody",
        "crabbox pull --id mine && cat tracked && crabbox cp --id mine tracked SANDBOX:/tmp/c && crabbox cp --id mine SANDBOX:/tmp/c back && cat back && \
         echo 'echo in-$(id -un); exit 5' | crabbox connect mine",
    )
    .exits(5);
    assert!(
        back.stdout.contains("M tracked\nfixed\n") && back.stdout.contains("in-crabbox"),
        "{back:?}"
    );
    // The guest's own sshd serves as the target of a forward.
    let forwarded = sh(
        host,
        "nobody",
        "crabbox ports --id mine add door 22 > ../ports && head -c 4 < /dev/null; \
         python3 -c 'import socket,re; p = re.search(\"127.0.0.1:(\\d+)\", open(\"../ports\").read()).group(1); \
         print(socket.create_connection((\"127.0.0.1\", int(p))).recv(4).decode())' && crabbox ports --id mine rm door",
    )
    .exits(0);
    assert!(forwarded.stdout.contains("SSH-\n"), "{forwarded:?}");
    let interrupted = host.feed(
        &client(
            "nobody",
            "python3 - crabbox run --id mine --no-sync -- sh -c 'echo be\"\"gan; sleep 1001'",
        ),
        CTRL_C.as_bytes(),
    );
    let interrupted = interrupted.exits(130);
    assert!(
        interrupted
            .stdout
            .contains("the command in the lease was stopped"),
        "{interrupted:?}"
    );
}

#[test]
fn a_microvm_on_another_machine_is_its_owner_s_from_setup_to_removal() {
    let host = Host::alone();
    drop(host.sh(MAKE).exits(0));
    let tidy = Tidy(&host);
    let before = host.residue();
    let accounts = || {
        host.sh("cat /etc/passwd /etc/group; ls /etc/sudoers.d")
            .exits(0)
            .stdout
    };
    let known = accounts();
    let made = host.sh(&format!(
        "{SETUP} --owner alice={HOMES}/nobody/key.pub --owner bob={HOMES}/daemon/key.pub"
    ));
    let made = made.exits(0);
    assert!(made.stdout.contains("__serve --as alice"), "{made:?}");

    let leased = sh(
        &host,
        "nobody",
        "crabbox warmup --slug mine --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048",
    )
    .exits(0);
    let lease = leased.lease();
    works(&host);
    // It is invisible to another owner.
    let other = sh(&host, "daemon", &format!("crabbox list; crabbox stop {lease}")).exits(4);
    assert!(
        other.stdout.is_empty() && other.stderr.contains("not found"),
        "{other:?}"
    );
    drop(sh(&host, "nobody", "crabbox stop mine").exits(0));
    let kept = host.sh(&format!("find {HOMES}/nobody/.config | grep cbx_"));
    assert_eq!(kept.stdout, "");
    drop(host.sh(&format!("{SETUP} --remove")).exits(0));
    assert_eq!(accounts(), known);
    drop(
        host.sh("test ! -e /var/lib/crabbox-serve && { pkill -u nobody -x ssh; pkill -u daemon -x ssh; sleep 1; }")
            .exits(0),
    );
    // Lock files of connections, in the clients' own directories, stay for later connections.
    let left = host.residue().into_iter();
    let left: Vec<_> = left.filter(|line| !line.contains("/tmp/crabbox-ssh-")).collect();
    assert_nothing_left(&before, &left);
    drop(tidy);
}

/// Starts Slurm, and makes the lab its gateway and only host.
const SLURM: &str = include_str!("afar/slurm.sh");

/// Shell: ends all of it.
const NO_SLURM: &str = "pkill -x slurmctld; pkill -x slurmd; pkill -x munged; kill $(cat /tmp/e2e-afar/sshd-host.pid); pkill -x ssh; \
     for i in $(seq 100); do pgrep -x 'slurmctld|slurmd|munged|ssh' >/dev/null || break; sleep 0.1; done; \
     rm -rf \"$HOME\"/.config/crabbox/fleet /var/lib/slurm/slurmd /var/lib/slurm/slurmctld; \
     cd /etc/slurm && rm -f slurm.conf gres.conf cgroup.conf crabbox-epilog";

/// Ends it, whatever the result of the test.
struct TidySlurm<'a>(&'a Host);

impl Drop for TidySlurm<'_> {
    fn drop(&mut self) {
        self.0.sh(NO_SLURM);
    }
}

/// Makes the lab a fleet of one.
#[track_caller]
fn placed_by_slurm(host: &Host) -> TidySlurm<'_> {
    let changed = [
        ("SlurmctldHost", "kvmhost(127.0.0.1)"),
        ("SlurmUser", "root"),
        ("SlurmctldLogFile", "/tmp/e2e-afar/slurmctld.log"),
        ("SlurmdLogFile", "/tmp/e2e-afar/slurmd.log"),
        // The lab has no systemd to give Slurm a control group.
        ("ProctrackType", "proctrack/linuxproc"),
    ];
    let conf = fleet::conf(&changed, &[("kvmhost".to_owned(), "127.0.0.1".to_owned(), 1200)]);
    for (name, text) in [
        ("slurm.conf", &*conf),
        ("gres.conf", GRES),
        ("crabbox-epilog", EPILOG),
    ] {
        let put = format!("mkdir -p {HOMES}/slurm && cat > {HOMES}/slurm/{name}");
        drop(host.feed(&put, text.as_bytes()).exits(0));
    }
    // A test that was killed has left its own.
    host.sh(NO_SLURM);
    let tidy = TidySlurm(host);
    drop(host.sh(SLURM).exits(0));
    tidy
}

/// Waits, a few minutes at most, until the host is idle, without a lease, a VMM and a job.
#[track_caller]
fn all_is_given_back(host: &Host) {
    let idle = "test \"$(sinfo -h -N -o %T)\" = idle && test -z \"$(squeue -h)\" && ! pgrep -x firecracker >/dev/null && \
                ! ls -d .config/crabbox/state/firecracker/leases/cbx_* >/dev/null 2>&1";
    let waited = host.sh(&format!(
        "for i in $(seq 300); do {{ {idle}; }} && exit 0; sleep 0.2; done; \
         sinfo -N -l; squeue; ps ax -o pid,ppid,args; tail -n 30 {HOMES}/slurmd.log; exit 1"
    ));
    drop(waited.exits(0));
}

#[test]
fn a_microvm_that_slurm_places_is_used_given_back_and_goes_with_its_job() {
    let host = Host::lab();
    drop(host.sh(MAKE).exits(0));
    let tidy = Tidy(&host);
    let before = host.residue();
    let slurm = placed_by_slurm(&host);
    drop(
        host.sh(&format!("{SETUP} --owner alice={HOMES}/nobody/key.pub"))
            .exits(0),
    );
    let warmup =
        "crabbox warmup --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048";
    let lease = sh(&host, "nobody", &format!("{warmup} --slug mine"))
        .exits(0)
        .lease();
    // Scheduler, host and client agree, and the VMM is a real one whose supervisor is the job's process.
    let job = host.sh("squeue -h -o '%j %N %T'").exits(0).stdout;
    assert_eq!(job, format!("{lease} kvmhost RUNNING\n"));
    let listed = sh(&host, "nobody", "crabbox list").exits(0).stdout;
    assert!(listed.contains(&format!("host={KVM}/kvmhost")), "{listed}");
    let above =
        host.sh("pgrep -x firecracker >/dev/null && ps -o comm= -p $(ps -o ppid= -p $(pgrep -f '[_]_hold'))");
    assert_eq!(above.exits(0).stdout, "slurmstepd\n");
    let run = "echo two >> tracked; crabbox run --id mine -- sh -c 'uname -n; cat tracked; exit 7'";
    let run = sh(&host, "nobody", run).exits(7);
    assert_eq!(run.stdout, "crabbox-mine\none\ntwo\n", "{run:?}");
    drop(sh(&host, "nobody", "crabbox stop mine").exits(0));
    all_is_given_back(&host);

    // Without its supervisor the job is over, and the epilog takes the machine back.
    drop(sh(&host, "nobody", &format!("{warmup} --slug again")).exits(0));
    drop(
        host.sh("pgrep -x firecracker >/dev/null && pkill -9 -f '[_]_hold'")
            .exits(0),
    );
    all_is_given_back(&host);
    let gone = sh(&host, "nobody", "crabbox status again").exits(4);
    assert!(gone.stderr.contains("not found"), "{gone:?}");
    drop(sh(&host, "nobody", "crabbox cleanup").exits(0));

    drop(host.sh(&format!("{SETUP} --remove")).exits(0));
    drop(slurm);
    let left = host.residue().into_iter();
    let left: Vec<_> = left.filter(|line| !line.contains("/tmp/crabbox-ssh-")).collect();
    assert_nothing_left(&before, &left);
    drop(tidy);
}
