# Distillation: moe-teacher (the same rows on any number of ranks, in shares, after a kill, from the cache), students of a stored teacher and of
# one that is asked while training, kill and resume, and what is refused.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    inputs="a=$work/a.jsonl,b=$work/b.jsonl"
    make_target_config
    {
        "$bin/moe-shard" tokenizer dataset.inputs="$inputs" tokenizer.vocab_size=384 output.dir="$work/tok"
        shard train a.jsonl tok
        shard held b.jsonl tok
        "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/init"
        "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/train.h5" training.max_steps=12 training.batch_size=8 training.gradient_accumulation_steps=2 \
            training.learning_rate=3e-3 training.logging_steps=100 output.dir="$work/foundation"
        "$bin/moe-train" model.path="$work/foundation/final" dataset.path="$work/held.h5" training.max_steps=40 training.batch_size=8 \
            training.gradient_accumulation_steps=2 training.learning_rate=1e-2 output.dir="$work/sft"
        teacher one
        teacher held dataset.path="$work/held.h5"
    } > "$work/setup.log" 2>&1 || { cat "$work/setup.log" >&2; return 1; }
}
setup() {
    load common.bash
    mb_setup
    foundation=$work/foundation/final sft=$work/sft/final
    expected=$(hash_of "$work/one/teacher.h5")
}

shard() { # shard NAME FILE TOKENIZER: the first records of a file
    head -n 60 "$work/$2" > "$work/$1.jsonl"
    "$bin/moe-shard" build dataset.inputs="x=$work/$1.jsonl" dataset.form=text dataset.max_length=64 tokenizer.path="$work/$3" output.dir="$work/shard-$1"
    cp "$work/shard-$1/shard.h5" "$work/$1.h5"
}
teacher_words() { # teacher_words NAME key=value...: a teacher that is the tuned model
    printf '%s\n' model.path="$work/sft/final" dataset.path="$work/train.h5" teacher.k=16 teacher.tile_tokens=256 output.dir="$work/$1" "${@:2}"
}
teacher() {
    local words
    mapfile -t words < <(teacher_words "$@")
    "$bin/moe-teacher" "${words[@]}"
}
student_words() { # student_words NAME key=value...: of no teacher yet
    printf '%s\n' model.path="$work/foundation/final" dataset.path="$work/train.h5" training.objective=distil training.learning_rate=1e-3 training.batch_size=4 \
        training.gradient_accumulation_steps=3 training.epochs=1 training.logging_steps=1 output.dir="$work/$1" "${@:2}"
}
student() {
    local words
    mapfile -t words < <(student_words "$@")
    "$bin/moe-train" "${words[@]}"
}
stored() { student "$1" teacher.store="$work/one/teacher.h5" teacher.validation_store="$work/held/teacher.h5" training.validation_path="$work/held.h5" "${@:2}"; }
parts() { find "$work/$1/teacher.h5.parts" -name '*-*.h5' 2> /dev/null | wc -l; }
field() { "${MB_PYTHON:-python3}" -c 'import json, sys; v = json.load(open(sys.argv[1])); [v := v[k] for k in sys.argv[2:]]; print(v)' "$@"; }

