//! Packages handled by dpkg and the install script, in trees below a temporary directory: this host's own
//! dpkg state is not touched.

mod install;
mod rpm;

use std::os::unix::fs::PermissionsExt as _;

use crabbox_host::command::Captured;

use super::*;

/// Prints what the program prints when it is packed and installed.
const STAND_IN: &str = r##"#!/bin/sh
# Needs GLIBC_2.34
case $1 in
    --version) echo 'VERSION' ;;
    completions) echo "# for $2" ;;
    __reference) mkdir -p "$2/man" && echo '.TH crabbox 1' > "$2/man/crabbox.1" ;;
    *) exit 2 ;;
esac
"##;

/// The version of the workspace, and a later one.
const VERSIONS: [&str; 2] = [env!("CARGO_PKG_VERSION"), "99.0.0"];

fn components() -> Components {
    Components::read(TARGET).unwrap()
}

/// Packs `program` as `version` into `out`.
fn packed(program: &Path, version: &str, components: &Components, out: &Path) -> Vec<PathBuf> {
    of_parts(program, version, components, None, out)
}

/// The same for all parts, or for a single one.
fn of_parts(
    program: &Path,
    version: &str,
    components: &Components,
    only: Option<Part>,
    out: &Path,
) -> Vec<PathBuf> {
    pack(&release(program, version, components), only, out).unwrap()
}

fn release<'a>(program: &'a Path, version: &'a str, components: &'a Components) -> Release<'a> {
    Release {
        version,
        program,
        components,
        epoch: 1_700_000_000,
        releases: "",
        effort: 1,
    }
}

/// One part of a release of fake programs.
fn stand_in_part(version: &str, components: &Components, part: Part, dir: &Path) -> PathBuf {
    let program = stand_in(dir, version);
    let made = of_parts(&program, version, components, Some(part), &dir.join(version));
    made.into_iter().next().unwrap()
}

fn stand_in(dir: &Path, version: &str) -> PathBuf {
    let path = dir.join(format!("stand-in-{version}"));
    fs::write(&path, STAND_IN.replace("VERSION", version)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn ending<'a>(paths: &'a [PathBuf], ending: &str) -> &'a Path {
    let found = paths.iter().find(|path| path.to_string_lossy().ends_with(ending));
    found.expect("the file was packed")
}

/// Everything below `dir` except directories, by relative path.
fn files(dir: &Path) -> Vec<String> {
    let found = Cmd::new("find")
        .arg(".")
        .args(["!", "-type", "d"])
        .cwd(dir)
        .run()
        .unwrap();
    let mut files: Vec<String> = found.stdout_text().lines().map(str::to_owned).collect();
    files.sort();
    files
}

/// A system that consists only of dpkg's records.
struct System(tempfile::TempDir);

impl System {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for inner in ["info", "updates", "triggers"] {
            fs::create_dir_all(dir.path().join("var/lib/dpkg").join(inner)).unwrap();
        }
        fs::write(dir.path().join("var/lib/dpkg/status"), "").unwrap();
        Self(dir)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// dpkg's command line. Dependencies are not checked against this system, which has no shell to chroot
    /// to.
    fn words(&self, words: &[&str]) -> Vec<String> {
        let root = format!("--root={}", self.0.path().display());
        let ours = [
            "dpkg",
            &root,
            "--force-depends",
            "--force-script-chrootless",
            "--log=/dev/null",
        ];
        [&ours, words].concat().into_iter().map(str::to_owned).collect()
    }

    fn dpkg(&self, words: &[&str]) -> Captured {
        let words = self.words(words);
        Cmd::new(&words[0]).args(&words[1..]).capture().unwrap()
    }

    fn install(&self, package: &Path) -> Captured {
        self.dpkg(&["--install", package.to_str().unwrap()])
    }

    /// Checks that all files are as packed; dpkg exits with 0 in any case (1.21), so check its output.
    #[track_caller]
    fn is_whole(&self) {
        let found = self.dpkg(&["--verify", "crabbox"]);
        ok(&found);
        assert_eq!(found.stdout_text(), "");
    }

    /// The package's state according to dpkg.
    fn state(&self) -> String {
        let said = Cmd::new("dpkg-query")
            .arg(format!("--admindir={}", self.at("var/lib/dpkg").display()))
            .args(["--show", "--showformat=${db:Status-Status} ${Version}", "crabbox"])
            .capture()
            .unwrap();
        said.stdout_text()
    }
}

#[track_caller]
fn ok(done: &Captured) {
    assert!(
        done.status.success(),
        "{}{}",
        done.stdout_text(),
        done.stderr_text()
    );
}

/// The development program, stripped: compressing debug information would take long for nothing. It is not
/// built from here, because a cargo below a test has another environment, in which it would recompile nearly
/// everything.
fn development(dir: &Path) -> PathBuf {
    let built = workspace::built_beside("crabbox").unwrap();
    assert!(
        built.is_file(),
        "{} is not there: cargo build --workspace --bin crabbox",
        built.display()
    );
    let small = dir.join("crabbox");
    Cmd::inheriting("strip")
        .args(["--strip-all", "-o"])
        .args([&small, &built])
        .run()
        .unwrap();
    small
}

