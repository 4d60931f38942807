//! Small trees that meet the contract or do not, built by the real tools over a fake kernel.

use std::cell::Cell;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crabbox_host::command::Cmd;

use super::*;
use crate::build::{SPACE_NEEDED, STAMP_UNIX};
use crate::cpio::Writer;
use crate::small::{FillAt, Small};
use crabbox_core::fault::chain;

mod hostile;

/// An ELF head for the processor `machine`.
fn elf(machine: u16) -> Vec<u8> {
    let mut head = vec![0; 128];
    head[..6].copy_from_slice(b"\x7fELF\x02\x01");
    head[16] = 3;
    head[18..20].copy_from_slice(&machine.to_le_bytes());
    head
}

struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        std::fs::write(dir.path().join("guest"), elf(62)).unwrap();
        let place = Self { dir, store };
        for program in programs::of(Check::Tree) {
            place.write(below_root(program.places[0]), b"#!/bin/sh\n");
        }
        place.set_mode("usr/bin/sudo", 0o4755);
        place.write("usr/sbin/sshd", &elf(62));
        place.write(
            "etc/ssh/sshd_config",
            b"# As most distributions have it.\nInclude /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n",
        );
        place.write(
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n",
        );
        place.write("etc/os-release", b"ID=alpine\nVERSION_ID=\"3.20\"\n");
        place.write("var/log/old", b"of the maker");
        place
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.tree().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn set_mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.tree().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A kernel in the tree, with modules.
    fn own_kernel(&self) {
        let modules = "usr/lib/modules/6.1.0-own";
        for name in initrd::MODULES {
            let module = crate::modinfo::sample("");
            self.write(&format!("{modules}/kernel/{name}.ko"), &module);
        }
        self.write(&format!("{modules}/modules.builtin"), b"");
        let mut kernel = elf(62);
        kernel.resize(4096, 0);
        kernel[16] = 2;
        kernel[24] = 1;
        self.write("boot/vmlinuz-6.1.0-own", &kernel);
    }

    /// An image of the store with a kernel of its own.
    fn kernel(&self) -> Image {
        let scratch = self.store.begin().unwrap();
        let staged = scratch.dir().join("image");
        std::fs::create_dir(&staged).unwrap();
        let mut initrd = Writer::new();
        initrd.file("init", 0o755, b"old");
        initrd.file("modules/order", 0o644, b"virtio.ko\n");
        initrd.file("modules/virtio.ko", 0o644, b"module");
        let contents = [
            (manifest::KERNEL, elf(62)),
            (manifest::INITRD, initrd.finish()),
            (manifest::BASE, b"base".to_vec()),
        ];
        for (name, bytes) in &contents {
            std::fs::write(staged.join(name), bytes).unwrap();
        }
        let record = Manifest {
            kernel_release: "6.1.0-test".to_owned(),
            ..Manifest::of_staged(&staged, &manifest::FILES, Init::Ours, 1).unwrap()
        };
        self.store.put(&scratch, &staged, &record, "kernel").unwrap()
    }

    fn build(&self, source: &str, init: OwnInit) -> Result<Image, BuildError> {
        self.build_with(source, init, &|_: &str| {})
    }

    fn build_with(&self, source: &str, init: OwnInit, progress: &dyn Progress) -> Result<Image, BuildError> {
        let kernel = self.store.get("kernel");
        let kernel_of = kernel.map_or(KernelOf::Nobody, KernelOf::Otherwise);
        self.build_of(source, init, kernel_of, progress)
    }

    fn build_of(
        &self,
        source: &str,
        init: OwnInit,
        kernel_of: KernelOf,
        progress: &dyn Progress,
    ) -> Result<Image, BuildError> {
        let recipe = TreeRecipe {
            name: "mine".to_owned(),
            source: Source::named(source, self.dir.path()).unwrap(),
            init,
            kernel_of,
            guest_binary: self.dir.path().join("guest"),
            agent: None,
            stamp_unix: STAMP_UNIX,
        };
        build_tree(&recipe, &self.store, progress)
    }

    /// The error of a build that must fail; checks that it leaves nothing behind.
    fn refused(&self, init: OwnInit) -> BuildError {
        let error = self.build("tree", init).unwrap_err();
        assert!(self.store.get("mine").is_err(), "nothing half-made may be used");
        let mut left: Vec<_> = std::fs::read_dir(self.store.root())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["images", "lock", "names"]);
        error
    }
}

