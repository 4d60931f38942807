//! The NoCloud volume for a foreign cloud-init image: FAT, label `CIDATA`, with `user-data`, `meta-data` and
//! `network-config`.
//!
//! User-data is YAML that runs as root in the guest, so every external value goes through [`quoted`] (YAML)
//! or [`single_quoted`]; no value may be inserted unquoted.

use std::fmt::Write as _;
use std::io::{Cursor, Write as _};

use crabbox_core::shell::single_quoted;
use crabbox_guest_protocol::image::{BOOTSTRAPPED, READY};

use super::{SeedNetwork, ended};

/// Size of the volume in bytes: the minimum for FAT16 with 512-byte clusters (4085 clusters), and some
/// reserve.
const VOLUME_BYTES: usize = 4 * 1024 * 1024;

/// Serial number of the volume: fixed, so that the same seed gives the same bytes.
const VOLUME_ID: u32 = 0xc2ab_b0c5;

/// The seed of one instance of a cloud-init image.
#[derive(Clone)]
pub struct NoCloud {
    /// Lease id.
    pub instance_id: String,
    /// Host name.
    pub hostname: String,
    /// The login user; made by cloud-init.
    pub user: String,
    /// Public keys of that user, one per line.
    pub authorized_keys: String,
    /// The SSH host key, in OpenSSH's private key format.
    pub host_key_private: String,
    /// Its public half.
    pub host_key_public: String,
    /// Absolute path of the work root.
    pub work_root: String,
    /// Address and name servers; without them the image's own network configuration applies.
    pub network: Option<SeedNetwork>,
}

impl std::fmt::Debug for NoCloud {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("NoCloud")
            .field("instance_id", &self.instance_id)
            .field("hostname", &self.hostname)
            .field("user", &self.user)
            .field("work_root", &self.work_root)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// Why a NoCloud volume could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NoCloudError {
    /// The seed does not fit, or the file system code failed.
    #[error("cannot write {file} to the NoCloud volume of {instance_id}")]
    Volume {
        /// The file or the purpose.
        file: &'static str,
        /// The lease.
        instance_id: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}

/// The volume, ready to be attached as a read-only drive.
pub fn nocloud_fat(seed: &NoCloud) -> Result<Vec<u8>, NoCloudError> {
    let failed = |file| {
        let instance_id = seed.instance_id.clone();
        move |source| NoCloudError::Volume {
            file,
            instance_id,
            source,
        }
    };
    let mut volume = Cursor::new(vec![0; VOLUME_BYTES]);
    let options = fatfs::FormatVolumeOptions::new()
        .fat_type(fatfs::FatType::Fat16)
        .bytes_per_cluster(512)
        .volume_id(VOLUME_ID)
        .volume_label(*b"CIDATA     ");
    fatfs::format_volume(&mut volume, options).map_err(failed("the file system"))?;
    {
        let system = fatfs::FileSystem::new(&mut volume, fatfs::FsOptions::new())
            .map_err(failed("the file system"))?;
        let write = |file: &'static str, content: &str| {
            let mut target = system.root_dir().create_file(file).map_err(failed(file))?;
            target.truncate().map_err(failed(file))?;
            target.write_all(content.as_bytes()).map_err(failed(file))?;
            target.flush().map_err(failed(file))
        };
        write("meta-data", &meta_data(seed))?;
        write("user-data", &user_data(seed))?;
        if let Some(network) = &seed.network {
            write("network-config", &network_config(network))?;
        }
        system.unmount().map_err(failed("the file system"))?;
    }
    Ok(volume.into_inner())
}

fn meta_data(seed: &NoCloud) -> String {
    format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        quoted(&seed.instance_id),
        quoted(&seed.hostname)
    )
}

/// Version 2 of the network configuration, which every renderer of cloud-init understands.
///
/// It uses `gateway4` and not a default route: for the latter, the renderer of Debian 12 (`eni`) writes a
/// call of `route`, a program that a small image does not have, and hides the failure.
fn network_config(network: &SeedNetwork) -> String {
    let SeedNetwork {
        mac,
        address,
        gateway,
        dns,
    } = network;
    let mut text = format!(
        "version: 2\n\
         ethernets:\n  \
           eth0:\n    \
             match:\n      \
               macaddress: {mac}\n    \
             set-name: eth0\n    \
             dhcp4: false\n    \
             dhcp6: false\n    \
             accept-ra: false\n    \
             addresses: [{address}]\n    \
             gateway4: {gateway}\n",
        mac = quoted(mac),
        address = quoted(&address.to_string()),
        gateway = quoted(&gateway.to_string()),
    );
    if !dns.is_empty() {
        let servers: Vec<_> = dns.iter().map(|server| quoted(&server.to_string())).collect();
        writeln!(
            text,
            "    nameservers:\n      addresses: [{}]",
            servers.join(", ")
        )
        .ok();
    }
    text
}

