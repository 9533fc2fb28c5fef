#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The README's embedding example compiles against the library, without a warning, and reads an image.

    example_test.py README LIBRARY_FOLDER CC...
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

LINES_MAX = 24


def main():
    readme, library, *compiler = sys.argv[1:]
    with open(readme, encoding="utf-8") as file:
        blocks = re.findall(r"```c\n(.*?)```", file.read(), re.S)
    if len(blocks) != 1 or blocks[0].count("\n") > LINES_MAX:
        print(f"not ok 1 - the README has {len(blocks)} C examples, or one of more than {LINES_MAX} lines")
        return 1
    include = os.path.join(os.path.dirname(os.path.abspath(readme)), "include")
    with tempfile.TemporaryDirectory() as folder:
        source, program = os.path.join(folder, "example.c"), os.path.join(folder, "example")
        with open(source, "w", encoding="utf-8") as file:
            file.write(blocks[0])
        built = subprocess.run(
            [*compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", "-I", include, source, "-o", program, "-L", library,
             "-lshardcow", f"-Wl,-rpath,{library}"], capture_output=True, text=True)
        if built.returncode:
            print(f"not ok 1 - the example compiles\n{built.stderr}")
            return 1
        print("ok 1 - the example compiles")
        refused = subprocess.run([program, source], capture_output=True, text=True)
        good = refused.returncode == 1 and "not a qcow2 image" in refused.stderr
        print(f"{'ok' if good else 'not ok'} 2 - it says what is wrong with a file that is no image")
        if not shutil.which("qemu-img"):
            print("ok 3 - it reads an image # SKIP no qemu-img")
            return not good
        image = os.path.join(folder, "a.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
        done = subprocess.run([program, image], capture_output=True, text=True)
        read = done.returncode == 0 and done.stdout == "the first 64 KiB: read\n"
        print(f"{'ok' if read else 'not ok'} 3 - it reads an image")
        return not (good and read)


if __name__ == "__main__":
    sys.exit(main())
