/* SPDX-License-Identifier: MIT */
/*
 * shardcow: an engine for qcow2 disk images that many threads use at once.
 *
 * Shape
 *   An image is opened once (scow_open). Every thread that does I/O creates a queue of its own
 *   (scow_queue_create), submits requests on it and polls it for completions. Queues share no lock: a
 *   request whose mapping is cached runs start to finish on the thread that submitted it.
 *
 * Ordering
 *   There is none between requests in flight, on one queue or on several: a request is ordered after
 *   another only if it was submitted after the other's completion had been returned by
 *   scow_queue_poll(). A flush covers every write whose completion was returned, on any queue, before the
 *   flush was submitted; it says nothing about writes still in flight.
 *
 * Errors
 *   Functions that can fail return 0 (or a count) on success and a negative errno value on failure, and
 *   leave a message that names what and where in scow_error(), which is per thread. Outputs named ret_
 *   are written on success only. The library never prints, never logs and never exits.
 *
 * Option structures
 *   Begin with a size field, are initialised with their _INIT macro and only ever grow at the end, so a
 *   program built against an older header keeps working. Reserved fields must be zero; unknown flags,
 *   and nonzero bytes beyond the size that the library knows, are refused with -EINVAL.
 *
 * Strings that point into an image handle live as long as the handle.
 *
 * "qcow2 spec" below means docs/interop/qcow2.txt in QEMU's source tree.
 */
#ifndef SHARDCOW_H
#define SHARDCOW_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SCOW_VERSION_MAJOR 0
#define SCOW_VERSION_MINOR 1
#define SCOW_VERSION_PATCH 0

#if defined(__GNUC__)
#define SCOW_PUBLIC __attribute__((visibility("default")))
#else
#define SCOW_PUBLIC
#endif

/* "0.1.0": the version of the library that runs, which may be newer than this header. */
SCOW_PUBLIC const char *scow_version(void);

/*
 * The message of the last call on this thread that failed, in English, without a trailing newline or full
 * stop; "" if none failed yet. Valid until the next failing call on the same thread.
 */
SCOW_PUBLIC const char *scow_error(void);

/* ------------------------------------------------------------------------------------------------ */
/* Opening                                                                                            */
/* ------------------------------------------------------------------------------------------------ */

struct scow_image;
struct scow_queue;

/* Formats are always named, never guessed from content: a guest could otherwise turn its raw disk into a
 * qcow2 image that names any file of the host as its backing file. */
enum scow_format {
    SCOW_FORMAT_NONE = 0, /* not known; only as a value that a callback is given */
    SCOW_FORMAT_QCOW2 = 1,
    SCOW_FORMAT_RAW = 2,
};

enum scow_backend {
    SCOW_BACKEND_AUTO = 0, /* io_uring; the thread pool where io_uring_setup is refused */
    SCOW_BACKEND_IO_URING = 1,
    SCOW_BACKEND_THREADS = 2, /* preadv on a pool of threads */
    /* For benchmarks only: data reads complete at once and move nothing, so what buffers hold afterwards
     * means nothing and compressed clusters fail; metadata is read for real. */
    SCOW_BACKEND_NULL = 3,
};

enum scow_io_mode {
    SCOW_IO_AUTO = 0, /* direct where the filesystem allows it, else buffered */
    SCOW_IO_DIRECT = 1,
    SCOW_IO_BUFFERED = 2,
};

/* Open for writing. Files below the image in its chain are always read-only. */
#define SCOW_OPEN_WRITE (1u << 0)
/* Take no image locks. Without it scow_open() takes the byte-range locks that QEMU takes for a reader
 * (QEMU block/file-posix.c: open-file-description locks on bytes 100 and above), so that neither side
 * opens for writing what the other has open, and answers -EAGAIN when a writer has the image. */
#define SCOW_OPEN_NO_LOCK (1u << 1)
/* Metadata only: opens neither backing nor data file, allows encrypted images, and refuses queues and
 * reads with -EPERM. For info, check and dump. */
#define SCOW_OPEN_NO_IO (1u << 2)
/* Open backing files buffered whatever io_mode says, so that overlays share them in the page cache. */
#define SCOW_OPEN_BACKING_BUFFERED (1u << 3)
/* Writethrough: every write, discard and write_zeroes completes only when it is durable, as if each had
 * SCOW_REQ_FUA. Without it the image is a disk with a volatile cache: scow_queue_flush() makes durable. */
#define SCOW_OPEN_WRITETHROUGH (1u << 4)
/* For scow_check() with a repair flag: with SCOW_OPEN_WRITE, accepts images with the dirty or the corrupt bit
 * and repairs nothing by itself; gives no queues (-EPERM). */
#define SCOW_OPEN_REPAIR (1u << 5)
/* Never give space back to the host: discarded clusters are free for reuse, but no hole is punched. */
#define SCOW_OPEN_NO_PUNCH (1u << 6)