fn user_data(seed: &NoCloud) -> String {
    let keys: Vec<_> = seed
        .authorized_keys
        .lines()
        .map(str::trim)
        .filter(|key| !key.is_empty())
        .map(quoted)
        .collect();
    let private = String::from_utf8_lossy(&ended(&seed.host_key_private)).into_owned();
    let mut text = String::from("#cloud-config\n");
    let mut line = |content: String| {
        text.push_str(&content);
        text.push('\n');
    };
    line(
        "package_update: false\npackage_upgrade: false\nssh_pwauth: false\nmanage_etc_hosts: \"localhost\""
            .into(),
    );
    // This saves a quarter of cloud-init's time: the machine has no boot loader, and its host keys need not
    // be shown on the console, because the host made them.
    line(
        "grub_dpkg:\n  enabled: false\nno_ssh_fingerprints: true\nssh:\n  emit_keys_to_console: false".into(),
    );
    line("users:".into());
    line(format!("  - name: {}", quoted(&seed.user)));
    line("    groups: [sudo]\n    shell: /bin/bash\n    lock_passwd: true".into());
    line(format!("    sudo: {}", quoted("ALL=(ALL) NOPASSWD:ALL")));
    line(format!("    ssh_authorized_keys: [{}]", keys.join(", ")));
    // The host key is made and pinned on the host: cloud-init must neither keep the image's keys nor make new
    // ones.
    line("ssh_deletekeys: true\nssh_keys:".into());
    line(format!("  ed25519_private: {}", quoted(&private)));
    line(format!(
        "  ed25519_public: {}",
        quoted(seed.host_key_public.trim())
    ));
    line("write_files:".into());
    let port = "Port 22\nPasswordAuthentication no\n";
    for (path, mode, content) in [
        (
            "/etc/ssh/sshd_config.d/99-crabbox-port.conf",
            "0644",
            port.to_owned(),
        ),
        (READY, "0755", ready_script(seed)),
    ] {
        line(format!("  - path: {}", quoted(path)));
        line(format!("    permissions: {}", quoted(mode)));
        line(format!("    content: {}", quoted(&content)));
    }
    line("runcmd:".into());
    line(format!(
        "  - [\"/bin/sh\", \"-c\", {}]",
        quoted(&setup_script(seed))
    ));
    text
}

/// Exits with 0 if the guest has what a lease needs.
fn ready_script(seed: &NoCloud) -> String {
    format!(
        "#!/bin/sh\n\
         for tool in git rsync curl jq; do\n  \
           command -v \"$tool\" >/dev/null 2>&1 || {{ echo \"crabbox-ready: $tool is missing\"; exit 1; }}\n\
         done\n\
         [ -e {BOOTSTRAPPED} ] || {{ echo 'crabbox-ready: the first boot has not finished'; exit 1; }}\n\
         [ -w {work_root} ] || {{ echo 'crabbox-ready: the work root is not writable'; exit 1; }}\n",
        work_root = single_quoted(&seed.work_root),
    )
}

