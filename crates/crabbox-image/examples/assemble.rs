//! Makes the files for a manual boot with QEMU or Firecracker, with the crate's own code: `vmlinux`,
//! `initrd.img` (seed behind it) and `cmdline` in OUT.
//!
//! ```text
//! assemble VMLINUZ MODULES_ROOT GUEST_BINARY SEED_DIR OUT     SEED_DIR: id.pub, host_key, host_key.pub
//! ```
//! A boot without the lab (the microvm machine has virtio-mmio, found through ACPI as in Firecracker):
//! ```text
//! qemu-system-x86_64 -M microvm,acpi=on,pit=on,pic=on,rtc=off -accel tcg -cpu max -m 512 -smp 2 -no-reboot -nodefaults -display none \
//!   -serial stdio -kernel OUT/vmlinux -initrd OUT/initrd.img -append "$(cat OUT/cmdline)" \
//!   -drive id=a,file=base.ext4,format=raw,if=none,readonly=on -device virtio-blk-device,drive=a \
//!   -drive id=b,file=layer.ext4,format=raw,if=none -device virtio-blk-device,drive=b \
//!   -netdev user,id=n,restrict=on,net=172.16.0.0/24,host=172.16.0.1,hostfwd=tcp:127.0.0.1:2290-172.16.0.2:22 \
//!   -device virtio-net-device,netdev=n,mac=06:00:ac:10:00:02
//! ssh -i id -p 2290 crabbox@127.0.0.1 sudo poweroff
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "files that whoever calls this by hand made"
)]

use std::error::Error;
use std::path::{Path, PathBuf};

use crabbox_host::tree::Tree;
use crabbox_image::initrd::{self, InitrdRecipe};
use crabbox_image::seed::{ENTROPY_BYTES, LeaseSeed, SeedNetwork};
use crabbox_image::{guest, kernel};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [bzimage, modules_root, guest_binary, seed_dir, out] = arguments.as_slice() else {
        return Err("usage: assemble VMLINUZ MODULES_ROOT GUEST_BINARY SEED_DIR OUT".into());
    };
    let elf = kernel::elf_from_bzimage(&std::fs::read(bzimage)?)?;
    let kernel_version = kernel::version(&elf).ok_or("the kernel does not say its version")?;
    let recipe = InitrdRecipe {
        guest_binary,
        modules: &Tree::open(modules_root)?,
        kernel_version: &kernel_version,
        wanted: &initrd::MODULES,
    };
    let mut archive = initrd::build(&recipe)?;
    archive.extend(lease_seed(seed_dir)?.to_cpio());
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("vmlinux"), elf)?;
    std::fs::write(out.join("initrd.img"), archive)?;
    std::fs::write(out.join("cmdline"), guest::kernel_args())?;
    Ok(())
}

fn lease_seed(dir: &Path) -> Result<LeaseSeed, Box<dyn Error>> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name));
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(LeaseSeed {
        hostname: "crabbox-by-hand".to_owned(),
        instance_id: "cbx_000000000001".to_owned(),
        user: read("user").map_or_else(|_| "crabbox".to_owned(), |user| user.trim().to_owned()),
        authorized_keys: read("id.pub")?,
        host_key_private: read("host_key")?,
        host_key_public: read("host_key.pub")?,
        network: Some(SeedNetwork {
            mac: "06:00:ac:10:00:02".to_owned(),
            address: "172.16.0.2/30".parse()?,
            gateway: [172, 16, 0, 1].into(),
            dns: vec![[172, 16, 0, 1].into()],
        }),
        work_root: "/work/crabbox".to_owned(),
        unix_time: i64::try_from(since.as_secs())?,
        // Neither secret nor random: this is only for a boot by hand.
        entropy: [7; ENTROPY_BYTES],
        volumes: Vec::new(),
    })
}