fn content(image: &Image, path: &str) -> String {
    let done = Cmd::new("debugfs")
        .args(["-R", &format!("cat {path}")])
        .arg(image.base())
        .run()
        .unwrap();
    done.stdout_text()
}

#[test]
fn a_tree_becomes_an_image_with_the_kernel_of_another_and_this_first_process() {
    let place = Place::new();
    let kernel = place.kernel();
    let image = place.build("tree", OwnInit::None).unwrap();
    place.store.verify(&image).unwrap();
    let record = &image.manifest;
    assert_eq!(
        (
            record.init,
            record.kernel_release.as_str(),
            record.suite.as_str(),
            record.guest.uid
        ),
        (Init::Ours, "6.1.0-test", "alpine-3.20", 1001)
    );
    assert_eq!(
        record.files[manifest::KERNEL],
        kernel.manifest.files[manifest::KERNEL]
    );
    let initrd = crate::cpio::reader::read(&std::fs::read(image.initrd()).unwrap());
    let init = initrd.iter().find(|(name, ..)| name == "init").unwrap();
    assert_eq!(init.2, elf(62));
    assert!(
        initrd
            .iter()
            .any(|(name, _, content)| name == "modules/virtio.ko" && content == b"module")
    );
    assert!(content(&image, "/etc/ssh/sshd_config.d/99-crabbox.conf").contains("PasswordAuthentication no"));
    assert!(content(&image, "/usr/local/bin/crabbox-ready").contains("/work/crabbox"));
    assert_eq!(content(&image, "/var/log/old"), "");
    assert_eq!(content(&image, "/usr/lib/crabbox/init"), "");
    // The tree itself is not changed.
    assert!(place.tree().join("var/log/old").exists());
}

#[test]
fn the_same_tree_gives_the_same_digest_whatever_carries_it() {
    let place = Place::new();
    place.kernel();
    let digest = |source: &str| place.build(source, OwnInit::None).unwrap().manifest.digest;
    let first = digest("tree");
    assert_eq!(digest("tree"), first);
    let pack = |file: &str, order: &str| {
        Cmd::new("tar")
            .args(["--create", order, "--file"])
            .arg(place.dir.path().join(file))
            .arg("-C")
            .args([&place.tree(), Path::new(".")])
            .run()
            .unwrap();
        digest(file)
    };
    assert_eq!(pack("a.tar", "--sort=name"), first);
    assert_eq!(pack("a.tar.gz", "--gzip"), pack("b.tar.gz", "--gzip"));
    place.write("etc/more", b"x");
    assert_ne!(digest("tree"), first);
}

#[test]
fn an_image_that_wants_systemd_says_so_in_its_base_and_must_have_it() {
    let place = Place::new();
    place.kernel();
    let error = place.refused(OwnInit::Systemd).to_string();
    assert!(
        error.contains("has no /sbin/init:") && error.contains("systemd-sysv"),
        "{error}"
    );
    // As in Debian. On the host this path would lead elsewhere.
    place.write("usr/lib/systemd/systemd", &elf(62));
    std::fs::create_dir_all(place.tree().join("sbin")).unwrap();
    symlink("/usr/lib/systemd/systemd", place.tree().join("sbin/init")).unwrap();
    let with = place.build("tree", OwnInit::Systemd).unwrap();
    assert_eq!(content(&with, "/usr/lib/crabbox/init"), "/sbin/init");
    assert!(content(&with, "/usr/lib/systemd/system-shutdown/crabbox").contains("sysrq-trigger"));
    assert_eq!(with.manifest.provenance["init"], "systemd");
    let without = place.build("tree", OwnInit::None).unwrap();
    assert_ne!(with.manifest.digest, without.manifest.digest);
}

