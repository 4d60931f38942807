"""Two machines that go on from one frozen moment: prints the numbers that each of them drew before and after its reseed, a line each. The arguments are
a kernel and an initrd with our first process; the working directory is the test's own. What fails ends it."""
import http.client, os, re, socket, subprocess, sys, time

KERNEL, INITRD = sys.argv[1:]
# Nothing may credit what is not ours: neither the processor nor the boot loader.
ARGUMENTS = "console=ttyS0 reboot=k panic=-1 quiet random.trust_cpu=off random.trust_bootloader=off crabbox.twins"

class Api(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)

class Machine:
    def __init__(self, name):
        self.socket, self.said = name + ".sock", name + ".console"
        for path in (self.socket, self.said):
            if os.path.exists(path):
                os.remove(path)
        out = open(self.said, "w")
        command = ["firecracker", "--api-sock", self.socket, "--id", name]
        self.vmm = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        # The socket is there a moment before anybody listens on it.
        until(self.listens, 30, "an API")

    def listens(self):
        with socket.socket(socket.AF_UNIX) as trial:
            try:
                trial.connect(self.socket)
                return True
            except (FileNotFoundError, ConnectionRefusedError):
                return False

    def ask(self, method, path, body):
        api = Api(self.socket)
        api.request(method, path, body, {"Content-Type": "application/json"})
        answer = api.getresponse()
        said = answer.read()
        if answer.status != 204:
            raise SystemExit(f"{method} {path}: {answer.status} {said}")

    def hear(self, pattern, limit):
        def heard():
            said = open(self.said, errors="replace").read()
            if "FAILED as a twin" in said:
                raise SystemExit(said[-2000:])
            return re.search(pattern, said)
        return until(heard, limit, f"{pattern!r} of a guest that said: {open(self.said, errors='replace').read()[-2000:]}")

    def end(self):
        self.vmm.kill()
        self.vmm.wait()

def until(look, limit, what):
    end = time.monotonic() + limit
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise SystemExit(f"no {what} within {limit} s")
        time.sleep(0.01)

first = Machine("first")
machines = [first]
try:
    first.ask("PUT", "/machine-config", '{"vcpu_count": 1, "mem_size_mib": 128}')
    first.ask("PUT", "/boot-source", f'{{"kernel_image_path": "{KERNEL}", "initrd_path": "{INITRD}", "boot_args": "{ARGUMENTS}"}}')
    first.ask("PUT", "/actions", '{"action_type": "InstanceStart"}')
    first.hear("twin naps", 120)
    began = time.monotonic()
    first.ask("PATCH", "/vm", '{"state": "Paused"}')
    first.ask("PUT", "/snapshot/create", '{"snapshot_type": "Full", "snapshot_path": "state", "mem_file_path": "memory"}')
    first.end()
    for name in ("one", "two"):
        clone = Machine(name)
        machines.append(clone)
        clone.ask("PUT", "/snapshot/load", '{"snapshot_path": "state", "mem_backend": {"backend_type": "File", "backend_path": "memory"}, "resume_vm": true}')
        drew = clone.hear("twin before ([0-9a-f,]+)\\s[^\\0]*twin after ([0-9a-f,]+)\\s", 60)
        print(drew[1], drew[2])
        clone.end()
        print(f"{name} was heard {time.monotonic() - began:.1f} s after the freeze began", file=sys.stderr)
finally:
    for machine in machines:
        machine.end()
