//! Finds the repository of the current directory: its root, name, origin, commit and base branch.
//!
//! Discovery itself does not fail without a repository (`--no-sync` works anywhere); whether it can be synced
//! is checked with [`Repo::check_syncable`], before a lease is paid for. It must never run programs that a
//! repository names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crabbox_host::command::{Captured, CommandError};

use crate::git::{Contents, git, whole_message};
use crate::manifest::ManifestError;
use crate::origin::OriginUrl;
use crate::redirect::{self, Redirect};

/// What the current directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// The root of the working tree; the current directory itself when there is none. Absolute.
    pub root: PathBuf,
    /// The repository part of the origin's URL, else the last component of the root. Never empty, one path
    /// component.
    pub name: String,
    /// The URL of the remote `origin`, without secrets.
    pub origin: Option<OriginUrl>,
    /// The commit of `HEAD`, as hex; `None` on an unborn branch.
    pub head: Option<String>,
    /// The branch that `HEAD` names, short; `None` when detached.
    pub branch: Option<String>,
    /// The default branch of the remote `origin`, short (`main`), when git knows it.
    pub base_ref: Option<String>,
    /// What kind of version control holds the root.
    pub vcs: Vcs,
}

/// What kind of version control holds a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vcs {
    /// A git working tree.
    Git,
    /// A bare git repository, or the inside of a `.git` directory: nothing to sync.
    Bare,
    /// A Jujutsu workspace without a colocated git repository.
    JujutsuOnly,
    /// No repository.
    None,
    /// git found a repository that refers to another one, which this directory does not belong to.
    Redirected(Redirect),
    /// git found a repository but refused to work in it; its whole message.
    Refused(String),
}

/// Why the repository could not be examined.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// The current directory does not resolve.
    #[error("cannot resolve the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// git is not installed or could not be run.
    #[error("cannot run git, which crabbox needs to find the files of {}", path.display())]
    Git {
        /// Where it was to run.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: CommandError,
    },
}

