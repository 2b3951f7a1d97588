# Real data sets (skipped where they are absent): shards hold exactly the rendered text, answers alone count in the loss.

setup() {
    load common.bash
    mb_setup
    data=${MB_SHARED_DATA:-../shared/data}
    [ -d "$data/datasets" ] || skip "$data/datasets is not there (MB_SHARED_DATA)"
}

# decoded NAME FILE FORM: shard FILE with the OLMoE tokenizer and compare every record's decoded tokens with the text rendered here.
decoded() {
    "$bin/moe-shard" build dataset.inputs="$1=$data/datasets/$2" dataset.form="$3" dataset.max_length=65536 dataset.append_eos=false tokenizer.path="$data/tokenizers/olmoe" \
        output.dir="$work/$1"
    "${MB_PYTHON:-python3}" - "$work/$1/shard.h5" "$data/datasets/$2" "$3" "$data/tokenizers/olmoe/tokenizer.json" <<'PYTHON'
import json, sys, unicodedata
import h5py
shard, path, form, tokenizer = sys.argv[1:]
# GPT-2's letters for bytes.
letters = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
table, extra = {chr(b): b for b in letters}, 0
for b in range(256):
    if b not in letters:
        table[chr(256 + extra)] = b
        extra += 1
spec = json.load(open(tokenizer, encoding="utf-8"))
pieces = {i: bytes(table[c] for c in t) for t, i in spec["model"]["vocab"].items() if all(c in table for c in t)}
pieces.update({a["id"]: a["content"].encode() for a in spec["added_tokens"]})
text = open(path, encoding="utf-8").read()
records = json.loads(text) if path.endswith(".json") else [json.loads(line) for line in text.splitlines() if line.strip()]

def answer(r):
    if form == "text": return r["text"]
    if form == "qa": return r["answer"]
    return r["output"]

def rendered(r):
    if form == "text": return r["text"]
    if form == "qa": return r["question"] + "\n" + r["answer"]
    return "\n".join(part for part in (r["instruction"], r.get("input", ""), r["output"]) if part)

with h5py.File(shard) as f:
    tokens, offsets, index = f["tokens"][:], f["offsets"][:], f["source_index"][:]
    mask = f["loss_mask"][:] if "loss_mask" in f else None
assert len(index) == len(records), (len(index), len(records))
for n, i in enumerate(index):
    ids = tokens[offsets[n] : offsets[n + 1]]
    wanted = unicodedata.normalize("NFC", rendered(records[i]))
    got = b"".join(pieces[t] for t in ids).decode("utf-8")
    assert got == wanted, (i, got[:200], wanted[:200])
    if mask is not None:
        learnt = b"".join(pieces[t] for t, m in zip(ids, mask[offsets[n] : offsets[n + 1]]) if m)
        assert learnt.decode("utf-8", "replace").strip() == unicodedata.normalize("NFC", answer(records[i])).strip(), i
print(len(index), "records equal")
PYTHON
}

@test "gsm8k: 7473 records, text and answer mask" { run decoded gsm8k gsm8k/train.jsonl qa; echo "$output"; [ "$status" -eq 0 ]; [[ "$output" == *"7473 records equal"* ]]; }
@test "alpaca: 500 records, text and answer mask" { run decoded alpaca alpaca/alpaca_en_first500.json alpaca; echo "$output"; [ "$status" -eq 0 ]; [[ "$output" == *"500 records equal"* ]]; }
@test "alpaca in Chinese: 1000 records" { run decoded alpaca_zh alpaca/alpaca_zh.json alpaca; echo "$output"; [ "$status" -eq 0 ]; [[ "$output" == *"1000 records equal"* ]]; }
@test "c4: 300 records" { run decoded c4 text/c4.jsonl text; echo "$output"; [ "$status" -eq 0 ]; [[ "$output" == *"300 records equal"* ]]; }

@test "preference pairs and tool chats become dialogs, none is lost" {
    "$bin/moe-shard" build dataset.inputs="dpo=$data/datasets/preference/dpo_en.json" tokenizer.path="$data/tokenizers/olmoe" output.dir="$work/dpo"
    run "$bin/moe-inspect" file "$work/dpo/shard.h5"
    [[ "$output" == *"token shard: 300 records"* ]]
    "$bin/moe-shard" build dataset.inputs="chat=$data/datasets/chat/glaive_toolcall_en.json" dataset.template=qwen2.5 tokenizer.path="$data/tokenizers/qwen3" output.dir="$work/chat"
    run "$bin/moe-inspect" file "$work/chat/shard.h5"
    [[ "$output" == *"token shard: 300 records"* ]]
}
