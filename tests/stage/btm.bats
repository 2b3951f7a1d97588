# A router between two models: trains at both levels to the same bits on any ranks and after kills, keeps the best by the validation loss, and what it leaves opens
# wherever a model does.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_target_config
    {
        "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok"
        for name in a b ab; do
            local inputs="$name=$work/$name.jsonl"
            [ $name != ab ] || inputs="a=$work/a.jsonl,b=$work/b.jsonl"
            "$bin/moe-shard" build dataset.inputs="$inputs" dataset.max_length=64 tokenizer.path="$work/tok" output.dir="$work/shard_$name"
        done
        "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/init"
        member foundation init/model a 8
        member sft foundation/final b 8
    } > "$work/setup.log" 2>&1
    "${CC:-cc}" -D_GNU_SOURCE -std=c17 -shared -fPIC tests/stage/interrupt.c -o "$work/interrupt.so" -ldl
}
setup() {
    load common.bash
    mb_setup
}

member() { # member NAME FROM SHARD STEPS
    "$bin/moe-train" model.path="$work/$2" dataset.path="$work/shard_$3/shard.h5" training.max_steps="$4" training.batch_size=8 training.gradient_accumulation_steps=1 \
        training.learning_rate=1e-2 output.dir="$work/$1"
}
pair() { pair=(fuse.foundation="$work/foundation/final" fuse.sft="$work/sft/final"); }
train() { # train NAME RANKS key=value...
    local pair
    pair
    ranks "$2" "$bin/moe-train" training.objective=btm "${pair[@]}" fuse.router_hidden=16 dataset.path="$work/shard_ab/shard.h5" \
        training.validation_path="$work/shard_b/shard.h5" training.validation_samples=24 training.validation_steps=3 training.batch_size=2 \
        training.gradient_accumulation_steps=4 training.learning_rate=2e-2 training.lr_scheduler_type=constant training.max_steps=9 training.logging_steps=1 training.save_steps=4 \
        output.dir="$work/$1" "${@:3}"
}
curve() { sed 's/, "provenance[^,]*//g; s/, "time".*//' "$work/$1/metrics.jsonl"; }
same_run() { # same_run A B
    [ "$(curve "$1")" = "$(curve "$2")" ]
    for file in metrics.h5 final best best_router; do [ "$(hash_of "$work/$1/$file")" = "$(hash_of "$work/$2/$file")" ]; done
    [ "$(readlink "$work/$1/best")" = "$(readlink "$work/$2/best")" ]
    [ "$(find "$work/$2" -maxdepth 1 -name 'best_[0-9]*' | wc -l)" -eq 1 ]
}

# The step and lm_loss of the lowest validation loss, from the curve.
lowest() {
    "${MB_PYTHON:-python3}" - "$work/$1/metrics.jsonl" <<'PYTHON'
import json, sys
rows = [r for r in map(json.loads, open(sys.argv[1], encoding="utf-8")) if "validation/loss" in r]
assert len(rows) == 4, rows
best = min(rows, key=lambda r: r["validation/loss"])
print(best["step"], best["validation/lm_loss"])
for r in rows:
    assert abs(r["validation/share/foundation"] + r["validation/share/sft"] - 1) < 1e-6 and 1 <= r["validation/balance"] <= 2, r
PYTHON
}

level() { # level token_level|layer_level
    local kind=$1 step loss
    train "$kind" 1 fuse.router_type="$kind"
    read -r step loss <<< "$(lowest "$kind")"
    [ "$(readlink "$work/$kind/best")" = "best_$step" ]
    [ "$(readlink "$work/$kind/best_router")" = best ]
    "$bin/moe-inspect" file "$work/$kind/best_router" > "$work/said"
    cat "$work/said"
    grep -q "fused model: $kind, 2 members, a router of " "$work/said"
    grep -q "  sft: .*sft/epoch_1, hash [0-9a-f]*, weight 0.5" "$work/said"
    need_mpi
    train "$kind.2" 2 fuse.router_type="$kind" training.zero=1
    same_run "$kind" "$kind.2"
    # Killed in front of a validation's line of the curve, and when the link names a new best, before there is a state that comes after it.
    local at number call where n
    for at in 8:write:cut/metrics.jsonl:2 3:rename:cut/best_router:1; do
        IFS=: read -r number call where n <<< "$at"
        rm -rf "$work/cut" "$work/mark"
        MB_INTERRUPT=9:$number MB_INTERRUPT_CALL=$call MB_INTERRUPT_PATH=$where MB_INTERRUPT_MARK=$work/mark LD_PRELOAD=$work/interrupt.so \
            ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}:verify_asan_link_order=0" train cut "$n" fuse.router_type="$kind" > "$work/log" 2>&1 && return 1
        cat "$work/mark"
        if [ "$call" = rename ]; then
            [ "$(readlink "$work/cut/best")" = best_6 ]
            [ -d "$work/cut/best_3" ]
            [ -d "$work/cut/state/step_4" ]
        fi
        [ -s "$work/mark" ]
        [ ! -e "$work/cut/done.json" ]
        train cut $((3 - n)) fuse.router_type="$kind"
        same_run "$kind" cut
    done
}

