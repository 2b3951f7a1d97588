# Interrupted and gone on with: the weights, curves and outputs of the uninterrupted run, whatever trains and on however many ranks.
#
# interrupt.c, preloaded, sends the signal at one chosen write of the run, so each test stops at the same place whatever else the machine does, and
# leaves a mark when it did.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    "${CC:-cc}" -D_GNU_SOURCE -std=c17 -shared -fPIC tests/stage/interrupt.c -o "$work/interrupt.so" -ldl
    "$bin/moe-convert" trash model.path="$work/init/model" convert.trash_init=closed output.dir="$work/closed" > /dev/null 2>&1
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
texts = [json.loads(line)["text"] for name in "ab" for line in open(f"{work}/{name}.jsonl", encoding="utf-8")]
with open(f"{work}/qa.jsonl", "w", encoding="utf-8") as out:
    for i, text in enumerate(texts):
        cut = 20 + i % 40
        out.write(json.dumps({"question": text[:cut], "answer": text[cut:]}) + "\n")
with open(f"{work}/prompts.jsonl", "w", encoding="utf-8") as out:
    for i, text in enumerate(texts[:60]):
        out.write(json.dumps({"prompt": text[: 5 + 7 * (i % 11)]}) + "\n")
PYTHON
    "$bin/moe-shard" build dataset.inputs="qa=$work/qa.jsonl" dataset.form=qa dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/qa" > /dev/null 2>&1
}
setup() {
    load common.bash
    mb_setup
}

# interrupted SIGNAL:NUMBER[:when[:rank]] PATH RANKS PROGRAM...: the signal at the NUMBER-th call that changes a file whose path holds PATH. USR2 (12) must
# end in exit code 75, KILL (9) in failure.
interrupted() {
    local at=$1 where=$2 n=$3 code=0
    shift 3
    rm -f "$work/mark"
    ranks "$n" env MB_INTERRUPT="$at" MB_INTERRUPT_PATH="$where" MB_INTERRUPT_MARK="$work/mark" LD_PRELOAD="$work/interrupt.so" \
        ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}:verify_asan_link_order=0" "$@" || code=$?
    echo "code $code, at: $(cat "$work/mark")"
    case $at in
    12:*) [ "$code" -eq 75 ] ;;
    9:0*) [ "$code" -eq 0 ] ;;
    *) [ "$code" -ne 0 ] && [ "$code" -ne 75 ] ;;
    esac
    [ -s "$work/mark" ]
}

# The command of a training run of ten steps, in `command`.
train_command() { # train_command NAME key=value...
    command=("$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.objective=lm training.batch_size=4
        training.gradient_accumulation_steps=8 training.learning_rate=3e-3 training.lr_scheduler_type=cosine training.logging_steps=1 training.save_steps=3
        output.dir="$work/$1" "${@:2}")
}
train() { # train NAME RANKS key=value...
    local command n=$2
    train_command "$1" "${@:3}"
    ranks "$n" "${command[@]}"
}
# Steps and all values of a curve, but for times.
curve() { sed 's/, "provenance[^,]*//g; s/, "time".*//' "$work/$1/metrics.jsonl"; }
same_run() { # same_run A B: weights, curves, and what of the record does not depend on machine and time
    local file
    for file in "$work/$1"/final/*.safetensors; do cmp "$file" "$work/$2/final/${file##*/}"; done
    [ "$(curve "$1")" = "$(curve "$2")" ]
    [ "$(hash_of "$work/$1/metrics.h5")" = "$(hash_of "$work/$2/metrics.h5")" ]
    [ "$(curve "$1" | wc -l)" -eq 10 ]
    [ ! -e "$work/$2/state" ]
}

# goes_on NAME SIGNAL RANKS THEN WHOLE key=value...: interrupted on RANKS ranks in mid-epoch, gone on with on THEN; the same as run WHOLE on one rank without
# interruption. KILL falls after line 6 of the curve, before state 6: steps 4 to 6 are done again. USR2 falls into step 5.
goes_on() {
    local name=$1 signal=$2 n=$3 then=$4 whole=$5 at=8 lines command
    shift 5
    need_mpi
    [ -d "$work/$whole" ] || train "$whole" 1 "$@"
    [ "$signal" -eq 9 ] || at=7
    train_command "$name" "$@"
    interrupted "$signal:$at" "$name/metrics.jsonl" "$n" "${command[@]}"
    lines=$(wc -l < "$work/$name/metrics.jsonl")
    [ "$lines" -ge 3 ] && [ "$lines" -le 7 ]
    [ ! -e "$work/$name/done.json" ] && [ ! -e "$work/$name/final" ]
    [ -n "$(ls -d "$work/$name"/state/step_[3-5])" ]
    run train "$name" "$then" "$@"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"resuming from $work/$name/state/step_"[3-5]* ]]
    same_run "$whole" "$name"
}

