//! The guest kernel: extracts the ELF from a distribution's bzImage, and checks whether Firecracker can boot
//! a file.
//!
//! Firecracker loads an uncompressed x86_64 ELF. A bzImage (`Documentation/arch/x86/boot.rst`) is a small
//! real-mode loader with that ELF, compressed, as its payload. Nothing here may trust a length in the file,
//! or decompress without a limit.

use std::io::Read;
use std::path::{Path, PathBuf};

/// Maximum size of a kernel extracted from a bzImage, in bytes; Debian's largest is about 80 MiB.
pub(crate) const KERNEL_LIMIT: usize = 512 * 1024 * 1024;

/// Magic number of the "legacy" LZ4 frame, the only one used by the kernel's build (`lz4 -l`).
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Maximum uncompressed size of one legacy LZ4 chunk: fixed by the format.
const LZ4_CHUNK: usize = 8 * 1024 * 1024;

/// Maximum zstd window, in bytes: that of `zstd -22 --ultra`, which the kernel's build uses.
const ZSTD_WINDOW: u64 = 128 * 1024 * 1024;

/// Number of bytes of an ELF file that [`check_elf`] needs: its header.
const ELF_HEADER: usize = 64;

/// The beginning of the banner in a kernel's read-only data.
const VERSION_MARK: &[u8] = b"Linux version ";

/// Why no kernel could be extracted from a file, or why a file is not a bootable kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel file could not be read.
    #[error("cannot read kernel {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Neither a bzImage nor an ELF file.
    #[error("not a kernel: neither a bzImage nor an ELF file, it is {looks_like}")]
    NotAKernel {
        /// The type according to its first bytes.
        looks_like: &'static str,
    },
    /// It is a bzImage, and an ELF is needed.
    #[error("a compressed bzImage, and Firecracker needs the ELF kernel (vmlinux) inside it")]
    Compressed,
    /// An ELF file for another purpose.
    #[error("not a kernel for this machine: {why}")]
    WrongElf {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A bzImage whose boot protocol has no payload offset.
    #[error("bzImage of boot protocol {}.{:02}, and the payload is known since 2.08 only", .version >> 8, .version & 0xff)]
    TooOld {
        /// The protocol version in its header.
        version: u16,
    },
    /// The file is truncated within its payload.
    #[error("truncated bzImage: its payload ends at byte {end}, the file at {length}")]
    Truncated {
        /// The expected end of the payload.
        end: u64,
        /// The length of the file.
        length: u64,
    },
    /// The compression of the payload is not supported.
    #[error(
        "unknown kernel compression (payload starts with {magic:02x?}; gzip, xz, zstd and lz4 are supported)"
    )]
    UnknownCompression {
        /// The first bytes of the payload.
        magic: [u8; 4],
    },
    /// The payload could not be decompressed.
    #[error("cannot decompress the {format} payload of the bzImage")]
    Decompress {
        /// The compression.
        format: &'static str,
        /// The decoder's error.
        #[source]
        source: std::io::Error,
    },
    /// The uncompressed payload exceeds the limit.
    #[error("the payload of the bzImage grows beyond {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

/// The uncompressed x86_64 ELF kernel inside `image`, a bzImage. An ELF is returned unchanged.
pub fn elf_from_bzimage(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    if image.starts_with(b"\x7fELF") {
        check_elf_header(image)?;
        return Ok(image.to_vec());
    }
    let payload = payload(image)?;
    let elf = decompress(payload)?;
    check_elf_header(&elf)?;
    Ok(elf)
}

/// Checks that the file at `path` is an x86_64 ELF kernel that Firecracker can boot; reads only its header.
pub fn check_elf(path: &Path) -> Result<(), KernelError> {
    let read = || {
        let mut start = Vec::new();
        // Enough to recognise a bzImage, whose magic number is after the first sector.
        crabbox_host::files::open_regular(path)?
            .take(1024)
            .read_to_end(&mut start)?;
        Ok(start)
    };
    let start = read().map_err(|source| KernelError::Read {
        path: path.to_owned(),
        source,
    })?;
    check_elf_header(&start)
}

