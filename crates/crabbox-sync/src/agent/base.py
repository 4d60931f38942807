# The far side of a sync: runs in the lease, once per sync, under python3 -IS, fed over standard input.
#
# It answers "is the workdir what the manifest says", clears what is in the way, takes files, and writes down what it saw
# then. It must never follow a symbolic link out of the workdir when it removes something, and never call a file unchanged
# whose inode does not carry the very times that it carried right after the last sync.
#
# One conversation per sync, a JSON line each way: the request; "same", "patch" or "differs"; then what changed since the
# last sync or the whole manifest, length first; "stale" with what is to be sent, or "done"; then, each when wanted,
# "files" with their contents, "seed" with a pack in frames, and "finalize".
import errno, fcntl, functools, gc, json, os, stat, sys, time, zlib

try:
    from _sha2 import sha256
except ImportError:
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256

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


def now_ns():
    """The time; Python 3.6 has no time.time_ns, and less than a microsecond is lost."""
    return int(time.time() * 1e9)


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


def drop(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def counted():
    return source.read(int(source.readline()))


def listed(data):
    return [path for path in data.split(b"\0") if path]


def entries(data):
    """The manifest and the deleted list: `<identity> <kind> <mode> <size> <mtime> <path>` records, then paths, NUL after
    each; the record `-` parts the two."""
    head, _, gone = (b"\0" + data).partition(b"\0-\0")
    return [row.split(b" ", 5) for row in listed(head)], listed(gone)
