# moe-gate: join, train, apply and report over experts that know one family of questions each: the gate finds out who knows what and clearly beats
# the best single expert; shared questions are left out and counted; seeds, targets, ranks, refusals.
#
# Questions, embeddings and the form of the answers are real (moe-merge, moe-embed, moe-eval); what the experts answer is drawn.

setup_file() {
    load common.bash
    mb_setup
    make_records
    make_encoder
    make_target_config
    {
        "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok"
        "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/init"
        make_questions
        "$bin/moe-merge" merge "$work/questions.cfg" output.dir="$work/questions"
        "$bin/moe-merge" split questions.path="$work/questions" split.parts=train=0.7,test=0.3 output.dir="$work/split"
        for part in train test; do
            "$bin/moe-merge" records questions.path="$work/split/$part.jsonl" output.dir="$work/records-$part"
            "$bin/moe-embed" model.path="$work/bert" dataset.inputs="$part=$(ls "$work/records-$part"/*.jsonl)" dataset.form=text output.dir="$work/embed-$part"
            "$bin/moe-eval" model.path="$work/init/model" eval.questions="$work/split/$part.jsonl" eval.max_new_tokens=2 output.dir="$work/eval-$part"
        done
        make_experts
    } > "$work/setup.log" 2>&1 || { tail -20 "$work/setup.log" && false; }
}
setup() {
    load common.bash
    mb_setup
    names=(sums towns colours games)
    train=$(printf ",%s=$work/%s-train" sums sums towns towns colours colours games games)
    test=${train//-train/-test}
    train=${train:1} test=${test:1}
}

# $work/<family>.jsonl: four families of 150 questions each, told apart by their words.
make_questions() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, random, sys
work = sys.argv[1]
random.seed(5)
words = {"sums": "add these numbers zzz", "towns": "which town lies there mmm", "colours": "what hue has it kkk", "games": "who won that match ppp"}
inputs = []
for family, text in words.items():
    with open(f"{work}/{family}.jsonl", "w") as out:
        for i in range(150):
            n = 4 if family != "games" else 3
            out.write(json.dumps({"q": f"{text} {''.join(random.choices('abcdefgh', k=6))} {text} {i}", "o": [f"{k} {i}" for k in range(n)], "a": i % n}) + "\n")
    inputs.append(f'{{ name = "{family}"; path = "{work}/{family}.jsonl"; fields = "question=q,options=o,answer=a"; }}')
with open(f"{work}/questions.cfg", "w") as out:
    out.write(f'merge: {{ format = "mapped"; inputs = ( {", ".join(inputs)} ); }};\n')
PYTHON
}

# $work/<expert>-{train,test}/answers.h5: right on 92 % of its own family, on 30 % of the others.
make_experts() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import os, shutil, sys
import h5py, numpy as np
work = sys.argv[1]
families = ["sums", "towns", "colours", "games"]
for part in ("train", "test"):
    for x, expert in enumerate(families):
        rng = np.random.default_rng([x, part == "test"])
        os.makedirs(f"{work}/{expert}-{part}", exist_ok=True)
        path = f"{work}/{expert}-{part}/answers.h5"
        shutil.copy(f"{work}/eval-{part}/answers.h5", path)
        with h5py.File(path, "r+") as f:
            own = np.array([n.decode() for n in f["source_names"][:]])[f["source"][:]] == expert
            answer, options = f["answer"][:], f["options"][:]
            right = rng.random(len(answer)) < np.where(own, 0.92, 0.3)
            picked = np.where(right, answer, (answer + rng.integers(1, options)) % options).astype("i4")
            prob = rng.random(f["choice_prob"].shape).astype("f4") * np.where(own, 0.2, 0.8)[:, None].astype("f4")
            prob[np.arange(len(picked)), picked] += 1
            prob[np.arange(prob.shape[1])[None, :] >= options[:, None]] = np.nan
            prob /= np.nansum(prob, axis=1, keepdims=True)
            del f["picked"], f["right"], f["choice_prob"], f["loglik"]
            f["picked"], f["right"], f["choice_prob"], f["loglik"] = picked, right.astype("u1"), prob.astype("f4"), np.log(prob).astype("f4")
            f.attrs["model"] = np.bytes_(f"{x + 1:032x}")
