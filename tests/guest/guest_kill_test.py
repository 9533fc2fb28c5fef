# SPDX-License-Identifier: MIT
"""Guests whose server is killed, with them or without, and guests that move.

together   SIGKILL of server and guest: what a sync of the guest's had made safe is there, whatever the cache
           mode; the guest runs in User Mode Linux
server     SIGKILL of the server alone, again and again: the next one takes up the requests in flight, and the
           guest, in QEMU, notices nothing
moved      QEMU saves the running guest to a file (which logs the pages that the server writes) and another
           QEMU goes on with it, several times

SIGKILL leaves the host's page cache, so all of this is about metadata and order, not about disks.
"""

import json
import os
import re
import socket
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import guest  # noqa: E402
import harness  # noqa: E402
from disks import MIB, write_raw_disk  # noqa: E402
from harness import must, run  # noqa: E402

PARTS = [(MIB, 128 * MIB), (129 * MIB, 256 * MIB)]  # ext4; stamps
THREADS = 4
OPS = 12          # of each thread, in a round: rounds are short
CHECK_LEAKS = 3   # exit code of qemu-img check
# name: (what the guest sets, options of the server, what the guest has to find)
CACHES = {"on": ("", (), "write back"),
          "off by the guest": ("write through", (), "write through"),
          "off": ("", ("--writethrough",), "write through")}


