# moe-subset: the best experts under limits against a plain search in Python; both methods, any number of ranks, all forms of the tables; more
# experts than a sweep takes; gates of their own; refusals.

setup_file() {
    load common.bash
    mb_setup
    make_outputs 6 240 train
    make_outputs 6 120 test
    make_outputs 30 80 train many-
    make_outputs 30 40 test many-
    limits > "$work/limits"
    "$bin/moe-subset" $(inputs) $(limits) output.dir="$work/all" > "$work/all.log" 2>&1
}
setup() {
    load common.bash
    mb_setup
}

inputs() { echo "subset.train=$work/$1train.h5 subset.test=$work/$1test.h5 subset.latency=$work/$1bench subset.energy=$work/$1bench/energy.json"; }
limits() { echo "subset.latency_limits=0.35,0.55,1 subset.energy_limits=4,8,100"; }

# make_outputs EXPERTS QUESTIONS PART [PREFIX]: answers of experts that are good at one of three fields, a gate that half knows, and costs.
make_outputs() {
    "${MB_PYTHON:-python3}" - "$work" "$@" <<'PYTHON'
import json, os, sys
import h5py, numpy as np
work, X, Q, part = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
prefix = sys.argv[5] if len(sys.argv) > 5 else ""
rng = np.random.default_rng([X, Q])
C = 4
answer = rng.integers(0, C, Q).astype("i4")
field = rng.integers(0, 3, Q)
expert_field = np.arange(X) % 3
p = rng.random((Q, X, C)).astype("f4") + 0.05
good = rng.random((Q, X)) < np.where(expert_field[None] == field[:, None], 0.8, 0.25)
for q, x in zip(*np.nonzero(good)):
    p[q, x, answer[q]] += 1
p /= p.sum(-1, keepdims=True)
picked = p.argmax(-1).astype("i4")
with h5py.File(f"{work}/{prefix}{part}.h5", "w") as f:
    f["choice_prob"], f["picked"], f["right"] = p, picked, (picked == answer[:, None]).astype("u1")
    f["answer"], f["kind"], f["options"] = answer, np.zeros(Q, "u1"), np.full(Q, C, "i4")
    f["chance"] = np.full(Q, 0.25, "f4")
    f["gate_logits"] = (1.5 * (expert_field[None] == field[:, None]) + rng.normal(size=(Q, X))).astype("f4")
    f["text_hash"] = rng.integers(1, 2**60, Q).astype("u8")
    f["id"] = np.array([f"{part}{i:04d}".encode() for i in range(Q)])
    f["source"], f["source_names"] = np.zeros(Q, "i4"), np.array([b"made"])
    f["expert_names"] = np.array([f"e{i}".encode() for i in range(X)])
    for name, value in dict(format="moebatch-outputs", questions=f"{part}{X}", models=json.dumps([f"m{i}" for i in range(X)]), style="letters", gate="g").items():
        f.attrs[name] = np.bytes_(value)
    f.attrs["version"], f.attrs["few_shot"] = np.int64(1), np.int64(0)
rng = np.random.default_rng(X)
seconds, joules = (rng.integers(1, 9, X) / 10).tolist(), rng.integers(1, 6, X).astype(float).tolist()
os.makedirs(f"{work}/{prefix}bench", exist_ok=True)
names = [f"e{i}" for i in range(X)]
with open(f"{work}/{prefix}bench/latency.json", "w") as f:
    json.dump(dict(format="moebatch-latency", version=1, experts={n: dict(compute_seconds=s) for n, s in zip(names, seconds)},
                   transfer_seconds={n: 0.02 for n in names}, aggregation_seconds=0.01), f)
with open(f"{work}/{prefix}bench/energy.json", "w") as f:
    json.dump(dict(format="moebatch-energy", version=1, experts={n: dict(energy_joules=j) for n, j in zip(names, joules)}), f)
PYTHON
}

