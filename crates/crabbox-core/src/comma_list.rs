//! Comma-separated values in one text: the value of a flag or variable.
//!
//! Blanks around an item are never part of it, and empty items are dropped: `A, B,` is `A` and `B`.

/// The items of `text`, in their order.
pub fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_empty_items_are_left_out() {
        let read = |text| items(text).collect::<Vec<_>>();
        assert_eq!(read(" A1, B1 ,,C d,"), ["A1", "B1", "C d"]);
        for nothing in ["", " ", ",", " , "] {
            assert!(read(nothing).is_empty(), "{nothing:?}");
        }
    }
}
