//! What OpenSSH makes of the user's `ssh_config` for a target, as `ssh -G` prints it; used to explain a failure.
//!
//! It must never connect, and never fail a call that failed for a reason of its own.

use std::path::{Path, PathBuf};
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

    /// The key files that exist, those that ssh looks for by default among them.
    pub(crate) fn keys(&self, target: &Target) -> Vec<PathBuf> {
        let home = std::env::home_dir();
        let paths = self.values("identityfile");
        let paths = paths.filter_map(|path| expanded(path, target, home.as_deref()));
        paths.filter(|path| path.is_file()).collect()
    }

    /// The agent's socket if the configuration names one: `none` for no agent at all.
    pub(crate) fn agent(&self) -> Option<&str> {
        // By name it is the usual one; another variable cannot be told from here.
        let named = self.values("identityagent").next()?;
        (named != "SSH_AUTH_SOCK" && !named.starts_with('$')).then_some(named)
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

/// A path as ssh expands it (`TOKENS` of ssh_config(5)); `None` with a token that depends on more than the
/// target.
fn expanded(path: &str, target: &Target, home: Option<&Path>) -> Option<PathBuf> {
    let (mut text, mut rest) = (String::new(), path);
    if let Some(inside) = path.strip_prefix("~/") {
        text = format!("{}/", home?.to_str()?);
        rest = inside;
    }
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let token = after.chars().next()?;
        match token {
            '%' => text.push('%'),
            'd' => text.push_str(home?.to_str()?),
            'n' => text.push_str(&target.host),
            'r' => text.push_str(&target.user),
            _ => return None,
        }
        rest = &after[token.len_utf8()..];
    }
    text.push_str(rest);
    Some(PathBuf::from(text))
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

    #[test]
    fn a_key_s_path_is_expanded_as_ssh_does() {
        let target = Target::new("u", "h", 22, Path::new("/k/known_hosts")).unwrap();
        let path = |path: &str| expanded(path, &target, Some(Path::new("/home/u")));
        for (written, meant) in [
            ("~/.ssh/id_rsa", "/home/u/.ssh/id_rsa"),
            ("%d/.ssh/%r@%n", "/home/u/.ssh/u@h"),
            ("/k/100%%/a b", "/k/100%/a b"),
        ] {
            assert_eq!(path(written), Some(PathBuf::from(meant)));
        }
        assert_eq!(path("/k/%C"), None);
        assert_eq!(path("/k/%"), None);
    }
}
