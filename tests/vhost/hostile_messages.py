# SPDX-License-Identifier: MIT
"""Rows of hostile_test.py: messages of all kinds. (name, deed that returns an outcome, what is right)

hostile_setup.py has those about memory, rings and the log.
"""

import os
import socket
import struct

import messages as m
from front_end import Closed, NoReply, connect, receive_message, send_bytes, send_message
from victim import QUEUES, SILENCE_S

NO = {"nack", "closed"}
# It may be taken; then it must not matter.
ANY = NO | {"acked", "answered"}
# Also a server that waits for the rest of a message.
CUT = {"closed", "silent"}
U64 = m.U64.pack


def message(request, payload=b"", fds=0, **how):
    """Send it with so many file descriptors of memfds."""
    def deed(v):
        files = [os.memfd_create("hostile", os.MFD_CLOEXEC) for _ in range(fds)]
        try:
            return v.message(request, payload, files, **how)
        finally:
            for fd in files:
                os.close(fd)
    return deed


def raw(data):
    return lambda v: v.raw(data)


def header(request, flags=m.VERSION, size=0):
    return m.HEADER.pack(request, flags, size)


def cut_off(data):
    """These bytes, then the end."""
    def deed(v):
        v.raw(data)
        v.front.sock.shutdown(socket.SHUT_WR)
        return v.hears(SILENCE_S)
    return deed


def drip(v):
    """A good message, byte by byte."""
    for byte in header(m.GET_FEATURES):
        send_bytes(v.front.sock, bytes([byte]))
        os.sched_yield()
    return v.verdict(m.GET_FEATURES)


def two_in_one(v):
    """Two good messages in one piece."""
    v.front.sock.sendall(header(m.GET_FEATURES) + header(m.GET_PROTOCOL_FEATURES))
    first = v.verdict(m.GET_FEATURES)
    return first if first != "answered" else v.verdict(m.GET_PROTOCOL_FEATURES)


def never_reads(v):
    """Ask and ask, and take no answer."""
    v.front.sock.settimeout(SILENCE_S / 4)
    try:
        for _ in range(2000):
            send_bytes(v.front.sock, header(m.GET_FEATURES) * 100)
    except (Closed, NoReply):
        pass
    return "closed"


def gone_before_the_answer(v):
    v.front.sock.sendall(header(m.GET_FEATURES) * 100)
    v.front.sock.close()
    return "closed"


def half_closed(v):
    """Messages after the client has said that it sends no more are no use; answers may still come."""
    v.front.sock.sendall(header(m.GET_FEATURES))
    v.front.sock.shutdown(socket.SHUT_WR)
    return v.hears(SILENCE_S)


def two_at_once(v):
    """A second client while the first one works: it may wait or be sent away, the first one goes on."""
    v.d.read(0, 8)
    second = connect(v.path)
    v.others.append(second)
    second.settimeout(SILENCE_S / 4)
    try:
        send_message(second, m.GET_FEATURES)
        receive_message(second)
        outcome = "answered"
    except NoReply:
        outcome = "silent"
    except Closed:
        outcome = "closed"
    if v.d.read(0, 8) != v.model.read(0, 8):
        raise AssertionError("the first client reads something else")
    return outcome


def many_at_once(v):
    v.d.read(0, 8)
    v.others += [connect(v.path) for _ in range(3)]
    v.d.read(0, 8)
    return "closed"


def in_the_middle_of_requests(v):
    """The connection ends with requests in flight and a message that is cut off."""
    for _ in range(20):
        v.d.submit(v.d.make(m.T_IN, 0, size=65536), indirect=True)
    v.front.sock.sendall(header(m.SET_FEATURES, size=8) + b"\1\2\3")
    v.front.close()
    return "closed"


def features_while_running(bits):
    def deed(v):
        v.d.read(0, 1)
        return v.message(m.SET_FEATURES, U64(bits))
    return deed


def config(offset, size, payload=b"", request=m.GET_CONFIG, flags=0):
    return message(request, m.CONFIG_HEAD.pack(offset, size, flags) + payload)


def get_config_refused(v):
    """Twelve bytes without room for the answer."""
    return v.message(m.GET_CONFIG, m.CONFIG_HEAD.pack(0, 60, 0))


def back_channel_that_is_no_socket(v):
    fd = os.memfd_create("back")
    try:
        return v.message(m.SET_BACKEND_REQ_FD, fds=[fd])
    finally:
        os.close(fd)


def reset_with_requests(v):
    for _ in range(20):
        v.d.submit(v.d.make(m.T_IN, 0, size=65536), indirect=True)
    return v.message(m.RESET_DEVICE)


def second_owner(v):
    assert v.front
    return v.message(m.SET_OWNER)


def status_of_a_plain_client(v):
    return v.message(m.SET_STATUS, U64(0xffff_ffff_ffff_ffff))


def disk_goes_on(deed):
    """The message is refused by an answer and the rings run, or the connection ends."""
    def both(v):
        v.d.read(0, 1)
        outcome = deed(v)
        if outcome != "closed" and v.d.read(3, 1) != v.model.read(3, 1):
            raise AssertionError("the disk reads something else")
        return outcome
    return both