/// Checks the first bytes of a kernel file, at least 64 of them (1024 to distinguish a bzImage from anything
/// else).
pub(crate) fn check_elf_header(start: &[u8]) -> Result<(), KernelError> {
    if !start.starts_with(b"\x7fELF") {
        if is_bzimage(start) {
            return Err(KernelError::Compressed);
        }
        return Err(KernelError::NotAKernel {
            looks_like: looks_like(start),
        });
    }
    let wrong = |why| Err(KernelError::WrongElf { why });
    if start.len() < ELF_HEADER {
        return wrong("the ELF header is cut off");
    }
    // e_ident: class 64 bit, data little-endian; e_type ET_EXEC or ET_DYN; e_machine EM_X86_64 (elf(5)).
    match (start[4], start[5], u16_at(start, 16), u16_at(start, 18)) {
        (1, ..) => wrong("it is a 32 bit ELF file"),
        (_, 2, ..) => wrong("it is a big-endian ELF file"),
        (_, _, Some(1), _) => wrong("it is an object file or a kernel module"),
        (_, _, Some(2 | 3), Some(62)) if has_interpreter(start) => {
            wrong("it is a dynamically linked program")
        }
        (2, 1, Some(2 | 3), Some(62)) => Ok(()),
        (_, _, _, Some(183)) => wrong("it is an ELF file for aarch64"),
        _ => wrong("it is an ELF file for another machine"),
    }
}

/// The release of a kernel (`6.1.0-56-cloud-amd64`), from an ELF or a bzImage; `None` if it has no banner.
pub fn version(kernel: &[u8]) -> Option<String> {
    let banner = if is_bzimage(kernel) {
        // "kernel_version": where the version string is, counted from byte 0x200.
        kernel.get(usize::from(u16_at(kernel, 0x20e)?) + 0x200..)?
    } else {
        let at = kernel
            .windows(VERSION_MARK.len())
            .position(|window| window == VERSION_MARK)?;
        kernel.get(at + VERSION_MARK.len()..)?
    };
    let word = banner.iter().take(128).take_while(|byte| byte.is_ascii_graphic());
    let version = String::from_utf8(word.copied().collect()).ok()?;
    version
        .starts_with(|first: char| first.is_ascii_digit())
        .then_some(version)
}

fn is_bzimage(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS") && u16_at(image, 0x1fe) == Some(0xaa55)
}

/// Checks that `start`, the beginning of an ELF file, belongs to a statically linked x86_64 program;
/// otherwise returns its type.
pub(crate) fn check_static_program(start: &[u8]) -> Result<(), KernelError> {
    match check_elf_header(start) {
        Err(KernelError::NotAKernel { .. } | KernelError::Compressed) => Err(KernelError::WrongElf {
            why: "it is no ELF file",
        }),
        checked => checked,
    }
}

/// Whether the program headers request a dynamic loader (`PT_INTERP`), which no kernel does.
fn has_interpreter(start: &[u8]) -> bool {
    let (Some(offset), Some(size), Some(count)) = (u64_at(start, 32), u16_at(start, 54), u16_at(start, 56))
    else {
        return false;
    };
    (0..u64::from(count)).any(|index| {
        let at = index
            .checked_mul(u64::from(size))
            .and_then(|skip| skip.checked_add(offset));
        at.and_then(|at| u32_at(start, usize::try_from(at).ok()?)) == Some(3)
    })
}

fn looks_like(start: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 8] = [
        (b"\x1f\x8b", "gzip data"),
        (b"\xfd7zXZ\x00", "xz data"),
        (b"\x28\xb5\x2f\xfd", "zstd data"),
        (&LZ4_LEGACY, "LZ4 data"),
        (b"#!", "a script"),
        (b"<", "HTML or XML"),
        (b"!<arch>", "a Debian package"),
        (b"070701", "a cpio archive"),
    ];
    match KNOWN.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, name)) => name,
        None if start.is_empty() => "empty",
        None => "something else",
    }
}

