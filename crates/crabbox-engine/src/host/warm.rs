//! Templates on this host: which one a new lease can come of, and how one is made.
//!
//! A lease comes of a template only where all that the template depends on is the same; whatever is wrong with one costs the lease its
//! speed and nothing else. It must never publish a template of which two machines were not seen to come up, and to differ.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crabbox_core::config::firecracker::FirecrackerPlan;
use crabbox_core::fault::{Fault, Kind};
use crabbox_fc::version::{NoVersion, Version};
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::digest::{self, hex};
use crabbox_host::lock::FileLock;
use crabbox_host::signals::Interrupts;
use crabbox_host::{clock, random};
use crabbox_image::progress::Progress;
use crabbox_machine::context::{Engine, Places};
use crabbox_machine::failpoint::{self, Phase, Who};
use crabbox_machine::lifecycle::client;
use crabbox_machine::request::{AcquireRequest, GuestSource, Start};
use crabbox_machine::resource::identity::Identity;
use crabbox_machine::resource::network;
use crabbox_store::templates::{About, Found, Template, TemplateError, Templates};

pub use crabbox_store::templates::Swept;

use crate::host::images::{self, ImagesError};
use crate::host::prepare;
use crate::host::unowned::{self, UnownedError};

pub(crate) mod facts;

use facts::{Facts, facts, host};

/// The Firecracker after whose restores a guest cannot speak to its host (firecracker-microvm/firecracker#5969).
pub(crate) const DEAF: Version = Version::new(1, 16, 0);
/// How long `firecracker --version` may take.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// How far the clock of a machine may be off that has just come of a template.
const CLOCK_LIMIT: Duration = Duration::from_secs(1);

/// Why there is no template now.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The machine that was to be frozen, or one that was to come of it, was not made.
    #[error(transparent)]
    Unowned(#[from] UnownedError),
    /// The store of templates could not be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The images could not be listed.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// Somebody else makes one.
    #[error("another command is making a template")]
    Busy,
    /// It is switched off.
    #[error("firecracker.warm is off")]
    Off,
    /// What boots is not an image of ours.
    #[error("only an image of crabbox's own can be frozen before it is anybody's")]
    Foreign,
    /// The program does not say its version.
    #[error("cannot ask {} for its version", program.display())]
    Ask {
        /// The program.
        program: PathBuf,
        /// How it failed.
        #[source]
        source: CommandError,
    },
    /// What it says is no version.
    #[error(transparent)]
    NoVersion(#[from] NoVersion),
    /// Its restored machines do not work.
    #[error("a machine restored by Firecracker {found} cannot speak to its host")]
    Deaf {
        /// The version.
        found: Version,
    },
    /// A machine that came of it did not say who it is.
    #[error("a machine that came of the template did not say who it is")]
    Nobody,
    /// Two machines that came of it have something in common that they must not.
    #[error("two machines that came of the template have the same {what}; it was thrown away")]
    Alike {
        /// What.
        what: &'static str,
    },
    /// The clock of a machine that came of it is wrong.
    #[error("the clock of a machine that came of the template is {off_ms} ms off; it was thrown away")]
    Clock {
        /// By how much, in milliseconds.
        off_ms: i64,
    },
    /// The user interrupted.
    #[error("interrupted while a template was made")]
    Interrupted,
}

impl WarmError {
    /// The end of the console of the machine that failed.
    pub fn console(&self) -> &[String] {
        match self {
            Self::Unowned(error) => error.console(),
            _ => &[],
        }
    }
}

impl Fault for WarmError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unowned(error) => error.kind(),
            Self::Images(error) => error.kind(),
            Self::Interrupted => Kind::Passthrough(130),
            Self::Template(_) | Self::Alike { .. } | Self::Clock { .. } | Self::Nobody | Self::Busy => {
                Kind::Unavailable
            }
            _ => Kind::Usage,
        }
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Unowned(error) => return error.hints(),
            Self::Images(error) => return error.hints(),
            Self::Template(TemplateError::File(error)) if error.is_out_of_space() => {
                "a template needs the guest's whole memory as free space while it is made, in the state directory"
            }
            Self::Off => "set firecracker.warm to auto, or say --firecracker-warm auto",
            Self::Foreign => {
                "leave firecracker.kernel and firecracker.rootfs unset, and name an image of `crabbox image build` without --init systemd"
            }
            Self::Deaf { .. } => "use Firecracker 1.16.1 or a version before 1.16",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// How a lease's machine is going to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Its kernel boots; why, where a template was to be expected.
    Cold(Option<String>),
    /// It comes of the template with this key and this token.
    Restored {
        /// The key.
        key: String,
        /// The token.
        token: String,
    },
}

