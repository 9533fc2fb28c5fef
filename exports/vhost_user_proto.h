/* SPDX-License-Identifier: MIT */
/* The vhost-user protocol on the wire (QEMU docs/interop/vhost-user.rst), in host byte order: both ends are
 * on one machine. */
#ifndef EXPORTS_VHOST_USER_PROTO_H
#define EXPORTS_VHOST_USER_PROTO_H

#include <stddef.h>
#include <stdint.h>

enum vhost_user_request {
    VU_GET_FEATURES = 1,
    VU_SET_FEATURES = 2,
    VU_SET_OWNER = 3,
    VU_RESET_OWNER = 4,
    VU_SET_MEM_TABLE = 5,
    VU_SET_LOG_BASE = 6,
    VU_SET_LOG_FD = 7,
    VU_SET_VRING_NUM = 8,
    VU_SET_VRING_ADDR = 9,
    VU_SET_VRING_BASE = 10,
    VU_GET_VRING_BASE = 11,
    VU_SET_VRING_KICK = 12,
    VU_SET_VRING_CALL = 13,
    VU_SET_VRING_ERR = 14,
    VU_GET_PROTOCOL_FEATURES = 15,
    VU_SET_PROTOCOL_FEATURES = 16,
    VU_GET_QUEUE_NUM = 17,
    VU_SET_VRING_ENABLE = 18,
    VU_SET_BACKEND_REQ_FD = 21,
    VU_GET_CONFIG = 24,
    VU_SET_CONFIG = 25,
    VU_GET_INFLIGHT_FD = 31,
    VU_SET_INFLIGHT_FD = 32,
    VU_RESET_DEVICE = 34,
    VU_GET_MAX_MEM_SLOTS = 36,
    VU_ADD_MEM_REG = 37,
    VU_REM_MEM_REG = 38,
    VU_SET_STATUS = 39,
    VU_GET_STATUS = 40,
};

/* On the back-end channel. */
#define VU_BACKEND_CONFIG_CHANGE 2u

#define VU_VERSION 1u
#define VU_VERSION_MASK 3u
#define VU_REPLY (1u << 2)
#define VU_NEED_REPLY (1u << 3)

/* Protocol feature bits. */
#define VU_F_MQ (1ull << 0)
#define VU_F_LOG_SHMFD (1ull << 1)
#define VU_F_REPLY_ACK (1ull << 3)
#define VU_F_BACKEND_REQ (1ull << 5)
#define VU_F_CONFIG (1ull << 9)
#define VU_F_INFLIGHT_SHMFD (1ull << 12)
#define VU_F_RESET_DEVICE (1ull << 13)
#define VU_F_CONFIGURE_MEM_SLOTS (1ull << 15)
#define VU_F_STATUS (1ull << 16)

/* Feature bits that vhost-user adds to virtio's. */
#define VU_FEATURE_LOG_ALL (1ull << 26)
#define VU_FEATURE_PROTOCOL_FEATURES (1ull << 30)

#define VU_FDS_MAX 8u
#define VU_CONFIG_BYTES_MAX 256u
#define VU_VRING_INDEX_MASK 0xffu
#define VU_VRING_NO_FD (1u << 8)
#define VU_VRING_F_LOG (1u << 0)

struct vu_header {
    uint32_t request, flags, bytes;
};

struct vu_region {
    uint64_t guest_addr, bytes, user_addr, map_off;
};

struct vu_vring_state {
    uint32_t index, num;
};

struct vu_vring_addr {
    uint32_t index, flags;
    uint64_t desc, used, avail, log;
};

struct vu_config {
    uint32_t off, bytes, flags;
    uint8_t data[VU_CONFIG_BYTES_MAX];
};

struct vu_inflight {
    uint64_t map_bytes, map_off;
    uint16_t queue_count, queue_size;
    uint32_t padding;
};

struct vu_message {
    uint32_t not_sent; /* so that the payload is aligned and follows the header without a gap */
    struct vu_header header;
    union {
        uint64_t u64;
        struct vu_vring_state state;
        struct vu_vring_addr addr;
        struct {
            uint32_t count, padding;
            struct vu_region regions[VU_FDS_MAX];
        } memory;
        struct {
            uint64_t padding;
            struct vu_region region;
        } slot;
        struct {
            uint64_t bytes, off;
        } log;
        struct vu_config config;
        struct vu_inflight inflight;
        uint8_t raw[280];
    } payload;
};

_Static_assert(sizeof(struct vu_header) == 12, "vhost-user: header");
_Static_assert(offsetof(struct vu_message, payload) ==
                   offsetof(struct vu_message, header) + sizeof(struct vu_header),
               "vhost-user: the payload follows the header");
_Static_assert(sizeof(struct vu_vring_addr) == 40, "vhost-user: vring address");
_Static_assert(sizeof(struct vu_region) == 32, "vhost-user: memory region");

#endif
