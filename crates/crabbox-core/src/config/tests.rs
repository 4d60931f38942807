//! Resolution of several layers: precedence, merge rules, warnings, errors and trust.

mod existing;
mod jobs;
mod profiles;
mod trust;
mod volumes;

use std::path::Path;

use proptest::prelude::*;

use super::choice::Choice;
use super::key::{KEYS, Kind, Name};
use super::layer::Layer;
use super::*;
use crate::fault::Fault as _;

/// Layers under test; the repository is `/w/repo`, the home `/h`.
#[derive(Default)]
pub(super) struct World {
    files: Vec<ConfigFile>,
    variables: Vec<(String, String)>,
    flags: Vec<FlagValue>,
}

pub(super) fn world() -> World {
    World::default()
}

impl World {
    pub(super) fn user(mut self, text: &str) -> Self {
        let path = "/h/.config/crabbox/config.yaml".into();
        self.files.push(ConfigFile {
            path,
            layer: Layer::UserFile,
            text: text.to_owned(),
        });
        self
    }

    pub(super) fn repo(mut self, text: &str) -> Self {
        let path = "/w/repo/crabbox.yaml".into();
        self.files.push(ConfigFile {
            path,
            layer: Layer::RepoFile,
            text: text.to_owned(),
        });
        self
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn flag(mut self, key: Name, values: &[&str]) -> Self {
        self.flags.push(FlagValue {
            key,
            values: values.iter().map(ToString::to_string).collect(),
        });
        self
    }

    pub(super) fn tolerant(&self) -> Result<Resolution, ConfigError> {
        let lookup = |name: &str| {
            self.variables
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        resolve(&Inputs {
            files: &self.files,
            environment: &lookup,
            flags: &self.flags,
            home: Some(Path::new("/h")),
            cwd: Path::new("/w/repo/sub"),
            user_file: Some(Path::new("/h/.config/crabbox/config.yaml")),
        })
    }

    /// For callers that need all values to be readable.
    pub(super) fn resolve(&self) -> Result<Resolution, ConfigError> {
        self.tolerant()?.sound()
    }

    pub(super) fn settings(&self) -> Settings {
        self.resolve().unwrap().settings
    }

    fn warnings(&self) -> Vec<String> {
        self.resolve()
            .unwrap()
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn error(&self) -> String {
        self.resolve().unwrap_err().to_string()
    }
}

#[test]
fn defaults_are_readable_and_silent() {
    let resolution = world().resolve().unwrap();
    assert_eq!(resolution.warnings, []);
    for key in KEYS {
        assert_eq!(
            resolution.explain(key.name).layer(),
            Layer::Default,
            "{}",
            key.path
        );
    }
    assert_eq!(resolution.settings.provider(), Err(ProviderError::NotSelected));
    assert_eq!(resolution.settings.ttl.value.to_string(), "1h30m0s");
    assert_eq!(resolution.settings.ssh.key.value, Path::new("/h/.ssh/id_ed25519"));
}

#[test]
fn later_layers_win_and_name_their_origin() {
    let mut layers = world().user("class: user");
    let class = |world: &World| {
        let class = world.settings().class;
        (class.value.clone(), class.origin.to_string())
    };
    assert_eq!(
        class(&layers),
        ("user".into(), "/h/.config/crabbox/config.yaml:1:8".into())
    );
    layers = layers.repo("provider: ssh\nclass: repo\n");
    assert_eq!(class(&layers), ("repo".into(), "/w/repo/crabbox.yaml:2:8".into()));
    layers = layers.env("CRABBOX_DEFAULT_CLASS", "env");
    assert_eq!(
        class(&layers),
        ("env".into(), "environment variable CRABBOX_DEFAULT_CLASS".into())
    );
    layers = layers.flag(Name::Class, &["first", "last"]);
    assert_eq!(class(&layers), ("last".into(), "flag --class".into()));
}

#[test]
fn blank_values_never_override_except_a_text_flag() {
    let files = world()
        .user("class: a\nfirecracker: {kernel: /k}")
        .repo("class: ''\n");
    let blank = files
        .env("CRABBOX_DEFAULT_CLASS", "  ")
        .env("CRABBOX_FIRECRACKER_KERNEL", "");
    assert_eq!(blank.settings().class.value, "a");
    let settings = blank
        .flag(Name::FirecrackerKernel, &[""])
        .flag(Name::FirecrackerUser, &[""])
        .settings();
    assert_eq!(settings.firecracker.kernel.value.as_path(), Path::new("/k"));
    assert_eq!(settings.firecracker.user.value, "");
}

#[test]
fn lists_append_or_replace_as_their_key_says() {
    let settings = world()
        .user("sync: {exclude: [a, b], include: [x]}\nenv: {allow: [A]}\nresults: {junit: [r]}")
        .repo("sync: {excludes: [b, c], includes: [x, y]}\nenv: {allow: [B, C]}\nresults: {junit: [s]}")
        .settings();
    assert_eq!(settings.sync.exclude.value, ["a", "b", "b", "c"]);
    assert_eq!(settings.sync.include.value, ["x", "y"]);
    assert_eq!(settings.env_allow.value, ["B", "C"]);
    assert_eq!(settings.results.junit.value, ["s"]);
    let replaced = world()
        .user("env: {allow: [A]}")
        .env("CRABBOX_ENV_ALLOW", "X, Y")
        .settings();
    assert_eq!(replaced.env_allow.value, ["X", "Y"]);
    let none = world().env("CRABBOX_SSH_FALLBACK_PORTS", "none").settings();
    assert_eq!(none.ssh.fallback_ports.value, [0u16; 0]);
}

#[test]
fn other_spellings_of_a_key_mean_the_same() {
    let settings = world()
        .user("targetOS: macos\nlease:\n  ttl: 2h\n  idleTimeout: 1m\n")
        .settings();
    assert_eq!(settings.target.value, "macos");
    assert_eq!(settings.ttl.value.to_string(), "2h0m0s");
    assert_eq!(settings.idle_timeout.value.to_string(), "1m0s");
    let second = world()
        .env("CRABBOX_TARGET", "")
        .env("CRABBOX_TARGET_OS", "windows")
        .settings();
    assert_eq!(second.target.value, "windows");
}

#[test]
fn yaml_booleans_and_numbers_are_read_as_go_reads_them() {
    let settings = world()
        .user("sync: {delete: no, checksum: 'on'}\nfirecracker: {cpus: 0x10, memoryMiB: 1_024}\n")
        .settings();
    assert!(!settings.sync.delete.value);
    assert!(settings.sync.checksum.value);
    assert_eq!(
        (
            settings.firecracker.cpus.value,
            settings.firecracker.memory_mib.value
        ),
        (16, 1024)
    );
}

#[test]
fn what_cannot_be_used_is_left_out_with_a_warning() {
    let world = world()
        .user("ttl: 5d\nidleTimeout: 0s\nsync:\n  warnFiles: 0\n  failBytes: -3\n")
        .env("CRABBOX_FIRECRACKER_CPUS", "many")
        .env("CRABBOX_SYNC_DELETE", "perhaps")
        .env("CRABBOX_TTL", "-1h");
    let settings = world.settings();
    assert_eq!(settings.ttl.value.to_string(), "1h30m0s");
    assert_eq!(
        (settings.sync.warn_files.value, settings.sync.fail_bytes.value),
        (50_000, 21_474_836_480)
    );
    assert_eq!(
        (settings.firecracker.cpus.value, settings.sync.delete.value),
        (4, true)
    );
    assert_eq!(
        world.warnings(),
        [
            "/h/.config/crabbox/config.yaml:1:6: ttl is ignored: expected a duration greater than zero, such as 90m or 1h30m, found \"5d\"",
            "/h/.config/crabbox/config.yaml:2:14: idleTimeout is ignored: expected a duration greater than zero, such as 90m or 1h30m, found \"0s\"",
            "/h/.config/crabbox/config.yaml:4:14: sync.warnFiles is ignored: expected a whole number greater than zero, found \"0\"",
            "/h/.config/crabbox/config.yaml:5:14: sync.failBytes is ignored: expected a whole number greater than zero, found \"-3\"",
            "environment variable CRABBOX_TTL: ttl is ignored: expected a duration greater than zero, such as 90m or 1h30m, found \"-1h\"",
            "environment variable CRABBOX_SYNC_DELETE: sync.delete is ignored: expected true or false, found \"perhaps\"",
            "environment variable CRABBOX_FIRECRACKER_CPUS: firecracker.cpus is ignored: expected a whole number, found \"many\"",
        ]
    );
}

#[test]
fn unknown_keys_are_told_with_what_was_meant() {
    let world = world().repo(
        "provider: ssh\nfirecraker:\n  cpus: 1\nsync:\n  exlude: [a]\nzebra: 1\nbroker: {url: x}\nshard: {}\n",
    );
    assert_eq!(
        world.warnings(),
        [
            "/w/repo/crabbox.yaml:2:1: unknown key firecraker is ignored; did you mean firecracker?",
            "/w/repo/crabbox.yaml:5:3: unknown key sync.exlude is ignored; did you mean sync.exclude?",
            "/w/repo/crabbox.yaml:6:1: unknown key zebra is ignored",
            "/w/repo/crabbox.yaml: not supported by this program and ignored: broker, shard",
        ]
    );
}

#[test]
fn misspelt_variables_are_recognised_and_others_left_alone() {
    assert_eq!(
        suggest_variable("CRABBOX_FIRECRACKER_CPU"),
        Some("CRABBOX_FIRECRACKER_CPUS")
    );
    assert_eq!(
        suggest_variable("CRABBOX_IDLE_TIMOUT"),
        Some("CRABBOX_IDLE_TIMEOUT")
    );
    for name in [
        "CRABBOX_TTL",
        "CRABBOX_CONFIG",
        "CRABBOX_LEASE_ID",
        "CRABBOX_RUN_ID",
        "CRABBOX_SLUG",
        "CRABBOX_",
        "TTL",
    ] {
        assert_eq!(suggest_variable(name), None, "{name}");
    }
}

#[test]
fn a_wrong_value_of_a_repository_leaves_the_rest_as_it_is() {
    let text =
        "class: [a]\nttl: 20m\nfirecracker: {cpus: many, memoryMiB: 512}\nsync: 7\nos: {}\nprofiles: [a]\n";
    let told = world().user("class: mine\n").repo(text).tolerant().unwrap();
    assert_eq!(told.faults.len(), 5, "{:?}", told.faults);
    let settings = &told.settings;
    assert_eq!(settings.class.value, "mine");
    assert_eq!(settings.ttl.value.to_string(), "20m0s");
    assert_eq!(settings.firecracker.memory_mib.value, 512);
    assert_eq!(told.faults.first(), told.clone().sound().err().as_ref());
    // Invalid YAML is a single fault; in the user's own file, every error counts.
    assert_eq!(world().repo("class: [a\n").tolerant().unwrap().faults.len(), 1);
    assert!(world().user(text).tolerant().is_err());
}

/// Two valid names of this choice.
fn named(choice: Choice) -> [&'static str; 2] {
    match choice {
        Choice::Provider => ["ssh", "firecracker"],
        Choice::Target => ["linux", "macos"],
        Choice::WindowsMode => ["normal", "wsl2"],
        Choice::Architecture => ["amd64", "arm64"],
        Choice::OsImage => ["ubuntu:24.04", "ubuntu:26.04"],
        Choice::Network => ["auto", "public"],
        Choice::DesktopEnv => ["xfce", "gnome"],
    }
}

#[test]
fn a_choice_counts_by_its_name_however_it_is_written() {
    for (key, text, name) in [
        ("provider", " FireCracker", "firecracker"),
        ("target", "Ubuntu", "linux"),
        ("targetOS", "darwin", "macos"),
        ("windows.mode", "PowerShell", "normal"),
        ("architecture", "x86_64", "amd64"),
        ("architecture", "AArch64", "arm64"),
        ("os", "ubuntu-24_04", "ubuntu:24.04"),
        ("os", "ubuntu2604", "ubuntu:26.04"),
        ("network", "PUBLIC", "public"),
    ] {
        let key = key::Key::by_path(key).unwrap();
        let resolution = world().flag(key.name, &[text]).resolve().unwrap();
        assert_eq!(
            resolution.explain(key.name).value,
            Value::Text(name.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn what_chooses_nothing_is_told_by_whoever_works_with_it() {
    for (key, want) in [
        (
            Name::TargetOs,
            "target must be linux, macos, windows, or worker-runtime, found \"x\"",
        ),
        (
            Name::WindowsMode,
            "windows.mode must be normal or wsl2, found \"x\"",
        ),
        (
            Name::Architecture,
            "architecture must be amd64 or arm64, found \"x\"",
        ),
        (
            Name::OsImage,
            "unsupported os \"x\"; supported: ubuntu:26.04, ubuntu:24.04",
        ),
        (
            Name::NetworkName,
            "network must be auto, tailscale, or public, found \"x\"",
        ),
    ] {
        let row = key.key();
        let leaf = row.path.replacen('.', ": {", 1);
        let text = format!("{leaf}: x{}\n", if row.path.contains('.') { "}" } else { "" });
        for (world, origin) in [
            (world().user(&text), "/h/.config/crabbox/config.yaml:1:"),
            (world().repo(&text), "/w/repo/crabbox.yaml:1:"),
            (world().env(row.variables[0], "x"), row.variables[0]),
        ] {
            let error = world.error();
            assert!(error.starts_with(want) && error.contains(origin), "{error}");
            let stays = world.tolerant().unwrap();
            assert!(stays.explain(key).is_default(), "{key:?}");
        }
        let flag = row.flag.unwrap().name;
        let error = world().flag(key, &["x"]).tolerant().unwrap_err().to_string();
        assert_eq!(error, format!("{want} (flag --{flag})"));
    }
}

#[test]
fn an_item_that_is_nothing_is_none() {
    let settings = world()
        .user(
            "sync:\n  exclude:\n    - a\n    -\n    - b\n    - #x\n    - ~\nssh:\n  fallbackPorts: [22, ]\n\
             results:\n  junit:\n    -\n",
        )
        .settings();
    assert_eq!(settings.sync.exclude.value, ["a", "b"]);
    assert_eq!(settings.ssh.fallback_ports.value, [22]);
    assert!(settings.results.junit.value.is_empty());
}

#[test]
fn a_text_that_begins_with_a_mark_is_told_to_need_quotes() {
    for text in [
        "sync:\n  include: [!keep.txt]\n",
        "profiles: {a: {envAllow: [!X]}}\n",
        "results: {junit: !x}\n",
    ] {
        let error = world().user(text).resolve().unwrap_err();
        assert_eq!(
            error.hints(),
            ["a text that begins with ! needs quotes, as in '!keep.txt'"],
            "{error}"
        );
    }
}

#[test]
fn whole_numbers_are_taken_in_the_spelling_of_a_float() {
    let settings = world()
        .user("sync: {failBytes: 1e10}\nfirecracker: {cpus: 8.0, memoryMiB: '4.096e3'}\n")
        .env("CRABBOX_SYNC_FAIL_FILES", "1e5")
        .settings();
    assert_eq!(settings.sync.fail_bytes.value, 10_000_000_000);
    assert_eq!(settings.sync.fail_files.value, 100_000);
    assert_eq!(settings.firecracker.cpus.value, 8);
    assert_eq!(settings.firecracker.memory_mib.value, 4096);
    assert!(
        world()
            .user("firecracker: {cpus: .inf}\n")
            .error()
            .contains("1:21: .inf is not a finite number")
    );
    for text in ["8.5", "1e-1", "1e19"] {
        let error = world().user(&format!("firecracker: {{cpus: {text}}}\n")).error();
        assert!(
            error.contains("firecracker.cpus must be a whole number, found"),
            "{error}"
        );
    }
}

#[test]
fn no_fallback_ports_are_none_in_every_spelling() {
    for text in ["none", "[none]", "[]", "'NONE'"] {
        let world = world().user(&format!("ssh: {{fallbackPorts: {text}}}\n"));
        assert!(world.settings().ssh.fallback_ports.value.is_empty(), "{text}");
    }
}

#[test]
fn wrong_types_are_errors_with_their_place_and_line() {
    assert_eq!(
        world().repo("firecracker:\n  cpus: many\n").error(),
        "parse config /w/repo/crabbox.yaml:2:9: firecracker.cpus must be a whole number, found \"many\"\n  |   cpus: many\n  |         ^"
    );
    let errors = [
        (
            "firecracker: [1]\n",
            "1:14: firecracker must be a mapping of keys to values, found a list",
        ),
        (
            "sync: {exclude: {a: b}}\n",
            "1:17: sync.exclude must be a list of texts, found a mapping",
        ),
        (
            "ssh: {port: 65536}\n",
            "1:13: ssh.port must be a port number from 1 to 65535, found \"65536\"",
        ),
        (
            "ttl: [5m]\n",
            "1:6: ttl must be a duration such as 90m or 1h30m, found a list",
        ),
        ("class: {a: 1}\n", "1:8: class must be a text, found a mapping"),
        (
            "- a\n",
            "1:1: a configuration file must be a mapping of keys to values, found a list",
        ),
        (
            "sync:\n  exclude:\n    - a\n    - {b: c}\n",
            "4:7: each item of sync.exclude must be a text, found a mapping",
        ),
        (
            "lease: {expose: [22, 70000]}\n",
            "1:22: each item of lease.expose must be a port number from 1 to 65535, found \"70000\"",
        ),
        (
            "sync:\n  exclude:\n    - a\n    - !keep.txt\n",
            "4:7: each item of sync.exclude must be a text, found the tag \"!keep.txt\" without a value\n  |     - !keep.txt\n  |       ^",
        ),
        (
            "class: !a\n",
            "1:8: class must be a text, found the tag \"!a\" without a value",
        ),
        ("class: a\nclass: b\n", "2:1: the key \"class\" appears twice"),
        ("class: \"a\n", "1:8: "),
    ];
    for (text, want) in errors {
        let error = world().repo(text).error();
        let place = format!("parse config /w/repo/crabbox.yaml:{want}");
        assert!(error.starts_with(&place), "{text:?}: {error}");
    }
    let flag = world().flag(Name::Ttl, &["5d"]).error();
    assert_eq!(
        flag,
        "invalid value \"5d\" for flag -ttl: expected a duration greater than zero, such as 90m or 1h30m"
    );
    assert!(world().flag(Name::IdleTimeout, &["0s"]).resolve().is_err());
}

#[test]
fn terminal_control_characters_do_not_leave_a_message() {
    let error = world()
        .repo("firecracker:\n  cpus: \"\\e[2J\x7f\u{9b}x\"\n")
        .error();
    let controls: Vec<char> = error.chars().filter(|c| c.is_control() && *c != '\n').collect();
    assert_eq!(controls, [], "{error:?}");
    let warning = world().repo("\"ze\\e[2Jbra\": 1\n").warnings().join("");
    assert!(!warning.contains('\u{1b}'), "{warning:?}");
}

#[test]
fn providers_are_known_by_name_and_alias() {
    let chosen = |name: &str| world().flag(Name::ProviderName, &[name]).settings().provider();
    assert_eq!(chosen("firecracker"), Ok(Provider::Firecracker));
    assert_eq!(chosen("static-ssh"), Ok(Provider::Ssh));
    assert_eq!(
        chosen("hetzner"),
        Err(ProviderError::Unknown {
            name: "hetzner".into()
        })
    );
}

/// A valid value of the key, derived from a number.
fn spelling(key: &key::Key, seed: u16) -> String {
    match key.kind {
        _ if key.name == Name::CacheVolumes => format!("v{seed}:/p{seed}"),
        Kind::Text | Kind::List | Kind::Choice(Choice::Provider) => format!("v{seed}"),
        Kind::Choice(choice) => named(choice)[usize::from(seed) % 2].to_owned(),
        Kind::Path | Kind::Program => format!("/p/{seed}"),
        Kind::Integer => (u32::from(seed) + 1).to_string(),
        Kind::Port | Kind::Ports => seed.max(1).to_string(),
        Kind::Bool => seed.is_multiple_of(2).to_string(),
        Kind::Duration => format!("{}s", u32::from(seed) + 1),
    }
}

proptest! {
    /// For every key and every set of layers that set it, the strongest permitted layer applies.
    #[test]
    fn the_strongest_layer_that_may_set_a_key_counts(
        index in 0..KEYS.len(), seed in any::<u16>(),
        user in any::<bool>(), repo in any::<bool>(), env in any::<bool>(), flag in any::<bool>(),
    ) {
        let key = &KEYS[index];
        prop_assume!(!matches!(key.merge, key::Merge::Append | key::Merge::AppendUnique));
        let yaml = |value: String| match key.path.split_once('.') {
            Some((section, leaf)) => format!("{section}:\n  {leaf}: {value}\n"),
            None => format!("{}: {value}\n", key.path),
        };
        let mut layers = world();
        let mut want = Layer::Default;
        if user {
            layers = layers.user(&yaml(spelling(key, seed)));
            want = Layer::UserFile;
        }
        if repo {
            layers = layers.repo(&yaml(spelling(key, seed.wrapping_add(1))));
            let keeps = key.name == Name::ProviderName && user;
            want = if key.trust.is_open_to_repositories() && !keeps { Layer::RepoFile } else { want };
        }
        if let Some(variable) = key.variables.first().filter(|_| env) {
            layers = layers.env(variable, &spelling(key, seed.wrapping_add(2)));
            want = Layer::Environment;
        }
        if flag && key.flag.is_some() {
            layers = layers.flag(key.name, &[&spelling(key, seed.wrapping_add(3))]);
            want = Layer::Flag;
        }
        let resolution = layers.resolve().unwrap();
        prop_assert_eq!(resolution.explain(key.name).layer(), want, "{}", key.path);
        // No other key was touched.
        for other in KEYS.iter().filter(|other| other.name != key.name) {
            prop_assert_eq!(resolution.explain(other.name).layer(), Layer::Default, "{} by {}", other.path, key.path);
        }
    }

    /// Whatever a repository writes, settings that select programs and files of the host stay the user's.
    #[test]
    fn no_repository_text_reaches_a_host_only_key(text in "(firecracker:\n)?( {0,2}(binary|kernel|image|network|jailer|<<|&a|\\*a): ?[a-z/{}\\[\\]&*: ]{0,8}\n){0,6}") {
        if let Ok(resolution) = world().repo(&text).resolve() {
            for key in KEYS.iter().filter(|key| !key.trust.is_open_to_repositories()) {
                prop_assert_eq!(resolution.explain(key.name).layer(), Layer::Default, "{}", key.path);
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,60}|[a-z:\\-\\[\\]{}&*!|>'\"%@` \n\t#]{0,80}") {
        let _outcome = world().repo(&text).resolve();
    }
}
