/* SPDX-License-Identifier: MIT */
/* scow_open(): options, children, locks, and what it says when it refuses. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/rig.h"
#include "tests/unit/scratch.h"

TestSuite(open, .fini = abort_if_memory_is_lost);
TestSuite(open_fd, .fini = abort_if_memory_is_lost);
TestSuite(children, .fini = abort_if_memory_is_lost);
TestSuite(locks, .fini = abort_if_memory_is_lost);
TestSuite(resolve_name, .fini = abort_if_memory_is_lost);
TestSuite(raw, .fini = abort_if_memory_is_lost);

#define MIB (1ull << 20)

static const struct image_spec plain = {IMAGE_SPEC_INIT, .virtual_bytes = MIB};

/* An image of this spec at scratch(name). */
static const char *make(const char *name, struct image_spec spec)
{
    struct image_builder *b = builder_new(&spec);

    if (spec.raw)
        builder_raw(b);
    else
        builder_data(b, 0);
    builder_write(b, scratch(name));
    builder_free(b);
    return scratch(name);
}

static void check_refused(const char *path, const struct scow_open_options *o, int err, const char *text)
{
    struct scow_image *const untouched = (struct scow_image *)(void *)&plain;
    const int before = open_descriptors();
    struct scow_image *image = untouched;

    cr_assert_eq(scow_open(path, o, &image), err, "%s", scow_error());
    cr_assert_not_null(strstr(scow_error(), text), "\"%s\" lacks \"%s\"", scow_error(), text);
    cr_assert_eq(image, untouched, "outputs are written on success only");
    cr_assert_eq(open_descriptors(), before, "a refused open leaves nothing open");
}

static void check_opens(const char *path, const struct scow_open_options *o)
{
    struct scow_image *image;

    cr_assert_eq(scow_open(path, o, &image), 0, "%s", scow_error());
    scow_close(image);
}

Test(open, null_and_nothing)
{
    check_refused(NULL, NULL, -EINVAL, "no path given");
    check_refused("", NULL, -EINVAL, "no path given");
    check_refused(scratch("missing"), NULL, -ENOENT, "missing: No such file or directory");
    scow_close(NULL);
    scow_queue_destroy(NULL);
}

Test(open, defaults)
{
    check_opens(make("image", plain), NULL);
}

Test(open, what_is_no_image)
{
    const char *path = scratch("text");
    FILE *f = fopen(path, "we");

    check_refused(make("raw", (struct image_spec){.raw = true, .virtual_bytes = 4096, .cluster_bits = 16}),
                  NULL, -EINVAL, "raw: ");
    fputs("QFI", f);
    fclose(f);
    check_refused(path, NULL, -EINVAL, "text: ");
    f = fopen(path, "we");
    fclose(f);
    check_refused(path, NULL, -EINVAL, "text: ");
}

Test(open, bad_options)
{
    const char *path = make("image", plain);
    struct scow_open_options o;
#define REFUSES(field, value, err, text)                                                                     \
    o = (struct scow_open_options)SCOW_OPEN_OPTIONS_INIT;                                                    \
    o.field = value;                                                                                         \
    check_refused(path, &o, err, text)

    REFUSES(size, 0, -EINVAL, "open options: the structure's size field is 0");
    REFUSES(flags, 1u << 31, -EINVAL, "open options: unknown flags 0x80000000");
    REFUSES(flags, SCOW_OPEN_WRITE | SCOW_OPEN_NO_IO, -EINVAL, "exclude each other");
    REFUSES(flags, SCOW_OPEN_REPAIR, -EINVAL, "needs SCOW_OPEN_WRITE");
    REFUSES(format, SCOW_FORMAT_NONE, -EINVAL, "never guessed");
    REFUSES(format, (enum scow_format)9, -EINVAL, "format 9");
    REFUSES(backend, (enum scow_backend)9, -EINVAL, "backend is 9");
    REFUSES(io_mode, (enum scow_io_mode)3, -EINVAL, "io_mode is 3");
    REFUSES(shards, 257, -EINVAL, "shards is 257, above the limit of 256");
    REFUSES(queues_max, 1025, -EINVAL, "queues_max is 1025, above the limit of 1024");
    REFUSES(slice_bytes, 256, -EINVAL, "slice_bytes 256");
    REFUSES(slice_bytes, 3000, -EINVAL, "slice_bytes 3000");
    REFUSES(slice_bytes, 128u << 10, -EINVAL, "slice_bytes is 131072, above the limit of 65536");
    REFUSES(chain_depth_max, 257, -EINVAL, "chain_depth_max is 257");
    REFUSES(reserved[3], 1, -EINVAL, "reserved");
#undef REFUSES
}

