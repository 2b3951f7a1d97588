# moe-infer experts: models on several ranks answer questions together: the numbers of moe-eval, moe-gate apply and the rules of fusing, on any number
# of ranks; a rank that is killed and one that is slow are left out and named, and the others' answers are fused as if they had been asked alone.

setup_file() {
    load common.bash
    mb_setup
    make_records
    make_encoder
    make_target_config
    {
        "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok"
        for seed in 1 2 3; do
            "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" convert.seed="$seed" output.dir="$work/expert_$seed"
        done
        make_questions
        "$bin/moe-merge" merge "$work/questions.cfg" output.dir="$work/questions"
        "$bin/moe-merge" split questions.path="$work/questions" split.parts=train=0.5,test=0.5 output.dir="$work/split"
        for part in train test; do
            "$bin/moe-merge" records questions.path="$work/split/$part.jsonl" output.dir="$work/records-$part"
            "$bin/moe-embed" model.path="$work/bert" dataset.inputs="$part=$(ls "$work/records-$part"/*.jsonl)" dataset.form=text output.dir="$work/embed-$part"
            for x in 1 2 3; do answer "$x" "$part"; done
        done
        answers() { printf ",expert_%s=$work/answers-%s-$1" 1 1 2 2 3 3 | cut -c2-; }
        "$bin/moe-gate" train gate.train="$(answers train)" gate.embeddings="$work/embed-train" gate.hidden=16 gate.epochs=30 gate.learning_rate=1e-2 \
            output.dir="$work/gate"
        for part in train test; do
            "$bin/moe-gate" apply gate.path="$work/gate" outputs.path="$(answers "$part")" gate.embeddings="$work/embed-$part" output.dir="$work/outputs-$part"
        done
        "$bin/moe-gate" report gate.train="$work/outputs-train" gate.test="$work/outputs-test" gate.top_k=2 output.dir="$work/report"
        together one
    } > "$work/setup.log" 2>&1 || { tail -30 "$work/setup.log" && false; }
}
setup() {
    load common.bash
    mb_setup
}

# $work/{single,multiple,cloze}.jsonl: 80, 20 and 20 questions.
make_questions() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
texts = [" ".join(json.loads(line)["text"].split()) for name in "ab" for line in open(f"{work}/{name}.jsonl", encoding="utf-8")]
rows = {"single": [], "multiple": [], "cloze": []}
for i in range(80):
    n = 2 + i % 4
    rows["single"].append({"q": f"{i}: {texts[i][:20 + i % 50]}", "o": [f"{texts[(i + 7 * k) % 150][40:46 + 2 * k]} {k}" for k in range(n)], "a": i % n})
for i in range(20):
    rows["multiple"].append({"q": f"which of {i}: {texts[i + 80][:25]}", "o": [f"{texts[i + 9 * k][60:68]} {k}" for k in range(4)], "a": [i % 4, (i + 1) % 4]})
    rows["cloze"].append({"q": f"go on {i}: {texts[i + 100][:30]}", "a": "never said " + chr(97 + i)})
for name, list_ in rows.items():
    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in list_)
