//! What the machine of a run has: `--preflight`.
//!
//! It only looks. A tool that is missing is told and must never fail the run.

use std::time::Duration;

use crabbox_ssh::capture;
use crabbox_ssh::exec::Stdin;
use crabbox_ssh::quote;

use super::RunError;
use crate::lease::Target;

/// Tools that are looked for unless the configuration names others.
const TOOLS: [&str; 10] = [
    "git", "tar", "rsync", "make", "gcc", "python3", "node", "go", "cargo", "docker",
];
/// How long looking may take.
const LIMIT: Duration = Duration::from_mins(1);

/// Lines about the machine: its system, its size, and the version of each tool.
pub fn preflight(target: &Target, tools: &[String]) -> Result<Vec<String>, RunError> {
    let tools: Vec<String> = if tools.is_empty() {
        TOOLS.map(str::to_owned).to_vec()
    } else {
        tools.to_vec()
    };
    let script = format!(
        r#"echo "os=$(. /etc/os-release 2>/dev/null; echo "${{PRETTY_NAME:-unknown}}") kernel=$(uname -r) arch=$(uname -m)"
echo "cpus=$(nproc 2>/dev/null || echo -) memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null) disk_free_kib=$(df -Pk . | sed -n '2s/ \{{1,\}}/ /gp' | cut -d' ' -f4)"
bash -lc 'for t; do
  case $t in go) v="go version";; *) v="$t --version";; esac
  if p=$(command -v "$t"); then echo "$t=$p $($v </dev/null 2>&1 | head -n 1)"; else echo "$t=missing"; fi
done' bash {}"#,
        quote::join(&tools)
    );
    let seen = capture::capture(target, &script, Stdin::Null, Some(LIMIT))?;
    Ok(seen.stdout_text().lines().map(str::to_owned).collect())
}
