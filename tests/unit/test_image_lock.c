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

static struct file *opened(const char *path)
{
    struct file *f;

    cr_assert_eq(file_open(path, FILE_BUFFERED, &f), 0, "%s", error_message());
    return f;
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

Test(image_lock, the_bytes_are_qemus)
{
    const char *path = make_file();
    struct file *a = opened(path);
    const int fd = open(path, O_RDWR | O_CLOEXEC);

    cr_assert_eq(image_lock(a, IMAGE_READ, IMAGE_WRITE | IMAGE_RESIZE), 0);
    for (int byte = 0; byte < 300; byte++) {
        struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
        const bool expected = byte == 100 || byte == 201 || byte == 203;

        cr_assert_eq(fcntl(fd, F_OFD_GETLK, &fl), 0);
        cr_assert_eq(fl.l_type != F_UNLCK, expected, "byte %d", byte);
    }
    close(fd);
    file_close(a);
}
