//! One request to Firecracker: method, path and body, ready to be sent.
//!
//! Each endpoint has its constructor here, so that a path and the body that belongs to it are written in one
//! place only. Leases send nothing that Firecracker 1.12 does not support; newer fields of the bodies say so.

use std::fmt;

use serde::Serialize;

use crate::types::{
    Action, Balloon, BootSource, Drive, Entropy, Logger, MachineConfig, Metrics, NetworkInterface, Serial,
    SnapshotCreate, SnapshotLoad, VmState, Vsock,
};

/// The API's HTTP methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Reads something.
    Get,
    /// Configures something, or performs an action.
    Put,
    /// Changes something that exists.
    Patch,
}

impl Method {
    /// Its name in the request line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
        }
    }
}

/// A method and a path, which identify the request in a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The method.
    pub method: Method,
    /// The path, with its leading slash.
    pub path: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.method.name(), self.path)
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where it goes.
    pub endpoint: Endpoint,
    /// Its JSON text; `None` for GET.
    pub body: Option<Vec<u8>>,
}

/// The bodies of two endpoints that take a single value.
#[derive(Serialize)]
struct ActionBody {
    action_type: Action,
}

#[derive(Serialize)]
struct StateBody {
    state: VmState,
}

impl Request {
    /// A GET request.
    pub fn get(path: &str) -> Self {
        let endpoint = Endpoint {
            method: Method::Get,
            path: path.to_owned(),
        };
        Self { endpoint, body: None }
    }

    fn with_body(method: Method, path: impl Into<String>, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("the types are plain structs of strings and numbers");
        Self {
            endpoint: Endpoint {
                method,
                path: path.into(),
            },
            body: Some(body),
        }
    }

    /// Sizes the machine.
    pub fn machine_config(config: &MachineConfig) -> Self {
        Self::with_body(Method::Put, "/machine-config", config)
    }

    /// Chooses kernel, initial RAM disk and command line.
    pub fn boot_source(source: &BootSource) -> Self {
        Self::with_body(Method::Put, "/boot-source", source)
    }

    /// Adds a drive. The guest sees the drives in the order of the requests.
    pub fn drive(drive: &Drive) -> Self {
        Self::with_body(Method::Put, format!("/drives/{}", drive.drive_id), drive)
    }

    /// Adds a network interface.
    pub fn network_interface(interface: &NetworkInterface) -> Self {
        Self::with_body(
            Method::Put,
            format!("/network-interfaces/{}", interface.iface_id),
            interface,
        )
    }

    /// Adds the vsock device.
    pub fn vsock(vsock: &Vsock) -> Self {
        Self::with_body(Method::Put, "/vsock", vsock)
    }

    /// Sets up Firecracker's log.
    pub fn logger(logger: &Logger) -> Self {
        Self::with_body(Method::Put, "/logger", logger)
    }

    /// Sets up Firecracker's metrics.
    pub fn metrics(metrics: &Metrics) -> Self {
        Self::with_body(Method::Put, "/metrics", metrics)
    }

    /// Adds the source of random numbers.
    pub fn entropy(entropy: &Entropy) -> Self {
        Self::with_body(Method::Put, "/entropy", entropy)
    }

    /// Adds the balloon.
    pub fn balloon(balloon: &Balloon) -> Self {
        Self::with_body(Method::Put, "/balloon", balloon)
    }

    /// Sends the console to a file, since 1.14.
    pub fn serial(serial: &Serial) -> Self {
        Self::with_body(Method::Put, "/serial", serial)
    }

    /// Boots the machine, or performs another action.
    pub fn action(action: Action) -> Self {
        Self::with_body(Method::Put, "/actions", &ActionBody { action_type: action })
    }

    /// Pauses or resumes.
    pub fn vm_state(state: VmState) -> Self {
        Self::with_body(Method::Patch, "/vm", &StateBody { state })
    }

    /// Saves the machine.
    pub fn snapshot_create(snapshot: &SnapshotCreate) -> Self {
        Self::with_body(Method::Put, "/snapshot/create", snapshot)
    }

    /// Restores a machine.
    pub fn snapshot_load(snapshot: &SnapshotLoad) -> Self {
        Self::with_body(Method::Put, "/snapshot/load", snapshot)
    }

    /// The bytes that go over the wire.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = format!(
            "{} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n",
            self.endpoint
        )
        .into_bytes();
        if let Some(body) = &self.body {
            let head = format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
            bytes.extend_from_slice(head.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}
