#!/usr/bin/env bash
# shellcheck source=jobs/lib.sh
# Study A: select data with an MoE router, fine-tune a target on it, and compare with random data and with everything.
. "$(dirname "$0")/lib.sh"

mb_usage() {
    cat <<'TEXT'
Usage: jobs/select-moe.sh [--local | --slurm] [--dry-run] [--run NAME] [--ranks N] conf/study/<name>.cfg [stage.key=value ...]

Runs every stage of the study into checkpoints/<study>/<run>/<stage>; a stage whose record still matches its inputs and configuration is
passed over. study.seed=N shifts every seed. Stages: tokenizer shard-pretrain selector pretrain shard-corpus convert warmup score
select-<score> select-random auc warmup-no-constraint score-no-constraint auc-no-constraint target pretrain-target shard-heldout
shard-<choice> finetune-<choice> eval-<choice> eval-base report, with <choice> selected, random, all.
TEXT
}

mb_parse_args "$@"
mb_open_study
number=$((42 + ${mb_seed:-0})) # every seed of the study
seeded=("training.seed=$number")
selector=$(mb_get study.selector "") target=$(mb_get study.target "") tokenizer=$(mb_get study.tokenizer "")

# The selector's tokenizer, and the selector: given, or made on the spot.
if [ -z "$selector" ]; then
    if [ -z "$tokenizer" ]; then
        mb_stage tokenizer moe-shard tokenizer tokenizer
        tokenizer=@tokenizer
    fi
    mb_stage shard-pretrain moe-shard build shard-pretrain tokenizer.path="$tokenizer"
    mb_stage selector moe-convert init - convert.config="$(mb_get study.selector_config)" tokenizer.path="$tokenizer" convert.seed="$number"
    mb_stage pretrain moe-train - pretrain model.path=@selector/model dataset.path=@shard-pretrain/shard.h5 "${seeded[@]}"
    selector=@pretrain/final
fi
[ -n "$tokenizer" ] || tokenizer=$selector

# Data.
mb_stage shard-corpus moe-shard build shard-corpus tokenizer.path="$tokenizer"

# Router.
mb_stage convert moe-convert trash convert model.path="$selector" convert.seed="$number"
mb_stage warmup moe-train - warmup model.path=@convert/model dataset.path=@shard-corpus/shard.h5 "${seeded[@]}"
mb_stage score moe-score - score model.path=@warmup/final score.source_model="$selector" dataset.path=@shard-corpus/shard.h5 score.seed="$number"

# Selections, all from the same stored scores.
inputs=$(mb_get shard-corpus.dataset.inputs)
best=$(mb_get select.select.score good_mass)
for score in "$best" random; do
    mb_has_stage "select-$score" || mb_stage "select-$score" moe-select select select scores.path=@score/scores.h5 select.score:="$score" dataset.inputs="$inputs" tokenizer.path="$tokenizer"
done
labels=$(mb_get study.labels "")
if [ -n "$labels" ]; then
    mb_stage auc moe-select auc - scores.path=@score/scores.h5 labels.path="$labels"
    # What the constraint loss is worth: the same warm-up without it, by the same labels.
    mb_stage warmup-no-constraint moe-train - warmup model.path=@convert/model dataset.path=@shard-corpus/shard.h5 "${seeded[@]}" training.constraint_loss=none
    mb_stage score-no-constraint moe-score - score model.path=@warmup-no-constraint/final dataset.path=@shard-corpus/shard.h5 score.scores=good_mass
    mb_stage auc-no-constraint moe-select auc - scores.path=@score-no-constraint/scores.h5 labels.path="$labels"
fi

# Target: given, or made on the spot with the selector's tokenizer.
target_tokenizer=$target
if [ -z "$target" ]; then
    mb_has_stage shard-pretrain || mb_stage shard-pretrain moe-shard build shard-pretrain tokenizer.path="$tokenizer"
    mb_stage target moe-convert init - convert.config="$(mb_get study.target_config)" tokenizer.path="$tokenizer" convert.seed="$number"
    mb_stage pretrain-target moe-train - pretrain-target model.path=@target/model dataset.path=@shard-pretrain/shard.h5 "${seeded[@]}"
    target=@pretrain-target/final target_tokenizer=$tokenizer
fi

# The same fine-tuning on each choice, and the same held-out text.
mb_stage shard-heldout moe-shard build shard-heldout tokenizer.path="$target_tokenizer"
for choice in selected random all; do
    case $choice in
    selected) data=("dataset.inputs=selected=@select-$best/selected_data.jsonl" "dataset.form=text") ;;
    random) data=("dataset.inputs=random=@select-random/selected_data.jsonl" "dataset.form=text") ;;
    all) data=("dataset.inputs=$inputs") ;;
    esac
    mb_stage "shard-$choice" moe-shard build - tokenizer.path="$target_tokenizer" "${data[@]}"
    mb_stage "finetune-$choice" moe-train - finetune model.path="$target" dataset.path="@shard-$choice/shard.h5" "${seeded[@]}"
    mb_stage "eval-$choice" moe-eval - eval model.path="$target" model.adapter="@finetune-$choice/final" dataset.path=@shard-heldout/shard.h5
done
mb_stage eval-base moe-eval - eval model.path="$target" dataset.path=@shard-heldout/shard.h5

mb_script report "$mb_python" analysis/report.py "$mb_out" --selected "$best" ${labels:+--labels "$labels"}
mb_run_study
