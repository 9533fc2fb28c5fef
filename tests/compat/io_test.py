# SPDX-License-Identifier: MIT
"""Run the same reads through shardcow io and qemu-io and compare what they print, the timing left out.

Images of a few MiB are made with seeded writes: plain, compressed, zero and discarded clusters, chains, data
files, partial last clusters. On each, random commands, good and bad, with both backends, aligned and
misaligned buffers, a big cache and one of 16 slices. The differences that are meant (docs/man/shardcow-io.1)
are tested for themselves.
"""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB, MIB = 1 << 10, 1 << 20

# Everything after the time and before the next line: rates.
TIMED = (
    # aio_write -z of qemu-io measures from the system's start.
    (re.compile(r"^((?:[0-9.]+ (?:bytes|KiB|MiB|GiB|TiB|PiB|EiB)|0 bytes), 1 ops; )"
                r"(?:\d\d\.\d\d sec|\d+:\d\d:\d\d\.\d\d) \(.* (?:bytes|KiB|MiB|GiB|TiB)/sec and [0-9.]+ ops/sec\)$"), r"\1TIME"),
    (re.compile(r"^(\d+,1,)\d+:\d\d:\d\d\.\d\d,[0-9.]+,[0-9.]+$"), r"\1TIME"),
)
PROMPT = re.compile(r"^(?:qemu-io> )+")

# One at a time on the image plain, 3333632 bytes long: options, numbers, ranges, errors.
SINGLE = """
length|info|map|i|l|f|flush|aio_flush|aio_flush 1|aio_flush -x|quit|quit 1 2|q|length 1|info 1|map 1
alloc 0|alloc 0 1m|alloc 0 64k|alloc 3333120 1k|alloc 3333632|alloc 4M 1k|alloc 100 17|alloc 1|alloc 0 0
alloc|alloc 1 2 3|alloc abc|alloc -1|alloc -0|alloc -1k|alloc -|alloc --1|alloc -99999999999999999999
alloc 1.5|alloc 1.5k|alloc 1e3|alloc 0x1.8|alloc 0x10k|alloc 0x1g|alloc 1kk|alloc 1K|alloc 1B|alloc 1b
alloc 1t|alloc 1P|alloc 0x|alloc 0X10|alloc 010|alloc 0.5|alloc 1.0000001k|alloc 1E|alloc 7E|alloc 8E
alloc 16E|alloc 9223372036854775807|alloc 9223372036854775808|alloc 18446744073709551616|alloc 1.k|alloc k
alloc 1,5|alloc inf|alloc nan|alloc 1.3k|alloc 1.25M|alloc 1.9999999999999k|alloc 0 zz|alloc 0x7fffffff
read 0 64k|read -P 0xaa 0 64k|read -P 0xab 0 64k|read -v 0 100|read -vP 0xaa 0 20|read -C 0 64k|r 0 1k
read -C -P 1 0 64k|read -q 0 64k|read -q -P 1 0 64k|read -v -q 0 16|read -Cv 0 17|read -p 0 1k|read -r 0 1k
read -P 0xaa -s 1k -l 1k 0 64k|read -P 0xaa -s 1k 0 128k|read -P 0xaa -s 63k -l 1k 0 128k
read -P 0xaa -s 64k -l 1k 0 64k|read -P 0xaa -s 64k 0 64k|read -P 0xaa -s 65k 0 64k|read -P 0xaa -l 65k 0 64k
read -s 1 0 64k|read -l 1 0 64k|read -s 0 0 512|read -l 1 0 2G|read -l 1 -s 1 zz 512|read -P 1 -P 0xaa 0 512
read 0 512 -q|read -q 0 512 -v|read 0 -P 0xaa 512|read -P 0 -s -1 0 512|read -P 0 -l -1 0 512
read -P 0 -l 8E 0 512|read -P 0 -s 3G 0 512|read -P 0 -l 3G 0 512|read -P 0 -s zz 0 512|read -P 0 -s
read 1 1|read 1 1000|read 511 2|read 3333631 1|read 3333632 0|read 3333632 1|read 3333632 512
read 3333120 1024|read 4M 1|read 4M 0|read 0 0|read -P 3 0 0|read -v 0 0|read 0 4M|read 8E 1|read 7E 1
read 0 -1|read 0 -- -1|read -- -1 0|read 0 zz|read zz 0|read 0 1x|read 0 1.5k|read 0 0x200|read 0 1e3
read 0 99999999999999999999|read 0 9223372036854775807|read 0 8E|read 0 2G|read 0 2147483137|read 7E 2G
read|read 0|read 0 1 2|read -P 256 0 1|read -P -1 0 1|read -P xx 0 1|read -P 0xa 0 1|read -P 010 0 1
read -P 08 0 1|read -P 0x 0 1|read -P +5 0 1|read -P 1k 0 1|read -P 0XFF 0 1|read -P 1.0 0 1|read -P 0 1
read -P 99999999999999999999 0 1|read -z 0 1|read -P|read -Z|read -a 0 1k|read -P 256 -Z|read -PZ 0 1
readv 0 1000 24|readv -v 0 10 20|readv -P 0xaa 0 1000 24|readv -P 0xab 0 1000 24|readv -C 0 1k|readv -q 0 1k
readv 0 0|readv 0 0 0|readv 0 512 0 512|readv 5 512 0 511|readv 3333120 512 512|readv 3333120 1 511
readv zz 1|readv 0 zz|readv 0 2G|readv 0 1k 2G|readv 0 2147483136 2147483136|readv 0 -- -1|readv|readv 0
readv -s 0 0 1|readv -b 0 1|readv -z 0 1|rv 0 1k|readv 1k 1 2 3 4 5 6 7 8 9|readv 4M 1 1
aio_read 0 64k|aio_read -v 0 16|aio_read -P 0xaa 0 64k|aio_read -P 0xab 0 64k|aio_read -C 0 1k
aio_read -q 0 1k|aio_read 0 1000 24|aio_read 1 1|aio_read 3333120 1024|aio_read 4M 1|aio_read 0 zz
aio_read zz 0|aio_read 0|aio_read|aio_read -z 0 1k|aio_read -P 1000 0 1k|aio_read 0 1 2G|aio_read -s 0 0 1
aio_read -l 0 0 1|aio_read 0 0|aio_read -Cv 0 512|aio_read -i 0 1k|aio_read -i|aio_read -iv zz zz
write 0 1k|write -z 0 1k|write -P zz 0 1k|w 0 1k|writev 0 1k|aio_write 0 1k|aio_write -i 0 1k|discard 0 64k
discard|write|truncate 1M|t 1M|truncate zz|close|close 1|open|open -Z x|reopen -Z|reopen x
foo|wv 0 512|help foo|help length|help quit|help info|help 1 2|sleep 1|sleep zz|sleep|sleep -1|sleep 1.5
sleep 1k|sleep 0x1
""".replace("\n", "|").strip("|").split("|")

