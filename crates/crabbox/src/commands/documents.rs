//! Every JSON document that this program prints, each with the name of its schema.
//!
//! This is the only list: a type missing here is not a [`Document`] and cannot be printed as JSON. The schemas are generated from the types and must
//! never be written by hand; a program that is optimised cannot generate them, which only `docs/schemas` is for.

use crabbox_engine::external::Answer;

use super::host::config::{ConfigView, Explanation};
use super::host::image::{ExportView, GcView, InspectView, ListView, MadeView, RemovedView, VerifyView};
use super::host::template::WarmView;
use super::host::{claims, doctor, providers, setup};
use super::lease::views::{ListItem, StatusView};
use super::lease::{cleanup, heartbeat, logs, pool, stages};
use super::work::run::BundledRun;
use super::work::{bench, cache, job, ports, sync_plan, volumes};
use crate::timing::TimingJson;
use crate::ui::{Document, Event};

macro_rules! documents {
    ($($name:literal, $command:literal => $type:ty;)+) => {
        $(impl Document for $type {})+

        /// The schema of every document, by its name.
        #[cfg(debug_assertions)]
        pub(super) fn schemas() -> Vec<(&'static str, schemars::Schema)> {
            vec![$(($name, schemas::of::<$type>($command))),+]
        }
    };
}

documents! {
    "adapter-external", "adapter external" => Answer;
    "bench-report", "bench report --json" => bench::Report;
    "cache-stats", "cache stats --json" => Vec<cache::CacheView>;
    "cache-volumes", "cache volumes --json" => Vec<volumes::VolumeView>;
    "claims-list", "claims list --json" => claims::ClaimsView;
    "cleanup", "cleanup --json" => cleanup::CleanupView;
    "config-explain", "config explain --json KEY" => Explanation;
    "config-explain-all", "config explain --json" => Vec<Explanation>;
    "config-show", "config show --json" => ConfigView;
    "doctor", "doctor --json" => doctor::DoctorView<'_>;
    "doctor-all", "doctor --all --json" => doctor::AllView<'_>;
    "failure-bundle-run", "run, crabbox-run.json in the bundle of a failed run" => BundledRun<'_>;
    "heartbeat", "heartbeat --json" => heartbeat::HeartbeatView;
    "image-export", "image export --json" => ExportView;
    "image-gc", "image gc --json" => GcView;
    "image-inspect", "image inspect --json" => InspectView<'_>;
    "image-list", "image list --json" => ListView<'_>;
    "image-made", "image build --json and image import --json" => MadeView<'_>;
    "image-rm", "image rm --json" => RemovedView<'_>;
    "image-verify", "image verify --json" => VerifyView<'_>;
    "image-warm", "image warm --json" => WarmView<'_>;
    "job-list", "job list --json" => Vec<job::JobView>;
    "list", "list --json" => Vec<ListItem>;
    "logs", "logs --json" => logs::LogView;
    "pool-drain", "pool drain --json" => pool::DrainedView;
    "pool-fill", "pool fill --json" => pool::FilledView;
    "ports", "ports --json list" => ports::PortsView;
    "progress", "image and setup with --json, a line an event on standard error" => stages::Line<'_>;
    "providers", "providers --json" => Vec<providers::Entry>;
    "providers-describe", "providers describe --json" => providers::Description;
    "providers-filters", "providers filters --json" => providers::FilterValues;
    "providers-recommend", "providers recommend USE-CASE --json" => Vec<providers::Recommendation>;
    "providers-use-cases", "providers recommend --json" => Vec<&'static str>;
    "run-events", "run, warmup, watch, prewarm and job run with --json-events, a line an event on standard error" => Event<'_>;
    "setup", "setup firecracker --json" => setup::SetupView<'_>;
    "status", "status --json, inspect --json and warmup --json" => StatusView;
    "sync-plan", "sync-plan --json" => sync_plan::PlanView<'_>;
    "timing", "run, warmup and prewarm with --timing-json, on standard error" => TimingJson;
}

#[cfg(debug_assertions)]
mod schemas;
