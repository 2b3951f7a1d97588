#!/usr/bin/env bash
# shellcheck source=jobs/lib.sh
# Study C: domain experts under a latency and an energy limit, from raw questions to the tables: questions of many benchmarks in one form, clusters
# of them, an expert for each cluster in 4 bits, a gate between them, what they cost, which of them to keep, and all of them answering together.
. "$(dirname "$0")/lib.sh"

mb_usage() {
    cat <<'TEXT'
Usage: jobs/moe2.sh [--local | --slurm] [--dry-run] [--run NAME] [--ranks N] conf/study/<name>.cfg [stage.key=value ...]

Runs every stage of the study into checkpoints/<study>/<run>/<stage>; a stage whose record still matches its inputs and configuration is
passed over. study.seed=N shifts every seed. Stages: tokenizer shard-pretrain init pretrain (without study.bases), merge split records-<part>
embed-<part> cluster; for each of study.experts an element of the arrays shard-<i> expert-<i> quantise-<i> (unless study.bits = 16)
answers-train-<i> answers-test-<i> bench-<i>; answers-base, gate outputs-train outputs-test gate-report bench subset together report. Parts of the
questions: train, gating_train, gating_test.

study.style says how questions are put: letters (options listed, answered by a letter) or texts (options not listed, answered by their text).
study.bases says which model an expert starts from: one for all, or by number, "0-2=models/large,3-7=models/small".
TEXT
}

mb_parse_args "$@"
mb_open_study
number=$((42 + ${mb_seed:-0})) # every seed of the study
count=$(mb_get study.experts 8)
case $count in [2-9] | [123][0-9] | 40) ;; *) mb_die "study.experts = $count: 2 to 40" ;; esac
bases=$(mb_get study.bases "") tokenizer=$(mb_get study.tokenizer "") embedder=$(mb_get study.embedder "") bits=$(mb_get study.bits 4) style=$(mb_get study.style letters)
case $bits in 4 | 16) ;; *) mb_die "study.bits = $bits: 4 (moe-quantize), or 16 for experts as they were trained" ;; esac

# base_of I: sets base, the model that expert I starts from.
base_of() {
    local part range
    base=$bases
    [[ $bases == *=* ]] || return 0
    for part in ${bases//,/ }; do
        range=${part%%=*} base=${part#*=}
        [[ $range =~ ^[0-9]+(-[0-9]+)?$ ]] || mb_die "study.bases, $part: 0-2=models/a,3-7=models/b is expected"
        if [ "$1" -ge "${range%%-*}" ] && [ "$1" -le "${range##*-}" ]; then return 0; fi
    done
    mb_die "study.bases = $bases: expert $1 has no model"
}

# The base model: given, or made on the spot.
if [ -z "$bases" ]; then
    if [ -z "$tokenizer" ]; then
        mb_stage tokenizer moe-shard tokenizer tokenizer
        tokenizer=@tokenizer
    fi
    mb_stage shard-pretrain moe-shard build shard-pretrain tokenizer.path="$tokenizer" dataset.seed="$number"
    mb_stage init moe-convert init - convert.config="$(mb_get study.config)" tokenizer.path="$tokenizer" convert.seed="$number"
    mb_stage pretrain moe-train - pretrain model.path=@init/model dataset.path=@shard-pretrain/shard.h5 training.seed="$number"
    bases=@pretrain/final
fi
base_of 0
embedder=${embedder:-$base}

# Questions in one form; what experts learn from, and what the gate learns from and is judged on, never share a question.
mb_stage merge moe-merge merge merge
mb_stage split moe-merge split split questions.path=@merge/questions.jsonl split.seed="$number"
for part in train gating_train gating_test; do
    mb_stage "records-$part" moe-merge records records questions.path="@split/$part.jsonl" records.style="$style"
    mb_stage "embed-$part" moe-embed - embed model.path="$embedder" dataset.inputs="$part=@records-$part/records.jsonl" dataset.form=text
done
mb_stage cluster moe-cluster - cluster embeddings.path=@embed-train/embeddings.h5 cluster.k="$count" cluster.seed="$number"

# An expert for each cluster: LoRA on its questions, merged and rounded to 4 bits.
family() { # NAME: the stages NAME-0 ... are one array
    local i stages=()
    for ((i = 0; i < count; i++)); do stages+=("$1-$i"); done
    mb_array "$1" "${stages[@]}"
}
form=(dataset.form=io "dataset.fields=input=prompt,output=completion" dataset.template=plain)
for ((i = 0; i < count; i++)); do
    base_of "$i"
    mb_stage "shard-$i" moe-shard build shard dataset.inputs="cluster_$i=@cluster/cluster_$i.jsonl" "${form[@]}" tokenizer.path="${tokenizer:-$base}" dataset.seed="$number"
done
family shard
for ((i = 0; i < count; i++)); do
    base_of "$i"
    mb_stage "expert-$i" moe-train - expert model.path="$base" dataset.path="@shard-$i/shard.h5" training.seed="$number"
done
family expert
for ((i = 0; i < count; i++)); do
    base_of "$i"
    whole=(model.path="$base" model.adapter="@expert-$i/final")
    case $bits:$(mb_get expert.training.peft_mode full) in
    4:lora) mb_stage "quantise-$i" moe-quantize - quantise "${whole[@]}" quantize.calibration="@shard-$i/shard.h5" quantize.seed="$number" ;;
    4:*) mb_stage "quantise-$i" moe-quantize - quantise model.path="@expert-$i/final" quantize.calibration="@shard-$i/shard.h5" quantize.seed="$number" ;;
    *:lora) mb_stage "merged-$i" moe-convert merge - "${whole[@]}" ;;
    esac
