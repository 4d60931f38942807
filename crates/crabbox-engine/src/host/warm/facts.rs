//! Everything that a template depends on, as the text that its key is made from.
//!
//! It must contain everything that could change the meaning of a frozen machine, and nothing in which two
//! leases may differ (user, work root, network, slug).

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crabbox_host::files::FileError;
use crabbox_host::{digest, hardware};
use crabbox_image::guest;
use crabbox_machine::request::{AcquireRequest, GuestSource, Machine};
use crabbox_machine::resource::identity::HANDSHAKE;
use crabbox_store::templates::Templates;

/// What a template depends on.
pub(crate) struct Facts {
    /// One fact per line.
    pub(crate) text: String,
    /// The digest of the image.
    pub(crate) image: String,
    /// The digest of the facts about the host.
    pub(crate) host: String,
}

/// A stamp that identifies a file and changes when the file is written to.
pub(crate) fn stamp(path: &Path) -> std::io::Result<String> {
    let file = std::fs::metadata(path)?;
    Ok(format!(
        "{} {} {} {}.{} {}.{}",
        file.ino(),
        file.len(),
        file.mode(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec()
    ))
}

/// The digest of the host properties that a frozen machine depends on.
pub(crate) fn host() -> String {
    digest::sha256(hardware::facts().as_bytes())
}

/// The facts of what `request` asks for on this host; `None` if it cannot be restored from a template.
pub(crate) fn facts(templates: &Templates, request: &AcquireRequest) -> Result<Option<Facts>, FileError> {
    let GuestSource::Ours { digest: image, .. } = &request.guest else {
        return Ok(None);
    };
    let program = templates.program_digest(&request.programs.firecracker)?;
    Ok(Some(of(image, request.machine, &program)))
}

/// The facts of a machine of this size with the image `image` in the Firecracker with the digest `program`.
pub(crate) fn of(image: &str, machine: Machine, program: &str) -> Facts {
    let host = host();
    let mut text = String::from("template 1\n");
    for (name, value) in [
        ("handshake", HANDSHAKE.to_owned()),
        ("image", image.to_owned()),
        ("arguments", guest::template_kernel_args()),
        ("processors", machine.cpus.to_string()),
        ("memory", machine.memory_mib.to_string()),
        ("disk", machine.disk_mib.to_string()),
        (
            "network",
            format!(
                "{} {} {} {}",
                crabbox_net::TAP_ADDRESS,
                crabbox_net::GUEST_ADDRESS,
                crabbox_net::INNER_PREFIX,
                crabbox_net::GUEST_MAC
            ),
        ),
        // The meaning of a snapshot depends on the program's bytes, so use its digest: a reinstalled copy is
        // the same program.
        ("firecracker", program.to_owned()),
        ("host", host.clone()),
    ] {
        // Writing to a String cannot fail.
        writeln!(text, "{name}={value}").ok();
    }
    Facts {
        text,
        image: image.to_owned(),
        host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        cpus: 1,
        memory_mib: 256,
        disk_mib: 2048,
    };

    #[test]
    fn another_image_size_or_program_is_another_template() {
        let base = of("image", MACHINE, "program").text;
        assert_eq!(base, of("image", MACHINE, "program").text);
        for other in [
            of("other", MACHINE, "program"),
            of("image", MACHINE, "other"),
            of("image", Machine { cpus: 2, ..MACHINE }, "program"),
            of(
                "image",
                Machine {
                    memory_mib: 257,
                    ..MACHINE
                },
                "program",
            ),
            of(
                "image",
                Machine {
                    disk_mib: 2049,
                    ..MACHINE
                },
                "program",
            ),
        ] {
            assert_ne!(base, other.text);
        }
    }
}
