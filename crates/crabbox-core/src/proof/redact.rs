//! Redacts a command's output for a document that goes to strangers: words of known forms are kept,
//! everything else is hidden.
//!
//! A word is kept because its form is on the list, not because it was not recognised as sensitive. It must
//! never keep an address, a path, a key or a name of the host. Redacting its own output again must change
//! nothing, so that a document can be checked with it.

/// Maximum length of a kept line, in bytes.
const LINE_LIMIT: usize = 400;
/// Maximum number of consecutive letters in a natural-language word; keys are longer.
const LETTERS: usize = 20;
/// Maximum number of characters of a word with hyphens.
const WORD: usize = 48;
/// Minimum length from which a name is also found inside a longer word.
const INSIDE: usize = 5;

/// The replacement for a hidden word.
const HIDDEN: &str = "hidden";
const PATH: &str = "path";
const ADDRESS: &str = "address";

/// Words that are in every proof. They reveal nothing, not even about a user with such a name.
const VOCABULARY: [&str; 29] = [
    HIDDEN,
    PATH,
    ADDRESS,
    "crabbox",
    "proof",
    "hello",
    "from",
    "the",
    "working",
    "tree",
    "last",
    "commit",
    "greeting",
    "untracked",
    "gone",
    "Linux",
    "session",
    "in",
    "guest",
    "copy",
    "is",
    "same",
    "home",
    "root",
    "localhost",
    "exit",
    "lease",
    "firecracker",
    "provider",
];

/// Words with digits that are kept unchanged.
const KNOWN: [&str; 6] = ["x86_64", "aarch64", "amd64", "arm64", "ext4", "sha256"];

/// Units of numbers.
const UNITS: [&str; 12] = ["", "s", "ms", "us", "ns", "m", "h", "B", "KiB", "MiB", "GiB", "%"];

/// Filters lines and words.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    /// Names of this host and its user, in lower case.
    names: Vec<String>,
    /// Ids and slugs of the leases that may be shown. `None` permits those of every lease: a check of a file
    /// cannot know which lease it was.
    own: Option<Vec<String>>,
}

impl Redactor {
    /// A redactor that also hides `names`: of the host, its user, and their directories. Each is split at
    /// everything that is not a letter or digit. It hides the ids and slugs of all leases except those passed
    /// to [`Redactor::own`].
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        let mut all: Vec<String> = Vec::new();
        for name in names {
            let parts = name.as_ref().split(|c: char| !c.is_alphanumeric());
            all.extend(
                parts
                    .filter(|part| part.chars().count() > 1)
                    .map(str::to_lowercase),
            );
        }
        all.retain(|name| !VOCABULARY.iter().any(|word| word.eq_ignore_ascii_case(name)));
        all.sort();
        all.dedup();
        Self {
            names: all,
            own: Some(Vec::new()),
        }
    }

    /// Permits `word` from here on, the id or slug of the lease that the document is about.
    pub fn own(&mut self, word: impl Into<String>) {
        self.own.get_or_insert_default().push(word.into());
    }

    /// The redacted line. A line that is too long ends with its last complete word.
    pub fn line(&self, line: &str) -> String {
        let mut out = String::new();
        let mut rest = line.trim_end();
        while let Some(first) = rest.chars().next() {
            let end = match rest.find(is_between) {
                Some(0) => first.len_utf8(),
                Some(end) => end,
                None => rest.len(),
            };
            let (piece, after) = rest.split_at(end);
            let piece = if is_between(first) {
                piece.to_owned()
            } else {
                self.word(piece)
            };
            if out.len() + piece.len() > LINE_LIMIT {
                break;
            }
            out.push_str(&piece);
            rest = after;
        }
        out.truncate(out.trim_end().len());
        out
    }

    /// Whether the line contains nothing that would be hidden, and nothing invisible.
    pub fn is_clean(&self, line: &str) -> bool {
        self.line(line) == line
    }

    /// `word` or its replacement. Punctuation at its end, and a flag's hyphens, are kept.
    fn word(&self, word: &str) -> String {
        let core = word.trim_end_matches(['.', ':']);
        let bare = core.trim_start_matches('-');
        let (before, after) = (&core[..core.len() - bare.len()], &word[core.len()..]);
        // More punctuation than that is an IPv6 address ending in zeros, or nothing worth showing.
        if before.len() > 2 || after.len() > 3 || after.contains("::") {
            return format!("<{HIDDEN}>");
        }
        match self.judge(bare) {
            None => word.to_owned(),
            Some(stand_in) => format!("{before}<{stand_in}>{after}"),
        }
    }

    /// The replacement of `word`; `None` if it is kept.
    fn judge(&self, word: &str) -> Option<&'static str> {
        if word.is_empty()
            || KNOWN.contains(&word)
            || VOCABULARY.contains(&word)
            || is_of_a_closed_shape(word)
        {
            return None;
        }
        // Checked before plain words, because a random slug may consist of letters only.
        if is_drawn(word) {
            return (!self.is_own(word)).then_some(HIDDEN);
        }
        if is_plain(word) {
            return self.names(word).then_some(HIDDEN);
        }
        Some(if word.contains('/') || word.starts_with('~') {
            PATH
        } else if word.contains(':') || word.matches('.').count() > 1 || word.contains('@') {
            ADDRESS
        } else {
            HIDDEN
        })
    }

    /// Whether `word` belongs to a permitted lease: its id, its slug, or its machine's name, which contains
    /// the slug.
    fn is_own(&self, word: &str) -> bool {
        let Some(own) = &self.own else { return true };
        let of_machine = |name: &str| {
            word.strip_prefix("crabbox-")?
                .strip_prefix(name)?
                .strip_prefix('-')
        };
        own.iter().any(|own| own == word || of_machine(own).is_some())
    }

    /// Whether `word` names the host or its user.
    fn names(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        self.names.iter().any(|name| {
            word.split(['-', '_']).any(|piece| piece == name)
                || (name.len() >= INSIDE && word.contains(name.as_str()))
        })
    }
}