REGION = m.REGION.pack(0x10_0000, 4096, 0x7a00_0010_0000, 0)
SET_C, STATE = m.SET_CONFIG, m.VRING_STATE.pack
ROWS = [
    ("half a header", cut_off(b"\1\0\0\0\1"), {"closed"}),
    ("half a header and silence", raw(b"\1\0\0\0\1"), CUT),
    ("a header without its payload", cut_off(header(m.SET_FEATURES, size=8)), {"closed"}),
    ("half a payload", cut_off(header(m.SET_FEATURES, size=8) + b"\1\2\3"), {"closed"}),
    ("half a payload and silence", raw(header(m.SET_FEATURES, size=8) + b"\1\2\3"), CUT),
    ("half a memory table", cut_off(header(m.SET_MEM_TABLE, size=40) + bytes(20)), {"closed"}),
    ("more than the size says", raw(header(m.SET_FEATURES, size=8) + bytes(8) + b"\xff" * 12), {"closed"}),
    ("a size of 2^32 - 1", raw(header(m.SET_FEATURES, size=0xffffffff) + bytes(64)), {"closed"}),
    ("a size of 2^31", raw(header(m.SET_MEM_TABLE, size=1 << 31) + bytes(64)), {"closed"}),
    ("a size of one MiB", raw(header(m.SET_FEATURES, size=1 << 20) + bytes(64)), {"closed"}),
    ("4096 bytes where eight are due", message(m.SET_FEATURES, bytes(4096)), NO),
    ("four bytes where eight are due", message(m.SET_FEATURES, bytes(4)), NO),
    ("no bytes where eight are due", message(m.SET_FEATURES), NO),
    ("no bytes where a ring's number is due", message(m.SET_VRING_NUM), NO),
    ("no bytes where an address is due", message(m.SET_VRING_ADDR, bytes(8)), NO),
    ("no ring's number in GET_VRING_BASE", message(m.GET_VRING_BASE), NO),
    ("no bytes where a region is due", message(m.ADD_MEM_REG, fds=1), NO),
    ("no bytes where a table is due", message(m.SET_MEM_TABLE), NO),
    ("no bytes where a log is due", message(m.SET_LOG_BASE, fds=1), NO),
    ("bytes where none are due", message(m.SET_OWNER, bytes(16)), ANY),
    ("version 0", raw(header(m.GET_FEATURES, 0)), {"closed"}),
    ("version 2", raw(header(m.GET_FEATURES, 2)), {"closed"}),
    ("version 3", raw(header(m.GET_FEATURES, 3)), {"closed"}),
    ("a reply", raw(header(m.GET_FEATURES, m.VERSION | m.REPLY)), {"closed", "answered", "silent"}),
    ("flags that do not exist", message(m.GET_FEATURES, flags=m.VERSION | 0xfffffff0), ANY),
    ("message 0", message(0), NO),
    ("message 5000", message(5000, bytes(8)), NO),
    ("message 2^32 - 1", message(0xffffffff), NO),
    ("a message for others, SEND_RARP", message(19, bytes(8)), NO),
    ("a message for others, POSTCOPY_ADVISE", message(28), NO),
    ("a message for others, IOTLB", message(22, bytes(40)), NO),
    ("noise", lambda v: v.raw(v.rng.randbytes(4096)), CUT),
    ("zeros", raw(bytes(4096)), {"closed"}),
    ("a good message byte by byte", drip, {"answered"}),
    ("two good messages in one piece", two_in_one, {"answered"}),
    ("answers that are never read", never_reads, {"closed"}),
    ("gone before the answer", gone_before_the_answer, {"closed"}),
    ("the client says it sends no more", half_closed, {"answered", "closed"}),
    ("two clients at once", two_at_once, {"answered", "silent", "closed"}),
    ("four clients at once", many_at_once, {"closed"}),
    ("gone in the middle of requests", in_the_middle_of_requests, {"closed"}),
    ("three files where none is due", message(m.GET_FEATURES, fds=3), ANY),
    ("a file where none is due", message(m.SET_FEATURES, U64(m.FEATURES), fds=1), ANY),
    ("fifteen files with a table of one", message(m.SET_MEM_TABLE, m.MEM_TABLE_HEAD.pack(1, 0) + REGION, fds=15), NO),
    ("forty files", message(m.SET_MEM_TABLE, m.MEM_TABLE_HEAD.pack(1, 0) + REGION, fds=40), NO),
    ("two files with a kick", message(m.SET_VRING_KICK, U64(0), fds=2), NO),
    ("two files with a log", message(m.SET_LOG_BASE, m.LOG_BASE.pack(4096, 0), fds=2), NO),
    ("no file with a table", message(m.SET_MEM_TABLE, m.MEM_TABLE_HEAD.pack(1, 0) + REGION), NO),
    ("no file with a region", message(m.ADD_MEM_REG, bytes(8) + REGION), NO),
    ("no file with a log", message(m.SET_LOG_BASE, m.LOG_BASE.pack(4096, 0)), NO),
    ("no file with SET_LOG_FD", message(m.SET_LOG_FD), ANY),
    ("no file with a back channel", message(m.SET_BACKEND_REQ_FD), NO),
    ("no file with inflight memory", message(m.SET_INFLIGHT_FD, m.INFLIGHT.pack(4096, 0, 1, 64)), NO),
    ("no file with a kick that has one", message(m.SET_VRING_KICK, U64(0)), NO),
    ("no file with a call that has one", message(m.SET_VRING_CALL, U64(0)), NO),
    ("a back channel that is no socket", back_channel_that_is_no_socket, ANY),
    ("features that were not offered", message(m.SET_FEATURES, U64(0xffff_ffff_ffff_ffff)), ANY),
    ("features that were not offered, in use", features_while_running((1 << 64) - 1), ANY),
    ("no features, in use", features_while_running(0), ANY),
    ("protocol features that were not offered", message(m.SET_PROTOCOL_FEATURES, U64((1 << 64) - 1)), ANY),
    ("a second SET_OWNER", second_owner, ANY),
    ("RESET_OWNER", message(m.RESET_OWNER), ANY),
    ("a reset with requests in flight", reset_with_requests, ANY),
    ("a status of all ones", status_of_a_plain_client, ANY),
    ("SET_VRING_ENABLE of 2", disk_goes_on(message(m.SET_VRING_ENABLE, STATE(1, 2))), ANY),
    ("a ring's byte order", disk_goes_on(message(m.SET_VRING_ENDIAN, STATE(0, 1))), NO),
    ("GET_CONFIG at 2^32 - 1", config(0xffffffff, 8, bytes(8)), ANY),
    ("GET_CONFIG of 2^32 - 1 bytes", config(0, 0xffffffff), NO),
    ("GET_CONFIG that wraps around", config(0xffffffff, 2, bytes(2)), ANY),
    ("GET_CONFIG of 257 bytes", config(0, 257, bytes(257)), ANY),
    ("GET_CONFIG of 4096 bytes", config(0, 4096, bytes(4096)), NO),
    ("GET_CONFIG of nothing", config(0, 0), ANY),
    ("GET_CONFIG over the end", config(56, 200, bytes(200)), ANY),
    ("GET_CONFIG without room", get_config_refused, ANY),
    ("GET_CONFIG of four bytes in all", message(m.GET_CONFIG, bytes(4)), NO),
    ("SET_CONFIG of the capacity", disk_goes_on(config(0, 8, b"\xff" * 8, SET_C)), NO),
    ("SET_CONFIG of the queues", disk_goes_on(config(34, 2, b"\xff" * 2, SET_C)), NO),
    ("SET_CONFIG of all", disk_goes_on(config(0, 60, b"\xff" * 60, SET_C)), NO),
    ("SET_CONFIG at 2^32 - 1", disk_goes_on(config(0xffffffff, 1, b"\1", SET_C)), NO),
    ("SET_CONFIG that wraps around", disk_goes_on(config(0xffffffff, 34, bytes(34), SET_C)), NO),
    ("SET_CONFIG of 2^32 - 1 bytes", disk_goes_on(config(32, 0xffffffff, b"\1", SET_C)), NO),
    ("SET_CONFIG of wce and the next", disk_goes_on(config(32, 2, b"\1\1", SET_C)), NO),
    ("SET_CONFIG with nothing in it", disk_goes_on(config(32, 1, b"", SET_C)), NO),
    ("SET_CONFIG of no bytes", disk_goes_on(config(32, 0, b"", SET_C)), ANY),
    ("SET_CONFIG of wce to 2", disk_goes_on(config(32, 1, b"\2", SET_C)), ANY),
    ("SET_CONFIG with unknown flags", disk_goes_on(config(32, 1, b"\1", SET_C, 0xfffffff0)), ANY),
    *[(f"{what} of queue {index}", disk_goes_on(message(request, struct.pack("<II", index, value), fds)),
       NO | ({"answered"} if request == m.GET_VRING_BASE else set()))
      for what, request, value, fds in (("SET_VRING_NUM", m.SET_VRING_NUM, 64, 0),
                                        ("SET_VRING_BASE", m.SET_VRING_BASE, 0, 0),
                                        ("SET_VRING_ENABLE", m.SET_VRING_ENABLE, 1, 0),
                                        ("GET_VRING_BASE", m.GET_VRING_BASE, 0, 0))
      for index in (QUEUES, 0xffffffff)],
    *[(f"{what} of queue {index}", disk_goes_on(message(request, U64(index), fds=1)), NO)
      for what, request in (("SET_VRING_KICK", m.SET_VRING_KICK), ("SET_VRING_CALL", m.SET_VRING_CALL),
                            ("SET_VRING_ERR", m.SET_VRING_ERR))
      for index in (QUEUES, 255)],
    ("SET_VRING_ADDR of queue 2^31", disk_goes_on(message(m.SET_VRING_ADDR, m.VRING_ADDR.pack(1 << 31, 0, 0, 0, 0, 0))),
     NO),
]
