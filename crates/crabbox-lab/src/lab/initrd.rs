//! The lab's initrd: busybox, the few modules needed to reach the root disk, and a script. It knows nothing
//! of what the root disk does afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use crabbox_host::command::Cmd;

use super::images::{Images, remove_tree};
use super::recipe;

/// Builds the initrd from the unpacked kernel and the busybox of `root`.
pub(super) fn build(images: &Images, root: &Path) -> Result<()> {
    let tree = images.initrd().with_extension("tree");
    for dir in ["bin", "m", "proc", "sys", "dev", "r"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    Cmd::inheriting("cp")
        .arg(root.join("bin/busybox"))
        .arg(tree.join("bin"))
        .run()?;
    let mut order = String::new();
    for module in modules_in_order(images)? {
        let name = module
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module without a name")?
            .to_owned();
        Cmd::inheriting("cp").arg(&module).arg(tree.join("m")).run()?;
        order.push_str(&name);
        order.push('\n');
    }
    ensure!(
        !order.is_empty(),
        "no module found for {}",
        recipe::INITRD_MODULES.join(", ")
    );
    fs::write(tree.join("m/order"), &order)?;
    fs::write(tree.join("init"), recipe::INITRD_INIT)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;

    let mut names = String::from("init\nbin\nbin/busybox\nproc\nsys\ndev\nr\nm\nm/order\n");
    for name in order.lines() {
        names.push_str("m/");
        names.push_str(name);
        names.push('\n');
    }
    let archive = Cmd::inheriting("cpio")
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .cwd(&tree)
        .stdin(names)
        .run()?;
    fs::write(images.initrd(), archive.stdout)?;
    remove_tree(&tree)
}

/// The files of [`recipe::INITRD_MODULES`] and their dependencies, in loading order.
fn modules_in_order(images: &Images) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for module in recipe::INITRD_MODULES {
        let out = Cmd::inheriting("/sbin/modprobe")
            .args([
                "--show-depends",
                "--set-version",
                &images.kernel_version,
                "--dirname",
            ])
            .arg(images.kernel_dir())
            .arg(module)
            .run()?;
        for file in insmod_lines(&out.stdout_text()) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

fn insmod_lines(text: &str) -> Vec<PathBuf> {
    // `builtin name` lines need no file; options may follow the path.
    text.lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_modprobe_would_load() {
        let text = "builtin virtio\ninsmod /k/a.ko \ninsmod /k/b.ko option=1\n";
        assert_eq!(
            insmod_lines(text),
            [PathBuf::from("/k/a.ko"), PathBuf::from("/k/b.ko")]
        );
    }
}