router=(model.path="$BATS_FILE_TMPDIR/closed/model" training.objective=router_warmup dataset.subset_ratio=0.5 training.gradient_accumulation_steps=4
    training.trash_open_steps=7)
adapter=(training.peft_mode=lora training.lora.r=4 training.lora.target_modules=all-linear)

@test "lm, all trains: killed on 2 ranks, on 3 after" { goes_on full 9 2 3 whole; }
@test "lm, ZeRO-2: killed on 3 ranks, on 2 after" { goes_on zero2 9 3 2 whole training.zero=2; }
@test "lm, ZeRO-3: USR2 on 2 ranks, on 4 after" { goes_on zero3 12 2 4 whole training.zero=3; }
@test "lm, recomputed: USR2 on 1 rank, on 2 after" { goes_on recompute 12 1 2 whole training.recompute=blocks; }
@test "lm, states written beside the steps: killed on 2 ranks, on 1 after" { goes_on beside 9 2 1 whole training.async_save=true training.save_steps=1; }
@test "lm, states written beside the steps: USR2 on 1 rank, on 3 after" { goes_on beside2 12 1 3 whole training.async_save=true training.save_steps=1; }
@test "lm in bf16: killed on 1 rank, on 2 after" { goes_on bf16 9 1 2 whole_bf16 model.dtype=bf16; }
@test "lm, adapter: USR2 on 2 ranks, on 1 after" { goes_on lora 12 2 1 whole_lora "${adapter[@]}"; }
@test "lm, adapter with dropout over 4-bit weights, ZeRO-2: killed on 2 ranks, on 3 after" {
    goes_on qlora 9 2 3 whole_qlora "${adapter[@]}" training.lora.lora_dropout=0.2 model.quantize=int4 training.zero=2
}
@test "sft: killed on 3 ranks, on 1 after" { goes_on sft 9 3 1 whole_sft training.objective=sft dataset.path="$work/qa/shard.h5"; }
@test "sft, adapter with dropout, routers trained too: USR2 on 1 rank, on 2 after" {
    goes_on sft_lora 12 1 2 whole_sft_lora training.objective=sft dataset.path="$work/qa/shard.h5" "${adapter[@]}" training.lora.lora_dropout=0.1
}
@test "only the routers, saved as delta: killed on 2 ranks, on 1 after" { goes_on delta 9 2 1 whole_delta training.trainable=router training.save=delta; }
@test "warm-up by pair_rank, the trash half open: killed on 2 ranks, on 3 after" { goes_on pair 9 2 3 whole_pair "${router[@]}"; }
@test "warm-up by beta_nll: USR2 on 2 ranks, on 1 after" { goes_on beta 12 2 1 whole_beta "${router[@]}" training.constraint_loss=beta_nll; }
@test "warm-up by moment_matching, ZeRO-3: killed on 1 rank, on 2 after" {
    goes_on moment 9 1 2 whole_moment "${router[@]}" training.constraint_loss=moment_matching training.zero=3
}
@test "warm-up by barrier, adapter on the gates: USR2 on 3 ranks, on 2 after" {
    goes_on barrier 12 3 2 whole_barrier "${router[@]}" training.constraint_loss=barrier training.peft_mode=lora training.lora.r=4
}

@test "killed at any call that changes a file: the same weights" {
    local total at done=0 command name
    [ -d "$work/whole" ] || train whole 1
    train_command count training.save_steps=2
    interrupted 9:0 "$work/count/" 1 "${command[@]}"
    total=$(cat "$work/mark")
    [ "$total" -ge 100 ]
    for part in 1 2 3 4 5 6 7 8 9 10; do
        at=$((total * part / 11 + part % 3)) name=any$part
        train_command "$name" training.save_steps=2 training.async_save=$([ $((part % 2)) -eq 0 ] && echo true || echo false)
        interrupted "9:$at:before" "$work/$name/" 1 "${command[@]}"
        [ -e "$work/$name/done.json" ] && continue
        done=$((done + 1))
        "${command[@]}"
        cmp "$work/whole/final/model.safetensors" "$work/$name/final/model.safetensors"
        [ "$(curve whole)" = "$(curve "$name")" ]
        [ -z "$(find "$work/$name" -name '*.tmp.*' -o -name '*.old.*' -o -name '*.torn')" ]
    done
    [ "$done" -ge 9 ]
}

