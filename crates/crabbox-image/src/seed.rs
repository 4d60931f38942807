//! The seed of a guest: for our image a cpio archive after the initrd, for a foreign image a NoCloud volume.
//!
//! Both are made in memory, fresh for each lease. They contain the lease's private host key: a caller that
//! writes them to a file must give it mode 0600 and remove it with the lease.

mod nocloud;

use std::fmt;
use std::net::Ipv4Addr;

use crabbox_guest_protocol::seed as names;
use ipnet::Ipv4Net;

use crate::cpio::Writer;

pub use nocloud::{NoCloud, NoCloudError, nocloud_fat};

/// Number of random bytes for the guest's entropy pool; the pool itself is 256 bits.
pub const ENTROPY_BYTES: usize = 64;

/// The network configuration of a guest, the same for both kinds of image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedNetwork {
    /// MAC address of its interface, `06:00:ac:10:00:02`.
    pub mac: String,
    /// Address and prefix.
    pub address: Ipv4Net,
    /// Default gateway.
    pub gateway: Ipv4Addr,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// The seed of one instance of our own image.
#[derive(Clone)]
pub struct LeaseSeed {
    /// Host name, at most 64 letters, digits, dots and dashes.
    pub hostname: String,
    /// Lease id, from which the machine id is derived.
    pub instance_id: String,
    /// The login user; added if the image does not have it.
    pub user: String,
    /// Content of its `authorized_keys`.
    pub authorized_keys: String,
    /// The SSH host key, in OpenSSH's private key format.
    pub host_key_private: String,
    /// Its public half, as a `.pub` file has it.
    pub host_key_public: String,
    /// Address and name servers; without them the guest has only a loopback interface.
    pub network: Option<SeedNetwork>,
    /// Absolute path of the work root.
    pub work_root: String,
    /// Time of the host, in seconds since the Unix epoch; the guest's clock is set forward to it if it is
    /// behind.
    pub unix_time: i64,
    /// Fresh random bytes, credited to the guest's pool.
    pub entropy: [u8; ENTROPY_BYTES],
    /// Mount points of its volumes, in the order of their drives, which come after base and layer.
    pub volumes: Vec<String>,
}

/// The device name of volume number `index`, counted from 0, after the two drives that every lease of our
/// image has.
fn volume_device(index: usize) -> Option<String> {
    let letter = ('c'..='z').nth(index)?;
    Some(format!("/dev/vd{letter}"))
}

/// A file of the seed.
#[derive(Clone)]
pub struct SeedFile {
    /// Its name in the seed's directory.
    pub name: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub content: Vec<u8>,
}

impl fmt::Debug for SeedFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SeedFile")
            .field("name", &self.name)
            .field("length", &self.content.len())
            .finish_non_exhaustive()
    }
}

const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

fn file(name: &'static str, mode: u32, content: impl Into<Vec<u8>>) -> SeedFile {
    SeedFile {
        name,
        mode,
        content: content.into(),
    }
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

impl LeaseSeed {
    /// Its files.
    pub fn files(&self) -> Vec<SeedFile> {
        let mut files = vec![
            file(names::HOSTNAME, PUBLIC, line(&self.hostname)),
            file(names::INSTANCE_ID, PUBLIC, line(&self.instance_id)),
            file(names::USER, PUBLIC, line(&self.user)),
            file(names::AUTHORIZED_KEYS, PUBLIC, ended(&self.authorized_keys)),
            file(names::HOST_KEY, SECRET, ended(&self.host_key_private)),
            file(names::HOST_KEY_PUBLIC, PUBLIC, ended(&self.host_key_public)),
        ];
        files.extend(self.network.iter().flat_map(SeedNetwork::files));
        files.extend([
            file(names::WORK_ROOT, PUBLIC, line(&self.work_root)),
            file(names::TIME, PUBLIC, line(&self.unix_time.to_string())),
            file(names::ENTROPY, SECRET, self.entropy),
        ]);
        let lines: Vec<String> = self
            .volumes
            .iter()
            .enumerate()
            .filter_map(|(index, path)| Some(format!("{} {path}\n", volume_device(index)?)))
            .collect();
        if !lines.is_empty() {
            files.push(file(names::VOLUMES, PUBLIC, lines.concat()));
        }
        files
    }

    /// The archive to append to the initrd, whose length must be a multiple of four, as
    /// [`crate::initrd::build`] guarantees.
    pub fn to_cpio(&self) -> Vec<u8> {
        to_cpio(&self.files())
    }
}

/// The seed of a template of our own image: without an identity, and with a host key that is discarded before
/// the first restore.
#[derive(Clone)]
pub struct TemplateSeed {
    /// The SSH host key, in OpenSSH's private key format.
    pub host_key_private: String,
    /// Address and name servers, the same for all instances.
    pub network: SeedNetwork,
    /// Time of the host, in seconds since the unix epoch.
    pub unix_time: i64,
    /// Fresh random bytes.
    pub entropy: [u8; ENTROPY_BYTES],
}

impl fmt::Debug for TemplateSeed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TemplateSeed")
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

impl TemplateSeed {
    /// The archive to append to the initrd, like [`LeaseSeed::to_cpio`].
    pub fn to_cpio(&self) -> Vec<u8> {
        let mut files = vec![
            file(
                names::TEMPLATE,
                PUBLIC,
                line(crabbox_guest_protocol::identity::VERSION),
            ),
            file(names::HOST_KEY, SECRET, ended(&self.host_key_private)),
        ];
        files.extend(self.network.files());
        files.extend([
            file(names::TIME, PUBLIC, line(&self.unix_time.to_string())),
            file(names::ENTROPY, SECRET, self.entropy),
        ]);
        to_cpio(&files)
    }
}

impl SeedNetwork {
    fn files(&self) -> Vec<SeedFile> {
        let Self {
            mac,
            address,
            gateway,
            dns,
        } = self;
        let facts = line(&format!("address={address}\ngateway={gateway}\nmac={mac}"));
        let mut files = vec![file(names::NETWORK, PUBLIC, facts)];
        let resolver: Vec<_> = dns
            .iter()
            .map(|server| format!("nameserver {server}\n"))
            .collect();
        if !resolver.is_empty() {
            files.push(file(names::RESOLV_CONF, PUBLIC, resolver.concat()));
        }
        files
    }
}

fn to_cpio(files: &[SeedFile]) -> Vec<u8> {
    let mut archive = Writer::new();
    archive.directory(names::DIRECTORY, 0o700);
    for SeedFile { name, mode, content } in files {
        archive.file(&format!("{}/{name}", names::DIRECTORY), *mode, content);
    }
    archive.finish()
}

impl fmt::Debug for LeaseSeed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("LeaseSeed")
            .field("hostname", &self.hostname)
            .field("instance_id", &self.instance_id)
            .field("user", &self.user)
            .field("network", &self.network)
            .field("work_root", &self.work_root)
            .finish_non_exhaustive()
    }
}

