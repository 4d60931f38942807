# Syncs a tree into a microVM and prints `name microseconds` lines; $1 files, $2 runs. What fails ends it. The home directory is one
# that xtask made, in the lab or below `target/`.
files=$1 runs=$2
work=$HOME/bench-sync
end() {
    [ ! -e "$work/rsh" ] || "$work/rsh" lease -O exit >/dev/null 2>&1 || true
    crabbox stop bench-sync >/dev/null 2>&1 || true
    rm -rf "$work"
}
end
trap end EXIT
mkdir -p "$work/tree"
cd "$work/tree"
git init -q -b main
git config gc.auto 0
git config maintenance.auto false
# From one stream: adding and packing them takes git many times as long.
awk -v files="$files" 'BEGIN {
    print "commit refs/heads/main\ncommitter b <b@b> 1700000000 +0000\ndata 0"
    for (number = 0; number < files; number++) {
        text = ""
        for (line = 1; line <= 10; line++) text = text "line " line " of file " number ", which is like no other\n"
        printf "M 100644 inline d%d/f%d.txt\ndata %d\n%s\n", int(number / 100), number, length(text), text
    }
}' | git fast-import --quiet
git reset -q --hard main
quiet crabbox warmup --provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --slug bench-sync
# A shell for rsync, on one connection, as crabbox has it; the first word is the host, which is in the command already.
printf '#!/bin/sh\nshift\nexec %s -o ControlMaster=auto -o ControlPersist=10m -o ControlPath=%s "$@"\n' \
    "$(crabbox ssh bench-sync)" "$work/master" >"$work/rsh"
chmod +x "$work/rsh"
there() { "$work/rsh" lease "$@"; }
sync() { crabbox run --id bench-sync --sync-only; }
rsync_a() { rsync -a -e "$work/rsh" "$@" ./ lease:/tmp/plain/; }
quiet there true
for _ in 1 2 3; do
    there 'find /work/crabbox/cbx_* -mindepth 1 -delete; rm -rf /tmp/plain'
    ms first sync
    ms whole rsync_a
    there 'rm -rf /tmp/plain'
    ms bare rsync_a --exclude=/.git
done
# Until nothing here was touched a moment ago.
sleep 1
quiet sync
for _ in $(seq "$runs"); do
    ms status git status --porcelain
    ms noop sync
    ms trip there true
done
for number in $(seq "$runs"); do
    echo "edit $number" >d0/f0.txt
    sleep 0.3
    ms edit sync
    ms edit_rsync rsync_a --exclude=/.git
done
