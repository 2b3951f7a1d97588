# moe-embed: the same vectors on any number of ranks and after a restart; cutting, prefix, dimension, pooling, numpy, decoders, refusals.

setup_file() {
    load common.bash
    mb_setup
    make_records
    make_encoder
    "$bin/moe-embed" model.path="$work/bert" dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" dataset.form=text embed.tile_tokens=200 embed.npy=true \
        output.dir="$work/one"
}

setup() {
    load common.bash
    mb_setup
    inputs="a=$work/a.jsonl,b=$work/b.jsonl"
}

embed() { # OUT options...
    local out=$1
    shift
    "$bin/moe-embed" model.path="$work/bert" dataset.form=text output.dir="$work/$out" "$@"
}

# check PYTHON: with e(name) = the arrays of a run, and numpy.
check() {
    "${MB_PYTHON:-python3}" - "$work" "$1" <<'PYTHON'
import json, sys
import h5py, numpy as np
work, code = sys.argv[1:]
def e(name):
    with h5py.File(f"{work}/{name}/embeddings.h5") as f:
        out = {k: f[k][:] for k in ("embeddings", "source", "source_index", "tokens")}
        out["attributes"] = dict(f.attrs)
    return out
exec(code)
PYTHON
}

@test "what is written: every record, in order, of length 1; numpy holds the same" {
    run check '
one = e("one"); v = one["embeddings"]
lines = [len(open(f"{work}/{n}.jsonl").readlines()) for n in "ab"]
assert v.shape == (sum(lines), 24), v.shape
assert (one["source"] == [0] * lines[0] + [1] * lines[1]).all()
assert (one["source_index"] == list(range(lines[0])) + list(range(lines[1]))).all()
assert np.allclose((v.astype(float) ** 2).sum(1), 1, atol=1e-5)
assert (np.load(f"{work}/one/embeddings.npy") == v).all()
a = one["attributes"]
text = lambda x: x.decode() if isinstance(x, bytes) else str(x)
assert text(a["pooling"]) == "mean" and a["normalised"] == 1 and a["max_length"] == 20 and a["dimension"] == 24, a
assert len(text(a["model"])) == 32 and len(text(a["tokenizer"])) == 32
done = json.load(open(f"{work}/one/done.json"))
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    [ ! -e "$work/one/tokens.h5" ]
    [ ! -e "$work/one/embeddings.h5.parts" ]
}

@test "two and three ranks, other threads: the same content" {
    need_mpi
    for n in 2 3; do
        ranks $n "$bin/moe-embed" model.path="$work/bert" dataset.inputs="$inputs" dataset.form=text embed.tile_tokens=200 output.dir="$work/ranks$n"
        [ "$(hash_of "$work/ranks$n/embeddings.h5")" = "$(hash_of "$work/one/embeddings.h5")" ]
    done
    embed threads dataset.inputs="$inputs" embed.tile_tokens=200 threads=2
    [ "$(hash_of "$work/threads/embeddings.h5")" = "$(hash_of "$work/one/embeddings.h5")" ]
}

