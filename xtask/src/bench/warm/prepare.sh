# Puts a template's machine beside the leases, so that it can be loaded by hand, and prints the private memory of an idle restored machine in
# KiB (`anon N`); run as root on a KVM host that has the template. $1: options of a lease. The home directory is one that xtask made.
set -e
dir=$HOME/bench-warm
rm -rf "$dir"
mkdir -p "$dir"
said=$(crabbox warmup $1 --slug bench-idle --timing-json 2>&1)
trap 'crabbox stop bench-idle >&2' EXIT
case "$said" in
    *'"leaseSource":"restored"'*) ;;
    *) echo "the machine was not restored from the template: $said" >&2; exit 1 ;;
esac
pid=$(pgrep -f -- '--id [c]rabbox-bench-idle')
sleep 10
sed -n 's/^RssAnon:[[:space:]]*\([0-9]*\) kB/anon \1/p' "/proc/$pid/status"
vm=$(dirname "$(find "$HOME/.config/crabbox/state/firecracker/leases" -name vmstate | head -n 1)")
for file in memory vmstate base.ext4; do ln "$vm/$file" "$dir/$file"; done
ln "$(echo "$HOME"/.config/crabbox/state/firecracker/templates/????????????????*/layer)" "$dir/layer"
# The guest has a link, as in a lease; nobody is at the other end.
ip netns del bench-warm 2>/dev/null || true
ip netns add bench-warm
ip -n bench-warm tuntap add dev tap0 mode tap
ip -n bench-warm link set tap0 up