fn done<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Repo {
    /// Looks at the repository around `cwd`.
    pub fn discover(cwd: &Path) -> Result<Self, RepoError> {
        let cwd = cwd.canonicalize().map_err(|source| RepoError::Directory {
            path: cwd.to_owned(),
            source,
        })?;
        let ask = |args: &[&str]| {
            git(&cwd, Contents::Unread)
                .args(args)
                .capture()
                .map_err(|source| RepoError::Git {
                    path: cwd.clone(),
                    source,
                })
        };
        // In parallel, because each process mostly waits to be started.
        let (origin, facts) = std::thread::scope(|threads| {
            let origin = threads.spawn(|| ask(&["config", "--get", "remote.origin.url"]));
            let facts = ask(&[&["rev-parse"], PLACES, Facts::ASKED].concat());
            (done(origin), facts)
        });
        let origin = origin.map(|out| word(&out).and_then(|address| OriginUrl::of(&address)));
        if let Some((git_dir, root, facts)) = Facts::parse(&facts?.stdout) {
            if let Some(vcs) = of_another(&cwd, &root, &git_dir) {
                return Ok(Self::without_git(cwd, vcs));
            }
            return Ok(Self::with_git(root, origin?, facts));
        }
        // Unusual cases, such as an unborn branch: ask one question at a time.
        let top = ask(&["rev-parse", "--show-toplevel"])?;
        if !top.status.success() {
            let vcs = classify(&cwd, &top.stderr_text());
            return Ok(Self::without_git(cwd, vcs));
        }
        let root = path(&top);
        let git_dir = path(&ask(&["rev-parse", "--absolute-git-dir"])?);
        if let Some(vcs) = of_another(&cwd, &root, &git_dir) {
            return Ok(Self::without_git(cwd, vcs));
        }
        let answer = |args: &[&str]| ask(args).map(|out| word(&out));
        let facts = Facts {
            head: answer(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"])?,
            // Full names, shortened here: git's short names get longer if a tag has the same name.
            branch: answer(&["symbolic-ref", "--quiet", "HEAD"])?
                .map(|name| cut(&name, &["refs/heads/", "refs/"]).to_owned()),
            base_ref: answer(&["symbolic-ref", "--quiet", "refs/remotes/origin/HEAD"])?
                .map(|name| cut(&name, &["refs/remotes/origin/", "refs/remotes/"]).to_owned()),
        };
        Ok(Self::with_git(root, origin?, facts))
    }

    fn with_git(root: PathBuf, origin: Option<OriginUrl>, facts: Facts) -> Self {
        let name = origin
            .as_ref()
            .and_then(|origin| name_of_url(origin.as_str()))
            .unwrap_or_else(|| name_of_dir(&root));
        Self {
            root,
            name,
            origin,
            head: facts.head,
            branch: facts.branch,
            base_ref: facts.base_ref,
            vcs: Vcs::Git,
        }
    }

    fn without_git(cwd: PathBuf, vcs: Vcs) -> Self {
        let name = name_of_dir(&cwd);
        Self {
            root: cwd,
            name,
            origin: None,
            head: None,
            branch: None,
            base_ref: None,
            vcs,
        }
    }

    #[cfg(test)]
    pub(crate) fn bare_of_facts(root: PathBuf) -> Self {
        Self::without_git(root, Vcs::None)
    }

    /// Checks whether a manifest can be built here at all; to be called before a lease is acquired.
    pub fn check_syncable(&self) -> Result<(), ManifestError> {
        let root = self.root.clone();
        match &self.vcs {
            Vcs::Git => Ok(()),
            Vcs::None => Err(ManifestError::NotARepository { root }),
            Vcs::Bare => Err(ManifestError::Bare { root }),
            Vcs::JujutsuOnly => Err(ManifestError::JujutsuOnly { root }),
            Vcs::Redirected(redirect) => Err(ManifestError::Redirected {
                root,
                redirect: redirect.clone(),
            }),
            Vcs::Refused(said) => Err(ManifestError::GitRefused {
                root,
                said: said.clone(),
            }),
        }
    }
}

/// What `cwd` really belongs to, if that is not the repository at `git_dir` with the tree at `root` that git
/// found.
fn of_another(cwd: &Path, root: &Path, git_dir: &Path) -> Option<Vcs> {
    if jujutsu_below(cwd, Some(root)) {
        return Some(Vcs::JujutsuOnly);
    }
    redirect::find(cwd, root, git_dir).map(Vcs::Redirected)
}

/// The root of the working tree around `cwd`; `cwd` itself if there is none, if git refuses, or if its answer
/// refers elsewhere. This is the root that [`Repo::discover`] finds, at less cost.
pub fn root(cwd: &Path) -> PathBuf {
    let found = || {
        let canonical = cwd.canonicalize().ok()?;
        let asked = git(&canonical, Contents::Unread)
            .arg("rev-parse")
            .args(PLACES)
            .capture()
            .ok()
            .filter(|out| out.status.success())?;
        let (git_dir, root) = places(asked.stdout.strip_suffix(b"\n")?)?;
        of_another(&canonical, &root, &git_dir).is_none().then_some(root)
    };
    found().unwrap_or_else(|| cwd.to_owned())
}

/// Arguments of rev-parse for the directory of the repository and the root of its working tree, one line
/// each.
pub(crate) const PLACES: &[&str] = &["--absolute-git-dir", "--show-toplevel"];

/// Parses the two paths; `None` if one of them contains a newline.
pub(crate) fn places(lines: &[u8]) -> Option<(PathBuf, PathBuf)> {
    let mut lines = lines.split(|byte| *byte == b'\n');
    let mut line = || lines.next().map(|line| PathBuf::from(OsStr::from_bytes(line)));
    let (git_dir, root) = (line()?, line()?);
    (line().is_none() && git_dir.is_absolute() && root.is_absolute()).then_some((git_dir, root))
}

/// `name` without the first of `prefixes` that it begins with.
fn cut<'a>(name: &'a str, prefixes: &[&str]) -> &'a str {
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.unwrap_or(name)
}

