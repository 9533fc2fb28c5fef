#!/bin/sh
# SPDX-License-Identifier: MIT
# soak.sh SIMULATE [HOURS]: fresh seeds on all cores until something fails or the time is over.
set -eu
simulate=$1
hours=${2:-1}
exec "$simulate" --seconds $((hours * 3600)) --jobs "$(nproc)" --quiet --qemu-every 5000