enum scow_child_role {
    SCOW_CHILD_BACKING = 1,
    SCOW_CHILD_DATA_FILE = 2,
};

/*
 * What open_child is asked. The library fills the first part; the callback may fill the second and
 * returns 0 to allow the file or a negative errno to refuse it.
 */
struct scow_child {
    size_t size;
    enum scow_child_role role;
    uint32_t depth;          /* 1 for the children of the opened image, 2 for their children, … */
    const char *name;        /* as the image has it: opaque bytes, no protocol, no JSON syntax */
    const char *path;        /* name, resolved against the folder of the image that names it */
    const char *parent_path; /* path of the image that names it; NULL if it was opened from a fd */

    int fd;                  /* out: a descriptor to use instead of opening path; the library owns it. -1 */
    enum scow_format format; /* in: what the image says, or SCOW_FORMAT_NONE; out: what to open it as */
};

typedef int scow_open_child_fn(void *ctx, struct scow_child *child);

/* What becomes of writes whose data is all zeros. */
enum scow_detect_zeroes {
    SCOW_DETECT_ZEROES_OFF = 0,
    SCOW_DETECT_ZEROES_ON = 1,    /* as write_zeroes that keeps what is allocated */
    SCOW_DETECT_ZEROES_UNMAP = 2, /* as write_zeroes with SCOW_REQ_MAY_UNMAP */
};

/* An open_child that allows every file; ctx is not used. For images that you trust. A backing file
 * whose format the image does not name is refused all the same. */
SCOW_PUBLIC int scow_open_child_any(void *ctx, struct scow_child *child);

struct scow_open_options {
    size_t size;
    uint32_t flags;          /* SCOW_OPEN_* */
    enum scow_format format; /* of the image itself; _INIT says qcow2 */
    enum scow_backend backend;
    enum scow_io_mode io_mode;
    uint32_t shards;          /* metadata threads, 1 to 256; 0: one per online CPU, at most 16 */
    uint32_t queues_max;      /* queues that may exist at once, 1 to 1024; 0: 64 */
    uint64_t cache_bytes;     /* bound of the metadata cache of the whole chain, all shards together;
                                 0: 32 MiB or what the chain needs, whichever is less. At least one slice
                                 per shard is kept whatever this says. */
    uint32_t slice_bytes;     /* L2 slice: power of two, 512 to 64 KiB; 0: 4 KiB. Capped by the cluster. */
    uint32_t chain_depth_max; /* backing files below the image, at most 256; 0: 64 */
    scow_open_child_fn *open_child; /* NULL: no file that an image names is opened */
    void *open_child_ctx;
    /* for SCOW_OPEN_WRITE */
    enum scow_detect_zeroes detect_zeroes;
    uint32_t commit_interval_ms;  /* metadata that nobody flushes is written after so long; 0: 1000 */
    uint64_t preallocation_bytes; /* how far the file is extended ahead of its use; 0: 128 MiB at most, less
                                     for small images. Taken back by scow_close() and scow_quiesce(). */
    uint64_t reserved[4];
};

#define SCOW_OPEN_OPTIONS_INIT                                                                               \
    {                                                                                                        \
        .size = sizeof(struct scow_open_options), .format = SCOW_FORMAT_QCOW2                                \
    }

/*
 * Open an image by path. options may be NULL for the defaults: read-only.
 *
 * Nothing is probed. Read-only, nothing is changed, not even the dirty bit; images with the dirty or the
 * corrupt bit are opened; scow_get_info() tells. With SCOW_OPEN_WRITE the header is updated at once: unknown
 * autoclear bits and the bitmaps bit are cleared (qcow2 spec, "Header": the bitmaps would be out of date),
 * and from the first change of its metadata until scow_close() an autoclear bit of shardcow's own is set. An
 * image with the dirty bit, or one that
 * its last writer did not close, is repaired first (references are counted; clusters leaked by a crash come
 * back). An image with the corrupt bit is refused with -EROFS. Worker threads start with the first queue.
 *
 * Errors: -EINVAL bad options, or a file that is no valid image; -ENOTSUP a valid image with a feature that
 * is not supported (named in the message), encryption among them; -EPERM a child file that open_child
 * refused; -EAGAIN another process holds a lock; -ELOOP a chain that contains itself or is too deep; or what
 * open(2) says.
 */
SCOW_PUBLIC int scow_open(const char *path, const struct scow_open_options *options,
                          struct scow_image **ret_image);

/* The same for an open descriptor, which the library duplicates and reopens through /proc for direct I/O
 * where it can. name_path is used to resolve relative child names and in messages; it may be NULL. */
SCOW_PUBLIC int scow_open_fd(int fd, const char *name_path, const struct scow_open_options *options,
                             struct scow_image **ret_image);

/*
 * Close; NULL is allowed. All queues must have been destroyed. An image that was open for writing is left
 * complete: everything is written and durable, unused clusters and preallocated space are given back. The
 * image is gone whatever this returns: 0, or a negative errno when that failed (what was flushed before is
 * safe).
 */
