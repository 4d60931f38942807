//! Links of Markdown documents: where they are, and what they refer to in the repository.
//!
//! It only reads text. It must never take a link to another site for a local one.

/// `text` with each link to a local file or section replaced by the result of `change`; `None` leaves it as
/// it is.
pub(crate) fn replaced(text: &str, mut change: impl FnMut(&str) -> Option<String>) -> String {
    let mut parts = text.split("](");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("](");
        match part.split_once(')') {
            Some((link, rest)) if is_ours(link) => {
                out.push_str(change(link).as_deref().unwrap_or(link));
                out.push(')');
                out.push_str(rest);
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// The links of `text` to a local file or section.
pub(crate) fn all(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| is_ours(link))
}

fn is_ours(link: &str) -> bool {
    !link.contains("://") && !link.contains(char::is_whitespace)
}

/// The path from the root that `link` means in the file `from` (also a path from the root), without its
/// section. `None` if it leads outside.
pub(crate) fn from_root(from: &str, link: &str) -> Option<String> {
    let file = link.split('#').next().unwrap_or_default();
    if file.is_empty() {
        return Some(from.to_owned());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    (!file.starts_with('/')).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_from_its_file() {
        let lead = |link| from_root("docs/a/b.md", link);
        assert_eq!(lead("c.md#x").as_deref(), Some("docs/a/c.md"));
        assert_eq!(lead("../../d.md").as_deref(), Some("d.md"));
        assert_eq!(lead("./../e").as_deref(), Some("docs/e"));
        assert_eq!(lead("#x").as_deref(), Some("docs/a/b.md"));
        assert_eq!(lead("../../../f"), None);
        assert_eq!(lead("/etc"), None);
    }

    #[test]
    fn links_of_ours_are_found_and_replaced_and_no_others() {
        let text = "[a](b.md) [c](scheme://d) ![e](f g) [h](i#j) [k](";
        assert_eq!(all(text).collect::<Vec<_>>(), ["b.md", "i#j", ""]);
        assert_eq!(
            replaced(text, |link| (link != "b.md").then(|| "X".to_owned())),
            "[a](b.md) [c](scheme://d) ![e](f g) [h](X) [k]("
        );
    }
}