Test(open, options_from_a_newer_header)
{
    struct {
        struct scow_open_options o;
        uint64_t more;
    } newer = {.o = SCOW_OPEN_OPTIONS_INIT};
    const char *path = make("image", plain);

    newer.o.size = sizeof newer;
    check_opens(path, &newer.o);
    newer.more = 1;
    check_refused(path, &newer.o, -EINVAL, "a field that this version does not know");
}

Test(open, info_tells_what_was_chosen)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_image *image;

    o.shards = 3;
    o.backend = SCOW_BACKEND_THREADS;
    o.io_mode = SCOW_IO_BUFFERED;
    o.slice_bytes = 1024;
    o.cache_bytes = 1; /* less than a slice each: one each */
    cr_assert_eq(scow_open(make("image", plain), &o, &image), 0);
    cr_assert_eq(scow_get_info(image, &info), 0);
    cr_assert_eq(info.shards, 3);
    cr_assert_str_eq(info.backend, "threads");
    cr_assert_null(info.backend_why);
    cr_assert_eq(info.direct, 0);
    cr_assert_eq(info.io_align, 1);
    cr_assert_eq(info.slice_bytes, 1024);
    cr_assert_eq(info.cache_slices, 3);
    cr_assert_eq(info.virtual_size, MIB);
    cr_assert_eq(scow_size(image), MIB);
    scow_close(image);
}

Test(open, a_size_that_is_no_whole_sector)
{
    struct image_spec spec = plain;

    spec.virtual_bytes = MIB + 100;
    struct scow_image *image;

    cr_assert_eq(scow_open(make("image", spec), NULL, &image), 0, "%s", scow_error());
    cr_assert_eq(scow_size(image), MIB, "rounded down, as QEMU does");
    scow_close(image);
}

Test(open, encrypted)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct image_spec spec = plain;

    spec.crypt_method = 1;
    const char *path = make("image", spec);
    check_refused(path, NULL, -ENOTSUP, "encrypted (AES)");
    o.flags = SCOW_OPEN_NO_IO;
    check_opens(path, &o);
}

Test(open, no_io)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;
    struct scow_extent e = {.size = sizeof e};
    struct image_spec spec = plain;
    struct scow_image *image;
    struct scow_queue *queue = NULL;
    char buf[512];

    spec.backing_name = "never opened";
    spec.backing_format = "qcow2";
    o.flags = SCOW_OPEN_NO_IO;
    cr_assert_eq(scow_open(make("image", spec), &o, &image), 0, "%s", scow_error());
    cr_assert_eq(scow_queue_create(image, NULL, &queue), -EPERM);
    cr_assert_null(queue);
    cr_assert_eq(scow_pread(image, buf, sizeof buf, 0), -EPERM);
    cr_assert_eq(scow_get_extent(image, 0, 512, 0, &e), -EPERM);
    cr_assert(strstr(scow_error(), "SCOW_OPEN_NO_IO"), "%s", scow_error());
    scow_close(image);
}

/* ---- by descriptor ---- */

/* Or its file system could not be unmounted yet. */
Test(open, a_closed_image_is_let_go_of)
{
    const char *const path = make("image", plain);
    struct scow_image *image;
    struct scow_queue *q;
    char buffer[512];
    int fd;

    for (int i = 0; i < 20; i++) {
        cr_assert_eq(scow_open(path, NULL, &image), 0, "%s", scow_error());
        cr_assert_eq(scow_queue_create(image, NULL, &q), 0, "%s", scow_error());
        cr_assert_eq(rig_read(q, 512, buffer, 512), 0);
        cr_assert_eq(scow_pread(image, buffer, 512, 0), 0);
        scow_queue_destroy(q);
        cr_assert_eq(scow_close(image), 0);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        cr_assert(fcntl(fd, F_SETLEASE, F_WRLCK) == 0 || errno != EAGAIN, "the file is still open");
        close(fd);
    }
}

