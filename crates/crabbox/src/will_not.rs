//! Commands and flags of the Go program that this one will not have, each with the reason that is told to who types it.
//!
//! What may come one day does not stand here. A reason must never name what this program has not either.

/// Commands that this program will not have, each with the reason.
const COMMANDS: &[(&str, &str)] = &[
    (
        "actions",
        "it hydrates a lease by a workflow of a forge, with that forge's credentials in the lease; here a job or preset of the \
         configuration says what makes a machine ready",
    ),
    (
        "artifacts",
        "it records a screen, which a microVM has not, and publishes to an object store and a forge with their credentials; \
         `run --artifact-glob`, `run --emit-proof`, `logs` and `cp` bring back what there is",
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
    ("results", COORDINATOR),
    ("screenshot", SCREEN),
    ("share", COORDINATOR),
    ("unshare", COORDINATOR),
    ("usage", COORDINATOR),
    ("vnc", SCREEN),
    ("webvnc", SCREEN),
    ("whoami", COORDINATOR),
];

/// Why nothing is here that other machines are asked for.
const COORDINATOR: &str =
    "it needs a coordinator, which this program does not have: it leases machines of this host";

/// Why nothing is here that is about another provider.
const PROVIDER: &str = "it is about another provider's machines";

/// Why nothing is here that is to be seen.
const SCREEN: &str = "a microVM has no screen";

/// Flags that this program will not have, each with the reason.
const REASONS: &[(&str, &str)] = &[
    (
        "actions-runner",
        "it registers the lease as a runner of a forge, with that forge's credentials in the lease",
    ),
    (
        "fresh-pr",
        "it has the lease fetch from a forge, with credentials for it there; check the pull request out here, and `run` brings it",
    ),
    ("market", "it is about the prices of a cloud"),
    ("pond", COORDINATOR),
    (
        "apply-local-patch",
        "it goes with --fresh-pr; `run` brings the tree as it stands here, patched or not",
    ),
];

/// Commands that may come: of a machine's memory and disk as they were at a moment, and of many machines made of one.
const TO_COME: [&str; 2] = ["checkpoint", "shard"];

/// Whether a command of this name may come one day.
pub(crate) fn is_to_come(name: &str) -> bool {
    TO_COME.contains(&name)
}

/// Why this program will not have a command of this name, where it is known.
pub(crate) fn command(name: &str) -> Option<&'static str> {
    reason(COMMANDS, name)
}

/// Why this program will not have a flag of this name, where it is known.
pub(crate) fn flag(name: &str) -> Option<&'static str> {
    reason(REASONS, name)
}

fn reason(list: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    list.iter().find(|(known, _)| *known == name).map(|(_, why)| *why)
}