/// The compressed payload of a bzImage.
fn payload(image: &[u8]) -> Result<&[u8], KernelError> {
    if !is_bzimage(image) {
        return Err(KernelError::NotAKernel {
            looks_like: looks_like(image),
        });
    }
    let truncated = |end: u64| KernelError::Truncated {
        end,
        length: image.len() as u64,
    };
    let version = u16_at(image, 0x206).ok_or(truncated(0x208))?;
    if version < 0x0208 {
        return Err(KernelError::TooOld { version });
    }
    let (offset, length) = u32_at(image, 0x248)
        .zip(u32_at(image, 0x24c))
        .ok_or(truncated(0x250))?;
    // A zero in setup_sects means four, for historical reasons.
    let sectors = u64::from(if image[0x1f1] == 0 { 4 } else { image[0x1f1] });
    let start = (sectors + 1) * 512 + u64::from(offset);
    let end = start + u64::from(length);
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    range
        .and_then(|(start, end)| image.get(start..end))
        .ok_or(truncated(end))
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    let failed = |format| move |source| KernelError::Decompress { format, source };
    match payload {
        [0x1f, 0x8b, ..] => read_bounded(flate2::read::GzDecoder::new(payload), "gzip"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            read_bounded(lzma_rust2::XzReader::new(payload, false), "xz")
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, ZSTD_WINDOW)
                .map_err(std::io::Error::other)
                .map_err(failed("zstd"))?;
            read_bounded(decoder, "zstd")
        }
        [a, b, c, d, rest @ ..] if [*a, *b, *c, *d] == LZ4_LEGACY => lz4_legacy(rest),
        _ => {
            let mut magic = [0; 4];
            magic
                .iter_mut()
                .zip(payload)
                .for_each(|(slot, byte)| *slot = *byte);
            Err(KernelError::UnknownCompression { magic })
        }
    }
}

fn read_bounded(reader: impl Read, format: &'static str) -> Result<Vec<u8>, KernelError> {
    let mut elf = Vec::new();
    let bound = KERNEL_LIMIT as u64 + 1;
    reader
        .take(bound)
        .read_to_end(&mut elf)
        .map_err(|source| KernelError::Decompress { format, source })?;
    if elf.len() > KERNEL_LIMIT {
        return Err(KernelError::TooLarge { limit: KERNEL_LIMIT });
    }
    Ok(elf)
}

