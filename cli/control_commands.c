/* SPDX-License-Identifier: MIT */
#include "cli/control_commands.h"

#include <inttypes.h>
#include <string.h>

#include "cli/control_socket.h"
#include "cli/control_stats.h"
#include "cli/json.h"
#include "cli/sectors.h"

static json_t *stats(struct control_disk *disk, json_t *request)
{
    const char *name;
    json_error_t why;

    if (json_unpack_ex(request, &why, JSON_STRICT, "{s:s}", "command", &name) < 0)
        return control_error("stats: %s", why.text);
    return control_stats(disk);
}

/* Growing alone: what lies beyond a smaller size may be in use by the guest at this moment. Requests go on
 * meanwhile. */
static json_t *resize(struct control_disk *disk, json_t *request)
{
    const uint64_t old_bytes = scow_size(disk->image);
    const char *name;
    json_error_t why;
    json_int_t bytes;
    json_t *answer;

    if (json_unpack_ex(request, &why, JSON_STRICT, "{s:s, s:I}", "command", &name, "size", &bytes) < 0)
        return control_error("resize: %s", why.text);
    if (bytes <= 0 || bytes % SECTOR_BYTES)
        return control_error("resize: %" JSON_INTEGER_FORMAT " bytes are not a multiple of 512 above 0",
                             bytes);
    if ((uint64_t)bytes < old_bytes)
        return control_error("resize: the disk has %" PRIu64 " bytes; while it is served it can only grow",
                             old_bytes);
    if (scow_resize(disk->image, (uint64_t)bytes, 0) < 0)
        return control_error("%s", scow_error());
    vhost_user_blk_resized(disk->server);
    answer = json_object();
    json_put(answer, "virtual-size", json_count(scow_size(disk->image)));
    return answer;
}

static json_t *carry_out(struct control_disk *disk, json_t *request)
{
    const char *const name = json_string_value(json_object_get(request, "command"));

    if (!name)
        return control_error("expecting an object with a \"command\"");
    if (!strcmp(name, "stats"))
        return stats(disk, request);
    if (!strcmp(name, "resize"))
        return resize(disk, request);
    return control_error("there is no command \"%s\"", name);
}

json_t *control_command(void *disk, const char *line, size_t bytes)
{
    json_error_t why;
    json_t *const request = json_loadb(line, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    json_t *answer;

    if (!request)
        return control_error("no JSON: %s", why.text);
    answer = carry_out(disk, request);
    json_decref(request);
    return answer;
}
