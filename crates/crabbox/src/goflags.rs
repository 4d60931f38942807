//! Go's `flag` rules in front of clap.
//!
//! `-x` and `--x` are the same, the last of a repeated flag wins, a switch that is off (`=false`) and a text
//! flag with an empty value count as not given, and flags stop at the first positional argument or `--`. This
//! module rewrites an argument vector so that clap cannot read it differently: every flag as `--name=value`,
//! then `--`, then the positionals. It must never let an unknown flag pass as part of a command.

use std::any::TypeId;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use crabbox_core::config::key::KEYS;
use crabbox_core::fault::{Fault, Kind};

use crate::will_not;

/// Commands (by path) that take flags after positionals too: those for which the Go program does,
/// `providers describe` and `providers recommend`, whose usage there puts flags last, `ports`, whose usage
/// here does, and this program's own `config explain`. So do all of its own commands that take any number of
/// words ([`takes_any_words`]).
const INTERSPERSED: &[&[&str]] = &[
    &["ssh"],
    &["connect"],
    &["tunnel"],
    &["checkpoint"],
    &["providers", "sizes"],
    &["providers", "describe"],
    &["providers", "recommend"],
    &["ports"],
    &["config", "explain"],
];

/// Commands of the Go program, with those below them.
const OF_GO: &[&str] = &[
    "bench",
    "cache",
    "claims",
    "cleanup",
    "config",
    "connect",
    "cp",
    "doctor",
    "heartbeat",
    "init",
    "inspect",
    "job",
    "list",
    "machine",
    "ports",
    "prewarm",
    "providers",
    "release",
    "run",
    "ssh",
    "status",
    "stop",
    "sync-plan",
    "tunnel",
    "verify",
    "warmup",
    "watch",
];

/// Text flags of this program's own in those commands: `cache volumes --remove`.
const OWN_FLAGS: &[&str] = &["remove"];

/// Why an argument vector is not run as a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Help was asked for, on the command of this path (empty: on the program).
    Help(Vec<String>),
    /// It breaks the rules.
    Usage(UsageError),
    /// It asks for something that this program does not have.
    Refused(Refused),
}

/// A refused flag that was given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) flag: &'static str,
    /// The provider that the same command line names.
    pub(crate) provider: Option<String>,
    /// The existing lease that it names.
    pub(crate) lease: Option<String>,
}

impl Refused {
    /// Why the flag is refused for `provider`, in the Go program's words where it refuses it too.
    pub(crate) fn by(&self, provider: &str) -> UsageError {
        let message = match self.flag {
            "lease-id" => format!("provider={provider} does not support fixed idempotent lease IDs"),
            "lease-output" => format!("--lease-output is not supported for provider={provider} yet"),
            "pool" => "--pool requires a coordinator-backed SSH lease provider".to_owned(),
            "from-run" => "doctor --from-run requires a configured coordinator".to_owned(),
            // No provider here knows what is in its images.
            name if name.starts_with("image-") => {
                let why = if self.lease.is_some() {
                    "apply only when creating a new lease"
                } else {
                    "require a coordinator-managed AWS lease"
                };
                format!("image capability requirements {why}")
            }
            name if name.starts_with("tailscale") => {
                format!("provider={provider} does not support tailscale-managed networking")
            }
            name => match will_not::flag(name) {
                Some(why) => format!("--{name} is not in this program: {why}"),
                None => format!("--{name} is not supported by this program yet"),
            },
        };
        UsageError::plain(Problem::Other { message })
    }
}

/// What is wrong with an argument vector, in Go's words where Go has an equivalent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}{usage}")]
pub(crate) struct UsageError {
    problem: Problem,
    usage: String,
}