/// The single path that git printed.
fn path(out: &Captured) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(
        out.stdout.strip_suffix(b"\n").unwrap_or(&out.stdout),
    ))
}

/// git's output, if it succeeded and printed anything.
fn word(out: &Captured) -> Option<String> {
    Some(out.stdout_text()).filter(|text| out.status.success() && !text.is_empty())
}

/// The state of a repository.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    head: Option<String>,
    branch: Option<String>,
    base_ref: Option<String>,
}

impl Facts {
    /// Further arguments of rev-parse. It prints a line for each; if it does not know the last one, it
    /// repeats the argument.
    const ASKED: &[&str] = &["HEAD^{commit}", "--symbolic-full-name", "HEAD", Self::BASE];
    const BASE: &str = "refs/remotes/origin/HEAD";

    /// Paths and facts of an ordinary repository.
    fn parse(output: &[u8]) -> Option<(PathBuf, PathBuf, Self)> {
        // Parsed from the end: the paths may contain newlines, and then they are asked for separately.
        let mut lines = output.strip_suffix(b"\n")?.rsplitn(4, |byte| *byte == b'\n');
        let mut line = || lines.next();
        let (base, branch, head, paths) = (line()?, line()?, line()?, line()?);
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned).ok();
        let (base, branch, head) = (text(base)?, text(branch)?, text(head)?);
        let is_commit = matches!(head.len(), 40 | 64) && head.bytes().all(|byte| byte.is_ascii_hexdigit());
        let branch = match branch.strip_prefix("refs/heads/") {
            None if branch != "HEAD" => return None,
            short => short.map(str::to_owned),
        };
        let base_ref = match base.strip_prefix("refs/remotes/origin/")? {
            "HEAD" => None,
            short => Some(short.to_owned()),
        };
        let (git_dir, root) = places(paths)?;
        is_commit.then_some((
            git_dir,
            root,
            Self {
                head: Some(head),
                branch,
                base_ref,
            },
        ))
    }
}

fn classify(cwd: &Path, stderr: &str) -> Vcs {
    if jujutsu_below(cwd, None) {
        Vcs::JujutsuOnly
    } else if stderr.contains("not a git repository") {
        Vcs::None
    } else if stderr.contains("must be run in a work tree") || stderr.contains("safe.bareRepository") {
        Vcs::Bare
    } else {
        Vcs::Refused(whole_message(stderr))
    }
}

/// Whether a workspace around `cwd`, below `stop`, belongs to Jujutsu only.
fn jujutsu_below(cwd: &Path, stop: Option<&Path>) -> bool {
    cwd.ancestors()
        .take_while(|dir| Some(*dir) != stop)
        .any(|dir| dir.join(".jj").is_dir() && !dir.join(".git").exists())
}

/// The repository part of a URL or of an scp-like address: `git@host:me/thing.git` gives `thing`.
fn name_of_url(url: &str) -> Option<String> {
    let path = url.trim_end_matches('/').rsplit(['/', ':']).next()?;
    let name = path.strip_suffix(".git").unwrap_or(path);
    usable_name(name).then(|| name.to_owned())
}

fn name_of_dir(dir: &Path) -> String {
    let name = dir
        .file_name()
        .map(|name| name.to_string_lossy().replace(char::REPLACEMENT_CHARACTER, "_"));
    name.filter(|name| usable_name(name))
        .unwrap_or_else(|| "repo".to_owned())
}

