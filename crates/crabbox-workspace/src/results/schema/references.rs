//! Checks the references in a schema: each must lead to a part of the same document, and none may be
//! circular.
//!
//! A validator would follow a circular schema forever. It must never be compiled.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Keywords whose references are only resolved during validation.
const DYNAMIC: [&str; 2] = ["$dynamicRef", "$recursiveRef"];

/// Refuses a schema with any other references. Returns the number of values the schema would have with every
/// reference expanded, which can be huge for a short schema.
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
    /// The keyword that gives a part an id.
    id: &'static str,
    /// The parts through which the current one was reached, by address.
    above: BTreeSet<usize>,
    /// The expanded size of each part checked so far.
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
            // It would change the base of the references below it.
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
