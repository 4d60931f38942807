//! CRC-32C (Castagnoli) as ext4 uses it: no inversion of the initial or the final register.

/// The polynomial 0x1EDC6F41, bits reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0_u32;
    while byte < 256 {
        let mut value = byte;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ POLYNOMIAL
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[byte as usize] = value;
        byte += 1;
    }
    table
}

/// Updates `register` with `bytes`.
pub(crate) fn update(register: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(register, |register, byte| {
        let low = register.to_le_bytes()[0];
        (register >> 8) ^ TABLE[usize::from(low ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_known_check_value_comes_out() {
        // RFC 3720 B.4 gives the CRC of 32 zero bytes; the usual check value is that of "123456789".
        assert_eq!(!super::update(!0, b"123456789"), 0xE306_9283);
        assert_eq!(!super::update(!0, &[0; 32]), 0x8A91_36AA);
    }
}
