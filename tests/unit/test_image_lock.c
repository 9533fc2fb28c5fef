/* SPDX-License-Identifier: MIT */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "io/image_lock.h"
#include "tests/unit/scratch.h"

static const char *make_file(void)
{
    const char *path = scratch("file");
    FILE *f = fopen(path, "we");

    cr_assert_eq(fwrite("content", 1, 7, f), 7);
    fclose(f);
    return path;
}

#define READERS_DENIAL IMAGE_WRITE | IMAGE_RESIZE
#define WRITER (IMAGE_READ | IMAGE_WRITE | IMAGE_RESIZE)

static struct file *opened_with(const char *path, uint32_t flags)
{
    struct file *f;

    cr_assert_eq(file_open(path, FILE_BUFFERED, flags, &f), 0, "%s", error_message());
    return f;
}

static struct file *opened(const char *path)
{
    return opened_with(path, 0);
}

Test(image_lock, readers_share)
{
    const char *path = make_file();
    struct file *a = opened(path), *b = opened(path);

    cr_assert_eq(image_lock(a, IMAGE_READ, READERS_DENIAL), 0);
    cr_assert_eq(image_lock(b, IMAGE_READ, READERS_DENIAL), 0, "%s", error_message());
    file_close(a);
    file_close(b);
}

Test(image_lock, a_writer_excludes_readers_and_the_reverse)
{
    const char *path = make_file();
    struct file *a = opened(path), *b = opened(path);

    cr_assert_eq(image_lock(a, WRITER, IMAGE_WRITE | IMAGE_RESIZE), 0);
    cr_assert_eq(image_lock(b, IMAGE_READ, IMAGE_WRITE | IMAGE_RESIZE), -EAGAIN);
    cr_assert(strstr(error_message(), "/file: failed to get \"write\" lock"), "%s", error_message());
    file_close(a); /* the locks go with it */
    cr_assert_eq(image_lock(b, IMAGE_READ, IMAGE_WRITE | IMAGE_RESIZE), 0, "%s", error_message());
    a = opened(path);
    cr_assert_eq(image_lock(a, WRITER, 0), -EAGAIN);
    file_close(a);
    file_close(b);
}

Test(image_lock, a_conflict_leaves_nothing_locked)
{
    const char *path = make_file();
    struct file *a = opened(path), *b = opened(path), *c = opened(path);

    cr_assert_eq(image_lock(a, IMAGE_READ, IMAGE_RESIZE), 0);
    cr_assert_eq(image_lock(b, IMAGE_READ | IMAGE_RESIZE, IMAGE_WRITE), -EAGAIN);
    cr_assert(strstr(error_message(), "\"resize\""), "%s", error_message());
    file_close(a);
    /* Had b kept its denial of writing, this would conflict. */
    cr_assert_eq(image_lock(c, WRITER, 0), 0, "%s", error_message());
    file_close(b);
    file_close(c);
}

/* Whether another description than fd's holds the byte. */
static bool is_held(int fd, int byte)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    cr_assert_eq(fcntl(fd, F_OFD_GETLK, &fl), 0);
    return fl.l_type != F_UNLCK;
}

/* bytes ends with 0. */
static void expect_held(int fd, const int *bytes)
{
    for (int byte = 1; byte < 300; byte++) {
        bool expected = false;

        for (const int *b = bytes; *b; b++)
            expected |= *b == byte;
        cr_assert_eq(is_held(fd, byte), expected, "byte %d", byte);
    }
    cr_assert_not(is_held(fd, 0), "byte 0 is another program's");
}

Test(image_lock, the_bytes_are_qemus)
{
    const char *path = make_file();
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    struct file *reader = opened(path), *writer = opened_with(path, FILE_WRITE),
                *raw_writer = opened_with(path, FILE_WRITE), *data_writer = opened_with(path, FILE_WRITE);

    cr_assert_eq(image_lock(reader, IMAGE_READ, READERS_DENIAL), 0);
    expect_held(fd, (const int[]){100, 201, 203, 0});
    file_close(reader);
    cr_assert_eq(image_lock(writer, WRITER, IMAGE_WRITE | IMAGE_RESIZE), 0);
    expect_held(fd, (const int[]){100, 101, 103, 201, 203, 0});
    file_close(writer);
    cr_assert_eq(image_lock(raw_writer, IMAGE_READ | IMAGE_WRITE, 0), 0);
    expect_held(fd, (const int[]){100, 101, 0});
    file_close(raw_writer);
    cr_assert_eq(image_lock(data_writer, WRITER, IMAGE_RESIZE), 0);
    expect_held(fd, (const int[]){100, 101, 103, 203, 0});
    file_close(data_writer);
    expect_held(fd, (const int[]){0});
    close(fd);
}

static void lock_raw(int fd, int byte, short type)
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    cr_assert_eq(fcntl(fd, F_OFD_SETLK, &fl), 0);
}

/* A second description with one lock at a time: which ones keep a writer out, and that it then holds none. */
Test(image_lock, what_keeps_a_writer_out)
{
    const char *path = make_file();
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    const int conflicts[] = {101, 103, 200, 201, 203};
    const char *const names[] = {"\"write\"", "\"resize\"", "\"consistent read\"", "\"write\"", "\"resize\""};
    const int others[] = {0, 100, 102, 202, 110, 300};

    for (size_t i = 0; i < sizeof conflicts / sizeof *conflicts; i++) {
        struct file *writer = opened_with(path, FILE_WRITE);

        lock_raw(fd, conflicts[i], F_RDLCK);
        cr_assert_eq(image_lock(writer, WRITER, IMAGE_WRITE | IMAGE_RESIZE), -EAGAIN, "byte %d",
                     conflicts[i]);
        cr_assert(strstr(error_message(), names[i]), "byte %d: %s", conflicts[i], error_message());
        expect_held(fd, (const int[]){0});
        lock_raw(fd, conflicts[i], F_UNLCK);
        cr_assert_eq(image_lock(writer, WRITER, IMAGE_WRITE | IMAGE_RESIZE), 0, "%s", error_message());
        file_close(writer);
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        struct file *writer = opened_with(path, FILE_WRITE);

        lock_raw(fd, others[i], F_RDLCK);
        cr_assert_eq(image_lock(writer, WRITER, IMAGE_WRITE | IMAGE_RESIZE), 0, "byte %d: %s", others[i],
                     error_message());
        file_close(writer);
        lock_raw(fd, others[i], F_UNLCK);
    }
    close(fd);
}

Test(image_lock, two_writers_exclude_each_other)
{
    const char *path = make_file();
    struct file *a = opened_with(path, FILE_WRITE), *b = opened_with(path, FILE_WRITE);

    cr_assert_eq(image_lock(a, WRITER, IMAGE_WRITE | IMAGE_RESIZE), 0);
    cr_assert_eq(image_lock(b, WRITER, IMAGE_WRITE | IMAGE_RESIZE), -EAGAIN);
    image_unlock(a);
    cr_assert_eq(image_lock(b, WRITER, IMAGE_WRITE | IMAGE_RESIZE), 0, "%s", error_message());
    cr_assert_eq(image_lock(a, WRITER, IMAGE_WRITE | IMAGE_RESIZE), -EAGAIN);
    file_close(a);
    file_close(b);
}
