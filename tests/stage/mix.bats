# Data mix and preference pairs through the program: exact numbers, the same bits on any number of ranks, held-back records, templates.

setup_file() {
    load common.bash
    mb_setup
    make_records > /dev/null
    "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl,b=$work/b.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok" > /dev/null 2>&1
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import json, sys
work = sys.argv[1]
with open(f"{work}/pairs.jsonl", "w") as out:
    for i in range(200):
        out.write("{broken\n" if i % 10 == 0 else json.dumps({"prompt": f"question {i}", "chosen": f"good {i} " * (i % 7 + 1), "rejected": "bad"}) + "\n")
with open(f"{work}/mix.cfg", "w") as out:
    out.write(f'''dataset: {{ total = 90; validation = 5; shuffle = true; max_length = 96;
    inputs = ( {{ name = "a"; path = "{work}/a.jsonl"; type = "code"; weight = 2; }}, {{ name = "b"; path = "{work}/b.jsonl"; type = "general"; weight = 1.0; }} ); }};
tokenizer: {{ path = "{work}/tok"; }};
''')
PYTHON
}
setup() {
    load common.bash
    mb_setup
}

mix_hashes() { hash_of "$work/$1/shard.h5" && hash_of "$work/$1/validation.h5"; }

@test "a mix has the asked shares, and says so" {
    run "$bin/moe-shard" build "$work/mix.cfg" output.dir="$work/mix1"
    echo "$output"
    [ "$status" -eq 0 ]
    [[ "$output" == *"the weights sum to 3"* ]]
    [[ "$output" == *66.67%* ]]
    "${MB_PYTHON:-python3}" - "$work/mix1" <<'PYTHON'
import collections, h5py, json, sys
folder = sys.argv[1]
shard, held = h5py.File(f"{folder}/shard.h5"), h5py.File(f"{folder}/validation.h5")
keys = lambda f: [(int(s), int(i)) for s, i in zip(f["source"][:], f["source_index"][:])]
assert collections.Counter(s for s, _ in keys(shard)) == {0: 60, 1: 30}, collections.Counter(s for s, _ in keys(shard))
assert collections.Counter(s for s, _ in keys(held)) == {0: 5, 1: 5}
assert len(set(keys(shard))) == 90 and not set(keys(shard)) & set(keys(held))
assert keys(shard) != sorted(keys(shard)) and keys(held) == sorted(keys(held))
record = json.load(open(f"{folder}/done.json"))
mix = json.loads(shard.attrs["mix"])
assert record["results"]["mix"] == mix and set(record["outputs"]) == {"shard.h5", "validation.h5"}
offsets, source = shard["offsets"][:], shard["source"][:]
for n, row in enumerate(mix["inputs"]):
    tokens = int(sum(offsets[i + 1] - offsets[i] for i in range(len(source)) if source[i] == n))
    assert row["tokens"] == tokens and abs(row["token_share"] - tokens / offsets[-1]) < 1e-12 and row["sample_share"] == row["samples"] / 90
PYTHON
}

@test "a mix does not depend on the number of ranks" {
    need_mpi
    for n in 2 3 4; do
        ranks $n "$bin/moe-shard" build "$work/mix.cfg" output.dir="$work/mix$n"
        [ "$(mix_hashes mix$n)" = "$(mix_hashes mix1)" ]
    done
}

@test "drawn pairs: broken ones are replaced, sides stay together, on any number of ranks" {
    need_mpi
    for n in 1 2 3 4; do
        ranks $n "$bin/moe-shard" build dataset.inputs="[{\"name\":\"p\",\"path\":\"$work/pairs.jsonl\",\"form\":\"pair\",\"samples\":150,\"validation\":20}]" dataset.template=chatml \
            dataset.shuffle=true tokenizer.path="$work/tok" output.dir="$work/pairs$n"
        [ "$(mix_hashes pairs$n)" = "$(mix_hashes pairs1)" ]
        cmp "$work/pairs$n/shard.h5.bad.jsonl" "$work/pairs1/shard.h5.bad.jsonl"
    done
    run "$bin/moe-inspect" file "$work/pairs1/shard.h5"
    echo "$output"
    [[ "$output" == *"300 records"* ]]
    run "$bin/moe-inspect" file "$work/pairs1/validation.h5"
    [[ "$output" == *"40 records"* ]]
}

@test "what is not held back any more leaves no file behind" {
    "$bin/moe-shard" build "$work/mix.cfg" output.dir="$work/again"
    [ -e "$work/again/validation.h5" ]
    "$bin/moe-shard" build "$work/mix.cfg" dataset.validation=0 output.dir="$work/again" run.force=true
    [ ! -e "$work/again/validation.h5" ]
}

@test "the tokenizer folder's own template is used by name, or refused" {
    cp -r "$work/tok" "$work/own"
    run "$bin/moe-shard" build "$work/mix.cfg" tokenizer.path="$work/own" dataset.template=auto output.dir="$work/own1"
    [ "$status" -eq 1 ] || [ "$status" -eq 2 ] || [ "$status" -eq 3 ]
    [[ "$output" == *"no chat template of its own"* ]]
    "${MB_PYTHON:-python3}" - "$work/own/tokenizer_config.json" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))