#[test]
fn a_package_of_the_program_is_installed_replaced_removed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let components = components();
    let program = development(dir.path());
    let this = packed(&program, VERSIONS[0], &components, &dir.path().join("this"));
    let later = stand_in(dir.path(), VERSIONS[1]);
    let later = packed(&later, VERSIONS[1], &components, &dir.path().join("later"));
    let system = System::new();
    let before = files(system.0.path());

    ok(&system.install(ending(&this, ".deb")));
    assert_eq!(system.state(), format!("installed {}", VERSIONS[0]));
    let installed = system.at("usr/bin/crabbox");
    let say = |words: &[&str]| Cmd::new(&installed).args(words).env("HOME", dir.path()).run();
    assert_eq!(say(&["--version"]).unwrap().stdout_text().trim(), VERSIONS[0]);
    for (path, content) in [
        ("usr/share/bash-completion/completions/crabbox", "warmup"),
        ("usr/share/zsh/vendor-completions/_crabbox", "#compdef crabbox"),
        (
            "usr/share/fish/vendor_completions.d/crabbox.fish",
            "complete -c crabbox",
        ),
        ("usr/share/doc/crabbox/LICENSES-DEPENDENCIES", "serde"),
        ("usr/share/doc/crabbox/crabbox.cdx.json", "CycloneDX"),
        ("usr/share/doc/crabbox/copyright", "LICENSE-MIT"),
    ] {
        let text = fs::read_to_string(system.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(text.contains(content), "{path}");
    }
    let page = Cmd::new("gzip")
        .args(["-dc"])
        .arg(system.at("usr/share/man/man1/crabbox-warmup.1.gz"))
        .run()
        .unwrap();
    assert!(page.stdout_text().contains(".TH crabbox-warmup 1"));
    system.is_whole();
    for example in fs::read_dir(system.at("usr/share/doc/crabbox/examples")).unwrap() {
        let path = example.unwrap().path();
        // The files of a fleet are for Slurm.
        if path.is_dir() {
            assert!(path.join("slurm.conf").is_file(), "{}", path.display());
            continue;
        }
        // As a user's own file, unreadable for others and outside of repositories.
        let own = dir.path().join("config.yaml");
        fs::write(&own, fs::read(&path).unwrap()).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
        let shown = Cmd::new(&installed)
            .args(["config", "show"])
            .cwd(system.0.path())
            .env("HOME", dir.path())
            .env("CRABBOX_CONFIG", &own)
            .run()
            .unwrap();
        assert_eq!(
            shown.stderr_text(),
            "",
            "{} is taken without a warning",
            path.display()
        );
    }

    // Upgrade, downgrade, and a truncated download: the installed version stays.
    ok(&system.install(ending(&later, ".deb")));
    assert_eq!(system.state(), "installed 99.0.0");
    ok(&system.install(ending(&this, ".deb")));
    let whole = fs::read(ending(&this, ".deb")).unwrap();
    let cut = dir.path().join("cut.deb");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    assert!(!system.install(&cut).status.success());
    assert_eq!(say(&["--version"]).unwrap().stdout_text().trim(), VERSIONS[0]);
    ok(&system.install(ending(&this, ".deb")));
    assert_eq!(system.state(), format!("installed {}", VERSIONS[0]));

    ok(&system.dpkg(&["--remove", "crabbox"]));
    assert!(!installed.exists());
    ok(&system.dpkg(&["--purge", "crabbox"]));
    assert_eq!(files_of_ours(&system, &before), Vec::<String>::new());
}

#[test]
fn a_half_installed_package_is_mended_by_a_second_try_and_the_old_program_runs_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let components = components();
    let [this, later] = VERSIONS.map(|version| stand_in_part(version, &components, Part::Deb, dir.path()));
    let system = System::new();
    let before = files(system.0.path());
    // Killed while writing the first file that is longer than this, in units of 512 bytes.
    let die_at = |package: &Path| {
        let words = system.words(&["--install", package.to_str().unwrap()]);
        let limited = Cmd::new("sh").args(["-c", "ulimit -f 100; exec \"$@\"", "sh"]);
        let died = limited.args(words).capture().unwrap();
        assert!(!died.status.success(), "{}", died.stdout_text());
        assert!(system.state().starts_with("half-installed"), "{}", system.state());
    };
    let say = || Cmd::new(system.at("usr/bin/crabbox")).arg("--version").run();
    die_at(&this);
    assert!(say().is_err(), "half a program is none");
    ok(&system.install(&this));
    die_at(&later);
    assert_eq!(say().unwrap().stdout_text(), VERSIONS[0]);
    ok(&system.install(&later));
    assert_eq!(system.state(), format!("installed {}", VERSIONS[1]));
    assert_eq!(say().unwrap().stdout_text(), VERSIONS[1]);
    system.is_whole();
    ok(&system.dpkg(&["--purge", "crabbox"]));
    assert_eq!(files_of_ours(&system, &before), Vec::<String>::new());
}

