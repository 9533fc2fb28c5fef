# SPDX-License-Identifier: MIT
"""Alternating writers on every generated image: shardcow, qemu-io, shardcow, …

A raw file, the shadow, gets every write too. After each turn qemu-img check has nothing to say, and both
qemu-img and shardcow read what the shadow holds. Internal snapshots keep what they had.
"""

import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
import variants                                                                        # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB = 1 << 10
ROUNDS = 3
# How shardcow writes, one after the other.
WAYS = [
    ["--backend", "io_uring", "--slice-bytes", "512", "--cache-bytes", "8192", "--shards", "3"],
    ["--backend", "threads", "--shards", "2", "--detect-zeroes", "unmap"],
    ["--backend", "io_uring", "--buffered", "--shards", "4", "--cache-bytes", "65536", "--detect-zeroes", "on"],
    ["--backend", "threads", "--slice-bytes", "512", "--cache-bytes", "1", "--shards", "1", "--no-punch"],
    ["--backend", "io_uring", "--shards", "1", "--writethrough"],
]


class Copy:
    """A variant's folder, to be written to, and the shadow. The sources that images name are next to it."""

    def __init__(self, variant, folder):
        self.name = variant.name
        self.format = variant.format
        self.folder = folder
        self.cluster_bytes = variant.cluster_bytes()
        self.path = os.path.join(folder, os.path.basename(variant.path))
        self.shadow = os.path.join(folder, "shadow.raw")
        names = [os.path.basename(variant.path)] if variant.format == "raw" else os.listdir(variant.folder)
        for name in names:
            if name != "truth.raw":
                must(["cp", "-r", "--sparse=always", "--reflink=auto", os.path.join(variant.folder, name), folder])
        must(["cp", "--sparse=always", "--reflink=auto", variant.truth, self.shadow])
        self.size = os.path.getsize(self.shadow)

    def snapshots(self):
        """Names, in order of their numbers."""
        if self.format == "raw":
            return []
        text = must(["qemu-img", "snapshot", "-l", self.path], cwd=self.folder)
        return re.findall(r"^\d+ +(\S+(?: \S+)*?) {2,}", text, re.M)

    def snapshot_sha(self, name):
        out = os.path.join(self.folder, "snapshot.raw")
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", f"snapshot.name={name}", self.path, out],
             cwd=self.folder, timeout=300)
        sha = harness.sha(out)
        os.unlink(out)
        return sha


