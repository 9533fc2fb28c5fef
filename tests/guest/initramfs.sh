#!/bin/bash
# SPDX-License-Identifier: MIT
#
# initramfs.sh OUT: what guests boot into, as a cpio archive: busybox and $PROGRAMS. setup.sh runs it inside
# the Debian 13 root, so that programs and libraries are of one kind. Beside it: modules/, if there are any.
# /init comes with the job.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
t=$(mktemp -d)
trap 'rm -rf "$t"' EXIT
mkdir -p "$t"/{dev,proc,sys,tmp,mnt,etc,run,root,usr/bin,usr/lib,usr/lib64}
# As in Debian: the linker's path is /lib64.
ln -s usr/bin "$t/bin"
ln -s usr/bin "$t/sbin"
ln -s usr/lib "$t/lib"
ln -s usr/lib64 "$t/lib64"

# put PROGRAM: with the libraries it needs, in place of busybox's
put() {
    local path library
    path=$(command -v "$1")
    rm -f "$t/usr/bin/$1"
    cp -L "$path" "$t/usr/bin/"
    ldd "$path" | awk '/=> \// { print $3 } /^\t\/lib/ { print $1 }' | while read -r library; do
        mkdir -p "$t$(dirname "$library")"
        [ -e "$t$library" ] || cp -L "$library" "$t$library"
    done
}

cp "$(command -v busybox)" "$t/usr/bin/busybox"
for applet in $(busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$t/usr/bin/$applet"
done
: "${PROGRAMS=bash fio mke2fs e2fsck xfs_repair mkfs.xfs blkdiscard fstrim sqlite3 git mount umount}"
for program in $PROGRAMS; do
    put "$program"
done
[ ! -e "$t/usr/bin/mke2fs" ] || ln -sf mke2fs "$t/usr/bin/mkfs.ext4"
[ ! -e /etc/mke2fs.conf ] || cp /etc/mke2fs.conf "$t/etc/"
echo 'root:x:0:0:root:/root:/bin/sh' >"$t/etc/passwd"
# Git's own commands are the same program; clone and gc ask for these by name.
mkdir -p "$t/usr/lib/git-core" "$t/usr/share/git-core/templates"
for name in git git-upload-pack git-receive-pack; do
    ln -sf ../../bin/git "$t/usr/lib/git-core/$name"
done
if [ -d "$here/modules" ]; then
    mkdir -p "$t/usr/lib/modules"
    cp "$here"/modules/* "$t/usr/lib/modules/"
fi
(cd "$t" && find . | cpio -o -H newc --quiet) >"$out"