@test "the newest state cut short or damaged in one bit: the one before is used and the log says so" {
    local command state
    [ -d "$work/whole" ] || train whole 1
    for damage in truncate flip; do
        train_command "$damage"
        interrupted 9:10 "$damage/metrics.jsonl" 1 "${command[@]}" # after line 7: states 3 and 6
        state=$work/$damage/state/step_6
        [ -f "$state/trainer.h5" ] && [ -f "$work/$damage/state/step_3/trainer.h5" ]
        if [ "$damage" = truncate ]; then
            truncate -s -1 "$state/trainer.h5"
        else
            size=$(stat -c %s "$state/trainer.h5")
            byte=$(od -An -tu1 -j $((size / 2)) -N 1 "$state/trainer.h5")
            # shellcheck disable=SC2059 # an octal escape
            printf "\\$(printf %03o $((byte ^ 4)))" | dd of="$state/trainer.h5" bs=1 seek=$((size / 2)) conv=notrunc status=none
            [ "$(stat -c %s "$state/trainer.h5")" -eq "$size" ]
        fi
        run "${command[@]}"
        echo "$output"
        [ "$status" -eq 0 ]
        [[ $output == *"warning: $state is not whole and is passed over"* ]]
        [[ $output == *"resuming from $work/$damage/state/step_3"* ]]
        same_run whole "$damage"
    done
}

@test "a job about to end stops at a checkpoint by itself, and the next goes on" {
    local command code=0
    [ -d "$work/whole" ] || train whole 1
    train_command ends training.save_steps=0
    MB_END_TIME=$(($(date +%s) + 9)) "${command[@]}" || code=$?
    [ "$code" -eq 75 ]
    [ "$(wc -l < "$work/ends/metrics.jsonl")" -eq 1 ]
    MB_END_TIME=$(($(date +%s) + 3600)) "${command[@]}"
    same_run whole ends
}

@test "a run whose folder another took over writes nothing more" {
    local command code=0
    [ -d "$work/whole" ] || train whole 1
    train_command lost training.epochs=500 training.save_steps=1 training.save_total_limit=1
    "${command[@]}" > "$work/lost.log" 2>&1 &
    local pid=$!
    for _ in $(seq 500); do [ -d "$work/lost/state/step_3" ] && break; sleep 0.02; done
    kill -STOP $pid
    printf '{"host": "elsewhere", "pid": 1, "start": "1", "boot": "b", "job": "77", "restart": "", "array_job": "", "array_task": ""}' > "$work/lost/lease.new"
    mv "$work/lost/lease.new" "$work/lost/lease"
    find "$work/lost" -type f ! -name run.log ! -name progress.json ! -name 'failure.json' ! -path '*.tmp.*' -exec md5sum {} + | sort > "$work/before"
    kill -CONT $pid
    wait $pid || code=$?
    cat "$work/lost.log"
    [ "$code" -eq 1 ]
    grep -q "took over" "$work/lost.log"
    find "$work/lost" -type f ! -name run.log ! -name progress.json ! -name 'failure.json' ! -path '*.tmp.*' -exec md5sum {} + | sort | diff "$work/before" -
}

@test "a rank killed in mid-training, and one that aborts, end all ranks within seconds" {
    need_mpi
    for signal in KILL ABRT; do
        train "rank_$signal" 3 training.epochs=2000 > "$work/log" 2>&1 &
        local pid=$! victim code=0 started
        for _ in $(seq 500); do
            [ -f "$work/rank_$signal/metrics.jsonl" ] && [ "$(wc -l < "$work/rank_$signal/metrics.jsonl")" -ge 3 ] && break
            sleep 0.02
        done
        victim=$(pgrep -f "moe-train.*output.dir=$work/rank_$signal" | while read -r p; do
            if tr '\0' '\n' < "/proc/$p/environ" | grep -qx OMPI_COMM_WORLD_RANK=1; then echo "$p"; fi
        done)
        [ -n "$victim" ]
        started=$SECONDS
        kill -$signal "$victim"
        wait $pid || code=$?
        [ "$code" -ne 0 ] && [ "$code" -ne 75 ]
        [ $((SECONDS - started)) -le 10 ]
        for _ in $(seq 50); do pgrep -f "moe-train.*output.dir=$work/rank_$signal" > /dev/null || break; sleep 0.1; done
        ! pgrep -f "moe-train.*output.dir=$work/rank_$signal"
        [ ! -e "$work/rank_$signal/done.json" ]
    done
}

