# SPDX-License-Identifier: MIT
"""What changes while a vhost-user-blk server works: rings that stop and start, memory that comes and goes,
the log of pages that migration needs, the size.
"""

import mmap
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import messages as m                                                                   # noqa: E402
import servers                                                                         # noqa: E402
from disk import MIB, Disk, Model, stamp                                               # noqa: E402
from guest_rings import Region                                                               # noqa: E402
from load import Load, on_threads                                                      # noqa: E402

PAGE = 4096
CASES = []


def case(function):
    CASES.append(function)
    return function


@case
def rings_stop_and_start(b, **how):
    """GET_VRING_BASE with requests in flight: what was taken has completed, the rest waits for the restart."""
    b.make_image()
    b.serve(queues=2, **how)
    model = Model(8 * MIB)
    with Disk(b.server.path, queues=2, ring_size=256) as d:
        load = Load(d, 0, b.rng.getrandbits(64), model, 0, 8192, 32)
        other = Load(d, 1, b.rng.getrandbits(64), model, 8192, 16384, 8)
        ring, wrong = d.rings[0], []
        for _ in range(20 if b.options.quick else 60):
            load.send(32)
            other.send(8)
            base = d.front.get_vring_base(0)
            if base != ring.used_index():
                wrong.append(f"the ring stopped at {base}, and {ring.used_index()} is used")
            load.poll()
            if (ring.published - base & 0xffff) != len(d.flying[0]):
                wrong.append(f"{len(d.flying[0])} in flight, {ring.published - base & 0xffff} not taken")
            other.poll()
            d.start(ring, base)
            os.eventfd_write(ring.kick, 1)
            if b.rng.random() < 0.5:
                load.drain()
        load.drain()
        other.drain()
        b.ours(not wrong, "all that was taken has completed when a ring stops", "\n".join(wrong))
        b.check(not load.wrong + other.wrong, "requests", "\n".join(load.wrong + other.wrong))
        b.check(not model.difference(d.whole()), "the whole disk")
    b.stop()
    b.verify(model)


@case
def rings_stop_and_start_pinned(b):
    rings_stop_and_start(b, pin=True)


@case
def rings_can_be_disabled(b):
    b.make_image()
    b.serve()
    with Disk(b.server.path) as d:
        d.write(0, b"\3" * 512)
        if b.server.qemu:
            b.skip("QEMU's server takes no notice")
            return
        d.front.set_vring_enable(0, False)
        request = d.make(m.T_IN, 0, size=512)
        d.submit(request)
        b.equal(d.rings[0].wait(0.3), [], "nothing runs on a disabled ring")
        d.front.set_vring_enable(0, True)
        os.eventfd_write(d.rings[0].kick, 1)
        d.drain()
        b.equal(request.bytes, b"\3" * 512, "it goes on when it is enabled")
    b.stop()


def read_into(d, queue, sector, at, size, status_at=None):
    """A read whose data goes to a given guest address."""
    request = d.make(m.T_IN, sector)
    request.size, request.data = size, [(at, size)]
    if status_at is not None:
        d.memory.write(status_at, bytes([m.S_UNTOUCHED]))
        request.status_at = status_at
    d.submit(request, queue)
    return request


@case
def memory_in_slots(b, **how):
    """Regions one by one from the start, then more and fewer while another queue is busy."""
    b.make_image()
    b.serve(queues=2, **how)
    model = Model(8 * MIB)
    with Disk(b.server.path, queues=2, slots=True) as d:
        if not d.front.can(m.CONFIGURE_MEM_SLOTS):
            b.skip("no CONFIGURE_MEM_SLOTS")
            return
        data = stamp(b.rng, 0, 64)
        d.write(0, data)
        model.write(0, data)
        busy = Load(d, 1, b.rng.getrandbits(64), model, 8192, 16384, 16)
        running = [True]

        def come_and_go():
            wrong = []
            try:
                for i in range(20 if b.options.quick else 60):
                    r = Region(0x2_0000_0000 + i % 3 * MIB, MIB, offset=i % 2 * PAGE)
                    d.memory.regions.append(r)
                    d.front.add_mem_reg(r)
                    read_into(d, 0, 0, r.guest + 512 * i, 64 * 512)
                    got = d.must(d.completed(0)[0])
                    if got.bytes != data:
                        wrong.append(f"region {i}: not what is on the disk")
                    d.front.rem_mem_reg(r)
                    d.memory.regions.remove(r)
                    r.close()
            finally:
                running[0] = False
            return wrong

        wrong = on_threads([come_and_go, lambda: busy.run(1 << 30, lambda: running[0])])
        b.check(not wrong, "regions come and go", "\n".join(wrong))
        b.check(busy.ended > 0, f"meanwhile {busy.ended} requests on the other queue")
        b.equal(d.read(0, 64), data, "the first region is still there")
    b.stop()
    b.verify(model)


