//! Removes agents of other versions that have not been used for some time.
//!
//! It must never remove anything but an agent, nor an agent that may be in use.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The directory in which clients put agents; no other directory is swept.
const DIRECTORY: &str = ".cache/crabbox/agents";
/// How long an agent may lie unused before it is removed.
const AGE: Duration = Duration::from_hours(30 * 24);
/// The shortest time between two updates of our own last-use time.
const FRESH: Duration = Duration::from_hours(24);

/// Marks this agent as in use and removes those that no longer are. Errors are ignored: a later run tries
/// again.
pub(crate) fn sweep() {
    let Ok(own) = std::fs::read_link("/proc/self/exe") else {
        return;
    };
    let Some(dir) = own.parent().filter(|dir| dir.ends_with(DIRECTORY)) else {
        return;
    };
    if !is_older(&own, FRESH) {
        return;
    }
    // The rest runs once a day too. A running program cannot be opened for writing (ETXTBSY), but its times
    // can be set.
    let now = rustix::fs::Timestamps {
        last_access: NOW,
        last_modification: NOW,
    };
    rustix::fs::utimensat(rustix::fs::CWD, &own, &now, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != own && is_agent(&path) && is_older(&path, AGE) {
            std::fs::remove_file(&path).ok();
        }
    }
}

const NOW: rustix::fs::Timespec = rustix::fs::Timespec {
    tv_sec: 0,
    tv_nsec: rustix::fs::UTIME_NOW,
};

/// Whether a file belongs to this user and is named like an agent or a partial upload of one.
fn is_agent(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_ours = path
        .symlink_metadata()
        .is_ok_and(|meta| meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw());
    is_ours && (is_digest || name.starts_with(".new."))
}

fn is_older(path: &Path, age: Duration) -> bool {
    let modified = path.symlink_metadata().and_then(|meta| meta.modified());
    modified.is_ok_and(|modified| {
        SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|passed| passed > age)
    })
}