# On an image that is open read-only. Their text is shardcow's own; qemu-io fails as well.
REFUSED = {"write 0 1k": "read-only", "w 0 1k": "read-only", "writev 0 1k": "read-only",
           "aio_write 0 1k": "read-only", "discard 0 64k": "read-only", "truncate 1M": "read-only"}
UNLIKE = {
    # command: (exit code, what standard output begins with)
    "read -b 0 512": (1, "read: the VM state of a snapshot is not supported\n"),
    "# a comment": (0, ""),
    "  #another": (0, ""),
    "": (0, ""),
    "read\t-P 0xaa\t0 1k": (0, "read 1024/1024 bytes at offset 0\n"),
    "help read": (0, "read [-abCqrv] [-P pattern [-s off] [-l len]] off len -- reads a number of bytes at a "
                     "specified offset\n\n"),
}


def plain_lines(text):
    """Lines without prompts and times."""
    lines = []
    for line in text.splitlines():
        line = PROMPT.sub("", line)
        for pattern, short in TIMED:
            line = pattern.sub(short, line)
        lines.append(line)
    return lines


class Image:
    def __init__(self, folder, name, fmt="qcow2"):
        self.folder = folder
        self.name = name
        self.path = f"{name}.{fmt}"
        self.fmt = fmt
        truth = f"{folder}/{name}.truth"
        must(["qemu-img", "convert", "-f", fmt, "-O", "raw", self.path, truth], cwd=folder)
        with open(truth, "rb") as f:
            self.data = f.read()
        os.unlink(truth)
        self.size = len(self.data)


