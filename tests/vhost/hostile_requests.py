# SPDX-License-Identifier: MIT
"""Rows of hostile_test.py: virtio-blk requests that are wrong in themselves. (name, deed, what is right)

Each of them can be answered, so it is: the ring goes on.
"""

import messages as m
from victim import DISK_BYTES

W = m.WRITE
END = DISK_BYTES // m.SECTOR
ERROR = {"error"}
EITHER = {"error", "ok"}


def read(sector, size):
    return lambda v: v.request(m.T_IN, sector, size=size)


def write(sector, size):
    return lambda v: v.request(m.T_OUT, sector, data=b"\x66" * size)


def typed(kind, size=512):
    """A request of this type with data both ways, sector 0."""
    return lambda v: v.chain((v.header(kind), 16, 0), (v.place(size), size, 0), (v.place(size), size, W),
                             (v.status(), 1, W))


def segments(kind, *rows):
    return lambda v: v.request(kind, data=b"".join(m.SEGMENT.pack(*row) for row in rows))


def payload(kind, size):
    """A discard or write zeroes of so many bytes of zeros."""
    return lambda v: v.request(kind, data=bytes(size))


def limits(kind, field, extra):
    """As many sectors as are allowed and some more."""
    def deed(v):
        most = m.config_field(v.d.front.get_config(), field)
        v.request(kind, data=m.SEGMENT.pack(0, min(most + extra, 0xffffffff), 0))
    return deed


def too_many_segments(kind, field):
    """Segments without sectors at the end of the disk, one more than allowed."""
    def deed(v):
        most = min(m.config_field(v.d.front.get_config(), field), 4096)
        v.request(kind, data=m.SEGMENT.pack(END, 1, 0) * (most + 1))
    return deed


def last_is_bad(kind):
    """The first segments would go, the last is beyond the end: nothing may have happened to sectors that the
    model has. So they are segments beyond the end, all but one of length 0."""
    return segments(kind, (0, 0, 0), (END, 8, 0))


def written_segments(kind):
    return lambda v: v.chain((v.header(kind), 16, 0), (v.place(16), 16, W), (v.status(), 1, W))


