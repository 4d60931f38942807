//! The volumes of a lease in the making: each is taken, mounted by the guest, or gone without.
//!
//! A volume that is not required must never cost the lease, and one that was not taken must never stay held.

use std::collections::BTreeMap;

use crabbox_core::fault;
use crabbox_core::journal::Step;
use crabbox_core::volume::Volume;
use crabbox_store::places::Places;
use crabbox_store::volumes;

use super::{AcquireError, Making, stage_span};
use crate::failpoint::{self, Phase, Who};
use crate::protocol::{self, StageSide};
use crate::request::GuestSource;
use crate::resource::disk::{self, Drive};
use crate::resource::volume::{self, Moment, VolumeError, VolumeRequest};

impl Making<'_> {
    /// Takes the volumes that the lease requests. If one that is not required is unavailable, the lease goes
    /// on with a warning.
    pub(super) fn volumes(
        &mut self,
        places: &Places,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), AcquireError> {
        let request = self.request;
        if request.volumes.is_empty() {
            return Ok(());
        }
        let _stage = stage_span("volumes");
        for wanted in &request.volumes {
            match self.volume(places, wanted, cancelled)? {
                Ok(drive) => self.drives.push(drive),
                Err(source) if source.is_cancelled() => return Err(AcquireError::Abandoned),
                Err(source) => self.do_without(wanted, source)?,
            }
        }
        self.over(protocol::VOLUMES, StageSide::Ours);
        Ok(())
    }

    /// Takes one volume, or returns why the lease cannot have it; in that case the lease holds nothing of it,
    /// or its journal entry stays.
    fn volume(
        &mut self,
        places: &Places,
        wanted: &Volume,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Result<Drive, VolumeError>, AcquireError> {
        let request = self.request;
        if !matches!(request.guest, GuestSource::Ours { .. }) || !request.start.is_boot() {
            return Ok(Err(VolumeError::Foreign));
        }
        let dir = volumes::dir_of(places, &wanted.key);
        let home = disk::plan(request, &self.made, &[])?.home;
        let link = volume::link(self.drives.len());
        let step = Step::Volume {
            dir: dir.to_string_lossy().into_owned(),
            link: home.join(&link).to_string_lossy().into_owned(),
            size_mib: wanted.size_mib().max(volumes::size_mib(&dir)),
        };
        let id = self.made.lease.id().clone();
        let volume_request = VolumeRequest {
            volume: wanted,
            lease: &id,
            uid: self.made.uid,
            limits: request.limits,
            cancelled,
        };
        let at = |moment: Moment| {
            failpoint::hit(&request.failpoint, Who::Supervisor, moment.name(), Phase::Done);
        };
        let seq = self.made.journal.state().next_seq;
        let taken = self.effect(step, || Ok((volume::take(places, &volume_request, &at), None)))?;
        match taken {
            Ok((image, warning)) => {
                if let Some(text) = warning {
                    self.warn(text);
                }
                Ok(Ok(Drive {
                    image,
                    link,
                    path: wanted.path.clone(),
                }))
            }
            Err(source) => {
                if let Err(error) = volume::give_back(places, &dir, &id) {
                    // The step stays in the journal, and the volume is given back with the lease.
                    tracing::warn!(
                        "volume {:?} is not released yet: {}",
                        wanted.name,
                        fault::chain(&error)
                    );
                } else {
                    self.made.journal.undone(seq)?;
                }
                Ok(Err(source))
            }
        }
    }

    /// Goes on without a volume, unless it is required.
    fn do_without(&mut self, wanted: &Volume, source: VolumeError) -> Result<(), AcquireError> {
        if wanted.required {
            return Err(AcquireError::Volume {
                name: wanted.name.clone(),
                source,
            });
        }
        let why = fault::chain(&source);
        self.warn(format!(
            "the lease is without cache volume {:?}: {why}",
            wanted.name
        ));
        Ok(())
    }

    /// Goes on without the volumes that the guest has not mounted, unless one is required. The image may be
    /// too old to know volumes, or the volume's file system may have been written by a newer kernel than the
    /// guest's.
    pub(super) fn must_be_mounted(
        &mut self,
        places: &Places,
        stages: &[(String, u64)],
    ) -> Result<(), AcquireError> {
        let request = self.request;
        let mut without: BTreeMap<_, _> = volume::not_mounted(self.drives.len(), stages)
            .into_iter()
            .collect();
        for number in 0..self.drives.len() {
            let path = &self.drives[number].path;
            // Mount paths are unique, so this finds the right volume.
            let Some(wanted) = request.volumes.iter().find(|wanted| wanted.path == *path) else {
                continue;
            };
            match without.remove(&number) {
                Some(why) => self.do_without(wanted, why)?,
                // Note the mount path for later commands that ask whether the lease has the volume there.
                None => self.made.journal.note(
                    &volumes::dir_of(places, &wanted.key).to_string_lossy(),
                    wanted.path.as_str(),
                )?,
            }
        }
        Ok(())
    }
}
