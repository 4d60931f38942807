# Measures on a pretended host that serves alice; $2 runs. Prints `name number` lines.
export HOME=/srv PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
work=/srv/bench
mkdir $work
lease() { CRABBOX_PROVIDER=firecracker "$@"; }
alice() {
    setpriv --reuid nobody --regid nogroup --clear-groups env -i HOME=/tmp/alice PATH=/tmp/bin:/usr/bin:/bin LC_ALL=C \
        CRABBOX_PROVIDER=firecracker CRABBOX_SSH_KEY=/tmp/alice/key CRABBOX_FIRECRACKER_HOST=root@127.0.0.1:2222 "$@"
}
here() { (cd /srv/repo && lease "$@"); }
there() { (cd /tmp/alice/repo && alice "$@"); }
# For `ssh -W`, a key that may forward.
ssh-keygen -q -t ed25519 -N '' -f /tmp/alice/plain
chown nobody /tmp/alice/plain
cat /tmp/alice/plain.pub >>/srv/sshd/authorized
sed -i 's/^PermitRootLogin.*/PermitRootLogin prohibit-password/' /srv/sshd/config
kill -HUP "$(cat /srv/sshd/pid)"
mkdir /srv/repo
(cd /srv/repo && git init -q && echo one >tracked && git add -A && git commit -qm one)
quiet here crabbox warmup --slug near
quiet there crabbox warmup --slug far
quiet here crabbox run --id near -- true
quiet there crabbox run --id far -- true
there crabbox ssh far >$work/line
# The shared connection of the line, and one of its own.
printf '#!/bin/sh\nexec %s "$@"\n' "$(cat $work/line)" >/tmp/alice/shared
sed 's/exec ssh /exec ssh -S none /' /tmp/alice/shared >/tmp/alice/own
lease=$(there crabbox list | grep -o 'cbx_[0-9a-f]*' | head -1)
address=$(grep -o '"guestIP": *"[0-9.]*"' "$HOME/.config/crabbox/state/firecracker/leases/$lease/metadata.json" | grep -o '[0-9][0-9.]*')
direct="ssh -F none -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no"
cat >/tmp/alice/forwarded <<S
#!/bin/sh
exec $direct -S none -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i /tmp/alice/.config/crabbox/testboxes/$lease/id_ed25519 \
    -o ProxyCommand='ssh -F none -S /tmp/alice/m -W %h:%p -p 2222 root@127.0.0.1' root@$address "\$@"
S
chmod 755 /tmp/alice/shared /tmp/alice/own /tmp/alice/forwarded
quiet alice $direct -M -S /tmp/alice/m -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -i /tmp/alice/plain -p 2222 -fN root@127.0.0.1
for _ in $(seq "$2"); do
    ms far there crabbox run --id far --no-sync -- true
    ms near here crabbox run --id near --no-sync -- true
    ms trip there /tmp/alice/shared true
done
# Bytes from the guest to here; what a login costs is taken off.
mebibytes=384
for _ in 1 2 3 4 5; do
    ms through_login there /tmp/alice/own true
    ms through there /tmp/alice/own "head -c ${mebibytes}M /dev/zero >&2" 
    ms forwarded_login there /tmp/alice/forwarded true
    ms forwarded there /tmp/alice/forwarded "head -c ${mebibytes}M /dev/zero >&2"
done
echo "mebibytes $mebibytes"
mkfifo $work/ask
crabbox __serve --as idle <$work/ask >$work/told &
server=$!
exec 9>$work/ask
for _ in $(seq 200); do [ -s $work/told ] && break; sleep 0.05; done
# It has answered a question, and waits.
printf '{"protocol":1,"verb":"list"}\n' >&9
for _ in $(seq 200); do grep -q done $work/told && break; sleep 0.05; done
sleep 0.5
for name in VmRSS RssAnon RssFile; do sed -n "s/^$name:[^0-9]*\([0-9]*\).*/$name \1/p" "/proc/$server/status"; done
sed -n 's/^Private_Dirty:[^0-9]*\([0-9]*\).*/private_dirty \1/p' "/proc/$server/smaps_rollup"
exec 9>&-
there crabbox stop far >/dev/null 2>&1
here crabbox stop near >/dev/null 2>&1
