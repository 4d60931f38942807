//! PAX records, `<length> <key>=<value>` lines that override a header's fields (pax(1), tar(5)).
//!
//! The caller has bounded the bytes. An invalid record must end the reading of the archive.

use super::sparse::Segment;
use super::{ArchiveError, garbled};

/// Records in order; the last record of a key applies, except for the map of sparse form 0.0, whose keys are
/// repeated.
#[derive(Debug, Default, Clone)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Adds the records of a header's content.
    pub(super) fn merge(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        let broken = || garbled("an invalid PAX record");
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
            let length = std::str::from_utf8(&bytes[..space]).map_err(|_| broken())?;
            let length: usize = length.parse().map_err(|_| broken())?;
            let record = bytes.get(space + 1..length).ok_or_else(broken)?;
            let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
            let (key, value) = (record[..equals].to_vec(), record[equals + 1..].to_vec());
            self.0.push((key, value));
            bytes = &bytes[length..];
        }
        // Global records accumulate over all members, so limit their total size.
        let size: usize = self.0.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size as u64 > super::METADATA_LIMIT {
            return Err(ArchiveError::Metadata { size: size as u64 });
        }
        Ok(())
    }

    /// These records, followed by those of one member.
    pub(super) fn overlaid(&self, local: &Self) -> Self {
        Self([&self.0[..], &local.0[..]].concat())
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let found = self.0.iter().rev().find(|(name, _)| name == key.as_bytes());
        found
            .map(|(_, value)| value.as_slice())
            .filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ArchiveError> {
        self.get(key).map(decimal).transpose()
    }

    /// A time, whose fraction is dropped.
    pub(super) fn seconds(&self, key: &str) -> Result<Option<i64>, ArchiveError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
        let whole = std::str::from_utf8(whole).ok().and_then(|text| text.parse().ok());
        whole.map(Some).ok_or_else(|| garbled("an invalid time"))
    }

    pub(super) fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let named = self.0.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(b"SCHILY.xattr.")?;
            Some((name.to_vec(), value.clone()))
        });
        named.collect()
    }

    /// Whether the member is a sparse file in a PAX form.
    pub(super) fn is_sparse(&self) -> bool {
        ["GNU.sparse.major", "GNU.sparse.size", "GNU.sparse.realsize"]
            .iter()
            .any(|key| self.get(key).is_some())
    }

    /// The map and the length of forms 0.0 and 0.1; `None` for form 1.0, whose map is in the content.
    pub(super) fn sparse_map(&self) -> Result<Option<(Vec<Segment>, u64)>, ArchiveError> {
        match (self.get("GNU.sparse.major"), self.get("GNU.sparse.minor")) {
            (None | Some(b"0"), _) => {}
            (Some(b"1"), Some(b"0")) => return Ok(None),
            _ => return Err(garbled("a sparse file of an unknown form")),
        }
        let numbers = if let Some(map) = self.get("GNU.sparse.map") {
            map.split(|byte| *byte == b',')
                .map(decimal)
                .collect::<Result<Vec<_>, _>>()?
        } else {
            let keys: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];
            let mut numbers = Vec::new();
            for (key, value) in &self.0 {
                if keys.contains(&key.as_slice()) {
                    if key != keys[numbers.len() % 2] {
                        return Err(garbled("an invalid map of a sparse file"));
                    }
                    numbers.push(decimal(value)?);
                }
            }
            numbers
        };
        if numbers.len() % 2 != 0 {
            return Err(garbled("an invalid map of a sparse file"));
        }
        let pieces = numbers.chunks(2).map(|pair| Segment {
            offset: pair[0],
            length: pair[1],
        });
        Ok(Some((pieces.collect(), self.sparse_size()?)))
    }

    /// The length of a sparse file with its holes.
    pub(super) fn sparse_size(&self) -> Result<u64, ArchiveError> {
        let size = match self.number("GNU.sparse.realsize")? {
            Some(size) => Some(size),
            None => self.number("GNU.sparse.size")?,
        };
        size.ok_or_else(|| garbled("a sparse file without a length"))
    }
}

pub(super) fn decimal(text: &[u8]) -> Result<u64, ArchiveError> {
    let text = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| garbled("an invalid number"))
}
