# SPDX-License-Identifier: MIT
"""A guest's memory, in memfds that a server maps too, and the driver's side of a split virtqueue in it."""

import mmap
import os
import select
import struct
import threading
import time

from messages import (AVAIL_NO_INTERRUPT, DESC, INDIRECT, NEXT, REGION, USED_NO_NOTIFY, WRITE)

# Where the front end claims to have guest memory mapped: nowhere, so that a server cannot mix up the two
# kinds of addresses.
USER_BASE = 0x7a00_0000_0000
TICK_S = 30


class Region:
    """One range of guest memory. The file may have bytes in front that are not the guest's."""

    def __init__(self, guest, size, offset=0, file_size=None):
        self.guest, self.size, self.offset = guest, size, offset
        self.user = USER_BASE + 3 * guest
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, file_size if file_size is not None else offset + size)
        self.map = mmap.mmap(self.fd, offset + size)
        self.view = memoryview(self.map)[offset:offset + size]
        self.free = [(guest, size)]

    def entry(self):
        return REGION.pack(self.guest, self.size, self.user, self.offset)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Memory:
    """All regions, and who uses which bytes of them."""

    def __init__(self, regions):
        self.regions = list(regions)
        self.lock = threading.Lock()

    def region(self, address, size=1):
        for r in self.regions:
            if r.guest <= address and address + size <= r.guest + r.size:
                return r
        raise ValueError(f"no guest memory at {address:#x}")

    def view(self, address, size):
        """The bytes as something to read and write; inside one region."""
        r = self.region(address, size)
        return r.view[address - r.guest:address - r.guest + size]

    def read(self, address, size):
        return bytes(self.view(address, size))

    def write(self, address, data):
        self.view(address, len(data))[:] = data

    def user(self, address):
        r = self.region(address)
        return r.user + address - r.guest

    def take(self, size, align=1, region=None):
        """Guest address of free bytes, first fit."""
        with self.lock:
            for r in [region] if region else self.regions:
                for i, (start, length) in enumerate(r.free):
                    address = -(-start // align) * align
                    if address + size <= start + length:
                        rest = [(start, address - start), (address + size, start + length - address - size)]
                        r.free[i:i + 1] = [piece for piece in rest if piece[1]]
                        return address
        raise MemoryError(f"{size} bytes of guest memory")

    def give(self, address, size):
        with self.lock:
            r = self.region(address, size)
            pieces = sorted(r.free + [(address, size)])
            r.free = [pieces[0]]
            for start, length in pieces[1:]:
                last, last_length = r.free[-1]
                if last + last_length == start:
                    r.free[-1] = (last, last_length + length)
                else:
                    r.free.append((start, length))


def event():
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def drained(fd):
    """True when an event was signalled; it is no longer afterwards."""
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


class LostCall(Exception):
    """The used ring has moved, and nobody said so."""


class Ring:
    """A split virtqueue from the driver's side: descriptors, the available ring, completions."""

    def __init__(self, memory, index, size, event_idx=True, base=0, region=None):
        self.memory, self.index, self.size, self.event_idx = memory, index, size, event_idx
        self.desc = memory.take(16 * size, 16, region)
        self.avail = memory.take(6 + 2 * size, 2, region)
        self.used = memory.take(6 + 8 * size, 4, region)
        for address, entry in ((self.desc, 16), (self.avail, 2), (self.used, 8)):
            memory.write(address, bytes(entry * size + (6 if entry != 16 else 0)))
        # Two-byte fields that the server reads or writes meanwhile: one load or store each.
        self.avail_words = memory.view(self.avail, 6 + 2 * size).cast("H")
        self.used_words = memory.view(self.used, 4).cast("H")
        self.avail_event = memory.view(self.used + 4 + 8 * size, 2).cast("H")
        self.free = list(range(size))
        self.chains = {}
        self.kick, self.call, self.err = event(), event(), event()
        self.barrier = threading.Lock()
        self.kicks = 0
        self.set_position(base)

    def set_position(self, base):
        """Start over at this index with nothing in flight."""
        self.next_avail = self.published = self.last_used = base
        self.avail_words[1] = self.used_words[1] = base
        self.avail_event[0] = base
        if self.event_idx:
            self.avail_words[2 + self.size] = base

    def close(self):
        for fd in (self.kick, self.call, self.err):
            os.close(fd)

    def _fence(self):
        """Locking is an atomic operation of the processor: what was stored before is seen by all after."""
        with self.barrier:
            pass

    def put(self, number, address, length, flags, following=0):
        """Write one descriptor as it is told to be."""
        self.memory.write(self.desc + 16 * number, DESC.pack(address & (1 << 64) - 1, length & 0xffffffff,
                                                             flags & 0xffff, following & 0xffff))

    def add(self, buffers, indirect=False):
        """A chain of (address, length, writable) goes to the available ring, unpublished. Returns its head."""
        if indirect:
            table = self.memory.take(16 * len(buffers), 16)
            for i, (address, length, writable) in enumerate(buffers):
                flags = (WRITE if writable else 0) | (NEXT if i + 1 < len(buffers) else 0)
                self.memory.write(table + 16 * i, DESC.pack(address, length, flags, (i + 1) % 0x10000))
            head = self.free.pop()
            self.put(head, table, 16 * len(buffers), INDIRECT)
            self.chains[head] = ([head], (table, 16 * len(buffers)))
        else:
            numbers = [self.free.pop() for _ in buffers]
            for i, (address, length, writable) in enumerate(buffers):
                more = i + 1 < len(buffers)
                self.put(numbers[i], address, length, (WRITE if writable else 0) | (NEXT if more else 0),
                         numbers[i + 1] if more else 0)
            head = numbers[0]
            self.chains[head] = (numbers, None)
        self.offer(head)
        return head

    def offer(self, head):
        """A head goes into the available ring."""
        self.avail_words[2 + self.next_avail % self.size] = head
        self.next_avail = (self.next_avail + 1) & 0xffff

    def publish(self, kick=None):
        """The server may see what was added. kick: None as the server asked for it, True or False regardless."""
        old, new = self.published, self.next_avail
        self._fence()
        self.avail_words[1] = new
        self.published = new
        self._fence()
        if kick is None:
            if self.event_idx:
                kick = (new - self.avail_event[0] - 1 & 0xffff) < (new - old & 0xffff)
            else:
                kick = not self.used_words[0] & USED_NO_NOTIFY
        if kick:
            self.kicks += 1
            os.eventfd_write(self.kick, 1)

    def used_index(self):
        self._fence()
        return self.used_words[1]

    def reap(self):
        """What has completed since: [(head, bytes written)]."""
        done, now = [], self.used_index()
        while self.last_used != now:
            where = self.used + 4 + 8 * (self.last_used % self.size)
            head, length = struct.unpack("<II", self.memory.read(where, 8))
            if head not in self.chains:
                raise AssertionError(f"queue {self.index}: head {head} completed and was not in flight")
            numbers, table = self.chains.pop(head)
            self.free.extend(reversed(numbers))
            if table:
                self.memory.give(*table)
            self.last_used = (self.last_used + 1) & 0xffff
            done.append((head, length))
        return done

    def want_calls(self, wanted=True):
        """Say whether completions are to be signalled: the next one, or none for a long time."""
        if self.event_idx:
            self.avail_words[2 + self.size] = self.last_used if wanted else self.last_used - 1 & 0xffff
        else:
            self.avail_words[0] = 0 if wanted else AVAIL_NO_INTERRUPT
        self._fence()

    def wait(self, timeout=TICK_S):
        """Completions, waiting for a call if there are none; an empty list when time has run out."""
        deadline = time.monotonic() + timeout
        while True:
            self.want_calls()
            done = self.reap()
            if done:
                return done
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            select.select([self.call], [], [], left)
            if not drained(self.call) and self.last_used != self.used_index():
                # The call may be a little behind the index.
                select.select([self.call], [], [], 2)
                if not drained(self.call):
                    raise LostCall(f"queue {self.index}: {self.used_index() - self.last_used & 0xffff} completions")
