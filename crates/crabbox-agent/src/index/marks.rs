//! The flags that the client's index has for paths.
//!
//! A path must never get the flags of another.

use crate::failure::Failure;
use crate::names::Names;

/// The flag bits, as the client sends them.
pub(super) const ASSUMED: u8 = 1;
pub(super) const SKIPPED: u8 = 2;
pub(super) const INTENDED: u8 = 4;
const HOLLOW: u8 = 8;

/// The flags by path.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    names: Names,
    /// The flags of each name, in the same order.
    flags: Vec<u8>,
}

impl Marks {
    /// Parses `<flags> <path>` records, NUL after each.
    pub(crate) fn parse(list: &[u8]) -> Result<Self, Failure> {
        let split = |mark: &[u8]| -> (u8, usize) {
            let cut = mark.iter().position(|byte| *byte == b' ').unwrap_or(mark.len());
            let flags = String::from_utf8_lossy(&mark[..cut]).parse().unwrap_or(0);
            (flags, (cut + 1).min(mark.len()))
        };
        let mut paths = Vec::with_capacity(list.len());
        for mark in crate::bytes::listed(list) {
            crate::bytes::push(&mut paths, &mark[split(mark).1..]);
        }
        let names = Names::of(paths)?;
        let mut flags = vec![0; names.iter().count()];
        for mark in crate::bytes::listed(list) {
            let (bits, cut) = split(mark);
            if let Some(place) = names.place(&mark[cut..]) {
                flags[place] |= bits;
            }
        }
        Ok(Self { names, flags })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The flags of a path.
    pub(super) fn of(&self, path: &[u8]) -> u8 {
        let place = self.names.place(path);
        place
            .and_then(|place| self.flags.get(place))
            .copied()
            .unwrap_or(0)
    }

    /// The directories of submodules that are not checked out.
    pub(crate) fn hollow(&self) -> impl Iterator<Item = &[u8]> {
        let marked = self.names.iter().zip(&self.flags);
        marked
            .filter(|(_, flags)| **flags & HOLLOW != 0)
            .map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_all_of_its_bits_and_no_other_s() {
        let marks = Marks::parse(b"2 z y\x001 a\x004 z y\x008 sub\x00strange\x00").unwrap();
        assert_eq!(
            [&b"z y"[..], b"a", b"sub", b"z", b"strange"].map(|path| marks.of(path)),
            [6, 1, 8, 0, 0]
        );
        assert_eq!(marks.hollow().collect::<Vec<_>>(), [b"sub"]);
        assert!(Marks::parse(b"").unwrap().is_empty() && !marks.is_empty());
    }
}
