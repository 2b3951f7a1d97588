# moe-infer of fused models: ensembles, routers and their shares, members on ranks of their own, and streaming.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_target_config
    inputs="a=$work/a.jsonl,b=$work/b.jsonl"
    {
        "$bin/moe-shard" tokenizer dataset.inputs="$inputs" tokenizer.vocab_size=384 output.dir="$work/tok"
        "$bin/moe-shard" build dataset.inputs="$inputs" dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/shard"
        for s in 1 2; do "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" convert.seed=$s output.dir="$work/m$s"; done
        for type in layer_level token_level; do
            "$bin/moe-train" training.objective=btm foundation_model="$work/m1/model" sft_model="$work/m2/model" router_type=$type fuse.router_hidden=16 \
                dataset.path="$work/shard/shard.h5" training.max_steps=6 training.batch_size=4 training.gradient_accumulation_steps=2 \
                training.learning_rate=3e-2 output.dir="$work/$type"
        done
    } > "$work/log" 2>&1 || { cat "$work/log" && return 1; }
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
records = [json.loads(line) for line in open(f"{work}/a.jsonl", encoding="utf-8")]
with open(f"{work}/prompts.jsonl", "w", encoding="utf-8") as out:
    for i, record in enumerate(records[:70]):
        out.write(json.dumps({"id": i, "kind": "ab"[i % 2], "prompt": record["text"][: 1 + 5 * (i % 11)]}) + "\n")
PYTHON
}
setup() {
    load common.bash
    mb_setup
    drawn=(generate.max_new_tokens=20 generate.temperature=1 generate.top_p=0.95)
    pair=(foundation_model="$work/m1/model" sft_model="$work/m2/model")
}

file() { # file NAME RANKS key=value...: answers to prompts.jsonl
    local name=$1 n=$2
    shift 2
    ranks "$n" "$bin/moe-infer" dataset.path="$work/prompts.jsonl" "${drawn[@]}" output.dir="$work/$name" "$@"
}
one() { "$bin/moe-infer" prompt="static int" "${drawn[@]}" "$@" 2> "$work/log"; }

@test "an ensemble of weights 1 and 0 answers as the one model, drawn and greedy, prompt and file" {
    for i in 1 2; do
        weights=(foundation_weight=$((2 - i)) sft_weight=$((i - 1)))
        one model.path="$work/m$i/model" > "$work/alone"
        one "${pair[@]}" "${weights[@]}" > "$work/ensemble"
        cmp "$work/alone" "$work/ensemble"
        one model.path="$work/m$i/model" generate.temperature=0 | cmp - <(one ensemble "${pair[@]}" "${weights[@]}" generate.temperature=0)
        file alone$i 1 model.path="$work/m$i/model"
        file ensemble$i 1 "${pair[@]}" "${weights[@]}"
        cmp "$work/alone$i/generated.jsonl" "$work/ensemble$i/generated.jsonl"
    done
    ! cmp -s "$work/alone1/generated.jsonl" "$work/alone2/generated.jsonl"
    file mixed 1 mode=ensemble "${pair[@]}"
    ! cmp -s "$work/alone1/generated.jsonl" "$work/mixed/generated.jsonl"
    ! cmp -s "$work/alone2/generated.jsonl" "$work/mixed/generated.jsonl"
    run file mixed 1 mode=ensemble "${pair[@]}"
    [[ "$output" == *"nothing to do"* ]]
}

@test "members on ranks of their own: the answers of one rank, in one group and in two" {
    need_mpi
    file here 1 "${pair[@]}" foundation_weight=0.3 sft_weight=0.7
    for n in 2 4; do
        run file apart$n $n "${pair[@]}" foundation_weight=0.3 sft_weight=0.7 fuse.members_on=ranks
        echo "$output"
        [ "$status" -eq 0 ]
        [[ "$output" == *"2 members on ranks of their own: "*" s"* ]]
        cmp "$work/here/generated.jsonl" "$work/apart$n/generated.jsonl"
    done
    file every 2 "${pair[@]}" foundation_weight=0.3 sft_weight=0.7
    cmp "$work/here/generated.jsonl" "$work/every/generated.jsonl"
    one "${pair[@]}" generate.num_return_sequences=2 > "$work/alone"
    ranks 2 "$bin/moe-infer" prompt="static int" "${drawn[@]}" "${pair[@]}" generate.num_return_sequences=2 fuse.members_on=ranks 2> /dev/null | cmp - "$work/alone"
    run ranks 3 "$bin/moe-infer" prompt=x "${pair[@]}" fuse.members_on=ranks
    [ "$status" -eq 2 ]
    [[ "$output" == *"multiple of 2 ranks"* ]]
}

