# SPDX-License-Identifier: MIT
"""Rows of hostile_test.py: memory, rings, logs and inflight memory that are set up wrong. (name, deed that
returns an outcome, what is right)
"""

import os
import socket

import messages as m
from disk import MIB, Disk
from front_end import Closed, Refused
from guest_rings import Region
from hostile_messages import ANY, NO, disk_goes_on
from victim import HOLE, QUEUES, REGIONS, RING, SILENCE_S

TOP = 1 << 64
USER = 0x7a00_0000_0000
STATE, U64 = m.VRING_STATE.pack, m.U64.pack
GOOD = (0x10_0000, MIB, USER, 0)
# Refused when it is set, or by the ring when it starts.
LATE = NO | {"acked", "stopped"}


def memfd(size):
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def with_files(fds, deed):
    try:
        return deed(fds)
    finally:
        for fd in fds:
            os.close(fd)


def table(*regions, count=None, size=MIB):
    """SET_MEM_TABLE of (guest, size, user, offset); each file has so many bytes."""
    def deed(v):
        payload = m.MEM_TABLE_HEAD.pack(len(regions) if count is None else count, 0)
        payload += b"".join(m.REGION.pack(*(n % TOP for n in r)) for r in regions)
        fds = [memfd(size) for _ in regions[:15]]
        return with_files(fds, lambda fds: v.message(m.SET_MEM_TABLE, payload, fds))
    return deed


def region(*numbers, size=MIB, request=m.ADD_MEM_REG):
    """ADD_MEM_REG (or another) beside the regions of a disk that works."""
    def deed(v):
        payload = bytes(8) + m.REGION.pack(*(n % TOP for n in numbers))
        fds = [memfd(size)] if request == m.ADD_MEM_REG else []
        return with_files(fds, lambda fds: v.message(request, payload, fds))
    return disk_goes_on(deed)


def region_of(open_file):
    """A region of something that is not a memfd."""
    def deed(v):
        payload = bytes(8) + m.REGION.pack(0x2000_0000, 4096, USER + (1 << 40), 0)
        return with_files([open_file()], lambda fds: v.message(m.ADD_MEM_REG, payload, fds))
    return disk_goes_on(deed)


def too_many_slots(v):
    """More regions than the server says it takes."""
    most = v.d.front.get_max_mem_slots()
    outcome, fd = "acked", memfd(4096)
    for i in range(min(most, 600) + 1):
        payload = bytes(8) + m.REGION.pack(0x1_0000_0000 + i * 8192, 4096, USER + (1 << 40) + i * 8192, 0)
        outcome = v.message(m.ADD_MEM_REG, payload, [fd])
        if outcome != "acked":
            break
    os.close(fd)
    return outcome


def small_file(v):
    """A file that is smaller than its region, and a request to what is missing."""
    r = Region(0x2000_0000, MIB)
    os.ftruncate(r.fd, 4096)
    outcome = v.message(m.ADD_MEM_REG, bytes(8) + r.entry(), [r.fd])
    r.close()
    if outcome != "acked":
        return outcome
    v.chain((v.header(), 16, 0), (r.guest + 8192, 512, m.WRITE), (v.status(), 1, m.WRITE))
    return "nack" if v.outcome() != "ok" else "acked"


def remapped(v):
    """A table without the memory that the rings are in, while they run."""
    v.d.read(0, 1)
    r = Region(0x2000_0000, MIB)
    outcome = v.message(m.SET_MEM_TABLE, m.MEM_TABLE_HEAD.pack(1, 0) + r.entry(), [r.fd])
    r.close()
    for ring in v.d.rings:
        os.eventfd_write(ring.kick, 1)
    return outcome


def removed_rings(v):
    """The region that all rings are in is taken away, and they are kicked."""
    v.d.read(0, 1)
    gone = v.d.memory.regions[0]
    v.remember()
    outcome = v.message(m.REM_MEM_REG, bytes(8) + gone.entry())
    if outcome != "closed":
        for ring in v.d.rings:
            os.eventfd_write(ring.kick, 1)
        v.hears(SILENCE_S / 4)
    return outcome


# ---- rings -------------------------------------------------------------------------------------------


