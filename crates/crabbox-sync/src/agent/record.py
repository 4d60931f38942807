# ---- the record of the last finished sync, in parts, so that an edit is written down by looking at its part only
#
# index: a JSON line, then the deleted paths. rows.K: `<identity> <what was seen> <path>` of the files of some directories.
# paths.K, ways, stamp: the same knowledge in the form that a shell can check without python, see agent.rs. hashes: that of
# each list, which together make the stamp.

PARTS = 8
SMALL = 4000  # files below which parts would only be more processes


def part_of(path, parts):
    return zlib.crc32(path.rpartition(b"/")[0]) % parts


@functools.lru_cache(maxsize=1)
def load_head():
    head, _, gone = read(meta + b"/index").partition(b"\n")
    try:
        head = json.loads(head)
    except ValueError:
        return None, []
    return (head, listed(gone)) if head.get("version") == 3 else (None, [])


def load_rows(part):
    """{path: (identity, seen)} of one part."""
    rows = {}
    for row in listed(read(meta + b"/rows.%d" % part)):
        fields = row.split(b" ", 7)
        if len(fields) == 8:
            rows[fields[7]] = (fields[0], row[len(fields[0]) + 1 : len(row) - len(fields[7]) - 1])
    return rows


@functools.lru_cache(maxsize=1)
def load_index():
    """All of it: fingerprint, {path: (identity, seen)}, deleted paths."""
    head, gone = load_head()
    if not head:
        return "", {}, []
    index = {}
    for part in range(head["parts"]):
        index.update(load_rows(part))
    return (head["fingerprint"], index, gone) if head["count"] == len(index) else ("", {}, [])


def unchanged(index, gone):
    dirs = Dirs()
    back = (look(dirs, path) for path in gone)
    return all(look(dirs, path) == row[1] for path, row in index.items()) and not any(
        now and not now.startswith(b"? ") for now in back
    )


def seconds(when):
    """Nanoseconds as stat(1) prints them."""
    if len(when) > 10 and when[:1] != b"-":
        return when[:-9] + b"." + when[-9:]
    return b"%d.%09d" % divmod(int(when), 10**9)


def stat_line(now):
    """Whatever changes a file, its mode or its name changes these two."""
    ctime, inode = now.split(b" ")[4:]
    return b"%s %s\0" % (seconds(ctime), inode)


def write_list(file, paths, lines, hashes):
    """A list for the shell, and the hash of what it will see. xargs does not take an empty one for nothing."""
    if paths:
        write(meta + b"/" + file, [path + b"\0" for path in paths])
        hashes[file.decode()] = sha256(b"".join(lines)).hexdigest()
    else:
        drop(meta + b"/" + file)
        hashes.pop(file.decode(), None)


def write_part(part, rows, hashes):
    """`rows`: (identity, seen, path) each."""
    write(meta + b"/rows.%d" % part, [b"%s %s %s\0" % row for row in rows])
    write_list(b"paths.%d" % part, [row[2] for row in rows], [stat_line(row[1]) for row in rows], hashes)


def write_ways(own, gone, hashes):
    """Directories, which must be directories, and what must be absent. False when a directory is none any more: what is
    there now shall not pass for what was seen."""
    lines = []
    for path in own:
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return False
        if not stat.S_ISDIR(mode):
            return False
        lines.append(b"%x %s\0" % (mode, path))
    for path in gone:
        try:
            lines.append(b"%x %s\0" % (os.lstat(path).st_mode, path))
        except OSError:
            pass
    write(meta + b"/own", [path + b"\0" for path in own])
    write_list(b"ways", own + gone, lines, hashes)
    return True


def write_index(fingerprint, parts, count, gone):
    head = json.dumps({"version": 3, "fingerprint": fingerprint, "parts": parts, "count": count}).encode() + b"\n"
    write(meta + b"/index", [head, *(path + b"\0" for path in gone)])


def write_stamp(fingerprint, hashes):
    # As `sort | sha256sum` make it of what sha256sum says of each list.
    whole = sha256(b"".join(sorted(digest.encode() + b"  -\n" for digest in hashes.values())))
    write(meta + b"/hashes", [json.dumps(hashes).encode()])
    write(meta + b"/stamp", [b"%s %s\n" % (fingerprint.encode(), whole.hexdigest().encode())])
