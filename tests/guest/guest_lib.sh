#!/bin/sh
# SPDX-License-Identifier: MIT
# Sourced by the jobs: things that run side by side, and what they leave.

die() {
    echo "JOB-FAILED $*"
    exit 1
}

# qemu-storage-daemon calls itself a write-through disk, but keeps writes in caches: without this the guest
# would never flush. Jobs that are about caches set KEEP_CACHE.
[ -n "$KEEP_CACHE" ] || [ "$(cat /sys/block/vda/cache_type)" != "write through" ] ||
    echo "write back" >/sys/block/vda/cache_type

# start NAME COMMAND...: in the background
started=
start() {
    name=$1
    shift
    (
        ("$@") >"/tmp/out.$name" 2>&1
        echo $? >"/tmp/status.$name"
    ) &
    started="$started $!:$name"
}

# await PID:NAME...: until all have ended
await() {
    for one; do
        wait "${one%%:*}"
        [ "$(cat "/tmp/status.${one#*:}")" = 0 ] || echo "${one#*:} has failed"
    done
}

# finish: wait for all that was started; show how each ended
finish() {
    # shellcheck disable=SC2086 # a list
    await $started
    bad=
    for one in $started; do
        name=${one#*:}
        tail -n 8 "/tmp/out.$name" | sed "s/^/$name: /"
        [ "$(cat "/tmp/status.$name")" = 0 ] || bad="$bad $name"
    done
    started=
    [ -z "$bad" ] || die "$bad"
}

# again_and_again COMMAND...: until /tmp/enough is there; fails when the command does
again_and_again() {
    count=0
    until [ -e /tmp/enough ]; do
        "$@" || return 1
        count=$((count + 1))
        # A thief of time on few processors, if it never rests.
        sleep 0.05
    done
    echo "$count times"
}

# start_loop NAME COMMAND...: with again_and_again; goes on as long as the rest, see finish_all
loops=
start_loop() {
    others=$started
    start "$@"
    loops="$loops ${started##* }"
    started=$others
}

finish_all() {
    # shellcheck disable=SC2086
    await $started
    touch /tmp/enough
    started="$started $loops"
    loops=
    finish
    rm /tmp/enough
}

# fact NAME VALUE: what the next boot, or the host, has to find as well
fact() {
    echo "FACT $1 $2"
}

# tree_sum FOLDER: of names and contents
tree_sum() {
    (cd "$1" && find . -type f | sort | tr '\n' '\0' | xargs -0 sha256sum | sha256sum | cut -c 1-32)
}

# The kernel's opinion
kernel_is_content() {
    if dmesg | grep -E 'I/O error|[Cc]orrupt|EXT4-fs error|BUG:|Oops:|hung_task|blocked for more'; then
        die "the kernel complains"
    fi
}
