# SPDX-License-Identifier: MIT
"""Read every generated image with shardcow and compare with what QEMU reads.

For each image, both backends, a big cache and one of 16 slices: convert, compare, io, and random reads from
four threads. With --deny-io-uring HELPER everything runs under a seccomp filter that refuses io_uring, with
the backend left to shardcow.
"""

import collections
import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
import variants                                                                        # noqa: E402
from harness import run                                                                # noqa: E402

BIG_CACHE = 64 << 20
SLICES_FEW = 16
TIMING = re.compile(r"^[0-9.]+ (bytes|KiB|MiB|GiB), \d+ ops; ")


class Combination:
    """How shardcow is to read."""

    def __init__(self, backend, few):
        self.backend = backend
        self.few = few
        self.name = f"{backend}, {'16 slices' if few else 'big cache'}"

    def options(self, variant):
        cache = SLICES_FEW * variant.slice_bytes() if self.few else BIG_CACHE
        return ["--backend", self.backend, "--cache-bytes", str(cache)]

    def reader_options(self):
        # The smallest slices make the most of them: 64 entries, so that even these images have hundreds.
        cache = ["--cache-bytes", str(SLICES_FEW * 512), "--slice-bytes", "512"] if self.few else \
            ["--cache-bytes", str(BIG_CACHE)]
        return ["--backend", self.backend] + cache


