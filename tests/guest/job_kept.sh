#!/bin/sh
# SPDX-License-Identifier: MIT
# Works until it is killed, and says what is safe: rounds of the stamped stress, files and database rows, each
# when a sync of it has returned. job_kept_verify.sh looks whether it is.
# Settings: SEED THREADS OPS CACHE (to be set by the guest) DISCARD_FLAGS
. /guest_lib.sh

[ -z "$CACHE" ] || echo "$CACHE" >/sys/block/vda/cache_type || die "the cache cannot be set"
fact cache "$(cat /sys/block/vda/cache_type)"
mkdir -p /mnt/ext4
mount /dev/vda1 /mnt/ext4 || die "mount"

files() {
    i=0
    while seq $i $((i + 300)) >"/mnt/ext4/new" && mv /mnt/ext4/new "/mnt/ext4/$i" && sync "/mnt/ext4/$i"; do
        echo "KEPT file $i"
        i=$((i + 1))
    done
    echo "KEPT stops: a file cannot be written"
}

rows() {
    sqlite3 -batch /mnt/ext4/rows.db 'create table t(n integer primary key, text blob);' || echo "KEPT stops: no table"
    i=0
    while sqlite3 -batch /mnt/ext4/rows.db "pragma synchronous=extra;
            insert into t values ($i, hex(zeroblob(3000)) || $i);"; do
        echo "KEPT row $i"
        i=$((i + 1))
    done
    echo "KEPT stops: a row cannot be written"
}

files &
rows &
# shellcheck disable=SC2086 # flags
stress run --seed "$SEED" --threads "$THREADS" --ops "$OPS" --rounds 1000000 $DISCARD_FLAGS /dev/vda2
die "stress has ended"
