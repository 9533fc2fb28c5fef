# SPDX-License-Identifier: MIT
"""Clients of the vhost-user-blk server that go wrong at random: good messages and rings with some bytes changed.

The aftermath of each is that of hostile_test.py: the server is there, a good client is served, every byte of the
disk is what it was, nothing is left over. --seconds says how long; a round's seed repeats that round.
"""

import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import messages as m                                                                   # noqa: E402
import servers                                                                         # noqa: E402
from disk import Disk                                                                  # noqa: E402
from front_end import Closed, NoReply, send_bytes                                      # noqa: E402
from servers import harness                                                            # noqa: E402
from victim import DISK_BYTES, QUEUES, REGIONS, RING, Aftermath, Victim                # noqa: E402

# Numbers that are near some limit.
EDGES = (0, 1, 2, 7, 8, 15, 16, 63, 64, 65, 127, 128, 255, 256, 511, 512, 513, 4095, 4096, 0x7fff, 0x8000, 0xffff,
         0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 1 << 63, (1 << 64) - 1)
# A client that writes could put anything anywhere, so these only read, and are refused what they write.
HARMLESS = (m.T_IN, m.T_FLUSH, m.T_GET_ID)


def mutated(rng, data, most=3):
    """These bytes with a few changed: bits, bytes, whole numbers."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, most + 1)):
        if not data:
            break
        at = rng.randrange(len(data))
        how = rng.randrange(3)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.randrange(256)
        else:
            width = rng.choice((1, 2, 4, 8))
            at -= at % width
            data[at:at + width] = (rng.choice(EDGES) % (1 << 8 * width)).to_bytes(width, "little")[:len(data) - at]
    return bytes(data)


class Liar:
    """A socket that changes some of what is sent through it."""

    def __init__(self, sock, rng, chance):
        self.sock, self.rng, self.chance = sock, rng, chance

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def _spoil(self, data):
        return mutated(self.rng, data) if self.rng.random() < self.chance else data

    def send(self, data):
        spoiled = self._spoil(data)
        self.sock.sendall(spoiled)
        return len(data)

    def sendmsg(self, buffers, *rest):
        data = b"".join(buffers)
        self.sock.sendmsg([self._spoil(data)], *rest)
        return len(data)


def messages_go_wrong(v, rng):
    """The messages that bring a device up and down, some of them spoiled, some twice, some left out."""
    f = v.front
    f.sock.settimeout(0.2)
    f.sock = Liar(f.sock, rng, rng.choice((0.02, 0.1, 0.5)))
    v.disk = d = Disk.__new__(Disk)
    prepare(d, v, f)
    steps = [lambda: f.set_mem_table(d.memory.regions), lambda: d.start(d.rings[0]), lambda: d.start(d.rings[1]),
             lambda: f.get_config(), lambda: f.get_vring_base(rng.randrange(QUEUES)), f.get_features,
             lambda: f.set_config(m.WCE_OFFSET, bytes([rng.randrange(2)])), f.get_max_mem_slots, f.get_status,
             lambda: f.set_status(rng.randrange(16)), lambda: f.rem_mem_reg(d.memory.regions[1]),
             lambda: f.add_mem_reg(d.memory.regions[1]), f.reset_device,
             lambda: os.close(f.get_inflight_fd(QUEUES, RING)[0]), lambda: log(f), lambda: reads(d, rng),
             lambda: send_bytes(f.sock, rng.randbytes(rng.randrange(40)))]
    for step in [*steps[:3], *rng.choices(steps, k=rng.randrange(20))]:
        try:
            step()
        except (Closed, OSError):
            break
        except (NoReply, AssertionError, servers.disk.Refused if False else Exception):
            continue


def log(f):
    fd = os.memfd_create("log")
    os.ftruncate(fd, 1 << 16)
    try:
        f.set_log_base(fd, 1 << 16)
    finally:
        os.close(fd)


def reads(d, rng):
    """Some requests that change nothing, not waited for."""
    for ring in d.rings:
        if len(ring.free) > 8:
            d.submit(d.make(m.T_IN, rng.randrange(1000), size=512 * rng.randrange(1, 9)), ring.index,
                     indirect=rng.random() < 0.5)


def prepare(d, v, f):
    """A disk of which nothing has been said to the server."""
    d.front, d.path, d.features, d.rings, d.inflight = f, v.path, f.features, [], None
    d.memory = servers_memory()
    d.flying = [{} for _ in range(QUEUES)]
    d.rings = [new_ring(d, i) for i in range(QUEUES)]


def servers_memory():
    return Memory(Region(*r) for r in REGIONS)


def new_ring(d, index):
    return Ring(d.memory, index, RING, True)


def rings_go_wrong(v, rng):
    """Requests that read, and guest memory in which descriptors, rings and headers change meanwhile."""
    d = v.d
    for _ in range(rng.randrange(1, 12)):
        kind = rng.choice(HARMLESS)
        size = {m.T_IN: 512 * rng.randrange(1, 17), m.T_GET_ID: 20}.get(kind, 0)
        request = d.make(kind, rng.randrange(4000), size=size)
        if len(d.rings[0].free) < 8:
            break
        d.submit(request, indirect=rng.random() < 0.5, publish=False)
    spoil(d, rng)
    d.rings[0].publish(kick=True)
    for _ in range(rng.randrange(4)):
        spoil(d, rng)
        os.eventfd_write(d.rings[0].kick, 1)
    v.hears(rng.choice((0, 0.002, 0.02)))


def spoil(d, rng):
    """Some bytes of what the server reads; never a header's type, which could turn a read into a write."""
    ring = d.rings[0]
    for _ in range(rng.randrange(1, 5)):
        at, size = rng.choice(((ring.desc + 16 * rng.randrange(ring.size // 2, ring.size), 16), (ring.avail, 4),
                               (ring.avail + 4, 2 * ring.size), (ring.used, 4)))
        d.memory.write(at, mutated(rng, d.memory.read(at, size), 2))
