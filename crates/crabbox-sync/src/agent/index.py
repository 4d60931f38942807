# ---- git's index, so that what is clean on the client's side is clean here: git trusts the times that the index has of a file
#
# What the client's git took for unchanged gets the times of the file that came, and git does not look into it: the filter, or
# whatever else made the two alike there, need not exist here. Everything else has no times, and git compares it. The format is
# that of gitformat-index(5), versions 2 and 3; in another one, the guest's, the index is made anew.
import struct

ASSUMED, SKIPPED, INTENDED, HOLLOW = 1, 2, 4, 8  # as `mark.rs` has them
VALID, EXTENDED, STAGE = 0x8000, 0x4000, 0x3000  # bits of an entry's flags
BIT_SKIPPED, BIT_INTENDED = 0x4000, 0x2000  # of its second flags
GITLINK = 0o160000
INDEX = b".git/index"


def sha1(data):
    try:
        from _sha1 import sha1 as hash
    except ImportError:
        from hashlib import sha1 as hash
    return hash(data)


class Index:
    """Its bytes, and where its entries are: (start, name, end of the name, flags), and the end of the last one."""

    def __init__(self):
        data = self.data = read(INDEX)
        for self.ids, hash in ((20, sha1), (32, sha256)):
            if hash(data[: -self.ids]).digest() == data[-self.ids :]:
                break
        else:
            raise Refused("git's index has another checksum than its own")
        mark, version, count = struct.unpack_from(">4sII", data)
        if mark != b"DIRC" or version not in (2, 3):
            raise Refused("git's index has version %d" % version)
        at, rest, self.entries = 12, 42 + self.ids, []
        for _ in range(count):
            flags = data[at + rest - 2] << 8 | data[at + rest - 1]
            name = at + rest + (2 if flags & EXTENDED else 0)
            length = flags & 0xFFF
            stop = name + length if length < 0xFFF else data.index(b"\0", name)
            self.entries.append((at, name, stop, flags))
            at += (stop - at) // 8 * 8 + 8
        self.end = at

    def digest(self):
        """Of all that it says, but for the times: these change whenever git looks."""
        parts = []
        for at, _, stop, _ in self.entries:
            parts += (self.data[at + 24 : at + 28], self.data[at + 40 : stop])
        return sha256(b"\0".join(parts)).hexdigest()

    def write(self, changes):
        """Writes it with (place in the entries, times, flags, second flags) in place of what it has."""
        data, parts, last = self.data, [], 12
        ids, version = self.ids, 2
        for place, times, flags, more in changes:
            at, name, stop, _ = self.entries[place]
            end = at + (stop - at) // 8 * 8 + 8
            entry = times + data[at + 40 : at + 40 + ids]
            if more:
                entry += struct.pack(">HH", flags | EXTENDED, more)
            else:
                entry += struct.pack(">H", flags & ~EXTENDED)
            entry += data[name:stop]
            parts += (data[last:at], entry, b"\0" * (8 - len(entry) % 8))
            last = end
        parts.append(data[last : self.end])
        if any(change[3] for change in changes) or any(entry[3] & EXTENDED for entry in self.entries):
            version = 3
        body = struct.pack(">4sII", b"DIRC", version, len(self.entries)) + b"".join(parts) + self.trees()
        hash = sha1 if ids == 20 else sha256
        write(INDEX, [body, hash(body).digest()])

    def trees(self):
        """The extension that knows the trees of directories; others are hints, and some hold places in the file."""
        at, stop = self.end, len(self.data) - self.ids
        while at + 8 <= stop:
            size = 8 + struct.unpack_from(">I", self.data, at + 4)[0]
            if self.data[at : at + 4] == b"TREE":
                return self.data[at : at + size]
            at += size
        return b""


def times_of(dirs, path, known, mode):
    """What the index keeps of a file's stat(2), if it still is what this sync saw there."""
    try:
        if not known or not dirs.own(path.rpartition(b"/")[0]):
            return None
        st = os.lstat(path)
    except OSError:
        return None
    if seen_of(st) != known:
        return None
    word = 0xFFFFFFFF
    (ctime, ctime_ns), (mtime, mtime_ns) = divmod(st.st_ctime_ns, 10**9), divmod(st.st_mtime_ns, 10**9)
    return struct.pack(
        ">10I", ctime & word, ctime_ns, mtime & word, mtime_ns, st.st_dev & word, st.st_ino & word, mode,
        st.st_uid, st.st_gid, st.st_size & word,
    )