/// The script runs once, as root, at the end of the first boot. It installs packages only if a tool is
/// missing: an image with all tools needs neither network nor package lists.
///
/// An enabled server is not enabled again: with a SysV script next to its unit, that takes longer than all
/// the rest.
///
/// Name servers of the network configuration get into `resolv.conf` only if a program for that is installed.
/// If `resolv.conf` is a link, such a program manages it; if it is a file, it belongs to the image builder.
fn setup_script(seed: &NoCloud) -> String {
    let servers = seed.network.iter().flat_map(|network| &network.dns);
    let lines: Vec<_> = servers.map(|server| format!("nameserver {server}\\n")).collect();
    let resolver = if lines.is_empty() {
        String::new()
    } else {
        let lines = lines.concat();
        format!("[ -L /etc/resolv.conf ] || printf '{lines}' > /etc/resolv.conf\n")
    };
    format!(
        "set -u\n\
         user={user}\nwork_root={work_root}\n\
         complete() {{\n  \
           [ -x /usr/sbin/sshd ] && [ -s /etc/ssl/certs/ca-certificates.crt ] || return 1\n  \
           for tool in curl git rsync jq; do command -v \"$tool\" >/dev/null 2>&1 || return 1; done\n\
         }}\n\
         {resolver}\
         [ ! -d /etc/apt/apt.conf.d ] || printf 'Acquire::Retries \"8\";\\n' > /etc/apt/apt.conf.d/80-crabbox-retries\n\
         attempt=0\n\
         until complete; do\n  \
           attempt=$((attempt + 1))\n  \
           [ \"$attempt\" -le 8 ] || {{ echo 'crabbox: packages could not be installed'; exit 1; }}\n  \
           apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \\\n    \
             openssh-server ca-certificates curl git rsync jq && continue\n  \
           sleep \"$attempt\"\n\
         done\n\
         mkdir -p \"$work_root\" /var/cache/crabbox/pnpm /var/cache/crabbox/npm /var/lib/crabbox\n\
         chown \"$user:\" \"$work_root\" /var/cache/crabbox/pnpm /var/cache/crabbox/npm\n\
         for unit in ssh sshd; do\n  \
           {{ systemctl is-enabled -q \"$unit\" || timeout 30 systemctl enable \"$unit\"; }} &&\n    \
             timeout 30 systemctl restart \"$unit\" && break\n\
         done\n\
         touch {BOOTSTRAPPED}\n\
         {READY}\n",
        user = single_quoted(&seed.user),
        work_root = single_quoted(&seed.work_root),
    )
}

