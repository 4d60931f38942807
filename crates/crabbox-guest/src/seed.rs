//! The seed: what the host passes to this instance about itself, as small files in the initramfs
//! (`/crabbox-seed`).
//!
//! It is read once, completely, before anything is written, and wiped. Values that end up in a path, in
//! `/etc/passwd` or in a host name are checked here; an invalid seed must never yield an incomplete instance.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crabbox_guest_protocol::seed as names;

use crate::failure::Failure;

/// The largest accepted seed file in bytes; an `authorized_keys` of that size holds several hundred keys.
const FILE_LIMIT: u64 = 64 * 1024;

/// Linux's longest user name (`LOGIN_NAME_MAX` is 256, but `useradd` and `utmp` stop at 32).
const USER_LIMIT: usize = 32;

/// Linux's longest host name (`__NEW_UTS_LEN`), in bytes.
const HOSTNAME_LIMIT: usize = 64;

/// The contents of the seed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seed {
    pub(crate) hostname: Option<String>,
    pub(crate) instance_id: Option<String>,
    pub(crate) user: String,
    pub(crate) authorized_keys: Vec<u8>,
    pub(crate) host_key: Vec<u8>,
    pub(crate) host_key_public: Option<Vec<u8>>,
    pub(crate) resolv_conf: Option<Vec<u8>>,
    pub(crate) network: Option<Network>,
    pub(crate) work_root: Option<PathBuf>,
    pub(crate) time: Option<i64>,
    pub(crate) entropy: Option<Vec<u8>>,
    pub(crate) volumes: Vec<Volume>,
}

/// A drive that outlives this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// Its block device.
    pub(crate) device: PathBuf,
    /// Where it is mounted.
    pub(crate) path: PathBuf,
}

/// Address of the one network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    /// The address of the guest.
    pub(crate) address: Ipv4Addr,
    /// Length of the network prefix, 1 to 32.
    pub(crate) prefix: u8,
    /// Where the default route leads.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// MAC address of the interface, in lower case; without it `eth0` is used.
    pub(crate) mac: Option<String>,
}

/// Whether the seed in `dir` is a template's, from which instances are made later.
pub(crate) fn is_template(dir: &Path) -> bool {
    dir.join(names::TEMPLATE).exists()
}

impl Seed {
    /// Reads every file of the seed directory `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self, Failure> {
        Self::read_as(dir, true)
    }

    /// Reads it with a user and its keys, which a template does not have.
    fn read_as(dir: &Path, with_user: bool) -> Result<Self, Failure> {
        if !dir.is_dir() {
            let why = "there is no seed: the host must append one to the initrd";
            return Err(Failure::Content {
                path: dir.to_owned(),
                why,
            });
        }
        let optional = |name: &str| read_file(&dir.join(name));
        let required = |name: &str| {
            let path = dir.join(name);
            match read_file(&path)? {
                Some(bytes) if !bytes.trim_ascii().is_empty() => Ok(bytes),
                Some(_) => Err(Failure::Content {
                    path,
                    why: "it is empty",
                }),
                None => Err(Failure::Content {
                    path,
                    why: "the seed must have this file",
                }),
            }
        };
        let line =
            |name: &str, check: fn(&str) -> Result<(), &'static str>| -> Result<Option<String>, Failure> {
                let Some(bytes) = optional(name)? else {
                    return Ok(None);
                };
                checked_line(&bytes, check)
                    .map(Some)
                    .map_err(|why| Failure::Content {
                        path: dir.join(name),
                        why,
                    })
            };
        Ok(Self {
            hostname: line(names::HOSTNAME, check_hostname)?,
            instance_id: line(names::INSTANCE_ID, |_| Ok(()))?,
            user: if with_user {
                checked_line(&required(names::USER)?, check_user).map_err(|why| Failure::Content {
                    path: dir.join(names::USER),
                    why,
                })?
            } else {
                String::new()
            },
            authorized_keys: if with_user {
                required(names::AUTHORIZED_KEYS)?
            } else {
                Vec::new()
            },
            host_key: required(names::HOST_KEY)?,
            host_key_public: optional(names::HOST_KEY_PUBLIC)?,
            resolv_conf: optional(names::RESOLV_CONF)?,
            network: optional(names::NETWORK)?
                .map(|bytes| parse_network(&bytes))
                .transpose()
                .map_err(|why| Failure::Content {
                    path: dir.join(names::NETWORK),
                    why,
                })?,
            work_root: line(names::WORK_ROOT, check_work_root)?.map(PathBuf::from),
            time: line(names::TIME, |text| {
                text.parse::<i64>()
                    .map(drop)
                    .map_err(|_| "not a number of seconds")
            })?
            .and_then(|text| text.parse().ok()),
            entropy: optional(names::ENTROPY)?,
            volumes: optional(names::VOLUMES)?
                .map_or(Ok(Vec::new()), |bytes| parse_volumes(&bytes))
                .map_err(|why| Failure::Content {
                    path: dir.join(names::VOLUMES),
                    why,
                })?,
        })
    }

    /// Reads the seed of a template: the parts common to all leases, and a throw-away host key.
    pub(crate) fn read_template(dir: &Path) -> Result<Self, Failure> {
        Self::read_as(dir, false)
    }

    /// Overwrites the secrets after they were written to their places, because a snapshot includes the memory
    /// of process 1.
    pub(crate) fn forget_secrets(&mut self) {
        for secret in [Some(&mut self.host_key), self.entropy.as_mut()]
            .into_iter()
            .flatten()
        {
            secret.fill(0);
            std::hint::black_box(secret).clear();
        }
    }
}

