# Log-probabilities of a shard's records (moe-score score.scores=logprob): equal bits on any ranks and shares, the cache that all runs share, and
# what moe-eval makes of preference pairs with them.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
texts = [json.loads(line)["text"] for line in open(f"{work}/a.jsonl", encoding="utf-8")]
for name, part in (("p", texts[:60]), ("q", texts[60:100])):
    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as out:
        for i, text in enumerate(part):
            row = {"prompt": text[:30], "chosen": text[30:60 + i % 50], "rejected": texts[(i + 7) % len(texts)][:40 + i % 30]}
            out.write(json.dumps(row) + "\n")
PYTHON
    printf 'dataset: { inputs = ( { name = "p"; path = "%s/p.jsonl"; type = "general"; }, { name = "q"; path = "%s/q.jsonl"; type = "code"; } ); };\n' "$work" "$work" \
        > "$work/pairs.cfg"
    pairs pairs
    "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.peft_mode=lora training.lora.r=4 training.learning_rate=0.05 \
        training.max_steps=2 training.batch_size=2 training.gradient_accumulation_steps=2 output.dir="$work/sft"
    score one
}
setup() {
    load common.bash
    mb_setup
    expected=$(hash_of "$work/one/scores.h5")
}

pairs() { # pairs NAME key=value...
    "$bin/moe-shard" build "$work/pairs.cfg" dataset.form=pair dataset.template=lines dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/$1" "${@:2}"
}
score() { # score NAME key=value...
    "$bin/moe-score" model.path="$work/init/model" dataset.path="$work/pairs/shard.h5" score.scores=logprob score.tile_tokens=512 output.dir="$work/$1" "${@:2}"
}
cached() { score "$1" score.cache_dir="$work/cache" "${@:2}"; }
field() { "${MB_PYTHON:-python3}" -c 'import json, sys; v = json.load(open(sys.argv[1])); [v := v[k] for k in sys.argv[2:]]; print(v)' "$@"; }
# "<from the cache?> <key>" of a run.
origin() { echo "$(field "$work/$1/done.json" results from_cache) $(field "$work/$1/done.json" results cache_key)"; }
entries() { find "$work/cache" -name '*.h5' | wc -l; }

@test "log-probabilities: the same bits on 1, 2 and 3 ranks, in shares, with other tiles; targets are those of the mask" {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import sys, h5py, numpy as np
work = sys.argv[1]
with h5py.File(f"{work}/pairs/shard.h5") as shard, h5py.File(f"{work}/one/scores.h5") as scores:
    offsets, mask = shard["offsets"][:].astype(int), shard["loss_mask"][:]
    targets = [int(mask[a + 1:b].sum()) for a, b in zip(offsets[:-1], offsets[1:])]
    assert shard.attrs["pairs"] == 1 and len(targets) == 200, len(targets)
    assert scores["scores/targets"][:].tolist() == targets and min(targets) > 0
    logprob = scores["scores/logprob"][:]
    assert (logprob < 0).all() and len(set(logprob)) > 150
    for name, value in (("dtype", "f32"), ("source_adapter", ""), ("tokenizer", shard.attrs["tokenizer"]), ("template", shard.attrs["template"])):
        found, value = (x.decode() if isinstance(x, bytes) else str(x) for x in (scores.attrs[name], value))
        assert found == value, (name, found, value)
PYTHON
    score tiles score.tile_tokens=77
    "${MB_PYTHON:-python3}" -c 'import sys, h5py; a, b = (h5py.File(p)["scores/logprob"][:] for p in sys.argv[1:]); assert (a == b).all()' "$work/one/scores.h5" "$work/tiles/scores.h5"
    score shares run.share=1/2
    score shares run.share=0/2
    score shares
    [ "$(hash_of "$work/shares/scores.h5")" = "$expected" ]
    need_mpi
    for n in 2 3; do
        ranks $n "$bin/moe-score" model.path="$work/init/model" dataset.path="$work/pairs/shard.h5" score.scores=logprob score.tile_tokens=512 output.dir="$work/ranks$n"
        [ "$(hash_of "$work/ranks$n/scores.h5")" = "$expected" ]
    done
}

