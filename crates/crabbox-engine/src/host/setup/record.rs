//! What setup made on this host: `<state>/setup.json`, written before each thing is made.
//!
//! Nothing may be made that is not on it, for only what is on it is ever taken away.

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
    /// A directory that was not there.
    Directory {
        /// Its path.
        path: PathBuf,
    },
    /// A file that was not there.
    File {
        /// Its path.
        path: PathBuf,
        /// SHA-256 of what was written; a file with other content is the user's by now.
        sha256: String,
    },
    /// What `host-local` keeps about the addresses of our network, from the first lease on.
    Addresses {
        /// The network's own directory.
        dir: PathBuf,
    },
    /// A template.
    Template {
        /// Its key.
        key: String,
    },
    /// The account that owners from afar log in to.
    Account {
        /// Its home.
        home: PathBuf,
    },
    /// A file of authorised keys that was not there.
    KeyFile {
        /// Its path.
        path: PathBuf,
    },
    /// A line in a file of authorised keys.
    Key {
        /// The file.
        path: PathBuf,
        /// Whose key it is.
        owner: String,
        /// The line.
        line: String,
        /// Whether the line before it had no end, and got one.
        ended: bool,
    },
    /// A rule of sudo.
    Sudoers {
        /// Its file.
        path: PathBuf,
        /// SHA-256 of what was written there, one time after the other: which of them is there depends on when it was looked at.
        sha256: Vec<String>,
    },
    /// An image; without a digest, whatever `default` names, for there was none before.
    Image {
        /// Its digest.
        digest: Option<String>,
    },
}

/// Why the record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be understood.
    #[error("cannot understand the record of what setup made, {}", path.display())]
    Parse {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a newer program.
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
    /// The record, empty when there is none. Nothing is written yet.
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

    /// The record for more to come, and the lock under which it may be written: its directory is made, and is the first thing in it.
    pub(super) fn open<E: From<RecordError>>(
        places: &Places,
        lock: &dyn Fn(&Places) -> Result<FileLock, E>,
    ) -> Result<(Self, FileLock), E> {
        // The lock lies in it, so this is made before it is on record; killed in between, an empty directory is left.
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

    /// What was made, the first one first.
    pub(super) fn made(&self) -> &[Made] {
        &self.content.made
    }

    /// Notes what will be made below `dir`, and the directories that have to be made for it.
    pub(super) fn add(&mut self, made: Made, dir: &Path) -> Result<(), RecordError> {
        for directory in missing(dir) {
            self.note(directory);
        }
        self.note(made);
        self.save()
    }

    /// Notes that an image will be put into a store that has none, when it is `wanted`.
    pub(super) fn image(&mut self, places: &Places, wanted: bool) -> Result<(), RecordError> {
        if !wanted {
            return Ok(());
        }
        self.content
            .made
            .retain(|made| !matches!(made, Made::Image { .. }));
        self.add(Made::Image { digest: None }, &places.images())
    }

    /// Notes which image it became.
    pub(super) fn made_image(&mut self, image: &str) -> Result<(), RecordError> {
        for made in &mut self.content.made {
            if let Made::Image { digest } = made {
                *digest = Some(image.to_owned());
            }
        }
        self.save()
    }

    /// Notes that a template was made. It is noted when it is there, since its key is not known before; what is half made has a lock to
    /// tell whose it is.
    pub(super) fn template(&mut self, places: &Places, key: &str) -> Result<(), RecordError> {
        let key = key.to_owned();
        self.add(Made::Template { key }, &places.state)
    }

    /// Notes that Firecracker and jailer will be put into their directory, when they are `wanted`.
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

    /// Notes what the rule of sudo at `path` will be, beside what it has been.
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

    /// Whether a rule of sudo with this SHA-256 is setup's own.
    pub(super) fn wrote(&self, path: &Path, text: &str) -> bool {
        self.content.made.iter().any(|made| {
            matches!(made, Made::Sudoers { path: there, sha256 } if there == path && sha256.iter().any(|known| known == text))
        })
    }

    /// Whether the line before `line` in the file of authorised keys at `path` got its end for it.
    pub(super) fn has_ended(&self, path: &Path, line: &str) -> bool {
        self.content.made.iter().any(|made| {
            matches!(made, Made::Key { path: there, line: known, ended: true, .. } if there == path && known == line)
        })
    }

    /// Takes entries off the record: what they say is not there any more.
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

/// `dir` and those above it that are not there, the highest first.
fn missing(dir: &Path) -> Vec<Made> {
    let mut missing: Vec<_> = dir
        .ancestors()
        .take_while(|dir| std::fs::symlink_metadata(dir).is_err())
        .map(|dir| Made::Directory { path: dir.to_owned() })
        .collect();
    missing.reverse();
    missing
}
