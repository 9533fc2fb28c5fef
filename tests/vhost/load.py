# SPDX-License-Identifier: MIT
"""Random requests against a model, many at a time, also while servers come and go."""

import random
import threading

import messages as m
from disk import random_cuts, stamp


def random_request(d, rng, first, last, scatter=False, zeroes=True):
    """A request in sectors first to last; scatter: with its header in pieces, and pieces in any region."""
    count = rng.choice((1, 1, 2, 8, 8, 64, rng.randrange(1, 257)))
    count = min(count, last - first)
    sector = rng.randrange(first, last - count + 1)
    kinds = {m.T_IN: 8, m.T_OUT: 8, m.T_WRITE_ZEROES: 2 * zeroes, m.T_FLUSH: 1, m.T_GET_ID: 1}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    layout = {"header_cuts": random_cuts(rng, 16, 5), "rng": rng} if scatter else {}
    if kind == m.T_IN:
        request = d.make(kind, sector, size=512 * count, data_cuts=random_cuts(rng, 512 * count), **layout)
    elif kind == m.T_OUT:
        data = stamp(rng, sector, count)
        request = d.make(kind, sector, data, data_cuts=random_cuts(rng, 512 * count), **layout)
        request.after = data
    elif kind == m.T_WRITE_ZEROES:
        data = m.SEGMENT.pack(sector, count, rng.choice((0, m.UNMAP)))
        request = d.make(kind, 0, data, data_cuts=random_cuts(rng, 16), **layout)
    else:
        request = d.make(kind, 0, size=m.ID_BYTES if kind == m.T_GET_ID else 0, **layout)
    request.range = (sector, count)
    return request


def settle(request, model):
    """Compare, or change the model; what went wrong in words."""
    sector, count = request.range
    if request.status != m.S_OK:
        return f"kind {request.kind}, sector {sector}, {count} sectors: status {request.status:#x}"
    if request.kind == m.T_IN and request.bytes != model.read(sector, count):
        return f"sectors {sector} to {sector + count} are not what was written"
    if request.kind == m.T_OUT:
        model.write(sector, request.after)
    if request.kind == m.T_WRITE_ZEROES:
        model.zero(sector, count)
    return ""


class Load:
    """Keeps requests in flight on one queue, each on sectors that no other in flight has."""

    def __init__(self, d, queue, seed, model, first, last, depth, zeroes=True):
        self.d, self.queue, self.model, self.first = d, queue, model, first
        self.rng = random.Random(seed)
        self.depth, self.step = depth, (last - first) // depth
        self.slots = list(range(depth))
        self.pending = {}
        self.zeroes = zeroes
        self.sent = self.ended = 0
        self.wrong = []

    def send(self, most):
        """Some more requests, if there are slots, published together."""
        batch = min(len(self.slots), most, self.rng.randrange(1, self.depth + 1))
        for _ in range(batch):
            slot = self.slots.pop()
            at = self.first + slot * self.step
            request = random_request(self.d, self.rng, at, at + self.step, zeroes=self.zeroes)
            self.pending[id(request)] = slot
            self.d.submit(request, self.queue, indirect=self.rng.random() < 0.5, publish=False)
        if batch:
            self.d.rings[self.queue].publish()
        self.sent += batch

    def take(self, done):
        for request in done:
            self.slots.append(self.pending.pop(id(request)))
            self.ended += 1
            complaint = settle(request, self.model)
            if complaint:
                self.wrong.append(complaint)

    def poll(self):
        """What has completed by now, without waiting."""
        self.take([self.d.finish(self.queue, *done) for done in self.d.rings[self.queue].reap()])

    def drain(self):
        self.take(self.d.drain(self.queue))

    def run(self, count, goes_on=None):
        """So many requests, or until goes_on() is false. Complaints."""
        end = self.sent + count
        while self.sent < end and (goes_on is None or goes_on()):
            self.send(end - self.sent)
            self.take(self.d.completed(self.queue))
        self.drain()
        return self.wrong


def on_threads(jobs):
    """Run them at the same time; each returns complaints."""
    results = [[f"job {i} did not end"] for i in range(len(jobs))]

    def work(i):
        try:
            results[i] = jobs[i]()
        except Exception as error:                                               # noqa: BLE001
            results[i] = [f"{type(error).__name__}: {error}"]

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    return [w for r in results for w in r]
