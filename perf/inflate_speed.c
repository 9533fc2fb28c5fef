/* SPDX-License-Identifier: MIT */
/*
 * Which library inflates raw deflate clusters fastest? Compresses FILE cluster by cluster as QEMU does (raw
 * deflate, 4 KiB window) and inflates it with libdeflate and with zlib, alternating in rounds.
 *
 *   inflate_speed FILE [CLUSTER_BYTES]
 */
#include <libdeflate.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zlib.h>

#define ROUNDS 5
#define FILE_BYTES_MAX (64u << 20)

struct cluster {
    uint8_t *data;
    size_t bytes;
};

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* 0 bytes: does not compress. */
static struct cluster deflate_cluster(const uint8_t *plain, size_t bytes)
{
    struct cluster c = {.data = malloc(bytes)};
    z_stream z = {0};

    if (!c.data || deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        exit(1);
    z.next_in = (uint8_t *)plain;
    z.avail_in = (unsigned)bytes;
    z.next_out = c.data;
    z.avail_out = (unsigned)bytes;
    if (deflate(&z, Z_FINISH) == Z_STREAM_END)
        c.bytes = bytes - z.avail_out;
    deflateEnd(&z);
    return c;
}

static int inflate_zlib(const struct cluster *c, uint8_t *out, size_t bytes)
{
    z_stream z = {
        .next_in = c->data, .avail_in = (unsigned)c->bytes, .next_out = out, .avail_out = (unsigned)bytes};
    int ret;

    if (inflateInit2(&z, -12) != Z_OK)
        return -1;
    ret = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    return ret == Z_STREAM_END && !z.avail_out ? 0 : -1;
}

int main(int argc, char **argv)
{
    const size_t cluster_bytes = argc > 2 ? strtoul(argv[2], NULL, 0) : 65536;
    struct libdeflate_decompressor *d = libdeflate_alloc_decompressor();
    uint8_t *file = malloc(FILE_BYTES_MAX), *out = malloc(cluster_bytes);
    FILE *in = argc > 1 ? fopen(argv[1], "rb") : NULL;
    double best[2] = {1e9, 1e9};
    size_t bytes, count, plain = 0, packed = 0;
    struct cluster *clusters;

    if (!in || !d || !file || !out || !cluster_bytes) {
        fprintf(stderr, "usage: inflate_speed FILE [CLUSTER_BYTES]\n");
        return 2;
    }
    bytes = fread(file, 1, FILE_BYTES_MAX, in);
    fclose(in);
    count = bytes / cluster_bytes;
    clusters = calloc(count + 1, sizeof *clusters);
    for (size_t i = 0; clusters && i < count; i++) {
        clusters[i] = deflate_cluster(file + i * cluster_bytes, cluster_bytes);
        plain += clusters[i].bytes ? cluster_bytes : 0;
        packed += clusters[i].bytes;
    }
    for (int round = 0; round < 2 * ROUNDS; round++) {
        const double start = now();

        for (size_t i = 0; i < count; i++) {
            const struct cluster *c = &clusters[i];
            int failed = 0;

            if (c->bytes && round % 2 == 0)
                failed = libdeflate_deflate_decompress(d, c->data, c->bytes, out, cluster_bytes, NULL) != 0;
            else if (c->bytes)
                failed = inflate_zlib(c, out, cluster_bytes);
            if (failed || (c->bytes && memcmp(out, file + i * cluster_bytes, cluster_bytes) != 0)) {
                fprintf(stderr, "inflate_speed: cluster %zu differs\n", i);
                return 1;
            }
        }
        const double s = now() - start;
        best[round % 2] = s < best[round % 2] ? s : best[round % 2];
    }
    printf("%zu clusters of %zu bytes, compressed to %.1f %%\n", count, cluster_bytes,
           100.0 * (double)packed / (double)(plain ? plain : 1));
    printf("libdeflate %.0f MB/s, zlib %.0f MB/s: %.2f times as fast\n", (double)plain / best[0] / 1e6,
           (double)plain / best[1] / 1e6, best[1] / best[0]);
    return 0;
}
