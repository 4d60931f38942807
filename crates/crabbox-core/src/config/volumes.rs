//! Reads `cache.volumes` of a file, and applies variables and flags to the list.
//!
//! Whether a layer may set volumes at all must be decided before this is called.

use super::fields::{Wrong, mapping, scalar, truth, wrong};
use super::value::whole;
use super::yaml::{Content, Node};
use crate::comma_list;
use crate::volume::{self, Invalid, Volume};

/// The path of the list.
pub(super) const PATH: &str = "cache.volumes";

/// The volumes section of a file.
#[derive(Debug)]
pub(super) struct Section {
    /// The volumes.
    pub(super) volumes: Vec<Volume>,
    /// Unknown fields with their paths.
    pub(super) unknown: Vec<(String, Node)>,
}

/// The volumes of a file, each a mapping or in the short form of a variable. An empty list clears that of an
/// earlier file.
pub(super) fn read(section: &Node) -> Result<Section, Wrong> {
    let items = match &section.content {
        Content::Null => &[][..],
        Content::List(items) => items,
        Content::Scalar { .. } => std::slice::from_ref(section),
        Content::Tag(_) | Content::Map(_) => return Err(wrong(section, PATH, "a list of volumes")),
    };
    let mut unknown = Vec::new();
    let volumes = items
        .iter()
        .map(|item| one(item, &mut unknown))
        .collect::<Result<Vec<_>, _>>()?;
    volume::check_set(&volumes).map_err(|(at, why)| {
        let node = items.get(at).unwrap_or(section);
        wrong(node, PATH, why.expectation())
    })?;
    Ok(Section { volumes, unknown })
}

fn one(item: &Node, unknown: &mut Vec<(String, Node)>) -> Result<Volume, Wrong> {
    if let Content::Scalar { text, .. } = &item.content {
        return Volume::from_spec(text, false).map_err(|why| wrong(item, PATH, why.expectation()));
    }
    let fields = mapping(item, PATH)?;
    let field = |name: &str| {
        fields
            .iter()
            .find(|(field, _)| *field == name)
            .map(|(_, node)| *node)
    };
    let text = |name: &str| {
        field(name)
            .map(|node| scalar(node, &format!("{PATH}.{name}"), "a text"))
            .transpose()
    };
    let missing = |expected| wrong(item, PATH, expected);
    let (name, key) = (text("name")?.filter(|name| !name.is_empty()), text("key")?);
    let key = key.ok_or_else(|| missing("volumes that each have a key"))?;
    let path = text("path")?.ok_or_else(|| missing("volumes that each have a path"))?;
    let size = field("sizeGB").map(number).transpose()?;
    let required = field("required").map_or(Ok(false), |node| truth(node, "cache.volumes.required"))?;
    for (name, node) in &fields {
        if !["name", "key", "path", "sizeGB", "required"].contains(name) {
            unknown.push((format!("{PATH}.{name}"), (*node).clone()));
        }
    }
    Volume::new(name.as_deref(), &key, &path, size, required).map_err(|why| {
        let blamed = match why {
            Invalid::Path | Invalid::System => "path",
            Invalid::Size => "sizeGB",
            _ if Volume::new(None, &key, &path, size, required).is_ok() => "name",
            _ => "key",
        };
        wrong(
            field(blamed).unwrap_or(item),
            &format!("{PATH}.{blamed}"),
            why.expectation(),
        )
    })
}

fn number(node: &Node) -> Result<i64, Wrong> {
    let parsed = match &node.content {
        Content::Scalar { integer, text } => integer.or_else(|| whole(text.trim())),
        _ => None,
    };
    parsed.ok_or_else(|| wrong(node, "cache.volumes.sizeGB", Invalid::Size.expectation()))
}

/// The comma-separated volumes of a variable. They replace those of files.
pub(super) fn from_variable(text: &str) -> Result<Vec<Volume>, Invalid> {
    let volumes = comma_list::items(text)
        .map(|spec| Volume::from_spec(spec, false))
        .collect::<Result<Vec<_>, _>>()?;
    volume::check_set(&volumes).map_err(|(_, why)| why)?;
    Ok(volumes)
}

/// Adds the volumes of flags to the configured ones: each is required, and a configured one becomes required.
/// The error contains the invalid text.
pub(super) fn add_flags(configured: &mut Vec<Volume>, values: &[String]) -> Result<(), (String, Invalid)> {
    for spec in values.iter().flat_map(|value| comma_list::items(value)) {
        let fail = |why| (spec.to_owned(), why);
        let volume = Volume::from_spec(spec, true).map_err(fail)?;
        let known = configured
            .iter_mut()
            .find(|known| known.key == volume.key && known.path == volume.path);
        if let Some(known) = known {
            known.required = true;
            continue;
        }
        configured.push(volume);
        volume::check_set(configured).map_err(|(_, why)| fail(why))?;
    }
    Ok(())
}
