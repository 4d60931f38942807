//! Embeds `crabbox-guest`, the guest's process 1, into the crate (see `src/guest_binary.rs`).

fn main() -> std::io::Result<()> {
    crabbox_embed::for_build_script("crabbox-guest")?;
    Ok(())
}