class IndexWork:
    """What a sync has to do about the index. `whole`: it was made anew."""

    def __init__(self, sync):
        before = set(listed(read(meta + b"/unlike")))
        sent = {sync.rows[at][5] for at in sync.stale}
        self.sync, self.whole, self.failed = sync, False, False
        self.trusted = (sent | before) - sync.unlike
        self.doubted = sync.unlike - before - sent

    def is_lost(self):
        """Whether there is something to do in an index that is not as a sync left it."""
        if not self.trusted and not self.doubted:
            return False
        try:
            return Index().digest() != read(meta + b"/seed").split(b"\n")[3].decode()
        except (Refused, IndexError, struct.error, ValueError):
            return True

    def finish(self):
        """Does it, when the files are there. A failure harms nothing else, and is told."""
        if not request["seed"] or self.failed:
            return {}
        try:
            if self.whole or self.trusted or self.doubted:
                index = Index()
                late = self.write(index)
                self.outlive(late)
                if self.whole:
                    write_seed(index.digest() if not self.marks else Index().digest())
            write(meta + b"/unlike", [path + b"\0" for path in self.sync.unlike])
            for path in listed(read(meta + b"/hollow")):
                make_directory(path)
        except (OSError, Refused, struct.error, ValueError, IndexError) as error:
            drop(meta + b"/seed")
            return {"unseeded": str(error)}
        return {}

    def write(self, index):
        """Gives the files that git would have to compare, because they are not older than the index."""
        data, dirs, changes, known = index.data, Dirs(), [], self.sync.known
        written = os.stat(INDEX).st_mtime_ns // 10**9
        trusted = {}
        for place, (at, name, stop, flags) in enumerate(index.entries):
            path = data[name:stop]
            more = struct.unpack_from(">H", data, name - 2)[0] if flags & EXTENDED else 0
            if self.whole:
                marks = self.marks.get(path, 0)
                flags |= VALID if marks & ASSUMED else 0
                more |= (BIT_SKIPPED if marks & SKIPPED else 0) | (BIT_INTENDED if marks & INTENDED else 0)
                trust, doubt = path not in self.sync.unlike, bool(marks)
            else:
                trust = path in self.trusted
                # What git would compare because it is not older than the index must not be trusted for being older than the new one.
                late = int.from_bytes(data[at + 8 : at + 12], "big") >= written
                doubt = path in self.doubted or (late and not flags & STAGE)
            mode = struct.unpack_from(">I", data, at + 24)[0]
            times = None
            if trust and not flags & STAGE and mode != GITLINK:
                times = times_of(dirs, path, known(path), mode)
            if times:
                trusted[path] = times
            elif trust or doubt:
                times = bytes(24) + data[at + 24 : at + 28] + bytes(12)
            if times:
                changes.append((place, times, flags, more))
        index.write(changes)
        written = os.stat(INDEX).st_mtime_ns // 10**9
        mtimes = {path: int.from_bytes(times[8:12], "big") for path, times in trusted.items()}
        return {path: mtime for path, mtime in mtimes.items() if mtime >= written}

    def outlive(self, late):
        """Makes the index younger than those of the files that git would find changed if it compared them. A file that changes in
        the second in which the index is written looks unchanged, so that second has to pass."""
        if not late:
            return
        paths = sorted(late) if len(late) <= 1000 else []
        asked = must_git("--literal-pathspecs", "diff-files", "--name-only", "-z", "--", *paths)
        wrong = [late[path] for path in listed(asked) if path in late]
        if not wrong:
            return
        younger = max(wrong) + 1
        time.sleep(min(max(younger - time.time(), 0), 1))
        now = max(now_ns(), younger * 10**9)
        os.utime(INDEX, ns=(now, now))


def keep_hollow(paths):
    """Notes the directories of submodules. One that is gone on the client's side goes here, if nothing is in it."""
    for path in set(listed(read(meta + b"/hollow"))).difference(paths):
        try:
            if Dirs().own(path):
                os.rmdir(path)
        except OSError:
            pass  # the guest's own files
    write(meta + b"/hollow", [path + b"\0" for path in paths])


def make_directory(path):
    """Makes a directory of the tree, where nothing else is in its place."""
    dirs, at = Dirs(), b""
    for part in path.split(b"/"):
        if not dirs.own(at):
            return
        at = at + b"/" + part if at else part
        try:
            os.mkdir(at)
        except FileExistsError:
            pass
