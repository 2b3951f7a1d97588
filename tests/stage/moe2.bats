# Study C with tiny models through its script: every stage, array and file of the report is there, a second run does nothing, two ranks give the
# bits of one, other limits redo the subsets alone, experts of given base models in 16 bits.

setup_file() {
    load common.bash
    mb_setup
    "${MB_PYTHON:-python3}" datasets/moe2_demo.py "$work/data" --scale 0.04 --quiet
    make_moe2_study moe2-test "$work/tiny.cfg"
    rm -rf checkpoints/moe2-test
    jobs/moe2.sh --local "$work/tiny.cfg" > "$work/first.log" 2>&1 || { cat "$work/first.log"; return 1; }
}
setup() {
    load common.bash
    mb_setup
    run_folder=checkpoints/moe2-test/run1
}
teardown_file() { [ -n "${MB_KEEP:-}" ] || rm -rf checkpoints/moe2-test; }

# make_moe2_study NAME FILE: three families, three experts.
make_moe2_study() {
    local f inputs='' gate=''
    for f in sums who largest; do
        inputs+="$f=$work/data/train/$f.jsonl,gate-$f=$work/data/gate/$f.jsonl,"
        gate+="\"gate-$f\", "
    done
    make_target_config
    cat > "$2" << EOF
study: { name = "$1"; script = "moe2"; experts = 3; style = "texts"; config = "$work/target.json"; };
dataset: { max_length = 96; };
tokenizer: { dataset: { inputs = "p=$work/data/pretrain.jsonl"; }; tokenizer: { vocab_size = 384; }; };
shard-pretrain: { dataset: { inputs = "p=$work/data/pretrain.jsonl"; loss_on = "all"; }; };
pretrain: { training: { objective = "lm"; max_steps = 30; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; lanes = 2; }; };
merge: { merge: { inputs = "${inputs%,}"; }; };
split: { split: { parts = ( { name = "train"; share = 1.0; }, { name = "gating_train"; share = 0.7; sources = [ ${gate%, } ]; }, { name = "gating_test"; share = 0.3; sources = [ ${gate%, } ]; } ); }; };
expert: { training: { objective = "sft"; max_steps = 12; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; lanes = 2; peft_mode = "lora"; lora: { r = 4; lora_alpha = 8.0; }; }; };
quantise: { quantize: { group = "32"; samples = 16; }; };
gate: { gate: { hidden = 8; epochs = 20; draws = 200; }; };
bench: { bench: { prompt_tokens = "4,16"; output_tokens = "1,4"; repeats = 3; energy = "power_model"; }; };
subset: { gate: { hidden = 8; epochs = 20; }; subset: { top_k = 2; latency_limits = "0.001,1"; energy_limits = "0.001,10"; }; };
EOF
}

@test "every stage leaves its record, and the report its five folders" {
    for stage in tokenizer shard-pretrain init pretrain merge split {records,embed}-{train,gating_train,gating_test} cluster {shard,expert,quantise,answers-train,answers-test,bench}-{0,1,2} \
        answers-base costs gate outputs-train outputs-test gate-report subset together; do
        echo "$stage"
        [ -f "$run_folder/$stage/done.json" ]
    done
    for file in accuracy/{systems.md,systems.csv,by_source.csv,experts.csv} latency/latency.{json,csv} energy/energy.{json,csv} smo_tables/{both,pareto}.{txt,csv,tex} \
        figures/{clusters,accuracy,experts,latency,energy,pareto,limits}.png; do
        echo "$file"
        [ -s "$run_folder/$file" ]
    done
    grep -q '^gate_top1 ' "$work/first.log"
    grep -q 'energy: stated power model, not measured' "$work/first.log"
    [ "$(grep -c . "$run_folder/split/train.jsonl")" -eq "$(cat "$run_folder"/cluster/cluster_?.jsonl | grep -c .)" ]
}

@test "answering together is what the report says of stored answers" {
    run "${MB_PYTHON:-python3}" - "$run_folder" <<'PYTHON'
import json, sys
folder = sys.argv[1]
together = json.load(open(f"{folder}/together/results.json"))
report = json.load(open(f"{folder}/gate-report/report.json"))
print(json.dumps(together)[:800])
all_of = report["groups"]["all"]["systems"]
accuracy = together["accuracy"]
while isinstance(accuracy, dict):
    accuracy = accuracy.get("accuracy", accuracy.get("all"))
assert abs(accuracy - all_of["gate_weighted@3"]["accuracy"]) < 1e-12, (accuracy, all_of.keys())
PYTHON
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "a second run does nothing; other limits redo the subsets alone" {
    run jobs/moe2.sh --local "$work/tiny.cfg"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(grep -c 'nothing to do' <<< "$output")" -eq 39 ]
    run jobs/moe2.sh --local "$work/tiny.cfg" subset.subset.latency_limits=0.5
    [ "$status" -eq 0 ]
    [ "$(grep -c 'nothing to do' <<< "$output")" -eq 38 ]
    [ "$(grep -c . "$run_folder/smo_tables/latency.csv")" -eq 2 ]
}

@test "two ranks: the bits of one" {
    need_mpi
    jobs/moe2.sh --local --run two --ranks 2 "$work/tiny.cfg" > "$work/two.log" 2>&1 || { cat "$work/two.log"; return 1; }
    for name in cluster/cluster_1.jsonl expert-1/metrics.h5 quantise-2/model answers-test-0/answers.h5 gate/gate.h5 outputs-test/outputs.h5 gate-report/report.h5 together/outputs.h5; do
        a=$(hash_of "$run_folder/$name") b=$(hash_of "checkpoints/moe2-test/two/$name")
        echo "$name $a $b"
        [ -n "$a" ] && [ "$a" = "$b" ]
    done
    grep -q '"ranks": 2' checkpoints/moe2-test/two/expert-0/done.json
}

@test "given base models by number, experts as they were merged, in 16 bits" {
    base=$PWD/$run_folder
    jobs/moe2.sh --local --run given "$work/tiny.cfg" study.bases="0-1=$base/pretrain/final,2=$base/init/model" study.bits=16 > "$work/given.log" 2>&1 || { cat "$work/given.log"; return 1; }
    [ -f checkpoints/moe2-test/given/merged-2/done.json ] && [ ! -e checkpoints/moe2-test/given/quantise-0 ] && [ ! -e checkpoints/moe2-test/given/pretrain ]
    grep -q "expert-2 from .*init/model: objective" "$work/given.log"
    run jobs/moe2.sh --local --run given "$work/tiny.cfg" study.bases="0-1=$base/pretrain/final"
    [ "$status" -eq 2 ] && [[ $output == *"expert 2 has no model"* ]]
    run jobs/moe2.sh --local "$work/tiny.cfg" study.experts=1
    [ "$status" -eq 2 ] && [[ $output == *"2 to 40"* ]]
}