SCOW_PUBLIC int scow_close(struct scow_image *image);

/*
 * Leave the file complete for another process (pause, migration, handover) while this handle stays open:
 * waits until everything acknowledged is durable and unused clusters are returned, and clears the mark of an
 * image in use. The caller sees to it that no write is in flight; the next one sets the mark again. Blocking,
 * any thread. 0 when there is nothing to do, also read-only.
 */
SCOW_PUBLIC int scow_quiesce(struct scow_image *image);

#define SCOW_RESIZE_SHRINK (1u << 0) /* allow new_bytes below the present size: what lies beyond is lost */

/*
 * Change the virtual size to new_bytes, a multiple of 512. Growing works with queues running; new space reads
 * as zeros, also above a longer backing file. Shrinking needs SCOW_RESIZE_SHRINK, no queues and no internal
 * snapshots. Blocking, any thread. Durable when it returns 0. -ENOTSUP where the format cannot (a version 2
 * image that would expose its backing file), -EFBIG beyond what L1 can hold, -EBUSY with queues.
 */
SCOW_PUBLIC int scow_resize(struct scow_image *image, uint64_t new_bytes, uint32_t flags);

/* ------------------------------------------------------------------------------------------------ */
/* Creating                                                                                           */
/* ------------------------------------------------------------------------------------------------ */

enum scow_compression {
    SCOW_COMPRESSION_ZLIB = 0, /* raw deflate, 4 KiB window */
    SCOW_COMPRESSION_ZSTD = 1,
};

enum scow_preallocation {
    SCOW_PREALLOCATION_OFF = 0,
    SCOW_PREALLOCATION_METADATA = 1, /* all clusters are mapped; the file is sparse */
    SCOW_PREALLOCATION_FALLOC = 2,   /* and has its space reserved */
    SCOW_PREALLOCATION_FULL = 3,     /* and written with zeros */
};

struct scow_create_options {
    size_t size;
    uint32_t flags;          /* none yet: 0 */
    uint32_t version;        /* 2 or 3; 0: 3 */
    uint64_t virtual_size;   /* bytes, rounded up to 512 */
    uint32_t cluster_bytes;  /* 512 to 2 MiB; 0: 64 KiB */
    uint32_t refcount_bits;  /* 1 to 64, a power of two; 0: 16 */
    uint32_t extended_l2;    /* 1: 32 subclusters per cluster */
    uint32_t lazy_refcounts; /* 1: set the compatible bit, for other writers */
    enum scow_compression compression;
    enum scow_preallocation preallocation;
    const char *backing_name; /* as written to the header; NULL: none. Nothing is opened. */
    const char *backing_format;
    const char *data_file_name; /* external data file; NULL: none. Created or truncated unless
                                   data_file_keep. */
    uint32_t data_file_raw;     /* 1: keep the data file a valid raw image */
    uint32_t data_file_keep;    /* 1: data_file_name exists and stays as it is */
    uint64_t reserved[4];
};

#define SCOW_CREATE_OPTIONS_INIT                                                                             \
    {                                                                                                        \
        .size = sizeof(struct scow_create_options)                                                           \
    }

/*
 * Create a qcow2 image. An existing file is truncated first, under the locks of a writer: -EAGAIN when
 * another process has it open. A block device is used as it is. On failure a file that did not exist before
 * is removed. 0; -EINVAL with a message for options that exclude each other; what the file system says.
 */
SCOW_PUBLIC int scow_create(const char *path, const struct scow_create_options *options);

/*
 * The path of a file that image_path names as name: name itself if it is absolute, else name in image_path's
 * folder, as QEMU resolves it. Writes at most buf_bytes bytes with the terminator; -ENAMETOOLONG beyond.
 */
SCOW_PUBLIC int scow_resolve_name(const char *image_path, const char *name, char *buf, size_t buf_bytes);

/* ------------------------------------------------------------------------------------------------ */
/* Facts about an image                                                                               */
/* ------------------------------------------------------------------------------------------------ */

/* Virtual disk size in bytes, a multiple of 512: a qcow2 image's is rounded down, a raw file's up, as QEMU
 * does. */
SCOW_PUBLIC uint64_t scow_size(const struct scow_image *image);

/* Feature bits (qcow2 spec, "Header"). */
#define SCOW_INCOMPAT_DIRTY (1ull << 0)
#define SCOW_INCOMPAT_CORRUPT (1ull << 1)
#define SCOW_INCOMPAT_DATA_FILE (1ull << 2)
#define SCOW_INCOMPAT_COMPRESSION (1ull << 3)
#define SCOW_INCOMPAT_EXTENDED_L2 (1ull << 4)
#define SCOW_COMPAT_LAZY_REFCOUNTS (1ull << 0)
#define SCOW_AUTOCLEAR_BITMAPS (1ull << 0)
#define SCOW_AUTOCLEAR_DATA_FILE_RAW (1ull << 1)

