#!/bin/sh
# SPDX-License-Identifier: MIT
# Works for a while, whatever happens to the server or to the hypervisor, and finds all as it should be.
# Settings: SEED THREADS OPS SECONDS_LONG COUNT DISCARD_FLAGS
. /guest_lib.sh

mkdir -p /mnt/ext4
mount /dev/vda1 /mnt/ext4 || die "mount"

files() {
    i=0
    until [ -e /tmp/enough ]; do
        seq $i $((i + 3000)) >"/mnt/ext4/$((i % COUNT))" || return 1
        [ $((i % 4)) != 3 ] || sync || return 1
        [ $((i % 16)) != 15 ] || echo 3 >/proc/sys/vm/drop_caches
        [ $i -lt 8 ] || seq $((i - 8)) $((i - 8 + 3000)) | cmp - "/mnt/ext4/$(((i - 8) % COUNT))" || return 1
        i=$((i + 1))
    done
    echo "$i files"
}

start_loop files files
echo "WORKING"
# shellcheck disable=SC2086 # flags
stress run --seed "$SEED" --threads "$THREADS" --ops "$OPS" --rounds 1000000 --seconds "$SECONDS_LONG" $DISCARD_FLAGS \
    /dev/vda2 || die "stress"
finish_all
fact files "$(tree_sum /mnt/ext4)"
umount /mnt/ext4 || die "umount"
e2fsck -fn /dev/vda1 >/tmp/fsck 2>&1 || die "e2fsck: $(tail -n 5 /tmp/fsck)"
kernel_is_content
exit 0
