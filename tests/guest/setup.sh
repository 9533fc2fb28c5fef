#!/bin/bash
# SPDX-License-Identifier: MIT
#
# tests/guest/setup.sh          make what guest tests and perf/vhost.py need; as root, about 15 minutes, 2 GB
# tests/guest/setup.sh PIECE... only these: root, uml, kernel, initramfs
# tests/guest/setup.sh light    half a minute, 50 MB, no root needed: a guest of this Debian's own kernel and
#                               busybox for its own QEMU, enough for perf/demo.sh
#
# All of it goes to $SHARDCOW_GUEST (default: ~/.cache/shardcow-guest):
#
#   debian13/       a Debian 13 root with libblkio, QEMU of its backports, compilers, the guests' programs
#   linux-uml       User Mode Linux, SMP, with virtio_uml: a guest that boots in a second and needs no KVM
#   vmlinuz         Debian's kernel for virtual machines, its modules in modules/: for QEMU
#   guest.cpio      what both kernels boot into
#
# A piece that is there is left alone; remove it to have it made again. The mirror is the
# machine's own; $DEBIAN_MIRROR names another.
set -eu
G=${SHARDCOW_GUEST:-${XDG_CACHE_HOME:-$HOME/.cache}/shardcow-guest}
root=$G/debian13
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)}
jobs=${JOBS:-$(nproc)}
here=$(cd "$(dirname "$0")" && pwd)

# For perf/blkio_client.c and the kernel's build; for guests, who get them by initramfs; to serve and to boot.
packages=(ca-certificates gcc make libblkio-dev flex bison bc libelf-dev python3-minimal xz-utils cpio kmod
    busybox-static fio e2fsprogs xfsprogs util-linux sqlite3 git)
from_backports=(qemu-utils qemu-system-x86)
uml_cpus=8
# The last lines: for tests of other servers, and of power cuts.
uml_on=(STATIC_LINK SMP VIRTIO_MENU VIRTIO_UML BLOCK BLK_DEV VIRTIO_BLK IO_URING EPOLL EVENTFD AIO EXT4_FS
    XFS_FS BLK_DEV_INITRD DEVTMPFS TMPFS
    FUSE_FS HOSTFS BLK_DEV_LOOP BLK_DEV_NBD BLK_DEV_UBLK
    MD BLK_DEV_DM DM_FLAKEY DM_LOG_WRITES)
uml_off=(DEBUG_INFO DEBUG_KERNEL SOUND WIRELESS IPV6)

say() { printf '== %s\n' "$*"; }

