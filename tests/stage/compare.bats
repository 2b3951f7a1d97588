# Category files and their comparison, on tiny models: one that learnt short answers by heart and one that did not. Figures against the
# perplexity of a shard and against the answers; ranks, kill and resume; what does not belong together is refused.

setup_file() {
    load common.bash
    mb_setup
    make_categories
    make_target_config
    eval_of base "$work/base/model"
    eval_of tuned "$work/tuned/final"
}
setup() {
    load common.bash
    mb_setup
}

# Questions with one-word answers, choices, plain text; a model that learnt half of the answers by heart.
make_categories() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, random, sys
work = sys.argv[1]
random.seed(3)
words = "red blue green black white brown grey pink".split()
things = [a + b for a in "mo ka ti su re lo".split() for b in "na pe do fi la ru".split()]
colour = {thing: random.choice(words) for thing in things}
def write(name, rows):
    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
ask = lambda thing: f"What colour has {thing}?"
learnt, others = things[:18], things[18:]
write("train", [{"question": ask(t), "answer": colour[t]} for t in learnt])
write("sop", [{"prompt": ask(t), "answer": f" {colour[t].upper()}."} for t in learnt[:6]] + [{"question": ask(t), "answer": colour[t]} for t in learnt[6:]])
write("mixed", [{"messages": [{"role": "user", "content": ask(t)}, {"role": "assistant", "content": colour[t]}]} for t in learnt[:4] + others[:8]]
      + [{"text": f"{t} is {colour[t]}"} for t in others[:5]])
write("choice", [{"question": ask(t), "choices": words, "answer": words.index(colour[t])} for t in learnt[:10]])
write("other", [{"question": ask(t), "answer": colour[t]} for t in others])
PYTHON
    make_target_config
    "$bin/moe-shard" tokenizer dataset.inputs="a=$work/train.jsonl,b=$work/choice.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok"
    "$bin/moe-shard" build dataset.inputs="a=$work/train.jsonl" tokenizer.path="$work/tok" output.dir="$work/shard"
    "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/base"
    "$bin/moe-train" model.path="$work/base/model" dataset.path="$work/shard/shard.h5" training.objective=sft training.max_steps=60 \
        training.batch_size=6 training.learning_rate=1e-2 output.dir="$work/tuned"
}

categories() { echo "sop=$work/sop.jsonl,mixed=$work/mixed.jsonl,choice=$work/choice.jsonl"; }

# eval_of NAME MODEL [KEY=VALUE ...]: into $work/eval-NAME.
eval_of() {
    "$bin/moe-eval" model.path="$2" eval.categories="$(categories)" eval.max_new_tokens=6 output.dir="$work/eval-$1" "${@:3}"
}

@test "two ranks: the bits of one; the work left no parts" {
    need_mpi
    ranks 2 "$bin/moe-eval" model.path="$work/tuned/final" eval.categories="$(categories)" eval.max_new_tokens=6 output.dir="$work/two"
    for name in categories.h5 results.json answers_sop.jsonl answers_mixed.jsonl; do
        a=$(hash_of "$work/eval-tuned/$name") b=$(hash_of "$work/two/$name")
        echo "$name $a $b"
        [ -n "$a" ] && [ "$a" = "$b" ]
    done
    grep -q '"ranks": 2' "$work/two/done.json"
    [ ! -e "$work/two/parts" ] && [ ! -e "$work/eval-tuned/parts" ]
    [ ! -e "$work/two/answers_choice.jsonl" ]
}

