# The same bits on any number of ranks, and after a kill.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
}
setup() {
    load common.bash
    mb_setup
}

train() { # train NAME RANKS key=value...
    local name=$1 n=$2
    shift 2
    ranks "$n" "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.objective=lm training.epochs=1 training.batch_size=4 \
        training.gradient_accumulation_steps=8 training.learning_rate=3e-3 training.lr_scheduler_type=cosine training.logging_steps=1 output.dir="$work/$name" "$@"
}
curve() { grep -o '"loss": *[-0-9.e+]*' "$work/$1/metrics.jsonl"; }

@test "a shard does not depend on the number of ranks" {
    need_mpi
    for n in 2 3 4; do
        ranks $n "$bin/moe-shard" build dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/shard$n"
        [ "$(hash_of "$work/shard$n/shard.h5")" = "$(hash_of "$work/shard/shard.h5")" ]
    done
}

@test "training gives the same curve and the same weights on 1, 2, 3 and 4 ranks" {
    need_mpi
    train full1 1
    for n in 2 3 4; do
        train full$n $n
        cmp "$work/full1/final/model.safetensors" "$work/full$n/final/model.safetensors"
        [ "$(curve full1)" = "$(curve full$n)" ]
    done
    [ "$(curve full1 | wc -l)" -ge 5 ]
}

@test "gradients and parameters cut over the ranks give the same weights on 1, 2, 3 and 4 ranks" {
    need_mpi
    [ -d "$work/full1" ] || train full1 1
    for zero in 2 3; do
        for n in 1 2 3 4; do
            train "zero$zero.$n" "$n" training.zero=$zero
            cmp "$work/full1/final/model.safetensors" "$work/zero$zero.$n/final/model.safetensors"
            [ "$(curve full1)" = "$(curve "zero$zero.$n")" ]
        done
    done
}

@test "with several rounds ZeRO-2 and 3 have an order of their own, the same on every number of ranks" {
    need_mpi
    train rounds2.1 1 training.zero=2 training.lanes=3
    for n in 2 3; do
        train "rounds3.$n" "$n" training.zero=3 model.fetch_ahead=true training.lanes=3 training.recompute=blocks
        cmp "$work/rounds2.1/final/model.safetensors" "$work/rounds3.$n/final/model.safetensors"
    done
}

@test "bf16 and adapters over 4-bit weights: the same weights under every ZeRO stage" {
    need_mpi
    train bf16 1 model.dtype=bf16
    train bf16.2 2 model.dtype=bf16 training.zero=2
    train bf16.3 3 model.dtype=bf16 training.zero=3 training.gradient_checkpointing=true
    cmp "$work/bf16/final/model.safetensors" "$work/bf16.2/final/model.safetensors"
    cmp "$work/bf16/final/model.safetensors" "$work/bf16.3/final/model.safetensors"
    local adapter=(training.peft_mode=lora training.lora.r=4 training.lora.target_modules=all-linear training.lora.lora_dropout=0.1 load_in_4bit=true)
    train qlora 1 "${adapter[@]}"
    train qlora.2 2 "${adapter[@]}"
    train qlora.3 3 "${adapter[@]}" training.zero=3
    cmp "$work/qlora/final/adapter_model.safetensors" "$work/qlora.2/final/adapter_model.safetensors"
    cmp "$work/qlora/final/adapter_model.safetensors" "$work/qlora.3/final/adapter_model.safetensors"
}

@test "killed under ZeRO-3 on 3 ranks, gone on with on 2: the weights of the uninterrupted run" {
    need_mpi
    train whole3 1 training.epochs=8
    train killed3 3 training.epochs=8 training.save_steps=2 training.zero=3 &
    pid=$!
    for _ in $(seq 400); do
        [ -d "$work/killed3/state" ] && [ "$(ls "$work/killed3/state" | grep -vc tmp)" -ge 1 ] && [ "$(wc -l < "$work/killed3/metrics.jsonl")" -ge 4 ] && break
        sleep 0.02
    done
    pkill -KILL -P $pid 2> /dev/null || true
    kill -KILL $pid 2> /dev/null || true
    wait $pid || true
    [ ! -e "$work/killed3/done.json" ]
    for _ in $(seq 100); do pgrep -f "output.dir=$work/killed3" > /dev/null || break; sleep 0.1; done
    train killed3 2 training.epochs=8 training.save_steps=2 training.zero=3
    cmp "$work/whole3/final/model.safetensors" "$work/killed3/final/model.safetensors"
    [ "$(curve whole3)" = "$(curve killed3)" ]
}

@test "router warm-up gives the same weights on 1, 2 and 4 ranks, and changes only the gates" {
    need_mpi
    for n in 1 2 4; do
        ranks $n "$bin/moe-train" model.path="$work/convert/model" dataset.path="$work/shard/shard.h5" dataset.subset_ratio=0.5 training.objective=router_warmup training.batch_size=4 \
            training.gradient_accumulation_steps=4 training.learning_rate=1e-3 output.dir="$work/warm$n"
        cmp "$work/warm1/final/model.safetensors" "$work/warm$n/final/model.safetensors"
    done
    run "$bin/moe-convert" verify model.path="$work/convert/model" convert.target="$work/warm1/final"
    echo "$output"
    [ "$status" -eq 3 ]
    [[ "$output" == *"2 tensors of"*"mlp.gate.weight"* ]]
}

