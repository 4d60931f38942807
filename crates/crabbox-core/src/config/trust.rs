//! Decides which settings may choose what runs on this host.
//!
//! A repository's configuration comes with foreign code, so it must never select a program, kernel, disk
//! image or network setup of the host. The types here can only be made from a trusted layer, so code that has
//! one needs no further check.

use std::path::{Component, Path, PathBuf};

use super::layer::{Layer, Sourced};

/// A path (or a program name to be found on `PATH`) that the user of this host chose.
/// [`HostPath::from_trusted`] is the only way to make one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPath(PathBuf);

impl HostPath {
    /// The path of `value`, or `None` when its layer is not trusted.
    pub(crate) fn from_trusted(value: &Sourced<PathBuf>) -> Option<Self> {
        value.layer().is_trusted().then(|| Self(value.value.clone()))
    }

    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl AsRef<Path> for HostPath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

/// A name that selects something on this host (a CNI network), chosen by its user. [`HostName::from_trusted`]
/// is the only way to make one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName(String);

impl HostName {
    /// The name in `value`, or `None` when its layer is not trusted.
    pub(crate) fn from_trusted(value: &Sourced<String>) -> Option<Self> {
        value.layer().is_trusted().then(|| Self(value.value.clone()))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Both forms of a path: absolute as written, and with every symbolic link resolved (if it exists).
#[derive(Debug, Clone)]
pub struct PathForms {
    /// Absolute, `.` and `..` not yet resolved.
    pub written: PathBuf,
    /// The real path according to the file system, or `None` if it could not be determined.
    pub real: Option<PathBuf>,
}

/// The facts that classify a configuration file. The caller gathers them: this module opens nothing.
#[derive(Debug, Clone)]
pub struct FileFacts<'a> {
    /// The file.
    pub file: &'a PathForms,
    /// The user's configuration file, if there is a home directory.
    pub user_file: Option<&'a Path>,
    /// Whether `CRABBOX_CONFIG` named it.
    pub named_by_environment: bool,
    /// The root of the repository around the current directory, or that directory itself.
    pub repository: &'a PathForms,
}

/// The layer of a configuration file: [`Layer::UserFile`] when it is trusted, else [`Layer::RepoFile`].
///
/// Trusted are the user's own file, and a file that `CRABBOX_CONFIG` names outside the repository: both its
/// written path and its real path must be outside. If the real path is unknown, it counts as inside.
pub fn classify(facts: &FileFacts<'_>) -> Layer {
    let written = lexically_normal(&facts.file.written);
    if facts
        .user_file
        .is_some_and(|user| lexically_normal(user) == written)
    {
        return Layer::UserFile;
    }
    let outside = |path: &Path| {
        let roots = [Some(&facts.repository.written), facts.repository.real.as_ref()];
        roots
            .into_iter()
            .flatten()
            .all(|root| !path.starts_with(lexically_normal(root)))
    };
    let trusted = facts.named_by_environment
        && outside(&written)
        && facts
            .file
            .real
            .as_deref()
            .is_some_and(|real| outside(&lexically_normal(real)));
    if trusted { Layer::UserFile } else { Layer::RepoFile }
}

/// `path` with `.` and `..` removed textually, without looking at the file system.
pub fn lexically_normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match out.components().next_back() {
                Some(Component::Normal(_)) => {
                    out.pop();
                }
                Some(Component::RootDir | Component::Prefix(_)) => {}
                Some(Component::CurDir | Component::ParentDir) | None => out.push(".."),
            },
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::layer::{Origin, Place};
    use super::*;

    fn forms(written: &str, real: Option<&str>) -> PathForms {
        PathForms {
            written: written.into(),
            real: real.map(PathBuf::from),
        }
    }

    fn layer_of(written: &str, real: Option<&str>, named: bool) -> Layer {
        let repository = forms("/w/repo", Some("/real/repo"));
        classify(&FileFacts {
            file: &forms(written, real),
            user_file: Some(Path::new("/h/.config/crabbox/config.yaml")),
            named_by_environment: named,
            repository: &repository,
        })
    }

    #[test]
    fn only_the_user_file_and_named_files_outside_the_repository_are_trusted() {
        let user = "/h/.config/crabbox/config.yaml";
        assert_eq!(layer_of(user, Some(user), false), Layer::UserFile);
        assert_eq!(
            layer_of("/etc/c.yaml", Some("/etc/c.yaml"), true),
            Layer::UserFile
        );
        assert_eq!(
            layer_of("/etc/c.yaml", Some("/etc/c.yaml"), false),
            Layer::RepoFile
        );
        assert_eq!(
            layer_of("/w/repo/c.yaml", Some("/w/repo/c.yaml"), true),
            Layer::RepoFile
        );
        // A sibling directory with the same name prefix is not inside.
        assert_eq!(
            layer_of("/w/repo2/c.yaml", Some("/w/repo2/c.yaml"), true),
            Layer::UserFile
        );
    }

    #[test]
    fn dots_and_links_do_not_carry_a_repository_file_outside() {
        assert_eq!(
            layer_of("/etc/../w/repo/c.yaml", Some("/w/repo/c.yaml"), true),
            Layer::RepoFile
        );
        assert_eq!(
            layer_of("/tmp/link.yaml", Some("/real/repo/c.yaml"), true),
            Layer::RepoFile
        );
        assert_eq!(
            layer_of("/w/repo/link.yaml", Some("/etc/c.yaml"), true),
            Layer::RepoFile
        );
        assert_eq!(layer_of("/tmp/c.yaml", None, true), Layer::RepoFile);
    }

    #[test]
    fn a_host_path_cannot_come_from_a_repository_file() {
        let place = Place {
            path: "/w/repo/crabbox.yaml".into(),
            line: 2,
            column: 11,
        };
        let from = |origin| Sourced {
            value: PathBuf::from("/bin/evil"),
            origin,
        };
        assert_eq!(
            HostPath::from_trusted(&from(Origin::RepoFile(place.clone()))),
            None
        );
        for origin in [
            Origin::Default,
            Origin::UserFile(place),
            Origin::Environment("X"),
            Origin::Flag("x"),
        ] {
            let path = HostPath::from_trusted(&from(origin)).unwrap();
            assert_eq!(path.as_path(), Path::new("/bin/evil"));
        }
    }

    #[test]
    fn normal_form_keeps_leading_parents_and_stops_at_the_root() {
        let normal = |path: &str| lexically_normal(Path::new(path));
        assert_eq!(normal("/a/./b/../c"), Path::new("/a/c"));
        assert_eq!(normal("/../a"), Path::new("/a"));
        assert_eq!(normal("../../a"), Path::new("../../a"));
    }
}
