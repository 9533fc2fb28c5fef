# SPDX-License-Identifier: MIT
"""The write side of perf/report.py: each function measures one thing in a folder and prints its rows.

What is compared alternates in rounds, and a row has the median of the rounds' ratios with their quartiles.
Every round of what allocates begins with new files.
"""

import json
import os
import re
import shutil
import statistics
import subprocess

CLUSTER = 65536
BLOCK = 4096
QEMU_MODES = ("threads", "native", "io_uring")


class Writes:
    def __init__(self, options):
        self.command = os.path.join(options.build, "cli", "shardcow")
        self.read_latency = os.path.join(options.build, "perf", "read_latency")
        self.qcow2_rs = os.path.join(options.build, "qcow2_rs", "release", "qcow2_rs_bench")
        self.mib = options.mib
        self.seconds = options.seconds
        self.rounds = options.rounds

    # ---- what is run ----

    def bench(self, folder, *args):
        """shardcow bench on files of its own, which it makes."""
        image, raw = os.path.join(folder, "fresh.qcow2"), os.path.join(folder, "fresh.raw")
        args = [raw if a == "RAW" else a for a in args]
        try:
            return json.loads(run(self.command, "bench", "--output=json", *args, image))
        finally:
            remove(image, raw)

    def image_writes(self, folder, count, *args):
        """Requests per second of shardcow on a new image with count clusters, each written once."""
        result = self.bench(folder, "--step", CLUSTER, "--seconds", 3600, "--fresh", count * CLUSTER, *args)
        return result["runs"][0]

    def new_image(self, folder, name, size_bytes):
        path = os.path.join(folder, name)
        remove(path)
        run("qemu-img", "create", "-q", "-f", "qcow2", path, size_bytes)
        return path

    def qemu_writes(self, folder, mode, count, *args, prefix=()):
        """Requests per second of qemu-img bench on a new image with count clusters, in steps of one: it has
        no random order. None where QEMU has no such mode."""
        image = self.new_image(folder, "qemu.qcow2", count * CLUSTER)
        text = attempt(*prefix, "qemu-img", "bench", "-w", "-t", "none", "-i", mode, "-c", count,
                       "-s", BLOCK, "-S", CLUSTER, *args, "-f", "qcow2", image)
        remove(image)
        took = re.search(r"Run completed in ([0-9.]+) seconds", text)
        return count / max(float(took.group(1)), 1e-3) if took else None

    def best_mode(self, folder, count, *args):
        """QEMU's fastest, of three runs each."""
        rates = {}
        for mode in QEMU_MODES:
            some = [self.qemu_writes(folder, mode, count, *args) for _ in range(3)]
            if None not in some:
                rates[mode] = statistics.median(some)
        return max(rates, key=rates.get)

    # ---- overwrites ----

    def overwrites(self, folder):
        result = self.bench(folder, "--rw", "randwrite", "--prepare", "--fresh", f"{self.mib}M", "--scale", "1,2",
                            "--compare-raw", "RAW", "--rounds", self.rounds, "--seconds", self.seconds)
        for one in result["runs"]:
            print_spread(f"4 KiB random overwrites, depth 64, {one['queues']} queue(s), beside as many raw threads",
                         one["ratio"], kilo(one["iops"]))

    # ---- allocating writes ----

    def allocating(self, folder):
        """As many writes as there are clusters in four times --mib: leases and the file's growth are in it."""
        count = self.mib * (1 << 20) * 4 // CLUSTER
        mode = self.best_mode(folder, count // 4, "-d", 64)
        ours, theirs = [], []
        for _ in range(self.rounds):
            ours.append(self.image_writes(folder, count, "--rw", "randwrite")["iops"])
            theirs.append(self.qemu_writes(folder, mode, count, "-d", 64))
        what = "4 KiB random writes, each the first to its cluster, depth 64"
        print_ratios(f"{what}, beside `qemu-img bench -w -i {mode}` (in order)", ours, theirs,
                     f"{kilo(statistics.median(ours))}, QEMU {kilo(statistics.median(theirs))}")
        self.allocating_qcow2_rs(folder, what, count)

    def allocating_qcow2_rs(self, folder, what, count):
        what = f"{what}, beside qcow2-rs"
        if not os.path.exists(self.qcow2_rs):
            print(f"| {what} | skipped | | {os.path.basename(self.qcow2_rs)} is not built, see perf/qcow2_rs |")
            return
        ours, theirs = [], []
        for _ in range(self.rounds):
            ours.append(self.image_writes(folder, count, "--rw", "randwrite")["iops"])
            image = self.new_image(folder, "rust.qcow2", count * CLUSTER)
            theirs.append(float(run(self.qcow2_rs, image, count, 64)))
            remove(image)
        print_ratios(what, ours, theirs, f"{kilo(statistics.median(ours))}, qcow2-rs {kilo(statistics.median(theirs))}")

    # ---- sequential first writes ----

    def sequential(self, folder):
        result = self.bench(folder, "--rw", "write", "--bs", CLUSTER, "--fresh", f"{self.mib}M", "--seconds", 3600,
                            "--compare-raw", "RAW", "--rounds", self.rounds)
        one = result["runs"][0]
        print_spread("64 KiB sequential first writes, depth 64, beside a raw file whose space was allocated before "
                     "(`posix_fallocate`; the image's is as it grows)", one["ratio"],
                     f"{one['bytes-per-second'] / 1e6:.0f} MB/s")

    # ---- write and flush ----

    def flushes(self, folder):
        count = self.mib * 2
        pairs = ("-d", 1, "--flush-interval", 1)
        mode = self.best_mode(folder, count, *pairs)
        ours, theirs = [], []
        for _ in range(self.rounds):
            ours.append(self.image_writes(folder, count, "--rw", "write", "--depth", 1, "--flush-every", 1)["iops"])
            theirs.append(self.qemu_writes(folder, mode, count, *pairs))
        print_ratios("a first write to a cluster and a flush, one after the other, beside "
                     f"`qemu-img bench -w --flush-interval=1 -i {mode}`", ours, theirs,
                     f"{statistics.median(ours):.0f}/s, QEMU {statistics.median(theirs):.0f}/s")
        self.syncs(folder, count, pairs)

    def syncs(self, folder, count, pairs):
        """Seen from outside in both, with the backends that make system calls of them. A run of few writes is
        subtracted from one of many: opening and closing sync too."""
        what = "fdatasyncs per such write, beside QEMU's"
        if not shutil.which("strace"):
            print(f"| {what} | skipped | | strace is not installed |")
            return
        log = os.path.join(folder, "strace.log")
        prefix = ("strace", "-f", "-qq", "-c", "-U", "name,calls", "-o", log, "-e", "trace=fsync,fdatasync")
        few, many = count // 8, count
        counts = {}
        for n in (few, many):
            image = os.path.join(folder, "fresh.qcow2")
            run(*prefix, self.command, "bench", "--backend", "threads", "--rw", "write", "--depth", 1, "--flush-every",
                1, "--step", CLUSTER, "--seconds", 3600, "--fresh", n * CLUSTER, image)
            remove(image)
            ours = counted(log)
            self.qemu_writes(folder, "threads", n, *pairs, prefix=prefix)
            counts[n] = ours, counted(log)
        ours, theirs = ((counts[many][i] - counts[few][i]) / (many - few) for i in (0, 1))
        print(f"| {what} | {ours / theirs:.2f} | | {ours:.2f}, QEMU {theirs:.2f} |")

    # ---- group commit ----

    def group(self, folder):
        """Each write is the first to its cluster, so every flush needs a commit."""
        count = self.mib * 2
        one, eight, commits = [], [], []
        for _ in range(self.rounds):
            args = ("--rw", "randwrite", "--depth", 1, "--flush-every", 1)
            one.append(self.image_writes(folder, count, *args)["iops"])
            result = self.image_writes(folder, count * 8, *args, "--queues", 8)
            eight.append(result["iops"])
            commits.append(result["counters"]["commits"] / result["ops"])
        print_ratios("8 queues that each write and flush in a loop, beside one", eight, one,
                     f"{statistics.median(eight):.0f}/s, one queue {statistics.median(one):.0f}/s; "
                     f"{statistics.median(commits):.2f} commits per flush")

    # ---- reads beside flushes ----

    def beside(self, folder):
        read_bytes, room = self.mib << 18, 16 << 30
        image, raw = os.path.join(folder, "read.qcow2"), os.path.join(folder, "read.raw")
        for depth in (1, 64):
            run(self.command, "create", "-f", "qcow2", image, read_bytes + room)
            run(self.command, "io", "-f", "qcow2", "-c", f"write 0 {read_bytes}", image)
            make_raw(raw, read_bytes, room)
            for kind, path, name in (("qcow2", image, "an image"), ("raw", raw, "a raw file, for comparison")):
                lines = run(self.read_latency, kind, path, read_bytes, depth, self.seconds, self.rounds)
                rows = [line.split() for line in lines.splitlines()]
                idle, busy, rate = ([float(row[i]) for row in rows] for i in range(3))
                print_ratios(f"{name}: p99 of 4 KiB random reads, depth {depth}, while another queue writes and "
                             "flushes in a loop, beside the same while that idles", busy, idle,
                             f"{statistics.median(busy) / 1000:.0f} us, idle {statistics.median(idle) / 1000:.0f} us, "
                             f"{statistics.median(rate):.0f} flushes/s")
            remove(image, raw)


SECTIONS = ("overwrites", "allocating", "sequential", "flushes", "group", "beside")


def attempt(*args):
    done = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False)
    return done.stdout if done.returncode == 0 else ""