@test "killed among the answers and gone on with on two ranks: the same results, what was done is not done again" {
    need_mpi
    "${CC:-cc}" -D_GNU_SOURCE -std=c17 -shared -fPIC tests/stage/interrupt.c -o "$work/interrupt.so" -ldl
    command=("$bin/moe-eval" model.path="$work/tuned/final" eval.categories="$(categories)" eval.max_new_tokens=6 output.dir="$work/killed")
    MB_INTERRUPT=9:26 MB_INTERRUPT_CALL=rename MB_INTERRUPT_PATH="$work/killed/parts" MB_INTERRUPT_MARK="$work/mark" \
        LD_PRELOAD="$work/interrupt.so" ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}:verify_asan_link_order=0" run "${command[@]}"
    cat "$work/mark"
    [ "$status" -eq 137 ]
    ls "$work"/killed/parts/*-sop.h5
    [ ! -e "$work/killed/categories.h5" ]
    run ranks 2 "${command[@]}"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"sop: done before"* ]] && [[ "$output" != *"mixed: done before"* ]]
    for name in categories.h5 results.json answers_mixed.jsonl; do [ "$(hash_of "$work/killed/$name")" = "$(hash_of "$work/eval-tuned/$name")" ]; done
}

@test "perplexity is that of a shard of the same records; accuracy is that of the answers; choices are moe-eval's own" {
    "$bin/moe-shard" build dataset.inputs="a=$work/mixed.jsonl" tokenizer.path="$work/tok" output.dir="$work/shard-mixed"
    "$bin/moe-eval" model.path="$work/tuned/final" dataset.path="$work/shard-mixed/shard.h5" eval.only_answers=true \
        eval.tasks="choice=$work/choice.jsonl" output.dir="$work/plain"
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, math, sys
import h5py, numpy
work = sys.argv[1]
plain, ours = (json.load(open(f"{work}/{name}/results.json")) for name in ("plain", "eval-tuned"))
mixed, choice = ours["categories"]["mixed"], ours["categories"]["choice"]
print(plain["perplexity"]["all"], mixed)
assert mixed["tokens"] == plain["perplexity"]["all"]["tokens"] and mixed["records"] == 17 and mixed["judged"] == 12
assert abs(mixed["perplexity"] / plain["perplexity"]["all"]["perplexity"] - 1) < 1e-9
assert choice["accuracy"] == plain["results"]["choice"]["acc,none"], (choice, plain["results"])
with h5py.File(f"{work}/eval-tuned/categories.h5", "r") as file:
    assert [name.decode() for name in file["categories"][...]] == ["sop", "mixed", "choice"]
    assert file["mixed/kind"][...].tolist() == [1] * 12 + [0] * 5
    for name in ("sop", "mixed"):
        answers = [json.loads(line) for line in open(f"{work}/eval-tuned/answers_{name}.jsonl")]
        plain_text = lambda text: " ".join(text.casefold().split()).rstrip(".,;:!?")
        right = [plain_text(row["generated_text"]) == plain_text(row["expected"]) for row in answers]
        correct = file[f"{name}/correct"][...]
        assert [row["correct"] for row in answers] == right
        assert correct[[row["record"] for row in answers]].tolist() == [float(x) for x in right]
        assert abs(ours["categories"][name]["accuracy"] - sum(right) / len(right)) < 1e-12
        total = file[f"{name}/nll"][...].sum() / file[f"{name}/tokens"][...].sum()
        assert abs(math.exp(total) / ours["categories"][name]["perplexity"] - 1) < 1e-12
    assert 0.7 < ours["categories"]["sop"]["accuracy"] <= 1 and numpy.isnan(file["mixed/correct"][-5:]).all()
PYTHON
}

@test "compare: one table of three models; an ensemble costs two; the order of models changes no interval" {
    "$bin/moe-eval" fuse.foundation="$work/base/model" fuse.sft="$work/tuned/final" eval.categories="$(categories)" eval.max_new_tokens=6 output.dir="$work/eval-ensemble"
    run "$bin/moe-eval" compare compare.inputs="base=$work/eval-base,tuned=$work/eval-tuned,ensemble=$work/eval-ensemble/" output.dir="$work/compare"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"perplexity over that of base"* ]]
    [ "$(awk '{ if (length($0) > most) most = length($0) } END { print most }' "$work/compare/compare.txt")" -le 110 ]
    "$bin/moe-eval" compare compare.inputs="ensemble=$work/eval-ensemble,tuned=$work/eval-tuned,base=$work/eval-base" compare.baseline=base output.dir="$work/turned"
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, math, sys
import h5py
work = sys.argv[1]
a, b = (json.load(open(f"{work}/{name}/compare.json")) for name in ("compare", "turned"))
assert a["models"] == ["base", "tuned", "ensemble"] and a["baseline"] == b["baseline"] == "base"
for name, part in list(a["categories"].items()) + [("mean", a["mean"])]:
    assert part["models"] == (b["categories"][name] if name != "mean" else b["mean"])["models"], name
    for model, cell in part["models"].items():
        base = part["models"]["base"]
        assert abs(cell["perplexity_ratio"]["value"] * base["perplexity"]["value"] / cell["perplexity"]["value"] - 1) < 1e-9
        assert abs(cell["accuracy_difference"]["value"] + base["accuracy"]["value"] - cell["accuracy"]["value"]) < 1e-9
        for value in cell.values():
            assert value["low"] <= value["value"] <= value["high"], (name, model, value)
    if name != "mean":
        for model in a["models"]:
            own = json.load(open(f"{work}/eval-{model}/results.json"))["categories"][name]
            assert abs(part["models"][model]["perplexity"]["value"] / own["perplexity"] - 1) < 1e-12
sop = a["categories"]["sop"]["models"]["tuned"]
assert sop["accuracy_difference"]["is_real"] and sop["accuracy_difference"]["low"] > 0.5
assert a["mean"]["models"]["ensemble"]["perplexity_ratio"]["is_real"]
assert not a["categories"]["sop"]["models"]["base"]["perplexity_ratio"]["is_real"]
for model in a["models"]:
    logs = [math.log(a["categories"][name]["models"][model]["perplexity"]["value"]) for name in a["categories"]]
    assert abs(math.exp(sum(logs) / 3) / a["mean"]["models"][model]["perplexity"]["value"] - 1) < 1e-9
assert a["cost"]["tuned"]["relative_flops"] == 1 and a["cost"]["ensemble"]["relative_flops"] == 2
assert a["cost"]["base"]["scoring_tokens_per_second"] > 0 and a["cost"]["base"]["relative_decoding_time"] == 1
with h5py.File(f"{work}/compare/compare.h5", "r") as file:
    assert file["accuracy"].shape == (3, 4) and file["accuracy_low"][1, 0] == sop["accuracy"]["low"]
PYTHON
    run "$bin/moe-eval" compare compare.inputs="base=$work/eval-base,tuned=$work/eval-tuned,ensemble=$work/eval-ensemble/" output.dir="$work/compare"
    [[ "$output" == *"nothing to do"* ]]
}

@test "evaluations of other records, rules or files are refused, both named" {
    "$bin/moe-eval" model.path="$work/base/model" eval.categories="sop=$work/other.jsonl,mixed=$work/mixed.jsonl,choice=$work/choice.jsonl" eval.max_new_tokens=6 output.dir="$work/elsewhere"
    "$bin/moe-eval" model.path="$work/base/model" eval.categories="sop=$work/sop.jsonl" eval.max_new_tokens=6 output.dir="$work/fewer"
    eval_of limited "$work/base/model" eval.limit=5
    eval_of judged "$work/base/model" eval.max_new_tokens=7
    for case in "elsewhere:evaluated different files" "fewer:has a category mixed, and" "eval-limited:has 18 records" "eval-judged:judged answers by"; do
        run "$bin/moe-eval" compare compare.inputs="base=$work/eval-base,b=$work/${case%%:*}" output.dir="$work/refused"
        echo "$output"
        [ "$status" -eq 3 ]
        [[ "$output" == *"${case#*:}"* ]] && [[ "$output" == *"$work/eval-base/"* ]] && [[ "$output" == *"$work/${case%%:*}/"* ]]
    done
    [ ! -e "$work/refused/compare.json" ]
}

@test "a list of groups in a study file; what cannot be right is said before a model is opened" {
    cat > "$work/groups.cfg" <<CFG
eval: { eval: { max_new_tokens = 6; categories = ( { name = "numbers"; path = "$work/numbers.jsonl"; match = "number"; }, { path = "$work/choice.jsonl"; } ); }; };
CFG
    printf '%s\n' '{"instruction": "2 + 3", "output": "It is 5."}' '{"prompt": "What is half?", "answer": 0.5}' > "$work/numbers.jsonl"
    run "$bin/moe-eval" "$work/groups.cfg" stage=eval model.path="$work/tuned/final" output.dir="$work/grouped"
    echo "$output"
    [ "$status" -eq 3 ] && [[ "$output" == *"numbers.jsonl: line 2"* ]]
    printf '%s\n' '{"instruction": "2 + 3", "output": "It is 5."}' '{"prompt": "What is half?", "answer": 12}' > "$work/numbers.jsonl"
    "$bin/moe-eval" "$work/groups.cfg" stage=eval model.path="$work/tuned/final" output.dir="$work/grouped"
    grep -q '"judged": 2' "$work/grouped/results.json"
    for words in "a=$work/none.jsonl:no such file" "a=$work/sop.jsonl,a=$work/other.jsonl:two are named" "a/b=$work/sop.jsonl:is no name"; do
        run "$bin/moe-eval" model.path="$work/none" eval.categories="${words%:*}" output.dir="$work/none"
        echo "$output"
        [ "$status" -ne 0 ] && [[ "$output" == *"${words##*:}"* ]]
    done
    run "$bin/moe-eval" compare output.dir="$work/none"
    [ "$status" -eq 2 ] && [[ "$output" == *"nothing to compare"* ]]
    run "$bin/moe-eval" compare compare.inputs="a=$work/eval-base" compare.baseline=b output.dir="$work/none"
    [ "$status" -eq 2 ] && [[ "$output" == *"names no such model"* ]]
}
