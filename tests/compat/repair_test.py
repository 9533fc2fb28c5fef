# SPDX-License-Identifier: MIT
"""Repair damaged images with shardcow check -r and with qemu-img check -r, and compare.

The same output and exit code, an image that qemu-img check finds as clean as after QEMU's own repair, and the
same guest data. Where QEMU's repair fails, does harm, or could leave more as it was, DIFFERENT says so. Then
power cuts at every write of a repair.
"""

import json
import os
import random
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import damage_header                                                                   # noqa: E402, F401
import damages                                                                         # noqa: E402
import harness                                                                         # noqa: E402
from meta_test import differences                                                      # noqa: E402
from qcow2_editor import Editor                                                        # noqa: E402
from harness import must, run                                                          # noqa: E402

EXIT_CUT = 99

# What is not compared, by damage and mode, and why. "left": ours leaves more; "data": other guest data.
# Nothing is, where L1 entries are not aligned: QEMU corrects entries in what only a damaged entry calls an L2
# table, and so changes data or other tables.
_BITMAPS = "QEMU loads the bitmaps, and writes and frees what their damaged tables name when it closes"
DIFFERENT = {
    ("l1-entry-names-l1 (plain)", "all"): ({"data"}, "QEMU stops half way; the L1 table is its own L2 table"),
    ("bitmap-table-past-end-of-file (bitmap)", "leaks"): ({"left"}, _BITMAPS),
    ("bitmap-table-past-end-of-file (bitmap)", "all"): ({"left"}, _BITMAPS),
    ("bitmap-table-entry-shared (bitmap)", "leaks"): ({"data"}, _BITMAPS),
    ("bitmap-table-entry-shared (bitmap)", "all"): ({"data"}, _BITMAPS),
    ("snapshot-extra-data-enormous (snapshot)", "all"): (
        {"output", "left", "data"}, "shardcow refuses what QEMU cuts off"),
}


def check(path, cwd):
    """(corruptions and errors, leaks) as qemu-img check has them, and its messages."""
    ran = run(["qemu-img", "check", "--output=json", "-f", "qcow2", path], cwd=cwd)
    found = json.loads(ran.out) if ran.out.strip() else {"check-errors": 1}
    return (found.get("corruptions", 0) + found["check-errors"], found.get("leaks", 0)), ran.err


def guest_data(path, cwd):
    """A checksum; what cannot be read counts as zeros. None if the image cannot be opened."""
    raw = f"{cwd}/guest.raw"
    if os.path.exists(raw):
        os.unlink(raw)
    ran = run(["qemu-img", "convert", "--salvage", "-f", "qcow2", "-O", "raw", path, raw], cwd=cwd)
    return None if ran.code or not os.path.exists(raw) else harness.sha(raw)


