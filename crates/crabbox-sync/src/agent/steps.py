# ---- steps

def enter():
    os.makedirs(lease, exist_ok=True)
    if request["reset"]:
        handle = os.open(lease, DIR & ~os.O_NOFOLLOW)
        remove_tree(handle, name)
        os.close(handle)
        for file in (b"/stamp", b"/index", b"/pending", b"/seed", b"/unlike", b"/hollow", b"/attributes"):
            drop(meta + file)
    for path in (workdir, lease + b"/.crabbox-sync", meta, meta + b"/tmp"):
        try:
            os.mkdir(path, 0o700 if path != workdir else 0o755)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise Refused("%s is not a directory" % show(path))
    os.chdir(workdir)
    # The far side of a client that died may still be at work here.
    global lock
    lock = os.open(meta + b"/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    handle = os.open(meta + b"/tmp", DIR)
    for leaf in os.listdir(meta + b"/tmp"):
        remove_tree(handle, leaf)
    os.close(handle)


def check():
    try:
        os.chdir(workdir)
    except OSError:
        return False
    fingerprint, index, gone = load_index()
    if fingerprint != request["fingerprint"] or not unchanged(index, gone):
        return False
    return not request["seed"] or not seed_state()["needed"]


class Whole:
    """A sync by the whole manifest."""

    def __init__(self, data):
        enter()
        self.rows, self.gone = entries(data)
        _, index, _ = load_index()
        ours = set(index)
        ours.update(row[5] for row in entries(read(meta + b"/pending"))[0])
        go = go_dir()
        if not ours:
            ours.update(listed(read(go + b"/sync-manifest")))
        drop(go + b"/sync-fingerprint")
        wanted = {row[5] for row in self.rows}
        lost = sorted(ours - wanted)
        prune_all(lost, [path for path in self.gone if path not in wanted], data)
        dirs = Dirs()
        # By its place: what was seen of a path that is left alone.
        self.kept = [None] * len(self.rows)
        for at, row in enumerate(self.rows):
            known = index.get(row[5])
            fresh = known and known[0] == row[0] and row[0] != b"0" and not request["distrust"]
            if fresh and look(dirs, row[5]) == known[1]:
                self.kept[at] = known[1]
        self.stale = [at for at, was in enumerate(self.kept) if not was]
        make_way(self.rows[at][5] for at in self.stale)
        self.unlike = set(listed(counted()))

    def lay(self):
        dirs = Dirs()
        found, unsettled = settled(dirs, self.rows, self.kept)
        self.found = found
        parts = PARTS if len(found) > SMALL else 1
        split = [[] for _ in range(parts)]
        for row in found:
            split[part_of(row[2], parts)].append(row)
        hashes = {}
        for part, rows in enumerate(split):
            write_part(part, rows, hashes)
        for part in range(parts, PARTS):
            drop(meta + b"/paths.%d" % part)
        return parts, len(found), hashes, sorted(path for path in dirs.known if path), self.gone, unsettled

    def known(self, path):
        """What was seen at a path when everything was there; none when it is not of this tree."""
        if not isinstance(self.found, dict):
            self.found = {row[2]: row[1] for row in self.found}
        return self.found.get(path)

    def tell(self):
        tell_go(lambda: [row[5] for row in self.rows])


class Patch:
    """A sync by what changed since the last one, in a workdir that is as that one left it."""

    def __init__(self, data, removed):
        enter()
        self.rows, self.gone = entries(data)
        self.removed = listed(removed)
        self.unlike = set(listed(counted()))
        head, _ = load_head()
        self.parts, self.count = head["parts"], head["count"]
        self.hashes = json.loads(read(meta + b"/hashes"))
        self.own = set(listed(read(meta + b"/own")))
        self.touched = {part_of(path, self.parts): None for path in self.removed}
        self.touched.update((part_of(row[5], self.parts), None) for row in self.rows)
        for part in self.touched:
            self.touched[part] = load_rows(part)
            self.count -= len(self.touched[part])
        drop(go_dir() + b"/sync-fingerprint")
        prune_all(self.removed, self.gone, data)
        self.stale = list(range(len(self.rows)))
        make_way(row[5] for row in self.rows)

    def lay(self):
        dirs = Dirs()
        found, unsettled = settled(dirs, self.rows, [None] * len(self.rows))
        self.moved = bool(self.removed)
        for path in self.removed:
            self.touched[part_of(path, self.parts)].pop(path, None)
            self.own.discard(path)
        self.own.difference_update(row[5] for row in self.rows)
        for row in self.rows:
            self.moved |= not self.touched[part_of(row[5], self.parts)].pop(row[5], None)
        for identity, now, path in found:
            self.touched[part_of(path, self.parts)][path] = (identity, now)
        for part, rows in self.touched.items():
            self.count += len(rows)
            write_part(part, [(*row, path) for path, row in rows.items()], self.hashes)
        # A directory that is gone had nothing left in it, or else its files are missed by the next look.
        own = (self.own | {path for path in dirs.known if path}) - {path for path in self.own if not os.path.lexists(path)}
        return self.parts, self.count, self.hashes, sorted(own), self.gone, unsettled

    def known(self, path):
        """As of the whole sync."""
        part = part_of(path, self.parts)
        if part not in self.touched:
            self.touched[part] = load_rows(part)
        return self.touched[part].get(path, (None, None))[1]

    def tell(self):
        if self.moved:
            tell_go(lambda: sorted(
                path for part in range(self.parts) for path in listed(read(meta + b"/paths.%d" % part))
            ))


class Laying:
    """Looks at what came and writes the lists of it, beside what the conversation waits for."""

    def __init__(self, sync):
        import threading

        self.sync, self.laid, self.error = sync, None, None
        sys.setswitchinterval(0.0005)  # whoever has waited for git goes on soon
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            self.laid = self.sync.lay()
        except BaseException as error:
            self.error = error

    def done(self):
        self.thread.join()
        if self.error:
            raise self.error
        return self.laid


def finalize(sync, work, laid):
    told = work.finish()
    conclude(*laid)
    sync.tell()
    answer(state="done", unsettled=laid[-1], **told)


def prune_all(lost, gone, data):
    """Prunes `lost`, which earlier syncs brought, and `gone`. What is to go stays known until it is gone, and what this sync
    brings is known before it comes, even if it breaks off."""
    if request["delete"]:
        write(meta + b"/pending", [*(b"0 f 0 0 0 " + path + b"\0" for path in lost), data])
        for path in lost + gone:
            prune(path)
    if lost or not request["delete"]:
        write(meta + b"/pending", [data])


def settled(dirs, rows, kept):
    """How every path looks now, as (identity, seen, path), and the places of those that are not what was to be sent: they
    are left out, and so sent again. A path that was left alone keeps its line: if it is not so any more, the next look
    finds that out."""
    # Without a stamp nobody trusts the lists while they are being written.
    drop(meta + b"/stamp")
    started = now_ns()
    seen_now = [
        (was if dirs.own(row[5].rpartition(b"/")[0]) else None) if was else look(dirs, row[5])
        for row, was in zip(rows, kept)
    ]
    racy = [
        at for at, now in enumerate(seen_now) if now and not kept[at] and int(now.split(b" ")[4]) > started - RACY_NS
    ]
    if racy:
        # A write right after the look must not be able to carry the change time that was just seen.
        time.sleep(RACY_NS / 1e9)
        again = Dirs()
        for at in racy:
            seen_now[at] = look(again, rows[at][5])
    found, unsettled = [], []
    for at, (row, now) in enumerate(zip(rows, seen_now)):
        if now and (kept[at] or as_sent(row, now.split(b" "))):
            found.append((row[0], now, row[5]))
        else:
            unsettled.append(at)
    return found, unsettled


def conclude(parts, count, hashes, own, gone, unsettled):
    """Writes down the rest. Only a sync that brought everything gets a stamp."""
    heads = [(path, seen(path)) for path in (head_files() if request["seed"] else [])]
    write_list(b"paths.heads", [path for path, _ in heads], [stat_line(now) for _, now in heads], hashes)
    stamped = write_ways(own, gone, hashes)
    write_index("" if unsettled else request["fingerprint"], parts, count, gone)
    if not unsettled:
        if stamped:
            write_stamp(request["fingerprint"], hashes)
        drop(meta + b"/pending")


def tell_go(paths):
    go = go_dir()
    if os.path.isdir(go) or go.endswith(b"/.git/crabbox"):
        os.makedirs(go, exist_ok=True)
        write(go + b"/sync-manifest", [path + b"\0" for path in paths()])


def as_sent(row, now):
    kind, mode, size, mtime = row[1:5]
    if kind != now[0] or size != now[2]:
        return False
    if kind == b"f" and int(mode, 8) & 0o777 != int(now[1], 8) & 0o777:
        return False
    # A file system that keeps whole seconds cuts the rest.
    return mtime == now[3] or (int(now[3]) % 1_000_000_000 == 0 and int(mtime) // 10**9 == int(now[3]) // 10**9)


def may_patch():
    """Whether the workdir is, by the shell's look, as a sync left it whose manifest the client still has."""
    head, _ = load_head()
    base = request["base"]
    return sys.argv[1:] == ["kept"] and base and head and head["fingerprint"].partition(".")[0] == base


def main():
    trusted = not (request["reset"] or request["distrust"])
    if trusted and may_patch() and head_differs():
        answer(state="patch")
        sync = Patch(counted(), counted())
    elif trusted and check():
        return answer(state="same")
    else:
        answer(state="differs")
        sync = Whole(counted())
    work = IndexWork(sync)
    seed = seed_state() if request["seed"] else {"needed": False}
    if request["seed"] and not seed["needed"] and work.is_lost():
        seed["needed"] = True
    # Until one has come: in the index of another commit nothing is to look unchanged.
    work.failed = seed["needed"]
    if len(sync.stale) == len(sync.rows) and sync.rows:
        answer(state="stale", all=True, seed=seed)
    elif sync.stale or seed["needed"]:
        answer(state="stale", stale=sync.stale, seed=seed)
    else:
        return finalize(sync, work, sync.lay())
    laying = None
    for line in source:
        step = line.strip()
        if step == b"files":
            receive(sync.rows)
            answer(state="received")
        elif step == b"seed":
            taken = take_seed()
            laying = Laying(sync)
            seeded(work, *taken)
        elif step == b"finalize":
            laid = laying.done() if laying else sync.lay()
            return finalize(sync, work, laid)


def head_differs():
    return load_head()[0]["fingerprint"] != request["fingerprint"]


try:
    main()
except Refused as refused:
    answer(state="failed", why=str(refused))
except OSError as error:
    where = error.filename if error.filename is not None else b""
    where = show(where) if isinstance(where, bytes) else str(where)
    why = str(error.strerror)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why += " (in the lease: remove something there, or take a lease with a larger disk)"
    answer(state="failed", why="%s: %s" % (where, why) if where else why)
