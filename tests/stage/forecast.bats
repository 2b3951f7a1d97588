# moe-config forecast: before anything is there, beside what programs then say, need, write and take; and when it refuses.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    cat > "$work/tiny.cfg" <<CFG
study: { name = "forecast-test"; selector = ""; target = ""; selector_config = "$work/config.json"; target_config = "$work/config.json"; };
dataset: { max_length = 96; };
tokenizer: { dataset: { inputs = "a=$work/a.jsonl"; }; tokenizer: { vocab_size = 384; }; };
shard-corpus: { dataset: { inputs = "a=$work/a.jsonl,b=$work/b.jsonl"; }; };
shard-mix: { dataset: { total = 40; validation = 5; inputs = ( { name = "a"; path = "$work/a.jsonl"; weight = 0.75; }, { name = "b"; path = "$work/b.jsonl"; weight = 0.25; } ); }; };
pretrain: { training: { max_steps = 6; batch_size = 4; gradient_accumulation_steps = 2; }; slurm: { nodes = 2; ntasks = 2; }; };
warmup: { dataset: { subset_ratio = 0.5; }; training: { objective = "router_warmup"; epochs = 2; batch_size = 4; gradient_accumulation_steps = 2; save = "delta"; }; };
score: { score: { scores = "good_mass,perplexity,length"; }; };
finetune: { training: { peft_mode = "lora"; epochs = 1; batch_size = 4; gradient_accumulation_steps = 2; lora: { r = 4; target_modules = "all-linear"; }; }; };
eval: { eval: { tile_tokens = 512; }; };
CFG
}
setup() {
    load common.bash
    mb_setup
}

forecast() { "$bin/moe-config" forecast history=none out="$work/out.json" "$@"; }

# field NAME [FILE]: a member of the JSON, parts with dots.
field() {
    "${MB_PYTHON:-python3}" -c 'import functools, json, sys
value = functools.reduce(lambda a, b: a[b], sys.argv[1].split("."), json.load(open(sys.argv[2], encoding="utf-8")))
print(value if isinstance(value, (str, bool)) else f"{value:.10g}")' "$1" "${2:-$work/out.json}"
}

near() { # near A B SHARE: within a share of B
    awk -v a="$1" -v b="$2" -v s="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; if (b == 0 || d > s * b) { print a " is not within " s " of " b; exit 1 } }'
}

train_words() { # train_words NAME: the words of a training stage
    words=("model.path=$work/init/model" "dataset.path=$work/shard/shard.h5" training.batch_size=4 training.gradient_accumulation_steps=2 training.max_steps=3 "output.dir=$work/$1")
}

@test "every stage of a study has a forecast before anything was made" {
    for group in tokenizer shard-corpus pretrain warmup score finetune eval; do
        run forecast file="$work/tiny.cfg" group=$group threads=2
        echo "$output"
        [ "$status" -eq 0 ]
        [[ "$output" == *"forecast of $group"* ]]
        [[ "$output" == *"memory "*" MiB a rank"* ]]
        [[ "$output" != *"time      unknown"* ]]
    done
    run forecast file="$work/tiny.cfg" group=warmup
    [[ "$output" == *"config.json with 2 trash experts"* ]]
    run forecast file="$work/tiny.cfg" group=pretrain
    [[ "$output" == *"2 nodes, 2 ranks"* ]] # slurm.* of the group
}

@test "memory by kind is what moe-train says of the open model" {
    local cases=(
        "training.objective=lm"
        "model.dtype=bf16 training.recompute=blocks"
        "training.peft_mode=lora training.lora.r=8 training.lora.target_modules=all-linear"
        "training.peft_mode=full_rank"
        "model.quantize=int8 training.peft_mode=lora"
        "training.zero=2 dataset.subset_ratio=0.3"
        "model.path=$work/convert/model training.objective=router_warmup dataset.subset_ratio=0.5"
    )
    for case in "${cases[@]}"; do
        train_words dry
        # shellcheck disable=SC2206
        words+=($case)
        "$bin/moe-train" --dry-run "${words[@]}" > "$work/dry.log" 2>&1
        forecast program=moe-train threads=1 -- "${words[@]}" > /dev/null
        for kind in weights trained optimiser gradients activations; do
            said=$(sed -n "s/.*memory forecast per rank.*[,:] $kind \([0-9.]*\).*/\1/p" "$work/dry.log")
            ours=$(field "memory.$kind")
            echo "$case: $kind ${said:-0} MiB, $ours bytes"
            awk -v a="${said:-0}" -v b="$ours" 'BEGIN { d = a - b / 1048576; exit !(d < 0.051 && d > -0.051) }'
        done
    done
}