@test "moe-teacher: what it says of its file, and the same rows on 2 ranks, in shares, with other tiles" {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys, h5py, numpy as np
work = sys.argv[1]
results = json.load(open(f"{work}/one/results.json"))
done = json.load(open(f"{work}/one/done.json"))["results"]
with h5py.File(f"{work}/train.h5") as shard, h5py.File(f"{work}/one/teacher.h5") as t:
    lengths = np.diff(shard["offsets"][:].astype(int))
    assert (np.diff(t["offsets"][:]) == np.maximum(lengths - 1, 0)).all()
    ids, logprob, tail, mass = (t[n][:] for n in ("ids", "logprob", "tail", "mass"))
    rows = ids.shape[0]
    assert ids.dtype == np.uint16 and logprob.dtype == np.float16 and ids.shape == logprob.shape == (rows, 16) and tail.shape == (rows, 4)
    assert (np.diff(logprob.astype(float), axis=1) <= 0).all() and ids.max() < 384
    p = np.exp(logprob.astype(float)).sum(1)
    assert abs(p - mass).max() < 3e-3 and abs(mass + np.exp(tail[:, 0]) - 1).max() < 1e-5, "the tail at T = 1 is the rest"
    assert (np.diff(tail, axis=1) > 0).all(), "it grows with the temperature"
    for found in (results, done):
        assert found["rows"] == rows and abs(found["mass_mean"] - mass.mean()) < 1e-6 and abs(found["mass_p5"] - np.percentile(mass, 5)) < 1e-2
        assert 16 * 4 + 20 <= found["bytes_per_token"] < 16 * 4 + 60 and found["dense_bytes_per_token"] == 4 * 384, found
    for name, value in (("tokenizer", shard.attrs["tokenizer"]), ("targets", "masked"), ("k", 16), ("vocab", 384)):
        found = t.attrs[name]
        assert str(found.decode() if isinstance(found, bytes) else found) == str(value.decode() if isinstance(value, bytes) else value), name
PYTHON
    local words forecast
    mapfile -t words < <(teacher_words one)
    forecast=$("$bin/moe-config" forecast program=moe-teacher -- "${words[@]}")
    "${MB_PYTHON:-python3}" -c 'import os, re, sys; kb = float(re.search(r"teacher.s file ([0-9.]+) KB", sys.argv[1])[1]); assert abs(1e3 * kb / os.path.getsize(sys.argv[2]) - 1) < 0.1, kb' \
        "$forecast" "$work/one/teacher.h5"
    teacher shares run.share=1/2
    [ -f "$work/shares/done-1of2.json" ] && [ ! -e "$work/shares/teacher.h5" ]
    teacher shares run.share=0/2
    run teacher shares
    [[ $output == *"parts of an earlier run were used"* ]]
    [ "$(hash_of "$work/shares/teacher.h5")" = "$expected" ]
    [ ! -e "$work/shares/teacher.h5.parts" ]
    teacher tiles teacher.tile_tokens=1000
    [ "$(field "$work/tiles/results.json" content)" = "$(field "$work/one/results.json" content)" ]
    need_mpi
    mapfile -t words < <(teacher_words ranks)
    ranks 2 "$bin/moe-teacher" "${words[@]}"
    [ "$(hash_of "$work/ranks/teacher.h5")" = "$expected" ]
    local fused=(model.path= fuse.foundation="$foundation" fuse.sft="$sft") # its members on one rank, and on two
    teacher fused "${fused[@]}"
    mapfile -t words < <(teacher_words spread "${fused[@]}" fuse.members_on=ranks)
    ranks 2 "$bin/moe-teacher" "${words[@]}"
    [ "$(hash_of "$work/spread/teacher.h5")" = "$(hash_of "$work/fused/teacher.h5")" ]
    [ "$(hash_of "$work/fused/teacher.h5")" != "$expected" ]
    run teacher alone "${fused[@]}" fuse.members_on=ranks
    [ "$status" -eq 2 ]
    [[ $output == *"no multiple of the 2 members"* ]]
}

