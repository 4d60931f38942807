# The far side of a sync: runs in the lease, once per step, under python3 -IS, fed over standard input.
#
# It answers "is the workdir what the manifest says", clears what is in the way, and writes down what it saw after rsync.
# It must never follow a symbolic link out of the workdir when it removes something, and never call a file unchanged
# whose inode does not carry the very times that it carried right after the last sync.
#
# One conversation per sync, a JSON line each way: the request; "same", or "differs"; then the manifest, length first;
# "stale" with what rsync is to send, or "done"; then, each when wanted, "seed" with a pack in frames and "finalize".
import functools, gc, json, os, stat, sys, time

try:
    from _sha2 import sha256
except ImportError:
    from _sha256 import sha256

DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
RACY_NS = 20_000_000  # two ticks of a slow kernel: two writes closer than this can carry one change time
source = sys.stdin.buffer
request = json.loads(source.readline())
lease = request["lease_dir"].encode()
name = request["name"].encode()
workdir = lease + b"/" + name
meta = lease + b"/.crabbox-sync/" + name
sys.setrecursionlimit(20000)
gc.disable()  # it would walk a hundred thousand rows again and again, and nothing here is a cycle


class Refused(Exception):
    pass


def answer(**fields):
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def show(path):
    return path.decode("utf-8", "replace")


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""


def write(path, parts):
    with open(path + b".new", "wb") as file:
        file.writelines(parts)
    os.replace(path + b".new", path)


def entries(data):
    """The manifest and the deleted list: `<identity> <kind> <mode> <size> <mtime> <path>` records, then paths, NUL after
    each; the record `-` parts the two."""
    listed, _, gone = (b"\0" + data).partition(b"\0-\0")
    rows = [row.split(b" ", 5) for row in listed.split(b"\0") if row]
    return rows, [path for path in gone.split(b"\0") if path]


# ---- looking

def seen(path):
    """Kind, mode, size, mtime, ctime, inode: what stands for the content of a path that rsync wrote."""
    st = os.lstat(path)
    kind = b"f" if stat.S_ISREG(st.st_mode) else b"l" if stat.S_ISLNK(st.st_mode) else b"?"
    return b"%s %o %d %d %d %d" % (kind, st.st_mode & 0o7777, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino)


class Dirs:
    """Which directories are directories of the tree, all the way down from the workdir, and not links."""

    def __init__(self):
        self.known = {b"": True}

    def own(self, path):
        answer = self.known.get(path)
        if answer is None:
            try:
                answer = self.own(os.path.dirname(path)) and stat.S_ISDIR(os.lstat(path).st_mode)
            except OSError:
                answer = False
            self.known[path] = answer
        return answer


def look(dirs, path):
    try:
        return seen(path) if dirs.own(path.rpartition(b"/")[0]) else None
    except OSError:
        return None


@functools.lru_cache(maxsize=1)
def load_index():
    """The index of the last finished sync: fingerprint, {path: (identity, seen)}, deleted paths."""
    head, _, body = read(meta + b"/index").partition(b"\n")
    try:
        head = json.loads(head)
    except ValueError:
        return "", {}, []
    listed, _, gone = (b"\0" + body).partition(b"\0-\0")
    index = {}
    for row in listed.split(b"\0"):
        fields = row.split(b" ", 7)
        if len(fields) == 8:
            index[fields[7]] = (fields[0], row[len(fields[0]) + 1 : len(row) - len(fields[7]) - 1])
    if head.get("version") != 1 or head.get("count") != len(index):
        return "", {}, []
    return head["fingerprint"], index, [path for path in gone.split(b"\0") if path]


def unchanged(index, gone):
    dirs = Dirs()
    back = (look(dirs, path) for path in gone)
    return all(look(dirs, path) == row[1] for path, row in index.items()) and not any(
        now and not now.startswith(b"? ") for now in back
    )


# ---- removing: always through directory handles that are not links

