# SPDX-License-Identifier: MIT
"""Kill a writer with eight queues at random moments; then look at the image as the next program finds it.

After each kill: qemu-img check finds leaks at worst; every sector, read by qemu-img, holds a stamp of its own
place, no older than the last flush (or FUA) that covered it. Then the image is opened for writing and closed:
qemu-img check finds nothing at all, the content is the same, the file ends where its clusters end. The next
round goes on with the same image. A writer that came to its end in time must have lost nothing.

  --rounds N   kills, shared out among the kinds of images (default: as many as fit in about 20 seconds)
"""

import array
import json
import math
import os
import re
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
SECTOR = 512
QUEUES = 8
SECONDS = 20
SECONDS_MAX = 100                   # where the kernel is slow to give locks back
LOCK_SECONDS_MAX = 120

# tests/race/stamps.h
HEADER = struct.Struct("=Q8I")      # magic, layout, running, closed
HEADER_BYTES = 128
RUNNING, CLOSED = 7, 8              # fields of it
MAGIC = 0x31706D6174737773
ZEROS = 1                           # bit of a version


class Kind:
    """A kind of image. granule: what a discard zeroes is made of these bytes."""

    def __init__(self, name, size, cluster, create="", writer="-n 2", unit=3, granule=0, fill=False,
                 snapshots=False, backing=False, leaks_stay=False):
        self.name = name
        self.size = size
        self.cluster = cluster
        self.create = create
        self.writer = writer.split()
        self.unit = unit
        self.granule = granule or cluster
        self.fill = fill
        self.snapshots = snapshots
        self.backing = backing
        self.leaks_stay = leaks_stay


KINDS = (
    Kind("default", 32 * MIB + 3 * SECTOR, 64 * KIB),
    Kind("clusters of 4k, 16 slots", 12 * MIB, 4 * KIB, "cluster_size=4k", "-n 4 -l 512 -c 16", unit=1),
    Kind("extended L2", 16 * MIB, 16 * KIB, "cluster_size=16k,extended_l2=on", "-n 3 -l 1024 -c 16",
         granule=512),
    Kind("over a backing file", 16 * MIB, 64 * KIB, "", "-n 2 -l 512 -c 4", unit=8, backing=True),
    Kind("extended L2 over a backing file", 16 * MIB + SECTOR, 64 * KIB, "extended_l2=on", "-n 4", granule=2 * KIB,
         backing=True),
    Kind("snapshots", 12 * MIB, 4 * KIB, "cluster_size=4k", "-n 2 -l 4096", fill=True, snapshots=True),
    Kind("data file", 12 * MIB, 64 * KIB, "data_file=data", "-n 2"),
    Kind("raw data file", 8 * MIB, 4 * KIB, "cluster_size=4k,data_file=data,data_file_raw=on", "-n 2 -l 512"),
    Kind("clusters of 512, refcounts of 1 bit", 3 * MIB, 512, "cluster_size=512,refcount_bits=1", "-n 2 -c 16"),
    Kind("refcounts of 64 bits, threads", 12 * MIB, 4 * KIB, "cluster_size=4k,refcount_bits=64", "-T -n 2"),
    Kind("writethrough, one shard", 16 * MIB, 16 * KIB, "cluster_size=16k", "-W -n 1"),
    Kind("buffered", 16 * MIB, 64 * KIB, "lazy_refcounts=on", "-B -n 2", fill=True),
    # There is no bit in the header that could say that it was not closed.
    Kind("version 2", 16 * MIB, 4 * KIB, "compat=0.10,cluster_size=4k", "-n 2", leaks_stay=True),
)


