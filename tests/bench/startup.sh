#!/usr/bin/env bash
# startup.sh: how long until ranks begin to work, and how many files they open for it, beside Python with torch: what a sweep of short jobs
# or a node that reads its programs over a network pays every time.
#     tests/bench/startup.sh [--bin build/bin] [--ranks 4] [--rounds 5] [--python build/venv/bin/python]
# Where SLURM_CONF points to a cluster (slurm/testbed/env), ranks are started by srun on two nodes, else by mpirun. Times are to the line
# that says that all ranks are there, medians over rounds that take turns; the first round, which fills caches, does not count.
set -euo pipefail
cd "$(dirname "$0")/../.."

bin=build/bin ranks=4 rounds=5 python=build/venv/bin/python
while [ $# -gt 0 ]; do
    case $1 in
    --bin) bin=$2 ;;
    --ranks) ranks=$2 ;;
    --rounds) rounds=$2 ;;
    --python) python=$2 ;;
    *) echo "usage: tests/bench/startup.sh [--bin DIR] [--ranks N] [--rounds N] [--python PROGRAM]" >&2; exit 2 ;;
    esac
    shift 2
done
[ -x "$bin/moe-inspect" ] || { echo "startup.sh: $bin/moe-inspect is not there; run make first" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1

if [ -n "${SLURM_CONF:-}" ] && timeout 20 sinfo -h > /dev/null 2>&1; then
    launcher=(srun -N2 -n "$ranks" --mpi=pmix)
else
    launcher=(mpirun -np "$ranks" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
    [ "$(id -u)" -ne 0 ] || launcher+=(--allow-run-as-root)
fi

has_torch() { [ -x "$python" ] && "$python" -c 'import torch' 2> /dev/null; }

# seconds_to PATTERN COUNT COMMAND...: until the output has COUNT lines like PATTERN.
seconds_to() {
    local pattern=$1 count=$2 started line seen=0 ended=''
    shift 2
    started=$(date +%s%N)
    while read -r line; do
        if [[ $line =~ $pattern ]]; then
            seen=$((seen + 1))
            [ "$seen" -ne "$count" ] || ended=$(date +%s%N)
        fi
    done < <("$@" 2> /dev/null || true)
    [ -n "$ended" ] || { echo "startup.sh: '$*' never came so far" >&2; return 1; }
    awk -v a="$started" -v b="$ended" 'BEGIN {printf "%.3f\n", (b - a) / 1e9}'
}
median() { sort -n "$1" | awk '{v[NR] = $1} END {printf "%.3f (%.3f to %.3f)", NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2, v[1], v[NR]}'; }

# Files that one process opened, and tries that failed: "opened failed".
count_opens() {
    strace -f -qq -e trace=open,openat -o "$work/opens" "$@" > /dev/null 2>&1 || true
    awk '/ = [0-9]+/ {good++} / = -1 / {bad++} END {printf "%d %d\n", good, bad}' "$work/opens"
}

names=("moe-train --help" "moe-inspect machine (MPI up, ranks gathered)")
measure() {
    case $1 in
    0) seconds_to '^Exit codes' "$ranks" "${launcher[@]}" "$bin/moe-train" --help ;;
    1) seconds_to '^host ' 1 "${launcher[@]}" "$bin/moe-inspect" machine dir="$work" ;;
    2) seconds_to '^ready' "$ranks" "${launcher[@]}" "$python" -c 'import torch; print("ready", flush=True)' ;;
    esac
}
opens() {
    local one=(mpirun -np 1)
    [ "$(id -u)" -ne 0 ] || one+=(--allow-run-as-root)
    case $1 in
    0) count_opens "$bin/moe-train" --help ;;
    1) # strace stands between launcher and rank, so that only the rank's files count
        "${one[@]}" strace -f -qq -e trace=open,openat -o "$work/opens" "$bin/moe-inspect" machine dir="$work" > /dev/null 2>&1 || true
        grep -v 'moe-inspect\.[A-Za-z0-9]*/' "$work/opens" | awk '/ = [0-9]+/ {good++} / = -1 / {bad++} END {printf "%d %d\n", good, bad}' ;;
    2) count_opens "$python" -c 'import torch' ;;
    esac
}

if has_torch; then names+=("$python -c 'import torch'"); else echo "no torch in $python: only our programs"; fi
for ((round = 0; round <= rounds; round++)); do
    for k in "${!names[@]}"; do
        seconds=$(measure "$k")
        [ "$round" -eq 0 ] || echo "$seconds" >> "$work/$k"
    done
done
printf '%s, %d ranks, median of %d (range), seconds\n' "${launcher[*]}" "$ranks" "$rounds"
for k in "${!names[@]}"; do
    printf '  %-48s %s' "${names[$k]}" "$(median "$work/$k")"
    if command -v strace > /dev/null; then opens "$k" | awk '{printf "   one process opens %d files, %d tries fail\n", $1, $2}'; else echo; fi
done
command -v strace > /dev/null || echo "strace is not installed: files opened are not counted"