/// Whether a name can be a component of the remote path; 200 bytes leave room for suffixes below `NAME_MAX`.
fn usable_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 200 && !name.contains(['/', '\0', '\n', '\r'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crabbox_host::command::Cmd;

    fn sh(dir: &Path, script: &str) {
        Cmd::new("sh")
            .args(["-ec", script])
            .cwd(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .run()
            .unwrap();
    }

    #[test]
    fn a_sub_directory_finds_root_name_commit_and_base() {
        let dir = tempfile::tempdir().unwrap();
        sh(
            dir.path(),
            "git init -q -b work w; cd w; mkdir -p a/b; git -c user.name=t -c user.email=t@t commit -q --allow-empty -m x;
             git remote add origin git@example.invalid:me/thing.git; git update-ref refs/remotes/origin/main HEAD;
             git symbolic-ref refs/remotes/origin/HEAD refs/remotes/origin/main",
        );
        let repo = Repo::discover(&dir.path().join("w/a/b")).unwrap();
        assert_eq!(repo.root, dir.path().canonicalize().unwrap().join("w"));
        assert_eq!((repo.name.as_str(), repo.vcs), ("thing", Vcs::Git));
        assert_eq!(repo.head.map(|head| head.len()), Some(40));
        assert_eq!(
            (repo.branch.as_deref(), repo.base_ref.as_deref()),
            (Some("work"), Some("main"))
        );
    }

    #[test]
    fn odd_places_are_told_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        sh(
            dir.path(),
            "git init -q -b main 'w\n x'; cd 'w\n x'; git -c user.name=t -c user.email=t@t commit -q --allow-empty -m x; git tag main; \
             git worktree add -q --detach ../away; git init -q -b elsewhere ../odd; cd ../odd; git -c user.name=t -c user.email=t@t commit -q --allow-empty -m y; \
             git update-ref refs/other/x HEAD; git symbolic-ref HEAD refs/other/x",
        );
        let at = |sub: &str| {
            let repo = Repo::discover(&dir.path().join(sub)).unwrap();
            assert_eq!(repo.root, dir.path().canonicalize().unwrap().join(sub));
            (repo.branch, repo.head.map(|head| head.len()), repo.base_ref)
        };
        assert_eq!(at("w\n x"), (Some("main".to_owned()), Some(40), None));
        assert_eq!(at("away"), (None, Some(40), None));
        assert_eq!(at("odd"), (Some("other/x".to_owned()), Some(40), None));
    }

    #[test]
    fn an_unborn_branch_is_a_repository_without_a_commit() {
        let dir = tempfile::tempdir().unwrap();
        sh(dir.path(), "git init -q w");
        let repo = Repo::discover(&dir.path().join("w")).unwrap();
        assert_eq!(
            (repo.vcs.clone(), repo.head.clone(), repo.name.as_str()),
            (Vcs::Git, None, "w")
        );
        repo.check_syncable().unwrap();
    }

    #[test]
    fn what_cannot_be_synced_says_why_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        sh(
            dir.path(),
            "mkdir plain; git init -q --bare bare; mkdir -p jj/.jj/repo jj/sub; git init -q g; mkdir -p g/n/.jj",
        );
        let base = dir.path().canonicalize().unwrap();
        let said = |sub: &str| {
            let repo = Repo::discover(&base.join(sub)).unwrap();
            assert_eq!(
                root(&base.join(sub)),
                repo.root,
                "{sub}: a lease is claimed for one root"
            );
            repo.check_syncable().unwrap_err().to_string()
        };
        assert_eq!(
            said("plain"),
            format!(
                "{} is not a Git repository: crabbox builds its sync manifest from Git; run `git init` here to sync files, \
                 or pass --no-sync to run without syncing local files",
                base.join("plain").display()
            )
        );
        assert!(said("bare").contains("no working tree"), "{}", said("bare"));
        assert!(said("jj/sub").contains("Jujutsu"), "{}", said("jj/sub"));
        assert!(said("g/n").contains("Jujutsu"), "{}", said("g/n"));
        assert!(said("g/.git").contains("no working tree"), "{}", said("g/.git"));
    }

    #[test]
    fn names_come_from_urls_and_are_one_component() {
        assert_eq!(
            name_of_url("https://h.invalid/me/thing.git/").as_deref(),
            Some("thing")
        );
        assert_eq!(name_of_url("h.invalid:thing").as_deref(), Some("thing"));
        assert_eq!(name_of_url("https://h.invalid/.."), None);
        assert_eq!(name_of_dir(Path::new("/")), "repo");
    }
}
