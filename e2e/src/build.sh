# Makes the image $1 of a small tree whose kernel is none; $2 goes into it.
set -e; name=$1; word=$2; tree=/srv/tree-$name
echo '{"sshd": true, "ready": true}' > /srv/fake/fake-vmm.json
mkdir -p $tree/usr/sbin $tree/usr/bin $tree/bin $tree/etc $tree/boot $tree/usr/lib/modules/6.1.0-test/kernel
cp /usr/sbin/sshd $tree/usr/sbin/
for p in git rsync tar curl jq python3 sudo; do printf '#!/bin/sh\n' > $tree/usr/bin/$p; done
printf '#!/bin/sh\n' > $tree/bin/sh
printf '#!/bin/sh\n' > $tree/bin/bash
chmod 755 $tree/usr/bin/* $tree/bin/*; chmod 4755 $tree/usr/bin/sudo
echo 'root:x:0:0::/root:/bin/sh' > $tree/etc/passwd
echo "$word" > $tree/etc/word
head -c 3000000 /dev/urandom > $tree/etc/large
cp /srv/vmlinux $tree/boot/vmlinuz-6.1.0-test
for m in virtio_mmio virtio_blk overlay virtio_net vmw_vsock_virtio_transport; do echo kernel/$m.ko; done > $tree/usr/lib/modules/6.1.0-test/modules.builtin
crabbox image build --name $name --from $tree --guest-binary /srv/vmlinux
