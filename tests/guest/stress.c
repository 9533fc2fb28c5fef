/* SPDX-License-Identifier: MIT */
/*
 * stress: threads that write stamped blocks side by side to one disk or file, and tell whether what they read
 * is right. It runs in a guest, statically linked; on the host it verifies what the guest left.
 *
 * Everything is drawn from the seed, a round and a thread's number, so the state after N rounds is known
 * without being stored: a verification goes through the same rounds without I/O, then reads. Rounds end with
 * all threads waiting for each other and a sync.
 *
 * A 4 KiB block has one owner, and only its owner touches it. The disk has three zones, in which neighbouring
 * owners have one block, 8 and 64 in turn: so they share clusters in the first two, and have whole clusters,
 * which can be discarded, in the third. Every sector is filled from its offset, version and owner.
 *
 * Discarded blocks may read as zeros or as before, unless --discard-zeroes says that the server zeroes.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define SECTOR 512u
#define WORDS (SECTOR / 8)
#define RUN_MAX 64u                      /* blocks in one request; the units of the third zone */
#define STRIDE (32u << 20)               /* between the writes of a wide stride */
#define HOT_BLOCKS ((16u << 20) / BLOCK) /* of each zone: most requests go there, so that they meet */
#define ZONES 3u
#define THREADS_MAX 64u

/* What a block may hold: zeros, or the stamps of versions from floor to last. */
struct block {
    uint32_t floor;
    uint32_t last;
    bool may_be_zeros;
    bool may_be_data;
};

static struct {
    const char *path;
    uint64_t offset, size_bytes, seed;
    uint32_t threads, rounds, first, ops, seconds;
    bool verify, partial, full, disk, discard_zeroes, no_discards;
} opt = {.threads = 8, .rounds = 10, .ops = 200};

static int fd;
static bool is_device;
static uint64_t block_count;
static struct block *blocks;
static pthread_barrier_t barrier;
static time_t deadline; /* no round begins after it; 0: none */
static uint64_t done_count[8];

struct worker {
    pthread_t thread;
    uint32_t number;
    uint64_t random;
    bool dry; /* only the model changes */
    uint8_t *buf;
};

enum kind { WRITE_ONE, WRITE_RUN, STRIDES, DISCARD, ZEROES, READ, SYNC };

/* ---- stamps ---- */

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t below(struct worker *w, uint64_t limit)
{
    w->random += 0x9e3779b97f4a7c15ull;
    return mix(w->random) % limit;
}

static uint32_t zone_of(uint64_t block)
{
    return (uint32_t)(block * ZONES / block_count);
}

static uint64_t unit_of(uint64_t block)
{
    static const uint64_t units[ZONES] = {1, 8, RUN_MAX};

    return units[zone_of(block)];
}

static uint32_t owner_of(uint64_t block)
{
    return (uint32_t)(block / unit_of(block) % opt.threads);
}

/* Four words that can be read by a person, then words that depend on all of them. */
static void stamp_sector(uint64_t *to, uint64_t off, uint32_t version, uint32_t owner)
{
    const uint64_t key = mix(opt.seed ^ mix(off ^ ((uint64_t)version << 40)));

    to[0] = opt.seed;
    to[1] = off;
    to[2] = version;
    to[3] = owner;
    for (uint32_t i = 4; i < WORDS; i++)
        to[i] = key * (2 * i + 1);
}

static void stamp_blocks(uint8_t *buf, uint64_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count * (BLOCK / SECTOR); i++) {
        const uint64_t block = first + i / (BLOCK / SECTOR);

        stamp_sector((uint64_t *)(void *)(buf + (size_t)i * SECTOR), first * BLOCK + (uint64_t)i * SECTOR,
                     blocks[block].last, owner_of(block));
    }
}

