//! Reads the configuration files and passes them, with the environment and the flags, to the configuration
//! model.
//!
//! The model in `crabbox-core` decides everything; this module only opens files of bounded size and resolves
//! their real paths. It must never open anything but a regular file, except at a path that only the user can
//! have chosen.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crabbox_core::config::key::KEYS;
use crabbox_core::config::layer::Layer;
use crabbox_core::config::trust::{FileFacts, PathForms, classify};
use crabbox_core::config::{
    ConfigError, ConfigFile, FlagValue, Inputs, Resolution, resolve, suggest_variable,
};
use crabbox_core::fault::{Fault, Kind};

use crate::env::{Env, EnvError};

/// The variable that names the only configuration file to read.
pub(crate) const CONFIG_VARIABLE: &str = "CRABBOX_CONFIG";

/// The repository's files, weakest first. The Go program reads them in the current directory, and so does
/// this one.
const REPOSITORY_FILES: [&str; 2] = ["crabbox.yaml", ".crabbox.yaml"];

/// Largest configuration file in bytes. A hand-written one has a few KiB.
const SIZE_LIMIT: u64 = 1 << 20;

/// The configuration, with remarks about its files.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What the layers resolve to.
    pub(crate) resolution: Resolution,
    /// Remarks on the files themselves.
    pub(crate) notices: Vec<String>,
    /// Errors in the repository's files, which are left out.
    pub(crate) faults: Vec<SettingsError>,
}

/// Why the configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The environment does not say where to look.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The layers are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file exists but cannot be read.
    #[error("read config {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// The path is a directory, or a pipe or device that the user did not name.
    #[error("read config {}: not a regular file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file is larger than any configuration can be.
    #[error("read config {}: larger than {SIZE_LIMIT} bytes", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file is not text.
    #[error("parse config {}:{line}: not valid UTF-8", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line with the first bad byte.
        line: usize,
    },
}

impl Fault for SettingsError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Env(error) => error.hints(),
            Self::Config(error) => error.hints(),
            Self::Read { .. } | Self::NotAFile { .. } | Self::TooLarge { .. } | Self::NotText { .. } => {
                Vec::new()
            }
        }
    }
}

/// Loads the configuration of all layers. Errors in a repository's files are left to the caller to judge.
pub(crate) fn load(env: &Env, flags: &[FlagValue]) -> Result<Loaded, SettingsError> {
    load_with(env, flags, None)
}

/// The same with one more file above those found.
pub(crate) fn load_with(
    env: &Env,
    flags: &[FlagValue],
    above: Option<ConfigFile>,
) -> Result<Loaded, SettingsError> {
    let cwd = env.cwd()?;
    let repository = forms(repository_root(cwd));
    let user_file = user_file(env)?;
    let named = named_path(env);
    let paths: Vec<PathBuf> = if let Some(path) = &named {
        vec![cwd.join(path)]
    } else {
        let user = user_file.iter().cloned();
        user.chain(REPOSITORY_FILES.map(|name| cwd.join(name))).collect()
    };
    let (mut files, mut notices, mut faults) = (Vec::new(), environment_notices(env), Vec::new());
    for path in paths {
        let is_repositorys = named.is_none() && user_file.as_ref() != Some(&path);
        if is_repositorys && leads_out(&path, &repository) {
            notices.push(format!(
                "{} is ignored: it is a symbolic link that leads out of the repository",
                path.display()
            ));
            continue;
        }
        let layer = layer(&path, named.is_some(), user_file.as_deref(), &repository);
        let may_stream = named.is_some() && layer == Layer::UserFile;
        let text = match read(&path, may_stream) {
            Err(fault) if is_repositorys => {
                faults.push(fault);
                continue;
            }
            text => text?,
        };
        let Some(text) = text else {
            if named.is_some() {
                notices.push(format!(
                    "{CONFIG_VARIABLE} names {}, which does not exist",
                    path.display()
                ));
            }
            continue;
        };
        tracing::debug!(path = %path.display(), ?layer, "configuration file");
        if layer == Layer::UserFile {
            notices.extend(permission_notice(&path));
        }
        files.push(ConfigFile { path, layer, text });
    }
    files.extend(above);
    let resolution = resolve(&Inputs {
        files: &files,
        environment: &|name| env.text(name).map(str::to_owned),
        flags,
        home: env.home(),
        cwd,
        user_file: user_file.as_deref(),
    })?;
    faults.extend(resolution.faults.iter().cloned().map(SettingsError::from));
    Ok(Loaded {
        resolution,
        notices,
        faults,
    })
}

/// A file that [`CONFIG_VARIABLE`] names.
#[derive(Debug)]
pub(crate) struct NamedFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// Whether another current directory would make it another file.
    pub(crate) is_relative: bool,
    /// How far it is trusted here.
    pub(crate) layer: Layer,
}

