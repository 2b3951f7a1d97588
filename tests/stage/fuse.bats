# Study D with tiny models, stage by stage through its script: every output is there, a second run does nothing, one and two ranks give the
# same bits, another temperature redoes the student alone, a sweep stores its teacher once, given models and online teachers work.

setup_file() {
    load common.bash
    mb_setup
    make_dialogs > /dev/null
    make_fuse_study fuse-test "$work/tiny.cfg"
    rm -rf checkpoints/fuse-test
    jobs/fuse.sh --local "$work/tiny.cfg" > "$work/first.log" 2>&1 || { cat "$work/first.log"; return 1; }
}
setup() {
    load common.bash
    mb_setup
    run_folder=checkpoints/fuse-test/run1
    parents=(study.foundation="$PWD/$run_folder/foundation/final" study.sft="$PWD/$run_folder/sft/final" study.tokenizer="$PWD/$run_folder/tokenizer")
}
teardown_file() { [ -n "${MB_KEEP:-}" ] || rm -rf checkpoints/fuse-test; }

@test "every stage leaves its record; table, answers side by side and report are there" {
    for stage in tokenizer shard-foundation init foundation shard-sft sft shard-fuse btm-token btm-layer teacher teacher-heldout distil compare \
        {eval,generate}-{foundation,sft,ensemble,btm-token,btm-layer,distilled}; do
        echo "$stage"
        [ -f "$run_folder/$stage/done.json" ]
    done
    [ "$(wc -l < "$run_folder/side-by-side/side_by_side.jsonl")" -eq 4 ]
    [ -s "$run_folder/report/report.html" ]
    [ -f "$run_folder/generate-btm-layer/router_stats.h5" ]
    for word in '^foundation ' '^distilled ' '^  btm-layer: perplexity over that of the better parent: code' '^  distilled: mean perplexity'; do grep -q "$word" "$work/first.log"; done
    [ "$(cut -d, -f1 "$run_folder/report/result.csv" | tr '\n' ' ')" = "model foundation sft ensemble btm-token btm-layer distilled " ]
}

@test "a second run does nothing" {
    run jobs/fuse.sh --local "$work/tiny.cfg"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(grep -c 'nothing to do' <<< "$output")" -eq 25 ]
}

@test "two ranks: the bits of one" {
    need_mpi
    jobs/fuse.sh --local --run two --ranks 2 "$work/tiny.cfg" "${parents[@]}" study.prompts= teacher.teacher.cache_dir= > "$work/two.log" 2>&1 || { cat "$work/two.log"; return 1; }
    for name in btm-token/best_router/router.safetensors btm-layer/best_router/router.safetensors btm-layer/metrics.h5 teacher/teacher.h5 distil/final distil/metrics.h5 \
        eval-btm-layer/categories.h5 compare/compare.h5; do
        a=$(hash_of "$run_folder/$name") b=$(hash_of "checkpoints/fuse-test/two/$name")
        echo "$name $a $b"
        [ -n "$a" ] && [ "$a" = "$b" ]
    done
    grep -q '"ranks": 2' checkpoints/fuse-test/two/distil/done.json
}

@test "another temperature redoes the student, not routers or teacher; one that is not stored is refused" {
    run jobs/fuse.sh --local "$work/tiny.cfg" study.prompts= distil.training.temperature=1
    echo "$output"
    [ "$status" -eq 0 ]
    for stage in sft btm-token btm-layer teacher eval-btm-token; do [[ "$output" == *"$stage: up to date"* ]]; done
    for stage in distil eval-distilled compare; do [[ "$output" != *"/$stage: up to date"* ]]; done
    run jobs/fuse.sh --local "$work/tiny.cfg" study.prompts= distil.training.temperature=2.5
    [ "$status" -ne 0 ]
    [[ "$output" == *"2.5"* && "$output" == *"1"*"2"* ]]
}

@test "a sweep over temperature and weight stores its teacher once" {
    run jobs/sweep.sh --local --run sw --metric eval-distilled/perplexity "$work/tiny.cfg" "${parents[@]}" study.routers=token study.prompts= distil.training.temperature=1,2 distil.training.distill_loss_weight=0.5,0.9
    echo "$output"
    [ "$status" -eq 0 ]
    sweep=checkpoints/fuse-test/sw
    [ -f "$sweep/common/teacher/done.json" ]
    ! compgen -G "$sweep/point_*/teacher*" || false
    [ "$(ls -d "$sweep"/point_00?/distil | wc -l)" -eq 4 ]
    grep -q '4 points: 4 done' "$sweep/sweep.txt"
    [ "$(grep -c 'eval-distilled/perplexity' "$sweep/sweep.txt")" -ge 1 ]
    [ "$(hash_of "$sweep/point_000/distil/final")" != "$(hash_of "$sweep/point_003/distil/final")" ]
}

