# moe-eval eval.questions: the log-probabilities of moe-eval's own multiple choice on the same texts, cloze answers by greedy generation, the same
# answers on any number of ranks and after a kill, adapters and models of 4 bits, refusals.

setup_file() {
    load common.bash
    mb_setup
    "${CC:-cc}" -D_GNU_SOURCE -std=c17 -shared -fPIC tests/stage/interrupt.c -o "$work/interrupt.so" -ldl
    make_records
    make_target_config
    inputs="a=$work/a.jsonl,b=$work/b.jsonl"
    {
        "$bin/moe-shard" tokenizer dataset.inputs="$inputs" tokenizer.vocab_size=384 output.dir="$work/tok"
        "$bin/moe-shard" build dataset.inputs="$inputs" dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/shard"
        "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/init"
        "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.max_steps=10 training.batch_size=8 training.learning_rate=3e-3 \
            output.dir="$work/base"
        "$bin/moe-train" model.path="$work/base/final" dataset.path="$work/shard/shard.h5" training.max_steps=6 training.batch_size=8 training.learning_rate=1e-2 \
            training.peft_mode=lora training.lora.r=4 training.lora.target_modules=all-linear output.dir="$work/lora"
        make_questions
        merge questions
        answers one
    } > "$work/setup.log" 2>&1 || { tail -20 "$work/setup.log" && false; }
}
setup() {
    load common.bash
    mb_setup
}

# $work/{words,codes,pairs,gaps}.jsonl: 70 questions with one right option of 2 to 5, the first 40 with examples to choose from; 12 with several; 16 cloze.
make_questions() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
texts = [json.loads(line)["text"] for name in "ab" for line in open(f"{work}/{name}.jsonl", encoding="utf-8")]
texts = [" ".join(t.split()) for t in texts]
def write(name, rows):
    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
def options(i, n):
    return [f"{texts[(i + 7 * k) % len(texts)][50 + i % 5:56 + i % 5 + 3 * k]} {k}" for k in range(n)]
single = [{"q": f"{i}: {texts[i][:30 + i % 40]}", "o": options(i, 2 + i % 4), "a": i % (2 + i % 4)} for i in range(70)]
write("words", single[:40])
write("codes", single[40:])
write("examples", [{"q": f"shown {i}", "o": ["yes", "no"], "a": i % 2} for i in range(3)])
write("pairs", [{"q": f"which of {i}: {texts[i + 80][:25]}", "o": options(i + 90, 4), "a": [i % 4, (i + 1) % 4]} for i in range(12)])
write("gaps", [{"q": f"go on {i}: {texts[i + 100][:40]}", "a": f"never said {i}"} for i in range(16)])
PYTHON
}
merge() { # merge NAME: all of them as one file
    local cfg=$work/$1.cfg
    cat > "$cfg" <<CFG
merge: { format = "mapped"; inputs = (
    { name = "words"; path = "$work/words.jsonl"; fields = "question=q,options=o,answer=a"; few_shot = "$work/examples.jsonl"; },
    { name = "codes"; path = "$work/codes.jsonl"; fields = "question=q,options=o,answer=a"; },
    { name = "pairs"; path = "$work/pairs.jsonl"; fields = "question=q,options=o,answer=a"; },
    { name = "gaps"; path = "$work/gaps.jsonl"; fields = "question=q,answer=a"; } ); };
CFG
    "$bin/moe-merge" merge "$cfg" output.dir="$work/$1"
}
questions() { echo "$work/questions/questions.jsonl"; }
answers() { # answers NAME key=value...
    "$bin/moe-eval" model.path="$work/base/final" eval.questions="$(questions)" eval.max_new_tokens=12 eval.tile_tokens=512 output.dir="$work/$1" "${@:2}"
}
same_answers() { # same_answers A B
    [ "$(hash_of "$work/$1/answers.h5")" = "$(hash_of "$work/$2/answers.h5")" ]
    cmp "$work/$1/results.json" "$work/$2/results.json"
}
interrupted() { # interrupted SIGNAL:NUMBER[:when[:rank]] PATH RANKS PROGRAM...
    local code=0
    rm -f "$work/mark"
    ranks "$3" env MB_INTERRUPT="$1" MB_INTERRUPT_PATH="$2" MB_INTERRUPT_MARK="$work/mark" LD_PRELOAD="$work/interrupt.so" \
        ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}:verify_asan_link_order=0" "${@:4}" || code=$?
    echo "code $code, at: $(cat "$work/mark")"
    [ -s "$work/mark" ] && [ "$code" -ne 0 ]
    case $1 in 12:*) [ "$code" -eq 75 ] ;; *) [ "$code" -ne 75 ] ;; esac
}
check() { "${MB_PYTHON:-python3}" - "$work" "$@"; } # a Python program on standard input

