#!/bin/sh
# SPDX-License-Identifier: MIT
# An overlay under load. First fio fills its L2 tables, then fio writes and verifies again while file trees
# are copied and deleted, and synced.
# Settings: SEED JOB_BYTES (of each of 16 fio jobs) TREES (copies of the tree)
. /guest_lib.sh

mkdir -p /mnt/ext4
mount /dev/vda1 /mnt/ext4 || die "mount"
fact tree "$(tree_sum /mnt/ext4/tree)"

# load SEED: 16 jobs, each on its own part of the raw partition
load() {
    fio --name=load --filename=/dev/vda3 --randseed="$1" --rw=randrw --rwmixwrite=70 \
        --bssplit=4k/40:8k/30:16k/20:64k/10 --direct=1 --ioengine=libaio --numjobs=16 --iodepth=32 --thread \
        --size="$JOB_BYTES" --offset_increment="$JOB_BYTES" --verify=crc32c --verify_fatal=1 --group_reporting \
        --minimal
}

# trees: a copy has the tree's sum; some copies stay
trees() {
    want=$(tree_sum /mnt/ext4/tree)
    i=0
    while [ $i -lt "$TREES" ]; do
        cp -r /mnt/ext4/tree "/mnt/ext4/copy-$i" && sync || return 1
        [ "$(tree_sum "/mnt/ext4/copy-$i")" = "$want" ] || {
            echo "copy $i differs"
            return 1
        }
        [ $((i % 3)) = 2 ] || rm -r "/mnt/ext4/copy-$i" || return 1
        i=$((i + 1))
    done
}

load "$SEED" >/tmp/fill 2>&1 || die "filling: $(tail -n 5 /tmp/fill)"
echo "the tables are filled"
start load load $((SEED + 1))
start trees trees
start_loop sync again_and_again sync
finish_all

sync
echo 3 >/proc/sys/vm/drop_caches
fact trees "$(tree_sum /mnt/ext4)"
fact raw "$(sha256sum </dev/vda3 | cut -c 1-32)"
umount /mnt/ext4 || die "umount"
e2fsck -fn /dev/vda1 >/tmp/fsck 2>&1 || die "e2fsck: $(tail -n 5 /tmp/fsck)"
kernel_is_content
exit 0
