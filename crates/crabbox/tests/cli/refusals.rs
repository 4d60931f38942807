//! What is refused before anything is done: in whose name, and with which words.

use crate::static_host::{ID, configure, existing};

#[test]
fn a_flag_on_an_existing_lease_is_refused_in_the_name_of_its_provider() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let warmup = place.run(&["warmup"]);
    assert_eq!(warmup.code, 0, "{}", warmup.err);
    // Nothing but the lease's claim names the provider.
    place.write("home/.config/crabbox/config.yaml", "");
    for name in [ID, "127-0-0-1"] {
        for (words, says) in [
            (
                &["run", "--id", name, "--tailscale", "--", "true"][..],
                "provider=ssh does not support tailscale-managed networking\n",
            ),
            (
                &["watch", "--id", name, "--tailscale", "--", "true"],
                "provider=ssh does not support tailscale-managed networking\n",
            ),
            (
                &["run", "--id", name, "--lease-output", "x", "--", "true"],
                "--lease-output is not supported for provider=ssh yet\n",
            ),
        ] {
            let refused = place.run(words);
            assert_eq!((refused.code, refused.err.as_str()), (2, says), "{words:?}");
        }
    }
    let stop = place.run(&["stop", ID]);
    assert_eq!(stop.code, 0, "{}", stop.err);
}
