#!/usr/bin/env bash
# shellcheck source=jobs/lib.sh
# Study A: select data with an MoE router, fine-tune a target on it, and compare with random data and with everything.
. "$(dirname "$0")/lib.sh"

mb_usage() {
    cat <<'TEXT'
Usage: jobs/select-moe.sh [--local] [--dry-run] [--run NAME] [--ranks N] conf/study/<name>.cfg [stage.key=value ...]

Runs every stage of the study in order, each into checkpoints/<study>/<run>/<stage>; a stage whose record still matches
its inputs and configuration is passed over. study.seed=N shifts every seed. Stages: tokenizer shard-pretrain shard-corpus
shard-heldout selector pretrain convert warmup score select target pretrain-target finetune eval auc report.
TEXT
}

mb_parse_args "$@"
study=$(mb_get study.name)
seed=$(mb_get study.seed "")
mb_out=$mb_root/checkpoints/$study/$mb_run${seed:+/seed_$seed}
number=$((42 + ${seed:-0})) # every seed of the study
seeded=("training.seed=$number")
selector=$(mb_get study.selector "") target=$(mb_get study.target "") tokenizer=$(mb_get study.tokenizer "")
cd "$mb_root"

# The selector's tokenizer, and the selector: given, or made on the spot.
if [ -z "$selector" ]; then
    if [ -z "$tokenizer" ]; then
        mb_stage tokenizer moe-shard tokenizer tokenizer
        tokenizer=$mb_out/tokenizer
    fi
    mb_stage shard-pretrain moe-shard build shard-pretrain tokenizer.path="$tokenizer"
    mb_stage selector moe-convert init - convert.config="$(mb_get study.selector_config)" tokenizer.path="$tokenizer" convert.seed="$number"
    mb_stage pretrain moe-train - pretrain model.path="$mb_out/selector/model" dataset.path="$mb_out/shard-pretrain/shard.h5" "${seeded[@]}"
    selector=$mb_out/pretrain/final
fi
[ -n "$tokenizer" ] || tokenizer=$selector

# Data.
mb_stage shard-corpus moe-shard build shard-corpus tokenizer.path="$tokenizer"

# Router.
mb_stage convert moe-convert trash convert model.path="$selector" convert.seed="$number"
mb_stage warmup moe-train - warmup model.path="$mb_out/convert/model" dataset.path="$mb_out/shard-corpus/shard.h5" "${seeded[@]}"
mb_stage score moe-score - score model.path="$mb_out/warmup/final" score.source_model="$selector" dataset.path="$mb_out/shard-corpus/shard.h5" \
    score.seed="$number"

# Selections, all from the same stored scores.
inputs=$(mb_get shard-corpus.dataset.inputs)
for score in $(mb_get select.select.score good_mass) random; do
    mb_stage "select-$score" moe-select select select scores.path="$mb_out/score/scores.h5" select.score="$score" dataset.inputs="$inputs" tokenizer.path="$tokenizer"
done
best=$(mb_get select.select.score good_mass)
labels=$(mb_get study.labels "")
if [ -n "$labels" ]; then
    mb_stage auc moe-select auc - scores.path="$mb_out/score/scores.h5" labels.path="$labels"
    # What the constraint loss is worth: the same warm-up without it, by the same labels.
    mb_stage warmup-no-constraint moe-train - warmup model.path="$mb_out/convert/model" dataset.path="$mb_out/shard-corpus/shard.h5" "${seeded[@]}" \
        training.constraint_loss=none
    mb_stage score-no-constraint moe-score - score model.path="$mb_out/warmup-no-constraint/final" dataset.path="$mb_out/shard-corpus/shard.h5" \
        score.scores=good_mass
    mb_stage auc-no-constraint moe-select auc - scores.path="$mb_out/score-no-constraint/scores.h5" labels.path="$labels"
fi

# Target: given, or made on the spot with the selector's tokenizer.
if [ -z "$target" ]; then
    [ -d "$mb_out/shard-pretrain" ] || mb_stage shard-pretrain moe-shard build shard-pretrain tokenizer.path="$tokenizer"
    mb_stage target moe-convert init - convert.config="$(mb_get study.target_config)" tokenizer.path="$tokenizer" convert.seed="$number"
    mb_stage pretrain-target moe-train - pretrain-target model.path="$mb_out/target/model" dataset.path="$mb_out/shard-pretrain/shard.h5" "${seeded[@]}"
    target=$mb_out/pretrain-target/final target_tokenizer=$tokenizer
fi
target_tokenizer=${target_tokenizer:-$target}

# The same fine-tuning on each choice, and the same held-out text.
mb_stage shard-heldout moe-shard build shard-heldout tokenizer.path="$target_tokenizer"
for choice in selected random all; do
    case $choice in
    selected) data=("dataset.inputs=selected=$mb_out/select-$best/selected_data.jsonl" "dataset.form=text") ;;
    random) data=("dataset.inputs=random=$mb_out/select-random/selected_data.jsonl" "dataset.form=text") ;;
    all) data=("dataset.inputs=$inputs") ;;
    esac
    mb_stage "shard-$choice" moe-shard build - tokenizer.path="$target_tokenizer" "${data[@]}"
    mb_stage "finetune-$choice" moe-train - finetune model.path="$target" dataset.path="$mb_out/shard-$choice/shard.h5" "${seeded[@]}"
    mb_stage "eval-$choice" moe-eval - eval model.path="$target" model.adapter="$mb_out/finetune-$choice/final" dataset.path="$mb_out/shard-heldout/shard.h5"
done
mb_stage eval-base moe-eval - eval model.path="$target" dataset.path="$mb_out/shard-heldout/shard.h5"

[ -n "$mb_dry_run" ] || "$mb_python" analysis/report.py "$mb_out" --selected "$best" ${labels:+--labels "$labels"}