class Maker:
    """Makes the images; every write is a pattern of one byte, so that reads with -P can succeed."""

    def __init__(self, folder, rng):
        self.folder = folder
        self.rng = rng

    def create(self, name, size, *arguments):
        must(["qemu-img", "create", "-q", "-f", "qcow2", *arguments, f"{name}.qcow2"]
             + ([str(size)] if size else []), cwd=self.folder)

    def fill(self, name, size, cluster, count, kinds=("data", "data", "data", "zero", "unmap", "discard")):
        commands = []
        for _ in range(count):
            kind = self.rng.choice(kinds)
            unit = 512 if kind == "data" else cluster
            off = self.rng.randrange((size + unit - 1) // unit) * unit
            length = min(self.rng.choice((512, 4 * KIB, 3 * cluster // 2, 6 * cluster))
                         // unit * unit or unit,
                         size - off)
            byte = self.rng.randrange(1, 256)
            if kind == "compressed":
                # QEMU writes none over a plain cluster, and does not discard a last one that is cut short.
                off = min(off, (size // cluster - 1) * cluster)
                length = cluster
                commands.append(f"discard -q {off} {cluster}")
            commands.append({"data": f"write -q -P {byte} {off} {length}",
                             "compressed": f"write -q -c -P {byte} {off} {length}",
                             "zero": f"write -q -z {off} {length}",
                             "unmap": f"write -q -z -u {off} {length}",
                             "discard": f"discard -q {off} {length}"}[kind])
        must(["qemu-io", "-t", "unsafe", "-d", "unmap", "-f", "qcow2", f"{name}.qcow2"],
             stdin="\n".join(commands) + "\n", cwd=self.folder)

    def make(self, name, size, cluster, count, options="", arguments=(), **kwargs):
        self.create(name, size, "-o", f"cluster_size={cluster}{options}", *arguments)
        self.fill(name, size, cluster, count, **kwargs)
        return Image(self.folder, name)

    def plain(self):
        """The image of SINGLE."""
        self.create("plain", 3333632)
        must(["qemu-io", "-c", "write -q -P 0xaa 0 64k", "-c", "write -q -P 0x11 64k 1000k",
              "-c", "write -q -z 2M 64k", "-c", "write -q -P 0x41 3333120 512", "plain.qcow2"],
             cwd=self.folder)
        return Image(self.folder, "plain")

    def all(self):
        rng = self.rng

        def size():
            return rng.randrange(2 * MIB // 512, 6 * MIB // 512) * 512

        mixed = ("data", "compressed", "compressed", "zero", "unmap", "discard")
        images = [self.plain()]
        images.append(self.make("small-clusters", size(), 4 * KIB, 120))
        images.append(self.make("tiny-clusters", 1234 * KIB + 512, 512, 120))
        images.append(self.make("version-2", size(), 64 * KIB, 30, ",compat=0.10"))
        images.append(self.make("zlib", size(), 64 * KIB, 40, kinds=mixed))
        images.append(self.make("zstd", size(), 32 * KIB, 60, ",compression_type=zstd", kinds=mixed))
        images.append(self.make("extended-l2", size(), 64 * KIB, 60, ",extended_l2=on"))
        images.append(self.make("refcount-1", size(), 16 * KIB, 40, ",refcount_bits=1,lazy_refcounts=on"))
        images.append(self.make("data-file", size(), 64 * KIB, 30, ",data_file=data-file.data"))
        images.append(self.make("data-file-raw", size(), 64 * KIB, 30,
                                ",data_file=data-file-raw.data,data_file_raw=on"))
        raw = f"{self.folder}/base.raw"
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "zlib.qcow2", raw], cwd=self.folder)
        images.append(Image(self.folder, "base", "raw"))
        # Longer and shorter than what is below.
        for name, below, fmt, scale in (("on-raw", "base", "raw", 1.25), ("on-qcow2", "on-raw", "qcow2", 0.75),
                                        ("three-deep", "on-qcow2", "qcow2", 1.5)):
            length = int(os.path.getsize(raw) * scale) // 512 * 512
            images.append(self.make(name, length, 32 * KIB, 25,
                                    arguments=("-b", f"{below}.{fmt}", "-F", fmt)))
        return images


def random_commands(rng, image, count):
    """Commands of every kind, in and a little out of range. One asynchronous read at a time: the order in
    which several are reported is nobody's promise."""
    size = image.size
    commands = ["length", "info", "map", f"alloc 0 {size}"]

    def place():
        step = rng.choice((1, 512, 512, 4096, 65536))
        return min(rng.randrange(size + 2 * KIB) // step * step, size)

    def length(off, longest):
        step = rng.choice((1, 1, 512, 512, 4096))
        n = (1 + rng.randrange(longest)) // step * step
        return n if rng.random() < 0.05 else min(n, size - off)

    def split(n):
        parts = []
        for _ in range(rng.randrange(6)):
            parts.append(rng.randrange(n + 1))
            n -= parts[-1]
        return " ".join(map(str, parts + [n]))

    def flags(off):
        byte = image.data[off] if off < size else 0
        pattern = rng.choice(("", "", f" -P {byte}", f" -P {byte:#x}", f" -P {rng.randrange(256)}"))
        return "".join(rng.sample([" -C", " -q", " -r", ""], rng.choice((0, 0, 1, 2)))), pattern

    for _ in range(count):
        off = place()
        dump = " -v" if rng.random() < 0.3 else ""
        n = length(off, 2 * KIB if dump else 300 * KIB)
        other, pattern = flags(off)
        kind = rng.choice(("read", "read", "readv", "aio_read", "alloc"))
        if kind == "alloc":
            commands.append(f"alloc {off} {n}")
        elif kind == "read":
            if pattern and rng.random() < 0.5:
                start = rng.randrange(n + 1)
                pattern += f" -s {start} -l {rng.randrange(n - start + 2)}"
            commands.append(f"read{dump}{other}{pattern} {off} {n}")
        else:
            if kind == "aio_read":
                other = other.replace(" -r", "")  # QEMU 10.0 aborts on it
            commands.append(f"{kind}{dump}{other}{pattern} {off} {split(n)}")
            commands += ["aio_flush"] if kind == "aio_read" else []
    return commands


class Comparison:
    def __init__(self, options, rng, results):
        self.options = options
        self.rng = rng
        self.results = results
        # Since then qemu-io knows -r, and its number parser says and accepts what it does now.
        self.old_qemu = harness.qemu_version() < (8, 1)

    def commands(self, image, count):
        commands = random_commands(self.rng, image, count)
        return [c.replace(" -r", "") for c in commands] if self.old_qemu else commands

    def qemu(self, image, arguments, stdin=None):
        r = run(["qemu-io", "-r", "-f", image.fmt, *arguments, image.path], cwd=image.folder, stdin=stdin)
        # The prompt that waits for a line that does not come is no line of output.
        r.out = re.sub(r"(?:qemu-io> )+$", "", r.out)
        return r

    def shardcow(self, image, arguments, stdin=None):
        return run([self.options.shardcow, "io", "-r", "-f", image.fmt, *arguments, image.path],
                   cwd=image.folder, stdin=stdin)

    def same(self, got, want, name, key=None):
        """Equal output, or with key an equal set of its pieces, and the same exit code."""
        texts = [plain_lines(r.out) for r in (got, want)]
        if key:
            texts = [key(lines) for lines in texts]
        if got.code != want.code or texts[0] != texts[1]:
            pairs = [f"got:  {a}\nwant: {b}" for a, b in zip(*texts) if a != b][:4]
            counts = f"{len(texts[0])} lines, should be {len(texts[1])}"
            codes = f"exit code {got.code}, should be {want.code}"
            self.results.check(False, name, "\n".join(pairs + [counts, codes, got.err]))
        else:
            self.results.check(True, name)

    def single(self, image):
        if self.old_qemu:
            self.results.skip("single commands", "texts of qemu-io 8.1 and newer")
            return
        for command in SINGLE:
            arguments = ["-c", command]
            self.same(self.shardcow(image, arguments), self.qemu(image, arguments), f"{command!r} alone")

    def unlike(self, image):
        for command, words in REFUSED.items():
            r = self.shardcow(image, ["-c", command])
            self.results.check(r.code == 1 and not r.out and words in r.err, f"{command!r} is refused", r)
        for command, (code, out) in UNLIKE.items():
            r = self.shardcow(image, ["-c", command])
            self.results.check(r.code == code and r.out.startswith(out) and bool(r.out) == bool(out),
                               f"{command!r} as documented", r)

    def scripts(self, image):
        """The same from standard input: failures do not stop it, quit does."""
        commands = self.commands(image, 30)
        waiting = [c for c in commands if not c.startswith("aio")]
        for name, lines, end in (("a good script", ["length", "read 0 512"], "\n"),
                                 ("a script", commands, "\n"),
                                 ("a script without a last newline", waiting[:9] + ["read 0 1"], ""),
                                 ("a script with a failure first", ["foo", "", "length", "   "], "\n"),
                                 ("a failure before quit", ["read zz 0", "quit", "length"], "\n"),
                                 ("a failure after quit", ["length", "quit", "read zz 0"], "\n"),
                                 ("an empty script", [], "")):
            text = "\n".join(lines) + end
            self.same(self.shardcow(image, [], stdin=text), self.qemu(image, [], stdin=text), name)
        r = self.shardcow(image, [], stdin="# comment\n\n  # more\nread -q -P 0xaa 0 64k # no comment\n")
        self.results.check(r.code == 1 and r.out.startswith("read [-abCqrv]"), "comments are lines of their own",
                           r)

    def sequences(self, image):
        """Several -c: all run, the first failure decides the exit code, quit ends it."""
        for commands in (["foo", "length"], ["length", "foo"], ["quit", "foo"], ["foo", "quit", "length"],
                         ["read 0 512", "read -P 1 0 512", "read 0 512"], ["aio_read 0 512", "quit"],
                         ["aio_read -P 1 0 512", "aio_flush", "length"]):
            arguments = [x for c in commands for x in ("-c", c)]
            self.same(self.shardcow(image, arguments), self.qemu(image, arguments), f"{commands}")

    def many_in_flight(self, image, how):
        """As many reports as reads, each one right, in any order."""
        commands = []
        for _ in range(400):
            off = self.rng.randrange(image.size)
            n = min(self.rng.randrange(1, 20 * KIB), image.size - off)
            commands.append(f"aio_read -P {image.data[off]} {off} {n // 2} {n - n // 2}")
        script = "\n".join(commands + ["aio_flush"]) + "\n"

        def pieces(lines):
            texts = re.split(r"\n(?=Pattern|read \d)", "\n".join(lines))
            return sorted(texts)
        self.same(self.shardcow(image, how, stdin=script), self.qemu(image, [], stdin=script),
                  f"{image.name}: 400 reads in flight ({' '.join(how)})", pieces)

    def session(self, image, how, count):
        commands = self.commands(image, count)
        arguments = [x for c in commands for x in ("-c", c)]
        want = self.qemu(image, arguments)
        self.same(self.shardcow(image, how + arguments), want,
                  f"{image.name}: {len(commands)} commands ({' '.join(how)})")


def ways(rng):
    backends = ["io_uring", "threads"] if harness.io_uring_works() else ["threads"]
    return [["--backend", backend] + more + rng.choice(([], ["-m"], ["-t", "writeback"]))
            for backend in backends
            for more in ([], ["--slice-bytes", "512", "--cache-bytes", str(16 * 512)])]


def main():
    p = harness.parser(__doc__)
    options = p.parse_args()
    rng = harness.start(options)
    results = harness.Results()
    comparison = Comparison(options, rng, results)
    with harness.Scratch(options) as scratch:
        images = Maker(scratch, rng).all()
        wanted = re.compile(options.only or "")
        for image in images:
            if not wanted.search(image.name):
                continue
            for how in ways(rng):
                comparison.session(image, how, 25 if options.quick else 60)
            comparison.many_in_flight(image, rng.choice(ways(rng)))
        comparison.single(images[0])
        comparison.unlike(images[0])
        comparison.scripts(images[0])
        comparison.sequences(images[0])
    results.finish()


if __name__ == "__main__":
    main()
