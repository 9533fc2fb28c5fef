# SPDX-License-Identifier: MIT
"""Image locks, against QEMU's: who may open an image that the other has open.

Each row has a holder, that keeps an image open, and a contender that tries to open it. A row passes when the
contender ends as listed, and as it ends with qemu-io -r in shardcow's place.
"""

import os
import select
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

ANSWER_S = 20


class Holder:
    """A program that keeps an image open until the block ends: it waits on its standard input."""

    def __init__(self, argv, cwd):
        self.argv = argv
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, cwd=cwd)

    def __enter__(self):
        # It answers only once the image is open.
        os.write(self.process.stdin.fileno(), b"length\n")
        text, deadline = b"", time.monotonic() + ANSWER_S
        while b"MiB" not in text:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            got = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not got:
                self.process.kill()
                raise RuntimeError(f"{' '.join(self.argv)} does not hold the image: {text.decode()}")
            text += got
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(ANSWER_S)


def qemu(fmt, path, *flags):
    return ["qemu-io", *flags, "-f", fmt, path]


def make_images(folder):
    """Two images on below, a raw one, and one with a data file."""
    must(["qemu-img", "create", "-q", "-f", "qcow2", f"{folder}/below.qcow2", "4M"])
    must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "below.qcow2", "-F", "qcow2", f"{folder}/top.qcow2"])
    must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "below.qcow2", "-F", "qcow2", f"{folder}/other.qcow2"])
    must(["qemu-img", "create", "-q", "-f", "raw", f"{folder}/disk.raw", "4M"])
    must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=disk.data", "data.qcow2", "4M"], cwd=folder)
    must(["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 1M", "below.qcow2"], cwd=folder)


# (holder: flags, format, file), (contender: format, file), whether it may open
QEMU_HOLDS = [
    ((), "qcow2", "top.qcow2", "qcow2", "top.qcow2", False),
    (("-r",), "qcow2", "top.qcow2", "qcow2", "top.qcow2", True),
    ((), "qcow2", "top.qcow2", "qcow2", "below.qcow2", True),
    ((), "qcow2", "below.qcow2", "qcow2", "top.qcow2", False),
    # A raw image on its own forbids nothing to others, a data file only a change of its size.
    ((), "raw", "disk.raw", "raw", "disk.raw", True),
    (("-r",), "raw", "disk.raw", "raw", "disk.raw", True),
    ((), "qcow2", "data.qcow2", "qcow2", "data.qcow2", False),
    ((), "raw", "disk.data", "qcow2", "data.qcow2", True),
    (("-r",), "qcow2", "data.qcow2", "qcow2", "data.qcow2", True),
]
# (shardcow holds: format, file), (qemu-io wants: flags, format, file), whether it may
SHARDCOW_HOLDS = [
    ("qcow2", "top.qcow2", (), "qcow2", "top.qcow2", False),
    ("qcow2", "top.qcow2", ("-r",), "qcow2", "top.qcow2", True),
    ("qcow2", "top.qcow2", (), "qcow2", "below.qcow2", False),
    ("qcow2", "top.qcow2", ("-r",), "qcow2", "below.qcow2", True),
    ("raw", "disk.raw", (), "raw", "disk.raw", True),
    ("qcow2", "data.qcow2", (), "qcow2", "data.qcow2", False),
    ("qcow2", "data.qcow2", (), "raw", "disk.data", True),
    ("qcow2", "data.qcow2", ("-r",), "qcow2", "data.qcow2", True),
    ("qcow2", "below.qcow2", (), "qcow2", "top.qcow2", True),
]
# With at least one writer: (holder: flags, format, file), (contender: flags, format, file). QEMU with itself
# says what is allowed; the combinations with shardcow on one side, and on both, have to agree.
WRITERS = [
    ((), "qcow2", "top.qcow2", (), "qcow2", "top.qcow2"),
    ((), "qcow2", "top.qcow2", ("-r",), "qcow2", "top.qcow2"),
    (("-r",), "qcow2", "top.qcow2", (), "qcow2", "top.qcow2"),
    ((), "qcow2", "top.qcow2", (), "qcow2", "other.qcow2"),
    ((), "qcow2", "top.qcow2", (), "qcow2", "below.qcow2"),
    ((), "qcow2", "below.qcow2", (), "qcow2", "top.qcow2"),
    ((), "qcow2", "top.qcow2", ("-r",), "qcow2", "below.qcow2"),
    (("-r",), "qcow2", "below.qcow2", (), "qcow2", "top.qcow2"),
    ((), "raw", "disk.raw", (), "raw", "disk.raw"),
    ((), "raw", "disk.raw", ("-r",), "raw", "disk.raw"),
    (("-r",), "raw", "disk.raw", (), "raw", "disk.raw"),
    ((), "qcow2", "data.qcow2", (), "qcow2", "data.qcow2"),
    ((), "qcow2", "data.qcow2", (), "raw", "disk.data"),
    ((), "raw", "disk.data", (), "qcow2", "data.qcow2"),
]


