# One line for each object on this host that a lease could leave behind. Compared before and after; order does not matter.
# An emulated host takes a good part of a second for every few processes that are started, and this is asked often: so the shell
# looks by itself where it can, and one awk does what pipes of filters would.
for p in $(grep -laE 'firecracker|jailer|__supervise|__hold|crabbox-ssh-|/testboxes/' /proc/[0-9]*/cmdline 2>/dev/null); do
  words=$(tr '\0' ' ' < "$p" 2>/dev/null) || continue
  # The first of them is whoever runs this script, whose text has all those words.
  case "$words" in *residue*|"") ;; *) echo "process $words" ;; esac
done
for link in /sys/class/net/*; do echo "link ${link##*/}"; done
for dir in /sys/fs/cgroup/*crabbox* /sys/fs/cgroup/*/*crabbox*; do
  [ -d "$dir" ] && echo "cgroup $dir"
done
own=$(readlink /proc/1/ns/net)
{
  cat /proc/self/mountinfo
  # A process that is just ending has a link to nothing any more.
  find /proc/[0-9]*/ns/net -maxdepth 0 -lname 'net:*' -printf 'namespace %l\n' 2>/dev/null
  echo '@route'
  ip -o route show
  echo '@nft'
  nft list tables 2>/dev/null
  echo '@iptables'
  iptables-save 2>/dev/null
  echo '@files'
  find /var/lib/cni /var/lib/crabbox/registry "$HOME/.config/crabbox" /tmp/crabbox-* -printf '%y %p\n' 2>/dev/null
} | awk -v own="namespace $own" -v config="$HOME/.config/crabbox" '
  /^@/ { part = $0; next }
  part == "" && /^namespace/ { if ($0 != own && !seen[$0]++) print; next }
  part == "" { if (/crabbox|cbx_/) print "mount", $5; next }
  part == "@route" { print "route", $1; next }
  # The tables that iptables keeps in nft stay on any host where a CNI plugin masquerades; what is in them is looked at below.
  part == "@nft" { if ($0 !~ /^table ip6? (nat|filter|mangle|raw)$/) print; next }
  part == "@iptables" { if (/^(-A|:[^ ]+ -)/) print "iptables", $0; next }
  { path = substr($0, 3) }
  path ~ "^/var/lib/cni/" { if (/^f/ && path !~ /\/(lock|last_reserved_ip\.0)$/) print "cni", path; next }
  path ~ "^/var/lib/crabbox/registry/" { if (/^f/ && path !~ /\.lock$/) print "entry", path; next }
  path == config || path ~ "^/tmp/crabbox-[^/]*$" || path ~ "^/var/lib/(cni|crabbox/registry)$" { next }
  path !~ /\/state$|\/state\/(firecracker|claims|claim-locks)$|\/firecracker\/(leases|locks|jobs|volumes|allocation.lock|volumes.lock)$|\/testboxes$/ { print "file", path }
'
