# SPDX-License-Identifier: MIT
"""Headers with one wrong field each, and what the error message has to name.

HEADER_DAMAGES is a list of (name, base, function(editor), regular expression, commands that have to fail with
it); the expression is None where opening may work.
"""

import os

from damages import BITMAPS_EXTENSION

UINT32, UINT64 = (1 << 32) - 1, (1 << 64) - 1
MAGIC, VERSION, BACKING_OFF, BACKING_BYTES, CLUSTER_BITS, SIZE, CRYPT, L1_COUNT, L1_OFF = \
    0, 4, 8, 16, 20, 24, 32, 36, 40
REFTABLE_OFF, REFTABLE_CLUSTERS, SNAPSHOT_COUNT, SNAPSHOTS_OFF = 48, 56, 60, 64
INCOMPATIBLE, COMPATIBLE, AUTOCLEAR, REFCOUNT_ORDER, HEADER_BYTES, COMPRESSION = 72, 80, 88, 96, 100, 104

HEADER_DAMAGES = []
BOTH = ("check", "convert")
# check opens no other file and reads no data.
READERS = ("convert", "io")


def field(name, off, count, values, expected, base="plain", commands=BOTH):
    for value in values:
        HEADER_DAMAGES.append((f"{name} {value:#x}", base,
                               lambda e, v=value: e.put(off, count, v), expected, commands))


field("magic", MAGIC, 4, (0, 0x514649FC, UINT32), "magic|not.*qcow2|qcow2 format")
field("version", VERSION, 4, (0, 1, 4, UINT32), "version")
field("cluster_bits", CLUSTER_BITS, 4, (0, 8, 22, 63, UINT32), "cluster")
field("cluster_bits", CLUSTER_BITS, 4, (12, 13), "cluster", base="extended")
field("size", SIZE, 8, (UINT64, 1 << 62, 1 << 50), "size|L1")
field("size", SIZE, 8, (0, 511, 1), None)
field("crypt_method", CRYPT, 4, (3, UINT32), "encr|crypt")
field("crypt_method", CRYPT, 4, (1, 2), "encr|crypt", commands=READERS)
field("l1_size", L1_COUNT, 4, (UINT32, 1 << 23, 0x7FFFFFFF), "L1")
field("l1_offset", L1_OFF, 8, (1, 0x30008, UINT64, 1 << 63, 1 << 62), "L1")
field("l1_offset", L1_OFF, 8, (0, 0x7FFFFFFFFFF0000), None)
field("reftable_offset", REFTABLE_OFF, 8, (1, 0x10200, UINT64), "refcount table")
field("reftable_offset", REFTABLE_OFF, 8, (0, 1 << 55), None)
field("reftable_clusters", REFTABLE_CLUSTERS, 4, (UINT32, 1 << 20), "refcount table")
field("snapshot_count", SNAPSHOT_COUNT, 4, (65537, UINT32), "snapshot", base="snapshot")
field("snapshots_offset", SNAPSHOTS_OFF, 8, (1, UINT64), "snapshot", base="snapshot")
field("snapshots_offset", SNAPSHOTS_OFF, 8, (0, 1 << 54), None, base="snapshot")
field("incompatible", INCOMPATIBLE, 8, (1 << 5, 1 << 63, UINT64 & ~0xF), "feature|incompatible|unknown")
field("incompatible", INCOMPATIBLE, 8, (1 << 3,), "compression")
field("incompatible", INCOMPATIBLE, 8, (4,), "data file|data-file")
field("compatible", COMPATIBLE, 8, (UINT64,), None)
field("autoclear", AUTOCLEAR, 8, (UINT64,), None)
field("refcount_order", REFCOUNT_ORDER, 4, (7, 64, UINT32), "refcount")
field("header_length", HEADER_BYTES, 4, (0, 72, 103, 1 << 20, UINT32), "header")
field("compression_type", COMPRESSION, 1, (1, 2, 255), "compression")
field("backing_file_size", BACKING_BYTES, 4, (1024, 65536, UINT32), "backing", base="backing")
field("backing_file_offset", BACKING_OFF, 8, (1 << 16, UINT64, 1 << 40), "backing", base="backing")
field("backing_file_offset", BACKING_OFF, 8, (1, 100), None, base="backing")


