#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Make the fuzzers' seed inputs: small images by QEMU's tools, damaged copies of them, and the inputs that
once found something.

make_corpus.py [--seed N] FOLDER    writes FOLDER/{open,header,tables,inflate}/

Without qemu-img only what is built by hand is written.
"""

import argparse
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

BYTES_MAX = 256 << 10
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1

# name: (create options, virtual size, qemu-io commands, further steps)
BASIC = ("write -P 17 0 {c}", "write -P 18 {2c} {c}", "write -z {4c} {c}", "write -P 19 {6c} {c}",
         "discard {6c} {c}")
PACKED = ("write -c -P 33 0 {c}", "write -c -P 34 {c} {c}", "write -P 35 {3c} {c}")
IMAGES = {
    "v2-512": ("compat=0.10,cluster_size=512", "100k", BASIC[:2], ()),
    "v2-4k": ("compat=0.10,cluster_size=4k", "1M", BASIC[:2], ("snapshot",)),
    "v3-512": ("cluster_size=512", "100k", BASIC, ()),
    "v3-512-odd": ("cluster_size=512", "70000", BASIC, ("snapshot", "bitmap")),
    "v3-4k": ("cluster_size=4k", "2M", BASIC, ()),
    "v3-4k-terabyte": ("cluster_size=4k", "1G", BASIC, ()),
    "v3-64k": ("cluster_size=64k", "10M", BASIC, ()),
    "v3-2m": ("cluster_size=2M", "10M", (), ()),
    "zlib-512": ("cluster_size=512", "64k", PACKED, ()),
    "zlib-4k": ("cluster_size=4k", "1M", PACKED, ()),
    "zstd-4k": ("cluster_size=4k,compression_type=zstd", "1M", PACKED, ()),
    "zstd-16k": ("cluster_size=16k,compression_type=zstd", "1M", PACKED, ()),
    "extended-16k": ("cluster_size=16k,extended_l2=on", "1M",
                     BASIC + ("write -P 20 {8c} 512", "write -z {9c} 1k", "write -P 21 {9c} 512"), ()),
    "extended-packed": ("cluster_size=16k,extended_l2=on,compression_type=zstd", "1M", PACKED, ()),
    "refcount-1": ("cluster_size=4k,refcount_bits=1", "1M", BASIC, ()),
    "refcount-8": ("cluster_size=512,refcount_bits=8,lazy_refcounts=on", "64k", BASIC, ("snapshot",)),
    "refcount-64": ("cluster_size=512,refcount_bits=64", "64k", BASIC, ("snapshot",)),
    "snapshots": ("cluster_size=1k", "128k", BASIC, ("snapshot", "write", "snapshot", "write")),
    "bitmaps": ("cluster_size=1k", "128k", BASIC, ("bitmap", "write", "bitmap")),
    "prealloc": ("cluster_size=1k,preallocation=metadata", "96k", (), ()),
    "overlay-qcow2": ("cluster_size=2k,backing_file=base.qcow2,backing_fmt=qcow2", "500k", BASIC, ()),
    "overlay-raw": ("cluster_size=2k,backing_file=base.raw,backing_fmt=raw", "100k", BASIC, ()),
    "overlay-extended": ("cluster_size=16k,extended_l2=on,backing_file=base.qcow2,backing_fmt=qcow2", "500k",
                         ("write -P 1 20k 512", "write -z 40k 1k"), ()),
    "data-file": ("cluster_size=4k,data_file=data.raw", "64k", BASIC, ()),
    "data-file-raw": ("cluster_size=4k,data_file=data.raw,data_file_raw=on", "64k", BASIC, ()),
    "luks": ("cluster_size=512,encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10", "64k", (),
             ()),
}


# ---- images by QEMU ----

def run(folder, *args):
    subprocess.run(args, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def cluster_of(options):
    text = dict(o.split("=") for o in options.split(","))["cluster_size"]
    return int(text.rstrip("kM")) << {"k": 10, "M": 20}.get(text[-1], 0)


def write_guest(folder, path, commands, cluster):
    sizes = {"c": cluster, **{f"{n}c": n * cluster for n in range(2, 10)}}
    args = ["qemu-io"]
    for command in commands:
        for name, value in sizes.items():
            command = command.replace("{%s}" % name, str(value))
        args += ["-c", command]
    if commands:
        run(folder, *args, path)


def make_image(folder, name):
    options, size, commands, steps = IMAGES[name]
    path, cluster = name + ".qcow2", cluster_of(options)
    secret = ["--object", "secret,id=key,data=x"] if "luks" in options else []

    run(folder, "qemu-img", "create", "-q", "-f", "qcow2", *secret, "-u", "-o", options, path, size)
    write_guest(folder, path, commands, cluster)
    for number, step in enumerate(steps):
        if step == "snapshot":
            run(folder, "qemu-img", "snapshot", "-c", f"s{number}", path)
        elif step == "bitmap":
            run(folder, "qemu-img", "bitmap", "--add", "-g", "1024", path, f"b{number}")
        else:
            write_guest(folder, path, ("write -P 77 {2c} {c}",), cluster)
    with open(os.path.join(folder, path), "rb") as f:
        return f.read(8192 if name == "luks" else BYTES_MAX - 2)


def make_images():
    if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
        print("make_corpus: no qemu-img: only images built by hand", file=sys.stderr)
        return {}
    images = {}
    with tempfile.TemporaryDirectory() as folder:
        run(folder, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "500k")
        run(folder, "qemu-img", "create", "-q", "-f", "raw", "base.raw", "100k")
        for name in IMAGES:
            images[name] = make_image(folder, name)
    return images


# ---- images by hand ----

def header(cluster_bits=9, size=65536, l1_count=4, l1_off=0, reftable_off=0, reftable_clusters=1, snapshots=0,
           snapshots_off=0, incompatible=0, autoclear=0, order=4, version=3, compression=0, backing=(0, 0),
           extensions=b""):
    """A header with every table at offset 0 unless said otherwise: the least that opens."""
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing[0], backing[1], cluster_bits, size, 0,
                       l1_count, l1_off, reftable_off, reftable_clusters, snapshots, snapshots_off)
    if version >= 3:
        head += struct.pack(">QQQIIB7x", incompatible, 0, autoclear, order, 112, compression)
    return head + extensions


def place(*parts):
    """(offset, bytes) parts laid over zeros."""
    out = bytearray(max(off + len(data) for off, data in parts))
    for off, data in parts:
        out[off:off + len(data)] = data
    return bytes(out)


def words(*values):
    return struct.pack(f">{len(values)}Q", *values)


def deflate(data):
    z = zlib.compressobj(9, zlib.DEFLATED, -12)
    return z.compress(data) + z.flush()


def hand_made():
    small = header(size=16384, l1_count=1, l1_off=1024, reftable_off=512)
    stream = deflate(b"shardcow" * 64)
    tables = ((0, small), (512, words(1536)), (1024, words(2048 | COPIED)))

    return {
        "least": header(),
        "least-v2": header(version=2),
        "huge": header(cluster_bits=21, size=(1 << 60) - 1, l1_count=1 << 22),
        "one-of-each": place(*tables, (1536, struct.pack(">6H", 1, 1, 1, 1, 1, 2)),
                             (2048, words(2560 | COPIED, ZERO, 2560 | COPIED | ZERO, 0,
                                          COMPRESSED | 3072, 2560 | 256)),
                             (2560, b"d" * 512), (3072, stream)),
        "tables-in-themselves": place((0, small), (512, words(512)), (1024, words(1024 | COPIED))),
        "past-the-end": place(*tables, (2048, words((1 << 40) | COPIED, (1 << 56) - 512 | COPIED,
                                                    COMPRESSED | (1 << 61) - 1))),
    }


# zstd frame: a window of 2^log2 bytes, one block that repeats a byte count times.
def zstd_frame(log2, count):
    return b"\x28\xb5\x2f\xfd\0" + bytes([log2 - 10 << 3]) + (count << 3 | 3).to_bytes(3, "little") + b"z"


# Inputs that found something, by what it was. Each is the least that still does.
def regressions():
    mapped = ((512, words(1536)), (1024, words(2048 | COPIED)))
    plain = header(size=512, l1_count=1, l1_off=1024, reftable_off=512)
    packed = header(size=512, l1_count=1, l1_off=1024, reftable_off=512, incompatible=8, compression=1)

    return {
        # 112 bytes; each look at a snapshot walked there from the first one
        "list-of-many-snapshots": header(snapshots=65536, snapshots_off=65536),
        # readable, but the extents asked the refcounts whether the file has holes
        "extent-with-bad-refcount-table": place((0, plain), (512, words((1 << 64) - 512)), mapped[1],
                                                (2048, words(2560 | COPIED)), (2560, b"d" * 512)),
        # a stream's window took as much memory as its frame asked for
        "zstd-window-of-128-mib": place((0, packed), *mapped, (2048, words(COMPRESSED | 3072)),
                                        (3072, zstd_frame(27, 512))),
    }


# ---- damage ----

# (offset, bytes)
HEADER_FIELDS = [(4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4),
                 (60, 4), (64, 8), (72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1)]


def number(image, off, width):
    return int.from_bytes(image[off:off + width], "big")


def interesting(rng, image, width):
    cluster = 1 << min(number(image, 20, 4), 21)
    value = rng.choice([0, 1, (1 << 8 * width) - 1, 1 << rng.randrange(8 * width), len(image), cluster,
                        rng.randrange(len(image) // cluster + 2) * cluster,
                        rng.randrange(len(image) // cluster + 2) * cluster | COPIED,
                        COMPRESSED | rng.randrange(len(image)), ZERO])
    return value & ((1 << 8 * width) - 1)


def tables_of(image):
    """Offsets of the tables whose entries are 8 bytes."""
    found = [number(image, 40, 8), number(image, 48, 8)]
    for table in list(found):
        if table + 8 <= len(image):
            found.append(number(image, table, 8) & 0x00FFFFFFFFFFFE00)
    return [t for t in found if 0 < t < len(image)]


def damaged(rng, image):
    out = bytearray(image)
    for _ in range(rng.randrange(1, 4)):
        tables = tables_of(image)
        if not tables or rng.random() < 0.5:
            off, width = rng.choice(HEADER_FIELDS)
        else:
            off, width = rng.choice(tables) + 8 * rng.randrange(8), 8
        value = interesting(rng, image, width)
        if off + width <= len(out):
            out[off:off + width] = value.to_bytes(width, "big")
    return bytes(out)


# ---- the corpora ----

def write_inputs(folder, inputs):
    os.makedirs(folder, exist_ok=True)
    for name, data in inputs.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(data[:BYTES_MAX])


def open_inputs(rng, images):
    """The last two bytes are the options, see plan_of() in fuzz_open.c."""
    inputs = {name: image[:BYTES_MAX - 2] + bytes(2) for name, image in images.items()}
    for name, image in images.items():
        image = image[:BYTES_MAX - 2]
        inputs[name + "-options"] = image + bytes([rng.randrange(256) & ~2, rng.randrange(256)])
        for n in range(4):
            inputs[f"{name}-damaged-{n}"] = damaged(rng, image) + bytes([0, rng.randrange(256)])
    inputs.update({name: image + bytes(2) for name, image in regressions().items()})
    return inputs


def table_inputs(images):
    inputs = {}
    for name, image in images.items():
        snapshots = number(image, 64, 8)
        if snapshots and snapshots < len(image):
            for kind in (0, 1):
                inputs[f"{name}-{kind}"] = bytes([kind]) + image[snapshots:snapshots + 4096]
        for at in tables_of(image):
            inputs[f"{name}-entries-{at}"] = bytes([4]) + image[at:at + 512]
    inputs["bitmap"] = bytes([2]) + struct.pack(">QIIBBHI", 65536, 1, 2, 1, 16, 3, 0) + b"b0\0" + bytes(8)
    inputs["refcounts"] = bytes([3]) + bytes(range(256))
    return inputs


def inflate_inputs(images):
    inputs = {"zlib-512": bytes([0]) + deflate(b"shardcow" * 64),
              "zlib-4k": bytes([6]) + deflate(bytes(4096)),
              "zstd-window-of-128-mib": bytes([1]) + zstd_frame(27, 512),
              "zstd-two-frames": bytes([1]) + zstd_frame(10, 256) * 2,
              "zstd-skippable-frame": bytes([1]) + b"\x50\x2a\x4d\x18\2\0\0\0ab" + zstd_frame(10, 512)}
    for name in ("zstd-4k", "zstd-16k", "extended-packed"):
        at = images.get(name, b"").find(b"\x28\xb5\x2f\xfd")
        if at >= 0:
            bits = number(images[name], 20, 4)
            inputs[name] = bytes([1 | bits - 9 << 1]) + images[name][at:at + 600]
    return inputs


def ring_inputs(rng):
    """A guest's memory, see fuzz_virtqueue.c: eight bytes of choices, then descriptors, rings, requests."""
    inputs = {}
    for kind, (request, data) in enumerate(((0, 512), (1, 1024), (4, 0), (8, 20), (11, 16), (13, 32))):
        for indirect in (False, True):
            num_log = 3
            num = 1 << num_log
            memory = bytearray(4096)
            avail = 16 * num
            writable = 2 if request in (0, 8) else 0
            parts = [(1024, 16, 0), (1536, data, writable), (3072 + 512, 1, 2)]
            parts = [p for p in parts if p[1]]
            table = 2048 if indirect else 0
            for i, (at, size, flags) in enumerate(parts):
                more = 1 if i + 1 < len(parts) else 0
                struct.pack_into("<QIHH", memory, table + 16 * i, at, size, flags | more, i + 1)
            if indirect:
                struct.pack_into("<QIHH", memory, 0, 2048, 16 * len(parts), 4, 0)
            struct.pack_into("<HHH", memory, avail, 0, 1, 0)
            struct.pack_into("<IIQ", memory, 1024, request, 0, kind)
            struct.pack_into("<QII", memory, 1536, kind, 2, 0)
            choices = bytes([num_log, 6, 0, 0]) + rng.randbytes(4)
            inputs[f"request-{request}-{'indirect' if indirect else 'direct'}"] = choices + bytes(memory)
    return inputs


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("folder")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    images = {**make_images(), **hand_made()}

    write_inputs(os.path.join(args.folder, "open"), open_inputs(rng, images))
    write_inputs(os.path.join(args.folder, "header"), {n: i[:4096] for n, i in images.items()})
    write_inputs(os.path.join(args.folder, "tables"), table_inputs(images))
    write_inputs(os.path.join(args.folder, "inflate"), inflate_inputs(images))
    write_inputs(os.path.join(args.folder, "virtqueue"), ring_inputs(rng))
    return 0


if __name__ == "__main__":
    sys.exit(main())
