//! Two state directories and one registry, all in a directory of the test.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crabbox_core::admission::Limits;
use crabbox_core::journal::{Entry, VERSION};
use crabbox_host::command::Cmd;
use crabbox_host::netns;
use crabbox_store::journal::JournalFile;
use crabbox_store::{locks, registry};
use proptest::prelude::*;

use super::*;
use crate::context::SavedPlaces;
use crate::failpoint::Who;
use crate::lease::allocate::{AllocateError, allocate};
use crate::lease::allocated::Allocated;
use crate::lifecycle::teardown::{Actor, Extent, teardown};
use crate::request::{AcquireRequest, GuestSource, Jail, Machine, NetworkRequest, Programs};
use crabbox_core::network::NetworkMode;

/// First uid of the test ranges, far above any uid with a running process.
const UIDS: u32 = 1_950_000_000;

/// Number of test worlds so far. Mounts and processes are visible on the whole machine, so no two worlds may
/// share a uid, a block or a lease.
static WORLDS: AtomicU32 = AtomicU32::new(0);

struct World {
    root: tempfile::TempDir,
    first_uid: u32,
    blocks: Ipv4Net,
}

impl World {
    fn new() -> Self {
        // Concurrent runs of these tests have other pids.
        let number = (std::process::id() * 64 + WORLDS.fetch_add(1, Ordering::Relaxed)) % 2048;
        // Reserved for benchmarks (RFC 2544), so no host has a route into it.
        let all: Ipv4Net = "198.18.0.0/15".parse().unwrap();
        Self {
            root: tempfile::tempdir().unwrap(),
            first_uid: UIDS + number * 16,
            blocks: all.subnets(26).unwrap().nth(number as usize).unwrap(),
        }
    }

    /// The state directory `name` of this host.
    fn places(&self, name: &str) -> Places {
        let root = self.root.path().canonicalize().unwrap();
        Places {
            registry: root.join("registry"),
            ..Places::below(&root.join(name))
        }
    }

    fn allocate(&self, name: &str, uids: u32) -> Result<Allocated, AllocateError> {
        self.allocate_as(name, uids, &id())
    }

    fn allocate_as(&self, name: &str, uids: u32, id: &LeaseId) -> Result<Allocated, AllocateError> {
        let places = self.places(name);
        allocate(&places, &self.request(&places, id, uids), id)
    }

    /// Block number n of the range, counted from 0.
    fn block(&self, number: usize) -> Ipv4Net {
        self.blocks.subnets(30).unwrap().nth(number).unwrap()
    }

    fn listing(&self) -> Listing {
        registry::look(&self.places("a")).unwrap()
    }

    fn look(&self, name: &str) -> Held {
        look(&self.places(name), &self.listing()).unwrap()
    }

    fn request(&self, places: &Places, id: &LeaseId, uid_count: u32) -> AcquireRequest {
        let none = PathBuf::from("/nonexistent");
        AcquireRequest {
            places: SavedPlaces::from(places),
            control_dir: none.clone(),
            lease_id: id.to_string(),
            slug: None,
            external: None,
            keep: false,
            ttl: Duration::from_mins(1),
            idle: Duration::from_mins(1),
            profile: String::new(),
            class: String::new(),
            server_type: String::new(),
            exposed: String::new(),
            ssh_user: "root".to_owned(),
            ssh_port: 22,
            work_root: "/work".to_owned(),
            machine: Machine {
                cpus: 1,
                memory_mib: 1,
                disk_mib: 1,
            },
            limits: Limits {
                max_leases: 0,
                reserve_memory_mib: 0,
                reserve_disk_mib: 0,
            },
            programs: Programs {
                firecracker: none.clone(),
                jailer: Some(Jail {
                    jailer: none.clone(),
                    first_uid: self.first_uid,
                    uid_count,
                }),
            },
            guest: GuestSource::Foreign {
                kernel: none.clone(),
                rootfs: none.clone(),
                initrd: None,
            },
            network: NetworkRequest {
                mode: NetworkMode::Nat,
                cni_conf_dir: none,
                cni_bin_dirs: Vec::new(),
                cni_network: String::new(),
                nat_range: self.blocks,
            },
            launch_timeout: Duration::from_mins(1),
            delete_on_release: true,
            failpoint: String::new(),
            start: crate::request::Start::Boot,
            pool: None,
            owner: None,
            job: None,
            volumes: Vec::new(),
        }
    }
}

