//! `cache.volumes`: drives that outlive their leases, which no provider here supports.
//!
//! They are read only for the warning: a lease must not be made if one of them is required.

use super::fields::{Wrong, mapping, scalar, truth, wrong};
use super::yaml::{Content, Node};

/// The path of the list.
pub(super) const PATH: &str = "cache.volumes";

/// The name of the first volume that is required.
pub(super) fn required(section: &Node) -> Result<Option<String>, Wrong> {
    let volumes = match &section.content {
        Content::Null => &[][..],
        Content::List(volumes) => volumes,
        _ => return Err(wrong(section, PATH, "a list of volumes")),
    };
    let mut first = None;
    for volume in volumes {
        let fields = mapping(volume, PATH)?;
        let field = |name| {
            fields
                .iter()
                .find(|(field, _)| *field == name)
                .map(|(_, node)| *node)
        };
        let is_required =
            field("required").map_or(Ok(false), |node| truth(node, "cache.volumes.required"))?;
        if is_required && first.is_none() {
            let name = field("name").or(field("key"));
            first = Some(name.map_or(Ok(String::new()), |node| {
                scalar(node, "cache.volumes.name", "a name")
            })?);
        }
    }
    Ok(first)
}
