//! Container image formats on disk: OCI image layouts and the output of `docker save`.
//!
//! The digest of every part is verified each time it is read, over the same bytes that are used; an unverified part must
//! never be used. The formats are those of the OCI image specification 1.1 (layout, index, manifest, configuration). Of a
//! configuration only platform and layers are used, because a lease runs its user's commands and not the image's.

use std::collections::BTreeMap;

use crabbox_host::budget::Budget;
use crabbox_host::digest;
use crabbox_host::tree::Tree;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::archive::Expected;
use super::blobs::Blobs;
use super::{SourceError, archive};

/// The file that marks a directory as a layout.
pub(super) const LAYOUT: &str = "oci-layout";

/// This host's architecture in the spelling of these formats.
pub(super) const ARCHITECTURE: &str = "amd64";

/// The annotation with the name of an image in an index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Maximum nesting depth of indexes.
const INDEX_DEPTH: usize = 4;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct ImageManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// An entry of `manifest.json` in the output of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Applies the layers of the image `tag` of a layout in order; returns the digest of its manifest.
pub(super) fn unpack_layout(
    blobs: &Blobs,
    tag: Option<&str>,
    tree: &Tree,
    budget: &mut Budget,
) -> Result<String, SourceError> {
    let index: Index = parse(blobs, "index.json", &blobs.document("index.json")?)?;
    let chosen = by_tag(blobs, index.manifests, tag)?;
    let descriptor = for_this_host(blobs, chosen, 0)?;
    let manifest: ImageManifest = checked_document(blobs, &descriptor.digest)?;
    let config: Config = checked_document(blobs, &manifest.config.digest)?;
    check_platform(blobs, &config.platform)?;
    for layer in &manifest.layers {
        let blob = blob_name(blobs, &layer.digest)?;
        let name = format!("layer {} of {}", layer.digest, blobs.name());
        let expected = Expected::Packed(hexadecimal(blobs, &layer.digest)?);
        archive::apply(&name, expected, || blobs.read(&blob), tree, budget)?;
    }
    Ok(descriptor.digest)
}

/// The same for the output of `docker save`; returns the digest of its configuration, which is the image's id.
pub(super) fn unpack_docker(
    blobs: &Blobs,
    tag: Option<&str>,
    tree: &Tree,
    budget: &mut Budget,
) -> Result<String, SourceError> {
    let saved: Vec<Saved> = parse(blobs, "manifest.json", &blobs.document("manifest.json")?)?;
    let tags = |one: &Saved| one.repo_tags.clone().unwrap_or_default();
    let have: Vec<String> = saved.iter().flat_map(tags).collect();
    let mut fitting = saved
        .into_iter()
        .filter(|one| tag.is_none_or(|tag| tags(one).iter().any(|name| is_named(name, tag))));
    let (Some(image), None) = (fitting.next(), fitting.next()) else {
        return Err(no_tag(blobs, tag, have));
    };
    let text = blobs.document(&image.config)?;
    let config: Config = parse(blobs, &image.config, &text)?;
    check_platform(blobs, &config.platform)?;
    if config.rootfs.diff_ids.len() != image.layers.len() {
        return Err(SourceError::NoBlob {
            archive: blobs.name().to_owned(),
            blob: format!(
                "layer {}",
                config.rootfs.diff_ids.len().min(image.layers.len()) + 1
            ),
        });
    }
    for (layer, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
        let name = format!("layer {layer} of {}", blobs.name());
        let expected = Expected::Content(hexadecimal(blobs, diff_id)?);
        archive::apply(&name, expected, || blobs.read(layer), tree, budget)?;
    }
    Ok(format!("sha256:{}", digest::sha256(&text)))
}

/// A repository and tag as written, or the tag alone.
fn is_named(name: &str, wanted: &str) -> bool {
    name == wanted || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
}

