//! The caches of a lease: what package managers and Docker keep in it beside the working tree, measured and emptied over there.
//!
//! Where they are is the Go program's convention. Nothing here may follow a link out of a cache, or remove the cache's own directory,
//! which belongs to whoever set the machine up.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use crabbox_ssh::exec::Stdin;
use crabbox_ssh::target::Target;

use crate::command::RemoteError;
use crabbox_ssh::capture::{self, Captured};
use crabbox_ssh::exec::RemoteStatus;

/// The directory of the caches in a lease.
const ROOT: &str = "/var/cache/crabbox";

/// How long measuring may take; a large cache has millions of files.
const MEASURE_LIMIT: Duration = Duration::from_mins(10);

/// A kind of cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// pnpm's store.
    Pnpm,
    /// npm's cache.
    Npm,
    /// Shared git objects.
    Git,
    /// Docker's images, containers and layers.
    Docker,
}

impl CacheKind {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Pnpm, Self::Npm, Self::Git, Self::Docker];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pnpm => "pnpm",
            Self::Npm => "npm",
            Self::Git => "git",
            Self::Docker => "docker",
        }
    }

    /// The one of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What there is of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its name.
    pub kind: String,
    /// Its directory; empty for what has none.
    pub path: String,
    /// What it takes on the disk; `None` where that was not told.
    pub bytes: Option<u64>,
    /// What its own program says of it; empty for a directory.
    pub note: String,
}

/// What of `kinds` is in the lease; what is not there is left out.
pub fn measure(
    target: &Target,
    kinds: &[CacheKind],
    cancel: BorrowedFd<'_>,
) -> Result<Vec<CacheEntry>, RemoteError> {
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    let script = measuring(ROOT, kinds);
    let seen = ask(target, &script, Some(MEASURE_LIMIT), cancel)?;
    if !seen.success() {
        return Err(failed("measure", seen.stderr_text()));
    }
    let lines = String::from_utf8_lossy(&seen.stdout);
    Ok(lines.lines().filter_map(entry).collect())
}

/// Empties `kinds` in the lease.
pub fn purge(target: &Target, kinds: &[CacheKind], cancel: BorrowedFd<'_>) -> Result<(), RemoteError> {
    if kinds.is_empty() {
        return Ok(());
    }
    let script = purging(ROOT, kinds);
    let seen = ask(target, &script, None, cancel)?;
    if !seen.success() {
        return Err(failed("empty", seen.stderr_text()));
    }
    Ok(())
}

/// Runs a script of ours without the tree; stops when `cancel` becomes readable.
fn ask(
    target: &Target,
    script: &str,
    limit: Option<Duration>,
    cancel: BorrowedFd<'_>,
) -> Result<Captured, RemoteError> {
    let answer = capture::capture_until(target, script, Stdin::Null, limit, Some(cancel))?;
    match answer.status {
        RemoteStatus::Cancelled { .. } => Err(RemoteError::Cancelled),
        _ => Ok(answer),
    }
}

fn failed(attempt: &'static str, said: String) -> RemoteError {
    RemoteError::File {
        attempt,
        path: ROOT.to_owned(),
        said,
    }
}

