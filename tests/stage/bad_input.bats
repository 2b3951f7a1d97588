# Bad input ends with one clear message, the right exit code, and nothing half-written.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
}
setup() {
    load common.bash
    mb_setup
    rm -rf "$work/out" "$work/broken"
}

# refused CODE WORDS PROGRAM...: ends with CODE, says WORDS (one error line), leaves no final output.
refused() {
    local code=$1 words=$2
    shift 2
    run "$@"
    echo "exit $status: $output"
    [ "$status" -eq "$code" ]
    [[ "$output" == *"$words"* ]]
    [ "$(grep -c 'error:' <<< "$output")" -eq 1 ]
    [ ! -e "$work/out/done.json" ]
}
copy_model() { rm -rf "$work/broken" && cp -r "$work/init/model" "$work/broken"; }
train() { "$bin/moe-train" dataset.path="$work/shard/shard.h5" training.max_steps=1 output.dir="$work/out" "$@"; }

@test "a mistyped key names the nearest one, on the command line and with file and line" {
    refused 2 "training.learning_rate" "$bin/moe-train" model.path=x dataset.path=y training.learning_rat=1 output.dir="$work/out"
    printf 'warmup: {\n  training: { learnin_rate = 1.0; };\n};\n' > "$work/typo.cfg"
    refused 2 "typo.cfg:2" "$bin/moe-train" "$work/typo.cfg" stage=warmup model.path=x dataset.path=y output.dir="$work/out"
    refused 2 "warmup" "$bin/moe-train" "$work/typo.cfg" stage=wramup model.path=x dataset.path=y output.dir="$work/out"
}

@test "a value out of range or of the wrong kind" {
    refused 2 "training.batch_size" train model.path="$work/init/model" training.batch_size=0
    refused 2 "training.learning_rate" train model.path="$work/init/model" training.learning_rate=fast
    refused 2 "training.objective" train model.path="$work/init/model" training.objective=lmm
}

@test "a missing model folder, a folder without weights, a truncated and a lying safetensors file" {
    refused 3 "$work/nowhere" train model.path="$work/nowhere"
    copy_model && rm "$work/broken/model.safetensors"
    refused 3 "$work/broken" train model.path="$work/broken"
    copy_model && truncate -s 4000 "$work/broken/model.safetensors"
    refused 3 "model.safetensors" train model.path="$work/broken"
    copy_model && printf '\377\377\377\377\377\377\377\177' | dd of="$work/broken/model.safetensors" conv=notrunc status=none
    refused 3 "model.safetensors" train model.path="$work/broken"
}

@test "a missing tensor, a wrong shape, a NaN weight, an unknown model type" {
    copy_model && sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' "$work/broken/config.json"
    refused 3 "model.layers.2" train model.path="$work/broken"
    copy_model && sed -i 's/"intermediate_size": 48/"intermediate_size": 64/' "$work/broken/config.json"
    refused 3 "proj.weight" train model.path="$work/broken"
    copy_model && printf '\000\000\300\177' | dd of="$work/broken/model.safetensors" bs=1 seek=$(($(stat -c %s "$work/broken/model.safetensors") - 64)) conv=notrunc status=none
    refused 3 "NaN" train model.path="$work/broken"
    copy_model && sed -i 's/"model_type": *"olmoe"/"model_type": "mystery"/' "$work/broken/config.json"
    refused 3 "mystery" train model.path="$work/broken"
}

@test "a shard with a flipped byte, and one of another tokenizer" {
    cp "$work/shard/shard.h5" "$work/flipped.h5"
    size=$(stat -c %s "$work/flipped.h5")
    for at in $((size / 5)) $((size / 2)) $((size * 4 / 5)); do
        cp "$work/shard/shard.h5" "$work/flipped.h5"
        printf '\125\252\125\252\125\252\125\252' | dd of="$work/flipped.h5" bs=1 seek="$at" conv=notrunc status=none
        cmp -s "$work/shard/shard.h5" "$work/flipped.h5" && continue
        run "$bin/moe-inspect" file "$work/flipped.h5"
        # Bytes between the chunks belong to nothing: then every value must still be right.
        [ "$status" -eq 3 ] || [ "$(hash_of "$work/flipped.h5")" = "$(hash_of "$work/shard/shard.h5")" ]
    done
    copy_model && sed -i 's/"vocab_size": 384/"vocab_size": 300/' "$work/broken/config.json"
    "$bin/moe-convert" init convert.config="$work/broken/config.json" output.dir="$work/small" run.force=true
    refused 3 "tokenizer" train model.path="$work/small/model"
}

