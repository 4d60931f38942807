//! The doctor's checks of this provider: whether this host can make and run its machines.
//!
//! An invalid configuration replaces all of them. Nothing here may change the host more than
//! [`crate::host::doctor`] documents.

use crabbox_core::config::{Settings, firecracker};
use crabbox_machine::context::Engine;

use crate::host::doctor::check::{Check, Options};
use crate::host::doctor::{generic, judge, observe, prepare};

pub(super) fn checks(engine: &Engine, settings: &Settings, options: &Options) -> Vec<Check> {
    let plan = match firecracker::plan(settings) {
        Ok(plan) => plan,
        Err(error) => return vec![generic::invalid(super::NAME, &error)],
    };
    let world = observe::world(engine, &plan, options);
    let mut checks = judge::firecracker(&plan, &world);
    checks.extend(options.prepare.then(|| prepare::check(engine, &plan)));
    checks
}
