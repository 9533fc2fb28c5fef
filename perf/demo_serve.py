#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A guest with several queues on a disk that shardcow serves: fio writes and verifies, then the server's own
counts and a check. For perf/demo.sh; needs what tests/guest/setup.sh makes.

usage: demo_serve.py SHARDCOW FOLDER QUEUES SECONDS"""

import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "guest"))
import guest                                                                           # noqa: E402

JOB = """#!/bin/sh
fio --name=guest --filename=/dev/vda --direct=1 --ioengine=io_uring --rw=randrw --bs=4k --iodepth=16 \\
    --numjobs={queues} --size=64m --offset_increment=64m --verify=crc32c --time_based --runtime={seconds} \\
    --group_reporting | grep -E 'read:|write:|verify|err='
sync
"""


def show(*argv):
    print("$ " + " ".join([os.path.basename(argv[0]), *argv[1:]]), flush=True)
    return subprocess.run(argv, check=False).returncode


def main():
    shardcow, folder, queues, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    fronts = [f for f in ("uml", "qemu") if not guest.missing(f)]
    if not fronts:
        print("no guest is here to serve: tests/guest/setup.sh makes one (about 15 minutes, once)")
        return 0
    image = os.path.join(folder, "guest.qcow2")
    subprocess.run([shardcow, "create", "-q", image, "1G"], check=True)
    job = guest.Job.of(JOB.format(queues=queues, seconds=seconds))
    with tempfile.TemporaryDirectory(prefix="scow-") as sockets:
        socket, control = os.path.join(sockets, "disk"), os.path.join(sockets, "control")
        argv = [shardcow, "serve", "--vhost-user-blk", socket, "--control", control, "--queues", str(queues), image]
        print("$ " + " ".join(["shardcow", *argv[1:]]) + " &", flush=True)
        with subprocess.Popen(argv) as server:
            while not os.path.exists(control) and server.poll() is None:
                time.sleep(0.01)
            console = guest.boot(fronts[0], [socket], job, queues=queues, timeout=120 + seconds)
            lines = [x.strip() for x in console.text.splitlines() if "IOPS" in x or "err=" in x or "GUEST" in x]
            print(f"the guest ({fronts[0]}):\n" + "\n".join("  " + x for x in lines), flush=True)
            good = console.status == 0 and show(shardcow, "stats", control) == 0
            server.terminate()
            good = server.wait(60) == 0 and good
    return 0 if show(shardcow, "check", image) == 0 and show("qemu-img", "check", image) == 0 and good else 1


if __name__ == "__main__":
    sys.exit(main())
