# SPDX-License-Identifier: MIT
"""Guests with vhost-user-blk disks: real drivers and file systems over the server.

Each disk is used by one guest, looked at by the next, and then by tools on the host: qemu-img check, fsck,
and every stamp on the raw partition. --server qsd runs the same against qemu-storage-daemon: what fails there
as well is not the server's fault. By hand: --rounds 20, or more.
"""

import os
import re
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import guest  # noqa: E402
from disks import MIB, extract, write_raw_disk  # noqa: E402
import harness  # noqa: E402
import tree_disk  # noqa: E402
from harness import must, run  # noqa: E402

RACE_BYTES = 16 * MIB  # at the end of the raw partition, see job_work.sh


class Sizes:
    """How much of everything."""

    def __init__(self, options):
        quick = options.quick
        self.part = (384 if quick else 1024) * MIB   # of each file system
        self.raw = (512 if quick else 4096) * MIB
        self.file = (48 if quick else 192) * MIB     # stamped, in each file system
        self.count = 30 if quick else 300            # of files; of commits and transactions a tenth
        self.rounds = options.rounds or (2 if quick else 6)
        self.ops = 60 if quick else 200
        self.fio = (4 if quick else 64) * MIB        # of each of 16 jobs
        self.tree = (6 if quick else 60) * MIB
        self.copies = 3 if quick else 9 * max(1, (options.rounds or 0) // 4)
        self.seconds = 120 if quick else 900 + 60 * self.rounds


def partitions(sizes):
    """(first byte, bytes) of each of the three."""
    return [(MIB, sizes.part), (MIB + sizes.part, sizes.part), (MIB + 2 * sizes.part, sizes.raw)]


class Tests:
    def __init__(self, options, rng, results, scratch, sockets):
        self.options, self.rng, self.results, self.scratch = options, rng, results, scratch
        # A short path: sockets' are limited to some hundred characters.
        self.socket = os.path.join(sockets, "disk")
        self.sizes = Sizes(options)
        # Small clusters make many tables of the same disk.
        self.cluster = 65536 if options.quick else rng.choice((4096, 65536, 65536, MIB))
        self.image = os.path.join(scratch, "disk.qcow2")
        self.raw = os.path.join(scratch, "disk.raw")

    # ---- steps ----

    def server(self, queues):
        flags = ("--pin-memory",) * self.rng.randrange(2)
        return guest.Server(self.options.server, self.image, self.socket, queues, self.options.shardcow,
                            flags=flags)

    def boot(self, name, front, queues, server, script, settings, scripts=()):
        job = guest.Job(script, settings, {"stress": self.options.stress}, ("guest_lib.sh", *scripts))
        console = guest.boot(front, [server.socket], job, queues=queues, timeout=self.sizes.seconds *
                             (4 if front == "qemu" else 1), folder=self.scratch)
        print(f"# {name}: {console.seconds:.0f} s", flush=True)
        if self.options.verbose:
            print(console)
        good = self.results.check(console.status == 0, name, console)
        if good:
            self.results.equal(console.queues, queues, f"{name}: queues that the guest uses")
            # Otherwise its drivers send no flush at all. qemu-storage-daemon's mistake is not ours to report.
            if self.options.server == "shardcow":
                self.results.equal(console.cache, "write back", f"{name}: the guest knows that it has to flush")
        return console if good else None

    def stopped(self, name, server):
        trouble = server.stop()
        self.results.check(not trouble, f"{name}: the server ends well", trouble)

    def checked(self, name):
        r = run(["qemu-img", "check", "-f", "qcow2", self.image], timeout=600)
        self.results.check(r.code == 0 and "No errors were found" in r.out, f"{name}: qemu-img check", r)
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.image, self.raw], timeout=600)

    def same_facts(self, name, before, after):
        facts = before.facts()
        self.results.equal({k: v for k, v in after.facts().items() if k in facts}, facts,
                           f"{name}: what the first boot left", after)

    # ---- on the host ----

    def ext4_is_clean(self, name, part):
        r = run(["e2fsck", "-fn", f"{self.raw}?offset={part[0]}"], timeout=600)
        self.results.check(r.code == 0, f"{name}: e2fsck on the host", r)

    def xfs_is_clean(self, name, part):
        piece = os.path.join(self.scratch, "part.raw")
        extract(self.raw, part, piece)
        r = run(["xfs_repair", "-n", "-f", piece], timeout=600)
        os.unlink(piece)
        self.results.check(r.code == 0, f"{name}: xfs_repair on the host", r)

    def stamps_are_right(self, name, part, settings, rounds):
        first, count = part
        values = {"--seed": settings["SEED"], "--ops": settings["OPS"], "--threads": settings["THREADS"],
                  "--rounds": rounds, "--offset": first, "--size": (count - RACE_BYTES) // MIB * MIB}
        flags = [str(text) for pair in values.items() for text in pair] + settings["DISCARD_FLAGS"].split()
        r = run([self.options.stress, "verify", "--full", "--disk", *flags, self.raw], timeout=900)
        self.results.check(r.code == 0, f"{name}: every stamp of the raw partition, on the host", r)

    # ---- the tests ----

    def mixed(self, front, queues):
        """Everything at once, a second boot, the host."""
        name, sizes = f"{front}, {queues} queues, clusters of {self.cluster}", self.sizes
        parts = partitions(sizes)
        write_raw_disk(self.raw, parts)
        must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={self.cluster}", self.raw,
              self.image])
        settings = {"SEED": self.rng.randrange(1 << 32), "THREADS": 4 if self.options.quick else 2 * max(queues, 4),
                    "ROUNDS": sizes.rounds, "OPS": sizes.ops, "FILE_BYTES": sizes.file,
                    # Starting programs is what emulation is slow at.
                    "COUNT": sizes.count // 2 if front == "qemu" else sizes.count,
                    "MORE": 1, "DISCARD_FLAGS": self.options.discard_flags}
        with self.server(queues) as server:
            first = self.boot(f"{name}: mixed work", front, queues, server, "job_work.sh", settings,
                              ("job_facts.sh",))
            if not first:
                return
            # Every other time by the same server: a front end that comes back.
            if self.rng.randrange(2):
                second = self.boot(f"{name}: the same server again", front, queues, server, "job_verify.sh",
                                   settings, ("job_facts.sh",))
                self.stopped(name, server)
            else:
                self.stopped(name, server)
                with self.server(queues) as other:
                    second = self.boot(f"{name}: a new server", front, queues, other, "job_verify.sh", settings,
                                       ("job_facts.sh",))
                    self.stopped(name, other)
        if not second:
            return
        self.same_facts(name, first, second)
        self.checked(name)
        self.ext4_is_clean(name, parts[0])
        self.xfs_is_clean(name, parts[1])
        self.stamps_are_right(name, parts[2], settings, sizes.rounds + settings["MORE"])

    def make_base(self, parts):
        """A file tree in the first partition, noise in the third: copy on write has something to copy."""
        base = os.path.join(self.scratch, "base.qcow2")
        write_raw_disk(self.raw, parts)
        tree = os.path.join(self.scratch, "tree")
        tree_disk.copy_tree(os.path.join(tree, "tree"), self.sizes.tree)
        must(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", f"offset={parts[0][0]},no_copy_xattrs",
              self.raw, f"{parts[0][1] // 1024}k"])
        must(["rm", "-r", tree])
        with open(self.raw, "r+b") as f:
            for at in range(0, 16 * self.sizes.fio, 2 * MIB):  # every other MiB: holes stay
                f.seek(parts[2][0] + at)
                f.write(self.rng.randbytes(MIB))
        must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.raw, base])
        return base

    def overlay(self, front, queues):
        name, sizes = f"{front}, overlay, {queues} queues, clusters of {self.cluster}", self.sizes
        part3 = 16 * sizes.fio + 64 * MIB
        parts = [(MIB, sizes.part), (MIB + sizes.part, MIB), (2 * MIB + sizes.part, part3)]
        base = self.make_base(parts)
        before = harness.sha(base)
        must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={self.cluster}", "-b", base, "-F",
              "qcow2", self.image])
        settings = {"SEED": self.rng.randrange(1 << 31), "JOB_BYTES": sizes.fio, "TREES": sizes.copies}
        with self.server(queues) as server:
            first = self.boot(f"{name}: load", front, queues, server, "job_overlay.sh", settings)
            second = self.boot(f"{name}: the sums again", front, queues, server, "job_sums.sh", {}) if first else None
            self.stopped(name, server)
        if not second:
            return
        self.same_facts(name, first, second)
        self.checked(name)
        self.ext4_is_clean(name, parts[0])
        piece = os.path.join(self.scratch, "part.raw")
        extract(self.raw, parts[2], piece)
        self.results.equal(harness.sha(piece)[:32], first.facts()["raw"], f"{name}: the raw partition on the host")
        self.results.equal(harness.sha(base), before, f"{name}: the backing file is unchanged")

    def make_root(self):
        """Debian's root as a compressed image, kept beside what it is made of."""
        root = os.path.join(guest.CACHE, "root.qcow2")
        if not os.path.exists(root):
            must(["mke2fs", "-q", "-F", "-t", "ext4", "-d", guest.ROOT, "-E", "no_copy_xattrs", self.raw, "3g"],
                 timeout=600)
            must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", self.raw,
                  root + ".part"], timeout=600)
            os.rename(root + ".part", root)
        return root

    def root(self, front, queues):
        name = f"{front}, a distribution's root, {queues} queues, clusters of {self.cluster}"
        base = self.make_root()
        before = harness.sha(base)
        must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={self.cluster}", "-b", base, "-F",
              "qcow2", self.image])
        with self.server(queues) as server:
            first = self.boot(f"{name}: work", front, queues, server, "job_root.sh",
                              {"COUNT": max(6, self.sizes.count // 20)}, ("job_root_sums.sh",))
            second = first and self.boot(f"{name}: the sums again", front, queues, server, "job_root_sums.sh", {})
            self.stopped(name, server)
        if not second:
            return
        self.same_facts(name, first, second)
        self.checked(name)
        self.ext4_is_clean(name, (0, 0))
        self.results.equal(harness.sha(base), before, f"{name}: the backing file is unchanged")


def find_cases(options):
    """(method's name, front end, queues)"""
    if options.quick:
        cases = [("mixed", "uml", 4), ("overlay", "uml", 8), ("mixed", "qemu", 2)]
    else:
        cases = [(what, front, queues) for front in ("uml", "qemu") for what, some in
                 (("mixed", (1, 2, 4, 8)), ("overlay", (8,)), ("root", (4,))) for queues in some]
    if options.queues:
        cases = [(what, front, int(queues)) for front in ("uml", "qemu") for what in ("mixed", "overlay", "root")
                 for queues in options.queues.split(",")]
    return [c for c in cases if c[1] in options.front.split(",") and
            (not options.only or re.search(options.only, f"{c[0]} {c[1]} {c[2]}"))]


def cannot_serve(options):
    """Why the server cannot be used; None when it can."""
    if options.server == "qsd11":
        return None if os.path.exists(os.path.join(guest.ROOT, "usr/bin/qemu-storage-daemon")) else "no QEMU 11"
    if options.server == "qsd":
        return None if run(["qemu-storage-daemon", "--version"]).code == 0 else "no qemu-storage-daemon"
    r = run([options.shardcow, "serve", "--help"])
    return None if "--vhost-user-blk" in r.out else "this shardcow has no serve --vhost-user-blk"


def parse():
    p = harness.parser(__doc__)
    p.add_argument("--server", choices=("shardcow", "qsd", "qsd11"), default="shardcow")
    p.add_argument("--front", default="uml,qemu", help="front ends, of uml and qemu")
    p.add_argument("--queues", help="how many, for every case: 1,4,8")
    p.add_argument("--stress", default=os.environ.get("GUEST_STRESS"), help="the compiled stress.c")
    p.add_argument("--rounds", type=int, help="of the stamped stress")
    p.add_argument("--discard-flags", default="", help="of stress: --discard-zeroes or --no-discards")
    p.add_argument("--verbose", action="store_true", help="show consoles")
    return p.parse_args()


def main():
    options = parse()
    if not options.stress:
        options.stress = os.path.join(harness.ROOT, "build", "tests", "guest", "stress")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for front in options.front.split(","):
        if guest.missing(front):
            harness.skip_all(guest.missing(front))
    rng = harness.start(options, need=("qemu-img", "e2fsck", "mke2fs", "xfs_repair"))
    if cannot_serve(options):
        harness.skip_all(cannot_serve(options))
    results = harness.Results()
    for what, front, queues in find_cases(options):
        # A folder each: what one leaves is no other's.
        with harness.Scratch(options) as scratch, tempfile.TemporaryDirectory() as sockets:
            getattr(Tests(options, rng, results, scratch, sockets), what)(front, queues)
    results.finish()


if __name__ == "__main__":
    main()