@test "killed in mid-epoch and run again: the weights of the uninterrupted run" {
    train whole 1 training.epochs=8
    for moment in 1 2; do
        train killed 1 training.epochs=8 training.save_steps=2 &
        pid=$!
        for _ in $(seq 400); do
            [ -d "$work/killed/state" ] && [ "$(ls "$work/killed/state" | grep -v tmp | wc -l)" -ge 1 ] && [ "$(wc -l < "$work/killed/metrics.jsonl")" -ge $((4 * moment)) ] && break
            sleep 0.02
        done
        pkill -KILL -P $pid 2> /dev/null || true
        kill -KILL $pid 2> /dev/null || true
        wait $pid || true
    done
    [ ! -e "$work/killed/done.json" ]
    train killed 1 training.epochs=8 training.save_steps=2
    cmp "$work/whole/final/model.safetensors" "$work/killed/final/model.safetensors"
    [ "$(curve whole)" = "$(curve killed)" ]
}

@test "stopped by USR2: exit 75, and going on with another number of ranks gives the same weights" {
    need_mpi
    train plain 1 training.epochs=8
    train stopped 1 training.epochs=8 &
    pid=$!
    for _ in $(seq 400); do
        [ -f "$work/stopped/metrics.jsonl" ] && [ "$(wc -l < "$work/stopped/metrics.jsonl")" -ge 3 ] && break
        sleep 0.02
    done
    pkill -USR2 -P $pid moe-train || kill -USR2 $pid
    code=0
    wait $pid || code=$?
    [ "$code" -eq 75 ]
    train stopped 2 training.epochs=8
    cmp "$work/plain/final/model.safetensors" "$work/stopped/final/model.safetensors"
}

@test "scores and selections have the same hashes on 1, 2, 3 and 4 ranks" {
    need_mpi
    for n in 1 2 3 4; do
        ranks $n "$bin/moe-score" model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=512 \
            output.dir="$work/score$n"
        ranks $n "$bin/moe-select" select scores.path="$work/score1/scores.h5" select.selection_percentage=0.2 dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" \
            tokenizer.path="$work/tok" output.dir="$work/select$n"
        [ "$(hash_of "$work/score$n/scores.h5")" = "$(hash_of "$work/score1/scores.h5")" ]
        [ "$(hash_of "$work/select$n/selection.h5")" = "$(hash_of "$work/select1/selection.h5")" ]
        cmp "$work/select$n/selected_data.jsonl" "$work/select1/selected_data.jsonl"
    done
    [ "$(wc -l < "$work/select1/selected_data.jsonl")" -eq 60 ]
    ranks 3 "$bin/moe-score" model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=512 \
        model.shard=true model.fetch_ahead=true output.dir="$work/score_sharded"
    [ "$(hash_of "$work/score_sharded/scores.h5")" = "$(hash_of "$work/score1/scores.h5")" ]
}

@test "evaluation is the same on 1 and 3 ranks" {
    need_mpi
    for n in 1 3; do
        ranks $n "$bin/moe-eval" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" eval.tile_tokens=512 output.dir="$work/eval$n"
    done
    cmp "$work/eval1/results.json" "$work/eval3/results.json"
}

@test "routing is the same on 1 and 3 ranks and of a model cut over them, and changes no perplexity" {
    need_mpi
    route() { ranks "$1" "$bin/moe-eval" model.path="$work/convert/model" dataset.path="$work/shard/shard.h5" eval.tile_tokens=512 eval.routing=true "${@:3}" output.dir="$work/$2"; }
    route 1 routing1
    route 3 routing3
    route 3 routing_cut model.shard=true
    route 1 routing_seed eval.routing_seed=7
    route 1 plain eval.routing=false
    for other in routing3 routing_cut; do
        cmp "$work/routing1/results.json" "$work/$other/results.json"
        [ "$(hash_of "$work/routing1/routing.h5")" = "$(hash_of "$work/$other/routing.h5")" ]
    done
    [ "$(hash_of "$work/routing1/routing.h5")" != "$(hash_of "$work/routing_seed/routing.h5")" ]
    [ "$(hash_of "$work/routing1/eval.h5")" = "$(hash_of "$work/plain/eval.h5")" ]
    [ ! -e "$work/plain/routing.h5" ]
    grep -q '"types_are": "sources"' "$work/routing1/results.json"
    run "$bin/moe-eval" model.path="$work/convert/model" eval.routing=true eval.tasks="choice=$work/a.jsonl" output.dir="$work/none"
    [ "$status" -eq 2 ]
    [[ "$output" == *"eval.routing needs records"* ]]
}

@test "a rank that fails alone ends all ranks with its code" {
    need_mpi
    run timeout 60 bash -c "$(declare -f ranks); ranks 3 \"\$@\"" - "$bin/moe-train" model.path="$work/missing" dataset.path="$work/shard/shard.h5" output.dir="$work/none"
    [ "$status" -eq 3 ]
}

@test "one rank of three told to stop inside a step of ZeRO-2 and 3: all stop with exit 75, and going on gives the same weights" {
    need_mpi
    [ -d "$work/plain3" ] || train plain3 1 training.epochs=8
    for zero in 2 3; do
        train "one$zero" 3 training.epochs=8 training.zero=$zero &
        pid=$!
        for _ in $(seq 400); do
            [ -f "$work/one$zero/metrics.jsonl" ] && [ "$(wc -l < "$work/one$zero/metrics.jsonl")" -ge 3 ] && break
            sleep 0.02
        done
        kill -USR2 "$(pgrep -f "moe-train.*output.dir=$work/one$zero" | tail -1)"
        code=0
        wait $pid || code=$?
        [ "$code" -eq 75 ]
        train "one$zero" 2 training.epochs=8 training.zero=$zero
        cmp "$work/plain3/final/model.safetensors" "$work/one$zero/final/model.safetensors"
    done
}
