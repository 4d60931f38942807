//! The file format of a remembered manifest: a magic line, the CRC-32 of the rest, then little-endian numbers
//! and length-prefixed byte strings.
//!
//! It is written by this program for itself, and may be truncated or damaged by a crash: reading must never
//! panic, never allocate more than the file's length, and never return anything but what was written.

use super::RememberedManifest;
use crate::entry::{Entry, Kind, Standing};
use crate::listing::Staged;
use crate::mark::Mark;

/// Bits of an entry's flags: how it compares with git's index.
const UNLIKE: u8 = 4;
const SAME: u8 = 8;

const MAGIC: &[u8] = b"crabbox tree 4\n";

pub(super) fn encode(seen: &RememberedManifest) -> Vec<u8> {
    let mut out = Vec::with_capacity(seen.entries.len() * 96);
    out.extend_from_slice(&seen.key);
    out.extend_from_slice(&seen.config);
    out.push(u8::from(seen.whole));
    put(&mut out, seen.fingerprint.as_bytes());
    count(&mut out, seen.entries.len());
    for entry in &seen.entries {
        put(&mut out, &entry.path);
        let standing = match entry.standing {
            Standing::Untracked => 0,
            Standing::Unlike => UNLIKE,
            Standing::Same => SAME,
        };
        out.push(u8::from(entry.kind == Kind::Symlink) | u8::from(entry.changed) << 1 | standing);
        out.extend_from_slice(&entry.mode.to_le_bytes());
        out.extend_from_slice(&entry.size.to_le_bytes());
        out.extend_from_slice(&entry.mtime_ns.to_le_bytes());
        out.extend_from_slice(&entry.identity.unwrap_or(0).to_le_bytes());
    }
    for list in [&seen.deleted, &seen.absent, &seen.nested] {
        count(&mut out, list.len());
        for path in list {
            put(&mut out, path);
        }
    }
    count(&mut out, seen.protected_tracked.len());
    for (path, rule) in &seen.protected_tracked {
        put(&mut out, path);
        put(&mut out, rule);
    }
    count(&mut out, seen.staged.len());
    for staged in &seen.staged {
        put(&mut out, &staged.path);
        put(&mut out, staged.mode.as_bytes());
        put(&mut out, staged.object.as_bytes());
        out.extend_from_slice(&[staged.stage, u8::from(staged.intended)]);
    }
    count(&mut out, seen.marks.len());
    for mark in &seen.marks {
        put(&mut out, &mark.path);
        out.push(mark.flags);
    }
    put(&mut out, &seen.settings);
    put(&mut out, &seen.attributes);
    put(&mut out, &seen.excludes);
    count(&mut out, seen.places.len());
    for (path, identity) in &seen.places {
        put(&mut out, path);
        out.extend_from_slice(&identity.to_le_bytes());
    }
    [MAGIC, &crc32fast::hash(&out).to_le_bytes(), &out].concat()
}

fn count(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&(number as u64).to_le_bytes());
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    count(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn decode(bytes: &[u8]) -> Option<RememberedManifest> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (crc, rest) = rest.split_first_chunk()?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut input = Input(rest);
    let seen = RememberedManifest {
        key: input.array()?,
        config: input.array()?,
        whole: input.array::<1>()? == [1],
        fingerprint: input.text()?,
        entries: input.list(Input::entry)?,
        deleted: input.list(Input::bytes)?,
        absent: input.list(Input::bytes)?,
        nested: input.list(Input::bytes)?,
        protected_tracked: input.list(|input| Some((input.bytes()?, input.bytes()?)))?,
        staged: input.list(Input::staged)?,
        marks: input.list(|input| {
            Some(Mark {
                path: input.bytes()?,
                flags: input.array::<1>()?[0],
            })
        })?,
        settings: input.bytes()?,
        attributes: input.bytes()?,
        excludes: input.bytes()?,
        places: input.list(|input| Some((input.bytes()?, u64::from_le_bytes(input.array()?))))?,
    };
    input.0.is_empty().then_some(seen)
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    /// A count of items that take at least one byte each.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(u64::from_le_bytes(self.array()?)).ok()?;
        (count <= self.0.len()).then_some(count)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = self.count()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?).ok()
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.count()?).map(|_| item(self)).collect()
    }

    fn entry(&mut self) -> Option<Entry> {
        let path = self.bytes()?;
        let [flags] = self.array()?;
        Some(Entry {
            path,
            kind: if flags & 1 == 1 { Kind::Symlink } else { Kind::File },
            changed: flags & 2 == 2,
            standing: match flags & (UNLIKE | SAME) {
                UNLIKE => Standing::Unlike,
                SAME => Standing::Same,
                _ => Standing::Untracked,
            },
            mode: u32::from_le_bytes(self.array()?),
            size: u64::from_le_bytes(self.array()?),
            mtime_ns: i128::from_le_bytes(self.array()?),
            identity: Some(u64::from_le_bytes(self.array()?)).filter(|identity| *identity != 0),
        })
    }

    fn staged(&mut self) -> Option<Staged> {
        Some(Staged {
            path: self.bytes()?,
            mode: self.text()?,
            object: self.text()?,
            stage: self.array::<1>()?[0],
            intended: self.array::<1>()? == [1],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> RememberedManifest {
        RememberedManifest {
            key: [7; 32],
            config: [8; 32],
            whole: true,
            fingerprint: "abc".to_owned(),
            entries: vec![Entry {
                path: b"a\nb\xff".to_vec(),
                kind: Kind::Symlink,
                mode: 0o755,
                size: 1 << 40,
                mtime_ns: -5,
                changed: true,
                standing: Standing::Same,
                identity: None,
            }],
            deleted: vec![b"gone".to_vec()],
            protected_tracked: vec![(b"p".to_vec(), b"rule".to_vec())],
            absent: vec![b"sub".to_vec()],
            nested: vec![b"other".to_vec()],
            staged: vec![Staged {
                path: b"s".to_vec(),
                mode: "100644".to_owned(),
                object: "ff".to_owned(),
                stage: 2,
                intended: true,
            }],
            marks: vec![Mark {
                path: b"m".to_vec(),
                flags: 5,
            }],
            settings: vec![7, 8],
            attributes: b"a".to_vec(),
            excludes: b"e".to_vec(),
            places: vec![(b"/r".to_vec(), 0), (b"/r/.git/index".to_vec(), 9)],
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        assert_eq!(decode(&encode(&seen())), Some(seen()));
    }

    #[test]
    fn nothing_comes_back_from_damage() {
        let whole = encode(&seen());
        for cut in 0..whole.len() {
            assert_eq!(decode(&whole[..cut]), None, "{cut}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged), None, "{at}");
        }
    }

    #[test]
    fn a_length_beyond_the_file_takes_no_memory() {
        let mut body = vec![0; 65];
        body.extend_from_slice(&u64::MAX.to_le_bytes());
        let whole = [MAGIC, &crc32fast::hash(&body).to_le_bytes(), &body].concat();
        assert_eq!(decode(&whole), None);
    }
}
