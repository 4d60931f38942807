//! Slurm: runs `sbatch`, `squeue`, `scancel` and `sinfo` from the `PATH`, each with a time limit.
//!
//! Their output is parsed, but never assumed to be complete. User input reaches them only as a number or as a
//! validated name.

use std::time::Duration;

use crabbox_core::id::LeaseId;
use crabbox_host::command::{Cmd, CommandError};
use crabbox_host::environment::Environment;

use super::{JOB, JobRequest, JobState, Node, Placement, PlacementError};

/// The time limit of a Slurm program. One that finds no slurmctld gives up by itself after about ten seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// The maximum output of a program, in bytes: a queue of 100,000 jobs.
const SAID: usize = 4 * 1024 * 1024;

/// How much of an answer is quoted in an error, in characters.
const SHOWN: usize = 300;

/// A cluster.
#[derive(Debug)]
pub struct Slurm {
    /// The partition of the KVM hosts.
    pub partition: String,
    /// The prefix of an owner's account name; `None` in a cluster without a database.
    pub account_prefix: Option<String>,
}

impl Slurm {
    fn submission(&self, request: &JobRequest<'_>) -> Cmd {
        let id = request.lease.as_str();
        // The script is one shell command. All arguments are quoted except for the job's number, which the
        // job's shell expands.
        let words: Vec<String> = request
            .command
            .iter()
            .map(|word| match word.as_str() {
                JOB => "\"$SLURM_JOB_ID\"".to_owned(),
                word => crabbox_ssh::quote::join([word]),
            })
            .collect();
        let mut cmd = slurm("sbatch")
            .arg("--parsable")
            .args(["--job-name", id])
            .arg(format!("--comment={id}"))
            .args(["--partition", &self.partition])
            .args(["--no-requeue", "--nodes=1", "--ntasks=1"])
            .arg(format!("--mem={}", request.memory_mib))
            .arg(format!("--cpus-per-task={}", request.cpus))
            .arg(format!("--gres=lease:1,disk:{}", request.disk_gib))
            .arg(format!("--time={}", request.minutes))
            // Exports our whole environment, which is nearly empty: with a list, the host would load the
            // user's login environment. Variables of this session or host, such as file locations, must not
            // reach another host.
            .arg("--export=ALL")
            .environment(Environment::Bare)
            .args(["--chdir=/", "--input=/dev/null", "--output=/dev/null"]);
        if let Some(prefix) = &self.account_prefix {
            cmd = cmd.arg(format!("--account={prefix}{}", request.owner));
        }
        if !request.exclude.is_empty() {
            cmd = cmd.arg(format!("--exclude={}", request.exclude.join(",")));
        }
        cmd.arg(format!("--wrap=exec {}", words.join(" ")))
    }
}

/// A Slurm program; it finds its configuration at its build's default place.
fn slurm(program: &'static str) -> Cmd {
    Cmd::new(program).limit(LIMIT).output_limit(SAID)
}

fn said(program: &'static str, cmd: &Cmd) -> Result<String, PlacementError> {
    match cmd.run() {
        Ok(captured) => Ok(captured.stdout_text()),
        Err(error) => Err(judged(program, error)),
    }
}

/// Classifies a failure of a program by the texts of Slurm's errors (`slurm_errno.c`).
fn judged(program: &'static str, error: CommandError) -> PlacementError {
    let CommandError::Failed { stderr, .. } = &error else {
        return PlacementError::UnreachableHost(error);
    };
    let why = || last_line(stderr);
    let says = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    if says(&[
        "Requested node configuration is not available",
        "Requested nodes are busy",
        "Memory specification can not be satisfied",
        "More processors requested than permitted",
        "Invalid generic resource",
        "Requested time limit is invalid",
    ]) {
        PlacementError::Never { why: why() }
    } else if program == "sbatch" && says(&["Batch job submission failed"]) && !is_away(stderr) {
        PlacementError::Refused { why: why() }
    } else {
        PlacementError::UnreachableHost(error)
    }
}

fn is_away(stderr: &str) -> bool {
    [
        "Unable to contact slurm controller",
        "Socket timed out",
        "Connection refused",
        "Zero Bytes",
        "Slurm backup controller in standby",
    ]
    .iter()
    .any(|word| stderr.contains(word))
}

/// The last line of a program's output, without the program's own name.
fn last_line(stderr: &str) -> String {
    let line = stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let line = line.split_once("error: ").map_or(line, |(_, rest)| rest);
    line.chars().take(SHOWN).collect()
}

fn nonsense(program: &'static str, said: &str) -> PlacementError {
    PlacementError::Nonsense {
        program,
        said: said.chars().take(SHOWN).collect(),
    }
}

