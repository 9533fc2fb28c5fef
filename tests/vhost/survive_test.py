# SPDX-License-Identifier: MIT
"""A vhost-user-blk server that is killed: what it had acknowledged is in the file, and the next one takes up
what it had not, by the memory in which requests in flight are noted.

SIGKILL leaves the page cache, so this shows that metadata and data are in the file and in order, not that
they are on the disk.
"""

import os
import re
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import messages as m                                                                   # noqa: E402
import servers                                                                         # noqa: E402
from disk import MIB, Disk, Model, stamp                                               # noqa: E402
from load import Load                                                                  # noqa: E402

CASES = []


def case(function):
    CASES.append(function)
    return function


def inflight_entries(d, queue):
    """(used index, heads that are noted) of a queue's part of the inflight memory."""
    fd, length, offset, queues, size = d.inflight
    part = length // queues
    data = os.pread(fd, part, offset + queue * part)
    entries = [m.INFLIGHT_ENTRY.unpack_from(data, m.INFLIGHT_HEAD.size + i * m.INFLIGHT_ENTRY.size)
               for i in range(size)]
    return m.INFLIGHT_HEAD.unpack_from(data)[4], [i for i, entry in enumerate(entries) if entry[0]]


def rounds(b):
    return 8 if b.options.quick else 25


def killed_under_load(b, zeroes, before=b"\7", **how):
    """Killed again and again; every head that was sent completes once, with the right content."""
    b.serve(queues=2, **how)
    model = Model(16 * MIB, before * 16 * MIB)
    d = Disk(b.server.path, queues=2, ring_size=256, inflight=b.options.server == "shardcow")
    with d:
        if not d.inflight:
            b.skip("QEMU's server has no INFLIGHT_SHMFD")
            return
        loads = [Load(d, q, b.rng.getrandbits(64), model, q * 16384, (q + 1) * 16384, 32, zeroes)
                 for q in range(2)]
        noted = 0
        for _ in range(rounds(b)):
            deadline = time.monotonic() + b.rng.uniform(0.01, 0.15)
            while time.monotonic() < deadline:
                for load in loads:
                    load.send(32)
                    load.poll()
            for load in loads:
                load.poll()
                load.send(32)
            for _ in range(b.rng.randrange(3000)):
                pass
            b.server.kill()
            noted += sum(len(inflight_entries(d, q)[1]) for q in range(2))
            b.server.start()
            d.reconnect()
            if b.rng.random() < 0.3:
                for load in loads:
                    load.drain()
        for load in loads:
            load.drain()
            b.check(not load.wrong, f"queue {load.queue}: {load.sent} requests", "\n".join(load.wrong))
            b.equal(load.ended, load.sent, f"queue {load.queue}: each completed once")
            b.equal(inflight_entries(d, load.queue)[1], [], f"queue {load.queue}: nothing is noted at the end")
        # A few kills may all come too late.
        b.check(noted or b.options.quick, f"{noted} requests were in flight at {rounds(b)} kills")
        b.check(not model.difference(d.whole()), "the whole disk")
    b.stop()
    b.verify(model)


