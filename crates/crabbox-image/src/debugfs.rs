//! Looks into an ext4 image without mounting it, by `debugfs` (e2fsprogs). Never writes to it, and never trusts what it reads to be sane.

use std::path::Path;
use std::time::Duration;

use crabbox_host::command::{Cmd, CommandError};

/// Runs the commands of `script` on the file system in `image`, which `program` opens read-only unless told otherwise, and answers what
/// it said within `limit`. `-c` leaves the bitmaps unread, which in a large image are most of the work.
pub fn run(program: &Path, image: &Path, script: String, limit: Duration) -> Result<String, CommandError> {
    let done = Cmd::new(program)
        .args(["-c", "-f", "-"])
        .arg(image)
        .stdin(script)
        .limit(limit)
        .own_group()
        .run()?;
    Ok(done.stdout_text())
}

/// The paths behind whose `debugfs: stat <path>` an inode follows.
pub fn present(said: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut asked = None;
    for line in said.lines() {
        if let Some(path) = line.strip_prefix("debugfs: stat ") {
            asked = Some(path.trim());
        } else if line.starts_with("Inode:") {
            found.extend(asked.take());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_an_inode_is_there() {
        let said = "debugfs: stat /bin/sh\nInode: 12   Type: regular\ndebugfs: stat /no\n/no: File not found by ext2_lookup \n\
                    debugfs: stat /etc\nInode: 13   Type: directory\nInode: 14\n";
        assert_eq!(present(said), ["/bin/sh", "/etc"]);
    }
}