PYTHON
}

gate() { "$bin/moe-gate" "$1" output.dir="$work/$2" "${@:3}"; }
train_gate() { gate train "$1" gate.train="$train" gate.embeddings="$work/embed-train" gate.hidden=32 gate.epochs=60 gate.batch=64 gate.learning_rate=3e-3 "${@:2}"; }
apply_gate() { gate apply "$1-$2" gate.path="$work/$1" outputs.path="${!2}" gate.embeddings="$work/embed-$2" "${@:3}"; }
report_gate() { gate report "$1-report" gate.train="$work/$1-train" gate.test="$work/$1-test" "${@:2}"; }
chain() { # chain NAME key=value... of the training
    train_gate "$@"
    apply_gate "$1" train
    apply_gate "$1" test
    report_gate "$1"
}
check() { "${MB_PYTHON:-python3}" - "$work" "$@"; }

@test "the gate learns who knows what, clearly better than the best single expert: three seeds" {
    for seed in 1 2 3; do chain "seed$seed" gate.seed="$seed"; done
    check <<'PYTHON'
import json, sys
work = sys.argv[1]
losses = set()
for seed in (1, 2, 3):
    report = json.load(open(f"{work}/seed{seed}-report/report.json"))
    s = report["groups"]["all"]["systems"]
    top, single = s["gate_top1"], s["best_single"]["accuracy"]
    print(f"# seed {seed}: gate {top['accuracy']:.3f} [{top['low']:.3f}, {top['high']:.3f}], fused {s['gate_weighted_all']['accuracy']:.3f}, majority {s['majority_all']['accuracy']:.3f}, "
          f"best single {single:.3f}, oracle {s['oracle']['accuracy']:.3f}, random {s['random']['accuracy']:.3f}")
    assert top["accuracy"] > 0.85 and single < 0.6 and top["gain_low"] > 0.25 and s["gate_weighted_all"]["gain_low"] > 0.25
    assert s["chance"]["accuracy"] < s["random"]["accuracy"] < top["accuracy"] <= s["oracle"]["accuracy"]
    for family in ("sums", "towns", "colours", "games"):
        picks = report["groups"][f"source/{family}"]["gate_picks"]
        assert max(picks, key=picks.get) == family and picks[family] > 0.85, picks
    train = json.load(open(f"{work}/seed{seed}/results.json"))
    assert train["validation_loss"][train["best_epoch"]] == min(train["validation_loss"]) < 0.95 * train["validation_loss"][0]
    assert train["epochs"] <= 60 and train["nll_after"] <= train["nll_before"] and train["shared"] == 0
    losses.add(train["nll_after"])
assert len(losses) == 3
PYTHON
    grep -q "gate_top1" "$work/seed1-report/report.txt"
}

