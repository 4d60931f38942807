//! `compat`: checks this program against the table of the Go program's behaviour
//! (`crates/crabbox/tests/compat`).
//!
//! The same table is an ordinary test of `crabbox`; this prints it. It must never report success while a case
//! fails.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use crabbox_testbase::compat::{self, Verdict};

/// Builds the program, runs every case on it and prints the table.
pub(crate) fn main() -> Result<ExitCode> {
    let path = crate::payload::development_binary()?;
    let rows = compat::rows().context("cannot read docs/differences.md")?;
    let mut judged = Vec::new();
    let cases = compat::cases(&compat::directory())?;
    ensure!(!cases.is_empty(), "the table has no cases");
    for case in cases {
        let verdict = compat::judge(&path, &case, &rows)?;
        judged.push((case, verdict));
    }
    print!("{}", compat::table(&judged));
    let count = |is: fn(&Verdict) -> bool| judged.iter().filter(|(_, verdict)| is(verdict)).count();
    let failed = count(|verdict| matches!(verdict, Verdict::Failed(_)));
    println!(
        "\ncompat: {} cases, {} the same, {} differ on purpose, {failed} failed",
        judged.len(),
        count(|verdict| *verdict == Verdict::Same),
        count(|verdict| matches!(verdict, Verdict::Differs(_))),
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
