# Runs commands in microVMs and prints `name microseconds` or `name count` lines; $1 runs, $2 another crabbox or nothing. What fails ends it. The home
# directory is one that xtask made, in the lab or below `target/`.
runs=$1 other=${2-}
work=$HOME/bench-run
end() {
    for slug in bench-ours bench-other; do crabbox stop $slug >/dev/null 2>&1 || true; done
    rm -rf "$work"
}
end
trap end EXIT
mkdir -p "$work/tree"
cd "$work/tree"
for number in $(seq 100); do echo "file $number" >f$number.txt; done
git init -q -b main
git add -A
git commit -qm one
ready() {
    quiet "$1" warmup --provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --slug "$2"
    quiet "$1" run --id "$2" -- true
}
ready crabbox bench-ours
[ -z "$other" ] || ready "$other" bench-other
# Over the connection that crabbox shares itself.
printf '#!/bin/sh\nexec %s "$@"\n' "$(crabbox ssh bench-ours)" >"$work/rsh"
chmod +x "$work/rsh"
# Until nothing here was touched a moment ago.
sleep 1
# How many processes a run starts in the guest: what lies between two that are alike.
started() {
    quiet "$1" run --id "$2" $3 -- grep ^processes /proc/stat
    before=$(sed -n 's/^processes //p' "$work/out")
    quiet "$1" run --id "$2" $3 -- grep ^processes /proc/stat
    echo "$4 $(($(sed -n 's/^processes //p' "$work/out") - before))"
}
for _ in 1 2 3; do
    started crabbox bench-ours '' started
    started crabbox bench-ours --no-sync started_plain
    [ -z "$other" ] || started "$other" bench-other '' other_started
    [ -z "$other" ] || started "$other" bench-other --no-sync other_started_plain
done
for _ in $(seq "$runs"); do
    ms unchanged crabbox run --id bench-ours -- true
    [ -z "$other" ] || ms other_unchanged "$other" run --id bench-other -- true
    ms plain crabbox run --id bench-ours --no-sync -- true
    [ -z "$other" ] || ms other_plain "$other" run --id bench-other --no-sync -- true
    ms trip "$work/rsh" true
done