@test "the cache: made once, then taken by every run of the same work, in milliseconds and without the model" {
    run cached first
    [ "$status" -eq 0 ]
    [[ $output == *"kept in the cache as $work/cache/"* ]]
    local key
    read -r from key <<< "$(origin first)"
    [ "$from" = False ] && [ -f "$work/cache/$key.h5" ]
    [ "$(field "$work/cache/$key.json" hash)" = "$expected" ]
    run cached second score.seed=7 threads=2
    [ "$status" -eq 0 ]
    [[ $output == *"from the cache: $work/cache/$key.h5; no model was opened"* ]]
    [[ $output != *parameters* && $output != *scoring:* ]]
    [ "$(origin second)" = "True $key" ]
    [ "$(hash_of "$work/second/scores.h5")" = "$expected" ]
    [ "$(field "$work/second/done.json" results records)" -eq 200 ]
    [ "$(field "$work/second/done.json" results tokens)" -eq "$(field "$work/first/done.json" results tokens)" ]
    [ "$(field "$work/second/done.json" outputs scores.h5)" = "$expected" ]
    run cached second score.seed=7 threads=2
    [[ $output == *"up to date"* ]]
    cp -r "$work/init/model" "$work/elsewhere" # the same content at another place
    cp "$work/pairs/shard.h5" "$work/copied.h5"
    cached third model.path="$work/elsewhere" dataset.path="$work/copied.h5"
    [ "$(origin third)" = "True $key" ]
    cached forced run.force=true # makes it again
    [ "$(origin forced)" = "False $key" ]
    need_mpi
    ranks 3 "$bin/moe-score" model.path="$work/init/model" dataset.path="$work/pairs/shard.h5" score.scores=logprob score.tile_tokens=512 score.cache_dir="$work/cache" output.dir="$work/fourth"
    [ "$(origin fourth)" = "True $key" ]
    [ "$(hash_of "$work/fourth/scores.h5")" = "$expected" ]
    [ "$(entries)" -eq 1 ]
}

@test "whatever changes a bit makes another key: data, template, length, adapter, number type, scores" {
    pairs plain dataset.template=plain
    pairs fewer dataset.inputs="p=$work/p.jsonl"
    cached base
    local before keys=() key name
    before=$(entries)
    cached k-template dataset.path="$work/plain/shard.h5"
    cached k-data dataset.path="$work/fewer/shard.h5"
    cached k-length dataset.max_length=40
    cached k-adapter model.adapter="$work/sft/final"
    cached k-dtype model.dtype=bf16
    cached k-bits model.quantize=int8
    cached k-scores score.scores=logprob,length
    for name in base k-template k-data k-length k-adapter k-dtype k-bits k-scores; do
        read -r from key <<< "$(origin $name)"
        [ $name = base ] || [ "$from" = False ]
        keys+=("$key")
    done
    [ "$(printf '%s\n' "${keys[@]}" | sort -u | wc -l)" -eq 8 ]
    [ "$(entries)" -eq $((before + 7)) ]
    for name in k-length k-adapter k-dtype k-bits; do # the numbers are others, too
        "${MB_PYTHON:-python3}" -c 'import sys, h5py; a, b = (h5py.File(p)["scores/logprob"][:] for p in sys.argv[1:]); assert len(a) == len(b) and (a != b).any()' \
            "$work/one/scores.h5" "$work/$name/scores.h5"
    done
    cached k-adapter-again model.adapter="$work/sft/final"
    [ "$(origin k-adapter-again)" = "True ${keys[4]}" ]
}

