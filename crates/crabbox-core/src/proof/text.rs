//! A proof as one file: a text for people, the transcript, and the document from which both are generated.
//!
//! The text is generated from the document alone, so a reader generates it again and compares: no word of it
//! can differ. It must never accept a file without reading every byte.

use std::fmt::Write as _;

use crate::strict_json::{self, Limits, StrictJsonError};

use super::{Proof, SCHEMA_VERSION};

/// Maximum size of a file, in bytes.
pub const FILE_LIMIT: u64 = 4 << 20;

const LIMITS: Limits = Limits {
    depth: 8,
    values: 20_000,
};

/// Maximum length of quoted file text in a message, in characters.
const QUOTED: usize = 400;

/// The lines around the document.
const OPENING: &str = "```json";
const CLOSING: &str = "```";

/// Why a text is not a valid proof.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It is not text.
    #[error("it is not UTF-8 from byte {0} on")]
    NotText(usize),
    /// Its document is not in the expected place.
    #[error("it has no document: no line is {0:?}")]
    NoDocument(&'static str),
    /// The JSON of the document is invalid or ambiguous.
    #[error("its document, which begins in line {line}, cannot be read: {source}")]
    Json {
        /// Its first line, counted from 1.
        line: usize,
        /// The reason.
        #[source]
        source: StrictJsonError,
    },
    /// The document has another version.
    #[error("its schemaVersion is {0}, but this program knows {SCHEMA_VERSION}")]
    SchemaVersion(u64),
    /// The document is not that of a proof.
    #[error("line {line}: {what}")]
    Field {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// A conclusion in the document does not follow from its observations.
    #[error("{field}: {said}, but the observations imply {follows}")]
    Claim {
        /// The conclusion.
        field: &'static str,
        /// Its value.
        said: String,
        /// The correct value.
        follows: String,
    },
    /// The text differs from the one generated from its document.
    #[error("line {line} is {found:?}, expected {wanted:?}")]
    Text {
        /// The line, counted from 1.
        line: usize,
        /// The actual line; empty if the file has ended.
        found: String,
        /// The expected line; empty if the file should have ended.
        wanted: String,
    },
}

impl ProofError {
    /// The first line in which the file differs from the text generated from its document, if any.
    fn differs(file: &str, rendered: &str) -> Option<Self> {
        if file == rendered {
            return None;
        }
        let (mut found, mut wanted) = (file.split('\n'), rendered.split('\n'));
        let mut line = 1;
        loop {
            let pair = (found.next(), wanted.next());
            if pair.0 != pair.1 || pair.0.is_none() {
                let shown = |text: Option<&str>| text.unwrap_or_default().chars().take(120).collect();
                return Some(Self::Text {
                    line,
                    found: shown(pair.0),
                    wanted: shown(pair.1),
                });
            }
            line += 1;
        }
    }
}

/// The file of `proof`. `sha256` computes the digest of bytes, in hexadecimal.
pub fn render(proof: &Proof, sha256: &dyn Fn(&[u8]) -> String) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string_pretty(proof)?;
    let mut out = String::new();
    head(&mut out, proof, &sha256(json.as_bytes()));
    out.push_str("## Assertions\n\n");
    for assertion in &proof.assertions {
        let mark = if assertion.holds { "holds" } else { "FAILS" };
        // Writing to a String cannot fail, here and below.
        writeln!(out, "- {mark}: {}", assertion.name.words()).ok();
    }
    for left in &proof.left {
        writeln!(out, "- left: {} of kind {}", left.count, word(&left.kind)).ok();
    }
    out.push_str(
        "\n## Transcript\n\nThe user's own flags are left out, and whatever could name the host is hidden.\n",
    );
    for stage in &proof.stages {
        let code = stage
            .exit
            .map_or_else(|| "none".to_owned(), |code| code.to_string());
        let seconds = stage.millis / 1000;
        writeln!(
            out,
            "\n### {}\n\nexit code {code} (expected {}), {seconds}.{:03} s\n\n    $ {}",
            stage.name.word(),
            stage.name.expected(),
            stage.millis % 1000,
            stage.name.command()
        )
        .ok();
        if stage.cut > 0 {
            writeln!(out, "    ({} lines are left out)", stage.cut).ok();
        }
        for line in &stage.transcript {
            writeln!(out, "{}", format!("    {line}").trim_end()).ok();
        }
    }
    writeln!(out, "\n## Document\n\n{OPENING}\n{json}\n{CLOSING}").ok();
    Ok(out)
}