@test "options: the log-probabilities and the accuracy of moe-eval's multiple choice on the same texts" {
    answers texts eval.question_style=texts
    check <<'PYTHON'
import json, sys
work = sys.argv[1]
rows = [json.loads(line) for line in open(f"{work}/questions/questions.jsonl")]
rows = [r for r in rows if r["kind"] == "single"]
with open(f"{work}/letters.jsonl", "w") as letters, open(f"{work}/texts.jsonl", "w") as texts:
    for r in rows:
        listed = "".join(f"{'ABCDEFGHIJ'[i]}. {o}\n" for i, o in enumerate(r["options"]))
        letters.write(json.dumps({"query": f"Question: {r['question']}\n{listed}Answer:", "choices": list("ABCDEFGHIJ")[:len(r["options"])], "gold": r["answer"]}) + "\n")
        texts.write(json.dumps({"query": f"Question: {r['question']}\nAnswer:", "choices": r["options"], "gold": r["answer"]}) + "\n")
PYTHON
    "$bin/moe-eval" model.path="$work/base/final" eval.tasks="letters:choice=$work/letters.jsonl,texts:choice=$work/texts.jsonl" eval.log_samples=true \
        output.dir="$work/choice"
    check <<'PYTHON'
import json, sys
import h5py, numpy as np
work = sys.argv[1]
results = json.load(open(f"{work}/choice/results.json"))["results"]
for style, run, metric in (("letters", "one", "acc,none"), ("texts", "texts", "acc_bytes,none")):
    f = h5py.File(f"{work}/{run}/answers.h5")
    single = np.flatnonzero(f["kind"][:] == 0)
    samples = [json.loads(line) for line in open(f"{work}/choice/samples_{style}.jsonl")]
    assert len(samples) == len(single) == 70
    for q, s in zip(single, samples):
        theirs = [np.float32(float(r[0][0])) for r in s["resps"]]
        ours = f["loglik"][q]
        assert f["options"][q] == len(theirs)
        assert all(ours[:len(theirs)] == theirs) and np.isnan(ours[len(theirs):]).all(), (q, ours, theirs)
        score = np.array([float(r[0][0]) for r in s["resps"]])
        if style == "texts":
            score = score / [len(c.encode()) for c in s["doc"]["choices"]]
        p = np.exp(score - score.max()); p /= p.sum()
        assert abs(f["choice_prob"][q][:len(p)] - p).max() < 2e-6, (q, p)
        assert f["picked"][q] == p.argmax() and f["right"][q] == (p.argmax() == s["doc"]["gold"])
    accuracy = json.load(open(f"{work}/{run}/results.json"))["questions"]["accuracy"]["kind/single"]
    assert abs(accuracy["accuracy"] - results[style][metric]) < 1e-12 and 0 < accuracy["accuracy"] < 1, (accuracy, results[style])
    assert accuracy["low"] <= accuracy["accuracy"] <= accuracy["high"]
    counts = f["options"][:][single]
    assert abs(accuracy["chance"] - (1 / counts).mean()) < 1e-6
    multiple = np.flatnonzero(f["kind"][:] == 1)
    assert len(multiple) == 12
    for q in multiple:
        p = f["choice_prob"][q][:4]
        assert f["picked"][q] == sum(1 << i for i in range(4) if p[i] >= 0.5 * p.max())
PYTHON
}

@test "answers are the same on 1, 2 and 3 ranks, and whatever is computed together" {
    need_mpi
    for n in 2 3; do
        ranks "$n" "$bin/moe-eval" model.path="$work/base/final" eval.questions="$(questions)" eval.max_new_tokens=12 eval.tile_tokens=512 output.dir="$work/ranks$n"
        same_answers one "ranks$n"
    done
    ranks 2 "$bin/moe-eval" model.path="$work/base/final" eval.questions="$(questions)" model.shard=true eval.generate=false eval.tile_tokens=512 output.dir="$work/sharded"
    answers whole eval.generate=false
    same_answers whole sharded
    answers tiles eval.tile_tokens=8192 eval.batch_sequences=3
    same_answers one tiles
    run answers one
    echo "$output"
    [ "$status" -eq 0 ] && [[ $output == *"done"* ]] && [[ $output != *"parts"* ]]
    [ ! -e "$work/one/parts" ]
}

