# SPDX-License-Identifier: MIT
"""One bad client of a server, how the server took it, and whether it is unharmed afterwards.

Outcomes of a request: ok, error (a status that is not OK), dropped (returned without a status), stopped (the
ring is not worked on any more). Of a message: acked, nack, answered (by a reply that has no verdict), silent.
Of both: closed.
"""

import os
import re
import select
import time
from collections import Counter

import messages as m
from disk import MIB, Disk, Model, stamp
from front_end import Closed, FrontEnd, NoReply, send_bytes, send_message

# Two regions with nothing between and behind them.
REGIONS = ((0x10_0000, 2 * MIB, 0), (0x80_0000, 2 * MIB, 4096))
HOLE = 0x40_0000
SILENCE_S = 1.0
REPLY_S = 4
QUEUES = 2
RING = 64
DISK_BYTES = 4 * MIB


class Victim:
    """A client in whose name a row does its deed. Disks and connections are made when they are asked for."""

    def __init__(self, server, rng, model):
        self.server, self.rng, self.model = server, rng, model
        self.path = server.path
        self.disk = self.plain = None
        self.may_write = []
        self.others = []
        self.before = None
        self.trespassed = ""
        self.status_at = self.head = None
        # The server has closed the connection; it has signalled a ring's error event.
        self.hung_up = self.said_so = False

    def close(self):
        for thing in (self.disk, self.plain, *self.others):
            if thing:
                thing.close()

    # ---- connections ---------------------------------------------------------------------------------

    @property
    def d(self):
        """A device that is up, with two queues."""
        if not self.disk:
            self.disk = Disk(self.path, queues=QUEUES, ring_size=RING, regions=REGIONS)
        return self.disk

    @property
    def front(self):
        """A connection on which features are negotiated and nothing else has been said."""
        if self.disk:
            return self.disk.front
        if not self.plain:
            self.plain = FrontEnd(self.path, REPLY_S)
            features = self.plain.get_features() & m.FEATURES
            self.plain.negotiate_protocol()
            self.plain.set_owner()
            self.plain.set_features(features)
        return self.plain

    def message(self, request, payload=b"", fds=(), flags=m.VERSION | m.NEED_REPLY, size=None):
        """Send one and say how it was taken."""
        try:
            self.front.sock.settimeout(REPLY_S)
            send_message(self.front.sock, request, payload, fds, flags, size)
            return self.verdict(request)
        except Closed:
            self.hung_up = True
            return "closed"

    def verdict(self, request):
        try:
            payload, fds = self.front.reply(request)
        except Closed:
            self.hung_up = True
            return "closed"
        except NoReply:
            return "silent"
        for fd in fds:
            os.close(fd)
        if request == m.SET_LOG_BASE:
            # A success has a reply of any size, a failure the code that other messages have.
            return "nack" if len(payload) == 8 and any(payload) else "answered"
        if not payload or request in (m.GET_CONFIG, m.GET_INFLIGHT_FD) and not any(payload[:16]):
            return "nack"
        if request in m.ANSWERED:
            return "answered"
        return "nack" if m.U64.unpack(payload)[0] else "acked"

    def raw(self, data, fds=()):
        """Bytes as they are. The server closes, or waits for more: closed or silent."""
        try:
            send_bytes(self.front.sock, data, fds)
            outcome = self.hears(SILENCE_S / 4)
        except Closed:
            outcome = "closed"
        self.hung_up = outcome == "closed"
        return outcome

    def hears(self, timeout):
        """What comes from the server: closed, answered, silent."""
        if not select.select([self.front.sock], [], [], timeout)[0]:
            return "silent"
        try:
            return "answered" if self.front.sock.recv(4096) else "closed"
        except ConnectionError:
            return "closed"

    # ---- rings ---------------------------------------------------------------------------------------

    @property
    def ring(self):
        return self.d.rings[0]

    def place(self, data, region=0, align=16):
        """Guest address of these bytes (or so many of 0xdd)."""
        data = bytes([0xdd]) * data if isinstance(data, int) else data
        address = self.d.memory.take(len(data), align, self.d.memory.regions[region])
        self.d.memory.write(address, data)
        return address

    def header(self, kind=m.T_IN, sector=0):
        return self.place(m.REQUEST_HEAD.pack(kind, 0, sector))

    def status(self):
        self.status_at = self.place(bytes([m.S_UNTOUCHED]))
        return self.status_at

    def writable(self, address, length):
        """The server may write here."""
        self.may_write.append((address, min(length, 1 << 40)))

    def descriptors(self, rows, head=0, offer=True):
        """(address, length, flags, next), from number 0 on, exactly as they are."""
        for number, (address, length, flags, following) in enumerate(rows):
            self.ring.put(number, address, length, flags, following)
            if flags & m.WRITE and not flags & m.INDIRECT:
                self.writable(address, length)
        if offer:
            self.offer(head)

    def chain(self, *buffers):
        """(address, length, flags), linked in this order."""
        last = len(buffers) - 1
        self.descriptors([(a, n, f | (m.NEXT if i < last else 0), i + 1 if i < last else 0)
                          for i, (a, n, f) in enumerate(buffers)])

    def table(self, rows, claimed=None, flags=0, region=0):
        """One indirect descriptor, of a table of (address, length, flags, next)."""
        data = b"".join(m.DESC.pack(*row) for row in rows)
        for address, length, row_flags, _ in rows:
            if row_flags & m.WRITE:
                self.writable(address, length)
        at = self.place(data, region)
        self.descriptors([(at, len(data) if claimed is None else claimed, m.INDIRECT | flags, 0)])

    def offer(self, head, publish=True):
        self.head = head
        self.ring.chains.setdefault(head, ([], None))
        self.ring.offer(head)
        if publish:
            self.publish()

    def publish(self):
        self.remember()
        self.ring.publish(kick=True)

    def remember(self):
        """Guest memory as it is now, to see later what the server wrote."""
        if self.before is None:
            self.before = [bytes(r.view) for r in self.d.memory.regions]

    def request(self, kind, sector=0, data=b"", size=0):
        """A request in good form: header, data, status."""
        buffers = [(self.header(kind, sector), 16, 0)]
        if data or size:
            buffers.append((self.place(data or size), len(data) or size, m.WRITE if size else 0))
        self.chain(*buffers, (self.status(), 1, m.WRITE))

    def outcome(self, timeout=SILENCE_S):
        """How the request on queue 0 ended."""
        deadline = time.monotonic() + timeout
        ring, sock = self.ring, self.d.front.sock
        while time.monotonic() < deadline:
            if ring.used_index() != ring.last_used:
                ring.last_used = ring.used_index()
                if self.status_at is None:
                    return "dropped"
                status = self.d.memory.read(self.status_at, 1)[0]
                return {m.S_OK: "ok", m.S_UNTOUCHED: "dropped"}.get(status, "error")
            ready, _, _ = select.select([sock, ring.err], [], [], 0.002)
            if sock in ready and self.hears(0) == "closed":
                self.hung_up = True
                return "closed"
            if ring.err in ready:
                self.said_so = True
                return "stopped"
        return "stopped"

    def trespasses(self):
        """Bytes of guest memory that changed and were not the server's to write, in words."""
        if self.before is None:
            return self.trespassed
        allowed = list(self.may_write)
        for ring in self.d.rings:
            # What we write when we publish and ask for calls is ours.
            allowed += [(ring.used, 6 + 8 * ring.size), (ring.avail, 4), (ring.avail + 4 + 2 * ring.size, 2)]
        for region, old in zip(self.d.memory.regions, self.before):
            now, old = bytearray(region.view), bytearray(old)
            for address, length in allowed:
                first = max(address - region.guest, 0)
                last = min(address + length - region.guest, region.size)
                if first < last:
                    now[first:last] = old[first:last]
            if now != old:
                at = next(i for i in range(len(old)) if now[i] != old[i])
                return f"the server wrote to {region.guest + at:#x}"
        return ""

    def other_queue_works(self):
        # From now on we write to memory too.
        self.trespassed, self.before = self.trespasses(), None
        got = self.d.read(8, 8, queue=1)
        return "" if got == self.model.read(8, 8) else "queue 1 reads something else"


