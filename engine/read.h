/* SPDX-License-Identifier: MIT */
/* The life of a read, from its first lookup to its last transfer. */
#ifndef ENGINE_READ_H
#define ENGINE_READ_H

#include "engine/request.h"

struct scow_queue;

/* Walk on: resolve the next part and start it, until all are started, a shard is asked, or something runs
 * out. */
void read_walk(struct scow_queue *queue, struct request *request);

/* A shard has answered request->lookup. */
void read_answered(struct scow_queue *queue, struct request *request);

/* The backend is done with an I/O of this queue. */
void read_io_done(struct scow_queue *queue, struct io *io);

#endif
