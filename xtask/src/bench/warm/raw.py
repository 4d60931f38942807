"""Loads and resumes the machine of prepare.sh with Firecracker alone, as anybody would by hand: prints `raw MICROSECONDS` from the moment
when Firecracker was started until the machine runs, and `load MICROSECONDS` for the two requests alone. What fails ends it."""
import http.client, os, shutil, socket, subprocess, time

class Api(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("api.sock")

def ask(api, method, path, body):
    api.request(method, path, body, {"Content-Type": "application/json"})
    answer = api.getresponse()
    said = answer.read()
    if answer.status != 204:
        raise SystemExit(f"{method} {path}: {answer.status} {said}")

os.chdir(os.path.expanduser("~/bench-warm"))
for name in ("api.sock", "vsock.sock", "disk.ext4"):
    if os.path.lexists(name):
        os.remove(name)
subprocess.run(["cp", "--sparse=always", "--reflink=auto", "layer", "disk.ext4"], check=True)
log = open("firecracker.log", "w")
began = time.monotonic()
vmm = subprocess.Popen(["firecracker", "--api-sock", "api.sock", "--id", "bench-warm"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
try:
    while not os.path.exists("api.sock"):
        if time.monotonic() > began + 30:
            raise SystemExit("Firecracker has no API after 30 s")
        time.sleep(0.001)
    api = Api("localhost")
    while True:
        try:
            api.connect()
            break
        except ConnectionRefusedError:
            time.sleep(0.001)
    there = time.monotonic()
    ask(api, "PUT", "/snapshot/load", '{"snapshot_path": "vmstate", "mem_backend": {"backend_type": "File", "backend_path": "memory"}, "resume_vm": false}')
    ask(api, "PATCH", "/vm", '{"state": "Resumed"}')
    done = time.monotonic()
    print("raw", int((done - began) * 1e6))
    print("load", int((done - there) * 1e6))
finally:
    vmm.kill()
    vmm.wait()
