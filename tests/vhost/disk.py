# SPDX-License-Identifier: MIT
"""A virtio-blk driver on top of the front end: brings a device up, sends requests, checks what comes back."""

import os
import random
import struct
import time

import messages as m
from front_end import FrontEnd
from guest_rings import Memory, Region, Ring

MIB = 1 << 20
DEFAULT_REGIONS = ((0x10_0000, 24 * MIB, 0),)


class Request:
    """One virtio-blk request in guest memory, and how it ended."""

    def __init__(self, kind, sector, size):
        self.kind, self.sector, self.size = kind, sector, size
        self.header = []
        self.data = []
        self.status_at = 0
        self.taken = []
        self.written = None
        self.status = None
        self.bytes = b""
        self.started = 0


def pieces(size, cuts):
    """[(offset, length)] of size bytes cut at these offsets."""
    edges = [0, *sorted(set(c for c in cuts if 0 < c < size)), size]
    return [(a, b - a) for a, b in zip(edges, edges[1:]) if b > a]


class Disk:
    """A device as a guest has it. A queue is one thread's; messages are one thread's too."""

    def __init__(self, path, queues=1, ring_size=128, regions=DEFAULT_REGIONS, features=m.FEATURES,
                 protocol=m.PROTOCOL_FEATURES, base=0, slots=False, inflight=False, front=FrontEnd):
        self.path, self.wanted, self.protocol, self.slots = path, features, protocol, slots
        self.front_end = front
        self.memory = Memory(Region(*r) for r in regions)
        self.rings = []
        self.flying = [{} for _ in range(queues)]
        self.inflight = self.front = None
        try:
            self._connect()
            event_idx = m.has(self.features, m.EVENT_IDX)
            self.rings += [Ring(self.memory, index, ring_size, event_idx, base) for index in range(queues)]
            if inflight:
                self.inflight = (*self.front.get_inflight_fd(queues, ring_size), queues, ring_size)
                self.front.set_inflight_fd(*self.inflight)
            for ring in self.rings:
                self.start(ring, base)
            self._driver_ok()
        except BaseException:
            self.close()
            raise

    def _connect(self):
        """Everything up to the rings."""
        f = self.front = self.front_end(self.path)
        self.offered = f.get_features()
        self.features = self.offered & self.wanted
        if m.has(self.features, m.F_PROTOCOL_FEATURES):
            f.negotiate_protocol(self.protocol)
        f.set_owner()
        f.set_features(self.features)
        if self.slots:
            for region in self.memory.regions:
                f.add_mem_reg(region)
        else:
            f.set_mem_table(self.memory.regions)

    def _driver_ok(self):
        if self.front.can(m.STATUS):
            self.front.set_status(0x0f)

    def reconnect(self, enable=True):
        """To another server, with rings and memory as they are. It learns from the inflight memory which
        requests the one before had taken and not ended."""
        self.front.close()
        self._connect()
        if self.inflight:
            self.front.set_inflight_fd(*self.inflight)
        for ring in self.rings:
            # Which is what a hypervisor knows.
            self.start(ring, ring.used_index(), enable)
            os.eventfd_write(ring.kick, 1)
        self._driver_ok()

    def start(self, ring, base=0, enable=True):
        f = self.front
        f.set_vring_num(ring.index, ring.size)
        f.set_vring_base(ring.index, base)
        f.set_vring_addr(ring, ring.used if m.has(self.features, m.LOG_ALL) else None)
        f.set_vring_fd(m.SET_VRING_CALL, ring.index, ring.call)
        f.set_vring_fd(m.SET_VRING_ERR, ring.index, ring.err)
        f.set_vring_fd(m.SET_VRING_KICK, ring.index, ring.kick)
        if enable and m.has(self.features, m.F_PROTOCOL_FEATURES):
            f.set_vring_enable(ring.index)

    def close(self):
        if self.front:
            self.front.close()
        for ring in self.rings:
            ring.close()
        self.rings = []
        for region in self.memory.regions:
            region.close()
        if self.inflight:
            os.close(self.inflight[0])
            self.inflight = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def sectors(self):
        return m.config_field(self.front.get_config(), "capacity")

    # ---- requests ------------------------------------------------------------------------------------

    def _place(self, request, size, align=1, region=None):
        address = self.memory.take(size, align, region)
        request.taken.append((address, size))
        return address

    def _scatter(self, request, size, cuts, rng):
        """Places for size bytes, cut; with rng each piece in a region of its own choice."""
        result = []
        for _, length in pieces(size, cuts):
            region = rng.choice(self.memory.regions) if rng else None
            result.append((self._place(request, length, 1 if rng else 16, region), length))
        return result

    def make(self, kind, sector=0, data=b"", size=0, header_cuts=(), data_cuts=(), rng=None):
        """A request with its bytes in memory. data: what the server reads; size: how much it is to write."""
        request = Request(kind, sector, size or len(data))
        request.header = self._scatter(request, m.REQUEST_HEAD.size, header_cuts, rng)
        self._fill(request.header, m.REQUEST_HEAD.pack(kind, 0, sector))
        if request.size:
            request.data = self._scatter(request, request.size, data_cuts, rng)
            self._fill(request.data, data if data else bytes([0xdd]) * size)
        request.status_at = self._place(request, 1)
        self.memory.write(request.status_at, bytes([m.S_UNTOUCHED]))
        return request

    def _fill(self, places, data):
        done = 0
        for address, length in places:
            self.memory.write(address, data[done:done + length])
            done += length

    def submit(self, request, queue=0, indirect=False, merge=False, publish=True):
        """merge: neighbours of one kind share a descriptor: the header and what is written, or data read and
        the status. They have to be moved for that, so it is done for whole buffers only."""
        reads = request.kind in (m.T_IN, m.T_GET_ID)
        buffers = [(a, n, False) for a, n in request.header]
        if merge and len(request.header) == 1:
            buffers = self._merged(request, reads)
        else:
            buffers += [(a, n, reads) for a, n in request.data] + [(request.status_at, 1, True)]
        ring = self.rings[queue]
        head = ring.add(buffers, indirect)
        self.flying[queue][head] = request
        request.started = time.monotonic()
        if publish:
            ring.publish()
        return head

    def _merged(self, request, reads):
        size = request.size
        if reads:
            at = self._place(request, size + 1)
            request.data, request.status_at = [(at, size)], at + size
            self.memory.write(at, bytes([0xdd]) * size + bytes([m.S_UNTOUCHED]))
            return [(request.header[0][0], 16, False), (at, size + 1, True)]
        at = self._place(request, 16 + size)
        head = m.REQUEST_HEAD.pack(request.kind, 0, request.sector)
        self.memory.write(at, head + self.collect(request.data))
        return [(at, 16 + size, False), (request.status_at, 1, True)]

    def collect(self, places):
        return b"".join(self.memory.read(a, n) for a, n in places)

    def finish(self, queue, head, written):
        """Take a completed request's result out of memory and give the memory back."""
        request = self.flying[queue].pop(head)
        request.written = written
        request.status = self.memory.read(request.status_at, 1)[0]
        if request.kind in (m.T_IN, m.T_GET_ID):
            request.bytes = self.collect(request.data)
        for address, size in request.taken:
            self.memory.give(address, size)
        return request

    def completed(self, queue=0, timeout=20):
        """Requests that have completed since; waits for at least one, if there are any in flight."""
        ring = self.rings[queue]
        done = ring.wait(timeout)
        if not done:
            oldest = min((r.started for r in self.flying[queue].values()), default=0)
            raise TimeoutError(f"queue {queue}: {len(self.flying[queue])} requests in flight, the oldest for "
                               f"{time.monotonic() - oldest:.1f} s")
        return [self.finish(queue, head, written) for head, written in done]

    def drain(self, queue=0):
        """All that is in flight."""
        done = []
        while self.flying[queue]:
            done += self.completed(queue)
        return done

    def do(self, request, queue=0, **how):
        """Send one request and wait for it, and for it alone."""
        self.submit(request, queue, **how)
        done = self.drain(queue)
        if done != [request]:
            raise AssertionError(f"{len(done)} requests completed instead of one")
        return request

    def read(self, sector, count, queue=0):
        return self.must(self.do(self.make(m.T_IN, sector, size=count * m.SECTOR), queue)).bytes

    def write(self, sector, data, queue=0):
        self.must(self.do(self.make(m.T_OUT, sector, data), queue))

    def flush(self, queue=0):
        self.must(self.do(self.make(m.T_FLUSH), queue))

    def segments(self, kind, *segments):
        """A discard or write zeroes request of (sector, count, flags)s."""
        return self.make(kind, 0, b"".join(m.SEGMENT.pack(*s) for s in segments))

    def discard(self, sector, count, queue=0):
        self.must(self.do(self.segments(m.T_DISCARD, (sector, count, 0)), queue))

    def zero(self, sector, count, unmap=False, queue=0):
        self.must(self.do(self.segments(m.T_WRITE_ZEROES, (sector, count, m.UNMAP if unmap else 0)), queue))

    def get_id(self, queue=0):
        return self.must(self.do(self.make(m.T_GET_ID, size=m.ID_BYTES), queue)).bytes

    @staticmethod
    def must(request):
        if request.status != m.S_OK:
            raise AssertionError(f"request of kind {request.kind} at sector {request.sector}, {request.size} "
                                 f"bytes: status {request.status:#x}")
        return request

    def whole(self, start=0, end=None):
        """All bytes from one sector to another, in large reads."""
        end = self.sectors if end is None else end
        return b"".join(self.read(at, min(2048, end - at)) for at in range(start, end, 2048))