/// `text` with a final newline: OpenSSH does not read a private key without one.
fn ended(text: &str) -> Vec<u8> {
    format!("{}\n", text.trim_end_matches('\n')).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::reader;

    fn seed() -> LeaseSeed {
        LeaseSeed {
            hostname: "crabbox-jade-krill".into(),
            instance_id: "cbx_0123456789ab".into(),
            user: "crabbox".into(),
            authorized_keys: "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two".into(),
            host_key_private: "-----BEGIN PRIVATE-----".into(),
            host_key_public: "ssh-ed25519 CCCC".into(),
            network: Some(SeedNetwork {
                mac: "06:00:ac:10:00:02".into(),
                address: "172.16.0.2/30".parse().unwrap(),
                gateway: Ipv4Addr::new(172, 16, 0, 1),
                dns: vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(9, 9, 9, 9)],
            }),
            work_root: "/work/crabbox".into(),
            unix_time: 1_754_000_000,
            entropy: [7; ENTROPY_BYTES],
            volumes: vec!["/data".into(), "/var/cache/pnpm".into()],
        }
    }

    #[test]
    fn the_archive_holds_the_files_of_the_contract_and_secrets_are_private() {
        let entries = reader::read(&seed().to_cpio());
        let content = |wanted: &str| {
            let (_, mode, content) = entries
                .iter()
                .find(|(name, ..)| name == &format!("crabbox-seed/{wanted}"))
                .unwrap();
            (mode & 0o777, String::from_utf8(content.clone()).unwrap())
        };
        let files = seed().files();
        assert!(files.iter().all(|file| names::FILES.contains(&file.name)));
        assert_eq!(files.len() + 1, entries.len());
        assert_eq!(
            entries[0].0, "crabbox-seed",
            "the directory comes before its files"
        );
        assert_eq!(content("user"), (0o644, "crabbox\n".into()));
        assert_eq!(
            content("authorized_keys").1,
            "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n"
        );
        assert_eq!(
            content("ssh_host_ed25519_key"),
            (0o600, "-----BEGIN PRIVATE-----\n".into())
        );
        assert_eq!(content("entropy").0, 0o600);
        assert_eq!(
            content("network").1,
            "address=172.16.0.2/30\ngateway=172.16.0.1\nmac=06:00:ac:10:00:02\n"
        );
        assert_eq!(
            content("resolv.conf").1,
            "nameserver 1.1.1.1\nnameserver 9.9.9.9\n"
        );
        assert_eq!(content("time").1, "1754000000\n");
        assert_eq!(content("volumes").1, "/dev/vdc /data\n/dev/vdd /var/cache/pnpm\n");
    }

    #[test]
    fn the_seed_of_a_template_names_nobody() {
        let lease = seed();
        let template = TemplateSeed {
            host_key_private: "THROWN AWAY".into(),
            network: lease.network.unwrap(),
            unix_time: 1,
            entropy: [1; ENTROPY_BYTES],
        };
        let entries = reader::read(&template.to_cpio());
        let named: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        let expected = [
            "",
            "/template",
            "/ssh_host_ed25519_key",
            "/network",
            "/resolv.conf",
            "/time",
            "/entropy",
        ];
        assert_eq!(named, expected.map(|name| format!("crabbox-seed{name}")));
        assert!(!format!("{template:?}").contains("THROWN"));
    }

    #[test]
    fn debug_output_has_no_secret() {
        let text = format!("{:?}", seed());
        assert!(text.contains("jade-krill") && !text.contains("PRIVATE"), "{text}");
    }
}
