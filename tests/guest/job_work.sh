#!/bin/sh
# SPDX-License-Identifier: MIT
# The first boot: two file systems, and everything at once on them and on the raw partition beside them.
# Settings: SEED THREADS ROUNDS OPS FILE_BYTES COUNT DISCARD_FLAGS
. /guest_lib.sh

mkfs.ext4 -q /dev/vda1 && mkfs.xfs -q -f /dev/vda2 || die "mkfs"
mkdir -p /mnt/ext4 /mnt/xfs
mount /dev/vda1 /mnt/ext4 && mount /dev/vda2 /mnt/xfs || die "mount"

# files FOLDER: made, renamed, removed; two thirds are left
files() {
    i=0
    mkdir -p "$1/files/sub"
    while [ $i -lt "$COUNT" ]; do
        seq $i $((i * 7 + 300)) >"$1/files/new-$i" && mv "$1/files/new-$i" "$1/files/sub/$i" || return 1
        [ $((i % 3)) != 1 ] || rm "$1/files/sub/$((i - 1))" || return 1
        [ $((i % 16)) != 15 ] || sync "$1/files/sub/$i" || return 1
        i=$((i + 1))
    done
}

# repository FOLDER: commits, branches, a clone, a packing
repository() {
    export GIT_AUTHOR_NAME=guest GIT_AUTHOR_EMAIL=g GIT_COMMITTER_NAME=guest GIT_COMMITTER_EMAIL=g
    export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000' GIT_CONFIG_NOSYSTEM=1
    git init -q -b main "$1/repo" && cd "$1/repo" || return 1
    git config core.fsync all && git config gc.auto 0 || return 1
    i=0
    while [ $i -lt $((COUNT / 10 + 3)) ]; do
        seq $i $((i + 2000)) >"file-$((i % 7))" && git add . && git commit -q -m "commit $i" || return 1
        i=$((i + 1))
    done
    git clone -q --no-local . ../clone && git repack -q -a -d && git fsck --strict --no-progress
}

# database FOLDER: transactions, in rollback and in write-ahead mode
database() {
    sqlite3 -batch "$1/rows.db" 'create table t(n integer primary key, text blob);' || return 1
    for mode in delete wal; do
        i=0
        while [ $i -lt $((COUNT / 10 + 3)) ]; do
            sqlite3 -batch "$1/rows.db" "pragma journal_mode=$mode; pragma synchronous=full; begin;
                with recursive c(x) as (select 1 union all select x + 1 from c where x < 40)
                insert into t(text) select hex(zeroblob(300)) || x || '$mode$i' from c;
                delete from t where n % 11 = $((i % 11)); commit;" >/dev/null || return 1
            i=$((i + 1))
        done
    done
}

trim() {
    fstrim /mnt/ext4 && fstrim /mnt/xfs
}

# The end of the raw partition is nobody's: discards that race with writes to the same clusters.
size=$(blockdev --getsize64 /dev/vda3)
scratch=$((16 << 20))
raw_bytes=$(((size - scratch) >> 20 << 20))
race() {
    start_at=$((raw_bytes + (RANDOM % 64) * 65536))
    dd if=/dev/urandom of=/dev/vda3 bs=65536 seek=$((start_at / 65536)) count=16 oflag=direct 2>/dev/null &
    blkdiscard -o $start_at -l $((1 << 20)) /dev/vda3
    discarded=$?
    wait $! && [ $discarded = 0 ]
}

same="--seed $SEED --ops $OPS --rounds $ROUNDS --threads $THREADS $DISCARD_FLAGS"
start raw stress run $same --size $raw_bytes /dev/vda3
start ext4-stamps stress run $same --size "$FILE_BYTES" /mnt/ext4/stamps
start xfs-stamps stress run $same --size "$FILE_BYTES" /mnt/xfs/stamps
start ext4-files files /mnt/ext4
start xfs-files files /mnt/xfs
start repository repository /mnt/ext4
start database database /mnt/xfs
start_loop trim again_and_again trim
start_loop race again_and_again race
finish_all

. /job_facts.sh
umount /mnt/ext4 && umount /mnt/xfs || die "umount"
e2fsck -fn /dev/vda1 >/tmp/fsck 2>&1 || die "e2fsck: $(tail -n 5 /tmp/fsck)"
xfs_repair -n /dev/vda2 >/tmp/fsck 2>&1 || die "xfs_repair: $(tail -n 5 /tmp/fsck)"
kernel_is_content
exit 0
