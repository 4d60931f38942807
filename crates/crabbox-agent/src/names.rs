//! Sets of names, kept as the received bytes and one offset per name: for hundreds of thousands of names,
//! separate allocations would cost more than the names themselves.
//!
//! A name is found only by all of its bytes, never by a prefix.

use crate::bytes::listed;
use crate::failure::Failure;

/// A sorted set of names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    data: Vec<u8>,
    /// Where each name begins, sorted by name.
    starts: Vec<u32>,
}

impl Names {
    /// From a NUL-terminated list.
    pub(crate) fn of(mut data: Vec<u8>) -> Result<Self, Failure> {
        if data.last().is_some_and(|byte| *byte != 0) {
            data.push(0);
        }
        let (mut starts, mut at) = (Vec::new(), 0_usize);
        for name in data.split(|byte| *byte == 0) {
            if !name.is_empty() {
                let start =
                    u32::try_from(at).map_err(|_| Failure::Refused("a list is too long".to_owned()))?;
                starts.push(start);
            }
            at += name.len() + 1;
        }
        starts.shrink_to_fit();
        let mut names = Self { data, starts };
        let mut order = std::mem::take(&mut names.starts);
        // Most senders have them sorted already.
        if !order.is_sorted_by(|a, b| names.name(*a) < names.name(*b)) {
            order.sort_unstable_by(|a, b| names.name(*a).cmp(names.name(*b)));
            order.dedup_by(|a, b| names.name(*a) == names.name(*b));
        }
        names.starts = order;
        Ok(names)
    }

    fn name(&self, start: u32) -> &[u8] {
        let tail = usize::try_from(start)
            .ok()
            .and_then(|start| self.data.get(start..));
        listed(tail.unwrap_or_default()).next().unwrap_or_default()
    }

    /// Whether the set has this name.
    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.place(name).is_some()
    }

    /// The position of a name in sorted order.
    pub(crate) fn place(&self, name: &[u8]) -> Option<usize> {
        self.starts
            .binary_search_by(|start| self.name(*start).cmp(name))
            .ok()
    }

    /// All names, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.starts.iter().map(|start| self.name(*start))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_once_and_found_whole() {
        for list in [&b"a\0a/b\0c\0"[..], b"c\0a/b\0\0a\0c\0a", b"a\0a/b\0c"] {
            let names = Names::of(list.to_vec()).unwrap();
            assert_eq!(names.iter().collect::<Vec<_>>(), [&b"a"[..], b"a/b", b"c"]);
            assert!(names.contains(b"a/b") && names.place(b"c") == Some(2));
            assert!(!names.contains(b"a/") && !names.contains(b"") && !names.contains(b"b"));
        }
        assert!(Names::of(Vec::new()).unwrap().is_empty());
    }
}
