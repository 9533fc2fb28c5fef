/* SPDX-License-Identifier: MIT */
/* A write-side request's walk on its queue's thread; see write.c. */
#ifndef ENGINE_WRITE_H
#define ENGINE_WRITE_H

#include "engine/request.h"

struct scow_queue;

/* Start, or go on. Whoever calls holds no reference to r afterwards: it may be complete. */
void write_walk(struct scow_queue *q, struct request *r);

/* The owner, or the allocator, has answered. */
void write_answered(struct scow_queue *q, struct request *r);

/* The file cannot punch or zero: the one part of a raw image's discard or write_zeroes. */
void write_unsupported(struct scow_queue *q, struct request *r);

/* A part is done. */
void write_part_done(struct scow_queue *q, struct request *r);

#endif
