//! Of what kind a failure is thought to be. The kinds are the Go program's.

use crabbox_core::fault::Connectivity;

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

/// Words of other programs, and what they tell. Errors of ours say what they are by themselves.
const KNOWN: [(&[&str], Class); 4] = [
    // A command may well wait for a machine itself.
    (&["timed out waiting for ssh"], UNREACHED),
    (
        &["exdev", "enomem", "err_pnpm"],
        Class {
            area: "install_setup",
            stage: "install",
            retry: "unknown",
        },
    ),
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

/// The class of a failure: by what its error is, else by what other programs said in `text`.
pub(super) fn classify(connectivity: Option<Connectivity>, text: &str) -> Option<Class> {
    match connectivity {
        Some(Connectivity::Lost) => return Some(CUT_OFF),
        Some(Connectivity::TimedOut) => return Some(UNREACHED),
        None => {}
    }
    let text = text.to_lowercase();
    KNOWN
        .iter()
        .find(|(words, _)| words.iter().any(|word| text.contains(word)))
        .map(|(_, class)| *class)
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
            classify(error.connectivity(), "").map(|class| (class.area, class.stage, class.retry))
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
        );
        assert_eq!(both, Some(CUT_OFF));
    }

    #[test]
    fn known_words_tell_the_class() {
        let class = |text: &str| classify(None, text).map(|class| (class.stage, class.retry));
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
}
