//! Lets the crate carry the guest's first process (see `src/guest_binary.rs`).

fn main() -> std::io::Result<()> {
    crabbox_embed::for_build_script("crabbox-guest")?;
    Ok(())
}
