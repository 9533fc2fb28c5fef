# SPDX-License-Identifier: MIT
"""A file system on a disk that is memory: zram, whose blocks are 4 KiB, under ext4. Unlike tmpfs it reads and
writes without the kernel's worker threads, as a fast disk does. Needs root and the zram module."""

import contextlib
import os
import subprocess
import tempfile

CONTROL = "/sys/class/zram-control/hot_add"


def available():
    return os.access(CONTROL, os.R_OK) and os.geteuid() == 0


def write(path, text):
    with open(path, "w", encoding="ascii") as f:
        f.write(str(text))


@contextlib.contextmanager
def folder(mib):
    """A mounted file system of so many MiB, gone at the end."""
    with open(CONTROL, encoding="ascii") as f:
        number = int(f.read())
    device, state = f"/dev/zram{number}", f"/sys/block/zram{number}"
    try:
        write(f"{state}/disksize", mib << 20)
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["mount", device, place], check=True)
            try:
                yield place
            finally:
                subprocess.run(["umount", place], check=True)
    finally:
        write(f"{state}/reset", 1)
        write("/sys/class/zram-control/hot_remove", number)
