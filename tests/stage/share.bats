# Work cut into shares (run.share=k/n), as the elements of a job array do it; --is-done; failure.json; who may still write; slurm.* keys.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    "$bin/moe-score" model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=256 output.dir="$work/one"
    "$bin/moe-embed" model.path="$work/init/model" dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" dataset.form=text embed.tile_tokens=256 embed.npy=true \
        embed.normalize=true output.dir="$work/one_embed"
}
setup() {
    load common.bash
    mb_setup
    expected=$(hash_of "$work/one/scores.h5")
}

score() { # score NAME key=value...
    local name=$1
    shift
    "$bin/moe-score" model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=256 \
        output.dir="$work/$name" "$@"
}
# The same so slowly that it can be met at work.
slow_score() { score "$1" backend=ref "${@:2}"; }
embed() { # embed NAME key=value...
    local name=$1
    shift
    "$bin/moe-embed" model.path="$work/init/model" dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" dataset.form=text embed.tile_tokens=256 embed.npy=true \
        embed.normalize=true output.dir="$work/$name" "$@"
}
parts() { find "$work/$1/scores.h5.parts" -name '*-*.h5' 2> /dev/null | wc -l; }
# What is in a folder, to see that nothing was changed.
state_of() { find "$work/$1" -printf '%P %s %T@\n' 2> /dev/null | sort; }
field() { "${MB_PYTHON:-python3}" -c 'import json, sys; v = json.load(open(sys.argv[1])); [v := v[k] for k in sys.argv[2:]]; print(v)' "$@"; }
# What --is-done says: "<exit code> <standard output>".
answer() {
    local code=0 text
    text=$("$@" --is-done 2> /dev/null) || code=$?
    printf '%s %s\n' "$code" "$text"
}
# Until a run has written some of its parts but not all; fails when it ends before.
wait_for_parts() { # wait_for_parts NAME PID
    for _ in $(seq 1000); do
        [ "$(parts "$1")" -lt 3 ] || return 0
        kill -0 "$2" || return 1
        sleep 0.01
    done
    return 1
}

@test "scoring in 2 and 3 shares, on any number of ranks each, and joined: the table of one run" {
    score two run.share=1/2
    [ -f "$work/two/done-1of2.json" ] && [ ! -e "$work/two/scores.h5" ] && [ ! -e "$work/two/done.json" ]
    local half
    half=$(parts two)
    [ "$half" -ge 5 ]
    score two run.share=0/2
    [ "$(parts two)" -gt "$half" ]
    run score two
    [ "$status" -eq 0 ]
    [[ $output == *"parts of an earlier run were used"* ]]
    [ "$(hash_of "$work/two/scores.h5")" = "$expected" ]
    [ ! -e "$work/two/scores.h5.parts" ]
    [ "$(field "$work/two/done-0of2.json" results parts)" -eq $(($(field "$work/two/done.json" results parts) - half)) ]
    need_mpi
    for k in 2 0 1; do
        ranks $((k + 1)) "$bin/moe-score" model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" \
            score.tile_tokens=256 output.dir="$work/three" run.share=$k/3
    done
    ranks 2 "$bin/moe-score" model.path="$work/convert/model" score.source_model="$work/init/model" dataset.path="$work/shard/shard.h5" score.tile_tokens=256 \
        output.dir="$work/three"
    [ "$(hash_of "$work/three/scores.h5")" = "$expected" ]
}

@test "embedding in 3 shares begun together, and joined: the vectors of one run, nothing left over" {
    local pids=() pid
    for k in 0 1 2; do
        embed shared run.share=$k/3 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    [ ! -e "$work/shared/embeddings.h5" ]
    embed shared
    [ "$(hash_of "$work/shared/embeddings.h5")" = "$(hash_of "$work/one_embed/embeddings.h5")" ]
    cmp "$work/shared/embeddings.npy" "$work/one_embed/embeddings.npy"
    [ -z "$(find "$work/shared" -name 'tokens*' -o -name '*.parts' -o -name '*.tmp.*' -o -name 'lease' -o -name 'lease-?of?')" ]
    [ "$(field "$work/shared/done.json" results records)" -eq "$(field "$work/one_embed/done.json" results records)" ]
}

