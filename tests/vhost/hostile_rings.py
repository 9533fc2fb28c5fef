# SPDX-License-Identifier: MIT
"""Rows of hostile_test.py: descriptors and rings as no driver writes them. (name, deed, what is right)"""

import messages as m
from victim import HOLE, REGIONS, RING

W, N = m.WRITE, m.NEXT
# Refused; the status may be there or not. A fault of a ring is no reason to close the connection.
BAD = {"error", "dropped", "stopped"}
ANY = BAD | {"ok"}
END = REGIONS[1][0] + REGIONS[1][1]
USER = 0x7a00_0000_0000


def descriptors(*rows):
    """Rows of (what, length, flags, next), what being an address or one of header, data, status."""
    def deed(v):
        v.descriptors([(resolve(v, what), *rest) for what, *rest in rows])
    return deed


def resolve(v, what):
    return {"header": v.header, "status": v.status, "data": lambda: v.place(4096)}[what]() \
        if isinstance(what, str) else what


def data_at(address, length=512, flags=W):
    """A read whose data is there."""
    def deed(v):
        v.chain((v.header(), 16, 0), (address, length, flags), (v.status(), 1, W))
    return deed


def header_at(address, length=16):
    return lambda v: v.chain((address, length, 0), (v.place(512), 512, W), (v.status(), 1, W))


def status_at(address, length=1):
    def deed(v):
        v.chain((v.header(), 16, 0), (v.place(512), 512, W), (address, length, W))
    return deed


def chain(*rows):
    """Linked (what, length, flags)."""
    return lambda v: v.chain(*[(resolve(v, what), length, flags) for what, length, flags in rows])


def table(*rows, **how):
    return lambda v: v.table([(resolve(v, what), length, flags, following)
                              for what, length, flags, following in rows], **how)


GOOD_TABLE = (("header", 16, N, 1), ("data", 512, N | W, 2), ("status", 1, W, 0))


def loop_of_all(v):
    v.descriptors([(v.header(), 16, N, (i + 1) % RING) for i in range(RING)])


def huge_table(v):
    """More descriptors than any ring has, all in memory."""
    head, data = v.header(), v.place(512)
    rows = [(head, 16, N, 1)] + [(data, 1, N | W, i + 2) for i in range(65000)]
    v.table([*rows, (v.status(), 1, W, 0)], region=1)


def repeated(kind, count, length):
    """The same buffer again and again: more data than there is memory or disk."""
    def deed(v):
        head, data = v.header(kind, 0), v.place(length, region=1)
        flags = W if kind == m.T_IN else 0
        rows = [(head, 16, N, 1)] + [(data, length, N | flags, i + 2) for i in range(count)]
        v.table([*rows, (v.status(), 1, W, 0)])
    return deed


def nested(v):
    inner = v.place(b"".join(m.DESC.pack(v.place(512), 512, W, 0) for _ in range(2)))
    v.table([(v.header(), 16, N, 1), (inner, 32, m.INDIRECT | N, 2), (v.status(), 1, W, 0)])


def good_request(v, head=0):
    """Offered, not yet published."""
    v.descriptors([(v.header(), 16, N, 1), (v.place(512), 512, N | W, 2), (v.status(), 1, W, 0)], offer=False)
    v.offer(head, publish=False)


def index_jump(by):
    def deed(v):
        good_request(v)
        v.ring.next_avail = v.ring.next_avail - 1 + by & 0xffff
        v.publish()
    return deed


def entry(head):
    """An available ring entry; the index is right."""
    def deed(v):
        good_request(v, head)
        v.publish()
    return deed


def twice(v):
    good_request(v)
    v.offer(0)


def over_ring(what):
    """A read that the server is told to put over a ring."""
    def deed(v):
        address = getattr(v.ring, what)
        v.writable(address, 512)
        v.chain((v.header(), 16, 0), (address, 512, W), (v.status(), 1, W))
    return deed


def removed_memory(v):
    """A buffer in a region that was taken away."""
    region = v.d.memory.regions[1]
    v.front.rem_mem_reg(region)
    v.chain((v.header(), 16, 0), (region.guest, 512, W), (v.status(), 1, W))


def indirect_not_negotiated(v):
    v.front.set_features(m.without(v.d.features, m.INDIRECT_DESC))
    v.d.features = m.without(v.d.features, m.INDIRECT_DESC)
    v.d.front.get_vring_base(0)
    v.d.start(v.ring, 0)
    table(*GOOD_TABLE)(v)


