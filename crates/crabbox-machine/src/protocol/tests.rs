//! The bytes of every message: another program, or this one on another host, reads them.

use std::time::Duration;

use crabbox_core::admission::Limits;
use crabbox_core::network::NetworkMode;

use super::*;
use crate::context::SavedPlaces;
use crate::request::{GuestSource, Jail, Machine, NetworkRequest, Programs, Start};

/// The request of the golden bytes.
pub(crate) fn request() -> AcquireRequest {
    AcquireRequest {
        places: SavedPlaces {
            state: "/s".into(),
            config: "/c".into(),
            cache: "/h".into(),
            registry: "/r".into(),
        },
        control_dir: "/run/c".into(),
        lease_id: "cbx_0123456789ab".to_owned(),
        slug: Some("jade-krill".to_owned()),
        external: None,
        keep: true,
        ttl: Duration::from_mins(90),
        idle: Duration::from_millis(1_500),
        profile: "p".to_owned(),
        class: "c".to_owned(),
        server_type: "microvm".to_owned(),
        exposed: String::new(),
        ssh_user: "crabbox".to_owned(),
        ssh_port: 22,
        work_root: "/work".to_owned(),
        machine: Machine {
            cpus: 2,
            memory_mib: 512,
            disk_mib: 4096,
        },
        limits: Limits {
            max_leases: 0,
            reserve_memory_mib: 256,
            reserve_disk_mib: 1024,
        },
        programs: Programs {
            firecracker: "/bin/firecracker".into(),
            jailer: Some(Jail {
                jailer: "/bin/jailer".into(),
                first_uid: 1_900_000_000,
                uid_count: 64,
            }),
        },
        guest: GuestSource::Ours {
            dir: "/i".into(),
            digest: "sha256:0".to_owned(),
        },
        network: NetworkRequest {
            mode: NetworkMode::Nat,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cni_network: "n".to_owned(),
            nat_range: "10.0.0.0/16".parse().unwrap(),
        },
        launch_timeout: Duration::from_secs(30),
        delete_on_release: true,
        failpoint: String::new(),
        start: Start::Boot,
        pool: None,
        owner: None,
        job: None,
        volumes: Vec::new(),
    }
}

const REQUEST: &str = r#"{"version":1,"acquire":{"places":{"state":"/s","config":"/c","cache":"/h","registry":"/r"},"control_dir":"/run/c","lease_id":"cbx_0123456789ab","slug":"jade-krill","keep":true,"ttl":{"secs":5400,"nanos":0},"idle":{"secs":1,"nanos":500000000},"profile":"p","class":"c","server_type":"microvm","ssh_user":"crabbox","ssh_port":22,"work_root":"/work","machine":{"cpus":2,"memory_mib":512,"disk_mib":4096},"limits":{"max_leases":0,"reserve_memory_mib":256,"reserve_disk_mib":1024},"programs":{"firecracker":"/bin/firecracker","jailer":{"jailer":"/bin/jailer","first_uid":1900000000,"uid_count":64}},"guest":{"ours":{"dir":"/i","digest":"sha256:0"}},"network":{"mode":"nat","cni_conf_dir":"/etc/cni/net.d","cni_bin_dirs":["/opt/cni/bin"],"cni_network":"n","nat_range":"10.0.0.0/16"},"launch_timeout":{"secs":30,"nanos":0},"delete_on_release":true,"failpoint":""}}
"#;

