#!/usr/bin/env bash
# kill_points.sh: a training run killed (signal 9) at random times, one rank or all of them, on 1 to 4 ranks; gone on with on another number of ranks it must
# end with the weights and the curve of the run that nobody killed. Needs mpirun, no Slurm.
#
#     tests/slurm/kill_points.sh [--points N] [--seed S] [--bin DIR] [--work DIR]
#
# Times are drawn evenly over the length of an undisturbed run on as many ranks. ZeRO stage and training.async_save are drawn too: all give the same bits. The
# same seed draws the same points; what the run was doing at that moment depends on the machine and is printed. A kill that comes after the end is not counted,
# and another one is drawn in its place.
set -euo pipefail
cd "$(dirname "$0")/../.."

points=20 seed=$RANDOM bin=${MB_BIN:-$PWD/build/bin} work=''
while [ $# -gt 0 ]; do
    case $1 in
    --points) points=$2 ;;
    --seed) seed=$2 ;;
    --bin) bin=$2 ;;
    --work) work=$2 ;;
    *) echo "usage: $0 [--points N] [--seed S] [--bin DIR] [--work DIR]" >&2; exit 2 ;;
    esac
    shift 2
done
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
command -v mpirun > /dev/null || { echo "kill_points.sh: mpirun is not installed" >&2; exit 2; }
export OMP_NUM_THREADS=1
# shellcheck source=tests/stage/common.bash
. tests/stage/common.bash
launcher=(mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
[ "$(id -u)" -ne 0 ] || launcher+=(--allow-run-as-root)

# launch NAME RANKS key=value...: sets pid, of the program or of its launcher.
launch() {
    local name=$1 n=$2 command
    command=("$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.objective=lm training.epochs=6 training.batch_size=4
        training.gradient_accumulation_steps=8 training.learning_rate=3e-3 training.logging_steps=1 training.save_steps=4 output.dir="$work/$name" "${@:3}")
    [ "$n" -eq 1 ] || command=("${launcher[@]}" -np "$n" "${command[@]}")
    "${command[@]}" < /dev/null >> "$work/$name.log" 2>&1 &
    pid=$!
}
curve() { sed 's/, "provenance[^,]*//g; s/, "time".*//' "$work/$1/metrics.jsonl"; }
steps_of() { { cat "$work/$1/metrics.jsonl" 2> /dev/null || true; } | wc -l; }
same() { cmp -s "$work/whole1/final/model.safetensors" "$work/$1/final/model.safetensors" && [ "$(curve whole1)" = "$(curve "$1")" ]; }

# kill_ranks VICTIM RANKS: rank VICTIM, or all and their launcher.
kill_ranks() {
    local ranks
    if [ "$2" -eq 1 ]; then
        kill -KILL "$pid" 2> /dev/null || true
        return
    fi
    mapfile -t ranks < <(pgrep -P "$pid" || true)
    if [ "$1" = all ]; then
        kill -KILL "$pid" "${ranks[@]}" 2> /dev/null || true
    elif [ "${#ranks[@]}" -gt "$1" ]; then
        kill -KILL "${ranks[$1]}" 2> /dev/null || true
    else
        kill -KILL "$pid" "${ranks[@]}" 2> /dev/null || true # not all are there yet
    fi
}

echo "seed $seed, $points points"
make_records > /dev/null
make_models > /dev/null 2>&1
length=(0)
for n in 1 2 3 4; do
    began=$EPOCHREALTIME
    launch "whole$n" "$n"
    wait "$pid"
    length[n]=$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN {print b - a}')
    same "whole$n" || { echo "not the same on $n ranks without any kill"; exit 1; }
done
total=$(steps_of whole1)
echo "an undisturbed run: $total steps, on 1 to 4 ranks ${length[*]:1} s"

# One line a point: ranks, share of the time, victim, ranks after, ZeRO stage before and after, async_save.
draw() {
    awk -v seed="$seed" -v points="$((3 * points))" 'BEGIN {
        srand(seed)
        for (i = 0; i < points; i++) {
            n = 1 + int(4 * rand()); then = 1 + (n + int(3 * rand())) % 4
            print n, rand(), rand() < 0.5 ? "all" : int(n * rand()), then, 1 + int(3 * rand()), 1 + int(3 * rand()), rand() < 0.5 ? "true" : "false"
        }
    }'
}

failed=0 live=0 number=0 slowest=0
while read -r n share victim next zero zero_next async <&3; do
    [ "$live" -lt "$points" ] || break
    number=$((number + 1)) name=point$number
    launch "$name" "$n" training.zero="$zero" training.async_save="$async"
    sleep "$(awk -v a="$share" -v b="${length[n]}" 'BEGIN {print a * b}')"
    kill_ranks "$victim" "$n"
    began=$SECONDS
    wait "$pid" 2> /dev/null || true
    [ $((SECONDS - began)) -le "$slowest" ] || slowest=$((SECONDS - began))
    at=$(steps_of "$name") result=ok
    if [ -e "$work/$name/done.json" ]; then at="the end"; else live=$((live + 1)) at="step $at"; fi
    launch "$name" "$next" training.zero="$zero_next"
    if ! wait "$pid" || ! same "$name"; then
        result="NOT THE SAME"
        failed=$((failed + 1))
        tail -5 "$work/$name.log"
    fi
    from=$(sed -n 's/.*resuming from .*step_//p' "$work/$name.log" | tail -1)
    printf 'point %2d: %d ranks, zero %d, async %-5s, %4.0f %% of the time, killed: %-3s at %-8s -> from step %-2s on %d ranks, zero %d: %s\n' "$number" "$n" "$zero" \
        "$async" "$(awk -v a="$share" 'BEGIN {print 100 * a}')" "$victim" "$at" "${from:-0}" "$next" "$zero_next" "$result"
    rm -rf "${work:?}/$name"
done 3< <(draw)
echo "$live runs killed before their end, $((number - live)) after it; $failed not the same; ranks were gone $slowest s after the kill at most"
[ "$failed" -eq 0 ]
[ "$live" -eq "$points" ] || { echo "too few kills hit a run at work"; exit 1; }