def full_image(b):
    b.make_image("16M")
    servers.must(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 16M", b.image])


@case
def requests_in_flight_are_taken_up(b):
    """With the write cache on: a guest that goes on does not know that a server has died, so nothing that was
    acknowledged may be lost with it, flushed or not."""
    full_image(b)
    killed_under_load(b, True, pin=b.rng.random() < 0.5)


@case
def requests_that_need_new_clusters(b):
    b.make_image("16M")
    killed_under_load(b, True, before=b"\0")


@case
def requests_that_copy(b):
    """Above a backing file, where data has to be durable before an entry names it."""
    full_image(b)
    os.rename(b.image, f"{b.folder}/base.qcow2")
    b.make_image("16M", "-b", "base.qcow2", "-F", "qcow2")
    killed_under_load(b, True)


@case
def the_cache_mode_is_not_forgotten(b):
    """A front end that connects again does not say it again, and its guest does not flush."""
    b.make_image("16M")
    b.serve()
    with Disk(b.server.path, inflight=b.options.server == "shardcow") as d:
        if not d.inflight:
            b.skip("QEMU's server has no INFLIGHT_SHMFD")
            return
        for value in (b"\0", b"\1"):
            d.front.set_config(m.WCE_OFFSET, value)
            b.server.kill()
            b.server.start()
            d.reconnect()
            b.equal(d.front.get_config(m.WCE_OFFSET, 1), value, f"after a kill, set to {value[0]}")
    b.stop()


@case
def requests_in_flight_written_through(b):
    full_image(b)
    killed_under_load(b, True, writethrough=True)


@case
def requests_in_flight_in_place(b):
    """Where no metadata changes, what was acknowledged is in the file at once."""
    full_image(b)
    killed_under_load(b, False)


@case
def a_client_hands_requests_over(b):
    """The same when not the server ends but the connection: the next one brings the memory along."""
    b.make_image("16M")
    b.serve(queues=1)
    model = Model(16 * MIB)
    with Disk(b.server.path, ring_size=256, inflight=b.options.server == "shardcow") as d:
        if not d.inflight:
            b.skip("QEMU's server has no INFLIGHT_SHMFD")
            return
        load = Load(d, 0, b.rng.getrandbits(64), model, 0, 32768, 32)
        for _ in range(rounds(b)):
            load.send(32)
            load.poll()
            d.reconnect()
        load.drain()
        b.check(not load.wrong, f"{load.sent} requests", "\n".join(load.wrong))
        b.equal(load.ended, load.sent, "each completed once")
    b.stop()
    b.verify(model)


@case
def rings_that_stop_at_once(b):
    """GET_VRING_BASE right after a restart, before a ring was enabled: the requests that the server has
    inherited are answered all the same, because they lie before the position that it tells."""
    full_image(b)
    b.serve(queues=2)
    model = Model(16 * MIB, b"\7" * 16 * MIB)
    with Disk(b.server.path, queues=2, ring_size=256, inflight=b.options.server == "shardcow") as d:
        if not d.inflight:
            b.skip("QEMU's server has no INFLIGHT_SHMFD")
            return
        loads = [Load(d, q, b.rng.getrandbits(64), model, q * 16384, (q + 1) * 16384, 32) for q in range(2)]
        noted = left = 0
        for _ in range(rounds(b)):
            for load in loads:
                load.send(32)
                load.poll()
            b.server.kill()
            noted += sum(len(inflight_entries(d, q)[1]) for q in range(2))
            b.server.start()
            d.reconnect(enable=False)
            for ring in d.rings:
                base = d.front.get_vring_base(ring.index)
                left += len(inflight_entries(d, ring.index)[1])
                d.start(ring, base)
                os.eventfd_write(ring.kick, 1)
        for load in loads:
            load.drain()
            b.check(not load.wrong, f"queue {load.queue}: {load.sent} requests", "\n".join(load.wrong))
            b.equal(load.ended, load.sent, f"queue {load.queue}: each completed once")
        b.equal(left, 0, f"of {noted} requests none is left at a stop")
        b.check(noted or b.options.quick, f"{noted} requests were in flight")
    b.stop()
    b.verify(model)


@case
def the_end_of_a_connection(b):
    """A front end that reads the end of the stream may take its memory back: nothing is written there behind
    it."""
    full_image(b)
    b.serve(queues=1)
    model = Model(16 * MIB, b"\7" * 16 * MIB)
    with Disk(b.server.path, ring_size=256, inflight=b.options.server == "shardcow") as d:
        if not d.inflight:
            b.skip("QEMU's server has no INFLIGHT_SHMFD")
            return
        load = Load(d, 0, b.rng.getrandbits(64), model, 0, 32768, 32)
        late = 0
        for _ in range(rounds(b)):
            load.send(32)
            os.eventfd_write(d.rings[0].kick, 1)
            d.front.sock.shutdown(socket.SHUT_WR)
            while d.front.sock.recv(4096):
                pass
            before = [bytes(r.view) for r in d.memory.regions]
            late += len(inflight_entries(d, 0)[1])
            time.sleep(0.005)
            late += before != [bytes(r.view) for r in d.memory.regions]
            d.reconnect()
            load.poll()
        load.drain()
        b.check(not load.wrong, f"{load.sent} requests", "\n".join(load.wrong))
        b.equal(load.ended, load.sent, "each completed once")
        b.equal(late, 0, "nothing is left, and nothing changes, behind the end of the stream")
    b.stop()
    b.verify(model)


class Journal:
    """What each sector may contain after a crash: what was durable, or anything sent since."""

    def __init__(self, size):
        self.may = [[bytes(512)] for _ in range(size // 512)]

    def sent(self, sector, data):
        for i in range(0, len(data), 512):
            self.may[sector + i // 512].append(data[i:i + 512])

    def durable(self, sector, data):
        """This write, and none before it in these sectors."""
        for i in range(0, len(data), 512):
            self.may[sector + i // 512] = [data[i:i + 512]]

    def all_durable(self):
        """All that was sent has completed and was flushed."""
        self.may = [versions[-1:] for versions in self.may]

    def complaints(self, path):
        with open(path, "rb") as f:
            data = f.read()
        return [f"sector {i}: {data[i * 512:i * 512 + 16].hex()}, {len(versions)} versions are allowed"
                for i, versions in enumerate(self.may) if data[i * 512:i * 512 + 512] not in versions]


def batch(b, d, journal, synchronous, drain=True):
    """Writes to sectors that do not overlap, at once. With synchronous, completed ones are durable."""
    starts = b.rng.sample(range(0, 16384, 64), 24)
    requests = []
    for start in starts:
        count = b.rng.choice((1, 1, 8, 8, 33, 64))
        data = stamp(b.rng, start, count)
        request = d.make(m.T_OUT, start, data)
        request.after = data
        journal.sent(start, data)
        d.submit(request, publish=False)
        requests.append(request)
    d.rings[0].publish()
    if not drain:
        return
    for request in d.drain():
        d.must(request)
        if synchronous:
            journal.durable(request.sector, request.after)


def crash_rounds(b, synchronous, prepare=lambda d: None, **how):
    """Batches, a kill in the middle of the last one, and a look at what is there. disk: options of the driver."""
    options = how.pop("disk", {})
    b.make_image()
    journal = Journal(8 * MIB)
    wrong, acknowledged = [], 0
    for i in range(rounds(b)):
        b.serve(**how)
        with Disk(b.server.path, **options) as d:
            prepare(d)
            for _ in range(b.rng.randrange(1, 5)):
                batch(b, d, journal, synchronous)
                if not synchronous and b.rng.random() < 0.6:
                    d.flush()
                    journal.all_durable()
            batch(b, d, journal, synchronous, drain=False)
            time.sleep(b.rng.choice((0, 0, 0.0005, 0.002, 0.01)))
            b.server.kill()
            for done in d.rings[0].reap():
                request = d.finish(0, *done)
                acknowledged += 1
                if synchronous:
                    journal.durable(request.sector, request.after)
        b.server.forget()
        b.server = None
        check = servers.run(["qemu-img", "check", "-f", "qcow2", b.image])
        if check.code not in (0, 3):
            wrong.append(f"round {i}: {check}")
        raw = f"{b.folder}/content.raw"
        servers.must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", b.image, raw])
        wrong += [f"round {i}: {w}" for w in journal.complaints(raw)[:5]]
        # What was there after the crash is there from now on.
        with open(raw, "rb") as f:
            journal.may = [[s] for s in re.findall(rb"(?s).{512}", f.read())]
    b.check(not wrong, f"{rounds(b)} kills, {acknowledged} writes of the last batches acknowledged",
            "\n".join(wrong))
    b.serve()
    with Disk(b.server.path) as d:
        d.flush()
    b.stop()


@case
def flushed_writes_survive(b):
    crash_rounds(b, synchronous=False)


@case
def writes_survive_with_the_cache_off(b):
    if b.options.server == "qemu":
        b.skip("QEMU's server has no CONFIG_WCE")
        return
    crash_rounds(b, True, lambda d: d.front.set_config(m.WCE_OFFSET, b"\0"))


@case
def writes_survive_with_writethrough(b):
    if b.options.server == "qemu":
        b.skip("QEMU's server has no such option")
        return
    crash_rounds(b, True, writethrough=True)


@case
def writes_survive_a_driver_without_flush(b):
    """A driver that cannot flush has to find everything durable that was acknowledged."""
    if b.options.server == "qemu":
        b.skip("QEMU's server does not look at this")
        return
    crash_rounds(b, True, disk={"features": m.without(m.FEATURES, m.FLUSH, m.CONFIG_WCE)})


if __name__ == "__main__":
    servers.main(__doc__, CASES)
