#!/bin/sh
# SPDX-License-Identifier: MIT
# After job_overlay.sh, in another boot: the same facts.
. /guest_lib.sh
e2fsck -fn /dev/vda1 >/tmp/fsck 2>&1 || die "e2fsck: $(tail -n 5 /tmp/fsck)"
mkdir -p /mnt/ext4
mount -o ro /dev/vda1 /mnt/ext4 || die "mount"
fact tree "$(tree_sum /mnt/ext4/tree)"
fact trees "$(tree_sum /mnt/ext4)"
fact raw "$(sha256sum </dev/vda3 | cut -c 1-32)"
umount /mnt/ext4 || die "umount"
kernel_is_content
exit 0