@test "moe-teacher that is killed, and run again: only what is missing; the cache: made once, taken by every run" {
    teacher killed backend=ref threads=1 teacher.tile_tokens=64 &
    local pid=$! before
    for _ in $(seq 1000); do
        [ "$(parts killed)" -lt 3 ] || break
        kill -0 $pid
        sleep 0.005
    done
    pkill -KILL -P $pid || kill -KILL $pid
    wait $pid || true
    [ ! -e "$work/killed/teacher.h5" ]
    before=$(parts killed)
    [ "$before" -ge 3 ]
    run teacher killed backend=ref threads=1 teacher.tile_tokens=64
    [ "$status" -eq 0 ]
    [[ $output == *"parts of an earlier run were used"* ]]
    teacher whole backend=ref threads=1 teacher.tile_tokens=64
    [ "$(hash_of "$work/killed/teacher.h5")" = "$(hash_of "$work/whole/teacher.h5")" ]
    run teacher cached teacher.cache_dir="$work/cache"
    [[ $output == *"kept in the cache as"* ]]
    run teacher again teacher.cache_dir="$work/cache"
    [[ $output == *"from the cache: "*"no model was opened"* ]]
    [ "$(hash_of "$work/again/teacher.h5")" = "$expected" ]
    [ "$(field "$work/again/done.json" results from_cache)" = True ]
    [ "$(field "$work/again/results.json" rows)" -eq "$(field "$work/one/results.json" rows)" ]
    teacher other teacher.cache_dir="$work/cache" teacher.k=8
    [ "$(field "$work/other/done.json" results from_cache)" = False ]
}

@test "two students reuse one store; killed and run again, on 2 ranks: equal bits" {
    run stored first
    [ "$status" -eq 0 ]
    stored second training.temperature=1.5 training.distill_loss=jsd training.distill_loss_weight=0.9 training.task_loss_weight=0.1 training.peft_mode=lora \
        training.lora.r=4 training.lora.target_modules=all-linear
    [ -f "$work/second/final/adapter_model.safetensors" ]
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import sys, h5py, numpy as np
for name, w, t in (("first", 0.7, 0.3), ("second", 0.9, 0.1)):
    with h5py.File(f"{sys.argv[1]}/{name}/metrics.h5") as m:
        loss, distil, task = (m[k][:] for k in ("loss", "distil_loss", "task_loss"))
        trained = np.isfinite(loss)
        assert abs(loss - w * distil - t * task)[trained].max() < 1e-6 and (distil[trained] > 0).all()
        v = m["validation/distil_loss"][:]
        v = v[np.isfinite(v)]
        assert len(v) == 2 and v[1] < v[0], v
PYTHON
    stored slow backend=ref threads=1 training.epochs=5
    stored killed backend=ref threads=1 training.epochs=5 training.save_steps=1 &
    local pid=$!
    for _ in $(seq 2000); do
        [ ! -e "$work/killed/state/step_2" ] || break
        kill -0 $pid || break
        sleep 0.005
    done
    pkill -KILL -P $pid || kill -KILL $pid
    wait $pid || true
    [ ! -e "$work/killed/done.json" ]
    run stored killed backend=ref threads=1 training.epochs=5 training.save_steps=1
    [ "$status" -eq 0 ]
    [[ $output == *"resuming from"* ]]
    [ "$(hash_of "$work/killed/final/model.safetensors")" = "$(hash_of "$work/slow/final/model.safetensors")" ]
    [ "$(hash_of "$work/killed/metrics.h5")" = "$(hash_of "$work/slow/metrics.h5")" ]
    need_mpi
    local words
    mapfile -t words < <(student_words ranks teacher.store="$work/one/teacher.h5" teacher.validation_store="$work/held/teacher.h5" training.validation_path="$work/held.h5")
    ranks 2 "$bin/moe-train" "${words[@]}"
    [ "$(hash_of "$work/ranks/final/model.safetensors")" = "$(hash_of "$work/first/final/model.safetensors")" ]
    [ "$(hash_of "$work/ranks/metrics.h5")" = "$(hash_of "$work/first/metrics.h5")" ]
}

