//! What is refused before anything is done: in whose name, and with which words.

use crate::place::Place;
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

#[test]
fn a_choice_that_means_nothing_here_is_refused_wherever_it_is_made() {
    let desktop = "desktopEnv must be xfce, wayland, or gnome, found \"foo\"";
    let tailscale = "provider=firecracker does not support tailscale-managed networking\n";
    let warmup = ["warmup", "--provider", "firecracker"];
    let flag = Place::new().run(&[&warmup[..], &["--desktop-env", "foo"]].concat());
    assert_eq!(flag.code, 2, "{}", flag.err);
    assert!(flag.err.starts_with(desktop), "{}", flag.err);
    for (variable, value, says) in [
        ("CRABBOX_DESKTOP_ENV", "foo", desktop),
        ("CRABBOX_TAILSCALE", "1", tailscale),
    ] {
        let refused = Place::new().env(variable, value).run(&warmup);
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.starts_with(says), "{}", refused.err);
    }
    for (line, says) in [
        ("desktopEnv: foo", desktop),
        ("tailscale: {enabled: true}", tailscale),
    ] {
        let place = Place::new();
        place.write("repo/.crabbox.yaml", line);
        let refused = place.run(&warmup);
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(refused.err.starts_with(says), "{}", refused.err);
    }
    // What asks for nothing passes, and other parts of the section are still named.
    let place = Place::new().env("CRABBOX_DESKTOP_ENV", "GNOME");
    place.write("repo/.crabbox.yaml", "tailscale: {enabled: false}");
    let shown = place.run(&["config", "show", "--provider", "firecracker", "--json"]);
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    place.write("repo/.crabbox.yaml", "tailscale: {enabled: false, tags: [a]}");
    let shown = place.run(&["config", "show", "--provider", "firecracker", "--json"]);
    assert!(
        shown.code == 0
            && shown
                .err
                .contains("not supported by this program and ignored: tailscale"),
        "{}",
        shown.err
    );
}
