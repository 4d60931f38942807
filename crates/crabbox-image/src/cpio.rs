//! Writing `newc` cpio archives, the only kind that the Linux kernel unpacks as an initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! The same input gives the same bytes: no times, root as the only owner, consecutive inode numbers. The
//! reader is the kernel; nothing here may depend on the machine that writes.

/// Directory bit of a mode (`S_IFDIR`).
const DIRECTORY: u32 = 0o040_000;
/// Regular file bit of a mode (`S_IFREG`).
const REGULAR: u32 = 0o100_000;
/// Symbolic link bit of a mode (`S_IFLNK`).
const SYMLINK: u32 = 0o120_000;
/// Character device bit of a mode (`S_IFCHR`).
const CHARACTER: u32 = 0o020_000;

/// An archive that is being written. Parents must be written before their contents: the kernel creates no
/// directories by itself.
#[derive(Debug, Default)]
pub struct Writer {
    archive: Vec<u8>,
    next_inode: u32,
}

/// The fields of one entry's header.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Writer {
    /// An empty archive.
    pub fn new() -> Self {
        Self {
            archive: Vec::new(),
            next_inode: 1,
        }
    }

    /// Adds a directory.
    pub fn directory(&mut self, name: &str, permissions: u32) {
        self.entry(&Entry {
            name,
            mode: DIRECTORY | permissions,
            links: 2,
            device: (0, 0),
            content: &[],
        });
    }

    /// Adds a file. The format's limit is 4 GiB per file; longer content is truncated.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        let content = &content[..content.len().min(u32::MAX as usize)];
        self.entry(&Entry {
            name,
            mode: REGULAR | permissions,
            links: 1,
            device: (0, 0),
            content,
        });
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, name: &str, target: &str) {
        let content = target.as_bytes();
        self.entry(&Entry {
            name,
            mode: SYMLINK | 0o777,
            links: 1,
            device: (0, 0),
            content,
        });
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, name: &str, permissions: u32, device: (u32, u32)) {
        self.entry(&Entry {
            name,
            mode: CHARACTER | permissions,
            links: 1,
            device,
            content: &[],
        });
    }

    /// The finished archive; its length is a multiple of four bytes, so that another archive can follow
    /// directly.
    pub fn finish(mut self) -> Vec<u8> {
        self.next_inode = 0;
        self.entry(&Entry {
            name: "TRAILER!!!",
            mode: 0,
            links: 1,
            device: (0, 0),
            content: &[],
        });
        self.archive
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        let name = entry.name.trim_start_matches('/');
        let length = u32::try_from(entry.content.len()).unwrap_or(u32::MAX);
        let name_length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.archive.extend_from_slice(b"070701");
        let fields = [
            self.next_inode,
            entry.mode,
            0, // owner: root
            0, // group: root
            entry.links,
            0, // time of change: none, for the same bytes every time
            length,
            0, // device that holds the file: its numbers mean nothing here
            0,
            entry.device.0,
            entry.device.1,
            name_length,
            0, // check sum: not in this format
        ];
        for field in fields {
            self.archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(entry.content);
        self.pad();
        self.next_inode += 1;
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// One entry of an archive that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read<'a> {
    pub(crate) name: &'a str,
    pub(crate) mode: u32,
    pub(crate) content: &'a [u8],
}

/// Every entry of one or more concatenated archives, as the kernel would read them; `None` if they are
/// damaged.
pub(crate) fn read(mut archive: &[u8]) -> Option<Vec<Read<'_>>> {
    let mut entries = Vec::new();
    while !archive.is_empty() {
        archive.starts_with(b"070701").then_some(())?;
        let field = |index: usize| {
            let text = std::str::from_utf8(archive.get(6 + index * 8..14 + index * 8)?).ok()?;
            usize::from_str_radix(text, 16).ok()
        };
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        let name_end = 110_usize.checked_add(name_size.checked_sub(1)?)?;
        let name = std::str::from_utf8(archive.get(110..name_end)?).ok()?;
        let start = name_end.checked_add(1)?.checked_next_multiple_of(4)?;
        let end = start.checked_add(size)?;
        let content = archive.get(start..end)?;
        archive = archive.get(end.checked_next_multiple_of(4)?..)?;
        if name != "TRAILER!!!" {
            let mode = u32::try_from(mode).ok()?;
            entries.push(Read { name, mode, content });
        }
    }
    Some(entries)
}

/// The same for tests, with owned parts.
#[cfg(test)]
pub(crate) mod reader {
    /// Name, mode and content of one entry.
    pub(crate) type Entry = (String, u32, Vec<u8>);

    /// Every entry of one or more concatenated archives.
    pub(crate) fn read(archive: &[u8]) -> Vec<Entry> {
        let entries = super::read(archive).expect("a whole archive");
        entries
            .into_iter()
            .map(|entry| (entry.name.to_owned(), entry.mode, entry.content.to_vec()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crabbox_host::command::Cmd;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new();
        writer.directory("dev", 0o755);
        writer.character_device("dev/console", 0o600, (5, 1));
        writer.file("/init", 0o755, b"#!/bin/sh\n");
        writer.symlink("link", "init");
        writer.finish()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let expected = [
            ("dev", 0o040_755, ""),
            ("dev/console", 0o020_600, ""),
            ("init", 0o100_755, "#!/bin/sh\n"),
            ("link", 0o120_777, "init"),
        ];
        let entries = reader::read(&sample());
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, mode, content)| (name.as_str(), *mode, std::str::from_utf8(content).unwrap()))
            .collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn archives_are_equal_for_equal_input_and_may_be_joined() {
        let one = sample();
        assert_eq!(one, sample());
        assert_eq!(one.len() % 4, 0);
        assert_eq!(reader::read(&[one.clone(), one].concat()).len(), 8);
    }

    #[test]
    fn what_is_cut_anywhere_is_damaged_or_shorter_and_never_a_panic() {
        let whole = sample();
        for cut in 0..whole.len() {
            assert!(
                read(&whole[..cut]).is_none_or(|entries| entries.len() < 4 || cut > whole.len() - 128),
                "{cut}"
            );
        }
        assert!(read(&[b"070701".as_slice(), &[b'f'; 200]].concat()).is_none());
    }

    #[test]
    fn cpio_agrees() {
        let listed = Cmd::new("cpio")
            .args(["-t", "-v", "--quiet"])
            .stdin(sample())
            .run()
            .unwrap()
            .stdout_text();
        let lines: Vec<_> = listed.lines().collect();
        assert_eq!(lines.len(), 4, "{listed}");
        assert!(
            lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dev"),
            "{listed}"
        );
        assert!(
            lines[1].starts_with("crw-------") && lines[1].contains("5,   1"),
            "{listed}"
        );
        assert!(
            lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with(" init"),
            "{listed}"
        );
        assert!(lines[3].ends_with("link -> init"), "{listed}");
    }
}
