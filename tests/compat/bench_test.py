# SPDX-License-Identifier: MIT
"""What shardcow bench does to images and files: nothing unless told to, and what it says with its patterns.

Figures are not judged, but counts are: each offset once on fresh files, one flush per so many writes, the
share of reads. Every image that was written passes qemu-img check.
"""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB


class Bench:
    def __init__(self, options, results, folder):
        self.options = options
        self.results = results
        self.folder = folder

    def run(self, *arguments):
        return run([self.options.shardcow, "bench", *arguments], cwd=self.folder)

    def json(self, name, *arguments):
        """The runs, or None after a failure, which is reported."""
        r = self.run("--output=json", "--seconds", "0.1", *arguments)
        if not self.results.check(r.code == 0 and not r.err, name, r):
            return None
        return json.loads(r.out)["runs"]

    def remove(self, *names):
        for name in names:
            if os.path.exists(f"{self.folder}/{name}"):
                os.unlink(f"{self.folder}/{name}")

    def allocated(self, name, path, clusters):
        r = run(["qemu-img", "check", "--output=json", "-f", "qcow2", path], cwd=self.folder)
        got = json.loads(r.out).get("allocated-clusters", 0) if r.out else None
        self.results.check(r.code == 0 and got == clusters, name,
                           f"{got} clusters, should be {clusters}\n{r}")

    def reads_only(self):
        must(["qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", str(SIZE)], cwd=self.folder)
        must(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 5M", "a.qcow2"], cwd=self.folder)
        with open(f"{self.folder}/a.raw", "wb") as f:
            f.write(b"\x07" * SIZE)
        before = [harness.sha(f"{self.folder}/{n}") for n in ("a.qcow2", "a.raw")]
        for arguments in (("a.qcow2",), ("--rw", "read", "a.qcow2"), ("--raw", "a.raw"),
                          ("--compare-raw", "a.raw", "--rounds", "2", "a.qcow2"),
                          ("--scale", "1,2", "--compare-raw", "a.raw", "--rounds", "2", "a.qcow2")):
            self.json(f"reads: {' '.join(arguments)}", *arguments)
        for arguments in (("--fresh", "1M", "new.qcow2"), ("--prepare", "a.qcow2"),
                          ("--flush-every", "1", "a.qcow2"),
                          ("--read-percent", "5", "a.qcow2"), ("--rw", "randwrite", "-U", "a.qcow2"),
                          ("--rw", "write", "-o", "cluster_size=4k", "a.qcow2"),
                          ("--rw", "write", "--fresh", "8M", "a.qcow2"),
                          ("--rw", "write", "--fresh", "8M", "--compare-raw", "a.raw", "new.qcow2"),
                          ("--rw", "write", "--fresh", "8M", "--raw", "a.raw"),
                          ("--rw", "write", "--backend", "null", "a.qcow2"),
                          ("--rw", "write", "--step", "512", "a.qcow2")):
            r = self.run(*arguments)
            self.results.check(r.code == 1 and r.err and not os.path.exists(f"{self.folder}/new.qcow2"),
                               f"refused: {' '.join(arguments)}", r)
        self.results.equal([harness.sha(f"{self.folder}/{n}") for n in ("a.qcow2", "a.raw")], before,
                           "nothing was written")

    def fresh(self):
        """Each offset once, and no cluster that was not asked for."""
        for words, ops, clusters in (("--rw randwrite", 2048, 128), ("--rw write --bs 64k", 128, 128),
                                     ("--rw randwrite --step 64k --range 4M", 64, 64),
                                     ("--rw randwrite --queues 3 --bs 8k", 1024, 128),
                                     ("--rw write --queues 2 --bs 4k --depth 1", 2048, 128),
                                     ("--rw randwrite --step 128k -o cluster_size=128k,extended_l2=on", 64,
                                      64),
                                     ("--rw write --queues 2 --backend threads", 2048, 128)):
            runs = self.json(f"fresh: {words}", "--fresh", str(SIZE), *words.split(), "--seconds", "60",
                             "f.qcow2")
            if runs:
                self.results.equal(runs[0]["ops"], ops, f"fresh: {words}: requests")
                self.results.equal(runs[0]["writes"]["count"], ops, f"fresh: {words}: writes")
                self.allocated(f"fresh: {words}: clusters", "f.qcow2", clusters)
            self.remove("f.qcow2")
        runs = self.json("fresh: raw", "--raw", "--rw", "randwrite", "--fresh", str(SIZE), "--seconds", "60",
                         "f.raw")
        if runs:
            with open(f"{self.folder}/f.raw", "rb") as f:
                blocks = [f.read(4096) for _ in range(SIZE // 4096)]
            self.results.check(all(any(b) for b in blocks) and runs[0]["ops"] == len(blocks),
                               "fresh: raw: every block is written")
        self.remove("f.raw")
        runs = self.json("fresh: compared", "--rw", "randwrite", "--fresh", str(SIZE), "--compare-raw",
                         "f.raw", "--rounds", "3", "--seconds", "60", "f.qcow2")
        if runs:
            self.results.equal([runs[0]["ops"], runs[0]["raw"]["ops"]], [3 * 2048] * 2,
                               "fresh: compared: new files for every round")
            self.results.equal(os.path.getsize(f"{self.folder}/f.raw"), SIZE, "fresh: compared: the raw file")
            self.allocated("fresh: compared: clusters", "f.qcow2", 128)
        self.remove("f.qcow2", "f.raw")

    def overwrites(self):
        runs = self.json("prepared", "--rw", "randwrite", "--fresh", str(SIZE), "--prepare", "--compare-raw",
                         "p.raw", "--rounds", "2", "p.qcow2")
        if runs:
            self.results.check(runs[0]["counters"]["clusters-allocated"] == 0 and runs[0]["ops"] > 100,
                               "prepared: no cluster is allocated any more", runs[0]["counters"])
            self.allocated("prepared: clusters", "p.qcow2", 128)
        for every in (1, 4):
            runs = self.json(f"a flush every {every}", "--rw", "randwrite", "--depth", "1", "--flush-every",
                             str(every), "p.qcow2")
            if runs:
                flushes, writes = runs[0]["flushes"]["count"], runs[0]["writes"]["count"]
                self.results.check(abs(writes - flushes * every) <= every, f"a flush every {every}: counts",
                                   f"{writes} writes, {flushes} flushes")
                self.results.equal(runs[0]["ops"], writes, f"a flush every {every}: no request")
        runs = self.json("mixed", "--rw", "randrw", "--read-percent", "80", "--flush-every", "50", "p.qcow2")
        if runs:
            reads, writes = runs[0]["reads"]["count"], runs[0]["writes"]["count"]
            self.results.check(0.7 < reads / (reads + writes) < 0.9, "mixed: four reads to one write",
                               f"{reads} reads, {writes} writes")
        for words in ("--rw rw --queues 4", "--rw write --bs 512", "--rw randwrite -t directsync --depth 4"):
            self.json(words, *words.split(), "p.qcow2")
        self.allocated("overwritten: clusters", "p.qcow2", 128)
        r = self.run("--rw", "randwrite", "--seconds", "0.1", "--flush-every", "8", "p.qcow2")
        self.results.check(r.code == 0 and "flushes, mean" in r.out and "p99" in r.out, "for people", r)


def main():
    p = harness.parser(__doc__)
    options = p.parse_args()
    harness.start(options)
    results = harness.Results()
    with harness.Scratch(options) as scratch:
        bench = Bench(options, results, scratch)
        bench.reads_only()
        bench.fresh()
        bench.overwrites()
    results.finish()


if __name__ == "__main__":
    main()