config["chat_template"] = "{{ messages }} of nobody"
json.dump(config, open(sys.argv[1], "w"))
PYTHON
    run "$bin/moe-shard" build "$work/mix.cfg" tokenizer.path="$work/own" dataset.template=auto output.dir="$work/own1"
    echo "$output"
    [[ "$output" == *"is none of those in"*"dataset.template"* ]]
    data=${MB_SHARED_DATA:-../shared/data}
    [ -d "$data/tokenizers/qwen3" ] || skip "$data/tokenizers is not there"
    printf '{"question": "two and two?", "answer": "four"}\n' > "$work/qa.jsonl"
    run "$bin/moe-shard" build dataset.inputs="q=$work/qa.jsonl" tokenizer.path="$data/tokenizers/qwen3" dataset.template=auto output.dir="$work/own2"
    [ "$status" -eq 0 ]
    [[ "$output" == *"chat template of the tokenizer: qwen3"* ]]
    "$bin/moe-shard" build dataset.inputs="q=$work/qa.jsonl" tokenizer.path="$data/tokenizers/qwen3" dataset.template=qwen3 output.dir="$work/own3"
    [ "$(hash_of "$work/own2/shard.h5")" = "$(hash_of "$work/own3/shard.h5")" ]
}

@test "real preference files: every record is a pair or is located" {
    data=${MB_SHARED_DATA:-../shared/data}
    [ -d "$data/datasets/preference" ] || skip "$data/datasets is not there (MB_SHARED_DATA)"
    for set in dpo_en.json:300 hh-harmless-a.jsonl:1156; do
        name=${set%%.*}
        "$bin/moe-shard" build dataset.inputs="[{\"name\":\"p\",\"path\":\"$data/datasets/preference/${set%:*}\",\"form\":\"pair\"}]" dataset.template=chatml dataset.max_length=65536 \
            tokenizer.path="$data/tokenizers/qwen3" output.dir="$work/$name"
        pairs=$(grep -o '"pairs": *[0-9]*' "$work/$name/done.json" | grep -o '[0-9]*$')
        bad=0
        [ ! -e "$work/$name/shard.h5.bad.jsonl" ] || bad=$(wc -l < "$work/$name/shard.h5.bad.jsonl")
        echo "$name: $pairs pairs, $bad bad"
        [ $((pairs + bad)) -eq "${set#*:}" ]
        [ "$bad" -le 6 ]
        "${MB_PYTHON:-python3}" - "$work/$name/shard.h5" <<'PYTHON'
import h5py, sys
with h5py.File(sys.argv[1]) as f:
    offsets, tokens, mask, index = f["offsets"][:], f["tokens"][:], f["loss_mask"][:], f["source_index"][:]
    assert f.attrs["pairs"] == 1
for p in range(0, len(index), 2):
    (a, ma), (b, mb) = [(tokens[offsets[i]:offsets[i + 1]], mask[offsets[i]:offsets[i + 1]]) for i in (p, p + 1)]
    first = int(ma.argmax())
    assert index[p] == index[p + 1] and first > 0 and first == mb.argmax() and (a[:first] == b[:first]).all() and ma[first:].all() and mb[first:].all(), p
PYTHON
    done
}

@test "real data of four types: shares by weight, every record of the files accounted for" {
    data=${MB_SHARED_DATA:-../shared/data}
    [ -d "$data/datasets" ] || skip "$data/datasets is not there (MB_SHARED_DATA)"
    d=$data/datasets
    cat > "$work/real.cfg" <<CFG
dataset: { total = 1000; validation = 0.1; template = "qwen2.5"; max_length = 512;
    inputs = ( { name = "gsm8k"; path = "$d/gsm8k/train.jsonl"; type = "reasoning"; weight = 0.4; }, { name = "alpaca"; path = "$d/alpaca/alpaca_zh.json"; type = "general"; weight = 0.3; },
               { name = "glaive"; path = "$d/chat/glaive_toolcall_en.json"; type = "conversation"; weight = 0.2; }, { name = "c4"; path = "$d/text/c4.jsonl"; type = "web"; weight = 0.1; } ); };
CFG
    "$bin/moe-shard" build "$work/real.cfg" tokenizer.path="$data/tokenizers/qwen3" output.dir="$work/real"
    "${MB_PYTHON:-python3}" - "$work/real" <<'PYTHON'
import h5py, json, sys
mix = json.loads(h5py.File(f"{sys.argv[1]}/shard.h5").attrs["mix"])
assert [row["samples"] for row in mix["inputs"]] == [400, 300, 200, 100], mix
assert [row["available"] for row in mix["inputs"]] == [7473, 1000, 300, 300] and all(row["left_out"] == 0 for row in mix["inputs"])
assert [row["validation_samples"] for row in mix["inputs"]] == [44, 33, 22, 11], mix
PYTHON
}
