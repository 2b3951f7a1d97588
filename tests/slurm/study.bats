# Study A as one submission over two nodes with four ranks, its scoring as an array: the bits of one process here. Then what happens to a
# chain when a stage fails, when it is cancelled, and when it is submitted twice.

setup_file() {
    load common.bash
    testbed_up study
    make_records > /dev/null
    make_study tiny-slurm "$work/tiny.cfg"
    rm -rf checkpoints/tiny-slurm
    jobs/select-moe.sh --local --run here "$work/tiny.cfg" > "$work/here.log" 2>&1 || { cat "$work/here.log"; return 1; }
}
setup() {
    load common.bash
    testbed_use
    resources=(slurm.nodes=2 slurm.ntasks=4 score.slurm.array=3)
}
teardown_file() {
    load common.bash
    [ -n "${MB_KEEP:-}" ] || rm -rf checkpoints/tiny-slurm
    testbed_down
}

study() { jobs/select-moe.sh --slurm --run "$1" "$work/tiny.cfg" "${resources[@]}" "${@:2}"; }
is_quiet() { [ -z "$(squeue -h)" ]; }
# What the two runs must have in common; adapters' configurations name the base model's path, so their weights are compared.
same_results() {
    local name a b
    for name in shard-corpus/shard.h5 pretrain/final warmup/final warmup/metrics.h5 score/scores.h5 select-good_mass/selected_data.jsonl select-random/selected_data.jsonl \
        finetune-selected/final/adapter_model.safetensors finetune-random/final/adapter_model.safetensors finetune-all/metrics.h5 eval-selected/results.json; do
        a=$(hash_of "checkpoints/tiny-slurm/here/$name") b=$(hash_of "checkpoints/tiny-slurm/$1/$name")
        [ -n "$a" ] && [ "$a" = "$b" ] || { echo "$name: $a here, $b in $1"; return 1; }
    done
}

@test "the whole study over two nodes and four ranks has the bits of one process" {
    study four > "$work/four.log"
    [ "$(grep -c ' job ' "$work/four.log")" -eq 30 ]
    wait_until 240 is_quiet
    run jobs/status.sh --brief tiny-slurm/four
    echo "$output"
    [ "$status" -eq 0 ]
    same_results four
    grep -q '"ranks": 4' checkpoints/tiny-slurm/four/warmup/done.json
    ls checkpoints/tiny-slurm/four/report/*.html
    [ "$(ls checkpoints/tiny-slurm/four/score/done-*of3.json | wc -l)" -eq 3 ]
}

@test "submitted again, nothing is left to do; another percentage submits selection and what follows" {
    run study four
    [ "$status" -eq 0 ]
    [ "$(grep -c ' done$' <<< "$output")" -eq 28 ]
    run study four --dry-run select.select.selection_percentage=0.1
    echo "$output"
    [ "$(grep -c '^sbatch' <<< "$output")" -eq 9 ] # two selections, two shards, two fine-tunings, two evaluations, the report
    [[ "$output" != *"four:auc"* ]]
}

@test "nothing is submitted when a configuration is wrong" {
    run study wrong finetune.training.lora.r=none
    echo "$output"
    [ "$status" -eq 2 ]
    [[ "$output" == *"finetune-selected: the configuration is not right"* ]]
    is_quiet
    [ ! -e checkpoints/tiny-slurm/wrong/jobs.tsv ]
}

@test "a stage fails, what waits for it is cancelled, the rest goes on; mended, only what is missing is submitted" {
    mv "$work/labels.jsonl" "$work/labels.away"
    echo '{"source": "nobody"' > "$work/labels.jsonl" # torn: fails in the job, not before
    study mended > /dev/null
    wait_until 240 is_quiet
    run jobs/status.sh tiny-slurm/mended
    echo "$output"
    [ "$status" -eq 1 ]
    grep -E '^auc +failed' <<< "$output"
    grep -q 'labels.jsonl' <<< "$output"
    grep -E '^finetune-all +done' <<< "$output"
    [ ! -e checkpoints/tiny-slurm/mended/report/attempts.tsv ]
    mv "$work/labels.away" "$work/labels.jsonl"
    run study mended
    [ "$(grep -c ' job ' <<< "$output")" -eq 3 ] # auc, auc-no-constraint, report
    wait_until 120 is_quiet
    jobs/status.sh --brief tiny-slurm/mended
    same_results mended
}

@test "cancelled in the middle and taken up again: the same bits, no stage twice" {
    study stopped > /dev/null
    wait_until 120 test -e checkpoints/tiny-slurm/stopped/pretrain/done.json
    jobs/cancel.sh tiny-slurm/stopped
    wait_until 60 is_quiet
    [ ! -e checkpoints/tiny-slurm/stopped/eval-all/done.json ]
    run jobs/status.sh --brief tiny-slurm/stopped
    [ "$status" -ne 0 ]
    run study stopped
    grep -E '^pretrain +done' <<< "$output"
    [ ! -e checkpoints/tiny-slurm/stopped/STOP ]
    run study stopped # at once again: what is queued keeps its job
    [ "$(grep -cE ' job +[0-9]+ +(PENDING|RUNNING|COMPLETING|after)' <<< "$output")" -ge 10 ]
    [[ "$output" != *"linked"* ]]
    wait_until 240 is_quiet
    jobs/status.sh --brief tiny-slurm/stopped
    same_results stopped
}
