//! Kernel modules of the initramfs, loaded in the order determined by the host (`/modules/order`).
//!
//! No dependency is resolved here, and nothing outside `/modules` is ever loaded.

use std::ffi::CStr;
use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use crate::failure::Failure;

/// More modules than any of crabbox's initrds has; crabbox writes this file, so more means that it is
/// damaged.
const MODULE_LIMIT: usize = 64;

const NO_PARAMETERS: &CStr = c"";

/// Loads every module that `dir/order` names. A module that is already loaded or built in is fine.
pub(crate) fn load(dir: &Path) -> Result<(), Failure> {
    let order = dir.join("order");
    let text = std::fs::read_to_string(&order).map_err(Failure::path("read", &order))?;
    let names = parse_order(&text).map_err(|why| Failure::Content { path: order, why })?;
    for name in names {
        let path = dir.join(name);
        let file = File::open(&path).map_err(Failure::path("open", &path))?;
        match rustix::system::finit_module(&file, NO_PARAMETERS, 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Failure::path("load the module", &path)(error)),
        }
    }
    Ok(())
}

fn parse_order(text: &str) -> Result<Vec<&str>, &'static str> {
    let names: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if names
        .iter()
        .any(|name| !name.bytes().all(legal) || name.strip_suffix(".ko").is_none_or(str::is_empty))
    {
        return Err("a line is not the name of a .ko file");
    }
    if names.len() > MODULE_LIMIT {
        return Err("it lists more than 64 modules");
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_in_order() {
        assert_eq!(
            parse_order("virtio.ko\n\n virtio_blk.ko \n"),
            Ok(vec!["virtio.ko", "virtio_blk.ko"])
        );
        assert_eq!(parse_order(""), Ok(vec![]));
    }

    #[test]
    fn only_file_names_of_modules_are_taken() {
        for bad in ["../x.ko", "/etc/x.ko", "order", "a b.ko", "virtio"] {
            assert!(parse_order(bad).is_err(), "{bad}");
        }
        let many = "a.ko\n".repeat(MODULE_LIMIT + 1);
        assert_eq!(parse_order(&many), Err("it lists more than 64 modules"));
    }
}
