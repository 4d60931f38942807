//! What a provider is and can do, in the words of the Go program's catalogue.
//!
//! An entry describes this program, not the Go program's provider of the same name: it must list nothing that a lease would then lack.

use crabbox_core::config::Provider;
use crabbox_engine::provider::capability::Capability;
use crabbox_engine::provider::registry;
use schemars::JsonSchema;
use serde::Serialize;

/// A provider.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Entry {
    pub(super) provider: &'static str,
    pub(super) family: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) aliases: &'static [&'static str],
    pub(super) kind: &'static str,
    pub(super) category: &'static str,
    pub(super) targets: &'static [&'static str],
    pub(super) features: &'static [&'static str],
    pub(super) runtime: &'static [&'static str],
    pub(super) reachability: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) workspace: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) evidence: &'static [&'static str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub(super) lifecycle: &'static [&'static str],
    pub(super) coordinator: &'static str,
    pub(super) class_catalog: ClassCatalog,
}

/// Machine classes with sizes: no provider here has any, a class is a label.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(super) struct ClassCatalog {
    disposition: &'static str,
    profiles: [&'static str; 0],
}

const UNMAPPED: ClassCatalog = ClassCatalog {
    disposition: "unmapped",
    profiles: [],
};

/// All providers, in the order in which they are listed.
pub(super) fn entries() -> Vec<Entry> {
    Vec::from(Provider::ALL.map(entry))
}

/// The entry of `provider`.
pub(super) fn entry(provider: Provider) -> Entry {
    let can = registry::capabilities(provider);
    let (features, lifecycle): (&[_], &[_]) = if can.has(Capability::Cleanup) {
        (&["ssh", "crabbox-sync", "cleanup"], &["cleanup"])
    } else {
        (&["ssh", "crabbox-sync"], &[])
    };
    Entry {
        provider: provider.name(),
        family: provider.name(),
        aliases: provider.aliases(),
        kind: "ssh-lease",
        category: can.category,
        targets: &["linux"],
        features,
        runtime: &["ssh-host"],
        reachability: &["ssh-tunnel"],
        workspace: &[],
        evidence: &[],
        lifecycle,
        coordinator: "never",
        class_catalog: UNMAPPED,
    }
}

impl Entry {
    /// The block of lines that `providers` prints.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.provider.to_owned(), format!("  family: {}", self.family)];
        lines.extend(self.abilities());
        lines.push(format!("  coordinator: {}", self.coordinator));
        if !self.aliases.is_empty() {
            lines.push(format!("  aliases: {}", self.aliases.join(",")));
        }
        lines
    }

    /// The lines shared with a recommendation. After the features, empty lists are left out.
    pub(super) fn abilities(&self) -> Vec<String> {
        let mut lines = vec![
            format!("  kind: {}", self.kind),
            format!("  category: {}", self.category),
            format!("  targets: {}", joined(self.targets)),
            format!("  features: {}", joined(self.features)),
        ];
        let more = [
            ("runtime", self.runtime),
            ("reachability", self.reachability),
            ("workspace", self.workspace),
            ("evidence", self.evidence),
            ("lifecycle", self.lifecycle),
        ];
        let more = more.iter().filter(|(_, values)| !values.is_empty());
        lines.extend(more.map(|(name, values)| format!("  {name}: {}", joined(values))));
        lines
    }
}

/// Values separated by commas, or a dash.
pub(super) fn joined<T: AsRef<str>>(values: &[T]) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(",")
}
