# SPDX-License-Identifier: MIT
"""Disks for guests, made and taken apart on the host."""

import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from harness import must  # noqa: E402

MIB = 1 << 20
SECTOR = 512


def write_raw_disk(path, parts):
    """A disk of zeros with a partition table."""
    entries = b"".join(struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), first // SECTOR, count // SECTOR)
                       for first, count in parts)
    with open(path, "wb") as f:
        f.write(bytes(446) + entries + bytes(64 - len(entries)) + b"\x55\xaa")
        f.truncate(sum(parts[-1]) + MIB)


def extract(disk, part, out):
    """One partition as a file, holes kept."""
    must(["dd", f"if={disk}", f"of={out}", f"bs={MIB}", f"skip={part[0] // MIB}", f"count={part[1] // MIB}",
          "conv=sparse", "status=none"])