/*
 * For a raw image only size, format, virtual_size, file_bytes, allocated_bytes and the I/O part are set.
 * Header fields are as on disk; strings are NULL when the image has none.
 */
struct scow_info {
    size_t size;
    enum scow_format format;
    uint64_t virtual_size;
    uint64_t file_bytes;      /* st_size of the image file (of a block device: its size) */
    uint64_t allocated_bytes; /* st_blocks × 512 */

    uint32_t version;      /* 2 or 3 */
    uint32_t header_bytes; /* 72 in version 2 */
    uint32_t cluster_bytes;
    uint32_t subcluster_bytes; /* cluster_bytes / 32 with extended L2, else cluster_bytes */
    uint32_t refcount_bits;
    uint32_t crypt_method; /* 0 none, 1 AES, 2 LUKS */
    enum scow_compression compression;
    uint64_t incompatible, compatible, autoclear; /* 0 in version 2 */

    uint64_t l1_off;
    uint32_t l1_count; /* entries */
    uint64_t reftable_off;
    uint32_t reftable_clusters;
    uint64_t snapshots_off;
    uint32_t snapshot_count;
    uint32_t bitmap_count; /* 0 unless the bitmaps autoclear bit is set */
    uint64_t bitmap_directory_off;
    uint64_t bitmap_directory_bytes;
    uint32_t extension_count;
    uint32_t feature_name_count;

    const char *backing_name;   /* as in the image */
    const char *backing_format; /* as in the image: "qcow2", "raw", … */
    const char *data_file_name;

    /* How this handle does I/O. */
    int direct;              /* 1: the file is open with O_DIRECT */
    uint32_t io_align;       /* alignment of file offsets and lengths, bytes; 1 when buffered */
    uint32_t mem_align;      /* buffers aligned to this are used without a copy where offsets and lengths are
                                multiples of      io_align */
    const char *backend;     /* "io_uring", "threads" or "null" */
    const char *backend_why; /* why auto did not choose io_uring, or NULL */
    uint32_t shards;
    uint32_t slice_bytes;
    uint32_t cache_slices; /* the cache's bound, all shards together */
    uint32_t chain_depth;  /* backing files open below this image */
};

#define SCOW_INFO_INIT                                                                                       \
    {                                                                                                        \
        .size = sizeof(struct scow_info)                                                                     \
    }

SCOW_PUBLIC int scow_get_info(const struct scow_image *image, struct scow_info *info);

/* A header extension as it is on disk (qcow2 spec, "Header extensions"). data points to data_bytes bytes. */
struct scow_extension {
    size_t size;
    uint32_t type;
    uint32_t data_bytes;
    uint64_t off; /* of the extension's own 8-byte head in the file */
    const void *data;
};

/* One entry of the feature name table. */
struct scow_feature_name {
    size_t size;
    uint8_t type; /* 0 incompatible, 1 compatible, 2 autoclear */
    uint8_t bit;
    char name[47]; /* terminated */
};

struct scow_snapshot {
    size_t size;
    const char *id;
    const char *name;
    uint64_t l1_off;
    uint32_t l1_count;
    uint32_t date_s, date_ns;
    uint64_t vm_clock_ns;
    uint64_t vm_state_bytes;
    uint64_t disk_bytes; /* virtual size at that time */
    uint64_t icount;     /* UINT64_MAX when not recorded */
    uint32_t extra_bytes;
};

#define SCOW_BITMAP_IN_USE (1u << 0)
#define SCOW_BITMAP_AUTO (1u << 1)
#define SCOW_BITMAP_EXTRA_DATA_COMPATIBLE (1u << 2)

struct scow_bitmap {
    size_t size;
    const char *name;
    uint64_t table_off;
    uint32_t table_count; /* entries */
    uint32_t flags;       /* SCOW_BITMAP_* */
    uint8_t type;         /* 1: dirty tracking */
    uint8_t granularity_bits;
    uint32_t extra_bytes;
};

/* Each fills *ret with number index (from 0); -ERANGE past the last. Set ret->size first. */
SCOW_PUBLIC int scow_get_extension(const struct scow_image *image, uint32_t index,
                                   struct scow_extension *ret);
SCOW_PUBLIC int scow_get_feature_name(const struct scow_image *image, uint32_t index,
                                      struct scow_feature_name *ret);
SCOW_PUBLIC int scow_get_snapshot(const struct scow_image *image, uint32_t index, struct scow_snapshot *ret);
SCOW_PUBLIC int scow_get_bitmap(const struct scow_image *image, uint32_t index, struct scow_bitmap *ret);

/* Tables that scow_read_table() reads. */
enum scow_table {
    SCOW_TABLE_L1 = 1,        /* table: 0 the active one, n the n-th snapshot's (from 1) */
    SCOW_TABLE_L2 = 2,        /* table: offset of an L2 table in the file; with extended L2 every entry gives
                                 two values, the entry and its subcluster bitmap */
    SCOW_TABLE_REFTABLE = 3,  /* table: 0 */
    SCOW_TABLE_REFCOUNTS = 4, /* table: offset of a refcount block in the file; values are counts */
    SCOW_TABLE_BITMAP = 5,    /* table: the bitmap's index */
};