static _Noreturn void wrong(uint64_t off, const uint64_t *got, const struct block *b)
{
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;

    pthread_mutex_lock(&once); /* and never unlocked: the first one ends the program */
    printf("WRONG: %s, sector at byte %" PRIu64 " (disk byte %" PRIu64 "), owner %u\n", opt.path, off,
           opt.offset + off, owner_of(off / BLOCK));
    printf("  may be:%s", b->may_be_zeros ? " zeros" : "");
    if (b->may_be_data)
        printf(" versions %u to %u", b->floor, b->last);
    printf("\n  found: ");
    for (uint32_t i = 0; i < 6; i++)
        printf("%016" PRIx64 " ", got[i]);
    if (got[0] == opt.seed)
        printf("\n  a stamp of byte %" PRIu64 ", version %" PRIu64 ", owner %" PRIu64, got[1], got[2],
               got[3]);
    printf("\n  seed %" PRIu64 "\n", opt.seed);
    fflush(stdout);
    _exit(1);
}

static bool is_zero(const uint64_t *sector)
{
    uint64_t all = 0;

    for (uint32_t i = 0; i < WORDS; i++)
        all |= sector[i];
    return !all;
}

static void check_blocks(const uint8_t *buf, uint64_t first, uint32_t count)
{
    uint64_t want[WORDS];

    for (uint32_t i = 0; i < count * (BLOCK / SECTOR); i++) {
        const uint64_t off = first * BLOCK + (uint64_t)i * SECTOR;
        const uint64_t *got = (const uint64_t *)(const void *)(buf + (size_t)i * SECTOR);
        const struct block *b = &blocks[off / BLOCK];

        if (b->may_be_zeros && is_zero(got))
            continue;
        if (!b->may_be_data || got[2] < b->floor || got[2] > b->last)
            wrong(off, got, b);
        stamp_sector(want, off, (uint32_t)got[2], owner_of(off / BLOCK));
        if (memcmp(got, want, SECTOR) != 0)
            wrong(off, got, b);
    }
}

/* ---- the model ---- */

/* In a round that may not have ended, everything from before stays possible. */
static void model_write(uint64_t first, uint32_t count, bool in_doubt)
{
    for (uint64_t i = first; i < first + count; i++) {
        struct block *b = &blocks[i];

        b->last++;
        if (!in_doubt || !b->may_be_data)
            b->floor = b->last;
        if (!in_doubt)
            b->may_be_zeros = false;
        b->may_be_data = true;
    }
}

static void model_zeros(uint64_t first, uint32_t count, bool surely)
{
    for (uint64_t i = first; i < first + count; i++) {
        blocks[i].may_be_zeros = true;
        if (surely)
            blocks[i].may_be_data = false;
    }
}

/* ---- requests ---- */

