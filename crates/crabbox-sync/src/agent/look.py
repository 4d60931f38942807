# ---- looking

def seen(path):
    """Kind, mode, size, mtime, ctime, inode: what stands for the content of a path that a sync brought."""
    return seen_of(os.lstat(path))


def seen_of(st):
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


