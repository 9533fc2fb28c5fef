# SPDX-License-Identifier: MIT
"""Convert images to qcow2 with shardcow and with qemu-img, and compare what comes out.

Content is compared with the source by qemu-img compare, structure by qemu-img check, and size with what
qemu-img itself makes of the same: within 2 % plain, at most 1.1 times compressed. Every image of variants.py
is a source once; on one source all options; then overlays, outputs that exist, several sources, and errors.
"""

import hashlib
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
import variants                                                                        # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB, MIB = 1 << 10, 1 << 20

# Options of one conversion of small.raw.
OPTIONS = (
    "", "-W", "-m 1", "-m 16", "-m 16 -W", "-S 0", "-S 512", "-S 64k", "-S 1M", "-p", "-q -p",
    "-t none", "-t directsync", "-t writethrough", "-t writeback", "-T none",
    "-o cluster_size=512", "-o cluster_size=4k", "-o cluster_size=2M", "-o cluster_size=2M -S 0",
    "-o compat=0.10", "-o compat=0.10,cluster_size=1k", "-o refcount_bits=1",
    "-o refcount_bits=64,cluster_size=512",
    "-o lazy_refcounts=on", "-o extended_l2=on", "-o extended_l2=on,cluster_size=16k",
    "-o extended_l2=on,cluster_size=2M",
    "-o preallocation=metadata", "-o preallocation=falloc", "-o preallocation=full",
    "-o cluster_size=4k -o preallocation=metadata",
    "-o data_file=DATA", "-o data_file=DATA,data_file_raw=on", "-o data_file=DATA -S 0",
    "-o data_file=DATA,extended_l2=on,cluster_size=32k",
    "-c", "-c -W", "-c -m 16", "-c -S 0", "-c -t none", "-c -o compat=0.10", "-c -o compression_type=zstd",
    "-c -o cluster_size=512", "-c -o cluster_size=4k", "-c -o cluster_size=4k,compression_type=zstd",
    "-c -o cluster_size=2M", "-c -o cluster_size=2M,compression_type=zstd", "-c -o refcount_bits=1",
    "-c -o extended_l2=on,cluster_size=128k,compression_type=zstd", "-c -o refcount_bits=2,cluster_size=1k",
)

# Words of the command line that both refuse, with SOURCE and OUT (which does not exist); what the error
# names.
ERRORS = (
    ("-O qcow2 -o nonsense=1 SOURCE OUT", "nonsense"),
    ("-O qcow2 -o cluster_size=1000 SOURCE OUT", "cluster"),
    ("-O qcow2 -o compression_type=lzma SOURCE OUT", "compression"),
    ("-O qcow2 -c -o preallocation=full SOURCE OUT", "prealloc"),
    ("-O qcow2 -c -o data_file=DATA SOURCE OUT", "data file"),
    ("-O qcow2 -B SOURCE SOURCE OUT", "format"),
    ("-O qcow2 -o backing_file=SOURCE SOURCE OUT", "format"),
    ("-O qcow2 -B SOURCE -F raw SOURCE SOURCE OUT", "several"),
    ("-O qcow2 -B nofile -F raw SOURCE OUT", "nofile"),
    ("-O raw -c SOURCE OUT", "-c"),
    ("-O qcow2 -n -o cluster_size=4k SOURCE OUT", "-o"),
    ("-O qcow2 -n SOURCE OUT", "OUT"),
    ("-O qcow2 --target-is-zero SOURCE OUT", "-n"),
    ("-O qcow2 -S 100 SOURCE OUT", "-S"),
    ("-O qcow2 -S 1G SOURCE OUT", "-S"),
    ("-O qcow2 -m 0 SOURCE OUT", "-m"),
    ("-O qcow2 -m 17 SOURCE OUT", "-m"),
    ("-O nonsense SOURCE OUT", "nonsense"),
    ("-O qcow2 SOURCE", "output"),
    ("-O qcow2 nofile OUT", "nofile"),
    ("-O qcow2 SOURCE nofolder/OUT", "nofolder"),
)


