//! The state of a lease: the word in its `state` label, and the meaning of each word for all commands.
//!
//! ```text
//!                (directory, journal and record are written)
//!                                  │
//!    Go only: leased ········ provisioning          its maker holds the lease lock
//!                                  │ the VMM has started
//!                       ┌────── running ◄─────┐     booting, or a command works in it
//!               claimed │                     │ run, connect, tunnel
//!                       ├─────► ready ────────┘
//!          for the pool └ pooled ─ ready          claimed later, as if it were made then
//!                                  │ teardown: stop, cleanup, expiry, the end of the VMM
//!                 ┌────────────────┴───────────────────┐
//!       the directory goes: no state         the directory stays: released
//! ```
//!
//! `stopped` is never written: it is what `lease::find` in `crabbox-machine` computes for a record whose
//! process is gone and whose label does not settle the matter. `active`, `failed` and `expired` are only
//! read; the Go program may have written them. The remaining words are statuses of its other providers. An
//! unknown word is preserved.
//!
//! Parsing a word and printing it again gives the same word. This module must never look at a process, a
//! clock or a file, and nothing else may compare a state with text.

use std::fmt;

/// The state of a lease. A new state causes compile errors at every decision that depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// It is being created.
    Provisioning,
    /// It is an unclaimed pool member.
    Pooled,
    /// Created but not used yet, as labelled by the Go program.
    Leased,
    /// It can be used, and no command runs in it.
    Ready,
    /// Its machine boots, or a command runs in it.
    Running,
    /// In use, as labelled by the Go program.
    Active,
    /// Its machine no longer runs.
    Stopped,
    /// Its machine no longer runs and left an exit code.
    StoppedWithCode,
    /// It was released, and its directory was kept.
    Released,
    /// It was never usable.
    Failed,
    /// It has expired.
    Expired,
    /// Its machine is being deleted.
    Deleting,
    /// Its machine cannot be found.
    Missing,
    /// Its machine was deleted.
    Terminated,
    /// An unknown word; only [`LeaseState::from`] makes it, so it is never one of the words above.
    #[non_exhaustive]
    Other(String),
}

impl LeaseState {
    /// Every named state.
    pub const NAMED: [Self; 14] = [
        Self::Provisioning,
        Self::Pooled,
        Self::Leased,
        Self::Ready,
        Self::Running,
        Self::Active,
        Self::Stopped,
        Self::StoppedWithCode,
        Self::Released,
        Self::Failed,
        Self::Expired,
        Self::Deleting,
        Self::Missing,
        Self::Terminated,
    ];

    /// The word in labels and output.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Pooled => "pooled",
            Self::Leased => "leased",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Active => "active",
            Self::Stopped => "stopped",
            Self::StoppedWithCode => "stopped_with_code",
            Self::Released => "released",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Deleting => "deleting",
            Self::Missing => "missing",
            Self::Terminated => "terminated",
            Self::Other(word) => word,
        }
    }

    /// Whether the lease has no machine any more: it can be inspected and released, but not used.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Stopped
            | Self::StoppedWithCode
            | Self::Released
            | Self::Failed
            | Self::Expired
            | Self::Deleting
            | Self::Missing
            | Self::Terminated => true,
            Self::Provisioning
            | Self::Pooled
            | Self::Leased
            | Self::Ready
            | Self::Running
            | Self::Active
            | Self::Other(_) => false,
        }
    }

    /// Whether the machine may be used. An unknown word does not forbid it, as in the Go program.
    pub fn is_usable(&self) -> bool {
        !self.is_terminal() && *self != Self::Provisioning
    }

    /// Whether a label with this word applies regardless of the process: the lease ended by decision, so it
    /// is not just `stopped`.
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Released | Self::Failed | Self::Expired)
    }
}

impl From<&str> for LeaseState {
    fn from(text: &str) -> Self {
        Self::NAMED
            .into_iter()
            .find(|state| state.as_str() == text)
            .unwrap_or_else(|| Self::Other(text.to_owned()))
    }
}

impl fmt::Display for LeaseState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad`, because tables set a width.
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_named_states_are_told_apart_and_come_back() {
        for (index, state) in LeaseState::NAMED.iter().enumerate() {
            assert_eq!(LeaseState::from(state.as_str()), *state);
            assert!(!LeaseState::NAMED[..index].contains(state), "{state} twice");
        }
    }

    #[test]
    fn what_each_word_allows() {
        // terminal, usable, settled
        for (word, expected) in [
            ("provisioning", (false, false, false)),
            ("pooled", (false, true, false)),
            ("leased", (false, true, false)),
            ("ready", (false, true, false)),
            ("running", (false, true, false)),
            ("active", (false, true, false)),
            ("stopped", (true, false, false)),
            ("stopped_with_code", (true, false, false)),
            ("released", (true, false, true)),
            ("failed", (true, false, true)),
            ("expired", (true, false, true)),
            ("deleting", (true, false, false)),
            ("missing", (true, false, false)),
            ("terminated", (true, false, false)),
            ("", (false, true, false)),
            ("touched", (false, true, false)),
            ("Released", (false, true, false)),
            (" released", (false, true, false)),
        ] {
            let state = LeaseState::from(word);
            assert_eq!(
                (state.is_terminal(), state.is_usable(), state.is_settled()),
                expected,
                "{word:?}"
            );
        }
    }

    #[test]
    fn a_column_is_as_wide_as_it_was_for_text() {
        assert_eq!(format!("[{:<12}]", LeaseState::Ready), "[ready       ]");
        assert_eq!(format!("[{:<12}]", LeaseState::from("odd")), "[odd         ]");
    }

    proptest! {
        #[test]
        fn text_to_state_and_back_is_the_identity(
            text in prop_oneof![
                ".{0,80}",
                "[ \\t]?(?i)(ready|running|released|stopped(_with_code)?)[ \\n]?",
                prop::sample::select(LeaseState::NAMED.map(|state| state.to_string()).to_vec()),
            ],
        ) {
            let state = LeaseState::from(text.as_str());
            prop_assert_eq!(state.as_str(), text.as_str());
            prop_assert_eq!(state.to_string(), text.as_str());
            prop_assert_eq!(LeaseState::from(state.as_str()), state);
        }
    }
}