/// `text` as a double-quoted YAML scalar in printable ASCII: with any content it stays one scalar in YAML 1.1
/// and 1.2.
fn quoted(text: &str) -> String {
    let mut scalar = String::with_capacity(text.len() + 2);
    scalar.push('"');
    for letter in text.chars() {
        match letter {
            '"' => scalar.push_str("\\\""),
            '\\' => scalar.push_str("\\\\"),
            '\n' => scalar.push_str("\\n"),
            ' '..='~' => scalar.push(letter),
            _ => {
                let code = u32::from(letter);
                if code > 0xffff {
                    write!(scalar, "\\U{code:08x}")
                } else {
                    write!(scalar, "\\u{code:04x}")
                }
                .ok();
            }
        }
    }
    scalar.push('"');
    scalar
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use crabbox_host::command::Cmd;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const HOSTILE: &str = "a\"b'c: d\n- e #f {g} \\h \u{7f}\u{85}\u{2028}\u{1f980} $(id) `id` %i\t*j &k !l";

    fn seed(text: &str) -> NoCloud {
        NoCloud {
            instance_id: text.into(),
            hostname: text.into(),
            user: text.into(),
            authorized_keys: "ssh-ed25519 AAAA one\n\nssh-ed25519 BBBB \"two\"\n".into(),
            host_key_private: "-----BEGIN\nKEY\n-----END".into(),
            host_key_public: "ssh-ed25519 CCCC\n".into(),
            work_root: text.into(),
            network: Some(SeedNetwork {
                mac: "06:00:ac:10:00:02".into(),
                address: "172.16.0.2/30".parse().unwrap(),
                gateway: [172, 16, 0, 1].into(),
                dns: vec![[1, 1, 1, 1].into()],
            }),
        }
    }

    fn parsed(yaml: &str) -> Value {
        serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
    }

    #[test]
    fn user_data_keeps_hostile_values_whole() {
        let data = parsed(&user_data(&seed(HOSTILE)));
        let user = &data["users"][0];
        assert_eq!(user["name"], HOSTILE);
        assert_eq!(user["ssh_authorized_keys"][1], "ssh-ed25519 BBBB \"two\"");
        assert_eq!(data["users"].as_array().unwrap().len(), 1);
        assert_eq!(data["ssh_deletekeys"], true);
        assert_eq!(data["ssh_keys"]["ed25519_private"], "-----BEGIN\nKEY\n-----END\n");
        assert_eq!(data["ssh_keys"]["ed25519_public"], "ssh-ed25519 CCCC");
        assert_eq!(
            data["write_files"][0]["content"],
            "Port 22\nPasswordAuthentication no\n"
        );
        let meta = parsed(&meta_data(&seed(HOSTILE)));
        assert_eq!(
            (&meta["instance-id"], &meta["local-hostname"]),
            (&HOSTILE.into(), &HOSTILE.into())
        );
    }

    #[test]
    fn scripts_are_shell_and_keep_hostile_values_whole() {
        let data = parsed(&user_data(&seed(HOSTILE)));
        for script in [&data["write_files"][1]["content"], &data["runcmd"][0][2]] {
            let script = script.as_str().unwrap();
            Cmd::new("sh").arg("-n").stdin(script).run().unwrap();
        }
        let script = data["runcmd"][0][2].as_str().unwrap();
        let server = "[ -L /etc/resolv.conf ] || printf 'nameserver 1.1.1.1\\n' > /etc/resolv.conf\n";
        assert!(script.contains(server), "{script}");
        // Only the part before may be run here: the rest is for root in a guest.
        let first: String =
            script.split("complete()").next().unwrap().to_owned() + "printf %s \"$user$work_root\"";
        let printed = Cmd::new("sh").stdin(first).run().unwrap();
        assert_eq!(
            String::from_utf8(printed.stdout).unwrap(),
            format!("{HOSTILE}{HOSTILE}")
        );
    }

    #[test]
    fn the_network_is_matched_by_mac_and_static() {
        let data = parsed(&network_config(seed("x").network.as_ref().unwrap()));
        let card = &data["ethernets"]["eth0"];
        assert_eq!(data["version"], 2);
        assert_eq!(card["match"]["macaddress"], "06:00:ac:10:00:02");
        assert_eq!(card["addresses"][0], "172.16.0.2/30");
        assert_eq!(
            (&card["gateway4"], &card["routes"]),
            (&"172.16.0.1".into(), &serde_json::Value::Null)
        );
        assert_eq!(card["nameservers"]["addresses"][0], "1.1.1.1");
        assert_eq!(
            (&card["dhcp4"], &card["accept-ra"]),
            (&false.into(), &false.into())
        );
    }

    #[test]
    fn the_volume_is_fat16_labelled_cidata_and_the_same_every_time() {
        let seed = seed("crabbox");
        let volume = nocloud_fat(&seed).unwrap();
        assert_eq!(volume, nocloud_fat(&seed).unwrap());
        let system = fatfs::FileSystem::new(Cursor::new(volume.clone()), fatfs::FsOptions::new()).unwrap();
        assert_eq!(
            (system.fat_type(), system.volume_label().as_str()),
            (fatfs::FatType::Fat16, "CIDATA")
        );
        for (file, expected) in [
            ("user-data", user_data(&seed)),
            ("meta-data", meta_data(&seed)),
            ("network-config", network_config(seed.network.as_ref().unwrap())),
        ] {
            let mut content = String::new();
            system
                .root_dir()
                .open_file(file)
                .unwrap()
                .read_to_string(&mut content)
                .unwrap();
            assert_eq!(content, expected, "{file}");
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(image.path(), volume).unwrap();
        let seen = Cmd::new("blkid")
            .args(["-p", "-o", "export"])
            .arg(image.path())
            .run()
            .unwrap()
            .stdout_text();
        assert!(
            seen.contains("LABEL=CIDATA") && seen.contains("TYPE=vfat"),
            "{seen}"
        );
    }

    #[test]
    fn a_seed_that_does_not_fit_is_an_error() {
        let mut seed = seed("crabbox");
        seed.authorized_keys = "k".repeat(VOLUME_BYTES);
        let message = nocloud_fat(&seed).unwrap_err().to_string();
        assert_eq!(message, "cannot write user-data to the NoCloud volume of crabbox");
    }

    #[test]
    fn debug_output_has_no_secret() {
        assert!(!format!("{:?}", seed("x")).contains("BEGIN"));
    }

    proptest! {
        #[test]
        fn any_text_survives_quoting(text in any::<String>()) {
            let value: Value = serde_saphyr::from_str(&format!("- {}\n- end", quoted(&text))).unwrap();
            prop_assert_eq!(&value[0], &Value::from(text));
            prop_assert_eq!(&value[1], "end");
        }
    }
}
