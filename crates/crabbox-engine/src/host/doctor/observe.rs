//! Looks at the host and gathers a [`World`]. Nothing here judges, and nothing here may leave a trace except
//! the boot probe.

mod guest;
mod host;
mod network;
pub(super) mod programs;
mod residue;
mod warm;

use std::io;
use std::path::{Path, PathBuf};

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_host::{files, kvm, reflink};
use crabbox_machine::context::Engine;

pub(super) use programs::tools;

use super::Options;
use super::world::{Entry, FileKind, Kvm, ObserveError, Observed, Storage, World};
use crate::host::probe::{Judged, Verdict};

/// KVM's device.
pub(super) const KVM: &str = "/dev/kvm";
/// Bytes of a MiB.
const MIB: u64 = 1024 * 1024;

/// Gathers everything that the checks of Firecracker leases need to know.
pub(crate) fn world(engine: &Engine, plan: &FirecrackerPlan, options: &Options) -> World {
    let tools = tools(&engine.path);
    let vmm = programs::vmm(engine, plan);
    let guest = guest::guest(engine, plan, &tools);
    let probe = options.probe.then(|| guest::probe(engine, &vmm, &guest));
    let remembered = guest::remembered(engine, &vmm, &guest);
    World {
        host: host::host(),
        kvm: kvm(probe, remembered),
        network: network::network(plan),
        storage: storage(&engine.places.state),
        warm: warm::warm(engine, plan, &vmm),
        residue: residue::residue(engine),
        tools,
        vmm,
        guest,
    }
}

/// What `path` leads to.
fn entry(path: &Path) -> Entry {
    let kind = std::fs::metadata(path).map_err(|error| ObserveError::call("stat", path, &error));
    let kind = kind.map(|facts| match () {
        () if facts.is_file() => FileKind::File,
        () if facts.is_dir() => FileKind::Directory,
        () => FileKind::Other,
    });
    Entry {
        path: path.to_owned(),
        kind,
    }
}

fn kvm(probe: Option<Observed<Judged>>, remembered: Option<Verdict>) -> Kvm {
    let path = Path::new(KVM);
    let answers = kvm::ask(path);
    let open = match &answers {
        Err(kvm::KvmError::Open { source, .. }) => Err(ObserveError::call("open", path, source)),
        _ => Ok(()),
    };
    let answers = answers.map_err(|error| ObserveError::chain(&error));
    Kvm {
        kind: entry(path).kind,
        open,
        answers,
        probe,
        remembered,
    }
}

fn storage(state: &Path) -> Storage {
    let dir = existing(state);
    let reflink =
        reflink::works_in(&dir).map_err(|error| ObserveError::call("create a file in", &dir, &error));
    let free_mib = files::free_bytes(&dir)
        .map(|bytes| bytes / MIB)
        .map_err(|error| ObserveError::chain(&error));
    Storage {
        dir,
        reflink,
        free_mib,
    }
}

/// `path`, or the nearest directory above it that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|dir| dir.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

/// The trimmed content of a small kernel file; empty if the file is missing.
fn kernel_file(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Whether a device opens for reading and writing.
fn opens(path: &Path) -> Observed<()> {
    let opened: io::Result<_> = std::fs::OpenOptions::new().read(true).write(true).open(path);
    opened
        .map(drop)
        .map_err(|error| ObserveError::call("open", path, &error))
}
