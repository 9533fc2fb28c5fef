# SPDX-License-Identifier: MIT
"""The control socket of `shardcow serve`, and `shardcow stats` and `resize --control` as its clients.

What is counted is compared with what a front end has asked for.
"""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
import messages as m                                                                   # noqa: E402
from disk import MIB, Disk                                                             # noqa: E402
from harness import must, run                                                          # noqa: E402

WAIT_S = 30
PATIENCE_S = 5  # the server's, with clients
CLIENTS = 8
LINE_BYTES = 4096

TOP_KEYS = {"version", "pid", "uptime-ns", "image", "connected", "read-only", "write-cache", "queues", "workers",
            "shards", "counters"}
IMAGE_KEYS = {"filename", "format", "virtual-size", "cluster-size", "slice-bytes", "backend", "direct"}
KINDS = ("read", "write", "flush", "discard", "write-zeroes", "other")
QUEUE_KEYS = {"state", "worker", "kicks", "interrupts", *KINDS}
KIND_KEYS = {"requests", "bytes", "errors", "latency-ns"}
LATENCY_KEYS = {"p50", "p99", "p99.9", "max", "histogram"}
WORKER_KEYS = {"requests", "bytes", "hits", "misses", "zeros", "backing", "inflates", "inflate-hits", "bounces", "ios",
               "starved", "writes-in-place", "writes-at-shard", "flushes-alone", "flushes-joined"}
SHARD_KEYS = {"slice-loads", "slice-coalesced", "slice-evictions", "writes", "clusters-allocated", "cow-bytes",
              "slice-writes", "slots", "slots-resident", "slots-dirty", "lease-clusters"}
COUNTER_KEYS = WORKER_KEYS | {"slice-loads", "slice-coalesced", "slice-evictions", "clusters-allocated", "cow-bytes",
                              "commits", "syncs", "slice-writes", "leases", "leased", "freed-pending",
                              "freed-punched", "freed-skipped", "epoch", "epoch-lag"}


def wait_for(condition, what, seconds=WAIT_S):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)


