//! `cache volumes`: this host's drives that outlive their leases, and those that are configured.
//!
//! It reads only records. A volume is removed only with `--force`, and never while a lease has it.

use std::collections::BTreeSet;

use crabbox_core::fault::{self, Fault, Kind};
use crabbox_core::size::human_bytes;
use crabbox_core::timestamp;
use crabbox_core::volume::Volume;
use crabbox_engine::host::volumes::{self, Stored};
use crabbox_host::console::harmless;
use schemars::JsonSchema;
use serde::Serialize;

use crate::args::CacheVolumesArgs;
use crate::context::Ctx;
use crate::ui::{CommandError, Exit};

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
enum Usage {
    /// It was not confirmed.
    #[error("cache volumes --remove requires --force")]
    Force,
    /// `--force` without `--remove`.
    #[error("cache volumes --force goes with --remove NAME")]
    Nothing,
}

impl Fault for Usage {
    fn kind(&self) -> Kind {
        Kind::Usage
    }
}

/// A volume that is configured, stored, or both, as `--json` prints it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct VolumeView {
    /// What its user calls it.
    name: String,
    /// What identifies it.
    key: String,
    /// Where leases have it; absent where it is not configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// Its size in GiB: the one that is stored, else the one that is configured.
    #[serde(rename = "sizeGB")]
    size_gb: u64,
    /// Whether there is no lease without it; absent where it is not configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    required: Option<bool>,
    /// Ours: whether it is on this host.
    stored: bool,
    /// Ours: bytes that it takes on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Ours: when its file system was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    /// Ours: when a lease got it or gave it back last.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    /// Ours: the lease that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    /// Ours: an earlier content that was damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    set_aside: Option<SetAsideView>,
}

/// A content that was damaged.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct SetAsideView {
    /// When it was set aside.
    at: String,
    /// Why.
    reason: String,
    /// The file.
    path: String,
    /// Bytes that it takes on the disk.
    bytes: u64,
}

impl VolumeView {
    fn of(configured: Option<&Volume>, stored: Option<&Stored>) -> Option<Self> {
        let (name, key) = match (configured, stored) {
            (Some(volume), _) => (&volume.name, &volume.key),
            (None, Some(stored)) => (&stored.name, &stored.key),
            (None, None) => return None,
        };
        let wanted = configured.map_or(0, |volume| u64::from(volume.size_gib));
        Some(Self {
            name: name.clone(),
            key: key.clone(),
            path: configured.map(|volume| volume.path.as_str().to_owned()),
            size_gb: stored.map_or(wanted, |stored| stored.size_mib / 1024),
            required: configured.map(|volume| volume.required),
            stored: stored.is_some(),
            bytes: stored.map(|stored| stored.allocated),
            created_at: stored.map(|stored| timestamp::rfc3339(stored.created_at)),
            last_used_at: stored.map(|stored| timestamp::rfc3339(stored.used_at)),
            lease: stored.and_then(|stored| stored.lease.clone()),
            set_aside: stored.and_then(|stored| {
                let (why, bytes) = stored.set_aside.as_ref()?;
                let path = stored.dir.join(volumes::SET_ASIDE);
                Some(SetAsideView {
                    at: timestamp::rfc3339(why.at),
                    reason: why.why.clone(),
                    path: path.display().to_string(),
                    bytes: *bytes,
                })
            }),
        })
    }

    fn line(&self) -> String {
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "-".to_owned());
        let required = if self.required == Some(true) {
            " required"
        } else {
            ""
        };
        let aside = self.set_aside.as_ref().map(|aside| {
            let bytes = human_bytes(aside.bytes).replace(' ', "");
            format!(" set_aside={bytes} ({})", aside.reason)
        });
        format!(
            "{} key={} path={} size={}GiB used={} last_used={} lease={}{required}{}",
            self.name,
            self.key,
            word(&self.path),
            self.size_gb,
            self.bytes
                .map_or_else(|| "-".to_owned(), human_bytes)
                .replace(' ', ""),
            word(&self.last_used_at),
            word(&self.lease),
            aside.unwrap_or_default()
        )
    }
}

pub(in crate::commands) fn run(ctx: &Ctx<'_>, args: &CacheVolumesArgs) -> Result<Exit, CommandError> {
    match &args.remove {
        Some(name) if args.force => remove(ctx, name),
        Some(_) => Err(Usage::Force.into()),
        None if args.force => Err(Usage::Nothing.into()),
        None => list(ctx, args.json),
    }
}

fn remove(ctx: &Ctx<'_>, name: &str) -> Result<Exit, CommandError> {
    volumes::remove(&ctx.env.places()?, name)?;
    ctx.printer
        .line(harmless(&format!("removed cache volume {name}")));
    Ok(Exit::SUCCESS)
}

fn list(ctx: &Ctx<'_>, json: bool) -> Result<Exit, CommandError> {
    let configured = ctx.settings_on_leases(&[])?.settings.cache.volumes.value.clone();
    let (stored, unreadable) = volumes::list(&ctx.env.places()?)?;
    let views = views(&configured, &stored);
    for volume in &unreadable {
        ctx.printer.warn(harmless(&format!(
            "cache volume {} ({}) cannot be used: {}",
            volume.dir.display(),
            human_bytes(volume.allocated),
            fault::chain(&volume.error)
        )));
    }
    if json {
        ctx.printer.json(&views)?;
        return Ok(Exit::SUCCESS);
    }
    for view in &views {
        ctx.printer.line(harmless(&view.line()));
    }
    Ok(Exit::SUCCESS)
}

/// The configured ones in order, then the others that are stored.
fn views(configured: &[Volume], stored: &[Stored]) -> Vec<VolumeView> {
    let known: BTreeSet<&str> = configured.iter().map(|volume| volume.key.as_str()).collect();
    let ours = configured.iter().map(|volume| {
        let stored = stored.iter().find(|stored| stored.key == volume.key);
        (Some(volume), stored)
    });
    let others = stored
        .iter()
        .filter(|stored| !known.contains(stored.key.as_str()))
        .map(|stored| (None, Some(stored)));
    ours.chain(others)
        .filter_map(|(volume, stored)| VolumeView::of(volume, stored))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_comes_first_and_what_is_stored_is_beside_it() {
        let stored = |key: &str, lease: Option<&str>| Stored {
            dir: format!("/v/{key}").into(),
            name: "old".to_owned(),
            key: key.to_owned(),
            size_mib: 2048,
            allocated: 3 << 20,
            created_at: 0,
            used_at: 60,
            lease: lease.map(str::to_owned),
            set_aside: None,
        };
        let configured = [
            Volume::from_spec("new=b:/b", true).unwrap(),
            Volume::from_spec("c:/c", false).unwrap(),
        ];
        let views = views(&configured, &[stored("a", None), stored("b", Some("cbx_1"))]);
        let lines: Vec<_> = views.iter().map(VolumeView::line).collect();
        assert_eq!(
            lines,
            [
                "new key=b path=/b size=2GiB used=3.0MiB last_used=1970-01-01T00:01:00Z lease=cbx_1 required",
                "c key=c path=/c size=10GiB used=- last_used=- lease=-",
                "old key=a path=- size=2GiB used=3.0MiB last_used=1970-01-01T00:01:00Z lease=-",
            ]
        );
    }
}