/*
 * Read count values from entry first of a table straight from the file, in host byte order, unvalidated.
 * Answers -ERANGE when the range passes the table's end.
 */
SCOW_PUBLIC int scow_read_table(struct scow_image *image, enum scow_table which, uint64_t table,
                                uint64_t first, uint32_t count, uint64_t *ret_values);

/* ------------------------------------------------------------------------------------------------ */
/* Queues                                                                                             */
/* ------------------------------------------------------------------------------------------------ */

struct scow_queue_options {
    size_t size;
    uint32_t flags; /* none yet: 0 */
    uint32_t depth; /* requests in flight, 1 to 4096; 0: 256 */
    uint64_t reserved[4];
};

#define SCOW_QUEUE_OPTIONS_INIT                                                                              \
    {                                                                                                        \
        .size = sizeof(struct scow_queue_options)                                                            \
    }

/*
 * Create a queue. A queue belongs to the first thread that submits to it or polls it, and only that thread
 * may use it; it may be created and destroyed by another. Queues of one image may be used at the same
 * time without any locking. options may be NULL.
 *
 * Errors: -EPERM with SCOW_OPEN_NO_IO or SCOW_OPEN_REPAIR; -EMFILE when queues_max exist; -ENOMEM; what the
 * backend says.
 */
SCOW_PUBLIC int scow_queue_create(struct scow_image *image, const struct scow_queue_options *options,
                                  struct scow_queue **ret_queue);

/*
 * Waits for requests in flight, drops their completions and destroys the queue. Another thread than the
 * queue's may do this while nothing is in flight; with requests in flight io_uring answers -EBUSY to it, and
 * nothing was done. The queue's own thread is the better one: io_uring lets go of the files at once only for
 * it, for others some milliseconds later, in which the file system cannot be unmounted. 0 in all other cases;
 * NULL is allowed.
 */
SCOW_PUBLIC int scow_queue_destroy(struct scow_queue *queue);

/*
 * Submitters. Offsets and lengths are multiples of 512 within the virtual size. Buffers (and iovec arrays)
 * must stay valid until the completion was returned. Any buffer address works; addresses aligned to
 * scow_info.mem_align are not copied.
 *
 * Each returns 0 when the request was accepted: its result is then a completion, now or later. Otherwise
 * nothing was done: -EAGAIN when depth requests are in flight (poll, then try again; the only failure without
 * a message), -EINVAL for a bad range or flag (scow_error() says which). Write-side calls on an image that is
 * open read-only return -EROFS.
 *
 * A request may start at once or at the next scow_queue_poll(): always poll after submitting. A write of less
 * than a block of the file (scow_info.io_align) and scow_quiesce() wait for requests that were in flight
 * before, on all queues: a thread that waits for one queue, or in a blocking call, must not hold back another
 * that has requests in flight.
 */
/* Durable when it completes (force unit access). Write-side requests. */
#define SCOW_REQ_FUA (1u << 0)
/* write_zeroes: what is allocated may be freed. Without it allocated clusters stay allocated. */
#define SCOW_REQ_MAY_UNMAP (1u << 1)
/* write, writev: store the data compressed. off is a multiple of the cluster size, and so is the length,
 * except where the request ends with the image. Clusters that are allocated already, or that do not shrink,
 * are written plain. -ENOTSUP with an external data file. */
#define SCOW_REQ_COMPRESSED (1u << 2)

/* Write-side requests: completes when it would outlive the end of this process, though not a power cut: the
 * metadata that it needs has been given to the file. Without it a killed process takes along what was not
 * flushed, which a client that goes on without it (a guest whose server is started again) would not notice.
 * Costs a write of metadata for requests that need new clusters, many at a time, and rarely a sync. */
#define SCOW_REQ_OUTLIVES (1u << 3)

SCOW_PUBLIC int scow_queue_read(struct scow_queue *queue, uint64_t off, void *buf, size_t bytes,
                                void *user_data, uint32_t flags);
SCOW_PUBLIC int scow_queue_readv(struct scow_queue *queue, uint64_t off, const struct iovec *iov,
                                 int iov_count, void *user_data, uint32_t flags);
SCOW_PUBLIC int scow_queue_write(struct scow_queue *queue, uint64_t off, const void *buf, size_t bytes,
                                 void *user_data, uint32_t flags);
SCOW_PUBLIC int scow_queue_writev(struct scow_queue *queue, uint64_t off, const struct iovec *iov,
                                  int iov_count, void *user_data, uint32_t flags);