/// The rule that was broken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// No argument at all.
    #[error("missing command")]
    MissingCommand,
    /// A group without a subcommand.
    #[error("missing command: {group} needs one of {choices}")]
    MissingSubcommand {
        /// The group.
        group: String,
        /// Its subcommands.
        choices: String,
    },
    /// No command of that name.
    #[error("unknown command {word:?}{}", .suggestion.as_ref().map_or_else(String::new, |known| format!(", did you mean {known:?}?")))]
    UnknownCommand {
        /// What was typed.
        word: String,
        /// The nearest name.
        suggestion: Option<String>,
    },
    /// A command of the Go program that is ruled out here.
    #[error("{word} is not in this program: {why}")]
    RefusedCommand {
        /// What was typed.
        word: String,
        /// Why not.
        why: &'static str,
    },
    /// A command of the Go program that may be added.
    #[error("{word} is not in this program yet")]
    NotYet {
        /// What was typed.
        word: String,
    },
    /// `---x`, `-=x` and the like.
    #[error("bad flag syntax: {flag}")]
    Syntax {
        /// What was typed.
        flag: String,
    },
    /// A flag that the command does not have.
    #[error("flag provided but not defined: -{name}")]
    Undefined {
        /// Its name.
        name: String,
        /// The nearest one that the command has.
        near: Option<String>,
    },
    /// A flag at the end that needs a value.
    #[error("flag needs an argument: -{name}")]
    NeedsValue {
        /// Its name.
        name: String,
    },
    /// A boolean flag with something else.
    #[error("invalid boolean value {value:?} for -{name}: parse error")]
    NotBoolean {
        /// Its name.
        name: String,
        /// The value.
        value: String,
    },
    /// A value that the flag does not take.
    #[error("invalid value {value:?} for flag -{name}: {reason}")]
    BadValue {
        /// Its name.
        name: String,
        /// The value.
        value: String,
        /// Why.
        reason: String,
    },
    /// More positionals than the command takes.
    #[error("unexpected argument {word:?}{}", after_positional(.word))]
    Unexpected {
        /// The first one too many.
        word: String,
    },
    /// Any other error of clap.
    #[error("{message}")]
    Other {
        /// Its message.
        message: String,
    },
}

fn after_positional(word: &str) -> &'static str {
    if word.starts_with('-') {
        ": flags go before the first argument"
    } else {
        ""
    }
}

impl Fault for UsageError {
    fn kind(&self) -> Kind {
        Kind::Usage
    }

    fn hints(&self) -> Vec<String> {
        match &self.problem {
            Problem::Undefined { near: Some(near), .. } => vec![format!("did you mean --{near}?")],
            _ => Vec::new(),
        }
    }
}

impl UsageError {
    /// The problem, followed by the usage line of the command it concerns.
    pub(crate) fn new(problem: Problem, command: &Command) -> Self {
        let usage = command.clone().render_usage().to_string();
        Self {
            problem,
            usage: format!("\n{}", usage.replacen("Usage:", "usage:", 1)),
        }
    }

    /// The problem without the usage line, where that would not help.
    pub(crate) const fn plain(problem: Problem) -> Self {
        Self {
            problem,
            usage: String::new(),
        }
    }
}

/// Rewrites `argv`, whose first element is the program, for `root`, whose commands must be built.
pub(crate) fn normalise(argv: &[OsString], root: &Command) -> Result<Vec<OsString>, Stop> {
    let mut out: Vec<OsString> = argv.first().cloned().into_iter().collect();
    let mut rest = argv.get(1..).unwrap_or_default();
    let mut command = root;
    let mut path: Vec<String> = Vec::new();
    while command.has_subcommands() {
        let Some(word) = rest.first() else { break };
        let Some(next) = word.to_str().and_then(|word| command.find_subcommand(word)) else {
            break;
        };
        path.push(next.get_name().to_owned());
        out.push(word.clone());
        (command, rest) = (next, &rest[1..]);
    }
    if let Some(refused) = refused_command(command, &path, rest.first()) {
        return Err(Stop::Usage(refused));
    }
    let needs_subcommand = command.has_subcommands()
        && (command.is_subcommand_required_set() || command.is_arg_required_else_help_set());
    if needs_subcommand {
        return Err(group_stop(command, path, rest.first()));
    }
    let is_of_go = path.first().is_some_and(|name| OF_GO.contains(&name.as_str()));
    let flags = Flags {
        command,
        interspersed: is_interspersed(&path) || (!is_of_go && takes_any_words(command)),
        is_of_go,
    };
    match flags.split(rest) {
        Ok((given, positionals)) => {
            out.extend(given);
            // Nothing after `--` can be taken for a flag or a subcommand.
            out.push("--".into());
            out.extend(positionals);
            Ok(out)
        }
        Err(None) => Err(Stop::Help(path)),
        Err(Some(problem)) => Err(Stop::Usage(UsageError::new(problem, command))),
    }
}

