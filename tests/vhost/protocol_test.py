# SPDX-License-Identifier: MIT
"""The vhost-user-blk server as a well-behaved guest sees it: features, requests, rings, clients.

Each case has a server of its own, ends it, and compares the image with what a model says.
live_test.py has what changes while requests run, survive_test.py what a killed server leaves.
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import messages as m                                                                   # noqa: E402
import servers                                                                         # noqa: E402
from disk import MIB, Disk, Model, stamp                                               # noqa: E402
from front_end import Closed, FrontEnd, Refused, connect, send_message                 # noqa: E402
from guest_rings import drained                                                              # noqa: E402
from load import Load, on_threads, random_request, settle                              # noqa: E402

# Two regions that touch and two that do not, one with bytes in front in its file.
REGIONS = ((0x10_0000, 4 * MIB, 0), (0x50_0000, 4 * MIB, 8192), (0x4000_0000, 8 * MIB, 0),
           (0x1_0000_0000, 4 * MIB, 4096))
CASES = []


def case(function):
    CASES.append(function)
    return function


@case
def acknowledgements_of_features(b):
    """Some front ends ask for a reply with the very message that makes replies possible."""
    b.make_image("8388608")
    b.serve()
    f = FrontEnd(b.server.path)
    f.set_features(f.get_features() & m.FEATURES)
    chosen = f.ask_u64(m.GET_PROTOCOL_FEATURES) & m.PROTOCOL_FEATURES
    send_message(f.sock, m.SET_PROTOCOL_FEATURES, m.U64.pack(chosen), flags=m.VERSION | m.NEED_REPLY)
    b.equal(m.U64.unpack(f.reply(m.SET_PROTOCOL_FEATURES)[0])[0], 0, "protocol features are acknowledged")
    send_message(f.sock, m.SET_FEATURES, m.U64.pack(1 << 63), flags=m.VERSION | m.NEED_REPLY)
    b.ours(m.U64.unpack(f.reply(m.SET_FEATURES)[0])[0] != 0, "features that were not offered are refused in a reply")
    f.close()
    b.stop()


@case
def features_and_configuration(b):
    b.make_image("8388608")
    b.serve(queues=3)
    with Disk(b.server.path, queues=3) as d:
        for bit in (m.SEG_MAX, m.BLK_SIZE, m.FLUSH, m.CONFIG_WCE, m.BLK_MQ, m.DISCARD, m.WRITE_ZEROES,
                    m.INDIRECT_DESC, m.EVENT_IDX, m.F_PROTOCOL_FEATURES, m.VERSION_1, m.LOG_ALL):
            b.check(m.has(d.offered, bit), f"feature {bit} is offered")
        b.check(not m.has(d.offered, m.RO), "RO is not")
        missing = m.PROTOCOL_FEATURES & ~d.front.protocol_features
        b.ours(not missing, "all protocol features are offered", f"{missing:#x}")
        b.equal(d.front.get_queue_num(), 3, "GET_QUEUE_NUM")
        config = d.front.get_config()
        field = {name: m.config_field(config, name) for name in m.CONFIG_FIELDS}
        b.equal(field["capacity"], 8 * MIB // 512, "capacity")
        b.equal(field["num_queues"], 3, "num_queues")
        b.check(1 <= field["seg_max"] <= 1024, "seg_max", field)
        b.check(field["blk_size"] in (512, 4096), "blk_size", field)
        for name in ("discard", "write_zeroes"):
            b.check(field[f"max_{name}_sectors"] >= 128 and field[f"max_{name}_seg"] >= 1, f"{name} limits", field)
        b.ours(field["write_zeroes_may_unmap"] == 1, "write_zeroes_may_unmap", field)
        b.ours(d.front.get_config(8, 8) == config[8:16], "part of the configuration")
        if d.front.can(m.CONFIGURE_MEM_SLOTS):
            b.check(d.front.get_max_mem_slots() >= 8, "GET_MAX_MEM_SLOTS")
    b.stop()


@case
def every_kind_of_request(b):
    b.make_image()
    b.serve(serial="a serial of 20 bytes")
    model = Model(8 * MIB)
    with Disk(b.server.path) as d:
        for sector, count in ((0, 1), (1, 7), (127, 2), (128, 128), (1000, 2048), (d.sectors - 1, 1)):
            data = stamp(b.rng, sector, count)
            d.write(sector, data)
            model.write(sector, data)
            b.equal(d.read(sector, count), data, f"{count} sectors at {sector}")
        d.zero(1100, 10)
        model.zero(1100, 10)
        d.zero(1152, 256, unmap=True)
        model.zero(1152, 256)
        b.check(not model.difference(d.whole()), "after write zeroes")
        # What is not whole clusters may stay.
        d.discard(2048, 256)
        model.zero(2048, 256)
        b.check(not model.difference(d.whole()), "after a discard")
        request = d.do(d.segments(m.T_WRITE_ZEROES, (0, 1, 0), (2, 1, m.UNMAP), (4, 2, 0)))
        limit = m.config_field(d.front.get_config(), "max_write_zeroes_seg")
        if limit >= 3:
            b.equal(request.status, m.S_OK, "three segments")
            for sector, count in ((0, 1), (2, 1), (4, 2)):
                model.zero(sector, count)
        else:
            b.check(request.status != m.S_OK, f"three segments where {limit} are allowed")
        d.flush()
        want = b"vhost_user_blk" if b.server.qemu else b"a serial of 20 bytes"
        b.equal(d.get_id().split(b"\0")[0], want, "the serial number")
        got = d.do(d.make(m.T_IN, 0, size=1024))
        b.equal((got.written, got.status), (1025, m.S_OK), "the used length of a read")
        got = d.do(d.make(m.T_OUT, 0, model.read(0, 1)))
        b.equal((got.written, got.status), (1, m.S_OK), "the used length of a write")
        b.check(not model.difference(d.whole()), "the whole disk")
    b.stop()
    b.verify(model)


@case
def any_layout(b):
    """Headers, data and status cut anywhere, over regions, in tables and out of them."""
    b.make_image()
    b.serve()
    model = Model(8 * MIB)
    with Disk(b.server.path, regions=REGIONS) as d:
        wrong = []
        for i in range(300 if b.options.quick else 800):
            request = random_request(d, b.rng, 0, d.sectors if not i % 50 else 2048, scatter=True)
            merge = b.rng.random() < 0.2 and request.kind in (m.T_IN, m.T_OUT)
            d.do(request, indirect=b.rng.random() < 0.5, merge=merge)
            wrong.append(settle(request, model))
        b.check(not any(wrong), "requests", "\n".join(filter(None, wrong)))
        # One buffer of two regions that touch.
        at = REGIONS[1][0] - 1024
        d.memory.view(at, 1024)[:] = b"\x11" * 1024
        d.memory.view(at + 1024, 1024)[:] = b"\x22" * 1024
        request = d.make(m.T_OUT, 64)
        request.data = [(at, 2048)]
        d.do(request)
        if request.status == m.S_OK:
            model.write(64, b"\x11" * 1024 + b"\x22" * 1024)
        b.equal(request.status, m.S_OK, "a buffer over two regions")
        b.check(not model.difference(d.whole()), "the whole disk")
    b.stop()
    b.verify(model)


@case
def long_chains(b):
    """As many segments as seg_max says, and a ring's worth of descriptors."""
    b.make_image()
    b.serve()
    model = Model(8 * MIB)
    with Disk(b.server.path, ring_size=256) as d:
        seg_max = m.config_field(d.front.get_config(), "seg_max")
        for segments, indirect in ((min(seg_max, 254), False), (min(seg_max, 254), True)):
            size = -(-segments // 4) * 512
            data = stamp(b.rng, 8, size // 512)
            cuts = sorted(b.rng.sample(range(1, size), segments - 1))
            d.must(d.do(d.make(m.T_OUT, 8, data, data_cuts=cuts), indirect=indirect))
            model.write(8, data)
            got = d.must(d.do(d.make(m.T_IN, 8, size=size, data_cuts=cuts), indirect=indirect))
            b.check(got.bytes == data, f"{segments} segments, indirect: {indirect}")
        data = stamp(b.rng, 0, 4096)
        d.write(0, data)
        model.write(0, data)
        b.check(d.read(0, 4096) == data, "two MiB in one buffer")
    b.stop()
    b.verify(model)


@case
def rings_wrap_around(b):
    """Small rings many times over, and indexes that pass 65535."""
    b.make_image()
    b.serve()
    model = Model(8 * MIB)
    for size, base, count in ((4, 0, 100), (8, 65530, 100), (256, 65400, 600), (1024, 65000, 1200)):
        with Disk(b.server.path, ring_size=size, base=base) as d:
            wrong = []
            for _ in range(count):
                indirect = size < 16 or b.rng.random() < 0.5
                request = random_request(d, b.rng, 0, 1024)
                d.do(request, indirect=indirect)
                wrong.append(settle(request, model))
            b.check(not any(wrong), f"a ring of {size} from {base}", "\n".join(filter(None, wrong)))
            b.equal(d.front.get_vring_base(0), (base + count) & 0xffff, f"where the ring of {size} ends")
    b.stop()
    b.verify(model)


@case
def many_in_flight_on_many_queues(b):
    b.make_image("16M")
    b.serve(queues=4)
    model = Model(16 * MIB)
    with Disk(b.server.path, queues=4, ring_size=256) as d:
        count = 500 if b.options.quick else 1500
        loads = [Load(d, q, b.rng.getrandbits(64), model, q * 8192, (q + 1) * 8192, 16) for q in range(4)]
        wrong = on_threads([lambda load=load: load.run(count) for load in loads])
        b.check(not wrong, "requests", "\n".join(wrong))
        b.check(not model.difference(d.whole()), "the whole disk")
    b.stop()
    b.verify(model)


def batches_without_loss(b, d, count, what):
    """Batches of random size with random pauses: each is answered though kicks are only sent when asked for."""
    ring, sent = d.rings[0], 0
    before = ring.kicks
    while sent < count:
        for _ in range(b.rng.choice((1, 1, 1, 2, 3, 16))):
            d.submit(d.make(m.T_IN, b.rng.randrange(1000), size=512), indirect=True, publish=False)
            sent += 1
            if b.rng.random() < 0.3:
                ring.publish()
        ring.publish()
        if b.rng.random() < 0.7:
            d.drain()
        elif len(d.flying[0]) > 64:
            d.completed()
        for _ in range(b.rng.choice((0, 0, 0, 10, 1000))):
            pass
    d.drain()
    b.check(ring.kicks - before <= sent, f"{what}: {sent} requests, {ring.kicks - before} kicks")


@case
def no_kick_is_lost(b):
    b.make_image()
    b.serve()
    count = 1000 if b.options.quick else 3000
    with Disk(b.server.path) as d:
        b.check(d.rings[0].event_idx, "EVENT_IDX is on")
        batches_without_loss(b, d, count, "EVENT_IDX")
        ring = d.rings[0]
        # A driver that asks for no calls gets none, and completions all the same.
        ring.want_calls(False)
        drained(ring.call)
        request = d.make(m.T_IN, 0, size=512)
        d.submit(request)
        deadline = time.monotonic() + 10
        while not (done := ring.reap()) and time.monotonic() < deadline:
            time.sleep(0.001)
        b.equal(len(done), 1, "a completion without a call")
        for head, written in done:
            d.finish(0, head, written)
        # Many kicks for nothing, and a kick before there is anything.
        for _ in range(1000):
            os.eventfd_write(ring.kick, 1)
        d.read(0, 8)
        b.check(True, "kicks for nothing")
    with Disk(b.server.path, features=m.without(m.FEATURES, m.EVENT_IDX)) as d:
        batches_without_loss(b, d, count, "no EVENT_IDX")
    b.stop()


@case
def fewer_features(b):
    """A driver that wants less: it gets less, and that works."""
    b.make_image()
    b.serve(queues=2)
    model = Model(8 * MIB)
    for what, features, protocol in (
            ("no indirect tables", m.without(m.FEATURES, m.INDIRECT_DESC), m.PROTOCOL_FEATURES),
            ("no protocol features", m.without(m.FEATURES, m.F_PROTOCOL_FEATURES), 0),
            ("no replies", m.FEATURES, m.without(m.PROTOCOL_FEATURES, m.REPLY_ACK)),
            ("one queue of two", m.without(m.FEATURES, m.BLK_MQ), m.without(m.PROTOCOL_FEATURES, m.MQ)),
            ("only the oldest", 1 << m.VERSION_1, 0)):
        with Disk(b.server.path, features=features, protocol=protocol) as d:
            data = stamp(b.rng, 3, 5)
            d.write(3, data)
            model.write(3, data)
            b.equal(d.read(3, 5), data, what)
    b.stop()
    b.verify(model)


@case
def write_cache_can_be_switched(b):
    b.make_image()
    b.serve()
    with Disk(b.server.path) as d:
        b.ours(d.front.get_config(m.WCE_OFFSET, 1) == b"\1", "it is on")
        for value in (0, 1, 0):
            d.front.set_config(m.WCE_OFFSET, bytes([value]))
            b.ours(d.front.get_config(m.WCE_OFFSET, 1) == bytes([value]), f"set to {value}")
            d.write(value, bytes([value]) * 512)
            d.flush()
    b.stop()


@case
def more_calls_than_the_engine_takes(b):
    """64 discards of 32 segments each are twice as many calls as an engine's queue has room for."""
    b.make_image("64M")
    b.serve()
    with Disk(b.server.path, ring_size=256) as d:
        for i in range(64):
            segments = [(((32 * i + k) * 16) % 131072, 8, 0) for k in range(32)]
            d.submit(d.segments(m.T_DISCARD, *segments), indirect=True, publish=False)
        d.rings[0].publish()
        done = d.drain()
        b.equal([r.status for r in done], [m.S_OK] * 64, "all are answered")
    b.stop()


@case
def read_only_export(b):
    b.make_image()
    servers.must(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 1M", b.image])
    before = servers.harness.sha(b.image)
    b.serve(read_only=True)
    with Disk(b.server.path) as d:
        b.check(m.has(d.offered, m.RO), "RO is offered")
        b.equal(d.read(0, 2048), b"\7" * MIB, "reads")
        for what, request in (("a write", d.make(m.T_OUT, 0, b"\1" * 512)),
                              ("a discard", d.segments(m.T_DISCARD, (0, 128, 0))),
                              ("write zeroes", d.segments(m.T_WRITE_ZEROES, (0, 128, 0)))):
            b.check(d.do(request).status in (m.S_IOERR, m.S_UNSUPP), f"{what} is refused", request.status)
        b.equal(d.do(d.make(m.T_FLUSH)).status, m.S_OK, "a flush")
    b.stop()
    b.equal(servers.harness.sha(b.image), before, "the file is as it was")


@case
def one_client_after_the_other(b):
    """Clients that leave properly, or with requests in flight, or before they said anything."""
    b.make_image()
    b.serve(queues=2)
    model = Model(8 * MIB)
    for i in range(10):
        with Disk(b.server.path, queues=1 + i % 2) as d:
            data = stamp(b.rng, i, 1)
            d.write(i, data)
            model.write(i, data)
            for _ in range(20):
                d.submit(d.make(m.T_IN, 0, size=4096))
            if i % 3 == 1:
                d.drain()
            if i % 3 == 2:
                d.front.get_vring_base(0)
    for _ in range(10):
        connect(b.server.path).close()
    with Disk(b.server.path) as d:
        b.check(not model.difference(d.whole()), "the last one sees everything")
    b.stop()
    b.verify(model)


@case
def reset_and_status(b):
    b.make_image()
    b.serve()
    with Disk(b.server.path) as d:
        f = d.front
        if not f.can(m.STATUS) or not f.can(m.F_RESET_DEVICE):
            b.skip("the server has neither STATUS nor RESET_DEVICE")
            return
        b.equal(f.get_status(), 0x0f, "GET_STATUS")
        d.write(0, b"\5" * 512)
        f.reset_device()
        b.equal(f.get_status(), 0, "GET_STATUS after RESET_DEVICE")
        ring = d.rings[0]
        ring.set_position(0)
        d.submit(d.make(m.T_IN, 0, size=512))
        b.equal(ring.wait(0.3), [], "nothing runs after a reset")
        ring.chains.clear()
        d.flying[0].clear()
        ring.free = list(range(ring.size))
        ring.set_position(0)
        f.set_features(d.features)
        d.start(ring)
        f.set_status(0x0f)
        b.equal(d.read(0, 1), b"\5" * 512, "it works again")
    b.stop()


@case
def configuration_that_may_not_change(b):
    b.make_image()
    b.serve()
    with Disk(b.server.path) as d:
        before = d.front.get_config()
        try:
            d.front.set_config(0, bytes(8))
            refused = False
        except (Refused, Closed):
            refused = True
        b.ours(refused, "the capacity cannot be set")
    with Disk(b.server.path) as d:
        b.equal(d.front.get_config(), before, "the configuration is as it was")
    b.stop()


if __name__ == "__main__":
    servers.main(__doc__, CASES)