class Reader:
    def __init__(self, options, rng, results, scratch):
        self.options = options
        self.rng = rng
        self.results = results
        self.scratch = scratch
        self.prefix = [os.path.abspath(options.deny_io_uring)] if options.deny_io_uring else []
        self.expected_io = {}

    def shardcow(self, variant, *arguments):
        return run(self.prefix + [self.options.shardcow, *arguments], cwd=variant.folder)

    def convert(self, variant, how):
        out = f"{self.scratch}/out.raw"
        r = self.shardcow(variant, "convert", "-f", variant.format, "-O", "raw", *how.options(variant),
                          variant.path, out)
        name = f"{variant.name}: convert ({how.name})"
        if not self.results.check(r.code == 0, name + " runs", r):
            return
        where = harness.first_difference(out, variant.truth)
        if self.results.check(where is None, name + " is right", f"first difference at byte {where}"):
            # QEMU skips zeros in pieces of 4 KiB.
            got, want = os.stat(out).st_blocks * 512, os.stat(variant.truth).st_blocks * 512
            self.results.check(got <= want * 1.1 + (2 << 20), name + " is sparse",
                               f"{got} bytes allocated, {want} in QEMU's")
        os.unlink(out)

    def compare(self, variant, how):
        r = self.shardcow(variant, "compare", "-f", variant.format, "-F", "raw", *how.options(variant),
                          variant.path, variant.truth)
        self.results.check(r.code == 0, f"{variant.name}: compare ({how.name})", r)

    def compare_changed(self, variant, how):
        """One byte flipped in a copy of the truth: the same words and exit code as qemu-img's."""
        copy = f"{self.scratch}/copy.raw"
        harness.must(["cp", "--sparse=always", "--reflink=auto", variant.truth, copy])
        at = self.rng.randrange(os.path.getsize(copy))
        with open(copy, "r+b") as f:
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 0x80]))
        self._same_compare(variant, how, copy, f"byte {at} changed")
        with open(copy, "r+b") as f:
            f.seek(at)
            f.write(bytes([byte]))
            f.truncate(os.path.getsize(copy) + 4096)
        self._same_compare(variant, how, copy, "4096 zeros more")
        self._same_compare(variant, how, copy, "4096 zeros more, strict", "-s")
        os.unlink(copy)

    def _same_compare(self, variant, how, copy, what, *strict):
        arguments = ["compare", *strict, "-f", variant.format, "-F", "raw"]
        want = run(["qemu-img", *arguments, variant.path, copy], cwd=variant.folder)
        got = self.shardcow(variant, *arguments, *how.options(variant), variant.path, copy)
        self.results.equal((got.code, got.out), (want.code, want.out),
                           f"{variant.name}: compare with {what} ({how.name})", got.err)

    def io_commands(self, variant):
        """Spot reads, small ones with a dump of the bytes."""
        size = os.path.getsize(variant.truth)
        commands = ["length", "alloc 0 1m"]
        with open(variant.truth, "rb") as truth:
            for _ in range(12):
                off = self.rng.randrange(max(1, size // 512)) * 512
                length = min(512 * self.rng.randint(1, 4), size - off)
                commands.append(f"read -v {off} {length}")
                # Any offset and length: qemu-io does not insist on sectors.
                commands.append(f"read -v {min(off + 3, size - 1)} {min(517, size - off - 3)}")
                truth.seek(off)
                commands.append(f"read -q -P 0x{truth.read(1)[0]:02x} {off} 1")
            off = self.rng.randrange(max(1, size - 65536) // 512) * 512
            commands += [f"read {off} 64k", f"read -P 0xaa {off} 4k", f"readv -v {off} 512 1k",
                         f"aio_read -q {off} 32k", "aio_flush", f"read -P 0 -s 512 -l 512 {off} 2k",
                         f"read {size - 512} 512", f"read {size} 512"]
        return [c for c in commands if not c.endswith(" 0")]

    def io(self, variant, how):
        """The same commands through both programs, the timing left out."""
        if variant.name not in self.expected_io:
            commands = [x for c in self.io_commands(variant) for x in ("-c", c)]
            r = run(["qemu-io", "-r", "-f", variant.format, *commands, variant.path], cwd=variant.folder)
            self.expected_io[variant.name] = commands, r
        commands, want = self.expected_io[variant.name]
        got = self.shardcow(variant, "io", "-r", "-f", variant.format, *how.options(variant), *commands,
                            variant.path)
        texts = [[line for line in r.out.splitlines() if not TIMING.match(line)] for r in (got, want)]
        name = f"{variant.name}: io ({how.name})"
        if texts[0] != texts[1]:
            pairs = [f"got:  {a}\nwant: {b}" for a, b in zip(*texts) if a != b][:4]
            lengths = f"{len(texts[0])} lines, should be {len(texts[1])}"
            self.results.check(False, name, "\n".join(pairs + [lengths, str(got.err)]))
        else:
            self.results.equal(got.code, want.code, name, got.err)

    def random_reads(self, variant, how):
        r = run(self.prefix + [self.options.random_reader, "--format", variant.format, *how.reader_options(),
                               "--threads", "4", "--seconds", str(self.options.seconds),
                               "--seed", str(self.rng.randrange(1 << 32)), variant.path, variant.truth],
                cwd=variant.folder, timeout=60 + 20 * self.options.seconds)
        good = r.code == 0
        if good and self.prefix:
            good = "backend threads" in r.out
        if good and how.few and variant.format == "qcow2":
            slices = int(re.search(r"(\d+) cache slices", r.out).group(1))
            # A slice for every shard is kept whatever the bound; nothing here has more shards than that.
            good = slices <= max(SLICES_FEW, min(16, os.cpu_count()))
        self.results.check(good, f"{variant.name}: random reads ({how.name})", r)


def combinations(options):
    if options.deny_io_uring:
        return [Combination("auto", True), Combination("auto", False)]
    if options.quick:
        return [Combination("io_uring", True), Combination("threads", False)]
    return [Combination(backend, few) for backend in ("io_uring", "threads") for few in (False, True)]


def falls_back(reader, variant):
    """The command says in one line that it took the other backend, and does not when it was told to."""
    out = f"{reader.scratch}/out.raw"
    arguments = ["convert", "-f", variant.format, "-O", "raw", variant.path, out]
    r = reader.shardcow(variant, *arguments)
    lines = [line for line in r.err.splitlines() if "io_uring" in line]
    reader.results.check(r.code == 0 and len(lines) == 1, "one line says that io_uring is refused", r)
    r = reader.shardcow(variant, *arguments, "--backend", "threads")
    reader.results.check(r.code == 0 and "io_uring" not in r.err, "silent when threads were asked for", r)
    r = reader.shardcow(variant, *arguments, "--backend", "io_uring")
    reader.results.check(r.code == 1 and "io_uring" in r.err, "io_uring itself fails when it is asked for", r)


def main():
    p = harness.parser(__doc__)
    p.add_argument("--random-reader", default=os.environ.get("RANDOM_READER"), help="the compiled helper")
    p.add_argument("--deny-io-uring", help="the compiled helper; run everything under it")
    p.add_argument("--seconds", type=float, help="of random reads for each combination; default 0.5, 0.2 with --quick")
    options = p.parse_args()
    rng = harness.start(options)
    if not options.random_reader or not shutil.which(options.random_reader):
        sys.exit("give --random-reader or set RANDOM_READER")
    options.random_reader = os.path.abspath(options.random_reader)
    options.seconds = options.seconds or (0.2 if options.quick else 0.5)
    chosen = variants.select(options)
    results = harness.Results()
    seconds = collections.Counter()
    with harness.Scratch(options) as scratch:
        reader = Reader(options, rng, results, scratch)
        if options.deny_io_uring:
            r = run([os.path.abspath(options.deny_io_uring), "true"])
            if r.code == 77:
                harness.skip_all(r.err.strip())
            falls_back(reader, chosen[0])
        for round_index, how in enumerate(combinations(options)):
            if how.backend == "io_uring" and not harness.io_uring_works():
                results.skip(f"all images ({how.name})", "io_uring_setup is refused on this machine")
                continue
            for index, variant in enumerate(chosen):
                for step in (reader.convert, reader.compare, reader.io, reader.random_reads):
                    began = time.monotonic()
                    step(variant, how)
                    seconds[step.__name__] += time.monotonic() - began
                # In one of the combinations: it takes ten processes.
                mine = index % len(combinations(options)) == round_index
                if mine and os.path.getsize(variant.truth) < 1 << 30:
                    reader.compare_changed(variant, how)
    print("# time:", ", ".join(f"{step} {spent:.0f} s" for step, spent in seconds.items()))
    results.finish()


if __name__ == "__main__":
    main()