Test(open_fd, works_and_leaves_the_descriptor)
{
    const char *path = make("image", plain);
    const int fd = open(path, O_RDONLY | O_CLOEXEC), before = open_descriptors();
    struct scow_image *image = NULL;
    char buf[512], expected[512];

    stamp_fill(expected, sizeof expected, 0, 1);
    cr_assert_eq(scow_open_fd(fd, NULL, NULL, &image), 0, "%s", scow_error());
    cr_assert_eq(scow_pread(image, buf, sizeof buf, 0), 0, "%s", scow_error());
    cr_assert_eq(memcmp(buf, expected, sizeof buf), 0);
    scow_close(image);
    cr_assert_eq(open_descriptors(), before);
    cr_assert_geq(fcntl(fd, F_GETFD), 0, "it is still the caller's");
    close(fd);
    image = NULL;
    cr_assert_eq(scow_open_fd(-1, NULL, NULL, &image), -EBADF);
    cr_assert_eq(scow_open_fd(fd, "closed", NULL, &image), -EBADF, "%s", scow_error());
    cr_assert_null(image);
}

Test(open_fd, relative_names_need_a_name_path)
{
    struct scow_open_options o = rig_options();
    struct image_spec spec = plain;
    struct scow_image *image;

    make("base", plain);
    spec.backing_name = "base";
    spec.backing_format = "qcow2";
    const int fd = open(make("image", spec), O_RDONLY | O_CLOEXEC);
    cr_assert_eq(scow_open_fd(fd, scratch("image"), &o, &image), 0, "%s", scow_error());
    scow_close(image);
    close(fd);
}

/* ---- children ---- */

static const char *overlay(const char *name, const char *backing, const char *format)
{
    struct image_spec spec = plain;

    spec.backing_name = backing;
    spec.backing_format = format;
    return make(name, spec);
}

Test(children, are_denied_by_default)
{
    make("base", plain);
    check_refused(overlay("image", "base", "qcow2"), NULL, -EPERM,
                  "backing file \"base\": opening it was not allowed");
}

Test(children, names_cannot_drive_a_terminal)
{
    check_refused(overlay("image", "\033[2Jx", "qcow2"), NULL, -EPERM, "backing file \"\\x1b[2Jx\":");
}

struct asked {
    struct scow_child seen[4];
    char name[4][300], path[4][600], parent[4][600];
    int count, answer_at, answer;
    enum scow_format format; /* to set, unless NONE */
    int fd;
};

static int ask(void *ctx, struct scow_child *child)
{
    struct asked *a = ctx;
    const int i = a->count++;

    if (i < 4) {
        a->seen[i] = *child;
        snprintf(a->name[i], sizeof a->name[i], "%s", child->name);
        snprintf(a->path[i], sizeof a->path[i], "%s", child->path);
        snprintf(a->parent[i], sizeof a->parent[i], "%s", child->parent_path ? child->parent_path : "(none)");
    }
    if (a->format)
        child->format = a->format;
    if (a->fd > 0)
        child->fd = a->fd;
    return i + 1 == a->answer_at ? a->answer : 0;
}

static struct scow_open_options asking(struct asked *a)
{
    struct scow_open_options o = SCOW_OPEN_OPTIONS_INIT;

    o.open_child = ask;
    o.open_child_ctx = a;
    return o;
}

Test(children, what_the_callback_is_asked)
{
    struct asked a = {0};
    struct scow_open_options o = asking(&a);
    char absolute[600];

    make("raw", (struct image_spec){.raw = true, .virtual_bytes = 4096, .cluster_bits = 16});
    snprintf(absolute, sizeof absolute, "%s", scratch("raw"));
    overlay("middle", absolute, "raw");
    check_opens(overlay("image", "middle", "qcow2"), &o);
    cr_assert_eq(a.count, 2);
    for (uint32_t i = 0; i < 2; i++) {
        cr_assert_eq(a.seen[i].size, sizeof(struct scow_child));
        cr_assert_eq(a.seen[i].role, SCOW_CHILD_BACKING);
        cr_assert_eq(a.seen[i].depth, i + 1);
        cr_assert_eq(a.seen[i].fd, -1);
    }
    cr_assert_eq(a.seen[0].format, SCOW_FORMAT_QCOW2);
    cr_assert_eq(a.seen[1].format, SCOW_FORMAT_RAW);
    cr_assert_str_eq(a.name[0], "middle");
    cr_assert_str_eq(a.path[0], scratch("middle"), "relative to the image, not to the working directory");
    cr_assert_str_eq(a.parent[0], scratch("image"));
    cr_assert_str_eq(a.path[1], absolute);
    cr_assert_str_eq(a.parent[1], scratch("middle"));
}

