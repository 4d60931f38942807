//! The uses that a provider can be recommended for, and how each is scored.
//!
//! Names and points are the Go program's, as far as a provider of this program can earn them. A use that no
//! provider here supports (a desktop, another operating system, provider-made evidence) is known but has no
//! rules: it must never score points for something else.

use super::catalogue::Entry;

/// A use by its name.
#[derive(Debug)]
pub(super) struct UseCase {
    /// Its name.
    pub(super) name: &'static str,
    /// Aliases.
    aliases: &'static [&'static str],
    /// A required property: without it the score is zero.
    only: Option<Has>,
    rules: &'static [Rule],
}

/// A property that counts for a use: the property, its points, and the reason shown.
type Rule = (Has, u32, &'static str);

/// A property of a provider.
#[derive(Debug, Clone, Copy)]
enum Has {
    /// It has this category.
    Category(&'static str),
    /// It is a host of the user's own, made or found.
    Private,
    /// It leases machines that are entered over SSH.
    Lease,
    /// The working tree is synced.
    Sync,
    /// It removes what dead leases left.
    Cleanup,
    /// Its machines run Linux.
    Linux,
    /// Ports are reached through SSH.
    Tunnel,
}

impl Has {
    fn holds(self, entry: &Entry) -> bool {
        match self {
            Self::Category(category) => entry.category == category,
            Self::Private => matches!(entry.category, "self-hosted-virtualization" | "byo-ssh"),
            Self::Lease => entry.kind == "ssh-lease",
            Self::Sync => entry.features.contains(&"crabbox-sync"),
            Self::Cleanup => entry.features.contains(&"cleanup"),
            Self::Linux => entry.targets.contains(&"linux"),
            Self::Tunnel => entry.reachability.contains(&"ssh-tunnel"),
        }
    }
}

impl UseCase {
    /// The use called `word`, in any case.
    pub(super) fn by_name(word: &str) -> Option<&'static Self> {
        let word = word.trim().to_ascii_lowercase();
        ALL.iter()
            .find(|case| case.name == word || case.aliases.contains(&word.as_str()))
    }

    /// The score of `entry`, and the reasons for it.
    pub(super) fn judge(&self, entry: &Entry) -> (u32, Vec<&'static str>) {
        if self.only.is_some_and(|has| !has.holds(entry)) {
            return (0, Vec::new());
        }
        let rules = self.rules.iter().filter(|(has, _, _)| has.holds(entry));
        let (points, reasons): (Vec<u32>, Vec<_>) =
            rules.map(|(_, points, reason)| (points, *reason)).unzip();
        (points.iter().sum(), reasons)
    }
}

use Has::{Category, Cleanup, Lease, Linux, Private, Sync, Tunnel};

const fn case(name: &'static str, aliases: &'static [&'static str], rules: &'static [Rule]) -> UseCase {
    UseCase {
        name,
        aliases,
        only: None,
        rules,
    }
}

/// All uses, in listing order.
#[rustfmt::skip]
pub(super) static ALL: &[UseCase] = &[
    case("agent-sandbox", &["agent", "agents", "sandbox", "sandboxes", "devbox", "devboxes"], &[]),
    case("artifact-download", &["artifact-downloads", "downloadable-artifacts", "run-artifacts", "run-downloads", "evidence-downloads"], &[]),
    case("byo-ssh", &["byo", "ssh", "static", "static-ssh"], &[
        (Category("byo-ssh"), 90, "a host of your own that is there already"),
        (Lease, 20, "entered over SSH"),
        (Sync, 15, "takes the working tree, and runs commands in it"),
    ]),
    case("ci-proof", &["ci", "proof", "testbox", "repro"], &[]),
    case("code-interpreter", &["code-interpreters", "code-execution", "ai-code", "ai-code-runner", "generated-code",
        "generated-code-runner", "python-sandbox", "script-runner", "notebook-sandbox"], &[]),
    case("cost-control", &["cost", "cost-aware", "budget", "budget-control", "quota", "quota-safe", "spend", "spend-control"], &[
        (Cleanup, 25, "removes what leases leave behind"),
        (Sync, 15, "brings the working tree and nothing else"),
        (Linux, 5, "runs Linux, as most tests do"),
    ]),
    case("desktop", &["browser", "code", "vnc"], &[]),
    case("disposable-execution", &["disposable", "ephemeral-execution", "ephemeral-sandbox", "ephemeral-sandboxes", "throwaway",
        "throwaway-sandbox", "throwaway-sandboxes", "auto-cleanup", "clean-sandbox", "cleanup-sandbox", "temporary-sandbox"], &[]),
    case("fast-feedback", &["feedback", "fast-test", "fast-tests", "cache", "cached", "cache-heavy"], &[
        (Sync, 25, "takes what has changed in the working tree"),
        (Cleanup, 10, "removes what leases leave behind"),
        (Linux, 8, "runs Linux, as most tests do"),
    ]),
    case("failure-diagnostics", &["failure-diagnostic", "failed-run", "failed-runs", "failure-triage", "run-debugging",
        "debuggable-run", "debuggable-runs", "debuggability", "postmortem", "post-mortem"], &[
        (Sync, 16, "a failure can be looked into over SSH, in the tree it happened in"),
        (Cleanup, 8, "removes what leases leave behind"),
        (Linux, 6, "runs Linux, as most tests do"),
    ]),
    case("fanout-testing", &["fanout", "best-of-n", "best-of-n-testing", "parallel-testing", "parallel-exploration", "branch-race",
        "snapshot-fanout", "fork-fanout"], &[]),
    case("gpu", &["cuda", "ml"], &[]),
    case("interactive-debug", &["interactive-debugging", "live-debug", "live-debugging", "debug-session", "debug-sessions",
        "ssh-debug", "browser-debug", "code-debug", "inspectable-debug"], &[
        (Sync, 45, "a shell over SSH in the synced tree"),
        (Tunnel, 14, "ports are reached through SSH"),
        (Cleanup, 8, "removes what leases leave behind"),
        (Linux, 6, "runs Linux, as most tests do"),
    ]),
    case("isolated-execution", &["isolated", "isolation", "secure", "secure-sandbox", "untrusted", "untrusted-code"], &[
        (Cleanup, 12, "removes what leases leave behind"),
        (Linux, 8, "runs Linux, as most sandboxes do"),
    ]),
    case("linux-vm", &["linux", "vm"], &[
        (Linux, 30, "runs Linux"),
        (Lease, 35, "leases that are made, used and released over SSH"),
        (Sync, 25, "takes the working tree"),
        (Cleanup, 15, "removes what leases leave behind"),
    ]),
    case("live-smoke", &["live-smokes", "provider-smoke", "provider-smokes", "smoke", "smokes", "smoke-test", "smoke-tests",
        "live-validation", "live-validate", "live-proof"], &[
        (Cleanup, 30, "removes what a smoke test leaves behind"),
        (Sync, 24, "takes the working tree"),
        (Lease, 22, "any command can be the smoke test"),
        (Linux, 8, "runs Linux, as most tests do"),
    ]),
    case("local", &["local-vm", "local-runtime", "local-sandbox"], &[
        (Sync, 18, "takes the working tree"),
        (Cleanup, 12, "removes what leases leave behind"),
    ]),
    case("macos", &["mac", "darwin"], &[]),
    case("mcp-sandbox", &["mcp", "mcp-attachments", "tool-sandbox", "tool-sandboxes"], &[]),
    case("network-isolation", &["network-isolated", "network-containment", "egress-control", "egress-controlled",
        "contained-execution", "contained-sandbox", "contained-sandboxes"], &[]),
    UseCase {
        only: Some(Category("byo-ssh")),
        ..case("offline-validation", &["offline", "offline-smoke", "no-credentials", "no-provider-credentials", "credentialless",
            "without-credentials", "local-first", "local-validation"], &[
            (Category("byo-ssh"), 55, "a host of your own asks for no provider's credentials"),
            (Sync, 16, "takes the working tree"),
            (Cleanup, 14, "removes what leases leave behind"),
            (Linux, 8, "runs Linux, as most tests do"),
        ])
    },
    case("pause-resume", &["pause", "resume", "suspend", "suspended", "pausable", "pausable-workspace", "pausable-workspaces",
        "resumable", "resumable-workspace", "resumable-workspaces"], &[]),
    case("preview-url", &["preview", "preview-urls", "url-bridge", "app-preview", "app-previews", "web-preview", "web-previews"], &[]),
    case("reachability", &["reachable", "network", "networking", "ports", "port", "pond"], &[
        (Tunnel, 20, "ports are reached through SSH"),
    ]),
    case("remote-dev", &["remote-development", "dev-environment", "dev-environments", "cloud-dev", "cloud-development", "cde",
        "codespace", "codespaces", "remote-workspace"], &[
        (Lease, 28, "a developer's shell over SSH"),
        (Sync, 24, "takes the working tree"),
        (Private, 10, "on hosts of your own"),
        (Cleanup, 12, "removes what leases leave behind"),
        (Linux, 8, "runs Linux, as most tests do"),
    ]),
    case("resource-observability", &["resource-observe", "observability", "resource-telemetry", "telemetry", "usage-observability",
        "usage-visibility", "usage-metadata", "metering", "cost-observability", "cost-visibility", "billing-visibility"], &[
        (Sync, 35, "the machine can be watched over SSH while a command runs"),
        (Cleanup, 10, "removes what leases leave behind"),
    ]),
    case("run-evidence", &["evidence", "artifacts", "artifact", "downloads", "download"], &[]),
    case("run-session", &["run-sessions", "session", "sessions", "inspectable-run", "inspectable-runs", "reusable-run",
        "reusable-runs", "session-inspection"], &[]),
    case("self-hosted", &["selfhosted", "homelab", "virtualization"], &[
        (Category("self-hosted-virtualization"), 80, "virtual machines on a host of your own"),
        (Category("byo-ssh"), 50, "a host of your own that is there already"),
        (Lease, 15, "entered over SSH"),
        (Cleanup, 10, "removes what leases leave behind"),
    ]),
    case("team-cloud", &["team", "shared-cloud", "brokered-cloud", "coordinator", "coordinated-cloud", "managed-cloud"], &[
        (Cleanup, 20, "removes what leases leave behind"),
        (Sync, 15, "takes the working tree"),
        (Lease, 10, "can be looked into over SSH"),
        (Linux, 8, "runs Linux, as most tests do"),
    ]),
    case("versioned-workspace", &["workspace", "workspaces", "workspace-reuse", "reusable-workspace", "reusable-workspaces",
        "checkpoint", "checkpoints", "snapshot", "snapshots", "fork", "forks", "forkable", "forkable-workspace",
        "forkable-workspaces", "durable-workspace", "stateful-workspace", "snapshot-fork"], &[]),
    case("warm-start", &["warm", "warmup", "warm-up", "warm-pool", "warm-pools", "prewarm", "pre-warm", "prewarmed", "pre-warmed",
        "low-latency-start", "low-latency", "reuse-state", "reuse-runtime"], &[]),
    case("web-app-smoke", &["web-smoke", "app-smoke", "service-smoke", "preview-smoke", "browser-smoke", "url-smoke", "http-smoke",
        "web-preview-smoke"], &[
        (Tunnel, 32, "a synced app is reached through SSH"),
        (Sync, 14, "takes the working tree"),
        (Cleanup, 10, "removes what a smoke test leaves behind"),
        (Linux, 8, "runs Linux, as most tests do"),
    ]),
    case("windows", &["win"], &[]),
    case("worker-runtime", &["worker", "module", "module-run"], &[]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_leads_to_one_use() {
        let words = ALL
            .iter()
            .flat_map(|case| case.aliases.iter().chain([&case.name]));
        for word in words {
            let found = ALL
                .iter()
                .filter(|case| case.name == *word || case.aliases.contains(word));
            assert_eq!(found.count(), 1, "{word}");
            assert_eq!(*word, word.trim().to_ascii_lowercase());
        }
        assert_eq!(
            UseCase::by_name(" Homelab ").map(|case| case.name),
            Some("self-hosted")
        );
        assert!(UseCase::by_name("").is_none());
    }
}