@test "the report's figures are those of the outputs" {
    chain figures
    check <<'PYTHON'
import json, sys
import h5py, numpy as np
work = sys.argv[1]
train, test, report = (h5py.File(f"{work}/figures-{part}/{name}.h5") for part, name in (("train", "outputs"), ("test", "outputs"), ("report", "report")))
systems = [s.decode() for s in report["systems"][:]]
accuracy = {s: report["accuracy"][i, 0] for i, s in enumerate(systems)}
right, logits, prob, picked = (test[name][:] for name in ("right", "gate_logits", "choice_prob", "picked"))
Q, X = right.shape
rows = np.arange(Q)
near = lambda a, b: abs(a - b) < 1e-9
assert near(accuracy["gate_top1"], right[rows, logits.argmax(1)].mean())
assert near(accuracy["oracle"], right.any(1).mean()) and near(accuracy["random"], right.mean())
best = train["right"][:].sum(0).argmax()
names = [n.decode() for n in test["expert_names"][:]]
assert report.attrs["best_single"].decode() == names[best] and near(accuracy["best_single"], right[:, best].mean())
assert abs(accuracy["chance"] - test["chance"][:].mean()) < 1e-6
assert near(accuracy["mean_prob_all"], (np.where(np.isnan(prob), -1, prob).astype("f8").sum(1).argmax(1) == test["answer"][:]).mean())
order = np.argsort(-logits, axis=1, kind="stable")[:, :2]
two = sum(np.where(np.isnan(prob[rows, order[:, k]]), -1, prob[rows, order[:, k]]).astype("f8") for k in (0, 1))
assert near(accuracy["mean_prob@2"], (two.argmax(1) == test["answer"][:]).mean())
w = np.exp(logits - logits.max(1, keepdims=True)); w /= w.sum(1, keepdims=True)
votes = np.zeros((Q, 4))
for x in range(X):
    votes[rows, picked[:, x]] += w[:, x]
assert near(accuracy["gate_weighted_all"], (votes.argmax(1) == test["answer"][:]).mean())
for x, name in enumerate(names):
    assert near(accuracy[f"expert/{name}"], right[:, x].mean())
    assert near(report["picks"][0, x], (logits.argmax(1) == x).mean()) and abs(report["weight"][0, x] - w[:, x].mean()) < 1e-6
sources = np.array([s.decode() for s in test["source_names"][:]])[test["source"][:]]
for g, name in enumerate(n.decode() for n in report["groups"][:]):
    member = slice(None) if name == "all" else sources == name.split("/")[1]
    assert near(report["accuracy"][systems.index("gate_top1"), g], right[rows, logits.argmax(1)][member].mean())
    assert report["size"][g] == (Q if name == "all" else member.sum())
assert (report["accuracy_low"][:] <= report["accuracy"][:] + 1e-12).all() and (report["accuracy"][:] <= report["accuracy_high"][:] + 1e-12).all()
# The gate itself, from its file.
gate = h5py.File(f"{work}/figures/gate.h5")
x = h5py.File(f"{work}/embed-test/embeddings.h5")["embeddings"][:]
from math import erf
z = ((x - gate["mean"][:]) / gate["scale"][:]) @ gate["w1"][:].T + gate["b1"][:]
h = 0.5 * z * (1 + np.vectorize(erf)(z / np.sqrt(2)))
assert abs((h @ gate["w2"][:].T + gate["b2"][:]) / gate.attrs["temperature"] - logits).max() < 1e-4
PYTHON
}

@test "questions that experts were trained on are left out and counted, by file" {
    head -40 "$work/split/train.jsonl" > "$work/seen_a.jsonl"
    sed -n '31,60p' "$work/split/train.jsonl" > "$work/seen_b.jsonl"
    head -12 "$work/split/test.jsonl" > "$work/seen_test.jsonl"
    chain clean > /dev/null
    run train_gate seen gate.experts_data="a=$work/seen_a.jsonl,b=$work/seen_b.jsonl,c=$work/seen_test.jsonl"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ $output == *"40 of 428 questions stand in $work/seen_a.jsonl too"* && $output == *"60 shared with the experts' data and left out"* ]]
    gate report seen-report gate.train="$work/clean-train" gate.test="$work/clean-test" gate.experts_data="a=$work/seen_a.jsonl,c=$work/seen_test.jsonl"
    check <<'PYTHON'
import json, sys
work = sys.argv[1]
r, all_of = (json.load(open(f"{work}/{run}/results.json")) for run in ("seen", "clean"))
assert r["shared"] == 60 and r["shared_by_file"] == {"a": 40, "b": 30, "c": 0}
assert r["train"] + r["validation"] + r["nobody_right"] == 368 and all_of["train"] + all_of["validation"] + all_of["nobody_right"] == 428
report, plain = (json.load(open(f"{work}/{run}/report.json")) for run in ("seen-report", "clean-report"))
assert report["shared"] == 12 and report["groups"]["all"]["questions"] == plain["groups"]["all"]["questions"] - 12
PYTHON
}

