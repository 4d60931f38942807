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
    """Whether the repository must be brought up to date, and the commits that it has from the last time."""
    known = read(meta + b"/seed").split(b"\n")
    if len(known) not in (4, 5) or not os.path.isdir(b".git/objects"):  # an earlier version knew no base
        return {"needed": True, "have": ""}
    now = [b"%s %s" % (path, seen(path)) for path in head_files()]
    same = known[0] == request["seed"]["id"].encode() and known[2] == sha256(b"\0".join(now)).hexdigest().encode()
    return {"needed": not same, "have": known[1].decode(), "have_base": b"".join(known[4:]).decode()}


SETTINGS = b"crabbox/settings"  # below .git, beside what the Go program keeps there
PLAIN_INDEX = [
    word
    for setting in ("index.version=2", "index.sparse=false", "index.skipHash=false", "core.splitIndex=false", "core.untrackedCache=false")
    for word in ("-c", setting)
]


def run_git(*args, feed=None):
    import subprocess

    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env["LC_ALL"] = "C"
    fed = {"input": feed} if isinstance(feed, bytes) else {"stdin": feed or subprocess.DEVNULL}  # bytes, or an open file
    done = subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **fed,
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


def take_seed():
    """The file that a pack was written to, and before it the staged changes, the marks, the settings, the attributes and the
    commits that are to have no parents."""
    pack = meta + b"/tmp/seed.pack"
    parts = [counted() for _ in range(5)]
    with open(pack, "wb") as file:
        for frame in frames():
            file.write(frame)
    return pack, parts


def seeded(work, pack, parts):
    """Makes .git say what the local repository says; leaves files of the working tree alone."""
    staged, marks, settings, attributes, roots = parts
    work.whole, work.failed, work.marks = True, True, {}
    try:
        for mark in listed(marks):
            flags, _, path = mark.partition(b" ")
            work.marks[path] = work.marks.get(path, 0) | int(flags)
        apply_seed(pack, staged, roots.split())
        configure(settings, attributes)
        keep_hollow([path for path, flags in work.marks.items() if flags & HOLLOW])
        work.failed = False
        answer(state="seeded")
    except Refused as refused:
        answer(state="unseeded", why=str(refused))
    except (OSError, ImportError) as error:
        answer(state="unseeded", why=str(error))
    finally:
        os.unlink(pack)


def object_format(staged):
    """What git init is told, by the length of the ids that come: sha256 has 64 digits (git-init(1))."""
    first = staged.split(b"\0")[0].split()
    ids = [request["seed"]["head"].encode()] + first[1:2]
    return ["--object-format=sha256"] if any(len(one) == 64 for one in ids) else []


def apply_seed(pack, staged, roots):
    seed = request["seed"]
    if not git_dir_is_ours():
        raise Refused(".git in the workdir is not a directory")
    if os.path.exists(meta + b"/seed"):
        os.unlink(meta + b"/seed")
    if not os.path.isdir(b".git/objects"):
        must_git("init", "-q", "--template=", *object_format(staged), ".")
    if os.path.exists(b".git/index.lock"):
        os.unlink(b".git/index.lock")  # no command runs during a sync: a dead one left it
    if os.path.getsize(pack):
        with open(pack, "rb") as file:
            must_git("index-pack", "--stdin", feed=file)
    head, branch, base = seed["head"], seed["branch"], seed.get("base")
    if head:
        cut_off(head.encode(), roots, base)
    if branch:
        must_git("symbolic-ref", "HEAD", "refs/heads/" + branch)
        if head:
            must_git("update-ref", "refs/heads/" + branch, head)
        else:
            run_git("update-ref", "-d", "refs/heads/" + branch)
    else:
        must_git("update-ref", "--no-deref", "HEAD", head)
    # A new one, of the plainest format: nothing that the guest said in the old one is of use.
    drop(INDEX)
    must_git(*PLAIN_INDEX, "read-tree", *(["--reset", head] if head else ["--empty"]))
    must_git(*PLAIN_INDEX, "update-index", "-z", "--index-info", feed=staged)
    if seed["origin"]:
        must_git("config", "remote.origin.url", seed["origin"])
    for ref in base["refs"] if base else []:
        must_git("update-ref", "--no-deref", ref, base["id"])
    exclude = read(b".git/info/exclude")
    if b"/.crabbox/" not in exclude.splitlines():
        os.makedirs(b".git/info", exist_ok=True)
        write(b".git/info/exclude", [exclude, b"" if exclude.endswith(b"\n") or not exclude else b"\n", b"/.crabbox/\n"])


def is_cut_off(commit):
    """Whether it is here, and a parent of it is not."""
    lines = run_git("cat-file", "commit", commit)[1].split(b"\n\n")[0].splitlines()
    parents = [line[7:].decode() for line in lines if line.startswith(b"parent ")]
    return any(run_git("cat-file", "-e", parent)[0] for parent in parents)


def cut_off(head, roots, base):
    """Tells git which commits it is to take for the first ones: those that came as such, and those whose parents are not here.
    One that was the first by an earlier sync is none any more when what is before it has come."""
    known = read(b".git/shallow").split()
    first = set(roots)
    if base:
        first.update(commit for commit in {*known, head} - first if is_cut_off(commit.decode()))
    else:
        first.update(known)
        if head not in first and is_cut_off(head.decode()):
            first.add(head)
    if first != set(known):
        write(b".git/shallow", [line + b"\n" for line in sorted(first)])


def write_seed(digest):
    """Notes that the repository is as it was to be, and that its index has this digest."""
    seed = request["seed"]
    now = [b"%s %s" % (path, seen(path)) for path in head_files()]
    base = seed.get("base") or {"id": ""}
    lines = [seed["id"], seed["head"], sha256(b"\0".join(now)).hexdigest(), digest, base["id"]]
    write(meta + b"/seed", ["\n".join(lines).encode()])


def configure(settings, attributes):
    """Takes over the settings and attributes that decide whether git finds a file unchanged. Those that the guest made for itself
    stay, as long as the client has none."""
    if settings or os.path.exists(b".git/" + SETTINGS):
        os.makedirs(b".git/crabbox", exist_ok=True)
        write(b".git/" + SETTINGS, [settings])
        if SETTINGS not in read(b".git/config"):
            must_git("config", "--add", "include.path", SETTINGS.decode())
    ours = meta + b"/attributes"
    if attributes:
        os.makedirs(b".git/info", exist_ok=True)
        write(b".git/info/attributes", [attributes])
        write(ours, [attributes])
    elif os.path.exists(ours):
        if read(b".git/info/attributes") == read(ours):
            drop(b".git/info/attributes")
        drop(ours)