fn head(out: &mut String, proof: &Proof, digest: &str) {
    let verdict = if proof.passed { "passed" } else { "did NOT pass" };
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    let yes = |value: bool| if value { "yes" } else { "no" };
    writeln!(out, "# crabbox proof: {verdict}, rung {}\n", proof.rung.ladder).ok();
    writeln!(
        out,
        "- Stands for: {} ({}).",
        proof.rung.words(),
        word(&proof.rung.sure)
    )
    .ok();
    writeln!(out, "- Made: {}", proof.made_at).ok();
    if proof.interrupted {
        out.push_str("- Interrupted: yes\n");
    }
    let sum = |sum: Option<&super::Sha256>| or_unknown(sum.map(ToString::to_string));
    writeln!(
        out,
        "- crabbox: {}, SHA-256 {}",
        proof.program.version,
        sum(proof.program.sha256.as_ref())
    )
    .ok();
    if let Some(vmm) = &proof.firecracker {
        writeln!(
            out,
            "- Firecracker: {}, SHA-256 {} (the tested one: {}), jailed: {}",
            or_unknown(vmm.version.as_ref().map(ToString::to_string)),
            sum(vmm.sha256.as_ref()),
            yes(vmm.pinned),
            yes(vmm.jailed)
        )
        .ok();
    }
    if let Some(guest) = &proof.guest {
        writeln!(out, "- Image: SHA-256 {}", sum(guest.image_sha256.as_ref())).ok();
        writeln!(
            out,
            "- Guest kernel: SHA-256 {}",
            sum(guest.kernel_sha256.as_ref())
        )
        .ok();
        writeln!(
            out,
            "- Guest: {} virtual processors, {} MiB of memory, {} MiB of disk, network {}",
            guest.cpus,
            guest.memory_mib,
            guest.disk_mib,
            guest.network.name()
        )
        .ok();
    }
    let host = &proof.host;
    writeln!(
        out,
        "- Host: {}, kernel {}, {} processors, {} GiB of memory, hypervisor {}, firmware {}",
        word(&host.arch),
        or_unknown(host.kernel.as_ref().map(ToString::to_string)),
        host.cpus,
        host.memory_gib,
        word(&host.hypervisor),
        word(&host.firmware)
    )
    .ok();
    writeln!(
        out,
        "- Digest of the document below: sha256:{digest}\n\nThe digest tells damage, not forgery: whoever changes the document can make it anew. \
         `crabbox proof --check FILE` checks this file.\n"
    )
    .ok();
}

/// The name of a value in the document.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Parses the file of a proof and checks its consistency: every field, every conclusion, every byte of the
/// text. Line breaks may be those of a web form.
pub fn parse(bytes: &[u8], sha256: &dyn Fn(&[u8]) -> String) -> Result<Proof, ProofError> {
    let text = std::str::from_utf8(bytes).map_err(|error| ProofError::NotText(error.valid_up_to()))?;
    let text = text.replace("\r\n", "\n");
    let before = text
        .split('\n')
        .position(|line| line == OPENING)
        .ok_or(ProofError::NoDocument(OPENING))?;
    let inside = text.split('\n').skip(before + 1);
    let json: Vec<&str> = inside.take_while(|line| *line != CLOSING).collect();
    if before + 1 + json.len() >= text.split('\n').count() {
        return Err(ProofError::NoDocument(CLOSING));
    }
    // Lines are counted from 1, and the document begins after the opening line.
    let first = before + 2;
    let json = json.join("\n");
    let value = strict_json::parse(json.as_bytes(), LIMITS)
        .map_err(|source| ProofError::Json { line: first, source })?;
    if let Some(version) = value.get("schemaVersion").and_then(serde_json::Value::as_u64)
        && version != u64::from(SCHEMA_VERSION)
    {
        return Err(ProofError::SchemaVersion(version));
    }
    let proof: Proof = serde_json::from_str(&json).map_err(|error| {
        let what = error.to_string();
        let place = what.rfind(" at line ").unwrap_or(what.len());
        ProofError::Field {
            line: before + 1 + error.line(),
            // The message quotes untrusted text, so it is truncated and control characters are replaced.
            what: what[..place]
                .chars()
                .take(QUOTED)
                .map(|c| {
                    if c.is_control() {
                        char::REPLACEMENT_CHARACTER
                    } else {
                        c
                    }
                })
                .collect(),
        }
    })?;
    if let Some(error) = claims(&proof) {
        return Err(error);
    }
    let rendered = render(&proof, sha256).map_err(|error| ProofError::Field {
        line: first,
        what: error.to_string(),
    })?;
    // A web form may drop the final line break, or add one.
    match ProofError::differs(text.trim_end_matches('\n'), rendered.trim_end_matches('\n')) {
        Some(error) => Err(error),
        None => Ok(proof),
    }
}

/// The first conclusion of `proof` that does not follow from its observations.
fn claims(proof: &Proof) -> Option<ProofError> {
    let follows = Proof::of(proof.seen());
    let differ =
        |field: &'static str, said: String, follows: String| ProofError::Claim { field, said, follows };
    if proof.rung != follows.rung {
        let shown = |rung: super::rung::Rung| {
            format!(
                "{} ({}, rung {})",
                word(&rung.kind),
                word(&rung.sure),
                rung.ladder
            )
        };
        return Some(differ("rung", shown(proof.rung), shown(follows.rung)));
    }
    let unlike = proof
        .assertions
        .iter()
        .zip(&follows.assertions)
        .find(|(said, seen)| said != seen);
    if let Some((said, seen)) = unlike {
        let shown = |assertion: &super::Assertion| format!("{} {}", word(&assertion.name), assertion.holds);
        return Some(differ("assertions", shown(said), shown(seen)));
    }
    if proof.assertions.len() != follows.assertions.len() {
        let count = |proof: &Proof| format!("{} of them", proof.assertions.len());
        return Some(differ("assertions", count(proof), count(&follows)));
    }
    (proof.passed != follows.passed)
        .then(|| differ("passed", proof.passed.to_string(), follows.passed.to_string()))
}