@test "token level: equal bits on 1 and 2 ranks and after kills, the best router is kept" { level token_level; }
@test "layer level: equal bits on 1 and 2 ranks and after kills, the best router is kept" { level layer_level; }

@test "what it leaves is a model: perplexity of the best router as validated, scores, and training goes on from it" {
    [ -d "$work/token_level" ] || train token_level 1 fuse.router_type=token_level
    train all 1 fuse.router_type=token_level training.validation_samples=0 training.load_balance_weight=0 training.sparsity_weight=0
    read -r step loss <<< "$(lowest all)"
    "$bin/moe-eval" model.path="$work/all/best_router" dataset.path="$work/shard_b/shard.h5" output.dir="$work/eval"
    "$bin/moe-eval" fuse.router="$work/all/best" dataset.path="$work/shard_b/shard.h5" output.dir="$work/eval2"
    local pair
    pair
    "$bin/moe-eval" "${pair[@]}" fuse.sft_weight=1.5 dataset.path="$work/shard_b/shard.h5" output.dir="$work/eval3"
    "$bin/moe-score" fuse.router="$work/all/best" score.scores=perplexity dataset.path="$work/shard_b/shard.h5" output.dir="$work/score"
    "${MB_PYTHON:-python3}" - "$work" "$loss" <<'PYTHON'
import json, math, sys
work, loss = sys.argv[1], float(sys.argv[2])
def perplexity(name):
    found = []
    def walk(value, key=""):
        if isinstance(value, dict):
            for k, v in value.items(): walk(v, k)
        elif isinstance(value, float) and key.startswith("token_perplexity") or key == "perplexity": found.append(value)
    walk(json.load(open(f"{work}/{name}/results.json")))
    return found[0]
assert abs(math.log(perplexity("eval")) - loss) < 1e-5, (math.log(perplexity("eval")), loss)
assert perplexity("eval2") == perplexity("eval") and perplexity("eval3") != perplexity("eval")
PYTHON
    "$bin/moe-train" training.objective=btm fuse.router="$work/all/best" dataset.path="$work/shard_a/shard.h5" training.max_steps=1 output.dir="$work/on"
    [ ! -e "$work/on/best" ] # no validation, no best
    cmp "$work/on/final/fuse.json" "$work/all/best/fuse.json"
    ! cmp -s "$work/on/final/router.safetensors" "$work/all/best/router.safetensors"
}

@test "what does not fit is refused with its key" {
    local pair
    pair
    run train no 1 model.path="$work/init/model"
    [ "$status" -eq 2 ]
    [[ $output == *"model.path and fuse.foundation, fuse.sft both name a model"* ]]
    run train no 1 training.peft_mode=lora
    [ "$status" -eq 2 ]
    [[ $output == *"training.peft_mode = lora does not go with training.objective = btm"* ]]
    run train no 1 fuse.members_on=ranks
    [ "$status" -eq 2 ]
    [[ $output == *"fuse.members_on = ranks"* ]]
    run train no 1 training.zero=3
    [ "$status" -eq 2 ]
    [[ $output == *"training.zero = 3"* ]]
    run train no 1 training.student_init=sft
    [ "$status" -eq 2 ]
    [[ $output == *"training.student_init is for training.objective=distil"* ]]
    run "$bin/moe-train" "${pair[@]}" dataset.path="$work/shard_a/shard.h5" output.dir="$work/no"
    [ "$status" -eq 2 ]
    [[ $output == *"training.objective=btm"* ]]
    run "$bin/moe-train" training.objective=btm model.path="$work/init/model" dataset.path="$work/shard_a/shard.h5" output.dir="$work/no"
    [ "$status" -eq 2 ]
    [[ $output == *"is an ordinary one (no fuse.json)"* ]]
    run "$bin/moe-train" training.objective=btm fuse.foundation="$work/init/model" dataset.path="$work/shard_a/shard.h5" output.dir="$work/no"
    [ "$status" -eq 2 ]
    [[ $output == *"fuse.sft is missing"* ]]
    run "$bin/moe-train" model.path="$work/init/model" training.save_best=true dataset.path="$work/shard_a/shard.h5" output.dir="$work/no"
    [ "$status" -eq 2 ]
    [[ $output == *"give training.validation_path"* ]]
    run "$bin/moe-eval" fuse.router="$work/init/model" dataset.path="$work/shard_a/shard.h5" output.dir="$work/no"
    [ "$status" -eq 2 ]
    [[ $output == *"is no folder of a fused model"* ]]
}
