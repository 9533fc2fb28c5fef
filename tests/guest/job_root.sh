#!/bin/sh
# SPDX-License-Identifier: MIT
# A distribution's root on an overlay, and its own programs at work in it: git, sqlite, a compiler, copying
# and deleting, all at once with syncs.
# Settings: COUNT
. /guest_lib.sh

root=/mnt/root
mkdir -p $root
mount /dev/vda $root || die "mount"
mount -t proc proc $root/proc
mount -o bind /dev $root/dev
mount -t tmpfs tmpfs $root/tmp
inside() {
    chroot $root env -i PATH=/usr/bin:/bin:/usr/sbin HOME=/root LC_ALL=C COUNT="$COUNT" "$@"
}
rm -rf $root/work
mkdir $root/work

repository() {
    inside sh -ec '
        git config --global user.name guest && git config --global user.email guest@guest
        git init -q -b main /work/repo && cd /work/repo
        git config core.fsync all && git config gc.auto 0
        i=0
        while [ $i -lt $COUNT ]; do
            for part in perl python3 git-core; do
                mkdir -p $i/$part && find /usr/lib /usr/share -path "*$part*" -type f -size -40k |
                    awk "NR % (2 * $COUNT) == $i" | head -n 60 | xargs -r cp -t $i/$part 2>/dev/null || true
            done
            git add . && git commit -q -m "part $i"
            [ $((i % 3)) != 2 ] || git rm -q -r $((i - 1)) && git commit -q --allow-empty -m "less $i"
            i=$((i + 1))
        done
        git clone -q --no-local . /work/clone && git repack -q -a -d && git fsck --strict --no-progress
        cd /work/clone && git fsck --strict --no-progress'
}

database() {
    inside sh -ec '
        db=/work/rows.db
        sqlite3 -batch $db "create table t(n integer primary key, text blob); create index i on t(text);"
        for mode in delete wal; do
            i=0
            while [ $i -lt $((4 * COUNT)) ]; do
                sqlite3 -batch $db "pragma journal_mode=$mode; pragma synchronous=full; begin;
                    with recursive c(x) as (select 1 union all select x + 1 from c where x < 60)
                    insert into t(text) select hex(randomblob(200)) from c;
                    delete from t where n % 13 = $((i % 13)); commit;" >/dev/null
                i=$((i + 1))
            done
        done
        [ "$(sqlite3 -batch $db "pragma integrity_check")" = ok ]'
}

programs() {
    inside sh -ec '
        mkdir /work/programs && cd /work/programs
        i=0
        while [ $i -lt $((2 * COUNT)) ]; do
            echo "#include <stdio.h>
                  int main(void) { printf(\"%d\\n\", $i * 7); return 0; }" >$i.c
            gcc -O1 -o $i $i.c && [ "$(./$i)" = $((i * 7)) ]
            [ $((i % 2)) = 0 ] || rm $((i - 1)) $((i - 1)).c
            i=$((i + 1))
        done'
}

copies() {
    want=$(tree_sum $root/usr/share/perl5)
    cp -r $root/usr/share/perl5 $root/work/copy && sync && [ "$(tree_sum $root/work/copy)" = "$want" ] &&
        rm -r $root/work/copy
}

start repository repository
start database database
start programs programs
start_loop copies again_and_again copies
start_loop sync again_and_again sync
start_loop trim again_and_again fstrim $root
finish_all

sync
echo 3 >/proc/sys/vm/drop_caches
. /job_root_sums.sh
umount $root/tmp && umount $root/dev && umount $root/proc && umount $root || die "umount"
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || die "e2fsck: $(tail -n 5 /tmp/fsck)"
kernel_is_content
exit 0
