//! Keeps conversations with hosts for the next request.
//!
//! A host ends a silent conversation with a last message, which must never be taken for the answer to the
//! next request.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fleet::address::KvmHost;
use crate::fleet::serve::SILENCE;

/// How long a conversation is kept for the next request; much less than the silence that its host allows
/// ([`SILENCE`]).
const KEPT: Duration = Duration::from_mins(1);
const _: () = assert!(KEPT.as_secs() * 5 <= SILENCE.as_secs());

/// One kept conversation per host, for a limited time: a host ends a silent conversation with a last message,
/// which would be taken for the answer to the next request.
#[derive(Debug)]
pub(super) struct Kept<T>(Mutex<BTreeMap<KvmHost, (T, Instant)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    fn all(&self) -> MutexGuard<'_, BTreeMap<KvmHost, (T, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept conversation with `host`, if it is recent enough at `now`.
    pub(super) fn take(&self, host: &KvmHost, now: Instant) -> Option<T> {
        let (kept, since) = self.all().remove(host)?;
        (now.saturating_duration_since(since) < KEPT).then_some(kept)
    }

    pub(super) fn keep(&self, host: &KvmHost, conversation: T, now: Instant) {
        self.all().insert(host.clone(), (conversation, now));
    }

    pub(super) fn look<U>(&self, host: &KvmHost, look: impl FnOnce(&T) -> U) -> Option<U> {
        self.all().get(host).map(|(kept, _)| look(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_is_taken_up_again_only_while_its_host_still_listens() {
        let kept = Kept::default();
        let (host, other) = (KvmHost::parse("a@h").unwrap(), KvmHost::parse("b@h").unwrap());
        let began = Instant::now();
        kept.keep(&host, "talk", began);
        assert_eq!(kept.take(&other, began), None);
        assert_eq!(kept.look(&host, |talk| talk.len()), Some(4));
        assert_eq!(
            kept.take(&host, began + KEPT.saturating_sub(Duration::from_millis(1))),
            Some("talk")
        );
        // Only one caller gets it.
        assert_eq!(kept.take(&host, began), None);
        kept.keep(&host, "talk", began);
        assert_eq!(kept.take(&host, began + KEPT), None);
        assert_eq!(kept.take(&host, began), None);
    }
}
