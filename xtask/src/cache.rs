//! `cache`: shows or removes what is kept for all clones of this user. The cache itself is in `crabbox-lab`.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use crabbox_lab::cache::Cache;

/// `cargo xtask cache`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Remove these entries instead
    #[arg(long, value_name = "NAME", num_args = 1..)]
    remove: Vec<String>,
    /// Remove all entries instead
    #[arg(long, conflicts_with = "remove")]
    clear: bool,
}

/// Does what was asked.
pub(crate) fn main(arguments: &Arguments) -> Result<ExitCode> {
    let cache = Cache::of_user();
    let entries = cache.entries()?;
    let names: Vec<&str> = if arguments.clear {
        entries.iter().map(|entry| entry.name.as_str()).collect()
    } else {
        arguments.remove.iter().map(String::as_str).collect()
    };
    for name in &names {
        ensure!(
            cache.remove(name)?,
            "there is no entry `{name}` in {}, or a process has it; see: cargo xtask cache",
            cache.dir().display()
        );
        println!("removed {name}");
    }
    if names.is_empty() {
        println!("{}", cache.dir().display());
        for entry in &entries {
            let age = entry.used.and_then(|used| used.elapsed().ok());
            let hours = age.map_or_else(|| "?".to_owned(), |age| (age.as_secs() / 3600).to_string());
            let held = if entry.held { ", in use now" } else { "" };
            println!(
                "{:>7} MiB  {}, used {hours} hours ago{held}",
                entry.bytes >> 20,
                entry.name
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
