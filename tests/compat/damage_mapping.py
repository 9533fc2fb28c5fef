# SPDX-License-Identifier: MIT
"""Damages to refcounts, refcount table, L1 and L2 tables.

Every function takes an Editor of a copy of its base and a random.Random.
"""

from damages import bitmap_directory, damage
from qcow2_editor import COMPRESSED, COPIED, L1_MASK


def l2_table(e, index=0):
    return list(e.l2_tables())[index][1]


# ---- refcounts -------------------------------------------------------------------------------------


@damage("plain", "v2", "snapshot", "small-clusters", "refcount-64")
def refcount_one_too_many(e, rng):
    host = rng.choice(e.standard())[1] & L1_MASK
    e.put_refcount(host, e.get_refcount(host) + 1)


@damage("plain", "snapshot", "small-clusters", "refcount-1", "refcount-64", "extended")
def refcount_zero_of_data(e, rng):
    e.put_refcount(rng.choice(e.standard())[1] & L1_MASK, 0)


@damage("plain", "extended")
def refcount_zero_of_compressed(e, rng):
    bits = 62 - (e.cluster_bits - 8)
    e.put_refcount(rng.choice(e.compressed())[1] & ((1 << bits) - 1), 0)


@damage("plain", "refcount-1", "small-clusters")
def refcount_of_free_cluster(e, rng):
    e.put_refcount(e.file_bytes() + rng.randint(0, 3) * e.cluster, 1)


@damage("plain")
def refcount_far_past_end_of_file(e, _rng):
    e.put_refcount(e.file_bytes() + 1000 * e.cluster, 1)


@damage("plain", "data-file")
def refcount_zero_of_l2(e, _rng):
    e.put_refcount(l2_table(e), 0)


@damage("plain", "snapshot")
def refcount_two_of_l2(e, _rng):
    e.put_refcount(l2_table(e), 2)


@damage("plain", "v2")
def refcount_zero_of_l1(e, _rng):
    e.put_refcount(e.l1_off, 0)


@damage("plain")
def refcount_zero_of_header(e, _rng):
    e.put_refcount(0, 0)


@damage("plain")
def refcount_zero_of_reftable(e, _rng):
    e.put_refcount(e.reftable_off, 0)


@damage("plain", "small-clusters")
def refcount_zero_of_refblock(e, _rng):
    e.put_refcount(e.get(e.refblock_at(0), 8), 0)


@damage("plain")
def refcount_two_of_refblock(e, _rng):
    e.put_refcount(e.get(e.refblock_at(0), 8), 2)


@damage("bitmap")
def refcount_zero_of_bitmap_directory(e, _rng):
    e.put_refcount(bitmap_directory(e), 0)


@damage("snapshot")
def refcount_zero_of_snapshot_table(e, _rng):
    e.put_refcount(e.snapshots_off, 0)


@damage("refcount-64")
def refcount_enormous(e, rng):
    e.put_refcount(rng.choice(e.standard())[1] & L1_MASK, (1 << 64) - 1)