@test "join, and every way to give the answers: one table" {
    gate join joined outputs.path="$train"
    train_gate by_list
    train_gate by_table gate.train="$work/joined"
    [ "$(hash_of "$work/by_list/gate.h5")" = "$(hash_of "$work/by_table/gate.h5")" ]
    apply_gate by_list train
    gate apply by_table-train gate.path="$work/by_table/gate.h5" outputs.path="$work/joined/outputs.h5" gate.embeddings="$work/embed-train/embeddings.h5"
    [ "$(hash_of "$work/by_list-train/outputs.h5")" = "$(hash_of "$work/by_table-train/outputs.h5")" ]
    check <<'PYTHON'
import sys
import h5py, numpy as np
work = sys.argv[1]
joined, logits = (h5py.File(f"{work}/{run}/outputs.h5") for run in ("joined", "by_list-train"))
assert "gate_logits" not in joined and "gate" not in joined.attrs and logits["gate_logits"].shape == joined["right"].shape
for x, name in enumerate(n.decode() for n in joined["expert_names"][:]):
    one = h5py.File(f"{work}/{name}-train/answers.h5")
    for column in ("picked", "right", "choice_prob"):
        assert np.array_equal(joined[column][:, x], one[column][:], equal_nan=column == "choice_prob")
    assert (joined["id"][:] == one["id"][:]).all() and (joined["text_hash"][:] == one["text_hash"][:]).all()
PYTHON
}

@test "a gate over some of the experts, and other targets" {
    train_gate some gate.experts=games,sums
    run apply_gate some test
    echo "$output"
    [[ $output == *"chooses among 2 of 4 experts"* ]]
    train_gate best gate.targets=best
    train_gate likely gate.targets=likelihood
    apply_gate best test
    apply_gate likely test
    check <<'PYTHON'
import sys
import h5py
work = sys.argv[1]
some = h5py.File(f"{work}/some-test/outputs.h5")
assert list(some["expert_names"][:]) == [b"games", b"sums"] and some["gate_logits"].shape[1] == 2
for run in ("best", "likely"):
    o = h5py.File(f"{work}/{run}-test/outputs.h5")
    right = o["right"][:]
    gate = right[range(len(right)), o["gate_logits"][:].argmax(1)].mean()
    assert gate > right.mean(0).max() + 0.2, (run, gate)
PYTHON
}

@test "the same files on 1 and on 3 ranks, and nothing done twice" {
    need_mpi
    chain alone
    bin_alone=$bin
    train_gate() { ranks 3 "$bin/moe-gate" train output.dir="$work/$1" gate.train="$train" gate.embeddings="$work/embed-train" gate.hidden=32 gate.epochs=60 gate.batch=64 gate.learning_rate=3e-3; }
    apply_gate() { ranks 3 "$bin/moe-gate" apply output.dir="$work/$1-$2" gate.path="$work/$1" outputs.path="${!2}" gate.embeddings="$work/embed-$2"; }
    report_gate() { ranks 3 "$bin/moe-gate" report output.dir="$work/$1-report" gate.train="$work/$1-train" gate.test="$work/$1-test"; }
    chain three
    bin=$bin_alone
    [ "$(hash_of "$work/alone/gate.h5")" = "$(hash_of "$work/three/gate.h5")" ]
    for part in train test; do [ "$(hash_of "$work/alone-$part/outputs.h5")" = "$(hash_of "$work/three-$part/outputs.h5")" ]; done
    [ "$(hash_of "$work/alone-report/report.h5")" = "$(hash_of "$work/three-report/report.h5")" ]
    cmp "$work/alone-report/report.txt" "$work/three-report/report.txt"
    cmp "$work/alone/results.json" "$work/three/results.json"
    OMP_NUM_THREADS=2 "$bin/moe-gate" train output.dir="$work/threads" gate.train="$train" gate.embeddings="$work/embed-train" gate.hidden=32 gate.epochs=60 gate.batch=64 \
        gate.learning_rate=3e-3 threads=2
    [ "$(hash_of "$work/alone/gate.h5")" = "$(hash_of "$work/threads/gate.h5")" ]
    run chain three
    [ "$status" -eq 0 ] && [[ $output != *"trained on"* ]]
}

