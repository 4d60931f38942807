//! File systems made by mke2fs from small trees, and valid and invalid kernels.

use crabbox_host::command::Cmd;

use super::*;

/// An ELF header for the processor `machine`, padded to the length that a kernel's check reads.
fn elf(machine: u16) -> Vec<u8> {
    let mut head = vec![0; 4096];
    head[..6].copy_from_slice(b"\x7fELF\x02\x01");
    head[16] = 2;
    head[18..20].copy_from_slice(&machine.to_le_bytes());
    head[24] = 1;
    head
}

/// The release that [`kernel_with_release`] reports.
const RELEASE: &str = "6.1.0-test";

fn kernel_with_release() -> Vec<u8> {
    [elf(62), format!("Linux version {RELEASE} (x@y)\0").into_bytes()].concat()
}

/// Modules of that kernel in the tree of [`rootfs`], which must be made afterwards; those in `built_in` are
/// part of the kernel.
fn modules(dir: &Path, built_in: &[&str]) {
    let root = dir.join("tree/usr/lib/modules").join(RELEASE);
    std::fs::create_dir_all(root.join("kernel")).unwrap();
    let list: String = built_in
        .iter()
        .map(|name| format!("kernel/{name}.ko\n"))
        .collect::<Vec<_>>()
        .concat();
    std::fs::write(root.join("modules.builtin"), list).unwrap();
    for (name, depends) in [("virtio_mmio", ""), ("virtio_blk", "virtio_mmio"), ("ext4", "")] {
        let module = crate::modinfo::sample(depends);
        std::fs::write(root.join("kernel").join(format!("{name}.ko")), module).unwrap();
    }
    std::os::unix::fs::symlink("usr/lib", dir.join("tree/lib")).unwrap();
}

fn rootfs(dir: &Path, leave_out: &str, machine: u16) -> PathBuf {
    let (tree, image) = (dir.join("tree"), dir.join("rootfs.ext4"));
    for program in programs::of(Check::Import).filter(|program| program.name != leave_out) {
        let file = tree.join(program.places[0].trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let content = if program.name == "sshd" {
            elf(machine)
        } else {
            b"#!/bin/sh\n".to_vec()
        };
        std::fs::write(file, content).unwrap();
    }
    std::fs::File::create_new(&image)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    Cmd::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([&tree, &image])
        .run()
        .unwrap();
    image
}

fn import(rootfs: PathBuf, kernel: &[u8]) -> (tempfile::TempDir, Result<Image, ImportError>) {
    import_with(rootfs, kernel, false)
}

/// The same, with a guest binary available.
fn import_with(
    rootfs: PathBuf,
    kernel: &[u8],
    guest: bool,
) -> (tempfile::TempDir, Result<Image, ImportError>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("guest"), elf(62)).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    std::fs::write(dir.path().join("vmlinux"), kernel).unwrap();
    let recipe = ImportRecipe {
        name: "mine".to_owned(),
        kernel: dir.path().join("vmlinux"),
        rootfs,
        guest_binary: guest.then(|| dir.path().join("guest")),
    };
    let result = import_ready(&recipe, &store, &|_: &str| {});
    if result.is_err() {
        assert!(
            store.list().unwrap().images.is_empty(),
            "nothing half-imported may be there"
        );
    }
    (dir, result)
}

#[test]
fn a_good_pair_becomes_an_image_with_its_own_init() {
    let dir = tempfile::tempdir().unwrap();
    let source = rootfs(dir.path(), "", 62);
    let (_store, image) = import(source.clone(), &elf(62));
    let image = image.unwrap();
    assert_eq!(
        (image.manifest.init, image.names.as_slice()),
        (Init::CloudInit, &["mine".to_owned()][..])
    );
    assert_eq!(
        digest::sha256_file(&image.base()).unwrap(),
        digest::sha256_file(&source).unwrap()
    );
    assert!(!image.initrd().exists());
}

