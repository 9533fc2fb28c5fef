# SPDX-License-Identifier: MIT
"""Space: how long the file gets, what goes back to the host, and what happens when there is none left.

On every file system that this machine can make and mount (in a mount namespace of its own, so that nothing
stays behind), and on a block device. Each needs root; what cannot be had is skipped by name.
"""

import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 64 * KIB
IN_NAMESPACE = "SCOW_SPACE_TEST_NAMESPACE"
# name, mkfs with its options, type to mount, punches, least size
FILE_SYSTEMS = [
    ("ext4", ["mkfs.ext4", "-q", "-F"], "ext4", True, 160 * MIB),
    ("ext3", ["mkfs.ext4", "-q", "-F", "-t", "ext3"], "ext3", True, 160 * MIB),
    ("xfs", ["mkfs.xfs", "-q", "-f"], "xfs", True, 320 * MIB),
    ("btrfs", ["mkfs.btrfs", "-q", "-f"], "btrfs", True, 320 * MIB),
    ("tmpfs", None, "tmpfs", True, 160 * MIB),
    # Neither fallocate nor holes that could be punched.
    ("ramfs", None, "ramfs", False, 0),
]


class Mounted:
    """A new file system, until the block ends. path is None when it cannot be had, why says why."""

    def __init__(self, scratch, row):
        self.name, self.mkfs, self.type, self.punches, self.bytes = row
        self.point = os.path.join(scratch, f"mount-{self.name}")
        self.file = os.path.join(scratch, f"{self.name}.fs")
        self.path, self.why = None, None

    def __enter__(self):
        os.makedirs(self.point)
        if self.mkfs and not shutil.which(self.mkfs[0]):
            self.why = f"{self.mkfs[0]} is not installed"
            return self
        if self.mkfs:
            with open(self.file, "wb") as f:
                f.truncate(self.bytes)
            must([*self.mkfs, self.file])
            argv = ["mount", "-t", self.type, "-o", "loop", self.file, self.point]
        else:
            options = ["-o", f"size={self.bytes}"] if self.bytes else []
            argv = ["mount", "-t", self.type, *options, "none", self.point]
        r = run(argv)
        if r.code == 0:
            self.path = self.point
        else:
            self.why = f"cannot mount {self.name}: {r.err.strip()}"
        return self

    def __exit__(self, *_):
        if self.path and run(["umount", self.point]).code != 0:
            run(["umount", "--lazy", self.point])
        if os.path.exists(self.file):
            os.unlink(self.file)


class LoopDevice:
    def __init__(self, scratch, size):
        self.file = os.path.join(scratch, "device")
        with open(self.file, "wb") as f:
            f.truncate(size)
        self.path, self.why = None, None

    def __enter__(self):
        if not shutil.which("losetup"):
            self.why = "losetup is not installed"
            return self
        r = run(["losetup", "--find", "--show", self.file])
        if r.code == 0:
            self.path = r.out.strip()
        else:
            self.why = r.err.strip()
        return self

    def __exit__(self, *_):
        if self.path:
            run(["losetup", "--detach", self.path])
        os.unlink(self.file)


