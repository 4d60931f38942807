use super::*;
use redact::Redactor;

/// Not a real digest: a short word that depends on every byte.
fn sum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(7_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    format!("{sum:064x}")
}

fn sha256(digit: char) -> Option<Sha256> {
    Sha256::try_from(digit.to_string().repeat(64)).ok()
}

pub(super) fn seen() -> Observations {
    let output = |name: StageName| -> Vec<&str> {
        match name {
            StageName::Warmup => vec!["leased cbx_0123456789ab slug=proof-0a1b2c host=10.213.0.2"],
            StageName::Run => DIRTY_TREE.to_vec(),
            StageName::Connect => vec![SESSION],
            StageName::CopyOut => vec![SAME],
            _ => Vec::new(),
        }
    };
    let redactor = Redactor::default();
    let stages = StageName::ALL.map(|name| Stage {
        name,
        exit: Some(name.expected()),
        millis: 1234,
        cut: 0,
        transcript: output(name)
            .into_iter()
            .map(|line| Line::seen(&redactor, line))
            .collect(),
    });
    let version = |text: &str| Version::leading(text);
    Observations {
        made_at: Moment::try_from("2026-08-01T00:00:00Z".to_owned()).unwrap(),
        interrupted: false,
        program: Program {
            version: version("0.1.0").unwrap(),
            sha256: sha256('a'),
        },
        host: Host {
            arch: Arch::X86,
            kernel: version("6.1.0"),
            cpus: 4,
            memory_gib: 16,
            hypervisor: Hypervisor::None,
            firmware: Firmware::Other,
        },
        firecracker: Some(Vmm {
            version: version("1.12.1"),
            sha256: sha256('b'),
            pinned: true,
            jailed: true,
        }),
        guest: Some(Guest {
            kernel: GuestKernel::Own,
            kernel_sha256: sha256('c'),
            image_sha256: sha256('d'),
            cpus: 2,
            memory_mib: 1024,
            disk_mib: 4096,
            network: NetworkMode::Nat,
        }),
        stages: stages.into(),
        left: Vec::new(),
    }
}

fn file() -> String {
    render(&Proof::of(seen()), &sum).unwrap()
}

#[test]
fn a_proof_reads_back_as_it_was_and_says_which_rung_it_stands_for() {
    let proof = Proof::of(seen());
    assert!(proof.passed());
    let file = file();
    assert!(file.starts_with("# crabbox proof: passed, rung 5\n"), "{file}");
    assert!(
        file.contains("slug=proof-0a1b2c host=<address>\n") && !file.contains("10.213"),
        "{file}"
    );
    assert_eq!(parse(file.as_bytes(), &sum).unwrap(), proof);
    // A web form changes line breaks, and the last one.
    let pasted = file.trim_end().replace('\n', "\r\n");
    assert_eq!(parse(pasted.as_bytes(), &sum).unwrap(), proof);
}

#[test]
fn what_went_wrong_anywhere_is_no_success() {
    type Change = fn(&mut Observations);
    let cases: [(&str, Change); 12] = [
        ("interrupted", |seen| seen.interrupted = true),
        ("no guest", |seen| seen.guest = None),
        ("no vmm", |seen| seen.firecracker = None),
        ("no digest", |seen| seen.program.sha256 = None),
        ("unseen", |seen| {
            seen.guest.as_mut().unwrap().kernel = GuestKernel::Unseen;
        }),
        ("exit", |seen| seen.stages[3].exit = Some(0)),
        ("signal", |seen| seen.stages[0].exit = None),
        ("lines", |seen| {
            seen.stages[2].transcript.pop();
        }),
        ("left out", |seen| {
            seen.stages.remove(1);
        }),
        ("twice", |seen| seen.stages.push(seen.stages[9].clone())),
        ("order", |seen| seen.stages.swap(0, 1)),
        ("left", |seen| {
            seen.left.push(Left {
                kind: Residue::Mount,
                count: 1,
            });
        }),
    ];
    for (what, change) in cases {
        let mut seen = seen();
        change(&mut seen);
        let proof = Proof::of(seen);
        assert!(!proof.passed(), "{what}");
        // A failed proof always has a reason.
        let holds = proof.assertions().iter().all(|assertion| assertion.holds);
        assert!(!holds || !proof.lacks().is_empty(), "{what}");
        // It is still a valid document and can be checked.
        let file = render(&proof, &sum).unwrap();
        assert!(file.starts_with("# crabbox proof: did NOT pass"), "{what}");
        assert_eq!(parse(file.as_bytes(), &sum).unwrap(), proof, "{what}");
    }
}

#[test]
fn a_forged_file_is_refused_with_what_and_where() {
    let file = file();
    let changed = |from: &str, to: &str| {
        assert!(file.contains(from), "{from}");
        parse(file.replace(from, to).as_bytes(), &sum)
            .unwrap_err()
            .to_string()
    };
    for (from, to, told) in [
        ("rung 5\n", "rung 4\n", "line 1 is "),
        ("exit code 7 (", "exit code 0 (", "expected"),
        ("\"cpus\": 4", "\"cpus\": 8", "line "),
        (
            "\"kind\": \"hardware\"",
            "\"kind\": \"emulated\"",
            "rung: emulated (likely, rung 5)",
        ),
        (
            "\"hypervisor\": \"none\"",
            "\"hypervisor\": \"tcg\"",
            "rung: hardware",
        ),
        (
            "\"passed\": true",
            "\"passed\": false",
            "passed: false, but the observations imply true",
        ),
        ("\"exit\": 7", "\"exit\": 1", "assertions: exitCode true"),
        (
            "\"schemaVersion\": 1",
            "\"schemaVersion\": 2",
            "its schemaVersion is 2",
        ),
        ("\"cut\": 0", "\"cut\": 0, \"cut\": 1", "duplicate key"),
        ("\"cpus\": 4", "\"cpus\": 4, \"host\": 1", "unknown field `host`"),
        ("host=<address>\"", "host=10.0.0.1\"", "not a valid redacted line"),
        ("```json", "```", "it has no document"),
        (
            "  \"left\": []\n}\n```",
            "  \"left\": []\n}\n",
            "it has no document",
        ),
        (
            "  \"left\": []\n}\n```\n",
            "  \"left\": []\n}\n```\nmore\n",
            "line ",
        ),
        ("sha256:", "sha256:0", "line "),
        ("\"arch\": \"x86_64\"", "\"arch\": \"alice\"", "line "),
    ] {
        let error = changed(from, to);
        assert!(error.contains(told), "{from}: {error}");
    }
    // A removed assertion is noticed.
    let start = file.find("    {\n      \"name\": \"leased\"").unwrap();
    let end = file.find("    {\n      \"name\": \"dirtyTree\"").unwrap();
    let fewer = format!("{}{}", &file[..start], &file[end..]);
    let error = parse(fewer.as_bytes(), &sum).unwrap_err().to_string();
    assert!(error.contains("assertions: dirtyTree true"), "{error}");
    assert!(parse(b"\xff", &sum).unwrap_err().to_string().contains("byte 0"));
    assert!(parse(b"", &sum).is_err());
}

#[test]
fn everything_that_the_stages_say_of_themselves_comes_through_the_redactor() {
    // A user name may be any word of the fixture.
    let redactor = Redactor::new(["hello", "tree", "guest", "copy", "untracked", "gone"]);
    for line in DIRTY_TREE.iter().chain([&SESSION, &SAME]) {
        assert_eq!(redactor.line(line), **line);
    }
}
