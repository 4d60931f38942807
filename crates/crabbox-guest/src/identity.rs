//! The identity of this instance: host name, machine id, lease user, keys, and the shutdown commands.
//!
//! Runs inside the new root. Files are replaced, never appended to or written through a symlink, so that
//! nothing in the image decides where a key goes.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crabbox_guest_protocol::image::{HOST_KEY, HOST_KEY_PUBLIC};
use rustix::fs::{Gid, Uid};

use crate::accounts::{self, Account, Databases};
use crate::failure::Failure;
use crate::root;
use crate::seed::Seed;
use crate::trim_command::{FSTRIM, TRIM};

/// The commands with which users expect to end the machine.
pub(crate) const POWER_COMMANDS: [&str; 4] = ["poweroff", "reboot", "halt", "shutdown"];

/// Host name, machine id and resolver.
pub(crate) fn write_names(seed: &Seed) -> Result<(), Failure> {
    if let Some(name) = &seed.hostname {
        let file = Path::new("/etc/hostname");
        rustix::system::sethostname(name.as_bytes()).map_err(Failure::path("set the host name of", file))?;
        write(file, format!("{name}\n").as_bytes(), 0o644, None)?;
        write(Path::new("/etc/hosts"), hosts(name).as_bytes(), 0o644, None)?;
    }
    let id = seed
        .instance_id
        .as_deref()
        .map_or_else(random_machine_id, |id| Ok(machine_id(id.as_bytes())))?;
    write(
        Path::new("/etc/machine-id"),
        format!("{id}\n").as_bytes(),
        0o444,
        None,
    )?;
    if let Some(resolver) = &seed.resolv_conf {
        write(Path::new("/etc/resolv.conf"), resolver, 0o644, None)?;
    }
    Ok(())
}

/// Finds or creates the lease user, allows it to become root, and gives it the lease's keys.
pub(crate) fn write_user(seed: &Seed) -> Result<Account, Failure> {
    let account = ensure_account(&seed.user)?;
    let home = Path::new(&account.home);
    let owner = Some((account.uid, account.gid));
    if !home.is_dir() {
        make_dir(home, 0o755, owner)?;
        copy_skeleton(Path::new("/etc/skel"), home, owner)?;
    }
    let ssh = home.join(".ssh");
    make_dir(&ssh, 0o700, owner)?;
    write(&ssh.join("authorized_keys"), &seed.authorized_keys, 0o600, owner)?;
    let sudoers = Path::new("/etc/sudoers.d");
    if account.uid != 0 && sudoers.is_dir() {
        let rule = format!("{} ALL=(ALL:ALL) NOPASSWD:ALL\n", seed.user);
        write(&sudoers.join("90-crabbox-lease"), rule.as_bytes(), 0o440, None)?;
    }
    Ok(account)
}

/// Writes the host key that the client has pinned.
pub(crate) fn write_host_key(seed: &Seed) -> Result<(), Failure> {
    write(Path::new(HOST_KEY), &seed.host_key, 0o600, None)?;
    let public = Path::new(HOST_KEY_PUBLIC);
    match &seed.host_key_public {
        Some(key) => write(public, key, 0o644, None),
        None => remove(public),
    }
}

/// Makes `poweroff` and the like reach process 1. The image's own ones talk to an init that does not run, so
/// ours come first on `PATH`; where the image has none, they are also put into the usual place. The same for
/// `crabbox-trim` and `fstrim` (the image's own cannot reach the host), but without the usual place.
pub(crate) fn link_commands() -> Result<(), Failure> {
    for name in POWER_COMMANDS.into_iter().chain([TRIM, FSTRIM]) {
        let usual = Path::new("/usr/sbin").join(name);
        let local = Path::new("/usr/local/sbin").join(name);
        let missing = POWER_COMMANDS.contains(&name) && !usual.is_symlink() && !usual.exists();
        for place in [Some(local), missing.then_some(usual)].into_iter().flatten() {
            if place.parent().is_some_and(Path::is_dir) {
                remove(&place)?;
                std::os::unix::fs::symlink(root::PROGRAM, &place)
                    .map_err(Failure::path("make the link", &place))?;
            }
        }
    }
    Ok(())
}

