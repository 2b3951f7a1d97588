#!/usr/bin/env bash
# many_ranks.sh: a training run of 64 lanes on 64 ranks (of one machine, however few its cores) gives the bits of 1 rank; so does going on with it on 24 ranks
# after a stop. Needs mpirun, no Slurm.
#
#     tests/slurm/many_ranks.sh [--ranks N] [--bin DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."

ranks=64 bin=${MB_BIN:-$PWD/build/bin}
while [ $# -gt 0 ]; do
    case $1 in
    --ranks) ranks=$2 ;;
    --bin) bin=$2 ;;
    *) echo "usage: $0 [--ranks N] [--bin DIR]" >&2; exit 2 ;;
    esac
    shift 2
done
command -v mpirun > /dev/null || { echo "many_ranks.sh: mpirun is not installed" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
# shellcheck source=tests/stage/common.bash
. tests/stage/common.bash
make_records > /dev/null
make_models > /dev/null 2>&1
launcher=(mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
[ "$(id -u)" -ne 0 ] || launcher+=(--allow-run-as-root)

# train NAME RANKS key=value...: 5 steps of 64 micro-batches of one record.
train() {
    local name=$1 n=$2 command
    command=("$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" dataset.max_length=24 training.objective=lm training.batch_size=1
        training.gradient_accumulation_steps=64 training.lanes=64 training.learning_rate=3e-3 training.logging_steps=1 output.dir="$work/$name" "${@:3}")
    [ "$n" -eq 1 ] || command=("${launcher[@]}" -np "$n" "${command[@]}")
    "${command[@]}" > "$work/$name.log" 2>&1 || { code=$?; [ "$code" -eq 75 ] || tail -20 "$work/$name.log"; return "$code"; }
}
curve() { sed 's/, "provenance[^,]*//g; s/, "time".*//' "$work/$1/metrics.jsonl"; }
same() {
    cmp "$work/one/final/model.safetensors" "$work/$1/final/model.safetensors"
    [ "$(curve one)" = "$(curve "$1")" ] || { echo "$1: another curve"; exit 1; }
}

train one 1
[ "$(curve one | wc -l)" -ge 4 ]
for zero in 1 3; do
    began=$SECONDS
    train "many$zero" "$ranks" training.zero=$zero
    same "many$zero"
    grep -q "^moe-train: .* $ranks ranks" "$work/many$zero.log"
    echo "$ranks ranks, zero $zero: the bits of 1 rank, in $((SECONDS - began)) s"
done
began=$SECONDS code=0
MB_END_TIME=$(date +%s) train stopped "$ranks" || code=$?
[ "$code" -eq 75 ]
train stopped 24
same stopped
echo "stopped after a step on $ranks ranks and gone on with on 24: the bits of 1 rank, in $((SECONDS - began)) s"