Test(children, the_callback_refuses)
{
    struct asked a = {.answer_at = 1, .answer = -EACCES};
    struct scow_open_options o = asking(&a);

    make("base", plain);
    check_refused(overlay("image", "base", "qcow2"), &o, -EACCES, "opening it was not allowed");
    a = (struct asked){.answer_at = 2, .answer = -EPERM};
    check_refused(overlay("top", "image", "qcow2"), &o, -EPERM, "backing file \"base\"");
    cr_assert_eq(a.count, 2);
}

Test(children, formats_are_not_guessed)
{
    struct asked a = {0};
    struct scow_open_options o = asking(&a);

    make("base", plain);
    check_refused(overlay("image", "base", NULL), &o, -EINVAL, "formats are not guessed");
    cr_assert_eq(a.seen[0].format, SCOW_FORMAT_NONE);
    check_refused(overlay("image", "base", "vmdk"), &o, -EINVAL, "formats are not guessed");
    a.format = SCOW_FORMAT_QCOW2; /* the embedder knows */
    check_opens(overlay("image", "base", NULL), &o);
    struct scow_open_options any = rig_options();
    check_refused(overlay("image", "base", NULL), &any, -EINVAL, "formats are not guessed");
}

Test(children, the_callback_gives_a_descriptor)
{
    struct asked a = {0};
    struct scow_open_options o = asking(&a);
    const int before = open_descriptors();

    make("elsewhere", plain);
    overlay("image", "does not exist", "qcow2");
    a.fd = open(scratch("elsewhere"), O_RDONLY | O_CLOEXEC);
    check_opens(scratch("image"), &o);
    cr_assert_eq(open_descriptors(), before, "the library owns it");
    a.fd = open(scratch("elsewhere"), O_RDONLY | O_CLOEXEC);
    a.format = (enum scow_format)7;
    struct scow_image *image;
    cr_assert_eq(scow_open(scratch("image"), &o, &image), -EINVAL);
    cr_assert_eq(open_descriptors(), before, "also when the open fails");
}

Test(children, missing_file)
{
    struct scow_open_options o = rig_options();

    check_refused(overlay("image", "gone", "qcow2"), &o, -ENOENT, "backing file: cannot open ");
}

Test(children, damaged_child_is_named)
{
    struct scow_open_options o = rig_options();

    make("base", (struct image_spec){.raw = true, .virtual_bytes = 70000, .cluster_bits = 16});
    check_refused(overlay("image", "base", "qcow2"), &o, -EINVAL, "/base: ");
}

Test(children, cycles)
{
    struct scow_open_options o = rig_options();

    check_refused(overlay("self", "self", "qcow2"), &o, -ELOOP, "in the chain already");
    overlay("b", "a", "qcow2");
    check_refused(overlay("a", "b", "qcow2"), &o, -ELOOP, "in the chain already");
    /* By another name. */
    cr_assert_eq(symlink(scratch("linked"), scratch("alias")), 0);
    check_refused(overlay("linked", "alias", "qcow2"), &o, -ELOOP, "in the chain already");
}

Test(children, depth_limit)
{
    struct scow_open_options o = rig_options();
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_image *image;
    char name[16], below[16];

    make("d0", plain);
    for (int i = 1; i <= 5; i++) {
        snprintf(name, sizeof name, "d%d", i);
        snprintf(below, sizeof below, "d%d", i - 1);
        overlay(name, below, "qcow2");
    }
    o.chain_depth_max = 4;
    check_refused(scratch("d5"), &o, -ELOOP, "longer than 4");
    o.chain_depth_max = 5;
    cr_assert_eq(scow_open(scratch("d5"), &o, &image), 0, "%s", scow_error());
    cr_assert_eq(scow_get_info(image, &info), 0);
    cr_assert_eq(info.chain_depth, 5);
    scow_close(image);
}

Test(children, relative_to_each_image_in_turn)
{
    struct scow_open_options o = rig_options();
    const char *folder = scratch("sub");

    cr_assert_eq(mkdir(folder, 0700), 0);
    make("sub/base", plain);
    overlay("sub/middle", "base", "qcow2"); /* sub/base, not base */
    check_opens(overlay("image", "sub/middle", "qcow2"), &o);
    unlink(scratch("sub/base"));
    unlink(scratch("sub/middle"));
    rmdir(folder);
}

