# SPDX-License-Identifier: MIT
"""What the test scripts share: options, seeds, results, commands, comparisons.

A script prints one TAP line per result ("ok 3 - name", "not ok 4 - name", "ok 5 - name # SKIP why") and
exits 0, 1 (something failed) or 77 (nothing could run). tests/run.sh counts these lines.
"""

import argparse
import ctypes
import errno
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading

EXIT_SKIP = 77
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Results:
    """Counts results and prints them as TAP. May be used from several threads."""

    def __init__(self):
        self.number = 0
        self.failed = 0
        self.skipped = 0
        self.lock = threading.Lock()

    def _line(self, verdict, name, detail):
        with self.lock:
            self.number += 1
            self.failed += verdict == "not ok"
            self.skipped += " # SKIP " in name
            print(f"{verdict} {self.number} - {name}", flush=True)
            for line in str(detail or "").splitlines()[:40]:
                print(f"#   {line}", flush=True)

    def check(self, good, name, detail=""):
        """One result; detail is printed only when it failed."""
        self._line("ok" if good else "not ok", name, "" if good else detail)
        return bool(good)

    def equal(self, got, want, name, detail=""):
        return self.check(got == want, name, f"got:  {got!r}\nwant: {want!r}\n{detail}")

    def skip(self, name, why):
        self._line("ok", f"{name} # SKIP {why}", "")

    def finish(self):
        """Print the plan and exit."""
        print(f"1..{self.number}")
        if self.failed:
            print(f"# {self.failed} of {self.number} failed", flush=True)
            sys.exit(1)
        sys.exit(EXIT_SKIP if self.number and self.skipped == self.number else 0)


def skip_all(why):
    print(f"1..0 # SKIP {why}", flush=True)
    sys.exit(EXIT_SKIP)


def parser(doc):
    """The options that every script has. Paths come from the environment when meson runs it."""
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument("--shardcow", default=os.environ.get("SHARDCOW"), help="the command under test")
    p.add_argument("--images", default=os.environ.get("SCOW_TEST_IMAGES"),
                   help="folder in which generated images are kept between runs")
    p.add_argument("--seed", type=int, default=os.environ.get("SCOW_TEST_SEED"))
    p.add_argument("--quick", action="store_true", default=bool(os.environ.get("SCOW_TEST_QUICK")),
                   help="a subset, for sanitizer builds")
    p.add_argument("--only", help="run only what matches this regular expression")
    return p


def start(options, need=("qemu-img", "qemu-io")):
    """Check what the script needs and print the seed. Returns a seeded random.Random."""
    for tool in need:
        if not shutil.which(tool):
            skip_all(f"{tool} is not installed (Debian package qemu-utils)")
    if not options.shardcow:
        default = os.path.join(ROOT, "build", "cli", "shardcow")
        options.shardcow = default
    if not shutil.which(options.shardcow):
        print(f"no such command: {options.shardcow} (give --shardcow or set SHARDCOW)", file=sys.stderr)
        sys.exit(1)
    options.shardcow = os.path.abspath(shutil.which(options.shardcow))
    if not options.images:
        options.images = os.path.join(ROOT, "build", "test-images")
    options.images = os.path.abspath(options.images)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    options.seed = int(seed)
    print(f"# seed {options.seed} (repeat with --seed {options.seed} or SCOW_TEST_SEED)", flush=True)
    return random.Random(options.seed)


class Ran:
    """What a command left behind. code is negative for a signal, None when it ran out of time."""

    def __init__(self, argv, code, out, err):
        self.argv = argv
        self.code = code
        self.out = out
        self.err = err

    def __str__(self):
        how = "ran out of time" if self.code is None else f"exit code {self.code}"
        return (f"{' '.join(map(str, self.argv))}\n{how}\nstdout: {self.out[-1500:].strip()}\n"
                f"stderr: {self.err[-1500:].strip()}")


def run(argv, timeout=120, stdin=None, env=None, cwd=None):
    """Run to the end; output as text (latin-1, so that any bytes survive)."""
    full_env = dict(os.environ, LC_ALL="C", **(env or {}))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        p = subprocess.Popen(argv, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                             stdout=out, stderr=err, env=full_env, cwd=cwd)
        try:
            p.communicate(None if stdin is None else stdin.encode("latin-1"), timeout=timeout)
            code = p.returncode
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()
            code = None
        texts = []
        for f in (out, err):
            f.seek(0)
            texts.append(f.read().decode("latin-1"))
    return Ran(argv, code, *texts)


def must(argv, **kwargs):
    """Run set-up that has to work."""
    r = run(argv, **kwargs)
    if r.code != 0:
        raise RuntimeError(f"set-up failed:\n{r}")
    return r.out


def qemu_version():
    """(10, 0, 2)"""
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", must(["qemu-img", "--version"]))
    return tuple(int(x) for x in found.groups())


def io_uring_works():
    """False where the kernel or a container's profile refuses it."""
    libc = ctypes.CDLL(None, use_errno=True)
    setup = 425
    # No parameters: EFAULT when the call would be let through.
    libc.syscall(setup, 1, None)
    return ctypes.get_errno() == errno.EFAULT


def _next_data(fd, pos, size):
    try:
        return os.lseek(fd, pos, os.SEEK_DATA)
    except OSError:
        return size


def first_difference(path_a, path_b):
    """Offset of the first byte that differs, None when the files are equal. Skips holes of both."""
    chunk = 4 << 20
    with open(path_a, "rb", buffering=0) as a, open(path_b, "rb", buffering=0) as b:
        size_a, size_b = os.fstat(a.fileno()).st_size, os.fstat(b.fileno()).st_size
        size = min(size_a, size_b)
        pos = 0
        while pos < size:
            pos = min(_next_data(a.fileno(), pos, size), _next_data(b.fileno(), pos, size))
            if pos >= size:
                break
            count = min(chunk, size - pos)
            x, y = os.pread(a.fileno(), count, pos), os.pread(b.fileno(), count, pos)
            if x != y:
                return pos + next(i for i, (p, q) in enumerate(zip(x, y)) if p != q)
            pos += count
        return None if size_a == size_b else size


def sha(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            h.update(block)
    return h.hexdigest()


class Scratch:
    """A folder for one script's own files, removed at the end; inside the image cache, so on a disk."""

    def __init__(self, options):
        os.makedirs(options.images, exist_ok=True)
        self.dir = tempfile.mkdtemp(prefix="scratch-", dir=options.images)

    def __enter__(self):
        return self.dir

    def __exit__(self, *_):
        shutil.rmtree(self.dir, ignore_errors=True)