@test "a share that was killed, and one that never began: the joining run does what is missing" {
    slow_score killed run.share=0/3 &
    local pid=$!
    wait_for_parts killed $pid
    pkill -KILL -P $pid || kill -KILL $pid
    wait $pid || true
    [ ! -e "$work/killed/done-0of3.json" ]
    local before
    before=$(parts killed)
    slow_score killed run.share=0/3
    [ "$(parts killed)" -gt "$before" ]
    slow_score killed run.share=1/3
    run slow_score killed
    [ "$status" -eq 0 ]
    slow_score ref_one
    [ "$(hash_of "$work/killed/scores.h5")" = "$(hash_of "$work/ref_one/scores.h5")" ]
    [ ! -e "$work/killed/done-2of3.json" ]
}

@test "the same share twice at once: one is told to wait; a share after the join does nothing" {
    slow_score twice run.share=0/2 &
    local pid=$!
    wait_for_parts twice $pid
    run slow_score twice run.share=0/2
    [ "$status" -eq 1 ]
    [[ $output == *"lease-0of2: held by process"* ]]
    [ ! -e "$work/twice/failure-0of2.json" ]
    slow_score twice run.share=1/2 # another share does not mind
    wait $pid
    slow_score twice
    local before hash
    before=$(stat -c '%Y %i' "$work/twice/done.json" "$work/twice/scores.h5")
    hash=$(hash_of "$work/twice/scores.h5")
    for share in 0/2 1/2 1/5; do
        run slow_score twice run.share=$share
        [ "$status" -eq 0 ]
        [[ $output == *"up to date"* ]]
    done
    [ "$(stat -c '%Y %i' "$work/twice/done.json" "$work/twice/scores.h5")" = "$before" ]
    [ "$(hash_of "$work/twice/scores.h5")" = "$hash" ]
    [ ! -e "$work/twice/scores.h5.parts" ]
}

@test "a share that comes late, after others did its part and joined: no harm, nothing left over" {
    slow_score late run.share=1/2 &
    local pid=$! code=0
    wait_for_parts late $pid
    pkill -STOP -P $pid || kill -STOP $pid
    slow_score late
    [ ! -e "$work/late/scores.h5.parts" ]
    local before
    before=$(stat -c '%Y %i' "$work/late/done.json" "$work/late/scores.h5")
    pkill -CONT -P $pid || kill -CONT $pid
    wait $pid || code=$?
    [ "$code" -eq 0 ]
    [ "$(stat -c '%Y %i' "$work/late/done.json" "$work/late/scores.h5")" = "$before" ]
    [ ! -e "$work/late/scores.h5.parts" ]
    [ "$(answer slow_score late)" = "0 done" ]
}

@test "shares of changed work move the earlier result aside once, and keep it" {
    score changed
    local pids=() pid
    for k in 0 1 2; do
        score changed score.seed=43 run.share=$k/3 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    [ "$(hash_of "$work/changed.1/scores.h5")" = "$expected" ]
    [ ! -e "$work/changed.2" ] && [ ! -e "$work/changed.1/lease" ]
    score changed score.seed=43
    [ "$(hash_of "$work/changed/scores.h5")" != "$expected" ]
    [ ! -e "$work/changed.2" ]
}

@test "run.share is refused where work is not cut, and when it is no k/n" {
    run "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" run.share=0/2 output.dir="$work/refused"
    [ "$status" -eq 2 ]
    [[ $output == *"run.share is for programs that can cut their work: moe-score, moe-embed and moe-teacher"* ]]
    for share in 2/2 1 -1/2 a/b; do
        run score refused run.share=$share
        [ "$status" -eq 2 ]
        [[ $output == *"run.share=$share: not k/n"* ]]
    done
    [ ! -e "$work/refused" ]
}

@test "--is-done: the answer and its reason, and nothing is touched" {
    [ "$(answer score nothing)" = "1 not done: no record" ]
    [[ "$(answer score nothing dataset.path="$work/none.h5")" == "1 not done: $work/none.h5: "* ]]
    [ ! -e "$work/nothing" ]
    local before share
    score asked run.share=0/2
    before=$(state_of asked)
    [ "$(answer score asked run.share=0/2)" = "0 done" ]
    [ "$(answer score asked run.share=1/2)" = "1 not done: no record" ]
    [ "$(answer score asked)" = "1 not done: no record" ]
    [ "$(state_of asked)" = "$before" ]
    score asked
    before=$(state_of asked)
    for share in '' 0/2 1/2 6/7; do [ "$(answer score asked run.share=$share)" = "0 done" ]; done
    [ "$(answer score asked score.seed=7)" = "1 not done: config: score.seed changed" ]
    [ "$(answer score asked model.path="$work/init/model")" = "1 not done: inputs: model changed" ]
    [ "$(state_of asked)" = "$before" ]
    printf '{"host": "elsewhere", "pid": 7, "start": "", "boot": "", "job": "12", "restart": ""}' > "$work/asked/lease"
    [ "$(answer score asked)" = "0 done" ]
    [ -f "$work/asked/lease" ]
    rm "$work/asked/lease"
    truncate -s -100 "$work/asked/scores.h5"
    [ "$(answer score asked)" = "1 not done: output scores.h5 is missing or damaged" ]
}