def run(*args):
    done = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, args))}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def remove(*paths):
    for path in paths:
        if os.path.exists(path):
            os.unlink(path)


def make_raw(path, data_bytes, room):
    """Zeros that are written, then room: allocated, except in memory, where that would take it."""
    with open(path, "wb") as out:
        for _ in range(data_bytes >> 20):
            out.write(bytes(1 << 20))
        os.ftruncate(out.fileno(), data_bytes + room)
        if run("stat", "-f", "-c", "%T", path).strip() != "tmpfs":
            os.posix_fallocate(out.fileno(), data_bytes, room)
        os.fsync(out.fileno())


def counted(log):
    """Calls in strace's summary."""
    with open(log) as text:
        return sum(int(m.group(1)) for m in re.finditer(r"^\s*(?:fsync|fdatasync)\s+(\d+)", text.read(), re.M))


def kilo(rate):
    return f"{rate / 1000:.0f}k IOPS"


def print_ratios(what, ours, theirs, detail):
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    q1, median, q3 = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    print_spread(what, {"median": median, "q1": q1, "q3": q3}, detail)


def print_spread(what, ratio, detail):
    print(f"| {what} | {ratio['median']:.2f} | {ratio['q1']:.2f} to {ratio['q3']:.2f} | {detail} |", flush=True)