@test "what does not belong together is refused with its reason" {
    refused() { # refused CODE TEXT MODE key=value...
        run gate "$3" refused "${@:4}"
        echo "$output"
        [ "$status" -eq "$1" ] && [[ $output == *"$2"* ]]
        [ ! -e "$work/refused/done.json" ]
    }
    chain right > /dev/null
    embeddings=(gate.embeddings="$work/embed-train")
    refused 2 "gate.train is missing" train "${embeddings[@]}"
    refused 2 "gate.embeddings is missing" train gate.train="$train"
    refused 3 "moe-eval eval.questions" train gate.train="a=$work/nowhere" "${embeddings[@]}"
    refused 3 "embeddings for 172 questions" train gate.train="$test" "${embeddings[@]}"
    refused 3 "answer other questions" train gate.train="sums=$work/sums-train,towns=$work/towns-test" "${embeddings[@]}"
    refused 3 "gate.experts: there is no expert 'dogs'; there are: sums, towns, colours, games" train gate.train="$train" gate.experts=dogs "${embeddings[@]}"
    refused 2 "twice" train gate.train="$train" gate.experts=sums,sums "${embeddings[@]}"
    refused 3 "the gate chooses among: there is no expert 'towns'" apply gate.path="$work/right" outputs.path="sums=$work/sums-test" gate.embeddings="$work/embed-test"
    refused 3 "not a gate" apply gate.path="$work/right-test/outputs.h5" outputs.path="$test" gate.embeddings="$work/embed-test"
    "$bin/moe-embed" model.path="$work/bert" embed.pooling=max dataset.inputs="test=$work/records-test/records.jsonl" dataset.form=text output.dir="$work/embed-max"
    refused 3 "the gate was trained on those of" apply gate.path="$work/right" outputs.path="$test" gate.embeddings="$work/embed-max"
    refused 3 "stand in gate.train and in gate.test" report gate.train="$work/right-test" gate.test="$work/right-test"
    refused 2 "run moe-gate apply" report gate.train="$work/right-train" gate.test="$test"
    refused 2 "2 or more" report gate.train="$work/right-train" gate.test="$work/right-test" gate.top_k=1
    refused 2 "modes are join|train|apply|report" guess
    run "$bin/moe-gate" output.dir="$work/refused"
    [ "$status" -eq 2 ] && [[ $output == *"join|train|apply|report"* || $output == *"join, train, apply or report"* ]]
    check <<'PYTHON'
import shutil, sys
import h5py
work = sys.argv[1]
shutil.copytree(f"{work}/sums-train", f"{work}/shots")
with h5py.File(f"{work}/shots/answers.h5", "r+") as f:
    f.attrs["few_shot"] = 5
shutil.copytree(f"{work}/sums-train", f"{work}/wrong")
with h5py.File(f"{work}/wrong/answers.h5", "r+") as f:
    f["picked"][7] = 9
shutil.copytree(f"{work}/sums-train", f"{work}/nobody")
with h5py.File(f"{work}/nobody/answers.h5", "r+") as f:
    f["picked"][:] = (f["answer"][:] + 1) % f["options"][:]
    f["right"][:] = 0
PYTHON
    refused 3 "ask both alike" join outputs.path="towns=$work/towns-train,shots=$work/shots"
    refused 3 "/picked of question 7" join outputs.path="wrong=$work/wrong"
    refused 3 "nothing to learn from" train gate.train="nobody=$work/nobody" "${embeddings[@]}"
}
