#!/usr/bin/env bash
# shellcheck source=jobs/lib.sh
# Study D: fuse a foundation model with its fine-tuned sibling: an ensemble, trained routers by token and by layer, a student distilled from
# one of them, and one table of what each is worth and costs.
. "$(dirname "$0")/lib.sh"

mb_usage() {
    cat <<'TEXT'
Usage: jobs/fuse.sh [--local | --slurm] [--dry-run] [--run NAME] [--ranks N] conf/study/<name>.cfg [stage.key=value ...]

Runs every stage of the study into checkpoints/<study>/<run>/<stage>; a stage whose record still matches its inputs and configuration is
passed over. study.seed=N shifts every seed. Stages: tokenizer shard-foundation init foundation (without study.foundation), shard-sft sft
(without study.sft), shard-fuse, btm-<router> for study.routers (token, layer), teacher [teacher-heldout] (with study.teacher_store), distil,
[control], eval-<model> for <model> foundation, sft, ensemble, btm-token, btm-layer, distilled, [control], generate-<model> and side-by-side
with study.prompts, compare, report.
TEXT
}

mb_parse_args "$@"
mb_open_study
number=$((42 + ${mb_seed:-0})) # every seed of the study
seeded=("training.seed=$number")
foundation=$(mb_get study.foundation "") sft=$(mb_get study.sft "") tokenizer=$(mb_get study.tokenizer "") prompts=$(mb_get study.prompts "")
routers=$(mb_get study.routers token,layer) teacher=$(mb_get study.teacher btm-layer) student=$(mb_get study.student foundation)

# The foundation: given, or made on the spot.
if [ -z "$foundation" ]; then
    if [ -z "$tokenizer" ]; then
        mb_stage tokenizer moe-shard tokenizer tokenizer
        tokenizer=@tokenizer
    fi
    mb_stage shard-foundation moe-shard build shard-foundation tokenizer.path="$tokenizer" dataset.seed="$number"
    mb_stage init moe-convert init - convert.config="$(mb_get study.config)" tokenizer.path="$tokenizer" convert.seed="$number"
    mb_stage foundation moe-train - foundation model.path=@init/model dataset.path=@shard-foundation/shard.h5 "${seeded[@]}"
    foundation=@foundation/final
fi
[ -n "$tokenizer" ] || tokenizer=$foundation

# Its sibling: given, or fine-tuned here, whole or as an adapter.
sibling=(fuse.sft="$sft") alone=(model.path="$sft")
if [ -z "$sft" ]; then
    mb_stage shard-sft moe-shard build shard-sft tokenizer.path="$tokenizer" dataset.seed="$number"
    mb_stage sft moe-train - sft model.path="$foundation" dataset.path=@shard-sft/shard.h5 "${seeded[@]}"
    sibling=(fuse.sft=@sft/final) alone=(model.path=@sft/final)
    if [ "$(mb_get sft.training.peft_mode full)" = lora ]; then
        sibling=(fuse.sft="$foundation" fuse.sft_adapter=@sft/final) alone=(model.path="$foundation" model.adapter=@sft/final)
    fi
fi
members=(fuse.foundation="$foundation" "${sibling[@]}")

# Routers, on records that neither parent has seen.
mb_stage shard-fuse moe-shard build shard-fuse tokenizer.path="$tokenizer" dataset.seed="$number"
fused=(dataset.path=@shard-fuse/shard.h5 training.validation_path=@shard-fuse/validation.h5)
models=(foundation sft ensemble)
for kind in ${routers//,/ }; do
    case $kind in token | layer) ;; *) mb_die "study.routers = $routers: token, layer, or both with a comma" ;; esac
    group=btm
    ! mb_has_group "btm-$kind" || group=btm-$kind
    mb_stage "btm-$kind" moe-train - "$group" "${members[@]}" "${fused[@]}" training.objective=btm fuse.router_type="${kind}_level" "${seeded[@]}"
    models+=("btm-$kind")
done

# What each model is, for every program. Sets model.
model_of() {
    case $1 in
    foundation) model=(model.path="$foundation") ;;
    sft) model=("${alone[@]}") ;;
    ensemble) model=("${members[@]}") ;;
    btm-*) model=(model.path="@$1/best_router") ;;
    distilled | control)
        stage=${1/distilled/distil}
        model=(model.path="@$stage/final")
        [ "$(mb_get distil.training.peft_mode full)" != lora ] || model=("${start[@]}" model.adapter="@$stage/final")
        ;;
    esac
}

# A student: starts as one of the parents, learns the teacher's distribution, stored once for any number of students or computed beside it.
case $student in
foundation) start=(model.path="$foundation") ;;
sft) start=("${alone[@]}") ;;
*) start=(model.path="$student") ;;
esac
if [ "$teacher" != none ]; then
    case $teacher in ensemble) ;; btm-*) mb_has_stage "$teacher" || mb_die "study.teacher = $teacher: study.routers = $routers trains no such router" ;;
    *) mb_die "study.teacher = $teacher: ensemble, btm-token, btm-layer or none" ;; esac
    model_of "$teacher"
    if [ "$(mb_get study.teacher_store true)" = true ]; then
        mb_stage teacher moe-teacher - teacher "${model[@]}" dataset.path=@shard-fuse/shard.h5
        mb_stage teacher-heldout moe-teacher - teacher "${model[@]}" dataset.path=@shard-fuse/validation.h5
        taught=(teacher.store=@teacher/teacher.h5 teacher.validation_store=@teacher-heldout/teacher.h5)
    elif [ "$teacher" = ensemble ]; then taught=("${members[@]}")
    else taught=(teacher.path="@$teacher/best_router")
    fi
    mb_stage distil moe-train - distil "${start[@]}" "${fused[@]}" training.objective=distil "${taught[@]}" "${seeded[@]}"
    models+=(distilled)
    if [ "$(mb_get study.control false)" = true ]; then # the same student, records and steps, without what the teacher says
        mb_stage control moe-train - distil "${start[@]}" "${fused[@]}" training.objective:=sft "${seeded[@]}"
        models+=(control)
    fi
fi

# One table; answers beside each other; whose share is how large on which kind of prompt.
inputs=''
for name in "${models[@]}"; do
    model_of "$name"
    mb_stage "eval-$name" moe-eval - eval "${model[@]}" tokenizer.path="$tokenizer"
    inputs=$inputs${inputs:+,}$name=@eval-$name/
    [ -n "$prompts" ] || continue
    case $name in
    ensemble) mode=ensemble ;;
    btm-*) mode=btm model+=(infer.show_router_stats=true) ;;
    *) mode=generate ;;
    esac
    mb_stage "generate-$name" moe-infer "$mode" generate "${model[@]}" dataset.path="$prompts" tokenizer.path="$tokenizer" generate.seed="$number"
done
mb_stage compare moe-eval compare compare compare.inputs="$inputs"
[ -z "$prompts" ] || mb_script side-by-side "$mb_python" analysis/side_by_side.py "$mb_out"
mb_script report "$mb_python" analysis/fuse.py "$mb_out"
mb_run_study
