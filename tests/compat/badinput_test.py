# SPDX-License-Identifier: MIT
"""Bad images through every reading subcommand: an error that says what is wrong, never a crash or a hang.

Headers with one wrong field (the message has to name the structure), the damages of meta_test.py, and seeded
random ones. No command may die by a signal, take more than ten seconds or much memory, or print a control
character that came from the image.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import damage_header                                                                   # noqa: E402, F401
import damage_mapping                                                                  # noqa: E402, F401
import damages                                                                         # noqa: E402
import harness                                                                         # noqa: E402
from header_damages import HEADER_DAMAGES                                              # noqa: E402
from qcow2_editor import Editor                                                        # noqa: E402

LIMIT_S = 10
MEMORY_BYTES = 768 << 20
OUTPUT_BYTES = 64 << 20
EXIT_CODES = {0, 1, 2, 3, 4, 63}
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def commands(path, out):
    named = ["-f", "qcow2", path]
    return {
        "info": ["info", "--output=json", *named],
        "info-stats": ["info", "--stats", *named],
        "check": ["check", *named],
        "map": ["map", "--output=json", *named],
        "dump": ["dump", *named],
        "convert": ["convert", *named, "-O", "raw", out],
        "io": ["io", "-r", "-f", "qcow2", "-c", "read 0 64k", "-c", "read 1M 1M", "-c", "read 5M 200k",
               "-c", "read -v 7M 16", "-c", "map", path],
    }


def wait_with_usage(process, deadline):
    """(exit code or None when out of time, peak memory in bytes)."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            return None, 0
        time.sleep(0.002)


def limit_output():
    """A hostile header may ask for a huge file or endless output; neither may fill the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 30, 64 << 30))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


class Prober:
    def __init__(self, options, results, scratch):
        self.options = options
        self.results = results
        self.scratch = scratch
        self.runs = 0
        # A sanitizer's shadow is not the command's memory.
        self.memory_bytes = MEMORY_BYTES * (8 if options.quick else 1)

    def _run(self, arguments):
        self.runs += 1
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            # The images name children of their own folder only.
            p = subprocess.Popen([self.options.shardcow, *arguments], stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=err, cwd=self.scratch, preexec_fn=limit_output)
            code, memory = wait_with_usage(p, time.monotonic() + LIMIT_S * (6 if self.options.quick else 1))
            texts = [os.pread(f.fileno(), min(os.fstat(f.fileno()).st_size, OUTPUT_BYTES), 0)
                     for f in (out, err)]
            return code, memory, *texts

    def complaints(self, path):
        """What is wrong with how the commands took the image, and what each wrote to standard error."""
        out = f"{self.scratch}/out.raw"
        wrong, errors = [], {}
        for name, arguments in commands(path, out).items():
            code, memory, text, err = self._run(arguments)
            if os.path.exists(out):
                os.unlink(out)
            errors[name] = (code, err.decode("latin-1"))
            if code is None:
                wrong.append(f"{name} took more than {LIMIT_S} s")
            elif code < 0:
                wrong.append(f"{name} died by {signal.Signals(-code).name}: {err[-800:]!r}")
            elif code not in EXIT_CODES:
                wrong.append(f"{name} ended with {code}: {err[-300:]!r}")
            elif code == 1 and not err:
                wrong.append(f"{name} failed without a message: {text[-200:]!r}")
            if b"AddressSanitizer" in err or b"runtime error" in err or b"Assertion" in err:
                wrong.append(f"{name}: {err[:1500]!r}")
            if CONTROL.search(err) or CONTROL.search(text):
                wrong.append(f"{name} printed a control character")
            if memory > self.memory_bytes:
                wrong.append(f"{name} used {memory >> 20} MiB")
        return wrong, errors

    def probe(self, name, base, change, expected=None, failing=()):
        """One damaged copy of a base. The failing commands' messages have to match expected."""
        path = f"{self.scratch}/bad.qcow2"
        shutil.copyfile(base, path)
        with Editor(path, write=True) as e:
            change(e)
        before = harness.sha(path)
        wrong, errors = self.complaints(path)
        if harness.sha(path) != before:
            wrong.append("the image was changed")
        if expected:
            for command in failing:
                code, err = errors[command]
                if code == 0 or not re.search(expected, err.split("hint:")[0].replace(path, ""), re.I):
                    wrong.append(f"{command}: exit code {code}; the message does not match /{expected}/: {err!r}")
        if not self.results.check(not wrong, name, "\n".join(wrong)) and self.options.keep:
            shutil.copyfile(path, os.path.join(self.options.keep, re.sub(r"\W+", "-", name) + ".qcow2"))


def odd_files(prober):
    """Files that are no images at all."""
    rng = random.Random(1)
    for name, data in (("empty file", b""), ("three bytes", b"QFI"), ("magic only", b"QFI\xfb"),
                       ("half a header", b"QFI\xfb\0\0\0\3" + bytes(50)), ("zeros", bytes(1 << 20)),
                       ("noise", rng.randbytes(1 << 16)), ("noise with magic", b"QFI\xfb\0\0\0\3" +
                                                           rng.randbytes(1 << 16))):
        path = f"{prober.scratch}/odd"
        with open(path, "wb") as f:
            f.write(data)
        wrong, errors = prober.complaints(path)
        wrong += [f"{command} succeeded" for command, (code, _) in errors.items() if code == 0]
        prober.results.check(not wrong, name, "\n".join(wrong))
    for name, path in (("a folder", prober.scratch), ("no such file", f"{prober.scratch}/none"),
                       ("/dev/null", "/dev/null")):
        wrong, errors = prober.complaints(path)
        wrong += [f"{command} succeeded" for command, (code, _) in errors.items() if code == 0]
        prober.results.check(not wrong, name, "\n".join(wrong))


def main():
    p = harness.parser(__doc__)
    p.add_argument("--random", type=int, default=300, help="number of random damages")
    p.add_argument("--keep", help="folder to keep the images of failures in")
    options = p.parse_args()
    rng = harness.start(options)
    results = harness.Results()
    wanted = re.compile(options.only or "")
    with harness.Scratch(options) as scratch:
        prober = Prober(options, results, scratch)
        bases = {name: damages.make_base(scratch, name) for name in damages.BASES}
        for name, base, change, expected, failing in HEADER_DAMAGES:
            if wanted.search(name):
                prober.probe(f"{name} ({base})", bases[base], change, expected, failing)
        for name, base, change in damages.DAMAGES:
            if wanted.search(name):
                prober.probe(name, bases[base], lambda e, f=change, n=name: f(e, random.Random(n)))
        if not options.only:
            odd_files(prober)
        names = list(bases)
        for i in range(options.random if not options.quick else options.random // 5):
            name = f"random {options.seed} {i}"
            if wanted.search(name):
                prober.probe(name, bases[names[i % len(names)]],
                             lambda e, n=name: damages.random_damage(e, random.Random(n)))
        print(f"# {prober.runs} runs, seed {options.seed}, {rng.random():.3f}")
    results.finish()


if __name__ == "__main__":
    main()
