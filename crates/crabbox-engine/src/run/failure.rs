//! The presumed class of a failure. The classes are the Go program's.

use crabbox_core::fault::Connectivity;
use crabbox_workspace::tee::FIRST_PHASE;

/// The presumed class of a failure, derived from its error and from the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// The area, as the digest calls it.
    pub area: &'static str,
    /// The stage that it blocks.
    pub stage: &'static str,
    /// Whether trying again may help: `true`, `false` or `unknown`.
    pub retry: &'static str,
}

/// SSH did not come up in time, or is unreachable now.
const UNREACHED: Class = Class {
    area: "ssh_connectivity",
    stage: "ssh",
    retry: "true",
};

/// SSH refuses us, and trying again will not help.
const TURNED_AWAY: Class = Class {
    area: "ssh_connectivity",
    stage: "ssh",
    retry: "false",
};

/// The connection broke while the command ran, which may have completed.
const CUT_OFF: Class = Class {
    area: "ssh_connectivity",
    stage: "ssh",
    retry: "unknown",
};

/// The command's prerequisites could not be installed.
const INSTALL: Class = Class {
    area: "install_setup",
    stage: "install",
    retry: "unknown",
};

/// The command reported that it was building.
const BUILD: Class = Class {
    area: "user_command",
    stage: "build",
    retry: "unknown",
};

/// The command reported that it was testing.
const TEST: Class = Class {
    area: "user_command",
    stage: "test",
    retry: "unknown",
};

/// The command succeeded, but its test reports fail the run.
pub(super) const TESTS_FAILED: Class = Class {
    area: "user_command",
    stage: "test",
    retry: "false",
};

/// The command succeeded, but a required file is missing.
pub(super) const NO_ARTIFACT: Class = Class {
    area: "artifacts",
    stage: "artifacts",
    retry: "unknown",
};

/// Area and stage of a failure for want of memory, the only resource whose exhaustion is recognised.
const EXHAUSTION: &str = "resource_exhaustion";

/// A timeout of SSH in another program's output. Needs the full phrase, because a command may legitimately
/// wait for a machine itself.
const SSH_WAIT: &str = "timed out waiting for ssh";

/// Phrases in other programs' output, and what they indicate. Our own errors are classified without phrases.
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
            area: EXHAUSTION,
            stage: EXHAUSTION,
            retry: "false",
        },
    ),
];

/// The class of a failure: by the kind of error, otherwise by the last `phase` that the command reported,
/// otherwise by other programs' words in `text`. Since `text` may be about an earlier phase, an unknown phase
/// means that the class is unknown.
pub(super) fn classify(connectivity: Option<Connectivity>, text: &str, phase: Option<&str>) -> Option<Class> {
    match connectivity {
        Some(Connectivity::Lost) => return Some(CUT_OFF),
        Some(Connectivity::TimedOut | Connectivity::Unreached) => return Some(UNREACHED),
        Some(Connectivity::Hopeless) => return Some(TURNED_AWAY),
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

/// What a lease ran out of in a failure that blocks this stage.
pub fn exhausted(stage: &str) -> Option<&'static str> {
    (stage == EXHAUSTION).then_some("memory")
}

/// The area of a failure of which only the `phase` is known.
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
    use crabbox_ssh::exec::{ExecError, RemoteStatus};
    use crabbox_ssh::master::ConnectError;
    use crabbox_ssh::ready::NotReady;
    use crabbox_workspace::owner::OwnerError;

    use crate::provider::error::LeaseError;
    use crate::provider::firecracker::error::AcquireLeaseError;
    use crate::provider::static_host::error::StaticError;
    use crate::run::error::{RunError, RunFailure};

    fn not_ready() -> AcquireLeaseError {
        AcquireLeaseError::NotReady {
            host: "h".to_owned(),
            source: Box::new(NotReady::Check {
                status: RemoteStatus::Exited(1),
                said: "crabbox-ready: git is missing".to_owned(),
            }),
            console: Vec::new(),
        }
    }

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
        let waited = || LeaseError::from(not_ready());
        let cleanup = RunFailure::Cleanup {
            id: "cbx_1".to_owned(),
            source: waited(),
        };
        for error in [RunError::from(waited()), cleanup.into()] {
            assert_eq!(class(&error), Some(("ssh_connectivity", "ssh", "true")));
        }
        let met = |source: ConnectError| {
            let login = StaticError::Login {
                host: "h".to_owned(),
                source,
            };
            class(&RunError::from(LeaseError::from(login)))
        };
        let (destination, said) = (|| "u@h".to_owned(), |said: &str| said.to_owned());
        let again = Some(("ssh_connectivity", "ssh", "true"));
        let never = Some(("ssh_connectivity", "ssh", "false"));
        let unreachable = |text: &str| ConnectError::Unreachable {
            destination: destination(),
            port: 1,
            said: said(text),
        };
        let failed = |text: &str| ConnectError::Failed {
            destination: destination(),
            said: said(text),
        };
        let denied = ConnectError::AuthDenied {
            destination: destination(),
            said: said("Permission denied (publickey)."),
        };
        for (error, known) in [
            (unreachable("Connection refused"), again),
            (unreachable("Could not resolve hostname h"), never),
            (
                failed("kex_exchange_identification: read: Connection reset by peer"),
                again,
            ),
            (failed("Bad owner or permissions on /h/.ssh/config"), never),
            (denied, never),
        ] {
            let text = error.to_string();
            assert_eq!(met(error), known, "{text}");
        }
        // The same when connecting to an existing lease.
        let gone = OwnerError::Exec(ExecError::Connect {
            source: unreachable("No route to host"),
        });
        assert_eq!(class(&gone.into()), again);
        // Another run in the tree is not a connection failure.
        assert_eq!(class(&OwnerError::Timeout.into()), None);
        for failure in [
            RunFailure::Exited(1),
            RunFailure::Killed,
            RunFailure::Interrupted { stopped: true },
        ] {
            assert_eq!(class(&failure.into()), None);
        }
        // The kind of error takes precedence over the command's output.
        let both = classify(
            Some(Connectivity::Lost),
            "out of memory; timed out waiting for ssh",
            Some("test"),
        );
        assert_eq!(both, Some(CUT_OFF));
    }

    #[test]
    fn a_cleanup_that_failed_gives_the_advice_of_its_cause() {
        let source = LeaseError::from(not_ready());
        let advice = source.hints();
        assert!(!advice.is_empty());
        let id = "cbx_1".to_owned();
        assert_eq!(RunError::from(RunFailure::Cleanup { id, source }).hints(), advice);
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
        // The texts of our own errors have no meaning in a command's output.
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
