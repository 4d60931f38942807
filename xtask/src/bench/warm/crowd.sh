# Leases that come of the template, all begun at once; run as root on a KVM host. $1: options of a lease, $2: how many. Prints `alone MICROSECONDS`, the
# processors' time for one of them by itself, `processors N`, `crowd MICROSECONDS` by the clock for all, and `restored N`, how many were.
set -eu
machine=$1 count=$2 dir=$HOME/bench-warm-crowd
end() {
    for number in 0 $(seq "$count"); do crabbox stop bench-crowd-$number >/dev/null 2>&1 || true; done
    rm -rf "$dir"
}
trap end EXIT
mkdir -p "$dir"
lease() { crabbox warmup $machine --firecracker-warm auto --slug bench-crowd-$1 --timing-json >"$dir/$1" 2>&1; }
# All but what the processors idle and wait for disks, in hundredths of a second (proc_stat(5)).
busy() { awk '/^cpu /{print $2 + $3 + $4 + $7 + $8}' /proc/stat; }
before=$(busy)
lease 0 || { cat "$dir/0" >&2; exit 1; }
echo "alone $((($(busy) - before) * 10000))"
crabbox stop bench-crowd-0 >/dev/null 2>&1
echo "processors $(nproc)"
begun=$(date +%s%N)
all=
for number in $(seq "$count"); do
    lease "$number" &
    all="$all $!"
done
for pid in $all; do wait "$pid" || true; done
echo "crowd $((($(date +%s%N) - begun) / 1000))"
restored=0
for number in $(seq "$count"); do
    if grep -q '"leaseSource":"restored"' "$dir/$number"; then
        restored=$((restored + 1))
    else
        echo "not restored: $(grep -v '^{' "$dir/$number" | tail -n 1)"
    fi
done
echo "restored $restored"
