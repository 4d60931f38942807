//! Feeds damaged input to every parser of untrusted bytes: it never panics, an error names its position, and
//! accepted values are valid.
//! `PROPTEST_CASES=100000 cargo test --release -p crabbox-testkit --test untrusted` searches longer.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that does not hold"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use crabbox_core::claim::{Claim, is_valid_claim_id};
use crabbox_core::config::key::KEYS;
use crabbox_core::config::layer::Layer;
use crabbox_core::config::{ConfigFile, Inputs, Resolution, firecracker, resolve};
use crabbox_core::duration::GoDuration;
use crabbox_core::fault::chain;
use crabbox_core::id::{LeaseId, Slug, normalise};
use crabbox_core::journal::{Journal, JournalError};
use crabbox_core::labels::{self, Labels};
use crabbox_core::network::NetworkMode;
use crabbox_core::proof::redact::Redactor;
use crabbox_core::proof::rung::{Firmware, GuestKernel, Hypervisor};
use crabbox_core::proof::{self, Proof};
use crabbox_core::receipt::{self, RunReceipt, TerminalReceipt};
use crabbox_core::record::LeaseRecord;
use crabbox_core::state::LeaseState;
use crabbox_core::timestamp;
use crabbox_host::digest;
use crabbox_image::store::Store;
use crabbox_store::places::{LeaseDir, Places};
use crabbox_store::{claims, journal, leases};
use crabbox_testkit::mutate::damaged;
use proptest::prelude::*;

const ID: &str = "cbx_0123456789ab";

fn line_breaks(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').count() - 1
}

fn samples(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn configurations() -> Vec<Vec<u8>> {
    samples(&[
        "provider: firecracker\nttl: 90m\nsync:\n  exclude: [target, '*.o']\n  warnFiles: 50\nfirecracker:\n  binary: /b\n  cpus: 2\n  \
         launchTimeout: 2m\n  cniNetwork: net\n",
        "ssh: {user: me, port: 22, fallbackPorts: [22, '2222'], key: ~/.ssh/id}\nstatic: {host: box, port: 22}\nenv: {allow: [CI, 'X_*']}\n",
        "jobs:\n  test: {command: make, ttl: 10m, junit: [a.xml], shell: yes}\nprofiles:\n  ci: {env: {A: b, allow: [C]}, presets: {p: {command: x}}}\n",
        "a: &a {b: 1}\nc: *a\n? d\n: e\nfirecracker: {<<: *a, kernel: ../k, rootfs: !!str r, jailer: none}\n",
    ])
}

fn resolved(text: &str, layer: Layer) -> Result<Resolution, crabbox_core::config::ConfigError> {
    let files = [ConfigFile {
        path: "/w/repo/crabbox.yaml".into(),
        layer,
        text: text.to_owned(),
    }];
    resolve(&Inputs {
        files: &files,
        environment: &|_| None,
        flags: &[],
        home: Some(Path::new("/h")),
        cwd: Path::new("/w/repo"),
        user_file: None,
    })
}

fn claim_samples() -> Vec<Vec<u8>> {
    let text = format!(
        r#"{{"leaseID":"{ID}","revision":"0123456789abcdef0123456789abcdef","slug":"jade-krill","provider":"firecracker","cloudID":"vm",
        "repoRoot":"/r","claimedAt":"2025-07-31T22:13:20Z","lastUsedAt":"2025-07-31T22:13:20Z","idleTimeoutSeconds":1800,"sshHost":"10.0.0.2",
        "sshPort":22,"labels":{{"keep":"true"}},"fixedCreateIntent":{{"version":1}}}}"#
    );
    let full = Claim {
        lease_id: ID.to_owned(),
        ..Claim::full()
    };
    vec![text.into_bytes(), serde_json::to_vec_pretty(&full).unwrap()]
}