fn ensure_account(name: &str) -> Result<Account, Failure> {
    let (passwd, group, shadow) = (
        Path::new("/etc/passwd"),
        Path::new("/etc/group"),
        Path::new("/etc/shadow"),
    );
    let read = |path: &Path| std::fs::read_to_string(path).map_err(Failure::path("read", path));
    let mut files = Databases {
        passwd: read(passwd)?,
        group: read(group)?,
        shadow: read(shadow)?,
    };
    if let Some(account) = accounts::find(&files.passwd, name) {
        if let Some(unlocked) = accounts::unlock(&files.shadow, name) {
            rewrite(shadow, unlocked.as_bytes())?;
        }
        return Ok(account);
    }
    let shell = if Path::new("/bin/bash").exists() {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    let account = accounts::add(&mut files, name, shell).ok_or_else(|| Failure::Content {
        path: passwd.to_owned(),
        why: "every user id for people is taken",
    })?;
    rewrite(group, files.group.as_bytes())?;
    rewrite(shadow, files.shadow.as_bytes())?;
    rewrite(passwd, files.passwd.as_bytes())?;
    Ok(account)
}

/// Replaces the contents of a file, keeping its mode and owner (`/etc/shadow` belongs to a group).
fn rewrite(path: &Path, content: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, content).map_err(Failure::path("write", path))
}

/// Writes a new file in place of whatever is at `path`.
fn write(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    remove(path)?;
    let file = File::options().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(Failure::path("create", path))?;
    // The umask may have removed bits.
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .map_err(Failure::path("set the mode of", path))?;
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(Failure::path("give away", path))?;
    }
    file.write_all(content).map_err(Failure::path("write", path))
}

/// Removes a file, if it exists.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::path("replace", path)(error)),
        _ => Ok(()),
    }
}

fn make_dir(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    if !path.is_dir() {
        std::fs::create_dir_all(path).map_err(Failure::path("create", path))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Failure::path("set the mode of", path))?;
    let Some((uid, gid)) = owner else { return Ok(()) };
    rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(Failure::path("give away", path))
}

/// Copies the plain files of the skeleton, if the image has one.
fn copy_skeleton(from: &Path, home: &Path, owner: Option<(u32, u32)>) -> Result<(), Failure> {
    let Ok(entries) = std::fs::read_dir(from) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let content = std::fs::read(&path).map_err(Failure::path("read", &path))?;
            write(&home.join(entry.file_name()), &content, 0o644, owner)?;
        }
    }
    Ok(())
}

fn hosts(name: &str) -> String {
    let short = name.split('.').next().unwrap_or(name);
    let names = if short == name {
        name.to_owned()
    } else {
        format!("{name} {short}")
    };
    format!("127.0.0.1 localhost\n127.0.1.1 {names}\n::1 localhost ip6-localhost ip6-loopback\n")
}

/// A machine id derived from the instance id by 128-bit FNV-1a. It need not be secret, only unique and
/// stable.
fn machine_id(instance: &[u8]) -> String {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let digest = instance
        .iter()
        .fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
    as_machine_id(digest)
}

fn random_machine_id() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(Failure::path(
        "draw random bytes for",
        Path::new("/etc/machine-id"),
    ))?;
    Ok(as_machine_id(u128::from_be_bytes(bytes)))
}

/// Formats the bits as a UUID of version 4 without dashes, as `machine-id(5)` requires.
fn as_machine_id(bits: u128) -> String {
    let version = (bits & !(0xf << 76)) | (4 << 76);
    format!("{:032x}", (version & !(0b11 << 62)) | (0b10 << 62))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_stable_different_and_well_formed() {
        let id = machine_id(b"cbx_0123456789ab");
        assert_eq!(id, machine_id(b"cbx_0123456789ab"));
        assert_ne!(id, machine_id(b"cbx_0123456789ac"));
        for id in [id, random_machine_id().unwrap()] {
            assert_eq!(id.len(), 32);
            assert_eq!(&id[12..13], "4", "{id}");
            assert!("89ab".contains(&id[16..17]), "{id}");
        }
    }

    #[test]
    fn hosts_knows_the_full_and_the_short_name() {
        assert!(hosts("box.lan").contains("127.0.1.1 box.lan box\n"));
        assert!(hosts("box").contains("127.0.1.1 box\n"));
    }

    #[test]
    fn writing_replaces_a_link_instead_of_following_it() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, b"new", 0o600, None).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "new");
        assert_eq!(
            std::fs::metadata(&link).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
