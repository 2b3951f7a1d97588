# moe-infer: files of prompts in, answers out, in input order, on any number of ranks, and after a kill.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    make_models > /dev/null 2>&1
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
records = [json.loads(line) for name in "ab" for line in open(f"{work}/{name}.jsonl", encoding="utf-8")]
with open(f"{work}/prompts.jsonl", "w", encoding="utf-8") as out:
    for i, record in enumerate(records[:90]):
        prompt = record["text"][: 5 + 7 * (i % 11)]
        out.write(json.dumps(prompt if i % 9 == 4 else {"id": i, "prompt": prompt, "more": {"k": [i]}}) + "\n")
with open(f"{work}/bad.jsonl", "w", encoding="utf-8") as out:
    out.write('{"id": 0, "prompt": "int main"}\n{"id": 1, "prompt": \n\n{"id": 2, "other": "x"}\n')
    out.write(json.dumps({"id": 3, "prompt": "static " * 4000}) + '\n[1]\n{"id": 4, "text": "return"}\n')
PYTHON
}
setup() {
    load common.bash
    mb_setup
}

infer() { # infer NAME RANKS key=value...
    local name=$1 n=$2
    shift 2
    ranks "$n" "$bin/moe-infer" generate model.path="$work/init/model" dataset.path="$work/prompts.jsonl" generate.max_new_tokens=24 generate.temperature=1 generate.top_p=0.95 \
        output.dir="$work/$name" "$@"
}

@test "answers keep their records' fields and order, and say how they ended" {
    infer plain 1
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
given = [json.loads(line) for line in open(f"{work}/prompts.jsonl", encoding="utf-8")]
got = [json.loads(line) for line in open(f"{work}/plain/generated.jsonl", encoding="utf-8")]
assert len(got) == len(given)
for a, b in zip(given, got):
    for key, value in (a if isinstance(a, dict) else {"prompt": a}).items():
        assert b[key] == value
    assert b["finish_reason"] in ("stop", "length") and b["logprob"] < 0 and isinstance(b["generated_text"], str)
    assert b["tokens"] == 24 if b["finish_reason"] == "length" else b["tokens"] <= 24
assert len({b["generated_text"] for b in got}) > 80
PYTHON
    [ ! -e "$work/plain/parts" ]
    [ ! -e "$work/plain/generated.bad.jsonl" ]
    run infer plain 1
    [[ "$output" == *"nothing to do"* ]]
}

@test "the same answers on 1, 2 and 3 ranks, in other batches, and without kept keys" {
    need_mpi
    infer one 1
    for n in 2 3; do
        infer ranks$n $n
        cmp "$work/one/generated.jsonl" "$work/ranks$n/generated.jsonl"
    done
    infer small 1 generate.batch_sequences=3 generate.batch_tokens=400 generate.prefill_tokens=32
    cmp "$work/one/generated.jsonl" "$work/small/generated.jsonl"
    infer scratch 1 generate.cache=false dataset.limit=20
    cmp <(head -20 "$work/one/generated.jsonl") "$work/scratch/generated.jsonl"
    infer other 1 generate.seed=7
    ! cmp -s "$work/one/generated.jsonl" "$work/other/generated.jsonl"
}

@test "several answers to each prompt" {
    infer three 1 generate.num_return_sequences=3 dataset.limit=12
    [ "$(wc -l < "$work/three/generated.jsonl")" -eq 36 ]
    [ "$(grep -c '"sample":2' <(tr -d ' ' < "$work/three/generated.jsonl"))" -eq 12 ]
    infer single 1 dataset.limit=12
    cmp <(grep '"sample": *0' "$work/three/generated.jsonl" | sed 's/, *"sample": *0//') "$work/single/generated.jsonl"
}

