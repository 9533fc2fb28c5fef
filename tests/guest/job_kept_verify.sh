#!/bin/sh
# SPDX-License-Identifier: MIT
# After job_kept.sh was killed: all that it called safe is there.
# Settings: SEED THREADS OPS DISCARD_FLAGS as there; ROUNDS FILES ROWS, how many of each were safe
. /guest_lib.sh

# shellcheck disable=SC2086 # flags
stress verify --partial --seed "$SEED" --threads "$THREADS" --ops "$OPS" --rounds "$ROUNDS" $DISCARD_FLAGS /dev/vda2 ||
    die "rounds"
mkdir -p /mnt/ext4
mount /dev/vda1 /mnt/ext4 || die "mount"
i=0
while [ $i -lt "$FILES" ]; do
    seq $i $((i + 300)) | cmp - "/mnt/ext4/$i" || die "file $i"
    i=$((i + 1))
done
[ "$ROWS" = 0 ] || sqlite3 -batch /mnt/ext4/rows.db "pragma integrity_check; select 'rows', count(*) from t
    where n < $ROWS and text = hex(zeroblob(3000)) || n;" >/tmp/rows || die "the database: $(cat /tmp/rows)"
[ "$ROWS" = 0 ] || [ "$(tr '\n' ' ' </tmp/rows)" = "ok rows|$ROWS " ] || die "rows: $(cat /tmp/rows), not $ROWS"
umount /mnt/ext4 || die "umount"
e2fsck -fn /dev/vda1 >/tmp/fsck 2>&1 || die "e2fsck: $(tail -n 5 /tmp/fsck)"
kernel_is_content
exit 0
