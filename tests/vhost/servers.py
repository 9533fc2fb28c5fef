# SPDX-License-Identifier: MIT
"""The servers that the tests can talk to: shardcow's, and qemu-storage-daemon's to test the tests."""

import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

STOP_S = 30
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def add_options(p):
    p.add_argument("--server", choices=("shardcow", "qemu"), default="shardcow",
                   help="qemu: qemu-storage-daemon, to see whether the tests are right")
    return p


def skip_without_server(options):
    """Say so where there is nothing to test."""
    if options.server == "qemu":
        if run(["qemu-storage-daemon", "--version"]).code:
            harness.skip_all("qemu-storage-daemon is not installed")
    elif run([options.shardcow, "serve", "--help"]).code:
        harness.skip_all("shardcow has no serve subcommand")


def end_with_parent():
    """A server does not outlive a script that was killed."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """A server as a child of ours, for one image."""

    def __init__(self, options, folder, image, queues=1, read_only=False, writethrough=False, serial=None,
                 pin=False):
        self.options, self.folder, self.image = options, folder, image
        self.queues, self.read_only, self.writethrough, self.serial = queues, read_only, writethrough, serial
        self.pin = pin
        # Sockets' paths have to be short.
        self.short = tempfile.mkdtemp(prefix="scow-")
        self.path = os.path.join(self.short, "socket")
        self.errors = os.path.join(folder, "server.err")
        self.qemu = options.server == "qemu"
        self.start()

    def _argv(self):
        if self.qemu:
            node = f"driver=qcow2,node-name=q,file=f,discard=unmap,read-only={'on' if self.read_only else 'off'}"
            return ["qemu-storage-daemon",
                    "--chardev", f"socket,id=m,path={self.path}.qmp,server=on,wait=off", "--monitor", "chardev=m",
                    "--blockdev", f"driver=file,node-name=f,filename={self.image},discard=unmap",
                    "--blockdev", node, "--export",
                    f"type=vhost-user-blk,id=e,node-name=q,addr.type=unix,addr.path={self.path},"
                    f"num-queues={self.queues},writable={'off' if self.read_only else 'on'}"]
        argv = [self.options.shardcow, "serve", "--vhost-user-blk", self.path, "--queues", str(self.queues)]
        argv += ["--read-only"] * self.read_only + ["--writethrough"] * self.writethrough
        argv += ["--pin-memory"] * self.pin
        argv += ["--serial", self.serial] if self.serial else []
        return [*argv, "--control", self.path + ".control", self.image]

    def start(self):
        for path in (self.path, self.path + ".qmp"):
            if os.path.exists(path):
                os.unlink(path)
        self.log = open(self.errors, "ab")
        self.process = subprocess.Popen(self._argv(), stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log, env=dict(os.environ, LC_ALL="C"),
                                        preexec_fn=end_with_parent)
        deadline = time.monotonic() + STOP_S
        while not os.path.exists(self.path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(self._argv())} does not listen: {self.stderr()}")
            time.sleep(0.005)

    def alive(self):
        return self.process.poll() is None

    def stderr(self):
        with open(self.errors, "r", encoding="latin-1") as f:
            return f.read()

    def said(self):
        """How much is on standard error by now."""
        return os.path.getsize(self.errors)

    def stop(self):
        """The exit code after SIGTERM; None when it does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        self.log.close()
        # qemu-storage-daemon ends by the signal's default action in some versions.
        return 0 if self.qemu and code == -signal.SIGTERM else code

    def kill(self):
        if self.alive():
            self.process.kill()
            self.process.wait(STOP_S)
        self.log.close()

    def forget(self):
        self.kill()
        shutil.rmtree(self.short, ignore_errors=True)

    def resize(self, size):
        """Change the size while the server runs."""
        if not self.qemu:
            must([self.options.shardcow, "resize", "--quiet", "--control", self.path + ".control", str(size)])
            return
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(STOP_S)
            s.connect(self.path + ".qmp")
            stream = s.makefile("rw")
            stream.readline()
            for command in ({"execute": "qmp_capabilities"},
                            {"execute": "block_resize", "arguments": {"node-name": "q", "size": size}}):
                stream.write(json.dumps(command) + "\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    if "error" in answer:
                        raise RuntimeError(str(answer))


class Bench:
    """What a case works with: a folder, an image, a server. Used as a block; the image is checked at its end."""

    def __init__(self, options, results, rng, scratch, name):
        self.options, self.results, self.rng, self.name = options, results, rng, name
        self.folder = os.path.join(scratch, re.sub(r"\W+", "-", name))
        os.makedirs(self.folder)
        self.image = f"{self.folder}/disk.qcow2"
        self.server = None

    def check(self, good, what, detail=""):
        return self.results.check(good, f"{self.name}: {what}", detail)

    def equal(self, got, want, what, detail=""):
        return self.results.equal(got, want, f"{self.name}: {what}", detail)

    def ours(self, good, what, detail=""):
        """A result that QEMU's server is known not to give."""
        if self.options.server == "qemu" and not good:
            self.results.skip(f"{self.name}: {what}", "QEMU's server does not do this")
        else:
            self.check(good, what, detail)

    def skip(self, why):
        self.results.skip(self.name, why)

    def make_image(self, size="8M", *arguments):
        must(["qemu-img", "create", "-q", "-f", "qcow2", *arguments, self.image, str(size)])

    def serve(self, **how):
        self.server = Server(self.options, self.folder, self.image, **how)
        return self.server

    def stop(self, leaks=False):
        """End the server; it has to leave a clean image."""
        server, self.server = self.server, None
        code = server.stop()
        server.forget()
        self.equal(code, 0, "the server ends", server.stderr())
        r = run(["qemu-img", "check", "-f", "qcow2", self.image])
        self.check(r.code in ((0, 3) if leaks else (0,)), "qemu-img check", r)

    def verify(self, model, what="content"):
        """The image, as qemu-img reads it, against a model."""
        raw = f"{self.folder}/content.raw"
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.image, raw])
        with open(raw, "rb") as f:
            difference = model.difference(f.read())
        os.unlink(raw)
        self.check(not difference, what, difference)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if self.server:
            if kind:
                print(f"# {self.name}: standard error of the server: {self.server.stderr()[-1500:]!r}", flush=True)
            self.server.forget()


def run_cases(options, results, cases):
    """Each case is a function of a Bench; an exception is a failure of its own."""
    wanted = re.compile(options.only or "")
    with harness.Scratch(options) as scratch:
        for case in cases:
            name = case.__name__.replace("_", " ")
            if not wanted.search(name):
                continue
            started = time.monotonic()
            # Each case has a seed of its own: it does the same when it runs alone.
            rng = random.Random(f"{options.seed} {name}")
            with Bench(options, results, rng, scratch, name) as bench:
                try:
                    case(bench)
                except Exception as error:                                       # noqa: BLE001
                    text = traceback.format_exc(limit=-6)
                    if bench.server:
                        text += f"\nthe server: {'running' if bench.server.alive() else 'ended'}"
                    bench.check(False, f"{type(error).__name__}: {error}", text)
            print(f"# {name}: {time.monotonic() - started:.1f} s", flush=True)


def main(doc, cases):
    """What the scripts that consist of cases do."""
    options = add_options(harness.parser(doc)).parse_args()
    harness.start(options)
    skip_without_server(options)
    results = harness.Results()
    run_cases(options, results, cases)
    results.finish()