/// Decodes the chunks of a legacy LZ4 stream (each has its compressed length, then one block) after the magic
/// number. The kernel's build appends the uncompressed length of the whole, which ends the stream.
fn lz4_legacy(stream: &[u8]) -> Result<Vec<u8>, KernelError> {
    let broken = |why: &'static str| KernelError::Decompress {
        format: "lz4",
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, why),
    };
    let (mut chunks, size) = stream
        .split_last_chunk::<4>()
        .ok_or_else(|| broken("no room for the length"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size > KERNEL_LIMIT {
        return Err(KernelError::TooLarge { limit: KERNEL_LIMIT });
    }
    let mut elf = Vec::new();
    let mut block = vec![0; LZ4_CHUNK];
    while let Some((length, rest)) = chunks.split_first_chunk::<4>() {
        // Several streams may be joined; each begins with the magic number again.
        if *length == LZ4_LEGACY {
            chunks = rest;
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let (compressed, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| broken("a chunk is cut off"))?;
        let count = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(std::io::Error::other)
            .map_err(|source| KernelError::Decompress {
                format: "lz4",
                source,
            })?;
        elf.extend_from_slice(&block[..count]);
        if elf.len() > size {
            return Err(broken("more data than the length says"));
        }
        chunks = rest;
    }
    if elf.len() == size {
        Ok(elf)
    } else {
        Err(broken("less data than the length says"))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// An ELF header of a kernel, followed by compressible data.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 20 * 1024 * 1024];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16] = 2;
        elf[18] = 62;
        elf[4096..4096 + 34].copy_from_slice(b"Linux version 6.1.0-9-test (gcc) 1");
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 16];
        image[0x1f1] = 4;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x30b].copy_from_slice(b"6.1.0-9 (x)");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn lz4(elf: &[u8]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY.to_vec();
        for chunk in elf.chunks(LZ4_CHUNK) {
            let block = lz4_flex::block::compress(chunk);
            payload.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend_from_slice(&block);
        }
        payload.extend_from_slice(&u32::try_from(elf.len()).unwrap().to_le_bytes());
        payload
    }

    fn with_size(mut payload: Vec<u8>, elf: &[u8]) -> Vec<u8> {
        payload.extend_from_slice(&u32::try_from(elf.len()).unwrap().to_le_bytes());
        payload
    }

    #[test]
    fn every_compression_gives_back_the_elf() {
        let elf = elf();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf).unwrap();
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
        xz.write_all(&elf).unwrap();
        let zstd =
            ruzstd::encoding::compress_to_vec(elf.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        let payloads = [
            ("lz4", lz4(&elf)),
            ("gzip", gzip.finish().unwrap()),
            ("xz", with_size(xz.finish().unwrap(), &elf)),
            ("zstd", with_size(zstd, &elf)),
        ];
        for (name, payload) in payloads {
            assert!(elf_from_bzimage(&bzimage(&payload)).unwrap() == elf, "{name}");
        }
        assert!(
            elf_from_bzimage(&elf).unwrap() == elf,
            "an ELF is returned as it is"
        );
    }

    #[test]
    fn a_cut_file_is_told_apart_from_a_foreign_one() {
        let image = bzimage(&lz4(&elf()));
        let error = elf_from_bzimage(&image[..image.len() - 1]).unwrap_err();
        assert!(matches!(error, KernelError::Truncated { .. }), "{error}");
        let error = elf_from_bzimage(&image[..0x210]).unwrap_err();
        assert!(matches!(error, KernelError::Truncated { .. }), "{error}");
        let error = elf_from_bzimage(b"<html>no such file</html>").unwrap_err();
        assert_eq!(
            error.to_string(),
            "not a kernel: neither a bzImage nor an ELF file, it is HTML or XML"
        );
        let error = elf_from_bzimage(&bzimage(b"BZh9")).unwrap_err();
        assert!(
            matches!(
                error,
                KernelError::UnknownCompression {
                    magic: [b'B', b'Z', b'h', b'9']
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn an_old_protocol_is_named() {
        let mut image = bzimage(&lz4(&elf()));
        image[0x206] = 7;
        image[0x207] = 2;
        let message = elf_from_bzimage(&image).unwrap_err().to_string();
        assert!(message.starts_with("bzImage of boot protocol 2.07"), "{message}");
    }

    #[test]
    fn a_broken_lz4_stream_is_an_error_not_half_a_kernel() {
        let elf = elf();
        let mut short = lz4(&elf);
        let at = short.len() - 4;
        short[at..].copy_from_slice(&7_u32.to_le_bytes());
        assert!(matches!(
            elf_from_bzimage(&bzimage(&short)),
            Err(KernelError::Decompress { .. })
        ));
        let mut bomb = lz4(&elf);
        bomb[at..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            elf_from_bzimage(&bzimage(&bomb)),
            Err(KernelError::TooLarge { .. })
        ));
    }

    #[test]
    fn check_elf_says_what_a_file_is_instead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        let verdict = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            check_elf(&path).map_err(|error| error.to_string())
        };
        let elf = &elf()[..4096];
        assert_eq!(verdict(elf), Ok(()));
        let changed = |at: usize, value: u8| {
            let mut other = elf.to_vec();
            other[at] = value;
            other
        };
        assert!(verdict(&changed(18, 183)).unwrap_err().ends_with("aarch64"));
        assert!(verdict(&changed(16, 1)).unwrap_err().ends_with("kernel module"));
        assert!(verdict(&changed(4, 1)).unwrap_err().ends_with("32 bit ELF file"));
        assert!(verdict(&elf[..32]).unwrap_err().ends_with("cut off"));
        assert!(
            verdict(&bzimage(b""))
                .unwrap_err()
                .starts_with("a compressed bzImage")
        );
        assert!(verdict(b"").unwrap_err().ends_with("it is empty"));
        std::fs::remove_file(&path).unwrap();
        assert!(
            check_elf(&path)
                .unwrap_err()
                .to_string()
                .starts_with("cannot read kernel /")
        );
    }

    #[test]
    fn a_program_of_this_machine_is_not_a_kernel() {
        let message = check_elf(Path::new("/bin/sh")).unwrap_err().to_string();
        assert_eq!(
            message,
            "not a kernel for this machine: it is a dynamically linked program"
        );
    }

    #[test]
    fn the_version_is_found_in_both_forms() {
        assert_eq!(version(&elf()).as_deref(), Some("6.1.0-9-test"));
        assert_eq!(version(&bzimage(b"")).as_deref(), Some("6.1.0-9"));
        assert_eq!(version(b"nothing"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_headers_and_payloads_never_panic(
            header in proptest::collection::vec(any::<u8>(), 0x60),
            payload in proptest::collection::vec(any::<u8>(), 0..400),
            magic in prop_oneof![Just(LZ4_LEGACY.to_vec()), Just(b"\xfd7zXZ\0".to_vec()), Just(b"\x28\xb5\x2f\xfd".to_vec()), Just(b"\x1f\x8b\x08\0".to_vec())],
        ) {
            elf_from_bzimage(&bzimage(&[magic, payload.clone()].concat())).ok();
            let mut image = bzimage(&payload);
            image[0x206..0x206 + 0x60].copy_from_slice(&header);
            elf_from_bzimage(&image).ok();
            version(&image);
        }
    }
}