def writable(fd):
    """Opens a directory of ours for changes; gives its former mode if it had to."""
    mode = stat.S_IMODE(os.stat("/proc/self/fd/%d" % fd).st_mode)
    if mode & 0o300 == 0o300:
        return None
    os.chmod("/proc/self/fd/%d" % fd, mode | 0o700)
    return mode


def remove_tree(fd, leaf):
    try:
        st = os.stat(leaf, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(st.st_mode):
        os.unlink(leaf, dir_fd=fd)
        return
    handle = os.open(leaf, DIR, dir_fd=fd)
    try:
        if st.st_mode & 0o700 != 0o700:
            os.chmod("/proc/self/fd/%d" % handle, 0o700)
        for child in os.listdir(b"/proc/self/fd/%d" % handle):
            remove_tree(handle, child)
    finally:
        os.close(handle)
    os.rmdir(leaf, dir_fd=fd)


def way_to(path):
    """Handles of the workdir and of the directories above `path`, as far as they are directories; and the names of all."""
    parts = path.split(b"/")
    handles = [os.open(b".", DIR)]
    try:
        for part in parts[:-1]:
            handles.append(os.open(part, DIR, dir_fd=handles[-1]))
    except (FileNotFoundError, NotADirectoryError):
        pass
    return handles, parts


def changed_in(fd, act, leaf):
    """Calls `act(fd, leaf)` in a directory that is made writable for it."""
    mode = writable(fd)
    try:
        act(fd, leaf)
    finally:
        if mode is not None:
            os.chmod("/proc/self/fd/%d" % fd, mode)


def prune(path):
    """Removes a file that an earlier sync brought, and the directories that this, or a broken sync, left empty. A
    directory where the file was is the guest's own, and so is everything beyond a link."""
    handles, parts = way_to(path)
    try:
        if len(handles) == len(parts):
            try:
                if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=handles[-1], follow_symlinks=False).st_mode):
                    changed_in(handles[-1], lambda fd, leaf: os.unlink(leaf, dir_fd=fd), parts[-1])
            except FileNotFoundError:
                pass
        while len(handles) > 1:
            os.close(handles.pop())
            try:
                changed_in(handles[-1], lambda fd, leaf: os.rmdir(leaf, dir_fd=fd), parts[len(handles) - 1])
            except OSError:
                return  # not empty
    finally:
        for handle in handles:
            os.close(handle)


def clear(path):
    """Removes whatever stands at `path`, which the manifest needs for something else."""
    handles, parts = way_to(path)
    try:
        if len(handles) == len(parts):
            changed_in(handles[-1], remove_tree, parts[-1])
    finally:
        for handle in handles:
            os.close(handle)


def make_way(paths):
    """Removes what stands where the manifest needs something of another kind."""
    dirs = Dirs()
    for path in paths:
        parts = path.split(b"/")
        at = b""
        for part in parts[:-1]:
            at = at + b"/" + part if at else part
            if at in dirs.known:
                continue
            try:
                st = os.lstat(at)
            except (FileNotFoundError, NotADirectoryError):
                break
            if not stat.S_ISDIR(st.st_mode):
                clear(at)
                break
            dirs.known[at] = True
        else:
            try:
                st = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISDIR(st.st_mode):
                clear(path)


# ---- the Go program's own files, so that both may sync into one lease

def go_dir():
    git = workdir + b"/.git"
    return git + b"/crabbox" if os.path.isdir(git) and not os.path.islink(git) else workdir + b"/.crabbox"


# ---- git: the commit, branch and staged changes of the local repository, so that the command finds a repository

def head_files():
    """The files that say which commit is checked out: if the guest moves them, the sync is not in sync."""
    branch = request["seed"]["branch"]
    files = [b".git/HEAD"] + ([b".git/refs/heads/" + branch.encode()] if branch else [])
    return [path for path in files if os.path.isfile(path)]


