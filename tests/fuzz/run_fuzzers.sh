#!/bin/bash
# SPDX-License-Identifier: MIT
# Build the fuzz targets and run each for its share of the time.
#
# run_fuzzers.sh [SECONDS [BUILD_FOLDER]]
#
#   SECONDS       for all targets together, 60 unless given
#   BUILD_FOLDER  build-fuzz/ in the source tree unless given. It keeps the corpora from run to run and the
#                 inputs that found something, in findings/.
#   SEED          environment: libFuzzer's seed; random unless given
#
# Exits 0 when nothing was found, 1 on a finding, 77 when clang or libFuzzer is missing.
#
# A finding prints the file of its input. Again:   BUILD_FOLDER/tests/fuzz/fuzz_open FILE
# Smaller:    BUILD_FOLDER/tests/fuzz/fuzz_open -minimize_crash=1 -max_total_time=60 FILE
# For ever:   SEED=1 run_fuzzers.sh 86400
# When it is fixed, its least form goes into regressions() of make_corpus.py, under a name that says what it
# was.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
seconds=${1:-60}
build=${2:-$source/build-fuzz}
seed=${SEED:-$((RANDOM * 32768 + RANDOM + 1))}
clang=${CLANG:-clang}

skip() {
    echo "fuzz: skipped: $1"
    exit 77
}

command -v "$clang" >/dev/null || skip "no clang"
command -v meson >/dev/null || skip "no meson"
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
cat >"$probe/probe.c" <<'END'
int LLVMFuzzerTestOneInput(const char *d, unsigned long n);
int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n > 9; }
END
"$clang" -fsanitize=fuzzer,address,undefined "$probe/probe.c" -o "$probe/probe" 2>/dev/null ||
    skip "$clang has no libFuzzer (Debian: libclang-rt-*-dev)"

if [ ! -f "$build/build.ninja" ]; then
    CC=$clang meson setup "$build" "$source" -Dfuzz=true -Dtests=false -Djemalloc=disabled \
        -Db_sanitize=address,undefined -Db_lundef=false \
        -Dc_args='-fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined' >"$probe/setup.log" 2>&1 ||
        { cat "$probe/setup.log"; exit 1; }
fi
ninja -C "$build" -j "${JOBS:-2}" fuzz-targets >"$probe/ninja.log" 2>&1 || { cat "$probe/ninja.log"; exit 1; }
python3 "$here/make_corpus.py" "$build/seeds"
mkdir -p "$build/findings"

# Nothing that an image says may make the library ask for much memory at once, or run for long.
limits="-timeout=20 -malloc_limit_mb=100 -rss_limit_mb=1024"
export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}quarantine_size_mb=16

status=0
# name, share of the time in percent, longest input
fuzz() {
    local name=$1 time=$((seconds * $2 / 100)) log="$build/$1.log" result=0
    mkdir -p "$build/corpus/$name"
    [ "$time" -gt 0 ] || time=1
    "$build/tests/fuzz/fuzz_$name" -seed="$seed" -max_total_time="$time" -max_len="$3" $limits \
        -print_final_stats=1 -artifact_prefix="$build/findings/$name-" \
        "$build/corpus/$name" "$build/seeds/$name" >"$log" 2>&1 || result=$?
    local runs coverage
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -1)
    echo "fuzz: $name: ${runs:-0} executions in $time s, ${coverage:-cov: 0} edges, seed $seed"
    [ "$result" -eq 0 ] && return
    status=1
    grep -E '^finding:|ERROR: |runtime error:|SUMMARY:' "$log" | head -5 || true
    echo "fuzz: $name: a finding; the whole report is in $log; again:"
    echo "  $build/tests/fuzz/fuzz_$name $limits" \
        "$(sed -n 's/.*Test unit written to //p' "$log" | tail -1)"
}

fuzz open 50 262144
fuzz header 10 65536
fuzz tables 10 8192
fuzz inflate 20 65536
fuzz virtqueue 10 4104
exit $status