@test "tokens and steps of a shard are those that the run then takes" {
    train_words run
    forecast program=moe-train threads=1 -- "${words[@]}" > /dev/null
    "$bin/moe-train" "${words[@]}"
    [ "$(field tokens)" = "$(field results.tokens "$work/run/done.json")" ]
    [ "$(field steps)" = "$(field results.steps "$work/run/done.json")" ]
    near "$(field "files.weights.bytes")" "$(du -cb "$work"/run/epoch_1/*.safetensors | tail -n 1 | cut -f1)" 0.05
    train_words warm
    words+=("model.path=$work/convert/model" training.objective=router_warmup training.max_steps=0 training.epochs=2 dataset.subset_ratio=0.5)
    forecast program=moe-train threads=1 -- "${words[@]}" > /dev/null
    "$bin/moe-train" "${words[@]}"
    [ "$(field tokens)" = "$(field results.tokens "$work/warm/done.json")" ]
    [ "$(field steps)" = "$(field results.steps "$work/warm/done.json")" ]
}

@test "text that is not sharded yet is counted with the tokenizer that is there" {
    forecast program=moe-shard -- build "$work/tiny.cfg" stage=shard-corpus tokenizer.path="$work/tok" > /dev/null
    near "$(field tokens)" "$(field results.tokens "$work/shard/done.json")" 0.02
    near "$(field records)" "$(field results.records "$work/shard/done.json")" 0.02
    near "$(field "files.shard.bytes")" "$(stat -c %s "$work/shard/shard.h5")" 0.1
    # A stage that reads the shard finds the same files through the study.
    forecast program=moe-score -- "$work/tiny.cfg" stage=score model.path="$work/convert/model" score.source_model="$work/init/model" \
        dataset.path="$work/nowhere/shard-corpus/shard.h5" output.dir="$work/score" > /dev/null
    near "$(field tokens)" "$(field results.tokens "$work/shard/done.json")" 0.02
    # A mix: what is drawn and held back of each input.
    forecast program=moe-shard -- build "$work/tiny.cfg" stage=shard-mix tokenizer.path="$work/tok" > /dev/null
    [ "$(field records)" = 40 ]
    forecast program=moe-shard -- build "$work/tiny.cfg" stage=shard-corpus tokenizer.path="$work/tok" dataset.validation=5 > /dev/null
    [ "$(field records)" = "$(($(wc -l < "$work/a.jsonl") + $(wc -l < "$work/b.jsonl") - 10))" ]
}

@test "a score table is as large as forecast" {
    "$bin/moe-score" model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" output.dir="$work/score"
    forecast program=moe-score -- model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" output.dir="$work/score" > /dev/null
    near "$(field "files.score table.bytes")" "$(stat -c %s "$work/score/scores.h5")" 0.25
    [ "$(field tokens)" = "$(field results.tokens "$work/score/done.json")" ]
}