#[test]
fn all_that_a_lease_needs_and_the_tree_lacks_is_named_at_once() {
    let place = Place::new();
    place.kernel();
    for name in ["usr/sbin/sshd", "usr/bin/rsync"] {
        std::fs::remove_file(place.tree().join(name)).unwrap();
    }
    let error = place.refused(OwnInit::None).to_string();
    assert!(error.contains("tree has no sshd, no rsync:"), "{error}");
    assert!(
        error.contains("apt-get install -y openssh-server rsync"),
        "{error}"
    );
}

#[test]
fn a_program_counts_wherever_a_login_finds_it() {
    let place = Place::new();
    place.kernel();
    for (name, to) in [("git", "usr/local/bin"), ("jq", "bin"), ("tar", "usr/local/bin")] {
        std::fs::create_dir_all(place.tree().join(to)).unwrap();
        let from = place.tree().join("usr/bin").join(name);
        std::fs::rename(from, place.tree().join(to).join(name)).unwrap();
    }
    std::fs::remove_file(place.tree().join("bin/bash")).unwrap();
    place.write("usr/bin/bash", b"#!/bin/sh\n");
    place.build("tree", OwnInit::None).unwrap();
    place.store.remove("mine").unwrap();
    std::fs::remove_file(place.tree().join("usr/bin/bash")).unwrap();
    // A login does not search there.
    place.write("usr/local/bin/bash", b"#!/bin/sh\n");
    std::fs::remove_file(place.tree().join("usr/local/bin/git")).unwrap();
    let error = place.refused(OwnInit::None).to_string();
    assert!(error.contains("has no bash, no git:"), "{error}");
    assert!(
        error.ends_with("looked for /bin/bash, /usr/bin/bash, /usr/bin/git, /bin/git, /usr/local/bin/git"),
        "{error}"
    );
}

#[test]
fn a_tree_without_bash_and_sudo_that_makes_nobody_root_are_warned_about() {
    let place = Place::new();
    place.kernel();
    let warnings = || {
        let said = std::cell::RefCell::new(Vec::new());
        let built = place.build_of("tree", OwnInit::None, KernelOf::Nobody, &|text: &str| {
            said.borrow_mut().push(text.to_owned());
        });
        drop(built.unwrap());
        place.store.remove("mine").unwrap();
        let mut said = said.into_inner();
        said.retain(|text| text.contains(" has "));
        said
    };
    place.own_kernel();
    assert_eq!(warnings(), Vec::<String>::new());
    place.set_mode("usr/bin/git", 0o644);
    assert!(warnings()[0].contains("/usr/bin/git, which is not executable"));
    // One that can be run counts before one that cannot.
    place.write("usr/local/bin/git", b"#!/bin/sh\n");
    assert_eq!(warnings(), Vec::<String>::new());
    place.set_mode("usr/bin/git", 0o755);
    place.set_mode("usr/bin/sudo", 0o755);
    std::fs::remove_file(place.tree().join("bin/bash")).unwrap();
    let [bash, sudo] = &warnings()[..] else {
        panic!("one warning each");
    };
    let (sudo, bash) = if sudo.contains("sudo") {
        (sudo, bash)
    } else {
        (bash, sudo)
    };
    assert!(
        sudo.contains("/usr/bin/sudo with owner 0 and mode 0755"),
        "{sudo}"
    );
    assert!(bash.contains("has no bash"), "{bash}");
    std::os::unix::fs::chown(place.tree().join("usr/bin/sudo"), Some(1000), None).unwrap();
    place.set_mode("usr/bin/sudo", 0o4755);
    assert!(
        warnings()
            .iter()
            .any(|text| text.contains("owner 1000 and mode 4755")),
    );
}

#[test]
fn a_chosen_kernel_comes_before_the_trees_own() {
    let place = Place::new();
    place.own_kernel();
    let release = |kernel_of| {
        let image = place.build_of("tree", OwnInit::None, kernel_of, &|_: &str| {});
        image.unwrap().manifest.kernel_release
    };
    assert_eq!(release(KernelOf::Nobody), "6.1.0-own");
    let other = place.kernel();
    assert_eq!(release(KernelOf::Otherwise(other.clone())), "6.1.0-own");
    assert_eq!(release(KernelOf::Chosen(other)), "6.1.0-test");
}

