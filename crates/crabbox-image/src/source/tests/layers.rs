//! Images of layers, as an OCI layout or as docker saves them: what each layer adds and hides, and what is not
//! believed without its digest.

use super::*;

#[test]
fn layers_hide_what_they_say_and_only_what_lower_ones_had() {
    let place = Place::new();
    let layers = [
        layer(&[
            ("d/", "dir"),
            ("d/old", "1"),
            ("gone", "1"),
            ("kept", "1"),
            ("becomes-dir", "1"),
            ("lib", "-> usr/lib"),
            ("usr/lib/", "dir"),
        ]),
        // The whiteout comes after the entry that stays, and a hidden name is added again.
        packed(
            "gzip",
            &layer(&[
                ("d/new", "2"),
                ("d/.wh..wh..opq", ""),
                ("gone", "2"),
                (".wh.gone", ""),
                ("lib/x", "2"),
            ]),
        ),
        packed(
            "zstd",
            &layer(&[
                (".wh.kept", ""),
                (".wh.never", ""),
                ("no/.wh.x", ""),
                ("becomes-dir/in", "3"),
            ]),
        ),
    ];
    layout(&place.path("img"), "amd64", &layers);
    for source in ["img", "oci:img", "oci:img:one"] {
        let error = place.unpack(source);
        // A file in the way of a directory is an error of the layer, because it has no whiteout for it.
        let error = error.unwrap_err();
        assert!(matches!(error, SourceError::Write { .. }), "{error:?}");
    }
    let better = [
        layers[0].clone(),
        layers[1].clone(),
        packed(
            "zstd",
            &layer(&[(".wh.kept", ""), ("becomes-dir/", "dir"), ("becomes-dir/in", "3")]),
        ),
    ];
    layout(&place.path("img"), "amd64", &better);
    let root = place.unpack("oci:img:one").unwrap();
    let found = listing(&root);
    let expected = [
        "becomes-dir d",
        "becomes-dir/in f",
        "d d",
        "d/new f",
        "gone f",
        "lib lusr/lib",
        "usr d",
        "usr/lib d",
        "usr/lib/x f",
    ];
    assert_eq!(found, expected);
    assert_eq!(text(root.join("gone")), "2");
    // The same as one file, plain and compressed.
    Cmd::new("tar")
        .arg("-cf")
        .arg(place.path("img.tar"))
        .arg("-C")
        .args([&place.path("img"), Path::new(".")])
        .run()
        .unwrap();
    assert_eq!(
        listing(&place.unpack("oci-archive:img.tar:one").unwrap()),
        expected
    );
    std::fs::write(
        place.path("img.tgz"),
        packed("gzip", &std::fs::read(place.path("img.tar")).unwrap()),
    )
    .unwrap();
    for source in ["oci-archive:img.tgz", "img.tgz", "img.tar"] {
        assert_eq!(listing(&place.unpack(source).unwrap()), expected, "{source}");
    }
}

/// Adds the parts of an image of `layers` to the layout at `dir`; returns its entry for the index, without a
/// name.
fn add_image(dir: &Path, layers: &[Vec<u8>]) -> serde_json::Value {
    layout(dir, "amd64", layers);
    let text = std::fs::read(dir.join("index.json")).unwrap();
    let mut made: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let mut entry = made["manifests"][0].take();
    entry.as_object_mut().unwrap().remove("annotations");
    entry
}

#[test]
fn an_image_that_lost_its_name_to_a_newer_one_is_not_taken_for_it() {
    let place = Place::new();
    let dir = place.path("img");
    let old = add_image(&dir, &[layer(&[("old", "1")])]);
    let new = add_image(&dir, &[layer(&[("new", "1")])]);
    let named = |entry: &serde_json::Value, name: &str| {
        let mut entry = entry.clone();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        entry
    };
    let index = |entries: &[serde_json::Value]| {
        let text = json!({ "manifests": entries }).to_string();
        std::fs::write(dir.join("index.json"), text).unwrap();
    };
    let latest = named(&new, "latest");
    for entries in [[old.clone(), latest.clone()], [latest.clone(), old.clone()]] {
        index(&entries);
        for source in ["img", "oci:img", "oci:img:latest"] {
            assert_eq!(listing(&place.unpack(source).unwrap()), ["new f"], "{source}");
        }
    }
    // The same image twice is one image.
    index(&[latest.clone(), latest.clone()]);
    place.unpack("img").unwrap();
    index(&[named(&new, "x"), latest.clone()]);
    place.unpack("img").unwrap();
    for (entries, source) in [
        ([old.clone(), new.clone()], "img"),
        ([named(&old, "one"), latest.clone()], "img"),
        ([named(&old, "latest"), latest.clone()], "oci:img:latest"),
        (
            [named(&old, "a:latest"), named(&new, "b:latest")],
            "oci:img:latest",
        ),
    ] {
        index(&entries);
        let error = place.unpack(source).unwrap_err();
        assert!(
            matches!(error, SourceError::Several { .. }),
            "{source}: {error:?}"
        );
        for entry in entries {
            let digest = entry["digest"].as_str().unwrap().to_owned();
            assert!(error.to_string().contains(&digest), "{error}");
        }
    }
    // A whole name comes before the end of another one.
    index(&[named(&old, "repo:latest"), latest]);
    assert_eq!(listing(&place.unpack("oci:img:latest").unwrap()), ["new f"]);
    assert_eq!(listing(&place.unpack("oci:img:repo:latest").unwrap()), ["old f"]);
}

