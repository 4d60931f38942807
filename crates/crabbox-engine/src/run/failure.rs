//! Of what kind a failure is thought to be. The kinds are the Go program's.

use crabbox_core::fault::Connectivity;
use crabbox_workspace::tee::FIRST_PHASE;

/// What a failure is thought to be, from the words that were told about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// The area, as the digest names it.
    pub area: &'static str,
    /// The stage that it blocks.
    pub stage: &'static str,
    /// Whether another try may help: `true`, `false` or `unknown`.
    pub retry: &'static str,
}

/// SSH did not come up in time.
const UNREACHED: Class = Class {
    area: "ssh_connectivity",
    stage: "ssh",
    retry: "true",
};

/// The connection went away under the command, which may have done its work.
const CUT_OFF: Class = Class {
    area: "ssh_connectivity",
    stage: "ssh",
    retry: "unknown",
};

/// What the command needs could not be made ready.
const INSTALL: Class = Class {
    area: "install_setup",
    stage: "install",
    retry: "unknown",
};

/// The command said that it was building.
const BUILD: Class = Class {
    area: "user_command",
    stage: "build",
    retry: "unknown",
};

/// The command said that it was testing.
const TEST: Class = Class {
    area: "user_command",
    stage: "test",
    retry: "unknown",
};

/// The command did its work, and its test reports do not let the run pass.
pub(super) const TESTS_FAILED: Class = Class {
    area: "user_command",
    stage: "test",
    retry: "false",
};

/// The command did its work, and a file that had to be there is not.
pub(super) const NO_ARTIFACT: Class = Class {
    area: "artifacts",
    stage: "artifacts",
    retry: "unknown",
};

/// Words of other programs by which alone a wait for SSH is known: a command may well wait for a machine itself.
const SSH_WAIT: &str = "timed out waiting for ssh";

/// Words of other programs, and what they tell. Errors of ours say what they are by themselves.
const KNOWN: [(&[&str], Class); 3] = [
    (&["exdev", "enomem", "err_pnpm"], INSTALL),
    (
        &["rate limit", "context length"],
        Class {
            area: "model_tool_provider_limit",
            stage: "model_call",
            retry: "unknown",
        },
    ),
    (
        &["out of memory", "cannot allocate memory"],
        Class {
            area: "resource_exhaustion",
            stage: "resource_exhaustion",
            retry: "false",
        },
    ),
];

/// The class of a failure: by what its error is, else by the last `phase` that the command told of, else by what other programs
/// said in `text`. `text` may be about a phase that is long over, so a phase of a name that tells nothing leaves nothing to be known.
pub(super) fn classify(connectivity: Option<Connectivity>, text: &str, phase: Option<&str>) -> Option<Class> {
    match connectivity {
        Some(Connectivity::Lost) => return Some(CUT_OFF),
        Some(Connectivity::TimedOut) => return Some(UNREACHED),
        None => {}
    }
    let text = text.to_lowercase();
    if text.contains(SSH_WAIT) {
        return Some(UNREACHED);
    }
    match phase.map(str::to_lowercase).as_deref() {
        None | Some(FIRST_PHASE) => {}
        Some("install" | "hydrate" | "setup") => return Some(INSTALL),
        Some("build") => return Some(BUILD),
        Some("test") => return Some(TEST),
        Some(_) => return None,
    }
    KNOWN
        .iter()
        .find(|(words, _)| words.iter().any(|word| text.contains(word)))
        .map(|(_, class)| *class)
}

/// The area of a failure of which no more is known than that it happened in `phase`.
pub(super) fn area_of_phase(phase: &str) -> &'static str {
    let phase = phase.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| phase.contains(word));
    if has(&["sync"]) {
        "sync"
    } else if has(&["install", "setup", "hydrate"]) {
        INSTALL.area
    } else if has(&["ssh"]) {
        CUT_OFF.area
    } else {
        "user_command"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_core::fault::Fault;

    use crate::provider::error::LeaseError;
    use crate::provider::firecracker::error::AcquireLeaseError;
    use crate::run::error::{RunError, RunFailure};

    #[test]
    fn an_error_of_ours_tells_its_class_by_what_it_is() {
        let class = |error: &RunError| {
            classify(error.connectivity(), "", None).map(|class| (class.area, class.stage, class.retry))
        };
        for failure in [RunFailure::Lost, RunFailure::MachineDown] {
            assert_eq!(
                class(&failure.into()),
                Some(("ssh_connectivity", "ssh", "unknown"))
            );
        }
        let waited = || LeaseError::from(AcquireLeaseError::NotReady { host: "h".to_owned() });
        let cleanup = RunFailure::Cleanup {
            id: "cbx_1".to_owned(),
            source: waited(),
        };
        for error in [RunError::from(waited()), cleanup.into()] {
            assert_eq!(class(&error), Some(("ssh_connectivity", "ssh", "true")));
        }
        for failure in [
            RunFailure::Exited(1),
            RunFailure::Killed,
            RunFailure::Interrupted { stopped: true },
        ] {
            assert_eq!(class(&failure.into()), None);
        }
        // What it is counts for more than what a command printed.
        let both = classify(
            Some(Connectivity::Lost),
            "out of memory; timed out waiting for ssh",
            Some("test"),
        );
        assert_eq!(both, Some(CUT_OFF));
    }

    #[test]
    fn known_words_tell_the_class() {
        let class = |text: &str| classify(None, text, None).map(|class| (class.stage, class.retry));
        assert_eq!(
            class("timed out waiting for SSH on 10.0.0.2"),
            Some(("ssh", "true"))
        );
        assert_eq!(class("ERR_PNPM_X"), Some(("install", "unknown")));
        assert_eq!(
            class("fork: Cannot allocate memory"),
            Some(("resource_exhaustion", "false"))
        );
        assert_eq!(class("assertion failed"), None);
        // The words of our own errors mean nothing in a command's output.
        assert_eq!(class(&RunFailure::Lost.to_string()), None);
    }

    #[test]
    fn a_phase_counts_for_more_than_words_and_for_less_than_a_wait_for_ssh() {
        let stage = |phase: &str, text: &str| classify(None, text, Some(phase)).map(|class| class.stage);
        for (phase, known) in [
            ("Setup", Some("install")),
            ("build", Some("build")),
            ("test", Some("test")),
            ("deploy", None),
            (FIRST_PHASE, Some("install")),
        ] {
            assert_eq!(stage(phase, "ENOMEM: not enough memory"), known, "{phase}");
            assert_eq!(stage(phase, "timed out waiting for ssh"), Some("ssh"), "{phase}");
        }
        assert_eq!(area_of_phase("sync-assets"), "sync");
        assert_eq!(area_of_phase("post-Install"), "install_setup");
        assert_eq!(area_of_phase("ssh"), "ssh_connectivity");
        assert_eq!(area_of_phase(FIRST_PHASE), "user_command");
    }
}
