# SPDX-License-Identifier: MIT
"""A vhost-user front end: the messages that a hypervisor sends to a server's socket, and the replies."""

import os
import select
import socket
import struct
import time

import messages as m

TIMEOUT_S = 20


class Closed(Exception):
    """The server hung up."""


class Refused(Exception):
    """The server answered a message with an error."""


class NoReply(Exception):
    """Nothing came in time."""


def receive_exactly(sock, count, fds):
    data = b""
    while len(data) < count:
        try:
            part, got, _, _ = socket.recv_fds(sock, count - len(data), 16)
        except socket.timeout:
            raise NoReply(f"{len(data)} of {count} bytes") from None
        except ConnectionError as error:
            raise Closed(str(error)) from None
        fds.extend(got)
        if not part:
            raise Closed("end of file" if not data else "end of file inside a message")
        data += part
    return data


def send_message(sock, request, payload=b"", fds=(), flags=m.VERSION, size=None):
    """One message; size: what the header claims, when that is not the payload's length."""
    data = m.HEADER.pack(request, flags, len(payload) if size is None else size) + payload
    send_bytes(sock, data, fds)


def send_bytes(sock, data, fds=()):
    try:
        sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
        if sent < len(data):
            sock.sendall(data[sent:])
    except socket.timeout:
        raise NoReply("the server does not read") from None
    except ConnectionError as error:
        raise Closed(str(error)) from None


def receive_message(sock):
    """(request, flags, payload, fds)"""
    fds = []
    request, flags, size = m.HEADER.unpack(receive_exactly(sock, m.HEADER.size, fds))
    if size > m.PAYLOAD_MAX:
        raise AssertionError(f"a message of {size} bytes")
    payload = receive_exactly(sock, size, fds) if size else b""
    return request, flags, payload, fds