/// The error for an unknown subcommand.
pub(crate) fn unknown_command(command: &Command, word: &str) -> UsageError {
    if command.get_name() == "crabbox"
        && let Some(why) = will_not::command(word)
    {
        let word = word.to_owned();
        return UsageError::plain(Problem::RefusedCommand { word, why });
    }
    if command.get_name() == "crabbox" && will_not::is_to_come(word) {
        let word = word.to_owned();
        return UsageError::plain(Problem::NotYet { word });
    }
    let suggestion = nearest(word, command.get_subcommands().map(Command::get_name));
    UsageError::new(
        Problem::UnknownCommand {
            word: word.to_owned(),
            suggestion,
        },
        command,
    )
}

/// The refusal of a subcommand that is ruled out, also where the group is a command by itself.
fn refused_command(command: &Command, path: &[String], word: Option<&OsString>) -> Option<UsageError> {
    let word = word.filter(|_| command.has_subcommands())?.to_str()?;
    let words: Vec<&str> = path.iter().map(String::as_str).chain([word]).collect();
    let word = words.join(" ");
    let why = will_not::command(&word)?;
    Some(UsageError::plain(Problem::RefusedCommand { word, why }))
}

/// The answer to a group that is called without a subcommand.
fn group_stop(command: &Command, path: Vec<String>, word: Option<&OsString>) -> Stop {
    let names = || {
        command
            .get_subcommands()
            .filter(|known| !known.is_hide_set())
            .map(Command::get_name)
    };
    let word = word.map(|word| word.to_string_lossy().into_owned());
    let problem = match word {
        Some(word) if matches!(word.as_str(), "-h" | "-help" | "--help" | "--h" | "help") => {
            return Stop::Help(path);
        }
        Some(word) if word.starts_with('-') && word.len() > 1 => Problem::Undefined {
            name: word.trim_start_matches('-').to_owned(),
            near: None,
        },
        Some(word) if path.is_empty() && will_not::is_to_come(&word) => {
            return Stop::Usage(unknown_command(command, &word));
        }
        Some(word) => Problem::UnknownCommand {
            suggestion: nearest(&word, names()),
            word,
        },
        None if path.is_empty() => Problem::MissingCommand,
        None => Problem::MissingSubcommand {
            group: path.join(" "),
            choices: names().collect::<Vec<_>>().join(", "),
        },
    };
    Stop::Usage(UsageError::new(problem, command))
}

fn is_interspersed(path: &[String]) -> bool {
    INTERSPERSED
        .iter()
        .any(|known| path.len() >= known.len() && known.iter().zip(path).all(|(a, b)| a == b))
}

/// Whether the command takes any number of words that are not another program's command line. A flag after
/// the first of them would be taken for one more: `pull PATH --dry-run` would bring files.
fn takes_any_words(command: &Command) -> bool {
    let mut words = command.get_positionals();
    words.any(|arg| matches!(arg.get_action(), ArgAction::Append) && !arg.is_trailing_var_arg_set())
}

struct Flags<'a> {
    command: &'a Command,
    interspersed: bool,
    /// Whether the command, with its flags, is the Go program's. In one of this program's own an empty value
    /// is a mistake: without its digest a bundle would be installed unchecked.
    is_of_go: bool,
}

type Split = (Vec<OsString>, Vec<OsString>);

/// A flag that was given.
struct Given<'a> {
    arg: &'a Arg,
    /// Its name as it was typed.
    name: String,
    value: OsString,
}

