# Prints one JSON line for each file and link in the repositories of the directory given, git's own left out:
# path (hex), and then mode, size, time and content.
import hashlib, json, os, stat, sys

os.chdir(sys.argv[1])
# What belongs to no repository begins with a dot.
todo = [name for name in os.listdir(b".") if not name.startswith(b".")]
top = set(todo)
while todo:
    here = todo.pop()
    for entry in os.scandir(here):
        at = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(at.st_mode):
            # A repository has its directory at the top; anything of that name further down is a tree's.
            if entry.name != b".git" or here not in top:
                todo.append(entry.path)
            continue
        if stat.S_ISLNK(at.st_mode):
            content = os.readlink(entry.path).hex()
        else:
            digest = hashlib.sha256()
            with open(entry.path, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
            content = digest.hexdigest()
        print(json.dumps([entry.path.hex(), f"{at.st_mode:o} {at.st_size} {at.st_mtime_ns} {content}"]))