/// Overwrites and removes the seed directory.
pub(crate) fn wipe(dir: &Path) -> Result<(), Failure> {
    let entries = std::fs::read_dir(dir).map_err(Failure::path("list", dir))?;
    for entry in entries {
        let path = entry.map_err(Failure::path("list", dir))?.path();
        overwrite(&path).map_err(Failure::path("overwrite", &path))?;
        std::fs::remove_file(&path).map_err(Failure::path("remove", &path))?;
    }
    std::fs::remove_dir(dir).map_err(Failure::path("remove", dir))
}

fn overwrite(path: &Path) -> std::io::Result<()> {
    // Opened without truncation, so that the same pages are written again.
    let mut file = File::options().write(true).open(path)?;
    let length = file.metadata()?.len();
    file.rewind()?;
    std::io::copy(&mut std::io::repeat(0).take(length), &mut file)?;
    file.flush()
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::path("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(Failure::path("read", path))?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(Failure::Content {
            path: path.to_owned(),
            why: "it is larger than 64 KiB",
        });
    }
    Ok(Some(bytes))
}

fn checked_line(bytes: &[u8], check: fn(&str) -> Result<(), &'static str>) -> Result<String, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?.trim();
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.chars().any(char::is_control) {
        return Err("it is more than one line");
    }
    check(text)?;
    Ok(text.to_owned())
}

fn check_hostname(name: &str) -> Result<(), &'static str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if name.len() > HOSTNAME_LIMIT || !name.bytes().all(legal) || name.starts_with(['-', '.']) {
        return Err("not a host name (letters, digits, dots and dashes, at most 64)");
    }
    Ok(())
}

fn check_user(name: &str) -> Result<(), &'static str> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    let starts_well = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    if name.len() > USER_LIMIT || !starts_well || !name.bytes().all(legal) {
        return Err("not a user name (small letters, digits, _ and -, at most 32, no digit first)");
    }
    Ok(())
}

fn check_work_root(path: &str) -> Result<(), &'static str> {
    let mut names = path.split('/').skip(1).peekable();
    let climbs = path.split('/').any(|name| name == ".." || name == ".");
    if !path.starts_with('/') || climbs || names.all(str::is_empty) || path.len() > 1024 {
        return Err("not an absolute path below / without dots");
    }
    Ok(())
}