# In the root, or on this system when root is empty.
inside() { ${root:+chroot "$root"} env LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@" </dev/null; }

apt_inside() { inside apt-get -q -o APT::Sandbox::User=root -o DPkg::Use-Pty=0 "$@"; }

# mktemp -d inside the root; removed at the end, whatever happens
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
new_work() {
    [ -z "$work" ] || rm -rf "$work"
    work=$(mktemp -d "$root/tmp/setup.XXXXXX")
    inner=${work#"$root"}
}

make_root() {
    if [ ! -x "$root/usr/bin/apt-get" ]; then
        command -v mmdebstrap >/dev/null || {
            echo "mmdebstrap is missing (Debian package mmdebstrap)"
            exit 1
        }
        say "a Debian 13 root in $root"
        rm -rf "$root.part"
        mmdebstrap --quiet --mode=root --variant=minbase --aptopt='APT::Sandbox::User "root"' trixie "$root.part" \
            "deb $mirror trixie main" "deb $mirror trixie-backports main" </dev/null
        mv "$root.part" "$root"
    fi
    [ ! -e "$root/.guest-packages" ] || return 0
    say "its packages"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    apt_inside update -q
    apt_inside install -y --no-install-recommends "${packages[@]}"
    apt_inside install -y --no-install-recommends -t trixie-backports "${from_backports[@]}"
    touch "$root/.guest-packages"
}

make_uml() {
    [ ! -x "$G/linux-uml" ] || return 0
    say "User Mode Linux, static: the host may have an older libc"
    new_work
    local source option
    # The newest: in that of Debian 13 itself, User Mode Linux has one processor.
    source=$(inside apt-cache --names-only search '^linux-source-[0-9.]+$' | sort -V | awk 'END { print $1 }')
    # Unpacked where it is needed: nothing has to be installed.
    apt_inside_in "$inner" download "$source/trixie-backports"
    inside sh -c "cd $inner && dpkg -x linux-source-*.deb . && mkdir k &&
        tar xf usr/src/linux-source-*.tar.xz -C k --strip-components=1 && rm -r usr linux-source-*.deb"
    inside sh -c "cd $inner/k && export ARCH=um && make -s defconfig &&
        ./scripts/config --set-val NR_CPUS $uml_cpus ${uml_on[*]/#/-e } ${uml_off[*]/#/-d } &&
        make -s olddefconfig"
    for option in SMP VIRTIO_UML STATIC_LINK; do
        grep -qx "CONFIG_$option=y" "$work/k/.config" || {
            echo "this kernel cannot have $option"
            exit 1
        }
    done
    inside sh -c "cd $inner/k && export ARCH=um && nice make -s -j $jobs linux && strip -o ../linux linux"
    mv "$work/linux" "$G/linux-uml"
}

apt_inside_in() {
    local folder=$1
    shift
    inside sh -c 'cd "$0" && exec apt-get -q -o APT::Sandbox::User=root "$@"' "$folder" "$@"
}

make_kernel() {
    [ ! -e "$G/vmlinuz" ] || return 0
    say "a kernel for QEMU"
    new_work
    local package version name
    package=$(inside apt-cache depends "linux-image-cloud-amd64${root:+/trixie}" |
        awk '/Depends: linux-image/ { print $2; exit }')
    apt_inside_in "$inner" download "$package"
    inside sh -c "cd $inner && dpkg -x linux-image-*.deb ."
    version=$(basename "$work"/boot/vmlinuz-*)
    version=${version#vmlinuz-}
    [ -d "$work/lib/modules" ] || mv "$work/usr/lib" "$work/lib"
    inside depmod -b "$inner" "$version"
    rm -rf "$G/modules"
    mkdir -p "$G/modules"
    # In the order in which they are to be loaded, unpacked: busybox cannot do it.
    for name in virtio_pci virtio_blk ext4 xfs; do
        inside modprobe -S "$version" -d "$inner" --show-depends "$name" | awk '$1 == "insmod" { print $2 }'
    done | awk '!seen[$0]++' | while read -r path; do
        name=$(basename "$path" .xz)
        case $path in
        *.xz) xz -dc "$root$path" >"$G/modules/$name" ;;
        *) cp "$root$path" "$G/modules/$name" ;;
        esac
        echo "$name" >>"$G/modules/order"
    done
    echo "$version" >"$G/modules/version"
    mv "$work/boot/vmlinuz-$version" "$G/vmlinuz"
}

make_initramfs() {
    [ ! -e "$G/guest.cpio" ] || return 0
    say "an initramfs"
    new_work
    cp "$here/initramfs.sh" "$work/"
    [ ! -d "$G/modules" ] || cp -r "$G/modules" "$work/modules"
    inside ${programs+env PROGRAMS="$programs"} bash "$inner/initramfs.sh" "$inner/out.cpio"
    mv "$work/out.cpio" "$G/guest.cpio"
}

mkdir -p "$G"
if [ "${1:-}" = light ]; then
    root=
    programs=
    make_kernel
    make_initramfs
    exit 0
fi
[ "$(id -u)" = 0 ] || {
    echo "setup.sh has to run as root: it makes a Debian root and works inside it"
    exit 1
}
for piece in "${@:-root uml kernel initramfs}"; do
    for one in $piece; do
        case $one in
        root | uml | kernel | initramfs) "make_$one" ;;
        *)
            sed -n '4,16s/^# \{0,1\}//p' "$0"
            exit 2
            ;;
        esac
    done
done
say "done: $G"