@test "log-probabilities are forecast as what they are: the whole model with its head, and two columns" {
    local words=(model.path="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=1024) of_perplexity of_entropy
    forecast program=moe-score -- "${words[@]}" score.scores=perplexity output.dir="$work/p" > /dev/null
    of_perplexity=$(field flops)
    forecast program=moe-score -- "${words[@]}" score.scores=entropy output.dir="$work/e" > /dev/null
    of_entropy=$(field flops)
    "$bin/moe-score" "${words[@]}" score.scores=logprob output.dir="$work/logprob"
    forecast program=moe-score -- "${words[@]}" score.scores=logprob output.dir="$work/logprob" > /dev/null
    [ "$(field flops)" = "$of_perplexity" ]
    awk -v a="$of_perplexity" -v b="$of_entropy" 'BEGIN { exit !(a > 1.1 * b) }'
    near "$(field "files.score table.bytes")" "$(stat -c %s "$work/logprob/scores.h5")" 0.25
    near "$(field memory.activations)" "$(field results.memory_activations_forecast "$work/logprob/done.json")" 0.02
}

@test "what does not fit is refused with what helps, and that helps" {
    train_words fit
    words+=(training.batch_size=200)
    forecast program=moe-train threads=1 ranks=2 -- "${words[@]}" > /dev/null
    need=$(field node_bytes)
    limit=$(awk -v n="$need" 'BEGIN { printf "%.6f", 0.9 * n / 1073741824 }')
    run forecast program=moe-train threads=1 ranks=2 node_memory_gib="$limit" -- "${words[@]}"
    echo "$output"
    [ "$status" -eq 2 ]
    [[ "$output" == *"fit does not fit: a node needs"*"most of it are activations"* ]]
    [[ "$output" == *"half the ranks per node ("*", fits)"* ]]
    [[ "$output" == *"training.recompute=blocks ("* ]]
    [[ "$(field problem)" == *"a node needs"* ]]
    forecast program=moe-train threads=1 ranks=1 node_memory_gib="$limit" -- "${words[@]}"
    run forecast program=moe-train threads=1 max_minutes=1e-9 -- "${words[@]}"
    echo "$output"
    [ "$status" -eq 2 ]
    [[ "$output" == *"minutes and may take"* ]]
    MB_TEST=1 run forecast program=moe-train threads=1 ranks=9 -- "${words[@]}"
    [ "$status" -eq 2 ]
    [[ "$output" == *"9 ranks, and a step has 2 lanes"* ]]
}

@test "a finished run of the same work is the forecast of the next; other work is not" {
    train_words past/run1/sft
    words+=(training.max_steps=40)
    "$bin/moe-train" "${words[@]}"
    run "$bin/moe-config" forecast program=moe-train threads=1 history="$work/past" out="$work/out.json" -- "${words[@]}" training.max_steps=80 training.learning_rate=1e-5
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"measured: "*"past/run1/sft"* ]]
    twice=$(awk -v s="$(field results.train_seconds "$work/past/run1/sft/done.json")" 'BEGIN { print 2 * s }')
    near "$(field compute_seconds)" "$twice" 0.05
    for other in model.dtype=bf16 training.peft_mode=full_rank training.recompute=blocks "model.path=$work/convert/model"; do
        run "$bin/moe-config" forecast program=moe-train threads=1 history="$work/past" -- "${words[@]}" "$other"
        echo "$output"
        [[ "$output" == *"estimated from"*"no record of the same work"* ]]
    done
    run "$bin/moe-config" forecast program=moe-train threads=2 history="$work/past" -- "${words[@]}"
    [[ "$output" == *"scaled to this job's ranks and threads"* ]]
}

@test "rates of a file are used, and a broken one is named" {
    train_words rates
    printf '{"name": "slow", "cores": 1, "threads": 1, "gflops": {"f32": 0.1}, "memory_gb_per_s": 0.1}' > "$work/slow.json"
    printf '{"name": "fast", "cores": 1, "threads": 1, "gflops": {"f32": 10}, "memory_gb_per_s": 10}' > "$work/fast.json"
    forecast program=moe-train machine="$work/slow.json" -- "${words[@]}" > /dev/null
    slow=$(field compute_seconds)
    run forecast program=moe-train machine="$work/fast.json" -- "${words[@]}"
    [[ "$output" == *"the rates of fast"* ]]
    awk -v a="$slow" -v b="$(field compute_seconds)" 'BEGIN { exit !(a > 50 * b) }'
    printf '{"cores": 2, "gflops": {"f32": 0}}' > "$work/broken.json"
    run forecast program=moe-train machine="$work/broken.json" -- "${words[@]}"
    [ "$status" -ne 0 ]
    [[ "$output" == *"broken.json: gflops.f32 is 0"* ]]
}

@test "mistakes in the stage's words are refused as the program would" {
    train_words wrong
    run forecast program=moe-train -- "${words[@]}" training.lerning_rate=1
    [ "$status" -eq 2 ]
    [[ "$output" == *"unknown key 'training.lerning_rate'; did you mean training.learning_rate"* ]]
    run forecast program=moe-trian -- "${words[@]}"
    [ "$status" -eq 2 ]
    [[ "$output" == *"did you mean moe-train"* ]]
    run forecast program=moe-train -- model.path=/nowhere/x dataset.path="$work/shard/shard.h5"
    [ "$status" -eq 2 ]
    [[ "$output" == *"give arch=CONFIG.JSON"* ]]
    run forecast program=moe-train arch="$work/config.json" threads=1 -- model.path=/nowhere/x dataset.path="$work/shard/shard.h5"
    [ "$status" -eq 0 ]
    run forecast program=moe-train threads=1 -- model.path="$work/init/model" dataset.path=/nowhere/y.h5
    [ "$status" -eq 0 ]
    [[ "$output" == *"unknown:"*"give records= and tokens="* ]]
    run forecast program=moe-train threads=1 records=1000 tokens=90000 -- model.path="$work/init/model" dataset.path=/nowhere/y.h5
    [[ "$output" == *"about "*"tokens/s"* ]]
}