impl Placement for Slurm {
    fn submit(&self, request: &JobRequest<'_>) -> Result<u32, PlacementError> {
        let output = said("sbatch", &self.submission(request))?;
        // `number` or `number;cluster`.
        let number = output.lines().next_back().unwrap_or_default();
        let number = number.split(';').next().unwrap_or_default().trim();
        number.parse().map_err(|_| nonsense("sbatch", &output))
    }

    fn state(&self, job: u32, lease: &LeaseId) -> Result<JobState, PlacementError> {
        let asked = slurm("squeue")
            .args(["--noheader", "--states=all", "--format=%T|%N|%r"])
            .arg(format!("--name={lease}"))
            .arg(format!("--jobs={job}"));
        let output = match asked.run() {
            Ok(captured) => captured.stdout_text(),
            // Ended jobs are forgotten after a while (`MinJobAge`).
            Err(CommandError::Failed { stderr, .. }) if stderr.contains("Invalid job id") => {
                return Ok(JobState::Unknown);
            }
            Err(error) => return Err(judged("squeue", error)),
        };
        read_state(&output)
    }

    fn rank(&self, job: u32) -> Result<Option<usize>, PlacementError> {
        let waiting = slurm("squeue")
            .args(["--noheader", "--states=PENDING", "--sort=-p,i", "--format=%i"])
            .args(["--partition", &self.partition]);
        let output = said("squeue", &waiting)?;
        let number = job.to_string();
        Ok(output
            .lines()
            .position(|line| line.trim() == number)
            .map(|before| before + 1))
    }

    fn cancel(&self, job: u32, lease: &LeaseId) -> Result<(), PlacementError> {
        let cancelled = slurm("scancel")
            .arg("--quiet")
            .arg(format!("--name={lease}"))
            .arg(job.to_string())
            .run();
        match cancelled {
            Ok(_) => Ok(()),
            Err(CommandError::Failed { stderr, .. }) if stderr.contains("Invalid job id") => Ok(()),
            Err(error) => Err(judged("scancel", error)),
        }
    }

    fn nodes(&self) -> Result<Vec<Node>, PlacementError> {
        let asked = slurm("sinfo")
            .args(["--noheader", "--Node", "--partition", &self.partition])
            .arg("--Format=NodeList:128,StateLong:32,Memory:24,AllocMem:24,CPUsState:48");
        read_nodes(&said("sinfo", &asked)?)
    }
}

/// Parses `RUNNING|h1|None`.
fn read_state(output: &str) -> Result<JobState, PlacementError> {
    let Some(line) = output.lines().next() else {
        return Ok(JobState::Unknown);
    };
    let mut fields = line.trim().splitn(3, '|');
    let (Some(state), Some(nodes), Some(reason)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(nonsense("squeue", output));
    };
    Ok(match state {
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "SUSPENDED" => JobState::Pending {
            reason: reason.to_owned(),
        },
        "RUNNING" => JobState::Running {
            node: nodes.to_owned(),
        },
        // The host is still being woken up or prepared.
        "CONFIGURING" => JobState::Pending {
            reason: "None".to_owned(),
        },
        "" => return Err(nonsense("squeue", output)),
        how => JobState::Over { how: how.to_owned() },
    })
}

