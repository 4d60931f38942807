//! An OCI image layout of a tree, as a container builder writes it: the tree as the lower layer, and an upper
//! one that removes what a container does not have.

use std::path::Path;

use anyhow::Result;
use crabbox_host::command::Cmd;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Makes the upper layer in the directory `$1`. A container has no kernel and no cloud metadata: modules and
/// `/boot` are hidden entirely, cloud-init is disabled. `$2` is the tree.
pub(super) const UPPER: &str = r#"set -e
mkdir -p "$1/boot" "$1/usr/lib/modules" "$1/etc/cloud"
: > "$1/boot/.wh..wh..opq"
for release in "$2"/usr/lib/modules/*; do : > "$1/usr/lib/modules/.wh.$(basename "$release")"; done
: > "$1/etc/cloud/cloud-init.disabled"
echo upper > "$1/etc/layer""#;

/// Writes the layout of `tree` into the new directory `to`.
pub(super) fn layout(tree: &Path, to: &Path) -> Result<()> {
    let blobs = to.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let upper = to.join("upper");
    Cmd::inheriting("sh")
        .args(["-c", UPPER, "sh"])
        .args([&upper, &tree.to_owned()])
        .run()?;
    let lower = layer(tree, &blobs, &[])?;
    let upper_layer = layer(&upper, &blobs, &["--gzip"])?;
    std::fs::remove_dir_all(upper)?;
    let diff_ids = [&lower.1, &upper_layer.1].map(|digest| format!("sha256:{digest}"));
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = document(&config, "application/vnd.oci.image.config.v1+json", &blobs)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
        "layers": [
            descriptor("application/vnd.oci.image.layer.v1.tar", &lower.0, &blobs)?,
            descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &upper_layer.0, &blobs)?,
        ],
    });
    let manifest = document(&manifest, "application/vnd.oci.image.manifest.v1+json", &blobs)?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(to.join("index.json"), serde_json::to_vec(&index)?)?;
    std::fs::write(to.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Packs `tree` as a layer; returns the digests of the blob and of its uncompressed contents.
fn layer(tree: &Path, blobs: &Path, more: &[&str]) -> Result<(String, String)> {
    let packed = blobs.join("packing");
    Cmd::inheriting("tar")
        .args(["--create", "--numeric-owner", "--xattrs", "--sort=name"])
        .args(more)
        .arg("--file")
        .arg(&packed)
        .arg("--directory")
        .arg(tree)
        .arg(".")
        .run()?;
    let content = if more.is_empty() {
        crabbox_host::digest::sha256_file(&packed)?
    } else {
        let plain = Cmd::inheriting("gzip")
            .args(["--decompress", "--stdout"])
            .arg(&packed)
            .run()?;
        sha256(&plain.stdout)
    };
    let digest = crabbox_host::digest::sha256_file(&packed)?;
    std::fs::rename(&packed, blobs.join(&digest))?;
    Ok((digest, content))
}

/// Writes `value` as a blob and returns its descriptor.
fn document(value: &Value, media_type: &str, blobs: &Path) -> Result<Value> {
    let text = serde_json::to_vec(value)?;
    let digest = sha256(&text);
    std::fs::write(blobs.join(&digest), text)?;
    descriptor(media_type, &digest, blobs)
}

fn descriptor(media_type: &str, digest: &str, blobs: &Path) -> Result<Value> {
    let size = std::fs::metadata(blobs.join(digest))?.len();
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
}

fn sha256(bytes: &[u8]) -> String {
    crabbox_core::id::hex(&Sha256::digest(bytes))
}
