#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Servers of vhost-user-blk beside each other: shardcow's and qemu-storage-daemon.

    perf/vhost.py [--build DIR] [--dir DIR]... [--qemu qsd|qsd11] [--aio MODE] [--mib N] [--seconds S]
                  [--rounds N] [SECTION...]

Sections: reads, latency, sequential, overwrites, allocating, flushes, cpu, and of shardcow's own options
pinned, stats; default: all. A --dir is a folder to measure in, or the word zram: ext4 on a disk that is
memory, which is made for it (default: zram where it can be had, /dev/shm, and the build folder); each needs
about four times --mib of room. The client is blkio_client.c with libblkio of the root that
tests/guest/setup.sh makes; qsd11 is the QEMU in it.

Servers alternate in rounds on the same file, which both open for direct I/O. Each row has the median of the
rounds' ratios with their quartiles. Both keep data in memory until the client asks for a flush, which
ends when all of it is on disk. (A guest of QEMU's server sends none, because the server calls itself a
write-through disk, which it is not: a comparison through guests would not be a fair one.)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import report
import writes
import zram

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "guest"))
import guest  # noqa: E402

CLIENT_SECONDS = 120  # at most, for a run
MIB = 1 << 20


def build_client(folder):
    """The host's compiler with the root's libblkio: that library wants the root's newer libc, which it gets
    from the root's own linker when the client runs."""
    out = os.path.join(folder, "blkio_client")
    source = os.path.join(ROOT, "perf", "blkio_client.c")
    include = os.path.join(folder, "include")
    os.makedirs(include, exist_ok=True)
    header = os.path.join(include, "blkio.h")
    if not os.path.exists(header):
        os.symlink(os.path.join(guest.ROOT, "usr/include/blkio.h"), header)
    writes.run("cc", "-O2", "-D_GNU_SOURCE", "-isystem", include, source, "-o", out, "-pthread",
               os.path.join(guest.ROOT, "usr/lib/x86_64-linux-gnu/libblkio.so.1"), "-Wl,--allow-shlib-undefined")
    return out


