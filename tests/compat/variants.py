# SPDX-License-Identifier: MIT
"""Generate the images that the compatibility tests read: about forty kinds of qcow2, made by QEMU's tools.

Two source disks are made first: tree.raw, ext4 with at least 300 MB of this machine's own files, and
small.raw, 48 MiB of it with holes. Every image has a truth, a raw file with what the guest sees. Images that
only convert a source share the source as their truth (qemu-img compare confirms it); the others get theirs
from qemu-img convert.

As a command: variants.py --images FOLDER builds what is missing and prints the table.
"""

import concurrent.futures
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must                                                               # noqa: E402
from qcow2_editor import Editor                                                        # noqa: E402
from tree_disk import make_tree_disk                                                   # noqa: E402

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TREE_BYTES = 304 * 1000 * 1000
SMALL_BYTES = 48 * MIB
# Fixed, so that the cache is the same for every run; the tests' own randomness has its seed printed.
BUILD_SEED = 20240917

TREE, SMALL, OWN = "tree.raw", "small.raw", None
MAKERS = []


class Variant:
    """One image. path, truth: absolute paths; large: as big as the file tree.

    Commands are run in folder, because QEMU looks for a relative data file name in the working directory.
    """

    def __init__(self, name, large, path, truth, fmt="qcow2"):
        self.name = name
        self.large = large
        self.path = path
        self.folder = os.path.dirname(path)
        self.truth = truth
        self.format = fmt

    def cluster_bytes(self):
        return Editor(self.path).cluster if self.format == "qcow2" else 64 * KIB

    def slice_bytes(self):
        """The default L2 slice: 4 KiB, at most a cluster."""
        return min(4096, self.cluster_bytes())


def maker(source, large=False):
    """Register a function make(folder, name, rng) -> file name of the image. source None: own truth."""
    def register(function):
        MAKERS.append((function.__name__.replace("_", "-"), source, large, function))
        return function
    return register


def plain(name, source, large, options, compressed=False):
    """Register a conversion of a source."""
    def make(folder, name, _rng):
        convert(f"{folder}/../{source}", f"{folder}/{name}.qcow2", options, compressed)
        return f"{name}.qcow2"
    MAKERS.append((name, source, large, make))


def convert(source, target, options, compressed=False):
    # -W writes out of order, so that guest and host order differ.
    must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "4", "-W", "-o", options]
         + (["-c"] if compressed else []) + [source, target], timeout=600)


def create(path, size, options="", backing=None, backing_format=None):
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    argv += ["-o", options] if options else []
    argv += ["-b", backing, "-F", backing_format] if backing else []
    must(argv + [os.path.basename(path)] + ([str(size)] if size is not None else []),
         cwd=os.path.dirname(path))


def qemu_io(path, commands, fmt="qcow2", cache="unsafe"):
    # Unsafe caching: nothing has to survive a power cut here. Zeroes may unmap.
    out = must(["qemu-io", "-t", cache, "-d", "unmap", "-f", fmt, path], stdin="\n".join(commands) + "\n",
               timeout=300, cwd=os.path.dirname(path))
    bad = [line for line in out.splitlines() if "failed" in line or "rror" in line]
    if bad:
        raise RuntimeError(f"qemu-io on {path}: {bad[:3]}")


def patterns(folder):
    """Files with pieces of the tree, so that what is written looks like real data."""
    return [f"{folder}/../pattern-{i}" for i in range(8)]


