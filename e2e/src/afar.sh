# Makes a pretended host one that serves alice and bob by a real sshd on its loopback; each has a key, a home and a repository of their own, and
# nothing on the host but `crabbox __serve`, which answers nothing while /srv/sshd/hang is there, and while /srv/sshd/mute is there greets, hears as
# many questions as that says, and answers no other. What stands in /srv/sshd/failpoint is armed in what serves them.
set -e
mkdir -p /run/sshd /tmp/bin /srv/sshd /srv/.config/crabbox
cp /srv/bin/crabbox /tmp/bin/crabbox
chmod 755 /tmp/bin /tmp/bin/crabbox
cat > /srv/.config/crabbox/config.yaml <<'Y'
firecracker:
  binary: /srv/fake/firecracker
  kernel: /srv/vmlinux
  rootfs: /srv/rootfs.ext4
  cniConfDir: /srv/cni
  cniBinDir: /usr/lib/cni
  network: nat
  user: root
  workRoot: /srv/work
  cpus: 1
  memoryMiB: 128
  diskMiB: 64
  launchTimeout: 30s
  maxLeasesPerOwner: 2
Y
chmod 600 /srv/.config/crabbox/config.yaml
cat > /srv/sshd/serve <<'S'
#!/bin/sh
test ! -e /srv/sshd/hang || exec sleep 600
PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CRABBOX_TEST_FAILPOINT=$(cat /srv/sshd/failpoint 2>/dev/null)
export PATH CRABBOX_TEST_FAILPOINT
test -e /srv/sshd/mute || exec crabbox __serve "$@"
left=$(cat /srv/sshd/mute)
while IFS= read -r line; do
  test $left -gt 0 || exec sleep 600
  left=$((left - 1))
  printf '%s\n' "$line"
done | crabbox __serve "$@"
S
chmod 755 /srv/sshd/serve
ssh-keygen -q -t ed25519 -N '' -C host -f /srv/sshd/host
for who in alice bob; do
  mkdir -p /tmp/$who/repo
  ssh-keygen -q -t ed25519 -N '' -C $who -f /tmp/$who/key
  (cd /tmp/$who/repo && HOME=/srv git init -q && echo $who > tracked && HOME=/srv git add -A && HOME=/srv git commit -qm one)
  echo "restrict,command=\"exec /srv/sshd/serve --as $who\" $(cat /tmp/$who/key.pub)"
done > /srv/sshd/authorized
chown -R nobody:nogroup /tmp/alice
chown -R daemon:daemon /tmp/bob
cat > /srv/sshd/config <<'C'
Port 2222
ListenAddress 127.0.0.1
HostKey /srv/sshd/host
AuthorizedKeysFile /srv/sshd/authorized
SetEnv HOME=/srv
UsePAM no
StrictModes no
PidFile /srv/sshd/pid
PermitRootLogin forced-commands-only
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
LogLevel VERBOSE
C
/usr/sbin/sshd -f /srv/sshd/config -E /srv/sshd/log
