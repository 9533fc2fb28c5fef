#!/bin/sh
# SPDX-License-Identifier: MIT
# The second boot: everything is as the first one left it; then some more rounds.
# Settings: as for job_work.sh, and MORE
. /guest_lib.sh

e2fsck -fn /dev/vda1 >/tmp/fsck 2>&1 || die "e2fsck: $(tail -n 5 /tmp/fsck)"
xfs_repair -n /dev/vda2 >/tmp/fsck 2>&1 || die "xfs_repair: $(tail -n 5 /tmp/fsck)"
mkdir -p /mnt/ext4 /mnt/xfs
mount /dev/vda1 /mnt/ext4 && mount /dev/vda2 /mnt/xfs || die "mount"
. /job_facts.sh

raw_bytes=$((($(blockdev --getsize64 /dev/vda3) - (16 << 20)) >> 20 << 20))
# everywhere run|verify ROUNDS [OPTION...]
everywhere() {
    what=$1 rounds=$2
    shift 2
    same="--seed $SEED --ops $OPS --rounds $rounds --threads $THREADS $DISCARD_FLAGS $*"
    start raw stress $what $same --size $raw_bytes /dev/vda3
    start ext4-stamps stress $what $same --size "$FILE_BYTES" /mnt/ext4/stamps
    start xfs-stamps stress $what $same --size "$FILE_BYTES" /mnt/xfs/stamps
    finish
}
everywhere verify "$ROUNDS"
everywhere run $((ROUNDS + MORE)) --first "$ROUNDS"
umount /mnt/ext4 && umount /mnt/xfs || die "umount"
kernel_is_content
exit 0
