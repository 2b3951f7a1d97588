# Validation while training, per type: its values do not depend on ranks or interruptions, training does not feel it, the record has it. And what trains by number:
# some experts of every layer.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    cat > "$work/mix.cfg" <<CFG
valid: { dataset: { max_length = 96; inputs: ( { name = "a"; path = "$work/a.jsonl"; type = "code"; }, { name = "b"; path = "$work/b.jsonl"; type = "prose"; } ); }; };
CFG
    "$bin/moe-shard" build "$work/mix.cfg" stage=valid tokenizer.path="$work/tok" output.dir="$work/valid" > /dev/null 2>&1
}
setup() {
    load common.bash
    mb_setup
}

train() { # train NAME RANKS key=value...
    ranks "$2" "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.objective=lm training.batch_size=4 \
        training.gradient_accumulation_steps=8 training.learning_rate=3e-3 training.max_steps=8 training.logging_steps=1 training.save_steps=3 output.dir="$work/$1" "${@:3}"
}
validated=(training.validation_steps=3 training.validation_samples=60 training.balance_scope=step training.router_bias_rate=1e-3)
# Steps and values of a curve, but for times.
curve() { sed 's/, "provenance[^,]*//g; s/, "time".*//' "$work/$1/metrics.jsonl"; }
result() { "${MB_PYTHON:-python3}" -c 'import json, sys; print(json.load(open(sys.argv[1]))["results"][sys.argv[2]])' "$work/$1/done.json" "$2"; }

@test "validation per type: stopped inside one and killed, on other numbers of ranks: the same curves, weights and results" {
    need_mpi
    "${CC:-cc}" -D_GNU_SOURCE -std=c17 -shared -fPIC tests/stage/interrupt.c -o "$work/interrupt.so" -ldl
    validated+=(training.validation_path="$work/valid/shard.h5")
    run train whole 1 "${validated[@]}"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"validation after step 3: loss "*"code "*"prose "* ]]
    [[ $output == *"validation: lowest loss over all "*" after step 8"*"prose "* ]]
    [ "$(curve whole | grep -c validation/code/loss)" -eq 4 ] # steps 0, 3, 6, 8
    [ "$(curve whole | grep -c '"loads": \[\[')" -eq 8 ]
    local at
    # The marks fall in front of a line of the curve: 2 is the first step's, 5 the third's, 6 its validation's.
    for at in 9:6:2:3 12:2:3:1 9:8:1:2; do
        IFS=: read -r signal number n then <<< "$at"
        rm -rf "$work/cut"
        MB_INTERRUPT=$signal:$number MB_INTERRUPT_PATH=cut/metrics.jsonl MB_INTERRUPT_MARK=$work/mark LD_PRELOAD=$work/interrupt.so \
            ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}:verify_asan_link_order=0" train cut "$n" "${validated[@]}" > "$work/log" 2>&1 && return 1
        [ ! -e "$work/cut/done.json" ]
        train cut "$then" "${validated[@]}"
        [ "$(curve whole)" = "$(curve cut)" ]
        [ "$(hash_of "$work/whole/metrics.h5")" = "$(hash_of "$work/cut/metrics.h5")" ]
        [ "$(hash_of "$work/whole/final")" = "$(hash_of "$work/cut/final")" ]
        for name in validation/loss validation/code/lm_loss validation_first_loss validation_best_step; do [ "$(result whole $name)" = "$(result cut $name)" ]; done
    done
}

@test "training does not feel its validation" {
    train without 1
    train with 2 training.validation_path="$work/valid/shard.h5" training.validation_steps=1
    [ "$(hash_of "$work/without/final")" = "$(hash_of "$work/with/final")" ]
    [ "$(curve without)" = "$(curve with | grep -v validation/)" ]
}

@test "some experts train: the others, and what is frozen beside them, are not in the delta" {
    train some 1 training.num_experts_to_train=2 training.trainable='all,!attention' training.save=delta
    train same 1 training.experts_to_train=0,1 training.trainable='all,!attention' training.save=delta
    cmp "$work/some/final/delta.safetensors" "$work/same/final/delta.safetensors"
    "${MB_PYTHON:-python3}" - "$work/some/final/delta.safetensors" <<'PYTHON'
import json, re, struct, sys
data = open(sys.argv[1], "rb").read()
names = [n for n in json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]]) if n != "__metadata__"]
experts = sorted({int(m.group(1)) for n in names if (m := re.search(r"experts\.(\d+)\.", n))})
assert experts == [0, 1], experts
assert any(n.endswith("mlp.gate.weight") for n in names) and not any("self_attn" in n for n in names), names
PYTHON
    run train some 1 training.experts_to_train=0,2 training.trainable='all,!attention' training.save=delta # another run: kept aside, not gone on with
    [ "$status" -eq 0 ]
    ! cmp "$work/some/final/delta.safetensors" "$work/same/final/delta.safetensors"
}

@test "what does not fit is refused with its key" {
    run train no 1 training.num_experts_to_train=3 training.experts_to_train=0,1
    [ "$status" -eq 2 ] && [[ $output == *"training.experts_to_train = 0,1 (2 of them) contradict"* ]]
    run train no 1 training.experts_to_train=9
    [ "$status" -eq 2 ] && [[ $output == *"there is no expert 9; those of this model are 0 .. 7"* ]]
    run train no 1 training.experts_to_train=1 training.trainable=router
    [ "$status" -eq 2 ] && [[ $output == *"and none does"* ]]
    "$bin/moe-shard" tokenizer dataset.inputs="b=$work/b.jsonl" tokenizer.vocab_size=300 output.dir="$work/other_tok" > /dev/null 2>&1
    "$bin/moe-shard" build dataset.inputs="b=$work/b.jsonl" dataset.max_length=96 tokenizer.path="$work/other_tok" output.dir="$work/other" > /dev/null 2>&1
    run train no 1 training.validation_path="$work/other/shard.h5"
    [ "$status" -eq 3 ] && [[ $output == *"was made with another tokenizer"* ]]
}
