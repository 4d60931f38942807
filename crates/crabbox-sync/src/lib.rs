//! Git manifest, fingerprint, guardrails, rsync, pull-back.