D, Z = m.T_DISCARD, m.T_WRITE_ZEROES
ROWS = [
    ("an unknown type", typed(99), ERROR),
    ("type 2 of old", typed(2), ERROR),
    ("type 3 of old", typed(3), ERROR),
    ("type 0xffffffff", typed(0xffffffff), ERROR),
    ("type 0x80000001", typed(0x80000001), ERROR),
    ("GET_LIFETIME", typed(10), ERROR),
    ("secure erase", segments(14, (0, 8, 0)), ERROR),
    ("a zone report", typed(16), ERROR),
    ("a read at the end", read(END, 512), ERROR),
    ("a read over the end", read(END - 1, 1024), ERROR),
    ("a read far beyond the end", read(1 << 40, 512), ERROR),
    ("a read at sector 2^64 - 1", read((1 << 64) - 1, 512), ERROR),
    ("a read at sector 2^55", read(1 << 55, 512), ERROR),
    ("a read at sector 2^63", read(1 << 63, 512), ERROR),
    ("a read of 2^64 bytes less one sector on", read((1 << 64) - 8, 8192), ERROR),
    ("a write at the end", write(END, 512), ERROR),
    ("a write over the end", write(END - 1, 1024), ERROR),
    ("a write at sector 2^64 - 1", write((1 << 64) - 1, 512), ERROR),
    ("a write at sector 2^55", write(1 << 55, 512), ERROR),
    ("a read of 511 bytes", read(0, 511), ERROR),
    ("a read of 513 bytes", read(0, 513), ERROR),
    ("a read of one byte", read(0, 1), ERROR),
    ("a write of 511 bytes", write(0, 511), ERROR),
    ("a write of 513 bytes", write(0, 513), ERROR),
    ("a read of nothing", lambda v: v.request(m.T_IN), EITHER),
    ("a write of nothing", lambda v: v.request(m.T_OUT), EITHER),
    ("a read of nothing beyond the end", lambda v: v.request(m.T_IN, END + 1), EITHER),
    ("a read with readable data too", typed(m.T_IN), EITHER),
    ("a write with writable data too",
     lambda v: v.chain((v.header(m.T_OUT), 16, 0), (v.place(v.model.read(0, 1)), 512, 0),
                       (v.place(512), 512, W), (v.status(), 1, W)), EITHER),
    ("a write with writable data only",
     lambda v: v.chain((v.header(m.T_OUT), 16, 0), (v.place(512), 512, W), (v.status(), 1, W)), EITHER),
    ("a read with a header of 17 bytes",
     lambda v: v.chain((v.place(m.REQUEST_HEAD.pack(m.T_IN, 0, 0) + b"x"), 17, 0), (v.place(512), 512, W),
                       (v.status(), 1, W)), EITHER),
    ("a flush with data", typed(m.T_FLUSH), EITHER),
    ("a flush at sector 2^64 - 1", lambda v: v.request(m.T_FLUSH, (1 << 64) - 1), EITHER),
    ("a name into 19 bytes", lambda v: v.request(m.T_GET_ID, size=19), EITHER),
    ("a name into one byte", lambda v: v.request(m.T_GET_ID, size=1), EITHER),
    ("a name into nothing", lambda v: v.request(m.T_GET_ID), EITHER),
    ("a name into 4096 bytes", lambda v: v.request(m.T_GET_ID, size=4096), EITHER),
    ("a discard of nothing", payload(D, 0), EITHER),
    ("a discard of 15 bytes", payload(D, 15), ERROR),
    ("a discard of 17 bytes", payload(D, 17), ERROR),
    ("a discard of one byte", payload(D, 1), ERROR),
    ("a discard with unmap", segments(D, (0, 8, m.UNMAP)), ERROR),
    ("a discard with unknown flags", segments(D, (0, 8, 0x80000000)), ERROR),
    ("a discard at the end", segments(D, (END, 8, 0)), ERROR),
    ("a discard over the end", segments(D, (END - 4, 8, 0)), ERROR),
    ("a discard at sector 2^64 - 1", segments(D, ((1 << 64) - 1, 8, 0)), ERROR),
    ("a discard at sector 2^55", segments(D, (1 << 55, 8, 0)), ERROR),
    ("a discard of 2^32 - 1 sectors", segments(D, (0, 0xffffffff, 0)), ERROR),
    ("a discard of more than allowed", limits(D, "max_discard_sectors", 1), ERROR),
    ("a discard of too many segments", too_many_segments(D, "max_discard_seg"), ERROR),
    ("a discard whose last segment is bad", last_is_bad(D), ERROR),
    ("a discard with writable segments", written_segments(D), EITHER),
    ("zeroes of nothing", payload(Z, 0), EITHER),
    ("zeroes of 15 bytes", payload(Z, 15), ERROR),
    ("zeroes of 33 bytes", payload(Z, 33), ERROR),
    ("zeroes with unknown flags", segments(Z, (0, 8, 2)), ERROR),
    ("zeroes with all flags", segments(Z, (0, 8, 0xffffffff)), ERROR),
    ("zeroes at the end", segments(Z, (END, 1, 0)), ERROR),
    ("zeroes over the end", segments(Z, (END - 4, 8, m.UNMAP)), ERROR),
    ("zeroes at sector 2^64 - 1", segments(Z, ((1 << 64) - 1, 1, 0)), ERROR),
    ("zeroes at sector 2^55", segments(Z, (1 << 55, 1, 0)), ERROR),
    ("zeroes of 2^32 - 1 sectors", segments(Z, (0, 0xffffffff, 0)), ERROR),
    ("zeroes of more than allowed", limits(Z, "max_write_zeroes_sectors", 1), ERROR),
    ("zeroes of too many segments", too_many_segments(Z, "max_write_zeroes_seg"), ERROR),
    ("zeroes whose last segment is bad", last_is_bad(Z), ERROR),
    ("zeroes with writable segments", written_segments(Z), EITHER),
]