@test "stopped and killed, it goes on with what is missing: the same answers" {
    need_mpi
    command=("$bin/moe-eval" model.path="$work/base/final" eval.questions="$(questions)" eval.max_new_tokens=12 eval.tile_tokens=512)
    interrupted 9:20 -options- 1 "${command[@]}" output.dir="$work/killed"
    made=$(ls "$work"/killed/parts/*-options-*.h5 | wc -l)
    [ "$made" -ge 2 ] && [ "$made" -lt 14 ] && [ ! -e "$work/killed/answers.h5" ]
    run ranks 2 "${command[@]}" output.dir="$work/killed"
    echo "$output"
    [ "$status" -eq 0 ] && [[ $output == *"$made of 14 parts were done before"* ]]
    same_answers one killed
    interrupted 12:12 -options- 1 "${command[@]}" output.dir="$work/stopped"
    made=$(ls "$work"/stopped/parts/*-options-*.h5 | wc -l)
    [ "$made" -ge 1 ] && [ "$made" -lt 14 ]
    first=$(ls "$work"/stopped/parts/*-options-*.h5 | head -1)
    printf 'damaged' | dd of="$first" bs=1 seek=200 conv=notrunc 2> /dev/null
    run ranks 3 "${command[@]}" output.dir="$work/stopped"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"is made again"* && $output == *"$((made - 1)) of 14 parts were done before"* ]]
    same_answers one stopped
}

@test "stopped while cloze questions are answered: the answers that are there stay" {
    command=("$bin/moe-eval" model.path="$work/base/final" eval.questions="$(questions)" eval.max_new_tokens=12 eval.tile_tokens=512 output.dir="$work/cloze")
    interrupted 9:6 .jsonl 1 "${command[@]}"
    [ -s "$(ls "$work"/cloze/parts/*.cloze.prompts.jsonl)" ]
    run "${command[@]}"
    echo "$output"
    [ "$status" -eq 0 ] && [[ $output == *"14 of 14 parts were done before"* ]]
    same_answers one cloze
}

@test "cloze: a greedy answer up to the end of its line, right when it is one of those accepted" {
    answers free eval.stop='["#"]'
    check <<'PYTHON'
import json, sys
import h5py, numpy as np
work = sys.argv[1]
f = h5py.File(f"{work}/one/answers.h5")
cloze = np.flatnonzero(f["kind"][:] == 2)
texts = [t.decode() for t in f["texts"][:]]
picked = f["picked"][:][cloze]
assert len(cloze) == 16 and (picked >= 0).all() and texts == sorted(set(texts)) and not f["right"][:][cloze].any()
assert np.isnan(f["loglik"][:][cloze]).all() and np.isnan(f["choice_prob"][:][cloze]).all() and (f["answer"][:][cloze] == -1).all()
# Half of the questions now accept what the model says; the others something else beside what they did.
rows = [json.loads(line) for line in open(f"{work}/gaps.jsonl")]
said = 0
for i, row in enumerate(rows):
    if i % 2 == 0 and texts[picked[i]]:
        row["a"] = texts[picked[i]].upper() + "."
        said += 1
assert said >= 2, texts
json.dump(said, open(f"{work}/said.json", "w"))
with open(f"{work}/gaps.jsonl", "w") as out:
    out.writelines(json.dumps(r) + "\n" for r in rows)
PYTHON
    merge taught > /dev/null
    answers taught.eval eval.questions="$work/taught/questions.jsonl"
    answers silent eval.generate=false 2> "$work/silent.log"
    grep -q "16 cloze questions stay unanswered" "$work/silent.log"
    check <<'PYTHON'
import json, sys
import h5py, numpy as np
work = sys.argv[1]
said = json.load(open(f"{work}/said.json"))
f, g, free, silent = (h5py.File(f"{work}/{run}/answers.h5") for run in ("taught.eval", "one", "free", "silent"))
cloze = f["kind"][:] == 2
assert f["right"][:][cloze].sum() == said, (f["right"][:][cloze], said)
assert json.load(open(f"{work}/taught.eval/results.json"))["questions"]["accuracy"]["kind/cloze"]["accuracy"] == said / 16
def greedy(h):
    texts = h["texts"][:] if "texts" in h else []
    return [texts[p] if p >= 0 else None for p in h["picked"][:][cloze]]
assert greedy(f) == greedy(g)
assert greedy(silent) == [None] * 16 and not silent["right"][:][cloze].any()
assert (silent["loglik"][:][~cloze].tobytes()) == g["loglik"][:][~cloze].tobytes()
assert all(len(a) >= len(b) for a, b in zip(greedy(free), greedy(g)))
PYTHON
}

@test "examples in front, and only the first questions" {
    answers shots eval.num_fewshot=2
    answers few eval.limit=9
    check <<'PYTHON'
import json, sys
import h5py, numpy as np
work = sys.argv[1]
one, shots, few = (h5py.File(f"{work}/{run}/answers.h5") for run in ("one", "shots", "few"))
assert shots.attrs["few_shot"] == 2 and one.attrs["few_shot"] == 0
longer = shots["tokens"][:] > one["tokens"][:]
words = one["source"][:] == 0
assert one["source_names"][0] == b"words" and longer[words].all() and not longer[~words].any()
assert (shots["loglik"][:][words][:, 0] != one["loglik"][:][words][:, 0]).any() and (shots["loglik"][:][~words][:, 0] == one["loglik"][:][~words][:, 0])[:30].all()
assert len(few["id"]) == 9 and few.attrs["questions"] != one.attrs["questions"]
assert few["loglik"][:].tobytes() == one["loglik"][:9, :few["loglik"].shape[1]].tobytes()
PYTHON
}

@test "adapters, and models of 4 bits: answers of their own, on any number of ranks" {
    need_mpi
    answers adapted model.adapter="$work/lora/final"
    ranks 2 "$bin/moe-eval" model.path="$work/base/final" model.adapter="$work/lora/final" eval.questions="$(questions)" eval.max_new_tokens=12 eval.tile_tokens=512 \
        output.dir="$work/adapted2"
    same_answers adapted adapted2
    "$bin/moe-quantize" quantize.method=rtn quantize.group=32 model.path="$work/base/final" output.dir="$work/int4"
    answers four model.path="$work/int4/model"
    ranks 2 "$bin/moe-eval" model.path="$work/int4/model" eval.questions="$(questions)" eval.max_new_tokens=12 eval.tile_tokens=512 output.dir="$work/four2"
    same_answers four four2
    check <<'PYTHON'
import sys
import h5py, numpy as np
work = sys.argv[1]
files = [h5py.File(f"{work}/{run}/answers.h5") for run in ("one", "adapted", "four")]
assert len({f.attrs["model"] for f in files}) == 3
assert len({f.attrs["questions"] for f in files}) == 1 and len({f.attrs["tokenizer"] for f in files}) == 1
options = files[0]["kind"][:] < 2
for f in files[1:]:
    difference = np.nanmax(abs(f["loglik"][:][options] - files[0]["loglik"][:][options]))
    assert 1e-3 < difference < 20, difference
PYTHON
}

@test "what cannot be answered is refused before anything is computed" {
    refused() { # refused CODE TEXT key=value...
        run answers refused "${@:3}"
        echo "$output"
        [ "$status" -eq "$1" ] && [[ $output == *"$2"* ]] && [[ $output != *"tokens/s"* ]]
        [ ! -e "$work/refused/answers.h5" ]
    }
    head -3 "$(questions)" > "$work/damaged.jsonl"
    sed -n '4s/"answer": *[0-9]*/"answer": 77/p' "$(questions)" >> "$work/damaged.jsonl"
    refused 3 "damaged.jsonl: line 4" eval.questions="$work/damaged.jsonl"
    { cat "$(questions)" && head -1 "$(questions)"; } > "$work/twice.jsonl"
    refused 3 "stands there twice" eval.questions="$work/twice.jsonl"
    : > "$work/empty.jsonl"
    refused 3 "empty.jsonl: holds no questions" eval.questions="$work/empty.jsonl"
    refused 3 "nowhere.jsonl" eval.questions="$work/nowhere.jsonl"
    refused 2 "eval.question_style" eval.question_style=numbers
    refused 3 "takes 2" eval.max_length=2 eval.question_style=texts
    echo '{"q": "capital of France?", "a": "Paris"}' > "$work/gaps.jsonl"
    merge towns > /dev/null
    refused 3 "eval.match=number: the expected answer holds no number" eval.match=number eval.questions="$work/towns/questions.jsonl"
    refused 2 "eval.generate=false" model.shard=true
    run "$bin/moe-eval" model.path="$work/base/final" output.dir="$work/refused"
    [ "$status" -eq 2 ] && [[ $output == *"eval.questions"* ]]
}