/// Separators between words, all printable ASCII, so that no terminal sequence can occur.
fn is_between(c: char) -> bool {
    c == ' ' || "\"'()[]{}<>,;=|`*!?&#$^".contains(c)
}

/// Letters, with hyphens or underscores between them.
fn is_plain(word: &str) -> bool {
    word.len() <= WORD
        && word.split(['-', '_']).all(|piece| {
            (1..=LETTERS).contains(&piece.len()) && piece.bytes().all(|byte| byte.is_ascii_alphabetic())
        })
}

/// Numbers, times, versions, and run ids, which identify no host or user.
fn is_of_a_closed_shape(word: &str) -> bool {
    let is_run = || word.strip_prefix("run_").is_some_and(|id| is_hex(id, 12));
    is_number(word) || is_duration(word) || is_version(word) || is_time(word) || is_run()
}

fn is_digits(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A number with at most one point, and a unit.
fn is_number(word: &str) -> bool {
    let end = word
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(word.len());
    let (number, unit) = word.split_at(end);
    let plain = match number.split_once('.') {
        Some((whole, part)) => is_digits(whole, 9) && is_digits(part, 9),
        None => is_digits(number, 12),
    };
    plain && UNITS.contains(&unit)
}

/// A duration as printed: `1h2m3.5s`.
fn is_duration(word: &str) -> bool {
    let mut rest = word;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let unit = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        if !is_number(number) || !["h", "m", "s", "ms"].contains(&&after[..unit]) {
            return false;
        }
        rest = &after[unit..];
    }
    !word.is_empty()
}

/// A version of three short numbers; an address has four. Of a kernel release only the leading numbers are
/// kept.
fn is_version(word: &str) -> bool {
    let word = word.strip_prefix('v').unwrap_or(word);
    let (version, build) = word.split_once('-').unwrap_or((word, "0"));
    let parts: Vec<&str> = version.split('.').collect();
    parts.len() == 3
        && parts.iter().all(|part| is_digits(part, 4))
        && (is_digits(build, 4) || ["test", "cloud"].contains(&build))
}

/// A time in UTC, `2026-08-01T00:00:00Z`, which reveals no time zone.
fn is_time(word: &str) -> bool {
    word.len() == 20 && word.ends_with('Z') && crate::timestamp::is_rfc3339(word)
}