@test "a teacher that is asked while training: what the whole distribution from a file gives; an ensemble; trained routers; its memory is counted" {
    teacher exact teacher.k=384 teacher.dtype=f32
    student from_file teacher.store="$work/exact/teacher.h5"
    student online teacher.path="$sft" teacher.type=model training.validation_path="$work/held.h5"
    teacher fused_file model.path= fuse.foundation="$foundation" fuse.sft="$sft" fuse.sft_weight=0.75 teacher.k=384 teacher.dtype=f32
    student from_fused_file teacher.store="$work/fused_file/teacher.h5"
    student ensemble model.path= training.student_init=foundation fuse.foundation="$foundation" fuse.sft="$sft" fuse.sft_weight=0.75 teacher_type=ensemble
    local type
    for type in token_level layer_level; do # a trained router between the two
        "$bin/moe-train" training.objective=btm fuse.foundation="$foundation" fuse.sft="$sft" fuse.router_type=$type fuse.router_hidden=8 dataset.path="$work/train.h5" \
            training.max_steps=2 training.batch_size=4 training.gradient_accumulation_steps=2 training.learning_rate=1e-2 output.dir="$work/$type"
        teacher ${type}_file model.path="$work/$type/final" teacher.k=384 teacher.dtype=f32
        student from_$type teacher.store="$work/${type}_file/teacher.h5"
        student online_$type fuse.router="$work/$type/final" teacher_type=btm
    done
    run student refused_type teacher.path="$work/token_level/final" teacher_type=ensemble
    [ "$status" -eq 2 ]
    [[ $output == *"teacher.type = ensemble, and the teacher that the keys name is a btm"* ]]
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys, h5py, numpy as np
work = sys.argv[1]
def curve(name, term):
    with h5py.File(f"{work}/{name}/metrics.h5") as m:
        x = m[term][:]
        return x[np.isfinite(x)]
for a, b in (("from_file", "online"), ("from_fused_file", "ensemble"), ("from_token_level", "online_token_level"), ("from_layer_level", "online_layer_level")):
    for term in ("distil_loss", "task_loss", "grad_norm"):
        x, y = curve(a, term), curve(b, term)
        assert len(x) == len(y) == 5 and abs(x / y - 1).max() < 1e-4, (term, x, y)
assert abs(curve("online", "distil_loss") - curve("ensemble", "distil_loss")).min() > 1e-4
assert len(curve("online", "validation/distil_loss")) == 2
of = lambda name: json.load(open(f"{work}/{name}/done.json"))["results"]["memory_weights_forecast"]
assert of("ensemble") > of("online") > of("from_file"), (of("ensemble"), of("online"), of("from_file"))
PYTHON
}

@test "refused, saying what differs: temperature, shard, tokenizer, length, two teachers, none" {
    expect() { # expect TEXT key=value...
        run student refused "${@:2}"
        [ "$status" -ne 0 ]
        [[ $output == *"$1"* ]] || { echo "not said: $1" >&2; return 1; }
    }
    local store=teacher.store="$work/one/teacher.h5"
    expect "made for the temperatures 1, 1.5, 2, 3, and training.temperature = 2.5" "$store" training.temperature=2.5
    expect "is not a teacher of these data: it differs in shard (" "$store" dataset.path="$work/held.h5"
    "$bin/moe-shard" tokenizer dataset.inputs="a=$work/b.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok2" 2> /dev/null
    shard other a.jsonl tok2 2> /dev/null
    expect "it differs in tokenizer (" "$store" dataset.path="$work/other.h5"
    teacher short dataset.max_length=20 2> /dev/null
    expect "set dataset.max_length=20" teacher.store="$work/short/teacher.h5"
    expect "teacher.validation_store is missing" "$store" training.validation_path="$work/held.h5"
    expect "teacher.store and teacher.path both name the teacher" "$store" teacher.path="$sft"
    expect "the teacher is missing" training.temperature=2
    expect "teacher.* is for training.objective=distil" "$store" training.objective=sft
    "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok2" output.dir="$work/init2" 2> /dev/null
    expect "token" teacher.path="$work/init2/model"
    [ ! -e "$work/refused/final" ]
    run teacher refused_teacher teacher.temperatures=1,x
    [ "$status" -eq 2 ]
    [[ $output == *"'x' is no temperature"* ]]
}
