//! Keys, known hosts, readiness, multiplexed remote commands.