class Journal:
    """The words that the writer keeps for each sector, by their names in tests/race/stamps.h."""

    NAMES = ("issued", "acked", "zeroed", "durable")

    def __init__(self, path, kind, seed):
        self.path = path
        self.count = kind.size // SECTOR
        stripe = 4 * kind.cluster // SECTOR
        self.layout = [self.count, QUEUES, kind.unit, stripe, kind.granule // SECTOR, seed & 0xFF]
        for name in self.NAMES:
            setattr(self, name, array.array("I", bytes(4 * self.count)))
        self.flags = [0, 0]

    def save(self):
        """For the next writer."""
        self.flags = [0, 0]
        head = HEADER.pack(MAGIC, *self.layout, *self.flags)
        with open(self.path, "wb") as f:
            f.write(head.ljust(HEADER_BYTES, b"\0"))
            for name in self.NAMES:
                getattr(self, name).tofile(f)

    def load(self):
        with open(self.path, "rb") as f:
            fields = HEADER.unpack(f.read(HEADER_BYTES)[:HEADER.size])
            self.flags = [fields[RUNNING], fields[CLOSED]]
            for name in self.NAMES:
                words = array.array("I")
                words.fromfile(f, self.count)
                setattr(self, name, words)

    def owner(self, sector):
        _, owners, unit, stripe, _, _ = self.layout
        number = sector // stripe
        if number % 3 == 0:
            return sector // unit % owners
        return (number // 3 * 2 + number % 3 - 1) % owners

    def problem(self, sector, content):
        """What is wrong with a sector, None when it may be so."""
        word = int.from_bytes(content[:8], "little")
        floor, zeroed = self.durable[sector], self.zeroed[sector]
        if content != content[:8] * (SECTOR // 8):
            return f"sector {sector}: a part of something: {content[:16].hex()} .. {content[-16:].hex()}"
        if not word:
            if not floor or zeroed >= floor:
                return None
            return f"sector {sector}: zeros; version {floor:#x} was flushed, {zeroed:#x} is the last of zeros"
        version = word >> 24 & 0xFFFFFF
        want = sector | version << 24 | self.owner(sector) << 48 | self.layout[5] << 56
        if word != want or version & ZEROS:
            return f"sector {sector}: a foreign stamp {word:#x} (sector {word & 0xFFFFFF})"
        if not floor <= version <= self.issued[sector]:
            return (f"sector {sector}: version {version:#x}; {floor:#x} was flushed, "
                    f"{self.issued[sector]:#x} is the last that was written")
        return None

    def problems(self, raw):
        found = []
        for sector in range(self.count):
            why = self.problem(sector, raw[sector * SECTOR:(sector + 1) * SECTOR])
            if why:
                found.append(why)
                if len(found) == 8:
                    break
        return found

    def settle(self, raw):
        """What is on the disk is from now on what was written last."""
        for sector in range(self.count):
            word = int.from_bytes(raw[sector * SECTOR:sector * SECTOR + 8], "little")
            version = word >> 24 & 0xFFFFFF if word else self.zeroed[sector]
            for name in ("issued", "acked", "durable"):
                getattr(self, name)[sector] = version
            self.zeroed[sector] = 0 if word else version


class Case:
    """One image and its rounds."""

    def __init__(self, kind, folder, writer, rng, results, keep):
        self.kind = kind
        self.rng = rng
        self.keep = keep
        self.results = results
        self.writer = writer
        self.folder = folder
        os.makedirs(folder)
        self.journal = Journal(f"{folder}/journal", kind, rng.randrange(1, 256))
        self.journal.save()
        self.flushed = self.leaked = self.killed = 0
        self.left = 0  # leaks that were there before, and stay
        self.create()

    def create(self):
        options = ["-o", self.kind.create] if self.kind.create else []
        backing = []
        if self.kind.backing:
            must(["qemu-img", "create", "-q", "-f", "qcow2", "base", str(self.kind.size)], cwd=self.folder)
            self.write("base", "-f")
            backing = ["-b", "base", "-F", "qcow2"]
        must(["qemu-img", "create", "-q", "-f", "qcow2", *options, *backing, "image", str(self.kind.size)],
             cwd=self.folder)
        if self.kind.fill:
            self.write("image", "-f")
        if self.kind.snapshots:
            must(["qemu-img", "snapshot", "-c", "first", "image"], cwd=self.folder)

    def write(self, image, *more):
        """To the end."""
        self.journal.save()
        must([self.writer, *self.kind.writer, "-s", str(self.rng.randrange(1 << 30)), *more, image, "journal"],
             cwd=self.folder)
        self.journal.load()
        self.journal.durable = array.array("I", self.journal.issued)

    def check(self):
        """qemu-img check: exit code and report. The rings of a dead process keep its files, and so its locks,
        until a kernel thread has closed them; that thread may be busy with other people's files."""
        end = time.monotonic() + LOCK_SECONDS_MAX
        while True:
            r = run(["qemu-img", "check", "--output=json", "image"], cwd=self.folder)
            if "lock" not in r.err or time.monotonic() > end:
                break
            time.sleep(0.05)
        return r, json.loads(r.out) if r.out.startswith("{") else {}

    def content(self):
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "image", "raw"], cwd=self.folder, timeout=300)
        with open(f"{self.folder}/raw", "rb") as f:
            return f.read()

    def kill(self):
        """One writer from its start to its end. Returns what it was, and what went wrong."""
        ends = self.rng.choice((0, 0, int(self.rng.uniform(1, 300))))
        ms = self.rng.uniform(2, ends + 200 if ends else self.rng.choice((60, 400)))
        seed = self.rng.randrange(1 << 30)
        self.journal.save()
        with open(f"{self.folder}/errors", "wb+") as err:
            p = subprocess.Popen([self.writer, *self.kind.writer, "-s", str(seed), "-t", str(ends), "image",
                                  "journal"], cwd=self.folder, stdin=subprocess.DEVNULL, stderr=err)
            time.sleep(ms / 1000)
            p.kill()
            code = p.wait()
            err.seek(0)
            text = err.read().decode("latin-1")
        self.journal.load()
        self.killed += code != 0
        what = f"killed after {ms:.0f} ms" if code else "closed"
        return f"{what} (writer's seed {seed}, -t {ends})", text if text or code not in (0, -9) else ""

    def look(self, trouble):
        """What the killed writer left. Returns the content."""
        r, report = self.check()
        leaks = report.get("leaks", 0)
        self.leaked += leaks
        if r.code not in (0, 3) or report.get("corruptions") or report.get("check-errors"):
            trouble.append(f"qemu-img check finds more than leaks:\n{r}")
        if self.journal.flags[1]:
            self.journal.durable = array.array("I", self.journal.acked)
            if leaks > self.left:
                trouble.append(f"closed, but {leaks} leaks:\n{r}")
        raw = self.content()
        trouble += self.journal.problems(raw)
        self.flushed += sum(1 for v in self.journal.durable if v)
        return raw

    def recover(self, raw, trouble):
        """The next writer opens it."""
        if self.keep:
            must(["cp", "--sparse=always", "image", "killed"], cwd=self.folder)
        r = run([self.writer, *self.kind.writer, "-r", "image", "journal"], cwd=self.folder)
        if r.code != 0:
            trouble.append(f"open for writing:\n{r}")
        r, report = self.check()
        if r.code != 0 and not (self.kind.leaks_stay and r.code == 3):
            trouble.append(f"qemu-img check after the image was opened and closed:\n{r}")
        self.left = report.get("leaks", 0)
        end, size = report.get("image-end-offset", 0), os.path.getsize(f"{self.folder}/image")
        unit = max(self.kind.cluster, 4096)
        if not self.kind.leaks_stay and size > math.ceil(end / unit) * unit:
            trouble.append(f"the file has {size} bytes, its clusters end at {end}")
        if self.content() != raw:
            trouble.append("recovery changed what the guest sees")

    def round(self, number):
        trouble = []
        what, errors = self.kill()
        if errors:
            trouble.append(f"the writer: {errors}")
        if not trouble:
            raw = self.look(trouble)
        if not trouble:
            self.recover(raw, trouble)
        if not trouble:
            self.journal.settle(raw)
            if self.kind.snapshots and self.rng.randrange(3) == 0:
                must(["qemu-img", "snapshot", "-c", f"s{number}", "image"], cwd=self.folder)
        return self.results.check(not trouble, f"{self.kind.name}: round {number}: {what}", "\n".join(trouble))


def keep(case, folder):
    os.rename(case.folder, folder)
    print(f"#   kept in {folder}", flush=True)


def main():
    p = harness.parser(__doc__)
    p.add_argument("--rounds", type=int, help="kills in all")
    p.add_argument("--writer", default=os.environ.get("KILL_WRITER"), help="the program kill_writer")
    p.add_argument("--keep", action="store_true", help="keep the folder of what failed (killed: the image before recovery)")
    options = p.parse_args()
    rng = harness.start(options, need=("qemu-img",))
    writer = os.path.abspath(options.writer or os.path.join(harness.ROOT, "build", "tests", "crash", "kill_writer"))
    results = harness.Results()
    kinds = [k for k in KINDS if not options.only or re.search(options.only, k.name)]
    rounds = math.ceil(options.rounds / len(kinds)) if options.rounds else 100
    begin = time.monotonic()
    with harness.Scratch(options) as folder:
        cases = [Case(k, f"{folder}/{n}", writer, rng, results, options.keep) for n, k in enumerate(kinds)]
        alive = list(cases)
        for number in range(1, rounds + 1):
            if number > 1 and not options.rounds and time.monotonic() - begin > SECONDS:
                break
            for case in list(alive):
                if not options.rounds and time.monotonic() - begin > SECONDS_MAX:
                    results.skip(case.kind.name, "the kernel takes long to give a dead process's locks back")
                elif not case.round(number):
                    alive.remove(case)
                    if options.keep:
                        keep(case, f"{options.images}/killed-{options.seed}-{number}-{cases.index(case)}")
        print(f"# {sum(c.killed for c in cases)} killed, {sum(c.leaked for c in cases)} clusters leaked and found "
              f"again, {sum(c.flushed for c in cases)} sectors known to be flushed", flush=True)
        results.check(sum(c.killed for c in cases) and sum(c.flushed for c in cases),
                      "writers were killed, and had flushed before")
    results.finish()


if __name__ == "__main__":
    main()