/// The file that [`CONFIG_VARIABLE`] names, if any, whether it exists or not.
pub(crate) fn named_file(env: &Env) -> Result<Option<NamedFile>, SettingsError> {
    let Some(named) = named_path(env) else {
        return Ok(None);
    };
    let cwd = env.cwd()?;
    let path = cwd.join(&named);
    let repository = forms(repository_root(cwd));
    Ok(Some(NamedFile {
        layer: layer(&path, true, user_file(env)?.as_deref(), &repository),
        is_relative: named.is_relative(),
        path,
    }))
}

fn named_path(env: &Env) -> Option<PathBuf> {
    env.os(CONFIG_VARIABLE)
        .map(|path| expand_home(Path::new(path), env.home()))
}

/// The user's file; without a home it is not needed where another file is named.
fn user_file(env: &Env) -> Result<Option<PathBuf>, EnvError> {
    match env.user_config() {
        Err(EnvError::NoHome { .. }) if env.os(CONFIG_VARIABLE).is_some() => Ok(None),
        found => found.map(Some),
    }
}

fn layer(path: &Path, is_named: bool, user_file: Option<&Path>, repository: &PathForms) -> Layer {
    classify(&FileFacts {
        file: &forms(path.to_owned()),
        user_file,
        named_by_environment: is_named,
        repository,
    })
}

/// Remarks on variables that look like configuration but cannot be used.
fn environment_notices(env: &Env) -> Vec<String> {
    let not_text = KEYS
        .iter()
        .flat_map(|key| key.variables)
        .filter(|variable| env.os(variable).is_some() && env.text(variable).is_none())
        .map(|variable| format!("environment variable {variable} is ignored: not valid UTF-8"));
    let misspelt = env
        .names()
        .filter(|name| *name != CONFIG_VARIABLE)
        .filter_map(|name| {
            let known = suggest_variable(name)?;
            Some(format!(
                "environment variable {name} is unknown and ignored; did you mean {known}?"
            ))
        });
    not_text.chain(misspelt).collect()
}

/// The nearest ancestor that git takes for the root of a working tree, else the current directory.
fn repository_root(cwd: &Path) -> PathBuf {
    cwd.ancestors()
        .find(|dir| dir.join(".git").exists())
        .unwrap_or(cwd)
        .to_owned()
}

fn forms(written: PathBuf) -> PathForms {
    let real = std::fs::canonicalize(&written).ok();
    // The pipe of a shell's `<(...)` is in no directory and has no real path.
    let is_nameless = || std::fs::metadata(&written).is_ok_and(|facts| facts.file_type().is_fifo());
    let real = real.or_else(|| is_nameless().then(|| written.clone()));
    PathForms { written, real }
}

fn expand_home(path: &Path, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

/// Whether a repository's file is a symlink out of the repository: its lines would be disclosed as unknown
/// keys.
fn leads_out(path: &Path, repository: &PathForms) -> bool {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|facts| facts.is_symlink());
    let root = repository.real.as_deref().unwrap_or(&repository.written);
    is_link && std::fs::canonicalize(path).is_ok_and(|real| !real.starts_with(root))
}

/// The text of a file, `None` when there is no such file. With `may_stream`, it may also be a pipe or a
/// character device.
fn read(path: &Path, may_stream: bool) -> Result<Option<String>, SettingsError> {
    let failed = |source| SettingsError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    // Checked before opening: opening a pipe would wait for a writer that never comes.
    let bytes = if metadata.is_file() {
        bounded(path)
    } else if may_stream && is_stream(metadata.file_type()) {
        streamed(path)
    } else {
        return Err(SettingsError::NotAFile {
            path: path.to_owned(),
        });
    };
    let bytes = bytes.map_err(failed)?;
    if bytes.len() as u64 > SIZE_LIMIT {
        return Err(SettingsError::TooLarge {
            path: path.to_owned(),
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(
            text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned),
        )),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.split(|byte| *byte == b'\n').count();
            Err(SettingsError::NotText {
                path: path.to_owned(),
                line,
            })
        }
    }
}

fn is_stream(kind: FileType) -> bool {
    kind.is_fifo() || kind.is_char_device()
}

/// The bytes of a file, at most one more than a configuration may have.
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes of a pipe or device, kept for this process: a pipe can be read once, and a command may load its
/// configuration several times.
fn streamed(path: &Path) -> io::Result<Vec<u8>> {
    static READ: OnceLock<(PathBuf, Vec<u8>)> = OnceLock::new();
    if let Some((known, bytes)) = READ.get()
        && known == path
    {
        return Ok(bytes.clone());
    }
    let bytes = bounded(path)?;
    READ.set((path.to_owned(), bytes.clone())).ok();
    Ok(bytes)
}

/// A remark if others may read or change the user's configuration, which can hold credentials and choose
/// programs.
fn permission_notice(path: &Path) -> Option<String> {
    let facts = std::fs::metadata(path).ok().filter(Metadata::is_file)?;
    let mode = facts.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        format!(
            "{} has permissions {mode:04o}; chmod 600 it so that only you can read it",
            path.display()
        )
    })
}
