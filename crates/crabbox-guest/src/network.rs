//! The loopback interface and the one network interface, set up with ioctls: starting a child process would
//! take longer than all of this module.
//!
//! IPv6 is switched off on the outer interface: the host's rules cover IPv4 only, and an autoconfigured
//! address would bypass them.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::failure::Failure;
use crate::seed::Network;
use crate::sys::Interface;

/// How long the interface may take to appear after its driver was loaded.
const INTERFACE_WAIT: Duration = Duration::from_secs(2);

/// Brings up the loopback interface, and the outer one when the seed has an address for it.
pub(crate) fn bring_up(network: Option<&Network>) -> Result<(), Failure> {
    step("open", "lo", || Interface::new("lo")?.up())?;
    let Some(network) = network else { return Ok(()) };
    let name = find(network)?;
    disable_ipv6(&name)?;
    let interface = Interface::new(&name).map_err(|source| failed("open", &name, source))?;
    step("set the address of", &name, || {
        interface.set_address(network.address)
    })?;
    step("set the net mask of", &name, || {
        interface.set_mask(network.prefix)
    })?;
    step("bring up", &name, || interface.up())?;
    network.gateway.map_or(Ok(()), |gateway: Ipv4Addr| {
        step("set the default route through", &name, || {
            interface.default_route(gateway)
        })
    })
}

/// The interface with the seed's MAC address, or `eth0` if the seed names none.
fn find(network: &Network) -> Result<String, Failure> {
    let devices = Path::new("/sys/class/net");
    let wanted = || match &network.mac {
        None => devices.join("eth0").exists().then(|| "eth0".to_owned()),
        Some(mac) => std::fs::read_dir(devices).ok()?.flatten().find_map(|entry| {
            let address = std::fs::read_to_string(entry.path().join("address")).ok()?;
            (address.trim() == mac).then(|| entry.file_name().to_string_lossy().into_owned())
        }),
    };
    clock::poll_until(INTERFACE_WAIT, Duration::from_millis(1), wanted).ok_or_else(|| {
        let name = network.mac.as_deref().unwrap_or("eth0");
        Failure::Missing {
            what: PathBuf::from(format!("network interface {name}")),
            seconds: INTERFACE_WAIT.as_secs(),
        }
    })
}

fn disable_ipv6(name: &str) -> Result<(), Failure> {
    let switch = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
    match std::fs::write(&switch, "1") {
        // The kernel has no IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(Failure::path("write", &switch)),
    }
}

fn step(action: &'static str, name: &str, act: impl FnOnce() -> std::io::Result<()>) -> Result<(), Failure> {
    act().map_err(|source| failed(action, name, source))
}

fn failed(action: &'static str, name: &str, source: std::io::Error) -> Failure {
    Failure::Interface {
        action,
        name: name.to_owned(),
        source,
    }
}
