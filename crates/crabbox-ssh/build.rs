//! Embeds the agents that are uploaded to leases (see `src/agent_client/agent.rs`), with their digests.

use std::fmt::Write as _;

use sha2::Digest as _;

fn main() -> std::io::Result<()> {
    // Writing to a string does not fail.
    let mut list = String::from("&[");
    for agent in crabbox_embed::for_build_script("crabbox-agent")? {
        let mut digest = String::new();
        for byte in sha2::Sha256::digest(&agent.bytes) {
            write!(digest, "{byte:02x}").ok();
        }
        let packed = agent.packed.file_name().unwrap_or_default();
        write!(
            list,
            "Agent {{ machine: {:?}, digest: {digest:?}, packed: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{}\")) }}, ",
            agent.machine,
            packed.display()
        )
        .ok();
    }
    list.push(']');
    std::fs::write(crabbox_embed::out_dir()?.join("agents.rs"), list)
}