class Writer:
    def __init__(self, options, rng, results):
        self.options = options
        self.rng = rng
        self.results = results

    # ---- the writers ----

    def shardcow(self, copy, way, name):
        # Left complete in the middle: QEMU finds nothing wrong with the open file.
        pause = "true" if copy.format == "raw" or copy.name == "bitmap" else \
            f"qemu-img check -q -U -f qcow2 '{copy.path}' && qemu-img compare -q -U -f qcow2 -F raw " \
            f"'{copy.path}' '{copy.shadow}'"
        r = run([self.options.random_writer, "--format", copy.format, *way, "--threads", "3",
                 "--seconds", str(self.options.seconds), "--phases", "2", "--pause-command", pause,
                 "--seed", str(self.rng.randrange(1 << 32)), copy.path, copy.shadow],
                cwd=copy.folder, timeout=120 + 20 * self.options.seconds)
        return self.results.check(r.code == 0, f"{name}: shardcow writes ({' '.join(way)})", r)

    def commands(self, copy):
        """Lists of qemu-io's commands, one for each process."""
        kinds = ["data", "data", "data", "zero", "unmap-zero", "discard", "cluster-zero"]
        size = min(copy.size, 64 << 20)

        def some(count, kinds):
            return variants.scatter(copy.folder, self.rng, size, count, kinds=kinds,
                                    cluster=copy.cluster_bytes)

        batches = [some(50, kinds)]
        if copy.format == "qcow2" and not copy.name.startswith("data-file"):
            # QEMU 10.0 goes on filling a cluster with compressed ones after it was freed and handed out
            # again, so every process writes compressed once, and first of all.
            batches += [some(1, ["compressed"]) + some(8, kinds) for _ in range(4)]
        return batches

    def qemu(self, copy, name):
        good = True
        for commands in self.commands(copy):
            r = run(["qemu-io", "-t", "writeback", "-d", "unmap", "-f", copy.format, copy.path],
                    stdin="\n".join(commands) + "\n", cwd=copy.folder, timeout=300)
            bad = [line for line in r.out.splitlines() if "failed" in line or "rror" in line]
            self.follow(copy, commands)
            good = good and self.results.check(r.code == 0 and not bad, f"{name}: qemu-io writes", r)
        return good

    @staticmethod
    def follow(copy, commands):
        """The same commands on the shadow. Discards are of whole clusters: they zero."""
        with open(copy.shadow, "r+b") as f:
            for command in commands:
                words = command.split()
                off, length = int(words[-2]), int(words[-1])
                data = bytes(length)
                if "-s" in words:
                    with open(words[words.index("-s") + 1], "rb") as pattern:
                        piece = pattern.read()
                    data = (piece * (length // len(piece) + 1))[:length]
                f.seek(off)
                f.write(data)

    # ---- what QEMU and shardcow say then ----

    def bitmaps_leak(self, copy):
        """Bitmaps go out of date with the first write: what they were kept in leaks, and nothing else."""
        r = run(["qemu-img", "check", "-f", "qcow2", copy.path], cwd=copy.folder)
        self.results.check(r.code == 3, f"{copy.name}: bitmaps leak", r)
        must(["qemu-img", "check", "-f", "qcow2", "-r", "leaks", copy.path], cwd=copy.folder)

    def image_is_fine(self, copy, name, before_bytes=None):
        """before_bytes: how long the file was before shardcow wrote to it, for it gives back only its own."""
        if copy.format == "raw":
            where = harness.first_difference(copy.path, copy.shadow)
            self.results.check(where is None, f"{name}: the file is right", f"first difference at byte {where}")
            return
        r = run(["qemu-img", "check", "-f", "qcow2", copy.path], cwd=copy.folder, timeout=300)
        self.results.check(r.code == 0 and "No errors were found" in r.out, f"{name}: qemu-img check", r)
        if before_bytes is not None:
            end = re.search(r"Image end offset: (\d+)", r.out)
            size = os.path.getsize(copy.path)
            self.results.check(end and size <= max(int(end.group(1)), before_bytes),
                               f"{name}: nothing is left behind the end",
                               f"{size} bytes\n{r}")
        r = run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy.path, copy.shadow], cwd=copy.folder,
                timeout=300)
        self.results.check(r.code == 0, f"{name}: QEMU reads what was written", r)
        r = run([self.options.shardcow, "compare", "-f", "qcow2", "-F", "raw", copy.path, copy.shadow],
                cwd=copy.folder, timeout=300)
        self.results.check(r.code == 0, f"{name}: shardcow reads what was written", r)
        if copy.name == "data-file-raw":
            where = harness.first_difference(os.path.join(copy.folder, "data-file-raw.data"), copy.shadow)
            self.results.check(where is None, f"{name}: the data file is a raw image",
                               f"first difference at byte {where}")

    def snapshots_are_fine(self, copy, before):
        for name, sha in before.items():
            self.results.equal(copy.snapshot_sha(name), sha, f"{copy.name}: snapshot {name} is as it was")
        for name in before:
            must(["qemu-img", "snapshot", "-d", name, copy.path], cwd=copy.folder)
            self.image_is_fine(copy, f"{copy.name}, snapshot {name} deleted")

    # ---- one image ----

    def corrupt_is_refused(self, copy):
        before = harness.sha(copy.path)
        r = run([self.options.random_writer, copy.path, copy.shadow], cwd=copy.folder)
        self.results.check(r.code == 1 and "Read-only file system" in r.err, f"{copy.name}: writing is refused", r)
        self.results.equal(harness.sha(copy.path), before, f"{copy.name}: and nothing is changed")

    def alternate(self, variant, index, folder):
        copy = Copy(variant, folder)
        if variant.name == "corrupt":
            self.corrupt_is_refused(copy)
            return
        before = {name: copy.snapshot_sha(name) for name in copy.snapshots()}
        for i in range(ROUNDS):
            name = f"{variant.name}, round {i + 1}"
            way = WAYS[(index + i) % len(WAYS)]
            before_bytes = os.path.getsize(copy.path)
            if not self.shardcow(copy, way, name):
                return
            if copy.name == "bitmap" and i == 0:
                self.bitmaps_leak(copy)
            self.image_is_fine(copy, f"{name}, after shardcow", before_bytes)
            if not self.qemu(copy, name):
                return
            self.image_is_fine(copy, f"{name}, after qemu-io")
        if before:
            self.snapshots_are_fine(copy, before)


def main():
    p = harness.parser(__doc__)
    p.add_argument("--random-writer", default=os.environ.get("RANDOM_WRITER"), help="the compiled helper")
    p.add_argument("--seconds", type=float, help="of each phase of random writes; default 0.4, 0.2 with --quick")
    options = p.parse_args()
    rng = harness.start(options)
    if not options.random_writer or not shutil.which(options.random_writer):
        sys.exit("give --random-writer or set RANDOM_WRITER")
    options.random_writer = os.path.abspath(options.random_writer)
    options.seconds = options.seconds or (0.2 if options.quick else 0.4)
    if not harness.io_uring_works():
        for way in WAYS:
            way[1] = "threads"
    results = harness.Results()
    began = time.monotonic()
    for index, variant in enumerate(variants.select(options)):
        with harness.Scratch(options) as folder:
            Writer(options, rng, results).alternate(variant, index, folder)
    print(f"# time: {time.monotonic() - began:.0f} s")
    results.finish()


if __name__ == "__main__":
    main()
