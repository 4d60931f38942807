# Puts a machine of ours beside the leases, as one had it, so that its kernel's command line can be chosen; run as root on a KVM host.
set -e
dir=$HOME/bench-args
rm -rf "$dir"
mkdir -p "$dir"
crabbox warmup --provider firecracker --firecracker-cpus 1 --firecracker-memory-mib 256 --firecracker-disk-mib 2048 --slug bench-args >&2
trap 'crabbox stop bench-args >&2' EXIT
vm=$(dirname "$(find "$HOME/.config/crabbox/state/firecracker/leases" -name initrd.img | head -n 1)")
for file in vmlinux initrd.img base.ext4; do cp --reflink=auto --sparse=always "$vm/$file" "$dir/$file"; done
cd "$dir"
truncate -s 2048M blank.ext4
mke2fs -q -F -t ext4 -O '^has_journal' -E lazy_itable_init=1,nodiscard -m 0 blank.ext4
# The guest has an address and a link, as in a lease; nobody is at the other end.
ip link del bench-args 2>/dev/null || true
ip tuntap add dev bench-args mode tap
ip link set bench-args up
