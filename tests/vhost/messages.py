# SPDX-License-Identifier: MIT
"""The numbers and layouts of vhost-user, split virtqueues and virtio-blk, as the specifications have them.

vhost-user: QEMU's docs/interop/vhost-user.rst. Rings and requests: the virtio specification, 1.2.
"""

import struct

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_LOG_BASE, SET_LOG_FD = 6, 7
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, SET_VRING_ENDIAN, GET_CONFIG, SET_CONFIG = 21, 23, 24, 25
GET_INFLIGHT_FD, SET_INFLIGHT_FD, RESET_DEVICE = 31, 32, 34
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = 36, 37, 38, 39, 40

BACKEND_CONFIG_CHANGE_MSG = 2

# These are answered by themselves, REPLY_ACK or not.
ANSWERED = {GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_VRING_BASE, GET_CONFIG, GET_INFLIGHT_FD,
            GET_MAX_MEM_SLOTS, GET_STATUS}

HEADER = struct.Struct("<III")
VERSION, REPLY, NEED_REPLY = 1, 4, 8
NO_FD = 1 << 8
# What a server accepts as a message is at most a few hundred bytes.
PAYLOAD_MAX = 1 << 16

# Protocol features, by bit.
MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG = 0, 1, 3, 5, 9
INFLIGHT_SHMFD, F_RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS = 12, 13, 15, 16
PROTOCOL_FEATURES = sum(1 << bit for bit in (MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD,
                                             F_RESET_DEVICE, CONFIGURE_MEM_SLOTS, STATUS))

# Device features, by bit.
SEG_MAX, RO, BLK_SIZE, FLUSH, CONFIG_WCE, BLK_MQ, DISCARD, WRITE_ZEROES = 2, 5, 6, 9, 11, 12, 13, 14
LOG_ALL, INDIRECT_DESC, EVENT_IDX, F_PROTOCOL_FEATURES, VERSION_1 = 26, 28, 29, 30, 32
FEATURES = sum(1 << bit for bit in (SEG_MAX, RO, BLK_SIZE, FLUSH, CONFIG_WCE, BLK_MQ, DISCARD, WRITE_ZEROES,
                                    INDIRECT_DESC, EVENT_IDX, F_PROTOCOL_FEATURES, VERSION_1))


def without(features, *bits):
    for bit in bits:
        features &= ~(1 << bit)
    return features


def has(features, bit):
    return bool(features >> bit & 1)


U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")
VRING_ADDR = struct.Struct("<IIQQQQ")
REGION = struct.Struct("<QQQQ")
MEM_TABLE_HEAD = struct.Struct("<II")
LOG_BASE = struct.Struct("<QQ")
CONFIG_HEAD = struct.Struct("<III")
# The four bytes at the end are C's padding; QEMU sends them.
INFLIGHT = struct.Struct("<QQHH4x")
INFLIGHT_SHORT = struct.Struct("<QQHH")

DESC = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT, USED_NO_NOTIFY = 1, 1

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
REQUEST_HEAD = struct.Struct("<IIQ")
SEGMENT = struct.Struct("<QII")
UNMAP = 1
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
# What a status byte is before the server writes it.
S_UNTOUCHED = 0xee
SECTOR = 512
ID_BYTES = 20

# struct virtio_blk_config up to the write zeroes fields: name → (offset, format).
CONFIG_FIELDS = {
    "capacity": (0, "<Q"), "size_max": (8, "<I"), "seg_max": (12, "<I"), "blk_size": (20, "<I"),
    "wce": (32, "<B"), "num_queues": (34, "<H"), "max_discard_sectors": (36, "<I"),
    "max_discard_seg": (40, "<I"), "discard_sector_alignment": (44, "<I"),
    "max_write_zeroes_sectors": (48, "<I"), "max_write_zeroes_seg": (52, "<I"),
    "write_zeroes_may_unmap": (56, "<B"),
}
CONFIG_BYTES = 60
WCE_OFFSET = CONFIG_FIELDS["wce"][0]


def config_field(config, name):
    offset, layout = CONFIG_FIELDS[name]
    return struct.unpack_from(layout, config, offset)[0]


# Memory that inflight requests are noted in: per queue a head and an entry per descriptor.
INFLIGHT_HEAD = struct.Struct("<QHHHH")
INFLIGHT_ENTRY = struct.Struct("<B5xHQ")