class Vhost:
    def __init__(self, options, client):
        self.options = options
        self.command = os.path.join(options.build, "cli", "shardcow")
        self.client = [*guest.from_root("")[:-1], client]
        self.ours, self.qemu = options.ours, options.qemu

    # ---- what is run ----

    def load(self, kind, image, queues, *args):
        """One run of the client on a server of its own. kind: its name, and options of shardcow's."""
        kind, *flags = kind.split()
        with tempfile.TemporaryDirectory() as folder:
            socket = os.path.join(folder, "disk")
            with guest.Server(kind, image, socket, queues, self.command, aio=self.options.aio,
                              flags=flags) as server:
                argv = [*self.client, "--queues", queues, "--server-pid", server.pid, *args, socket]
                try:
                    done = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, check=False,
                                          capture_output=True, text=True, timeout=CLIENT_SECONDS)
                except subprocess.TimeoutExpired:
                    raise SystemExit(f"{kind}: the client ran out of time\n{server.said()}") from None
                if done.returncode:
                    raise SystemExit(f"{kind}: {' '.join(map(str, argv))}\n{done.stderr}{server.said()}")
                trouble = server.stop()
                if trouble:
                    raise SystemExit(f"{kind}: {trouble}")
        return json.loads(done.stdout)

    def timed(self):
        return "--warmup", 0.2, "--seconds", self.options.seconds

    def pick_aio(self, folder):
        """QEMU's fastest way to its file, by random reads. Not io_uring in QEMU 11.1, which loses queues: see
        guest.Server."""
        rates = {}
        modes = writes.QEMU_MODES if self.options.qemu == "qsd" else ("threads", "native")
        for self.options.aio in modes:
            some = [self.load(self.options.qemu, self.full_image(folder), 1, "--rw", "randread", *self.timed())
                    for _ in range(3)]
            rates[self.options.aio] = statistics.median(values(some, "iops"))
        self.options.aio = max(rates, key=rates.get)

    def pairs(self, image, queues, *args, fresh=None, kinds=None):
        """Rounds of both, who begins alternating. fresh: makes the image before each run. kinds: others than
        the two."""
        kinds = kinds or (self.ours, self.qemu)
        results = ([], [])
        for number in range(self.options.rounds):
            for which in ((0, 1) if number % 2 == 0 else (1, 0)):
                if fresh:
                    fresh()
                results[which].append(self.load(kinds[which], image, queues, "--seed", number + 1, *args))
        return results

    def full_image(self, folder):
        """Every cluster allocated, content that does not compress."""
        raw, image = os.path.join(folder, "full.raw"), os.path.join(folder, "full.qcow2")
        if not os.path.exists(image):
            with open(raw, "wb") as out:
                for _ in range(self.options.mib):
                    out.write(os.urandom(MIB))
            writes.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
            os.unlink(raw)
            writes.run("sync", image)
        return image

    def fresh_image(self, folder, clusters):
        """(path, what makes it new)"""
        image = os.path.join(folder, "fresh.qcow2")

        def make():
            writes.remove(image)
            writes.run("qemu-img", "create", "-q", "-f", "qcow2", image, clusters * writes.CLUSTER)
        return image, make

    # ---- rows ----

    def rate(self, what, ours, theirs, other="QEMU"):
        a, b = values(ours, "iops"), values(theirs, "iops")
        writes.print_ratios(f"{what}: requests per second", a, b,
                            f"{writes.kilo(statistics.median(a))}, {other} {writes.kilo(statistics.median(b))}")

    def times(self, what, key, ours, theirs, other="QEMU"):
        a, b = values(ours, key), values(theirs, key)
        if all(b) and all(a):
            writes.print_ratios(f"{what} (less is better)", a, b,
                                f"{statistics.median(a):.2f} us, {other} {statistics.median(b):.2f} us")

    # ---- sections ----

    def reads(self, folder):
        for queues in (1, 2):
            pair = self.pairs(self.full_image(folder), queues, "--rw", "randread", "--depth", 32, *self.timed())
            what = f"4 KiB random reads, depth 32, {queues} queue(s)"
            self.rate(what, *pair)
            self.times(f"{what}: p99", "p99-us", *pair)
            self.times(f"{what}: the server's CPU time per request", "server-cpu-us-per-op", *pair)

    def latency(self, folder):
        pair = self.pairs(self.full_image(folder), 1, "--rw", "randread", "--depth", 1, *self.timed())
        for name in ("p50", "p99"):
            self.times(f"4 KiB random reads, depth 1: {name}", f"{name}-us", *pair)
        self.times("4 KiB random reads, depth 1: the server's CPU time per request", "server-cpu-us-per-op", *pair)

    def sequential(self, folder):
        pair = self.pairs(self.full_image(folder), 1, "--rw", "read", "--bs", 128 << 10, "--depth", 16, *self.timed())
        a, b = ([v / 1e9 for v in values(p, "bytes-per-second")] for p in pair)
        writes.print_ratios("128 KiB sequential reads, depth 16: bytes per second", a, b,
                            f"{statistics.median(a):.2f} GB/s, QEMU {statistics.median(b):.2f} GB/s")

    def overwrites(self, folder):
        for queues in (1, 2):
            pair = self.pairs(self.full_image(folder), queues, "--rw", "randwrite", "--depth", 32, *self.timed())
            what = f"4 KiB random overwrites, depth 32, {queues} queue(s)"
            self.rate(what, *pair)
            self.times(f"{what}: the server's CPU time per request", "server-cpu-us-per-op", *pair)

    def allocating(self, folder):
        clusters = self.options.mib * MIB * 2 // writes.CLUSTER
        image, make = self.fresh_image(folder, clusters)
        for queues in (1, 2):
            pair = self.pairs(image, queues, "--rw", "randwrite", "--step", writes.CLUSTER, "--once", "--depth", 32,
                              fresh=make)
            what = f"4 KiB random writes, each the first to its cluster, depth 32, {queues} queue(s)"
            self.rate(what, *pair)
            self.times(f"{what}: the server's CPU time per request", "server-cpu-us-per-op", *pair)
        writes.remove(image)

    def flushes(self, folder):
        count = self.options.mib
        image, make = self.fresh_image(folder, count)
        always = ("--rw", "randwrite", "--depth", 1, "--flush-every", 1)
        pair = self.pairs(image, 1, *always, "--step", writes.CLUSTER, "--once", fresh=make)
        self.rate("a first write to a cluster and a flush, one after the other", *pair)
        self.times("its flush: p50", "flush-p50-us", *pair)
        writes.remove(image)
        pair = self.pairs(self.full_image(folder), 1, *always, *self.timed())
        self.rate("an overwrite and a flush, one after the other", *pair)
        pair = self.pairs(self.full_image(folder), 2, "--rw", "randwrite", "--depth", 16, "--flush-every", 8,
                          *self.timed())
        self.rate("overwrites, a flush after every 8, depth 16, 2 queues", *pair)
        image, make = self.fresh_image(folder, count * 2)
        pair = self.pairs(image, 2, "--rw", "randwrite", "--depth", 16, "--flush-every", 8, "--step", writes.CLUSTER,
                          "--once", fresh=make)
        self.rate("first writes, a flush after every 8, depth 16, 2 queues", *pair)
        writes.remove(image)

    def cpu(self, folder):
        """At the same work, so not per second: a fixed number of requests."""
        count = int(40000 * max(1, self.options.seconds))
        for rw in ("randread", "randwrite"):
            pair = self.pairs(self.full_image(folder), 2, "--rw", rw, "--depth", 32, "--count", count)
            self.times(f"the server's CPU time per 4 KiB {rw} request, 2 queues of depth 32, {count} requests",
                       "server-cpu-us-per-op", *pair)

    def option(self, folder, what, kinds):
        """Two kinds of shardcow beside each other."""
        count = int(400000 * self.options.seconds)
        for queues in (1, 2):
            pair = self.pairs(self.full_image(folder), queues, "--rw", "randread", "--depth", 32, "--count", count,
                              kinds=kinds)
            name = f"4 KiB random reads, depth 32, {queues} queue(s), {what}"
            self.rate(name, *pair, "without")
            self.times(f"{name}: CPU time per request", "server-cpu-us-per-op", *pair, "without")

    def pinned(self, folder):
        self.option(folder, "--pin-memory", ("shardcow --pin-memory", "shardcow"))

    def stats(self, folder):
        self.option(folder, "statistics", ("shardcow", "shardcow --no-stats"))


