# moe-bench: every pair of lengths, every round kept, where the joules come from; several ranks; joining; refusals. Times are not judged, but for
# what must hold on any machine.

setup_file() {
    load common.bash
    mb_setup
    make_records
    make_target_config
    {
        "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok"
        for i in 0 1 2; do
            "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" convert.seed=$i output.dir="$work/init$i"
        done
        "$bin/moe-bench" bench.experts="a=$work/init0/model,b=$work/init1/model" dataset.path="$work/a.jsonl" $(lengths) output.dir="$work/two"
        "$bin/moe-bench" model.path="$work/init2/model" bench.name=c $(lengths) output.dir="$work/one"
    } > "$work/setup.log" 2>&1 || { tail -20 "$work/setup.log" && false; }
}
setup() {
    load common.bash
    mb_setup
}

lengths() { echo "bench.prompt_tokens=4,24 bench.output_tokens=1,12 bench.repeats=5 bench.energy=power_model bench.watts_per_core=10 bench.watts_idle=3"; }

check() { # check PYTHON: with h5(path), load(path)
    "${MB_PYTHON:-python3}" - "$work" "$1" <<'PYTHON'
import json, sys
import h5py, numpy as np
work, code = sys.argv[1:]
h5 = lambda name: h5py.File(f"{work}/{name}")
load = lambda name: json.load(open(f"{work}/{name}"))
exec(code)
PYTHON
}

@test "every round is in HDF5, and the tables are its quantiles" {
    run check '
lat, en = load("two/latency.json"), load("two/energy.json")
with h5("two/bench.h5") as f:
    s, first, core, j = (f[n][:] for n in ("seconds", "first_seconds", "core_seconds", "joules"))
    assert s.shape == (2, 2, 2, 5) and (s > 0).all() and (first > 0).all() and (first <= s).all()
    assert np.allclose(j, 3 * s + 10 * core, rtol=1e-12)
    for e, name in enumerate("ab"):
        x = lat["experts"][name]
        assert x["prompt_tokens"] == [4, 24] and x["output_tokens"] == [1, 12] and x["repeats"] == 5
        for q, k in ((5, "p5"), (50, "p50"), (95, "p95")):
            assert np.allclose(x["seconds"][k], np.percentile(s[e], q, axis=-1), rtol=1e-12)
            assert np.allclose(en["experts"][name]["joules"][k], np.percentile(j[e], q, axis=-1), rtol=1e-12)
            assert np.allclose(x["first_token_seconds"][k], np.percentile(first[e], q, axis=-1), rtol=1e-12)
        assert np.allclose(x["seconds"]["mean"], s[e].mean(-1)) and np.allclose(x["seconds"]["max"], s[e].max(-1))
        assert x["compute_seconds"] == x["seconds"]["p50"][0][0] # of 4 and 1 tokens: the middle of two is the first
        assert en["experts"][name]["energy_joules"] == en["experts"][name]["joules"]["p50"][0][0]
    assert (np.median(s[..., 1, :], -1) > np.median(s[..., 0, :], -1)).all() # twelve tokens take longer than one
assert en["source"] == "power_model" and "10 W per busy core" in en["source_text"] and "not measured" in en["source_text"]
assert lat["transfer_seconds"] == {"a": 0, "b": 0} and lat["aggregation_seconds"] > 0
assert lat["reference"] == {"prompt_tokens": 4, "output_tokens": 1}
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "reference lengths are measured even when no list has them; a stated link" {
    "$bin/moe-bench" bench.experts="a=$work/init0/model" $(lengths) bench.reference_prompt=10 bench.reference_output=3 bench.link_latency=0.001 bench.link_rate=1e6 \
        output.dir="$work/reference"
    run check '
lat = load("reference/latency.json")
x = lat["experts"]["a"]
assert x["prompt_tokens"] == [4, 10, 24] and x["output_tokens"] == [1, 3, 12]
assert x["compute_seconds"] == x["seconds"]["p50"][1][1]
assert abs(lat["transfer_seconds"]["a"] - (2 * 0.001 + (64 + 40 + 64 + 12) / 1e6)) < 1e-12 and lat["transfer_text"] == "a stated link"
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "on two ranks: experts one after the other, the way between ranks measured" {
    need_mpi
    ranks 2 "$bin/moe-bench" bench.experts="a=$work/init0/model,b=$work/init1/model" $(lengths) output.dir="$work/ranks"
    run check '
lat = load("ranks/latency.json")
assert list(lat["experts"]) == ["a", "b"] and lat["transfer_seconds"]["a"] == 0 and 0 < lat["transfer_seconds"]["b"] < 5
assert lat["transfer_text"].startswith("measured")
with h5("ranks/bench.h5") as f:
    assert f["seconds"].shape == (2, 2, 2, 5) and (f["seconds"][:] > 0).all() and len(set(f["hashes"][:])) == 2
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "join: as if measured together; done is done" {
    "$bin/moe-bench" join bench.inputs="x=$work/two/,y=$work/one" output.dir="$work/joined"
    run check '
lat, parts = load("joined/latency.json"), (load("two/latency.json"), load("one/latency.json"))
assert lat["experts"] == {**parts[0]["experts"], **parts[1]["experts"]} and list(lat["experts"]) == ["a", "b", "c"]
en = load("joined/energy.json")
assert en["experts"]["c"] == load("one/energy.json")["experts"]["c"] and en["source"] == "power_model"
with h5("joined/bench.h5") as f, h5("one/bench.h5") as g:
    assert (f["seconds"][2] == g["seconds"][0]).all() and f["seconds"].shape == (3, 2, 2, 5)
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    run "$bin/moe-bench" join bench.inputs="x=$work/two/,y=$work/one" output.dir="$work/joined"
    [ "$status" -eq 0 ] && [[ $output == *"up to date"* ]]
}

@test "refused, naming file, place and what to do" {
    expect() { # expect CODE TEXT arguments
        run "$bin/moe-bench" "${@:3}" output.dir="$work/refused"
        [ "$status" -eq "$1" ] || { echo "$output"; return 1; }
        [[ $output == *"$2"* ]] || { echo "not said: $2 in $output" >&2; return 1; }
    }
    expect 2 "nothing to measure"
    expect 3 "$work/none" bench.experts="a=$work/none"
    expect 2 "100064 positions" model.path="$work/init0/model" bench.prompt_tokens=100000
    expect 2 "'x' is no number of tokens" model.path="$work/init0/model" bench.output_tokens=4,x
    expect 2 "bench.inputs is missing" join
    expect 3 "expert 'a' was in a result before it" join bench.inputs="x=$work/two,y=$work/two/bench.h5"
    "$bin/moe-bench" model.path="$work/init2/model" bench.name=c $(lengths) bench.watts_idle=4 output.dir="$work/watts"
    expect 3 "cannot be compared" join bench.inputs="x=$work/two,y=$work/watts"
    "$bin/moe-bench" model.path="$work/init2/model" bench.name=c $(lengths) bench.repeats=4 output.dir="$work/four"
    expect 3 "4 rounds after 2" join bench.inputs="x=$work/two,y=$work/four"
    "$bin/moe-bench" model.path="$work/init2/model" bench.name=c $(lengths) bench.prompt_tokens=5 output.dir="$work/other"
    expect 3 "other prompt or output lengths" join bench.inputs="x=$work/two,y=$work/other"
    if [ ! -e /sys/class/powercap/intel-rapl ] && [ ! -e /dev/nvidia0 ]; then
        expect 1 "no joules can be counted here" model.path="$work/init0/model" bench.energy=counter
    fi
}