/*
 * Writes. An acknowledged write is seen by every later read on any queue; it is durable after a flush.
 * -ENOSPC fails only requests that need new clusters; others go on. Once metadata could not be written
 * several times in a row the image refuses writes with -EROFS until it is opened again.
 *
 * Flush: on an image that is open read-only it completes with 0: there is nothing to make durable.
 *
 * Discard: whole clusters (subclusters) in the range read as zeros afterwards, except in a version 2 image
 * with a backing file, and their space goes back to the host after the next commit; partial ones stay as they
 * are.
 *
 * write_zeroes: the range reads as zeros afterwards.
 */
SCOW_PUBLIC int scow_queue_flush(struct scow_queue *queue, void *user_data, uint32_t flags);
SCOW_PUBLIC int scow_queue_discard(struct scow_queue *queue, uint64_t off, uint64_t bytes, void *user_data,
                                   uint32_t flags);
SCOW_PUBLIC int scow_queue_write_zeroes(struct scow_queue *queue, uint64_t off, uint64_t bytes,
                                        void *user_data, uint32_t flags);

struct scow_completion {
    void *user_data;
    int ret; /* 0 or a negative errno */
    int reserved;
    const char
        *error; /* what failed and where, when ret < 0; valid until the next poll of this queue. Else NULL */
};

#define SCOW_WAIT_FOREVER (-1)

/*
 * Submit what is pending, move requests on and return completions, at most max of them. Waits until min are
 * there, timeout_ns has passed (0: do not wait, SCOW_WAIT_FOREVER) or nothing is in flight or watched any
 * more, whichever comes first; with min 0 it never waits, but for a flush that has the queue for itself on a
 * file whose flushes take a tenth of a millisecond. Returns the number of completions, or a negative errno:
 * -EINVAL, or a failure of the backend itself.
 */
SCOW_PUBLIC int scow_queue_poll(struct scow_queue *queue, struct scow_completion *completions, int min,
                                int max, int64_t timeout_ns);

/* Requests accepted whose completion was not yet returned. */
SCOW_PUBLIC uint32_t scow_queue_in_flight(const struct scow_queue *queue);

/*
 * An eventfd that becomes readable when scow_queue_poll() may have something to return, for use in an event
 * loop. It is not signalled until enabled. The queue owns it.
 *
 * Race-free use:  enable it;
 *   loop:  submit; poll with min 0 until it returns 0; sleep on the descriptor; read its 8 bytes; repeat.
 * Completions that arrive after the poll that returned 0 make it readable, so none is missed; a spurious
 * wake-up is possible.
 */
SCOW_PUBLIC int scow_queue_completion_fd(const struct scow_queue *queue);
SCOW_PUBLIC int scow_queue_enable_completion_fd(struct scow_queue *queue, int enable);

/*
 * Have the queue look at a descriptor of yours, so that one wait serves both: scow_queue_poll() tells when fd
 * has become readable by a completion with user_data and ret 0, or once a negative errno when it can be
 * watched no more. Edge-triggered, as with EPOLLET: an eventfd that is written again is told again, read or
 * not; it may be told once too often, and several writes at once. It is no request: it takes no place of
 * depth and is not counted in flight, but while anything is watched scow_queue_poll() waits with nothing in
 * flight too. fd must stay open until scow_queue_unwatch(). Only on the queue's thread, at most 1024 at once.
 *
 * -EEXIST fd is watched already, -ENOTSUP with SCOW_BACKEND_NULL, -EMFILE, -ENOMEM; unwatch: -ENOENT.
 */
SCOW_PUBLIC int scow_queue_watch(struct scow_queue *queue, int fd, void *user_data);
SCOW_PUBLIC int scow_queue_unwatch(struct scow_queue *queue, int fd);

/*
 * Memory that buffers of the queue's requests will lie in: its pages are pinned until it is removed, so the
 * kernel need not look them up for every request. Buffers elsewhere work as before.
 *
 * The pages are those that are there now. Whoever replaces pages of it (MADV_DONTNEED, a punched hole in its
 * file, a balloon in the guest whose memory it is, userfaultfd) reads old data, or none, where a request has
 * read: such memory must not be added. All of it is populated, and counts against RLIMIT_MEMLOCK once for
 * each queue, together with the user's other rings.
 *
 * Only on the queue's thread, which the first call binds the queue to; at most 64 ranges. Remove exactly what
 * was added, before it is unmapped. Destroying the queue removes all, but what counts against the limit may
 * do so for a moment longer. Adding: -ENOTSUP by this backend or kernel, -ENOMEM by that limit, -EFAULT
 * memory of a file on a disk, or that is not mapped for writing, -ENOSPC, -EEXIST it overlaps another,
 * -EINVAL, -EBUSY another thread's queue. Removing: -ENOENT, -EBUSY the kernel does not take requests that
 * were submitted.
 */
SCOW_PUBLIC int scow_queue_add_memory(struct scow_queue *queue, void *base, size_t bytes);
SCOW_PUBLIC int scow_queue_remove_memory(struct scow_queue *queue, void *base, size_t bytes);

