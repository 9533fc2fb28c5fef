# SPDX-License-Identifier: MIT
"""Run the same writes through shardcow io and qemu-io, compare what they print and the images they leave.

Each image has two copies, one for each program. After every session the two must have the same content and a
clean check; then qemu-io reads and writes what shardcow left, and the other way round, on one image. Single
commands, good and bad, are compared on an image of their own, and what close, reopen and truncate do.
"""

import json
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
import io_test                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

KIB, MIB = 1 << 10, 1 << 20

# One at a time on the image plain, 3333632 bytes long. Several commands with ';' between them.
SINGLE = """
write 0 64k|write -P 1 0 1k|write 64k 1m|write -z 0 64k|write -z 0 100k|write -zu 0 64k|write -zu 1000 130k
write -zn 0 2M|write -zn 0 4G|write -z 0 4G|write -n 0 1k|write -u 0 1k|write -z -P 1 0 1k|write -zr 0 1k
write -f 0 64k|write -f 1 1|write -fz 0 64k|write -fzu 0 64k|write -fc 128k 64k|write -C 0 64k|write -q 0 64k
write -Cq 0 64k|write -p 0 1k|write -r 0 1k|write -P 256 0 1|write -P zz 0 1k|write -s nofile 0 1k
write -s /dev/null 0 1k|write -s words 100 100k|write -s words -P 1 0 1k|write -s words -z 0 1k
write -c 2624k 64k|write -c 2624k 128k|write -c 1k 64k|write -c 2624k 1k|write -c 1 64k|write -c 0 100
write -c 0 0|write -c 4M 64k|discard 3276800 56832;write -c -P 7 3276800 56832
write 0 0|write -z 0 0|write 3333632 0|write 3333632 1
write 4M 1|write 3333120 1k|write -z 3333120 1k|write 1 1|write 511 2|write 3333631 1|write -z 1 1
write -z 511 2|write -z 100 3333000|write 0 2G|write 0 8E|write zz 1|write 0 zz|write -1 1|write 0 -1|write
write 0|write 0 1 2|write -Z 0 1|write 0 1.5k|w 0 0x200|write 1000 1000;read -v 990 40
writev 0 1000 24|writev -P 0x55 0 1000 24|writev -C 0 1k|writev -q 0 1k|writev -f 5 512 0 511|writev 0 0
writev 0 512 0 512|writev 3333120 512 512|writev zz 1|writev 0 zz|writev 0 2G|writev 0 1k 2G|writev -z 0 1k
writev -r 0 512|writev 0 2147483136 2147483136|writev|writev 0|writev 1k 1 2 3 4 5 6 7 8 9
aio_write 0 64k|aio_write -P 3 100 1k 2k|aio_write -z 0 64k|aio_write -zu 0 64k|aio_write -z 1 1
aio_write -z 0 1k 2k|aio_write -u 0 1k|aio_write -z -P 1 0 1k|aio_write -zr 0 1k|aio_write -zf 0 64k
aio_write -i 0 1k|aio_write -f 0 1k|aio_write -C 0 1k|aio_write -q 0 1k|aio_write 4M 1|aio_write 0 zz
aio_write zz 0|aio_write 0|aio_write|aio_write -c 0 64k|aio_write -P 1000 0 1k|aio_write 0 1 2G|aio_write 0 0
aio_write 0 64k;aio_flush;read -P 0xcd 0 64k|aio_write -P 9 0 64k;flush;aio_flush;read -P 9 0 64k
discard 0 64k|discard 0 1M|discard 1 100k|discard 0 1|discard 0 0|discard -C 0 64k|discard -q 0 64k
discard 3333632 0|discard 3333632 1|discard 0 4M|discard 0 4G|discard zz 1|discard 0 zz|discard|discard 0
discard 0 1 2|discard -P 1 0 1|d 64k 64k|discard 0 3333632|discard 0 128k;read -P 0 0 128k
flush|f|flush 1|write 0 64k;flush;read -P 0xcd 0 64k
truncate 1M;length|truncate 8M;length;read -P 0 3333632 64k|truncate 100|truncate 0;length|truncate 3333632
truncate zz|truncate -1|truncate|truncate 1M 2 3|truncate -m off 1M;length|truncate -m foo 1M|truncate -m
truncate 512;length;write 0 512;write 0 513|t 2M;length|truncate 1M;truncate 3M;read -P 0 1M 2M
truncate 2G;write 2146435072 1M;read -P 0xcd 2146435072 1M;map
close;length|close;write 0 1|close;close|close;sleep 1;help foo|close 1|c;l|open plain.qcow2|open|open -Z x
close;open plain.qcow2;length;write 0 1k|close;open -r plain.qcow2;length;write 0 1k
close;open -t none plain.qcow2;write 0 64k|close;open -t zz plain.qcow2|close;open -d zz plain.qcow2
close;open nofile|close;open -d ignore plain.qcow2;discard 0 64k;read -P 0xaa 0 64k
close;open -o driver=qcow2 plain.qcow2;info|close;open a b
write 0 64k;close;open plain.qcow2;read -P 0xcd 0 64k
close;open -n plain.qcow2;length|close;open -U plain.qcow2|close;open -rU plain.qcow2;length
reopen;length;write 0 1k|reopen -r;write 0 1k;length|reopen -r;reopen -w;write 0 1k|reopen -r -w|reopen -Z
reopen -c zz|reopen -c writethrough;write 0 1k|reopen -c none;write 0 1k|reopen x|reopen -c
write 0 64k;quit;write 64k 64k|quit|write -P 5 0 64k;reopen -c none;read -P 5 0 64k
map;write 2240k 1;map|alloc 2240k 64k;write 2240k 64k;alloc 2240k 64k
write -c 2624k 64k;map;read -P 0xcd 2624k 64k
""".replace("\n", "|").strip("|").split("|")