impl Flags<'_> {
    /// Flags as `--name=value`, and positionals. `Err(None)` means that help was asked for.
    fn split(&self, words: &[OsString]) -> Result<Split, Option<Problem>> {
        let (mut given, mut positionals) = (Vec::<(&Arg, OsString)>::new(), Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let bytes = word.as_bytes();
            if bytes == b"--" {
                positionals.extend(words.cloned());
                break;
            }
            if bytes.len() < 2 || bytes[0] != b'-' {
                positionals.push(word.clone());
                if self.interspersed {
                    continue;
                }
                positionals.extend(words.cloned());
                break;
            }
            let Given { arg, name, value } = self.flag(word, || words.next().cloned())?;
            if self.says_nothing(arg, &value) {
                // The last occurrence wins, so the earlier ones do not count either.
                given.retain(|(known, _)| known.get_id() != arg.get_id());
                continue;
            }
            let mut flag = format!("--{name}=").into_bytes();
            flag.extend_from_slice(value.as_bytes());
            given.push((arg, OsString::from_vec(flag)));
        }
        Ok((given.into_iter().map(|(_, flag)| flag).collect(), positionals))
    }

    /// Whether the flag counts as not given. In Go a text flag that is not given is empty and a switch is
    /// off, so such a value cannot be told from it. The flags of configuration keys are excepted: there the
    /// value replaces that of a file.
    fn says_nothing(&self, arg: &Arg, value: &OsStr) -> bool {
        // Those of keys have no default, and a switch that is on unless it is switched off has another.
        if is_boolean(arg) {
            let is_off = matches!(arg.get_default_values(), [default] if default == "false");
            return value == "false" && is_off;
        }
        let name = arg.get_long().unwrap_or_default();
        if name == "id" {
            // As in the Go program, a blank lease counts as absent.
            return value.as_bytes().trim_ascii().is_empty();
        }
        let is_key = KEYS
            .iter()
            .any(|key| key.flag.is_some_and(|flag| flag.name == name));
        value.is_empty()
            && self.is_of_go
            && !OWN_FLAGS.contains(&name)
            && !is_key
            && is_text(arg)
            && arg.get_default_values().iter().all(|default| default.is_empty())
    }

    fn flag(
        &self,
        word: &OsStr,
        next: impl FnOnce() -> Option<OsString>,
    ) -> Result<Given<'_>, Option<Problem>> {
        let bytes = word.as_bytes();
        let body = bytes
            .strip_prefix(b"--")
            .or_else(|| bytes.strip_prefix(b"-"))
            .unwrap_or(bytes);
        if body.is_empty() || matches!(body[0], b'-' | b'=') {
            return Err(Some(Problem::Syntax {
                flag: word.to_string_lossy().into_owned(),
            }));
        }
        let (name, value) = match body.iter().position(|byte| *byte == b'=') {
            Some(at) => (&body[..at], Some(OsStr::from_bytes(&body[at + 1..]).to_owned())),
            None => (body, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let Some(arg) = self.find(&name) else {
            let help = matches!(name.as_str(), "h" | "help");
            let shown = self.command.get_arguments().filter(|arg| !arg.is_hide_set());
            let near = nearest(&name, shown.filter_map(Arg::get_long));
            return Err((!help).then_some(Problem::Undefined { name, near }));
        };
        let value = if is_boolean(arg) {
            let value = value.unwrap_or_else(|| "true".into());
            let truth = value
                .to_str()
                .and_then(go_bool)
                .ok_or_else(|| Problem::NotBoolean {
                    name: name.clone(),
                    value: value.to_string_lossy().into_owned(),
                })?;
            truth.to_string().into()
        } else {
            value
                .or_else(next)
                .ok_or_else(|| Problem::NeedsValue { name: name.clone() })?
        };
        Ok(Given { arg, name, value })
    }

    fn find(&self, name: &str) -> Option<&Arg> {
        self.command.get_arguments().find(|arg| {
            arg.get_id() != "help"
                && (arg.get_long() == Some(name)
                    || arg.get_all_aliases().is_some_and(|all| all.contains(&name)))
        })
    }
}

/// Booleans are declared as flags with an optional value.
fn is_boolean(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.min_values() == 0)
}

/// Whether the flag takes a single text, path or choice, which is a string flag in Go.
fn is_text(arg: &Arg) -> bool {
    let value = arg.get_value_parser();
    let is_one = matches!(arg.get_action(), ArgAction::Set) && !is_boolean(arg);
    let texts = [
        TypeId::of::<String>(),
        TypeId::of::<PathBuf>(),
        TypeId::of::<OsString>(),
    ];
    is_one && (texts.iter().any(|text| value.type_id() == *text) || value.possible_values().is_some())
}

/// The spellings accepted by Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The name that shares a prefix with `word` or most of its letters, if any.
fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let score = |name: &str| {
        let same = name.chars().zip(word.chars()).take_while(|(a, b)| a == b).count();
        let shared = word.chars().filter(|c| name.contains(*c)).count();
        (same * 2 + shared, name.len().abs_diff(word.len()))
    };
    let best = names.max_by_key(|name| {
        let (score, gap) = score(name);
        (score, std::cmp::Reverse(gap))
    })?;
    (score(best).0 > word.chars().count() && score(best).1 <= 3).then(|| best.to_owned())
}

#[cfg(test)]
mod tests;
