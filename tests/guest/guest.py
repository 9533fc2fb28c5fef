# SPDX-License-Identifier: MIT
"""Guests for tests: a kernel that boots with vhost-user-blk disks, runs a script, and ends.

Two front ends: "uml", User Mode Linux with virtio_uml, boots in a second; "qemu", emulation with
vhost-user-blk-pci, is slow, but it is QEMU's front end and a real kernel's PCI driver. Neither needs KVM.
tests/guest/setup.sh makes what they are made of. Servers of the disks are here too.

Only processes that were started here are killed, by their process groups.
"""

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("SHARDCOW_GUEST") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "shardcow-guest")
ROOT = os.path.join(CACHE, "debian13")
NEEDS = {"uml": ("linux-uml", "guest.cpio"), "qemu": ("vmlinuz", "guest.cpio")}
START_SECONDS = 20
STOP_SECONDS = 120


def missing(front):
    """Why a front end cannot be used; None when it can."""
    for name in NEEDS[front]:
        if not os.path.exists(os.path.join(CACHE, name)):
            return f"no {name} in {CACHE}: run tests/guest/setup.sh"
    if front == "qemu" and not has_qemu() and not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64"
    return None


def has_qemu():
    """The root has QEMU; otherwise the host's own is used, which may be older."""
    return os.path.exists(os.path.join(ROOT, "usr/bin/qemu-system-x86_64"))


def from_root(program):
    """A command line that runs a program of the Debian 13 root, with its libraries, outside of it."""
    libraries = os.path.join(ROOT, "usr/lib/x86_64-linux-gnu")
    return [os.path.join(ROOT, "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", libraries,
            os.path.join(ROOT, "usr/bin", program)]


def root_environment():
    """Where QEMU of the root finds its modules."""
    return dict(os.environ, LC_ALL="C", QEMU_MODULE_DIR=os.path.join(ROOT, "usr/lib/x86_64-linux-gnu/qemu"))


# ---- processes -----------------------------------------------------------------------------------------

def end_group(process):
    """Kill what start_new_session put into one group, and wait."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def listens(path):
    """Something listens at the path. Connecting would take the server's only place."""
    accepting = 0x10000
    with open("/proc/net/unix") as table:
        for line in table:
            fields = line.split()
            # shardcow renames its socket once it listens; the kernel keeps the first name.
            if len(fields) == 8 and fields[7] in (path, path + ".new") and int(fields[3], 16) & accepting:
                return True
    return False


class Server:
    """A process that serves an image at a socket. kind: "shardcow"; "qsd", qemu-storage-daemon; "qsd11", that
    of the Debian 13 root. flags: more options for shardcow. aio: how QEMU does I/O. With io_uring QEMU 11.1
    gives up on a queue when a kick was taken already ("kick eventfd_read(): Resource temporarily unavailable"),
    and guests see I/O errors."""

    def __init__(self, kind, image, socket, queues, shardcow=None, aio="native", flags=()):
        self.kind, self.socket, self.env = kind, socket, None
        if kind == "shardcow":
            self.argv = [shardcow, "serve", "--vhost-user-blk", socket, "--queues", str(queues), *flags, image]
        else:
            program = from_root("qemu-storage-daemon") if kind == "qsd11" else ["qemu-storage-daemon"]
            file = f"driver=file,node-name=f,filename={image},discard=unmap,cache.direct=on,aio={aio}"
            export = f"type=vhost-user-blk,id=e,node-name=q,writable=on,num-queues={queues},iothread=t"
            self.argv = [*program, "--blockdev", file, "--blockdev", "driver=qcow2,node-name=q,file=f,discard=unmap",
                         "--object", "iothread,id=t", "--export", f"{export},addr.type=unix,addr.path={socket}"]
            self.env = root_environment() if kind == "qsd11" else None
        self.errors = tempfile.TemporaryFile()
        self.process = None

    def __enter__(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.errors,
                                        stderr=self.errors, env=self.env, start_new_session=True)
        until = time.monotonic() + START_SECONDS
        while not listens(self.socket):
            if self.process.poll() is not None or time.monotonic() > until:
                end_group(self.process)
                raise RuntimeError(f"{shlex.join(self.argv)}\ndoes not serve: {self.said()}")
            time.sleep(0.02)
        return self

    @property
    def pid(self):
        return self.process.pid

    def said(self):
        self.errors.seek(0)
        return self.errors.read().decode("latin-1")

    def kill(self):
        end_group(self.process)

    def stop(self):
        """SIGTERM, then wait. What is wrong with how it ended, or with what it said; "" when all is well."""
        code = self.process.poll()
        if code is not None:
            return f"the server ended by itself, exit code {code}\n{self.said()}"
        self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            end_group(self.process)
            return f"the server does not end\n{self.said()}"
        # qemu-storage-daemon notes that the guest has gone.
        loud = self.said() if self.kind == "shardcow" else ""
        return "" if code == 0 and not loud else f"exit code {code}\n{self.said()}"

    def __exit__(self, *_):
        if self.process.poll() is None:
            end_group(self.process)
        self.errors.close()


# ---- an initramfs for a job ----------------------------------------------------------------------------

def cpio_entry(name, mode, data, number):
    fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def cpio(files):
    """An archive of regular files: {name: (bytes, executable)}. The kernel lays it over the one before it."""
    out = [cpio_entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data, number)
           for number, (name, (data, executable)) in enumerate(sorted(files.items()), 1)]
    return b"".join(out) + cpio_entry("TRAILER!!!", 0, b"", 0)


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