def ring_at(**moved):
    """Queue 0 set up again with addresses changed: numbers are added to the ring's own, or put in their place
    when they are larger. Then it is kicked."""
    def deed(v):
        ring = v.ring
        v.front.get_vring_base(0)
        v.remember()
        user = {name: v.d.memory.user(getattr(ring, name)) for name in ("desc", "used", "avail")}
        for name, by in moved.items():
            user[name] = (user[name] + by) % TOP if abs(by) < 1 << 20 else by
        outcome = v.message(m.SET_VRING_ADDR, m.VRING_ADDR.pack(0, 0, user["desc"], user["used"], user["avail"], 0))
        return started(v, outcome)
    return deed


def started(v, outcome):
    """Go on where the message was taken; the ring must not do anything."""
    if outcome != "acked":
        return outcome
    for request, fd in ((m.SET_VRING_ERR, v.ring.err), (m.SET_VRING_KICK, v.ring.kick)):
        outcome = v.message(request, U64(0), [fd])
        if outcome != "acked":
            return outcome
    os.eventfd_write(v.ring.kick, 1)
    v.outcome(SILENCE_S / 4)
    other = v.other_queue_works()
    if other:
        raise AssertionError(other)
    return "stopped"


def user_of(guest):
    return USER + 3 * guest


SECOND_END = user_of(REGIONS[1][0]) + REGIONS[1][1]


def ring_size(number):
    def deed(v):
        v.d.front.get_vring_base(0)
        return v.message(m.SET_VRING_NUM, STATE(0, number))
    return deed


def while_running(request, payload):
    def deed(v):
        v.d.read(0, 1)
        outcome = v.message(request, payload)
        if outcome != "closed":
            os.eventfd_write(v.ring.kick, 1)
        return outcome
    return deed


def own_addresses(v, flags=0, log_at=0):
    user, ring = v.d.memory.user, v.ring
    return m.VRING_ADDR.pack(0, flags, user(ring.desc), user(ring.used), user(ring.avail), log_at)


def base(number):
    """A position; the ring starts there."""
    def deed(v):
        v.d.front.get_vring_base(0)
        outcome = v.message(m.SET_VRING_BASE, STATE(0, number))
        if outcome == "acked":
            outcome = v.message(m.SET_VRING_ADDR, own_addresses(v))
        return started(v, outcome)
    return deed


def on_a_plain_client(*steps):
    """Messages to a server that knows of no memory and no rings yet."""
    def deed(v):
        outcome = "acked"
        for request, payload, file in steps:
            fds = [os.eventfd(1)] if file else []
            outcome = with_files(fds, lambda fds, r=request, p=payload: v.message(r, p, fds))
            if outcome not in ("acked", "answered"):
                break
        return outcome
    return deed


def ring_file(request, open_file):
    """Something else than an event for a ring that is in use."""
    def deed(v):
        v.d.read(0, 1)
        outcome = with_files([open_file()], lambda fds: v.message(request, U64(0), fds))
        if outcome == "acked":
            v.request(m.T_IN, 0, size=512)
            v.outcome(SILENCE_S / 4)
            if v.other_queue_works():
                raise AssertionError("the other queue does not work")
        return outcome
    return deed


