#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How `shardcow serve` starts and ends: sockets, service managers, locks, files it writes, its sandbox."""

import errno
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import harness                                                                         # noqa: E402
from harness import must, run                                                          # noqa: E402

WAIT_S = 30
GET_QUEUE_NUM = 17


def wait_for(condition, what):
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)


def ask_queues(path):
    """How many queues the server there has: the least that shows that somebody answers."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(WAIT_S)
        s.connect(path)
        s.send(struct.pack("<III", GET_QUEUE_NUM, 1, 0))
        return struct.unpack("<IIIQ", s.recv(20))[3]


class Serving:
    """A server as a child of ours."""

    def __init__(self, test, *arguments, image=None, **popen):
        self.argv = [test.options.shardcow, "serve", *arguments, image or test.image]
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.errors,
                                        stderr=self.errors, **popen)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)

    def listens(self, path):
        wait_for(lambda: os.path.exists(path) or self.process.poll() is not None, f"{path}: {self.said()}")
        return ask_queues(path)

    def end(self, sig=signal.SIGTERM):
        self.process.send_signal(sig)
        return self.process.wait(WAIT_S)

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode("latin-1")


def is_closed(path):
    """Whether nobody has the file open: only then is a lease for writing to be had, where there are leases."""
    with open(path, "rb") as f:
        try:
            fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as e:
            return e.errno != errno.EAGAIN
    return True


class Test:
    def __init__(self, options, results, folder):
        self.options, self.results, self.folder = options, results, folder
        self.image, self.socket = f"{folder}/disk.qcow2", f"{folder}/s"
        must(["qemu-img", "create", "-q", "-f", "qcow2", self.image, "64M"])

    def serving(self, *arguments, **more):
        return Serving(self, "--vhost-user-blk", self.socket, *arguments, **more)

    # ---- cases ----

    def starts_and_ends(self):
        for sig in (signal.SIGTERM, signal.SIGINT):
            with self.serving("--queues", "3", "--pid-file", f"{self.folder}/pid") as s:
                self.results.equal(s.listens(self.socket), 3, f"{sig.name}: queues")
                wait_for(lambda: os.path.exists(f"{self.folder}/pid"), "the pid file")
                with open(f"{self.folder}/pid", encoding="ascii") as f:
                    self.results.equal(f.read(), f"{s.process.pid}\n", f"{sig.name}: pid file")
                self.results.equal(s.end(sig), 0, f"{sig.name}: exit code", s.said())
                self.results.equal(s.said(), "", f"{sig.name}: silence")
            self.results.check(is_closed(self.image), f"{sig.name}: the image's file system can be unmounted")
            self.results.equal(sorted(os.listdir(self.folder)), ["disk.qcow2"], f"{sig.name}: nothing is left")
            self.results.check(run(["qemu-img", "check", self.image]).code == 0, f"{sig.name}: the image")

    def locks(self):
        with self.serving() as s:
            s.listens(self.socket)
            r = run(["qemu-io", "-f", "qcow2", "-c", "write 0 512", self.image])
            self.results.check(r.code != 0 and "lock" in r.err, "QEMU finds the image locked", r)
            r = run([self.options.shardcow, "serve", "--vhost-user-blk", self.socket, self.image])
            self.results.check(r.code == 1 and "another server listens" in r.err, "a socket in use", r)
            self.results.equal(ask_queues(self.socket) > 0, True, "the first goes on")
            other = f"{self.folder}/other"
            r = run([self.options.shardcow, "serve", "--vhost-user-blk", other, self.image])
            self.results.check(r.code == 1 and "lock" in r.err, "an image in use", r)
            self.results.check(not os.path.exists(other), "its socket goes", other)
            self.results.equal(s.end(), 0, "the first ends", s.said())

    def stale_socket(self):
        with self.serving() as s:
            s.listens(self.socket)
            s.end(signal.SIGKILL)
        self.results.check(os.path.exists(self.socket), "a killed server leaves its socket")
        with self.serving() as s:
            wait_for(lambda: self.answers() or s.process.poll() is not None, "the second server")
            self.results.equal(s.end(), 0, "the next server replaces it", s.said())
        with open(self.socket, "w", encoding="ascii") as f:
            f.write("precious")
        r = run([self.options.shardcow, "serve", "--vhost-user-blk", self.socket, self.image])
        self.results.check(r.code == 1 and "no socket" in r.err, "another file is not replaced", r)
        os.unlink(self.socket)

    def answers(self):
        try:
            return ask_queues(self.socket) > 0
        except OSError:
            return False

    def handed_over(self):
        """Descriptors, as service managers hand them over, and what they are told."""
        with socket.socket(socket.AF_UNIX) as listener, \
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            listener.bind(self.socket)
            listener.listen(4)
            manager.bind(f"{self.folder}/notify")
            manager.settimeout(WAIT_S)
            environment = dict(os.environ, NOTIFY_SOCKET=f"{self.folder}/notify")
            with Serving(self, "--socket-fd", str(listener.fileno()), pass_fds=[listener.fileno()],
                         env=environment) as s:
                self.results.equal(manager.recv(100), b"READY=1", "--socket-fd: ready")
                self.results.equal(ask_queues(self.socket) > 0, True, "--socket-fd: serves")
                self.results.equal(s.end(), 0, "--socket-fd: exit code", s.said())
                self.results.equal(manager.recv(100), b"STOPPING=1", "--socket-fd: stopping")
            # LISTEN_PID names the process itself: a shell that becomes the server.
            script = f"exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve \"$1\""
            p = subprocess.Popen(["/bin/sh", "-c", script, self.options.shardcow, self.image],
                                 pass_fds=[listener.fileno()], env=environment, stderr=subprocess.PIPE)
            self.results.equal(manager.recv(100), b"READY=1", "activation: ready")
            self.results.equal(ask_queues(self.socket) > 0, True, "activation: serves")
            p.terminate()
            self.results.equal(p.wait(WAIT_S), 0, "activation: exit code", p.stderr.read())
            p.stderr.close()
        for path in (self.socket, f"{self.folder}/notify"):
            os.unlink(path)

    def sandbox(self):
        def facts(*arguments):
            with self.serving("--pid-file", f"{self.folder}/pid", *arguments) as s:
                s.listens(self.socket)
                wait_for(lambda: os.path.exists(f"{self.folder}/pid"), "the pid file")
                self.answers()
                found = set()
                for task in os.listdir(f"/proc/{s.process.pid}/task"):
                    with open(f"/proc/{s.process.pid}/task/{task}/status", encoding="ascii") as f:
                        found.add(tuple(re.findall(r"^(?:Seccomp|NoNewPrivs):\t(\d)", f.read(), re.M)))
                self.results.equal(s.end(), 0, f"sandbox {arguments}: exit code", s.said())
                return found

        before = facts("--sandbox", "off")
        self.results.check(all(f[0] == "0" for f in before), "--sandbox off", before)
        if "libseccomp" in must(["ldd", self.options.shardcow]):
            self.results.equal(facts(), {("1", "2")}, "every thread is in the sandbox")
        else:
            self.results.skip("the sandbox", "built without libseccomp")

    def bad_options(self):
        rows = [
            ([self.image], "--vhost-user-blk SOCKET"),
            (["--vhost-user-blk", self.socket], "image file name"),
            (["--vhost-user-blk", self.socket, self.image, "more"], "image file name"),
            (["--vhost-user-blk", self.socket, "--queues", "0", self.image], "--queues"),
            (["--vhost-user-blk", self.socket, "--queues", "65", self.image], "--queues"),
            (["--vhost-user-blk", self.socket, "--serial", "x" * 21, self.image], "--serial"),
            (["--vhost-user-blk", self.socket, "--socket-fd", "0", self.image], "exclude"),
            (["--socket-fd", "0", self.image], "no listening"),
            (["--vhost-user-blk", self.socket * 30, self.image], "at most"),
            (["--vhost-user-blk", f"{self.folder}/none/s", self.image], "cannot listen"),
            (["--vhost-user-blk", self.socket, f"{self.folder}/none.qcow2"], "none.qcow2"),
            (["--vhost-user-blk", self.socket, "--sandbox", "some", self.image], "--sandbox"),
        ]
        for arguments, word in rows:
            r = run([self.options.shardcow, "serve", *arguments])
            self.results.check(r.code == 1 and word in r.err, f"bad options: {word}: {len(arguments)}", r)
            self.results.check(not os.path.exists(self.socket), "no socket is left", arguments)


def main():
    options = harness.parser(__doc__).parse_args()
    harness.start(options)
    results = harness.Results()
    # Sockets' paths have to be short.
    with tempfile.TemporaryDirectory(prefix="scow-") as folder:
        test = Test(options, results, folder)
        for case in (test.starts_and_ends, test.locks, test.stale_socket, test.handed_over, test.sandbox,
                     test.bad_options):
            if not options.only or re.search(options.only, case.__name__):
                case()
    results.finish()


if __name__ == "__main__":
    main()