# Accepted by shardcow where qemu-io fails, and refused where it does not. What map and alloc say after a
# discard or write -z differs, too: where nothing lies below, shardcow needs no entry for zeros.
OVERWRITE_COMPRESSED = "write -c 0 64k"
REFUSED = ("write -b 0 512", "truncate -m falloc 8M", "reopen -o lazy-refcounts=on")


class Pair:
    """An image in two folders, one for each program."""

    def __init__(self, image, folder):
        self.image = image
        self.folders = {}
        for program in ("qemu", "shardcow"):
            self.folders[program] = f"{folder}/{program}"
            os.mkdir(self.folders[program])
            for name in image.files:
                must(["cp", "--sparse=always", f"{image.folder}/{name}", f"{self.folders[program]}/{name}"])

    def remove(self):
        for folder in self.folders.values():
            shutil.rmtree(folder)


class Writer:
    def __init__(self, options, rng, results):
        self.options = options
        self.rng = rng
        self.results = results

    def qemu(self, folder, image, arguments, stdin=None):
        # As shardcow opens it: discards are done.
        r = run(["qemu-io", "-d", "unmap", "-f", image.fmt, *arguments, image.path], cwd=folder, stdin=stdin)
        r.out = re.sub(r"(?:qemu-io> )+$", "", r.out)
        return r

    def shardcow(self, folder, image, arguments, stdin=None):
        return run([self.options.shardcow, "io", "-f", image.fmt, *arguments, image.path], cwd=folder,
                   stdin=stdin)

    def same_output(self, got, want, name, key=None):
        texts = [io_test.plain_lines(r.out) for r in (got, want)]
        if key:
            texts = [key(lines) for lines in texts]
        pairs = [f"got:  {a}\nwant: {b}" for a, b in zip(*texts) if a != b][:4]
        detail = "\n".join(pairs + [f"{len(texts[0])} lines, should be {len(texts[1])}",
                                    f"exit code {got.code}, should be {want.code}", got.err[-800:]])
        return self.results.check(got.code == want.code and texts[0] == texts[1], name, detail)

    def sound(self, image, folder, name):
        if image.fmt == "qcow2":
            r = run(["qemu-img", "check", "-f", "qcow2", image.path], cwd=folder)
            self.results.check(r.code == 0, f"{name}: check", r)

    def same_content(self, pair, name):
        """Both copies hold the same, and shardcow's is sound."""
        image = pair.image
        # Each in its own folder, where QEMU looks for a data file.
        for folder in pair.folders.values():
            must(["qemu-img", "convert", "-f", image.fmt, "-O", "raw", image.path, "content"], cwd=folder)
        at = harness.first_difference(*(f"{folder}/content" for folder in pair.folders.values()))
        good = self.results.check(at is None, f"{name}: same content", f"they differ at {at}")
        self.sound(image, pair.folders["shardcow"], name)
        return good

    # ---- single commands ----

    def single(self, image, scratch):
        for line in SINGLE:
            pair = Pair(image, scratch)
            for folder in pair.folders.values():
                with open(f"{folder}/words", "w", encoding="ascii") as f:
                    f.write("not a power of two of bytes ")
            arguments = [x for command in line.split(";") for x in ("-c", command)]
            got = self.shardcow(pair.folders["shardcow"], image, arguments)
            want = self.qemu(pair.folders["qemu"], image, arguments)
            if self.same_output(got, want, f"{line!r} alone"):
                self.same_content(pair, f"{line!r} alone")
            pair.remove()

    def unlike(self, image, scratch):
        """The differences that are meant."""
        pair = Pair(image, scratch)
        folder = pair.folders["shardcow"]
        for command in REFUSED:
            r = self.shardcow(folder, image, ["-c", command])
            self.results.check(r.code == 1 and "not supported" in r.out + r.err, f"{command!r} is refused", r)
        r = self.shardcow(folder, image, ["-c", OVERWRITE_COMPRESSED, "-c", "read -P 0xcd 0 64k"])
        self.results.check(r.code == 0, "a compressed write over a plain cluster", r)
        self.sound(image, folder, "a compressed write over a plain cluster")
        r = self.shardcow(folder, image, ["-U", "-c", "length"])
        self.results.check(r.code == 1, "-U without -r is refused", r)
        r = run([self.options.shardcow, "io", "-c", "length"], cwd=folder)
        self.results.check(r.code == 1 and "no file open" in r.err, "a command without a file", r)
        r = run([self.options.shardcow, "io", "-c", f"open {image.path}", "-c", "write -q -P 7 0 1k", "-c",
                 "close", "-c", f"open -r {image.path}", "-c", "read -q -P 7 0 1k"], cwd=folder)
        self.results.check(r.code == 0 and not r.out, "open without a file on the command line", r)
        pair.remove()

    # ---- random sessions ----

    def commands(self, image, size, cluster, count):
        """Commands whose result is defined, and the size of the disk after them."""
        rng, commands = self.rng, []

        def place(unit=None):
            step = unit or rng.choice((1, 512, 512, 4096, cluster))
            return rng.randrange(size + (0 if unit else 2 * KIB)) // step * step

        def length(off, longest):
            step = rng.choice((1, 512, 512, 4096))
            n = max(1, rng.randrange(longest) // step * step)
            return n if rng.random() < 0.03 else max(0, min(n, size - off))

        for _ in range(count):
            off, byte = place(), rng.randrange(256)
            n = length(off, rng.choice((4 * KIB, 3 * cluster, 300 * KIB)))
            flags = rng.choice(("", "", "", " -f", " -C", " -q"))
            kind = rng.choice(image.kinds)
            if kind == "write":
                commands.append(f"write{flags} -P {byte} {off} {n}")
            elif kind == "writev":
                half = rng.randrange(1, n) if n > 1 else n # QEMU 10.0 aborts on some empty buffers
                commands.append(f"writev{flags} -P {byte} {off} {half} {n - half or ''}")
            elif kind == "aio_write":
                commands += [f"aio_write{flags} -P {byte} {off} {n}", "aio_flush"]
            elif kind == "zero":
                commands.append(f"write -z{rng.choice(('', 'u'))}{flags} {off} {n}")
            elif kind == "discard":
                off = place(cluster)
                commands.append(f"discard {off} {min(size - off, rng.randrange(1, 5) * cluster)}")
            elif kind == "compressed" and size >= 2 * cluster:
                # QEMU writes none over a plain cluster, and does not discard a last one that is cut short.
                # QEMU 10.0 goes on in the host cluster of the last compressed one even when that has been
                # freed and is somebody else's; opening the image makes it forget.
                off = rng.randrange(size // cluster) * cluster
                commands += ["close", f"open {image.path}", f"discard -q {off} {cluster}",
                             f"write -c -P {byte} {off} {cluster}"]
            elif kind == "truncate":
                # QEMU keeps what the last cluster holds beyond a smaller disk's end, and shows it again when
                # the disk grows: shrink to whole clusters.
                wanted = max(64 * KIB, size + rng.randrange(-1 * MIB, 2 * MIB) // 512 * 512)
                size = wanted if wanted >= size else (wanted + cluster - 1) // cluster * cluster
                commands += [f"truncate {size}", "length"]
            else:
                others = {"flush": "flush", "reopen": f"reopen -c {rng.choice(image.caches)}",
                          "close": f"close;open {image.path}", "read": f"read -v {off} {min(n, 2048)}"}
                commands.append(others.get(kind, "flush"))
        return [c for line in commands for c in line.split(";")], size

    def session(self, image, scratch, how, count):
        """The same commands on both copies; then each program on the other's image."""
        pair = Pair(image, scratch)
        size = image.size
        name = f"{image.name} ({' '.join(how)})"
        for turn in range(2):
            commands, size = self.commands(image, size, image.cluster, count)
            arguments = [x for c in commands for x in ("-c", c)]
            first, second = ("shardcow", "qemu") if turn == 0 else ("qemu", "shardcow")
            got = self.shardcow(pair.folders[first], image, how + arguments)
            want = self.qemu(pair.folders[second], image, arguments)
            what = f"{name}: {len(commands)} commands, turn {turn + 1}"
            theirs, ours = (want, got) if turn == 0 else (got, want)
            refusal = "aio_write failed: Invalid argument"
            if refusal in theirs.out + theirs.err and refusal not in ours.out + ours.err:
                # QEMU 10.0.2 does so now and then with an unaligned range, above backing files.
                self.results.skip(what, "qemu-io refuses a write that is valid")
                break
            # Each image is written by one program in the first turn and by the other in the second.
            if not (self.same_output(got, want, what) and self.same_content(pair, what)):
                break
            self.sound(image, pair.folders["qemu"], f"{what}, the other copy")
        pair.remove()

    def many_in_flight(self, image, scratch, how):
        """Writes that do not overlap, all under way at once, next to each other within clusters."""
        pair = Pair(image, scratch)
        step = 2560
        places = list(range(0, min(image.size - step, 400 * step), step))
        self.rng.shuffle(places)
        commands = [f"aio_write -P {1 + i % 255} {off} {step}" for i, off in enumerate(places)]
        script = "\n".join(commands + ["aio_flush"]) + "\n"
        got = self.shardcow(pair.folders["shardcow"], image, how, stdin=script)
        want = self.qemu(pair.folders["qemu"], image, [], stdin=script)
        name = f"{image.name}: {len(places)} writes in flight ({' '.join(how)})"
        self.same_output(got, want, name, sorted)
        self.same_content(pair, name)
        pair.remove()


def chain_files(image):
    """The image's own file and all that it names."""
    chain = json.loads(must(["qemu-img", "info", "--output=json", "--backing-chain", "-f", image.fmt,
                             image.path], cwd=image.folder))
    names = [node["filename"] for node in chain]
    for node in chain:
        data = node.get("format-specific", {}).get("data", {})
        names += [data["data-file"]] if "data-file" in data else []
    return [os.path.basename(name) for name in names]


def prepare(images):
    """What may be done to each image so that both programs must agree."""
    everything = ("write", "write", "writev", "aio_write", "zero", "zero", "discard", "compressed", "flush",
                  "read", "truncate", "reopen", "close")
    for image in images:
        kinds = set(everything)
        if image.fmt == "raw":
            # With direct I/O QEMU 10.0 aborts on writes at the end of a file that ends within 4 KiB.
            kinds -= {"compressed", "discard", "truncate", "close", "reopen"}
        if "data-file" in image.name:
            kinds -= {"compressed"}
        image.kinds = sorted(kinds)
        image.files = chain_files(image)
        image.cluster = 64 * KIB
        # Direct I/O may need larger units than these images have.
        small = image.name in ("tiny-clusters", "extended-l2")
        image.caches = ("writeback", "writethrough") if small else ("none", "writeback", "directsync")
        if image.fmt == "qcow2":
            info = must(["qemu-img", "info", "-f", "qcow2", image.path], cwd=image.folder)
            image.cluster = int(re.search(r"cluster_size: (\d+)", info).group(1))


def main():
    p = harness.parser(__doc__)
    options = p.parse_args()
    rng = harness.start(options)
    results = harness.Results()
    writer = Writer(options, rng, results)
    with harness.Scratch(options) as scratch:
        os.makedirs(f"{scratch}/images")
        images = io_test.Maker(f"{scratch}/images", rng).all()
        prepare(images)
        wanted = re.compile(options.only or "")
        for image in images:
            if not wanted.search(image.name):
                continue
            for how in io_test.ways(rng):
                writer.session(image, scratch, how, 25 if options.quick else 50)
            writer.many_in_flight(image, scratch, rng.choice(io_test.ways(rng)))
        if wanted.search("single"):
            if harness.qemu_version() < (8, 1):
                results.skip("single commands", "texts of qemu-io 8.1 and newer")
            else:
                writer.single(images[0], scratch)
            writer.unlike(images[0], scratch)
    results.finish()


if __name__ == "__main__":
    main()