#[test]
fn what_a_lease_needs_and_the_image_lacks_is_named() {
    for needed in programs::of(Check::Import).map(|program| program.name) {
        let dir = tempfile::tempdir().unwrap();
        let (_store, result) = import(rootfs(dir.path(), needed, 62), &elf(62));
        let error = result.unwrap_err();
        assert!(
            error.to_string().contains(&format!("has no {needed}:")),
            "{error}"
        );
    }
}

#[test]
fn another_processor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, result) = import(rootfs(dir.path(), "", 183), &elf(62));
    assert!(
        result
            .unwrap_err()
            .to_string()
            .contains("is for aarch64, and this host is x86_64")
    );
}

#[test]
fn no_ext4_and_no_kernel_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "no file system").unwrap();
    let (_store, result) = import(text, &elf(62));
    assert!(matches!(result, Err(ImportError::Inspect(_))));
    let (_store, result) = import(rootfs(dir.path(), "", 62), b"no kernel");
    assert!(matches!(result, Err(ImportError::Kernel { .. })));
}

#[test]
fn a_kernel_with_its_disk_drivers_as_modules_gets_an_initrd_that_loads_them() {
    let dir = tempfile::tempdir().unwrap();
    modules(dir.path(), &["ext4"]);
    let source = rootfs(dir.path(), "", 62);
    let (_store, image) = import_with(source.clone(), &kernel_with_release(), true);
    let image = image.unwrap();
    assert_eq!(image.manifest.kernel_release, RELEASE);
    assert!(image.manifest.files.contains_key(manifest::INITRD));
    let entries = crate::cpio::reader::read(&std::fs::read(image.initrd()).unwrap());
    let (_, _, order) = entries.iter().find(|(name, ..)| name == "modules/order").unwrap();
    assert_eq!(order.as_slice(), b"virtio_mmio.ko\nvirtio_blk.ko\n");
    // Without a guest binary no initrd can be made, and the lease would wait for its disk forever.
    let (_store, result) = import(source, &kernel_with_release());
    let error = result.unwrap_err();
    assert!(matches!(error, ImportError::NoGuestBinary { .. }), "{error:?}");
}

#[test]
fn a_kernel_that_has_its_disk_drivers_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    modules(dir.path(), &initrd::ROOT_MODULES);
    let (_store, image) = import_with(rootfs(dir.path(), "", 62), &kernel_with_release(), true);
    assert!(!image.unwrap().initrd().exists());
}

/// A path in [`rootfs`] for modules of a kernel without built-in drivers, and the files needed to use them.
fn hostile(dir: &Path) -> PathBuf {
    modules(dir, &[]);
    dir.join("tree/usr/lib/modules").join(RELEASE)
}

/// The file system of the tree in `dir`, without the checksums that would reveal [`renamed`].
fn plain_rootfs(dir: &Path) -> PathBuf {
    // Replaces an earlier one.
    std::fs::remove_file(dir.join("rootfs.ext4")).ok();
    let image = rootfs(dir, "", 62);
    Cmd::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^metadata_csum,^dir_index", "-d"])
        .args([&dir.join("tree"), &image])
        .run()
        .unwrap();
    image
}

/// Renames the entry `from` to `to`, of the same length, which no file system would permit.
fn renamed(image: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(image).unwrap();
    let found = |bytes: &[u8]| bytes.windows(from.len()).position(|part| part == from.as_bytes());
    let at = found(&bytes).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    assert_eq!(found(&bytes), None, "one entry has that name");
    std::fs::write(image, bytes).unwrap();
}

fn refusal(image: PathBuf) -> String {
    let (_store, result) = import_with(image, &kernel_with_release(), true);
    crabbox_core::fault::chain(&result.unwrap_err())
}

#[test]
fn a_name_that_leads_out_of_the_image_writes_nothing_on_this_host() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    let name = format!(
        "{}{}",
        "../".repeat(14),
        victim.strip_prefix("/").unwrap().display()
    );
    let placeholder = "p".repeat(name.len());
    // Once next to the list, once below the directory of the modules.
    for place in ["", "kernel"] {
        let modules = hostile(dir.path()).join(place);
        std::fs::write(modules.join(&placeholder), "of the image").unwrap();
        let image = plain_rootfs(dir.path());
        renamed(&image, &placeholder, &name);
        let said = refusal(image);
        assert!(said.contains("has a name that no file can have"), "{said}");
        assert!(!victim.exists(), "the host was written to");
        std::fs::remove_dir_all(dir.path().join("tree")).unwrap();
    }
}

