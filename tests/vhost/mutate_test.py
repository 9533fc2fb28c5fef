# SPDX-License-Identifier: MIT
"""Clients of the vhost-user-blk server that go wrong at random: messages and rings with some bytes changed.

The aftermath of each is that of hostile_test.py: the server is there, a good client is served, every byte of
the disk is what it was, nothing is left over. --seconds says how long; --seed and --round repeat a round.
"""

import os
import random
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import messages as m                                                                   # noqa: E402
import servers                                                                         # noqa: E402
from disk import Disk                                                                  # noqa: E402
from front_end import Closed, FrontEnd, NoReply, Refused, send_bytes                   # noqa: E402
from servers import harness                                                            # noqa: E402
from victim import DISK_BYTES, QUEUES, REGIONS, RING, Aftermath, Victim                # noqa: E402

# Numbers that are near some limit.
EDGES = (0, 1, 2, 7, 8, 15, 16, 63, 64, 65, 127, 128, 255, 256, 511, 512, 513, 4095, 4096, 0x7fff, 0x8000,
         0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 1 << 63, (1 << 64) - 1)
# A client that writes could put anything anywhere, so these only read.
HARMLESS = (m.T_IN, m.T_FLUSH, m.T_GET_ID)
REPLY_S = 0.2


class Broken(Exception):
    """A queue that is not at fault does not work."""


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


class SpoiledFrontEnd(FrontEnd):
    """Sends what it is told to, most of the time."""

    def __init__(self, path, rng):
        super().__init__(path, REPLY_S)
        self.sock = Liar(self.sock, rng, rng.choice((0.01, 0.05, 0.3)))


def log(f):
    fd = os.memfd_create("log", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 16)
    try:
        f.set_log_base(fd, 1 << 16)
    finally:
        os.close(fd)


def messages_go_wrong(v, rng):
    """The messages that bring a device up, then others in any order, some of each spoiled."""
    v.disk = d = Disk(v.path, queues=QUEUES, ring_size=RING, regions=REGIONS, slots=rng.random() < 0.3,
                      inflight=rng.random() < 0.3, front=lambda path: SpoiledFrontEnd(path, rng))
    f, second = d.front, d.memory.regions[1]
    steps = [lambda: f.set_mem_table(d.memory.regions), lambda: d.start(rng.choice(d.rings)),
             lambda: f.get_config(), lambda: f.get_vring_base(rng.randrange(QUEUES)), f.get_features,
             lambda: f.set_config(m.WCE_OFFSET, bytes([rng.randrange(2)])), f.get_max_mem_slots, f.get_status,
             lambda: f.set_status(rng.randrange(16)), lambda: f.rem_mem_reg(second),
             lambda: f.add_mem_reg(second), f.reset_device, lambda: log(f),
             lambda: f.set_features(d.features | 1 << m.LOG_ALL),
             lambda: reads(d, rng, rng.randrange(QUEUES)).publish(),
             lambda: send_bytes(f.sock, rng.randbytes(rng.randrange(40)))]
    for step in rng.choices(steps, k=rng.randrange(20)):
        try:
            step()
        except Refused:
            pass


def reads(d, rng, queue):
    """Some requests that change nothing, not waited for."""
    ring = d.rings[queue]
    for _ in range(rng.randrange(1, 12)):
        if len(ring.free) < 8:
            break
        kind = rng.choice(HARMLESS)
        size = {m.T_IN: 512 * rng.randrange(1, 17), m.T_GET_ID: m.ID_BYTES}.get(kind, 0)
        request = d.make(kind, rng.randrange(4000), size=size)
        d.submit(request, queue, rng.random() < 0.5, publish=False)
    return ring


def rings_go_wrong(v, rng):
    """Requests that read, and guest memory in which descriptors and indexes change, before and meanwhile."""
    ring = reads(v.d, rng, 0)
    spoil(v.d, rng, ring)
    ring.publish(kick=True)
    for _ in range(rng.randrange(4)):
        spoil(v.d, rng, ring)
        os.eventfd_write(ring.kick, 1)
    v.hears(rng.choice((0, 0.002, 0.02)))
    wrong = v.other_queue_works()
    if wrong:
        raise Broken(wrong)


def spoil(d, rng, ring):
    """Some bytes of what the server reads; never a header, which would turn a read into a write."""
    for _ in range(rng.randrange(1, 5)):
        descriptor = ring.desc + 16 * rng.randrange(ring.size // 2, ring.size)
        at, size = rng.choice(((descriptor, 16), (ring.avail, 4), (ring.avail + 4, 2 * ring.size),
                               (ring.used, 4)))
        d.memory.write(at, mutated(rng, d.memory.read(at, size), 2))


def one_round(bench, aftermath, rng):
    """What is wrong after one bad client; empty if nothing is."""
    v = Victim(bench.server, rng, aftermath.model)
    try:
        rng.choice((messages_go_wrong, rings_go_wrong))(v, rng)
    except (Refused, Closed, NoReply, OSError, AssertionError, struct.error):
        # Whatever a spoiled message is answered with.
        pass
    except (Broken, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        v.close()
    return aftermath.complaint()


def main():
    p = servers.add_options(harness.parser(__doc__))
    p.add_argument("--seconds", type=float, default=15)
    p.add_argument("--round", type=int, default=0, help="the round to begin with")
    options = p.parse_args()
    harness.start(options)
    servers.skip_without_server(options)
    results = harness.Results()

    def mutations(bench):
        bench.make_image(DISK_BYTES)
        bench.serve(queues=QUEUES)
        aftermath = Aftermath(bench.server, bench.rng)
        aftermath.complaint()
        end, number, wrong = time.monotonic() + options.seconds, options.round, ""
        while not wrong and time.monotonic() < end:
            rng = random.Random(f"{options.seed} {number}")
            wrong = one_round(bench, aftermath, rng)
            number += 1
        bench.check(not wrong, f"{number - options.round} rounds",
                    f"--seed {options.seed} --round {number - 1}: {wrong}\n{bench.server.stderr()[-600:]}")
        bench.stop()
        bench.verify(aftermath.model)

    servers.run_cases(options, results, [mutations])
    results.finish()


if __name__ == "__main__":
    main()