ROWS = [
    ("a descriptor that follows itself", descriptors(("header", 16, N, 0)), BAD),
    ("a loop of two", descriptors(("header", 16, N, 1), ("data", 512, N | W, 0)), BAD),
    ("a loop behind the header", descriptors(("header", 16, N, 1), ("data", 512, N | W, 1)), BAD),
    ("a loop of the whole ring", loop_of_all, BAD),
    ("next is the ring's size", descriptors(("header", 16, N, RING)), BAD),
    ("next is 65535", descriptors(("header", 16, N, 65535)), BAD),
    ("a header of length 0", chain(("header", 0, 0), ("data", 512, W), ("status", 1, W)), BAD),
    ("an empty descriptor in front", chain(("header", 0, 0), ("header", 16, 0), ("data", 512, W), ("status", 1, W)),
     ANY),
    ("data of length 0", data_at(REGIONS[0][0], 0), ANY),
    ("an empty descriptor outside memory", data_at(HOLE, 0), ANY),
    ("a status of length 0", chain(("header", 16, 0), ("status", 0, W)), BAD),
    ("data of 4 GiB - 1", data_at(REGIONS[1][0], 0xffffffff), BAD),
    ("data of 2 GiB", data_at(REGIONS[1][0], 0x80000000), BAD),
    ("data of 4 GiB - 512", data_at(REGIONS[1][0], 0xfffffe00), BAD),
    ("data at address 0", data_at(0), BAD),
    ("data between regions", data_at(HOLE), BAD),
    ("data behind memory", data_at(END), BAD),
    ("data far behind memory", data_at(1 << 62), BAD),
    ("data that crosses the end of a region", data_at(REGIONS[0][0] + REGIONS[0][1] - 256), BAD),
    ("data that crosses the end of memory", data_at(END - 256), BAD),
    ("data that begins before memory", data_at(REGIONS[0][0] - 256), BAD),
    ("data that wraps around", data_at((1 << 64) - 256), BAD),
    ("data at the last address", data_at((1 << 64) - 1), BAD),
    ("data at a front end's address", data_at(USER + 3 * REGIONS[1][0]), BAD),
    ("a header outside memory", header_at(HOLE), BAD),
    ("a header that crosses the end", header_at(END - 8), BAD),
    ("a header that wraps around", header_at((1 << 64) - 8), BAD),
    ("a status outside memory", status_at(HOLE), BAD),
    ("a status that wraps around", status_at((1 << 64) - 1, 2), BAD),
    ("a header that is writable", chain(("header", 16, W), ("data", 512, W), ("status", 1, W)), BAD),
    ("a read into readable data", chain(("header", 16, 0), ("data", 512, 0), ("status", 1, W)), ANY),
    ("a status that is readable", chain(("header", 16, 0), ("data", 512, 0), ("status", 1, 0)), BAD),
    ("no status", chain(("header", 16, 0),), BAD),
    ("a status alone", chain(("status", 1, W),), BAD),
    ("a header of one byte", chain(("header", 1, 0), ("data", 512, W), ("status", 1, W)), BAD),
    ("a header of fifteen bytes", chain(("header", 15, 0), ("data", 512, W), ("status", 1, W)), BAD),
    ("a header in sixteen pieces, one missing", chain(*[("header", 1, 0)] * 15, ("status", 1, W)), BAD),
    ("readable behind writable", chain(("header", 16, 0), ("data", 512, W), ("data", 512, 0), ("status", 1, W)), BAD),
    ("writable in front", chain(("data", 512, W), ("header", 16, 0), ("status", 1, W)), BAD),
    ("all flags of a descriptor", descriptors(("header", 16, 0xffff, 1), ("status", 1, W, 0)), BAD),
    ("flags that do not exist", chain(("header", 16, 0x7ff8), ("data", 512, W | 0x7ff8), ("status", 1, W)), ANY),
    ("a table in a table", nested, BAD),
    ("a table that is its own entry", lambda v: v.descriptors([(v.ring.desc, 16, m.INDIRECT, 0)]), BAD),
    ("a table of 24 bytes", table(*GOOD_TABLE, claimed=24), BAD),
    ("a table of 47 bytes", table(*GOOD_TABLE, claimed=47), BAD),
    ("a table of length 0", table(*GOOD_TABLE, claimed=0), BAD),
    ("a table of one byte", table(*GOOD_TABLE, claimed=1), BAD),
    ("a table of 4 GiB - 16", table(*GOOD_TABLE, claimed=0xfffffff0), ANY),
    ("a table shorter than its chain", table(*GOOD_TABLE, claimed=32), BAD),
    ("a table outside memory", lambda v: v.descriptors([(HOLE, 48, m.INDIRECT, 0)]), BAD),
    ("a table at the end of memory", lambda v: v.descriptors([(END - 16, 48, m.INDIRECT, 0)]), BAD),
    ("a table that wraps around", lambda v: v.descriptors([((1 << 64) - 16, 48, m.INDIRECT, 0)]), BAD),
    ("a table and a next", table(*GOOD_TABLE, flags=N), BAD),
    ("a writable table", table(*GOOD_TABLE, flags=W), ANY),
    ("a loop in a table", table(("header", 16, N, 1), ("data", 512, N | W, 1)), BAD),
    ("next beyond a table", table(("header", 16, N, 7), ("status", 1, W, 0)), BAD),
    ("a table of 65002 entries", huge_table, ANY),
    ("a read of 1000 times the same memory", repeated(m.T_IN, 1000, 65536), BAD),
    ("a write of 1000 times the same memory", repeated(m.T_OUT, 1000, 65536), BAD),
    ("tables that were not negotiated", indirect_not_negotiated, ANY),
    ("the index jumps by more than the ring", index_jump(RING + 1), BAD),
    ("the index jumps by half of all", index_jump(0x8000), BAD),
    ("the index goes back", index_jump(0xfff0), BAD),
    ("an entry that is the ring's size", entry(RING), BAD),
    ("an entry that is 65535", entry(65535), BAD),
    ("a head twice", twice, ANY),
    ("a read over the descriptors", over_ring("desc"), ANY),
    ("a read over the available ring", over_ring("avail"), ANY),
    ("a read over the used ring", over_ring("used"), ANY),
    ("memory that was taken away", removed_memory, BAD),
]