def extra(name, base, expected, commands=BOTH):
    def register(function):
        HEADER_DAMAGES.append((name, base, function, expected, commands))
        return function
    return register


def end_extension(e):
    return list(e.extensions())[-1][0]


@extra("extension longer than the area", "plain", "extension")
def _(e):
    e.put(e.header_bytes + 4, 4, 0x10000)


@extra("extension of 4 GiB", "plain", "extension")
def _(e):
    e.put(e.header_bytes + 4, 4, UINT32)


@extra("extension that ends past the backing name", "backing", "extension")
def _(e):
    end = end_extension(e)
    e.put(end, 4, 0x12345678)
    e.put(end + 4, 4, 0x4000)


@extra("bitmaps extension of the wrong length", "bitmap", "bitmap")
def _(e):
    e.put(e.extension(BITMAPS_EXTENSION) + 4, 4, 16)


@extra("bitmap directory of a wild size", "bitmap", "bitmap")
def _(e):
    e.put(e.extension(BITMAPS_EXTENSION) + 16, 8, UINT64)


@extra("bitmap count of a wild size", "bitmap", "bitmap")
def _(e):
    e.put(e.extension(BITMAPS_EXTENSION) + 8, 4, UINT32)


@extra("unknown feature that the name table names", "plain", "strange-feature")
def _(e):
    # The first entry of the feature name table: type, bit, 46 bytes of name.
    table = e.extension(0x6803F857) + 8
    e.write(table, bytes([0, 45]) + b"strange-feature".ljust(46, b"\0"))
    e.put(INCOMPATIBLE, 8, 1 << 45)


@extra("feature name with terminal controls", "plain", "feature|incompatible|unknown")
def _(e):
    table = e.extension(0x6803F857) + 8
    e.write(table, bytes([0, 45]) + b"\x1b[2J\x07\xff evil".ljust(46, b"\0"))
    e.put(INCOMPATIBLE, 8, 1 << 45)


@extra("backing name with terminal controls", "backing", "backing|open|No such", READERS)
def _(e):
    e.write(e.backing_off, b"\x1b]0;x\x07\n"[:e.backing_bytes])


@extra("backing name that is empty bytes", "backing", None)
def _(e):
    e.write(e.backing_off, bytes(e.backing_bytes))


@extra("backing name with a protocol", "backing", "backing|open|No such|protocol|refuse|allow", READERS)
def _(e):
    e.write(e.backing_off, b"nbd://abcdef"[:e.backing_bytes].ljust(e.backing_bytes, b"x"))


@extra("backing file that is the image itself", "backing", "itself|cycle|loop|contains|chain", READERS)
def _(e):
    name = b"bad.qcow2"
    e.write(e.backing_off, name)
    e.put(BACKING_BYTES, 4, len(name))
    e.write(e.extension(0xE2792ACA) + 4, (5).to_bytes(4, "big") + b"qcow2")


@extra("backing format that is not known", "backing", "format", READERS)
def _(e):
    e.write(e.extension(0xE2792ACA) + 8, b"vdi")


@extra("backing format that is not named", "backing", "format", READERS)
def _(e):
    e.put(e.extension(0xE2792ACA), 4, 0x11111111)


# QEMU reads what is past the end of the file as zeros, the L1 table too: check alone complains.
@extra("file of one cluster", "plain", "L1|refcount|end of", ("check",))
def _(e):
    os.ftruncate(e.fd, e.cluster)


@extra("file that ends in the header", "plain", "header|short|end of|truncated")
def _(e):
    os.ftruncate(e.fd, 60)


@extra("file that ends in the L1 table", "small-clusters", "L1|end of", ("check",))
def _(e):
    os.ftruncate(e.fd, e.l1_off + 8)


@extra("L1 table that lies on the header", "plain", None)
def _(e):
    e.put(L1_OFF, 8, 0)


@extra("everything 0xff behind the version", "plain", ".")
def _(e):
    e.write(8, b"\xff" * 96)


@extra("everything zero behind the version", "plain", ".")
def _(e):
    e.write(8, bytes(96))
