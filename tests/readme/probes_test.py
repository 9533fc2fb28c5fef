# SPDX-License-Identifier: MIT
"""docs/TRACING.md lists the probes that the library has, with as many arguments.

usage: probes_test.py LIBRARY DOCUMENT"""

import re
import shutil
import subprocess
import sys


def main():
    if not shutil.which("readelf"):
        print("no readelf")
        return 77
    notes = subprocess.run(["readelf", "-nW", sys.argv[1]], capture_output=True, text=True, check=True).stdout
    found = {name: len(args.split()) for name, args in
             re.findall(r"Provider: shardcow\s+Name: (\S+)\s+.*\n\s+Arguments: (.*)", notes)}
    if not found:
        print("built without probes")
        return 77
    with open(sys.argv[2], encoding="utf-8") as f:
        listed = {name: len(args.split(",")) for name, args in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", f.read(), re.M)}
    print("\n".join(f"{name}: {listed.get(name)} arguments listed, {found.get(name)} there"
                    for name in sorted(listed.keys() | found.keys())))
    return 0 if listed == found else 1


if __name__ == "__main__":
    sys.exit(main())