@test "--is-done of the other programs; wrong questions are refused" {
    local shard=("$bin/moe-shard" build dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/shard")
    [ "$(answer "$bin/moe-convert" trash model.path="$work/init/model" output.dir="$work/convert")" = "0 done" ]
    [ "$(answer "${shard[@]}" dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl")" = "0 done" ]
    [[ "$(answer "${shard[@]}" dataset.inputs="a=$work/none.jsonl")" == "1 not done: "*none.jsonl* ]]
    [ "$(answer "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" output.dir="$work/untrained")" = "1 not done: no record" ]
    [[ "$(answer "$bin/moe-eval" eval.tasks="mmlu=$work/no-such" model.path="$work/init/model" output.dir="$work/uneval")" == "1 not done: "* ]]
    [ "$(answer "$bin/moe-select" select scores.path="$work/one/scores.h5" output.dir="$work/unselected")" = "1 not done: no record" ]
    [ ! -e "$work/untrained" ] && [ ! -e "$work/uneval" ] && [ ! -e "$work/unselected" ]
    run score asked --is-done --dry-run
    [ "$status" -eq 2 ]
    run "$bin/moe-select" select --is-done scores.path="$work/one/scores.h5"
    [ "$status" -eq 2 ]
    [[ $output == *"give output.dir"* ]]
    run score asked --is-done score.tile_tokns=1
    [ "$status" -eq 2 ]
    run "$bin/moe-convert" verify --is-done model.path="$work/init/model" convert.target="$work/init/model" output.dir="$work/convert"
    [ "$status" -eq 2 ]
    [[ $output == *"moe-convert verify has no run folder"* ]]
    need_mpi
    [ "$(answer ranks 3 "$bin/moe-convert" trash model.path="$work/init/model" output.dir="$work/convert")" = "0 done" ]
    [[ "$(answer ranks 3 "$bin/moe-convert" trash model.path="$work/nowhere" output.dir="$work/convert" | head -1)" == "1 not done: $work/nowhere"* ]]
}

@test "a failed run says why in failure.json, until it begins again" {
    run score fails dataset.path="$work/nowhere.h5"
    [ "$status" -eq 3 ]
    [ "$(field "$work/fails/failure.json" code)" -eq 3 ]
    [[ "$(field "$work/fails/failure.json" message)" == *"nowhere.h5"* ]]
    [ "$(field "$work/fails/failure.json" rank)" -eq 0 ]
    [ "$(field "$work/fails/failure.json" host)" = "$(hostname)" ]
    SLURM_JOB_ID=903 SLURM_ARRAY_JOB_ID=900 SLURM_ARRAY_TASK_ID=3 run score fails dataset.path="$work/nowhere.h5" run.share=3/4
    [ "$(field "$work/fails/failure-3of4.json" job)" = 900_3 ]
    run score fails score.scores=lengthh
    [ "$status" -eq 2 ]
    [[ "$(field "$work/fails/failure.json" message)" == *"did you mean length"* ]]
    SLURM_JOB_ID=77 SLURM_RESTART_COUNT=2 SLURM_JOB_NODELIST='n[1-2]' score fails
    [ ! -e "$work/fails/failure.json" ] && [ ! -e "$work/fails/failure-3of4.json" ]
    [ "$(field "$work/fails/done.json" provenance restarts)" -eq 2 ]
    [ "$(field "$work/fails/done.json" provenance slurm SLURM_JOB_NODELIST)" = 'n[1-2]' ]
    [ "$(field "$work/fails/done.json" provenance threads)" -eq 1 ]
    run score neverbegun score.tile_tokns=1
    [ "$status" -eq 2 ] && [ ! -e "$work/neverbegun" ]
    run score fails dataset.path="$work/nowhere.h5" --is-done
    [ "$status" -eq 1 ] && [ ! -e "$work/fails/failure.json" ]
}

@test "of three ranks the one that failed is named" {
    need_mpi
    local root=()
    [ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
    cp -r "$work/convert/model" "$work/broken"
    truncate -s 4000 "$work/broken/model.safetensors"
    local words=(score.scores=good_mass dataset.path="$work/shard/shard.h5" output.dir="$work/rank2")
    run env ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}" mpirun "${root[@]}" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 \
        -np 2 "$bin/moe-score" model.path="$work/convert/model" "${words[@]}" : -np 1 "$bin/moe-score" model.path="$work/broken" "${words[@]}"
    [ "$status" -eq 3 ]
    [ "$(field "$work/rank2/failure.json" rank)" -eq 2 ]
    [[ "$(field "$work/rank2/failure.json" message)" == *"model.safetensors"* ]]
    [ ! -e "$work/rank2/lease" ]
}

@test "a run that was taken for gone and goes on later writes nothing over its successor's result" {
    slow_score fenced &
    local pid=$! code=0
    wait_for_parts fenced $pid
    pkill -STOP -P $pid || kill -STOP $pid
    rm "$work/fenced/lease" # as a job does whose scheduler says that the holder is gone
    slow_score fenced
    local before
    before=$(stat -c '%Y %i' "$work/fenced/done.json" "$work/fenced/scores.h5")
    pkill -CONT -P $pid || kill -CONT $pid
    wait $pid 2> "$work/fenced.err" || code=$?
    [ "$code" -eq 1 ]
    [ "$(stat -c '%Y %i' "$work/fenced/done.json" "$work/fenced/scores.h5")" = "$before" ]
    [ ! -e "$work/fenced/failure.json" ]
    slow_score fenced # up to date; tidies what the other left
    [ ! -e "$work/fenced/scores.h5.parts" ]
    [ "$(stat -c '%Y %i' "$work/fenced/done.json" "$work/fenced/scores.h5")" = "$before" ]
}

@test "slurm.* and study.* keys of a study file: taken by every program, without effect on what is done" {
    cat > "$work/study.cfg" <<CFG
study: { name = "x"; script = "select-moe"; anything = 1; };
slurm: { nodes = 2; time = "1:00:00"; extra = "--constraint=a100 --exclusive"; };
dataset: { path = "$work/shard/shard.h5"; };
score: { scores = "length,repeats"; slurm: { array = 8; throttle = 4; memory = "64G"; partition = "main"; cpus_per_task = 4; ntasks = 2; }; };
CFG
    "$bin/moe-score" "$work/study.cfg" stage=score model.path="$work/convert/model" output.dir="$work/study"
    [ "$(answer "$bin/moe-score" "$work/study.cfg" stage=score model.path="$work/convert/model" output.dir="$work/study" slurm.nodes=7 slurm.array=3)" = "0 done" ]
    [ "$("${MB_PYTHON:-python3}" -c 'import json, sys; print(sum("slurm" in k for k in json.load(open(sys.argv[1]))["config"]))' "$work/study/done.json")" -eq 0 ]
    run "$bin/moe-score" "$work/study.cfg" stage=score --print-config
    [ "$status" -eq 0 ]
    [[ $output != *slurm.* ]]
    [ "$("$bin/moe-config" get file="$work/study.cfg" key=slurm.nodes)" -eq 2 ]
    [ "$("$bin/moe-config" get file="$work/study.cfg" group=score key=slurm.array)" -eq 8 ]
    for program in train eval "shard build" "convert trash" "select select" embed "infer generate"; do
        # shellcheck disable=SC2086
        run "$bin"/moe-$program "$work/study.cfg" --print-config
        [ "$status" -eq 0 ] || { echo "$program: $output"; false; }
    done
    sed 's/throttle/throtle/' "$work/study.cfg" > "$work/typo.cfg"
    run "$bin/moe-score" "$work/typo.cfg" stage=score --print-config
    [ "$status" -eq 2 ]
    [[ $output == *"typo.cfg:4"*"did you mean slurm.throttle?"* ]]
    sed 's/nodes = 2/node = 2/' "$work/study.cfg" > "$work/typo.cfg"
    run "$bin/moe-train" "$work/typo.cfg" --print-config
    [ "$status" -eq 2 ]
    [[ $output == *"did you mean slurm.nodes?"* ]]
}