@test "given models, an adapter as the sibling's place, an ensemble asked while the student trains, a student that is an adapter, and the control" {
    run jobs/fuse.sh --local --run given "$work/tiny.cfg" study.prompts= "${parents[0]}" study.routers=token study.teacher=ensemble study.teacher_store=false \
        study.control=true {sft,distil}.training.peft_mode=lora {sft,distil}.training.lora.r=4
    echo "$output"
    [ "$status" -eq 0 ]
    given=checkpoints/fuse-test/given
    [ ! -e "$given/foundation" ] && [ ! -e "$given/teacher" ] && [ ! -e "$given/btm-layer" ]
    for stage in sft distil control; do [ -f "$given/$stage/final/adapter_model.safetensors" ]; done
    [ -f "$given/eval-control/done.json" ]
    grep -q '"adapter": "' "$given/btm-token/best_router/fuse.json"
}

@test "--slurm --dry-run: every stage has a forecast before anything is there, whatever the study is; what is wrong is refused" {
    local stages case lines
    export MB_SITE=generic
    check() { # check STAGES WORDS...: a line of the table for each, none without a forecast, and a job for each
        run jobs/fuse.sh --slurm --dry-run --run dry "$work/tiny.cfg" "${@:2}"
        echo "$output"
        [ "$status" -eq 0 ]
        [[ $output != *"no forecast"* ]]
        for stage in $1; do grep -Eq "^$stage +[0-9]+ +[0-9.]+ GiB +[0-9.]+ min" <<< "$output"; done
        lines=$(grep -Ec '^[a-z-]+ +[0-9]+ +[0-9.]+ GiB' <<< "$output")
        [ "$lines" -eq "$(wc -w <<< "$1")" ]
        [ "$(grep -c '^sbatch' <<< "$output")" -gt "$lines" ]
        [ ! -e checkpoints/fuse-test/dry ]
    }
    check "tokenizer shard-foundation foundation shard-sft sft shard-fuse btm-token btm-layer teacher teacher-heldout distil compare $(echo {eval,generate}-{foundation,sft,ensemble,btm-token,btm-layer,distilled})"
    check "shard-fuse btm-token btm-layer distil control compare $(echo eval-{foundation,sft,ensemble,btm-token,btm-layer,distilled,control})" "${parents[@]}" study.prompts= study.teacher=btm-layer \
        study.teacher_store=false study.control=true
    check "shard-sft sft shard-fuse btm-token distil compare $(echo eval-{foundation,sft,ensemble,btm-token,distilled})" "${parents[0]}" "${parents[2]}" study.prompts= study.routers=token study.teacher=ensemble \
        study.teacher_store=false {sft,distil}.training.peft_mode=lora {sft,distil}.training.lora.r=4
    for case in study.sft=/nowhere/sft study.foundation=/nowhere/foundation distil.training.temperatur=1 btm.training.zero=3; do
        run jobs/fuse.sh --slurm --dry-run --run dry "$work/tiny.cfg" "${parents[@]}" "$case"
        echo "$output"
        [ "$status" -eq 2 ]
        [[ $output != *"sbatch"* ]]
    done
}

@test "members on ranks of their own: refused by programs that share records out" {
    local members=(fuse.foundation="$PWD/$run_folder/foundation/final" fuse.sft="$PWD/$run_folder/sft/final" fuse.members_on=ranks)
    run "$bin/moe-eval" "${members[@]}" eval.categories="code=$work/code.test.jsonl" output.dir="$work/ranks"
    echo "$output"
    [ "$status" -eq 2 ]
    [[ $output == *"fuse.members_on = ranks is for moe-infer and moe-teacher; moe-eval shares its records out over the ranks"* ]]
    run "$bin/moe-score" "${members[@]}" score.scores=perplexity dataset.path="$run_folder/shard-fuse/shard.h5" output.dir="$work/ranks"
    echo "$output"
    [ "$status" -eq 2 ]
    [[ $output == *"moe-score shares its records out"* ]]
}

@test "--dry-run prints every command; wrong settings are refused before anything runs" {
    run jobs/fuse.sh --local --dry-run --run dry "$work/tiny.cfg"
    [ "$status" -eq 0 ]
    [ "$(grep -c '^moe-' <<< "$output")" -eq 25 ]
    for wrong in distil.training.temperatur=1 study.routers=tokens study.teacher=btm study.foundation=nowhere; do
        run jobs/fuse.sh --local --dry-run --run dry "$work/tiny.cfg" "$wrong"
        echo "$output"
        [ "$status" -eq 2 ]
    done
    run jobs/fuse.sh --local --dry-run --run dry "$work/tiny.cfg" study.routers=layer
    [ "$status" -eq 2 ]
    [[ "$output" == *"study.teacher = btm-token: study.routers = layer trains no such router"* ]]
    [ ! -e checkpoints/fuse-test/dry ]
}
