#!/bin/sh
# SPDX-License-Identifier: MIT
# What job_root.sh leaves: sums of its work, and of what it has only read.
. /guest_lib.sh

root=/mnt/root
[ -d $root/work ] || { mkdir -p $root && mount /dev/vda $root; } || die "mount"
fact work "$(tree_sum $root/work)"
fact usr "$(tree_sum $root/usr)"
rows=$(sqlite3 -batch $root/work/rows.db 'select count(*), sum(length(text)) from t' 2>&1) || die "rows: $rows"
fact rows "$rows"
git -c safe.directory='*' -C $root/work/clone fsck --strict --no-progress || die "git fsck"
fact commits "$(git -c safe.directory='*' -C $root/work/clone rev-list --count HEAD)"