/// Files that did not exist `before`, without dpkg's own records.
fn files_of_ours(system: &System, before: &[String]) -> Vec<String> {
    let now = files(system.0.path()).into_iter();
    let of_dpkg = |file: &String| file.starts_with("./var/lib/dpkg/");
    let mut left: Vec<String> = now
        .filter(|file| !before.contains(file) && !of_dpkg(file))
        .collect();
    left.extend(
        ["usr", "var/lib/crabbox"]
            .into_iter()
            .filter(|dir| system.at(dir).exists())
            .map(str::to_owned),
    );
    left
}

#[test]
fn a_package_stays_while_leases_live_and_purging_keeps_what_others_put_there() {
    let dir = tempfile::tempdir().unwrap();
    let package = &stand_in_part(VERSIONS[0], &components(), Part::Deb, dir.path());
    let system = System::new();
    let before = files(system.0.path());
    ok(&system.install(package));
    let entries = system.at("var/lib/crabbox/registry/leases");
    fs::create_dir_all(&entries).unwrap();
    for lock in ["registry.lock", "network.lock"] {
        fs::write(entries.with_file_name(lock), "").unwrap();
    }
    let entry = entries.join("cbx_0123456789ab.json");
    fs::write(&entry, "{}").unwrap();

    for action in ["--remove", "--purge"] {
        let refused = system.dpkg(&[action, "crabbox"]);
        assert!(!refused.status.success(), "{action}");
        let said = refused.stderr_text();
        assert!(
            said.contains("cbx_0123456789ab") && said.contains("crabbox stop"),
            "{said}"
        );
    }
    assert_eq!(system.state(), format!("installed {}", VERSIONS[0]));
    assert!(system.at("usr/bin/crabbox").exists() && entry.exists());
    ok(&system.install(package));
    assert!(entry.exists(), "an upgrade leaves leases alone");

    // The lease has ended, and there is a foreign file.
    fs::remove_file(&entry).unwrap();
    let foreign = system.at("var/lib/crabbox/notes");
    fs::write(&foreign, "mine").unwrap();
    let purged = system.dpkg(&["--purge", "crabbox"]);
    ok(&purged);
    assert!(
        purged.stderr_text().contains("not crabbox's"),
        "{}",
        purged.stderr_text()
    );
    assert!(foreign.exists() && !entries.exists());
    fs::remove_file(&foreign).unwrap();
    fs::remove_dir(system.at("var/lib/crabbox")).unwrap();
    assert_eq!(files_of_ours(&system, &before), Vec::<String>::new());
}

#[test]
fn the_same_release_has_the_same_bytes_whatever_the_place_and_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let program = stand_in(dir.path(), VERSIONS[0]);
    let components = components();
    let one = packed(&program, VERSIONS[0], &components, &dir.path().join("one"));
    // Another directory, and other times and modes of the packed files.
    let moved = dir.path().join("else/where");
    fs::create_dir_all(&moved).unwrap();
    let other = stand_in(&moved, VERSIONS[0]);
    fs::set_permissions(&other, fs::Permissions::from_mode(0o700)).unwrap();
    let two = packed(&other, VERSIONS[0], &components, &moved.join("two"));
    let sums = [one, two].map(|paths| fs::read_to_string(ending(&paths, "SHA256SUMS")).unwrap());
    assert_eq!(sums[0], sums[1]);
    assert_eq!(sums[0].lines().count(), 5);
}

#[test]
fn a_file_made_alone_calls_for_its_own_tools_and_leaves_no_digest_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let program = stand_in(dir.path(), VERSIONS[0]);
    let components = components();
    let out = dir.path().join("out");
    let all = packed(&program, VERSIONS[0], &components, &out);
    let sums = ending(&all, SUMS);
    let alone = |version, only| {
        let release = Release {
            epoch: 1_700_000_001,
            ..release(&program, version, &components)
        };
        pack(&release, Some(only), &out).unwrap()
    };
    // Of another version, so the files named by the digests still exist.
    alone(VERSIONS[1], Part::Tarball);
    assert!(sums.exists());
    alone(VERSIONS[0], Part::Tarball);
    assert!(!sums.exists());

    let tools = |only, built| {
        let listed = ["binutils", "rpm", "xz-utils"].into_iter();
        listed
            .filter(|name| calls_for(only, built, name))
            .collect::<Vec<_>>()
    };
    assert_eq!(tools(None, true), ["binutils", "rpm", "xz-utils"]);
    assert_eq!(tools(Some(Part::Tarball), false), <[&str; 0]>::default());
    assert_eq!(tools(Some(Part::Deb), false), ["xz-utils"]);
    assert_eq!(tools(Some(Part::Rpm), true), ["binutils", "rpm", "xz-utils"]);
}
