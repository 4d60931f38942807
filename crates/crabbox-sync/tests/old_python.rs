//! The programs of ours that run in a lease, on the oldest Python that they promise, and a lease that has none.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "the exception for tests does not reach their fixtures"
)]

mod world;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crabbox_host::command::Cmd;
use crabbox_ssh::capture::capture;
use crabbox_ssh::exec::Stdin;
use crabbox_sync::Channel;
use crabbox_sync::pull;
use crabbox_sync::transfer::{Options, TransferError};
use crabbox_testkit::sshd::Sshd;
use world::{Shared, World, settle, target};

/// What Python 3.6 has not, by the version that brought it: regular expressions over our programs, since a parser of a newer one
/// sees syntax alone ("What's New in Python 3.7" to "3.12").
const NEWER: &[(&str, &str)] = &[
    (
        "3.7",
        r"(time\.time|clock_gettime|monotonic|perf_counter)_ns|capture_output|[(, ]text=|contextvars|dataclass|nullcontext|fromisoformat",
    ),
    (
        "3.7",
        r"asyncio\.run\b|breakpoint\(|isascii|importlib\.resources|from __future__ import annotations",
    ),
    (
        "3.8",
        r"dirs_exist_ok|math\.(prod|dist|isqrt|comb|perm)\b|functools\.cached_property|lru_cache\n|shlex\.join|copy_file_range|missing_ok",
    ),
    (
        "3.9",
        r"removeprefix|removesuffix|functools\.cache\b|is_relative_to|zoneinfo|graphlib|randbytes|[^\w](dict|list|tuple|set)\[",
    ),
    (
        "3.10",
        r"strict=|bit_count|itertools\.pairwise|orig_argv|root_dir=",
    ),
    (
        "3.11",
        r"tomllib|ExceptionGroup|except\*|datetime\.UTC|hashlib\.file_digest",
    ),
    ("3.12", r"itertools\.batched|\.walk\(top_down"),
];

/// Every program under `crates/`.
fn programs() -> Vec<PathBuf> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let found = Cmd::new("find")
        .arg(crates)
        .args(["-name", "*.py", "-type", "f"])
        .run()
        .unwrap();
    found.stdout_text().lines().map(PathBuf::from).collect()
}

/// What a check of `program` says against its text being for 3.6.
fn complaints(program: &Path) -> String {
    let table = NEWER
        .iter()
        .map(|(version, pattern)| format!("{version} {pattern}"))
        .collect::<Vec<_>>()
        .join("\n");
    let check = "import ast,re,sys\n\
                 text=open(sys.argv[1]).read()\n\
                 try: ast.parse(text, feature_version=(3,6))\n\
                 except SyntaxError as error: print(error)\n\
                 code='\\n'.join(line.partition('  #')[0] for line in text.splitlines() if not line.lstrip().startswith('#'))\n\
                 code=re.sub(r'\"\"\".*?\"\"\"', '', code, flags=re.S)\n\
                 for row in sys.argv[2].splitlines():\n \
                 version,pattern=row.split(' ',1)\n \
                 for found in re.finditer(pattern, code): print(version, found.group())\n";
    let said = Cmd::new("python3")
        .args(["-IS", "-c", check])
        .arg(program)
        .arg(table)
        .run()
        .unwrap();
    said.stdout_text()
}

#[test]
fn no_program_of_ours_uses_what_python_3_6_has_not() {
    let programs = programs();
    assert!(programs.len() >= 8, "{programs:?}");
    for program in programs {
        assert_eq!(complaints(&program), "", "{}", program.display());
    }
    let dir = tempfile::tempdir().unwrap();
    let newer = dir.path().join("newer.py");
    std::fs::write(&newer, "import time\nif (x := time.time_ns()): print(x)\n").unwrap();
    let said = complaints(&newer);
    assert!(
        said.contains("3.7 time.time_ns") && said.contains("3.8"),
        "{said}"
    );
}

/// Takes from today's Python what 3.6 has not, and runs what it was given.
const SHIM: &str = r#"#!/bin/sh
[ "$1 $2" = "-IS -c" ] || exit 99
shift 2
exec /usr/bin/python3 -IS -c '
import sys, time, subprocess, shutil, functools
for module in (time,):
    for name in [name for name in dir(module) if name.endswith("_ns")]:
        delattr(module, name)
del functools.cache, functools.cached_property
for owner, name, newer in ((subprocess, "run", ("capture_output", "text")), (subprocess.Popen, "__init__", ("text",)), (shutil, "copytree", ("dirs_exist_ok",))):
    def old(*args, was=getattr(owner, name), newer=newer, **named):
        for word in newer:
            if word in named:
                raise TypeError("unexpected keyword argument " + word)
        return was(*args, **named)
    setattr(owner, name, old)