def full_pipe():
    """A pipe that takes no more, and blocks."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(65536))
    except BlockingIOError:
        pass
    os.set_blocking(writer, True)
    # The reader has to stay, or writing would fail.
    full_pipe.readers.append(reader)
    return writer


full_pipe.readers = []


def closed_pipe():
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def full_event():
    """An event that blocks whoever adds to it."""
    fd = os.eventfd(0)
    os.eventfd_write(fd, (1 << 64) - 2)
    return fd


def a_socket():
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


def a_folder():
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY)


def null():
    return os.open("/dev/null", os.O_RDWR)


# ---- the log and requests in flight ------------------------------------------------------------------


def log(size, offset=0, file_size=None, use=True):
    """A log, and a request whose pages it has to take."""
    def deed(v):
        v.d.read(0, 1)
        fd = memfd(size + offset if file_size is None else file_size)
        payload = m.LOG_BASE.pack(size % TOP, offset % TOP)
        outcome = with_files([fd], lambda fds: v.message(m.SET_LOG_BASE, payload, fds))
        if outcome == "answered" and use:
            taken = v.message(m.SET_FEATURES, U64(v.d.features | 1 << m.LOG_ALL))
            if taken == "closed":
                return taken
            v.request(m.T_IN, 0, size=4096)
            v.outcome()
        return outcome
    return deed


def log_that_is_missing(v):
    v.d.read(0, 1)
    outcome = v.message(m.SET_FEATURES, U64(v.d.features | 1 << m.LOG_ALL))
    if outcome == "acked":
        v.request(m.T_IN, 0, size=4096)
        v.outcome()
    return outcome


def log_address(where):
    """A used ring that is said to be somewhere else, for the log."""
    def deed(v):
        v.d.read(0, 1)
        last = max(r[0] + r[1] for r in REGIONS)
        fd = memfd(last)
        v.front.set_log_base(fd, last // 4096, 0)
        os.close(fd)
        v.front.set_features(v.d.features | 1 << m.LOG_ALL)
        outcome = v.message(m.SET_VRING_ADDR, own_addresses(v, 1, where))
        if outcome == "acked":
            v.request(m.T_IN, 0, size=4096)
            v.outcome()
        return outcome
    return deed


def get_inflight(queues, size):
    def deed(v):
        return v.message(m.GET_INFLIGHT_FD, m.INFLIGHT.pack(0, 0, queues, size))
    return deed


def set_inflight(length, offset, queues, size, file_size=1 << 16):
    def deed(v):
        return with_files([memfd(file_size)], lambda fds: v.message(
            m.SET_INFLIGHT_FD, m.INFLIGHT.pack(length % TOP, offset % TOP, queues, size), fds))
    return deed


def inflight_contents(fill):
    """A device that starts with memory in which fill(part of a queue) has written what was never noted."""
    def deed(v):
        v.disk = Disk(v.path, queues=QUEUES, ring_size=RING, regions=REGIONS, inflight=True)
        fd, length, offset, _, _ = v.disk.inflight
        part = length // QUEUES
        for queue in range(QUEUES):
            os.pwrite(fd, fill(v, part), offset + queue * part)
        try:
            v.disk.reconnect()
        except Closed:
            return "closed"
        except Refused:
            return "nack"
        v.outcome(SILENCE_S / 4)
        return "acked"
    return deed


def noted(**fields):
    """The head's fields changed, and all descriptors noted as in flight where inflight is given."""
    def fill(_, part):
        head = {"features": 0, "version": 1, "number": RING, "last_batch_head": 0, "used": 0} | fields
        entry = m.INFLIGHT_ENTRY.pack(fields.get("inflight", 0), fields.get("next", 0), fields.get("counter", 1))
        data = m.INFLIGHT_HEAD.pack(*(head[n] for n in ("features", "version", "number", "last_batch_head", "used")))
        return (data + entry * RING)[:part]
    return fill


def garbage(v, part):
    return v.rng.randbytes(part)


def ones(_, part):
    return b"\xff" * part