fields = {"single": "question=q,options=o,answer=a", "multiple": "question=q,options=o,answer=a", "cloze": "question=q,answer=a"}
inputs = ", ".join(f'{{ name = "{n}"; path = "{work}/{n}.jsonl"; fields = "{fields[n]}"; }}' for n in rows)
open(f"{work}/questions.cfg", "w").write(f'merge: {{ format = "mapped"; inputs = ( {inputs} ); }};\n')
PYTHON
}
answer() { # answer EXPERT PART: as moe-eval has it
    "$bin/moe-eval" model.path="$work/expert_$1/model" eval.questions="$work/split/$2.jsonl" eval.max_new_tokens=6 output.dir="$work/answers-$1-$2"
}
experts() { # experts RUN key=value...: the command, without a launcher
    command=("$bin/moe-infer" experts infer.experts="expert_1=$work/expert_1/model,expert_2=$work/expert_2/model,expert_3=$work/expert_3/model" gate.path="$work/gate"
        model.path="$work/bert" questions.path="$work/split/test.jsonl" infer.max_new_tokens=6 output.dir="$work/$1" "${@:2}")
}
together() { # together RUN key=value...
    experts "$@"
    "${command[@]}"
}
surviving() { # surviving RANKS RUN key=value...: a rank may die
    experts "${@:2}"
    local root=()
    [ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
    ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0} timeout -k 5 120 mpirun "${root[@]}" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --enable-recovery -np "$1" "${command[@]}"
}
need_recovery() {
    need_mpi
    mpirun --version | grep -q 'Open MPI.* [34]\.' || skip "ranks that die are survived with Open MPI 3 and 4 (--enable-recovery)"
}
check() { "${MB_PYTHON:-python3}" "$work/check.py" "$work" "$@"; } # a Python program on standard input, with fuse() and what it needs

setup_python() {
    cat > "$work/check.py" <<'PYTHON'
import json, sys
import h5py, numpy as np
work = sys.argv[1]
def strings(d): return [s.decode() for s in d[:]]
def lines(run): return [json.loads(line) for line in open(f"{work}/{run}/answers.jsonl")]
def results(run): return json.load(open(f"{work}/{run}/results.json"))
class Offline:
    """What moe-eval and moe-gate apply say, fused by the rules of vote.h."""
    def __init__(self):
        f = h5py.File(f"{work}/outputs-test/outputs.h5")
        self.names, self.texts = strings(f["expert_names"]), strings(f["texts"])
        self.p, self.picked, self.right, self.answer, self.kind, self.options, self.logits = (
            f[n][:] for n in ("choice_prob", "picked", "right", "answer", "kind", "options", "gate_logits"))
        self.ids = strings(f["id"])
        z = self.logits.astype("f8")
        w = np.exp(z - z.max(1, keepdims=True))
        self.w = w / w.sum(1, keepdims=True)
    def pick(self, q, p):
        n = self.options[q]
        return int(p[:n].argmax()) if self.kind[q] == 0 else sum(1 << i for i in range(n) if p[i] >= 0.5 * p[:n].max())
    def fuse(self, q, members, rule):
        members = [x for x in members if self.picked[q, x] >= 0]
        if not members: return -1
        if rule == "mean_prob" and self.kind[q] < 2:
            return self.pick(q, sum(self.p[q, x].astype("f8") for x in members))
        candidates = {}
        for x in members:
            c = candidates.setdefault(int(self.picked[q, x]), [0, 0.0, x])
            c[0] += 1
            c[1] += self.w[q, x]
        def mean(answer):
            if self.kind[q] == 2: return 0
            held = [answer] if self.kind[q] == 0 else [i for i in range(self.options[q]) if answer >> i & 1]
            return sum(np.mean([float(self.p[q, x, i]) for i in held]) for x in members)
        key = lambda a: (candidates[a][1], candidates[a][0]) if rule == "gate_weighted" else candidates[a][:2]
        return min(candidates, key=lambda a: (*(-v for v in key(a)), -mean(a), candidates[a][2] if self.kind[q] == 2 else a))
    def shown(self, q, fused):
        if fused < 0: return None
        return [fused, [i for i in range(10) if fused >> i & 1], self.texts[fused] if self.kind[q] == 2 else None][self.kind[q]]
    def is_right(self, q, fused):
        if self.kind[q] == 2: return any(self.right[q, x] for x in range(len(self.names)) if self.picked[q, x] == fused)
        return fused == self.answer[q]
    def top(self, q, k): return sorted(np.argsort(-self.logits[q], kind="stable")[:k].tolist())
    def check(self, run, rule):
        """Every line is the offline fusion of those who answered; returns the accuracy of the lines."""
        right = []
        for q, line in enumerate(lines(run)):
            assert line["id"] == self.ids[q]
            members = [self.names.index(n) for n in line["answered"]]
            assert members == sorted(members)
            fused = self.fuse(q, members, rule)
            assert line["answer"] == self.shown(q, fused), (q, line, fused)
            assert line["right"] == bool(self.is_right(q, fused)), (q, line)
            assert [line["weights"][n] for n in self.names] == [float(v) for v in self.w[q]] or np.allclose([line["weights"][n] for n in self.names], self.w[q], rtol=1e-14)
            right.append(line["right"])
        assert abs(results(run)["accuracy"]["all"]["accuracy"] - np.mean(right)) < 1e-12
        return np.mean(right)
exec(compile(sys.stdin.read(), "check", "exec"))
PYTHON
}