/// Parses the columns of `sinfo`; its processor counts are allocated/idle/other/all.
fn read_nodes(output: &str) -> Result<Vec<Node>, PlacementError> {
    output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let mut fields = line.split_whitespace();
            let mut next = || fields.next().ok_or_else(|| nonsense("sinfo", line));
            let (name, state) = (next()?.to_owned(), next()?);
            let number = |text: &str| text.parse::<u64>().map_err(|_| nonsense("sinfo", line));
            let (memory, allocated) = (number(next()?)?, number(next()?)?);
            let idle = next()?.split('/').nth(1).unwrap_or_default().to_owned();
            Ok(Node {
                name,
                // Keep marks such as `*` (not responding), which make the host count as not up.
                state: state.to_owned(),
                free_memory_mib: memory.saturating_sub(allocated),
                free_cpus: number(&idle)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_core::fault::{Fault as _, Kind};

    fn slurm() -> Slurm {
        Slurm {
            partition: "lease".to_owned(),
            account_prefix: Some("dev_".to_owned()),
        }
    }

    #[test]
    fn a_submission_names_sizes_and_limits_and_quotes_what_its_shell_reads() {
        let lease = LeaseId::parse("cbx_0123456789ab").unwrap();
        let command = ["/opt/it's here/crabbox", "__hold", JOB, "--owner", "alice"].map(str::to_owned);
        let request = JobRequest {
            lease: &lease,
            owner: "alice",
            memory_mib: 640,
            cpus: 2,
            disk_gib: 3,
            minutes: 65,
            exclude: &["h1".to_owned(), "h2".to_owned()],
            command: &command,
        };
        let words: Vec<String> = slurm()
            .submission(&request)
            .argv()
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        assert_eq!(words[0], "sbatch");
        for word in [
            "--parsable",
            "--comment=cbx_0123456789ab",
            "--no-requeue",
            "--mem=640",
            "--cpus-per-task=2",
            "--gres=lease:1,disk:3",
            "--time=65",
            "--account=dev_alice",
            "--exclude=h1,h2",
            "--export=ALL",
        ] {
            assert!(words.iter().any(|found| found == word), "{word}: {words:?}");
        }
        // Cargo sets a variable for the dynamic linker in tests, which belongs to this machine only.
        let submitted = slurm().submission(&request).to_std();
        let withheld: Vec<_> = submitted
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .collect();
        assert!(
            withheld.iter().any(|(name, _)| *name == "LD_LIBRARY_PATH"),
            "{withheld:?}"
        );
        let script = words.last().unwrap().strip_prefix("--wrap=exec ").unwrap();
        let read = Cmd::new("sh")
            .args(["-c", &format!("SLURM_JOB_ID=7; printf '%s\\n' {script}")])
            .run()
            .unwrap();
        let heard: Vec<_> = read.stdout_text().lines().map(str::to_owned).collect();
        assert_eq!(
            heard,
            ["/opt/it's here/crabbox", "__hold", "7", "--owner", "alice"]
        );
        // Without a database there are no accounts.
        let plain = Slurm {
            account_prefix: None,
            ..slurm()
        };
        let said = format!(
            "{:?}",
            plain
                .submission(&JobRequest {
                    exclude: &[],
                    ..request
                })
                .argv()
        );
        assert!(
            !said.contains("--account") && !said.contains("--exclude"),
            "{said}"
        );
    }

    #[test]
    fn the_state_of_a_job_is_read_and_an_unknown_end_is_one() {
        let pending = |reason: &str| JobState::Pending {
            reason: reason.to_owned(),
        };
        let over = |how: &str| JobState::Over { how: how.to_owned() };
        for (said, expected) in [
            ("PENDING||Resources\n", pending("Resources")),
            (
                "PENDING||ReqNodeNotAvail, UnavailableNodes:h1|h2",
                pending("ReqNodeNotAvail, UnavailableNodes:h1|h2"),
            ),
            ("CONFIGURING|h1|None", pending("None")),
            (
                "RUNNING|h1|None",
                JobState::Running {
                    node: "h1".to_owned(),
                },
            ),
            ("COMPLETING|h1|None", over("COMPLETING")),
            ("NODE_FAIL|h1|None", over("NODE_FAIL")),
            ("SOMETHING_NEW||x", over("SOMETHING_NEW")),
            ("", JobState::Unknown),
        ] {
            assert_eq!(read_state(said).unwrap(), expected, "{said:?}");
        }
        for said in ["RUNNING", "|h1|None", "RUNNING|h1"] {
            assert!(
                matches!(read_state(said), Err(PlacementError::Nonsense { .. })),
                "{said:?}"
            );
        }
    }

    #[test]
    fn hosts_are_read_with_what_nobody_has_of_them() {
        let said = "h1      mixed    600   256   1/7/0/8  \nh2  down*  600 0 0/0/8/8\n\n";
        let nodes = read_nodes(said).unwrap();
        assert_eq!(nodes.len(), 2);
        assert_eq!(
            (nodes[0].free_memory_mib, nodes[0].free_cpus, nodes[0].is_up()),
            (344, 7, true)
        );
        assert!(!nodes[1].is_up());
        for said in ["h1", "h1 idle x 0 0/0/0/0", "h1 idle 1 0 0"] {
            assert!(read_nodes(said).is_err(), "{said:?}");
        }
    }

    #[test]
    fn a_scheduler_that_is_away_is_told_from_one_that_refuses() {
        let failed = |program: &'static str, stderr: &str| {
            let status = Cmd::new("false").capture().unwrap().status;
            let args = Vec::new();
            judged(
                program,
                CommandError::Failed {
                    program: program.to_owned(),
                    args,
                    status,
                    stderr: stderr.to_owned(),
                },
            )
        };
        let away = failed(
            "sbatch",
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        );
        assert!(matches!(away, PlacementError::UnreachableHost(_)), "{away:?}");
        let never = failed(
            "sbatch",
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        );
        assert!(
            matches!(&never, PlacementError::Never { why } if why.starts_with("Batch job")),
            "{never:?}"
        );
        let long = failed(
            "sbatch",
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
        );
        assert!(matches!(long, PlacementError::Never { .. }), "{long:?}");
        let refused = failed(
            "sbatch",
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
        );
        assert!(matches!(refused, PlacementError::Refused { .. }), "{refused:?}");
        let late = judged(
            "squeue",
            CommandError::NotFound {
                program: "squeue".to_owned(),
            },
        );
        assert!(matches!(late, PlacementError::UnreachableHost(_)) && late.kind() == Kind::Unavailable);
    }
}