class Comparer:
    def __init__(self, options, results, scratch):
        self.options = options
        self.results = results
        self.scratch = scratch
        self.mended = 0

    def _same_output(self, form, got, want, rebuilt):
        if got.code != want.code:
            yield f"exit code {got.code}, should be {want.code}"
        if form == "human":
            a, b = got.out, want.out
            if rebuilt:
                a, b = (re.sub(r"(Image end offset: |    )\d+", r"\1N", x) for x in (a, b))
            if a != b:
                yield f"stdout {got.out!r}, should be {want.out!r}"
            return
        a, b = (json.loads(r.out) if r.out.strip() else None for r in (got, want))
        for key in ["filename"] + (["image-end-offset", "corruptions-fixed"] if rebuilt else []):
            for value in (a, b):
                if value:
                    value.pop(key, None)
        self.mended += bool(a and "leaks-fixed" in a)
        yield from differences(a, b)

    def one(self, name, damaged, mode, form):
        ours, theirs = f"{self.scratch}/ours.qcow2", f"{self.scratch}/theirs.qcow2"
        for path in (ours, theirs):
            shutil.copyfile(damaged, path)
        arguments = ["check", "-r", mode, f"--output={form}", "-f", "qcow2"]
        want = run(["qemu-img", *arguments, theirs], cwd=self.scratch)
        got = run([self.options.shardcow, *arguments, ours], cwd=self.scratch)
        left, _ = check(ours, self.scratch)
        qemu_left, _ = check(theirs, self.scratch)
        leave_out, _why = DIFFERENT.get((name, mode), (set(), ""))
        # QEMU also does it where counts are 0, shardcow also for a new snapshot table: where the new
        # structure is, and what counts as mended by it, may differ.
        rebuilt = "Rebuilding refcount structure" in want.err + got.err
        gave_up = want.code == 1 and not want.out.strip()

        if "Table is not cluster aligned" in want.err:
            leave_out = leave_out | {"output", "left", "data"}  # see DIFFERENT
        detail = []
        if got.code is None or got.code < 0:
            detail.append("no end")
        better = left != qemu_left and left[0] <= qemu_left[0] and left[1] <= qemu_left[1]
        if "rebuilt refcount structure is still broken" in want.err:
            leave_out = leave_out | {"data"}  # an entry past the end names QEMU's new blocks
        # Where QEMU gives up in the middle or leaves more, ours has to do better; else it does the same.
        if not better and not (gave_up and left == (0, 0)) and "output" not in leave_out:
            detail += self._same_output(form, got, want, rebuilt)
        if "left" not in leave_out and (left[0] > qemu_left[0] or left[1] > qemu_left[1]):
            detail.append(f"left {left}, QEMU leaves {qemu_left}")
        if "data" not in leave_out:
            a, b = guest_data(ours, self.scratch), guest_data(theirs, self.scratch)
            if a != b:
                detail.append(f"guest data {a}, after QEMU's repair {b}")
        if form == "json":
            # In many windows, with more threads: the same bytes.
            again = f"{self.scratch}/again.qcow2"
            shutil.copyfile(damaged, again)
            run([self.options.shardcow, *arguments, "-m", "1", "--threads", "3", again], cwd=self.scratch)
            if harness.sha(again) != harness.sha(ours):
                detail.append("in several windows the result is another")
        if detail:
            detail += [f"shardcow: {got.err[-900:]}", f"qemu-img: {want.err[-900:]}"]
        self.results.check(not detail, f"{name}: -r {mode}, {form}", "\n".join(detail))


# ---- writers that were killed ----------------------------------------------------------------------


KILLED = {
    "lazy refcounts": ("lazy_refcounts=on", ["write -P 1 0 5M", "write -z 1M 1M", "write -P 2 9M 100k"]),
    "lazy refcounts, small clusters": ("lazy_refcounts=on,cluster_size=4k", ["write -P 1 0 300k",
                                                                          "write -P 2 9M 64k"]),
    "lazy refcounts, small blocks": ("lazy_refcounts=on,cluster_size=512,refcount_bits=64",
                                     ["write -P 1 3M 200k", "discard 3M 50k"]),
    "flushed half way": ("cluster_size=4k", ["write -P 1 0 300k", "flush", "write -P 2 1M 64k",
                                            "discard 0 64k"]),
}


def killed_writers(comparer, scratch):
    path = f"{scratch}/killed.qcow2"
    for name, (how, commands) in KILLED.items():
        must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", how, path, "16M"])
        # The host has what was written: this is a killed program, not a power cut.
        run(["qemu-io", "-f", "qcow2", path], stdin="\n".join([*commands, "sigraise 9", ""]))
        for mode in ("leaks", "all"):
            for form in ("human", "json"):
                comparer.one(f"killed writer: {name}", path, mode, form)
    with Editor(path, write=True) as e:
        for k in range(2, 40):
            e.put_refcount(e.file_bytes() + k * e.cluster, 1)
        os.ftruncate(e.fd, e.file_bytes() + 100 * e.cluster)
    for form in ("human", "json"):
        comparer.one("clusters allocated ahead", path, "leaks", form)


# ---- power cuts ------------------------------------------------------------------------------------

CUT = ["refcount-one-too-many (snapshot)", "refcount-zero-of-data (plain)", "refcount-zero-of-l2 (plain)",
       "refcounts-scrambled (plain)", "refcounts-scrambled (snapshot)",
       "refcounts-scrambled (small-clusters)", "reftable-entry-lost-the-only-one (plain)",
       "reftable-entry-twice (small-clusters)", "reftable-entry-past-end-of-file (plain)",
       "reftable-clusters-zero (plain)", "l2-entries-share-a-cluster (plain)",
       "zero-cluster-unaligned (plain)", "snapshot-extra-data-short (snapshot)", "l2-entry-lost (plain)",
       "dirty-bit (plain)"]