@test "the same answers as moe-eval, moe-gate apply and the rules of fusing give, bit for bit" {
    setup_python
    [ "$(hash_of "$work/one/outputs.h5")" = "$(hash_of "$work/outputs-test/outputs.h5")" ]
    for rule in majority mean_prob gate_top1; do together "$rule" infer.rule="$rule"; done
    together two infer.top_k=2 infer.rule=majority
    check <<'PYTHON'
offline = Offline()
report = json.load(open(f"{work}/report/report.json"))["groups"]
for run, rule, system in (("one", "gate_weighted", "gate_weighted_all"), ("majority", "majority", "majority_all"), ("mean_prob", "mean_prob", "mean_prob_all")):
    accuracy = offline.check(run, rule)
    mine = results(run)["accuracy"]
    for group in ("all", "source/single", "source/multiple", "source/cloze"):
        assert abs(mine[group]["accuracy"] - report[group]["systems"][system]["accuracy"]) < 1e-12, (run, group)
    assert mine["all"]["complete"] == {"questions": len(offline.ids), "accuracy": mine["all"]["accuracy"]} and mine["all"]["incomplete"]["questions"] == 0
assert abs(results("gate_top1")["accuracy"]["all"]["accuracy"] - report["all"]["systems"]["gate_top1"]["accuracy"]) < 1e-12
offline.check("two", "majority")
assert abs(results("two")["accuracy"]["all"]["accuracy"] - report["all"]["systems"]["majority@2"]["accuracy"]) < 1e-12
for q, line in enumerate(lines("two")):
    assert [offline.names.index(n) for n in line["answered"]] == offline.top(q, 2) and line["missing"] == []
assert len({json.dumps([l["answer"] for l in lines(run)]) for run in ("one", "majority", "mean_prob", "two")}) > 1
two = h5py.File(f"{work}/two/outputs.h5")
assert ((two["picked"][:] >= 0).sum(1) == 2).all() and np.isnan(two["choice_prob"][:][two["picked"][:] < 0]).all()
PYTHON
}

@test "the same on 1, 2, 3 and 5 ranks, whatever is computed together; nothing is done twice" {
    need_mpi
    for n in 2 3 5; do
        experts "ranks$n"
        ranks "$n" "${command[@]}"
        cmp "$work/one/answers.jsonl" "$work/ranks$n/answers.jsonl"
        [ "$(hash_of "$work/one/outputs.h5")" = "$(hash_of "$work/ranks$n/outputs.h5")" ]
    done
    together small infer.batch=1 infer.open=1 infer.tile_tokens=64
    cmp "$work/one/answers.jsonl" "$work/small/answers.jsonl"
    experts large infer.batch=100 infer.open=500
    ranks 2 "${command[@]}"
    cmp "$work/one/answers.jsonl" "$work/large/answers.jsonl"
    experts placed
    command[2]="infer.experts=[{\"name\":\"expert_3\",\"path\":\"$work/expert_3/model\",\"rank\":\"0\"},{\"name\":\"expert_1\",\"path\":\"$work/expert_1/model\",\"rank\":\"1\"},{\"name\":\"expert_2\",\"path\":\"$work/expert_2/model\"}]"
    ranks 2 "${command[@]}"
    cmp "$work/one/answers.jsonl" "$work/placed/answers.jsonl"
    experts ranks3
    run ranks 3 "${command[@]}"
    echo "$output"
    [ "$status" -eq 0 ] && [[ $output == *"nothing to do"* ]]
}

