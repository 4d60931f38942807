//! What OpenSSH makes of the user's `ssh_config` for a target, as `ssh -G` prints it; used to explain a failure.
//!
//! It must never connect, and never fail a call that failed for a reason of its own.

use std::path::Path;
use std::time::Duration;

use crabbox_host::command::Cmd;

use crate::target::{ArgvOptions, Target};

/// Time limit; a `Match exec` of the user may run anything.
const LIMIT: Duration = Duration::from_secs(10);

/// The settings for one target; empty when ssh cannot be asked.
#[derive(Debug, Default)]
pub(crate) struct ClientConfig {
    text: String,
}

impl ClientConfig {
    /// Asks ssh.
    pub(crate) fn of(target: &Target) -> Self {
        let own = ArgvOptions {
            own_connection: true,
            ..ArgvOptions::default()
        };
        let argv = target.ssh_argv(own);
        let asked = Cmd::new(&argv[0])
            .arg("-G")
            .args(&argv[1..])
            .environment(target.environment())
            .limit(LIMIT)
            .run();
        Self {
            text: asked.map(|asked| asked.stdout_text()).unwrap_or_default(),
        }
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter_map(move |line| {
            let (found, value) = line.split_once(' ')?;
            (found == name).then_some(value)
        })
    }

    /// Whether the proxy is an ssh client too.
    pub(crate) fn has_ssh_proxy(&self) -> bool {
        let program = self.values("proxycommand").find_map(|command| {
            let mut words = command.split_whitespace();
            words.find(|word| *word != "exec")
        });
        let is_ssh = program.is_some_and(|program| Path::new(program).file_name() == Some("ssh".as_ref()));
        is_ssh || self.values("proxyjump").any(|jump| jump != "none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_is_ssh_is_known_as_one() {
        for (text, is_ssh) in [
            ("proxyjump bastion", true),
            ("proxyjump none", false),
            ("proxycommand ssh -W %h:%p bastion", true),
            ("proxycommand exec /usr/bin/ssh -W %h:%p bastion", true),
            ("proxycommand nc %h %p", false),
            ("proxycommand sshpass ssh bastion", false),
            ("proxyusefdpass no", false),
        ] {
            let text = format!("user u\n{text}\n");
            assert_eq!(ClientConfig { text }.has_ssh_proxy(), is_ssh);
        }
    }
}
