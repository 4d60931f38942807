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
    fed = {"input": feed} if isinstance(feed, bytes) else {"stdin": feed or subprocess.DEVNULL}  # bytes, or an open file
    done = subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0", *args],
        capture_output=True, env=env, **fed,
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
    """The file that a pack was written to, and the staged changes."""
    pack = meta + b"/tmp/seed.pack"
    staged = counted()
    with open(pack, "wb") as file:
        for frame in frames():
            file.write(frame)
    return pack, staged


def seeded(pack, staged):
    """Makes .git say what the local repository says; leaves files of the working tree alone."""
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
            must_git("index-pack", "--stdin", feed=file)
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