/*
 * Blocking helpers for programs that need no speed: any offset and length within the image, any thread, no
 * queue. They serialise on a lock of their own. 0 or a negative errno.
 */
SCOW_PUBLIC int scow_pread(struct scow_image *image, void *buf, size_t bytes, uint64_t off);
SCOW_PUBLIC int scow_pwrite(struct scow_image *image, const void *buf, size_t bytes, uint64_t off);
/* off and bytes are multiples of 512. flags: SCOW_REQ_*. */
SCOW_PUBLIC int scow_pwrite_zeroes(struct scow_image *image, uint64_t bytes, uint64_t off, uint32_t flags);
SCOW_PUBLIC int scow_pdiscard(struct scow_image *image, uint64_t bytes, uint64_t off);
SCOW_PUBLIC int scow_flush(struct scow_image *image);

/* Counts since the queue (or, for the sum, the image) came to be. */
struct scow_counters {
    size_t size;
    uint64_t requests; /* completed */
    uint64_t bytes;
    uint64_t hits;         /* mappings found in the cache, all layers */
    uint64_t misses;       /* mappings asked of a shard */
    uint64_t zeros;        /* parts that needed no I/O: holes and zero clusters */
    uint64_t backing;      /* parts read from a backing file */
    uint64_t inflates;     /* compressed clusters inflated */
    uint64_t inflate_hits; /* parts served from a cluster that was already inflated */
    uint64_t bounces;      /* parts that went through an aligned buffer */
    uint64_t ios;          /* I/Os submitted for data */
    uint64_t starved;      /* times a request waited for an I/O descriptor or buffer */
    /* of the image's shards; 0 for a queue */
    uint64_t slice_loads;
    uint64_t slice_coalesced; /* misses that joined a load in flight */
    uint64_t slice_evictions;
    /* writing */
    uint64_t writes_in_place; /* parts written by the queue itself */
    uint64_t writes_at_shard; /* parts that went to the owner of their slice */
    uint64_t flushes_alone;   /* flushes without a commit: one fdatasync on the queue's own */
    uint64_t flushes_joined;  /* flushes that joined a commit */
    /* of the image; 0 for a queue */
    uint64_t clusters_allocated;
    uint64_t cow_bytes; /* copied around writes */
    uint64_t commits;   /* of metadata */
    uint64_t syncs;     /* fdatasyncs of commits and refcounts */
    uint64_t slice_writes;
    uint64_t leases;        /* granted */
    uint64_t leased;        /* clusters out now */
    uint64_t freed_pending; /* clusters that wait for a commit, for I/O in flight or for their punch */
    uint64_t freed_punched; /* clusters whose space the host has back */
    uint64_t freed_skipped; /* clusters freed without a punch: none possible, or it failed */
    /* I/O epochs: what was freed in one is reused two later, once the requests of its time are over. */
    uint64_t epoch;     /* the present one */
    uint64_t epoch_lag; /* how far the slowest queue is behind it now */
};

#define SCOW_COUNTERS_INIT                                                                                   \
    {                                                                                                        \
        .size = sizeof(struct scow_counters)                                                                 \
    }

/* Of one queue (from any thread), and of an image: all its queues, past ones too, and its shards. */
SCOW_PUBLIC int scow_queue_counters(const struct scow_queue *queue, struct scow_counters *ret);
SCOW_PUBLIC int scow_counters(const struct scow_image *image, struct scow_counters *ret);

/* Of one shard, the owner of every scow_info.shards-th L2 slice. */
struct scow_shard_counters {
    size_t size;
    uint64_t slice_loads;
    uint64_t slice_coalesced; /* misses that joined a load in flight */
    uint64_t slice_evictions;
    uint64_t writes; /* parts of writes that came to it */
    uint64_t clusters_allocated;
    uint64_t cow_bytes;
    uint64_t slice_writes; /* by commits */
    /* now */
    uint64_t slots;          /* slices that its part of the cache has room for */
    uint64_t slots_resident; /* that hold one */
    uint64_t slots_dirty;    /* whose slice the next commit writes */
    uint64_t lease_clusters; /* that it may use without asking the allocator */
};

#define SCOW_SHARD_COUNTERS_INIT                                                                             \
    {                                                                                                        \
        .size = sizeof(struct scow_shard_counters)                                                           \
    }

/* Any thread. shard counts from 0; -ERANGE past the last. All 0 before the first queue. */
SCOW_PUBLIC int scow_shard_counters(const struct scow_image *image, uint32_t shard,
                                    struct scow_shard_counters *ret);

/* ------------------------------------------------------------------------------------------------ */
/* Where data is                                                                                      */
/* ------------------------------------------------------------------------------------------------ */

#define SCOW_EXTENT_PRESENT (1u << 0) /* some layer of the chain has an entry for it */
#define SCOW_EXTENT_ZERO (1u << 1)    /* reads as zeros */
#define SCOW_EXTENT_DATA (1u << 2)    /* has data of its own (a preallocated zero cluster has none) */
#define SCOW_EXTENT_COMPRESSED (1u << 3)
#define SCOW_EXTENT_HOST_OFF (1u << 4) /* host_off is valid */