@damage("plain", "snapshot", "small-clusters")
def refcounts_scrambled(e, rng):
    for _ in range(20):
        e.put_refcount(rng.randrange(e.file_bytes() // e.cluster) * e.cluster, rng.randint(0, 3))


# ---- refcount table --------------------------------------------------------------------------------


@damage("plain", "small-clusters")
def reftable_entry_unaligned(e, _rng):
    e.put(e.refblock_at(0), 8, e.get(e.refblock_at(0), 8) + (512 if e.cluster > 512 else 256))


@damage("plain", "small-clusters")
def reftable_entry_past_end_of_file(e, _rng):
    e.put(e.refblock_at(0), 8, e.file_bytes() // e.cluster * e.cluster + 64 * e.cluster)


@damage("plain")
def reftable_entry_at_the_highest_offset(e, _rng):
    e.put(e.refblock_at(0), 8, 0xFFFFFFFFFFFF0000)


@damage("small-clusters")
def reftable_entry_lost(e, _rng):
    e.put(e.refblock_at(1), 8, 0)


@damage("plain")
def reftable_entry_lost_the_only_one(e, _rng):
    e.put(e.refblock_at(0), 8, 0)


@damage("plain")
def reftable_entry_reserved_bit(e, _rng):
    e.put(e.refblock_at(0), 8, e.get(e.refblock_at(0), 8) | 1)


@damage("small-clusters")
def reftable_entry_twice(e, _rng):
    e.put(e.refblock_at(1), 8, e.get(e.refblock_at(0), 8))


@damage("plain")
def reftable_second_entry_names_first_block(e, _rng):
    e.put(e.refblock_at(1), 8, e.get(e.refblock_at(0), 8))


@damage("plain")
def reftable_entry_names_header(e, _rng):
    e.put(e.refblock_at(3), 8, e.reftable_off)


# ---- L1 --------------------------------------------------------------------------------------------


@damage("plain", "snapshot", "small-clusters")
def l1_entry_unaligned(e, _rng):
    at = e.l1_at(next(e.l2_tables())[0])
    e.put(at, 8, e.get(at, 8) + (512 if e.cluster > 512 else 256))


@damage("plain", "extended")
def l1_entry_reserved_low(e, _rng):
    e.put(e.l1_at(0), 8, e.get(e.l1_at(0), 8) | 1)


@damage("plain")
def l1_entry_reserved_high(e, _rng):
    e.put(e.l1_at(0), 8, e.get(e.l1_at(0), 8) | 1 << 60)


@damage("plain", "v2")
def l1_copied_cleared(e, _rng):
    e.put(e.l1_at(0), 8, e.get(e.l1_at(0), 8) & ~COPIED)


@damage("snapshot")
def l1_copied_set_on_shared(e, _rng):
    e.put_refcount(l2_table(e), 2)
    e.put(e.l1_at(0), 8, e.get(e.l1_at(0), 8) | COPIED)


@damage("plain", "small-clusters")
def l1_entry_past_end_of_file(e, _rng):
    e.put(e.l1_at(next(e.l2_tables())[0]), 8, COPIED | (e.file_bytes() // e.cluster + 50) * e.cluster)


@damage("small-clusters")
def l1_entries_share_a_table(e, _rng):
    tables = list(e.l2_tables())
    e.put(e.l1_at(tables[1][0]), 8, COPIED | tables[0][1])


@damage("plain")
def l1_entry_names_reftable(e, _rng):
    e.put(e.l1_at(0), 8, COPIED | e.reftable_off)


@damage("plain")
def l1_entry_names_l1(e, _rng):
    e.put(e.l1_at(0), 8, COPIED | e.l1_off)


@damage("plain")
def l1_entry_names_data(e, rng):
    e.put(e.l1_at(0), 8, COPIED | rng.choice(e.standard())[1] & L1_MASK)


@damage("plain", "small-clusters")
def l1_entry_lost(e, _rng):
    e.put(e.l1_at(next(e.l2_tables())[0]), 8, 0)


@damage("plain")
def l1_entry_copied_only(e, _rng):
    e.put(e.l1_at(0), 8, COPIED)


# ---- L2 --------------------------------------------------------------------------------------------


@damage("plain", "v2", "extended", "snapshot")
def l2_entry_unaligned(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value + 512)


@damage("plain", "small-clusters", "refcount-64")
def l2_entry_past_end_of_file(e, rng):
    at, _, _ = rng.choice(e.standard())
    e.put(at, 8, COPIED | (e.file_bytes() // e.cluster + 7) * e.cluster)


@damage("plain")
def l2_entry_at_the_highest_offset(e, rng):
    e.put(rng.choice(e.standard())[0], 8, COPIED | L1_MASK & -e.cluster)


@damage("plain", "refcount-1", "extended")
def l2_entries_share_a_cluster(e, _rng):
    entries = e.standard()
    e.put(entries[1][0], 8, entries[0][1])


@damage("plain", "v2", "extended", "small-clusters")
def l2_copied_cleared(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value & ~COPIED)


@damage("snapshot")
def l2_copied_set_on_shared(e, rng):
    at, value, _ = rng.choice([x for x in e.standard() if not x[1] & COPIED])
    e.put(at, 8, value | COPIED)


@damage("plain")
def l2_entry_reserved_low(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value | 2)


@damage("plain")
def l2_entry_reserved_high(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value | 1 << 57)


@damage("plain", "backing")
def l2_entry_copied_at_zero(e, rng):
    e.put(rng.choice(e.standard())[0], 8, COPIED)


@damage("plain")
def l2_entry_names_l1(e, rng):
    e.put(rng.choice(e.standard())[0], 8, COPIED | e.l1_off)


@damage("plain")
def l2_entry_names_its_own_table(e, rng):
    e.put(rng.choice(e.standard())[0], 8, COPIED | l2_table(e))


@damage("plain", "small-clusters")
def l2_entry_lost(e, rng):
    e.put(rng.choice(e.standard())[0], 8, 0)


@damage("v2", "plain")
def zero_flag(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value | 1)


@damage("plain")
def zero_cluster_unaligned(e, _rng):
    at, value, _ = next(x for x in e.entries() if x[1] & 1 and x[1] & L1_MASK and not x[1] & COMPRESSED)
    e.put(at, 8, value + 1024)


@damage("plain")
def zero_cluster_past_end_of_file(e, _rng):
    at, _, _ = next(x for x in e.entries() if x[1] & 1 and x[1] & L1_MASK and not x[1] & COMPRESSED)
    e.put(at, 8, COPIED | 1 | (e.file_bytes() // e.cluster + 3) * e.cluster)


@damage("plain", "extended")
def compressed_with_copied(e, rng):
    at, value, _ = rng.choice(e.compressed())
    e.put(at, 8, value | COPIED)


@damage("plain", "v2")
def compressed_past_end_of_file(e, rng):
    at, _, _ = rng.choice(e.compressed())
    e.put(at, 8, COMPRESSED | (e.file_bytes() + 10 * e.cluster + 77))


@damage("plain")
def compressed_too_many_sectors(e, rng):
    at, value, _ = rng.choice(e.compressed())
    e.put(at, 8, value | ((1 << 62) - 1) & ~((1 << (62 - (e.cluster_bits - 8))) - 1))


@damage("plain")
def compressed_at_the_highest_offset(e, rng):
    at, _, _ = rng.choice(e.compressed())
    e.put(at, 8, COMPRESSED | (1 << (62 - (e.cluster_bits - 8))) - 1)


@damage("extended")
def subcluster_allocated_and_zero(e, rng):
    at, _, _ = rng.choice(e.standard())
    e.put(at + 8, 8, e.get(at + 8, 8) | 1 << 3 | 1 << 35)


@damage("extended")
def subcluster_allocated_without_cluster(e, _rng):
    at, _, _ = next(x for x in e.entries() if not x[1] & (L1_MASK | COMPRESSED))
    e.put(at + 8, 8, 1 << 5)


@damage("extended")
def subcluster_bitmap_of_compressed(e, rng):
    e.put(rng.choice(e.compressed())[0] + 8, 8, 1)


@damage("extended")
def subcluster_bitmap_cleared(e, rng):
    e.put(rng.choice(e.standard())[0] + 8, 8, 0)
