# moe-merge: benchmarks of several forms as one file, duplicates and bad records named, parts that stay, what others have left out, training
# records that moe-shard and moe-embed read; the same bytes on any number of ranks; refusals.

setup_file() {
    load common.bash
    mb_setup
    "${MB_PYTHON:-python3}" datasets/moe2_demo.py "$work/data" --scale 0.02 --quiet
    make_benchmarks
    "$bin/moe-merge" merge merge.inputs="$(benchmarks)" output.dir="$work/merged"
}

setup() {
    load common.bash
    mb_setup
}

# Small benchmarks: MMLU's tables with examples, ARC, a file with own names; three questions stand twice, two records are bad.
make_benchmarks() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import gzip, json, os, sys
work = sys.argv[1]
for name in ("mmlu/test", "mmlu/dev"):
    os.makedirs(f"{work}/{name}")
with open(f"{work}/mmlu/test/law_test.csv", "w") as f:
    f.writelines(f'"Law {i}, is it?",yes {i},no,maybe,never,{"ABCD"[i % 4]}\n' for i in range(40))
with open(f"{work}/mmlu/test/art_test.csv", "w") as f:
    f.writelines(f"Art {i}?,a,b,c,d,{'ABCD'[i % 4]}\n" for i in range(20))
    f.write("Art 99?,a,b,c,d,E\n")
with open(f"{work}/mmlu/dev/law_dev.csv", "w") as f:
    f.writelines(f"Solved law {i}?,a,b,c,d,B\n" for i in range(7))
def arc(i, stem=None, flip=False, key=None):
    choices = [{"text": f"right {i}", "label": "A"}, {"text": "wrong", "label": "B"}]
    right = "A"
    if flip:
        choices = [dict(c, label=l) for c, l in zip(choices[::-1], "AB")]
        right = "B"
    return {"id": f"q{i}", "question": {"stem": stem or f"Why {i}?", "choices": choices}, "answerKey": key or right}
rows = [arc(i) for i in range(30)] + [arc(3, "why  3"), arc(4, flip=True), arc(5, key="B")]
with gzip.open(f"{work}/arc.jsonl.gz", "wt") as f:
    f.writelines(json.dumps(r) + "\n" for r in rows)
    f.write('{"question": \n')
with open(f"{work}/own.csv", "w") as f:
    f.write("stem,first,second,third,solution\n")
    f.writelines(f"Own {i}?,x{i},y,z,{i % 3 + 1}\n" for i in range(10))
    f.write("Art 3?,x,y,z,1\n")
PYTHON
}

benchmarks() {
    echo "[{\"name\": \"mmlu\", \"path\": \"$work/mmlu\"}, {\"name\": \"arc\", \"path\": \"$work/arc.jsonl.gz\"}, {\"name\": \"own\", \"path\": \"$work/own.csv\", \"fields\": \"question=stem,options=first+second+third,answer=solution,first=1\"}]"
}

# check PYTHON: with rows(path) = the objects of a file of lines, load(path) = a JSON file.
check() {
    "${MB_PYTHON:-python3}" - "$work" "$1" <<'PYTHON'
import json, sys
work, code = sys.argv[1:]
rows = lambda name: [json.loads(line) for line in open(f"{work}/{name}")]
load = lambda name: json.load(open(f"{work}/{name}"))
exec(code)
PYTHON
}