class Job:
    """What a guest is to do: scripts of this folder, with settings as variables, programs, other files."""

    def __init__(self, script, settings=(), programs=(), scripts=()):
        lines = ["#!/bin/sh", *(f"export {k}={shlex.quote(str(v))}" for k, v in dict(settings).items()),
                 f". /{script}", ""]
        self.files = {"job.sh": ("\n".join(lines).encode(), True),
                      "init": (read_bytes(os.path.join(HERE, "guest_init.sh")), True)}
        for name in (script, *scripts):
            self.files[name] = (read_bytes(os.path.join(HERE, name)), True)
        for name, path in dict(programs).items():
            self.files[f"usr/bin/{name}"] = (read_bytes(path), True)


    @classmethod
    def of(cls, text, programs=()):
        """One script, as it is."""
        job = cls("guest_init.sh", programs=programs)
        job.files["job.sh"] = (text.encode(), True)
        return job


# ---- guests --------------------------------------------------------------------------------------------

class Console:
    """What a guest left. status: the script's exit status; None when it did not come to an end."""

    def __init__(self, argv, text, seconds, late):
        self.argv, self.text, self.seconds, self.late = argv, text, seconds, late
        done = re.search(r"^GUEST-DONE (\d+)", text, re.M)
        self.status = int(done.group(1)) if done else None
        # What the driver found out about the disk.
        up = re.search(r"^GUEST-UP .*queues=(\d+) cache=(.*)$", text, re.M)
        self.queues, self.cache = (int(up.group(1)), up.group(2)) if up else (None, None)

    def facts(self):
        """{name: value} of the lines FACT NAME VALUE."""
        return dict(re.findall(r"^FACT (\S+) (.*)$", self.text, re.M))

    def __str__(self):
        how = "ran out of time" if self.late else f"status {self.status}"
        return f"{how} after {self.seconds:.0f} s\n" + "\n".join(self.text.splitlines()[-35:])


def uml_command(sockets, cpus, mib, initrd):
    disks = [f"virtio_uml.device={socket}:2" for socket in sockets]
    return [os.path.join(CACHE, "linux-uml"), f"mem={mib}M", f"initrd={initrd}", f"ncpus={cpus}",
            "con=null", "con0=null,fd:1", "con1=null", "ssl=null", "root=/dev/ram0", "quiet", "panic=-1",
            "seccomp=on", *disks]


def qemu_command(sockets, cpus, mib, initrd, queues, more=()):
    data = os.path.join(ROOT, "usr/share")
    program = ["qemu-system-x86_64"]
    reconnect = ""
    if has_qemu():
        program = [*from_root("qemu-system-x86_64"), "-L", f"{data}/qemu", "-L", f"{data}/seabios"]
        reconnect = ",reconnect-ms=50"
    argv = [*program, "-nodefaults", "-no-user-config", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-monitor", "none",
            "-M", "q35,memory-backend=mem", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", str(cpus),
            "-m", str(mib), "-object", f"memory-backend-memfd,id=mem,size={mib}M,share=on",
            "-kernel", os.path.join(CACHE, "vmlinuz"), "-initrd", initrd,
            "-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off", *more]
    for n, socket in enumerate(sockets):
        # It comes back to a server that was started again, with the requests in flight. (Older QEMU spells it
        # another way.)
        argv += ["-chardev", f"socket,id=c{n},path={socket}{reconnect}",
                 "-device", f"vhost-user-blk-pci,chardev=c{n},num-queues={queues}"]
    return argv


class Guest:
    """A guest that runs a job, as a context; killed at its end. more: arguments for QEMU."""

    def __init__(self, front, sockets, job, queues=1, cpus=None, mib=1024, folder=None, more=()):
        self.front, self.sockets, self.job, self.queues = front, sockets, job, queues
        self.cpus, self.mib, self.folder, self.more = cpus or queues, mib, folder, more
        self.process = None

    def __enter__(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="guest-", dir=self.folder)
        self.output = tempfile.TemporaryFile()
        initrd = os.path.join(self.scratch.name, "initrd")
        with open(initrd, "wb") as f:
            f.write(read_bytes(os.path.join(CACHE, "guest.cpio")) + cpio(self.job.files))
        if self.front == "uml":
            # Its memory is a file, which the server maps; HOME has its sockets.
            self.argv = uml_command(self.sockets, self.cpus, self.mib, initrd)
            env = dict(os.environ, TMPDIR="/dev/shm", HOME=self.scratch.name)
        else:
            self.argv = qemu_command(self.sockets, self.cpus, self.mib, initrd, self.queues, self.more)
            env = root_environment() if has_qemu() else os.environ
        self.start = time.monotonic()
        self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.output,
                                        stderr=subprocess.STDOUT, env=env, cwd=self.scratch.name,
                                        start_new_session=True)
        return self

    def __exit__(self, *_):
        end_group(self.process)
        self.output.close()
        self.scratch.cleanup()

    def kill(self):
        end_group(self.process)

    @property
    def runs(self):
        return self.process.poll() is None

    def text(self):
        """What it has said so far."""
        return os.pread(self.output.fileno(), 1 << 26, 0).decode("latin-1").replace("\r", "")

    def says(self, pattern, timeout=120):
        """Wait until its console has a match, or it ends. The match, or None."""
        until = time.monotonic() + timeout
        while True:
            ended = not self.runs
            match = re.search(pattern, self.text(), re.M)
            if match or ended or time.monotonic() > until:
                return match
            time.sleep(0.02)

    def wait(self, timeout=300):
        """Its end; killed when it is late. Returns a Console."""
        try:
            self.process.wait(timeout)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        end_group(self.process)
        return Console(self.argv, self.text(), time.monotonic() - self.start, late)


def boot(front, sockets, job, queues=1, cpus=None, mib=1024, timeout=300, folder=None):
    """Boot, run the job, wait for the end. Returns a Console."""
    with Guest(front, sockets, job, queues, cpus, mib, folder) as guest:
        return guest.wait(timeout)