#[test]
fn a_line_break_in_a_name_does_not_make_an_entry() {
    let dir = tempfile::tempdir().unwrap();
    let modules = hostile(dir.path());
    std::fs::write(modules.join("kernel/a\nb"), "").unwrap();
    let said = refusal(plain_rootfs(dir.path()));
    assert!(said.contains("has a name that no file can have"), "{said}");
}

#[test]
fn a_link_and_a_file_under_one_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let modules = hostile(dir.path());
    std::os::unix::fs::symlink("/etc/passwd", modules.join("modules.builtiX")).unwrap();
    let image = plain_rootfs(dir.path());
    renamed(&image, "modules.builtiX", "modules.builtin");
    let said = refusal(image);
    assert!(said.contains("has \"modules.builtin\" twice"), "{said}");
}

#[test]
fn something_else_in_place_of_a_list_or_a_module_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let modules = hostile(dir.path());
    let list = modules.join("modules.builtin");
    let zero = |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    let pipe = |path: &Path| drop(Cmd::new("mkfifo").arg(path).run().unwrap());
    let device = |path: &Path| drop(Cmd::new("mknod").arg(path).args(["c", "1", "5"]).run().unwrap());
    for make in [&zero as &dyn Fn(&Path), &pipe, &device] {
        std::fs::remove_file(&list).unwrap();
        make(&list);
        let said = refusal(plain_rootfs(dir.path()));
        assert!(
            said.contains("modules.builtin, which is no regular file"),
            "{said}"
        );
    }
    std::fs::remove_file(&list).unwrap();
    std::fs::write(&list, "").unwrap();
    let module = modules.join("kernel/ext4.ko");
    std::fs::remove_file(&module).unwrap();
    zero(&module);
    let said = refusal(plain_rootfs(dir.path()));
    assert!(said.contains("there is no regular file of that name"), "{said}");
}

#[test]
fn a_file_of_a_terabyte_without_content_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let modules = hostile(dir.path());
    for name in ["modules.builtin", "kernel/ext4.ko"] {
        let kept = std::fs::read(modules.join(name)).unwrap();
        let long = std::fs::File::create(modules.join(name)).unwrap();
        long.set_len(1 << 40).unwrap();
        let said = refusal(plain_rootfs(dir.path()));
        assert!(said.contains("has 1099511627776 bytes, and at most"), "{said}");
        std::fs::write(modules.join(name), kept).unwrap();
    }
}

#[test]
fn a_directory_in_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    hostile(dir.path());
    let image = plain_rootfs(dir.path());
    let place = format!("/usr/lib/modules/{RELEASE}/kernel");
    Cmd::new("debugfs")
        .args(["-w", "-R", &format!("ln {place} {place}/again")])
        .arg(&image)
        .run()
        .unwrap();
    let said = refusal(image);
    assert!(said.contains("is the same as one above"), "{said}");
}

#[test]
fn a_pipe_or_a_device_for_an_image_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    Cmd::new("mkfifo").arg(&pipe).run().unwrap();
    for other in [pipe, PathBuf::from("/dev/zero")] {
        let (_store, result) = import(other.clone(), &elf(62));
        let said = crabbox_core::fault::chain(&result.unwrap_err());
        assert!(said.contains("it is not a regular file"), "{said}");
        let recipe = ImportRecipe {
            name: "mine".to_owned(),
            kernel: other,
            rootfs: rootfs(dir.path(), "", 62),
            guest_binary: None,
        };
        let store = Store::open(&dir.path().join("store")).unwrap();
        let said = crabbox_core::fault::chain(&import_ready(&recipe, &store, &|_: &str| {}).unwrap_err());
        assert!(said.contains("it is not a regular file"), "{said}");
        std::fs::remove_file(&recipe.rootfs).unwrap();
    }
}
