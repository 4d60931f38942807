//! Standard base64, in which Go's JSON stores bytes, and therefore libcni's cache file. It must never accept
//! text that is incomplete.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// `bytes` in base64 with padding (RFC 4648, section 4).
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0u32, |group, byte| group << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let index = (group >> (18 - 6 * position)) & 63;
            // A chunk of n bytes makes n + 1 letters; the rest is padding.
            let letter = if position <= chunk.len() {
                ALPHABET[index as usize]
            } else {
                b'='
            };
            text.push(char::from(letter));
        }
    }
    text
}

/// The bytes of a padded text; `None` if it is invalid.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let letters = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - letters.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in letters.as_bytes().chunks(4) {
        let mut group = 0u32;
        for letter in chunk {
            let value = ALPHABET.iter().position(|known| known == letter)?;
            group = group << 6 | u32::try_from(value).ok()?;
        }
        // n letters carry n - 1 bytes; the remaining bits are zero.
        let [_, all @ ..] = (group << (6 * (4 - chunk.len()))).to_be_bytes();
        bytes.extend(&all[..chunk.len().checked_sub(1)?]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_vectors_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(super::encode(plain.as_bytes()), coded);
            assert_eq!(super::decode(coded).as_deref(), Some(plain.as_bytes()));
        }
        for bad in ["Z", "Zg", "Zg=", "Z===", "Zm9*", "Zg==Zg=="] {
            assert_eq!(super::decode(bad), None, "{bad}");
        }
        assert_eq!(super::encode(&[0xfb, 0xff]), "+/8=");
    }
}