def harmful(text):
    """How many problems are worse than a flag that waits for its turn: flag and refcount cannot change at
    once, so between the two a check sees either."""
    return len([x for x in text.splitlines() if x.startswith("ERROR") and "OFLAG_COPIED" not in x])


def power_cuts(options, results, scratch, damaged, name, mode, seed):
    path = f"{scratch}/cut.qcow2"
    argv = [options.shardcow, "check", "-q", "-r", mode, "-f", "qcow2", path]
    shutil.copyfile(damaged, path)
    _, before = check(path, scratch)
    data = {guest_data(path, scratch)}
    run(argv, cwd=scratch)
    whole, _ = check(path, scratch)
    data.add(guest_data(path, scratch))
    cuts, bad = 0, []
    while True:
        shutil.copyfile(damaged, path)
        env = {"LD_PRELOAD": options.power_cut, "POWER_CUT_FILE": path, "POWER_CUT_AFTER": str(cuts),
               "POWER_CUT_SEED": str(seed)}
        ran = run(argv, cwd=scratch, env=env)
        if ran.code != EXIT_CUT:
            break
        cuts += 1
        _, now = check(path, scratch)
        if harmful(now) > harmful(before):
            bad.append(f"cut before write {cuts}: {now[-500:]}")
        if guest_data(path, scratch) not in data:
            bad.append(f"cut before write {cuts}: other guest data")
        again = run(argv, cwd=scratch)
        left, _ = check(path, scratch)
        if left > whole or guest_data(path, scratch) not in data:
            bad.append(f"cut before write {cuts}: the next repair leaves {left}, one alone {whole}: {again}")
    detail = "\n".join(bad[:4]) if cuts else f"nothing was cut: {ran}"
    results.check(cuts and not bad, f"{name}: -r {mode}: power cuts ({cuts}), seed {seed}", detail)


def main():
    p = harness.parser(__doc__)
    p.add_argument("--power-cut", default=os.environ.get("POWER_CUT"), help="the library to preload")
    p.add_argument("--random", type=int, default=60, help="unplanned damages, the same in every run")
    p.add_argument("--only-damage", help="only damages whose name contains this")
    options = p.parse_args()
    harness.start(options)
    if not options.power_cut and not options.quick:
        p.error("give --power-cut, the library that tests/compat/power_cut.c becomes, or set POWER_CUT")
    results = harness.Results()
    with harness.Scratch(options) as scratch:
        bases = {name: damages.make_base(scratch, name) for name in damages.BASES}
        comparer = Comparer(options, results, scratch)
        plan = list(damages.DAMAGES)
        names = [name for name in damages.BASES if name != "bitmap"]  # see _BITMAPS
        for i in range(options.random):
            base = names[i % len(names)]
            plan.append((f"random damage {i} ({base})", base, damages.random_damage))
        damaged = f"{scratch}/damaged.qcow2"
        known = set()
        for name, base, function in plan:
            if options.only_damage and options.only_damage not in name:
                continue
            known.add(name)
            shutil.copyfile(bases[base], damaged)
            with Editor(damaged, write=True) as e:
                function(e, random.Random(name))
            for mode in ("leaks", "all"):
                for form in ("json",) if options.quick or "random" in name else ("human", "json"):
                    comparer.one(name, damaged, mode, form)
            if name in CUT and not options.quick:
                for seed in (0, 7):
                    power_cuts(options, results, scratch, damaged, name, "all", seed)
        if options.quick:
            results.skip("power cuts", "a sanitizer does not let a library be preloaded before its own")
        if not options.only_damage:
            killed_writers(comparer, scratch)
            results.check(comparer.mended >= 20, "leaks were mended", comparer.mended)
            results.equal(set(CUT) - known, set(), "every damage for power cuts exists")
    results.finish()


if __name__ == "__main__":
    main()
