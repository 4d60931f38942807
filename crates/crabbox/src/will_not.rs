//! Commands and flags of the Go program that are ruled out here, each with the reason that the user gets.
//!
//! What may still be added is not listed here. A reason must never recommend something that this program
//! lacks.

/// Commands that are ruled out, with the reason.
const COMMANDS: &[(&str, &str)] = &[
    (
        "actions",
        "it hydrates a lease by a workflow of a forge, with that forge's credentials in the lease; here a job or preset of the \
         configuration says what makes a machine ready",
    ),
    ("admin", COORDINATOR),
    ("adapter serve", COORDINATOR),
    ("attach", COORDINATOR),
    ("azure", PROVIDER),
    (
        "capsule",
        "it is made from a workflow run of a forge; the bundle that a failed `run` leaves has its command, and `run` runs it again",
    ),
    (
        "code",
        "a web editor is an image's own business, and `tunnel` leads to it",
    ),
    ("config set-broker", COORDINATOR),
    ("desktop", SCREEN),
    ("egress", "what a lease may reach is the same for all of them"),
    ("events", COORDINATOR),
    ("history", COORDINATOR),
    ("login", COORDINATOR),
    ("logout", COORDINATOR),
    ("marketplace", PROVIDER),
    ("media", SCREEN),
    (
        "open",
        "it shows a page of a coordinator, which this program does not have",
    ),
    ("pond", COORDINATOR),
    ("pool borrow", COORDINATOR),
    ("pool ready", COORDINATOR),
    (
        "providers sizes",
        "sizes are a cloud's; a microVM has the processors and memory that the configuration says",
    ),
    ("results", COORDINATOR),
    ("screenshot", SCREEN),
    ("share", COORDINATOR),
    ("unshare", COORDINATOR),
    ("usage", COORDINATOR),
    ("vnc", SCREEN),
    ("webvnc", SCREEN),
    ("whoami", COORDINATOR),
];

/// The reason for features of a coordinator.
const COORDINATOR: &str =
    "it needs a coordinator, which this program does not have: it leases machines of this host";

/// The reason for features that belong to `actions`.
const WORKFLOW: &str = "it is about a workflow of a forge that hydrates the lease; here a job or preset of the configuration says what makes a machine ready";

/// The reason for features of other providers.
const PROVIDER: &str = "it is about another provider's machines";

/// The reason for features that need a screen.
const SCREEN: &str = "a microVM has no screen";

/// Flags that are ruled out, with the reason.
const REASONS: &[(&str, &str)] = &[
    (
        "actions-runner",
        "it registers the lease as a runner of a forge, with that forge's credentials in the lease",
    ),
    (
        "fresh-pr",
        "it has the lease fetch from a forge, with credentials for it there; check the pull request out here, and `run` brings it",
    ),
    ("confirmed-absent-local-cleanup", COORDINATOR),
    ("controller-provider-identity", COORDINATOR),
    ("expected-coordinator-registration-url", COORDINATOR),
    (
        "expected-provider-scope",
        "no provider here has scopes; --expected-attempt-lease-id, --expected-slug and --expected-resource-id say which lease is meant",
    ),
    ("github-runner", WORKFLOW),
    ("job", WORKFLOW),
    ("keep-alive-minutes", WORKFLOW),
    ("market", "it is about the prices of a cloud"),
    ("pond", COORDINATOR),
    ("pool-compatibility-key", COORDINATOR),
    ("pool-return", COORDINATOR),
    ("ref", WORKFLOW),
    ("repo", WORKFLOW),
    ("wait-timeout", WORKFLOW),
    ("workflow", WORKFLOW),
    (
        "apply-local-patch",
        "it goes with --fresh-pr; `run` brings the tree as it stands here, patched or not",
    ),
];

/// Commands that may be added, each with what there is until then: they snapshot a machine's memory and disk, make many machines from one, or
/// collect and publish what a lease shows.
const TO_COME: [(&str, &str); 3] = [
    (
        "artifacts",
        "; `run --artifact-glob`, `run --emit-proof`, `logs` and `cp` bring back what there is",
    ),
    ("checkpoint", ""),
    ("shard", ""),
];

/// What there is in place of a command that may be added, as the end of a sentence; `None` for any other command.
pub(crate) fn until_it_comes(name: &str) -> Option<&'static str> {
    reason(&TO_COME, name)
}

/// Why a command of this name is ruled out, if it is.
pub(crate) fn command(name: &str) -> Option<&'static str> {
    reason(COMMANDS, name)
}

/// Why a flag of this name is ruled out, if it is.
pub(crate) fn flag(name: &str) -> Option<&'static str> {
    reason(REASONS, name)
}

fn reason(list: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    list.iter().find(|(known, _)| *known == name).map(|(_, why)| *why)
}