/// A new id; processes and mounts of other tests must not have it in their names.
fn id() -> LeaseId {
    LeaseId::from_random(crabbox_host::random::bytes().unwrap())
}

fn take_back(places: &Places, made: Allocated) {
    let actor = Actor {
        who: Who::Cli,
        failpoint: "",
    };
    let report = teardown(places, made.lease, Extent::Everything, actor);
    assert_eq!(report.leftovers(), Vec::<String>::new());
}

fn got(made: &Allocated) -> (u32, Ipv4Net) {
    (made.uid.unwrap(), made.subnet.unwrap())
}

/// A lease in `places` whose entry is lost: directory and journal.
fn unregistered(places: &Places, id: &LeaseId, uid: u32, subnet: Ipv4Net) -> LeaseDir {
    let dir = LeaseDir::at(places.lease(id));
    std::fs::create_dir_all(dir.path()).unwrap();
    let open = Entry::Open {
        version: VERSION,
        lease: id.to_string(),
        at: 1,
        uid: Some(uid),
        subnet: Some(subnet.to_string()),
        memory_mib: None,
    };
    drop(JournalFile::create(&dir.journal(), &open).unwrap());
    dir
}

/// A process whose last argument is `name`.
fn process_named(name: &str) -> Child {
    let cmd = Cmd::new("sh").args(["-c", "read line", name]);
    let mut command = cmd.to_std();
    let child = command.stdin(Stdio::piped()).spawn().unwrap();
    let path = format!("/proc/{}/cmdline", child.id());
    crabbox_host::clock::poll_until(Duration::from_mins(1), || {
        let words = std::fs::read(&path).ok()?;
        words.ends_with(format!("{name}\0").as_bytes()).then_some(())
    })
    .expect("the process has become its program");
    child
}

#[test]
fn two_state_directories_share_no_uid_and_no_block_and_a_full_range_says_who_has_it() {
    let world = World::new();
    let mut made: Vec<Allocated> = ["a", "b", "b", "a", "b"]
        .into_iter()
        .map(|name| world.allocate(name, 5).unwrap())
        .collect();
    let uids: BTreeSet<u32> = made.iter().filter_map(|one| one.uid).collect();
    let blocks: BTreeSet<Ipv4Net> = made.iter().filter_map(|one| one.subnet).collect();
    assert_eq!((uids.len(), blocks.len()), (5, 5), "{made:?}");
    let id = id();
    let full = world.allocate_as("a", 5, &id).unwrap_err();
    let text = full.to_string();
    let other = world.places("b").state;
    assert!(
        text.contains("all 5 uids") && text.contains(&other.display().to_string()),
        "{text}"
    );
    let left = world.places("a");
    assert!(
        !left.lease(&id).exists()
            && !left.lease_lock(id.as_str()).exists()
            && world.listing().holdings.len() == 5,
        "nothing is left of a lease that was refused"
    );
    // Resources that one state directory frees can be used by the other.
    let back = made.remove(1);
    let had = got(&back);
    take_back(&world.places("b"), back);
    assert_eq!(world.listing().holdings.len(), 4, "its entry went with it");
    assert_eq!(got(&world.allocate("a", 5).unwrap()), had);
}

