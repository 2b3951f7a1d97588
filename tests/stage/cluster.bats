# moe-cluster: groups that are there are found, records cut out byte for byte, the same files on any number of ranks, a sweep with its choice,
# centres given, refusals.

setup_file() {
    load common.bash
    mb_setup
    make_records
    make_encoder
    make_groups
    "$bin/moe-embed" model.path="$work/bert" dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" dataset.form=text output.dir="$work/embed"
}

setup() {
    load common.bash
    mb_setup
}

# $work/groups.h5: 90 vectors in three groups of 40, 30 and 20, of two sources whose lines are written every way JSON allows.
make_groups() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import gzip, json, sys
import h5py, numpy as np
work = sys.argv[1]
rng = np.random.default_rng(3)
group = np.repeat([0, 1, 2], [40, 30, 20])
rng.shuffle(group)
vectors = (np.eye(3, 12)[group] * 8 + rng.normal(size=(90, 12))).astype("f4")
np.save(f"{work}/group.npy", group)
forms = ['{{"text": "n{0}"}}', ' {{ "b" : 1.0e+0,"text":"n{0} \\u00e9 é" }}  ', '{{"text":"n{0}","a":[1, {{"x":  null}}]}}\r', '{{"text": "n{0}", "z": "\\"}}\\\\"}}']
names, files = ["x", "y"], [f"{work}/x.jsonl", f"{work}/y.jsonl"]
source, index, offset, length = [], [], [], []
for s, count in enumerate((50, 40)):
    data, at = b"", 0
    for i in range(count):
        line = forms[i % 4].format(i).encode()
        if i % 7 == 3:
            data += b"\n  \n"
        body = line.strip(b" \r")
        offset.append(len(data) + line.index(body))
        length.append(len(body))
        data += line + (b"" if s == 1 and i == count - 1 else b"\n")
        source.append(s)
        index.append(i)
    open(files[s], "wb").write(data)
def write(path, vectors, source, index, offset, length, names, files):
    with h5py.File(path, "w") as f:
        f.attrs["format"] = np.bytes_("moebatch-embeddings"); f.attrs["version"] = np.int64(1); f.attrs["dimension"] = np.int64(vectors.shape[1])
        f["embeddings"] = vectors
        f["record_hash"] = np.arange(len(vectors), dtype="u8")
        f["source"] = np.array(source, "u2"); f["source_index"] = np.array(index, "i8")
        f["byte_offset"] = np.array(offset, "i8"); f["byte_length"] = np.array(length, "i8")
        f["source_names"] = np.array([n.encode() for n in names]); f["source_files"] = np.array([n.encode() for n in files])
write(f"{work}/groups.h5", vectors, source, index, offset, length, names, files)
bad = vectors.copy(); bad[31, 5] = np.nan
write(f"{work}/nan.h5", bad, source, index, offset, length, names, files)
same = np.repeat(vectors[:2], 45, axis=0)
write(f"{work}/same.h5", same, source, index, offset, length, names, files)
# A packed file and a CSV file, which are read from the front.
gzip.open(f"{work}/p.jsonl.gz", "wb").write(b"".join(json.dumps({"n": i}).encode() + b"\n" for i in range(6)))
open(f"{work}/q.csv", "w").write("n,text\n" + "".join(f'{i},"two, {i}"\n' for i in range(6)))
write(f"{work}/packed.h5", vectors[:9], [0] * 5 + [1] * 4, [0, 1, 1, 3, 5, 0, 2, 4, 5], [0] * 9, [9] * 9, ["p", "q"], [f"{work}/p.jsonl.gz", f"{work}/q.csv"])
PYTHON
}

cluster() { # OUT options...
    local out=$1
    shift
    "$bin/moe-cluster" output.dir="$work/$out" "$@"
}