def connect(path, timeout=TIMEOUT_S):
    """A stream to the socket; a server may be on its way, or have a full backlog for a moment."""
    deadline = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout)
        try:
            sock.connect(path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError, socket.timeout):
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class FrontEnd:
    """One connection. Methods are named after messages; those that have no reply of their own ask for one
    where REPLY_ACK is negotiated, and raise Refused when it says no."""

    def __init__(self, path, timeout=TIMEOUT_S):
        self.sock = connect(path, timeout)
        self.acknowledged = False
        self.features = self.protocol_features = 0
        self.back = self.back_theirs = None
        self.back_fds = []

    def close(self):
        self.sock.close()
        for sock in (self.back, self.back_theirs):
            if sock:
                sock.close()
        self.back = self.back_theirs = None

    def ask(self, request, payload=b"", fds=()):
        """A message that has a reply of its own: (payload, fds)."""
        send_message(self.sock, request, payload, fds)
        return self.reply(request)

    def reply(self, request):
        number, flags, payload, fds = receive_message(self.sock)
        if number != request or flags & 7 != m.VERSION | m.REPLY:
            raise AssertionError(f"the reply to {request} is for {number} and has flags {flags:#x}")
        return payload, fds

    def tell(self, request, payload=b"", fds=()):
        """A message without a reply of its own."""
        if not self.acknowledged:
            send_message(self.sock, request, payload, fds)
            return
        send_message(self.sock, request, payload, fds, m.VERSION | m.NEED_REPLY)
        code = m.U64.unpack(self.reply(request)[0])[0]
        if code:
            raise Refused(f"message {request}: {code}")

    def ask_u64(self, request, payload=b""):
        return m.U64.unpack(self.ask(request, payload)[0])[0]

    # ---- features ------------------------------------------------------------------------------------

    def get_features(self):
        return self.ask_u64(m.GET_FEATURES)

    def set_features(self, features):
        self.tell(m.SET_FEATURES, m.U64.pack(features))
        self.features = features

    def negotiate_protocol(self, wanted=m.PROTOCOL_FEATURES):
        """Take what both sides have."""
        chosen = self.ask_u64(m.GET_PROTOCOL_FEATURES) & wanted
        send_message(self.sock, m.SET_PROTOCOL_FEATURES, m.U64.pack(chosen))
        self.protocol_features = chosen
        self.acknowledged = m.has(chosen, m.REPLY_ACK)
        return chosen

    def can(self, protocol_bit):
        return m.has(self.protocol_features, protocol_bit)

    def set_owner(self):
        self.tell(m.SET_OWNER)

    def get_queue_num(self):
        return self.ask_u64(m.GET_QUEUE_NUM)

    def set_status(self, status):
        self.tell(m.SET_STATUS, m.U64.pack(status))

    def get_status(self):
        return self.ask_u64(m.GET_STATUS)

    def reset_device(self):
        self.tell(m.RESET_DEVICE)

    # ---- memory --------------------------------------------------------------------------------------

    def set_mem_table(self, regions):
        payload = m.MEM_TABLE_HEAD.pack(len(regions), 0) + b"".join(r.entry() for r in regions)
        self.tell(m.SET_MEM_TABLE, payload, [r.fd for r in regions])

    def get_max_mem_slots(self):
        return self.ask_u64(m.GET_MAX_MEM_SLOTS)

    def add_mem_reg(self, region):
        self.tell(m.ADD_MEM_REG, bytes(8) + region.entry(), [region.fd])

    def rem_mem_reg(self, region):
        self.tell(m.REM_MEM_REG, bytes(8) + region.entry())

    def set_log_base(self, fd, size, offset=0):
        """Always answered, by a message of any size."""
        send_message(self.sock, m.SET_LOG_BASE, m.LOG_BASE.pack(size, offset), [fd])
        return self.reply(m.SET_LOG_BASE)

    def set_log_fd(self, fd):
        self.tell(m.SET_LOG_FD, fds=[fd])

    # ---- rings ---------------------------------------------------------------------------------------

    def set_vring_num(self, index, num):
        self.tell(m.SET_VRING_NUM, m.VRING_STATE.pack(index, num))

    def set_vring_base(self, index, base):
        self.tell(m.SET_VRING_BASE, m.VRING_STATE.pack(index, base))

    def get_vring_base(self, index):
        """Stops the ring; the index of the next available entry."""
        got, base = m.VRING_STATE.unpack(self.ask(m.GET_VRING_BASE, m.VRING_STATE.pack(index, 0))[0])
        if got != index:
            raise AssertionError(f"GET_VRING_BASE of queue {index} is answered for {got}")
        return base

    def set_vring_addr(self, ring, log=None):
        """log: the used ring's guest address, when writes to it are to be logged."""
        user = ring.memory.user
        self.tell(m.SET_VRING_ADDR, m.VRING_ADDR.pack(ring.index, 0 if log is None else 1, user(ring.desc),
                                                      user(ring.used), user(ring.avail), log or 0))

    def set_vring_fd(self, request, index, fd):
        """KICK, CALL or ERR; without a file descriptor: none."""
        if fd is None:
            self.tell(request, m.U64.pack(index | m.NO_FD))
        else:
            self.tell(request, m.U64.pack(index), [fd])

    def set_vring_enable(self, index, on=True):
        self.tell(m.SET_VRING_ENABLE, m.VRING_STATE.pack(index, int(on)))

    # ---- the configuration space ---------------------------------------------------------------------

    def get_config(self, offset=0, size=m.CONFIG_BYTES):
        payload, _ = self.ask(m.GET_CONFIG, m.CONFIG_HEAD.pack(offset, size, 0) + bytes(size))
        if len(payload) < m.CONFIG_HEAD.size:
            raise Refused("GET_CONFIG")
        return payload[m.CONFIG_HEAD.size:]

    def set_config(self, offset, data, flags=0):
        self.tell(m.SET_CONFIG, m.CONFIG_HEAD.pack(offset, len(data), flags) + data)

    # ---- requests in flight --------------------------------------------------------------------------

    def get_inflight_fd(self, queues, size):
        """(fd, bytes, offset) of zeroed memory that the server notes its requests in."""
        payload, fds = self.ask(m.GET_INFLIGHT_FD, m.INFLIGHT.pack(0, 0, queues, size))
        length, offset = struct.unpack_from("<QQ", payload)
        if len(fds) != 1:
            raise Refused(f"GET_INFLIGHT_FD with {len(fds)} file descriptors")
        return fds[0], length, offset

    def set_inflight_fd(self, fd, length, offset, queues, size):
        self.tell(m.SET_INFLIGHT_FD, m.INFLIGHT.pack(length, offset, queues, size), [fd])

    # ---- the server's messages -----------------------------------------------------------------------

    def open_back_channel(self):
        self.back, self.back_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.back.settimeout(TIMEOUT_S)
        self.tell(m.SET_BACKEND_REQ_FD, fds=[self.back_theirs.fileno()])
        # The server has its own by now only if it says so.
        if self.acknowledged:
            self.back_theirs.close()
            self.back_theirs = None

    def back_message(self, timeout=TIMEOUT_S):
        """The number of the server's next message, answered if it asks for that; None when none comes."""
        if not select.select([self.back], [], [], timeout)[0]:
            return None
        number, flags, _, fds = receive_message(self.back)
        for fd in fds:
            os.close(fd)
        if flags & m.NEED_REPLY:
            send_message(self.back, number, m.U64.pack(0), flags=m.VERSION | m.REPLY)
        return number
