# SPDX-License-Identifier: MIT
"""Damages to snapshots, bitmaps, header, data files and the end of the file.

Every function takes an Editor of a copy of its base and a random.Random.
"""

import os

import damage_mapping
from damages import BITMAPS_EXTENSION, bitmap_directory, damage
from qcow2_editor import COMPRESSED, COPIED, L1_MASK


# ---- snapshots -------------------------------------------------------------------------------------


@damage("snapshot")
def snapshot_l1_unaligned(e, _rng):
    at, l1, _ = list(e.snapshots())[0]
    e.put(at, 8, l1 + 8)


@damage("snapshot")
def snapshot_l1_past_end_of_file(e, _rng):
    e.put(list(e.snapshots())[1][0], 8, e.file_bytes() // e.cluster * e.cluster + 10 * e.cluster)


@damage("snapshot")
def snapshot_l1_size_enormous(e, _rng):
    e.put(list(e.snapshots())[0][0] + 8, 4, 0x7FFFFFFF)


@damage("snapshot")
def snapshot_l1_size_zero(e, _rng):
    e.put(list(e.snapshots())[0][0] + 8, 4, 0)


@damage("snapshot")
def snapshot_l1_entry_lost(e, _rng):
    e.put(list(e.snapshots())[0][1], 8, 0)


@damage("snapshot")
def snapshot_l1_entry_unaligned(e, _rng):
    l1 = list(e.snapshots())[0][1]
    e.put(l1, 8, e.get(l1, 8) + 512)


@damage("snapshot")
def snapshot_l1_entry_reserved(e, _rng):
    l1 = list(e.snapshots())[0][1]
    e.put(l1, 8, e.get(l1, 8) | 3)


@damage("snapshot")
def snapshot_l2_entry_unaligned(e, _rng):
    table = e.get(list(e.snapshots())[0][1], 8) & L1_MASK
    e.put(table, 8, e.get(table, 8) + 512)


@damage("snapshot")
def snapshot_extra_data_enormous(e, _rng):
    e.put(list(e.snapshots())[0][0] + 36, 4, 0x10000000)


@damage("snapshot")
def snapshot_extra_data_short(e, _rng):
    e.put(list(e.snapshots())[1][0] + 36, 4, 8)


@damage("snapshot")
def snapshot_table_unaligned(e, _rng):
    e.put(64, 8, e.snapshots_off + 8)


@damage("snapshot")
def snapshot_count_too_high(e, _rng):
    e.put(60, 4, 3)


@damage("snapshot")
def snapshot_count_enormous(e, _rng):
    e.put(60, 4, 0x7FFFFFFF)


@damage("snapshot")
def snapshot_count_zero(e, _rng):
    e.put(60, 4, 0)


# ---- bitmaps ---------------------------------------------------------------------------------------


@damage("bitmap")
def bitmap_in_use(e, _rng):
    e.put(bitmap_directory(e) + 12, 4, e.get(bitmap_directory(e) + 12, 4) | 1)


@damage("bitmap")
def bitmap_table_unaligned(e, _rng):
    e.put(bitmap_directory(e), 8, e.get(bitmap_directory(e), 8) + 8)


@damage("bitmap")
def bitmap_table_past_end_of_file(e, _rng):
    e.put(bitmap_directory(e), 8, e.file_bytes() // e.cluster * e.cluster + 100 * e.cluster)


@damage("bitmap")
def bitmap_table_entry_reserved(e, _rng):
    table = e.get(bitmap_directory(e), 8)
    e.put(table, 8, 0x80)


@damage("bitmap")
def bitmap_table_entry_shared(e, _rng):
    e.put(e.get(bitmap_directory(e), 8), 8, e.standard()[0][1] & L1_MASK)


@damage("bitmap")
def bitmap_type_unknown(e, _rng):
    e.put(bitmap_directory(e) + 16, 1, 9)


@damage("bitmap")
def bitmap_granularity_enormous(e, _rng):
    e.put(bitmap_directory(e) + 17, 1, 63)


@damage("bitmap")
def bitmap_count_too_high(e, _rng):
    e.put(e.extension(BITMAPS_EXTENSION) + 8, 4, 3)


@damage("bitmap")
def bitmap_directory_unaligned(e, _rng):
    e.put(e.extension(BITMAPS_EXTENSION) + 24, 8, bitmap_directory(e) + 8)


@damage("bitmap")
def bitmap_autoclear_unset(e, _rng):
    e.put(88, 8, 0)


# ---- header, data file, end of file ----------------------------------------------------------------


@damage("plain")
def dirty_bit(e, _rng):
    e.put(72, 8, e.incompatible | 1)


@damage("plain")
def corrupt_bit(e, _rng):
    e.put(72, 8, e.incompatible | 2)


@damage("plain")
def l1_count_too_small(e, _rng):
    e.put(36, 4, 0)


@damage("plain")
def l1_count_higher(e, _rng):
    e.put(36, 4, e.l1_count + 5)


@damage("plain")
def reftable_clusters_zero(e, _rng):
    e.put(56, 4, 0)


@damage("plain")
def unknown_incompatible_bit(e, _rng):
    e.put(72, 8, 1 << 40)


@damage("data-file")
def data_file_entry_elsewhere(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value + e.cluster)


@damage("data-file")
def data_file_entry_unaligned(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value + 512)


@damage("data-file")
def data_file_copied_cleared(e, rng):
    at, value, _ = rng.choice(e.standard())
    e.put(at, 8, value & ~COPIED)


@damage("data-file")
def data_file_compressed_entry(e, rng):
    e.put(rng.choice(e.standard())[0], 8, COMPRESSED | 0x50000)


@damage("plain", "small-clusters", "snapshot")
def file_cut_short(e, _rng):
    os.ftruncate(e.fd, e.file_bytes() * 2 // 3 // 512 * 512)


@damage("plain")
def file_cut_in_last_cluster(e, _rng):
    os.ftruncate(e.fd, e.file_bytes() // e.cluster * e.cluster - 512)


@damage("plain", "snapshot")
def two_errors_and_a_leak(e, rng):
    damage_mapping.refcount_one_too_many(e, rng)
    damage_mapping.refcount_zero_of_data(e, rng)
    damage_mapping.l2_entry_unaligned(e, rng)