def resources(server):
    """File descriptors and mappings of guest memory that the server has, by what they are."""
    names = Counter()
    folder = f"/proc/{server.process.pid}/fd"
    for fd in os.listdir(folder):
        try:
            # Without numbers: those of sockets change.
            names[re.sub(r"[0-9]+", "", os.readlink(f"{folder}/{fd}"))] += 1
        except FileNotFoundError:
            pass
    with open(f"/proc/{server.process.pid}/maps", encoding="latin-1") as f:
        names["mapping"] = sum("memfd:" in line for line in f)
    return names


def settled_resources(server, wanted):
    """What is still there when the server has had the time to clean up."""
    deadline = time.monotonic() + 3
    while (now := resources(server)) != wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    return now


class Aftermath:
    """What has to hold after each bad client."""

    def __init__(self, server, rng):
        self.server, self.rng = server, rng
        self.model = Model(DISK_BYTES)
        with Disk(server.path) as d:
            for sector in range(0, self.model.sectors(), 1024):
                data = stamp(rng, sector, 1024)
                d.write(sector, data)
                self.model.write(sector, data)
        # What a server opens when it is first needed is there from now on.
        with Disk(server.path, features=m.without(m.FEATURES, m.FLUSH, m.CONFIG_WCE)) as d:
            d.write(0, self.model.read(0, 1))
        self.idle = None

    def complaint(self):
        """Serve a well-behaved client, have every byte in place, hold on to nothing."""
        if not self.server.alive():
            return f"the server has ended: {self.server.process.returncode}"
        with Disk(self.server.path, queues=QUEUES) as d:
            difference = self.model.difference(d.whole())
            if difference:
                return difference
            sector = self.rng.randrange(self.model.sectors())
            data = stamp(self.rng, sector, 1)
            d.write(sector, data, queue=1)
            self.model.write(sector, data)
            if d.read(sector, 1) != data:
                return "a write is not read back"
        now = settled_resources(self.server, self.idle)
        if self.idle is None:
            time.sleep(0.2)
            self.idle = resources(self.server)
        elif now != self.idle:
            before, self.idle = self.idle, now
            return f"left over: {dict(now - before)}; gone: {dict(before - now)}"
        return ""
