#!/bin/bash
# SPDX-License-Identifier: MIT
#
# perf/demo.sh: the main job on real input. Installs what is missing (as root, on Debian 12), builds, makes a
# disk image from this machine's /usr, reads and checks it on all cores, measures it beside the raw file,
# writes to an overlay, and serves a disk to a guest: that of tests/guest/setup.sh, or one of this Debian's
# own kernel.
set -eu
cd "$(dirname "$0")/.."
top=$PWD
. tests/lib/packages.sh

export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
cores=$(nproc)
seconds=${SCOW_DEMO_SECONDS:-1}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }
# show COMMAND...: print it and run it
show() {
    printf '$ %s\n' "$*"
    "$@"
}
# quietly COMMAND...: its output only when it fails
quietly() {
    "$@" >build/demo.log 2>&1 || {
        cat build/demo.log
        return 1
    }
}

mkdir -p build
packages_install demo
say "Building"
[ -f build/build.ninja ] || quietly meson setup build
quietly ninja -C build cli/shardcow
PATH=$top/build/cli:$PATH
echo "build/cli/shardcow, $(shardcow --version)"

# In memory when there is room: what is measured is then the software, not the disk.
where=$top/build
need_kib=$((2 * 1024 * 1024))
if [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1 || echo 0)" -gt $need_kib ]; then
    where=/dev/shm
fi
folder=$(mktemp -d "$where/shardcow-demo.XXXXXX")
trap 'rm -rf "$folder"' EXIT

say "Making a disk from /usr in $folder"
quietly python3 tests/lib/tree_disk.py "$folder/tree.raw" 300
cd "$folder"
# Every block allocated on both sides, or reads of holes would flatter the image.
cp --sparse=never tree.raw disk.raw
rm tree.raw
show qemu-img convert -f raw -O qcow2 -S 0 disk.raw disk.qcow2
show shardcow info --stats disk.qcow2

say "Reading every byte on $cores core(s)"
show shardcow compare -f qcow2 -F raw disk.qcow2 disk.raw
show shardcow check disk.qcow2
show shardcow convert -O raw disk.qcow2 copy.raw
cmp copy.raw disk.raw && echo "copy.raw is disk.raw, byte for byte"
rm copy.raw

# 1, 2, 4, … and the number of cores
scale=1
for ((n = 2; n < cores; n *= 2)); do scale+=,$n; done
[ "$cores" -eq 1 ] || scale+=,$cores
say "Random 4 KiB reads, 64 in flight per queue: the image beside the raw file"
show shardcow bench --rw randread --bs 4k --depth 64 --seconds "$seconds" --rounds 5 \
    --scale "$scale" --compare-raw disk.raw disk.qcow2

say "Writing: an overlay over it, $cores queue(s), a flush after every 64 writes; then what QEMU says"
show shardcow create -q -b disk.qcow2 -F qcow2 overlay.qcow2
show shardcow bench --rw randwrite --bs 4k --depth 32 --queues "$cores" --flush-every 64 \
    --seconds "$seconds" overlay.qcow2
show shardcow check overlay.qcow2
show qemu-img check overlay.qcow2

say "Serving a disk with $cores queue(s) to a guest"
cd "$top"
if [ ! -e "${SHARDCOW_GUEST:-${XDG_CACHE_HOME:-$HOME/.cache}/shardcow-guest}/guest.cpio" ]; then
    export SHARDCOW_GUEST=$top/build/guest
    packages_install guest && quietly tests/guest/setup.sh light || true
fi
quietly cc -O2 -D_GNU_SOURCE -static -pthread tests/guest/stress.c -o build/demo-stress
python3 perf/demo_serve.py "$top/build/cli/shardcow" build/demo-stress "$folder" "$cores" $((seconds + 2))
