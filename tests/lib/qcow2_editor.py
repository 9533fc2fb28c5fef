# SPDX-License-Identifier: MIT
"""Look into a qcow2 file and change bytes of it, to make images that no tool would write."""

import os

L1_MASK = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1


class Editor:
    """An open image. Trusts what it reads: meant for images that QEMU has just made."""

    def __init__(self, path, write=False):
        self.path = path
        self.fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
        self.version = self.get(4, 4)
        self.backing_off = self.get(8, 8)
        self.backing_bytes = self.get(16, 4)
        self.cluster_bits = self.get(20, 4)
        self.cluster = 1 << self.cluster_bits
        self.size = self.get(24, 8)
        self.l1_count = self.get(36, 4)
        self.l1_off = self.get(40, 8)
        self.reftable_off = self.get(48, 8)
        self.reftable_clusters = self.get(56, 4)
        self.snapshot_count = self.get(60, 4)
        self.snapshots_off = self.get(64, 8)
        v3 = self.version >= 3
        self.incompatible = self.get(72, 8) if v3 else 0
        self.compatible = self.get(80, 8) if v3 else 0
        self.autoclear = self.get(88, 8) if v3 else 0
        self.refcount_order = self.get(96, 4) if v3 else 4
        self.header_bytes = self.get(100, 4) if v3 else 72
        self.entry_bytes = 16 if self.incompatible & 16 else 8
        self.l2_count = self.cluster // self.entry_bytes
        if not write:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.fd)

    def read(self, off, count):
        if self.fd < 0:
            with open(self.path, "rb") as f:
                f.seek(off)
                return f.read(count)
        return os.pread(self.fd, count, off)

    def get(self, off, count):
        return int.from_bytes(self.read(off, count), "big")

    def write(self, off, data):
        os.pwrite(self.fd, data, off)

    def put(self, off, count, value):
        self.write(off, (value % (1 << (8 * count))).to_bytes(count, "big"))

    def file_bytes(self):
        return os.stat(self.path).st_size

    # Tables. Each "_at" is the file offset of an entry, for put().

    def l1_at(self, index):
        return self.l1_off + 8 * index

    def l2_tables(self):
        """(L1 index, L2 table offset) of the active disk."""
        for i in range(self.l1_count):
            entry = self.get(self.l1_at(i), 8)
            if entry & L1_MASK:
                yield i, entry & L1_MASK

    def entries(self):
        """(file offset, value, guest offset) of each nonzero L2 entry of the active disk."""
        for i, table in self.l2_tables():
            raw = self.read(table, self.cluster)
            for j in range(self.l2_count):
                at = j * self.entry_bytes
                value = int.from_bytes(raw[at:at + 8], "big")
                if value or any(raw[at:at + self.entry_bytes]):
                    yield table + at, value, (i * self.l2_count + j) << self.cluster_bits

    def standard(self):
        """L2 entries that name a standard cluster."""
        return [e for e in self.entries() if not e[1] & (COMPRESSED | ZERO) and e[1] & L1_MASK]

    def compressed(self):
        return [e for e in self.entries() if e[1] & COMPRESSED]

    def refblock_at(self, index):
        return self.reftable_off + 8 * index

    def refcount_of(self, host_off):
        """(refcount block offset, index in it) for a host cluster; the block must exist."""
        cluster = host_off >> self.cluster_bits
        per_block = self.cluster * 8 >> self.refcount_order
        return self.get(self.refblock_at(cluster // per_block), 8) & L1_MASK, cluster % per_block

    def get_refcount(self, host_off):
        block, index = self.refcount_of(host_off)
        if not block:
            return 0
        bits = 1 << self.refcount_order
        if bits >= 8:
            return self.get(block + index * bits // 8, bits // 8)
        return self.get(block + index * bits // 8, 1) >> (index * bits % 8) & ((1 << bits) - 1)

    def put_refcount(self, host_off, value):
        block, index = self.refcount_of(host_off)
        bits = 1 << self.refcount_order
        if bits >= 8:
            self.put(block + index * bits // 8, bits // 8, value)
            return
        at, shift = block + index * bits // 8, index * bits % 8
        mask = ((1 << bits) - 1) << shift
        self.put(at, 1, self.get(at, 1) & ~mask | (value << shift & mask))

    # The header's neighbourhood.

    def extensions(self):
        """(offset of the extension's head, type, data bytes), the end marker last."""
        off = self.header_bytes
        while off + 8 <= self.cluster:
            kind, count = self.get(off, 4), self.get(off + 4, 4)
            yield off, kind, count
            if kind == 0:
                return
            off += 8 + (count + 7) // 8 * 8

    def extension(self, kind):
        """Offset of the head of the first extension of a type."""
        return next(off for off, k, _ in self.extensions() if k == kind)

    def _header_end(self):
        end = list(self.extensions())[-1][0] + 8
        return max(end, self.backing_off + self.backing_bytes)

    def _insert(self, at, data):
        """Shift the rest of the header's cluster."""
        rest = self.read(at, self._header_end() - at)
        if at + len(data) + len(rest) > self.cluster:
            raise ValueError("no room in the header's cluster")
        self.write(at, data + rest)
        if self.backing_off:
            self.backing_off += len(data)
            self.put(8, 8, self.backing_off)

    def insert_header_padding(self, count):
        """Unknown header fields, zero as an unknown field has to be."""
        self._insert(self.header_bytes, bytes(count))
        self.header_bytes += count
        self.put(100, 4, self.header_bytes)

    def insert_extension(self, kind, data):
        padded = data + bytes(-len(data) % 8)
        self._insert(self.header_bytes, kind.to_bytes(4, "big") + len(data).to_bytes(4, "big") + padded)

    def snapshots(self):
        """(entry offset, L1 table offset, L1 entries) of each snapshot."""
        off = self.snapshots_off
        for _ in range(self.snapshot_count):
            l1_off, l1_count = self.get(off, 8), self.get(off + 8, 4)
            yield off, l1_off, l1_count
            count = 40 + self.get(off + 36, 4) + self.get(off + 12, 2) + self.get(off + 14, 2)
            off += (count + 7) // 8 * 8
