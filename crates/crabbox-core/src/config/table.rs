//! One value per key, and how a later layer changes it.
//!
//! It holds the values from all layers so far, and also those from trusted layers only. Whether a value is
//! permitted must be decided before it gets here.

use std::path::Path;

use super::key::{KEYS, Key, Merge, Name};
use super::layer::{Origin, Sourced};
use super::value::{Bases, Value, from_text};

/// One value for each key of the registry.
#[derive(Debug, Clone)]
pub(super) struct Table(Vec<Slot>);

/// The values of one key.
#[derive(Debug, Clone)]
struct Slot {
    /// The value from all layers.
    all: Sourced<Value>,
    /// The value from the layers that the user of this host controls.
    trusted: Sourced<Value>,
}

impl Table {
    pub(super) fn defaults(home: Option<&Path>) -> Self {
        let bases = Bases {
            home,
            relative: Path::new("/"),
        };
        let value = |key: &Key| {
            from_text(key.kind, key.default, bases).expect("a test reads every default of the registry")
        };
        let slot = |key| {
            let all = Sourced {
                value: value(key),
                origin: Origin::Default,
            };
            Slot {
                trusted: all.clone(),
                all,
            }
        };
        Self(KEYS.iter().map(slot).collect())
    }

    pub(super) fn get(&self, name: Name) -> &Sourced<Value> {
        &self.0[name as usize].all
    }

    /// The value that the key would have without repository files.
    pub(super) fn trusted(&self, name: Name) -> &Sourced<Value> {
        &self.0[name as usize].trusted
    }

    /// Drops a value that a repository file set.
    pub(super) fn distrust(&mut self, name: Name) -> Option<Sourced<Value>> {
        let slot = &mut self.0[name as usize];
        let untrusted = !slot.all.layer().is_trusted();
        untrusted.then(|| std::mem::replace(&mut slot.all, slot.trusted.clone()))
    }

    pub(super) fn merge(&mut self, key: &Key, value: Value, origin: Origin) {
        let slot = &mut self.0[key.name as usize];
        if origin.layer().is_trusted() {
            slot.trusted = Sourced {
                value: merged(&slot.trusted.value, value.clone(), key.merge),
                origin: origin.clone(),
            };
        }
        slot.all = Sourced {
            value: merged(&slot.all.value, value, key.merge),
            origin,
        };
    }

    /// Replaces any earlier value, as variables and flags do even for lists.
    pub(super) fn set(&mut self, key: &Key, value: Value, origin: Origin) {
        let slot = &mut self.0[key.name as usize];
        slot.all = Sourced { value, origin };
        if slot.all.layer().is_trusted() {
            slot.trusted = slot.all.clone();
        }
    }
}

fn merged(old: &Value, new: Value, merge: Merge) -> Value {
    match (old, new, merge) {
        (Value::List(old), Value::List(new), Merge::Append) => Value::List([old.as_slice(), &new].concat()),
        (Value::List(old), Value::List(new), Merge::AppendUnique) => Value::List(united(old, new)),
        (Value::Ports(old), Value::Ports(new), Merge::AppendUnique) => Value::Ports(united(old, new)),
        (_, value, _) => value,
    }
}

/// `old`, followed by the elements of `new` that it does not contain.
fn united<T: Clone + PartialEq>(old: &[T], new: Vec<T>) -> Vec<T> {
    let mut all = old.to_vec();
    for item in new {
        if !all.contains(&item) {
            all.push(item);
        }
    }
    all
}