@test "merge: what every form becomes, counts by source, duplicates with their first place, bad records with their line" {
    run check '
q = rows("merged/questions.jsonl")
counts = load("merged/counts.json")
assert len(q) == counts["questions"] == 20 + 40 + 30 + 11, len(q)
assert len({r["id"] for r in q}) == len(q)
by = {s: [r for r in q if r["source"] == s] for s in ("mmlu", "arc", "own")}
assert [len(v) for v in by.values()] == [60, 30, 11]
c = counts["sources"]
assert c["mmlu"]["format"] == "mmlu" and c["mmlu"]["recognised"] and c["mmlu"]["subjects"] == {"art": 20, "law": 40} and c["mmlu"]["with_examples"] == 40, c["mmlu"]
assert c["arc"]["format"] == "arc" and c["arc"]["read"] == 34 and c["arc"]["duplicates"] == 3 and c["arc"]["other_answer"] == 1 and c["arc"]["bad"] == 1, c["arc"]
assert c["own"]["format"] == "mapped" and not c["own"]["recognised"]
law = [r for r in by["mmlu"] if r["subject"] == "law"]
assert law[2] | {"id": 0, "few_shot": 0} == {"id": 0, "source": "mmlu", "source_index": 2, "subject": "law", "kind": "single", "question": "Law 2, is it?",
    "options": ["yes 2", "no", "maybe", "never"], "answer": 2, "chance": 0.25, "few_shot": 0}
assert [e["question"] for e in law[0]["few_shot"]] == [f"Solved law {i}?" for i in range(5)] and law[0]["few_shot"][0]["answer"] == 1
assert by["own"][4]["answer"] == 1 and by["own"][4]["options"] == ["x4", "y", "z"] and abs(by["own"][4]["chance"] - 1 / 3) < 1e-12
d = rows("merged/duplicates.jsonl")
assert [(r["source_index"], r["line"], r["first"]["line"], r["same_answer"]) for r in d] == [(30, 31, 4, True), (31, 32, 5, True), (32, 33, 6, False)], d
assert all(r["file"] == r["first"]["file"] == "arc.jsonl.gz" for r in d)
b = rows("merged/bad.jsonl")
assert [(r["file"], r["line"]) for r in b] == [("art_test.csv", 21), ("arc.jsonl.gz", 34)], b
assert "the answer " in b[0]["problem"] and "none of the 4 options" in b[0]["problem"]
done = load("merged/done.json")["results"]
assert done["questions"] == 101 and done["duplicates"] == 3 and done["bad"] == 2, done
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "merge: the log says which format was found; other rules of what is the same; no second run; a merged file merges again" {
    run "$bin/moe-merge" merge merge.inputs="$(benchmarks)" merge.duplicates=order merge.few_shot=0 output.dir="$work/order"
    [ "$status" -eq 0 ]
    [[ $output == *"mmlu "*"format mmlu, found by the content"* ]]
    [[ $output == *"own "*"format mapped, as given"* ]]
    [[ $output == *"1 questions stand twice with different answers"* ]]
    run "$bin/moe-merge" merge merge.inputs="$(benchmarks)" merge.duplicates=question merge.few_shot=0 output.dir="$work/text"
    [ "$status" -eq 0 ]
    run "$bin/moe-merge" merge merge.inputs="$(benchmarks)" output.dir="$work/merged"
    [[ $output == *"up to date"* ]]
    "$bin/moe-merge" merge merge.inputs="again=$work/order/questions.jsonl" merge.few_shot=0 output.dir="$work/again"
    run check '
n = lambda name: load(name + "/counts.json")["questions"]
assert (n("order"), n("merged"), n("text")) == (102, 101, 100), (n("order"), n("merged"), n("text"))
assert all(r["few_shot"] == [] for r in rows("order/questions.jsonl"))
same = lambda r: {k: v for k, v in r.items() if k not in ("source", "source_index")}
a, b = rows("order/questions.jsonl"), rows("again/questions.jsonl")
assert load("again/counts.json")["sources"]["again"]["format"] == "unified"
by_options = {}
assert len(b) == 101 and [same(r) for r in a if same(r) in [same(x) for x in b]] == [same(r) for r in b]
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "the same bytes on one, two and three ranks" {
    need_mpi
    for n in 2 3; do
        ranks $n "$bin/moe-merge" merge merge.inputs="$(benchmarks)" output.dir="$work/merged$n"
        for file in questions.jsonl duplicates.jsonl bad.jsonl counts.json; do cmp "$work/merged/$file" "$work/merged$n/$file"; done
        ranks $n "$bin/moe-merge" split questions.path="$work/merged" output.dir="$work/split$n"
        ranks $n "$bin/moe-merge" records questions.path="$work/split$n" output.dir="$work/records$n"
    done
    "$bin/moe-merge" split questions.path="$work/merged" output.dir="$work/split1"
    for file in train.jsonl test.jsonl split.json; do
        cmp "$work/split1/$file" "$work/split2/$file"
        cmp "$work/split1/$file" "$work/split3/$file"
    done
    cmp "$work/records2/train.jsonl" "$work/records3/train.jsonl"
}

@test "split: by share and by source; a question stays in its part when others are added; shared texts are left out" {
    local parts="train=0.6,test=0.2,gate_train=0.8:mmlu,gate_test=0.2:mmlu"
    "$bin/moe-merge" split questions.path="$work/merged/questions.jsonl" split.parts="$parts" output.dir="$work/split"
    "$bin/moe-merge" merge merge.inputs="$(benchmarks | sed 's/]$//'), {\"name\": \"sums\", \"path\": \"$work/data/train/sums.jsonl\"}]" output.dir="$work/more"
    "$bin/moe-merge" split questions.path="$work/more" split.parts="$parts" output.dir="$work/split-more"
    "$bin/moe-merge" split questions.path="$work/more" split.parts="$parts" split.seed=1 output.dir="$work/split-seed"
    "$bin/moe-merge" split questions.path="$work/merged" split.parts="$parts" split.keep_shared=true output.dir="$work/split-keep"
    run check '
part = lambda run: {r["id"]: p for p in ("train", "test", "gate_train", "gate_test") for r in rows(f"{run}/{p}.jsonl")}
one, more, seed, keep = part("split"), part("split-more"), part("split-seed"), part("split-keep")
q = rows("merged/questions.jsonl")
source = {r["id"]: r["source"] for r in q}
assert all((p[:4] == "gate") == (source[i] == "mmlu") for i, p in one.items())
assert {i: p for i, p in more.items() if i in source} == one
assert len([i for i in more if i not in source]) > 20
assert seed != more
report = load("split/split.json")
assert report["parts"]["train"]["questions"] == list(one.values()).count("train") and report["parts"]["gate_train"]["sources"] == {"mmlu": list(one.values()).count("gate_train")}
shared = [r for r in q if r["source"] == "own" and r["question"] == "Art 3?"][0]["id"]
assert shared not in one and (report["shared"] == [shared]) == (shared in keep)
assert len(one) + report["no_part"]["questions"] + len(report["shared"]) == len(q)
lines = set(open(f"{work}/merged/questions.jsonl"))
assert all(line in lines for p in ("train", "gate_test") for line in open(f"{work}/split/{p}.jsonl"))
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "without: questions of other files by their text, of any format, are left out and counted" {
    run "$bin/moe-merge" without questions.path="$work/merged" without.inputs="own=$work/data/gate/who.jsonl,art=$work/mmlu/test/art_test.csv" output.dir="$work/without"
    [ "$status" -eq 0 ]
    [[ $output == *"21 questions stand in the other files too and were left out; 80 stay"* ]]
    [[ $output == *"art_test.csv: line 21: the answer"* ]]
    "$bin/moe-merge" without questions.path="$work/merged" without.inputs="art=$work/mmlu/test/art_test.csv" without.by=options output.dir="$work/without-options"
    run check '
r = load("without/without.json")
assert r["found_in"] == {"own": 0, "art": 21} and r["sources"] == {"mmlu": 20, "own": 1} and r["kept"] == 80
removed = rows("without/removed.jsonl")
kept = {x["id"] for x in rows("without/questions.jsonl")}
assert len(removed) == 21 and not kept & {x["id"] for x in removed} and all(x["found_in"] == "art" for x in removed)
assert load("without-options/without.json")["sources"] == {"mmlu": 20}
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "records: prompts and completions in both styles; moe-shard learns the completion alone, moe-embed reads the text" {
    make_encoder
    "$bin/moe-merge" records questions.path="$work/merged" output.dir="$work/letters"
    "$bin/moe-merge" records questions.path="$work/merged" records.style=texts records.few_shot=1 records.text=options output.dir="$work/texts"
    run check '
q = {r["id"]: r for r in rows("merged/questions.jsonl")}
for r in rows("letters/records.jsonl"):
    s = q[r["id"]]
    body = "Question: " + s["question"] + "\n" + "".join(f"{l}. {o}\n" for l, o in zip("ABCD", s["options"])) + "Answer:"
    assert r["prompt"] == body and r["completion"] == " " + "ABCD"[s["answer"]] and r["text"] == s["question"] and r["source"] == s["source"]
texts = rows("texts/records.jsonl")
law = [r for r in texts if q[r["id"]].get("subject") == "law"][0]
assert law["prompt"] == "Question: Solved law 0?\nAnswer: b\n\nQuestion: Law 0, is it?\nAnswer:" and law["completion"] == " yes 0", law
assert law["text"] == "Law 0, is it?\nA. yes 0\nB. no\nC. maybe\nD. never"
assert len(texts) == len(q) == 101
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    "$bin/moe-shard" tokenizer dataset.inputs="q=$work/letters/records.jsonl" dataset.form=text tokenizer.vocab_size=300 output.dir="$work/tok"
    "$bin/moe-shard" build dataset.inputs="q=$work/letters/records.jsonl" dataset.form=io dataset.fields=input=prompt,output=completion dataset.template=plain \
        tokenizer.path="$work/tok" output.dir="$work/shard"
    "$bin/moe-embed" model.path="$work/bert" dataset.inputs="q=$work/letters/records.jsonl" dataset.form=text output.dir="$work/embed"
    "$bin/moe-embed" model.path="$work/bert" dataset.inputs="q=$work/merged/questions.jsonl" dataset.form=text dataset.fields=text=question output.dir="$work/embed-q"
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import sys, h5py, numpy as np
work = sys.argv[1]
with h5py.File(f"{work}/shard/shard.h5") as f:
    offsets, mask = f["offsets"][:].astype(int), f["loss_mask"][:].astype(bool)
learnt = [int(mask[a:b].sum()) for a, b in zip(offsets, offsets[1:])]
assert len(learnt) == 101 and 1 < max(learnt) <= 3 and min(learnt) > 1, learnt  # " B" and the end of text
assert all(mask[b - 1] and not mask[a:b - 3].any() for a, b in zip(offsets, offsets[1:]))
with h5py.File(f"{work}/embed/embeddings.h5") as a, h5py.File(f"{work}/embed-q/embeddings.h5") as b:
    assert (a["embeddings"][:] == b["embeddings"][:]).all() and len(a["embeddings"]) == 101
PYTHON
}

@test "the generated families: eight sources, nothing stands twice, the same bytes again, a gate of its own" {
    local inputs="" f
    for f in "$work"/data/train/*.jsonl; do inputs+="$(basename "$f" .jsonl)=$f,gate-$(basename "$f" .jsonl)=${f/train/gate},"; done
    run "$bin/moe-merge" merge merge.inputs="${inputs%,}" output.dir="$work/families"
    [ "$status" -eq 0 ]
    "${MB_PYTHON:-python3}" datasets/moe2_demo.py "$work/data2" --scale 0.02 --quiet
    diff -r "$work/data" "$work/data2"
    "${MB_PYTHON:-python3}" datasets/moe2_demo.py "$work/data3" --scale 0.02 --seed 1 --quiet
    ! cmp -s "$work/data/gate/who.jsonl" "$work/data3/gate/who.jsonl"
    run check '
c = load("families/counts.json")
assert c["questions"] == 8 * (50 + 8) and c["duplicates"] == c["bad"] == 0, c
assert all(v["format"] == "mmlu_pro" for v in c["sources"].values()) and len(c["sources"]) == 16
assert c["sources"]["gate-who"]["kept"] == 8 and list(c["sources"]["gate-who"]["subjects"]) == ["who"]
texts = {r["question"].lower() for r in rows("families/questions.jsonl")}
plain = rows("data/pretrain.jsonl")
assert len(plain) == 120 and not any(r["text"].split("\n")[0].replace("Question: ", "").lower() in texts for r in plain)
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "refused, naming file, place and what to do" {
    expect() { # expect CODE TEXT mode key=value...
        run "$bin/moe-merge" "${@:3}" output.dir="$work/refused"
        [ "$status" -eq "$1" ] || { echo "$output"; return 1; }
        [[ $output == *"$2"* ]] || { echo "not said: $2 in $output" >&2; return 1; }
    }
    expect 2 "merge.inputs is missing" merge
    expect 3 "none.jsonl: there is no such file or folder" merge merge.inputs="a=$work/none.jsonl"
    expect 3 "art_test.csv: line 21: the answer 'E' is none of the 4 options" merge merge.inputs="art=$work/mmlu/test/art_test.csv" merge.on_bad=fail
    expect 2 "two are named 'a'" merge merge.inputs="a=$work/own.csv,a=$work/arc.jsonl.gz"
    expect 3 "no known format has the members stem, first, second, third, solution" merge merge.inputs="own=$work/own.csv"
    : > "$work/x.parquet"
    expect 3 "export_hf.py" merge merge.inputs="x=$work/x.parquet"
    expect 2 "questions.path is missing" split
    expect 3 "nowhere: there is no such file" split questions.path="$work/nowhere"
    expect 2 "did you mean mmlu" split questions.path="$work/merged" split.parts=train=1,gate=1:mmul
    expect 2 "come to 1.3" split questions.path="$work/merged" split.parts=train=0.9,test=0.4
    sed '3s/"answer": ./"answer": 7/' "$work/merged/questions.jsonl" > "$work/edited.jsonl"
    expect 3 "edited.jsonl: line 3: answer 7 is no option" split questions.path="$work/edited.jsonl"
    expect 2 "without.inputs is missing" without questions.path="$work/merged"
    expect 3 "no *.jsonl of questions here" records questions.path="$work/mmlu"
    expect 2 "records.style" records questions.path="$work/merged" records.style=numbers
    [ ! -e "$work/refused/done.json" ]
}

@test "real benchmarks: AGIEval, ARC-Easy, OpenBookQA, Social IQa" {
    local data=${MB_SHARED_DATA:-../shared/data}/datasets
    [ -d "$data/agieval" ] && [ -d "$data/multiple-choice" ] || skip "no benchmarks in the shared data"
    "$bin/moe-merge" merge merge.inputs="agieval=$data/agieval,arc_easy=$data/multiple-choice/arc_easy_test.jsonl,openbookqa=$data/multiple-choice/openbookqa_test.jsonl,socialiqa=$data/multiple-choice/socialiqa_val.jsonl" \
        output.dir="$work/real"
    "$bin/moe-merge" split questions.path="$work/real" split.parts=train=1,gating_train=0.8:openbookqa,gating_test=0.2:openbookqa output.dir="$work/real-split"
    run check '
c = load("real/counts.json")
assert c["questions"] + c["duplicates"] + c["bad"] == 3755 + 2376 + 500 + 1935
k = c["sources"]
assert k["agieval"]["kinds"] == {"single": 2609, "cloze": 116, "multiple": 997} and k["agieval"]["with_examples"] > 3000, k["agieval"]
assert k["arc_easy"]["format"] == "olmo" and k["arc_easy"]["kept"] == 2376 and k["socialiqa"]["kept"] > 1900
q = rows("real/questions.jsonl")
assert not any(o.startswith("(A)") for r in q if r["source"] == "agieval" for o in r["options"][:1])
s = load("real-split/split.json")["parts"]
assert s["gating_train"]["questions"] + s["gating_test"]["questions"] == 500 and "openbookqa" not in s["train"]["sources"]
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}
