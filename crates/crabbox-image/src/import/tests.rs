//! File systems made by mke2fs from small trees, and kernels that are or are not.

use crabbox_host::command::Cmd;

use super::*;

/// An ELF head for the processor `machine`, as long as a kernel's check looks.
fn elf(machine: u16) -> Vec<u8> {
    let mut head = vec![0; 4096];
    head[..6].copy_from_slice(b"\x7fELF\x02\x01");
    head[16] = 2;
    head[18..20].copy_from_slice(&machine.to_le_bytes());
    head[24] = 1;
    head
}

/// The release that [`kernel_with_release`] says it is.
const RELEASE: &str = "6.1.0-test";

fn kernel_with_release() -> Vec<u8> {
    [elf(62), format!("Linux version {RELEASE} (x@y)\0").into_bytes()].concat()
}

/// Modules of that kernel in the tree of [`rootfs`], to be made before it; those of `built_in` are in the kernel.
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
    for (name, places) in NEEDED.iter().filter(|(name, _)| *name != leave_out) {
        let file = tree.join(places[0].trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let content = if *name == "sshd" {
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

/// The same, with a first process for guests at hand.
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
    for (needed, _) in NEEDED {
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
    // Without a first process it cannot be made, and the lease would wait for its disk.
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
