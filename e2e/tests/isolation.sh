# Surroundings for a lease, on the host: something to reach in each direction. Every listener says "hello" on port 7777.
hello() { setsid "$@" socat TCP-LISTEN:7777,fork,reuseaddr SYSTEM:'echo hello' </dev/null >/dev/null 2>&1 & }
place() { # name, host side, address beyond
  ip netns add "$1"
  ip link add "$1" type veth peer name eth0 netns "$1"
  ip addr add "$2/24" dev "$1"
  ip link set "$1" up
  ip -n "$1" link set lo up
  ip -n "$1" link set eth0 up
  ip -n "$1" addr add "$3/24" dev eth0
  ip -n "$1" route add default via "$2"
  hello ip netns exec "$1"
}
# The internet (a route of this host to a namespace of ours), a neighbour in the host's own network, and where clouds have their metadata.
place world 9.9.9.1 9.9.9.2
place lan 10.77.0.1 10.77.0.2
ip addr add 169.254.169.254/32 dev lo
hello env
# A stub resolver as systemd-resolved has it; it says 9.9.9.2 to everything.
cat > /root/resolver.py <<'P'
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.53", 53))
while True:
    q, a = s.recvfrom(4096)
    end = q.index(b"\0", 12) + 5
    known = q[end - 4:end - 2] == b"\0\1"
    head = q[:2] + b"\x81\x80\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([9, 9, 9, 2]) if known else b""
    s.sendto(head + q[12:end] + answer, a)
P
setsid python3 /root/resolver.py </dev/null >/dev/null 2>&1 &
echo "nameserver 127.0.0.53" > /etc/resolv.conf
sleep 1