@test "bad, empty and overlong records are skipped and located, or fail the run" {
    printf '{"text": "one good record"}\n{"text": 3}\n{"text": ""}\n{"txt": "no field"}\n{broken\n{"text": "another good record"}\n' > "$work/mixed.jsonl"
    "$bin/moe-shard" build dataset.inputs="m=$work/mixed.jsonl" tokenizer.path="$work/tok" output.dir="$work/mixed"
    [ "$(wc -l < "$work/mixed/shard.h5.bad.jsonl")" -eq 4 ]
    grep -q '"line": 5' "$work/mixed/shard.h5.bad.jsonl"
    refused 3 "line 2" "$bin/moe-shard" build dataset.inputs="m=$work/mixed.jsonl" dataset.on_bad=fail tokenizer.path="$work/tok" output.dir="$work/out"
    printf '{"text": "%s"}\n{"text": "short"}\n' "$(seq -s ' ' 2000)" > "$work/long.jsonl"
    for way in cut:2 skip:1; do
        "$bin/moe-shard" build dataset.inputs="l=$work/long.jsonl" dataset.max_length=64 dataset.on_long=${way%:*} tokenizer.path="$work/tok" output.dir="$work/long-${way%:*}"
        run "$bin/moe-inspect" file "$work/long-${way%:*}/shard.h5"
        [[ "$output" == *"token shard: ${way#*:} records"* ]]
    done
    "$bin/moe-shard" build dataset.inputs="l=$work/long.jsonl" dataset.max_length=64 dataset.on_long=split tokenizer.path="$work/tok" output.dir="$work/long-split"
    run "$bin/moe-inspect" file "$work/long-split/shard.h5"
    [[ "$output" == *"longest 64"* ]]
    refused 3 "no record" "$bin/moe-shard" build dataset.inputs="m=/dev/null" tokenizer.path="$work/tok" output.dir="$work/out" || [ "$status" -eq 3 ]
}

@test "a selection larger than the data says how many there are" {
    "$bin/moe-score" model.path="$work/convert/model" score.scores=good_mass,random dataset.path="$work/shard/shard.h5" output.dir="$work/score"
    refused 3 "300" "$bin/moe-select" select scores.path="$work/score/scores.h5" select.selection_count=9999 dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" \
        tokenizer.path="$work/tok" output.dir="$work/out"
    refused 3 "good_mass" "$bin/moe-select" select scores.path="$work/score/scores.h5" select.score=quality dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" \
        tokenizer.path="$work/tok" output.dir="$work/out"
    sed 's/text/t_xt/' "$work/a.jsonl" > "$work/changed.jsonl"
    refused 3 "changed.jsonl" "$bin/moe-select" select scores.path="$work/score/scores.h5" dataset.inputs="a=$work/changed.jsonl,b=$work/b.jsonl" tokenizer.path="$work/tok" \
        output.dir="$work/out"
}

@test "no disk space: nothing under the final name" {
    MB_TEST_FREE_BYTES=1000 refused 1 "space" train model.path="$work/init/model"
    [ ! -e "$work/out/final" ]
    MB_TEST_FREE_BYTES=1000 refused 1 "space" "$bin/moe-shard" build dataset.inputs="a=$work/a.jsonl" tokenizer.path="$work/tok" output.dir="$work/out"
    [ ! -e "$work/out/shard.h5" ]
}

@test "two jobs on one stage: the second is refused and told who holds it" {
    train model.path="$work/init/model" training.max_steps=500 training.epochs=100 &
    pid=$!
    for _ in $(seq 200); do [ -f "$work/out/metrics.jsonl" ] && break; sleep 0.02; done
    run train model.path="$work/init/model"
    echo "$output"
    [ "$status" -eq 1 ]
    [[ "$output" == *"held"* || "$output" == *"lease"* ]]
    pkill -KILL -P $pid 2> /dev/null || true
    kill -KILL $pid 2> /dev/null || true
    wait $pid || true
}

@test "conversions that cannot be right are refused" {
    refused 2 "trash" "$bin/moe-convert" trash model.path="$work/convert/model" output.dir="$work/out"
    sed -e 's/"hidden_size": 128/"hidden_size": 32/; s/"head_dim": 32/"head_dim": 8/; s/"intermediate_size": 344/"intermediate_size": 48/; s/"vocab_size": 2048/"vocab_size": 384/' conf/model/demo-target.json > "$work/dense.json"
    "$bin/moe-convert" init convert.config="$work/dense.json" tokenizer.path="$work/tok" output.dir="$work/dense"
    refused 2 "upcycle" "$bin/moe-convert" trash model.path="$work/dense/model" output.dir="$work/out"
    refused 2 "model.adapter" "$bin/moe-convert" merge model.path="$work/dense/model" output.dir="$work/out"
    refused 2 "merge it" "$bin/moe-convert" full model.path="$work/dense/model" model.adapter="$work/none" output.dir="$work/out"
    refused 2 "peft_mode=lora" "$bin/moe-train" model.path="$work/dense/model" model.quantize=int4 dataset.path="$work/shard/shard.h5" output.dir="$work/out"
    refused 2 "contradict" "$bin/moe-train" model.path="$work/dense/model" model.quantize=int8 model.load_in_4bit=true dataset.path="$work/shard/shard.h5" output.dir="$work/out"
}

@test "tasks: one name twice and few-shot where there is none are refused before scoring; named tasks are kept apart" {
    for i in 1 2 3; do printf '{"query": "Question: %s?\\nAnswer:", "choices": ["yes", "no", "no idea"], "gold": %s}\n' $i $((i - 1)); done > "$work/mc.jsonl"
    evaluate() { "$bin/moe-eval" model.path="$work/init/model" output.dir="$work/out" "$@"; }
    refused 2 "mine:choice" evaluate eval.tasks="choice=$work/mc.jsonl,choice=$work/mc.jsonl"
    refused 3 "few" evaluate eval.tasks="arc_easy=$work/mc.jsonl" eval.num_fewshot=5
    refused 3 "nowhere.jsonl" evaluate eval.tasks="choice=$work/nowhere.jsonl"
    evaluate eval.tasks="choice=$work/mc.jsonl,again:choice=$work/mc.jsonl"
    grep -q '"mc"' "$work/out/results.json"
    grep -q '"again"' "$work/out/results.json"
    run "$bin/moe-inspect" file "$work/out/eval.h5"
    [[ "$output" == *"/choice/again/acc"* ]]
}