@test "killed and run again: the answers of the uninterrupted run, with only the missing parts made" {
    infer whole 1 generate.max_new_tokens=60 generate.batch_sequences=4
    infer killed 1 generate.max_new_tokens=60 generate.batch_sequences=4 &
    pid=$!
    for _ in $(seq 800); do
        [ "$(ls "$work/killed/parts" 2> /dev/null | grep -c 'jsonl$')" -ge 5 ] && break
        sleep 0.01
    done
    pkill -KILL -P $pid 2> /dev/null || true
    kill -KILL $pid 2> /dev/null || true
    wait $pid || true
    [ ! -e "$work/killed/done.json" ]
    kept=$(ls "$work"/killed/parts/*.jsonl | head -1)
    touch -d '2001-01-01' "$kept"
    cp -p "$kept" "$work/kept"
    sed -i '1s/"generated_text": *"/&MARK/' "$kept"
    infer killed 1 generate.max_new_tokens=60 generate.batch_sequences=4
    [ "$(grep -c MARK "$work/killed/generated.jsonl")" -eq 1 ]
    cmp "$work/whole/generated.jsonl" <(sed 's/MARK//' "$work/killed/generated.jsonl")
}

@test "bad lines are located, left out and counted, or an error" {
    run "$bin/moe-infer" generate model.path="$work/init/model" dataset.path="$work/bad.jsonl" generate.max_new_tokens=4 output.dir="$work/bad"
    echo "$output"
    [ "$status" -eq 0 ]
    [ "$(wc -l < "$work/bad/generated.jsonl")" -eq 2 ]
    [ "$(wc -l < "$work/bad/generated.bad.jsonl")" -eq 4 ]
    [[ "$output" == *"line 2: "* ]]
    [[ "$output" == *"line 4: "* ]]
    [[ "$output" == *"line 5: the prompt has "*" tokens"* ]]
    grep -q '"left_out": *4' "$work/bad/done.json"
    run "$bin/moe-infer" generate model.path="$work/init/model" dataset.path="$work/bad.jsonl" dataset.on_bad=fail output.dir="$work/bad2"
    [ "$status" -eq 3 ]
    [[ "$output" == *"line 2"* ]]
}

@test "questions go through a chat template; without one they are refused" {
    printf '%s\n' '{"messages": [{"role": "user", "content": "Hi"}]}' '{"instruction": "Add", "input": "1 2"}' > "$work/chat.jsonl"
    run "$bin/moe-infer" generate model.path="$work/init/model" dataset.path="$work/chat.jsonl" output.dir="$work/chat"
    [ "$status" -eq 2 ]
    [[ "$output" == *"generate.template"* ]]
    "$bin/moe-infer" generate model.path="$work/init/model" dataset.path="$work/chat.jsonl" generate.template=chatml generate.max_new_tokens=5 output.dir="$work/chat"
    [ "$(wc -l < "$work/chat/generated.jsonl")" -eq 2 ]
    printf '%s\n' '"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"' > "$work/laid.jsonl"
    "$bin/moe-infer" generate model.path="$work/init/model" dataset.path="$work/laid.jsonl" generate.max_new_tokens=5 output.dir="$work/laid"
    text() { grep -o '"generated_text":.*"finish' "$1" | head -1; }
    [ "$(text "$work/chat/generated.jsonl")" = "$(text "$work/laid/generated.jsonl")" ]
}

@test "one prompt from the command line, and a stop string" {
    model=${MB_SHARED_DATA:-../shared/data}/models/stories260K
    [ -d "$model" ] || skip "stories260K is not there"
    text=$("$bin/moe-infer" generate model.path="$model/hf" prompt="Once upon a time" generate.max_new_tokens=60 2> "$work/log")
    [[ "$text" == ", there was a little girl named Lily."* ]]
    grep -q "60 tokens in" "$work/log"
    text=$("$bin/moe-infer" generate model.path="$model/hf" prompt="Once upon a time" generate.stop='["named Li", "nowhere"]' 2> "$work/log")
    [ "$text" = ", there was a little girl " ]
    run "$bin/moe-infer" generate model.path="$model/hf"
    [ "$status" -eq 2 ]
    "$bin/moe-infer" model.path="$model/hf" prompt="Once upon a time" generate.max_new_tokens=9 2> "$work/log" | cmp - <("$bin/moe-infer" generate model.path="$model/hf" \
        prompt="Once upon a time" generate.max_new_tokens=9 2> "$work/log2")
    run "$bin/moe-infer" model.path="$model/hf"
    [ "$status" -eq 2 ]
}