# check PYTHON: with h5(path), load(path), and best(part, rule, top_k, latency, energy), a search over all subsets.
check() {
    "${MB_PYTHON:-python3}" - "$work" "$1" <<'PYTHON'
import itertools, json, sys
import h5py, numpy as np
work, code = sys.argv[1:]
h5 = lambda name: h5py.File(f"{work}/{name}")
load = lambda name: json.load(open(f"{work}/{name}"))
def costs():
    lat, en = load("bench/latency.json"), load("bench/energy.json")
    names = sorted(lat["experts"])
    return ([lat["experts"][n]["compute_seconds"] + lat["transfer_seconds"][n] for n in names],
            [en["experts"][n]["energy_joules"] for n in names], lat["aggregation_seconds"])
def right(f, members, top_k):
    logits = f["gate_logits"][:].astype("f8")
    weight = np.exp(logits - logits.max(1, keepdims=True)); weight /= weight.sum(1, keepdims=True)
    picked, answer, n = f["picked"][:], f["answer"][:], 0
    for q in range(len(answer)):
        asked = sorted(members, key=lambda e: (-logits[q, e], e))[:top_k or None]
        score = np.zeros(4)
        for e in asked: score[picked[q, e]] += weight[q, e]
        n += score.argmax() == answer[q]
    return int(n)
def best(part, top_k, latency, energy):
    lat, en, fuse = costs(); found = None
    with h5(f"{part}.h5") as f:
        for size in range(1, len(lat) + 1):
            for members in itertools.combinations(range(len(lat)), size):
                t = max(lat[e] for e in members) + fuse
                j = sum(sorted((en[e] for e in members), reverse=True)[:top_k or None])
                if t > latency * (1 + 1e-12) or j > energy * (1 + 1e-12): continue
                key = (-right(f, members, top_k), j, t, size, sum(1 << e for e in members))
                if found is None or key < found: found = key
    return found
exec(code)
PYTHON
}

@test "under every pair of limits the best subset of all, what it is worth on other questions, and their optimum" {
    run check '
with h5("all/subset.h5") as f:
    t = {k: v[:] for k, v in f["tables/both"].items()}
    assert list(zip(t["latency_limit"], t["energy_limit"])) == [(a, b) for a in (0.35, 0.55, 1) for b in (4, 8, 100)]
    test = h5("test.h5")
    for i in range(9):
        found = best("train", 3, t["latency_limit"][i], t["energy_limit"][i])
        assert (t["set"][i], t["right"][i]) == (found[4], -found[0]), (i, found, t["set"][i], t["right"][i])
        assert abs(t["energy"][i] - found[1]) < 1e-9 and abs(t["latency"][i] - found[2]) < 1e-9
        members = [e for e in range(6) if found[4] >> e & 1]
        assert t["test_right"][i] == right(test, members, 3)
        optimum = best("test", 3, t["latency_limit"][i], t["energy_limit"][i])
        assert t["optimum_right"][i] == -optimum[0] >= t["test_right"][i]
    for a, b in ((0, 1), (1, 2), (0, 3), (3, 6), (4, 5)):
        assert t["right"][a] <= t["right"][b]
    assert f["subsets/right"].shape == (64,) and f["subsets/right"][63] == f["tables/single/right"][-1]
    front = f["tables/pareto"]
    assert len(front["set"]) > 2 and all(np.diff(front["latency"][:]) >= 0)
r = load("all/results.json")
assert r["method"] == "exhaustive" and r["checked"] >= 15 and r["branch_and_bound"]["nodes"] > 0
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    [[ $(cat "$work/all.log") == *"both agree on every pair of limits"* ]]
}