fn parse_volumes(bytes: &[u8]) -> Result<Vec<Volume>, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (device, path) = line.split_once(' ').ok_or("a line is not `device path`")?;
            // The base and the layer are the first two disks.
            let is_disk = device
                .strip_prefix("/dev/vd")
                .is_some_and(|letter| matches!(letter.as_bytes(), [b'c'..=b'z']));
            if !is_disk {
                return Err("a device is not /dev/vdc to /dev/vdz");
            }
            check_work_root(path)?;
            if path.contains(char::is_whitespace) {
                return Err("a path has blanks");
            }
            Ok(Volume {
                device: device.into(),
                path: path.into(),
            })
        })
        .collect()
}

fn parse_network(bytes: &[u8]) -> Result<Network, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let (mut address, mut gateway, mut mac) = (None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=').ok_or("a line is not key=value")?;
        match key {
            "address" => address = Some(parse_cidr(value)?),
            "gateway" => gateway = Some(value.parse().map_err(|_| "gateway is not an IPv4 address")?),
            "mac" => mac = Some(parse_mac(value)?),
            // Ignore unknown keys: a newer host may send more, and anything it relies on is in the contract.
            _ => {}
        }
    }
    let (address, prefix) = address.ok_or("it has no address")?;
    Ok(Network {
        address,
        prefix,
        gateway,
        mac,
    })
}

fn parse_cidr(value: &str) -> Result<(Ipv4Addr, u8), &'static str> {
    let (address, prefix) = value.split_once('/').ok_or("address has no /prefix")?;
    let address = address.parse().map_err(|_| "address is not IPv4")?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix));
    Ok((address, prefix.ok_or("prefix is not 1 to 32")?))
}