def git_dir_is_ours():
    try:
        return stat.S_ISDIR(os.lstat(b".git").st_mode)
    except FileNotFoundError:
        return True


def seed_state():
    """Whether the repository must be brought up to date, and the commit that it has from the last time."""
    known = read(meta + b"/seed").split(b"\n")
    if len(known) != 3 or not os.path.isdir(b".git/objects"):
        return {"needed": True, "have": ""}
    now = [b"%s %s" % (path, seen(path)) for path in head_files()]
    same = known[0] == request["seed"]["id"].encode() and known[2] == sha256(b"\0".join(now)).hexdigest().encode()
    return {"needed": not same, "have": known[1].decode()}


def run_git(*args, feed=None):
    import subprocess

    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env["LC_ALL"] = "C"
    done = subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0", *args],
        input=feed, capture_output=True, env=env, stdin=None if feed is not None else subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace").strip()


def must_git(*args, feed=None):
    code, out, err = run_git(*args, feed=feed)
    if code != 0:
        raise Refused("git %s: %s" % (args[0], err.splitlines()[-1] if err else "exit code %d" % code))
    return out


def frames():
    while True:
        size = int(source.readline())
        if size == 0:
            return
        yield source.read(size)


def seeded():
    """Takes a pack and makes .git say what the local repository says; leaves files of the working tree alone."""
    pack = meta + b"/tmp/seed.pack"
    staged = source.read(int(source.readline()))
    with open(pack, "wb") as file:
        for frame in frames():
            file.write(frame)
    try:
        apply_seed(pack, staged)
        answer(state="seeded")
    except Refused as refused:
        answer(state="unseeded", why=str(refused))
    except (OSError, ImportError) as error:
        answer(state="unseeded", why=str(error))
    finally:
        os.unlink(pack)


def apply_seed(pack, staged):
    seed = request["seed"]
    if not git_dir_is_ours():
        raise Refused(".git in the workdir is not a directory")
    if os.path.exists(meta + b"/seed"):
        os.unlink(meta + b"/seed")
    if not os.path.isdir(b".git/objects"):
        must_git("init", "-q", "--template=", ".")
    if os.path.exists(b".git/index.lock"):
        os.unlink(b".git/index.lock")  # no command runs during a sync: a dead one left it
    if os.path.getsize(pack):
        with open(pack, "rb") as file:
            must_git("index-pack", "--stdin", feed=file.read())
    head, branch = seed["head"], seed["branch"]
    if head:
        commit = must_git("cat-file", "commit", head).split(b"\n\n")[0].splitlines()
        parents = [line[7:].decode() for line in commit if line.startswith(b"parent ")]
        if any(run_git("cat-file", "-e", parent)[0] for parent in parents):
            known = read(b".git/shallow").split()
            if head.encode() not in known:
                write(b".git/shallow", [line + b"\n" for line in [*known, head.encode()]])
    if branch:
        must_git("symbolic-ref", "HEAD", "refs/heads/" + branch)
        if head:
            must_git("update-ref", "refs/heads/" + branch, head)
        else:
            run_git("update-ref", "-d", "refs/heads/" + branch)
    else:
        must_git("update-ref", "--no-deref", "HEAD", head)
    must_git("read-tree", *(["--reset", head] if head else ["--empty"]))
    must_git("update-index", "-z", "--index-info", feed=staged)
    if seed["origin"]:
        must_git("config", "remote.origin.url", seed["origin"])
    exclude = read(b".git/info/exclude")
    if b"/.crabbox/" not in exclude.splitlines():
        os.makedirs(b".git/info", exist_ok=True)
        write(b".git/info/exclude", [exclude, b"" if exclude.endswith(b"\n") or not exclude else b"\n", b"/.crabbox/\n"])
    now = [b"%s %s" % (path, seen(path)) for path in head_files()]
    write(meta + b"/seed", [b"\n".join([seed["id"].encode(), head.encode(), sha256(b"\0".join(now)).hexdigest().encode()])])


