# SPDX-License-Identifier: MIT
"""Resize images with shardcow, step by step, and compare with qemu-img and with a raw file.

After every step the image has the size that qemu-img gives another copy, the content of a raw file that is
truncated in the same way, and a clean check; between the steps qemu-io writes the same to all three. Images
of every kind that grows or shrinks in a way of its own: small clusters whose L1 table grows, backing files
longer and shorter than the disk, data files, snapshots.

The raw file decides, not qemu-img: QEMU 10.0 keeps what the last cluster holds beyond a smaller disk's end,
and shows it again when the disk grows.
"""

import json
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# name, size, options of qemu-img create, the steps after those that all have
IMAGES = (
    ("plain", 5 * MIB, "", ["3T", "--shrink 3M"]),
    ("clusters of 512", 5 * MIB, "cluster_size=512", ["1G", "--shrink 4M"]),
    ("clusters of 4k", 5 * MIB, "cluster_size=4k", ["100G", "--shrink 4M"]),
    ("clusters of 2M", 5 * MIB, "cluster_size=2M", ["10T", "--shrink 3M"]),
    ("version 2", 5 * MIB, "compat=0.10", ["2T"]),
    ("extended L2", 5 * MIB, "extended_l2=on", ["1T", "--shrink 3M"]),
    ("refcounts of 1 bit", 5 * MIB, "refcount_bits=1", ["1G"]),
    ("refcounts of 64 bits", 5 * MIB, "refcount_bits=64,cluster_size=512", ["1G"]),
    ("lazy refcounts", 5 * MIB, "lazy_refcounts=on", ["1G"]),
    ("all preallocated", 5 * MIB, "preallocation=metadata", ["1G"]),
    ("data file", 5 * MIB, "data_file=data", ["1G"]),
    ("raw data file", 5 * MIB, "data_file=data,data_file_raw=on", ["100M"]),
    ("over a longer raw file", 5 * MIB, "backing_file=base.raw,backing_fmt=raw", ["1G", "--shrink 3M"]),
    ("over a longer image", 5 * MIB + 512 * 5, "backing_file=base.qcow2,backing_fmt=qcow2", ["9M", "1G"]),
    ("over a shorter image", 24 * MIB, "backing_file=base.qcow2,backing_fmt=qcow2", ["32M"]),
    ("extended L2 over a longer image", 5 * MIB + 512, "extended_l2=on,backing_file=base.qcow2,"
     "backing_fmt=qcow2", ["6M"]),
)
STEPS = ["6M", "+1M", "+512", "7000064", "--shrink -1M", "--shrink 3M", "+64k", "3277312", "3277312",
         "--shrink 1M", "8M"]

# Refused by both. The image has 5 MiB.
ERRORS = ("4M", "-1M", "0", "-5M", "--shrink -5M", "--shrink -6M", "5M+1", "abc", "5000001", "+1",
          "--shrink 0", "--preallocation=nonsense 6M", "+8E", "16E", "--shrink", "", "6M 7M",
          "--nonsense 6M", "1.5.5M")


class Copies:
    """An image in two folders, one for each program, and its content in a raw file."""

    def __init__(self, folder, size, options):
        self.folders = {"qemu": f"{folder}/qemu", "shardcow": f"{folder}/shardcow"}
        for path in self.folders.values():
            os.makedirs(path)
            must(["qemu-img", "create", "-q", "-f", "raw", "base.raw", str(16 * MIB)], cwd=path)
            must(["qemu-io", "-f", "raw", "-c", f"write -q -P 0x5a 0 {16 * MIB}", "base.raw"], cwd=path)
            must(["qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", str(12 * MIB + 512 * 3)], cwd=path)
            must(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0xa5 0 {12 * MIB + 512 * 3}", "base.qcow2"],
                 cwd=path)
            # QEMU looks for a relative data file in the working directory.
            own = options.replace("data_file=data", f"data_file={path}/data")
            must(["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", own] if own else []), "a.qcow2",
                  str(size)], cwd=path)

        self.truth = f"{folder}/truth.raw"
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "a.qcow2", self.truth],
             cwd=self.folders["shardcow"])

    def qemu_io(self, commands):
        text = "\n".join(commands) + "\n"
        for path in self.folders.values():
            must(["qemu-io", "-f", "qcow2", "-d", "unmap", "a.qcow2"], stdin=text, cwd=path)
        must(["qemu-io", "-f", "raw", "-d", "unmap", self.truth], stdin=text)

    def snapshot(self, name):
        for path in self.folders.values():
            must(["qemu-img", "snapshot", "-c", name, "a.qcow2"], cwd=path)


