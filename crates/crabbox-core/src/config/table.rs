//! One value for each key, and how a later layer changes it.
//!
//! Holds what the layers folded so far have set; whether a value counts at all is decided before it comes here.

use std::path::Path;

use super::key::{KEYS, Key, Merge, Name};
use super::layer::{Origin, Sourced};
use super::value::{Bases, Value, from_text};

/// One value for each key of the registry.
#[derive(Debug, Clone)]
pub(super) struct Table(Vec<Sourced<Value>>);

impl Table {
    pub(super) fn defaults(home: Option<&Path>) -> Self {
        let bases = Bases {
            home,
            relative: Path::new("/"),
        };
        let value = |key: &Key| {
            from_text(key.kind, key.default, bases).expect("a test reads every default of the registry")
        };
        Self(
            KEYS.iter()
                .map(|key| Sourced {
                    value: value(key),
                    origin: Origin::Default,
                })
                .collect(),
        )
    }

    pub(super) fn get(&self, name: Name) -> &Sourced<Value> {
        &self.0[name as usize]
    }

    pub(super) fn merge(&mut self, key: &Key, value: Value, origin: Origin) {
        let slot = &mut self.0[key.name as usize];
        let value = match (&slot.value, value, key.merge) {
            (Value::List(old), Value::List(new), Merge::Append) => {
                Value::List([old.as_slice(), &new].concat())
            }
            (Value::List(old), Value::List(new), Merge::AppendUnique) => {
                let mut all = old.clone();
                for item in new {
                    if !all.contains(&item) {
                        all.push(item);
                    }
                }
                Value::List(all)
            }
            (_, value, _) => value,
        };
        *slot = Sourced { value, origin };
    }

    /// Puts a value in place of whatever was there: what variables and flags do, also for lists.
    pub(super) fn set(&mut self, key: &Key, value: Value, origin: Origin) {
        self.0[key.name as usize] = Sourced { value, origin };
    }
}
