#!/bin/sh
# SPDX-License-Identifier: MIT
# negative.sh SIMULATE [RUNS]: switches each guard off in turn and says what it took to find a fault: one of
# the enumerated workloads, or how many seeds. A guard without which nothing fails is the simulator's fault.
set -u
simulate=$(realpath "$1")
runs=${2:-20000}
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cd "$folder" || exit 2
missed=0
guards=$("$simulate" --guards) || exit 2

# what was found, without the place
fault() {
    sed -n 's/^FAILED: \(seed [0-9]*[^:]*: \)\{0,1\}//p' found | head -1 | cut -c 1-100
}

printf '| guard | found by | what was found |\n| --- | --- | --- |\n'
for guard in $guards; do
    if ! "$simulate" --without "$guard" --enumerate --seed 1 --quiet >found 2>&1; then
        script=$(sed -n 's/^FAILED: seed [0-9]* script \([^,]*\),.*/\1/p' found | head -1)
        printf '| %s | enumerated workload %s | %s |\n' "$guard" "$script" "$(fault)"
    elif ! "$simulate" --without "$guard" --seed 1 --runs "$runs" --quiet >found 2>&1; then
        seed=$(sed -n 's/^replay: simulate --seed \([0-9]*\).*/\1/p' found | head -1)
        printf '| %s | seeds 1 to %s | %s |\n' "$guard" "$seed" "$(fault)"
    else
        printf '| %s | not found in %s seeds | |\n' "$guard" "$runs"
        missed=1
    fi
done
exit $missed