sys.version_info = VERSION
code = sys.argv[1]
sys.argv = ["-c"] + sys.argv[2:]
exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
' "$@"
"#;

/// What stands under the name of a Python and is none: a version manager's stub, an environment whose interpreter is gone, one that
/// crashes, and Python 2, which does not know our options.
const BROKEN: [&str; 4] = [
    "#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n",
    "#!/nonexistent/venv/bin/python\n",
    "#!/bin/sh\nkill -SEGV $$\n",
    "#!/bin/sh\necho 'Unknown option: -I' >&2\necho usage: python >&2\nexit 2\n",
];

/// A server whose sessions find their programs in `bin`, where there is everything but the Pythons.
fn server(bin: &Path) -> Sshd {
    std::fs::create_dir(bin).unwrap();
    for entry in std::fs::read_dir("/usr/bin").unwrap().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("python") {
            symlink(entry.path(), bin.join(entry.file_name())).unwrap();
        }
    }
    Sshd::start_with(&format!(
        "ForceCommand PATH={}; eval \"$SSH_ORIGINAL_COMMAND\"",
        bin.display()
    ))
}

fn install(bin: &Path, name: &str, version: &str) {
    let path = bin.join(name);
    put(&path, &SHIM.replace("VERSION", version));
}

fn put(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_tree_is_synced_and_pulled_with_python_3_6_under_any_of_its_names() {
    // A python3 that is too old gives way to one that is not.
    for (name, also_old) in [("python3", false), ("python3.6", false), ("python3.6", true)] {
        let dir = tempfile::tempdir().unwrap();
        let sshd = server(&dir.path().join("bin"));
        install(&dir.path().join("bin"), name, "(3, 6, 15)");
        if also_old {
            install(&dir.path().join("bin"), "python3", "(3, 5, 2)");
        }
        let shared = Shared::new(&sshd);
        let world = World::through(Channel::ssh(&shared.0));
        world.local(
            "echo 1 > a; mkdir d; ln -s ../a d/l; git add -A; git commit -qm x; echo 2 > a; echo new > n",
        );
        world.sync();
        world.local("echo 3 > a; rm n; git add -A; git commit -qm y");
        settle();
        world.sync();
        assert!(world.sync().skipped);
        world.guest("echo theirs > a; echo more > m");
        let listed = capture(&shared.0, &pull::script(&world.destination()), Stdin::Null, None).unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).replace('\0', "\n");
        assert!(
            listed.success() && text.contains(" a\n") && text.contains(" m\n"),
            "{listed:?}"
        );
    }
}

#[test]
fn a_lease_without_a_python_that_is_new_enough_is_told_so_before_a_file_goes() {
    for (old, named) in [
        (None, "no python3, which"),
        (
            Some("(3, 5, 2)"),
            "no python3 that runs (3.6 or newer; python3 is too old)",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let sshd = server(&dir.path().join("bin"));
        if let Some(version) = old {
            install(&dir.path().join("bin"), "python3", version);
        }
        let world = World::through(Channel::ssh(&target(&sshd)));
        world.local("echo 1 > a; git add -A");
        let error = world.try_sync(&Options::default()).unwrap_err();
        assert!(error.is_remote(), "{error:?}");
        let TransferError::Compare { source, .. } = error else {
            panic!("{error:?}")
        };
        let said = source.to_string();
        assert!(
            said.contains(named) && said.contains("apt-get install python3"),
            "{said}"
        );
        assert!(!world.workdir().exists());
    }
}

#[test]
fn a_python_that_does_not_run_gives_way_to_one_that_does_or_is_told_with_what_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    let sshd = server(&bin);
    for broken in BROKEN {
        put(&bin.join("python3"), broken);
        install(&bin, "python3.9", "(3, 9, 2)");
        let world = World::through(Channel::ssh(&target(&sshd)));
        world.local("echo 1 > a; git add -A");
        world.sync();
        assert!(world.workdir().join("a").exists(), "{broken}");
        std::fs::remove_file(bin.join("python3.9")).unwrap();
        world.local("echo 2 > a");
        let error = world.try_sync(&Options::default()).unwrap_err();
        let TransferError::Compare { source, .. } = error else {
            panic!("{error:?}")
        };
        let said = source.to_string();
        assert!(
            said.contains("no python3 that runs (3.6 or newer; python3 exits with "),
            "{said}"
        );
        let first = broken.split('\'').nth(1).unwrap_or_default();
        assert!(said.contains(first), "{said}");
    }
}