fn receipt_samples() -> Vec<Vec<u8>> {
    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let run = RunReceipt {
        generated_at: "2025-07-31T22:13:20Z",
        provider: "ssh",
        lease_id: ID,
        slug: "jade-krill",
        run_id: "run_1",
        command: "make <a & b>",
        exit_code: 0,
        command_ms: 12,
        log_sha256: DIGEST,
    };
    let terminal = TerminalReceipt {
        started_at: "2025-07-31T22:13:20.5Z",
        ended_at: "2025-07-31T22:13:22Z",
        provider: "ssh",
        lease_id: ID,
        slug: "jade-krill",
        run_id: "run_1",
        command: "make",
        command_sha256: DIGEST,
        exit_code: 2,
        sync_ms: 1,
        command_ms: 12,
        duration_ms: 1500,
        log_sha256: DIGEST,
        signer: DIGEST,
    };
    let (key, signature) = ([7; 32], [9; 64]);
    vec![run.file(&key, &signature), terminal.file(&key, &signature)]
}

/// Files of a proof that passed, and of one without observations.
fn proof_samples() -> Vec<Vec<u8>> {
    let mut redactor = Redactor::new(["alice"]);
    redactor.own("cbx_0123456789ab");
    let digest = |byte: u8| proof::Sha256::try_from(format!("{byte:02x}").repeat(32)).ok();
    let output = |name| match name {
        proof::StageName::Warmup => vec!["leased cbx_0123456789ab for alice at 10.0.0.2"],
        proof::StageName::Run => proof::DIRTY_TREE.to_vec(),
        proof::StageName::Connect => vec![proof::SESSION],
        proof::StageName::CopyOut => vec![proof::SAME],
        _ => Vec::new(),
    };
    let stages = proof::StageName::ALL.map(|name| proof::Stage {
        name,
        exit: Some(name.expected()),
        millis: 12,
        cut: 1,
        transcript: output(name)
            .into_iter()
            .map(|line| proof::Line::seen(&redactor, line))
            .collect(),
    });
    let seen = proof::Observations {
        made_at: proof::Moment::try_from("2026-08-01T00:00:00Z".to_owned()).unwrap(),
        interrupted: false,
        program: proof::Program {
            version: proof::Version::leading("0.1.0").unwrap(),
            sha256: digest(1),
        },
        host: proof::Host {
            arch: proof::Arch::X86,
            kernel: proof::Version::leading("6.1.0-alice"),
            cpus: 4,
            memory_gib: 16,
            hypervisor: Hypervisor::None,
            firmware: Firmware::Other,
        },
        firecracker: Some(proof::Vmm {
            version: proof::Version::leading("1.12.1"),
            sha256: digest(2),
            pinned: true,
            jailed: false,
        }),
        guest: Some(proof::Guest {
            kernel: GuestKernel::Own,
            kernel_sha256: digest(3),
            image_sha256: digest(4),
            cpus: 1,
            memory_mib: 256,
            disk_mib: 2048,
            network: NetworkMode::Cni,
        }),
        stages: stages.into(),
        left: Vec::new(),
    };
    let nothing = proof::Observations {
        guest: None,
        firecracker: None,
        stages: Vec::new(),
        interrupted: true,
        ..seen.clone()
    };
    let file = |seen| {
        proof::render(&Proof::of(seen), &digest::sha256)
            .unwrap()
            .into_bytes()
    };
    vec![file(seen), file(nothing)]
}

fn record_samples() -> Vec<Vec<u8>> {
    let text = format!(
        r#"{{"schemaVersion":1,"leaseID":"{ID}","slug":"jade-krill","name":"vm","vmid":"vm","provider":"firecracker","guestIP":"10.0.0.2",
        "sshUser":"crabbox","sshPort":"22","pid":12,"processStarted":"34","bootID":"b","deleteOnRelease":true,
        "labels":{{"created_at":"1754000000","expires_at":"1754001800","idle_timeout_secs":"1800","keep":"false","state":"ready",
        "last_touched_at":"1754000000","ttl_secs":"5400"}},"createdAt":"2025-07-31T22:13:20Z","updatedAt":"2025-07-31T22:13:20Z"}}"#
    );
    let full = LeaseRecord {
        lease_id: ID.to_owned(),
        ..LeaseRecord::full()
    };
    vec![text.into_bytes(), serde_json::to_vec_pretty(&full).unwrap()]
}

