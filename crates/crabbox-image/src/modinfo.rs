//! The `.modinfo` section of a kernel module's ELF file (`elf(5)`): its dependencies.
//!
//! It is used instead of `modules.dep`, which does not exist yet in a package that was only unpacked. A
//! damaged file gives `None` and must never cause a panic.

/// The modules that have to be loaded before this one; `None` if the bytes are not an ELF module.
pub(crate) fn depends(module: &[u8]) -> Option<Vec<String>> {
    let info = section(module, b".modinfo")?;
    let entry = info
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))?;
    let text = std::str::from_utf8(entry).ok()?;
    Some(
        text.split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
    )
}

fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number(elf, 40, 8)?).ok()?;
    let (size, count, names) = (number(elf, 58, 2)?, number(elf, 60, 2)?, number(elf, 62, 2)?);
    let header = |index: u64| -> Option<&[u8]> {
        let skip = usize::try_from(index.checked_mul(size)?).ok()?;
        elf.get(table.checked_add(skip)?..)?.get(..64)
    };
    let content = |header: &[u8]| -> Option<&'a [u8]> {
        let start = usize::try_from(number(header, 24, 8)?).ok()?;
        let length = usize::try_from(number(header, 32, 8)?).ok()?;
        elf.get(start..start.checked_add(length)?)
    };
    let names = content(header(names)?)?;
    (0..count).filter_map(header).find_map(|header| {
        let name = names.get(usize::try_from(number(header, 0, 4)?).ok()?..)?;
        let matches = name
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.first() == Some(&0));
        matches.then(|| content(header)).flatten()
    })
}

/// The little-endian number of `size` bytes (at most 8) at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..)?.get(..size)?;
    Some(
        field
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    )
}

/// A minimal ELF file with a `.modinfo` section, for tests.
#[cfg(test)]
pub(crate) fn sample(depends: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends={depends}\0name=x\0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let info_at = elf.len() as u64;
    elf.extend_from_slice(info.as_bytes());
    let names_at = elf.len() as u64;
    elf.extend_from_slice(names);
    let table = elf.len() as u64;
    let mut section = |name: u32, at: u64, size: usize| {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&at.to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        elf.extend_from_slice(&header);
    };
    section(0, 0, 0);
    section(1, info_at, info.len());
    section(10, names_at, names.len());
    elf[40..48].copy_from_slice(&table.to_le_bytes());
    elf[58] = 64;
    elf[60] = 3;
    elf[62] = 2;
    elf
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dependencies_are_read() {
        assert_eq!(
            depends(&sample("net_failover,failover")).unwrap(),
            ["net_failover", "failover"]
        );
        assert_eq!(depends(&sample("")).unwrap(), [""; 0]);
        assert_eq!(depends(b"no elf"), None);
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_panics(at in 0_usize..400, value: u8, cut in 0_usize..400) {
            let mut elf = sample("virtio");
            let length = elf.len();
            elf[at % length] = value;
            depends(&elf);
            depends(&elf[..cut.min(length)]);
        }
    }
}