/// A line a kind that is there: its name, its directory, and its size or what its program says.
fn measuring(root: &str, kinds: &[CacheKind]) -> String {
    let one = |kind: &CacheKind| {
        match kind {
        CacheKind::Docker => "if command -v docker >/dev/null 2>&1; then \
             printf 'docker\\t\\t%s\\n' \"$(docker system df --format '{{.Type}}={{.Size}}' 2>/dev/null | tr '\\n' ',')\"; fi"
            .to_owned(),
        CacheKind::Pnpm | CacheKind::Npm | CacheKind::Git => {
            let name = kind.name();
            format!(
                "if [ -d {root}/{name} ]; then kib=$(du -sk {root}/{name} 2>/dev/null | cut -f 1); \
                 printf '{name}\\t{root}/{name}\\t%s\\n' \"${{kib:+$((kib * 1024))}}\"; fi"
            )
        }
    }
    };
    kinds.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Everything in the directories, hidden files too; what Docker does not use. Ends with the first failure.
fn purging(root: &str, kinds: &[CacheKind]) -> String {
    let one = |kind: &CacheKind| match kind {
        CacheKind::Docker => {
            "if command -v docker >/dev/null 2>&1; then docker system prune -af >/dev/null; fi".to_owned()
        }
        // Without -H a link in the place of the directory is not followed.
        CacheKind::Pnpm | CacheKind::Npm | CacheKind::Git => {
            let name = kind.name();
            format!("if [ -d {root}/{name} ]; then find {root}/{name} -mindepth 1 -delete; fi")
        }
    };
    let lines: Vec<String> = kinds.iter().map(one).collect();
    format!("set -e\n{}", lines.join("\n"))
}

/// One line of [`measuring`]; anything else is nothing of ours.
fn entry(line: &str) -> Option<CacheEntry> {
    let mut fields = line.splitn(3, '\t');
    let (kind, path, rest) = (fields.next()?, fields.next()?, fields.next()?);
    CacheKind::by_name(kind)?;
    let is_directory = !path.is_empty();
    Some(CacheEntry {
        kind: kind.to_owned(),
        path: path.to_owned(),
        bytes: is_directory.then(|| rest.parse().ok()).flatten(),
        note: if is_directory {
            String::new()
        } else {
            rest.trim_end_matches(',').to_owned()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use crabbox_host::command::Cmd;

    /// Runs `script` with a Docker that says what it is asked.
    fn run(script: &str, dir: &Path) -> (bool, String) {
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let docker = bin.join("docker");
        let said = format!(
            "#!/bin/sh\necho \"$*\" >> {}\n[ \"$2\" = prune ] || printf 'Images=2GB\\nContainers=0B\\n'\n",
            dir.join("asked").display()
        );
        fs::write(&docker, said).unwrap();
        fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
        let done = Cmd::new("sh")
            .args(["-c", script])
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .capture()
            .unwrap();
        (done.status.success(), done.stdout_text())
    }

    #[test]
    fn what_is_there_is_measured_and_what_is_not_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        fs::create_dir_all(dir.path().join("npm/_cacache")).unwrap();
        fs::write(dir.path().join("npm/_cacache/x"), vec![1; 70_000]).unwrap();
        let (ok, out) = run(&measuring(root, &CacheKind::ALL), dir.path());
        assert!(ok, "{out}");
        let entries: Vec<CacheEntry> = out.lines().filter_map(entry).collect();
        let kinds: Vec<&str> = entries.iter().map(|entry| entry.kind.as_str()).collect();
        assert_eq!(kinds, ["npm", "docker"]);
        assert!(entries[0].bytes.unwrap() >= 70_000, "{entries:?}");
        assert_eq!(entries[0].path, format!("{root}/npm"));
        assert_eq!(
            (entries[1].bytes, entries[1].note.as_str()),
            (None, "Images=2GB,Containers=0B")
        );
        assert_eq!(entry("motd of the machine"), None);
        assert_eq!(entry("x\ty\t1"), None);
    }

    #[test]
    fn a_purge_takes_hidden_files_too_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("npm/.hidden")).unwrap();
        fs::create_dir_all(path("git")).unwrap();
        fs::create_dir_all(path("elsewhere")).unwrap();
        fs::write(path("elsewhere/kept"), "x").unwrap();
        fs::write(path("git/kept"), "x").unwrap();
        symlink("../elsewhere", path("npm/link")).unwrap();
        symlink("elsewhere", path("pnpm")).unwrap();
        let (ok, _) = run(&purging(root, &[CacheKind::Pnpm, CacheKind::Npm]), dir.path());
        assert!(ok);
        assert_eq!(fs::read_dir(path("npm")).unwrap().count(), 0);
        for kept in ["elsewhere/kept", "git/kept", "pnpm"] {
            assert!(path(kept).exists(), "{kept}");
        }
        assert!(!path("asked").exists(), "Docker was not asked for");
        assert!(run(&purging(root, &[CacheKind::Docker]), dir.path()).0);
        assert_eq!(fs::read_to_string(path("asked")).unwrap(), "system prune -af\n");
    }
}