/// Has `request` restored where a template fits it and `warm` allows it.
pub(crate) fn choose(engine: &Engine, warm: bool, request: &mut AcquireRequest) -> Source {
    if !warm {
        return Source::Cold(None);
    }
    let templates = Templates::of(&engine.places);
    // Whoever never made one has no store, and pays nothing for it.
    if templates.keys().is_empty() || network::gives_tap(&request.network) {
        return Source::Cold(None);
    }
    let Ok(Some(facts)) = facts(&templates, request) else {
        return Source::Cold(None);
    };
    let key = match templates.key(&facts.text) {
        Ok(key) => key,
        Err(error) => return Source::Cold(Some(error.to_string())),
    };
    match templates.find(&key) {
        Found::Ready(template) => {
            let token = template.about.token;
            request.start = Start::Restore {
                dir: template.dir,
                token: token.clone(),
            };
            Source::Restored { key, token }
        }
        Found::Unusable(why) => Source::Cold(Some(why.to_string())),
        Found::Absent => Source::Cold(None),
    }
}

/// Notes that a machine came of the template with this key.
pub(crate) fn note_success(engine: &Engine, key: &str) {
    Templates::of(&engine.places).note_success(key);
}

/// Notes that a machine did not come of the template with this key and token, by the template's own fault.
pub(crate) fn note_failure(engine: &Engine, key: &str, token: &str) {
    // Where it cannot be noted the next lease tries it again, and boots after that.
    Templates::of(&engine.places).note_failure(key, token).ok();
}

/// Removes what makers of templates left that died.
pub(crate) fn remove_dead(engine: &Engine) {
    // What cannot be removed is tried again by the next that makes or sweeps, which says why not.
    Templates::of(&engine.places).remove_dead().ok();
}

/// A template that was made.
#[derive(Debug)]
pub struct Made {
    /// It.
    pub template: Template,
    /// The two machines that came of it before it was published.
    pub tried: [Identity; 2],
    /// How long all of it took.
    pub took: Duration,
    /// What of its three machines could not be taken back.
    pub leftovers: Vec<String>,
}

/// Makes a template for leases of `plan`, instead of one that is there.
pub fn make(
    engine: &Engine,
    plan: &FirecrackerPlan,
    interrupts: &Interrupts,
    progress: &dyn Progress,
) -> Result<Made, WarmError> {
    let started = Instant::now();
    if !plan.warm {
        return Err(WarmError::Off);
    }
    let request = unowned::request(engine, plan).map_err(UnownedError::from)?;
    if !matches!(request.guest, GuestSource::Ours { .. }) {
        return Err(WarmError::Foreign);
    }
    check_version(&request.programs.firecracker)?;
    let templates = Templates::of(&engine.places);
    let lock = templates.try_make()?.ok_or(WarmError::Busy)?;
    let facts = facts(&templates, &request)
        .map_err(TemplateError::from)?
        .ok_or(WarmError::Foreign)?;
    let dir = templates.workplace(&lock)?;
    let making = Making {
        engine,
        interrupts,
        progress,
        leftovers: RefCell::default(),
    };
    let made = making.template(&templates, &lock, request, &facts, &dir);
    if made.is_err() && dir.exists() {
        // What is left of it goes with the next one, or with `image gc`.
        std::fs::remove_dir_all(&dir).ok();
    }
    let (template, tried) = made?;
    Ok(Made {
        template,
        tried,
        took: started.elapsed(),
        leftovers: making.leftovers.take(),
    })
}