@test "a damaged entry is seen, made again and whole after that; a cache that cannot be written is no failure" {
    cached sound
    local key entry
    read -r _ key <<< "$(origin sound)"
    entry=$work/cache/$key.h5
    "${MB_PYTHON:-python3}" - "$entry" <<'PYTHON'
import sys, h5py
with h5py.File(sys.argv[1]) as file:
    values = file["scores/logprob"][:].tobytes()
data = bytearray(open(sys.argv[1], "rb").read())
at = data.index(values)
data[at + 100] ^= 1
open(sys.argv[1], "wb").write(data)
PYTHON
    run cached repaired
    [ "$status" -eq 0 ]
    [[ $output == *"$entry: damaged"* ]]
    [ "$(origin repaired)" = "False $key" ]
    [ "$(hash_of "$work/repaired/scores.h5")" = "$expected" ]
    [ "$(hash_of "$entry")" = "$expected" ]
    truncate -s -200 "$entry"
    cached cut
    [ "$(origin cut)" = "False $key" ]
    rm "$work/cache/$key.json" # the process that kept it was killed in between
    cached unfinished
    [ "$(origin unfinished)" = "False $key" ]
    cached whole
    [ "$(origin whole)" = "True $key" ]
    touch "$work/no-folder"
    run score lonely score.cache_dir="$work/no-folder/cache"
    [ "$status" -eq 0 ]
    [[ $output == *"the file is not kept for other runs"* ]]
    [ "$(hash_of "$work/lonely/scores.h5")" = "$expected" ]
}

@test "two runs at once with an empty cache, shares of one work, and shares that find it done" {
    local pids=() pid
    for name in x y z; do
        score $name score.cache_dir="$work/new-cache" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    for name in x y z; do [ "$(hash_of "$work/$name/scores.h5")" = "$expected" ]; done
    [ "$(find "$work/new-cache" -type f | wc -l)" -eq 2 ]
    [ "$(hash_of "$work/new-cache/"*.h5)" = "$expected" ]
    for k in 0 1; do score joined score.cache_dir="$work/third-cache" run.share=$k/2; done
    [ ! -e "$work/third-cache" ]
    score joined score.cache_dir="$work/third-cache"
    [ "$(find "$work/third-cache" -name '*.h5' | wc -l)" -eq 1 ]
    run score found score.cache_dir="$work/third-cache" run.share=1/2
    [[ $output == *"has all shares of this work"* ]]
    [ ! -e "$work/found/scores.h5.parts" ] && [ -f "$work/found/done-1of2.json" ]
    score found score.cache_dir="$work/third-cache"
    [ "$(field "$work/found/done.json" results from_cache)" = True ]
    [ "$(hash_of "$work/found/scores.h5")" = "$expected" ]
}