class Locks:
    def __init__(self, shardcow, folder, results):
        self.shardcow = shardcow
        self.folder = folder
        self.results = results

    def opens(self, argv):
        return run(argv + ["-c", "length"], cwd=self.folder, timeout=30)

    def io(self, fmt, path, *flags):
        return [self.shardcow, "io", "-r", *flags, "-f", fmt, path]

    def qemu_holds(self, flags, held_format, held, fmt, path, may):
        name = f"qemu-io {' '.join(flags) or 'read-write'} has {held}: opening {path}"
        with Holder(qemu(held_format, held, *flags), self.folder):
            got, same = self.opens(self.io(fmt, path)), self.opens(qemu(fmt, path, "-r"))
            forced = self.opens(self.io(fmt, path, "-U"))
        self.results.check((same.code == 0) == may, f"{name}: QEMU itself", same)
        self.results.check((got.code == 0) == may, name, got)
        if not may:
            self.results.check("lock" in got.err and path.split(".")[0] in got.err + held, f"{name}: message", got)
        self.results.check(forced.code == 0, f"{name} with -U", forced)

    def shardcow_holds(self, held_format, held, flags, fmt, path, may):
        name = f"shardcow has {held}: qemu-io {' '.join(flags) or 'read-write'} of {path}"
        with Holder(qemu(held_format, held, "-r"), self.folder):
            same = self.opens(qemu(fmt, path, *flags))
        with Holder(self.io(held_format, held), self.folder):
            got = self.opens(qemu(fmt, path, *flags))
        with Holder(self.io(held_format, held, "-U"), self.folder):
            forced = self.opens(qemu(fmt, path, *flags))
        after = self.opens(qemu(fmt, path, *flags))
        self.results.check((same.code == 0) == may, f"{name}: with QEMU as the holder", same)
        self.results.check((got.code == 0) == may, name, got)
        self.results.check(forced.code == 0, f"{name} under -U", forced)
        self.results.check(after.code == 0, f"{name}: free again afterwards", after)

    def writers(self, held_flags, held_format, held, flags, fmt, path):
        tools = {"qemu-io": qemu, "shardcow": lambda f, file, *fl: [self.shardcow, "io", *fl, "-f", f, file]}
        words = [" ".join(f) or "read-write" for f in (held_flags, flags)]

        def contend(holder, contender):
            with Holder(tools[holder](held_format, held, *held_flags), self.folder):
                return self.opens(tools[contender](fmt, path, *flags))

        may = contend("qemu-io", "qemu-io").code == 0
        for holder, contender in (("qemu-io", "shardcow"), ("shardcow", "qemu-io"), ("shardcow", "shardcow")):
            name = f"{holder} {words[0]} has {held}: {contender} {words[1]} of {path}"
            got = contend(holder, contender)
            self.results.check((got.code == 0) == may, f"{name} {'goes' if may else 'is refused'}", got)
            if not may:
                self.results.check("lock" in got.out + got.err, f"{name}: message", got)
            after = self.opens(tools[contender](fmt, path, *flags))
            self.results.check(after.code == 0, f"{name}: free again afterwards", after)

    def overlays_share(self):
        """Two writers over one backing file, both at work: each sees its own, the backing file stays."""
        below = harness.sha(f"{self.folder}/below.qcow2")
        io = [self.shardcow, "io", "-f", "qcow2"]
        with Holder([*io, "top.qcow2"], self.folder) as holder:
            os.write(holder.process.stdin.fileno(), b"write -q -P 1 512 64k\nflush\n")
            r = run([*io, "-c", "write -q -P 2 512 64k", "-c", "flush", "-c", "read -P 2 512 64k", "-c",
                     "read -P 9 0 512", "other.qcow2"], cwd=self.folder)
            self.results.check(r.code == 0 and "failed" not in r.out, "two overlays' writers: the second", r)
        r = run([*io, "-r", "-c", "read -P 1 512 64k", "-c", "read -P 9 66048 64k", "top.qcow2"], cwd=self.folder)
        self.results.check(r.code == 0 and "failed" not in r.out, "two overlays' writers: the first", r)
        self.results.equal(harness.sha(f"{self.folder}/below.qcow2"), below, "their backing file is as it was")
        for name in ("top.qcow2", "other.qcow2"):
            r = run(["qemu-img", "check", "-f", "qcow2", name], cwd=self.folder)
            self.results.check(r.code == 0, f"two overlays' writers: qemu-img check {name}", r)

    def commands_refuse(self):
        """Every subcommand, not only io; the exit codes are qemu-img's."""
        out = f"{self.folder}/out.raw"
        named = ["-f", "qcow2", "top.qcow2"]
        rows = [("info", named, 1), ("map", named, 1), ("check", named, 1), ("dump", named, 1),
                ("convert", ["-O", "raw", *named, out], 1),
                ("compare", ["-f", "qcow2", "-F", "raw", "top.qcow2", "disk.raw"], 2),
                ("bench", ["--seconds", "0.1", *named], 1)]
        with Holder(qemu("qcow2", "top.qcow2"), self.folder):
            for command, arguments, code in rows:
                r = run([self.shardcow, command, *arguments], cwd=self.folder, timeout=30)
                self.results.check(r.code == code and "lock" in r.err, f"{command} of a held image", r)
                if command not in ("dump", "bench"):
                    q = run(["qemu-img", command, *arguments], cwd=self.folder, timeout=30)
                    self.results.equal(q.code, code, f"{command} of a held image: QEMU itself")
                r = run([self.shardcow, command, "-U", *arguments], cwd=self.folder, timeout=30)
                expected = {"compare": (0, 1)}.get(command, (0,))
                self.results.check(r.code in expected, f"{command} -U of a held image", r)


def main():
    options = harness.parser(__doc__).parse_args()
    harness.start(options)
    results = harness.Results()
    with harness.Scratch(options) as folder:
        make_images(folder)
        locks = Locks(options.shardcow, folder, results)
        for row in QEMU_HOLDS:
            locks.qemu_holds(*row)
        for row in SHARDCOW_HOLDS:
            locks.shardcow_holds(*row)
        for row in WRITERS:
            locks.writers(*row)
        locks.overlays_share()
        locks.commands_refuse()
    results.finish()


if __name__ == "__main__":
    main()
