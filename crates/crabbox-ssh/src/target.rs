//! The SSH destination and the options of every `ssh` that this program starts.
//!
//! One [`Target`] gives the same arguments to a remote command, to `rsync -e` and to the line that
//! `crabbox ssh` prints. It must never let a host name, a path or a user name become an option.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crabbox_host::command::Cmd;
use crabbox_host::environment::Environment;

use crate::quote;

/// How long a TCP connection plus key exchange may take, as in the Go program.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the shared connection outlives its last user, in OpenSSH's notation, as in the Go program.
pub(crate) const CONTROL_PERSIST: &str = "10m";

/// The key exchange for a lease whose traffic never leaves this machine. OpenSSH's default since 9.0 adds a
/// post-quantum part against recording traffic today and decrypting it later. Local traffic cannot be
/// recorded, and that part is most of a handshake: 58 ms of the client's CPU time against 7 (ten handshakes
/// with 9.2), and far more on an emulated CPU.
const LOCAL_KEY_EXCHANGE: &str = "KexAlgorithms=^curve25519-sha256,curve25519-sha256@libssh.org";

/// A machine reached by SSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Login name.
    pub user: String,
    /// Address or name; never starts with `-`.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Private key; `None` leaves the choice to OpenSSH (agent, default keys).
    pub key: Option<PathBuf>,
    /// The `known_hosts` file of this lease.
    pub known_hosts: PathBuf,
    /// True when `known_hosts` was written by us from the key that we gave to the host: no other key is ever
    /// accepted.
    pub host_key_pinned: bool,
    /// Where the shared connection's socket is (see [`crate::control`]); `None` switches sharing off.
    pub control: Option<PathBuf>,
    /// Limit for one connection attempt; OpenSSH counts whole seconds.
    pub connect_timeout: Duration,
    /// How many times ssh tries to connect before it gives up.
    pub connection_attempts: u32,
    /// A command whose standard streams are the connection, for hosts without a route.
    pub proxy_command: Option<String>,
    /// Read the user's and the system's `ssh_config` too. Set for a host that the user configured there; not
    /// set for our own leases, which a stray `Host *` rule could only break.
    pub user_config: bool,
    /// The lease runs on this machine: its traffic crosses no network, so a cheaper handshake is enough.
    pub on_this_machine: bool,
    /// The total size of its disks and memory in bytes, if known: an upper bound for what its files can hold.
    pub capacity: Option<u64>,
    /// Further `-o` values, for example `LogLevel=QUIET`.
    pub extra: Vec<String>,
}

/// Why a target is invalid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// The user name would be read as something else.
    #[error("ssh user name {user:?} is empty, starts with '-', or holds a space or control character")]
    User {
        /// The refused name.
        user: String,
    },
    /// The host name would be read as something else.
    #[error("ssh host {host:?} is empty, starts with '-', or holds a space, '@' or control character")]
    Host {
        /// The refused name.
        host: String,
    },
    /// OpenSSH would read the key's path as another one.
    #[error("ssh key path {key:?} contains \"${{\", which OpenSSH would expand and which cannot be escaped")]
    Key {
        /// The refused path.
        key: PathBuf,
    },
}

/// What one `ssh` call adds to the options of its target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArgvOptions {
    /// `-n`: standard input is `/dev/null`.
    pub no_stdin: bool,
    /// `-t`: ask for a terminal.
    pub tty: bool,
    /// Leave the control options out, so that this call has a connection of its own.
    pub own_connection: bool,
}

impl Target {
    /// A target with the usual limits, no key, host key not pinned and sharing off.
    pub fn new(user: &str, host: &str, port: u16, known_hosts: &Path) -> Result<Self, TargetError> {
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if user.is_empty() || user.starts_with('-') || user.contains(odd) {
            return Err(TargetError::User {
                user: user.to_owned(),
            });
        }
        if host.is_empty() || host.starts_with('-') || host.contains(|c: char| odd(c) || c == '@') {
            return Err(TargetError::Host {
                host: host.to_owned(),
            });
        }
        Ok(Self {
            user: user.to_owned(),
            host: host.to_owned(),
            port,
            key: None,
            known_hosts: known_hosts.to_owned(),
            host_key_pinned: false,
            control: None,
            connect_timeout: CONNECT_TIMEOUT,
            connection_attempts: 3,
            proxy_command: None,
            user_config: false,
            on_this_machine: false,
            capacity: None,
            extra: Vec::new(),
        })
    }