@test "moe-eval on pairs: accuracy, rewards and errors equal those of the two score files; the same on 3 ranks" {
    score tuned model.adapter="$work/sft/final"
    evaluate() { ranks "$1" "$bin/moe-eval" model.path="$work/init/model" model.adapter="$work/sft/final" dataset.path="$work/pairs/shard.h5" eval.reference="$work/one/scores.h5" eval.beta=0.3 \
        eval.tile_tokens=512 output.dir="$work/$2"; }
    run evaluate 1 eval1
    [ "$status" -eq 0 ]
    [[ $output == *"preference all "*"preference of type code"*"reward     of type code"* ]]
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys, h5py, numpy as np
work = sys.argv[1]
p, n = (h5py.File(f"{work}/tuned/scores.h5")[f"scores/{c}"][:] for c in ("logprob", "targets"))
ref = h5py.File(f"{work}/one/scores.h5")["scores/logprob"][:]
shard = h5py.File(f"{work}/pairs/shard.h5")
types, names = shard["type"][::2], [x.decode() for x in shard["type_names"][:]]
reward = 0.3 * (p - ref)
figures = {"accuracy": p[::2] > p[1::2], "accuracy_per_token": (p / n)[::2] > (p / n)[1::2], "margin": p[::2] - p[1::2], "margin_per_token": (p / n)[::2] - (p / n)[1::2],
           "reward_accuracy": reward[::2] > reward[1::2], "reward_margin": reward[::2] - reward[1::2], "reward_chosen": reward[::2], "reward_rejected": reward[1::2]}
results = json.load(open(f"{work}/eval1/results.json"))
done = json.load(open(f"{work}/eval1/done.json"))
file = h5py.File(f"{work}/eval1/eval.h5")
rows = [("preference", "all", np.ones(100, bool))] + [("preference_by_type", t, types == i) for i, t in enumerate(names)]
rows += [("preference", s, shard["source"][::2] == i) for i, s in enumerate(("p", "q"))]
for group, name, which in rows:
    row = results[group][name]
    assert row["pairs"] == which.sum() > 0 and row["left_out"] == 0, (name, row)
    for figure, value in figures.items():
        value = value[which].astype(float)
        assert abs(row[figure] - value.mean()) < 1e-9, (name, figure)
        assert abs(row[figure + "_stderr"] - value.std(ddof=1) / len(value) ** 0.5) < 1e-9, (name, figure)
        assert file[f"{group}/{name}/{figure}"][()] == row[figure]
assert (file["preference_records/logprob"][:] == p).all()
assert done["results"]["preference_accuracy"] == results["preference"]["all"]["accuracy"] and done["results"]["reward_margin"] == results["preference"]["all"]["reward_margin"]
assert abs(results["preference"]["all"]["reward_margin"]) > 1e-6 and 0.05 < results["preference"]["all"]["accuracy"] < 0.95
PYTHON
    "$bin/moe-eval" model.path="$work/init/model" model.adapter="$work/sft/final" dataset.path="$work/pairs/shard.h5" output.dir="$work/eval0" # no reference: no rewards
    [[ "$(field "$work/eval0/results.json" preference all)" != *reward* ]]
    [ "$(field "$work/eval0/results.json" preference all accuracy)" = "$(field "$work/eval1/results.json" preference all accuracy)" ]
    need_mpi
    evaluate 3 eval3
    cmp "$work/eval1/results.json" "$work/eval3/results.json"
    [ "$(hash_of "$work/eval1/eval.h5")" = "$(hash_of "$work/eval3/eval.h5")" ]
}

@test "what does not fit is refused, with what differs and the command that makes it right" {
    pairs other dataset.template=plain
    evaluate() { "$bin/moe-eval" model.path="$work/init/model" output.dir="$work/refused" "$@"; }
    run evaluate dataset.path="$work/other/shard.h5" eval.reference="$work/one/scores.h5"
    [ "$status" -eq 3 ]
    [[ $output == *"template ("*" there, "*" here)"*"moe-score score.scores=logprob dataset.path=$work/other/shard.h5"* ]]
    run evaluate dataset.path="$work/pairs/shard.h5" eval.reference="$work/one/scores.h5" eval.max_length=20
    [ "$status" -eq 3 ]
    [[ $output == *"max_length ("*"dataset.max_length=20"* ]]
    run evaluate dataset.path="$work/shard/shard.h5" eval.reference="$work/one/scores.h5"
    [ "$status" -eq 2 ]
    [[ $output == *"eval.reference is for preference pairs"* ]]
    run evaluate eval.reference="$work/one/scores.h5" eval.tasks="choice=$work/a.jsonl"
    [ "$status" -eq 2 ]
    [[ $output == *"eval.reference needs pairs"* ]]
    run score refused score.source_model="$work/init/model"
    [ "$status" -eq 2 ]
    [[ $output == *"score.source_model names another model"* ]]
    run score refused model.adapter="$work/sft/final" score.scores=logprob,perplexity
    [ "$status" -eq 2 ]
    [[ $output == *"score them in runs of their own"* ]]
    run score refused model.path="$work/convert/model"
    [ "$status" -eq 2 ]
    [[ $output == *"has trash experts"* ]]
}
