//! Lets the crate carry the guest's first process when `CRABBOX_GUEST_BINARY` names it (see `src/guest_binary.rs`).

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]
fn main() {
    println!("cargo::rustc-check-cfg=cfg(embedded_guest)");
    println!("cargo::rerun-if-env-changed=CRABBOX_GUEST_BINARY");
    if let Some(path) = std::env::var_os("CRABBOX_GUEST_BINARY") {
        println!("cargo::rerun-if-changed={}", path.to_string_lossy());
        println!("cargo::rustc-cfg=embedded_guest");
    }
}