SECTIONS = ("reads", "latency", "sequential", "overwrites", "allocating", "flushes", "cpu", "pinned", "stats")


def values(results, key):
    return [r[key] for r in results]


def qemu_version(kind):
    argv = guest.from_root("qemu-storage-daemon") if kind == "qsd11" else ["qemu-storage-daemon"]
    return writes.run(*argv, "--version").splitlines()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    parser.add_argument("--dir", action="append")
    parser.add_argument("--ours", choices=("shardcow", "qsd", "qsd11"), default="shardcow",
                        help="another left side, to try the rig itself")
    parser.add_argument("--qemu", choices=("qsd", "qsd11"), default="qsd")
    parser.add_argument("--aio", choices=(*writes.QEMU_MODES, "best"), default="best",
                        help="how QEMU does I/O; best: each is tried in each folder")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("section", nargs="*", default=[])
    options = parser.parse_args()
    if set(options.section) - set(SECTIONS):
        parser.error(f"sections are {', '.join(SECTIONS)}")
    if not os.path.exists(os.path.join(guest.ROOT, "usr/include/blkio.h")):
        sys.exit(f"no libblkio in {guest.ROOT}: run tests/guest/setup.sh root")
    print(f"{report.machine()}\nbeside {qemu_version(options.qemu)}\n")
    best = options.aio == "best"
    with tempfile.TemporaryDirectory() as tools:
        vhost = Vhost(options, build_client(tools))
        for place in options.dir or [*["zram"] * zram.available(), "/dev/shm", options.build]:
            with (zram.folder(6 * options.mib) if place == "zram" else
                  tempfile.TemporaryDirectory(dir=place, prefix="shardcow-vhost-")) as folder:
                if best:
                    vhost.pick_aio(folder)
                print(f"In {place}, QEMU with aio={options.aio}:\n\n| what | ratio | spread | |")
                print("| --- | --- | --- | --- |", flush=True)
                for section in options.section or SECTIONS:
                    getattr(vhost, section)(folder)
            print()


if __name__ == "__main__":
    main()
