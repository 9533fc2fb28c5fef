#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A guest with several queues on a disk that shardcow serves: threads write, discard, sync, read back and
compare (tests/guest/stress.c), then the server's own counts and a check. For perf/demo.sh; needs what
tests/guest/setup.sh, or setup.sh light, makes.

usage: demo_serve.py SHARDCOW STRESS FOLDER QUEUES SECONDS"""

import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "guest"))
import guest                                                                           # noqa: E402

JOB = """#!/bin/sh
stress run --threads {threads} --ops 50 --rounds 1000000 --seconds {seconds} /dev/vda >/tmp/said
result=$?
grep '^stress: round' /tmp/said | tail -n 1
grep -v '^stress: round' /tmp/said
exit $result
"""


def show(*argv):
    print("$ " + " ".join([os.path.basename(argv[0]), *argv[1:]]), flush=True)
    return subprocess.run(argv, check=False).returncode


def main():
    shardcow, stress, folder = sys.argv[1:4]
    queues, seconds = int(sys.argv[4]), int(sys.argv[5])
    fronts = [f for f in ("uml", "qemu") if not guest.missing(f)]
    if not fronts:
        print(f"no guest is here to serve: {guest.missing('qemu')}")
        return 0
    image = os.path.join(folder, "guest.qcow2")
    subprocess.run([shardcow, "create", "-q", image, "1G"], check=True)
    job = guest.Job.of(JOB.format(threads=4 * queues, seconds=seconds), {"stress": stress})
    with tempfile.TemporaryDirectory(prefix="scow-") as sockets:
        socket, control = os.path.join(sockets, "disk"), os.path.join(sockets, "control")
        argv = [shardcow, "serve", "--vhost-user-blk", socket, "--control", control, "--queues", str(queues), image]
        print("$ " + " ".join(["shardcow", *argv[1:]]) + " &", flush=True)
        with subprocess.Popen(argv) as server:
            while not os.path.exists(control) and server.poll() is None:
                time.sleep(0.01)
            console = guest.boot(fronts[0], [socket], job, queues=queues, timeout=120 + seconds)
            lines = [x.strip() for x in console.text.splitlines() if "stress" in x or "GUEST" in x]
            print(f"the guest ({fronts[0]}):\n" + "\n".join("  " + x for x in lines), flush=True)
            good = console.status == 0 and show(shardcow, "stats", control) == 0
            server.terminate()
            good = server.wait(60) == 0 and good
    return 0 if show(shardcow, "check", image) == 0 and show("qemu-img", "check", image) == 0 and good else 1


if __name__ == "__main__":
    sys.exit(main())