R1 = (0x2000_0000, MIB, USER + (1 << 40), 0)
ROWS = [
    ("nine regions", table(*[(0x10_0000 * i, MIB, USER + (i << 30), 0) for i in range(1, 10)]), NO),
    ("a table of 2^32 - 1 regions", table(GOOD, count=0xffffffff), NO),
    ("a table of two regions with one", table(GOOD, count=2), NO),
    ("a table of no regions with one", table(GOOD, count=0), ANY),
    ("a table of none", table(), ANY),
    ("a table that overlaps itself", table(GOOD, (0x18_0000, MIB, USER + (1 << 40), 0)), NO),
    ("the same region twice", table(GOOD, GOOD), NO),
    ("regions with the same user address", table(GOOD, (0x1000_0000, MIB, USER, 0)), ANY),
    ("a table whose file is too small", table(GOOD, size=4096), NO),
    ("a table whose file is empty", table(GOOD, size=0), NO),
    ("a table with an offset behind the file", table((*GOOD[:3], 16 * MIB)), NO),
    ("a table with a size that overflows", table((0x10_0000, TOP - 4096, USER, 4096)), NO),
    ("a table without the rings' memory", remapped, ANY),
    ("removing the rings' memory", removed_rings, ANY),
    ("a region of size 0", region(*(R1[0], 0, R1[2], 0)), NO),
    ("a region of size 2^64 - 1", region(R1[0], TOP - 1, R1[2], 0), NO),
    ("a region of size 2^63", region(R1[0], 1 << 63, R1[2], 0), NO),
    ("a region that wraps around", region(TOP - 4096, MIB, R1[2], 0), NO),
    ("a region whose user address wraps around", region(R1[0], MIB, TOP - 4096, 0), NO),
    ("a region at an offset that is no page", region(R1[0], 4096, R1[2], 100), ANY),
    ("a region at an offset behind the file", region(R1[0], 4096, R1[2], 2 * MIB), NO),
    ("a region at offset 2^64 - 4096", region(R1[0], 8192, R1[2], TOP - 4096), NO),
    ("a region at offset 2^63", region(R1[0], 4096, R1[2], 1 << 63), NO),
    ("a region over another", region(REGIONS[0][0] + 4096, 4096, R1[2], 0), NO),
    ("a region around another", region(0, 1 << 30, R1[2], 0, size=1 << 30), NO),
    ("a region that is there", region(REGIONS[0][0], REGIONS[0][1], user_of(REGIONS[0][0]), 0, size=2 * MIB), NO),
    ("a region whose file is too small", small_file, NO),
    ("a region of /dev/null", region_of(null), NO),
    ("a region of a folder", region_of(a_folder), NO),
    ("a region of a socket", region_of(a_socket), NO),
    ("a region of an event", region_of(lambda: os.eventfd(0)), NO),
    ("a region that nobody may write to", region_of(lambda: os.open("/bin/sh", os.O_RDONLY)), NO),
    ("more regions than there are slots", too_many_slots, NO),
    ("removing what is not there", region(*R1, request=m.REM_MEM_REG), NO),
    ("removing half of a region", region(REGIONS[1][0], MIB, user_of(REGIONS[1][0]), 4096, request=m.REM_MEM_REG), NO),
    ("descriptors at a misaligned address", ring_at(desc=8), LATE),
    ("the available ring at an odd address", ring_at(avail=1), LATE),
    ("the used ring at a misaligned address", ring_at(used=2), LATE),
    ("descriptors outside memory", ring_at(desc=user_of(HOLE)), LATE),
    ("the available ring outside memory", ring_at(avail=user_of(HOLE)), LATE),
    ("the used ring outside memory", ring_at(used=user_of(HOLE)), LATE),
    ("descriptors over the end of a region", ring_at(desc=SECOND_END - 16), LATE),
    ("the available ring over the end", ring_at(avail=SECOND_END - 4), LATE),
    ("the used ring over the end", ring_at(used=SECOND_END - 4), LATE),
    ("descriptors that wrap around", ring_at(desc=TOP - 16), LATE),
    ("the used ring that wraps around", ring_at(used=TOP - 4), LATE),
    ("guest addresses for rings", ring_at(desc=REGIONS[1][0], used=REGIONS[1][0] + 4096, avail=REGIONS[1][0] + 8192),
     LATE),
    *[(f"a ring of {n}", ring_size(n), NO) for n in (0, 3, 127, 32769, 65535, 65536, 1 << 31)],
    ("another size for a ring that runs", while_running(m.SET_VRING_NUM, STATE(0, 2)), ANY),
    ("another position for a ring that runs", while_running(m.SET_VRING_BASE, STATE(0, 77)), ANY),
    ("no addresses for a ring that runs", while_running(m.SET_VRING_ADDR, m.VRING_ADDR.pack(0, 0, 0, 0, 0, 0)), ANY),
    ("stopping a ring twice", lambda v: v.message(m.GET_VRING_BASE, STATE(0, 0)) and
     v.message(m.GET_VRING_BASE, STATE(0, 0)), ANY),
    ("a position of 65536", base(65536), LATE),
    ("a position of 2^32 - 1", base(0xffffffff), LATE),
    ("a position far ahead of the index", base(0x9000), LATE),
    ("an address before memory", on_a_plain_client(
        (m.SET_VRING_NUM, STATE(0, 64), False),
        (m.SET_VRING_ADDR, m.VRING_ADDR.pack(0, 0, USER, USER, USER, 0), False)),
     LATE),
    ("a kick before an address", on_a_plain_client(
        (m.SET_VRING_KICK, U64(0), True), (m.SET_VRING_ENABLE, STATE(0, 1), False)), ANY),
    ("a ring without a size", on_a_plain_client((m.SET_VRING_KICK, U64(0), True)), ANY),
    ("stopping a ring that never was", on_a_plain_client((m.GET_VRING_BASE, STATE(0, 0), False)), ANY),
    ("enabling rings that never were", on_a_plain_client(
        (m.SET_VRING_ENABLE, STATE(0, 1), False), (m.SET_VRING_ENABLE, STATE(1, 1), False)), ANY),
    *[(f"{what} that is {name}", ring_file(request, open_file), ANY)
      for what, request in (("a kick", m.SET_VRING_KICK), ("a call", m.SET_VRING_CALL), ("an error event",
                                                                                         m.SET_VRING_ERR))
      for name, open_file in (("a file", lambda: memfd(8)), ("a folder", a_folder), ("/dev/null", null),
                              ("a full pipe", full_pipe), ("the end of a pipe", closed_pipe), ("a socket", a_socket),
                              ("an event that is full", full_event))],
    ("a log of size 0", log(0), ANY),
    ("a log that is smaller than memory", log(8), ANY),
    ("a log whose file is smaller", log(4096, file_size=8), NO),
    ("a log whose file is empty", log(4096, file_size=0), NO),
    ("a log of 2^64 - 1 bytes", log(TOP - 1, file_size=4096), NO),
    ("a log at an offset that is no page", log(4096, offset=3), ANY),
    ("a log at offset 2^64 - 4096", log(8192, offset=TOP - 4096, file_size=8192), NO),
    ("logging without a log", log_that_is_missing, ANY),
    ("a used ring's log address behind memory", log_address(1 << 40), ANY),
    ("a used ring's log address of 2^64 - 1", log_address(TOP - 1), ANY),
    ("inflight memory for no queues", get_inflight(0, 64), NO),
    ("inflight memory for 65535 queues", get_inflight(65535, 65535), NO),
    ("inflight memory for rings of 0", get_inflight(1, 0), NO),
    ("inflight memory for rings of 65535", get_inflight(1, 65535), ANY),
    ("inflight memory of eight bytes in all", lambda v: v.message(m.GET_INFLIGHT_FD, bytes(8)), NO),
    ("inflight memory that is too small", set_inflight(64, 0, QUEUES, 64), NO),
    ("inflight memory of size 0", set_inflight(0, 0, QUEUES, 64), NO),
    ("inflight memory of 2^64 - 1 bytes", set_inflight(TOP - 1, 0, QUEUES, 64), NO),
    ("inflight memory whose file is too small", set_inflight(1 << 16, 0, QUEUES, 64, file_size=4096), NO),
    ("inflight memory at an offset behind its file", set_inflight(4096, 1 << 20, QUEUES, 64), NO),
    ("inflight memory at offset 2^64 - 4096", set_inflight(8192, TOP - 4096, QUEUES, 64), NO),
    ("inflight memory of no queues", set_inflight(4096, 0, 0, 64), NO),
    ("inflight memory of 65535 queues", set_inflight(1 << 16, 0, 65535, 64), NO),
    ("inflight memory of rings of 0", set_inflight(4096, 0, QUEUES, 0), NO),
    ("inflight memory of rings of 65535", set_inflight(1 << 16, 0, QUEUES, 65535), NO),
    ("inflight memory full of ones", inflight_contents(ones), ANY),
    ("inflight memory full of noise", inflight_contents(garbage), ANY),
    ("inflight memory of another version", inflight_contents(noted(version=9)), ANY),
    ("inflight memory with another number of entries", inflight_contents(noted(number=0xffff, inflight=1)), ANY),
    ("inflight memory with a last head outside", inflight_contents(noted(last_batch_head=0xffff, used=3)), ANY),
    ("inflight memory with another used index", inflight_contents(noted(used=0x7777, inflight=1)), ANY),
    ("inflight memory with every head noted", inflight_contents(noted(inflight=1)), ANY),
    ("inflight memory with heads that are noted by 255", inflight_contents(noted(inflight=255, counter=TOP - 1)), ANY),
    ("inflight memory whose list is a loop", inflight_contents(noted(next=5, inflight=1, last_batch_head=5, used=9)),
     ANY),
]