@case
def memory_in_slots_pinned(b):
    memory_in_slots(b, pin=True)


@case
def all_slots(b, **how):
    """As many regions as the server says it takes."""
    b.make_image()
    b.serve(**how)
    with Disk(b.server.path) as d:
        count = min(d.front.get_max_mem_slots(), 64) if d.front.can(m.CONFIGURE_MEM_SLOTS) else 8
    slots = tuple((0x1000_0000 * (i + 1), 2 * MIB if not i else PAGE, 0) for i in range(count))
    with Disk(b.server.path, regions=slots, slots=count > 8) as d:
        d.write(5, b"\x2a" * 512)
        for region in d.memory.regions[1:]:
            read_into(d, 0, 5, region.guest, 512)
            got = d.completed(0)[0]
            if got.status != m.S_OK or got.bytes != b"\x2a" * 512:
                b.check(False, f"the region at {region.guest:#x}", got.status)
        b.check(count >= 8, f"{count} regions")
    b.stop()


@case
def all_slots_pinned(b):
    all_slots(b, pin=True)


@case
def a_new_memory_table(b, **how):
    """SET_MEM_TABLE while rings run: old regions stay where they are, there is one more."""
    b.make_image()
    b.serve(queues=2, **how)
    model = Model(8 * MIB)
    with Disk(b.server.path, queues=2) as d:
        data = stamp(b.rng, 0, 8)
        d.write(0, data)
        model.write(0, data)
        busy = Load(d, 1, b.rng.getrandbits(64), model, 8192, 16384, 16)
        wrong = []
        for i in range(10):
            # QEMU's server does not take a table with requests in flight.
            if not b.server.qemu:
                busy.send(16)
            r = Region(0x2_0000_0000 + i % 2 * MIB, MIB)
            d.front.set_mem_table([*d.memory.regions, r])
            d.memory.regions.append(r)
            request = read_into(d, 0, 0, r.guest, 8 * 512)
            d.drain(0)
            if request.status != m.S_OK or request.bytes != data:
                wrong.append(f"table {i}: status {request.status:#x}")
            busy.drain()
            d.memory.regions.pop()
            d.front.set_mem_table(d.memory.regions)
            r.close()
        b.check(not wrong + busy.wrong, "tables", "\n".join(wrong + busy.wrong))
    b.stop()
    b.verify(model)


@case
def a_new_memory_table_pinned(b):
    a_new_memory_table(b, pin=True)


class DirtyLog:
    """Memory that a server marks pages in."""

    def __init__(self, memory, offset=0):
        last = max(r.guest + r.size for r in memory.regions)
        self.size, self.offset = -(-last // PAGE // 8 // PAGE) * PAGE, offset
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + self.size)
        self.map = mmap.mmap(self.fd, offset + self.size)

    def pages(self):
        return {8 * i + bit for i, byte in enumerate(self.map[self.offset:]) if byte
                for bit in range(8) if byte >> bit & 1}

    def clear(self):
        self.map[self.offset:] = bytes(self.size)


