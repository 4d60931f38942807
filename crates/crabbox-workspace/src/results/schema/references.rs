//! References between the parts of a schema: each leads to a part of the same document, and none back to where it came from.
//!
//! A schema that leads back to itself is followed without an end by whoever checks with it. It must never be compiled.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Keywords whose references are known only when a file is looked at.
const DYNAMIC: [&str; 2] = ["$dynamicRef", "$recursiveRef"];

/// Refuses a schema with references of another kind. Returns how many values the schema has with each reference replaced by what it leads to:
/// a short one may have more of them than any memory.
pub(super) fn check(schema: &Value) -> Result<usize, String> {
    let draft = schema.get("$schema").and_then(Value::as_str).unwrap_or_default();
    Walk {
        root: schema,
        id: if draft.contains("draft-04") { "id" } else { "$id" },
        above: BTreeSet::new(),
        done: BTreeMap::new(),
    }
    .enter(schema)
}

struct Walk<'a> {
    root: &'a Value,
    /// The keyword that names a part.
    id: &'static str,
    /// The parts through which this one was reached, by their addresses.
    above: BTreeSet<usize>,
    /// The size of each part that was looked at.
    done: BTreeMap<usize, usize>,
}

impl<'a> Walk<'a> {
    fn enter(&mut self, part: &'a Value) -> Result<usize, String> {
        let address = std::ptr::from_ref(part).addr();
        if self.above.contains(&address) {
            return Err(
                "a reference leads back to where it came from; such schemas are not supported".to_owned(),
            );
        }
        if let Some(size) = self.done.get(&address) {
            return Ok(*size);
        }
        self.above.insert(address);
        let mut size = 1_usize;
        match part {
            Value::Array(items) => {
                for item in items {
                    size = size.saturating_add(self.enter(item)?);
                }
            }
            Value::Object(entries) => {
                for (name, value) in entries {
                    let entry = self.entry(name, value, std::ptr::eq(part, self.root))?;
                    size = size.saturating_add(entry);
                }
            }
            _ => {}
        }
        self.above.remove(&address);
        self.done.insert(address, size);
        Ok(size)
    }

    fn entry(&mut self, name: &str, value: &'a Value, is_root: bool) -> Result<usize, String> {
        match (name, value) {
            (name, Value::String(_)) if DYNAMIC.contains(&name) => Err(format!("{name} is not supported")),
            ("$ref", Value::String(to)) => {
                let part = self.target(to)?;
                self.enter(part)
            }
            // It would change what the references below it are about.
            (name, Value::String(_)) if name == self.id && !is_root => {
                Err(format!("a part with an {name} of its own is not supported"))
            }
            (_, value) => self.enter(value),
        }
    }

    fn target(&self, to: &str) -> Result<&'a Value, String> {
        let pointer = to
            .strip_prefix('#')
            .filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let Some(pointer) = pointer.filter(|pointer| !pointer.contains('%')) else {
            return Err(format!(
                "the reference {to:?} is not supported: only those to a part of the same file, such as \"#/$defs/name\", are"
            ));
        };
        self.root
            .pointer(pointer)
            .ok_or_else(|| format!("the reference {to:?} leads nowhere"))
    }
}
