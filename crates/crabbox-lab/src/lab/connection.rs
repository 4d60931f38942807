//! The SSH connection to a lab: a single shared one, because under emulation each handshake costs seconds.
//! The host key is pinned, and the user's own SSH configuration is neither used nor changed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crabbox_core::id::hex;
use crabbox_host::command::{Captured, Cmd};
use sha2::{Digest as _, Sha256};

use super::images::HOST_KEY_ALIAS;

/// The user and host of every connection; the port is an option.
const DESTINATION: &str = "root@127.0.0.1";

/// What an SSH connection to a lab needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address<'a> {
    pub(super) port: u16,
    pub(super) key: &'a Path,
    pub(super) known_hosts: &'a Path,
    pub(super) control_path: &'a Path,
}

/// ssh with its options and the destination; the remote command is appended.
pub(super) fn ssh_argv(address: Address<'_>) -> Vec<String> {
    let mut argv: Vec<String> = ["ssh", "-F", "/dev/null", "-p", &address.port.to_string(), "-i"]
        .map(Into::into)
        .into();
    argv.push(address.key.display().to_string());
    for (name, value) in [
        ("IdentitiesOnly", "yes".to_owned()),
        ("BatchMode", "yes".to_owned()),
        ("LogLevel", "ERROR".to_owned()),
        ("ConnectTimeout", "60".to_owned()),
        ("ServerAliveInterval", "30".to_owned()),
        ("ServerAliveCountMax", "4".to_owned()),
        ("StrictHostKeyChecking", "yes".to_owned()),
        ("UpdateHostKeys", "no".to_owned()),
        ("HostKeyAlias", HOST_KEY_ALIAS.to_owned()),
        ("UserKnownHostsFile", address.known_hosts.display().to_string()),
        ("GlobalKnownHostsFile", "/dev/null".to_owned()),
        // The cheapest algorithms for an emulated processor; the connection is loopback only.
        ("KexAlgorithms", "curve25519-sha256".to_owned()),
        (
            "Ciphers",
            "aes128-gcm@openssh.com,chacha20-poly1305@openssh.com".to_owned(),
        ),
        ("ControlMaster", "auto".to_owned()),
        ("ControlPath", address.control_path.display().to_string()),
        ("ControlPersist", "yes".to_owned()),
    ] {
        argv.push("-o".to_owned());
        argv.push(format!("{name}={value}"));
    }
    argv.push(DESTINATION.to_owned());
    argv
}

/// The socket of the shared connection. A socket's path may have 107 bytes and ssh adds 17 while it binds, so
/// it is in a private directory below /tmp and not in the lab's own.
pub(super) fn control_path(lab_dir: &Path) -> PathBuf {
    let place = hex(&Sha256::digest(lab_dir.as_os_str().as_encoded_bytes())[..6]);
    let user = rustix::process::geteuid().as_raw();
    PathBuf::from(format!("/tmp/crabbox-lab-{user}-{place}/ssh"))
}

/// The socket of QEMU's monitor, beside that of the shared connection.
pub(super) fn monitor_path(control_path: &Path) -> PathBuf {
    control_path.with_file_name("monitor")
}

/// Creates the directory of a [`control_path`], or checks that an existing one belongs only to us.
pub(super) fn make_control_dir(control_path: &Path) -> Result<()> {
    let dir = control_path
        .parent()
        .context("a control path without a directory")?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(dir)?;
            let ours = meta.is_dir()
                && meta.uid() == rustix::process::geteuid().as_raw()
                && meta.mode().trailing_zeros() >= 6;
            ensure!(
                ours,
                "{} is there and is not a private directory of ours; remove it",
                dir.display()
            );
            Ok(())
        }
        other => other.with_context(|| format!("cannot make {}", dir.display())),
    }
}

/// Opens the shared connection; it stays in the background until [`close`].
pub(super) fn open(ssh_argv: &[String], limit: Duration) -> Result<()> {
    let (destination, options) = ssh_argv.split_last().context("an empty ssh command")?;
    Cmd::inheriting("timeout")
        .arg(format!("{}", limit.as_secs().max(1)))
        .args(options)
        .args(["-o", "ControlMaster=yes", "-f", "-N", "-n"])
        .arg(destination)
        .run()
        .context("the lab runs and does not let us in")?;
    Ok(())
}

/// Closes the shared connection, if any, and removes its directory.
pub(super) fn close(ssh_argv: &[String], control_path: &Path) {
    close_master(ssh_argv, control_path);
    if let Some(dir) = control_path.parent() {
        fs::remove_dir_all(dir).ok();
    }
}

/// Closes the shared connection, if any.
pub(super) fn close_master(ssh_argv: &[String], control_path: &Path) {
    if let (Some((destination, options)), true) = (ssh_argv.split_last(), control_path.exists()) {
        // The master would end by itself once QEMU does; this is only quicker.
        Cmd::inheriting(&options[0])
            .args(&options[1..])
            .args(["-O", "exit"])
            .arg(destination)
            .limit(Duration::from_secs(10))
            .capture()
            .ok();
    }
    fs::remove_file(control_path).ok();
}

