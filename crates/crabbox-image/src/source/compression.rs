//! Decompression of archives and layers. The format is detected from the first bytes, and must never be taken
//! from a name or media type.

use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Magic numbers of skippable zstd frames, with a last digit of 0 to F (RFC 8878, 3.1.2).
const ZSTD_SKIPPED: &[u8] = b"\x2a\x4d\x18";

/// Whether data with this beginning is compressed.
pub(super) fn is_compressed(head: &[u8]) -> bool {
    [GZIP, XZ, ZSTD].iter().any(|mark| head.starts_with(mark)) || is_skipped(head)
}

fn is_skipped(head: &[u8]) -> bool {
    head.first().is_some_and(|byte| byte >> 4 == 5) && head.get(1..4) == Some(ZSTD_SKIPPED)
}

/// A reader of `packed` that decompresses.
pub(super) fn reader<'a>(packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut packed = BufReader::with_capacity(256 * 1024, packed);
    let head = packed.fill_buf()?;
    Ok(if head.starts_with(GZIP) {
        Box::new(flate2::bufread::MultiGzDecoder::new(packed))
    } else if head.starts_with(XZ) {
        Box::new(lzma_rust2::XzReader::new(packed, true))
    } else if head.starts_with(ZSTD) || is_skipped(head) {
        Box::new(Zstd {
            packed,
            decoder: FrameDecoder::new(),
        })
    } else {
        Box::new(packed)
    })
}

/// Reads concatenated zstd frames; skippable frames are skipped.
struct Zstd<R> {
    packed: R,
    decoder: FrameDecoder,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.packed, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.check_frame()?;
            if self.packed.fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.begin_frame()?;
        }
    }
}

impl<R: BufRead> Zstd<R> {
    /// Compares the checksum of the frame whose content has been read, if it has one: the decoder only
    /// computes it.
    fn check_frame(&self) -> io::Result<()> {
        match self.decoder.get_checksum_from_data() {
            Some(stored) if self.decoder.get_calculated_checksum() != Some(stored) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the checksum of its zstd data is wrong",
            )),
            _ => Ok(()),
        }
    }

    /// Reads the header of the next frame, which must exist.
    fn begin_frame(&mut self) -> io::Result<()> {
        match self.decoder.init(&mut self.packed) {
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length, ..
            })) => {
                let length = u64::from(length);
                let skipped = io::copy(&mut self.packed.by_ref().take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(())
            }
            other => other.map_err(io::Error::other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;
    use proptest::prelude::*;

    /// The output of the standard compressor `program` for `bytes`.
    fn packed(program: &str, bytes: &[u8]) -> Vec<u8> {
        let done = Cmd::new(program).arg("-c").stdin(bytes.to_vec()).run().unwrap();
        done.stdout
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        reader(bytes)?.read_to_end(&mut all).map(|_| all)
    }

    /// Data of which some compresses well and some does not, longer than a zstd block.
    fn sample() -> Vec<u8> {
        (0..300_000_u32)
            .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> (n % 29)).to_le_bytes())
            .collect()
    }

    #[test]
    fn every_kind_is_told_by_its_head_and_parts_behind_each_other_are_one() {
        for program in ["gzip", "xz", "zstd"] {
            let one = packed(program, &sample());
            assert!(is_compressed(&one), "{program}");
            assert!(unpacked(&one).unwrap() == sample(), "{program}");
            let two = [one.clone(), one].concat();
            assert!(
                unpacked(&two).unwrap() == [sample(), sample()].concat(),
                "{program}"
            );
        }
        assert!(!is_compressed(&sample()) && unpacked(&sample()).unwrap() == sample());
    }

    #[test]
    fn a_frame_without_data_is_skipped_wherever_it_is() {
        let frame = [b"\x53\x2a\x4d\x18\x03\0\0\0xyz".to_vec()].concat();
        let data = packed("zstd", b"text");
        let mixed = [frame.clone(), data.clone(), frame.clone(), data, frame].concat();
        assert!(is_compressed(&mixed));
        assert_eq!(unpacked(&mixed).unwrap(), b"texttext");
    }

    #[test]
    fn what_is_cut_short_is_an_error_and_not_an_end() {
        for program in ["gzip", "xz", "zstd"] {
            let whole = packed(program, &sample());
            for cut in [3, whole.len() / 2, whole.len() - 1] {
                // Three bytes of zstd or xz are not a complete magic number, so they pass as uncompressed.
                let read = unpacked(&whole[..cut]);
                assert!(read.is_err() || read.unwrap() == whole[..cut], "{program} {cut}");
            }
        }
    }

    #[test]
    fn what_is_damaged_is_an_error_although_it_can_be_decoded() {
        for (program, checksum) in [("gzip", 8), ("xz", 8), ("zstd", 4)] {
            let good = packed(program, b"text that is stored as it is");
            let flipped = |at: usize| {
                let mut bad = good.clone();
                bad[at] ^= 1;
                bad
            };
            let mut all = vec![flipped(good.len() - checksum)];
            // zstd stores text as short as this one as it is.
            let plain = good.windows(4).position(|part| part == b"that");
            assert!(plain.is_some() || program != "zstd");
            all.extend(plain.map(flipped));
            for bad in all {
                assert!(unpacked(&bad).is_err(), "{program}");
                let behind = [good.clone(), bad.clone()].concat();
                assert!(unpacked(&behind).is_err(), "{program}");
                let before = [bad, good.clone()].concat();
                assert!(unpacked(&before).is_err(), "{program}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_can_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..4_usize) {
            let head: &[u8] = [GZIP, XZ, ZSTD, b"\x50\x2a\x4d\x18"][kind];
            unpacked(&[head, &bytes].concat()).ok();
        }
    }
}