fn journal_sample() -> String {
    let lines = [
        r#"{"entry":"open","version":1,"lease":"cbx_0123456789ab","at":1754000000,"uid":1900000001,"subnet":"10.86.0.0/30"}"#,
        r#"{"entry":"begin","seq":0,"step":{"kind":"directory","path":"/é/leases/cbx_0123456789ab"}}"#,
        r#"{"entry":"done","seq":0}"#,
        r#"{"entry":"begin","seq":1,"step":{"kind":"supervisor"}}"#,
        r#"{"entry":"done","seq":1,"process":{"pid":12,"started":"34","boot_id":"b"}}"#,
        r#"{"entry":"note","name":"disk","value":"layer 🦀"}"#,
        r#"{"entry":"begin","seq":2,"step":{"kind":"claim"}}"#,
        r#"{"entry":"done","seq":2}"#,
        r#"{"entry":"undone","seq":1}"#,
    ];
    lines.join("\n") + "\n"
}

#[test]
fn the_samples_are_good_ones() {
    for text in configurations() {
        let text = String::from_utf8(text).unwrap();
        resolved(&text, Layer::UserFile).unwrap();
    }
    let journal = Journal::parse(&journal_sample()).unwrap();
    assert!(journal.is_claimed() && journal.next_seq == 3 && journal.note("disk").is_some());
    for text in record_samples() {
        serde_json::from_slice::<LeaseRecord>(&text).unwrap();
    }
    for text in claim_samples() {
        serde_json::from_slice::<Claim>(&text).unwrap();
    }
}

