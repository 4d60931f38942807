# One line for each object on this host that a lease could leave behind. Compared before and after; order does not matter.
for p in /proc/[0-9]*; do
  words=$(tr '\0' ' ' < "$p/cmdline" 2>/dev/null) || continue
  case "$words" in
    *firecracker*|*jailer*|*__supervise*|*crabbox-ssh-*|*/testboxes/*)
      case "$words" in *residue*) ;; *) echo "process $words" ;; esac ;;
  esac
done
grep -E 'crabbox|cbx_' /proc/self/mountinfo | awk '{print "mount", $5}'
# A process that is just ending has a link to nothing any more.
find /proc/[0-9]*/ns/net -maxdepth 0 -lname 'net:*' -printf 'namespace %l\n' 2>/dev/null | sort -u | grep -vx "namespace $(readlink /proc/1/ns/net)"
ip -o link show | awk -F': ' '{sub("@.*", "", $2); print "link", $2}'
ip -o route show | awk '{print "route", $1}'
# The tables that iptables keeps in nft stay on any host where a CNI plugin masquerades; what is in them is looked at below.
nft list tables 2>/dev/null | grep -vxE 'table ip6? (nat|filter|mangle|raw)'
find /var/lib/cni -type f ! -name lock ! -name last_reserved_ip.0 2>/dev/null | sed 's/^/cni /'
find /sys/fs/cgroup -maxdepth 2 -type d -name '*crabbox*' | sed 's/^/cgroup /'
iptables-save 2>/dev/null | grep -E '^(-A|:[^ ]+ -)' | sed 's/^/iptables /'
find "$HOME/.config/crabbox" /tmp/crabbox-* -mindepth 1 2>/dev/null |
  grep -vE '/state$|/state/(firecracker|claims|claim-locks)$|/firecracker/(leases|locks|allocation.lock)$|/testboxes$' | sed 's/^/file /'
true