Test(children, data_file)
{
    struct scow_open_options o = rig_options();
    struct asked a = {0};
    struct image_spec spec = plain;

    spec.data_file_name = "data";
    const char *path = make("image", spec);
    check_refused(path, NULL, -EPERM, "data file \"data\": opening it was not allowed");
    check_refused(path, &o, -ENOENT, "data file: cannot open ");
    make("data", (struct image_spec){.raw = true, .virtual_bytes = MIB, .cluster_bits = 16});
    check_opens(path, &o);
    struct scow_open_options asks = asking(&a);
    check_opens(path, &asks);
    cr_assert_eq(a.seen[0].role, SCOW_CHILD_DATA_FILE);
    cr_assert_eq(a.seen[0].format, SCOW_FORMAT_RAW);
    a.format = SCOW_FORMAT_QCOW2;
    check_refused(path, &asks, -EINVAL, "only the raw format");
    spec.data_file_name = "image"; /* itself */
    check_refused(make("image", spec), &o, -ELOOP, "in the chain already");
    spec.data_file_name = NULL;
    spec.data_file = true;
    check_refused(make("image", spec), &o, -EINVAL, "does not name it");
}

/* ---- locks ---- */

static int lock_byte(const char *path, off_t byte)
{
    struct flock fl = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    const int fd = open(path, O_RDWR | O_CLOEXEC);

    cr_assert_eq(fcntl(fd, F_OFD_SETLK, &fl), 0);
    return fd;
}

Test(locks, a_writer_elsewhere)
{
    struct scow_open_options o = rig_options();
    const char *path = make("image", plain);
    int fd = lock_byte(path, 101); /* somebody writes */

    check_refused(path, &o, -EAGAIN, "\"write\" lock");
    o.flags = SCOW_OPEN_NO_LOCK;
    check_opens(path, &o);
    close(fd);
    o.flags = 0;
    check_opens(path, &o);
    fd = lock_byte(path, 200); /* somebody forbids readers */
    check_refused(path, &o, -EAGAIN, "\"consistent read\" lock");
    close(fd);
}

Test(locks, of_a_backing_file)
{
    struct scow_open_options o = rig_options();
    const char *base = make("base", plain), *path = overlay("image", "base", "qcow2");
    const int fd = lock_byte(base, 103);

    check_refused(path, &o, -EAGAIN, "backing file: ");
    close(fd);
    check_opens(path, &o);
}

Test(locks, two_handles_of_one_process_share)
{
    struct scow_open_options o = rig_options();
    const char *path = make("image", plain);
    struct scow_image *a, *b;

    cr_assert_eq(scow_open(path, &o, &a), 0);
    cr_assert_eq(scow_open(path, &o, &b), 0, "%s", scow_error());
    scow_close(a);
    scow_close(b);
}

/* ---- names ---- */

static void check_name(const char *image, const char *name, const char *path)
{
    char buf[300] = "";

    cr_assert_eq(scow_resolve_name(image, name, buf, sizeof buf), 0);
    cr_assert_str_eq(buf, path);
}

Test(resolve_name, folders)
{
    char buf[9];

    check_name("/a/b/c.qcow2", "d", "/a/b/d");
    check_name("/a/b/c.qcow2", "x/../d", "/a/b/x/../d");
    check_name("/a/b/c.qcow2", "/d", "/d");
    check_name("c.qcow2", "d", "d");
    check_name("../c.qcow2", "d", "../d");
    check_name(NULL, "d", "d");
    check_name("/c.qcow2", "d", "/d");
    check_name("/a/c", "json:{}", "/a/json:{}");
    cr_assert_eq(scow_resolve_name("/a/b/c", "123", buf, sizeof buf), 0, "eight and a terminator");
    cr_assert_eq(scow_resolve_name("/a/b/c", "1234", buf, sizeof buf), -ENAMETOOLONG);
    cr_assert_eq(scow_resolve_name("/a/b/c", "1234", buf, 0), -ENAMETOOLONG);
}

/* ---- raw ---- */

Test(raw, sizes)
{
    struct scow_open_options o = rig_options();
    struct scow_info info = SCOW_INFO_INIT;
    struct scow_image *image;

    o.format = SCOW_FORMAT_RAW;
    cr_assert_eq(
        scow_open(make("raw", (struct image_spec){.raw = true, .virtual_bytes = 70001, .cluster_bits = 16}),
                  &o, &image),
        0);
    cr_assert_eq(scow_size(image), 70144, "whole sectors");
    cr_assert_eq(scow_get_info(image, &info), 0);
    cr_assert_eq(info.format, SCOW_FORMAT_RAW);
    cr_assert_eq(info.file_bytes, 70001);
    scow_close(image);
}
