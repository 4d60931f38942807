//! Flags of lease creation, given for a lease that exists.

use super::super::fit::{check_existing, unfollowed};
use super::super::key::{Group, KEYS, Key, Kind, Name};
use super::super::{Provider, Settings};
use super::world;

/// A value that asks for something.
fn value(key: &Key) -> &'static str {
    match (key.name, key.kind) {
        (Name::OsImage, _) => "ubuntu:24.04",
        (Name::DesktopEnv, _) => "gnome",
        (Name::Architecture, _) => "arm64",
        (_, Kind::Bool) => "true",
        (_, Kind::Duration) => "1h",
        (_, Kind::Port | Kind::Ports) => "80",
        (_, Kind::List) => "deps=deps:/deps",
        _ => "x",
    }
}

/// What becomes of the one setting, in a word.
fn verdict(settings: &Settings, provider: Provider) -> String {
    let refused = check_existing(settings, provider).is_err().then_some("refused");
    let named = unfollowed(settings, provider);
    refused.into_iter().chain(named).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_flag_of_lease_creation_is_refused_followed_or_named() {
    for key in KEYS {
        let Some(flag) = key.flag.filter(|flag| flag.group == Group::Create) else {
            continue;
        };
        for provider in Provider::ALL {
            let is_microvm = provider == Provider::Firecracker;
            let expected = match key.name {
                Name::Architecture | Name::Desktop | Name::Browser | Name::Code => "refused",
                Name::Class | Name::ServerType if is_microvm => "refused",
                // Volumes are compared with the lease's own, and a desktop's kind asks for none.
                Name::Profile | Name::IdleTimeout | Name::CacheVolumes | Name::DesktopEnv => "",
                Name::SshPort if !is_microvm => "",
                _ => flag.name,
            };
            let given = world().flag(key.name, &[value(key)]).settings();
            let found = verdict(&given, provider);
            let found = found
                .strip_prefix("refused ")
                .map_or(found.as_str(), |_| "refused");
            assert_eq!(found, expected, "--{} {provider:?}", flag.name);
            // What a variable says is for new leases.
            if let [variable, ..] = key.variables {
                let configured = world().env(variable, value(key)).settings();
                assert_eq!(verdict(&configured, provider), "", "{variable} {provider:?}");
            }
        }
    }
}