@test "the tables as text, CSV and LaTeX say the same" {
    for name in single latency energy both auto_latency auto_energy auto pareto; do
        for form in txt csv tex; do [ -s "$work/all/smo_tables/$name.$form" ]; done
    done
    run check '
import csv
rows = list(csv.DictReader(open(f"{work}/all/smo_tables/both.csv")))
with h5("all/subset.h5") as f:
    right = f["tables/both/right"][:]
assert [r["train_accuracy"] for r in rows] == [f"{n / 240:.4f}" if n else "-" for n in right]
tex = open(f"{work}/all/smo_tables/both.tex").read()
assert tex.count("\\\\") == 10 and tex.count(" & ") == 110 and "_" not in tex.replace("\\_", "")
text = open(f"{work}/all/smo_tables/both.txt").read().split("\n")
assert len(text) == 2 + 1 + 9 + 1 and all(r["experts"] in line for r, line in zip(rows, text[3:]))
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "branch and bound finds the same, on one rank and on three; so does the sweep" {
    need_mpi
    "$bin/moe-subset" $(inputs) $(limits) subset.method=branch_and_bound output.dir="$work/bound"
    ranks 3 "$bin/moe-subset" $(inputs) $(limits) subset.method=branch_and_bound output.dir="$work/bound3"
    ranks 3 "$bin/moe-subset" $(inputs) $(limits) subset.top_k=0 output.dir="$work/every3"
    "$bin/moe-subset" $(inputs) $(limits) subset.top_k=0 output.dir="$work/every"
    [ "$(hash_of "$work/bound/subset.h5")" = "$(hash_of "$work/bound3/subset.h5")" ]
    [ "$(hash_of "$work/every/subset.h5")" = "$(hash_of "$work/every3/subset.h5")" ]
    run check '
with h5("all/subset.h5") as a, h5("bound/subset.h5") as b, h5("every/subset.h5") as c:
    for t in ("latency", "energy", "both", "auto"):
        for k in ("set", "right", "test_right", "optimum_set", "optimum_right", "bound", "is_proved"):
            assert (a[f"tables/{t}/{k}"][:] == b[f"tables/{t}/{k}"][:]).all(), (t, k)
    assert "subsets" not in b
    found = best("train", 0, 0.55, 8)
    assert (c["tables/both/set"][4], c["tables/both/right"][4]) == (found[4], -found[0])
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "thirty experts: branch and bound by itself, sets that meet the limits, and a bound where the time was up" {
    "$bin/moe-subset" $(inputs many-) subset.latency_limits=0.4 subset.energy_limits=4 subset.top_k=2 output.dir="$work/thirty"
    run check '
r = load("thirty/results.json")
assert r["method"] == "branch_and_bound" and r["branch_and_bound"]["nodes"] > 10
for table in ("latency", "energy", "both", "auto"):
    for row in r["tables"][table]:
        assert row["experts"], row
        assert row["bound"] >= row["train_accuracy"] and (not row["proved"] or row["bound"] == row["train_accuracy"])
        if row["energy_limit"]: assert row["energy"] <= row["energy_limit"] * (1 + 1e-12)
        if row["latency_limit"]: assert row["latency"] <= row["latency_limit"] * (1 + 1e-12)
assert any(row["proved"] for row in r["tables"]["both"])
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "two and four ranks sum up what one does; threads too" {
    need_mpi
    for n in 2 4; do
        ranks "$n" "$bin/moe-subset" $(inputs) $(limits) output.dir="$work/all-$n"
        [ "$(hash_of "$work/all/subset.h5")" = "$(hash_of "$work/all-$n/subset.h5")" ]
        cmp "$work/all/results.json" "$work/all-$n/results.json"
    done
    OMP_NUM_THREADS=3 "$bin/moe-subset" $(inputs) $(limits) output.dir="$work/all-threads"
    [ "$(hash_of "$work/all/subset.h5")" = "$(hash_of "$work/all-threads/subset.h5")" ]
}

@test "limits by the deciles of what was measured; energy.json is looked for beside latency.json" {
    "$bin/moe-subset" subset.train="$work/train.h5" subset.test="$work/test.h5" subset.latency="$work/bench" subset.latency_limits=auto subset.energy_limits=auto \
        output.dir="$work/auto"
    run check '
lat, en, fuse = costs()
with h5("auto/subset.h5") as f:
    t = f["tables"]
    n = [-(-d * 6 // 10) for d in range(1, 11)]
    assert np.allclose(t["latency/latency_limit"][:], sorted({sorted(lat)[k - 1] + fuse for k in n}), rtol=1e-12)
    assert np.allclose(t["energy/energy_limit"][:], sorted({sum(sorted(sorted(en)[:k])[-3:]) for k in n}), rtol=1e-12)
    for a, b in (("latency", "auto_latency"), ("energy", "auto_energy"), ("both", "auto")):
        for k in t[a]:
            assert (t[a][k][:] == t[b][k][:]).all(), (a, k)
    assert t["both/set"][-1] != 0 and t["both/right"][-1] == f["subsets/right"][:].max()
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

# Embeddings that tell the fields apart, as the gate of make_outputs does only half.
make_embeddings() {
    check '
for part, Q in (("train", 240), ("test", 120)):
    rng = np.random.default_rng([6, Q])
    rng.integers(0, 4, Q)
    field = rng.integers(0, 3, Q)
    with h5py.File(f"{work}/embed-{part}.h5", "w") as f:
        f["embeddings"] = (np.eye(3)[field] + 0.1 * rng.normal(size=(Q, 3))).astype("f4")
        f["source_names"], f["source_index"] = np.array([b"made"]), np.arange(Q)
        for k in ("model", "tokenizer", "pooling", "prefix"): f.attrs[k] = np.bytes_("x")
        f.attrs["format"] = np.bytes_("moebatch-embeddings")
        for k, v in dict(version=1, normalised=0, max_length=8, dimension=3).items(): f.attrs[k] = np.int64(v)
'
}

@test "a gate of its own for every chosen subset, on one rank and on three" {
    need_mpi
    make_embeddings
    own=(subset.embeddings_train="$work/embed-train.h5" subset.embeddings_test="$work/embed-test.h5" gate.hidden=16 gate.epochs=40 gate.batch=32 gate.learning_rate=1e-2)
    "$bin/moe-subset" $(inputs) $(limits) "${own[@]}" output.dir="$work/own"
    ranks 3 "$bin/moe-subset" $(inputs) $(limits) "${own[@]}" output.dir="$work/own3"
    "$bin/moe-subset" $(inputs) $(limits) "${own[@]}" subset.retrain=false output.dir="$work/own-not"
    [ "$(hash_of "$work/own/subset.h5")" = "$(hash_of "$work/own3/subset.h5")" ]
    [ "$(hash_of "$work/own-not/subset.h5")" = "$(hash_of "$work/all/subset.h5")" ]
    run check '
with h5("own/subset.h5") as f:
    sets, own, masked = {}, 0, 0
    for t in ("latency", "energy", "both", "auto", "single"):
        for s, r, m in zip(*(f[f"tables/{t}/{k}"][:] for k in ("set", "retrained_right", "test_right"))):
            assert (r >= 0) == (bin(s).count("1") > 1), (t, s, r)
            if r >= 0 and s not in sets: sets[s] = r; own += r; masked += m
            assert r < 0 or sets[s] == r
    print(f"{len(sets)} sets: {own} right with gates of their own, {masked} with the masked one")
    assert len(sets) > 2 and own > masked
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    cp "$work/embed-train.h5" "$work/short.h5"
    check 'f = h5py.File(f"{work}/short.h5", "r+"); x = f["embeddings"][:-1]; del f["embeddings"]; f["embeddings"] = x; f.close()'
    run "$bin/moe-subset" $(inputs) "${own[@]}" subset.embeddings_train="$work/short.h5" output.dir="$work/refused"
    [ "$status" -eq 3 ] && [[ $output == *"short.h5"* ]] || { echo "$output"; false; }
}

@test "energy of the gate's actual picks" {
    "$bin/moe-subset" $(inputs) $(limits) subset.limits=mean subset.top_k=1 output.dir="$work/mean"
    run check '
_, en, _ = costs()
with h5("mean/subset.h5") as f, h5("train.h5") as t:
    energy = f["subsets/energy"][:]
    logits = t["gate_logits"][:]
    for mask in (1, 5, 38, 63):
        members = [e for e in range(6) if mask >> e & 1]
        asked = np.array(members)[logits[:, members].argmax(1)]
        assert abs(energy[mask] - np.mean([en[e] for e in asked])) < 1e-9
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "done is done; other limits are another result" {
    run "$bin/moe-subset" $(inputs) $(limits) output.dir="$work/all"
    [ "$status" -eq 0 ]
    [[ $output == *"up to date"* ]] || { echo "$output"; false; }
    run "$bin/moe-subset" $(inputs) $(limits) subset.top_k=2 output.dir="$work/all" --is-done
    [ "$status" -eq 1 ]
}

@test "refused, naming file, place and what to do" {
    expect() { # expect CODE TEXT key=value...
        run "$bin/moe-subset" $(inputs) "${@:3}" output.dir="$work/refused"
        [ "$status" -eq "$1" ] || { echo "$output"; return 1; }
        [[ $output == *"$2"* ]] || { echo "not said: $2 in $output" >&2; return 1; }
    }
    expect 3 "hold the same questions" subset.test="$work/train.h5"
    expect 3 "expert 'e6' of the outputs was not measured" subset.train="$work/many-train.h5" subset.test="$work/many-test.h5"
    expect 3 "has 6 experts" subset.test="$work/many-test.h5"
    expect 3 "its format is 'moebatch-energy'" subset.latency="$work/bench/energy.json"
    expect 2 "subset.latency_limits: -1 is no limit" subset.latency_limits=-1,2
    expect 2 "names 2 twice" subset.energy_limits=2,2
    expect 2 "needs subset.method = exhaustive" subset.limits=mean subset.method=branch_and_bound
    expect 2 "need both" subset.embeddings_train="$work"
    run "$bin/moe-subset" $(inputs many-) subset.method=exhaustive output.dir="$work/refused"
    [ "$status" -eq 2 ] && [[ $output == *"30 experts: every subset of at most 24"* ]]
    sed 's/"energy_joules": [0-9.]*/"energy_joules": -1/' "$work/bench/energy.json" > "$work/negative.json"
    expect 3 "energy_joules is -1" subset.energy="$work/negative.json"
    sed 's/"e4": 0.02, //' "$work/bench/latency.json" > "$work/untimed.json"
    expect 3 "transfer_seconds lacks expert 'e4'" subset.latency="$work/untimed.json"
    mkdir -p "$work/alone" && cp "$work/bench/latency.json" "$work/alone"
    run "$bin/moe-subset" subset.train="$work/train.h5" subset.test="$work/test.h5" subset.latency="$work/alone" output.dir="$work/refused"
    [ "$status" -eq 3 ] && [[ $output == *"alone/energy.json: no such file (subset.energy)"* ]] || { echo "$output"; false; }
}