@test "a bad record stops every rank of a group, and a bad line is left out" {
    need_mpi
    printf '%s\n' '{"prompt": "int"}' '{"prompt": ' '{"prompt": "return"}' > "$work/bad.jsonl"
    run ranks 2 timeout 60 "$bin/moe-infer" dataset.path="$work/bad.jsonl" "${pair[@]}" fuse.members_on=ranks dataset.on_bad=fail output.dir="$work/bad"
    [ "$status" -eq 3 ]
    [[ "$output" == *"line 2"* ]]
    ranks 2 "$bin/moe-infer" dataset.path="$work/bad.jsonl" "${pair[@]}" fuse.members_on=ranks generate.max_new_tokens=3 output.dir="$work/bad2"
    [ "$(wc -l < "$work/bad2/generated.jsonl")" -eq 2 ]
}

@test "a signal to one rank of a group stops both, and a later run goes on" {
    need_mpi
    for _ in $(seq 8); do cat "$work/prompts.jsonl"; done > "$work/many.jsonl"
    many=(dataset.path="$work/many.jsonl" "${pair[@]}" generate.ignore_eos=true generate.max_new_tokens=60 output.dir="$work/signal")
    for rank in 1 2; do
        ranks 2 "$bin/moe-infer" "${many[@]}" fuse.members_on=ranks generate.batch_sequences=2 &
        pid=$!
        for _ in $(seq 800); do
            [ "$(ls "$work/signal/parts" 2> /dev/null | grep -c '[0-9].jsonl$')" -ge $((2 * rank)) ] && break
            sleep 0.01
        done
        started=$(pgrep -P "$(pgrep -P $pid -x mpirun || echo $pid)" | sed -n ${rank}p)
        kill -TERM "$started"
        code=0
        wait $pid || code=$?
        [ "$code" -eq 75 ]
        [ ! -e "$work/signal/done.json" ]
    done
    "$bin/moe-infer" "${many[@]}"
    [ "$(wc -l < "$work/signal/generated.jsonl")" -eq 560 ]
}

@test "shares of the members sum to one, and are what the routers' logits give" {
    for type in layer_level token_level; do
        file shares_$type 1 btm router="$work/$type/final" router_stats_tokens=true generate.num_return_sequences=2 dataset.limit=12 generate.prefill_tokens=8
        run file shares_$type 1 btm router="$work/$type/final" router_stats_tokens=true generate.num_return_sequences=2 dataset.limit=12 generate.prefill_tokens=8
        [[ "$output" == *"nothing to do"* ]]
        "${MB_PYTHON:-python3}" - "$work/shares_$type" <<'PYTHON'
import h5py, json, sys
with h5py.File(sys.argv[1] + "/router_stats.h5", "r") as f, open(sys.argv[1] + "/tokens.json", "w") as out:
    offsets = f["tokens/offsets"][...]
    json.dump([[int(i) for i in f["tokens/ids"][a:b]] for a, b in zip(offsets, offsets[1:])], out)
PYTHON
        "$bin/moe-inspect" forward model.path="$work/$type/final" tokens="$work/shares_$type/tokens.json" out="$work/shares_$type/forward.h5"
        "${MB_PYTHON:-python3}" - "$work/shares_$type" "$type" <<'PYTHON'
import h5py, json, numpy, sys
folder, kind = sys.argv[1:]
lines = [json.loads(line) for line in open(folder + "/generated.jsonl", encoding="utf-8")]
with h5py.File(folder + "/router_stats.h5", "r") as f, h5py.File(folder + "/forward.h5", "r") as forward:
    assert f.attrs["format"] == b"moebatch-router-stats" or f.attrs["format"] == "moebatch-router-stats"
    stages, members = f["answer"].shape[1:]
    assert [n.decode() for n in f["members"][...]] == ["foundation", "sft"] and len(f["stages"]) == stages == (4 if kind == "layer_level" else 1)
    assert len(lines) == len(f["record"]) == 24
    text, ends, offsets = bytes(f["tokens/text"][...]), f["tokens/end"][...], f["tokens/offsets"][...]
    seen = 0
    for i, line in enumerate(lines):
        logits = forward[f"seq_{i:05d}/router_logits"][...].astype(float)
        share = numpy.exp(logits - logits.max(axis=2, keepdims=True))
        share = (share / share.sum(axis=2, keepdims=True)).transpose(1, 0, 2)
        n, k = int(f["prompt_rows"][i]) + 1, int(f["answer_rows"][i])
        assert f["record"][i] == line["id"] and f["sample"][i] == line["sample"] and k == line["tokens"]
        assert share.shape[0] == n + k == offsets[i + 1] - offsets[i]
        tokens = f["tokens/share"][offsets[i]:offsets[i + 1]]
        assert numpy.isnan(tokens[0]).all() and numpy.abs(tokens[1:] - share[:-1]).max() < 1e-5
        answer = f["answer"][i]
        assert numpy.abs(answer - share[n - 1:-1].mean(axis=0)).max() < 1e-5 and numpy.abs(answer.sum(axis=1) - 1).max() < 1e-12
        if n > 1:
            assert numpy.abs(f["prompt"][i] - share[:n - 1].mean(axis=0)).max() < 1e-5
        else:
            assert numpy.isnan(f["prompt"][i]).all()
            seen += 1
        means = answer.mean(axis=0)
        assert abs(line["router_share"]["foundation"] - means[0]) < 1e-12 and abs(line["router_share"]["sft"] - means[1]) < 1e-12
        first = ends[offsets[i] - 1] if i > 0 else 0
        whole = text[first:ends[offsets[i + 1] - 1]].decode()
        assert whole == line["prompt"] + line["generated_text"], (whole, line)
    assert seen > 0 and numpy.ptp(f["answer"][:, :, 0]) > 0.01
PYTHON
    done
}

