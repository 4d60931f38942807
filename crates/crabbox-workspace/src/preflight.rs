//! Reports the tools of a run's machine: `--preflight`.
//!
//! It only looks. A missing tool is reported, and must never fail the run.

use std::os::fd::BorrowedFd;

use crabbox_core::fault::{Fault, Kind};
use crabbox_ssh::quote;

use crate::command::{RemoteError, ask};
use crate::owner::Owner;

/// Tools that are looked for unless the configuration names others.
const TOOLS: [&str; 10] = [
    "git", "tar", "rsync", "make", "gcc", "python3", "node", "go", "cargo", "docker",
];
/// Other tools that can be requested: those that the Go program knows on Linux.
const MORE: [&str; 10] = [
    "apt",
    "bubblewrap",
    "bun",
    "bwrap",
    "corepack",
    "npm",
    "pnpm",
    "sudo",
    "uv",
    "yarn",
];
/// Tools that the Go program knows on Windows: accepted, but not looked for.
const OF_WINDOWS: [&str; 5] = ["execution_policy", "longpaths", "powershell", "pwsh", "temp"];
/// An unknown tool name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown preflight tool {name:?}; known are default, none, {}", known().collect::<Vec<_>>().join(", "))]
pub struct UnknownTool {
    /// The requested name.
    pub name: String,
}

impl Fault for UnknownTool {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

fn known() -> impl Iterator<Item = &'static str> {
    TOOLS.into_iter().chain(MORE).chain(OF_WINDOWS)
}

/// The tools that `asked` names: the default ones if it is empty or for `default`, none for `none`.
pub fn tools(asked: &[String]) -> Result<Vec<&'static str>, UnknownTool> {
    let mut tools: Vec<&'static str> = Vec::new();
    let mut add = |tool| {
        if !tools.contains(&tool) && !OF_WINDOWS.contains(&tool) {
            tools.push(tool);
        }
    };
    let asked: Vec<String> = asked
        .iter()
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    if asked.is_empty() {
        TOOLS.into_iter().for_each(&mut add);
    }
    for name in &asked {
        match name.as_str() {
            "default" | "defaults" => TOOLS.into_iter().for_each(&mut add),
            "none" => {}
            name => {
                let tool = known().find(|tool| *tool == name);
                add(tool.ok_or_else(|| UnknownTool {
                    name: name.to_owned(),
                })?);
            }
        }
    }
    Ok(tools)
}

/// Lines about the machine: its system, its size, and the version of each tool.
pub fn preflight(
    owner: &mut Owner,
    workdir: &str,
    tools: &[&str],
    cancel: BorrowedFd<'_>,
) -> Result<Vec<String>, RemoteError> {
    let script = format!(
        r#"echo "os=$(. /etc/os-release 2>/dev/null; echo "${{PRETTY_NAME:-unknown}}") kernel=$(uname -r) arch=$(uname -m)"
echo "cpus=$(nproc 2>/dev/null || echo -) memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null) disk_free_kib=$(df -Pk . | sed -n '2s/ \{{1,\}}/ /gp' | cut -d' ' -f4)"
bash -lc 'for t; do
  c=$t
  case $t in apt) c=apt-get;; bubblewrap) c=bwrap;; esac
  case $t in go) v="go version";; *) v="$c --version";; esac
  if p=$(command -v "$c"); then echo "$t=$p $($v </dev/null 2>&1 | head -n 1)"; else echo "$t=missing"; fi
done' bash {}"#,
        quote::join(tools)
    );
    let seen = ask(owner, workdir, &script, &[], cancel)?;
    Ok(String::from_utf8_lossy(&seen.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(asked: &[&str]) -> Result<Vec<&'static str>, UnknownTool> {
        tools(&asked.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn tools_are_known_by_name_and_nothing_else_is_looked_for() {
        assert_eq!(named(&[]), Ok(TOOLS.to_vec()));
        assert_eq!(named(&["none"]), Ok(vec![]));
        assert_eq!(named(&["UV", "uv", "apt"]), Ok(vec!["uv", "apt"]));
        assert_eq!(named(&["git", "default"]), Ok(TOOLS.to_vec()));
        assert_eq!(named(&["pwsh"]), Ok(vec![]));
        let unknown = named(&["git", "frobnicate"]).unwrap_err();
        assert!(
            unknown
                .to_string()
                .starts_with("unknown preflight tool \"frobnicate\"; known are default, none, git"),
            "{unknown}"
        );
    }
}
