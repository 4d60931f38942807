# Makes a pretended host one of a fleet. Its arguments are its name, its address, and, for the gateway, the word gateway.
# What is not this host's own, the munge key and the configuration of Slurm, stands in /srv/fleet.
set -e
name=$1 address=$2
hostname "$name"
# Nobody is asked for a name.
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > /srv/fleet/hosts
mount --bind /srv/fleet/hosts /etc/hosts
: > /srv/fleet/resolv
mount --bind /srv/fleet/resolv /etc/resolv.conf
# Nothing of the machine's own Slurm is seen or written.
mount -t tmpfs tmpfs /etc/slurm
mkdir -p /run/sshd /run/munge /var/lib/slurm/slurmd /var/lib/slurm/slurmctld /srv/sshd /srv/.config/crabbox
chmod 755 /run/munge
cp /srv/fleet/slurm.conf /srv/fleet/gres.conf /srv/fleet/crabbox-epilog /etc/slurm
chmod 755 /etc/slurm/crabbox-epilog
# slurmd looks for control groups and ends where there are none, unless it is told what to expect; nothing here uses them.
echo CgroupPlugin=cgroup/v1 > /etc/slurm/cgroup.conf
chmod 400 /srv/fleet/munge.key
munged --force --num-threads=1 --key-file=/srv/fleet/munge.key --pid-file=/run/munge/pid --log-file=/srv/fleet/munge.log --seed-file=/srv/fleet/munge.seed
test "$3" != gateway || exit 0
cat > /srv/.config/crabbox/config.yaml <<'Y'
firecracker:
  binary: /srv/fake/firecracker
  kernel: /srv/vmlinux
  rootfs: /srv/rootfs.ext4
  network: nat
  user: root
  workRoot: /srv/work
  launchTimeout: 30s
Y
chmod 600 /srv/.config/crabbox/config.yaml
ssh-keygen -q -t ed25519 -N '' -C host -f /srv/sshd/host
echo "restrict,command=\"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin exec crabbox __serve --for-gateway\" $(cat /srv/fleet/key.pub)" > /srv/sshd/authorized
cat > /srv/sshd/config <<C
Port 22
ListenAddress $address
HostKey /srv/sshd/host
AuthorizedKeysFile /srv/sshd/authorized
SetEnv HOME=/srv
UsePAM no
StrictModes no
PidFile /srv/sshd/pid
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
C
/usr/sbin/sshd -f /srv/sshd/config -E /srv/sshd/log
slurmd -N "$name" || { cat /srv/fleet/slurmd.log >&2; exit 1; }
