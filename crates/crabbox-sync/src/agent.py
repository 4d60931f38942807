# The far side of a sync: runs in the lease, once per step, under python3 -IS, fed over standard input.
#
# It answers "is the workdir what the manifest says", clears what is in the way, and writes down what it saw after rsync.
# It must never follow a symbolic link out of the workdir when it removes something, and never call a file unchanged
# whose inode does not carry the very times that it carried right after the last sync.
import functools, json, os, stat, sys, time

DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
RACY_NS = 20_000_000  # two ticks of a slow kernel: two writes closer than this can carry one change time
source = sys.stdin.buffer
request = json.loads(source.readline())
lease = request["lease_dir"].encode()
name = request["name"].encode()
workdir = lease + b"/" + name
meta = lease + b"/.crabbox-sync/" + name
sys.setrecursionlimit(20000)


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


def with_parent(path, act):
    """Calls `act(fd, leaf)` in the directory that holds `path`, then drops the directories that this left empty. Does
    nothing when the way there is not made of directories: then the path is not ours."""
    *above, leaf = path.split(b"/")
    handles = [os.open(b".", DIR)]
    try:
        for part in above:
            handles.append(os.open(part, DIR, dir_fd=handles[-1]))
    except (FileNotFoundError, NotADirectoryError):
        above = None
    try:
        if above is None or not act_in(handles[-1], leaf, act):
            return
        while above:
            mode = writable(handles[-2])
            try:
                os.rmdir(above.pop(), dir_fd=handles[-2])
            except OSError:
                return
            finally:
                if mode is not None:
                    os.chmod("/proc/self/fd/%d" % handles[-2], mode)
            os.close(handles.pop())
    finally:
        for handle in handles:
            os.close(handle)


def act_in(fd, leaf, act):
    try:
        os.stat(leaf, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    mode = writable(fd)
    try:
        return act(fd, leaf)
    finally:
        if mode is not None:
            os.chmod("/proc/self/fd/%d" % fd, mode)


def unlink_file(fd, leaf):
    if stat.S_ISDIR(os.stat(leaf, dir_fd=fd, follow_symlinks=False).st_mode):
        return False  # a directory where we had a file: the guest's own
    os.unlink(leaf, dir_fd=fd)
    return True


def remove_any(fd, leaf):
    remove_tree(fd, leaf)
    return True


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
                # Only the thing itself: an emptied parent will be needed.
                with_parent(at, lambda fd, leaf: os.unlink(leaf, dir_fd=fd))
                break
            dirs.known[at] = True
        else:
            try:
                st = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISDIR(st.st_mode):
                with_parent(path, lambda fd, leaf: remove_tree(fd, leaf))


# ---- the Go program's own files, so that both may sync into one lease

def go_dir():
    git = workdir + b"/.git"
    return git + b"/crabbox" if os.path.isdir(git) and not os.path.islink(git) else workdir + b"/.crabbox"


# ---- steps

def enter():
    os.makedirs(lease, exist_ok=True)
    if request["reset"]:
        handle = os.open(lease, DIR & ~os.O_NOFOLLOW)
        remove_tree(handle, name)
        os.close(handle)
        for file in (b"/index", b"/pending", b"/seed"):
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
    return fingerprint == request["fingerprint"] and unchanged(index, gone)


def prepare(data):
    enter()
    rows, gone = entries(data)
    load_index.cache_clear()
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
                with_parent(path, unlink_file)
    write(meta + b"/pending", [data])
    remove_leftovers()
    dirs = Dirs()
    stale = []
    for at, row in enumerate(rows):
        known = index.get(row[5])
        fresh = known and known[0] == row[0] and row[0] != b"0" and not request["distrust"]
        if not (fresh and look(dirs, row[5]) == known[1]):
            stale.append(at)
    make_way(rows[at][5] for at in stale)
    return rows, gone, stale


def remove_leftovers():
    handle = os.open(meta + b"/tmp", DIR)
    for leaf in os.listdir(meta + b"/tmp"):
        remove_tree(handle, leaf)
    os.close(handle)


def finalize(rows, gone):
    """Writes down how every path looks now; those that are not what was to be sent are left out and so sent again."""
    dirs = Dirs()
    found = [look(dirs, row[5]) for row in rows]
    newest = max((int(now.split(b" ")[4]) for now in found if now), default=0)
    if newest > time.time_ns() - RACY_NS:
        # A write right after this look must not be able to carry the change time that was just seen.
        time.sleep(RACY_NS / 1e9)
        found = [look(dirs, row[5]) for row in rows]
    index, unsettled = [], []
    for at, (row, now) in enumerate(zip(rows, found)):
        if now and as_sent(row, now.split(b" ")):
            index.append(b"%s %s %s\0" % (row[0], now, row[5]))
        else:
            unsettled.append(at)
    whole = request["fingerprint"] if not unsettled else ""
    head = json.dumps({"version": 1, "fingerprint": whole, "count": len(index)}).encode() + b"\n"
    write(meta + b"/index", [head, b"".join(index), b"-\0", b"".join(path + b"\0" for path in gone)])
    if not unsettled:
        os.unlink(meta + b"/pending")
    go = go_dir()
    if os.path.isdir(go) or go.endswith(b"/.git/crabbox"):
        os.makedirs(go, exist_ok=True)
        write(go + b"/sync-manifest", [b"".join(row[5] + b"\0" for row in rows)])
    return unsettled


def as_sent(row, now):
    kind, mode, size, mtime = row[1:5]
    if kind != now[0] or size != now[2]:
        return False
    if kind == b"f" and int(mode, 8) & 0o777 != int(now[1], 8) & 0o777:
        return False
    # A file system that keeps whole seconds cuts the rest.
    return mtime == now[3] or (int(now[3]) % 1_000_000_000 == 0 and int(mtime) // 10**9 == int(now[3]) // 10**9)


def main():
    step = request["step"]
    if step == "finalize":
        os.chdir(workdir)
        rows, gone = entries(read(meta + b"/pending"))
        return answer(state="done", unsettled=finalize(rows, gone))
    if not (request["reset"] or request["distrust"] or request["checked"]) and check():
        return answer(state="same")
    if step == "check":
        return answer(state="differs")
    rows, gone, stale = prepare(source.read())
    if not stale:
        return answer(state="done", unsettled=finalize(rows, gone))
    if len(stale) == len(rows):
        return answer(state="stale", all=True)
    return answer(state="stale", stale=stale)


try:
    main()
except Refused as refused:
    answer(state="failed", why=str(refused))
except OSError as error:
    where = error.filename if error.filename is not None else b""
    where = show(where) if isinstance(where, bytes) else str(where)
    answer(state="failed", why="%s: %s" % (where, error.strerror) if where else str(error.strerror))