# ---- steps

def enter():
    os.makedirs(lease, exist_ok=True)
    if request["reset"]:
        handle = os.open(lease, DIR & ~os.O_NOFOLLOW)
        remove_tree(handle, name)
        os.close(handle)
        for file in (b"/index", b"/pending", b"/stamp", b"/seed"):
            if os.path.exists(meta + file):
                os.unlink(meta + file)
    for path in (workdir, lease + b"/.crabbox-sync", meta, meta + b"/tmp"):
        try:
            os.mkdir(path, 0o700 if path != workdir else 0o755)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise Refused("%s is not a directory" % show(path))
    os.chdir(workdir)


def check():
    try:
        os.chdir(workdir)
    except OSError:
        return False
    fingerprint, index, gone = load_index()
    if fingerprint != request["fingerprint"] or not unchanged(index, gone):
        return False
    return not request["seed"] or not seed_state()["needed"]


def prepare(data):
    enter()
    rows, gone = entries(data)
    _, index, _ = load_index()
    ours = set(index)
    ours.update(row[5] for row in entries(read(meta + b"/pending"))[0])
    go = go_dir()
    if not ours:
        ours.update(path for path in read(go + b"/sync-manifest").split(b"\0") if path)
    if os.path.exists(go + b"/sync-fingerprint"):
        os.unlink(go + b"/sync-fingerprint")
    wanted = {row[5] for row in rows}
    if request["delete"]:
        # What an earlier sync brought stays known until it is pruned, even if this one breaks off.
        lost = [b"0 f 0 0 0 " + path for path in sorted(ours - wanted)]
        write(meta + b"/pending", [b"".join(row + b"\0" for row in lost), data])
        for path in sorted(ours - wanted) + gone:
            if path not in wanted:
                prune(path)
    if not request["delete"] or lost:
        write(meta + b"/pending", [data])
    remove_leftovers()
    dirs = Dirs()
    stale, kept = [], [None] * len(rows)
    for at, row in enumerate(rows):
        known = index.get(row[5])
        fresh = known and known[0] == row[0] and row[0] != b"0" and not request["distrust"]
        if fresh and look(dirs, row[5]) == known[1]:
            kept[at] = known[1]
        else:
            stale.append(at)
    make_way(rows[at][5] for at in stale)
    return rows, gone, stale, kept


def remove_leftovers():
    handle = os.open(meta + b"/tmp", DIR)
    for leaf in os.listdir(meta + b"/tmp"):
        remove_tree(handle, leaf)
    os.close(handle)


def kept_in(dirs, path, was):
    return was if dirs.own(path.rpartition(b"/")[0]) else None


def finalize(rows, gone, kept):
    """Writes down how every path looks now; those that are not what was to be sent are left out and so sent again. A path
    that was left alone (`kept`, by its place) keeps its line: if it is not so any more, the next look finds that out."""
    extra = head_files() if request["seed"] else []
    # Without a stamp nobody trusts the lists while they are being written.
    if os.path.exists(meta + b"/stamp"):
        os.unlink(meta + b"/stamp")
    dirs = Dirs()
    started = time.time_ns()
    found = [kept_in(dirs, row[5], was) if was else look(dirs, row[5]) for row, was in zip(rows, kept)]
    racy = [at for at, now in enumerate(found) if now and not kept[at] and int(now.split(b" ")[4]) > started - RACY_NS]
    if racy:
        # A write right after the look must not be able to carry the change time that was just seen.
        time.sleep(RACY_NS / 1e9)
        again = Dirs()
        for at in racy:
            found[at] = look(again, rows[at][5])
    index, unsettled = [], []
    for at, (row, now) in enumerate(zip(rows, found)):
        if now and (kept[at] or as_sent(row, now.split(b" "))):
            index.append(b"%s %s %s\0" % (row[0], now, row[5]))
        else:
            unsettled.append(at)
    whole = request["fingerprint"] if not unsettled else ""
    head = json.dumps({"version": 1, "fingerprint": whole, "count": len(index)}).encode() + b"\n"
    write(meta + b"/index", [head, b"".join(index), b"-\0", b"".join(path + b"\0" for path in gone)])
    if not unsettled:
        write_stamp([(row[5], now) for row, now in zip(rows, found)], dirs, gone, extra)
        if os.path.exists(meta + b"/pending"):
            os.unlink(meta + b"/pending")
    go = go_dir()
    if os.path.isdir(go) or go.endswith(b"/.git/crabbox"):
        os.makedirs(go, exist_ok=True)
        write(go + b"/sync-manifest", [b"".join(row[5] + b"\0" for row in rows)])
    return unsettled


