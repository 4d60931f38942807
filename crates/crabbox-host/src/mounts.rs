//! The mount points of this process, by file system type.
//!
//! It reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)). It must never access a mounted file system: a
//! dead network file system would block it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// Every mount point of the file system type `kind` (`nsfs` for a namespace), in the kernel's order.
pub fn of_type(kind: &str) -> io::Result<Vec<PathBuf>> {
    Ok(points(&std::fs::read("/proc/self/mountinfo")?, kind))
}

/// Every mount point of any type, in the kernel's order.
pub fn all() -> io::Result<Vec<PathBuf>> {
    let mountinfo = std::fs::read("/proc/self/mountinfo")?;
    let lines = mountinfo.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescaped)
        .collect())
}

fn points(mountinfo: &[u8], kind: &str) -> Vec<PathBuf> {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            // ID, parent, device, root; then the mount point; then options and optional fields up to a dash.
            let point = fields.nth(4)?;
            let mut after = fields.skip_while(|field| *field != b"-");
            (after.nth(1)? == kind.as_bytes()).then(|| unescaped(point))
        })
        .collect()
}

/// Decodes the kernel's escapes: blanks, tabs, newlines and backslashes are written as a backslash and three
/// octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns;

    #[test]
    fn a_mount_point_is_read_whatever_stands_before_and_behind_it() {
        let text = b"36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw\n\
            40 35 0:4 net:[4026532281] /a\\040b\\134c/netns rw shared:3 propagate_from:2 - nsfs nsfs rw\n\
            41 35 0:4 net:[4026532282] /plain/nsfs rw - tmpfs nsfs rw\n\
            torn line - nsfs";
        assert_eq!(points(text, "nsfs"), [PathBuf::from("/a b\\c/netns")]);
        assert_eq!(points(text, "ext4"), [PathBuf::from("/")]);
    }

    #[test]
    fn a_namespace_is_among_the_mounts_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("net ns");
        netns::create(&path).unwrap();
        let seen = of_type("nsfs").unwrap();
        netns::remove(&path).unwrap();
        assert!(seen.contains(&path), "{seen:?}");
        assert!(!of_type("nsfs").unwrap().contains(&path));
    }
}