class Client:
    """A raw client of the control socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        """The next answer; None when the server has closed."""
        try:
            line = self.stream.readline()
        except ConnectionError:
            return None
        return json.loads(line) if line else None

    def ask(self, request):
        self.send(json.dumps(request).encode() + b"\n")
        return self.line()


class Test:
    def __init__(self, options, results, folder):
        self.options, self.results, self.folder = options, results, folder
        self.image, self.socket, self.control = (f"{folder}/{n}" for n in ("disk.qcow2", "s", "c"))
        self.process = None

    def check(self, good, name, detail=""):
        return self.results.check(good, name, detail)

    def equal(self, got, want, name):
        return self.results.equal(got, want, name)

    def shardcow(self, *arguments):
        return run([self.options.shardcow, *map(str, arguments)])

    def start(self, *arguments, size="64M"):
        must(["qemu-img", "create", "-q", "-f", "qcow2", self.image, size])
        argv = [self.options.shardcow, "serve", "--vhost-user-blk", self.socket, "--control", self.control,
                *arguments, self.image]
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.errors,
                                        stderr=self.errors)
        wait_for(lambda: os.path.exists(self.control) or self.process.poll() is not None, "the control socket")
        self.stats()  # it is there before all the rest is

    def stop(self, name):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT_S)
        self.errors.seek(0)
        said = self.errors.read().decode("latin-1")
        self.errors.close()
        self.process = None
        self.equal((code, said), (0, ""), f"{name}: the server ends")
        self.equal(sorted(os.listdir(self.folder)), ["disk.qcow2"], f"{name}: nothing is left")
        r = run(["qemu-img", "check", "-f", "qcow2", self.image])
        self.check(r.code == 0, f"{name}: qemu-img check", r)

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait(WAIT_S)

    def stats(self):
        with Client(self.control) as c:
            return c.ask({"command": "stats"})

    def open_fds(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    # ---- cases ----

    def keys(self):
        self.start("--queues", "3", "--threads", "2", "--shards", "2")
        self.equal(stat.S_IMODE(os.stat(self.control).st_mode), 0o600, "keys: who may connect")
        s = self.stats()
        self.equal(set(s), TOP_KEYS, "keys: of the answer")
        self.equal(set(s["image"]), IMAGE_KEYS, "keys: image")
        self.equal([set(q) for q in s["queues"]], [QUEUE_KEYS] * 3, "keys: queues")
        self.check(all(set(q[k]) == KIND_KEYS for q in s["queues"] for k in KINDS), "keys: kinds", s["queues"])
        self.check(all(set(q[k]["latency-ns"]) == LATENCY_KEYS for q in s["queues"] for k in KINDS),
                   "keys: latencies", s["queues"])
        self.equal([set(w) for w in s["workers"]], [WORKER_KEYS] * 2, "keys: workers")
        self.equal([set(w) for w in s["shards"]], [SHARD_KEYS] * 2, "keys: shards")
        self.equal(set(s["counters"]), COUNTER_KEYS, "keys: counters")
        self.equal([q["worker"] for q in s["queues"]], [0, 1, 0], "keys: who serves which queue")
        self.equal([s["pid"], s["image"]["filename"], s["image"]["format"], s["image"]["virtual-size"]],
                   [self.process.pid, self.image, "qcow2", 64 * MIB], "keys: what is served")
        self.equal([s["connected"], s["read-only"], s["write-cache"]], [False, False, None],
                   "keys: nobody is there")
        again = self.stats()
        times = [t["uptime-ns"] for t in (s, again)]
        self.check(0 < times[0] < times[1], "keys: time passes", times)
        self.stop("keys")

    def commands(self):
        """shardcow stats and resize, and what they say without a server."""
        self.start("--no-stats", "--read-only")
        r = self.shardcow("stats", self.control)
        self.check(r.code == 0 and "nobody connected" in r.out and "read-only" in r.out, "stats: a table", r)
        r = self.shardcow("stats", "--count", "2", self.control)
        self.check(r.code == 0 and r.out.count("queue ") == 2, "stats --count 2: two tables", r)
        r = self.shardcow("stats", "--output=json", self.control)
        s = json.loads(r.out)
        self.equal([s["read-only"], s["queues"][0]["read"]["latency-ns"]], [True, None], "--no-stats: no latencies")
        r = self.shardcow("resize", "--control", self.control, "128M")
        self.check(r.code == 1 and r.err, "resize: a read-only disk", r)
        self.stop("commands")
        for arguments, word in ((["stats", self.control], "cannot connect"), (["stats"], "expecting"),
                                (["stats", "--interval", "0", self.control], "--interval"),
                                (["stats", "x" * 200], "at most"), (["stats", self.image], "cannot connect"),
                                (["resize", "--control", self.control, "+1M"], "cannot connect"),
                                (["resize", "--control", self.control], "size"),
                                (["resize", "--control", self.control, self.image, "+1M"], "size")):
            r = self.shardcow(*arguments)
            self.check(r.code == 1 and word in r.err, f"without a server: {arguments[0]}: {word}", r)

    def bad_lines(self):
        self.start()
        rows = [b"", b"{", b"[]", b"7", b'"stats"', b"null", b"{}", b'{"command":7}', b'{"command":"nonsense"}',
                b'{"command":"stats","command":"stats"}', b'{"command":"stats","more":1}', b"\0\xff\xfe",
                b'{"command":"resize"}', b'{"command":"resize","size":"1G"}', b'{"command":"resize","size":1.5}',
                b'{"command":"resize","size":-512}', b'{"command":"resize","size":0}',
                b'{"command":"resize","size":67108865}', b'{"command":"resize","size":512}',
                b'{"command":"resize","size":99999999999999999999}', b'{"command":"resize","size":9223372036854775296}',
                b"[" * 3000, b'{"command":"' + b"a" * 4000 + b'"}']
        with Client(self.control) as c:
            for row in rows:
                c.send(row + b"\n")
                answer = c.line()
                self.check(answer and set(answer) == {"error"} and answer["error"], f"refused: {row[:50]!r}", answer)
            c.send(b'{"command":"stats"}\n' * 50)
            self.check(all(TOP_KEYS == set(c.line()) for _ in range(50)), "many lines at once")
            c.send(b'{"command":"stats"}\r\n{"comm')
            self.check(TOP_KEYS == set(c.line()), "a carriage return is a space")
            c.send(b'and":"stats"}\n')
            self.check(TOP_KEYS == set(c.line()), "a line in pieces")
            c.send(b'{"command":"stats"}\n')
            c.socket.shutdown(socket.SHUT_WR)
            self.check(TOP_KEYS == set(c.line()) and c.line() is None, "an answer to who says no more")
        for count in (LINE_BYTES, 100 * LINE_BYTES):
            with Client(self.control) as c:
                try:
                    c.send(b"x" * count)
                except ConnectionError:
                    pass
                answer = c.line()
                self.check(answer is None or "at most" in answer["error"], f"a line of {count} bytes", answer)
                self.check(c.line() is None, f"the end after a line of {count} bytes")
        self.equal(self.stats()["image"]["virtual-size"], 64 * MIB, "bad lines: the size stays")
        self.stop("bad lines")

    def slow_clients(self):
        """They hold up nobody, and have to go."""
        self.start("--queues", "16")
        before = self.open_fds()
        clients = [Client(self.control) for _ in range(CLIENTS)]
        try:
            self.check(all(TOP_KEYS == set(c.ask({"command": "stats"})) for c in clients), f"{CLIENTS} at once")
            with Client(self.control) as more:
                answer = more.line()
                self.check(answer and "too many" in answer["error"] and more.line() is None, "one more", answer)
            clients[0].send(b'{"command":')
            silent = clients[1]
            silent.socket.setblocking(False)
            for _ in range(200):
                try:
                    silent.socket.send(b'{"command":"stats"}\n' * 100)
                except BlockingIOError:
                    break
            worst = 0
            end = time.monotonic() + PATIENCE_S + 3
            while time.monotonic() < end:
                begin = time.monotonic()
                self.process.poll()
                clients[2].ask({"command": "stats"})
                worst = max(worst, time.monotonic() - begin)
                time.sleep(0.05)
            self.check(worst < PATIENCE_S / 2, "others are answered meanwhile", worst)
            self.check(clients[0].line() is None, "half a line: dropped")
            silent.socket.settimeout(WAIT_S)
            lines = 0
            try:
                while silent.stream.readline().endswith(b"\n"):
                    lines += 1
            except ConnectionError:
                pass
            self.check(lines < 200, "answers that nobody reads: dropped", lines)
            self.check(TOP_KEYS == set(clients[3].ask({"command": "stats"})), "who only waits stays")
        finally:
            for c in clients:
                c.__exit__()
        # The client that start() had may have been among them.
        wait_for(lambda: self.open_fds() <= before, f"more than {before} descriptors")
        self.check(True, "all descriptors are closed")
        self.stop("slow clients")

    def resize(self):
        self.start()
        r = self.shardcow("resize", self.image, "+64M")
        self.check(r.code == 1 and "--control" in r.err, "resize of a disk that is served: a hint", r)
        sizes = []
        for size in ("+64M", "256M", "256M", "+512"):
            r = self.shardcow("resize", "--control", self.control, size)
            self.check(r.code == 0, f"resize --control {size}", r)
            sizes.append(json.loads(self.shardcow("stats", "--output=json", self.control).out)["image"]["virtual-size"])
        self.equal(sizes, [128 * MIB, 256 * MIB, 256 * MIB, 256 * MIB + 512], "sizes")
        for size in ("-64M", "1M", "+1", "0"):
            r = self.shardcow("resize", "--control", self.control, size)
            self.check(r.code == 1, f"resize --control {size}: refused", r)
        r = self.shardcow("resize", "--shrink", "--control", self.control, "-64M")
        self.check(r.code == 1 and "only grow" in r.err, "resize --shrink --control", r)
        with Client(self.control) as c:
            self.equal(c.ask({"command": "resize", "size": 512 * MIB}), {"virtual-size": 512 * MIB}, "resize: answer")
        self.stop("resize")
        info = json.loads(must(["qemu-img", "info", "-f", "qcow2", "--output=json", self.image]))
        self.equal(info["virtual-size"], 512 * MIB, "qemu-img info: the size")

    # ---- with a guest ----

    def numbers(self):
        """What a front end asks for is what is counted."""
        self.start("--queues", "2", "--threads", "2")
        begin = self.stats()
        with Disk(self.socket, queues=2) as d:
            for i in range(40):
                d.write(i * 128, bytes([i]) * 4096)
            for i in range(100):
                d.read(i % 40 * 128, 16, queue=1)
            d.flush()
            d.discard(0, 256)
            d.zero(512, 128, queue=1)
            d.get_id(queue=1)
            bad = d.do(d.make(m.T_IN, d.sectors, size=512))
            self.check(bad.status != m.S_OK, "numbers: a read beyond the end")
            s = self.stats()
            self.equal([s["connected"], s["write-cache"], [q["state"] for q in s["queues"]]],
                       [True, "writeback", ["running"] * 2], "numbers: connected")
            table = self.shardcow("stats", self.control)
            self.check(table.code == 0 and ", connected" in table.out and " all " in table.out, "numbers: table", table)
            self.grows_under_guest(d)
        self.compare(s)
        c = s["counters"]
        self.check(c["writes-at-shard"] >= 42 and c["clusters-allocated"] >= 40 and c["hits"] >= 100
                   and c["commits"] > 0 and c["leases"] > 0, "numbers: the image", c)
        self.equal(sum(x["clusters-allocated"] for x in s["shards"]), c["clusters-allocated"], "numbers: shards")
        self.equal(sum(w["requests"] for w in s["workers"]), c["requests"], "numbers: workers")
        self.check(0 < sum(x["slots-resident"] for x in s["shards"]) <= sum(x["slots"] for x in s["shards"]),
                   "numbers: residency", s["shards"])
        self.check(c["epoch"] >= begin["counters"]["epoch"] and c["epoch-lag"] <= 1, "numbers: epochs", c)
        wait_for(lambda: not self.stats()["connected"], "the front end has gone")
        self.check(True, "numbers: gone")
        self.stop("numbers")

    def compare(self, s):
        got = [{k: (q[k]["requests"], q[k]["bytes"], q[k]["errors"]) for k in KINDS} for q in s["queues"]]
        none = (0, 0, 0)
        self.equal(got, [
            {"read": (1, 0, 1), "write": (40, 40 * 4096, 0), "flush": (1, 0, 0), "discard": (1, 256 * 512, 0),
             "write-zeroes": none, "other": none},
            {"read": (100, 100 * 8192, 0), "write": none, "flush": none, "discard": none,
             "write-zeroes": (1, 128 * 512, 0), "other": (1, 0, 0)}], "numbers: requests, bytes, errors")
        for q in s["queues"]:
            self.check(0 < q["kicks"] <= 200 and 0 < q["interrupts"] <= 200, "numbers: kicks and interrupts", q)
            for kind in KINDS:
                ns = q[kind]["latency-ns"]
                ends = [end for end, _ in ns["histogram"]]
                self.check(sum(n for _, n in ns["histogram"]) == q[kind]["requests"] and ends == sorted(set(ends))
                           and ns["max"] == max(ends, default=0) and ns["p50"] <= ns["p99"] <= ns["p99.9"] <= ns["max"]
                           and ns["max"] < WAIT_S * 1e9, f"numbers: latencies, {kind}", ns)

    def grows_under_guest(self, d):
        r = self.shardcow("resize", "--control", self.control, "+64M")
        self.check(r.code == 0, "resize under a guest", r)
        self.equal(d.sectors, 128 * MIB // 512, "resize under a guest: what it sees")
        d.write(128 * MIB // 512 - 8, b"\7" * 4096)
        self.check(d.read(128 * MIB // 512 - 16, 16) == bytes(4096) + b"\7" * 4096, "resize under a guest: new space")


def main():
    options = harness.parser(__doc__).parse_args()
    harness.start(options)
    results = harness.Results()
    for name in ("keys", "commands", "bad_lines", "slow_clients", "resize", "numbers"):
        if options.only and not re.search(options.only, name):
            continue
        # Sockets' paths have to be short.
        with tempfile.TemporaryDirectory(prefix="scow-") as folder:
            test = Test(options, results, folder)
            try:
                getattr(test, name)()
            finally:
                test.end()
    results.finish()


if __name__ == "__main__":
    main()