#[test]
fn an_entry_is_there_before_the_directory_and_goes_after_it() {
    let world = World::new();
    let made = world.allocate("a", 5).unwrap();
    let (places, id) = (world.places("a"), made.lease.id().clone());
    let listing = world.listing();
    let entry = &listing.holdings[0];
    assert_eq!((&entry.lease, entry.uid), (&id, made.uid));
    assert_eq!(Some(&entry.owner), owner(&places).as_ref());
    // Looks as if its maker had died after making the entry: there is no directory. First with the lock still
    // held, then free.
    let dir = places.lease(&id);
    std::fs::rename(&dir, places.leases().join("away")).unwrap();
    assert!(world.look("b").gone.is_empty(), "its maker has the lock");
    made.lease.release();
    assert_eq!(world.look("b").gone, std::slice::from_ref(&id));
    // While the directory exists, the entry is kept, whichever state directory checks.
    std::fs::rename(places.leases().join("away"), &dir).unwrap();
    for name in ["a", "b"] {
        let held = world.look(name);
        assert!(held.gone.is_empty() && held.tags.contains(&id.tag()), "{held:?}");
    }
    reclaim(&world.places("b"), &id).unwrap();
    assert_eq!(
        world.listing().holdings.len(),
        1,
        "it is not given up while it is held"
    );
    std::fs::remove_dir_all(&dir).unwrap();
    reclaim(&world.places("b"), &id).unwrap();
    assert!(world.listing().holdings.is_empty());
}

#[test]
fn of_anothers_lease_out_of_sight_a_process_is_enough_and_of_an_own_one_it_is_not() {
    let world = World::new();
    let made = world.allocate("a", 5).unwrap();
    let id = made.lease.id().clone();
    let mut vmm = process_named(&made.stored.record.vmid);
    std::fs::remove_dir_all(made.lease.dir().path()).unwrap();
    made.lease.release();
    let (from_a, from_b) = (world.look("a"), world.look("b"));
    vmm.kill().unwrap();
    vmm.wait().unwrap();
    assert_eq!(from_a.gone, std::slice::from_ref(&id));
    assert!(
        from_b.gone.is_empty() && from_b.uids.contains(&world.first_uid) && from_b.tags.contains(&id.tag()),
        "{from_b:?}"
    );
    assert_eq!(world.look("b").gone, [id]);
}

#[test]
fn leases_whose_entry_is_lost_are_seen_with_what_they_hold() {
    let world = World::new();
    let (here, there) = (world.places("a"), world.places("b"));
    let (own, others) = (id(), id());
    unregistered(&here, &own, world.first_uid, world.block(0));
    let dir = unregistered(&there, &others, world.first_uid + 1, world.block(1));
    netns::create(&dir.netns()).unwrap();
    let held = world.look("a");
    let made = world.allocate("a", 5);
    // Remove the namespace before any assertion can fail.
    netns::remove(&dir.netns()).unwrap();
    assert!(
        held.tags.contains(&others.tag()) && held.others.contains(&there.state),
        "{held:?}"
    );
    assert_eq!(got(&made.unwrap()), (world.first_uid + 2, world.block(2)));
    // Our own lease gets an entry from its journal, so that other state directories avoid its resources too.
    let listing = world.listing();
    let entered = listing
        .holdings
        .iter()
        .find(|holding| holding.lease == own)
        .unwrap();
    assert_eq!(
        (entered.uid, entered.block.as_deref()),
        (Some(world.first_uid), Some(world.block(0).to_string().as_str()))
    );
}

#[test]
fn a_lease_that_was_given_back_after_it_was_looked_at_gets_no_entry() {
    let world = World::new();
    let places = world.places("a");
    std::fs::create_dir_all(places.leases()).unwrap();
    let (lives, gone) = (id(), id());
    let journals = [&lives, &gone].map(|id| {
        let dir = unregistered(&places, id, world.first_uid, world.block(0));
        JournalFile::open(&dir.journal())
            .unwrap()
            .unwrap()
            .state()
            .clone()
    });
    // The journal has been read already; now the lease is torn down, including its entry.
    std::fs::remove_dir_all(places.lease(&gone)).unwrap();
    registry::forget(&places, &gone).unwrap();
    let registry = Registry::lock(&places).unwrap();
    settle(&places, &registry, journals.iter()).unwrap();
    let listed: Vec<LeaseId> = world
        .listing()
        .holdings
        .into_iter()
        .map(|one| one.lease)
        .collect();
    assert_eq!(listed, [lives]);
}

