# SPDX-License-Identifier: MIT
"""Make a disk: an ext4 file system that holds a copy of part of this machine's /usr.

As a command: tree_disk.py OUT.raw [MEBIBYTES]
"""

import os
import shutil
import subprocess
import sys
import tempfile

FILE_BYTES_MAX = 24 << 20


def _files(top):
    """Regular files below top that can be read, in a stable order."""
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isfile(path) or not os.access(path, os.R_OK):
                continue
            yield path


def _copy(path, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(path, target)
    return os.path.getsize(target)


def copy_tree(target, min_bytes):
    """Copy at least min_bytes of files, a third each from three folders. Returns the sum."""
    total = 0
    for share, top in ((1, "/usr/bin"), (2, "/usr/share"), (3, "/usr/lib")):
        for path in _files(top):
            if total >= min_bytes * share // 3:
                break
            if os.path.getsize(path) <= FILE_BYTES_MAX:
                total += _copy(path, target + path)
    # A small system may have less: then the same files again under other names.
    again = 0
    while total < min_bytes:
        again += 1
        before = total
        for path in list(_files(target + "/usr")):
            if total < min_bytes:
                total += _copy(path, f"{target}/again-{again}{path[len(target):]}")
        if total == before:
            raise RuntimeError("no files to copy below /usr")
    return total


def make_tree_disk(out, min_bytes):
    """Write the raw disk to out, sparse; about a tenth of it is free space. Returns the bytes in files."""
    folder = os.path.dirname(os.path.abspath(out))
    with tempfile.TemporaryDirectory(prefix="tree-", dir=folder) as tree:
        total = copy_tree(tree, min_bytes)
        blocks = inodes = 0
        for _, folders, names in os.walk(tree):
            inodes += len(folders) + len(names)
        for path in _files(tree):
            blocks += (os.path.getsize(path) + 4095) // 4096
        mebibytes = (blocks * 4096 + inodes * 512) * 110 // 100 // (1 << 20) + 24
        if os.path.exists(out):
            os.unlink(out)
        env = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(inodes + 64),
                        "-O", "^has_journal", "-d", tree, out, f"{mebibytes}M"], check=True, env=env,
                       stdin=subprocess.DEVNULL)
    return total


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    want = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    print(make_tree_disk(sys.argv[1], want << 20))
