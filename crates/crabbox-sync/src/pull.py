# What has changed in a workdir since the last sync: runs in the lease, under python3 -IS -c, and only looks.
#
# Prints `<state> <identity> <mode> <path>` records, NUL after each. States: M changed, N new, D gone, L a link. The record
# `-` comes first when there is a record of a sync to compare with, and nothing at all when there is none.
import json, os, stat, subprocess, sys

workdir, meta = sys.argv[1].encode(), sys.argv[2].encode()
out = sys.stdout.buffer


def say(state, identity, mode, path):
    out.write(b"%s %s %o %s\0" % (state, identity, mode, path))


def listed():
    """Every path that could be wanted; git leaves out what is ignored, if it is there."""
    flags = ["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"]
    words = ["git", *flags, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if os.path.isdir(b".git"):
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            paths = [path for path in done.stdout.split(b"\0") if path and not path.endswith(b"/")]
            # A submodule came without its repository: git here knows its name alone.
            modules = [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
            return paths + [path for module in modules for path in walked(module)]
    return walked(b"")


def walked(start):
    found = []
    for top, dirs, files in os.walk(start or b"."):
        dirs[:] = [name for name in dirs if name not in (b".git", b".crabbox")]
        links = [name for name in dirs if os.path.islink(os.path.join(top, name))]
        found.extend(os.path.join(top, name) for name in files + links)
    return found if start else [path[2:] for path in found]


def kind(path):
    """The mode of what stands there, None where nothing does; what is beyond a link does not stand there."""
    at = b""
    for part in path.split(b"/")[:-1]:
        at = at + b"/" + part if at else part
        if at not in ways:
            try:
                ways[at] = stat.S_ISDIR(os.lstat(at).st_mode)
            except OSError:
                ways[at] = False
        if not ways[at]:
            return None
    try:
        return os.lstat(path)
    except OSError:
        return None


ways = {}
try:
    head = json.loads(open(meta + b"/index", "rb").readline())
    fine = head.get("version") == 3
    # The files of the record, as `agent/record.py` writes them.
    rows = [open(meta + b"/rows.%d" % part, "rb").read() for part in range(head["parts"] if fine else 0)]
    os.chdir(workdir)
except (OSError, ValueError):
    sys.exit(0)
if not fine:
    sys.exit(0)
out.write(b"-\0")
known = {}
for row in b"".join(rows).split(b"\0"):
    fields = row.split(b" ", 7)
    if len(fields) == 8:
        known[fields[7]] = (fields[0], fields[1:7])
for path, (identity, (was, mode, size, mtime, ctime, inode)) in known.items():
    now = kind(path)
    if now is None or stat.S_ISDIR(now.st_mode):
        say(b"D", identity, 0, path)
    elif was != b"f" or not stat.S_ISREG(now.st_mode):
        same = was == b"l" and stat.S_ISLNK(now.st_mode) and b"%d %d" % (now.st_ctime_ns, now.st_ino) == ctime + b" " + inode
        if not same:
            say(b"L", identity, 0, path)
    elif b"%d %d %d %d" % (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino) != b" ".join((size, mtime, ctime, inode)):
        say(b"M", identity, now.st_mode & 0o7777, path)
for path in listed():
    now = kind(path) if path not in known else None
    if now is not None and not stat.S_ISDIR(now.st_mode):
        say(b"N" if stat.S_ISREG(now.st_mode) else b"L", b"0", now.st_mode & 0o7777, path)
