//! How rsync reaches the lease.
//!
//! Either SSH with the options of a [`Target`], or a shell on this machine that takes the very same
//! arguments, so that tests can run the real code thousands of times. It must never add options of its own to
//! a connection.

use crabbox_host::environment::Environment;
use crabbox_ssh::target::Target;

/// How rsync reaches a machine.
#[derive(Debug, Clone)]
pub struct Channel {
    environment: Environment,
    rsh: String,
    host: String,
}

impl Channel {
    /// Over SSH, sharing the target's connection.
    pub fn ssh(target: &Target) -> Self {
        let host = if target.host.contains(':') {
            format!("{}@[{}]", target.user, target.host)
        } else {
            target.destination()
        };
        Self {
            environment: target.environment(),
            rsh: target.rsh_for_rsync(),
            host,
        }
    }

    /// This machine, through a shell that joins its arguments as a remote one would.
    pub fn local() -> Self {
        Self {
            environment: Environment::Plain,
            rsh: r#"sh -c 'eval "$*"'"#.to_owned(),
            host: "local".to_owned(),
        }
    }

    /// Which part of the caller's environment the SSH client and rsync get.
    pub(crate) fn environment(&self) -> Environment {
        self.environment
    }

    /// The value of rsync's `-e`.
    pub(crate) fn rsh(&self) -> &str {
        &self.rsh
    }

    /// What rsync puts before the colon of a remote path.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}
