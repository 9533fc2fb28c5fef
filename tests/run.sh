#!/bin/bash
# SPDX-License-Identifier: MIT
#
# tests/run.sh          install what is missing (as root, on Debian 12), build in build/, run all tests
# tests/run.sh --all    also: clang with a minute of fuzzing, address and undefined-behaviour sanitizers,
#                       thread sanitizer, clang-format, cppcheck, an installation
#
# The last line is "N passed, N failed, N skipped". No input is read. SCOW_TEST_SEED repeats a run's randomness.
set -u
cd "$(dirname "$0")/.." || exit 1
top=$PWD
. tests/lib/packages.sh

all=no
case "${1:-}" in
--all) all=yes ;;
"") ;;
*)
    sed -n '4,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

export LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
jobs=$(nproc)
mkdir -p build
steps=$top/build/steps.txt
: >"$steps"
logs=()

# step NAME COMMAND...: run it quietly, note how it went, show the end of its output when it failed
step() {
    local name=$1 log code
    shift
    log=$top/build/step.log
    printf '== %s\n' "$name"
    "$@" >"$log" 2>&1 </dev/null
    code=$?
    case $code in
    0) echo "pass $name" >>"$steps" ;;
    77) echo "skip $name: $(tail -n 1 "$log")" >>"$steps" ;;
    *)
        echo "fail $name: exit code $code" >>"$steps"
        tail -n 60 "$log" | cut -c 1-220
        ;;
    esac
    return $code
}

# build FOLDER SETUP_OPTION...
build() {
    local folder=$1
    shift
    # Again where there is one already: what was just installed has to be looked for.
    if [ -f "$folder/build.ninja" ]; then
        meson setup --reconfigure "$folder" "$@" || return
    else
        meson setup "$folder" "$@" || return
    fi
    timeout 900 ninja -C "$folder" -j "$jobs" --quiet
}

# run_tests FOLDER MESON_TEST_OPTION...: each test has its own time limit
run_tests() {
    local folder=$1
    shift
    printf '== tests in %s\n' "$folder"
    rm -f "$folder/meson-logs/testlog.json"
    timeout 1500 "${plain_addresses[@]}" meson test -C "$folder" --no-rebuild --num-processes "$jobs" \
        "$@" </dev/null 2>&1 | grep --line-buffered '^ *[0-9]*/[0-9]* '
    [ "${PIPESTATUS[0]}" != 124 ] || echo "fail tests in $folder: out of time" >>"$steps"
    if [ -s "$folder/meson-logs/testlog.json" ]; then
        logs+=("$folder/meson-logs/testlog.json")
    else
        echo "fail tests in $folder: none ran" >>"$steps"
    fi
}

# The sanitizers of Debian 12's compilers cannot place their shadow under the address randomisation of
# newer kernels.
plain_addresses=()
without_randomisation() {
    if setarch -R true 2>/dev/null; then
        plain_addresses=(setarch -R)
    fi
}

c_files() {
    find base format io cache engine exports cli include tests perf -name '*.[ch]' 2>/dev/null
}

check_format() {
    c_files | xargs clang-format --dry-run -Werror
}

check_cppcheck() {
    local folders=() f
    for f in base format io cache engine exports cli; do
        [ -d "$f" ] && folders+=("$f")
    done
    timeout 600 cppcheck -q -j "$jobs" --std=c11 --enable=warning,performance,portability --inline-suppr \
        --suppress=missingIncludeSystem --error-exitcode=1 -D_GNU_SOURCE -I. -Iinclude "${folders[@]}"
}

check_install() {
    local root f found=0
    root=$(mktemp -d) || return
    DESTDIR=$root meson install -C build --no-rebuild >/dev/null || return
    for f in include/shardcow.h bin/shardcow libshardcow.so shardcow.pc share/man/man1/shardcow.1 \
        bash-completion/completions/shardcow; do
        if [ -z "$(find "$root" -path "*/$f" -o -path "*/$f.gz")" ]; then
            echo "not installed: $f"
            found=1
        fi
    done
    rm -r "$root"
    return $found
}

if [ $all = yes ]; then
    step "packages" packages_install demo test all
else
    step "packages" packages_install demo test
fi

if [ $all = yes ]; then
    # Warnings are errors here, not for people who build with another compiler.
    step "build, warnings are errors" build build -Dwerror=true
else
    step "build" build build
fi && run_tests build

if [ $all = yes ]; then
    step "clang-format" check_format
    step "cppcheck" check_cppcheck
    step "install" check_install

    export CC=clang
    step "build with clang" build build/clang -Dwerror=true -Dfuzz=true &&
        run_tests build/clang --suite unit --suite fuzz

    without_randomisation
    export SCOW_TEST_QUICK=1 ASAN_OPTIONS=detect_stack_use_after_return=1
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 LSAN_OPTIONS=suppressions=$top/tests/lib/lsan.txt
    step "build with address and undefined-behaviour sanitizers" \
        build build/asan -Db_sanitize=address,undefined -Db_lundef=false &&
        run_tests build/asan -t 3 --suite unit --suite sanitize --suite vhost --suite race
    step "build with thread sanitizer" \
        build build/tsan -Db_sanitize=thread -Db_lundef=false &&
        run_tests build/tsan -t 3 --suite race
fi

python3 tests/lib/summary.py "$steps" "${logs[@]}"
