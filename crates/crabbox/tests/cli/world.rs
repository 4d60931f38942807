//! Leases and claims on disk as the Go program writes them, and processes in place of their machines.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use crabbox_host::command::Cmd;
use serde_json::{Value, json};

use crate::place::Place;

/// When every lease here was made: far enough in the past to differ from now.
pub(crate) const MADE: i64 = 1_754_000_000;

/// The lease of most tests.
pub(crate) const ID: &str = "cbx_0123456789ab";
/// Another one.
pub(crate) const OTHER: &str = "cbx_ba9876543210";

/// A process in place of a machine; it ends with the test.
pub(crate) struct Machine(Child);

impl Machine {
    pub(crate) fn start() -> Self {
        let cmd = Cmd::new("sleep").arg("600");
        let mut command = cmd.to_std();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(cmd.spawn(&mut command).unwrap())
    }

    /// The three fields by which a record identifies its machine.
    fn identity(&self) -> Value {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // Field 22, counted after the second one, the name, which may contain blanks.
        let started = stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        json!({"pid": self.0.id(), "processStarted": started, "bootID": boot.trim()})
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A record to be written.
pub(crate) struct Record(pub(crate) Value);

impl Record {
    /// A lease whose machine is gone.
    pub(crate) fn new(id: &str, slug: &str) -> Self {
        let name = format!("crabbox-{slug}-1a2b3c4d");
        Self(json!({
            "schemaVersion": 1, "leaseID": id, "slug": slug, "name": name, "vmid": name, "provider": "firecracker",
            "guestIP": "127.0.0.1", "sshUser": "crabbox", "sshPort": "1", "deleteOnRelease": true,
            "labels": {
                "created_at": MADE.to_string(), "expires_at": (MADE + 1800).to_string(), "idle_timeout": "1800",
                "idle_timeout_secs": "1800", "keep": "false", "last_touched_at": MADE.to_string(), "lease": id,
                "server_type": "microvm", "slug": slug, "state": "ready", "ttl_secs": "5400",
                "work_root": "/work/crabbox",
            },
            "createdAt": "2025-07-31T22:13:20Z", "updatedAt": "2025-07-31T22:13:20Z",
        }))
    }

    /// The same with a machine that runs.
    pub(crate) fn on(mut self, machine: &Machine) -> Self {
        let identity = machine.identity();
        self.0
            .as_object_mut()
            .unwrap()
            .extend(identity.as_object().unwrap().clone());
        self
    }

    /// The same with this label.
    pub(crate) fn label(mut self, name: &str, value: &str) -> Self {
        self.0["labels"][name] = value.into();
        self
    }

    /// Writes the record and returns the lease directory.
    pub(crate) fn write(&self, place: &Place) -> PathBuf {
        let dir = place
            .path("home/.config/crabbox/state/firecracker/leases")
            .join(self.0["leaseID"].as_str().unwrap());
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("metadata.json"),
            serde_json::to_vec_pretty(&self.0).unwrap(),
        )
        .unwrap();
        dir
    }
}

/// A place with one lease whose machine runs, claimed for the repository.
pub(crate) fn leased() -> (Place, Machine) {
    let (place, machine) = (Place::new(), Machine::start());
    Record::new(ID, "jade-krill").on(&machine).write(&place);
    claim(&place, ID, "jade-krill", "firecracker");
    (place, machine)
}

/// Reads the current record of a lease.
pub(crate) fn record(place: &Place, id: &str) -> Value {
    let path = place
        .path("home/.config/crabbox/state/firecracker/leases")
        .join(id)
        .join("metadata.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Writes a claim.
pub(crate) fn claim(place: &Place, id: &str, slug: &str, provider: &str) {
    let claim = json!({
        "leaseID": id, "revision": "0123456789abcdef0123456789abcdef", "slug": slug, "provider": provider,
        "targetOS": "linux", "repoRoot": place.path("repo"), "claimedAt": "2025-07-31T22:13:20Z",
        "lastUsedAt": "2025-07-31T22:13:20Z", "idleTimeoutSeconds": 1800,
    });
    claim_file(
        place,
        &format!("{id}.json"),
        &serde_json::to_string_pretty(&claim).unwrap(),
    );
}

/// Writes an arbitrary file into the claims directory.
pub(crate) fn claim_file(place: &Place, name: &str, text: &str) {
    let dir = place.path("home/.config/crabbox/state/claims");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(name), text).unwrap();
}

/// Reads the current claim.
pub(crate) fn read_claim(place: &Place, id: &str) -> Value {
    let path = place
        .path("home/.config/crabbox/state/claims")
        .join(format!("{id}.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