@test "a record's vector does not depend on its tile" {
    embed tiles dataset.inputs="$inputs" embed.tile_tokens=64
    run check 'assert np.abs(e("tiles")["embeddings"] - e("one")["embeddings"]).max() < 1e-6'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "stopped and run again: only missing parts, the same content" {
    "$bin/moe-embed" model.path="$work/bert" dataset.inputs="$inputs" dataset.form=text embed.tile_tokens=16 output.dir="$work/stopped" backend=ref &
    local pid=$! first=0
    for _ in $(seq 400); do
        if compgen -G "$work/stopped/embeddings.h5.parts/*.h5" > /dev/null || ! kill -0 $pid 2> /dev/null; then break; fi
        sleep 0.01
    done
    kill -TERM $pid 2> /dev/null || true
    wait $pid || first=$?
    [ "$first" -eq 75 ] || [ "$first" -eq 0 ]
    embed stopped dataset.inputs="$inputs" embed.tile_tokens=16 backend=ref
    embed whole dataset.inputs="$inputs" embed.tile_tokens=16 backend=ref
    [ "$(hash_of "$work/stopped/embeddings.h5")" = "$(hash_of "$work/whole/embeddings.h5")" ]
}

@test "a finished run is not run again" {
    run embed one dataset.inputs="$inputs" embed.tile_tokens=200 embed.npy=true
    [ "$status" -eq 0 ]
    [[ $output == *"up to date"* ]]
}

@test "a shard of the model's tokenizer gives the same vectors as its text" {
    "$bin/moe-shard" build dataset.inputs="$inputs" dataset.form=text dataset.append_eos=false dataset.max_length=4096 tokenizer.path="$work/bert" output.dir="$work/shard"
    embed shard_run dataset.path="$work/shard/shard.h5"
    run check 'assert np.abs(e("shard_run")["embeddings"] - e("one")["embeddings"]).max() < 1e-6'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "cut at max_length: what is behind it does not count" {
    printf '%s\n' '{"text": "aa bb cc dd ee ff gg"}' '{"text": "aa bb"}' '{"text": "aa bb cc zz"}' > "$work/cut.jsonl"
    embed cut dataset.inputs="c=$work/cut.jsonl" dataset.max_length=8
    run check '
v = e("cut")["embeddings"]
assert (v[0] == v[2]).all() and not np.allclose(v[0], v[1])
assert json.load(open(f"{work}/cut/done.json"))["results"]["cut"] == 2'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "prefix, dimension, pooling and normalize" {
    printf '{"text": "ask: aa bb"}\n' > "$work/with.jsonl"
    printf '{"text": "aa bb"}\n' > "$work/without.jsonl"
    embed with dataset.inputs="c=$work/with.jsonl"
    embed without dataset.inputs="c=$work/without.jsonl" embed.prefix="ask: "
    embed small dataset.inputs="c=$work/with.jsonl" embed.dimension=8
    embed raw dataset.inputs="c=$work/with.jsonl" embed.normalize=false embed.pooling=cls+mean
    run check '
w, o, s, r = (e(n)["embeddings"][0] for n in ("with", "without", "small", "raw"))
assert (w == o).all()
assert s.shape == (8,) and np.allclose(s, w[:8] / np.linalg.norm(w[:8]), atol=1e-6)
assert r.shape == (48,) and np.allclose(r[24:] / np.linalg.norm(r[24:]), w, atol=1e-6)'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "a decoder's pooled hidden state; mean by default, with a warning" {
    make_models
    run "$bin/moe-embed" model.path="$work/init/model" dataset.inputs="$inputs" dataset.form=text dataset.max_length=32 output.dir="$work/decoder"
    [ "$status" -eq 0 ]
    [[ $output == *"no modules.json"* ]]
    "$bin/moe-embed" model.path="$work/init/model" dataset.inputs="$inputs" dataset.form=text dataset.max_length=32 embed.pooling=lasttoken embed.normalize=true output.dir="$work/last"
    run check '
d, l = e("decoder")["embeddings"], e("last")["embeddings"]
assert d.shape == l.shape and d.shape[1] == 32 and np.isfinite(d).all()
assert np.allclose((l.astype(float) ** 2).sum(1), 1, atol=1e-5)'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

refused() { # CODE TEXT options...
    local code=$1 text=$2
    shift 2
    rm -rf "$work/refused"
    run embed refused "$@"
    [ "$status" -eq "$code" ] && [[ $output == *"$text"* ]] || {
        echo "status $status: $output"
        false
    }
}

@test "refusals name what is wrong" {
    refused 2 "either dataset.inputs or dataset.path"
    refused 2 "there is no pooling \"middle\"" dataset.inputs="$inputs" embed.pooling=middle
    refused 2 "vectors have 24 numbers" dataset.inputs="$inputs" embed.dimension=25
    refused 2 "leaves no room" dataset.inputs="$inputs" dataset.max_length=2
    refused 2 "encoder: adapters" dataset.inputs="$inputs" model.quantize=int8
    cp -r "$work/bert" "$work/odd"
    sed -i 's/Normalize/LayerNorm/' "$work/odd/modules.json"
    refused 3 "LayerNorm" dataset.inputs="$inputs" model.path="$work/odd"
    sed -i 's/"bert"/"mpnet"/' "$work/odd/config.json"
    refused 3 "mpnet" dataset.inputs="$inputs" model.path="$work/odd"
}
