# SPDX-License-Identifier: MIT
"""Images to damage on purpose, made by QEMU, and damage without a plan.

DAMAGES is a list of (name, base, function(editor, rng)); damage_mapping and damage_header fill it.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from harness import must                                                               # noqa: E402
from qcow2_editor import L1_MASK                                                       # noqa: E402

MIB = 1 << 20
BITMAPS_EXTENSION = 0x23852875

_DATA = ["write -q -P 17 0 300k", "write -q -P 18 5M 200k", "write -q -z 1M 256k", "write -q -P 19 1M 256k",
         "write -q -z 1M 64k", "write -q -z 3M 128k"]
_COMPRESSED = [c for i in range(6) for c in [f"write -q -c -P {40 + i} {7 * MIB + i * 64 * 1024} 64k"]]
# name → (size, -o options, steps); a step is a qemu-io command, or a qemu-img call with {} for the image.
BASES = {
    "plain": (16 * MIB, "", _DATA + _COMPRESSED),
    "v2": (16 * MIB, "compat=0.10", _DATA[:2] + _COMPRESSED),
    "snapshot": (16 * MIB, "", _DATA + _COMPRESSED + [
        ["snapshot", "-c", "one", "{}"], "write -q -P 20 64k 128k",
        ["snapshot", "-c", "two", "{}"], "write -q -P 21 5M 64k"]),
    "small-clusters": (16 * MIB, "cluster_size=512", _DATA),
    "refcount-1": (16 * MIB, "refcount_bits=1", _DATA),
    "refcount-64": (16 * MIB, "refcount_bits=64", _DATA),
    "extended": (16 * MIB, "extended_l2=on", _DATA + _COMPRESSED + [
        "write -q -P 3 9M 6k", "write -q -z 9M 2k", "write -q -z 10M 3k"]),
    "bitmap": (16 * MIB, "", [
        ["bitmap", "--add", "{}", "first"], ["bitmap", "--add", "{}", "second"]] + _DATA),
    "data-file": (16 * MIB, "data_file=data-file.data", _DATA),
    "backing": (16 * MIB, "", _DATA),
}


def make_base(folder, name):
    """Returns the path of the new image."""
    size, options, steps = BASES[name]
    path = f"{folder}/{name}.qcow2"
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    argv += ["-o", options] if options else []
    if name == "backing":
        must(["qemu-img", "create", "-q", "-f", "raw", f"{folder}/below.raw", str(size)])
        argv += ["-b", "below.raw", "-F", "raw"]
    # In the folder: QEMU looks there for a relative data file name.
    must(argv + [path, str(size)], cwd=folder)
    commands = []
    for step in steps + [[]]:
        if isinstance(step, str):
            commands += [step]
            continue
        if commands:
            must(["qemu-io", "-f", "qcow2", path], stdin="\n".join(commands) + "\n", cwd=folder)
            commands = []
        if step:
            must(["qemu-img", *(a.format(path) for a in step)], cwd=folder)
    return path


DAMAGES = []


def damage(base, *bases):
    def register(function):
        for b in (base, *bases):
            DAMAGES.append((f"{function.__name__.replace('_', '-')} ({b})", b, function))
        return function
    return register


def bitmap_directory(e):
    return e.get(e.extension(BITMAPS_EXTENSION) + 24, 8)


def metadata_ranges(e):
    """(offset, bytes) of every structure except the magic and version."""
    yield 8, 104
    if not e.incompatible & 4:
        # A data file's name is there: qemu-img check opens that file, shardcow check does not.
        yield e.header_bytes, 256
    yield e.l1_off, 8 * min(e.l1_count, 64)
    yield e.reftable_off, 64
    block = e.get(e.refblock_at(0), 8) & L1_MASK
    if block:
        yield block, 64
    for at, _, _ in list(e.entries())[:64]:
        yield at, e.entry_bytes
    for at, l1, count in e.snapshots():
        yield at, 72
        yield l1, 8 * min(count, 64)
    if e.autoclear & 1:
        yield bitmap_directory(e), 64
        yield e.get(bitmap_directory(e), 8), 16


def random_damage(e, rng):
    """One to three changes anywhere in the metadata; returns what was done."""
    done = []
    ranges = list(metadata_ranges(e))
    for _ in range(rng.choice((1, 1, 2, 3))):
        off, count = rng.choice(ranges)
        at = off + rng.randrange(count)
        kind = rng.randrange(4)
        if kind == 0:
            e.put(at, 1, e.get(at, 1) ^ (1 << rng.randrange(8)))
        elif kind == 1:
            e.put(at, 1, rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))))
        elif kind == 2:
            e.put(at // 8 * 8, 8, rng.choice((0, 1, e.cluster, (1 << 63), (1 << 64) - 1, e.file_bytes(),
                                              rng.randrange(1 << 64), rng.randrange(64) * e.cluster)))
        else:
            e.put(at // 4 * 4, 4, rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 32))))
        done.append(f"{at:#x}")
    return ", ".join(done)