    /// Sets a key that the user chose; `None` leaves the choice to OpenSSH. (A key in one of our own
    /// directories is put into [`Target::key`] directly.) OpenSSH has an escape for `%` in a path, and none
    /// for `${`.
    pub fn offer(&mut self, key: Option<&Path>) -> Result<(), TargetError> {
        if let Some(key) = key.filter(|key| key.to_string_lossy().contains("${")) {
            return Err(TargetError::Key { key: key.to_owned() });
        }
        self.key = key.map(Path::to_owned);
        Ok(())
    }

    /// `user@host`.
    pub fn destination(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }

    /// The argument vector up to and including `user@host`; the first word is `ssh`, and a remote command may
    /// be appended.
    pub fn ssh_argv(&self, options: ArgvOptions) -> Vec<OsString> {
        let mut words = self.words(options);
        words.push(self.destination());
        words.into_iter().map(OsString::from).collect()
    }

    /// Which part of the caller's environment the SSH client for this target gets. A client that reads the
    /// user's configuration or has a proxy command starts programs of the user's choice, which may need any
    /// variable.
    pub fn environment(&self) -> Environment {
        if self.user_config || self.proxy_command.is_some() {
            Environment::Whole
        } else {
            Environment::Login
        }
    }

    /// The value for `rsync -e`: the same options, without the destination, quoted the way rsync splits them.
    pub fn rsh_for_rsync(&self) -> String {
        let words = self.words(ArgvOptions::default());
        words
            .iter()
            .map(|word| quote::rsync_word(word))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The line that `crabbox ssh` prints: every word single-quoted, ready to paste into a shell.
    pub fn display_line(&self) -> String {
        // As the Go program prints it; a user who pastes it wants their own configuration to apply.
        let mut words = Self {
            user_config: true,
            on_this_machine: false,
            ..self.clone()
        }
        .go_words(ArgvOptions::default());
        words.push(self.destination());
        quote::join(words)
    }

    /// The options for calls of this program: those of the Go program, and if the user's configuration is
    /// read, further ones that keep it from changing what the call does.
    fn words(&self, options: ArgvOptions) -> Vec<String> {
        let mut words = self.go_words(options);
        if self.user_config {
            let newer = NEUTRAL_NEWER.iter().filter(|_| client_is_8_7());
            for option in NEUTRAL.iter().chain(newer) {
                words.extend(["-o".to_owned(), (*option).to_owned()]);
            }
            if !options.tty {
                words.extend(["-o".to_owned(), "RequestTTY=no".to_owned()]);
            }
            // If there is a key, it must be offered.
            if self.key.is_some() {
                words.extend(["-o".to_owned(), "PubkeyAuthentication=yes".to_owned()]);
            }
            if self.proxy_command.is_some() {
                words.extend(["-o".to_owned(), "ProxyUseFdpass=no".to_owned()]);
            }
        }
        words
    }

    /// Options in the order of the Go program, so that scripts which look for them keep working.
    fn go_words(&self, options: ArgvOptions) -> Vec<String> {
        let mut words = vec!["ssh".to_owned()];
        if !self.user_config {
            words.extend(["-F".to_owned(), "none".to_owned()]);
        }
        if let Some(key) = &self.key {
            words.extend(key_words(key));
        }
        let mut option = |text: String| words.extend(["-o".to_owned(), text]);
        if self.key.is_some() {
            option("IdentitiesOnly=yes".to_owned());
        }
        for fixed in [
            "ForwardAgent=no",
            "ForwardX11=no",
            "ForwardX11Trusted=no",
            "BatchMode=yes",
        ] {
            option(fixed.to_owned());
        }
        option(format!(
            "ConnectTimeout={}",
            self.connect_timeout.as_secs().max(1)
        ));
        option(format!("ConnectionAttempts={}", self.connection_attempts));
        option("ServerAliveInterval=15".to_owned());
        option("ServerAliveCountMax=2".to_owned());
        words.extend(["-p".to_owned(), self.port.to_string()]);
        self.host_key_words(&mut words);
        if let Some(command) = &self.proxy_command {
            words.extend(["-o".to_owned(), format!("ProxyCommand={command}")]);
        }
        if self.on_this_machine {
            words.extend(["-o".to_owned(), LOCAL_KEY_EXCHANGE.to_owned()]);
        }
        for extra in &self.extra {
            words.extend(["-o".to_owned(), extra.clone()]);
        }
        self.control_words(options, &mut words);
        if options.no_stdin {
            words.push("-n".to_owned());
        }
        if options.tty {
            words.push("-t".to_owned());
        }
        words
    }

    fn host_key_words(&self, words: &mut Vec<String>) {
        let mut option = |text: &str| words.extend(["-o".to_owned(), text.to_owned()]);
        let known_hosts = format!("UserKnownHostsFile={}", config_path(&self.known_hosts));
        if !self.host_key_pinned {
            option("StrictHostKeyChecking=accept-new");
            option(&known_hosts);
            return;
        }
        option("StrictHostKeyChecking=yes");
        option(&known_hosts);
        for closed in [
            "GlobalKnownHostsFile=none",
            "KnownHostsCommand=none",
            "VerifyHostKeyDNS=no",
            "UpdateHostKeys=no",
            "CheckHostIP=no",
        ] {
            option(closed);
        }
    }

    fn control_words(&self, options: ArgvOptions, words: &mut Vec<String>) {
        let mut option = |text: String| words.extend(["-o".to_owned(), text]);
        match &self.control {
            Some(control) if !options.own_connection => {
                option("ControlMaster=auto".to_owned());
                option(format!("ControlPersist={CONTROL_PERSIST}"));
                option(format!("ControlPath={}", config_path(control)));
            }
            // Explicit, because a `Host *` rule of the user may switch sharing on.
            _ if self.user_config => {
                option("ControlMaster=no".to_owned());
                option("ControlPath=none".to_owned());
            }
            _ => {}
        }
    }
}

/// Resets what a user's `ssh_config` sets for their own sessions. ssh uses the first value of an option, so a
/// call that needs another value puts it before these.
const NEUTRAL: [&str; 9] = [
    "RemoteCommand=none",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
    "ExitOnForwardFailure=no",
    "Tunnel=no",
    "EscapeChar=~",
    "LogLevel=INFO",
    "VisualHostKey=no",
    // OpenSSH's default: some users put password first, which cannot be entered here.
    "PreferredAuthentications=gssapi-with-mic,hostbased,publickey,keyboard-interactive,password",
];

/// Further options, which OpenSSH older than 8.7 refuses.
const NEUTRAL_NEWER: [&str; 3] = [
    "StdinNull=no",
    "ForkAfterAuthentication=no",
    "SessionType=default",
];

/// Whether the client is OpenSSH 8.7 or newer; asked once. If the version is unknown, the newer options are
/// left out, which such a client's configuration cannot have either.
fn client_is_8_7() -> bool {
    static NEWER: OnceLock<bool> = OnceLock::new();
    *NEWER.get_or_init(|| {
        let version = Cmd::new("ssh").arg("-V").limit(CONNECT_TIMEOUT).capture();
        version.is_ok_and(|version| is_8_7(&version.stderr_text()))
    })
}

/// Reads what `ssh -V` prints: `OpenSSH_9.2p1 Debian-2, OpenSSL 3.0`.
fn is_8_7(version: &str) -> bool {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    let parts = version
        .split_once("OpenSSH_")
        .and_then(|(_, rest)| rest.split_once('.'));
    parts.is_some_and(|(major, minor)| (number(major), number(minor)) >= (Some(8), Some(7)))
}

/// `-i KEY`, except for a path with `%`: `-i` looks for the file before the expansion that it then also does.
fn key_words(key: &Path) -> [String; 2] {
    let path = key.to_string_lossy();
    if path.contains('%') {
        ["-o".to_owned(), format!("IdentityFile={}", config_path(key))]
    } else {
        ["-i".to_owned(), path.into_owned()]
    }
}

/// Escapes `%` as `%%`, because OpenSSH expands `%` in paths.
fn percent_escaped(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%%")
}

/// A path as the value of an `-o` option, which is split at white space like a line of `ssh_config`.
pub(crate) fn config_path(path: &Path) -> String {
    let escaped = percent_escaped(path);
    if escaped.contains([' ', '\t', '"', '\'', '\\', '#']) {
        format!("\"{}\"", escaped.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        let mut target = Target::new("crabbox", "10.0.0.2", 22, Path::new("/k/known_hosts")).unwrap();
        target.key = Some(PathBuf::from("/k/id_ed25519"));
        target.control = Some(PathBuf::from("/run/user/0/crabbox/0011223344556677"));
        target
    }

    #[test]
    fn the_words_and_their_order_are_those_of_the_go_program() {
        assert_eq!(
            target().display_line().replace('\'', ""),
            "ssh -i /k/id_ed25519 -o IdentitiesOnly=yes -o ForwardAgent=no -o ForwardX11=no -o ForwardX11Trusted=no \
             -o BatchMode=yes -o ConnectTimeout=10 -o ConnectionAttempts=3 -o ServerAliveInterval=15 \
             -o ServerAliveCountMax=2 -p 22 -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/k/known_hosts \
             -o ControlMaster=auto -o ControlPersist=10m -o ControlPath=/run/user/0/crabbox/0011223344556677 \
             crabbox@10.0.0.2"
        );
    }

    #[test]
    fn a_pinned_host_closes_every_other_source_of_host_keys() {
        let mut target = target();
        target.host_key_pinned = true;
        let line = target.display_line().replace('\'', "");
        assert!(
            line.contains(
                "-o StrictHostKeyChecking=yes -o UserKnownHostsFile=/k/known_hosts -o GlobalKnownHostsFile=none \
                 -o KnownHostsCommand=none -o VerifyHostKeyDNS=no -o UpdateHostKeys=no -o CheckHostIP=no"
            ),
            "{line}"
        );
        assert!(!line.contains("accept-new"), "{line}");
    }

    #[test]
    fn a_host_or_user_cannot_become_an_option() {
        for bad in ["-oProxyCommand=x", "", "a b", "a\nb"] {
            let host = Target::new("u", bad, 22, Path::new("/k"));
            assert!(matches!(host, Err(TargetError::Host { .. })), "{bad:?}: {host:?}");
            let user = Target::new(bad, "h", 22, Path::new("/k"));
            assert!(matches!(user, Err(TargetError::User { .. })), "{bad:?}: {user:?}");
        }
        let host = Target::new("u", "evil@h", 22, Path::new("/k"));
        assert!(matches!(host, Err(TargetError::Host { .. })), "{host:?}");
    }

    #[test]
    fn a_key_whose_path_openssh_would_change_is_refused() {
        let mut target = target();
        for odd in ["/h/${HOME}/id", "/h/${x"] {
            let refused = target.offer(Some(Path::new(odd)));
            assert!(
                matches!(refused, Err(TargetError::Key { .. })),
                "{odd}: {refused:?}"
            );
        }
        target.offer(Some(Path::new("/h/$HOME/100%/{a}"))).unwrap();
        assert_eq!(target.key.as_deref(), Some(Path::new("/h/$HOME/100%/{a}")));
        target.offer(None).unwrap();
        assert_eq!(target.key, None);
    }

    /// Asks OpenSSH itself (`-G` prints the options as it understood them) how it reads odd paths.
    #[test]
    fn odd_paths_reach_openssh_unchanged() {
        let mut target = target();
        target.known_hosts = PathBuf::from("/a b/100%/it's \"q\"/known_hosts");
        target.control = Some(PathBuf::from("/c d/50%/sock"));
        target.key = Some(PathBuf::from("/a b/100%/id"));
        let argv = target.ssh_argv(ArgvOptions::default());
        let seen = Cmd::new(&argv[0])
            .arg("-G")
            .args(&argv[1..])
            .run()
            .unwrap()
            .stdout_text();
        for line in [
            "userknownhostsfile /a b/100%/it's \"q\"/known_hosts",
            "controlpath /c d/50%/sock",
            "identityfile /a b/100%%/id",
        ] {
            assert!(seen.contains(line), "{line} is missing in:\n{seen}");
        }
    }

    #[test]
    fn a_lease_of_our_own_ignores_the_configuration_of_the_user_except_in_the_printed_line() {
        let argv = target().ssh_argv(ArgvOptions::default());
        assert_eq!(argv[1..3], ["-F", "none"]);
        assert!(
            target()
                .rsh_for_rsync()
                .starts_with("ssh -F none -i /k/id_ed25519 -o IdentitiesOnly=yes")
        );
        assert!(target().display_line().starts_with("'ssh' '-i' '/k/id_ed25519'"));
    }

    #[test]
    fn a_connection_of_its_own_names_no_control_socket() {
        let target = Target {
            user_config: true,
            ..target()
        };
        let argv = target.ssh_argv(ArgvOptions {
            own_connection: true,
            no_stdin: true,
            tty: false,
        });
        let line = argv
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        assert!(
            line.contains("-o ControlMaster=no -o ControlPath=none -n -o RemoteCommand=none"),
            "{line}"
        );
    }

    #[test]
    fn a_client_says_whether_it_knows_the_newer_options() {
        for (version, newer) in [
            ("OpenSSH_8.4p1 Debian-5, OpenSSL 1.1.1", false),
            ("OpenSSH_8.7p1", true),
            ("OpenSSH_9.2p1 Debian-2+deb12u3, OpenSSL 3.0.15", true),
            ("OpenSSH_10.0p2", true),
            ("OpenSSH_for_Windows_8.1p1", false),
            ("dropbear", false),
        ] {
            assert_eq!(is_8_7(version), newer, "{version}");
        }
    }

    /// Checks every option that a user may set for their own sessions, with OpenSSH itself (`-G`), for each
    /// form of our calls.
    #[test]
    fn nothing_that_a_user_s_configuration_has_for_sessions_reaches_ours() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let own = "Host *\nRemoteCommand tmux new\nStdinNull yes\nRequestTTY force\nForkAfterAuthentication yes\n\
                   SessionType none\nPermitLocalCommand yes\nLocalCommand touch /evil\nControlPath /evil\nControlMaster yes\n\
                   Tunnel yes\nLocalForward 1 h:1\nRemoteForward 1 h:1\nDynamicForward 1\nExitOnForwardFailure yes\n\
                   LogLevel DEBUG3\nEscapeChar x\nPubkeyAuthentication no\nPreferredAuthentications password\nBatchMode no\nForwardAgent yes\nForwardX11 yes\n";
        std::fs::write(&config, own).unwrap();
        let mut target = target();
        target.user_config = true;
        for own_connection in [true, false] {
            let options = ArgvOptions {
                own_connection,
                ..ArgvOptions::default()
            };
            let argv = target.ssh_argv(options);
            let seen = Cmd::new("ssh")
                .arg("-F")
                .arg(&config)
                .arg("-G")
                .args(&argv[1..])
                .run()
                .unwrap();
            let seen = seen.stdout_text().to_lowercase();
            for evil in [
                "remotecommand tmux",
                "stdinnull yes",
                "requesttty force",
                "forkafterauthentication yes",
                "sessiontype none",
                "permitlocalcommand yes",
                "controlpath /evil",
                "controlmaster true",
                "controlmaster yes",
                "tunnel true",
                "tunnel yes",
                "localforward",
                "remoteforward",
                "dynamicforward",
                "exitonforwardfailure yes",
                "loglevel debug",
                "escapechar x",
                "pubkeyauthentication no",
                "pubkeyauthentication false",
                "preferredauthentications password",
                "batchmode no",
                "forwardagent yes",
                "forwardx11 yes",
            ] {
                assert!(
                    !seen.lines().any(|line| line.starts_with(evil)),
                    "{evil} in\n{seen}"
                );
            }
        }
        assert!(
            !target.display_line().contains("RemoteCommand"),
            "the pasted line is the user's own session"
        );
    }
}