@test "shares are the same on two ranks, with members apart, from scratch, and after a kill" {
    need_mpi
    stats=(btm router="$work/layer_level/final" show_router_stats=true)
    file shares 1 "${stats[@]}"
    expected=$(hash_of "$work/shares/router_stats.h5")
    same() {
        [ "$(hash_of "$work/$1/router_stats.h5")" = "$expected" ]
        cmp "$work/shares/generated.jsonl" "$work/$1/generated.jsonl"
    }
    file shares_two 2 "${stats[@]}"
    same shares_two
    file shares_apart 2 "${stats[@]}" fuse.members_on=ranks
    same shares_apart
    file shares_scratch 1 "${stats[@]}" generate.cache=false generate.batch_sequences=7
    same shares_scratch
    file shares_killed 1 "${stats[@]}" generate.batch_sequences=2 &
    pid=$!
    for _ in $(seq 800); do
        [ "$(ls "$work/shares_killed/parts" 2> /dev/null | grep -c '[0-9].jsonl$')" -ge 5 ] && break
        sleep 0.01
    done
    pkill -KILL -P $pid 2> /dev/null || true
    kill -KILL $pid 2> /dev/null || true
    wait $pid || true
    [ ! -e "$work/shares_killed/done.json" ]
    kept=$(ls "$work"/shares_killed/parts/*.stats.h5 | head -1)
    before=$(stat -c %Y.%i "$kept")
    ln "$kept" "$work/kept.h5"
    file shares_killed 1 "${stats[@]}" generate.batch_sequences=2
    [ "$(stat -c %Y.%i "$work/kept.h5")" = "$before" ]
    same shares_killed
    [ ! -e "$work/shares_killed/parts" ]
}

@test "one prompt: the text streams to standard output alone, and is what the file gets; the shares go to the log" {
    printf '%s\n' '{"prompt": "static int"}' > "$work/single.jsonl"
    for how in generate.seed=42 'generate.stop=["e", "zzz"]' generate.temperature=0; do
        rm -rf "$work/single"
        "$bin/moe-infer" dataset.path="$work/single.jsonl" "${drawn[@]}" "${pair[@]}" "$how" generate.max_new_tokens=150 output.dir="$work/single"
        one "${pair[@]}" "$how" generate.max_new_tokens=150 > "$work/streamed" || cat "$work/log"
        "${MB_PYTHON:-python3}" -c '
import json, sys
assert open(sys.argv[1], encoding="utf-8", newline="").read() == json.loads(open(sys.argv[2], encoding="utf-8").readline())["generated_text"] + "\n"' \
            "$work/streamed" "$work/single/generated.jsonl"
    done
    one btm router="$work/layer_level/final" > "$work/plain"
    one btm router="$work/layer_level/final" show_router_stats=true router_stats_tokens=true | cmp - "$work/plain"
    grep -q "layer 1 .*|" "$work/log"
    grep -q "mean .*|" "$work/log"
    grep -q "1 prompt " "$work/log"
}

@test "text comes token by token, not at the end" {
    "${MB_PYTHON:-python3}" - "$bin/moe-infer" "$work/m1/model" <<'PYTHON'
import socket, subprocess, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # every write is a message of its own
run = subprocess.Popen([sys.argv[1], "model.path=" + sys.argv[2], "prompt=int main", "generate.max_new_tokens=80", "generate.temperature=1", "generate.ignore_eos=true"],
                       stdout=theirs, stderr=subprocess.DEVNULL)
theirs.close()
pieces = []
while piece := ours.recv(65536):
    pieces.append(piece.decode("utf-8"))  # no half characters
assert run.wait() == 0 and len(pieces) > 40 and pieces[-1] == "\n", pieces
PYTHON
}

@test "modes that contradict the keys are refused" {
    refuse() { # refuse WORDS... -- PART
        run "$bin/moe-infer" prompt=x "${@:1:$#-1}"
        echo "$output"
        [ "$status" -eq 2 ]
        [[ "$output" == *"${!#}"* ]]
    }
    refuse generate "${pair[@]}" "members are given (ensemble)"
    refuse btm "${pair[@]}" "router=<folder"
    refuse ensemble router="$work/layer_level/final" "a router is given"
    refuse ensemble model.path="$work/m1/model" "foundation_model="
    refuse ensemble model.path="$work/layer_level/final" "mode btm"
    refuse router="$work/m1/model" "fuse.json"
    refuse model.path="$work/m1/model" "${pair[@]}" "model.path"
    refuse "${pair[@]}" show_router_stats=true "no router"
    refuse model.path="$work/m1/model" show_router_stats=true "members of a fused model"
    one btm model.path="$work/token_level/final" | cmp - <(one router="$work/token_level/final")
}