class Model:
    """What the disk has to contain."""

    def __init__(self, size, data=None):
        self.bytes = bytearray(data) if data is not None else bytearray(size)

    def sectors(self):
        return len(self.bytes) // m.SECTOR

    def write(self, sector, data):
        self.bytes[sector * m.SECTOR:sector * m.SECTOR + len(data)] = data

    def read(self, sector, count):
        return bytes(self.bytes[sector * m.SECTOR:(sector + count) * m.SECTOR])

    def zero(self, sector, count):
        self.write(sector, bytes(count * m.SECTOR))

    def difference(self, other):
        """Where the first difference is, in words; empty when there is none."""
        if bytes(self.bytes) == bytes(other):
            return ""
        if len(other) != len(self.bytes):
            return f"{len(other)} bytes instead of {len(self.bytes)}"
        at = next(i for i, (a, b) in enumerate(zip(self.bytes, other)) if a != b)
        count = sum(self.read(i, 1) != other[i * 512:i * 512 + 512] for i in range(self.sectors()))
        return (f"sector {at // 512}, byte {at % 512}: {other[at]:#x} instead of {self.bytes[at]:#x}; "
                f"{count} sectors differ")


def random_cuts(rng: random.Random, size, most=6):
    return [rng.randrange(1, size) for _ in range(rng.randrange(most))] if size > 1 else []


def stamp(rng, sector, count):
    """Bytes that tell which sector they were written to."""
    return b"".join(struct.pack("<QQ", sector + i, rng.getrandbits(64)) * 32 for i in range(count))


def open_fds():
    return len(os.listdir("/proc/self/fd"))
