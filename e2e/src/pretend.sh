# Turns new network, mount and process namespaces into a host with crabbox on it. $1 has our programs.
set -e
bins=$1
# Where we were called from may lie below what is covered here.
cd /
mount -t tmpfs -o mode=700 tmpfs /srv
mkdir -m 700 /srv/fake /srv/cni /srv/bin
cp "$bins/crabbox" /srv/bin/crabbox
cp "$bins/fake-firecracker" /srv/fake/firecracker
cp "$bins/fake-jailer" /srv/fake/jailer
echo '{"sshd": true}' > /srv/fake/fake-vmm.json
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /usr/local/bin
mount -t sysfs sysfs /sys
ln -s /srv/bin/crabbox /usr/local/bin/crabbox
# What a foreign image is asked whether it is ready; the fake guest shares our files.
printf '#!/bin/sh\nexit 0\n' > /usr/local/bin/crabbox-ready
chmod 755 /usr/local/bin/crabbox-ready
# An uplink, so that built-in networking has something to route to.
ip link set lo up
ip link add uplink type veth peer name beyond
ip link set beyond up
ip addr add 198.51.100.2/24 dev uplink
ip link set uplink up
ip route add default via 198.51.100.1
# The header of an x86_64 ELF program, which is all that is looked at before a VMM loads it.
printf '\177ELF\002\001\001\000\000\000\000\000\000\000\000\000\002\000\076\000\001\000\000\000' > /srv/vmlinux
truncate -s 4096 /srv/vmlinux
truncate -s 16M /srv/rootfs.ext4
mke2fs -q -F /srv/rootfs.ext4
cat > /srv/cni/10-crabbox.conflist <<'J'
{"cniVersion": "1.0.0", "name": "crabbox-firecracker", "plugins": [{"type": "ptp", "ipMasq": true,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": "192.168.127.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
J
mkdir /srv/work
HOME=/srv git config --global user.name test
HOME=/srv git config --global user.email test@example.invalid
HOME=/srv git config --global init.defaultBranch main
echo ready
# The first process of the namespace: whoever loses their parent is reaped here, as an init would.
while :; do sleep 1000 & wait $!; done
