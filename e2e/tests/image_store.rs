//! Images and the leases that run from them, on a pretended host: sharing, choice of the image, protection of
//! images in use.

use crabbox_e2e::{Host, assert_nothing_left};

/// Options of a lease from the store.
const OURS: &str = "--provider firecracker --firecracker-binary /srv/fake/firecracker --firecracker-user root --firecracker-cpus 1 \
     --firecracker-memory-mib 128 --firecracker-work-root /srv/work --firecracker-network nat --firecracker-launch-timeout 30s";

fn links(host: &Host, dir: &str) -> String {
    host.sh(&format!("stat -c %h {dir}/base.ext4")).exits(0).stdout
}

#[test]
fn fifty_leases_share_one_image_and_hold_it() {
    let host = Host::pretend();
    host.build_image("default", "of-default");
    // Fifty real guests would need this much memory; pretended ones take a few MiB each. Full hosts are
    // covered by another test.
    drop(
        host.sh("sed 's/^MemAvailable:.*/MemAvailable: 64000000 kB/' /proc/meminfo > /srv/meminfo && mount --bind /srv/meminfo /proc/meminfo")
            .exits(0),
    );
    let dir = host.image("default");
    let before = host.residue();
    let each = |command: &str| {
        let done = host.sh(&format!(
            "seq 50 | xargs -P 4 -I% sh -c '{command} >/tmp/out% 2>&1 || {{ cat /tmp/out%; exit 1; }}'; e=$?; rm /tmp/out*; exit $e"
        ));
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    each(&format!(
        "crabbox warmup {OURS} --firecracker-disk-mib 16384 --slug s%"
    ));
    assert_eq!(
        links(&host, &dir),
        "51\n",
        "the base is the same file in every lease"
    );
    let used = host
        .sh("du -sk /srv/.config/crabbox/state/firecracker/leases | cut -f1")
        .exits(0);
    let used: u64 = used.stdout.trim().parse().unwrap();
    // The base counts once, though every lease has it; the 16 GiB layer of each lease takes some 50 KiB.
    assert!(used < 50 * 512 + 8192, "{used} KiB for fifty leases");
    let status = host.crabbox("status --id s7 --json").exits(0).json();
    assert_eq!(status["labels"]["disk_method"], "shared-base", "{status}");

    drop(host.crabbox("image verify default").exits(0));
    let held = host.crabbox("image rm default").exits(2);
    assert!(held.stderr.contains("is in use by cbx_"), "{}", held.stderr);
    let kept = host
        .crabbox("image gc --max-mib 0 --older-than 1s --json")
        .exits(0)
        .json();
    assert_eq!(kept["decisions"][0]["action"], "keep", "{kept}");

    each("crabbox stop s%");
    assert_eq!(links(&host, &dir), "1\n");
    drop(host.crabbox("image verify default").exits(0));
    // The kernel frees what a dead process held only a moment later.
    let mut after = host.residue();
    for _ in 0..20 {
        if after != before {
            drop(host.sh("sleep 0.1"));
            after = host.residue();
        }
    }
    assert_nothing_left(&before, &after);
    drop(host.crabbox("image rm default").exits(0));
}

#[test]
fn the_user_chooses_the_image_of_a_lease_and_a_repository_does_not() {
    let host = Host::pretend();
    host.build_image("default", "of-default");
    host.build_image("other", "of-other");
    let (usual, other) = (host.image("default"), host.image("other"));
    assert_ne!(usual, other);
    let leased = |more: &str| {
        drop(host.sh(&format!("cd /srv/repo && {more}")).exits(0));
        let source = host
            .sh("grep -o '\"sourceRootfs\": *\"[^\"]*' /srv/.config/crabbox/state/firecracker/leases/*/metadata.json; crabbox stop one >/dev/null 2>&1")
            .exits(0);
        source.stdout
    };
    drop(host.sh("git init -q /srv/repo").exits(0));
    let warmup = format!("crabbox warmup {OURS} --slug one");
    assert!(leased(&warmup).contains(&usual));
    assert!(leased(&format!("{warmup} --firecracker-image other")).contains(&other));
    assert!(leased(&format!("CRABBOX_FIRECRACKER_IMAGE=other {warmup}")).contains(&other));
    let digest = other.rsplit('/').next().unwrap().get(..12).unwrap();
    assert!(leased(&format!("{warmup} --firecracker-image {digest}")).contains(&other));

    drop(
        host.sh("printf 'firecracker:\\n  image: other\\n' > /srv/repo/crabbox.yaml")
            .exits(0),
    );
    assert!(leased(&warmup).contains(&usual), "a repository must not choose");
    drop(
        host.sh("mv /srv/repo/crabbox.yaml /srv/.config/crabbox/config.yaml")
            .exits(0),
    );
    assert!(leased(&warmup).contains(&other));
    drop(host.sh("rm /srv/.config/crabbox/config.yaml").exits(0));

    for (more, said) in [
        ("--firecracker-image none", "firecracker.image none unavailable"),
        (
            "--firecracker-image other --firecracker-rootfs /srv/rootfs.ext4",
            "firecracker.image and firecracker.rootfs are both set",
        ),
    ] {
        let refused = host.crabbox(&format!("warmup {OURS} {more}")).exits(2);
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
}

#[test]
fn what_two_builds_of_the_same_tree_give_is_one_image() {
    let host = Host::pretend();
    host.build_image("default", "of-default");
    let first = host.image("default");
    let again = host
        .sh("sleep 1; crabbox image build --name again --from /srv/tree-default --guest-binary /srv/vmlinux")
        .exits(0);
    assert_eq!(host.image("again"), first, "{again:?}");
    let image = host.crabbox("image inspect --json default").exits(0).json();
    assert_eq!(image["names"], serde_json::json!(["again", "default"]));
}

#[test]
fn a_build_that_is_killed_leaves_nothing_that_is_used() {
    let host = Host::pretend();
    host.build_image("default", "of-default");
    let good = host.image("default");
    let build = "crabbox image build --name default --from /srv/tree-default --guest-binary /srv/vmlinux";
    let other = format!("echo other > /srv/tree-default/etc/word && {build}");
    let undo = format!(
        "crabbox image rm default >&2 && echo of-default > /srv/tree-default/etc/word && {build} >&2 && echo other > /srv/tree-default/etc/word"
    );
    drop(host.sh("echo other > /srv/tree-default/etc/word").exits(0));
    host.kill_at_every_moment(build, &undo, |limit| {
        let list = host.crabbox("image list --json").exits(0).json();
        assert_eq!(
            list["broken"].as_array().map(Vec::len),
            Some(0),
            "killed after {limit} s: {list}"
        );
        // Every listed image is complete, and the name points at one of them.
        for image in list["images"].as_array().into_iter().flatten() {
            let verified = format!("image verify {}", image["digest"].as_str().unwrap_or_default());
            drop(host.crabbox(&verified).exits(0));
        }
        drop(host.crabbox("image verify default").exits(0));
    });
    drop(host.sh(&other).exits(0));
    // The run that was not killed has removed the leftovers of the others.
    let left = host.sh("ls -A /srv/.cache/crabbox/images").exits(0);
    assert_eq!(left.stdout, "images\nlock\nnames\n");
    assert_ne!(host.image("default"), good);
}

#[test]
fn what_cannot_be_swept_exported_or_taken_is_told_and_changes_nothing() {
    let host = Host::pretend();
    host.build_image("default", "of-default");
    host.build_image("other", "of-other");
    drop(
        host.sh(
            "crabbox image export default /srv/good.tar && head -c 1000000 /srv/good.tar > /srv/cut.tar && echo text > /srv/text.tar && \
             mkdir /srv/full /srv/dir && mount -t tmpfs -o size=1m tmpfs /srv/full",
        )
        .exits(0),
    );
    let everything = "find /srv/.cache /srv/full /srv/dir /srv/*.tar -printf '%p %s %i\n' | sort";
    let before = host.sh(everything).exits(0).stdout;
    let cases = [
        ("image gc --older-than soon", 2, "-older-than"),
        ("image gc --max-mib -1", 2, "-max-mib"),
        ("image gc --older-than 1000h --max-mib 1000000", 0, ""),
        ("image gc --max-mib 0 --dry-run", 0, ""),
        ("image export none /srv/none.tar", 4, "no image \"none\""),
        (
            "image export default /srv/nowhere/x.tar",
            2,
            "No such file or directory",
        ),
        ("image export default /srv/dir", 2, "/srv/dir"),
        (
            "image export default /srv/full/x.tar",
            2,
            "No space left on device",
        ),
        (
            "image export default /srv/full/x.tar.gz",
            2,
            "No space left on device",
        ),
        ("image import /srv/none.tar", 2, "/srv/none.tar"),
        ("image import /srv/cut.tar", 2, "cut short"),
        ("image import /srv/text.tar", 2, "is no crabbox bundle"),
        ("image import --name 9 /srv/good.tar", 2, "bad image name"),
        ("setup firecracker --yes --from /srv/cut.tar", 0, "nothing to do"),
    ];
    for (words, code, said) in cases {
        let done = host
            .sh(&format!(
                "CRABBOX_FIRECRACKER_BINARY=/srv/fake/firecracker CRABBOX_FIRECRACKER_NETWORK=nat CRABBOX_FIRECRACKER_WARM=off CRABBOX_PROVIDER=firecracker exec crabbox {words}"
            ));
        assert!(
            done.code == Some(code) && format!("{}{}", done.stdout, done.stderr).contains(said),
            "{words}: {done:?}"
        );
        assert_eq!(host.sh(everything).exits(0).stdout, before, "{words}: {done:?}");
    }
    // The same command without the dry run removes the image that is not the default.
    drop(host.crabbox("image gc --max-mib 0").exits(0));
    let list = host.crabbox("image list --json").exits(0).json();
    assert_eq!(list["images"].as_array().map(Vec::len), Some(1), "{list}");
}