def pages_of(address, size):
    return set(range(address // PAGE, (address + size - 1) // PAGE + 1))


def start_log(d, log):
    """As a hypervisor does it, with the rings running."""
    d.front.set_log_base(log.fd, log.size, log.offset)
    d.features |= 1 << m.LOG_ALL
    d.front.set_features(d.features)
    for ring in d.rings:
        d.front.set_vring_addr(ring, ring.used)


def logged_reads(b, d, log, count, data_region, status_region, wanted):
    """Reads of any size to places that nobody else writes to. Pages that they were to touch."""
    touched, before = set(), {r: bytes(r.view) for r in (data_region, status_region)}
    at = data_region.guest + b.rng.randrange(PAGE)
    for i in range(count):
        size = 512 * b.rng.choice((1, 1, 3, 8, 9, 40))
        if at + size > data_region.guest + data_region.size:
            break
        status_at = status_region.guest + (i * 5 * PAGE + b.rng.randrange(PAGE)) % status_region.size
        queue = i % len(d.rings)
        touched |= pages_of(at, size) | pages_of(status_at, 1)
        read_into(d, queue, b.rng.randrange(2000), at, size, status_at)
        at += size + b.rng.choice((0, 1, PAGE, 5 * PAGE))
        if i % 16 == 15:
            for q in range(len(d.rings)):
                d.drain(q)
    for q in range(len(d.rings)):
        d.drain(q)
    used = {p for ring in d.rings for p in pages_of(ring.used, 6 + 8 * ring.size)}
    dirty = log.pages()
    b.equal(sorted(dirty - used), sorted(touched), f"{wanted}: pages of data and status")
    for ring in d.rings:
        b.check(ring.used // PAGE in dirty, f"{wanted}: the used ring of queue {ring.index}")
    changed = {(r.guest + i) // PAGE for r, old in before.items()
               for i in range(0, r.size, PAGE) if r.view[i:i + PAGE] != old[i:i + PAGE]}
    b.check(changed <= dirty, f"{wanted}: no changed page is missing", sorted(changed - dirty))


@case
def dirty_log(b):
    b.make_image()
    servers.must(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 2M", b.image])
    b.serve(queues=2)
    # Rings and headers, data, status; one region does not start at a multiple of eight pages.
    regions = ((0x10_0000, 4 * MIB, 0), (0x4000_3000, 8 * MIB, PAGE), (0x1_0000_0000, MIB, 0))
    with Disk(b.server.path, queues=2, regions=regions) as d:
        if not m.has(d.offered, m.LOG_ALL) or not d.front.can(m.LOG_SHMFD):
            b.skip("no dirty log")
            return
        _, data, status = d.memory.regions
        log = DirtyLog(d.memory, PAGE)
        read_into(d, 0, 0, data.guest, 4096)
        d.drain()
        b.equal(log.pages(), set(), "nothing before it is on")
        start_log(d, log)
        logged_reads(b, d, log, 150, data, status, "first log")
        log.clear()
        logged_reads(b, d, log, 40, data, status, "cleared")
        # A write reads guest memory: of that only the status is marked.
        log.clear()
        request = d.make(m.T_OUT, 0)
        request.size, request.data, request.status_at = 65536, [(data.guest, 65536)], status.guest + 5
        d.submit(request)
        d.drain()
        b.equal(sorted(p for p in log.pages() if p >= data.guest // PAGE), [status.guest // PAGE], "a write")
        second = DirtyLog(d.memory)
        d.front.set_log_base(second.fd, second.size, 0)
        log.clear()
        logged_reads(b, d, second, 40, data, status, "another log")
        b.equal(log.pages(), set(), "the log before is left alone")
        second.clear()
        d.features = m.without(d.features, m.LOG_ALL)
        d.front.set_features(d.features)
        for ring in d.rings:
            d.front.set_vring_addr(ring)
        read_into(d, 0, 0, data.guest, 4096)
        d.drain()
        b.equal(second.pages(), set(), "nothing after it is off")
    b.stop()


@case
def dirty_log_starts_under_load(b):
    """Logging begins and ends while requests run; those sent afterwards are logged."""
    b.make_image()
    b.serve(queues=2)
    model = Model(8 * MIB)
    with Disk(b.server.path, queues=2) as d:
        if not m.has(d.offered, m.LOG_ALL) or not d.front.can(m.LOG_SHMFD):
            b.skip("no dirty log")
            return
        busy = Load(d, 1, b.rng.getrandbits(64), model, 8192, 16384, 16)
        wrong = []
        for i in range(10):
            busy.send(16)
            log = DirtyLog(d.memory)
            start_log(d, log)
            at = d.memory.take(3 * PAGE, PAGE)
            read_into(d, 0, 0, at, 3 * PAGE)
            d.drain(0)
            missing = pages_of(at, 3 * PAGE) - log.pages()
            if missing:
                wrong.append(f"round {i}: {len(missing)} pages are not marked")
            d.memory.give(at, 3 * PAGE)
            busy.drain()
            d.features = m.without(d.features, m.LOG_ALL)
            d.front.set_features(d.features)
        b.check(not wrong + busy.wrong, "pages", "\n".join(wrong + busy.wrong))
    b.stop()
    b.verify(model)


@case
def resize_while_connected(b):
    b.make_image()
    b.serve()
    model = Model(16 * MIB)
    with Disk(b.server.path) as d:
        if not d.front.can(m.BACKEND_REQ):
            b.skip("no BACKEND_REQ")
            return
        d.front.open_back_channel()
        d.write(0, b"\1" * 512)
        b.server.resize(16 * MIB)
        b.equal(d.front.back_message(), m.BACKEND_CONFIG_CHANGE_MSG, "CONFIG_CHANGE_MSG")
        b.equal(d.sectors, 16 * MIB // 512, "the capacity")
        d.write(d.sectors - 1, b"\2" * 512)
        model.write(0, b"\1" * 512)
        model.write(d.sectors - 1, b"\2" * 512)
        b.check(not model.difference(d.whole()), "the whole disk")
    b.stop()
    b.verify(model)


if __name__ == "__main__":
    servers.main(__doc__, CASES)