@test "where the time of every request went" {
    need_mpi
    setup_python
    experts times infer.fail=expert_2:sleep=0.05
    ranks 3 "${command[@]}"
    check <<'PYTHON'
f = h5py.File(f"{work}/times/requests.h5")
question, expert, outcome = (f[n][:] for n in ("question", "expert", "outcome"))
names, Q = strings(f["expert_names"]), len(f["id"])
assert f.attrs["format"] == b"moebatch-requests" or f.attrs["format"] == "moebatch-requests"
assert sorted(zip(question, expert)) == [(q, x) for q in range(Q) for x in range(3)]
assert all(strings(f["outcome_names"])[o] == "answered" for o in outcome)
sent, held, trip, queue, compute, transfer = (f[n][:] for n in ("sent", "held", "round_trip", "queue", "compute", "transfer"))
assert (sent >= 0).all() and (held >= 0).all() and (queue >= 0).all() and (compute > 0).all() and (transfer >= 0).all()
assert np.allclose(trip, queue + compute + transfer, atol=1e-9)
slow = expert == names.index("expert_2")
assert (compute[slow] >= 0.05).all() and np.median(compute[~slow]) < 0.05, np.median(compute[~slow])
assert (f["batch"][:] >= 1).all() and (f["batch"][:] <= 8).all() and f["batch"][:].max() > 1 and (f["tokens"][:] > 5).all()
assert list(f["rank"][:]) == [1, 2, 1]
total = f["question_total"][:]
for q in range(Q):
    assert total[q] >= (held + trip)[question == q].max() and total[q] >= f["question_embed"][q] + f["question_gate"][q] > 0 and f["question_fuse"][q] > 0
parts = results("times")["latency_seconds"]
assert set(parts) == {"embed", "gate", "held", "queue", "compute", "transfer", "fuse", "total"}
for name, values in (("compute", compute), ("transfer", transfer), ("total", total)):
    assert np.isclose(parts[name]["p50"], np.percentile(values, 50)) and np.isclose(parts[name]["p95"], np.percentile(values, 95))
PYTHON
    cmp "$work/one/answers.jsonl" "$work/times/answers.jsonl"
}

@test "a rank is killed: the run ends, says who was missing, and the rest is right" {
    need_recovery
    setup_python
    run surviving 4 killed infer.fail=expert_2:die@10 infer.timeout_s=1 infer.strikes=2 infer.batch=4
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"expert_2 (rank 2) was late 2 times"* && $output == *"rank 2 does not come back"* && $output == *"all results are written"* ]]
    [ -s "$work/killed/done.json" ] && [ ! -e "$work/killed/failure.json" ]
    check <<'PYTHON'
offline = Offline()
offline.check("killed", "gate_weighted")
rows, r = lines("killed"), results("killed")
missing = [q for q, line in enumerate(rows) if line["missing"]]
assert all(rows[q]["missing"] == ["expert_2"] and rows[q]["why"]["expert_2"] in ("late", "dead") for q in missing)
assert all(sorted(line["answered"] + line["missing"]) == offline.names for line in rows)
answered = len(rows) - len(missing)
assert 4 <= answered < 10 and {rows[q]["why"]["expert_2"] for q in missing} == {"late", "dead"}, answered
assert r["incomplete"] == len(missing) == r["experts"]["expert_2"]["missing"] == r["accuracy"]["all"]["incomplete"]["questions"]
assert r["experts"]["expert_2"]["dead_at_end"] and r["experts"]["expert_2"]["deaths"] == 1 and r["experts"]["expert_1"]["missing"] == r["experts"]["expert_3"]["missing"] == 0
for part, of in (("incomplete", set(missing)), ("complete", set(range(len(rows))) - set(missing))):
    assert abs(r["accuracy"]["all"][part]["accuracy"] - np.mean([rows[q]["right"] for q in of])) < 1e-12