#[test]
fn a_layer_of_the_right_digest_may_lack_its_end_mark_and_no_other_archive() {
    let place = Place::new();
    let whole = layer(&[("a", "1")]);
    let bare = &whole[..whole.len() - 1024];
    layout(&place.path("img"), "amd64", &[bare.to_vec()]);
    assert_eq!(listing(&place.unpack("img").unwrap()), ["a f"]);
    std::fs::write(place.path("a.tar"), bare).unwrap();
    let error = place.unpack("a.tar").unwrap_err();
    assert!(matches!(error, SourceError::Read { .. }), "{error:?}");
}

#[test]
fn no_part_of_an_image_is_believed_without_its_digest() {
    let place = Place::new();
    let dir = place.path("img");
    let digests = layout(&dir, "amd64", &[layer(&[("a", "1")])]);
    for digest in &digests {
        let blob = dir.join("blobs/sha256").join(digest);
        let good = std::fs::read(&blob).unwrap();
        std::fs::write(&blob, [good.clone(), b" ".to_vec()].concat()).unwrap();
        let error = place.unpack("img").unwrap_err();
        assert!(matches!(error, SourceError::Digest { .. }), "{error:?}");
        assert!(error.to_string().contains(digest), "{error}");
        std::fs::remove_file(&blob).unwrap();
        let error = place.unpack("img").unwrap_err();
        assert!(matches!(error, SourceError::NoBlob { .. }), "{error:?}");
        std::fs::write(&blob, good).unwrap();
    }
    place.unpack("img").unwrap();
    std::fs::write(
        dir.join("index.json"),
        r#"{"manifests":[{"digest":"sha256:../../../../etc/passwd"}]}"#,
    )
    .unwrap();
    assert!(matches!(
        place.unpack("img").unwrap_err(),
        SourceError::BadDigest { .. }
    ));
}

#[test]
fn another_platform_and_a_wrong_tag_are_named() {
    let place = Place::new();
    layout(&place.path("img"), "arm64", &[layer(&[("a", "1")])]);
    let error = place.unpack("img").unwrap_err().to_string();
    assert!(
        error.contains("is for linux/arm64, and this host is linux/amd64"),
        "{error}"
    );
    let error = place.unpack("oci:img:two").unwrap_err().to_string();
    assert!(error.contains(r#"no image called "two"; it has: one"#), "{error}");
    let index = |platforms: &[(&str, &str)]| {
        let all: Vec<_> = platforms
            .iter()
            .map(|(os, architecture)| {
                json!({ "digest": format!("sha256:{}", "0".repeat(64)), "platform": { "os": os, "architecture": architecture } })
            })
            .collect();
        std::fs::write(
            place.path("img/index.json"),
            json!({ "manifests": all }).to_string(),
        )
        .unwrap();
    };
    index(&[("linux", "riscv64"), ("windows", "amd64")]);
    let error = place.unpack("img").unwrap_err().to_string();
    assert!(error.contains("is for linux/riscv64, windows/amd64"), "{error}");
    index(&[("linux", "riscv64"), ("linux", "amd64")]);
    assert!(
        matches!(place.unpack("img").unwrap_err(), SourceError::NoBlob { .. }),
        "the fitting one is taken"
    );
}

/// An archive as `docker save` writes it: layers in members of the archive, one of them a link to another.
fn docker_save(path: &Path, layers: &[(&str, Vec<u8>)], diff_ids: &[String]) {
    let mut archive = Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    for (name, bytes) in layers {
        add(name, bytes);
    }
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    add("config.json", config.to_string().as_bytes());
    let names: Vec<_> = layers
        .iter()
        .map(|(name, _)| *name)
        .chain(["again/layer.tar"])
        .collect();
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["img:one"], "Layers": names }]);
    add("manifest.json", manifest.to_string().as_bytes());
    let mut link = Header::new_gnu();
    link.set_entry_type(EntryType::Symlink);
    link.set_size(0);
    archive
        .append_link(&mut link, "again/layer.tar", "../a/layer.tar")
        .unwrap();
    std::fs::write(path, archive.into_inner().unwrap()).unwrap();
}

#[test]
fn what_docker_saves_is_taken_and_its_layers_are_checked() {
    let place = Place::new();
    let (one, two) = (
        layer(&[("a", "1"), ("b", "1")]),
        layer(&[(".wh.a", ""), ("c", "2")]),
    );
    let id = |bytes: &[u8]| format!("sha256:{}", digest::sha256(bytes));
    let ids = [id(&one), id(&two), id(&one)];
    let path = place.path("saved.tar");
    docker_save(
        &path,
        &[
            ("a/layer.tar", one.clone()),
            ("b/layer.tar", packed("gzip", &two)),
        ],
        &ids,
    );
    for source in [
        "saved.tar",
        "docker-archive:saved.tar",
        "docker-archive:saved.tar:img:one",
        "docker-archive:saved.tar:one",
    ] {
        assert_eq!(listing(&place.unpack(source).unwrap()), ["a f", "b f", "c f"]);
    }
    assert!(matches!(
        place.unpack("docker-archive:saved.tar:img:two").unwrap_err(),
        SourceError::NoTag { .. }
    ));
    docker_save(&path, &[("a/layer.tar", two), ("b/layer.tar", one)], &ids);
    assert!(matches!(
        place.unpack("docker-archive:saved.tar").unwrap_err(),
        SourceError::Digest { .. }
    ));
}
