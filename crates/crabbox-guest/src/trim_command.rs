//! `crabbox-trim`, and the `fstrim` that precedes the image's own on `PATH`: they ask process 1 to return
//! freed blocks.
//!
//! `fstrim` does so for the lease's file systems, and passes any other call on to the image's own.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use crate::root::LAYER_DEVICE;
use crate::trim;

/// The name of the command.
pub(crate) const TRIM: &str = "crabbox-trim";

/// The name of the usual command.
pub(crate) const FSTRIM: &str = "fstrim";

/// The image's own `fstrim`.
const IMAGES_FSTRIM: &str = "/usr/sbin/fstrim";

const USAGE: &str = "\
Usage: crabbox-trim

Gives disk blocks that this machine has freed back to its host. Writes wait for a moment meanwhile.
";

/// A call of `fstrim` that is handled here.
#[derive(Debug, PartialEq, Eq)]
struct Call<'a> {
    verbose: bool,
    all: bool,
    mount_points: Vec<&'a Path>,
}

/// Parses `fstrim [-v] -a|-A` and `fstrim [-v] DIR`; nothing else.
fn parse(words: &[OsString]) -> Option<Call<'_>> {
    let mut call = Call {
        verbose: false,
        all: false,
        mount_points: Vec::new(),
    };
    for word in words {
        match word.to_str() {
            Some("--verbose") => call.verbose = true,
            Some("--all" | "--fstab") => call.all = true,
            Some("--quiet-unsupported") => {}
            Some(text) if text.starts_with("--") => return None,
            Some(text) if text.starts_with('-') => {
                for letter in text.chars().skip(1) {
                    match letter {
                        'v' => call.verbose = true,
                        'a' | 'A' => call.all = true,
                        _ => return None,
                    }
                }
            }
            _ => call.mount_points.push(Path::new(word)),
        }
    }
    (call.mount_points.len() == usize::from(!call.all)).then_some(call)
}

/// Whether data written below `path` is stored on the private layer.
fn is_on_layer(path: &Path) -> bool {
    let device = |path: &str| std::fs::metadata(path).ok();
    let Ok(facts) = std::fs::metadata(path) else {
        return false;
    };
    facts.is_dir()
        && (device("/").is_some_and(|root| root.dev() == facts.dev())
            || device(LAYER_DEVICE).is_some_and(|layer| layer.rdev() == facts.dev()))
}

/// Runs the command called `name`; returns its exit code.
pub(crate) fn run(name: &str, words: &[OsString]) -> u8 {
    if name == FSTRIM {
        return fstrim(words);
    }
    match words {
        [] => give_back(TRIM).map_or_else(
            |code| code,
            |bytes| say(&format!("{} given back to the host\n", amount(bytes))),
        ),
        [word] if word == "--help" || word == "-h" => say(USAGE),
        _ => {
            complain(USAGE);
            2
        }
    }
}

fn fstrim(words: &[OsString]) -> u8 {
    let call = parse(words).filter(|call| call.mount_points.iter().all(|path| is_on_layer(path)));
    let Some(call) = call else {
        return become_the_images(words);
    };
    let place = call.mount_points.first().unwrap_or(&Path::new("/")).display();
    let device = if call.all {
        format!(" on {LAYER_DEVICE}")
    } else {
        String::new()
    };
    match give_back(FSTRIM) {
        Ok(bytes) if call.verbose => say(&format!("{place}: {} trimmed{device}\n", amount(bytes))),
        Ok(_) => 0,
        Err(code) => code,
    }
}

/// Asks process 1; returns the bytes given back, or prints the reason and returns the exit code.
fn give_back(name: &str) -> Result<u64, u8> {
    let fail = |text: String| {
        complain(&format!("{name}: {text}\n"));
        1
    };
    match trim::ask(Path::new(trim::SOCKET)) {
        Ok(Ok((bytes, skipped))) => {
            if skipped > 0 {
                complain(&format!(
                    "{name}: {skipped} groups of blocks contradict themselves and were left alone\n"
                ));
            }
            Ok(bytes)
        }
        Ok(Err(why)) => Err(fail(why)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(fail(format!("only root may; try: sudo {name}")))
        }
        Err(error) => Err(fail(format!("cannot ask process 1: {error}"))),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the guest has no crabbox_host; nothing is spawned, it becomes the image's program"
)]
fn become_the_images(words: &[OsString]) -> u8 {
    let error = std::process::Command::new(IMAGES_FSTRIM)
        .arg0(OsStr::new(FSTRIM))
        .args(words)
        .exec();
    complain(&format!("{FSTRIM}: cannot run {IMAGES_FSTRIM}: {error}\n"));
    1
}

/// The amount in `fstrim`'s format: in a suitable unit, and in bytes.
fn amount(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut scaled = (bytes, "B");
    let mut tenths = 0;
    for unit in units {
        if scaled.0 < 1024 {
            break;
        }
        tenths = scaled.0 % 1024 * 10 / 1024;
        scaled = (scaled.0 / 1024, unit);
    }
    let (whole, unit) = scaled;
    if tenths == 0 {
        format!("{whole} {unit} ({bytes} bytes)")
    } else {
        format!("{whole}.{tenths} {unit} ({bytes} bytes)")
    }
}

fn say(text: &str) -> u8 {
    u8::from(io::stdout().write_all(text.as_bytes()).is_err())
}

fn complain(text: &str) {
    io::stderr().write_all(text.as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ')
            .filter(|word| !word.is_empty())
            .map(Into::into)
            .collect()
    }

    #[test]
    fn what_is_not_plainly_for_the_lease_goes_to_the_images_fstrim() {
        for (line, verbose, all) in [
            ("/", false, false),
            ("-v /tmp", true, false),
            ("/tmp --verbose", true, false),
            ("-a", false, true),
            ("-av", true, true),
            ("--fstab --verbose --quiet-unsupported", true, true),
        ] {
            let given = words(line);
            let call = parse(&given).unwrap();
            assert_eq!((call.verbose, call.all), (verbose, all), "{line}");
        }
        for line in [
            "",
            "-v",
            "/ /tmp",
            "-a /",
            "-n /",
            "-vn /",
            "--dry-run -a",
            "-o 0 /",
            "--listed-in /etc/fstab",
            "--help",
            "-V",
        ] {
            assert_eq!(parse(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn amounts_are_told_as_fstrim_tells_them() {
        assert_eq!(amount(0), "0 B (0 bytes)");
        assert_eq!(amount(65536), "64 KiB (65536 bytes)");
        assert_eq!(amount(209_715_200 + 500_000), "200.4 MiB (210215200 bytes)");
        assert_eq!(amount(3 << 39), "1.5 TiB (1649267441664 bytes)");
    }

    #[test]
    fn only_the_root_and_the_layer_are_the_leases() {
        assert!(is_on_layer(Path::new("/")));
        assert!(!is_on_layer(Path::new("/proc")), "another file system");
        assert!(!is_on_layer(Path::new("/nonexistent")));
    }
}