/// Every event with its bytes.
fn events() -> [(Event, &'static str); 6] {
    [
        (
            Event::Allocated {
                slug: "jade-krill".to_owned(),
                name: "crabbox-jade-krill-1a2b3c4d".to_owned(),
            },
            r#"{"event":"allocated","slug":"jade-krill","name":"crabbox-jade-krill-1a2b3c4d"}"#,
        ),
        (
            Event::Stage(Stage {
                name: "disk".to_owned(),
                micros: 20_984,
                whose: StageSide::Ours,
            }),
            r#"{"event":"stage","name":"disk","micros":20984,"whose":"ours"}"#,
        ),
        (
            Event::Ready(Ready {
                address: "192.168.127.2".to_owned(),
                key: "/k/id_ed25519".into(),
                known_hosts: "/k/known_hosts".into(),
                control: "/run/c/1".into(),
                guest_stages: vec![("kernel".to_owned(), 120)],
                identity: None,
            }),
            r#"{"event":"ready","address":"192.168.127.2","key":"/k/id_ed25519","known_hosts":"/k/known_hosts","control":"/run/c/1","guest_stages":[["kernel",120]]}"#,
        ),
        (Event::Watching, r#"{"event":"watching"}"#),
        (
            Event::Frozen {
                leftovers: vec!["l".to_owned()],
            },
            r#"{"event":"frozen","leftovers":["l"]}"#,
        ),
        (
            Event::Failed(Failure {
                kind: Kind::Unavailable,
                message: "m".to_owned(),
                causes: vec!["c".to_owned()],
                hints: vec!["h".to_owned()],
                console: vec!["l".to_owned()],
                leftovers: Vec::new(),
                machine_ended: true,
                not_restored: false,
                blames_template: false,
            }),
            r#"{"event":"failed","kind":"unavailable","message":"m","causes":["c"],"hints":["h"],"console":["l"],"leftovers":[],"machine_ended":true}"#,
        ),
    ]
}

fn read(bytes: &[u8]) -> Result<AcquireRequest, RequestError> {
    read_request(&mut &bytes[..])
}

#[test]
fn every_message_has_these_bytes_and_is_read_from_them() {
    assert_eq!(String::from_utf8(opening(&request()).unwrap()).unwrap(), REQUEST);
    let again = read(REQUEST.as_bytes()).unwrap();
    assert_eq!(opening(&again).unwrap(), REQUEST.as_bytes());
    let claimed = "{\"message\":\"claimed\"}\n";
    assert_eq!(line(&Message::Claimed).unwrap(), claimed.as_bytes());
    assert_eq!(read_message(&mut claimed.as_bytes()), Some(Message::Claimed));
    for (event, bytes) in events() {
        assert_eq!(line(&event).unwrap(), format!("{bytes}\n").as_bytes());
        let again: Event = serde_json::from_str(bytes).unwrap();
        assert_eq!(line(&again).unwrap(), format!("{bytes}\n").as_bytes());
    }
}

#[test]
fn every_kind_crosses_as_itself() {
    for (kind, bytes) in [
        (Kind::General, r#""general""#),
        (Kind::Problems, r#""problems""#),
        (Kind::Usage, r#""usage""#),
        (Kind::MissingHost, r#""missing_host""#),
        (Kind::NotFound, r#""not_found""#),
        (Kind::Unavailable, r#""unavailable""#),
        (Kind::Sync, r#""sync""#),
        (Kind::Remote, r#""remote""#),
        (Kind::Passthrough(3), r#"{"passthrough":3}"#),
    ] {
        assert_eq!(serde_json::to_string(&kind).unwrap(), bytes);
        assert_eq!(serde_json::from_str::<Kind>(bytes).unwrap(), kind);
    }
}

#[test]
fn a_version_that_is_not_known_is_refused_by_name_whatever_else_stands_there() {
    for found in [0, 2, 4_000_000_000_u32] {
        let other = format!("{{\"version\":{found},\"acquire\":{{\"nobody\":\"knows\"}}}}\n");
        let error = read(other.as_bytes()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the lease request has protocol version {found}, but this program speaks version 1")
        );
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(error.hints().len(), 1);
    }
    let (_, unversioned) = REQUEST.split_at(REQUEST.find("\"acquire\"").unwrap());
    let error = read(format!("{{{unversioned}").as_bytes()).unwrap_err();
    assert!(matches!(error, RequestError::Unversioned), "{error:?}");
}

#[test]
fn what_is_cut_off_endless_or_no_json_makes_no_lease() {
    for cut in [&REQUEST[..REQUEST.len() - 1], "", &REQUEST[..100]] {
        assert!(matches!(read(cut.as_bytes()), Err(RequestError::Cut)));
    }
    let endless = std::io::Read::take(std::io::repeat(b'x'), 1 << 30);
    let mut endless = std::io::BufReader::new(endless);
    assert!(matches!(read_request(&mut endless), Err(RequestError::Cut)));
    for strange in [
        "{\"version\":1}\n",
        "[]\n",
        "{\"version\":\"1\",\"acquire\":{}}\n",
        "\n",
    ] {
        assert!(
            matches!(read(strange.as_bytes()), Err(RequestError::Malformed(_))),
            "{strange}"
        );
    }
    for silence in [
        "",
        "claimed\n",
        "{\"message\":\"hello\"}\n",
        "{\"message\":\"claimed\"} x\n",
    ] {
        assert_eq!(read_message(&mut silence.as_bytes()), None, "{silence}");
    }
}
