#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The figures of the README: shardcow beside the raw file and beside qemu-img, each pair in one run.

    perf/report.py [--build DIR] [--dir DIR]... [--mib N] [--seconds S] [--rounds N] [SECTION...]

Sections: hits, qemu, null, misses, convert; overwrites, allocating, sequential, flushes, group, beside, or
writes for these six; default: all. A --dir is a folder to measure in (default: /dev/shm and the build
folder); each needs about four times --mib of room, for beside 17 GiB on a disk. Everything is a ratio within
one run, because machines differ and shared ones are noisy; medians of alternating rounds.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import writes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*args, check=True):
    done = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, args))}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def machine():
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, {run('qemu-img', '--version').splitlines()[0]}"


class Report:
    def __init__(self, options):
        self.command = os.path.join(options.build, "cli", "shardcow")
        self.hit_path = os.path.join(options.build, "perf", "hit_path")
        self.mib = options.mib
        self.seconds = options.seconds
        self.rounds = options.rounds

    def bench(self, *args):
        return json.loads(run(self.command, "bench", "--output=json", *args))

    def random_raw(self, folder):
        """A raw file without holes, and its qcow2 twin with every cluster allocated."""
        raw, image = os.path.join(folder, "full.raw"), os.path.join(folder, "full.qcow2")
        if not os.path.exists(image):
            with open(raw, "wb") as out:
                for _ in range(self.mib):
                    out.write(os.urandom(1 << 20))
                os.fsync(out.fileno())
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
            run("sync", image)
        return raw, image

    def hits(self, folder):
        raw, image = self.random_raw(folder)
        result = self.bench("--scale", "1,2", "--compare-raw", raw, "--rounds", self.rounds, "--seconds", self.seconds,
                            "--warmup", "0.2", image)
        for one in result["runs"]:
            ratio = one["ratio"]
            print(f"| cached 4 KiB random reads, depth 64, {one['queues']} queue(s), beside as many raw threads | "
                  f"{ratio['median']:.2f} | {ratio['q1']:.2f} to {ratio['q3']:.2f} | {one['iops'] / 1000:.0f}k IOPS |")

    def qemu(self, folder):
        """qemu-img bench reads sequentially in steps; a step that is coprime to the file's blocks visits them all."""
        raw, image = self.random_raw(folder)
        count = int(150000 * self.seconds * 4)
        for mode in ("threads", "native", "io_uring"):
            ratios, iops = [], []
            for _ in range(max(3, self.rounds // 3)):
                text = run("qemu-img", "bench", "-t", "none", "-i", mode, "-c", count, "-d", 64, "-s", 4096, "-S",
                           4096 * 7919, "-f", "qcow2", image, check=False)
                took = re.search(r"Run completed in ([0-9.]+) seconds", text)
                if not took:
                    break
                iops.append(count / float(took.group(1)))
                ours = self.bench("--seconds", self.seconds * 2, "--warmup", "0.2", image)["runs"][0]["iops"]
                ratios.append(ours / iops[-1])
            if ratios:
                print(f"| the same, one queue, beside `qemu-img bench -i {mode}` | {statistics.median(ratios):.2f} | "
                      f"{min(ratios):.2f} to {max(ratios):.2f} | QEMU {statistics.median(iops) / 1000:.0f}k IOPS |")

    def null(self, folder):
        _, image = self.random_raw(folder)
        figures = {}
        for threads in (1, 2, 4, 8):
            figures[threads] = []
        for _ in range(max(3, self.rounds // 2)):
            for threads, values in figures.items():
                values.append(float(run(self.hit_path, image, 2000000, threads).split()[1]))
        one = statistics.median(figures[1])
        for threads, values in figures.items():
            median = statistics.median(values)
            print(f"| engine alone (null backend), {threads} thread(s): CPU time per read beside one thread's | "
                  f"{median / one:.2f} | {min(values) / one:.2f} to {max(values) / one:.2f} | {median:.0f} ns, "
                  f"{1e3 / median:.1f} M reads/s and thread |")

    def misses(self, folder):
        raw, _ = self.random_raw(folder)
        image = os.path.join(folder, "small-clusters.qcow2")
        if not os.path.exists(image):
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", raw, image)
        tables = self.mib * (1 << 20) // 4096 * 8
        result = self.bench("--cache-bytes", tables // 8, "--compare-raw", raw, "--rounds", self.rounds, "--seconds",
                            self.seconds, "--warmup", "0.2", image)
        one = result["runs"][0]
        counters = one["counters"]
        share = counters["misses"] / (counters["hits"] + counters["misses"])
        print(f"| random reads with L2 tables 8 times the cache ({share:.0%} misses), beside raw | "
              f"{one['ratio']['median']:.2f} | {one['ratio']['q1']:.2f} to {one['ratio']['q3']:.2f} | "
              f"{one['iops'] / 1000:.0f}k IOPS |")

    def convert(self, folder):
        raw = os.path.join(folder, "tree.raw")
        if not os.path.exists(raw):
            tree = "/usr/bin" if self.mib < 600 else "/usr/lib"
            run("truncate", "-s", f"{self.mib}M", raw)
            with tempfile.TemporaryDirectory(dir=folder) as part:
                copy_some(tree, part, self.mib * (1 << 20) * 8 // 10)
                run("mke2fs", "-q", "-t", "ext4", "-F", "-d", part, raw)
        out = os.path.join(folder, "out.raw")
        for name, options in (("zlib", ["-c"]), ("zstd", ["-c", "-o", "compression_type=zstd"]), ("plain", [])):
            image = os.path.join(folder, f"{name}.qcow2")
            if not os.path.exists(image):
                run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, image)
            ratios = []
            for _ in range(max(3, self.rounds // 2)):
                theirs = timed("qemu-img", "convert", "-m", 16, "-W", "-f", "qcow2", "-O", "raw", image, out)
                os.unlink(out)
                ours = timed(self.command, "convert", "-O", "raw", image, out)
                os.unlink(out)
                ratios.append(theirs / ours)
            print(f"| `convert -O raw` of {name} clusters, speed beside `qemu-img convert -m 16 -W` | "
                  f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | |")


def timed(*args):
    start = time.monotonic()
    run(*args)
    return time.monotonic() - start


def copy_some(tree, target, limit):
    """Files of tree up to limit bytes in all."""
    total = 0
    for folder, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            total += os.path.getsize(path)
            if total > limit:
                return
            shutil.copyfile(path, os.path.join(target, str(total)))


def main():
    reads = ("hits", "qemu", "null", "misses", "convert")
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(ROOT, "build"))
    parser.add_argument("--dir", action="append")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("section", nargs="*", default=[])
    options = parser.parse_args()
    sections = []
    for section in options.section or (*reads, "writes"):
        sections += writes.SECTIONS if section == "writes" else [section]
    if set(sections) - {*reads, *writes.SECTIONS}:
        parser.error(f"sections are {', '.join((*reads, *writes.SECTIONS))} and writes")
    report, write_report = Report(options), writes.Writes(options)
    print(f"{machine()}\n")
    for place in options.dir or ["/dev/shm", options.build]:
        print(f"In {place}:\n\n| what | ratio | spread | |\n| --- | --- | --- | --- |", flush=True)
        with tempfile.TemporaryDirectory(dir=place, prefix="shardcow-report-") as folder:
            for section in sections:
                getattr(report if section in reads else write_report, section)(folder)
                sys.stdout.flush()
        print()


if __name__ == "__main__":
    main()