assert r["seconds"] < 30
f = h5py.File(f"{work}/killed/outputs.h5")
assert ((f["picked"][:, 1] < 0) == np.isin(np.arange(len(rows)), missing)).all() and (f["picked"][:, 0] == offline.picked[:, 0]).all()
PYTHON
    experts killed infer.fail=expert_2:die@10 infer.timeout_s=1 infer.strikes=2 infer.batch=4
    run "${command[@]}" --is-done
    [ "$status" -eq 0 ]
}

@test "an expert is slow for a while: it is left out, comes back, and the job ends in order" {
    need_mpi
    setup_python
    experts slow infer.fail=expert_3:sleep=1.2@9-12,expert_1:sleep=0.25 infer.timeout_s=0.8 infer.strikes=1 infer.batch=4 infer.open=4
    run ranks 4 "${command[@]}"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"expert_3 (rank 3) was late 1 times"* && $output == *"expert_3 (rank 3) gave a sign of life"* && $output != *"the job is ended"* ]]
    check <<'PYTHON'
offline = Offline()
offline.check("slow", "gate_weighted")
rows, r = lines("slow"), results("slow")
missing = [q for q, line in enumerate(rows) if line["missing"]]
assert missing and all(rows[q]["missing"] == ["expert_3"] for q in missing) and not rows[0]["missing"] and r["experts"]["expert_3"]["late_answers"] == 4
assert missing == list(range(8, missing[-1] + 1)) and not rows[-1]["missing"] and r["experts"]["expert_3"]["deaths"] == 1 and not r["experts"]["expert_3"]["dead_at_end"]
assert r["incomplete"] == len(missing) == r["experts"]["expert_3"]["missing"] < len(rows)
PYTHON
}

@test "an expert that never comes back does not keep the job" {
    need_mpi
    setup_python
    experts stuck infer.fail=expert_2:sleep=300@5 infer.timeout_s=0.5 infer.strikes=2 infer.batch=4
    run timeout -k 5 60 bash -c "$(declare -f ranks); $(printf '%q ' ranks 3 "${command[@]}")"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"rank 2 does not come back"* && $output == *"all results are written; the job is ended"* ]]
    [ -s "$work/stuck/done.json" ]
    check <<'PYTHON'
Offline().check("stuck", "gate_weighted")
rows = lines("stuck")
assert all(line["missing"] == (["expert_2"] if q >= 4 else []) for q, line in enumerate(rows))
PYTHON
}

@test "one killed and one slowed at once, and all killed" {
    need_recovery
    setup_python
    run surviving 4 both infer.fail="expert_1:die@5,expert_3:sleep=3@17" infer.timeout_s=0.7 infer.strikes=2 infer.batch=4
    echo "$output"
    [ "$status" -eq 0 ]
    run surviving 2 all infer.fail=expert_1:die@1 infer.timeout_s=0.5 infer.strikes=1
    echo "$output"
    [ "$status" -eq 0 ]
    check <<'PYTHON'
offline = Offline()
offline.check("both", "gate_weighted")
rows, r = lines("both"), results("both")
assert all(set(line["missing"]) <= {"expert_1", "expert_3"} for line in rows) and rows[-1]["missing"] == ["expert_1", "expert_3"]
assert r["experts"]["expert_2"]["missing"] == 0 and not r["unanswered"]
rows, r = lines("all"), results("all")
assert all(line["answer"] is None and not line["right"] and len(line["missing"]) == 3 for line in rows)
assert r["unanswered"] == len(rows) and r["accuracy"]["all"]["accuracy"] == 0 and r["accuracy"]["all"]["complete"]["accuracy"] is None
PYTHON
}

