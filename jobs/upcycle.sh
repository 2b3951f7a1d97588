#!/usr/bin/env bash
# shellcheck source=jobs/lib.sh
# Study B: upcycle a dense model into a mixture of experts, fine-tune it on a mix of data (SFT), then on preference pairs (DPO), and show what
# each expert came to do.
. "$(dirname "$0")/lib.sh"

mb_usage() {
    cat <<'TEXT'
Usage: jobs/upcycle.sh [--local | --slurm] [--dry-run] [--run NAME] [--ranks N] conf/study/<name>.cfg [stage.key=value ...]

Runs every stage of the study into checkpoints/<study>/<run>/<stage>; a stage whose record still matches its inputs and configuration is
passed over. study.seed=N shifts every seed. Stages: tokenizer shard-pretrain dense pretrain (without study.dense), upcycle shard-sft sft
[merge-sft] shard-pairs reference reference-heldout dpo, eval-<model> and preference-<model> for <model> before, sft, dpo, eval-dense,
generate-<model> and side-by-side with study.prompts, report.
TEXT
}

mb_parse_args "$@"
mb_open_study
number=$((42 + ${mb_seed:-0})) # every seed of the study
seeded=("training.seed=$number")
dense=$(mb_get study.dense "") tokenizer=$(mb_get study.tokenizer "") prompts=$(mb_get study.prompts "")

# The dense model: given, or made on the spot.
if [ -z "$dense" ]; then
    if [ -z "$tokenizer" ]; then
        mb_stage tokenizer moe-shard tokenizer tokenizer
        tokenizer=@tokenizer
    fi
    mb_stage shard-pretrain moe-shard build shard-pretrain tokenizer.path="$tokenizer"
    mb_stage dense moe-convert init - convert.config="$(mb_get study.dense_config)" tokenizer.path="$tokenizer" convert.seed="$number"
    mb_stage pretrain moe-train - pretrain model.path=@dense/model dataset.path=@shard-pretrain/shard.h5 "${seeded[@]}"
    dense=@pretrain/final
fi
[ -n "$tokenizer" ] || tokenizer=$dense

# Dense -> experts; the mix of data; SFT with a validation loss per type.
mb_stage upcycle moe-convert upcycle upcycle model.path="$dense" convert.seed="$number"
mb_stage shard-sft moe-shard build shard-sft tokenizer.path="$tokenizer" dataset.seed="$number"
mb_stage sft moe-train - sft model.path=@upcycle/model dataset.path=@shard-sft/shard.h5 training.validation_path=@shard-sft/validation.h5 "${seeded[@]}"
tuned=@sft/final
if [ "$(mb_get sft.training.peft_mode full)" = lora ]; then # DPO starts from whole weights, its reference too
    mb_stage merge-sft moe-convert merge - model.path=@upcycle/model model.adapter=@sft/final
    tuned=@merge-sft/model
fi

# Preference pairs; what the tuned model itself says of them, once for every job that needs it; DPO.
mb_stage shard-pairs moe-shard build shard-pairs tokenizer.path="$tokenizer" dataset.pairs=true dataset.seed="$number"
judged=()
case $(mb_get dpo.training.reference ""):$(mb_get dpo.training.dpo.loss sigmoid) in
?*:* | :simpo | :orpo) ;; # another file, adapter_off, or a loss without a reference
*)
    for part in reference:shard reference-heldout:validation; do
        mb_stage "${part%%:*}" moe-score - reference model.path="$tuned" dataset.path="@shard-pairs/${part#*:}.h5" score.scores=logprob
    done
    judged=(training.reference=@reference/scores.h5 training.validation_reference=@reference-heldout/scores.h5)
    ;;
esac
mb_stage dpo moe-train - dpo model.path="$tuned" dataset.path=@shard-pairs/shard.h5 training.objective=dpo training.validation_path=@shard-pairs/validation.h5 \
    "${judged[@]}" "${seeded[@]}"
aligned=(model.path=@dpo/final)
[ "$(mb_get dpo.training.peft_mode full)" != lora ] || aligned=(model.path="$tuned" model.adapter=@dpo/final)

# Before, after SFT, after DPO: loss per type and routing on held-back records, preferences on held-back pairs, answers.
for name in dense before sft dpo; do
    case $name in
    dense) model=(model.path="$dense" eval.routing:=false) ;;
    before) model=(model.path=@upcycle/model) ;;
    sft) model=(model.path="$tuned") ;;
    dpo) model=("${aligned[@]}") ;;
    esac
    mb_stage "eval-$name" moe-eval - eval "${model[@]}" dataset.path=@shard-sft/validation.h5
    [ "$name" != dense ] || continue
    [ -z "$prompts" ] || mb_stage "generate-$name" moe-infer generate generate "${model[@]}" dataset.path="$prompts" tokenizer.path="$tokenizer" generate.seed="$number"
    [ "$name" != dpo ] || [ ${#judged[@]} -eq 0 ] || model+=(eval.reference=@reference-heldout/scores.h5 eval.beta="$(mb_get dpo.training.dpo.beta 0.1)")
    mb_stage "preference-$name" moe-eval - preference "${model[@]}" dataset.path=@shard-pairs/validation.h5
done

[ -z "$prompts" ] || mb_script side-by-side "$mb_python" analysis/side_by_side.py "$mb_out"
mb_script report "$mb_python" analysis/upcycle.py "$mb_out"
mb_run_study
