# Makes the lab a fleet of one, gateway and host at once, after docs/fleet.md; slurm.conf, gres.conf and the epilog stand in
# /tmp/e2e-afar/slurm already.
set -e
fleet=$HOME/.config/crabbox/fleet at=/tmp/e2e-afar
mkdir -p -m 700 "$fleet"
ssh-keygen -q -t ed25519 -N '' -C fleet -f "$fleet/key"
echo "[127.0.0.1]:2224 $(cut -d' ' -f1,2 $at/host.pub)" > "$fleet/known_hosts"
echo '{"partition": "lease", "nodes": {"kvmhost": "root@127.0.0.1:2224"}}' > "$fleet/gateway.json"
echo "restrict,command=\"crabbox __serve --for-gateway\" $(cat "$fleet/key.pub")" > $at/authorized
cat > $at/sshd-host <<C
Port 2224
ListenAddress 127.0.0.1
HostKey $at/host
AuthorizedKeysFile $at/authorized
UsePAM no
UseDNS no
StrictModes no
PidFile $at/sshd-host.pid
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
C
/usr/sbin/sshd -f $at/sshd-host -E $at/sshd-host.log
mkdir -p /etc/slurm /run/munge /var/lib/slurm/slurmd /var/lib/slurm/slurmctld
chmod 755 /run/munge
cp $at/slurm/* /etc/slurm
chmod 755 /etc/slurm/crabbox-epilog
# slurmd looks for control groups and ends where there is no systemd that gives it some, unless it is told what to expect.
echo CgroupPlugin=cgroup/v1 > /etc/slurm/cgroup.conf
(umask 377; head -c 128 /dev/urandom > $at/munge.key)
munged --force --num-threads=1 --key-file=$at/munge.key --pid-file=/run/munge/pid --log-file=$at/munge.log --seed-file=$at/munge.seed
slurmctld
slurmd -N kvmhost || { cat $at/slurmd.log >&2; exit 1; }
for i in $(seq 300); do test "$(sinfo -h -N -o %T)" = idle && exit 0; sleep 0.1; done
sinfo -N -l; cat $at/slurmctld.log >&2; exit 1