proptest! {
    #[test]
    fn a_configuration_is_refused_at_its_place_and_a_repository_s_chooses_nothing_of_the_host(bytes in damaged(configurations())) {
        let text = String::from_utf8_lossy(&bytes);
        for layer in [Layer::UserFile, Layer::RepoFile] {
            match resolved(&text, layer) {
                Ok(resolution) => {
                    for key in KEYS.iter().filter(|key| !key.trust.is_open_to_repositories()) {
                        let origin = resolution.explain(key.name).layer();
                        prop_assert!(layer.is_trusted() || origin == Layer::Default, "{} from {origin:?}", key.path);
                    }
                    for warning in &resolution.warnings {
                        let told = warning.to_string();
                        prop_assert!(told.starts_with("/w/repo/crabbox.yaml:"), "{told}");
                        prop_assert!(!told.contains(|c: char| c.is_control()), "{told:?}");
                    }
                    firecracker::plan(&resolution.settings).ok();
                }
                Err(error) => {
                    let told = error.to_string();
                    if told.starts_with("provider=ssh refuses") {
                        continue;
                    }
                    let place = told.strip_prefix("parse config /w/repo/crabbox.yaml:").unwrap_or_default();
                    let mut numbers = place.split(':').map_while(|part| part.parse::<usize>().ok());
                    let (line, column) = (numbers.next(), numbers.next());
                    // An unexpected end of file is reported one line after the last.
                    prop_assert!(line.is_some_and(|line| line >= 1 && line <= text.split('\n').count() + 1), "{told}");
                    prop_assert!(column.is_some_and(|column| column >= 1), "{told}");
                }
            }
        }
    }

    #[test]
    fn a_duration_is_refused_or_reads_back(text in "[-+]?([0-9]{0,20}(\\.[0-9]{0,20})?(ns|us|µs|ms|s|m|h|d|)){0,4}|.{0,12}") {
        if let Ok(span) = text.parse::<GoDuration>() {
            prop_assert_eq!(span.to_string().parse::<GoDuration>(), Ok(span));
            let _whole: Duration = span.to_std();
        }
    }

    #[test]
    fn an_id_that_is_taken_is_a_plain_name(text in "cbx_[0-9a-f]{11,13}|[a-zA-Z0-9 ._/-]{0,60}|.{0,20}") {
        if let Ok(id) = LeaseId::parse(&text) {
            prop_assert!(id.as_str().len() == 16 && is_valid_claim_id(id.as_str()));
            prop_assert_eq!(id.tag().len(), 8);
        }
        if let Ok(slug) = Slug::requested(&text) {
            let parts = slug.as_str().split('-');
            let is_part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
            prop_assert!(slug.as_str().len() <= 41 && parts.into_iter().all(is_part), "{slug}");
        }
        prop_assert_eq!(normalise(&normalise(&text)), normalise(&text));
        if is_valid_claim_id(&text) {
            let path = Path::new("/d").join(&text);
            prop_assert_eq!(path.parent(), Some(Path::new("/d")), "{}", text);
            prop_assert!(path.file_name().is_some_and(|name| name.to_str() == Some(&text)));
        }
    }

    #[test]
    fn a_time_is_refused_or_reads_back(text in ".{0,40}|[0-9-]{4,12}T[0-9:.]{2,20}(Z|[+-][0-9]{2}:[0-9]{2})", seconds: i64, nanoseconds: u32) {
        if let Some(at) = timestamp::parse(&text) {
            prop_assert_eq!(timestamp::parse(&timestamp::rfc3339(at)), Some(at));
        }
        prop_assert!(timestamp::parse(&timestamp::rfc3339(seconds)).is_some());
        prop_assert!(timestamp::parse(&timestamp::rfc3339_nano(seconds, nanoseconds)).is_some());
    }

    #[test]
    fn labels_of_any_kind_are_judged(values in prop::collection::vec(
        prop_oneof!["-?[0-9]{1,20}", Just(i64::MAX.to_string()), Just(i64::MIN.to_string()), ".{0,12}"], 7), now in prop_oneof![any::<i64>(), Just(1_754_000_000)]) {
        let names = ["created_at", "expires_at", "last_touched_at", "idle_timeout_secs", "idle_timeout", "ttl_secs", "state"];
        let mut labels: Labels = names.iter().map(|name| (*name).to_owned()).zip(values).collect();
        labels::expired(&labels, now);
        labels::touch(&mut labels, Some(&LeaseState::Ready), None, now);
        prop_assert_eq!(labels::state(&labels), LeaseState::Ready);
        prop_assert!(labels::time(&labels, "expires_at").is_some() && labels::idle_seconds(&labels) > 0);
    }

    #[test]
    fn a_journal_is_refused_at_its_line(bytes in damaged(vec![journal_sample().into_bytes()])) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        fs::write(&path, &bytes).unwrap();
        let lines = line_breaks(&bytes);
        match journal::read(&path) {
            Ok(journal) => {
                let journal = journal.unwrap();
                prop_assert!(journal.teardown().count() <= lines);
            }
            Err(error) => {
                let told = chain(&error);
                prop_assert!(told.contains("journal.jsonl"), "{told}");
                prop_assert!(!told.contains('\n') && told.len() < 1000, "{told}");
                if let journal::JournalFileError::Corrupt { source: JournalError::BadLine { line, .. }, .. } = error {
                    prop_assert!(line >= 1 && line <= lines, "{told}");
                }
            }
        }
    }

    #[test]
    fn a_journal_that_was_torn_says_what_was_written_before(at: prop::sample::Index) {
        let whole = journal_sample().into_bytes();
        let torn = &whole[..at.index(whole.len() + 1)];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        fs::write(&path, torn).unwrap();
        let read = journal::read(&path).unwrap().unwrap();
        let lines = line_breaks(torn);
        let text = journal_sample();
        let before: String = text.split_inclusive('\n').take(lines).collect();
        prop_assert_eq!(read, Journal::parse(&before).unwrap());
    }

    #[test]
    fn a_record_is_read_or_told_with_its_file(bytes in damaged(record_samples())) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        let lease = places.leases().join(ID);
        fs::create_dir_all(&lease).unwrap();
        fs::write(lease.join("metadata.json"), &bytes).unwrap();
        let listing = leases::list(&places.leases()).unwrap();
        prop_assert_eq!(listing.leases.len() + listing.unreadable.len(), 1);
        for bad in &listing.unreadable {
            prop_assert_eq!(&bad.name, ID);
            let told = chain(&bad.error);
            prop_assert!(told.contains("metadata.json") && !told.contains('\n'), "{told}");
        }
        for good in &listing.leases {
            // Whatever the file says, the lease is that of its directory and is located there.
            prop_assert_eq!(&good.record.lease_id, ID);
            prop_assert_eq!(Path::new(&good.record.state_dir), &lease);
            let mut stored = leases::read(&LeaseDir::at(&lease)).unwrap();
            stored.save().unwrap();
            prop_assert_eq!(&leases::read(&LeaseDir::at(&lease)).unwrap().record.labels, &good.record.labels);
        }
    }

    #[test]
    fn a_claim_is_read_or_told_with_its_file(bytes in damaged(claim_samples())) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        fs::create_dir_all(places.claims()).unwrap();
        let file = format!("{ID}.json");
        fs::write(places.claims().join(&file), &bytes).unwrap();
        let listing = claims::list(&places).unwrap();
        prop_assert_eq!(listing.claims.len() + listing.problems.len(), 1);
        prop_assert!(listing.claims.iter().all(|claim| claim.lease_id == ID));
        for problem in &listing.problems {
            prop_assert_eq!(&problem.file, &file);
            let told = chain(&problem.error);
            prop_assert!(told.contains(&file) && !told.contains('\n'), "{told}");
            prop_assert!(claims::read(&places, ID).is_err());
        }
    }

    #[test]
    fn an_image_s_record_is_read_or_told_with_its_directory(bytes in damaged(samples(&[
        r#"{"version":1,"digest":"d","created_unix":1754000000,"arch":"x86_64","suite":"bookworm","kernel_release":"6.1.0","init":"cloud_init",
        "guest":{"user":"crabbox","uid":1000,"work_root":"/work/crabbox","ssh_port":22},"files":{"vmlinux":{"sha256":"a","bytes":1}},"packages":{}}"#
    ]))) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let image = dir.path().join("a".repeat(64));
        fs::create_dir_all(&image).unwrap();
        fs::write(image.join("manifest.json"), &bytes).unwrap();
        let listing = store.list().unwrap();
        prop_assert!(listing.images.len() + listing.broken.len() <= 1);
        for broken in &listing.broken {
            let told = chain(&broken.error);
            prop_assert!(told.contains(&"a".repeat(64)) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn a_proof_is_refused_or_says_what_was_seen_to_the_last_byte(bytes in damaged(proof_samples())) {
        let plain = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("\r\n", "\n").trim_end_matches('\n').to_owned();
        match proof::parse(&bytes, &digest::sha256) {
            Ok(_) => prop_assert!(proof_samples().iter().any(|sample| plain(sample) == plain(&bytes))),
            Err(error) => {
                let told = chain(&error);
                prop_assert!(!told.is_empty() && told.len() < 4096, "{told}");
                prop_assert!(!told.contains(|c: char| c.is_control()), "{told:?}");
            }
        }
    }

    #[test]
    fn a_receipt_is_refused_or_signed_for_all_that_it_says(bytes in damaged(receipt_samples())) {
        let said = |bytes: &[u8]| {
            let mut value: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            value.as_object_mut().unwrap().remove("signature");
            value
        };
        match receipt::parse(&bytes) {
            Ok(sealed) => for sample in receipt_samples() {
                if receipt::parse(&sample).unwrap().signed == sealed.signed {
                    prop_assert_eq!(said(&bytes), said(&sample));
                }
            },
            Err(error) => prop_assert!(chain(&error).starts_with("malformed receipt: "), "{error}"),
        }
    }

    #[test]
    fn a_cni_network_is_loaded_or_told_with_its_file(bytes in damaged(samples(&[
        r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp","ipMasq":true,"ipam":{"type":"host-local","subnet":"10.1.0.0/16"}},{"type":"firewall"}]}"#,
        r#"{"cniVersions":["0.4.0","1.1.0"],"cniVersion":"1.1.0","name":"net","disableCheck":"true","plugins":[{"type":"bridge","capabilities":{"mac":true}}]}"#
    ]))) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("10-net.conflist"), &bytes).unwrap();
        match crabbox_cni::load(dir.path(), "net") {
            Ok(list) => {
                prop_assert_eq!(&list.name, "net");
                prop_assert!(!list.plugin_types().is_empty());
            }
            Err(error) => {
                let told = chain(&error);
                prop_assert!(told.contains("10-net.conflist") || told.contains(&*dir.path().to_string_lossy()), "{told}");
                prop_assert!(!told.contains(|c: char| c.is_control()), "{told:?}");
            }
        }
    }
}
