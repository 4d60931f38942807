//! Every file of a package: its origin, its destination, and its mode. A file that is not listed here is in
//! no package.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{Release, spoken, zipped};
use crate::workspace;

/// The origin of a file's bytes.
#[derive(Debug)]
pub(super) enum Origin {
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// A file of a package. Its paths are relative to a prefix, usually `/usr`.
#[derive(Debug)]
pub(super) struct Content {
    origin: Origin,
    /// The directory for user installations.
    pub portable: &'static str,
    /// The directory in a Debian package.
    pub debian: &'static str,
    /// Its name in that directory.
    name: String,
    mode: u32,
}

/// Directories that are the same for both.
const BIN: [&str; 2] = ["bin", "bin"];
const MAN: [&str; 2] = ["share/man/man1", "share/man/man1"];
const DOC: [&str; 2] = ["share/doc/crabbox", "share/doc/crabbox"];
const EXAMPLES: [&str; 2] = ["share/doc/crabbox/examples", "share/doc/crabbox/examples"];

/// The example files of a fleet.
const SLURM: [&str; 6] = [
    "slurm.conf",
    "gres.conf",
    "gateway.json",
    "crabbox-epilog",
    "crabbox-health",
    "crabbox-fleet.service",
];
const SLURM_EXAMPLES: [&str; 2] = [
    "share/doc/crabbox/examples/slurm",
    "share/doc/crabbox/examples/slurm",
];

/// Completions by shell: the file name, and the directories.
const COMPLETIONS: [(&str, &str, [&str; 2]); 3] = [
    (
        "bash",
        "crabbox",
        [
            "share/bash-completion/completions",
            "share/bash-completion/completions",
        ],
    ),
    (
        "fish",
        "crabbox.fish",
        [
            "share/fish/vendor_completions.d",
            "share/fish/vendor_completions.d",
        ],
    ),
    (
        "zsh",
        "_crabbox",
        ["share/zsh/site-functions", "share/zsh/vendor-completions"],
    ),
];

impl Content {
    fn new(origin: Origin, [portable, debian]: [&'static str; 2], name: &str, mode: u32) -> Self {
        Self {
            origin,
            portable,
            debian,
            name: name.to_owned(),
            mode,
        }
    }

    fn text(text: String, places: [&'static str; 2], name: &str) -> Self {
        Self::new(Origin::Bytes(text.into_bytes()), places, name, 0o644)
    }

    fn file(path: PathBuf, places: [&'static str; 2]) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} has no name that is text", path.display()))?;
        let name = name.to_owned();
        Ok(Self::new(Origin::File(path), places, &name, 0o644))
    }

    /// A compressed document, only for the Debian package.
    pub(super) fn packed(origin: Origin, name: &str) -> Self {
        Self::new(origin, DOC, name, 0o644)
    }

    /// Puts it below `prefix`, into the directory `place`.
    pub(super) fn place(&self, prefix: &Path, place: &str) -> Result<()> {
        let dir = prefix.join(place);
        fs::create_dir_all(&dir)?;
        let path = dir.join(&self.name);
        let put = match &self.origin {
            Origin::File(from) => fs::read(from).with_context(|| format!("cannot read {}", from.display())),
            Origin::Bytes(bytes) => Ok(bytes.clone()),
        }?;
        fs::write(&path, put).with_context(|| format!("cannot write {}", path.display()))?;
        let mut at = path.as_path();
        fs::set_permissions(at, fs::Permissions::from_mode(self.mode))?;
        // Independent of the umask.
        while let Some(dir) = at.parent().filter(|dir| dir.starts_with(prefix)) {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
            at = dir;
        }
        Ok(())
    }
}

/// All files of `release`; those that the program generates are made in `scratch`.
pub(super) fn all(release: &Release<'_>, scratch: &Path) -> Result<Vec<Content>> {
    let root = workspace::root();
    let mut all = vec![Content::new(
        Origin::File(release.program.to_owned()),
        BIN,
        "crabbox",
        0o755,
    )];
    for (shell, name, places) in COMPLETIONS {
        let script = spoken(release.program, &["completions", shell], scratch)?;
        ensure!(!script.is_empty(), "the program has no completions for {shell}");
        all.push(Content::text(script, places, name));
    }
    spoken(release.program, &["__reference", "."], scratch)?;
    for page in listed(&scratch.join("man"), "1")? {
        let name = format!("{}.gz", page.file_name().unwrap_or_default().display());
        all.push(Content::new(zipped(&page)?, MAN, &name, 0o644));
    }
    for name in ["README.md", "SECURITY.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        all.push(Content::file(root.join(name), DOC)?);
    }
    for name in ["CHANGELOG.md", "docs/configuration.md", "docs/differences.md"] {
        all.push(Content::file(root.join(name), DOC)?);
    }
    for example in listed(&root.join("docs/examples"), "yaml")? {
        all.push(Content::file(example, EXAMPLES)?);
    }
    for name in SLURM {
        all.push(Content::file(
            root.join("docs/examples/slurm").join(name),
            SLURM_EXAMPLES,
        )?);
    }
    let components = release.components;
    all.push(Content::text(
        components.licences()?,
        DOC,
        "LICENSES-DEPENDENCIES",
    ));
    all.push(Content::text(
        components.cyclonedx(release.version)?,
        DOC,
        "crabbox.cdx.json",
    ));
    Ok(all)
}

/// The files of `dir` with this extension, at least one, sorted by name.
fn listed(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == ending) {
            paths.push(path);
        }
    }
    ensure!(!paths.is_empty(), "{} has no file *.{ending}", dir.display());
    paths.sort();
    Ok(paths)
}
