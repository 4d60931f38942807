//! The sudoers file: which commands the account may run as root, each with its full argument list.
//!
//! The file must never let the account choose an argument.

use std::collections::BTreeSet;
use std::path::Path;

use super::ACCOUNT;

/// The name of the command alias; all sudoers files share one namespace.
const ALIAS: &str = "CRABBOX_SERVE";

/// The search path of the commands.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file for `owners`; `None` if there are none, because sudo does not accept an empty command list.
pub(super) fn text(exe: &Path, owners: &BTreeSet<String>) -> Option<String> {
    let commands: Vec<String> = owners
        .iter()
        .map(|owner| format!("{} __serve --as {owner}", exe.display()))
        .collect();
    // The streams are pipes, so a pty would only get in the way. No environment variables are passed on,
    // whatever else the host's sudoers files allow.
    (!commands.is_empty()).then(|| {
        format!(
            "# Written by `crabbox setup firecracker --serve`, which writes it anew when an owner comes or goes.\n\
             Cmnd_Alias {ALIAS} = {}\n\
             Defaults!{ALIAS} !use_pty, !requiretty, env_reset, !env_keep, !env_check, always_set_home, !setenv, \
             secure_path=\"{PATH}\"\n\
             {ACCOUNT} ALL=(root) NOPASSWD: {ALIAS}\n",
            commands.join(", \\\n    ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_is_one_command_with_all_of_its_words() {
        let owners = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let exe = Path::new("/usr/local/bin/crabbox");
        assert_eq!(text(exe, &owners(&[])), None);
        let two = text(exe, &owners(&["bob", "alice"])).unwrap();
        let (_, rules) = two.split_once('\n').unwrap();
        assert_eq!(
            rules,
            "Cmnd_Alias CRABBOX_SERVE = /usr/local/bin/crabbox __serve --as alice, \\\n    \
             /usr/local/bin/crabbox __serve --as bob\n\
             Defaults!CRABBOX_SERVE !use_pty, !requiretty, env_reset, !env_keep, !env_check, always_set_home, !setenv, \
             secure_path=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"\n\
             crabbox ALL=(root) NOPASSWD: CRABBOX_SERVE\n"
        );
    }
}
