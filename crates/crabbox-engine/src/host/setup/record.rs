//! The record of what setup made on this host: `<state>/setup.json`, written before each thing is made.
//!
//! Nothing may be made that is not recorded, because only recorded things are ever removed.

use std::path::{Path, PathBuf};

use crabbox_host::files::{self, FileError};
use crabbox_host::lock::FileLock;
use crabbox_image::fetch;
use crabbox_store::places::Places;
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes and reads.
const VERSION: u32 = 1;

/// One thing that setup made, or was about to make when it was killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Made {
    /// A new directory.
    Directory {
        /// Its path.
        path: PathBuf,
    },
    /// A new file.
    File {
        /// Its path.
        path: PathBuf,
        /// SHA-256 of what was written; if the content differs, the user has changed it.
        sha256: String,
    },
    /// The address files that `host-local` keeps for our network from the first lease on.
    Addresses {
        /// The network's own directory.
        dir: PathBuf,
    },
    /// A template.
    Template {
        /// Its key.
        key: String,
    },
    /// The account that remote owners log in to.
    Account {
        /// Its home.
        home: PathBuf,
    },
    /// A new `authorized_keys` file.
    KeyFile {
        /// Its path.
        path: PathBuf,
    },
    /// A line in an `authorized_keys` file.
    Key {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
        /// Whether a missing newline was added to the line before it.
        ended: bool,
    },
    /// A sudoers rule.
    Sudoers {
        /// Its file.
        path: PathBuf,
        /// SHA-256 of every text that was written there, in order. Any of them may be there, depending on
        /// when setup was killed.
        sha256: Vec<String>,
    },
    /// An image. Without a digest it is the image that `default` names, because there was none before.
    Image {
        /// Its digest.
        digest: Option<String>,
    },
}

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be parsed.
    #[error("cannot understand the record of what setup made, {}", path.display())]
    Parse {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a newer version of the program.
    #[error("{} has version {found}, this program reads {VERSION}; update crabbox", path.display())]
    Version {
        /// Its file.
        path: PathBuf,
        /// The version in it.
        found: u32,
    },
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Content {
    version: u32,
    made: Vec<Made>,
}

/// The record of this host and user.
#[derive(Debug, Clone)]
pub(super) struct Record {
    path: PathBuf,
    content: Content,
}

impl Record {
    /// Reads the record; it is empty if there is none. Writes nothing.
    pub(super) fn read(places: &Places) -> Result<Self, RecordError> {
        let path = places.state.join("setup.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let content = Content {
                    version: VERSION,
                    made: Vec::new(),
                };
                return Ok(Self { path, content });
            }
            Err(source) => return Err(FileError::io("read", &path, source).into()),
        };
        let content: Content = match serde_json::from_slice(&text) {
            Ok(content) => content,
            Err(source) => return Err(RecordError::Parse { path, source }),
        };
        if content.version != VERSION {
            return Err(RecordError::Version {
                path,
                found: content.version,
            });
        }
        Ok(Self { path, content })
    }

    /// Opens the record for changes and takes the lock for that. Creates the state directory, which becomes
    /// its first entry.
    pub(super) fn open<E: From<RecordError>>(
        places: &Places,
        lock: &dyn Fn(&Places) -> Result<FileLock, E>,
    ) -> Result<(Self, FileLock), E> {
        // The lock is inside the directory, so the directory is made before it is recorded. If we are killed
        // in between, an empty directory remains.
        let missing = missing(&places.state);
        files::create_private_dir(&places.state).map_err(RecordError::from)?;
        let lock = lock(places)?;
        let mut record = Self::read(places)?;
        if !missing.is_empty() {
            for made in missing {
                record.note(made);
            }
            record.save()?;
        }
        Ok((record, lock))
    }

    /// Everything that was made, oldest first.
    pub(super) fn made(&self) -> &[Made] {
        &self.content.made
    }

    /// Records `made`, which will be made below `dir`, and the missing directories on the way to it.
    pub(super) fn add(&mut self, made: Made, dir: &Path) -> Result<(), RecordError> {
        for directory in missing(dir) {
            self.note(directory);
        }
        self.note(made);
        self.save()
    }

    /// Records that an image will be added to a store that has none, if `wanted`.
    pub(super) fn image(&mut self, places: &Places, wanted: bool) -> Result<(), RecordError> {
        if !wanted {
            return Ok(());
        }
        self.content
            .made
            .retain(|made| !matches!(made, Made::Image { .. }));
        self.add(Made::Image { digest: None }, &places.images())
    }

    /// Records the digest of the image that was made.
    pub(super) fn made_image(&mut self, image: &str) -> Result<(), RecordError> {
        for made in &mut self.content.made {
            if let Made::Image { digest } = made {
                *digest = Some(image.to_owned());
            }
        }
        self.save()
    }

    /// Records a template after it was made, because its key is not known before. A half-made template can be
    /// recognised by its lock.
    pub(super) fn template(&mut self, places: &Places, key: &str) -> Result<(), RecordError> {
        let key = key.to_owned();
        self.add(Made::Template { key }, &places.state)
    }

    /// Records that Firecracker and the jailer will be put into their directory, if `wanted`.
    pub(super) fn programs(&mut self, places: &Places, wanted: bool) -> Result<(), RecordError> {
        if !wanted {
            return Ok(());
        }
        let dir = places.firecracker();
        for (name, sha256) in [
            ("firecracker", fetch::FIRECRACKER_SHA256),
            ("jailer", fetch::JAILER_SHA256),
        ] {
            let (path, sha256) = (dir.join(name), sha256.to_owned());
            self.add(Made::File { path, sha256 }, &dir)?;
        }
        Ok(())
    }

    /// Records the next text of the sudoers rule at `path`, in addition to the earlier ones.
    pub(super) fn sudoers(&mut self, path: &Path, text: &str) -> Result<(), RecordError> {
        for made in &mut self.content.made {
            if let Made::Sudoers { path: there, sha256 } = made
                && there == path
            {
                sha256.retain(|known| known != text);
                sha256.push(text.to_owned());
                return self.save();
            }
        }
        let made = Made::Sudoers {
            path: path.to_owned(),
            sha256: vec![text.to_owned()],
        };
        self.add(made, path.parent().unwrap_or(path))
    }

    /// Whether setup wrote the sudoers rule with this SHA-256.
    pub(super) fn wrote(&self, path: &Path, text: &str) -> bool {
        self.content.made.iter().any(|made| {
            matches!(made, Made::Sudoers { path: there, sha256 } if there == path && sha256.iter().any(|known| known == text))
        })
    }

    /// Whether setup added the missing newline before `line` in the `authorized_keys` file at `path`.
    pub(super) fn has_ended(&self, path: &Path, line: &str) -> bool {
        self.content.made.iter().any(|made| {
            matches!(made, Made::Key { path: there, line: known, ended: true, .. } if there == path && known == line)
        })
    }

    /// Removes entries of things that no longer exist.
    pub(super) fn forget_where(&mut self, is_gone: &dyn Fn(&Made) -> bool) -> Result<(), RecordError> {
        self.content.made.retain(|made| !is_gone(made));
        self.save()
    }

    /// Removes the record itself.
    pub(super) fn forget(self) -> Result<(), FileError> {
        files::remove_tree(&self.path)
    }

    fn note(&mut self, made: Made) {
        if !self.content.made.contains(&made) {
            self.content.made.push(made);
        }
    }

    fn save(&self) -> Result<(), RecordError> {
        let text = serde_json::to_vec_pretty(&self.content).map_err(|source| RecordError::Parse {
            path: self.path.clone(),
            source,
        })?;
        Ok(files::write_atomic(&self.path, &text, 0o600)?)
    }
}

/// `dir` and its parents, as far as they do not exist, the topmost first.
fn missing(dir: &Path) -> Vec<Made> {
    let mut missing: Vec<_> = dir
        .ancestors()
        .take_while(|dir| std::fs::symlink_metadata(dir).is_err())
        .map(|dir| Made::Directory { path: dir.to_owned() })
        .collect();
    missing.reverse();
    missing
}
