//! The environment of the process as a value: the only place that reads it.
//!
//! Everything else takes this value, so that a test can supply any environment and no module depends on a
//! hidden one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crabbox_core::fault::{Fault, Kind};
use crabbox_machine::context::Places;

/// Names another directory for the registry of leases; must be absolute.
const REGISTRY: &str = "CRABBOX_REGISTRY_DIR";

/// Root's registry: entries survive a reboot, as the leases' directories do (file-hierarchy(7)).
const ROOTS_REGISTRY: &str = "/var/lib/crabbox/registry";

/// All variables, and the current directory.
#[derive(Debug, Clone)]
pub(crate) struct Env {
    variables: BTreeMap<OsString, OsString>,
    cwd: Result<PathBuf, io::ErrorKind>,
}

/// Why the directories of configuration and state cannot be determined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvError {
    /// There is no home, and nothing that names the directory instead.
    #[error("neither ${variable} nor $HOME are defined")]
    NoHome {
        /// The variable that would name it.
        variable: &'static str,
    },
    /// An XDG variable holds a relative path, which would make state depend on the current directory.
    #[error("path in ${variable} is relative: {}", .path.display())]
    Relative {
        /// The variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The current directory is gone or may not be read.
    #[error("cannot tell the current directory: {0}")]
    Cwd(io::ErrorKind),
}

impl Fault for EnvError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoHome { .. } => vec!["set HOME to your home directory".to_owned()],
            Self::Relative { variable, .. } => {
                vec![format!("set {variable} to an absolute path, or unset it")]
            }
            Self::Cwd(_) => vec!["change to a directory that exists".to_owned()],
        }
    }
}

impl Env {
    /// The environment of this process.
    pub(crate) fn from_process() -> Self {
        Self {
            variables: std::env::vars_os().collect(),
            cwd: std::env::current_dir().map_err(|error| error.kind()),
        }
    }

