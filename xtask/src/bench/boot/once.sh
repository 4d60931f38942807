# Boots the machine of prepare.sh once with the kernel arguments $1; prints `whole MILLISECONDS` and what the guest said.
set -e
cd "$HOME/bench-args"
cp --sparse=always blank.ext4 layer.ext4
rm -f console
mkfifo console
cat > machine.json <<J
{ "boot-source": { "kernel_image_path": "vmlinux", "initrd_path": "initrd.img", "boot_args": "$1" },
  "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 },
  "drives": [
    { "drive_id": "base", "path_on_host": "base.ext4", "is_root_device": false, "is_read_only": true },
    { "drive_id": "disk", "path_on_host": "layer.ext4", "is_root_device": false, "is_read_only": false } ],
  "network-interfaces": [ { "iface_id": "eth0", "host_dev_name": "bench-args", "guest_mac": "06:00:ac:10:00:02" } ] }
J
began=$(date +%s%N)
timeout 60 firecracker --no-api --id bench-args --config-file machine.json >console 2>&1 </dev/null &
vmm=$!
said=$(sed -n '/crabbox-guest: /p; /crabbox-guest: ready /q' console)
ended=$(date +%s%N)
kill "$vmm" 2>/dev/null || true
wait "$vmm" 2>/dev/null || true
echo "whole $(((ended - began) / 1000000))"
echo "$said"
