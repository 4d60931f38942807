//! Lets the crate carry the agent that it brings to the other side (see `src/far/agent.rs`), and know its digest.

use std::fmt::Write as _;

use sha2::Digest as _;

fn main() -> std::io::Result<()> {
    let agent = crabbox_embed::for_build_script("crabbox-agent")?;
    let mut name = String::new();
    for byte in sha2::Sha256::digest(&agent) {
        // Writing to a text does not fail.
        write!(name, "{byte:02x}").ok();
    }
    crabbox_embed::say(&format!("rustc-env=CRABBOX_AGENT_DIGEST={name}"))?;
    let machine = crabbox_embed::machine()?;
    crabbox_embed::say(&format!("rustc-env=CRABBOX_AGENT_MACHINE={machine}"))
}
