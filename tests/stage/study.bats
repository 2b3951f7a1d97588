# Study A with tiny models, stage by stage through its script: every output is there, a second run does nothing, a changed key redoes only what follows.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    make_study tiny-test "$work/tiny.cfg"
    rm -rf checkpoints/tiny-test
    jobs/select-moe.sh --local "$work/tiny.cfg" > "$work/first.log" 2>&1 || { cat "$work/first.log"; return 1; }
}
setup() {
    load common.bash
    mb_setup
    run_folder=checkpoints/tiny-test/run1
}
teardown_file() { rm -rf checkpoints/tiny-test; }

@test "every stage leaves its record, and the report is there" {
    for stage in tokenizer shard-pretrain selector pretrain shard-corpus convert warmup score select-good_mass select-random auc target pretrain-target shard-heldout \
        finetune-selected finetune-random finetune-all eval-selected eval-random eval-all eval-base; do
        [ -f "$run_folder/$stage/done.json" ]
    done
    [ -s "$run_folder/report/index.html" ] || ls "$run_folder"/report/*.html
    grep -q "selected" "$work/first.log"
}

@test "a second run does nothing" {
    run jobs/select-moe.sh --local "$work/tiny.cfg"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(grep -c 'nothing to do' <<< "$output")" -ge 20 ]
}

@test "another percentage redoes selection and what follows, not scoring or warm-up" {
    before=$(hash_of "$run_folder/score/scores.h5")
    run jobs/select-moe.sh --local "$work/tiny.cfg" select.select.selection_percentage=0.1
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"score: up to date"* ]]
    [[ "$output" == *"warmup: up to date"* ]]
    [[ "$output" != *"select-good_mass: up to date"* ]]
    [ "$(wc -l < "$run_folder/select-good_mass/selected_data.jsonl")" -eq 30 ]
    [ "$(hash_of "$run_folder/score/scores.h5")" = "$before" ]
}

@test "selected_data.jsonl: best first, fields spliced in byte for byte" {
    "${MB_PYTHON:-python3}" - "$run_folder/select-good_mass/selected_data.jsonl" "$work" <<'PYTHON'
import json, sys
lines = [json.loads(line) for line in open(sys.argv[1])]
scores = [line["quality_score"] for line in lines]
for source in ("a", "b"):
    originals = [json.loads(line) for line in open(f"{sys.argv[2]}/{source}.jsonl")]
    for line in lines:
        if line["source_dataset"] == source:
            original = originals[line["source_index"]]
            assert line["source_text"] == original["text"] == line["text"] and line["id"] == original["id"]
assert scores == sorted(scores, reverse=True) and len(lines) > 0
PYTHON
}

@test "two selections can be compared" {
    run "$bin/moe-select" compare a="$run_folder/select-good_mass/selected_data.jsonl" b="$run_folder/select-good_mass/selected_data.jsonl"
    [[ "$output" == *"Jaccard 1.0000"* ]]
    run "$bin/moe-select" compare a="$run_folder/select-good_mass/selected_data.jsonl" b="$run_folder/select-random/selected_data.jsonl"
    [[ "$output" == *"Jaccard 0."* ]]
}

@test "--dry-run prints every command and refuses a mistyped key before anything runs" {
    run jobs/select-moe.sh --local --dry-run "$work/tiny.cfg"
    [ "$status" -eq 0 ]
    [ "$(grep -c '^moe-' <<< "$output")" -ge 20 ]
    run jobs/select-moe.sh --local --dry-run "$work/tiny.cfg" warmup.training.learning_rat=1
    [ "$status" -eq 2 ]
    [[ "$output" == *"learning_rate"* ]]
    run jobs/select-moe.sh --local --dry-run "$work/tiny.cfg" warmupp.training.learning_rate=1
    [ "$status" -eq 2 ]
    [[ "$output" == *"no stage is called 'warmupp'"* ]]
    run jobs/select-moe.sh --local --dry-run "$work/tiny.cfg" study.selector=models/none study.tokenizer="$work/tok"
    [ "$status" -eq 2 ]
    [[ "$output" == *"stage convert: model.path=models/none: no such file or folder"* ]]
}

@test "--slurm --dry-run prints every sbatch command, what it waits for, and an array with its joining job" {
    run jobs/select-moe.sh --slurm --dry-run --run dry "$work/tiny.cfg" score.slurm.array=4 score.slurm.throttle=2 slurm.nodes=2 finetune.slurm.time=10:00
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(grep -c '^sbatch --parsable' <<< "$output")" -eq 30 ] # 28 stages, two of them arrays with a joining job
    grep -q 'job-name=tiny-test/dry:score .*--array=0-3%2 .*MB_SHARES=4' <<< "$output"
    grep -q 'job-name=tiny-test/dry:score/join .*--dependency=afterok:\\<score\\>' <<< "$output"
    grep -q 'job-name=tiny-test/dry:warmup .*--nodes=2 .*--dependency=afterok:\\<convert\\>:\\<shard-corpus\\>' <<< "$output"
    grep -q 'job-name=tiny-test/dry:finetune-all .*--time=10:00' <<< "$output"
    ! grep 'job-name=tiny-test/dry:convert ' <<< "$output" | grep -q -- '--nodes=2' || false
    [ ! -e checkpoints/tiny-test/dry ]
    mv "$work/b.jsonl" "$work/b.away"
    run jobs/select-moe.sh --slurm --dry-run --run dry "$work/tiny.cfg"
    mv "$work/b.away" "$work/b.jsonl"
    [ "$status" -eq 2 ]
    [[ "$output" == *"stage shard-corpus: "*"b.jsonl: no such file"* ]]
    run jobs/select-moe.sh --slurm --dry-run --run dry "$work/tiny.cfg" slurm.ntasks=16
    [ "$status" -eq 2 ]
    [[ "$output" == *"stage warmup: "*"16 ranks, and a step has 4 lanes"* ]]
}

@test "another score chosen on the command line does not change what random means" {
    run jobs/select-moe.sh --local --dry-run "$work/tiny.cfg" select.select.score=entropy
    [ "$status" -eq 0 ]
    grep -q 'select-entropy$' <<< "$output"
    [[ "$(grep 'select-random$' <<< "$output" | grep -o 'select.score=[a-z]*' | tail -1)" = select.score=random ]]
}

@test "a sweep's parts: what a varied key does not touch is common" {
    run jobs/select-moe.sh --local --dry-run --run sw --vary finetune.training.learning_rate --part common "$work/tiny.cfg"
    [ "$status" -eq 0 ]
    [[ "$output" == *"sw/common/warmup"* ]]
    [[ "$output" != *"finetune"* ]]
    run jobs/select-moe.sh --local --dry-run --run sw --vary finetune.training.learning_rate --part point --point 7 "$work/tiny.cfg" finetune.training.learning_rate=1e-4
    echo "$output"
    [ "$(grep -c '^moe-' <<< "$output")" -eq 6 ]
    [[ "$output" == *"dataset.path=$PWD/checkpoints/tiny-test/sw/common/shard-all/shard.h5"* ]]
    [[ "$output" == *"output.dir=$PWD/checkpoints/tiny-test/sw/point_007/eval-all"* ]]
}

@test "a merged adapter and a resolved delta are whole models" {
    "$bin/moe-convert" merge model.path="$run_folder/pretrain-target/final" model.adapter="$run_folder/finetune-selected/final" output.dir="$work/merged"
    run "$bin/moe-inspect" file "$work/merged/model"
    [[ "$output" == *"whole: yes"* ]]
    "$bin/moe-convert" full model.path="$run_folder/warmup/final" output.dir="$work/full"
    run "$bin/moe-inspect" file "$work/full/model"
    [[ "$output" == *"whole: yes"* ]]
}