class Converter:
    def __init__(self, options, rng, results, scratch):
        self.options = options
        self.rng = rng
        self.results = results
        self.scratch = scratch
        self.sizes = {}

    # ---- running ----

    def qemu(self, arguments, cwd=None):
        return run(["qemu-img", "convert", *arguments], cwd=cwd or self.scratch, timeout=600)

    def shardcow(self, arguments, cwd=None):
        return run([self.options.shardcow, "convert", *arguments], cwd=cwd or self.scratch, timeout=600)

    def ways(self, *more):
        """How shardcow does it: a way that differs from call to call."""
        backend = self.rng.choice(("io_uring", "threads")) if harness.io_uring_works() else "threads"
        return ["--backend", backend, *self.rng.choice(([], [], ["--threads", "1"], ["--threads", "5"], *more,
                                                        ["--cache-bytes", "64k"]))]

    def same(self, name, source, source_format, output, output_format="qcow2", cwd=None):
        r = run(["qemu-img", "compare", "-f", source_format, "-F", output_format, source, output],
                cwd=cwd or self.scratch, timeout=600)
        return self.results.check(r.code == 0, f"{name}: same content", r)

    def sound(self, name, path, cwd=None):
        r = run(["qemu-img", "check", "-f", "qcow2", path], cwd=cwd or self.scratch, timeout=600)
        return self.results.check(r.code == 0, f"{name}: check", r)

    def info(self, path, cwd=None):
        return json.loads(must(["qemu-img", "info", "--output=json", "-f", "qcow2", path],
                               cwd=cwd or self.scratch))

    # ---- sizes ----

    def qemu_size(self, key, arguments):
        """Bytes of what qemu-img makes; remembered for further calls."""
        if key not in self.sizes:
            r = self.qemu([*arguments, "reference.qcow2"])
            if r.code != 0:
                raise RuntimeError(f"set-up failed:\n{r}")
            st = os.stat(f"{self.scratch}/reference.qcow2")
            self.sizes[key] = (st.st_size, st.st_blocks * 512, self.info("reference.qcow2"))
            os.unlink(f"{self.scratch}/reference.qcow2")
        return self.sizes[key]

    def size(self, name, output, wanted, compressed):
        st = os.stat(f"{self.scratch}/{output}")
        size, blocks, info = wanted
        slack = 2 * info["cluster-size"]
        if compressed:
            # With narrow refcounts few compressed clusters can share a host cluster.
            factor = 1.1 if info["format-specific"]["data"]["refcount-bits"] >= 16 else 1.2
            self.results.check(st.st_size <= factor * size + slack, f"{name}: size",
                               f"{st.st_size} bytes, qemu-img's {size}")
        else:
            self.results.check(abs(st.st_size - size) <= 0.02 * size + slack, f"{name}: size",
                               f"{st.st_size} bytes, qemu-img's {size}")
            # Space is allocated in clusters, also where a subcluster is not written.
            most = size if info["format-specific"]["data"].get("extended-l2") else blocks
            self.results.check(st.st_blocks * 512 <= 1.02 * most + slack + 64 * KIB, f"{name}: space taken",
                               f"{st.st_blocks * 512} bytes, qemu-img's {blocks}")

    def facts(self, name, output, wanted):
        """What info tells of the format, in both."""
        got, want = self.info(output)["format-specific"]["data"], wanted["format-specific"]["data"]
        for data in (got, want):
            data.pop("data-file", None)
        self.results.equal(got, want, f"{name}: format")

    # ---- cases ----

    def every_source(self, chosen):
        """Each image once, with options that change from one to the next."""
        settings = ((), ("-c",), ("-o", "cluster_size=4k"), ("-c", "-o", "compression_type=zstd"),
                    ("-o", "extended_l2=on"), ("-S", "0"), ("-o", "compat=0.10"))
        for i, v in enumerate(chosen):
            arguments = settings[i % len(settings)]
            if "-S" in arguments and os.path.getsize(v.truth) > 4 * variants.SMALL_BYTES:
                arguments = ()
            name = f"{v.name} {' '.join(arguments)}"
            output = f"{self.scratch}/out.qcow2"
            # With several shards sizes depend on how their leases fall.
            r = self.shardcow([*self.ways(["--shards", "3"]), "-f", v.format, "-O", "qcow2", *arguments, v.path,
                               output], cwd=v.folder)
            if self.results.check(r.code == 0 and not r.out and not r.err, f"{name}: converts", r):
                self.same(name, v.truth, "raw", output)
                self.sound(name, output)
            if os.path.exists(output):
                os.unlink(output)

    def every_option(self, source):
        for words in self.rng.sample(OPTIONS, 14) if self.options.quick else OPTIONS:
            arguments = words.split()
            ours, theirs = ([x.replace("DATA", f"{self.scratch}/{p}.data") for x in arguments]
                            for p in ("ours", "theirs"))
            name = words or "no options"
            wanted = self.qemu_size(words, ["-f", "raw", "-O", "qcow2", *theirs, source])
            r = self.shardcow([*self.ways(), "-f", "raw", "-O", "qcow2", *ours, source, "out.qcow2"])
            progress = "-p" in arguments and "-q" not in arguments
            if not self.results.check(r.code == 0 and not r.err and bool(r.out) == progress,
                                      f"{name}: converts", r):
                continue
            if progress:
                self.results.check(r.out.rstrip().endswith("(100.00/100%)"), f"{name}: progress", r)
            self.same(name, source, "raw", "out.qcow2")
            self.sound(name, "out.qcow2")
            self.facts(name, "out.qcow2", wanted[2])
            self.size(name, "out.qcow2", wanted, "-c" in arguments)
            if "DATA,data_file_raw=on" in words:
                at = harness.first_difference(source, f"{self.scratch}/ours.data")
                self.results.check(at is None, f"{name}: the data file is the disk", f"differs at {at}")
            os.unlink(f"{self.scratch}/out.qcow2")

    def allocated(self, path):
        r = run(["qemu-img", "check", "--output=json", "-f", "qcow2", path], cwd=self.scratch)
        return json.loads(r.out).get("allocated-clusters", 0), json.loads(r.out)["total-clusters"]

    def sparse(self, source):
        """-S 0 allocates all, without it a disk of zeros takes nothing, and -S says which runs are kept."""
        for more in ([], ["-c"]):
            must([self.options.shardcow, "convert", "-f", "raw", "-O", "qcow2", "-S", "0", *more, source,
                  "full.qcow2"], cwd=self.scratch)
            got, total = self.allocated("full.qcow2")
            self.results.equal(got, total, f"-S 0 {' '.join(more)}: clusters allocated")
        with open(f"{self.scratch}/zeros.raw", "wb") as f:
            f.write(bytes(9 * MIB))
        must([self.options.shardcow, "convert", "-f", "raw", "-O", "qcow2", "zeros.raw", "zeros.qcow2"],
             cwd=self.scratch)
        self.results.equal(self.allocated("zeros.qcow2")[0], 0, "a disk of zeros: clusters allocated")
        # Runs of two clusters of zeros, which -S 256k keeps.
        with open(f"{self.scratch}/runs.raw", "wb") as f:
            f.write((b"\x11" * 128 * KIB + bytes(128 * KIB)) * 32)
        for sparse, wanted in (("4k", 64), ("128k", 64), ("256k", 128)):
            must([self.options.shardcow, "convert", "-f", "raw", "-O", "qcow2", "-S", sparse, "runs.raw",
                  "runs.qcow2"], cwd=self.scratch)
            self.same(f"-S {sparse}", "runs.raw", "raw", "runs.qcow2")
            self.results.equal(self.allocated("runs.qcow2")[0], wanted, f"-S {sparse}: clusters allocated")

    def overlays(self, source):
        """-B: what the source leaves to its backing file stays there."""
        size = os.path.getsize(source)
        must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, "base.qcow2"], cwd=self.scratch)
        shutil.copyfile(f"{self.scratch}/base.qcow2", f"{self.scratch}/moved.qcow2")
        for name, options, length in (("same size", "", size), ("longer", "cluster_size=16k", size + 5 * MIB),
                                      ("shorter", "", size - 3 * MIB - 512),
                                      ("extended", "extended_l2=on", size),
                                      ("small", "cluster_size=512", size)):
            must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2",
                  *(["-o", options] if options else []), "top.qcow2", str(length)], cwd=self.scratch)
            commands = []
            for _ in range(40):
                off = self.rng.randrange(length // 512) * 512
                n = min(length - off, self.rng.randrange(1, 400) * 512)
                commands.append(self.rng.choice((f"write -q -P {self.rng.randrange(1, 256)} {off} {n}",
                                                 f"write -q -z {off} {n}", f"write -q -P 0 {off} {n}")))
            must(["qemu-io", "-f", "qcow2", "top.qcow2"], stdin="\n".join(commands) + "\n", cwd=self.scratch)
            for more in ([], ["-c"], ["-o", "cluster_size=4k"], ["-S", "0"]):
                self.overlay(f"-B, {name} {' '.join(more)}", more)

    def overlay(self, name, more):
        output = {"theirs.qcow2": self.qemu, "ours.qcow2": self.shardcow}
        for path, convert in output.items():
            ways = self.ways() if path == "ours.qcow2" else []
            r = convert([*ways, "-f", "qcow2", "-O", "qcow2", "-B", "moved.qcow2", "-F", "qcow2", *more,
                         "top.qcow2", path])
            if not self.results.check(r.code == 0, f"{name}: {path}", r):
                return
        self.same(name, "top.qcow2", "qcow2", "ours.qcow2")
        self.sound(name, "ours.qcow2")
        info = self.info("ours.qcow2")
        self.results.equal((info["backing-filename"], info["backing-filename-format"]),
                           ("moved.qcow2", "qcow2"), f"{name}: backing file")
        if name == "-B, longer -S 0":
            # -S 0 keeps zeros; qemu-img leaves out those behind the backing file's end all the same.
            return
        ours, theirs = (self.own_bytes(path) for path in ("ours.qcow2", "theirs.qcow2"))
        self.results.check(ours <= 1.02 * theirs + 256 * KIB, f"{name}: bytes of its own",
                           f"{ours}, qemu-img's {theirs}")

    def own_bytes(self, path):
        extents = json.loads(must(["qemu-img", "map", "--output=json", "-f", "qcow2", path],
                                  cwd=self.scratch))
        return sum(e["length"] for e in extents if e["depth"] == 0 and e["present"])

    def plain_source_on_backing(self, source):
        """A source without a backing file has everything, zeros too."""
        for more in ([], ["-c"]):
            r = self.shardcow(["-f", "raw", "-O", "qcow2", *more, "-B", "noise.qcow2", "-F", "qcow2", source,
                               "out.qcow2"])
            name = f"-B, a source without a backing file {' '.join(more)}"
            self.results.check(r.code == 0, name, r)
            self.same(name, source, "raw", "out.qcow2")
            self.sound(name, "out.qcow2")

    def existing(self, source):
        """-n: the content is replaced as far as the source goes, and nothing beyond."""
        size = os.path.getsize(source)
        for name, options, more in (("the same size", "", []), ("compressed", "", ["-c"]),
                                    ("clusters of 4k", "cluster_size=4k", []),
                                    ("extended L2", "extended_l2=on", []), ("version 2", "compat=0.10", [])):
            must(["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []),
                  "old.qcow2", str(size)], cwd=self.scratch)
            must(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0xee 0 {size}", "old.qcow2"],
                 cwd=self.scratch)
            r = self.shardcow([*self.ways(), "-n", "-f", "raw", "-O", "qcow2", *more, source, "old.qcow2"])
            self.results.check(r.code == 0, f"-n, {name}: converts", r)
            self.same(f"-n, {name}", source, "raw", "old.qcow2")
            self.sound(f"-n, {name}", "old.qcow2")
        must(["qemu-img", "create", "-q", "-f", "qcow2", "long.qcow2", str(size + 3 * MIB)], cwd=self.scratch)
        must(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0xee {size - MIB} 4M", "long.qcow2"],
             cwd=self.scratch)
        r = self.shardcow(["-n", "-f", "raw", "-O", "qcow2", source, "long.qcow2"])
        rest = run(["qemu-io", "-r", "-f", "qcow2", "-c", f"read -q -P 0xee {size} 3M", "long.qcow2"],
                   cwd=self.scratch)
        self.results.check(r.code == 0 and rest.code == 0 and not rest.out,
                           "-n: beyond the source nothing changes", f"{r}\n{rest}")
        must(["qemu-img", "create", "-q", "-f", "qcow2", "zero.qcow2", str(size)], cwd=self.scratch)
        r = self.shardcow(["-n", "--target-is-zero", "-f", "raw", "-O", "qcow2", source, "zero.qcow2"])
        self.results.check(r.code == 0, "--target-is-zero", r)
        self.same("--target-is-zero", source, "raw", "zero.qcow2")
        must(["qemu-img", "create", "-q", "-f", "qcow2", "short.qcow2", str(size - 512)], cwd=self.scratch)
        before = harness.sha(f"{self.scratch}/short.qcow2")
        r = self.shardcow(["-n", "-f", "raw", "-O", "qcow2", source, "short.qcow2"])
        self.results.check(r.code == 1 and "short.qcow2" in r.err, "-n: too small is refused", r)
        self.sound("-n: too small", "short.qcow2")
        r = run(["qemu-io", "-r", "-f", "qcow2", "-c", f"read -q -P 0 0 {size - 512}", "short.qcow2"],
                cwd=self.scratch)
        self.results.check(r.code == 0 and not r.out, f"-n: too small stays empty ({before[:8]})", r)

    def several(self):
        """One after the other; cluster boundaries and ends of sources do not agree."""
        names = []
        for i, size in enumerate((MIB + 512, 512, 70 * KIB, 3 * MIB - 1024, 200 * KIB, 512, 1024, 2 * MIB)):
            names.append(f"part-{i}.raw")
            with open(f"{self.scratch}/{names[-1]}", "wb") as f:
                data = self.rng.randbytes(size // 2) + bytes(size - size // 2)
                f.write(data if i != 4 else bytes(size))
        must(["qemu-img", "convert", "-f", "raw", "-O", "raw", *names, "whole.raw"], cwd=self.scratch)
        for more in ([], ["-c"], ["-o", "cluster_size=4k"], ["-c", "-o", "cluster_size=2M"], ["-S", "0"],
                     ["-c", "-S", "0"], ["-c", "-o", "cluster_size=512,compression_type=zstd"]):
            name = f"several sources {' '.join(more)}"
            r = self.shardcow([*self.ways(), "-f", "raw", "-O", "qcow2", *more, *names, "out.qcow2"])
            self.results.check(r.code == 0, f"{name}: converts", r)
            self.same(name, "whole.raw", "raw", "out.qcow2")
            self.sound(name, "out.qcow2")

    def errors(self, source):
        """Refused by both, and no file is left that was not there."""
        shutil.copyfile(source, f"{self.scratch}/SOURCE")
        for words, text in ERRORS:
            arguments = ["-f", "raw", *words.split()]
            got, want = self.shardcow(arguments), self.qemu(arguments)
            self.results.check(got.code == want.code == 1 and text in got.err, f"{words!r} is refused",
                               f"{got}\n{want}")
            for left in ("OUT", "DATA"):
                if os.path.exists(f"{self.scratch}/{left}"):
                    os.unlink(f"{self.scratch}/{left}")
        before = harness.sha(f"{self.scratch}/SOURCE")
        must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "SOURCE", "-F", "raw", "above.qcow2"],
             cwd=self.scratch)
        for words in ("-f raw SOURCE SOURCE", "-f qcow2 above.qcow2 SOURCE",
                      "-f qcow2 above.qcow2 above.qcow2", "-n -f qcow2 above.qcow2 above.qcow2",
                      "-o data_file=SOURCE -f raw SOURCE OUT"):
            r = self.shardcow(["-O", "qcow2", *words.split()])
            self.results.check(r.code == 1 and "source" in r.err, f"{words!r}: a source is no output", r)
        self.results.equal(harness.sha(f"{self.scratch}/SOURCE"), before, "the source is as it was")

    def replaced(self, source):
        """An output that exists and is longer, of whatever content, leaves nothing behind."""
        path = f"{self.scratch}/out.qcow2"
        with open(path, "wb") as f:
            f.write(self.rng.randbytes(1 << 20) * 80)
        r = self.shardcow(["-f", "raw", "-O", "qcow2", source, "out.qcow2"])
        self.results.check(r.code == 0 and os.path.getsize(path) < 60 * MIB, "over a longer file", r)
        self.same("over a longer file", source, "raw", "out.qcow2")
        self.sound("over a longer file", "out.qcow2")
        first = hashlib.sha256(must(["qemu-img", "map", "--output=json", "-f", "qcow2", path]).encode())
        self.results.check(first.digest(), "and can be mapped")

    def no_space(self, source):
        """A limit on the file's size stands for a full disk: an error, no crash, and a hint."""
        r = run(["bash", "-c", 'ulimit -f 8192; trap "" XFSZ; exec "$@"', "-", self.options.shardcow,
                 "convert", "-f", "raw", "-O", "qcow2", source, "full-disk.qcow2"], cwd=self.scratch)
        self.results.check(r.code == 1 and "full-disk.qcow2" in r.err and "incomplete" in r.err,
                           "no space: an error that names the output", r)


def main():
    p = harness.parser(__doc__)
    options = p.parse_args()
    rng = harness.start(options)
    results = harness.Results()
    chosen = variants.select(options)
    source = f"{options.images}/{variants.SMALL}"
    with harness.Scratch(options) as scratch:
        converter = Converter(options, rng, results, scratch)
        must(["qemu-img", "create", "-q", "-f", "qcow2", "noise.qcow2", str(variants.SMALL_BYTES)],
             cwd=scratch)
        must(["qemu-io", "-f", "qcow2", "-c", f"write -q -P 0x99 0 {variants.SMALL_BYTES}", "noise.qcow2"],
             cwd=scratch)
        converter.every_source(chosen)
        if not options.only:
            converter.every_option(source)
            converter.sparse(source)
            converter.overlays(source)
            converter.plain_source_on_backing(source)
            converter.existing(source)
            converter.several()
            converter.replaced(source)
            converter.errors(source)
            converter.no_space(source)
    results.finish()


if __name__ == "__main__":
    main()