# check PYTHON: with c(name) = the arrays of a run and its attributes, lines(path), r(name) = results.json, and numpy.
check() {
    "${MB_PYTHON:-python3}" - "$work" "$1" <<'PYTHON'
import json, sys
import h5py, numpy as np
work, code = sys.argv[1:]
def c(name):
    with h5py.File(f"{work}/{name}/clusters.h5") as f:
        out = {k: f[k][:] for k in f}
        out["attributes"] = {k: (v.decode() if isinstance(v, bytes) else v) for k, v in f.attrs.items()}
    return out
def r(name): return json.load(open(f"{work}/{name}/results.json"))
def lines(path):
    data = open(path, "rb").read()
    assert data == b"" or data.endswith(b"\n")
    return data.split(b"\n")[:-1]
exec(code)
PYTHON
}

# The files of a run, as one hash.
all_of() { (cd "$work/$1" && "$bin/moe-inspect" file clusters.h5 --hash && sha256sum results.json cluster_*.jsonl); }

@test "groups that are there are found; every line is the record's bytes, in order" {
    cluster groups embeddings.path="$work/groups.h5" cluster.k=3
    run check '
one, group, result = c("groups"), np.load(f"{work}/group.npy"), r("groups")
labels = one["labels"]
assert all(len(set(labels[group == g])) == 1 for g in range(3)) and len(set(labels)) == 3
assert (one["sizes"] == np.bincount(labels)).all() and one["labels"].dtype == np.int32
records = [l.strip(b" \r") for n in "xy" for l in open(f"{work}/{n}.jsonl", "rb").read().split(b"\n") if l.strip()]
assert len(records) == 90
for k in range(3):
    assert lines(f"{work}/groups/cluster_{k}.jsonl") == [records[i] for i in range(90) if labels[i] == k]
with h5py.File(f"{work}/groups.h5") as f: x = f["embeddings"][:].astype(float)
d = ((x[:, None] - one["centres"].astype(float)) ** 2).sum(-1)
assert (d.argmin(1) == labels).all() and np.allclose(d.min(1), one["distance"], rtol=1e-5)
a = one["attributes"]
assert a["metric"] == "euclidean" and a["k"] == 3 and a["is_converged"] == 1 and abs(a["inertia"] / d.min(1).sum() - 1) < 1e-9, a
assert one["inertia"].shape[0] == 4 and np.nanmin(one["inertia"]) <= a["inertia"] * (1 + 1e-9)
assert one["silhouette"].min() > 0.3 and abs(one["silhouette"].mean() - a["silhouette"]) < 1e-6
mean, axes = one["pca_mean"], one["pca_axes"]
assert np.allclose((x - mean) @ axes.T, one["pca"], atol=1e-4) and np.allclose(axes @ axes.T, np.eye(2), atol=1e-9)
assert abs(one["pca_explained"].sum() - np.linalg.eigvalsh(np.cov(x.T))[-2:].sum() / np.cov(x.T).trace()) < 1e-5
assert result["chosen"] == 3 and result["chosen_by"] == "given" and [i["records"] for i in result["clusters"]] == list(one["sizes"])
assert all(i["lines"] == i["records"] and sum(i["sources"].values()) == i["records"] for i in result["clusters"])
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "vectors of moe-embed: every record is in one file; done is done" {
    cluster real embeddings.path="$work/embed" cluster.k=5 cluster.metric=cosine dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl"
    run check '
one = c("real")
assert one["attributes"]["metric"] == "cosine" and np.allclose((one["centres"].astype(float) ** 2).sum(1), 1, atol=1e-6)
assert len(one["attributes"]["embeddings"]) == 32 and len(one["attributes"]["model"]) == 32
wanted = sorted(lines(f"{work}/a.jsonl") + lines(f"{work}/b.jsonl"))
assert sorted(l for k in range(5) for l in lines(f"{work}/real/cluster_{k}.jsonl")) == wanted
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    run cluster real embeddings.path="$work/embed" cluster.k=5 cluster.metric=cosine dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl"
    [ "$status" -eq 0 ]
    [[ $output == *"up to date"* ]]
    run cluster real embeddings.path="$work/embed" cluster.k=5 cluster.metric=cosine dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" --is-done
    [ "$status" -eq 0 ] && [[ $output == done ]]
    run cluster real embeddings.path="$work/embed" cluster.k=6 cluster.metric=cosine --is-done
    [[ $output == "not done"* ]]
    # The files that moe-embed wrote down, where none are named.
    cluster named embeddings.path="$work/embed" cluster.k=5 cluster.metric=cosine
    [ "$(all_of named)" = "$(all_of real)" ]
}

@test "one to four ranks, threads, instruction sets: the same files" {
    need_mpi
    cluster one embeddings.path="$work/embed" cluster.k=7 cluster.silhouette_rows=150
    for n in 2 3 4; do
        ranks $n "$bin/moe-cluster" embeddings.path="$work/embed" cluster.k=7 cluster.silhouette_rows=150 output.dir="$work/ranks$n"
        [ "$(all_of ranks$n)" = "$(all_of one)" ]
    done
    cluster threads embeddings.path="$work/embed" cluster.k=7 cluster.silhouette_rows=150 threads=3
    [ "$(all_of threads)" = "$(all_of one)" ]
    MB_ISA=portable cluster portable embeddings.path="$work/embed" cluster.k=7 cluster.silhouette_rows=150
    [ "$(all_of portable)" = "$(all_of one)" ]
    run check 'assert np.isfinite(c("one")["silhouette"]).sum() == 150 and r("one")["sweep"][0]["silhouette_records"] == 150'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "several numbers of clusters: chosen by silhouette, by the elbow, or not" {
    cluster sweep embeddings.path="$work/groups.h5" cluster.k=5,2,3,8
    cluster elbow embeddings.path="$work/groups.h5" cluster.k=2,3,4,5,6 cluster.choose=inertia_elbow cluster.records=false
    cluster none embeddings.path="$work/groups.h5" cluster.k=2,3 cluster.choose=none cluster.pca=false
    cluster alone embeddings.path="$work/groups.h5" cluster.k=3
    run check '
a, b, n = r("sweep"), r("elbow"), r("none")
assert a["chosen"] == 3 and a["chosen_by"] == "silhouette" and [p["k"] for p in a["sweep"]] == [2, 3, 5, 8]
assert b["chosen"] == 3 and b["chosen_by"] == "inertia_elbow"
assert n["chosen"] is None and n["clusters"] == []
inertia = [p["inertia"] for p in a["sweep"]]
assert inertia == sorted(inertia, reverse=True)
assert (c("sweep")["labels"] == c("sweep/k3")["labels"]).all() and c("sweep/k8")["attributes"]["k"] == 8
assert "pca" not in c("none/k2") and "file" not in b["clusters"][0]
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    [ -f "$work/sweep/cluster_2.jsonl" ] && [ ! -e "$work/sweep/k3/cluster_0.jsonl" ]
    [ -f "$work/none/k2/cluster_1.jsonl" ] && [ ! -e "$work/none/clusters.h5" ]
    [ -f "$work/elbow/clusters.h5" ] && [ ! -e "$work/elbow/cluster_0.jsonl" ]
    [ "$(hash_of "$work/sweep/clusters.h5")" = "$(hash_of "$work/alone/clusters.h5")" ]
    run cluster two embeddings.path="$work/groups.h5" cluster.k=2,3 cluster.choose=inertia_elbow
    [ "$status" -eq 2 ] && [[ $output == *"three numbers"* ]]
}

@test "centres given: gone on from, or only measured against" {
    cluster first embeddings.path="$work/groups.h5" cluster.k=3
    cluster again embeddings.path="$work/groups.h5" cluster.k=3 centres.path="$work/first/clusters.h5" cluster.max_iterations=0
    run check 'assert (c("first")["labels"] == c("again")["labels"]).all() and (c("first")["centres"] == c("again")["centres"]).all()
assert (c("again")["iterations"] == [0]).all()'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    run cluster wrong embeddings.path="$work/groups.h5" cluster.k=4 centres.path="$work/first/clusters.h5"
    [ "$status" -eq 2 ] && [[ $output == *"cluster.k=3"* ]]
    run cluster wrong embeddings.path="$work/embed" cluster.k=3 centres.path="$work/first/clusters.h5"
    [ "$status" -eq 3 ] && [[ $output == *"[k, 24]"* ]]
    run cluster wrong embeddings.path="$work/groups.h5" cluster.max_iterations=0
    [ "$status" -eq 2 ] && [[ $output == *"centres.path"* ]]
}

@test "packed files and CSV; a record in two pieces; fewer vectors than clusters" {
    cluster packed embeddings.path="$work/packed.h5" cluster.k=2
    run check '
labels = c("packed")["labels"]
rows = [json.dumps({"n": i}).encode() for i in (0, 1, 1, 3, 5)] + [{"n": str(i), "text": f"two, {i}"} for i in (0, 2, 4, 5)]
seen = [l if l.startswith(b"{\"n\": ") and b"text" not in l else json.loads(l) for k in range(2) for l in lines(f"{work}/packed/cluster_{k}.jsonl")]
wanted = [rows[i] for k in range(2) for i in range(9) if labels[i] == k and i != 2]
assert seen == wanted, (seen, wanted)
assert sum(k["lines"] for k in r("packed")["clusters"]) == 8'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    run cluster same embeddings.path="$work/same.h5" cluster.k=4
    [ "$status" -eq 0 ] && [[ $output == *"2 clusters are empty"* ]]
    run check 'assert r("same")["sweep"][0]["empty"] == 2 and sorted(c("same")["sizes"]) == [0, 0, 45, 45]
assert sum(len(lines(f"{work}/same/cluster_{k}.jsonl")) for k in range(4)) == 90'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "refused: what is no number, too many clusters, files that changed" {
    run cluster bad embeddings.path="$work/nan.h5" cluster.k=3
    [ "$status" -eq 3 ] && [[ $output == *"nan.h5: row 31 holds NaN"* ]]
    run cluster bad embeddings.path="$work/groups.h5" cluster.k=91
    [ "$status" -eq 3 ] && [[ $output == *"91 clusters of 90 records"* ]]
    run cluster bad embeddings.path="$work/groups.h5" cluster.k=3,x
    [ "$status" -ne 0 ]
    run cluster bad embeddings.path="$work/groups.h5" cluster.k=3 dataset.inputs="x=$work/x.jsonl"
    [ "$status" -eq 2 ] && [[ $output == *"no 'y'"* ]]
    run cluster bad
    [ "$status" -eq 2 ] && [[ $output == *"embeddings.path is missing"* ]]
    run cluster bad embeddings.path="$work/a.jsonl"
    [ "$status" -eq 3 ]
    # Changed, and as long as before: known by moe-embed's record, and without one by its lines.
    sed '5s/text/texu/' "$work/a.jsonl" > "$work/changed.jsonl"
    run cluster bad embeddings.path="$work/embed" dataset.inputs="a=$work/changed.jsonl,b=$work/b.jsonl" cluster.k=3
    [ "$status" -eq 3 ] && [[ $output == *"changed.jsonl: not what the embeddings were made of"* ]]
    tail -n +2 "$work/x.jsonl" > "$work/shorter.jsonl"
    run cluster bad embeddings.path="$work/groups.h5" dataset.inputs="x=$work/shorter.jsonl,y=$work/y.jsonl" cluster.k=3
    [ "$status" -eq 3 ] && [[ $output == *"record 0 does not stand where it did"* ]]
    [ ! -e "$work/bad/done.json" ]
    ! compgen -G "$work/bad/*.tmp.*"
}