#[test]
fn a_damaged_entry_of_a_live_lease_gives_nothing_away_and_of_a_dead_one_is_removed() {
    let world = World::new();
    let made = world.allocate("a", 5).unwrap();
    let (id, dir) = (made.lease.id().clone(), made.lease.dir().clone());
    let entry = world.places("a").registry.join(format!("leases/{id}.json"));
    std::fs::write(&entry, "{\"lease\":").unwrap();
    netns::create(&dir.netns()).unwrap();
    let (held, next) = (world.look("b"), world.allocate("b", 5));
    netns::remove(&dir.netns()).unwrap();
    assert!(held.gone.is_empty() && held.tags.contains(&id.tag()), "{held:?}");
    let next = next.unwrap();
    assert!(next.uid != made.uid && next.subnet != made.subnet, "{next:?}");
    // Its own state directory restores the entry from the journal.
    drop(world.allocate("a", 5).unwrap());
    assert!(
        world
            .listing()
            .holdings
            .iter()
            .any(|holding| holding.lease == id && holding.uid == made.uid)
    );
    // A damaged entry is removed if nothing else of its lease is left.
    std::fs::write(&entry, "{\"lease\":").unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    made.lease.release();
    assert_eq!(world.look("b").gone, std::slice::from_ref(&id));
    drop(world.allocate("b", 5).unwrap());
    assert!(!entry.exists());
}

#[test]
fn whoever_makes_a_lease_has_its_lock_before_its_entry_and_the_registry_waits_for_nobody() {
    let world = World::new();
    let (places, id) = (world.places("a"), id());
    drop(world.allocate("a", 5).unwrap());
    // Keep the lock of a lease that has an entry and no directory.
    let held = locks::try_lease(&places, id.as_str()).unwrap().unwrap();
    let mut holding = world.listing().holdings[0].clone();
    (holding.lease, holding.uid) = (id.clone(), Some(world.first_uid + 1));
    Registry::lock(&places).unwrap().put(&holding).unwrap();
    let made = world.allocate("b", 5).unwrap();
    assert_eq!(made.uid, Some(world.first_uid + 2));
    drop(held);
    assert_eq!(world.allocate("b", 5).unwrap().uid, Some(world.first_uid + 1));
}

/// An event in the life of leases of two state directories.
#[derive(Debug, Clone)]
enum Event {
    /// A new lease in the first or the second.
    Allocate(bool),
    /// A lease is torn down.
    TakeBack(usize),
    /// A teardown dies after removing the directory and before removing the entry.
    Dies(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => any::<bool>().prop_map(Event::Allocate),
        1 => any::<usize>().prop_map(Event::TakeBack),
        1 => any::<usize>().prop_map(Event::Dies),
    ];
    proptest::collection::vec(event, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_no_two_leases_share_and_nothing_stays_taken(events in events()) {
        let world = World::new();
        let mut live: Vec<(&str, Allocated)> = Vec::new();
        for event in events {
            match event {
                Event::Allocate(first) => {
                    let name = if first { "a" } else { "b" };
                    let made = world.allocate(name, 10).unwrap();
                    prop_assert!(live.iter().all(|(_, one)| one.uid != made.uid && one.subnet != made.subnet));
                    live.push((name, made));
                }
                Event::TakeBack(which) if !live.is_empty() => {
                    let (name, made) = live.remove(which % live.len());
                    take_back(&world.places(name), made);
                }
                Event::Dies(which) if !live.is_empty() => {
                    let (_, made) = live.remove(which % live.len());
                    std::fs::remove_dir_all(made.lease.dir().path()).unwrap();
                    made.lease.release();
                }
                _ => {}
            }
        }
        // The lowest free uid is handed out, whatever died before.
        let free = (world.first_uid..world.first_uid + 10).find(|uid| live.iter().all(|(_, one)| one.uid != Some(*uid)));
        prop_assert_eq!(world.allocate("b", 10).unwrap().uid, free);
        prop_assert_eq!(world.listing().holdings.len(), live.len() + 1);
    }
}