done
case $bits:$(mb_get expert.training.peft_mode full) in
4:*) family quantise; ready=@quantise-I/model ;;
*:lora) family merged; ready=@merged-I/model ;;
*) ready=@expert-I/final ;;
esac

# What every expert answers to the gate's questions, and what asking it costs.
names='' train='' test='' measured=''
for part in train test; do
    for ((i = 0; i < count; i++)); do
        mb_stage "answers-$part-$i" moe-eval - answers model.path="${ready/I/$i}" eval.questions="@split/gating_$part.jsonl" eval.question_style="$style"
    done
    family "answers-$part"
done
for ((i = 0; i < count; i++)); do
    mb_stage "bench-$i" moe-bench - bench bench.experts="expert_$i=${ready/I/$i}"
    names=$names${names:+,}expert_$i=${ready/I/$i}
    train=$train${train:+,}expert_$i=@answers-train-$i/answers.h5
    test=$test${test:+,}expert_$i=@answers-test-$i/answers.h5
    measured=$measured${measured:+,}expert_$i=@bench-$i/
done
family bench
base_of 0
mb_stage answers-base moe-eval - answers model.path="$base" eval.questions=@split/gating_test.jsonl eval.question_style="$style"

# The gate; what it and fusing are worth.
mb_stage gate moe-gate train gate gate.train="$train" gate.embeddings=@embed-gating_train/embeddings.h5 gate.experts_data="train=@split/train.jsonl" gate.seed="$number"
for part in train test; do
    mb_stage "outputs-$part" moe-gate apply gate gate.path=@gate/gate.h5 outputs.path="${!part}" gate.embeddings="@embed-gating_$part/embeddings.h5"
done
mb_stage gate-report moe-gate report gate gate.train=@outputs-train/outputs.h5 gate.test=@outputs-test/outputs.h5

# Which experts to keep under which limits; all of them answering together.
mb_stage costs moe-bench join costs bench.inputs="$measured"
mb_stage subset moe-subset - subset subset.train=@outputs-train/outputs.h5 subset.test=@outputs-test/outputs.h5 subset.latency=@costs/latency.json \
    subset.energy=@costs/energy.json subset.embeddings_train=@embed-gating_train/embeddings.h5 subset.embeddings_test=@embed-gating_test/embeddings.h5 \
    subset.experts_data="train=@split/train.jsonl" gate.seed="$number"
mb_stage together moe-infer experts together infer.experts="$names" gate.path=@gate/gate.h5 model.path="$embedder" questions.path=@split/gating_test.jsonl \
    infer.question_style="$style" infer.num_fewshot="$(mb_get answers.eval.num_fewshot 0)"
mb_script report "$mb_python" analysis/moe2.py "$mb_out"
mb_run_study