class Space:
    def __init__(self, options, rng, results):
        self.options = options
        self.rng = rng
        self.results = results

    # ---- tools ----

    def create(self, path, size, *more):
        must(["qemu-img", "create", "-q", "-f", "qcow2", *more, path, str(size)])

    def steps(self, name, path, lines, *flags, fails=()):
        """Answers in order; stat lines as dictionaries. What is not expected to fail is checked."""
        r = run([self.options.step_writer, *flags, path], stdin="\n".join(lines) + "\n", timeout=300)
        answers = []
        for line in r.out.splitlines():
            if line.startswith("stat "):
                answers.append({k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", line)})
            else:
                answers.append(line)
        bad = [a for a in answers if isinstance(a, str) and a.startswith("error")
               and not any(f in a for f in fails)]
        self.results.check(r.code == 0 and not bad, f"{name}: all steps", f"{bad[:3]}\n{r}")
        return answers

    def check(self, name, path):
        r = run(["qemu-img", "check", "-f", "qcow2", path], timeout=300)
        self.results.check(r.code == 0 and "No errors were found" in r.out, f"{name}: qemu-img check", r)
        end = re.search(r"Image end offset: (\d+)", r.out)
        return int(end.group(1)) if end else None

    def closed_tight(self, name, path):
        end = self.check(name, path)
        self.results.equal(os.path.getsize(path), end, f"{name}: the closed file ends with its last cluster")

    # ---- what goes back ----

    def discards(self, fs):
        """Discarded space goes back, unless it is not to."""
        path = f"{fs.path}/discard.qcow2"
        lines = [f"write 0 {32 * MIB} 7", "flush", "stat", f"discard 0 {24 * MIB}", "flush", "settle", "stat",
                 f"read 0 {24 * MIB} 0", f"read {24 * MIB} {8 * MIB} 7"]
        for keep in (False, True):
            name = f"{fs.name}: discard{', kept' if keep else ''}"
            self.create(path, 64 * MIB)
            answers = self.steps(name, path, lines, *(["--no-punch"] if keep else []))
            before, after = [a for a in answers if isinstance(a, dict)]
            gone = before["allocated"] - after["allocated"]
            if keep or not fs.punches:
                self.results.check(gone < MIB, f"{name}: space stays allocated", f"{before}\n{after}")
                self.results.check(after["punched"] == 0 and after["skipped"] >= 24 * MIB // CLUSTER,
                                   f"{name}: counted as not punched", after)
            else:
                # What was extended ahead of its use may be given back as well.
                self.results.check(gone >= 23 * MIB, f"{name}: space is given back", f"{before}\n{after}")
                self.results.check(after["punched"] >= 24 * MIB // CLUSTER, f"{name}: counted", after)
            self.results.equal(after["pending"], 0, f"{name}: nothing pends")
            self.closed_tight(name, path)

    # ---- how long the file gets ----

    def loops(self, fs):
        """Freed clusters are used again: the file does not grow with time."""
        bodies = {
            "overwrite, discard, rewrite": [f"write 0 {MIB} 1", f"write {64 * KIB} {128 * KIB} 2",
                                            f"discard 0 {MIB}", "flush", f"write 0 {MIB} 3", "flush"],
            "unmapped zeroes and writes": [f"unmap 0 {MIB}", f"write 0 {MIB} 4"],
            "write and flush": ["write 4096 4096 5", "flush"],
        }
        path = f"{fs.path}/loop.qcow2"
        for what, body in bodies.items():
            count = 1000 if what == "write and flush" else 300
            count = count // 10 if self.options.quick else count
            name = f"{fs.name}: {what}, {count} times"
            self.create(path, 64 * MIB)
            answers = self.steps(name, path, [*body, "stat", f"repeat {count}", *body, "end", "stat"],
                                 "--preallocation-bytes", str(MIB), "--shards", "2")
            first, last = [a for a in answers if isinstance(a, dict)]
            # Old clusters are free once a commit has passed: two generations where every one is flushed, and
            # no more than 64 MiB where none is.
            bound = first["size"] + last["leased"] * CLUSTER + 6 * MIB + (64 * MIB if "flush" not in body else 0)
            self.results.check(last["size"] <= bound, f"{name}: the file does not grow", f"{first}\n{last}")
            self.closed_tight(name, path)

    def bounds(self, fs):
        """At any time: live data, metadata, leases, what is ahead of its use."""
        path = f"{fs.path}/bounds.qcow2"
        name = f"{fs.name}: bounds"
        self.create(path, 256 * MIB)
        lines, live, expected = [], set(), []
        for _ in range(60):
            first = self.rng.randrange(256 * MIB // CLUSTER - 16)
            count = self.rng.randint(1, 16)
            if self.rng.randrange(4):
                lines.append(f"write {first * CLUSTER} {count * CLUSTER} 9")
                live |= set(range(first, first + count))
            else:
                lines += [f"discard {first * CLUSTER} {count * CLUSTER}", "flush", "settle"]
                live -= set(range(first, first + count))
            lines.append("stat")
            expected.append(len(live))
        answers = self.steps(name, path, lines, "--preallocation-bytes", str(MIB), "--shards", "2")
        stats = [a for a in answers if isinstance(a, dict)]
        most = 0
        for clusters, stat in zip(expected, stats):
            most = max(most, clusters)
            # Holes that were never filled again count as what lived at most.
            # The allocator has clusters of its own for tables; each shard may have another lease on its way.
            bound = (most + 32 + 2 * 64 + stat["leased"] + stat["pending"]) * CLUSTER + 2 * MIB
            if not self.results.check(stat["size"] <= bound, f"{name}: {clusters} clusters", f"{stat}, {bound}"):
                break
        self.closed_tight(name, path)

    # ---- no space ----

    def full(self, fs):
        """Only what needs clusters fails; and not for ever."""
        path, ballast = f"{fs.path}/full.qcow2", f"{fs.path}/ballast"
        name = f"{fs.name}: full"
        self.create(path, 256 * MIB)
        room = shutil.disk_usage(fs.path).free
        with open(ballast, "wb") as f:
            os.posix_fallocate(f.fileno(), 0, max(0, room - 48 * MIB)) if fs.name != "ext3" else \
                f.write(bytes(max(0, room - 48 * MIB)))
        lines = [f"write 0 {8 * MIB} 1", "flush", f"write {8 * MIB} {96 * MIB} 2", "stat",
                 f"write 0 {8 * MIB} 3", "flush", f"read 0 {8 * MIB} 3",
                 f"discard 0 {8 * MIB}", "flush", "settle", f"write {128 * MIB} {4 * MIB} 4", "flush",
                 f"read {128 * MIB} {4 * MIB} 4"]
        answers = self.steps(name, path, lines, "--shards", "2", fails=("ENOSPC",))
        if len(answers) == len(lines):
            self.results.check("ENOSPC" in str(answers[2]), f"{name}: writing fails in the end", answers)
            self.results.equal([str(a) for a in answers[4:]], ["ok"] * 9, f"{name}: everything else works", answers)
            self.results.check(answers[3]["size"] >= 40 * MIB or fs.name == "btrfs",
                               f"{name}: most of the space was used", answers[3])
        self.check(name, path)
        os.unlink(ballast)
        os.sync()  # only then may its space be used again
        self.steps(f"{name}, more space", path, [f"write {16 * MIB} {64 * MIB} 5", "flush",
                                                 f"read {16 * MIB} {64 * MIB} 5"])
        self.closed_tight(f"{name}, more space", path)
        os.unlink(path)

    def full_with_queues(self, fs):
        path, shadow = f"{fs.path}/queues.qcow2", os.path.join(os.path.dirname(fs.point), "queues.raw")
        ballast = f"{fs.path}/ballast"
        name = f"{fs.name}: full, several queues"
        self.create(path, 128 * MIB)
        with open(shadow, "wb") as f:
            f.truncate(128 * MIB)
        with open(ballast, "wb") as f:
            f.write(bytes(max(0, shutil.disk_usage(fs.path).free - 6 * MIB)))
        r = run([self.options.random_writer, "--full-is-fine", "--threads", "4", "--shards", "3", "--seconds", "1",
                 "--seed", str(self.rng.randrange(1 << 32)), path, shadow], timeout=120)
        self.results.check(r.code == 0, f"{name}: writes", r)
        found = re.search(r"(\d+) without space", r.out)
        self.results.check(found and int(found.group(1)), f"{name}: some writes found no space", r)
        self.check(name, path)
        c = run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, shadow])
        self.results.check(c.code == 0, f"{name}: the content is right", c)
        for file in (path, shadow, ballast):
            os.unlink(file)

    # ---- a block device ----

    def device(self, dev):
        name = "block device"
        self.create(dev.path, 96 * MIB)
        lines = [f"write 0 {8 * MIB} 1", "flush", f"write {8 * MIB} {80 * MIB} 2",
                 f"write 0 {8 * MIB} 3", "flush", f"read 0 {8 * MIB} 3",
                 f"discard 0 {8 * MIB}", "flush", "settle", f"read 0 {8 * MIB} 0",
                 f"write 4096 {2 * MIB} 4", "flush", f"read 4096 {2 * MIB} 4", "read 0 4096 0",
                 f"read {2 * MIB + 4096} 4096 0"]
        answers = self.steps(name, dev.path, lines, fails=("ENOSPC",))
        if len(answers) == len(lines):
            self.results.check("ENOSPC" in str(answers[2]), f"{name}: writing ends with the device", answers)
            self.results.equal([str(a) for a in answers[3:]], ["ok"] * 12, f"{name}: everything else works",
                               answers)
        self.check(name, dev.path)

    def device_with_garbage(self, dev):
        """Nothing on a device is known to read as zeros."""
        with open(dev.path, "wb") as f:
            f.write(b"\xee" * (48 * MIB))
        shadow = dev.file + ".raw"
        self.create(dev.path, 32 * MIB)
        with open(shadow, "wb") as f:
            f.truncate(32 * MIB)
        r = run([self.options.random_writer, "--threads", "4", "--shards", "2", "--seconds", "1",
                 "--seed", str(self.rng.randrange(1 << 32)), dev.path, shadow], timeout=120)
        name = "block device with garbage"
        self.results.check(r.code == 0, f"{name}: random writes", r)
        self.check(name, dev.path)
        c = run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", dev.path, shadow])
        self.results.check(c.code == 0, f"{name}: the content is right", c)
        os.unlink(shadow)


def enter_namespace():
    """Run again with mounts of our own: they end with the process, whatever happens to it."""
    if os.environ.get(IN_NAMESPACE):
        return
    r = run(["unshare", "--mount", "true"])
    if r.code != 0:
        harness.skip_all(f"mounting is not allowed here: {r.err.strip()}")
    os.environ[IN_NAMESPACE] = "1"
    sys.exit(subprocess.call(["unshare", "--mount", sys.executable, *sys.argv]))


def main():
    p = harness.parser(__doc__)
    p.add_argument("--step-writer", default=os.environ.get("STEP_WRITER"), help="the compiled helper")
    p.add_argument("--random-writer", default=os.environ.get("RANDOM_WRITER"), help="the compiled helper")
    options = p.parse_args()
    if not options.step_writer or not options.random_writer:
        sys.exit("give --step-writer and --random-writer or set STEP_WRITER and RANDOM_WRITER")
    enter_namespace()
    rng = harness.start(options)
    results = harness.Results()
    with harness.Scratch(options) as scratch:
        space = Space(options, rng, results)
        for row in FILE_SYSTEMS:
            if options.only and not re.search(options.only, row[0]):
                continue
            with Mounted(scratch, row) as fs:
                if not fs.path:
                    results.skip(fs.name, fs.why)
                    continue
                space.discards(fs)
                space.loops(fs)
                space.bounds(fs)
                if row[4]:
                    if fs.name == "btrfs":
                        results.skip("btrfs: full", "it needs space to overwrite")
                        continue
                    space.full(fs)
                    space.full_with_queues(fs)
        if not options.only or re.search(options.only, "device"):
            with LoopDevice(scratch, 64 * MIB) as dev:
                if dev.path:
                    space.device(dev)
                    space.device_with_garbage(dev)
                else:
                    results.skip("block device", dev.why)
    results.finish()


if __name__ == "__main__":
    main()
