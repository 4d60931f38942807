//! Numbers of bytes as people read them, spelled as the Go program prints them.

/// A number of bytes in binary units with one digit: `1.2 GiB`; below 1024 as it is.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let unit = (bytes.ilog2() / 10) as usize;
    // Tenths as whole numbers, rounded to nearest: no unit needs more digits than a `u128` has.
    let (tenths, size) = (u128::from(bytes) * 10, 1_u128 << (10 * unit));
    let tenths = (tenths + size / 2) / size;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_the_go_program_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1024.0 KiB"),
            (14_890_000, "14.2 MiB"),
            (430 << 20, "430.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