/// The times in an image's record of a file, each in seconds.
fn modified(image: &Image, path: &str) -> String {
    let done = Cmd::new("debugfs")
        .args(["-R", &format!("stat {path}")])
        .arg(image.base())
        .run()
        .unwrap();
    let text = done.stdout_text();
    let line = text.lines().find(|line| line.trim_start().starts_with("mtime:"));
    let time = line.unwrap().split_ascii_whitespace().nth(1).unwrap();
    time.split(':')
        .next()
        .unwrap()
        .trim_start_matches("0x")
        .to_owned()
}

#[test]
fn files_and_directories_of_a_tree_keep_their_times_and_ours_have_the_stamps() {
    let place = Place::new();
    place.kernel();
    place.write("srv/old/source.py", b"");
    place.write("srv/new/source.py", b"");
    place.write("srv/young/source.py", b"");
    let set = |path: &str, seconds: i64| {
        let path = place.tree().join(path);
        Cmd::new("touch")
            .args(["-d", &format!("@{seconds}")])
            .arg(path)
            .run()
            .unwrap();
    };
    let times = [("old", -86_400), ("new", 1_780_000_000), ("young", 2_000_000_000)];
    for (dir, time) in times {
        set(&format!("srv/{dir}/source.py"), time);
        set(&format!("srv/{dir}"), time);
    }
    set("etc", 1_790_000_000);
    Cmd::new("tar")
        .arg("-cf")
        .arg(place.dir.path().join("a.tar"))
        .arg("-C")
        .args([&place.tree(), Path::new(".")])
        .run()
        .unwrap();
    for source in ["tree", "a.tar"] {
        let image = place.build(source, OwnInit::None).unwrap();
        let is = |path: &str, seconds: i32| {
            assert_eq!(
                modified(&image, path),
                format!("{seconds:08x}"),
                "{source} {path}"
            );
        };
        for (dir, time) in times {
            let time = i32::try_from(time).unwrap();
            is(&format!("/srv/{dir}/source.py"), time);
            is(&format!("/srv/{dir}"), time);
        }
        // Files were written there and removed.
        is("/etc", 1_790_000_000);
        let stamp = STAMP_UNIX.cast_signed();
        for ours in [
            "/",
            "/etc/hosts",
            "/var/lib/crabbox",
            "/usr/local/bin/crabbox-ready",
        ] {
            is(ours, stamp);
        }
    }
}

#[test]
fn lists_of_users_that_are_missing_are_made_and_those_that_are_no_text_are_refused() {
    let place = Place::new();
    place.kernel();
    std::fs::remove_file(place.tree().join("etc/passwd")).unwrap();
    let image = place.build("tree", OwnInit::None).unwrap();
    assert_eq!(image.manifest.guest.uid, 1000);
    for (path, line) in [
        ("/etc/passwd", "root:x:0:0:"),
        ("/etc/group", "root:x:0:"),
        ("/etc/shadow", "root:*:"),
    ] {
        assert!(content(&image, path).starts_with(line), "{path}");
    }
    for path in ["etc/passwd", "etc/group", "etc/shadow"] {
        let place = Place::new();
        place.kernel();
        place.write(path, b"root:x:0:0::/root:/bin/sh\nm\xfcller:x:0:0::/:/bin/sh\n");
        let error = place.refused(OwnInit::None).to_string();
        assert!(
            error.contains(&format!("line 2 of {path} is not UTF-8")),
            "{error}"
        );
    }
}

#[test]
fn the_user_gets_the_id_that_the_guest_will_choose() {
    let place = Place::new();
    place.kernel();
    place.write("etc/group", b"root:x:0:\nnode:x:1000:\nstaff:x:1001:\n");
    let image = place.build("tree", OwnInit::None).unwrap();
    assert_eq!(image.manifest.guest.uid, 1002, "1001 is a group");
}