class Resizer:
    def __init__(self, options, rng, results):
        self.options = options
        self.rng = rng
        self.results = results

    def resize(self, copies, step):
        """The same step with both programs."""
        words = step.split()
        arguments = ["-f", "qcow2", *words[:-1], "a.qcow2", *words[-1:]]
        want = run(["qemu-img", "resize", *arguments], cwd=copies.folders["qemu"])
        got = run([self.options.shardcow, "resize", *arguments], cwd=copies.folders["shardcow"])
        return got, want

    def size(self, folder):
        return json.loads(must(["qemu-img", "info", "--output=json", "-f", "qcow2", "a.qcow2"],
                               cwd=folder))["virtual-size"]

    def same(self, copies, name):
        sizes = {p: self.size(f) for p, f in copies.folders.items()}
        self.results.equal(sizes["shardcow"], sizes["qemu"], f"{name}: size")
        os.truncate(copies.truth, sizes["shardcow"])
        r = run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", copies.truth, "a.qcow2"],
                cwd=copies.folders["shardcow"])
        self.results.check(r.code == 0, f"{name}: same content", r)
        r = run(["qemu-img", "check", "-f", "qcow2", "a.qcow2"], cwd=copies.folders["shardcow"])
        self.results.check(r.code == 0, f"{name}: check", r)
        return sizes["shardcow"]

    def writes(self, size, count):
        """Within the first few MiB and at the end, so that what is cut off held something."""
        commands = []
        for _ in range(count):
            top = min(size, 8 * MIB)
            off = self.rng.choice((0, size - top)) + self.rng.randrange(top // 512) * 512
            length = min(size - off, self.rng.randrange(1, 400) * 512)
            kind = self.rng.choice(("", "", "", " -z", " -z -u"))
            pattern = "" if kind else f" -P {self.rng.randrange(256)}"
            commands.append(f"write -q{kind}{pattern} {off} {length}")
        return commands

    def image(self, folder, name, size, options, more):
        copies = Copies(f"{folder}/{name}", size, options)
        copies.qemu_io(self.writes(size, 12))
        steps = [s for s in STEPS if not (s == "6M" and size > 6 * MIB)]
        if self.options.quick:
            steps = self.rng.sample(steps, 4)
        for step in steps + more:
            got, want = self.resize(copies, step)
            where = f"{name}: {step}"
            if not self.results.check(got.code == want.code, f"{where}: exit code {want.code}",
                                      f"{got}\n{want}"):
                break
            size = self.same(copies, where)
            copies.qemu_io(self.writes(size, 4))
        self.same(copies, f"{name}: written at the end")

    def errors(self, folder):
        copies = Copies(f"{folder}/errors", 5 * MIB, "")
        copies.qemu_io(self.writes(5 * MIB, 8))
        before = harness.sha(f"{copies.folders['shardcow']}/a.qcow2")
        for step in ERRORS:
            got, want = self.resize(copies, step)
            self.results.check(got.code == want.code == 1 and "shardcow: " in got.err,
                               f"{step!r} is refused", f"{got}\n{want}")
        self.results.check(harness.sha(f"{copies.folders['shardcow']}/a.qcow2") == before,
                           "refused: the image is as it was")
        got, _ = self.resize(copies, "-1M")
        self.results.check("--shrink" in got.err, "the hint names --shrink", got)
        r = run([self.options.shardcow, "resize", "nofile.qcow2", "1M"], cwd=folder)
        self.results.check(r.code == 1 and "nofile.qcow2" in r.err, "a file that does not exist", r)
        for arguments, text in ((["a.qcow2", "6M"], "Image resized.\n"), (["-q", "a.qcow2", "7M"], "")):
            r = run([self.options.shardcow, "resize", *arguments], cwd=copies.folders["shardcow"])
            self.results.check(r.code == 0 and r.out == text, f"{' '.join(arguments)} prints {text!r}", r)

    def snapshots(self, folder):
        """An image with a snapshot grows, and the snapshot keeps its content. QEMU shrinks it, too."""
        copies = Copies(f"{folder}/snapshots", 5 * MIB, "cluster_size=4k")
        copies.qemu_io(self.writes(5 * MIB, 12))
        copies.snapshot("before")
        shutil.copyfile(copies.truth, f"{copies.truth}.before")
        copies.qemu_io(self.writes(5 * MIB, 8))
        r = run([self.options.shardcow, "resize", "--shrink", "a.qcow2", "3M"],
                cwd=copies.folders["shardcow"])
        self.results.check(r.code == 1 and "snapshots" in r.err, "with a snapshot: shrinking is refused", r)
        for step in ("100M", "10G"):
            got, want = self.resize(copies, step)
            self.results.check(got.code == want.code, f"with a snapshot: {step}: exit code {want.code}",
                               f"{got}\n{want}")
            size = self.same(copies, f"with a snapshot: {step}")
            copies.qemu_io(self.writes(size, 6))
        for path in copies.folders.values():
            must(["qemu-img", "snapshot", "-a", "before", "a.qcow2"], cwd=path)
        shutil.copyfile(f"{copies.truth}.before", copies.truth)
        self.same(copies, "with a snapshot: applied")

    def version_2(self, folder):
        """No zero flag: what the backing file has above the old end would show."""
        copies = Copies(f"{folder}/v2", 5 * MIB, "compat=0.10,backing_file=base.qcow2,backing_fmt=qcow2")
        r, _ = self.resize(copies, "9M")
        size = self.size(copies.folders["shardcow"])
        self.results.check(r.code == 1 and size == 5 * MIB, "version 2 over a longer image is refused", r)
        r, _ = self.resize(copies, "--shrink 4M")
        self.results.check(r.code == 0 and self.size(copies.folders["shardcow"]) == 4 * MIB,
                           "and shrinks", r)

    def locked(self, folder):
        """Another program has the image open."""
        copies = Copies(f"{folder}/locked", 5 * MIB, "")
        folder = copies.folders["shardcow"]
        with subprocess.Popen(["qemu-io", "-f", "qcow2", "a.qcow2"], cwd=folder, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as holder:
            holder.stdin.write(b"length\n")
            holder.stdin.flush()
            while b"5 MiB" not in holder.stdout.readline():
                pass
            r = run([self.options.shardcow, "resize", "a.qcow2", "6M"], cwd=folder)
            holder.stdin.close()
        self.results.check(r.code == 1 and self.size(folder) == 5 * MIB,
                           "an image that qemu-io has open is refused", r)


def main():
    p = harness.parser(__doc__)
    options = p.parse_args()
    rng = harness.start(options)
    results = harness.Results()
    resizer = Resizer(options, rng, results)
    with harness.Scratch(options) as scratch:
        for name, size, image_options, more in IMAGES:
            if not options.only or options.only in name:
                resizer.image(scratch, name, size, image_options, more)
        if not options.only:
            resizer.errors(scratch)
            resizer.snapshots(scratch)
            resizer.version_2(scratch)
            resizer.locked(scratch)
    results.finish()


if __name__ == "__main__":
    main()