@test "an expert that cannot answer is left out with its reason" {
    setup_python
    together short infer.max_length=40 infer.question_style=texts > "$work/short.log" 2>&1 || { cat "$work/short.log" && false; }
    run together tiny infer.max_length=2 infer.question_style=texts
    echo "$output"
    [ "$status" -eq 0 ] && [[ $output == *"expert_1 (rank 0) cannot answer (said once)"*"takes 2"* ]]
    check <<'PYTHON'
rows, r = lines("tiny"), results("tiny")
unable = [line for line in rows if line["why"]]
assert unable and all(set(line["why"].values()) == {"unable"} and len(line["missing"]) == 3 and line["answer"] is None for line in unable)
assert r["experts"]["expert_1"]["unable"] == len(unable) == r["incomplete"] and all(line["kind"] != "cloze" for line in unable)
assert r["unanswered"] == len(unable)
PYTHON
}

@test "a decoder as the embedder, and an expert with an adapter's group" {
    "$bin/moe-embed" model.path="$work/expert_1/model" dataset.inputs="train=$(ls "$work/records-train"/*.jsonl)" dataset.form=text embed.normalize=true embed.prefix="About: " \
        embed.dimension=24 output.dir="$work/decoded-train"
    "$bin/moe-embed" model.path="$work/expert_1/model" dataset.inputs="test=$(ls "$work/records-test"/*.jsonl)" dataset.form=text embed.normalize=true embed.prefix="About: " \
        embed.dimension=24 output.dir="$work/decoded-test"
    lists() { printf ",expert_%s=$work/answers-%s-$1" 3 3 1 1 | cut -c2-; }
    "$bin/moe-gate" train gate.train="$(lists train)" gate.embeddings="$work/decoded-train" gate.hidden=16 gate.epochs=5 output.dir="$work/gate2"
    "$bin/moe-gate" apply gate.path="$work/gate2" outputs.path="$(lists test)" gate.embeddings="$work/decoded-test" output.dir="$work/outputs2"
    run together decoded gate.path="$work/gate2" model.path="$work/expert_1/model"
    echo "$output"
    [ "$status" -eq 0 ] && [[ $output == *"the gate does not know 'expert_2': it is left out"* ]]
    [ "$(hash_of "$work/decoded/outputs.h5")" = "$(hash_of "$work/outputs2/outputs.h5")" ]
}

@test "what does not belong together is refused with its reason" {
    refused() { # refused CODE TEXT key=value...
        run together refused "${@:3}"
        echo "$output"
        [ "$status" -eq "$1" ] && [[ $output == *"$2"* ]]
        [ ! -e "$work/refused/answers.jsonl" ]
    }
    refused 3 "embeddings of another model" model.path="$work/expert_1/model"
    refused 2 "infer.experts lacks 'expert_2'" infer.experts="expert_1=$work/expert_1/model,expert_3=$work/expert_3/model"
    refused 3 "nowhere" infer.experts="expert_1=$work/expert_1/model,expert_2=$work/nowhere,expert_3=$work/expert_3/model"
    refused 2 "infer.top_k is 4, but there are 3 experts" infer.top_k=4
    refused 2 "infer.rule" infer.rule=loudest
    refused 2 "'expert_9' is no expert" infer.fail=expert_9:die@1
    refused 2 "infer.fail, 'expert_1:falls'" infer.fail=expert_1:falls
    refused 2 "is on the gate's rank" infer.fail=expert_1:die@1
    refused 3 "moe-gate train" gate.path="$work/nowhere"
    refused 3 "nowhere.jsonl" questions.path="$work/nowhere.jsonl"
    refused 2 "dataset.path and prompt are for the other modes" prompt=hello
    refused 3 "holds no number" infer.match=number
    run "$bin/moe-infer" experts output.dir="$work/refused"
    [ "$status" -eq 2 ] && [[ $output == *"model.path is missing"* ]]
}