fn parse_mac(value: &str) -> Result<String, &'static str> {
    let parts: Vec<_> = value.split(':').collect();
    let legal = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    if parts.len() != 6 || !parts.iter().all(legal) {
        return Err("mac is not six hexadecimal pairs");
    }
    Ok(value.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seed_dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    const LEAST: [(&str, &str); 3] = [
        ("user", "crabbox\n"),
        ("authorized_keys", "ssh-ed25519 AAAA\n"),
        ("ssh_host_ed25519_key", "KEY\n"),
    ];

    #[test]
    fn the_least_seed_is_user_keys_and_host_key() {
        let seed = Seed::read(seed_dir(&LEAST).path()).unwrap();
        assert_eq!(
            (seed.user.as_str(), seed.host_key.as_slice()),
            ("crabbox", b"KEY\n".as_slice())
        );
        assert_eq!((seed.hostname, seed.network, seed.work_root), (None, None, None));
    }

    #[test]
    fn a_seed_without_one_of_them_names_the_file() {
        for (missing, _) in LEAST {
            let files: Vec<_> = LEAST.into_iter().filter(|(name, _)| *name != missing).collect();
            let message = Seed::read(seed_dir(&files).path()).unwrap_err().to_string();
            assert!(
                message.contains(&format!("/{missing} is unusable: the seed must have")),
                "{message}"
            );
        }
        let message = Seed::read(Path::new("/no/such/seed")).unwrap_err().to_string();
        assert!(message.contains("there is no seed"), "{message}");
    }

    #[test]
    fn the_seed_of_a_template_has_a_host_key_and_nobody_s_name() {
        let dir = seed_dir(&[
            ("template", "1\n"),
            ("ssh_host_ed25519_key", "KEY\n"),
            ("user", "crabbox\n"),
        ]);
        assert!(is_template(dir.path()) && !is_template(seed_dir(&LEAST).path()));
        let seed = Seed::read_template(dir.path()).unwrap();
        assert_eq!(
            (seed.user.as_str(), seed.host_key.as_slice()),
            ("", b"KEY\n".as_slice())
        );
        assert!(Seed::read_template(seed_dir(&[("template", "1\n")]).path()).is_err());
    }

    #[test]
    fn every_value_is_read() {
        let mut files = LEAST.to_vec();
        files.extend([
            ("hostname", "crabbox-jade-krill"),
            ("instance-id", "cbx_0123456789ab\n"),
            (
                "network",
                "address=172.16.0.2/30\ngateway=172.16.0.1\nmac=06:00:AC:10:00:02\nlater=1\n",
            ),
            ("work_root", "/work/crabbox\n"),
            ("time", "1754000000"),
            ("volumes", "/dev/vdc /data\n/dev/vdd /var/cache/pnpm\n"),
        ]);
        let seed = Seed::read(seed_dir(&files).path()).unwrap();
        assert_eq!(seed.hostname.as_deref(), Some("crabbox-jade-krill"));
        assert_eq!(seed.work_root.as_deref(), Some(Path::new("/work/crabbox")));
        assert_eq!(seed.time, Some(1_754_000_000));
        let volumes: Vec<_> = seed
            .volumes
            .iter()
            .map(|volume| (volume.device.to_str().unwrap(), volume.path.to_str().unwrap()))
            .collect();
        assert_eq!(volumes, [("/dev/vdc", "/data"), ("/dev/vdd", "/var/cache/pnpm")]);
        let network = seed.network.unwrap();
        assert_eq!(
            (network.address, network.prefix),
            (Ipv4Addr::new(172, 16, 0, 2), 30)
        );
        assert_eq!(network.gateway, Some(Ipv4Addr::new(172, 16, 0, 1)));
        assert_eq!(network.mac.as_deref(), Some("06:00:ac:10:00:02"));
    }

    #[test]
    fn hostile_values_are_refused() {
        let bad = [
            ("user", "root:x:0"),
            ("user", "a b"),
            ("user", "-rf"),
            ("user", "a\nb"),
            ("user", "\u{e9}va"),
            ("hostname", "a/b"),
            ("hostname", "-a"),
            ("work_root", "/"),
            ("work_root", "//"),
            ("work_root", "work"),
            ("work_root", "/work/../etc"),
            ("network", "address=172.16.0.2\n"),
            ("network", "address=172.16.0.2/33\n"),
            ("network", "gateway=172.16.0.1\n"),
            ("network", "address=172.16.0.2/30\nmac=06:00\n"),
            ("time", "soon"),
            ("volumes", "/dev/vdc"),
            ("volumes", "/dev/vdb /data"),
            ("volumes", "/dev/vda1 /data"),
            ("volumes", "/dev/vdc/../vda /data"),
            ("volumes", "/dev/vdc data"),
            ("volumes", "/dev/vdc /data/../etc"),
            ("volumes", "/dev/vdc /"),
            ("volumes", "/dev/vdc /da ta"),
        ];
        for (name, content) in bad {
            let mut files = LEAST.to_vec();
            files.push((name, content));
            let message = Seed::read(seed_dir(&files).path()).unwrap_err().to_string();
            assert!(message.contains(name), "{name}={content:?} gave {message}");
        }
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let dir = seed_dir(&LEAST);
        std::fs::write(dir.path().join("authorized_keys"), vec![b'a'; 64 * 1024 + 1]).unwrap();
        let message = Seed::read(dir.path()).unwrap_err().to_string();
        assert!(message.contains("larger than 64 KiB"), "{message}");
    }

    #[test]
    fn wiping_overwrites_and_removes() {
        let dir = seed_dir(&LEAST);
        let path = dir.path().join("ssh_host_ed25519_key");
        let mut kept = File::open(&path).unwrap();
        wipe(dir.path()).unwrap();
        let mut bytes = Vec::new();
        kept.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 4], "the pages of the removed file");
        assert!(!dir.path().exists());
        std::fs::create_dir(dir.path()).unwrap();
    }

    #[test]
    fn secrets_are_forgotten() {
        let mut seed = Seed {
            host_key: b"KEY".to_vec(),
            entropy: Some(vec![7]),
            ..Seed::default()
        };
        seed.forget_secrets();
        assert_eq!((seed.host_key, seed.entropy), (Vec::new(), Some(Vec::new())));
    }

    proptest! {
        #[test]
        fn the_network_parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_network(&bytes).ok();
        }

        #[test]
        fn an_accepted_user_is_safe_in_passwd(name in "\\PC{0,40}") {
            if check_user(&name).is_ok() {
                prop_assert!(!name.contains([':', '/', '\n', ' ', '.']) && !name.is_empty());
            }
        }
    }
}
