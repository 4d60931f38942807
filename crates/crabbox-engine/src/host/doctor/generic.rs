//! The checks that belong to no provider, and the check that replaces those of a provider that cannot be
//! checked.

use std::os::unix::fs::PermissionsExt as _;

use crabbox_core::config::Settings;
use crabbox_ssh::quote;

use super::check::{Check, Options, Status};
use super::world::{ObserveError, Tools};

/// The programs that every provider needs, in the order they are shown.
const NEEDED: [&str; 4] = ["git", "ssh", "ssh-keygen", "rsync"];

/// Checks the configuration, provider, tools and key.
pub(super) fn checks(settings: &Settings, options: &Options, tools: &Tools) -> Vec<Check> {
    let mode = std::fs::metadata(&options.config_file)
        .ok()
        .map(|facts| facts.permissions().mode() & 0o7777);
    let mut checks: Vec<Check> = mode.map(|mode| config(options, mode)).into_iter().collect();
    checks.push(selection(settings));
    checks.extend(NEEDED.map(|name| tool(name, tools)));
    checks.push(ssh_key(options));
    checks
}

fn config(options: &Options, mode: u32) -> Check {
    let path = options.config_file.display();
    let with = |status, message| {
        Check::generic(status, "config", message)
            .with("path", &path)
            .with("permissions", format!("{mode:04o}"))
    };
    if mode & !0o600 == 0 {
        return with(Status::Ok, format!("{path} permissions={mode:04o}"));
    }
    // The file may hold a token, and decides which programs run here, so others must not read or write it.
    with(
        Status::Failed,
        format!("{path}: permissions {mode:04o} want 0600"),
    )
    .with("fix", format!("chmod 600 {}", quote::line([path.to_string()])))
}

fn selection(settings: &Settings) -> Check {
    let source = settings.provider.layer().source_name();
    if settings.provider.is_default() {
        let message = format!("provider= source={source} selected=false");
        return Check::generic(Status::Warning, "provider-selection", message)
            .with("source", source)
            .with("selected", "false")
            .with("fix", "crabbox doctor --provider firecracker");
    }
    let name = settings
        .provider()
        .map_or(settings.provider.value.as_str(), |provider| provider.name());
    let message = format!("provider={name} source={source} selected=true");
    Check::of_provider(name, Status::Ok, "provider-selection", message)
}

fn tool(name: &'static str, tools: &Tools) -> Check {
    let Some(tool) = tools.get(name).and_then(Option::as_ref) else {
        let package = match name {
            "ssh" | "ssh-keygen" => "openssh-client",
            other => other,
        };
        return Check::generic(Status::Missing, name, "")
            .with("tool", name)
            .with("fix", format!("sudo apt-get install {package}"));
    };
    let path = tool.path.display();
    Check::generic(Status::Ok, name, path.to_string())
        .with("path", path)
        .with("tool", name)
}

fn ssh_key(options: &Options) -> Check {
    let Some(key) = &options.ssh_key else {
        return Check::generic(Status::Ok, "ssh-key", "per-lease").with("mode", "per-lease");
    };
    let path = key.display();
    if key.is_file() {
        return Check::generic(Status::Ok, "ssh-key", path.to_string())
            .with("mode", "configured")
            .with("path", path);
    }
    Check::generic(Status::Failed, "ssh-key", format!("{path} is not a file"))
        .with("mode", "configured")
        .with("path", path)
        .with(
            "fix",
            "set CRABBOX_SSH_KEY to your private key, or unset it to have a key made for each lease",
        )
}

/// The check for a provider with an invalid configuration; it replaces all other checks of the provider.
pub(crate) fn invalid(provider: &str, error: &dyn std::error::Error) -> Check {
    trouble(provider, "config", "check_provider_config", error).with("fix", "crabbox config explain")
}

/// The check for an unavailable provider, in the Go program's form.
pub(crate) fn trouble(provider: &str, class: &str, hint: &str, error: &dyn std::error::Error) -> Check {
    let words = ObserveError::chain(error);
    let message = format!("provider={provider} class={class} hint={hint} {words}");
    Check::of_provider(provider, Status::Failed, "provider", message)
        .with("class", class)
        .with("hint", hint)
        .with("error", &words)
}