/// Lease ids, and slugs and machine names of proofs' leases.
fn is_drawn(word: &str) -> bool {
    let after = |prefix: &str| word.strip_prefix(prefix);
    after("cbx_").is_some_and(|id| is_hex(id, 12))
        || after("proof-").is_some_and(|slug| is_hex(slug, 6))
        || after("crabbox-proof-")
            .and_then(|name| name.split_once('-'))
            .is_some_and(|(slug, tag)| is_hex(slug, 6) && is_hex(tag, 8))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn alice() -> Redactor {
        let mut redactor = Redactor::new([
            "alice",
            "/home/alice/My Projects",
            "thinkpad.corp.example",
            "wg",
            "tree",
        ]);
        redactor.own("cbx_0123456789ab");
        redactor.own("proof-0a1b2c");
        redactor
    }

    #[test]
    fn addresses_names_paths_and_keys_are_hidden() {
        for (line, seen) in [
            ("host=192.168.127.5 up", "host=<address> up"),
            (
                "ssh [fe80::1ff:fe23:4567:890a] and ::1",
                "ssh [<address>] and <address>",
            ),
            ("link 02:fc:0a:d5:00:02", "link <address>"),
            ("alice@thinkpad: ALICE's", "<address>: <hidden>'s"),
            ("on thinkpad.corp.example now", "on <address> now"),
            (
                "on thinkpad now, my-thinkpads too",
                "on <hidden> now, <hidden> too",
            ),
            ("via wg, not wgx", "via <hidden>, not wgx"),
            ("in /home/alice/x: ~/y ./z", "in <path>: <path> <path>"),
            ("key AAAAC3NzaC1lZDI1NTE5AAAAIGd", "key <hidden>"),
            ("key abcdefghijklmnopqrstuvwxyz", "key <hidden>"),
            ("sum 0123456789abcdef0123456789abcdef", "sum <hidden>"),
            ("boot 7d1c1c7e-1111-4222-8333-944455556666", "boot <hidden>"),
            ("projects", "<hidden>"),
            (
                "caf\u{e9} \u{1b}[2J \u{202e}x",
                "<hidden> <hidden>[<hidden> <hidden>",
            ),
            ("a\tb", "<hidden>"),
            ("2001:db8::2/64", "<path>"),
            ("port 10.213.0.1:22", "port <address>"),
            ("https://example.com", "<path>"),
            ("4.19.0-alice", "<address>"),
        ] {
            assert_eq!(alice().line(line), seen, "{line:?}");
        }
    }

    #[test]
    fn what_the_program_says_of_itself_is_kept() {
        for line in [
            "leased cbx_0123456789ab slug=proof-0a1b2c provider=firecracker type=microvm idle_timeout=10m0s",
            "deleted lease=cbx_0123456789ab server=crabbox-proof-0a1b2c-0a1b2c3d",
            "hello from the working tree",
            "Linux 6.1.128 x86_64",
            " M greeting",
            "?? untracked",
            "remote command exited 7 after 1.5s, 12 ms, 3.4 MiB, 100%",
            "--timing-json -v: run_0123456789ab at 2026-08-01T00:00:00Z.",
            "Firecracker v1.12.1",
        ] {
            assert_eq!(alice().line(line), line);
        }
    }

    #[test]
    fn other_leases_are_nobody_s_to_see_and_a_checker_cannot_tell_whose_they_are() {
        for (line, seen) in [
            ("kept lease=cbx_ffffffffffff", "kept lease=<hidden>"),
            (
                "slug=proof-abcdef and proof-0a1b2c",
                "slug=<hidden> and proof-0a1b2c",
            ),
            (
                "crabbox-proof-ffffff-0a1b2c3d crabbox-proof-0a1b2c-0a1b2c3d",
                "<hidden> crabbox-proof-0a1b2c-0a1b2c3d",
            ),
        ] {
            assert_eq!(alice().line(line), seen);
            assert!(Redactor::default().is_clean(line));
        }
    }

    #[test]
    fn a_line_ends_where_a_person_stops_reading() {
        assert_eq!(alice().line(&"ab ".repeat(1000)).len(), LINE_LIMIT - 2);
        assert_eq!(alice().line("a  \r\n"), "a");
    }

    proptest! {
        #[test]
        fn what_was_let_through_is_let_through_again(line in "\\PC{0,80}|[a-z0-9.:/@=< >-]{0,60}") {
            let seen = alice().line(&line);
            prop_assert!(alice().is_clean(&seen), "{line:?} {seen:?}");
            prop_assert!(Redactor::default().is_clean(&seen), "{line:?} {seen:?}");
            prop_assert!(seen.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }

        #[test]
        fn no_address_of_any_kind_comes_through(
            v4 in any::<[u8; 4]>(), v6 in any::<[u16; 8]>(), mac in any::<[u8; 6]>(), around in "[a-z =(\\[,'\"]{0,6}",
        ) {
            let v4 = std::net::Ipv4Addr::from(v4).to_string();
            let v6 = std::net::Ipv6Addr::from(v6).to_string();
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            for secret in [v4, v6, mac] {
                let seen = alice().line(&format!("{around}{secret}{around}"));
                prop_assert!(!seen.contains(&secret), "{seen}");
            }
        }
    }
}