    /// An environment for a test.
    #[cfg(test)]
    pub(crate) fn for_test(cwd: &Path, variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            cwd: Ok(cwd.to_owned()),
        }
    }

    /// The environment of a program that has no variable but `HOME`.
    pub(crate) fn at_home(home: &Path) -> Self {
        Self {
            variables: BTreeMap::from([("HOME".into(), home.into())]),
            cwd: Ok(home.to_owned()),
        }
    }

    /// The same with the current directory `dir`.
    pub(crate) fn standing_in(self, dir: &Path) -> Self {
        Self {
            cwd: Ok(dir.to_owned()),
            ..self
        }
    }

    /// A variable, if it is set and not empty.
    pub(crate) fn os(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// A variable as text, if it is set, not empty, and valid UTF-8.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.os(name).and_then(OsStr::to_str)
    }

    /// The names of all variables that are text.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.variables.keys().filter_map(|name| name.to_str())
    }

    /// Every variable whose name and value are valid UTF-8, in order of the names.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
    }

    /// The names of variables whose values are not valid UTF-8.
    pub(crate) fn not_text(&self) -> impl Iterator<Item = &str> {
        self.variables
            .iter()
            .filter(|(_, value)| value.to_str().is_none())
            .filter_map(|(name, _)| name.to_str())
    }

    /// The current directory.
    pub(crate) fn cwd(&self) -> Result<&Path, EnvError> {
        self.cwd.as_deref().map_err(|kind| EnvError::Cwd(*kind))
    }

    /// The user's home directory, if there is one.
    pub(crate) fn home(&self) -> Option<&Path> {
        self.os("HOME").map(Path::new)
    }

    /// `PATH`, by which programs are found.
    pub(crate) fn path(&self) -> &OsStr {
        self.os("PATH").unwrap_or_default()
    }

    /// The directories of configuration, state and caches; without `XDG_STATE_HOME` the state is below the
    /// configuration, as in the Go program.
    pub(crate) fn places(&self) -> Result<Places, EnvError> {
        let config = self.config()?;
        let state = self
            .xdg("XDG_STATE_HOME")?
            .map_or_else(|| config.join("state"), |base| base.join("crabbox"));
        let cache = self.base("XDG_CACHE_HOME", ".cache")?.join("crabbox");
        let registry = self.registry(&config, crabbox_host::process::is_root())?;
        Ok(Places {
            state,
            config,
            cache,
            registry,
        })
    }

    /// Where leases of all state directories are registered: one place for the host. Users other than root
    /// cannot write there and have their own. No configuration sets it, so no repository can.
    fn registry(&self, config: &Path, root: bool) -> Result<PathBuf, EnvError> {
        Ok(self.xdg(REGISTRY)?.unwrap_or_else(|| {
            if root {
                ROOTS_REGISTRY.into()
            } else {
                config.join("registry")
            }
        }))
    }

    /// The user's configuration file. State and caches have no say in where it is.
    pub(crate) fn user_config(&self) -> Result<PathBuf, EnvError> {
        Ok(self.config()?.join("config.yaml"))
    }

    fn config(&self) -> Result<PathBuf, EnvError> {
        Ok(self.base("XDG_CONFIG_HOME", ".config")?.join("crabbox"))
    }

    fn base(&self, variable: &'static str, below_home: &str) -> Result<PathBuf, EnvError> {
        self.xdg(variable)?
            .or_else(|| self.home().map(|home| home.join(below_home)))
            .ok_or(EnvError::NoHome { variable })
    }

    fn xdg(&self, variable: &'static str) -> Result<Option<PathBuf>, EnvError> {
        match self.os(variable).map(PathBuf::from) {
            Some(path) if !path.is_absolute() => Err(EnvError::Relative { variable, path }),
            other => Ok(other),
        }
    }

    /// Whether the environment allows coloured text.
    pub(crate) fn allows_colour(&self) -> bool {
        self.os("NO_COLOR").is_none() && self.text("TERM") != Some("dumb")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(variables: &[(&str, &str)]) -> Result<Places, EnvError> {
        Env::for_test(Path::new("/"), variables).places()
    }

    #[test]
    fn state_lies_in_the_configuration_directory_unless_xdg_says_otherwise() {
        let home = places(&[("HOME", "/h")]).unwrap();
        assert_eq!(home.config, Path::new("/h/.config/crabbox"));
        assert_eq!(home.state, Path::new("/h/.config/crabbox/state"));
        assert_eq!(home.cache, Path::new("/h/.cache/crabbox"));
        let xdg = places(&[
            ("HOME", "/h"),
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_STATE_HOME", "/s"),
        ])
        .unwrap();
        assert_eq!(
            (xdg.config, xdg.state),
            ("/c/crabbox".into(), "/s/crabbox".into())
        );
    }

    #[test]
    fn the_user_s_file_needs_nothing_but_the_directory_of_the_configuration() {
        let file = |variables: &[(&str, &str)]| Env::for_test(Path::new("/"), variables).user_config();
        let config = ("XDG_CONFIG_HOME", "/c");
        for variables in [
            &[config][..],
            &[config, ("XDG_CACHE_HOME", "relative")],
            &[config, ("HOME", "/h"), ("XDG_STATE_HOME", "relative")],
        ] {
            assert_eq!(file(variables).unwrap(), Path::new("/c/crabbox/config.yaml"));
        }
        assert!(file(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "relative")]).is_err());
    }

    #[test]
    fn every_state_directory_of_root_has_one_registry_unless_the_variable_says_otherwise() {
        let registry = |variables: &[(&str, &str)], root| {
            Env::for_test(Path::new("/"), variables)
                .registry(Path::new("/c/crabbox"), root)
                .unwrap()
        };
        let other = [
            ("HOME", "/h"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        assert_eq!(registry(&[("HOME", "/h")], true), registry(&other, true));
        assert_eq!(registry(&other, true), Path::new("/var/lib/crabbox/registry"));
        assert_eq!(registry(&other, false), Path::new("/c/crabbox/registry"));
        let said = [("CRABBOX_REGISTRY_DIR", "/r")];
        assert_eq!(registry(&said, true), Path::new("/r"));
        assert_eq!(registry(&said, false), Path::new("/r"));
    }

    #[test]
    fn a_missing_home_and_relative_bases_are_refused() {
        let lacks = |variables: &[(&str, &str)]| match places(variables) {
            Err(EnvError::NoHome { variable }) => variable,
            other => panic!("{other:?}"),
        };
        assert_eq!(lacks(&[]), "XDG_CONFIG_HOME");
        assert_eq!(lacks(&[("HOME", "")]), "XDG_CONFIG_HOME");
        assert_eq!(lacks(&[("XDG_CONFIG_HOME", "/c")]), "XDG_CACHE_HOME");
        for name in ["XDG_STATE_HOME", "CRABBOX_REGISTRY_DIR"] {
            let relative = places(&[("HOME", "/h"), (name, "state")]);
            assert!(
                matches!(relative, Err(EnvError::Relative { variable, .. }) if variable == name),
                "{name}"
            );
        }
    }
}
