//! Container image formats on disk: OCI image layouts and the output of `docker save`.
//!
//! The digest of every part is verified each time it is read, over the same bytes that are used; an
//! unverified part must never be used. The formats are those of the OCI image specification 1.1 (layout,
//! index, manifest, configuration). Of a configuration only platform and layers are used, because a lease
//! runs its user's commands and not the image's.

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

/// The list of images in the output of `docker save`.
pub(super) const SAVED: &str = "manifest.json";

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
    let descriptor = chosen(blobs, index.manifests, tag)?;
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

/// The same for the output of `docker save`; returns the digest of its configuration, which is the image's
/// id.
pub(super) fn unpack_docker(
    blobs: &Blobs,
    tag: Option<&str>,
    tree: &Tree,
    budget: &mut Budget,
) -> Result<String, SourceError> {
    let saved: Vec<Saved> = parse(blobs, SAVED, &blobs.document(SAVED)?)?;
    let tags = |one: &Saved| one.repo_tags.clone().unwrap_or_default();
    let have: Vec<String> = saved.iter().flat_map(tags).collect();
    let mut fitting = match tag {
        Some(tag) => called(saved, tag, tags),
        None => saved,
    };
    fitting.dedup_by(|one, other| one.config == other.config && one.layers == other.layers);
    let image = match (fitting.pop(), fitting.is_empty()) {
        (Some(image), true) => image,
        (Some(last), false) => {
            fitting.push(last);
            let shown = |one: &Saved| format!("{} ({})", tags(one).join(" "), one.config);
            return Err(several(blobs, tag, fitting.iter().map(shown).collect()));
        }
        (None, _) => return Err(no_tag(blobs, tag, have)),
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

/// Those of `entries` with the name `wanted`: a repository and tag as written, or else the tag alone.
fn called<T>(entries: Vec<T>, wanted: &str, names: impl Fn(&T) -> Vec<String>) -> Vec<T> {
    let is_exact = |entry: &T| names(entry).iter().any(|name| name == wanted);
    let has_tag = |name: &String| name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted);
    let some_exact = entries.iter().any(is_exact);
    entries
        .into_iter()
        .filter(|entry| is_exact(entry) || !some_exact && names(entry).iter().any(has_tag))
        .collect()
}

/// The one image for this host in the index of a layout. A tool that puts an image into a layout under a name
/// that is taken leaves the old one there without a name, so unnamed entries count only where none has a
/// name.
fn chosen(blobs: &Blobs, entries: Vec<Descriptor>, tag: Option<&str>) -> Result<Descriptor, SourceError> {
    let names = |entry: &Descriptor| Vec::from_iter(entry.annotations.get(REF_NAME).cloned());
    let have: Vec<String> = entries.iter().flat_map(names).collect();
    let candidates = match tag {
        Some(tag) => called(entries, tag, names),
        None if have.is_empty() => entries,
        None => entries
            .into_iter()
            .filter(|entry| !names(entry).is_empty())
            .collect(),
    };
    if candidates.is_empty() && tag.is_some() {
        return Err(no_tag(blobs, tag, have));
    }
    let is_other = |entry: &Descriptor| entry.platform.as_ref().is_some_and(|platform| !fits(platform));
    let mut fitting = candidates.iter().filter(|entry| !is_other(entry));
    let different = fitting
        .next()
        .is_some_and(|first| fitting.any(|other| other.digest != first.digest));
    if different {
        let digest = |entry: &Descriptor| match names(entry).pop() {
            Some(name) => format!("{name} ({})", entry.digest),
            None => entry.digest.clone(),
        };
        let have = candidates
            .iter()
            .filter(|entry| !is_other(entry))
            .map(digest)
            .collect();
        return Err(several(blobs, tag, have));
    }
    for_this_host(blobs, candidates, 0)
}

fn several(blobs: &Blobs, tag: Option<&str>, have: Vec<String>) -> SourceError {
    SourceError::Several {
        archive: blobs.name().to_owned(),
        wanted: tag.map(|tag| format!(" called {tag:?}")).unwrap_or_default(),
        have,
    }
}

fn no_tag(blobs: &Blobs, tag: Option<&str>, have: Vec<String>) -> SourceError {
    SourceError::NoTag {
        archive: blobs.name().to_owned(),
        wanted: tag.map(|tag| format!(" called {tag:?}")).unwrap_or_default(),
        have,
    }
}

/// The first entry of `entries`, or of the indexes among them, that is for this host. An entry without a
/// platform is assumed to be.
fn for_this_host(blobs: &Blobs, entries: Vec<Descriptor>, depth: usize) -> Result<Descriptor, SourceError> {
    let mut others = Vec::new();
    for entry in entries {
        match &entry.platform {
            Some(platform) if !fits(platform) => {
                others.push(format!("{}/{}", platform.os, platform.architecture));
            }
            _ if is_index(&entry.media_type) && depth < INDEX_DEPTH => {
                let index: Index = checked_document(blobs, &entry.digest)?;
                return for_this_host(blobs, index.manifests, depth + 1);
            }
            _ => return Ok(entry),
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