fn by_tag(blobs: &Blobs, all: Vec<Descriptor>, tag: Option<&str>) -> Result<Vec<Descriptor>, SourceError> {
    let name = |one: &Descriptor| one.annotations.get(REF_NAME).cloned();
    let have: Vec<String> = all.iter().filter_map(name).collect();
    match tag {
        Some(tag) => {
            let fitting: Vec<_> = all
                .into_iter()
                .filter(|one| name(one).is_some_and(|name| is_named(&name, tag)))
                .collect();
            if fitting.is_empty() {
                return Err(no_tag(blobs, Some(tag), have));
            }
            Ok(fitting)
        }
        // Several names are ambiguous unless all refer to the same image.
        None if have.len() > 1 && all.iter().any(|one| one.digest != all[0].digest) => {
            Err(no_tag(blobs, None, have))
        }
        None => Ok(all),
    }
}

fn no_tag(blobs: &Blobs, tag: Option<&str>, have: Vec<String>) -> SourceError {
    SourceError::NoTag {
        archive: blobs.name().to_owned(),
        wanted: tag.map_or_else(
            || "that is the only one (add :TAG)".to_owned(),
            |tag| format!("called {tag:?}"),
        ),
        have,
    }
}

/// The first entry of `all`, or of the indexes among them, that is for this host. An entry without a platform is
/// assumed to be.
fn for_this_host(blobs: &Blobs, all: Vec<Descriptor>, depth: usize) -> Result<Descriptor, SourceError> {
    let mut others = Vec::new();
    for one in all {
        match &one.platform {
            Some(platform) if !fits(platform) => {
                others.push(format!("{}/{}", platform.os, platform.architecture));
            }
            _ if is_index(&one.media_type) && depth < INDEX_DEPTH => {
                let index: Index = checked_document(blobs, &one.digest)?;
                return for_this_host(blobs, index.manifests, depth + 1);
            }
            _ => return Ok(one),
        }
    }
    Err(SourceError::Platform {
        archive: blobs.name().to_owned(),
        found: if others.is_empty() {
            "nothing at all".to_owned()
        } else {
            others.join(", ")
        },
    })
}

fn is_index(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

fn fits(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == ARCHITECTURE
}

fn check_platform(blobs: &Blobs, platform: &Platform) -> Result<(), SourceError> {
    if fits(platform) {
        return Ok(());
    }
    Err(SourceError::Platform {
        archive: blobs.name().to_owned(),
        found: format!("{}/{}", platform.os, platform.architecture),
    })
}

/// The file of a digest. The digest has been checked to be hexadecimal, so it cannot be a path.
fn blob_name(blobs: &Blobs, digest: &str) -> Result<String, SourceError> {
    Ok(format!("blobs/sha256/{}", hexadecimal(blobs, digest)?))
}

fn hexadecimal<'a>(blobs: &Blobs, digest: &'a str) -> Result<&'a str, SourceError> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        .ok_or_else(|| SourceError::BadDigest {
            archive: blobs.name().to_owned(),
            digest: digest.to_owned(),
        })
}

fn checked_document<T: DeserializeOwned>(blobs: &Blobs, digest: &str) -> Result<T, SourceError> {
    let name = blob_name(blobs, digest)?;
    let text = blobs.document(&name)?;
    check(blobs, digest, &text)?;
    parse(blobs, &name, &text)
}

fn parse<T: DeserializeOwned>(blobs: &Blobs, name: &str, text: &[u8]) -> Result<T, SourceError> {
    serde_json::from_slice(text).map_err(|source| SourceError::Json {
        archive: blobs.name().to_owned(),
        blob: name.to_owned(),
        source,
    })
}

/// Checks that `content` has `digest`.
fn check(blobs: &Blobs, digest: &str, content: &[u8]) -> Result<(), SourceError> {
    let expected = hexadecimal(blobs, digest)?;
    let found = digest::sha256(content);
    if found == expected {
        return Ok(());
    }
    Err(SourceError::Digest {
        archive: blobs.name().to_owned(),
        blob: digest.to_owned(),
        found,
    })
}
