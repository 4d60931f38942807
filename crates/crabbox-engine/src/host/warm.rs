//! Templates on this host: which template a new lease can be restored from, and how one is made.
//!
//! A lease is restored only if everything that the template depends on is unchanged. A problem with a
//! template costs a lease nothing but its speed. It must never publish a template before two test machines
//! have come up from it and were found to differ.

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
use crabbox_store::templates::{About, Template, TemplateError, TemplateState, Templates};

pub use crabbox_store::templates::Swept;

use crate::host::images::{self, ImagesError};
use crate::host::prepare;
use crate::host::unowned::{self, UnownedError};

pub(crate) mod facts;

use facts::{Facts, facts, host};

/// The version of Firecracker whose restored guests cannot communicate with the host
/// (firecracker-microvm/firecracker#5969).
pub(crate) const DEAF: Version = Version::new(1, 16, 0);
/// The time limit for `firecracker --version`.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// How wrong the clock of a freshly restored machine may be.
const CLOCK_LIMIT: Duration = Duration::from_secs(1);

/// Why no template was made.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The machine to freeze, or a test machine, could not be made.
    #[error(transparent)]
    Unowned(#[from] UnownedError),
    /// The store of templates could not be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The images could not be listed.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// Another command is making one.
    #[error("another command is making a template")]
    Busy,
    /// Warm leases are switched off.
    #[error("firecracker.warm is off")]
    Off,
    /// The configured image is not one of ours.
    #[error("only crabbox's own images can have a template")]
    Foreign,
    /// The program's version cannot be determined.
    #[error("cannot determine the version of {}", program.display())]
    Ask {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: CommandError,
    },
    /// The program's output has no version.
    #[error(transparent)]
    NoVersion(#[from] NoVersion),
    /// Machines restored by this version do not work.
    #[error("a machine restored by Firecracker {found} cannot communicate with its host")]
    Deaf {
        /// The version.
        found: Version,
    },
    /// A test machine did not report its identity.
    #[error("a machine restored from the template did not report its identity")]
    Nobody,
    /// Two test machines share something that must be unique.
    #[error("two machines restored from the template have the same {what}; the template was discarded")]
    Alike {
        /// What they share.
        what: &'static str,
    },
    /// The clock of a test machine is wrong.
    #[error(
        "the clock of a machine restored from the template is off by {off_ms} ms; the template was discarded"
    )]
    Clock {
        /// The error in milliseconds.
        off_ms: i64,
    },
    /// The user interrupted.
    #[error("interrupted while making a template")]
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
            Self::Off => "set firecracker.warm to auto, or add --firecracker-warm auto",
            Self::Foreign => {
                "leave firecracker.kernel and firecracker.rootfs unset, and name an image of `crabbox image build` without --init systemd"
            }
            Self::Deaf { .. } => "use Firecracker 1.16.1 or a version before 1.16",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// How a lease's machine will start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// It boots. The text says why, if a template should have been used.
    Cold(Option<String>),
    /// It is restored from the template with this key and token.
    Restored {
        /// The key.
        key: String,
        /// The token.
        token: String,
    },
}

/// Makes `request` a restore if a template fits it and `warm` allows that.
pub(crate) fn choose(engine: &Engine, warm: bool, request: &mut AcquireRequest) -> Source {
    if !warm {
        return Source::Cold(None);
    }
    let templates = Templates::of(&engine.places);
    // A user who never made a template has no store and pays nothing for this.
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
        TemplateState::Ready(template) => {
            let token = template.about.token;
            request.start = Start::Restore {
                dir: template.dir,
                token: token.clone(),
            };
            Source::Restored { key, token }
        }
        TemplateState::Unusable(why) => Source::Cold(Some(why.to_string())),
        TemplateState::Absent => Source::Cold(None),
    }
}

/// Records a successful restore from the template with this key.
pub(crate) fn note_success(engine: &Engine, key: &str) {
    Templates::of(&engine.places).note_success(key);
}

/// Records a failed restore from the template with this key and token, if the template was at fault.
pub(crate) fn note_failure(engine: &Engine, key: &str, token: &str) {
    // If this cannot be recorded, the next lease merely tries the template again, and boots after that fails.
    Templates::of(&engine.places).note_failure(key, token).ok();
}

/// Removes leftovers of killed template makers.
pub(crate) fn remove_dead(engine: &Engine) {
    // Ignore failures: the next command that makes or sweeps templates tries again and reports the error.
    Templates::of(&engine.places).remove_dead().ok();
}

/// A template that was made.
#[derive(Debug)]
pub struct Made {
    /// The template.
    pub template: Template,
    /// The two test machines that were restored from it before it was published.
    pub tried: [Identity; 2],
    /// How long everything took.
    pub took: Duration,
    /// Leftovers of its three machines that could not be removed.
    pub leftovers: Vec<String>,
}

/// Makes a template for leases of `plan`, replacing any existing one.
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
        // Ignore failures: the next template, or `image gc`, removes what is left.
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

/// Whether leases of `plan` could be restored on this host, but there is no usable template.
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
        Ok(Some(key)) => !matches!(templates.look(&key), TemplateState::Ready(_)),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Removes useless templates; `None` if one is being made. Images with the digests `going` are treated as
/// gone.
pub fn sweep(places: &Places, going: &[&str], dry_run: bool) -> Result<Option<Vec<Swept>>, WarmError> {
    let images: Vec<String> = images::digests(places)?
        .into_iter()
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

/// A template being made.
struct Making<'a> {
    engine: &'a Engine,
    interrupts: &'a Interrupts,
    progress: &'a dyn Progress,
    /// Leftovers of the machines so far that could not be removed.
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
            what: "the machine of the template failed".to_owned(),
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
        // Reading everything takes seconds, so keep listening to Ctrl-C.
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
        // Everything is on the disk by now, under a name that is not in use.
        hit("publish", Phase::Begun);
        let published = templates.publish(sealed, lock)?;
        hit("publish", Phase::Done);
        Ok((published, tried))
    }

    /// Restores a test machine from the parts in `dir` with everything that `frozen` asks for, asks for its
    /// identity, and ends it.
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
            what: "a machine of the template failed".to_owned(),
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

/// Checks that two machines of one template differ in everything that must be unique.
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

    /// Copies one property of the second machine to the first.
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
        assert!(error.to_string().contains("off by -1001 ms"), "{error}");
    }
}
