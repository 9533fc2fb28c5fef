# SPDX-License-Identifier: MIT
"""Images on storage that wants 4096-byte direct I/O: a loop device with 4 KiB sectors.

Once with a qcow2 image on the bare device, once with images as files on an ext4 that lives on it. Reads stay
possible at 512-byte alignment.
"""

import contextlib
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
import variants                                                                        # noqa: E402
from harness import must, run                                                          # noqa: E402

ON_DEVICE = ("v3", "mixed-4k", "zlib-4k", "extended-l2-16k", "partial-cluster")
ON_FILES = ("v2-cluster-512", "mixed", "mixed-extended-l2", "zstd-4k", "partial-cluster", "data-file-mixed",
            "chain-three", "overlay-longer-raw", "raw")


@contextlib.contextmanager
def loop_device(folder, mebibytes):
    """A loop device with 4 KiB sectors; skips the whole script when there is none to have."""
    backing = f"{folder}/loop.raw"
    with open(backing, "wb") as f:
        f.truncate(mebibytes << 20)
    if not shutil.which("losetup"):
        harness.skip_all("losetup is not installed")
    r = run(["losetup", "--sector-size", "4096", "--find", "--show", backing])
    if r.code != 0:
        harness.skip_all(f"losetup: {r.err.strip()}")
    device = r.out.strip()
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])


@contextlib.contextmanager
def mounted(device, folder):
    """Yields None, with the reason, where mounting is not allowed."""
    must(["mke2fs", "-q", "-F", "-t", "ext4", device])
    os.makedirs(folder)
    r = run(["mount", device, folder])
    if r.code != 0:
        yield None, r.err.strip()
        return
    try:
        yield folder, None
    finally:
        run(["umount", folder])


class Reads:
    def __init__(self, options, rng, results, scratch):
        self.options = options
        self.rng = rng
        self.results = results
        self.scratch = scratch

    def image(self, name, fmt, path, truth):
        """Everything that can be read of one image, with both backends."""
        folder = os.path.dirname(path) if os.path.isfile(path) else self.scratch
        for backend in ("io_uring", "threads"):
            label = f"{name} ({backend})"
            if backend == "io_uring" and not harness.io_uring_works():
                self.results.skip(label, "io_uring_setup is refused on this machine")
                continue
            shared = ["-f", fmt, "--backend", backend]
            out = f"{self.scratch}/out.raw"
            r = run([self.options.shardcow, "convert", *shared, "-O", "raw", path, out], cwd=folder)
            if self.results.check(r.code == 0, f"{label}: convert runs", r):
                where = harness.first_difference(out, truth)
                self.results.check(where is None, f"{label}: convert is right", f"differs at {where}")
            r = run([self.options.shardcow, "compare", *shared, "-F", "raw", path, truth], cwd=folder)
            self.results.check(r.code == 0, f"{label}: compare", r)
            self.sectors(label, shared, path, truth, folder)
            for cache in (8192, 0):
                self.random_reads(label, fmt, backend, path, truth, folder, cache)

    def sectors(self, label, shared, path, truth, folder):
        """Single sectors, at every place within a 4 KiB block."""
        size = os.path.getsize(truth)
        commands, wanted = [], []
        with open(truth, "rb") as f:
            for i in range(16):
                off = min((self.rng.randrange(size // 4096) * 8 + i % 8) * 512, size - 512)
                f.seek(off)
                data = f.read(512)
                commands += ["-c", f"read -v {off} 512"]
                wanted += [f"{off + at:08x}:  {data[at:at + 16].hex(' ')}" for at in range(0, 512, 16)]
        r = run([self.options.shardcow, "io", "-r", *shared, *commands, path], cwd=folder)
        got = [line[:line.index(":") + 3 + 47] for line in r.out.splitlines()
               if re.match(r"[0-9a-f]{8,}:  ", line)]
        self.results.check(r.code == 0 and got == wanted, f"{label}: single sectors", r)

    def random_reads(self, label, fmt, backend, path, truth, folder, cache):
        r = run([self.options.random_reader, "--format", fmt, "--backend", backend, "--threads", "4",
                 "--cache-bytes", str(cache), "--seconds", "0.5", "--seed", str(self.rng.randrange(1 << 32)),
                 path, truth], cwd=folder)
        # With another alignment this would not test what it is for.
        self.results.check(r.code == 0 and "alignment 4096" in r.out, f"{label}: random reads, cache {cache}", r)


def main():
    p = harness.parser(__doc__)
    p.add_argument("--random-reader", default=os.environ.get("RANDOM_READER"), help="the compiled helper")
    options = p.parse_args()
    rng = harness.start(options)
    options.random_reader = os.path.abspath(shutil.which(options.random_reader))
    all_variants = {v.name: v for v in variants.build(options.images)}
    results = harness.Results()
    with harness.Scratch(options) as scratch, loop_device(scratch, 700) as device:
        reads = Reads(options, rng, results, scratch)
        for name in ON_DEVICE:
            v = all_variants[name]
            with open(v.path, "rb") as image, open(device, "r+b", buffering=0) as target:
                shutil.copyfileobj(image, target, 1 << 20)
                os.fsync(target.fileno())
            reads.image(f"{name} on the device", v.format, device, v.truth)
        with mounted(device, f"{scratch}/mount") as (folder, why):
            if not folder:
                results.skip("files on 4 KiB sectors", why)
            for name in ON_FILES if folder else ():
                v = all_variants[name]
                # With its neighbours: backing and data files.
                os.makedirs(f"{folder}/{name}")
                for path in [v.path, f"{options.images}/{variants.SMALL}", f"{options.images}/partial.raw"]:
                    shutil.copy(path, f"{folder}/{name}" if path == v.path else folder)
                for other in os.listdir(v.folder) if v.folder != options.images else ():
                    if os.path.isfile(f"{v.folder}/{other}") and other not in ("truth.raw", os.path.basename(v.path)):
                        shutil.copy(f"{v.folder}/{other}", f"{folder}/{name}")
                reads.image(f"{name} as a file", v.format, f"{folder}/{name}/{os.path.basename(v.path)}", v.truth)
    results.finish()


if __name__ == "__main__":
    main()