#[test]
fn with_an_init_of_its_own_a_tree_must_include_the_settings_of_a_lease() {
    let place = Place::new();
    place.kernel();
    place.write("sbin/init", &elf(62));
    for good in [
        "include /etc/ssh/sshd_config.d/*.conf\nAuthorizedKeysFile /etc/keys\n",
        "#AuthorizedKeysFile x\nPort 2222\n\tInclude \"/etc/ssh/sshd_config.d/*.conf\"\n",
    ] {
        place.write("etc/ssh/sshd_config", good.as_bytes());
        place.build("tree", OwnInit::Systemd).unwrap();
    }
    for (bad, line) in [
        ("Port 22\n", ""),
        ("# Include /etc/ssh/sshd_config.d/*.conf\n", ""),
        (
            "AuthorizedKeysFile /etc/keys\nInclude /etc/ssh/sshd_config.d/*.conf\n",
            "authorizedkeysfile /etc/keys",
        ),
        (
            "Match user x\nInclude /etc/ssh/sshd_config.d/*.conf\n",
            "match user x",
        ),
    ] {
        place.write("etc/ssh/sshd_config", bad.as_bytes());
        place.build("tree", OwnInit::None).unwrap();
        place.store.remove("mine").unwrap();
        let error = place.refused(OwnInit::Systemd).to_string();
        assert!(error.contains("etc/ssh/sshd_config does not include"), "{error}");
        assert!(error.contains(line), "{error}");
    }
    std::fs::remove_file(place.tree().join("etc/ssh/sshd_config")).unwrap();
    place.write(
        "usr/etc/ssh/sshd_config",
        b"Include /etc/ssh/sshd_config.d/*.conf\n",
    );
    place.build("tree", OwnInit::Systemd).unwrap();
}

#[test]
fn another_processor_and_a_missing_kernel_are_named() {
    let place = Place::new();
    let error = place.refused(OwnInit::None);
    assert!(matches!(error, BuildError::NoKernel { .. }), "{error:?}");
    place.kernel();
    place.write("usr/sbin/sshd", &elf(183));
    let error = place.refused(OwnInit::None).to_string();
    assert!(
        error.contains("is for aarch64, and this host is x86_64"),
        "{error}"
    );
}

#[test]
fn a_user_who_cannot_own_anything_or_log_in_is_refused() {
    for fields in [
        "x:0:0::/",
        "x:4294967295:0::/",
        "x:4294967296:0::/",
        "x:-1:0::/",
        "x:1000:0::home",
        "x:7",
    ] {
        let place = Place::new();
        place.kernel();
        let line = format!("crabbox:{fields}:/bin/sh\n");
        place.write("etc/passwd", line.as_bytes());
        let error = place.refused(OwnInit::None).to_string();
        assert!(
            error.contains("the user crabbox of a lease cannot be used"),
            "{error}"
        );
    }
}

#[test]
fn releases_are_ordered_by_their_numbers() {
    assert!(numbers("6.10.0-1-amd64") > numbers("6.9.12-cloud-amd64"));
    assert!(numbers("6.1.0-30-amd64") > numbers("6.1.0-9-amd64"));
}

#[test]
fn a_disk_that_fills_at_any_stage_of_a_build_leaves_nothing_and_the_next_one_succeeds() {
    let mut place = Place::new();
    // More space than the build checks for at its start.
    let small = Small::new(SPACE_NEEDED / (1 << 20) + 320);
    let root = small.path().join("store");
    place.store = Store::open(&root).unwrap();
    place.kernel();
    place.write("usr/lib/large", &vec![7; 3 << 20]);
    let (mut moment, mut refused) = (1, 0);
    loop {
        let progress = FillAt {
            small: &small,
            left: Cell::new(moment),
        };
        let result = place.build_with("tree", OwnInit::None, &progress);
        if progress.was_spared() {
            result.unwrap();
            break;
        }
        small.empty();
        let told = result
            .as_ref()
            .err()
            .map(|error| chain(error))
            .unwrap_or_default();
        // After the last moment there may be nothing left to write.
        if !told.is_empty() {
            refused += 1;
            assert!(
                ["is full", "No space left on device", "no room to copy"]
                    .iter()
                    .any(|said| told.contains(said)),
                "{moment}: {told}"
            );
            assert!(place.store.get("mine").is_err(), "{moment}: {told}");
            assert_eq!(
                Small::names(&root),
                ["images", "lock", "names"],
                "{moment}: {told}"
            );
        }
        let image = place.build("tree", OwnInit::None).unwrap();
        place.store.verify(&image).unwrap();
        place.store.remove("mine").unwrap();
        moment += 1;
    }
    assert!(refused > 2, "it was full at {refused} moments only");
}