struct scow_extent {
    size_t size;
    uint64_t off;
    uint64_t bytes;
    uint32_t flags;        /* SCOW_EXTENT_* */
    uint32_t depth;        /* layer that decides: 0 the image, 1 its backing file, … */
    uint64_t host_off;     /* of the first byte in host_path */
    const char *host_path; /* file that holds the data: the layer's own or its data file; NULL if unknown */
};

/* Resolve in this image only: what is not present here ends with PRESENT unset, depth 0. */
#define SCOW_EXTENT_THIS_LAYER (1u << 0)

/*
 * The extent that begins at off: the longest run, up to bytes, whose parts are alike and contiguous.
 * Blocking, any thread; serialises like scow_pread(). A raw layer is asked for its holes.
 */
SCOW_PUBLIC int scow_get_extent(struct scow_image *image, uint64_t off, uint64_t bytes, uint32_t flags,
                                struct scow_extent *ret);

/* ------------------------------------------------------------------------------------------------ */
/* Checking                                                                                           */
/* ------------------------------------------------------------------------------------------------ */

enum scow_problem_kind {
    SCOW_PROBLEM_CORRUPTION = 1,
    SCOW_PROBLEM_LEAK = 2,
    SCOW_PROBLEM_ERROR = 3, /* a structure could not be read */
};

/* Called by scow_check() for each problem, from one thread at a time. text is valid during the call. */
typedef void scow_problem_fn(void *ctx, enum scow_problem_kind kind, const char *text);
/* Called now and then with progress; done and total in the same arbitrary unit. Nonzero: stop with
 * -ECANCELED. */
typedef int scow_progress_fn(void *ctx, uint64_t done, uint64_t total);

#define SCOW_CHECK_REPAIR_LEAKS (1u << 0) /* lower refcounts that are too high */
#define SCOW_CHECK_REPAIR_ALL (1u << 1)   /* correct all refcounts, COPIED flags and damaged entries too */

struct scow_check_options {
    size_t size;
    uint32_t flags;        /* SCOW_CHECK_*; repair needs an image opened with SCOW_OPEN_REPAIR */
    uint32_t threads;      /* 0: one per online CPU, at most 16 */
    uint64_t memory_bytes; /* bound of the working memory; 0: 1 GiB. Beyond it the check makes more passes. */
    scow_problem_fn *problem;
    scow_progress_fn *progress;
    void *ctx;
    uint64_t reserved[4];
};

#define SCOW_CHECK_OPTIONS_INIT                                                                              \
    {                                                                                                        \
        .size = sizeof(struct scow_check_options)                                                            \
    }

/* Counts as qemu-img check has them, then more about the active disk state. */
struct scow_check_result {
    size_t size;
    uint64_t corruptions;
    uint64_t leaks;
    uint64_t check_errors;
    uint64_t image_end_off;      /* end of the last cluster in use */
    uint64_t total_clusters;     /* guest clusters */
    uint64_t allocated_clusters; /* with data of their own, compressed ones included */
    uint64_t compressed_clusters;
    uint64_t fragmented_clusters; /* that do not follow their predecessor on the host */
    uint32_t passes;              /* made to stay within memory_bytes */

    uint64_t standard_clusters;
    uint64_t zero_clusters;           /* zero flag, without a host cluster */
    uint64_t zero_allocated_clusters; /* zero flag, with a host cluster */
    uint64_t unallocated_clusters;
    uint64_t compressed_bytes;      /* sum of the descriptors' sectors */
    uint64_t l2_tables;             /* of the active L1 */
    uint64_t metadata_bytes;        /* header, tables and blocks, snapshots' included */
    uint64_t shared_clusters;       /* data clusters with a refcount above 1 */
    uint64_t host_clusters;         /* host clusters with a refcount above 0 */
    uint64_t subclusters_allocated; /* extended L2 */
    uint64_t subclusters_zero;

    /* With repair: how many of the above were mended. corruptions, leaks and check_errors are then what is
     * left, as qemu-img check -r reports it. */
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
};

#define SCOW_CHECK_RESULT_INIT                                                                               \
    {                                                                                                        \
        .size = sizeof(struct scow_check_result)                                                             \
    }

/*
 * Check an image's references against its refcounts, in parallel, without changing it unless flags ask for
 * repair. Nobody may be writing to it (on a handle open for writing: after scow_quiesce()). A repair that
 * leaves no corruption behind clears the dirty and the corrupt bit. 0 when the check ran to its end, whatever
 * it found; -ENOTSUP for a raw image.
 */
SCOW_PUBLIC int scow_check(struct scow_image *image, const struct scow_check_options *options,
                           struct scow_check_result *ret);

#ifdef __cplusplus
}
#endif

#endif
