#!/bin/sh
# SPDX-License-Identifier: MIT
# A guest's first process: runs /job.sh, says how that ended, ends the guest. guest.py reads the lines that
# begin with GUEST.
export PATH=/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
# User Mode Linux has everything built in.
if [ "$(uname -r)" = "$(cat /lib/modules/version 2>/dev/null)" ]; then
    while read -r module; do
        insmod "/lib/modules/$module" || echo "cannot load $module"
    done </lib/modules/order
fi
tries=0
until [ -b /dev/vda ] || [ $tries = 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
cache=$(cat /sys/block/vda/cache_type 2>/dev/null)
echo "GUEST-UP $(uname -r) cpus=$(nproc) queues=$(ls /sys/block/vda/mq 2>/dev/null | wc -w) cache=$cache"
sh /job.sh </dev/null 2>&1
echo "GUEST-DONE $?"
# A job that failed may have left something mounted.
sync
umount -a -r 2>/dev/null
poweroff -f
