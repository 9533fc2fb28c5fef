# SPDX-License-Identifier: MIT
"""Compare the JSON of shardcow check, map and info with qemu-img's, on every image and on damaged ones.

On damaged images verdict, counts and exit code of check have to be the same, and the image stays as it was.
"""

import json
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import damage_header                                                                   # noqa: E402, F401
import damages                                                                         # noqa: E402
import harness                                                                         # noqa: E402
import variants                                                                        # noqa: E402
from qcow2_editor import Editor                                                        # noqa: E402
from harness import run                                                                # noqa: E402

# Keys that older versions of qemu-img do not print, with the first version that does.
NEWER_KEYS = {"info": ("children", (8, 0, 0)), "map": ("compressed", (8, 2, 0)), "check": (None, None)}


def without_key(value, key):
    if isinstance(value, dict):
        return {k: without_key(v, key) for k, v in value.items() if k != key}
    if isinstance(value, list):
        return [without_key(v, key) for v in value]
    return value


def joined(extents):
    """Neighbours in a map that nothing tells apart any more, as one."""
    def kind(e):
        shift = e["offset"] - e["start"] if "offset" in e else None
        return {**e, "start": 0, "length": 0, "offset": shift}

    out = []
    for e in extents:
        if out and kind(out[-1]) == kind(e):
            out[-1]["length"] += e["length"]
        else:
            out.append(dict(e))
    return out


def differences(got, want, path=""):
    """Where two JSON values differ, one line each."""
    if isinstance(got, dict) and isinstance(want, dict):
        for k in sorted(got.keys() | want.keys()):
            if k not in got:
                yield f"{path}.{k}: missing, should be {want[k]!r}"
            elif k not in want:
                yield f"{path}.{k}: {got[k]!r}, should not be there"
            else:
                yield from differences(got[k], want[k], f"{path}.{k}")
    elif isinstance(got, list) and isinstance(want, list):
        if len(got) != len(want):
            yield f"{path}: {len(got)} items, should be {len(want)}"
        for i, (a, b) in enumerate(zip(got, want)):
            yield from differences(a, b, f"{path}[{i}]")
    elif got != want or type(got) is not type(want):
        yield f"{path}: {got!r}, should be {want!r}"


class Comparer:
    def __init__(self, options, results):
        self.options = options
        self.results = results
        self.version = harness.qemu_version()
        self.codes = set()
        for command, (key, since) in NEWER_KEYS.items():
            if key and self.version < since:
                results.skip(f"{command}: key \"{key}\"", f"qemu-img {self.version} does not print it")

    def _parsed(self, command, text):
        value = json.loads(text) if text.strip() else None
        key, since = NEWER_KEYS[command]
        if key and self.version < since:
            value = without_key(value, key)
            if command == "map" and value:
                value = joined(value)
        return value

    def same(self, name, command, arguments, cwd):
        """Both programs on the same arguments: the same JSON and exit code. Returns QEMU's Ran."""
        want = run(["qemu-img", command, "--output=json", *arguments], cwd=cwd)
        got = run([self.options.shardcow, command, "--output=json", *arguments], cwd=cwd)
        self.codes.add(want.code)
        detail = []
        if got.code != want.code:
            detail.append(f"exit code {got.code}, should be {want.code}")
        try:
            detail += differences(self._parsed(command, got.out), self._parsed(command, want.out))
        except ValueError as error:
            detail.append(f"no JSON: {error}")
        if len(detail) > 8:
            detail = detail[:8] + [f"… {len(detail) - 8} more"]
        text = "\n".join(detail + [f"repeat: cd {cwd}; {' '.join(got.argv)}", f"shardcow: {got.err[-700:]}",
                                   f"qemu-img: {want.err[-700:]}"])
        self.results.check(not detail, name, text)
        return want


def whole_images(comparer, chosen):
    for v in chosen:
        named = ["-f", v.format, v.path]
        comparer.same(f"{v.name}: info", "info", named, v.folder)
        comparer.same(f"{v.name}: info of the chain", "info", ["--backing-chain", *named], v.folder)
        comparer.same(f"{v.name}: map", "map", named, v.folder)
        comparer.same(f"{v.name}: check", "check", named, v.folder)


def map_windows(comparer, chosen, rng):
    """map --start-offset and --max-length."""
    for v in chosen:
        if v.large or v.format == "raw":
            continue
        size = os.path.getsize(v.truth)
        start = rng.randrange(max(1, size // 512)) * 512
        length = rng.randint(1, max(1, (size - start) // 512)) * 512
        comparer.same(f"{v.name}: map from {start}, {length} bytes", "map",
                      [f"--start-offset={start}", f"--max-length={length}", "-f", v.format, v.path], v.folder)


def damaged_images(comparer, options, scratch):
    bases = {name: damages.make_base(scratch, name) for name in damages.BASES}
    for name, path in bases.items():
        want = comparer.same(f"undamaged base {name}", "check", ["-f", "qcow2", path], scratch)
        comparer.results.check(want.code == 0, f"base {name} is sound before the damage", want)

    plan = list(damages.DAMAGES)
    names = list(damages.BASES)
    for i in range(options.random):
        base = names[i % len(names)]
        plan.append((f"random damage {i} ({base})", base, damages.random_damage))
    path = f"{scratch}/damaged.qcow2"
    seen = set()
    for name, base, function in plan:
        if options.only_damage and options.only_damage not in name:
            continue
        shutil.copyfile(bases[base], path)
        with Editor(path, write=True) as e:
            # By name, so that each can be repeated alone.
            function(e, random.Random(name))
        before = harness.sha(path)
        if "random" not in name:
            comparer.results.check(before != harness.sha(bases[base]), f"{name} changes the image")
        seen.add(comparer.same(f"{name}: check", "check", ["-f", "qcow2", path], scratch).code)
        comparer.results.check(harness.sha(path) == before, f"{name}: the image stays as it was")
        if options.keep:
            shutil.copyfile(path, f"{options.keep}/{name.replace(' ', '-')}.qcow2")
    if not options.only_damage:
        comparer.results.check(seen >= {0, 1, 2, 3}, "the damages lead to every verdict", f"exit codes {seen}")


def main():
    p = harness.parser(__doc__)
    p.add_argument("--random", type=int, default=60, help="number of unplanned damages, the same in every run")
    p.add_argument("--only-damage", help="only damages whose name contains this")
    p.add_argument("--keep", help="folder to keep the damaged images in")
    options = p.parse_args()
    rng = harness.start(options)
    results = harness.Results()
    comparer = Comparer(options, results)
    if not options.only_damage:
        chosen = variants.select(options)
        whole_images(comparer, chosen)
        map_windows(comparer, chosen, rng)
    if not options.only:
        with harness.Scratch(options) as scratch:
            damaged_images(comparer, options, scratch)
    results.finish()


if __name__ == "__main__":
    main()