static _Noreturn void die(const char *what, uint64_t off, uint64_t len)
{
    printf("FAILED: %s: %s of %" PRIu64 "+%" PRIu64 ": %s\n", opt.path, what, off, len, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static void do_write(const uint8_t *buf, uint64_t first, uint32_t count)
{
    const size_t len = (size_t)count * BLOCK;

    if (pwrite(fd, buf, len, (off_t)(opt.offset + first * BLOCK)) != (ssize_t)len)
        die("write", first * BLOCK, len);
}

static void do_read(uint8_t *buf, uint64_t first, uint32_t count)
{
    const size_t len = (size_t)count * BLOCK;

    if (pread(fd, buf, len, (off_t)(opt.offset + first * BLOCK)) != (ssize_t)len)
        die("read", first * BLOCK, len);
}

static void do_clear(uint64_t first, uint32_t count, bool discard)
{
    uint64_t range[2] = {opt.offset + first * BLOCK, (uint64_t)count * BLOCK};
    int r;

    if (is_device)
        r = ioctl(fd, discard ? BLKDISCARD : BLKZEROOUT, range);
    else
        r = fallocate(fd, (discard ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE,
                      (off_t)range[0], (off_t)range[1]);
    if (r < 0)
        die(discard ? "discard" : "write zeroes", range[0], range[1]);
}

static void do_sync(void)
{
    if (fsync(fd) < 0)
        die("fsync", 0, 0);
}

/* ---- what to do ---- */

/* The first block at or behind near that belongs to the worker, and how many follow in its unit; 0: none. */
static uint32_t owned_near(const struct worker *w, uint64_t near, uint64_t *ret_first)
{
    const uint64_t unit = unit_of(near);
    const uint64_t ahead = (w->number + opt.threads - near / unit % opt.threads) % opt.threads;
    const uint64_t first = near + ahead * unit;
    uint64_t end = (first / unit + 1) * unit;

    if (end > block_count)
        end = block_count;
    if (first >= end || zone_of(first) != zone_of(near) || zone_of(end - 1) != zone_of(near))
        return 0;
    *ret_first = first;
    return (uint32_t)(end - first);
}

static uint32_t pick(struct worker *w, uint64_t *ret_first)
{
    for (;;) {
        const uint64_t zone_blocks = block_count / ZONES;
        const uint64_t hot = zone_blocks < HOT_BLOCKS ? zone_blocks : HOT_BLOCKS;
        const uint64_t zone = below(w, ZONES) * zone_blocks;
        const uint64_t near = zone + (below(w, 8) ? below(w, hot) : below(w, zone_blocks));
        const uint32_t room = owned_near(w, near, ret_first);

        if (room)
            return room;
    }
}

static void write_here(struct worker *w, uint64_t first, uint32_t count, bool in_doubt)
{
    model_write(first, count, in_doubt);
    if (w->dry)
        return;
    stamp_blocks(w->buf, first, count);
    do_write(w->buf, first, count);
}

/* One block in every 32 MiB: each needs a mapping of its own. */
static void strides(struct worker *w, bool in_doubt)
{
    const uint64_t step = STRIDE / BLOCK;

    for (uint64_t near = below(w, step); near < block_count; near += step) {
        uint64_t first;

        if (owned_near(w, near, &first))
            write_here(w, first, 1, in_doubt);
    }
}

static void clear_here(struct worker *w, uint64_t first, uint32_t count, bool discard, bool in_doubt)
{
    /* A hole punched into a file reads as zeros; what a disk does is up to it. */
    const bool zeroes = !discard || opt.discard_zeroes || !(is_device || opt.disk);

    model_zeros(first, count, zeroes && !in_doubt);
    if (!w->dry)
        do_clear(first, count, discard);
}

static enum kind draw(struct worker *w)
{
    static const enum kind kinds[32] = {
        [0 ... 11] = WRITE_ONE, [12 ... 17] = WRITE_RUN, [18 ... 20] = DISCARD,
        [21 ... 23] = ZEROES,   [24 ... 29] = READ,      [30 ... 31] = SYNC,
    };
    const enum kind kind = below(w, 64) ? kinds[below(w, 32)] : STRIDES;

    return kind == DISCARD && opt.no_discards ? ZEROES : kind;
}

static void one_op(struct worker *w, bool in_doubt)
{
    const enum kind kind = draw(w);
    uint64_t first;
    const uint32_t room = pick(w, &first);
    /* Whole units often: only whole clusters are discarded. */
    const uint32_t count = below(w, 2) ? room : (uint32_t)(1 + below(w, room));
    const uint32_t syncs = below(w, 8) ? 1 : (uint32_t)(2 + below(w, 14));

    if (!w->dry)
        __atomic_fetch_add(&done_count[kind], 1, __ATOMIC_RELAXED);
    switch (kind) {
    case WRITE_ONE:
        return write_here(w, first, 1, in_doubt);
    case WRITE_RUN:
        return write_here(w, first, count, in_doubt);
    case STRIDES:
        return strides(w, in_doubt);
    case DISCARD:
    case ZEROES:
        return clear_here(w, first, count, kind == DISCARD, in_doubt);
    case READ:
        if (w->dry)
            return;
        do_read(w->buf, first, count);
        return check_blocks(w->buf, first, count);
    case SYNC:
        for (uint32_t i = 0; i < syncs && !w->dry; i++)
            do_sync();
    }
}

/* A round of one worker. What it does does not depend on the rounds before. */
static void one_round(struct worker *w, uint32_t round, bool dry, bool in_doubt)
{
    w->random = mix(opt.seed ^ mix(((uint64_t)round << 32) | w->number));
    w->dry = dry;
    for (uint32_t i = 0; i < opt.ops; i++)
        one_op(w, in_doubt);
}

/* Reads the worker's share of the disk. Of what nobody touched an eighth, unless all is asked for. */
static void verify_share(struct worker *w)
{
    w->random = mix(opt.seed ^ w->number);
    for (uint64_t first = (uint64_t)w->number * RUN_MAX; first < block_count;
         first += RUN_MAX * opt.threads) {
        const uint64_t rest = block_count - first;
        const uint32_t count = rest < RUN_MAX ? (uint32_t)rest : RUN_MAX;
        bool touched = opt.full || below(w, 8) == 0;

        for (uint32_t i = 0; i < count && !touched; i++)
            touched = blocks[first + i].last || blocks[first + i].may_be_data;
        if (!touched)
            continue;
        do_read(w->buf, first, count);
        check_blocks(w->buf, first, count);
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;
    const uint32_t replayed = opt.verify ? opt.rounds : opt.first;

    for (uint32_t round = 0; round < replayed; round++)
        one_round(w, round, true, false);
    for (uint32_t round = replayed; !opt.verify && round < opt.rounds; round++) {
        one_round(w, round, false, false);
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
            do_sync();
            printf("stress: round %u of %u done\n", round + 1, opt.rounds);
            fflush(stdout);
            if (deadline && time(NULL) >= deadline)
                opt.rounds = round + 1;
        }
        pthread_barrier_wait(&barrier);
    }
    if (opt.verify && opt.partial)
        one_round(w, opt.rounds, true, true);
    pthread_barrier_wait(&barrier); /* a share is not what one worker owns */
    verify_share(w);
    return NULL;
}

/* ---- beginning and end ---- */

static const char usage[] =
    "stress run|verify [OPTIONS] DISK_OR_FILE\n"
    "  --seed N --threads N (8) --ops N (200 per round and thread) --offset BYTES --size BYTES\n"
    "  --rounds N (10)    how many in all; verify: how many were completed\n"
    "  --seconds N        run: begin no round after so long\n"
    "  --first N          run: the rounds before this one were done by an earlier run\n"
    "  --partial          verify: one more round may have been done in part\n"
    "  --full             read what nobody wrote too\n"
    "  --disk             verify: this file is the copy of a disk, whose discards may have done nothing\n"
    "  --discard-zeroes   discarded blocks have to read as zeros\n"
    "  --no-discards      write zeroes instead\n"
    "All options but --rounds, --seconds, --first, --partial, --full and --disk have to be the same in the runs and verifications of one disk.\n";

static uint64_t number(const char *text)
{
    char *end;
    const uint64_t n = strtoull(text, &end, 0);

    if (!*text || *end) {
        fprintf(stderr, "not a number: %s\n", text);
        exit(2);
    }
    return n;
}

static void parse(int argc, char **argv)
{
    static const struct option longs[] = {
        {"seed", 1, 0, 's'},        {"threads", 1, 0, 't'}, {"ops", 1, 0, 'o'},
        {"offset", 1, 0, 'O'},      {"size", 1, 0, 'S'},    {"rounds", 1, 0, 'r'},
        {"first", 1, 0, 'f'},       {"partial", 0, 0, 'p'}, {"full", 0, 0, 'F'},
        {"disk", 0, 0, 'D'},        {"help", 0, 0, 'h'},    {"discard-zeroes", 0, 0, 'z'},
        {"no-discards", 0, 0, 'n'}, {"seconds", 1, 0, 'e'}, {0},
    };
    int c;

    opt.seed = (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        const uint64_t n = optarg ? number(optarg) : 1;

        switch (c) {
        case 's':
            opt.seed = n;
            break;
        case 't':
            opt.threads = (uint32_t)n;
            break;
        case 'o':
            opt.ops = (uint32_t)n;
            break;
        case 'O':
            opt.offset = n;
            break;
        case 'S':
            opt.size_bytes = n;
            break;
        case 'r':
            opt.rounds = (uint32_t)n;
            break;
        case 'f':
            opt.first = (uint32_t)n;
            break;
        case 'e':
            opt.seconds = (uint32_t)n;
            break;
        case 'p':
            opt.partial = true;
            break;
        case 'D':
            opt.disk = true;
            break;
        case 'F':
            opt.full = true;
            break;
        case 'z':
            opt.discard_zeroes = true;
            break;
        case 'n':
            opt.no_discards = true;
            break;
        default:
            fputs(usage, c == 'h' ? stdout : stderr);
            exit(c == 'h' ? 0 : 2);
        }
    }
    if (argc - optind != 2 || !opt.threads || opt.threads > THREADS_MAX) {
        fputs(usage, stderr);
        exit(2);
    }
    opt.verify = strcmp(argv[optind], "verify") == 0;
    opt.path = argv[optind + 1];
}

static void open_target(void)
{
    const int flags = opt.verify ? O_RDONLY : O_RDWR | O_CREAT;
    struct stat st;
    uint64_t bytes;

    fd = open(opt.path, flags | O_DIRECT, 0644);
    if (fd < 0 && errno == EINVAL) /* a file system without direct I/O */
        fd = open(opt.path, flags, 0644);
    if (fd < 0 || fstat(fd, &st) < 0)
        die("open", 0, 0);
    is_device = S_ISBLK(st.st_mode);
    if (!is_device && !opt.verify && (uint64_t)st.st_size < opt.offset + opt.size_bytes &&
        ftruncate(fd, (off_t)(opt.offset + opt.size_bytes)) < 0)
        die("truncate", 0, opt.size_bytes);
    bytes = (uint64_t)lseek(fd, 0, SEEK_END);
    if (!opt.size_bytes)
        opt.size_bytes = bytes - opt.offset;
    block_count = opt.size_bytes / BLOCK;
    if (opt.offset + opt.size_bytes > bytes || block_count < ZONES * RUN_MAX * opt.threads * 2) {
        printf("%s: %" PRIu64 " bytes are not enough\n", opt.path, bytes);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct worker workers[THREADS_MAX];

    parse(argc, argv);
    open_target();
    printf("stress: %s %s, seed %" PRIu64 ", %u threads, %u rounds of %u\n", opt.verify ? "verify" : "run",
           opt.path, opt.seed, opt.threads, opt.rounds, opt.ops);
    fflush(stdout);
    blocks = calloc(block_count, sizeof *blocks);
    if (!blocks)
        die("memory", 0, block_count);
    for (uint64_t i = 0; i < block_count; i++)
        blocks[i].may_be_zeros = true;
    deadline = opt.seconds ? time(NULL) + opt.seconds : 0;
    pthread_barrier_init(&barrier, NULL, opt.threads);
    for (uint32_t i = 0; i < opt.threads; i++) {
        struct worker *w = &workers[i];

        w->number = i;
        w->buf = aligned_alloc(BLOCK, RUN_MAX * BLOCK);
        if (!w->buf || pthread_create(&w->thread, NULL, work, w) != 0)
            die("a thread", i, 0);
    }
    for (uint32_t i = 0; i < opt.threads; i++)
        pthread_join(workers[i].thread, NULL);
    printf("stress: good; %" PRIu64 " writes, %" PRIu64 " strides, %" PRIu64 " discards, %" PRIu64
           " zeroes, %" PRIu64 " reads, %" PRIu64 " syncs\n",
           done_count[WRITE_ONE] + done_count[WRITE_RUN], done_count[STRIDES], done_count[DISCARD],
           done_count[ZEROES], done_count[READ], done_count[SYNC]);
    return 0;
}
