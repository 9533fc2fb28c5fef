# SPDX-License-Identifier: MIT
"""shardcow create, against qemu-img create: the same options give the same image, or are refused by both.

Each row is created by both tools, in a folder of its own, under the same relative names.
"""

import itertools
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402
from locks_test import Holder, qemu                                                    # noqa: E402

CLUSTERS = [512 << i for i in range(13)]
REFCOUNT_BITS = [1, 2, 4, 8, 16, 32, 64]

# (options for -o, size)
MATRIX = [
    ("", "1G"),
    ("", "0"),
    ("compat=0.10", "100M"),
    ("compat=v2,cluster_size=512", "3M"),
    ("compat=1.1,lazy_refcounts=on", "10M"),
    ("compat=v3,lazy_refcounts=off", "10M"),
    ("compression_type=zstd", "10M"),
    ("compression_type=zlib,compat=v2", "10M"),
    ("extended_l2=on", "10M"),
    ("extended_l2=on,cluster_size=16k", "10M"),
    ("extended_l2=on,cluster_size=2M,refcount_bits=1,compression_type=zstd,lazy_refcounts=on", "1T"),
    ("data_file=disk.data", "10M"),
    ("data_file=disk.data,data_file_raw=on", "10000512"),
    ("data_file=disk.data,data_file_raw=on,extended_l2=off,cluster_size=4k", "1M"),
    ("data_file=disk,,data,extended_l2=on", "10M"),
    ("cluster_size=0x1000", "1.5M"),
    ("cluster_size=1M,preallocation=off", "64T"),
    ("cluster_size=512", "128G"),  # the largest L1 table
    *[(f"cluster_size={c}", "5M") for c in CLUSTERS],
    *[(f"refcount_bits={b}", "5M") for b in REFCOUNT_BITS],
    *[(f"refcount_bits={b},cluster_size=512,preallocation=metadata", "1M") for b in REFCOUNT_BITS],
]
# Each with every mode.
PREALLOCATED = [
    ("", "5M"),
    ("", "5000192"),
    ("compat=v2", "5M"),
    ("cluster_size=512", "700k"),
    ("cluster_size=4k,refcount_bits=64", "9M"),
    ("cluster_size=2M", "5M"),
    ("extended_l2=on,cluster_size=16k", "3M"),
    ("data_file=disk.data", "3000320"),
    ("data_file=disk.data,data_file_raw=on", "3000320"),
]
SIZES = ["0", "1", "511", "512", "513", "1000", "65535", "65537", "1k", "1K", "1.5k", "3M", "0.5G", "0x1001"]

# What both refuse: arguments behind -f qcow2; a word of shardcow's message.
REFUSED = [
    (["-o", "extended_l2=on,cluster_size=8k", "x", "1M"], "16 KiB"),
    (["-o", "extended_l2=on,compat=0.10", "x", "1M"], "version 2"),
    (["-o", "compression_type=zstd,compat=v2", "x", "1M"], "version 2"),
    (["-o", "compression_type=lzo", "x", "1M"], "compression_type"),
    (["-o", "lazy_refcounts=on,compat=v2", "x", "1M"], "version 2"),
    (["-o", "lazy_refcounts=maybe", "x", "1M"], "lazy_refcounts"),
    (["-o", "refcount_bits=8,compat=v2", "x", "1M"], "version 2"),
    (["-o", "refcount_bits=7", "x", "1M"], "power of two"),
    (["-o", "refcount_bits=0", "x", "1M"], "refcount_bits"),
    (["-o", "refcount_bits=128", "x", "1M"], "refcount_bits"),
    (["-o", "data_file_raw=on", "x", "1M"], "without a data file"),
    (["-o", "data_file=d,data_file_raw=on", "-b", "base.qcow2", "-F", "qcow2", "x", "1M"], "exclude"),
    (["-o", "data_file=d,compat=v2", "x", "1M"], "version 2"),
    (["-o", "data_file=x", "x", "1M"], "its own data file"),
    (["-o", "data_file=none/d", "x", "1M"], "No such file"),
    (["-o", "backing_fmt=raw", "x", "1M"], "no backing file"),
    (["-F", "raw", "x", "1M"], "no backing file"),
    (["-b", "base.qcow2", "x", "1M"], "-F"),
    (["-b", "base.qcow2", "-F", "qcow2", "-u", "x"], "size"),
    (["-b", "none", "-F", "qcow2", "x"], "none"),
    (["-b", "none", "-F", "qcow2", "x", "1M"], "none"),
    (["-b", "", "-F", "qcow2", "x", "1M"], "empty"),
    (["-b", "base.qcow2", "-F", "qcow2", "-o", "preallocation=metadata", "x", "1M"], "preallocation"),
    (["-b", "x", "-F", "qcow2", "x", "1M"], ""),
    (["-o", "preallocation=some", "x", "1M"], "preallocation"),
    (["-o", "cluster_size=1000", "x", "1M"], "power of two"),
    (["-o", "cluster_size=256", "x", "1M"], "cluster_size"),
    (["-o", "cluster_size=4M", "x", "1M"], "cluster_size"),
    (["-o", "cluster_size=512", "x", "129G"], "larger clusters"),
    (["-o", "compat=2", "x", "1M"], "compat"),
    (["-o", "nothing=1", "x", "1M"], "nothing"),
    (["-o", "encryption=on", "x", "1M"], "encryption"),
    (["-o", "size=5M", "x", "3M"], "twice"),
    (["x", "8E"], ""),
    (["x", "3E"], "larger clusters"),
    (["x", "5Q"], "5Q"),
    (["x"], "size"),
    (["x", "1M", "2M"], ""),
    (["none/x", "1M"], "No such file"),
]


