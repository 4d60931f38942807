//! Embeds `crabbox-guest`, the guest's process 1, into the crate (see `src/guest_binary.rs`).

fn main() -> std::io::Result<()> {
    for guest in crabbox_embed::for_build_script("crabbox-guest")? {
        crabbox_embed::say(&format!(
            "rustc-env=CRABBOX_GUEST_PACKED={}",
            guest.packed.display()
        ))?;
    }
    Ok(())
}