def seconds(when):
    """Nanoseconds as stat(1) prints them."""
    if len(when) > 10 and when[:1] != b"-":
        return when[:-9] + b"." + when[-9:]
    return b"%d.%09d" % divmod(int(when), 10**9)


def write_stamp(found, dirs, gone, extra):
    """The same knowledge in the form that a shell can check without python: two lists of paths, and the hash of what
    stat(1) says of them. The second list holds directories, which must be directories, and what must be absent."""
    found = found + [(path, seen(path)) for path in extra]
    own = sorted(path for path in dirs.known if path)
    ways = own + gone
    lines = []
    for path, now in found:
        _, mode, size, mtime, ctime, inode = now.split(b" ")
        form = stat.S_IFREG if now[:1] == b"f" else stat.S_IFLNK
        lines.append(b"%x %s %s %s %s %s\0" % (form | int(mode, 8), size, seconds(mtime), seconds(ctime), inode, path))
    for path in own:
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return
        if not stat.S_ISDIR(mode):
            return  # replaced since the look: what is there now shall not pass for what was seen
        lines.append(b"%x %s\0" % (mode, path))
    for path in gone:
        try:
            lines.append(b"%x %s\0" % (os.lstat(path).st_mode, path))
        except OSError:
            pass
    write(meta + b"/paths", [path + b"\0" for path, _ in found])
    write(meta + b"/ways", [path + b"\0" for path in ways])
    write(meta + b"/stamp", [request["fingerprint"].encode(), b" ", sha256(b"".join(lines)).hexdigest().encode(), b"\n"])


def as_sent(row, now):
    kind, mode, size, mtime = row[1:5]
    if kind != now[0] or size != now[2]:
        return False
    if kind == b"f" and int(mode, 8) & 0o777 != int(now[1], 8) & 0o777:
        return False
    # A file system that keeps whole seconds cuts the rest.
    return mtime == now[3] or (int(now[3]) % 1_000_000_000 == 0 and int(mtime) // 10**9 == int(now[3]) // 10**9)


def main():
    trusted = not (request["reset"] or request["distrust"])
    if trusted and check():
        return answer(state="same")
    answer(state="differs")
    rows, gone, stale, kept = prepare(source.read(int(source.readline())))
    seed = seed_state() if request["seed"] else {"needed": False}
    if len(stale) == len(rows) and rows:
        answer(state="stale", all=True, seed=seed)
    elif stale or seed["needed"]:
        answer(state="stale", stale=stale, seed=seed)
    else:
        return answer(state="done", unsettled=finalize(rows, gone, kept))
    for line in source:
        step = line.strip()
        if step == b"seed":
            seeded()
        elif step == b"finalize":
            return answer(state="done", unsettled=finalize(rows, gone, kept))


try:
    main()
except Refused as refused:
    answer(state="failed", why=str(refused))
except OSError as error:
    where = error.filename if error.filename is not None else b""
    where = show(where) if isinstance(where, bytes) else str(where)
    answer(state="failed", why="%s: %s" % (where, error.strerror) if where else str(error.strerror))
