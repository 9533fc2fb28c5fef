#!/bin/sh
# SPDX-License-Identifier: MIT
# negative.sh SIMULATE [RUNS]: switches each guard off in turn and says how many seeds the simulator needed to
# find a fault. A guard without which nothing fails is a failure of the simulator.
set -u
simulate=$1
runs=${2:-20000}
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cd "$folder" || exit 2
missed=0
printf '| guard | seeds needed | what was found |\n| --- | --- | --- |\n'
for guard in $("$simulate" --guards); do
    if "$simulate" --without "$guard" --seed 1 --runs "$runs" --quiet >found 2>&1; then
        printf '| %s | none of %s | |\n' "$guard" "$runs"
        missed=1
        continue
    fi
    seed=$(sed -n 's/^replay: simulate --seed \([0-9]*\).*/\1/p' found | head -1)
    what=$(sed -n 's/^FAILED: \(seed [0-9]*, step [0-9]*, crash depth [0-9]*: \)\{0,1\}//p' found | head -1 | cut -c 1-90)
    printf '| %s | %s | %s |\n' "$guard" "$seed" "$what"
done
exit $missed