class Qmp:
    """QEMU's monitor."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + guest.START_SECONDS
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        self.file = self.socket.makefile("rw")
        self.file.readline()  # its greeting
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self.file)
        self.file.write("\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()


class Tests:
    def __init__(self, options, rng, results, scratch, sockets):
        self.options, self.rng, self.results, self.scratch = options, rng, results, scratch
        self.sockets = sockets
        self.socket = os.path.join(sockets, "disk")
        self.raw = os.path.join(scratch, "disk.raw")
        self.base = os.path.join(scratch, "base.qcow2")
        self.image = os.path.join(scratch, "disk.qcow2")
        write_raw_disk(self.raw, PARTS)
        must(["mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={PARTS[0][0]}", self.raw, f"{PARTS[0][1] // 1024}k"])
        must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.raw, self.base])

    # ---- steps ----

    def new_image(self):
        """Every other one an overlay; many or few L2 tables."""
        cluster = self.rng.choice((4096, 65536, MIB))
        if self.rng.randrange(2):
            must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", "-b", self.base,
                  "-F", "qcow2", self.image])
        else:
            must(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-o", f"cluster_size={cluster}", self.base,
                  self.image])
        return f"clusters of {cluster}"

    def serve(self, queues, flags=()):
        flags = (*flags, *("--pin-memory",) * self.rng.randrange(2))
        return guest.Server("shardcow", self.image, self.socket, queues, self.options.shardcow, flags=flags)

    def job(self, script, **settings):
        settings = {"SEED": self.seed, "THREADS": THREADS, "OPS": OPS, "DISCARD_FLAGS": "", "KEEP_CACHE": 1,
                    **settings}
        return guest.Job(script, settings, {"stress": self.options.stress}, ("guest_lib.sh",))

    def stamps(self, name, rounds, *flags):
        """Of the raw copy."""
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.image, self.raw], timeout=600)
        values = {"--seed": self.seed, "--ops": OPS, "--threads": THREADS, "--rounds": rounds,
                  "--offset": PARTS[1][0], "--size": PARTS[1][1]}
        flags = [*flags, *(str(text) for pair in values.items() for text in pair)]
        r = run([self.options.stress, "verify", "--full", "--disk", *flags, self.raw], timeout=600)
        return self.results.check(r.code == 0, f"{name}: every stamp, on the host", r)

    def checked(self, name, leaks):
        r = run(["qemu-img", "check", "-f", "qcow2", self.image], timeout=600)
        return self.results.check(r.code == 0 or leaks and r.code == CHECK_LEAKS, f"{name}: qemu-img check", r)

    # ---- server and guest ----

    def kill_both(self, queues, cache, name):
        """What the guest had called safe, as settings for the job that verifies; None when nothing works."""
        sets, flags, found = CACHES[cache]
        with self.serve(queues, flags) as server, \
                guest.Guest("uml", [server.socket], self.job("job_kept.sh", CACHE=sets), queues,
                            folder=self.scratch) as machine:
            works = machine.says(r"^stress: round \d+ of", 60)
            time.sleep(self.rng.uniform(0, 1.5))
            # Without its server it may see errors until its turn comes.
            fault = re.search(r"KEPT stops.*|JOB-FAILED.*|WRONG.*", machine.text())
            for one in self.rng.sample((server, machine), 2):
                one.kill()
            said = machine.text()
        safe = {name: 1 + max(map(int, re.findall(pattern, said, re.M)), default=-1) for name, pattern in
                (("FILES", r"^KEPT file (\d+)$"), ("ROWS", r"^KEPT row (\d+)$"))}
        safe["ROUNDS"] = max(map(int, re.findall(r"^stress: round (\d+) of", said, re.M)), default=0)
        good = self.results.check(works and not fault, f"{name}: the guest works until it is killed", said[-1500:])
        self.results.equal(re.findall(r"^FACT cache (.*)$", said, re.M), [found], f"{name}: its cache")
        return safe if good else None

    def together(self, cache):
        kept = {"FILES": 0, "ROWS": 0, "ROUNDS": 0}
        for number in range(self.options.rounds or (2 if self.options.quick else 50)):
            self.seed = self.rng.randrange(1 << 32)
            queues = self.rng.choice((1, 2, 4, 8))
            name = f"together, cache {cache}, {number}, {queues} queues, {self.new_image()}"
            safe = self.kill_both(queues, cache, name)
            if not safe:
                return
            kept = {key: kept[key] + count for key, count in safe.items()}
            self.checked(name, leaks=True)
            if self.rng.randrange(2):
                self.stamps(name, safe["ROUNDS"], "--partial")
            with self.serve(queues) as server:
                console = guest.boot("uml", [server.socket], self.job("job_kept_verify.sh", **safe), queues,
                                     timeout=120, folder=self.scratch)
                self.results.check(console.status == 0, f"{name}: all that was safe is there", console)
                trouble = server.stop()
                self.results.check(not trouble, f"{name}: the next server ends well", trouble)
            self.checked(name, leaks=False)
        print(f"# together, cache {cache}: {kept}", flush=True)
        for what, count in kept.items():
            self.results.check(count > 0, f"together, cache {cache}: some {what} were safe")

    # ---- in QEMU ----

    def finished(self, name, machine):
        console = machine.wait(600)
        rounds = [int(n) for n in re.findall(r"^stress: round (\d+) of", console.text, re.M)]
        self.results.check(console.status == 0, f"{name}: the guest finds all as it should be", console)
        return rounds[-1] if rounds else 0

    def server(self, queues):
        """One server after the other is killed under a guest that goes on."""
        self.seed = self.rng.randrange(1 << 32)
        name = f"server killed, {queues} queues, {self.new_image()}"
        kills = self.options.rounds or (4 if self.options.quick else 50)
        job = self.job("job_stay.sh", SECONDS_LONG=10 + 2 * kills, COUNT=100)
        server = self.serve(queues).__enter__()
        try:
            with guest.Guest("qemu", [self.socket], job, queues, folder=self.scratch) as machine:
                self.results.check(machine.says("^WORKING", 300), f"{name}: it boots", machine.text()[-1500:])
                for _ in range(kills):
                    time.sleep(self.rng.uniform(0.3, 1.5))
                    server.kill()
                    server.__exit__()
                    server = self.serve(queues).__enter__()
                self.results.check("stress: good" not in machine.text(), f"{name}: {kills} kills while it works")
                rounds = self.finished(name, machine)
            trouble = server.stop()
            self.results.check(not trouble, f"{name}: the last server ends well", trouble)
        finally:
            server.__exit__()
        print(f"# {name}: {kills} kills, {rounds} rounds", flush=True)
        self.checked(name, leaks=False)
        self.stamps(name, rounds)

    def moved(self, queues):
        """From one QEMU to another, by way of a file, while the guest works."""
        self.seed = self.rng.randrange(1 << 32)
        name = f"moved, {queues} queues, {self.new_image()}"
        moves = self.options.rounds or (1 if self.options.quick else 5)
        job = self.job("job_stay.sh", SECONDS_LONG=15 * (moves + 1), COUNT=100)
        more = []
        saved = None
        with self.serve(queues) as server:
            for number in range(moves + 1):
                monitor = os.path.join(self.sockets, f"monitor{number}")
                qmp = ["-qmp", f"unix:{monitor},server=on,wait=off"]
                with guest.Guest("qemu", [self.socket], job, queues, folder=self.scratch,
                                 more=qmp + more) as machine:
                    what, sign = ("it goes on", r"^stress: round") if number else ("it boots", "^WORKING")
                    self.results.check(machine.says(sign, 300), f"{name}: {what}", machine.text()[-1500:])
                    if saved:
                        os.unlink(saved)
                    if number == moves:
                        rounds = self.finished(name, machine)
                        break
                    time.sleep(self.rng.uniform(1, 6))
                    saved = os.path.join(self.scratch, f"saved{number}")
                    self.save(name, monitor, saved)
                    more = ["-incoming", f"file:{saved}"]
            trouble = server.stop()
            self.results.check(not trouble, f"{name}: the server ends well", trouble)
        print(f"# {name}: {moves} moves, {rounds} rounds", flush=True)
        self.checked(name, leaks=False)
        self.stamps(name, rounds)

    def save(self, name, monitor, path):
        """The guest runs until nearly all of it is in the file."""
        with Qmp(monitor) as qmp:
            qmp.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 300})
            qmp.call("migrate", uri=f"file:{path}")
            until = time.monotonic() + 120
            while True:
                state = qmp.call("query-migrate")
                if state.get("status") in ("completed", "failed") or time.monotonic() > until:
                    break
                time.sleep(0.05)
            self.results.check(state.get("status") == "completed", f"{name}: it is saved", state)
            self.results.check(state.get("ram", {}).get("dirty-sync-count", 0) > 1, f"{name}: it runs meanwhile", state)
            qmp.call("quit")


def find_cases(options):
    """(front end, method's name, argument)"""
    cases = [("uml", "together", cache) for cache in CACHES]
    queues = (2,) if options.quick else (1, 4)
    cases += [("qemu", what, count) for what in ("server", "moved") for count in queues]
    return [c for c in cases if c[0] in options.front.split(",") and
            (not options.only or re.search(options.only, f"{c[1]} {c[2]}"))]


def main():
    p = harness.parser(__doc__)
    p.add_argument("--front", default="uml,qemu", help="front ends, of uml and qemu")
    p.add_argument("--stress", default=os.environ.get("GUEST_STRESS"), help="the compiled stress.c")
    p.add_argument("--rounds", type=int, help="kills, or moves (50 and 5)")
    options = p.parse_args()
    if not options.stress:
        options.stress = os.path.join(harness.ROOT, "build", "tests", "guest", "stress")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for front in options.front.split(","):
        if guest.missing(front):
            harness.skip_all(guest.missing(front))
    rng = harness.start(options, need=("qemu-img", "mke2fs"))
    results = harness.Results()
    for _, what, argument in find_cases(options):
        with harness.Scratch(options) as scratch, tempfile.TemporaryDirectory() as sockets:
            getattr(Tests(options, rng, results, scratch, sockets), what)(argument)
    results.finish()


if __name__ == "__main__":
    main()
