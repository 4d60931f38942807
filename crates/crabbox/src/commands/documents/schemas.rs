//! Generates the schema of a document from its type.
//!
//! It must say of an optional field what a reader meets, which is never `null`.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema};
use serde_json::Value;

/// The schema of a document that `command` prints.
pub(super) fn of<T: JsonSchema>(command: &str) -> Schema {
    let mut schema = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>();
    RecursiveTransform(absent_is_not_null).transform(&mut schema);
    schema.insert("title".to_owned(), format!("crabbox {command}").into());
    schema
}

/// An optional field is omitted rather than `null`, so remove `null` from its schema.
fn absent_is_not_null(schema: &mut Schema) {
    let required = schema.get("required").cloned().unwrap_or_default();
    let is_required = |name: &str| {
        required
            .as_array()
            .is_some_and(|names| names.iter().any(|one| one == name))
    };
    let Some(Value::Object(properties)) = schema.get_mut("properties") else {
        return;
    };
    for (_, property) in properties.iter_mut().filter(|(name, _)| !is_required(name)) {
        let Some(kinds) = property.get_mut("type") else {
            continue;
        };
        if let Some([kind, null]) = kinds.as_array().map(Vec::as_slice)
            && null == "null"
        {
            *kinds = kind.clone();
        }
    }
}
