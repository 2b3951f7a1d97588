# Study A with tiny models, stage by stage through its script: every output is there, a second run does nothing, a changed key redoes only what follows.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    sed -e 's/"hidden_size": 128/"hidden_size": 32/; s/"head_dim": 32/"head_dim": 8/; s/"intermediate_size": 344/"intermediate_size": 48/; s/"num_hidden_layers": 4/"num_hidden_layers": 2/; s/"vocab_size": 2048/"vocab_size": 384/' \
        conf/model/demo-target.json > "$work/target.json"
    cat > "$work/tiny.cfg" <<CFG
study: { name = "tiny-test"; selector = ""; target = ""; tokenizer = ""; selector_config = "$work/config.json"; target_config = "$work/target.json"; labels = "$work/labels.jsonl"; };
dataset: { max_length = 96; };
tokenizer: { dataset: { inputs = "a=$work/a.jsonl,b=$work/b.jsonl"; }; tokenizer: { vocab_size = 384; }; };
shard-pretrain: { dataset: { inputs = "a=$work/a.jsonl"; }; };
shard-corpus: { dataset: { inputs = "a=$work/a.jsonl,b=$work/b.jsonl"; }; };
shard-heldout: { dataset: { inputs = "b=$work/b.jsonl"; }; };
pretrain: { training: { objective = "lm"; max_steps = 6; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; }; };
warmup: { dataset: { subset_ratio = 0.5; }; training: { objective = "router_warmup"; max_steps = 4; batch_size = 4; gradient_accumulation_steps = 2; save = "delta"; }; };
select: { select: { selection_percentage = 0.2; }; };
pretrain-target: { training: { max_steps = 4; batch_size = 4; gradient_accumulation_steps = 2; }; };
finetune: { training: { peft_mode = "lora"; max_steps = 4; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 1e-3; lora: { r = 4; lora_alpha = 8; target_modules = "all-linear"; }; }; };
CFG
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
}

@test "a merged adapter and a resolved delta are whole models" {
    "$bin/moe-convert" merge model.path="$run_folder/pretrain-target/final" model.adapter="$run_folder/finetune-selected/final" output.dir="$work/merged"
    run "$bin/moe-inspect" file "$work/merged/model"
    [[ "$output" == *"whole: yes"* ]]
    "$bin/moe-convert" full model.path="$run_folder/warmup/final" output.dir="$work/full"
    run "$bin/moe-inspect" file "$work/full/model"
    [[ "$output" == *"whole: yes"* ]]
}
