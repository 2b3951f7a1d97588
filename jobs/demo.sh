#!/usr/bin/env bash
# make demo: study A on real text from ordinary packages, everything trained on the spot. --seeds 0,1,2 repeats it and compares.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=''
[ "${1:-}" = --seeds ] && { seeds=$2; shift 2; }
python=${MB_PYTHON:-python3}
data=datasets/built/demo
started=$SECONDS
"$python" datasets/demo.py "$data"
# Images without manual pages give four sources instead of five: the recipe says which there are.
set -- "shard-corpus.dataset.inputs=$(cat "$data/corpus.inputs")" "$@"
if [ -z "$seeds" ]; then
    jobs/select-moe.sh --local conf/study/demo.cfg "$@"
else
    for seed in ${seeds//,/ }; do jobs/select-moe.sh --local --run check conf/study/demo.cfg "study.seed=$seed" "$@"; done
    "$python" analysis/report.py checkpoints/demo/check --selected good_mass --labels "$data/labels.jsonl"
fi
echo "finished in $((SECONDS - started)) s"