def info(path, cwd):
    """What qemu-img info tells of an image, less what differs between equal images."""
    facts = json.loads(must(["qemu-img", "info", "--output=json", path], cwd=cwd))
    for key in ("actual-size", "children", "filename", "full-backing-filename"):
        facts.pop(key, None)
    return facts


def clusters_of(path, cwd, cluster):
    """What qemu-img map tells of each guest cluster: (present, data, zero, host offset or None)."""
    result = []
    for e in json.loads(must(["qemu-img", "map", "--output=json", path], cwd=cwd)):
        for at in range(0, e["length"], cluster):
            result.append((e["present"], e["data"], e["zero"],
                           e["offset"] + at if "offset" in e else None))
    return result


class Create:
    def __init__(self, shardcow, folder, results, only):
        self.shardcow = shardcow
        self.results = results
        self.only = only
        self.root = folder
        self.count = 0

    def folders(self):
        """Two fresh ones: for shardcow, for QEMU."""
        self.count += 1
        pair = [os.path.join(self.root, f"{self.count}-{who}") for who in ("shardcow", "qemu")]
        for p in pair:
            os.mkdir(p)
        return pair

    def create(self, cwd, *arguments, **kwargs):
        return run([self.shardcow, "create", *arguments], cwd=cwd, **kwargs)

    def both(self, name, arguments):
        """Creates by both; returns the folders, or None after a failed result."""
        ours, theirs = self.folders()
        q = run(["qemu-img", "create", "-f", "qcow2", *arguments], cwd=theirs)
        if q.code != 0:
            raise RuntimeError(f"set-up failed:\n{q}")
        r = self.create(ours, "-f", "qcow2", *arguments)
        if not self.results.check(r.code == 0, f"{name}: created", r):
            return None
        self.results.equal(r.out, q.out, f"{name}: the line about it")
        return ours, theirs

    def check(self, name, cwd, path="x"):
        c = run(["qemu-img", "check", path], cwd=cwd)
        self.results.check(c.code == 0 and "No errors" in c.out, f"{name}: qemu-img check", c)

    def usable(self, name, cwd, path="x"):
        """qemu-io reads zeros, writes and reads back; the end of the disk, too."""
        size = info(path, cwd)["virtual-size"]
        part = min(size // 512 // 2 * 512, 69632)
        if not part:
            return
        commands = []
        for at, pattern in ((0, 17), (size - part, 34)):
            commands += ["-c", f"read -P 0 {at} {part}", "-c", f"write -P {pattern} {at} {part}"]
        for at, pattern in ((0, 17), (size - part, 34)):
            commands += ["-c", f"read -P {pattern} {at} {part}"]
        r = run(["qemu-io", "-f", "qcow2", *commands, path], cwd=cwd)
        self.results.check(r.code == 0 and "failed" not in r.out + r.err and "error" not in r.out + r.err,
                           f"{name}: qemu-io", r)
        self.check(f"{name}, written to", cwd, path)

    # Each of the following is one group of results.

    def matrix(self, rows):
        for options, size in rows:
            name = f"-o {options} {size}"
            pair = self.both(name, [*(["-o", options] if options else []), "x", size])
            if not pair:
                continue
            ours, theirs = pair
            self.results.equal(info("x", ours), info("x", theirs), f"{name}: qemu-img info")
            self.results.equal(sorted(os.listdir(ours)), sorted(os.listdir(theirs)), f"{name}: files")
            self.check(name, ours)
            c = run([self.shardcow, "check", "x"], cwd=ours)
            self.results.check(c.code == 0, f"{name}: shardcow check", c)
            self.usable(name, ours)

    def preallocated(self, rows):
        for (options, size), mode in itertools.product(rows, ("metadata", "falloc", "full")):
            text = ",".join(filter(None, (options, f"preallocation={mode}")))
            name = f"-o {text} {size}"
            pair = self.both(name, ["-o", text, "x", size])
            if pair:
                self.compare_maps(name, *pair, mode)
                self.usable(name, pair[0])

    def compare_maps(self, name, ours, theirs, mode):
        facts = info("x", ours)
        cluster, size = facts["cluster-size"], facts["virtual-size"]
        data_file = "data-file" in facts["format-specific"]["data"]
        self.results.equal(facts, info("x", theirs), f"{name}: qemu-img info")
        self.check(name, ours)
        got, want = (clusters_of("x", cwd, cluster) for cwd in (ours, theirs))
        self.results.equal(len(got), (size + cluster - 1) // cluster, f"{name}: clusters")
        # Zero is a matter of holes in a sparse file, and of what QEMU fills in the last cluster.
        columns = slice(0, 2) if mode == "metadata" else slice(0, 3)
        different = [(i, g, w) for i, (g, w) in enumerate(zip(got, want))
                     if g[columns] != w[columns] or (g[3] is None) != (w[3] is None)]
        self.results.equal(different[:5], [], f"{name}: qemu-img map, cluster by cluster")
        offs = [g[3] for g in got]
        if None in offs:
            self.results.check(False, f"{name}: every cluster is mapped")
            return
        if data_file:
            self.results.equal(offs, list(range(0, size, cluster)), f"{name}: mapped to its place")
            host = os.stat(f"{ours}/disk.data")
            self.results.equal(host.st_size, size, f"{name}: the data file's size")
        else:
            self.results.equal(len(set(offs)), len(offs), f"{name}: a host cluster each")
            host = os.stat(f"{ours}/x")
            self.results.check(max(offs) + cluster <= host.st_size, f"{name}: none past the end of the file")
        if mode == "metadata":
            blocks_bytes = host.st_size - size + 4096  # of metadata, and the block that data begins in
            self.results.check(host.st_blocks * 512 <= blocks_bytes, f"{name}: sparse", host)
        else:
            self.results.check(host.st_blocks * 512 >= size, f"{name}: the space is taken", host)

    def sizes(self):
        for size in SIZES:
            pair = self.both(f"size {size}", ["x", size])
            if pair:
                ours, theirs = (info("x", cwd)["virtual-size"] for cwd in pair)
                self.results.equal(ours, theirs, f"size {size}: virtual size")
        pair = self.both("-o size=3M", ["-o", "size=3M", "x"])
        if pair:
            self.results.equal(info("x", pair[0]), info("x", pair[1]), "-o size=3M: qemu-img info")

    def refused(self):
        for arguments, word in REFUSED:
            name = f"create {' '.join(arguments)}"
            ours, theirs = self.folders()
            for cwd in (ours, theirs):
                must(["qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1M"], cwd=cwd)
            q = run(["qemu-img", "create", "-f", "qcow2", *arguments], cwd=theirs)
            r = self.create(ours, *arguments)
            self.results.check(q.code == 1, f"{name}: QEMU refuses", q)
            self.results.check(r.code == 1 and "shardcow: " in r.err and word in r.err, f"{name}: refused", r)
            self.results.equal(os.listdir(ours), ["base.qcow2"], f"{name}: no file is left")

    def over_existing(self):
        """What was in the file is gone, whatever it was."""
        for options in ("", "preallocation=metadata", "preallocation=falloc", "data_file=disk.data,data_file_raw=on"):
            ours, _ = self.folders()
            for file in ("x", "disk.data"):
                with open(f"{ours}/{file}", "wb") as f:
                    f.write(b"\xee" * (8 << 20))
            r = self.create(ours, "-q", *(["-o", options] if options else []), "x", "3M")
            name = f"over a larger file: -o {options}"
            self.results.check(r.code == 0, f"{name}: created", r)
            self.check(name, ours)
            for file in ("x", "disk.data") if "data_file" in options else ("x",):
                with open(f"{ours}/{file}", "rb") as f:
                    content = f.read()
                self.results.check(b"\xee" * 8 not in content, f"{name}: nothing of it is left in {file}")
                self.results.check(len(content) < 8 << 20, f"{name}: {file} is shorter")
            z = run(["qemu-io", "-f", "qcow2", "-c", "read -P 0 0 3M", "x"], cwd=ours)
            self.results.check(z.code == 0 and "failed" not in z.out, f"{name}: reads as zeros", z)

    def failures(self):
        """An existing file survives wrong options; a new one does not survive a failure."""
        ours, _ = self.folders()
        with open(f"{ours}/x", "wb") as f:
            f.write(b"precious")
        r = self.create(ours, "-b", "n" * 600, "-F", "raw", "-u", "-o", "cluster_size=512", "x", "1M")
        self.results.check(r.code == 1 and "does not fit" in r.err, "a name that does not fit", r)
        with open(f"{ours}/x", "rb") as f:
            self.results.equal(f.read(), b"precious", "wrong options leave an existing file alone")
        limit = ["sh", "-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh", self.shardcow, "create"]
        for mode, data in itertools.product(("metadata", "falloc", "full"), ("", ",data_file=new.data")):
            name = f"file size limit, preallocation={mode}{data}"
            r = run([*limit, "-o", f"preallocation={mode}{data}", "new", "8M"], cwd=ours)
            self.results.check(r.code == 1 and "new" in r.err, name, r)
            self.results.equal(os.listdir(ours), ["x"], f"{name}: no file is left")
        r = run([*limit, "-o", "preallocation=full", "x", "8M"], cwd=ours)
        self.results.check(r.code == 1 and os.path.exists(f"{ours}/x"), "an existing file is not removed", r)
        for path, word in (("/dev/zero", "neither"), (".", "")):
            r = self.create(ours, path, "1M")
            self.results.check(r.code == 1 and word in r.err, f"{path} is no place for an image", r)

    def locks(self):
        """A file that a program has open is left alone."""
        ours, _ = self.folders()
        must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=disk.data", "x", "1M"], cwd=ours)
        must(["qemu-img", "create", "-q", "-f", "qcow2", "base", "1M"], cwd=ours)
        must(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "x"], cwd=ours)
        rows = [("x", (), ["x", "1M"]), ("x", ("-r",), ["x", "1M"]), ("base", ("-r",), ["base", "2M"]),
                ("x", (), ["-o", "data_file=disk.data", "new", "1M"])]
        for held, flags, arguments in rows:
            name = f"qemu-io {' '.join(flags) or 'read-write'} has {held}: create {' '.join(arguments)}"
            files = [f for f in sorted(os.listdir(ours))]
            with Holder(qemu("qcow2", held, *flags), ours):
                before = [harness.sha(f"{ours}/{f}") for f in files]
                q = run(["qemu-img", "create", "-f", "qcow2", *arguments], cwd=ours)
                r = self.create(ours, *arguments)
                after = [harness.sha(f"{ours}/{f}") for f in files]
            self.results.check(q.code == 1, f"{name}: QEMU refuses", q)
            self.results.check(r.code == 1 and "lock" in r.err, f"{name}: refused", r)
            self.results.equal(after, before, f"{name}: nothing changed")
            self.results.equal(sorted(os.listdir(ours)), files, f"{name}: no file is left")

        with Holder(qemu("qcow2", "base"), ours):
            r = self.create(ours, "-b", "base", "-F", "qcow2", "new")
        self.results.check(r.code == 0, "an overlay of an image that qemu-io writes", r)

    def backing(self):
        ours, theirs = self.folders()
        for cwd in (ours, theirs):
            os.mkdir(f"{cwd}/below")
            must(["qemu-img", "create", "-q", "-f", "qcow2", "below/base", "3000320"], cwd=cwd)
            must(["qemu-io", "-f", "qcow2", "-c", "write -P 5 0 3000320", "below/base"], cwd=cwd)
            must(["qemu-img", "create", "-q", "-f", "raw", "below/raw", "1000000"], cwd=cwd)
        rows = [["-b", "base", "-F", "qcow2", "below/top"],
                ["-b", "raw", "-F", "raw", "below/top"],
                ["-b", "below/base", "-F", "qcow2", "top"],
                ["-b", "below/base", "-F", "qcow2", "top", "10M"],
                ["-o", "backing_file=below/base,backing_fmt=qcow2", "top"],
                ["-o", "backing_file=other", "-b", "below/base", "-F", "qcow2", "top"],
                ["-b", "below/base", "-F", "qcow2", "-o", "extended_l2=on,preallocation=metadata", "top"],
                ["-b", "below/base", "-F", "qcow2", "-o", "compat=v2", "top"],
                ["-u", "-b", "later", "-F", "qcow2", "top", "5M"]]
        for arguments in rows:
            name = f"create {' '.join(arguments)}"
            must(["qemu-img", "create", "-q", "-f", "qcow2", *arguments], cwd=theirs)
            r = self.create(ours, "-q", *arguments)
            if not self.results.check(r.code == 0 and not r.out, name, r):
                continue
            path = next(a for a in arguments if a in ("top", "below/top"))
            self.results.equal(info(path, ours), info(path, theirs), f"{name}: qemu-img info")
            c = run([self.shardcow, "check", path], cwd=ours)
            self.results.check(c.code == 0, f"{name}: shardcow check", c)
            if "-u" not in arguments:
                self.check(name, ours, path)
                c = run(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", f"{ours}/{path}", f"{theirs}/{path}"])
                self.results.check(c.code == 0, f"{name}: shows what is below", c)
        must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "below/base", "-F", "qcow2", "top"], cwd=ours)
        r = self.create(ours, "-b", "../top", "-F", "qcow2", "below/base")
        self.results.check(r.code == 1 and "based on" in r.err, "an image that the backing chain has", r)
        r = self.create(ours, "-b", "disk.vmdk", "-F", "vmdk", "top2", "1M")
        self.results.check(r.code == 1 and "vmdk" in r.err, "a backing format that cannot be opened", r)

    def raw(self):
        for options, size in (("", "1000"), ("", "0"), ("", "5M"), ("preallocation=falloc", "5M"),
                              ("preallocation=full", "5000192"), ("size=3M", None)):
            ours, theirs = self.folders()
            name = f"-f raw -o {options} {size or ''}"
            with open(f"{ours}/x", "wb") as f:
                f.write(b"\xee" * (6 << 20))
            tail = [*(["-o", options] if options else []), "x", *([size] if size else [])]
            q = must(["qemu-img", "create", "-f", "raw", *tail], cwd=theirs)
            r = self.create(ours, "-f", "raw", *tail)
            self.results.check(r.code == 0, name, r)
            self.results.equal(r.out, q, f"{name}: the line about it")
            self.results.equal(harness.first_difference(f"{ours}/x", f"{theirs}/x"), None, f"{name}: equal files")
            blocks = [os.stat(f"{cwd}/x").st_blocks for cwd in (ours, theirs)]
            if "preallocation" in options:
                self.results.check(blocks[0] * 512 >= 5000192, f"{name}: the space is taken", blocks)
            else:
                self.results.check(blocks[0] <= 8, f"{name}: sparse", blocks)
        for arguments in (["-o", "cluster_size=512", "y", "1M"], ["-o", "preallocation=metadata", "y", "1M"],
                          ["-b", "x", "-F", "raw", "y", "1M"], ["y"]):
            ours, _ = self.folders()
            r = self.create(ours, "-f", "raw", *arguments)
            self.results.check(r.code == 1 and os.listdir(ours) == [], f"-f raw {' '.join(arguments)}: refused", r)

    def help(self):
        ours, _ = self.folders()
        for fmt in ("qcow2", "raw"):
            r = self.create(ours, "-f", fmt, "-o", "help")
            q = must(["qemu-img", "create", "-f", fmt, "-o", "help"])
            keys = {line.split("=")[0].strip() for line in q.splitlines() if "=<" in line}
            got = {line.split()[0] for line in r.out.splitlines() if line.startswith("  ")}
            wanted = {k for k in keys if not k.startswith("encrypt")}
            self.results.check(r.code == 0 and wanted <= got, f"-o help lists qemu-img's keys of {fmt}",
                               f"missing: {wanted - got}")


def main():
    parser = harness.parser(__doc__)
    options = parser.parse_args()
    random = harness.start(options)
    results = harness.Results()
    few = (lambda rows: random.sample(rows, 6)) if options.quick else (lambda rows: rows)
    with harness.Scratch(options) as folder:
        test = Create(options.shardcow, folder, results, options.only)
        groups = {"matrix": lambda: test.matrix(few(MATRIX)),
                  "preallocated": lambda: test.preallocated(few(PREALLOCATED)),
                  "sizes": test.sizes, "refused": test.refused, "over-existing": test.over_existing,
                  "failures": test.failures, "locks": test.locks, "backing": test.backing, "raw": test.raw,
                  "help": test.help}
        for name, group in groups.items():
            if not options.only or options.only in name:
                group()
    results.finish()


if __name__ == "__main__":
    main()
