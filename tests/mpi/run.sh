#!/bin/sh
# Runs the MPI tests of a build on several numbers of ranks and prints one TAP stream; lane sums must hash
# alike on all of them.
#
#     tests/mpi/run.sh BUILD
#
# Environment: MB_MPIRUN      the launcher with its options (default: mpirun with what Open MPI needs on few
#                             cores and as root)
#              MB_RANKS       numbers of ranks (default "1 2 3 4")
#              MB_LANE_RANKS  more of them for the lanes (default "5 8")
#              MB_FUSE_RANKS  members of a fused model, one on each (default "2 3")
#              MB_DEVICE_RANKS  of them on a device (default "1 2 4")
#              MB_BENCH=1     also times the lane reduction against MPI_Allreduce
set -u

build=${1:?usage: tests/mpi/run.sh BUILD}
ranks=${MB_RANKS:-1 2 3 4}
lane_ranks="$ranks ${MB_LANE_RANKS-5 8}"
device_ranks=${MB_DEVICE_RANKS:-1 2 4}
limit=120
number=0
failures=0
scratch=$(mktemp -d "${TMPDIR:-/tmp}/mb_mpi.XXXXXX") || exit 1
trap 'rm -rf "$scratch"' EXIT

# Ranks that wait give up their core, because there may be fewer cores than ranks.
launcher() {
    if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
        root=$([ "$(id -u)" = 0 ] && echo --allow-run-as-root)
        echo "mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 $root"
    else
        echo mpirun
    fi
}

# result OK NAME REPEAT: one line of TAP; a failure says how to repeat it.
result() {
    number=$((number + 1))
    if [ "$1" = 0 ]; then
        echo "ok $number - $2"
    else
        failures=$((failures + 1))
        echo "not ok $number - $2"
        echo "# repeat: $3"
    fi
}

# start NP PROGRAM [ARGUMENT]: output into $scratch/out and err, code into $code.
start() {
    np=$1
    shift
    repeat="OMP_NUM_THREADS=$OMP_NUM_THREADS timeout -k 5 $limit $MB_MPIRUN -np $np $*"
    # shellcheck disable=SC2086 # the launcher is a command with options
    timeout -k 5 "$limit" $MB_MPIRUN -np "$np" "$@" >"$scratch/out" 2>"$scratch/err"
    code=$?
}

# Merge a program's own TAP, then require its exit code 0 (a crash or a time limit leaves the TAP short).
merge() {
    label=$1
    while IFS= read -r line; do
        case $line in
        "ok "*) result 0 "$label: ${line#* - }" "" ;;
        "not ok "*) result 1 "$label: ${line#* - }" "$repeat" ;;
        "# hash "*) echo "${line#\# hash }" >>"$scratch/hashes" ;;
        "# "*) echo "$line" ;;
        esac
    done <"$scratch/out"
    grep '^# rank' "$scratch/err"
    grep -q '^1\.\.' "$scratch/out" && [ "$code" = 0 ]
    ended=$?
    [ "$ended" = 0 ] || sed 's/^/# /' "$scratch/err"
    result "$ended" "$label: ends with code 0 (was $code)" "$repeat"
}

# ends NP WHAT EXPECTED NAME: the program ends with that code, in time.
ends() {
    start "$1" "$build/tests/mpi/test_comm_mpi" "$2"
    [ "$code" = "$3" ]
    result $? "comm, $1 ranks: $4 (code $code)" "$repeat"
}

MB_MPIRUN=${MB_MPIRUN:-$(launcher)}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}" # MPI's own blocks; ours are counted by the tests
: >"$scratch/hashes"

if [ ! -x "$build/tests/mpi/test_comm_mpi" ]; then
    echo "1..0 # SKIP no $build/tests/mpi/test_comm_mpi: no MPI at build time, or run 'make mpi-tests'"
    exit 0
fi
echo "# launcher: $MB_MPIRUN"
for np in $ranks; do
    start "$np" "$build/tests/mpi/test_comm_mpi"
    merge "comm, $np ranks"
    ends "$np" fail 3 "one rank finds bad data, all end with its code"
    ends "$np" abort 3 "one rank aborts, nobody hangs"
done
for np in $lane_ranks; do
    start "$np" "$build/tests/mpi/test_lanes_mpi"
    merge "lanes, $np ranks"
done
for np in $lane_ranks; do
    start "$np" "$build/tests/mpi/test_scatter_mpi"
    merge "scatter, $np ranks"
done
OMP_NUM_THREADS=2 start 2 "$build/tests/mpi/test_lanes_mpi"
merge "lanes, 2 ranks of 2 threads"
for np in $ranks; do
    start "$np" "$build/tests/mpi/test_train_mpi"
    merge "training, $np ranks"
done

for np in ${MB_FUSE_RANKS-2 3}; do
    start "$np" "$build/tests/mpi/test_fuse_mpi"
    merge "fused, $np ranks"
done

for np in $ranks; do
    start "$np" "$build/tests/mpi/test_mail_mpi"
    merge "mail, $np ranks"
done

# The same with memory the host cannot touch (a GPU, or the emulated one), by every way it can go: sums have the host's bits.
# MPI itself can take an emulated GPU's memory where the emulator leaves it open; NCCL is a library here that goes over MPI.
# device WAY NP TESTS [VARIABLE=VALUE...]
device() {
    way=$1
    np=$2
    tests=$3
    shift 3
    for test in $tests; do
        start "$np" env MB_GPU_TRANSFER="$way" "$@" "$build/tests/mpi/test_${test}_mpi" cuda
        if grep -q '^1\.\.0 # SKIP' "$scratch/out"; then
            echo "# $test on a device: $(sed -n 's/^1\.\.0 # //p' "$scratch/out")"
            return
        fi
        merge "$test on a device, $way, $np ranks"
    done
}
for np in $device_ranks; do
    device staged "$np" "lanes scatter train"
done
device staged 2 fuse
device mpi 3 "lanes scatter train" MB_MPI_CUDA=1 MB_EMULATOR_OPEN=1
device nccl 3 "lanes scatter" LD_LIBRARY_PATH="$build/tests/mpi${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

# "lanes=L n=N HASH" lines: the same key must have one value.
different=$(sort -u "$scratch/hashes" | sed 's/ [^n ][^=]*$//' | uniq -d)
compared=$(sort "$scratch/hashes" | uniq -d | wc -l)
[ -z "$different" ] && [ "$compared" -gt 0 ]
result $? "lane sums have the same bits on every number of ranks ($compared sums compared)" \
    "tests/mpi/run.sh $build # differ: $different"
echo "1..$number"
[ "$failures" = 0 ]