/// Whether leases of `plan` could come of a template on this host and there is none that may be used.
pub(crate) fn is_missing(engine: &Engine, plan: &FirecrackerPlan) -> bool {
    let Ok(GuestSource::Ours { digest: image, .. }) = prepare::guest(engine, plan) else {
        return false;
    };
    let Ok(programs) = prepare::programs(engine, plan) else {
        return false;
    };
    if check_version(&programs.firecracker).is_err() {
        return false;
    }
    let templates = Templates::of(&engine.places);
    let Ok(program) = digest::sha256_file(&programs.firecracker) else {
        return false;
    };
    let facts = facts::of(&image, prepare::machine(plan), &program);
    match templates.known_key(&facts.text) {
        Ok(Some(key)) => !matches!(templates.look(&key), Found::Ready(_)),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Removes templates that are of no use any more; `None` where one is being made. Images with the digests `going` count as gone.
pub fn sweep(places: &Places, going: &[&str], dry_run: bool) -> Result<Option<Vec<Swept>>, WarmError> {
    let (listed, _) = images::list(places)?;
    let images: Vec<String> = listed
        .into_iter()
        .map(|listed| listed.image.manifest.digest)
        .filter(|digest| !going.contains(&digest.as_str()))
        .collect();
    Ok(Templates::of(places).sweep(&images, &host(), dry_run)?)
}

fn check_version(program: &Path) -> Result<(), WarmError> {
    let said = Cmd::new(program)
        .arg("--version")
        .limit(VERSION_LIMIT)
        .run()
        .map_err(|source| WarmError::Ask {
            program: program.to_owned(),
            source,
        })?;
    let found: Version = said.stdout_text().parse()?;
    if found == DEAF {
        return Err(WarmError::Deaf { found });
    }
    Ok(())
}

/// A template in the making.
struct Making<'a> {
    engine: &'a Engine,
    interrupts: &'a Interrupts,
    progress: &'a dyn Progress,
    /// What could not be taken back of the machines so far.
    leftovers: RefCell<Vec<String>>,
}

impl Making<'_> {
    fn template(
        &self,
        templates: &Templates,
        lock: &FileLock,
        mut request: AcquireRequest,
        facts: &Facts,
        dir: &Path,
    ) -> Result<(Template, [Identity; 2]), WarmError> {
        let key = templates.key(&facts.text)?;
        let token = hex(&random::bytes::<16>().map_err(UnownedError::Random)?);
        self.progress.stage("freeze a machine");
        request.start = Start::Freeze {
            dir: dir.to_owned(),
            token: token.clone(),
        };
        let frozen = client::start(self.engine, &request)
            .and_then(|making| making.wait_frozen(self.interrupts, &mut |_| ()));
        let left = frozen.map_err(|source| UnownedError::Machine {
            what: "the machine that was to be frozen failed".to_owned(),
            source,
        })?;
        self.leftovers.borrow_mut().extend(left);
        self.progress.stage("seal the template");
        let hit = |step, phase| failpoint::hit(&self.engine.failpoint, Who::Cli, step, phase);
        hit("seal", Phase::Begun);
        let (made_at, _) = clock::unix_now();
        let about = About {
            token: token.clone(),
            image: facts.image.clone(),
            host: facts.host.clone(),
            made_at,
        };
        // Seconds of reading, in which Ctrl-C is heard as at any other time.
        let stop = || self.interrupts.caught().is_some();
        let sealed = templates
            .seal(dir, &key, about, &stop)
            .map_err(|error| match error {
                TemplateError::Stopped => WarmError::Interrupted,
                error => error.into(),
            })?;
        let tried = [
            self.clone_of(&request, dir, &token, "try a clone")?,
            self.clone_of(&request, dir, &token, "try another clone")?,
        ];
        differ(&tried)?;
        if self.interrupts.caught().is_some() {
            return Err(WarmError::Interrupted);
        }
        // All of it is on the disk by now, under a name that is nobody's.
        hit("publish", Phase::Begun);
        let published = templates.publish(sealed, lock)?;
        hit("publish", Phase::Done);
        Ok((published, tried))
    }

    /// Has a machine come up of the parts in `dir`, of all that `frozen` asked for; asks who it is, and gives it back.
    fn clone_of(
        &self,
        frozen: &AcquireRequest,
        dir: &Path,
        token: &str,
        stage: &str,
    ) -> Result<Identity, WarmError> {
        self.progress.stage(stage);
        let mut request = frozen.clone();
        request.lease_id = unowned::lease_id()?;
        request.start = Start::Restore {
            dir: dir.to_owned(),
            token: token.to_owned(),
        };
        let failed = |source| UnownedError::Machine {
            what: "a machine that was to come of the template failed".to_owned(),
            source,
        };
        let mut making = client::start(self.engine, &request).map_err(failed)?;
        let ready = making
            .wait_ready(Some(self.interrupts), &mut |_| ())
            .map_err(failed)?;
        let left = making.abandon().map(|failure| failure.leftovers);
        self.leftovers.borrow_mut().extend(left.unwrap_or_default());
        ready.identity.ok_or(WarmError::Nobody)
    }
}

/// Whether two machines of one template are two machines.
fn differ([one, other]: &[Identity; 2]) -> Result<(), WarmError> {
    for (what, same) in [
        ("random numbers", one.random == other.random),
        ("boot id", one.boot_id == other.boot_id),
        ("machine id", one.machine_id == other.machine_id),
    ] {
        if same {
            return Err(WarmError::Alike { what });
        }
    }
    for Identity { clock_ms, .. } in [one, other] {
        if u128::from(clock_ms.unsigned_abs()) > CLOCK_LIMIT.as_millis() {
            return Err(WarmError::Clock { off_ms: *clock_ms });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes something of the first the same as of the second.
    type Share = fn(&mut Identity, Identity);

    fn identity(of: &str, clock_ms: i64) -> Identity {
        Identity {
            boot_id: format!("boot {of}"),
            machine_id: format!("machine {of}"),
            random: format!("random {of}"),
            clock_ms,
        }
    }

    #[test]
    fn clones_that_share_anything_or_live_at_another_time_are_not_two_machines() {
        differ(&[identity("a", -3), identity("b", 900)]).unwrap();
        let shared: [(&str, Share); 3] = [
            ("random numbers", |one, other| one.random = other.random),
            ("boot id", |one, other| one.boot_id = other.boot_id),
            ("machine id", |one, other| one.machine_id = other.machine_id),
        ];
        for (what, share) in shared {
            let other = identity("b", 0);
            let mut one = identity("a", 0);
            share(&mut one, other.clone());
            let error = differ(&[one, other]).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        let error = differ(&[identity("a", 0), identity("b", -1001)]).unwrap_err();
        assert!(error.to_string().contains("-1001 ms off"), "{error}");
    }
}