@test "a file that is bad for one rank of three ends all with its code" {
    need_mpi
    local code=0 started=$SECONDS
    cp "$work/shard/shard.h5" "$work/bad.h5"
    truncate -s -1000 "$work/bad.h5"
    train_command one_bad
    # shellcheck disable=SC2016 # expanded on each rank
    ranks 3 timeout 60 bash -c 'if [ "$OMPI_COMM_WORLD_RANK" = 2 ]; then exec "$@" dataset.path="$0"; else exec "$@"; fi' "$work/bad.h5" "${command[@]}" || code=$?
    [ "$code" -eq 3 ]
    [ $((SECONDS - started)) -le 20 ]
}

# part_way NAME SIGNAL:NUMBER CALL PATH RANKS THEN OUTPUT PROGRAM...: work that makes parts, interrupted among them; the output of the run on one rank.
part_way() {
    local name=$1 at=$2 call=$3 where=$4 n=$5 then=$6 output=$7 program=$8
    shift 8
    need_mpi
    [ -d "$work/$name.whole" ] || "$bin/$program" "$@" output.dir="$work/$name.whole"
    MB_INTERRUPT_CALL=$call interrupted "$at" "$where" "$n" "$bin/$program" "$@" output.dir="$work/$name"
    [ ! -e "$work/$name/done.json" ] && [ ! -e "$work/$name/$output" ]
    find "$work/$name" | sed "s|^$work/||" | head -40
    [ "$(find "$work/$name" -path "*$where*" -type f ! -name '*.tmp*' | wc -l)" -ge 1 ]
    ranks "$then" "$bin/$program" "$@" output.dir="$work/$name"
    case $output in
    *.h5) [ "$(hash_of "$work/$name.whole/$output")" = "$(hash_of "$work/$name/$output")" ] ;;
    *) cmp "$work/$name.whole/$output" "$work/$name/$output" ;;
    esac
}

@test "scoring: killed on 2 ranks, on 3 after; USR2 on 1, on 2 after" {
    local score=(moe-score model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=256)
    part_way score 9:3:before rename scores.h5.parts/ 2 3 scores.h5 "${score[@]}"
    rm -rf "$work/score"
    part_way score 12:2 rename scores.h5.parts/ 1 2 scores.h5 "${score[@]}"
}
@test "embedding: killed on 2 ranks, on 1 after; USR2 on 1, on 3 after" {
    local embed=(moe-embed model.path="$work/init/model" dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" dataset.form=text embed.tile_tokens=256 embed.normalize=true)
    part_way embed 9:3:before rename embeddings.h5.parts/ 2 1 embeddings.h5 "${embed[@]}"
    rm -rf "$work/embed"
    part_way embed 12:2 rename embeddings.h5.parts/ 1 3 embeddings.h5 "${embed[@]}"
}
@test "generation: killed on 2 ranks, on 3 after; USR2 on 1, on 2 after" {
    local infer=(moe-infer generate model.path="$work/init/model" dataset.path="$work/prompts.jsonl" generate.max_new_tokens=24 generate.temperature=1
        generate.batch_sequences=4)
    part_way infer 9:3:before rename parts/ 2 3 generated.jsonl "${infer[@]}"
    rm -rf "$work/infer"
    part_way infer 12:2 rename parts/ 1 2 generated.jsonl "${infer[@]}"
}
@test "building a shard: killed on 2 ranks, on 3 after" {
    part_way build 9:1 rename shard.h5.parts/ 2 3 shard.h5 moe-shard build dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" dataset.max_length=96 tokenizer.path="$work/tok"
}
@test "evaluation: killed as it writes its results on 2 ranks, on 1 after" {
    need_mpi
    local eval=("$bin/moe-eval" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" eval.tile_tokens=512)
    "${eval[@]}" output.dir="$work/eval.whole"
    MB_INTERRUPT_CALL=rename interrupted 9:1:before results.json 2 "${eval[@]}" output.dir="$work/eval"
    [ ! -e "$work/eval/done.json" ] && [ ! -e "$work/eval/results.json" ]
    "${eval[@]}" output.dir="$work/eval"
    cmp "$work/eval.whole/results.json" "$work/eval/results.json"
}