def scatter(folder, rng, size, count, unit=512, longest=96 * KIB, kinds=("data",), cluster=64 * KIB):
    """count random qemu-io commands within size."""
    commands = []
    for _ in range(count):
        kind = rng.choice(kinds)
        if kind in ("compressed", "cluster-zero", "discard"):
            clusters = max(1, size // cluster)
            first = rng.randrange(clusters)
            many = min(rng.randint(1, 4), clusters - first)
            off, length = first * cluster, many * cluster
        else:
            off = rng.randrange(size // unit) * unit
            length = min(rng.randint(1, longest // unit) * unit, size - off)
        if kind == "compressed":
            # QEMU writes no compressed cluster over a plain one.
            length = min(length, cluster)
            commands.append(f"discard -q {off} {length}")
        commands.append({
            "data": f"write -q -s {rng.choice(patterns(folder))} {off} {length}",
            "compressed": f"write -q -c -s {rng.choice(patterns(folder))} {off} {length}",
            "zero": f"write -q -z {off} {length}",
            "cluster-zero": f"write -q -z {off} {length}",
            "unmap-zero": f"write -q -z -u {off} {length}",
            "discard": f"discard -q {off} {length}",
        }[kind])
    return commands


# ---- conversions of the whole tree -----------------------------------------------------------------

plain("v2", TREE, True, "compat=0.10")
plain("v3", TREE, True, "compat=1.1")
plain("cluster-512", TREE, True, "cluster_size=512")
plain("cluster-4k", TREE, True, "cluster_size=4k")
plain("cluster-2m", TREE, True, "cluster_size=2M")
plain("refcount-1", TREE, True, "refcount_bits=1")
plain("refcount-64", TREE, True, "refcount_bits=64")
plain("zlib", TREE, True, "compression_type=zlib", compressed=True)
plain("zstd", TREE, True, "compression_type=zstd", compressed=True)
plain("extended-l2", TREE, True, "extended_l2=on,cluster_size=64k")


@maker(TREE, large=True)
def data_file(folder, name, _rng):
    must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "data_file=data-file.data",
          f"{folder}/../{TREE}", f"{name}.qcow2"], cwd=folder)
    return f"{name}.qcow2"


@maker(OWN, large=True)
def overlay_on_raw(folder, name, rng):
    create(f"{folder}/{name}.qcow2", None, backing=f"../{TREE}", backing_format="raw")
    size = os.path.getsize(f"{folder}/../{TREE}") // (64 * KIB) * (64 * KIB)
    qemu_io(f"{folder}/{name}.qcow2",
            scatter(folder, rng, size, 400, kinds=("data", "data", "zero", "unmap-zero", "cluster-zero")))
    return f"{name}.qcow2"


@maker(OWN, large=True)
def snapshot_inside(folder, name, rng):
    path = f"{folder}/{name}.qcow2"
    convert(f"{folder}/../{TREE}", path, "cluster_size=64k")
    size = os.path.getsize(f"{folder}/../{TREE}")
    for i in range(2):
        must(["qemu-img", "snapshot", "-c", f"before {i}", path])
        qemu_io(path, scatter(folder, rng, size, 150, kinds=("data", "zero", "discard", "cluster-zero")))
    return f"{name}.qcow2"


# ---- the small disk --------------------------------------------------------------------------------

for bits in (2, 4, 8, 32):
    plain(f"refcount-{bits}", SMALL, False, f"refcount_bits={bits}")
plain("v2-cluster-512", SMALL, False, "compat=0.10,cluster_size=512")
plain("v2-zlib", SMALL, False, "compat=0.10", compressed=True)
plain("zlib-512", SMALL, False, "cluster_size=512", compressed=True)
plain("zlib-4k", SMALL, False, "cluster_size=4k", compressed=True)
plain("zlib-2m", SMALL, False, "cluster_size=2M", compressed=True)
plain("zstd-4k", SMALL, False, "cluster_size=4k,compression_type=zstd", compressed=True)
plain("zstd-2m", SMALL, False, "cluster_size=2M,compression_type=zstd", compressed=True)
plain("extended-l2-16k", SMALL, False, "extended_l2=on,cluster_size=16k")
plain("extended-l2-2m", SMALL, False, "extended_l2=on,cluster_size=2M")
plain("extended-l2-zstd", SMALL, False, "extended_l2=on,cluster_size=128k,compression_type=zstd",
      compressed=True)
plain("preallocated-metadata", SMALL, False, "preallocation=metadata,cluster_size=16k")
plain("preallocated-falloc", SMALL, False, "preallocation=falloc")
plain("partial-cluster", "partial.raw", False, "cluster_size=64k")
plain("partial-cluster-zstd", "partial.raw", False, "cluster_size=256k,compression_type=zstd",
      compressed=True)
plain("partial-cluster-extended-l2", "partial.raw", False, "cluster_size=32k,extended_l2=on")

MIXED = ("data", "data", "compressed", "compressed", "zero", "cluster-zero", "unmap-zero", "discard")


def mixed_image(folder, name, rng, options, cluster, kinds=MIXED, count=500):
    path = f"{folder}/{name}.qcow2"
    create(path, SMALL_BYTES, f"cluster_size={cluster}" + options)
    qemu_io(path, scatter(folder, rng, SMALL_BYTES, count, kinds=kinds, cluster=cluster))
    return f"{name}.qcow2"


@maker(OWN)
def mixed(folder, name, rng):
    """Plain, compressed, zero and preallocated zero clusters and holes in one image."""
    return mixed_image(folder, name, rng, "", 64 * KIB)


@maker(OWN)
def mixed_4k(folder, name, rng):
    return mixed_image(folder, name, rng, ",compression_type=zstd", 4 * KIB, count=1500)


@maker(OWN)
def mixed_v2(folder, name, rng):
    return mixed_image(folder, name, rng, ",compat=0.10", 64 * KIB)


@maker(OWN)
def mixed_extended_l2(folder, name, rng):
    return mixed_image(folder, name, rng, ",extended_l2=on", 64 * KIB)


@maker(OWN)
def mixed_extended_l2_2m(folder, name, rng):
    return mixed_image(folder, name, rng, ",extended_l2=on", 2 * MIB, count=80)


@maker(OWN)
def preallocated_zeros(folder, name, rng):
    """Every cluster has a host cluster; many are then zeroed without giving it up."""
    path = f"{folder}/{name}.qcow2"
    create(path, SMALL_BYTES, "preallocation=metadata")
    qemu_io(path, scatter(folder, rng, SMALL_BYTES, 200) +
            scatter(folder, rng, SMALL_BYTES, 200, kinds=("cluster-zero", "data")))
    return f"{name}.qcow2"


@maker(OWN)
def extended_l2_overlay(folder, name, rng):
    """Subclusters that are data, zero or the backing file's, next to each other."""
    path = f"{folder}/{name}.qcow2"
    create(path, None, "extended_l2=on,cluster_size=64k", backing=f"../{SMALL}", backing_format="raw")
    qemu_io(path, scatter(folder, rng, SMALL_BYTES, 900, unit=512, longest=12 * KIB,
                          kinds=("data", "zero", "unmap-zero", "discard")))
    return f"{name}.qcow2"


@maker(OWN)
def chain_three(folder, name, rng):
    """Three qcow2 deep, every layer with its own cluster size, on a raw one."""
    lower, backing_format = f"../{SMALL}", "raw"
    for depth, cluster in enumerate(("4k", "64k", "512", "2M")):
        layer = f"{name}-{depth}.qcow2" if depth < 3 else f"{name}.qcow2"
        create(f"{folder}/{layer}", None, f"cluster_size={cluster}", lower, backing_format)
        longest = (64 * KIB, 200 * KIB, 16 * KIB, 64 * KIB)[depth]
        qemu_io(f"{folder}/{layer}", scatter(folder, rng, SMALL_BYTES, (400, 80, 500, 6)[depth],
                                             longest=longest, kinds=("data", "data", "zero")))
        lower, backing_format = layer, "qcow2"
    return f"{name}.qcow2"


@maker(OWN)
def chain_twelve(folder, name, rng):
    lower, backing_format = None, None
    for depth in range(12):
        layer = f"{name}-{depth}.qcow2" if depth < 11 else f"{name}.qcow2"
        create(f"{folder}/{layer}", None if lower else 8 * MIB,
               f"cluster_size={512 << rng.randrange(9)}", lower, backing_format)
        qemu_io(f"{folder}/{layer}", scatter(folder, rng, 8 * MIB, 25, longest=32 * KIB,
                                             kinds=("data", "data", "zero")))
        lower, backing_format = layer, "qcow2"
    return f"{name}.qcow2"


@maker(OWN)
def overlay_longer(folder, name, rng):
    """Its backing files end earlier, in the middle of a cluster: what is past them reads as zeros."""
    create(f"{folder}/{name}-base.qcow2", 16 * MIB + 512 * 77, "cluster_size=4k")
    qemu_io(f"{folder}/{name}-base.qcow2", [f"write -q -P 0x5a 0 {16 * MIB + 512 * 77}"])
    create(f"{folder}/{name}-mid.qcow2", 12 * MIB + 512 * 3, "", f"{name}-base.qcow2", "qcow2")
    qemu_io(f"{folder}/{name}-mid.qcow2", scatter(folder, rng, 12 * MIB, 30))
    create(f"{folder}/{name}.qcow2", 24 * MIB, "", f"{name}-mid.qcow2", "qcow2")
    qemu_io(f"{folder}/{name}.qcow2", scatter(folder, rng, 24 * MIB, 30))
    return f"{name}.qcow2"


@maker(OWN)
def overlay_longer_raw(folder, name, rng):
    """The same over a raw file whose size is no multiple of a cluster."""
    create(f"{folder}/{name}.qcow2", 64 * MIB, "extended_l2=on", "../partial.raw", "raw")
    qemu_io(f"{folder}/{name}.qcow2", scatter(folder, rng, 64 * MIB, 60))
    return f"{name}.qcow2"


@maker(OWN)
def overlay_shorter(folder, name, rng):
    create(f"{folder}/{name}.qcow2", 20 * MIB + 512 * 5, "", f"../{SMALL}", "raw")
    qemu_io(f"{folder}/{name}.qcow2", scatter(folder, rng, 20 * MIB, 60))
    return f"{name}.qcow2"


@maker(OWN)
def relative_names(folder, name, rng):
    """Backing names that mean something only from the folder of the image that has them."""
    os.makedirs(f"{folder}/lower/deeper", exist_ok=True)
    create(f"{folder}/lower/deeper/base.qcow2", 8 * MIB)
    qemu_io(f"{folder}/lower/deeper/base.qcow2", scatter(folder, rng, 8 * MIB, 30))
    create(f"{folder}/lower/mid.qcow2", None, "", "deeper/base.qcow2", "qcow2")
    qemu_io(f"{folder}/lower/mid.qcow2", scatter(folder, rng, 8 * MIB, 20))
    create(f"{folder}/{name}.qcow2", None, "", "lower/mid.qcow2", "qcow2")
    qemu_io(f"{folder}/{name}.qcow2", scatter(folder, rng, 8 * MIB, 10))
    return f"{name}.qcow2"


@maker(OWN)
def data_file_raw(folder, name, rng):
    create(f"{folder}/{name}.qcow2", SMALL_BYTES, "data_file=data-file-raw.data,data_file_raw=on")
    qemu_io(f"{folder}/{name}.qcow2", scatter(folder, rng, SMALL_BYTES, 200, kinds=("data", "zero")))
    return f"{name}.qcow2"


@maker(OWN)
def data_file_mixed(folder, name, rng):
    create(f"{folder}/{name}.qcow2", SMALL_BYTES, "data_file=data-file-mixed.data,cluster_size=16k")
    qemu_io(f"{folder}/{name}.qcow2", scatter(folder, rng, SMALL_BYTES, 300, cluster=16 * KIB,
                                              kinds=("data", "data", "zero", "cluster-zero", "discard")))
    return f"{name}.qcow2"


@maker(OWN)
def data_file_extended_l2(folder, name, rng):
    create(f"{folder}/{name}.qcow2", SMALL_BYTES, "data_file=data-file-extended-l2.data,extended_l2=on")
    qemu_io(f"{folder}/{name}.qcow2", scatter(folder, rng, SMALL_BYTES, 300, longest=16 * KIB,
                                              kinds=("data", "data", "zero", "cluster-zero", "discard")))
    return f"{name}.qcow2"


@maker(OWN)
def snapshots_small(folder, name, rng):
    """Snapshots over compressed clusters, one of them deleted and the disk grown since."""
    path = f"{folder}/{name}.qcow2"
    create(path, 32 * MIB, "cluster_size=4k")
    for i in range(4):
        qemu_io(path, scatter(folder, rng, 32 * MIB, 80, kinds=MIXED, cluster=4 * KIB))
        must(["qemu-img", "snapshot", "-c", f"s{i}", path])
    must(["qemu-img", "snapshot", "-d", "s1", path])
    must(["qemu-img", "resize", "-q", path, "40M"])
    qemu_io(path, scatter(folder, rng, 40 * MIB, 80, kinds=MIXED, cluster=4 * KIB))
    return f"{name}.qcow2"


@maker(OWN)
def bitmap(folder, name, rng):
    path = f"{folder}/{name}.qcow2"
    create(path, SMALL_BYTES)
    must(["qemu-img", "bitmap", "--add", "-g", "64k", path, "first"])
    must(["qemu-img", "bitmap", "--add", "-g", "4k", path, "second \x01 name"])
    qemu_io(path, scatter(folder, rng, SMALL_BYTES, 100))
    must(["qemu-img", "bitmap", "--disable", path, "first"])
    return f"{name}.qcow2"


@maker(OWN)
def dirty(folder, name, rng):
    """Lazy refcounts, and a writer that died: the dirty bit, refcounts behind."""
    path = f"{folder}/{name}.qcow2"
    create(path, SMALL_BYTES, "lazy_refcounts=on")
    r = harness.run(["qemu-io", "-f", "qcow2", path],
                    stdin="\n".join(scatter(folder, rng, SMALL_BYTES, 60) + ["flush", "abort"]) + "\n")
    if not Editor(path).incompatible & 1:
        raise RuntimeError(f"the dirty bit is not set:\n{r}")
    return f"{name}.qcow2"


@maker(OWN)
def corrupt(folder, name, rng):
    path = f"{folder}/{name}.qcow2"
    create(path, SMALL_BYTES)
    qemu_io(path, scatter(folder, rng, SMALL_BYTES, 60))
    with Editor(path, write=True) as e:
        e.put(72, 8, e.incompatible | 2)
    return f"{name}.qcow2"


@maker(OWN)
def sparse_64g(folder, name, rng):
    """Little in a lot: holes without L2 tables, and L2 tables with one entry."""
    path = f"{folder}/{name}.qcow2"
    create(path, 64 * GIB)
    pieces = ((0, 512), (17 * GIB - 512, 4096), (42 * GIB + 123456789, 70 * KIB), (64 * GIB - 1024, 1024))
    qemu_io(path, [f"write -q -s {rng.choice(patterns(folder))} {off & ~511} {length}"
                   for off, length in pieces])
    return f"{name}.qcow2"


@maker(OWN)
def empty(folder, name, _rng):
    create(f"{folder}/{name}.qcow2", 10 * MIB)
    return f"{name}.qcow2"


@maker(OWN)
def long_header(folder, name, rng):
    """A longer header and an unknown extension: both have to be stepped over."""
    path = f"{folder}/{name}.qcow2"
    create(path, None, "", f"../{SMALL}", "raw")
    qemu_io(path, scatter(folder, rng, SMALL_BYTES, 20))
    with Editor(path, write=True) as e:
        e.insert_header_padding(24)
        e.insert_extension(0x7368726B, b"thirteen byte")
    return f"{name}.qcow2"


# ---- building --------------------------------------------------------------------------------------


def make_sources(images):
    """tree.raw, small.raw, partial.raw and the pattern files."""
    rng = random.Random(BUILD_SEED)
    make_tree_disk(f"{images}/{TREE}", TREE_BYTES)
    holes = [(8 * MIB, 4 * MIB), (20 * MIB + 512, 64 * KIB), (30 * MIB, 1536)]
    holes += [(rng.randrange(SMALL_BYTES // 4096 - 64) * 4096, rng.randint(1, 64) * 4096) for _ in range(40)]
    with open(f"{images}/{TREE}", "rb") as tree:
        # From the middle, where the file system keeps data of files.
        tree.seek(os.path.getsize(f"{images}/{TREE}") // 3 // (64 * KIB) * (64 * KIB))
        data = bytearray(tree.read(SMALL_BYTES))
        tree.seek(40 * MIB)
        for path in (f"{images}/pattern-{i}" for i in range(8)):
            with open(path, "wb") as f:
                f.write(tree.read(96 * KIB))
    for off, length in holes:
        data[off:off + length] = bytes(length)
    # 13 sectors into its last cluster, whatever the cluster's size.
    for name, size in ((SMALL, SMALL_BYTES), ("partial.raw", 40 * MIB + 13 * 512)):
        with open(f"{images}/{name}", "wb") as f:
            f.truncate(size)
            for off in range(0, size, 4096):
                block = data[off:min(off + 4096, size)]
                if any(block):
                    f.seek(off)
                    f.write(block)


def make_one(images, entry):
    """Build one variant and its truth; returns its row."""
    name, source, large, function = entry
    folder = f"{images}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    file_name = function(folder, name, random.Random(f"{BUILD_SEED} {name}"))
    path = f"{folder}/{file_name}"
    if source:
        truth = f"{images}/{source}"
        must(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", truth, path], cwd=folder)
    else:
        truth = f"{folder}/truth.raw"
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, truth], timeout=600, cwd=folder)
    return [name, large, os.path.relpath(path, images), os.path.relpath(truth, images)]


def _key():
    """Changes whenever what would be built may change."""
    h = hashlib.sha256(repr(harness.qemu_version()).encode())
    here = os.path.dirname(os.path.abspath(__file__))
    for name in ("variants.py", "../lib/tree_disk.py", "../lib/qcow2_editor.py"):
        with open(os.path.join(here, name), "rb") as f:
            h.update(f.read())
    return h.hexdigest()


def build(images):
    """Make what is missing below images; returns the variants. Several processes may call it at once."""
    os.makedirs(images, exist_ok=True)
    with open(f"{images}/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = f"{images}/stamp.json"
        key = _key()
        try:
            with open(stamp) as f:
                saved = json.load(f)
        except (OSError, ValueError):
            saved = {}
        if saved.get("key") != key:
            print(f"# building the test images in {images}", flush=True)
            make_sources(images)
            # The slow ones first, so that the last one to finish is not one of them.
            order = sorted(MAKERS, key=lambda m: (not m[2], "512" not in m[0], m[0] not in ("zlib", "zstd")))
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                rows = list(pool.map(lambda entry: make_one(images, entry), order))
            names = [m[0] for m in MAKERS]
            rows.sort(key=lambda row: names.index(row[0]))
            saved = {"key": key, "rows": rows}
            with open(stamp + ".new", "w") as f:
                json.dump(saved, f, indent=1)
            # So that the space they take does not change any more: info prints it.
            os.sync()
            os.rename(stamp + ".new", stamp)
    variants = [Variant(name, large, f"{images}/{path}", f"{images}/{truth}")
                for name, large, path, truth in saved["rows"]]
    return variants + [Variant("raw", False, f"{images}/{SMALL}", f"{images}/{SMALL}", "raw")]


def select(options):
    """The variants that --only names; with --quick the small ones."""
    chosen = build(options.images)
    if options.quick:
        chosen = [v for v in chosen if not v.large]
    if options.only:
        chosen = [v for v in chosen if re.search(options.only, v.name)]
    return chosen


def main():
    p = harness.parser(__doc__)
    options = p.parse_args()
    for tool in ("qemu-img", "qemu-io"):
        if not shutil.which(tool):
            harness.skip_all(f"{tool} is not installed (Debian package qemu-utils)")
    images = os.path.abspath(options.images or os.path.join(harness.ROOT, "build", "test-images"))
    print(f"# seed {BUILD_SEED} (fixed)")
    results = harness.Results()
    for v in build(images):
        size = os.stat(v.path).st_blocks * 512 / MIB
        guest_bytes = os.path.getsize(v.truth)
        results.check(guest_bytes, f"{v.name}: {size:.1f} MiB, {guest_bytes} guest bytes")
    results.finish()


if __name__ == "__main__":
    main()
