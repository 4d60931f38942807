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


