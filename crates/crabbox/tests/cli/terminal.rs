//! What a person sees of a `run`: standard error is a terminal made by script(1).

use crate::place::{Answer, Place};
use crate::static_host::{configure, existing};

/// The maximum number of lines of an unremarkable run.
const BRIEF: usize = 6;

/// Runs a command line with standard error on a terminal, whose contents are returned in `out`.
fn on_terminal(place: &Place, line: &str) -> Answer {
    let line = crabbox_workspace::quote::single(&format!("{line} > stdout"));
    place.paste(&format!("script -qefc {line} /dev/null"))
}

fn lines(seen: &Answer) -> Vec<&str> {
    seen.out.lines().filter(|line| !line.trim().is_empty()).collect()
}

#[test]
fn a_person_sees_one_line_a_stage_and_everything_with_verbose() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    let brief = on_terminal(&place, "crabbox run -- true");
    assert_eq!(brief.code, 0, "{}", brief.out);
    let seen = lines(&brief);
    assert!(seen.len() <= BRIEF, "{seen:#?}");
    for stage in ["leased ", "synced ", "command succeeded ", "released "] {
        assert!(seen.iter().any(|line| line.contains(stage)), "{stage}: {seen:#?}");
    }
    let whole = on_terminal(&place, "crabbox run --verbose -- true");
    assert_eq!(whole.code, 0, "{}", whole.out);
    let piped = place.run(&["run", "--", "true"]);
    for block in [
        "run context:",
        "run summary ",
        "run details ",
        "command complete in ",
    ] {
        assert!(!brief.out.contains(block), "{block}: {}", brief.out);
        assert!(whole.out.contains(block), "{block}: {}", whole.out);
        assert!(piped.err.contains(block), "{block}: {}", piped.err);
    }
    assert!(!piped.err.contains("command succeeded "), "{}", piped.err);
}

#[test]
fn what_a_failed_command_said_is_not_repeated_to_a_person() {
    let (place, sshd) = existing();
    configure(&place, &sshd, "");
    // The command's output does not appear in its own text, which the line to paste repeats.
    let command = "-- sh -c \"echo oops-\\$((40 + 2)) >&2; exit 3\"";
    let count = |text: &str| text.matches("oops-42").count();
    let failed = on_terminal(&place, &format!("crabbox run {command}"));
    assert_eq!((failed.code, count(&failed.out)), (3, 1), "{}", failed.out);
    assert!(failed.out.contains("  next: crabbox run "), "{}", failed.out);
    assert!(failed.out.contains("remote command exited 3"), "{}", failed.out);
    // What is captured is kept out of a terminal and of a log; only its file is named.
    let captured = format!("crabbox run --capture-stderr err --capture-stdout out {command}");
    let kept = on_terminal(&place, &captured);
    assert_eq!((kept.code, count(&kept.out)), (3, 0), "{}", kept.out);
    assert!(kept.out.contains("stderr tail: captured at err"), "{}", kept.out);
    let kept = place.paste(&captured);
    assert_eq!((kept.code, count(&kept.err)), (3, 0), "{}", kept.err);
    assert!(
        kept.err.contains("  tail stderr: captured at err\n"),
        "{}",
        kept.err
    );
    // Standard output is what is left to show.
    let kept = place.paste("crabbox run --capture-stderr err -- sh -c \"echo oops-\\$((40 + 2)); echo no-\\$((1 + 1)) >&2; exit 3\"");
    assert_eq!((kept.code, count(&kept.err)), (3, 2), "{}", kept.err);
    assert!(kept.err.contains("  tail stdout:\n    oops-42\n"), "{}", kept.err);
    assert!(!kept.err.contains("no-2"), "{}", kept.err);
    // A script gets everything: the stream, the digest, and the tail.
    let piped = place.paste(&format!("crabbox run {command}"));
    assert_eq!((piped.code, count(&piped.err)), (3, 3), "{}", piped.err);
}
