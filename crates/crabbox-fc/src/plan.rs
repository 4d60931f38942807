//! The requests of a cold boot, in order.
//!
//! A [`BootPlan`] is plain data, and its requests can be printed without a Firecracker. The start is always
//! the last request, and nothing may be sent after a request that failed: a half-configured machine is
//! discarded, not repaired.

use std::io::{Read, Write};

use crate::client::{Client, ClientError};
use crate::request::Request;
use crate::types::{
    Action, Balloon, BootSource, Drive, Entropy, Logger, MachineConfig, Metrics, NetworkInterface, Vsock,
};

/// A machine to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// Its size.
    pub machine: MachineConfig,
    /// Its kernel.
    pub boot: BootSource,
    /// Its drives; the first is `/dev/vda` in the guest.
    pub drives: Vec<Drive>,
    /// Its network interfaces; the first is `eth0` in the guest.
    pub network: Vec<NetworkInterface>,
    /// Its vsock device.
    pub vsock: Option<Vsock>,
    /// Firecracker's log, unless it is given on the command line.
    pub logger: Option<Logger>,
    /// Firecracker's metrics.
    pub metrics: Option<Metrics>,
    /// Its source of random numbers.
    pub entropy: Option<Entropy>,
    /// Its balloon.
    pub balloon: Option<Balloon>,
}

impl BootPlan {
    /// A machine without devices.
    pub fn new(machine: MachineConfig, boot: BootSource) -> Self {
        Self {
            machine,
            boot,
            drives: Vec::new(),
            network: Vec::new(),
            vsock: None,
            logger: None,
            metrics: None,
            entropy: None,
            balloon: None,
        }
    }

    /// Every request in order: the log first, so that it covers the others; the start last.
    pub fn requests(&self) -> Vec<Request> {
        let mut requests = Vec::new();
        requests.extend(self.logger.as_ref().map(Request::logger));
        requests.extend(self.metrics.as_ref().map(Request::metrics));
        requests.push(Request::machine_config(&self.machine));
        requests.push(Request::boot_source(&self.boot));
        requests.extend(self.drives.iter().map(Request::drive));
        requests.extend(self.network.iter().map(Request::network_interface));
        requests.extend(self.vsock.as_ref().map(Request::vsock));
        requests.extend(self.entropy.as_ref().map(Request::entropy));
        requests.extend(self.balloon.as_ref().map(Request::balloon));
        requests.push(Request::action(Action::InstanceStart));
        requests
    }
}

/// Configures and starts the machine; stops at the first request that fails.
pub fn boot<S: Read + Write>(client: &mut Client<S>, plan: &BootPlan) -> Result<(), ClientError> {
    for request in plan.requests() {
        client.send(&request)?;
    }
    Ok(())
}
