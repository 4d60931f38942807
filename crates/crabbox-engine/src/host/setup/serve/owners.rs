//! Parses owners and their keys from the command line.
//!
//! Only the key itself is kept, so that nothing else can get into a file. No part of a private key is
//! repeated.

use std::path::Path;

use crabbox_core::labels;
use crabbox_host::files;
use crabbox_ssh::keys;

use super::ServeSetupError;
use super::authorized;

/// The longest file of public keys to read, in bytes.
const LIMIT: u64 = 64 * 1024;

/// How much of an invalid value is shown, in characters.
const SHOWN: usize = 32;

/// The beginning of every text form of a private key.
const PRIVATE: &str = "-----BEGIN";

/// Pairs of an owner and a key in OpenSSH's form. `NAME=KEY` gives one pair, `NAME=FILE` one per line of the
/// file.
pub(super) fn read(texts: &[String]) -> Result<Vec<(String, String)>, ServeSetupError> {
    let mut owners = Vec::new();
    for text in texts {
        let text = text.trim();
        // Check this before using any part as a name or path, which an error would repeat.
        if text.contains(PRIVATE) {
            return Err(ServeSetupError::PrivateText);
        }
        if text.contains(|c: char| c.is_control() && c != '\t') {
            return Err(ServeSetupError::SeveralLines);
        }
        let (owner, given) = text
            .split_once('=')
            .filter(|(_, given)| !given.trim().is_empty())
            .ok_or_else(|| ServeSetupError::OwnerForm {
                text: short(text.split('=').next().unwrap_or_default()),
            })?;
        labels::check_owner_name(owner)?;
        let word = given.split_whitespace().next().unwrap_or_default();
        if authorized::is_kind(word) && given.trim().contains(char::is_whitespace) {
            owners.push((owner.to_owned(), key(owner, given)?));
        } else {
            for key in file(owner, Path::new(given))? {
                owners.push((owner.to_owned(), key));
            }
        }
    }
    Ok(owners)
}

/// The beginning of an invalid name: the whole text could be a key.
fn short(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A file's name without its directory.
fn name_of(path: &Path) -> String {
    short(&path.file_name().unwrap_or_default().to_string_lossy())
}

fn file(owner: &str, path: &Path) -> Result<Vec<String>, ServeSetupError> {
    let owned = || owner.to_owned();
    let read = files::read_regular(path, LIMIT)
        .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    let text = read.map_err(|source| ServeSetupError::KeyFile {
        owner: owned(),
        file: name_of(path),
        source,
    })?;
    if text.contains(PRIVATE) {
        return Err(ServeSetupError::PrivateKey {
            owner: owned(),
            file: name_of(path),
        });
    }
    let lines = text.lines().map(str::trim);
    let keys: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| key(owner, line))
        .collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err(ServeSetupError::NoKey {
            owner: owned(),
            file: name_of(path),
        });
    }
    Ok(keys)
}

fn key(owner: &str, text: &str) -> Result<String, ServeSetupError> {
    let kind = text.split_whitespace().next().unwrap_or_default();
    // OpenSSH disabled them in 2015, and would refuse the login without a helpful message.
    if kind == "ssh-dss" {
        return Err(ServeSetupError::Kind {
            owner: owner.to_owned(),
            kind: kind.to_owned(),
        });
    }
    keys::public(text, &authorized::comment(owner)).map_err(|source| ServeSetupError::Key {
        owner: owner.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_given_as_it_is_or_in_a_file_and_loses_all_but_itself() {
        let dir = tempfile::tempdir().unwrap();
        let pair = || keys::generate("some\u{20}body").unwrap();
        let (one, two) = (pair(), pair());
        let file = dir.path().join("keys.pub");
        std::fs::write(
            &file,
            format!("# mine\n{}\n\n{}\n", one.public_openssh, two.public_openssh),
        )
        .unwrap();
        let given = [
            format!("alice={}", one.public_openssh),
            format!("bob={}", file.display()),
        ];
        let all = read(&given).unwrap();
        let names: Vec<_> = all.iter().map(|(owner, _)| owner.as_str()).collect();
        assert_eq!(names, ["alice", "bob", "bob"]);
        assert!(
            all[0].1.ends_with(" crabbox-owner-alice") && !all[0].1.contains("body"),
            "{all:?}"
        );
        assert_eq!(
            authorized::key_of(&all[0].1),
            authorized::key_of(&one.public_openssh)
        );
    }

    #[test]
    fn what_is_no_owner_or_no_public_key_is_refused_and_a_private_one_is_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let pair = keys::generate("x").unwrap();
        let at = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let private = at("private", &pair.private_openssh);
        let text = pair.private_openssh.as_str();
        // The key's body on one line, without the first and last line.
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        let bare = text.replace("-----BEGIN OPENSSH PRIVATE KEY-----\n", "");
        let cases = [
            (format!("alice={text}"), "has a private key"),
            (format!("alice={}", text.replace('\n', " ")), "has a private key"),
            (text.to_owned(), "has a private key"),
            (format!("alice={bare}"), "more than one line"),
            (
                format!("alice={0}\n{0}", pair.public_openssh.trim()),
                "more than one line",
            ),
            (body.clone(), "NAME=KEY"),
            (format!("{body}=x"), "invalid owner name"),
            (format!("alice={body}"), "cannot read the key of alice"),
            (
                format!("alice=/nonexistent/{body}/key.pub"),
                "cannot read the key of alice",
            ),
            ("alice".to_owned(), "NAME=KEY"),
            ("alice=".to_owned(), "NAME=KEY"),
            (format!("al ice={}", pair.public_openssh), "invalid owner name"),
            (format!("-x={}", pair.public_openssh), "invalid owner name"),
            (
                "alice=/nonexistent/key.pub".to_owned(),
                "cannot read the key of alice",
            ),
            (format!("alice={private}"), "has a private key"),
            (
                format!("alice={}", at("empty", "# nothing\n")),
                "has no key for alice",
            ),
            (
                format!("alice={}", at("damaged", "ssh-ed25519 AAAA\n")),
                "cannot be used",
            ),
            ("alice=ssh-dss AAAAB3NzaC1kc3MAAACB x".to_owned(), "ssh-dss"),
            ("alice=ssh-ed25519 AAAA x".to_owned(), "cannot be used"),
            (
                format!(
                    "alice={}",
                    at("options", &format!("from=\"*\" {}\n", pair.public_openssh))
                ),
                "cannot be used",
            ),
        ];
        for (text, said) in cases {
            let error = read(std::slice::from_ref(&text)).unwrap_err();
            let told = crabbox_core::fault::chain(&error);
            assert!(told.contains(said), "{said}: {told}");
            assert!(
                !told.contains("BEGIN")
                    && !told.contains(&body[SHOWN + 1..SHOWN + 9])
                    && !told.contains("/nonexistent"),
                "{told}"
            );
        }
    }
}
