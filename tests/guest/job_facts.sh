#!/bin/sh
# SPDX-License-Identifier: MIT
# Sourced by the jobs: what is in the file systems, from the disk.
sync
echo 3 >/proc/sys/vm/drop_caches
fact ext4-files "$(tree_sum /mnt/ext4/files)"
fact xfs-files "$(tree_sum /mnt/xfs/files)"
git -C /mnt/ext4/repo fsck --strict --no-progress >/tmp/git 2>&1 || die "git fsck: $(tail -n 3 /tmp/git)"
fact repository "$(git -C /mnt/ext4/repo rev-parse HEAD)"
fact clone "$(git -C /mnt/ext4/clone rev-parse HEAD) $(tree_sum /mnt/ext4/clone)"
fact database "$(sqlite3 -readonly /mnt/xfs/rows.db 'pragma integrity_check;
    select count(*), sum(n), sum(length(text)) from t;' | tr '\n' ' ')"
fact race "$(tail -c 16777216 /dev/vda3 | sha256sum | cut -c 1-32)"
