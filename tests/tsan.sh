#!/bin/sh
# ThreadSanitizer over what runs in several threads or ranks: comm, lanes, scatter, windows, the log, and the
# reading of tiles beside scoring and perplexity. One line per test; ends with 1 when anything was reported.
#
#     tests/tsan.sh [BUILD]        (build/tsan; the same as `make TSAN=1` builds)
#
# gcc's OpenMP runtime is not instrumented: its barriers are invisible and every parallel region would be
# reported. So gcc's builds run in one OpenMP thread, which leaves the threads we start ourselves; the sums of
# comm are built once more by clang, whose runtime tells ThreadSanitizer about its barriers through the tool
# archer, and run in two threads. tests/tsan.supp names what is Open MPI's.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build/tsan}
export OMP_NUM_THREADS=1
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 suppressions=$PWD/tests/tsan.supp exitcode=66"
units="comm/test_comm comm/test_lanes comm/test_scatter base/test_log measure/test_tile measure/test_scorer measure/test_perplexity learn/test_trainer_save"
programs=
bad=0
for t in $units; do programs="$programs $build/tests/$t"; done
mkdir -p "$build"
# shellcheck disable=SC2086 # a list of targets
make --no-print-directory TSAN=1 BUILD="$build" $programs mpi-tests >"$build/tsan.log" 2>&1 || {
    tail -5 "$build/tsan.log"
    exit 1
}
check() { # check NAME COMMAND...
    name=$1
    shift
    timeout 300 "$@" >"$build/tsan.out" 2>&1
    code=$?
    reports=$(grep -c 'WARNING: ThreadSanitizer' "$build/tsan.out")
    echo "$name: code $code, $reports reports"
    [ "$code" = 0 ] && [ "$reports" = 0 ] && return
    bad=1
    grep -A8 'WARNING: ThreadSanitizer' "$build/tsan.out" | head -20
}
for t in $units; do check "$t" "$build/tests/$t"; done
for n in 2 3 4 5 6 7 8 9; do check "measure/test_tile, run $n" "$build/tests/measure/test_tile"; done # who waits for whom differs
if command -v mpirun >/dev/null; then
    root=$([ "$(id -u)" = 0 ] && echo --allow-run-as-root)
    for t in comm lanes scatter; do
        # shellcheck disable=SC2086 # empty unless root
        check "mpi $t, 2 ranks" mpirun $root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -np 2 "$build/tests/mpi/test_${t}_mpi"
    done
fi
archer=$(find /usr/lib -name libarcher.so 2>/dev/null | sort | tail -1)
if command -v clang >/dev/null && [ -n "$archer" ]; then
    export OMP_NUM_THREADS=2 OMP_TOOL_LIBRARIES="$archer"
    libraries=$(make --no-print-directory -s TSAN=1 BUILD="$build" --eval 'libraries-of-comm: ; @echo $(call emulated_libraries,comm)' libraries-of-comm)
    for t in lanes scatter; do
        # shellcheck disable=SC2046,SC2086 # lists of files and of libraries
        clang -std=c17 -D_GNU_SOURCE -g -O1 -fopenmp -ffp-contract=off -fsanitize=thread -Isrc -Itests/unit "tests/unit/comm/test_$t.c" src/comm/*.c \
            $(find src/base src/tensor -name '*.c' ! -name version_info.c) "$build/lib/libmb_ops_emulated.a" $libraries -lcmocka -lm -o "$build/test_$t.clang" || exit 1
        check "comm/test_$t, clang, 2 threads" "$build/test_$t.clang"
    done
fi
exit $bad