/// Whether a new connection succeeds within `patience`.
pub(super) fn answers(ssh_argv: &[String], patience: Duration) -> bool {
    let Some((destination, options)) = ssh_argv.split_last() else {
        return false;
    };
    let asked = Cmd::inheriting(&options[0])
        .args(["-o", "ControlPath=none", "-o", "ControlMaster=no"])
        .args(&options[1..])
        .args([destination.as_str(), "--", "true"])
        .limit(patience)
        .capture();
    asked.is_ok_and(|captured| captured.status.success())
}

/// Runs `argv` in the lab, verbatim, and captures its output, even if it fails.
pub(super) fn capture<S: AsRef<OsStr>>(ssh_argv: &[String], argv: &[S], limit: Duration) -> Result<Captured> {
    Ok(command(ssh_argv)
        .arg("--")
        .arg(quote_all(argv))
        .limit(limit)
        .capture()?)
}

/// Runs `words` in the lab with this process's standard streams. With `exact`, the words are an argument
/// vector; otherwise they are joined and interpreted by the remote shell, as ssh does. Without words it is a
/// login.
pub(super) fn attach<S: AsRef<OsStr>>(ssh_argv: &[String], words: &[S], exact: bool) -> Result<ExitStatus> {
    let mut ssh = command(ssh_argv);
    if !words.is_empty() {
        ssh = ssh.arg("--");
        ssh = if exact {
            ssh.arg(quote_all(words))
        } else {
            ssh.args(words)
        };
    }
    let mut child = ssh.spawn(ssh.to_std().stdin(Stdio::inherit()))?;
    Ok(child.wait()?)
}

/// Copies with rsync (its rules for trailing slashes); a path in the lab begins with `lab:`.
pub(super) fn copy(ssh_argv: &[String], source: &str, target: &str) -> Result<()> {
    let (destination, options) = ssh_argv.split_last().context("an empty ssh command")?;
    let place = |path: &str| {
        path.strip_prefix("lab:")
            .map_or(path.to_owned(), |rest| format!("{destination}:{rest}"))
    };
    ensure!(
        source.starts_with("lab:") != target.starts_with("lab:"),
        "exactly one of {source} and {target} must be in the lab (lab:/path)"
    );
    // No compression and no delta transfer: both cost more on an emulated processor than the bytes do on
    // loopback.
    Cmd::inheriting("rsync")
        .args([
            "-a",
            "--sparse",
            "--whole-file",
            "--mkpath",
            "--no-owner",
            "--no-group",
            "-e",
        ])
        .arg(quote_all(options))
        .args([place(source), place(target)])
        .run()
        .with_context(|| format!("cannot copy {source} to {target}"))?;
    Ok(())
}

fn command(ssh_argv: &[String]) -> Cmd {
    Cmd::inheriting(&ssh_argv[0]).args(&ssh_argv[1..])
}

/// Each argument quoted as a shell word, separated by blanks.
fn quote_all<S: AsRef<OsStr>>(argv: &[S]) -> OsString {
    argv.iter()
        .map(|word| quote(word.as_ref()))
        .collect::<Vec<_>>()
        .join(OsStr::new(" "))
}

fn quote(word: &OsStr) -> OsString {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./=:,@%+".contains(byte);
    let bytes = word.as_encoded_bytes();
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return word.to_owned();
    }
    let mut quoted = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            other => quoted.push(*other),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        let words = ["printf", "%s|", "a b", "it's", "", "$HOME", "*", "tail\n"];
        let line = quote_all(&words);
        let out = Cmd::inheriting("sh").arg("-c").arg(line).run().unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            "a b|it's||$HOME|*|tail\n|"
        );
    }

    #[test]
    fn the_socket_leaves_room_for_sshs_own_suffix() {
        let deep = PathBuf::from("/very").join("deep/".repeat(60));
        assert!(control_path(&deep).as_os_str().len() + 17 < 107);
        assert_ne!(control_path(&deep), control_path(Path::new("/other")));
    }

    #[test]
    fn the_host_key_is_always_checked() {
        let path = Path::new("/p");
        let argv = ssh_argv(Address {
            port: 2222,
            key: path,
            known_hosts: path,
            control_path: path,
        });
        assert!(argv.contains(&"StrictHostKeyChecking=yes".to_owned()));
        assert_eq!(argv.last().map(String::as_str), Some(DESTINATION));
    }

    #[test]
    fn a_copy_has_one_end_in_the_lab() {
        let argv = ["ssh".to_owned(), DESTINATION.to_owned()];
        assert!(
            copy(&argv, "/a", "/b")
                .unwrap_err()
                .to_string()
                .contains("exactly one")
        );
        assert!(
            copy(&argv, "lab:/a", "lab:/b")
                .unwrap_err()
                .to_string()
                .contains("exactly one")
        );
    }
}
