# common.bash: what the stage tests share: a folder of tiny models and records made once per file, and short names.
# shellcheck shell=bash

mb_setup() {
    cd "$BATS_TEST_DIRNAME/../.." || exit 1
    bin=${MB_BIN:-$PWD/build/bin}
    work=$BATS_FILE_TMPDIR
    export OMP_NUM_THREADS=1 MB_CHECK_LEAKS=1
    export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$PWD/tests/lsan.supp:print_suppressions=0} # of a SAN=1 build
}

# ranks N PROGRAM ...: on N ranks.
ranks() {
    local n=$1
    shift
    if [ "$n" -eq 1 ]; then "$@"; else
        local root=()
        [ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
        # What a sanitizer finds at the end of a rank are MPI's own blocks, in libraries already closed; MB_CHECK_LEAKS counts ours.
        ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0} mpirun "${root[@]}" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -np "$n" "$@"
    fi
}
need_mpi() { command -v mpirun > /dev/null || skip "mpirun is not installed"; }

hash_of() { "$bin/moe-inspect" file "$1" --hash; }

# Records of several sizes and kinds, cut from this project's own sources; two sources, some damaged.
make_records() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import glob, json, random, sys
work = sys.argv[1]
random.seed(1)
text = "".join(open(name, encoding="utf-8").read() for name in sorted(glob.glob("src/base/*.c") + glob.glob("src/text/*.h")))
pieces = [text[i:i + 120 + 13 * (i % 29)] for i in range(0, 90000, 300)]
for name, part in (("a", pieces[0::2]), ("b", pieces[1::2])):
    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as out, open(f"{work}/{name}.labels.jsonl", "w", encoding="utf-8") as labels:
        for i, piece in enumerate(part):
            kind = "good"
            if i % 3 == 0:
                piece, kind = "".join(random.sample(piece, len(piece))), "chars"
            out.write(json.dumps({"text": piece, "id": i}) + "\n")
            labels.write(json.dumps({"source": name, "index": i, "kind": kind}) + "\n")
PYTHON
    cat "$work/a.labels.jsonl" "$work/b.labels.jsonl" > "$work/labels.jsonl"
}

# Tokenizer, shard, a tiny OLMoE, its converted form.
make_models() {
    inputs="a=$work/a.jsonl,b=$work/b.jsonl"
    "$bin/moe-shard" tokenizer dataset.inputs="$inputs" tokenizer.vocab_size=384 output.dir="$work/tok"
    "$bin/moe-shard" build dataset.inputs="$inputs" dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/shard"
    make_selector_config
    "$bin/moe-convert" init convert.config="$work/config.json" tokenizer.path="$work/tok" output.dir="$work/init"
    "$bin/moe-convert" trash model.path="$work/init/model" output.dir="$work/convert"
}

# A tiny BERT, $work/bert, with a tokenizer of letters.
make_encoder() {
    mkdir -p "$work/bert"
    cp -r tests/golden/encoders/bert_mean/. "$work/bert"
    chmod -R u+w "$work/bert"
    "${MB_PYTHON:-python3}" - "$work/bert" <<'PYTHON'
import json, string, sys
vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + list(string.ascii_lowercase) + ["##" + c for c in string.ascii_lowercase])}
special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
           for t, i in vocab.items() if t.startswith("[")]
json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
           "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
           "pre_tokenizer": {"type": "BertPreTokenizer"},
           "post_processor": {"type": "TemplateProcessing",
                              "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                              "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                              "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
           "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
           "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab}},
          open(sys.argv[1] + "/tokenizer.json", "w"))
PYTHON
}

# Shapes of a tiny selector and a tiny target.
make_selector_config() {
    sed -e 's/"hidden_size": 128/"hidden_size": 32/; s/"intermediate_size": 256/"intermediate_size": 48/; s/"num_hidden_layers": 4/"num_hidden_layers": 2/; s/"vocab_size": 2048/"vocab_size": 384/' \
        conf/model/demo-selector.json > "$work/config.json"
}
make_target_config() {
    sed -e 's/"hidden_size": 128/"hidden_size": 32/; s/"head_dim": 32/"head_dim": 8/; s/"intermediate_size": 344/"intermediate_size": 48/; s/"num_hidden_layers": 4/"num_hidden_layers": 2/; s/"vocab_size": 2048/"vocab_size": 384/' \
        conf/model/demo-target.json > "$work/target.json"
}

# make_study NAME FILE: study A with tiny models over the records of make_records.
make_study() {
    make_selector_config
    make_target_config
    cat > "$2" <<CFG
study: { name = "$1"; script = "select-moe"; selector = ""; target = ""; tokenizer = ""; selector_config = "$work/config.json"; target_config = "$work/target.json"; labels = "$work/labels.jsonl"; };
dataset: { max_length = 96; };
tokenizer: { dataset: { inputs = "a=$work/a.jsonl,b=$work/b.jsonl"; }; tokenizer: { vocab_size = 384; }; };
shard-pretrain: { dataset: { inputs = "a=$work/a.jsonl"; }; };
shard-corpus: { dataset: { inputs = "a=$work/a.jsonl,b=$work/b.jsonl"; }; };
shard-heldout: { dataset: { inputs = "b=$work/b.jsonl"; }; };
pretrain: { training: { objective = "lm"; max_steps = 6; batch_size = 4; gradient_accumulation_steps = 4; learning_rate = 3e-3; }; };
warmup: { dataset: { subset_ratio = 0.5; }; training: { objective = "router_warmup"; max_steps = 4; batch_size = 4; gradient_accumulation_steps = 4; save = "delta"; }; };
select: { select: { selection_percentage = 0.2; }; };
pretrain-target: { training: { max_steps = 4; batch_size = 4; gradient_accumulation_steps = 4; }; };
finetune: { training: { peft_mode = "lora"; max_steps = 4; batch_size = 4; gradient_accumulation_steps = 4; learning_rate = 1e-3; lora: { r = 4; lora_alpha = 8; target_modules = "all-linear"; }; }; };
CFG
}

# Dialogs of two types and preference pairs, cut from this project's own sources: $work/{code,talk,pairs,prompts}.jsonl.
make_dialogs() {
    "${MB_PYTHON:-python3}" - "$work" <<'PYTHON'
import glob, json, random, re, sys
work = sys.argv[1]
random.seed(1)
code = "".join(open(name, encoding="utf-8").read() for name in sorted(glob.glob("src/base/*.c")))
talk = " ".join(re.findall(r"[A-Za-z ,.]+", "".join(open(name, encoding="utf-8").read() for name in sorted(glob.glob("docs/s*.md")))))
talk = " ".join(talk.split())
def write(name, rows):
    with open(f"{work}/{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
pieces = [code[i:i + 90 + i % 60] for i in range(0, 40000, 400)]
write("code", [{"instruction": "Go on", "input": p[:30], "output": p[30:]} for p in pieces[:70]])
words = [talk[i:i + 100 + i % 40] for i in range(0, 12000, 120)]
write("talk", [{"messages": [{"role": "user", "content": p[:30]}, {"role": "assistant", "content": p[30:60]}, {"role": "user", "content": "more"},
                             {"role": "assistant", "content": p[60:]}]} for p in words[:70]])
write("pairs", [{"prompt": p[:30], "chosen": p[30:90], "rejected": "".join(random.sample(p[30:90], len(p[30:90])))} for p in (pieces[70:100] + words[70:100])])
write("prompts", [{"instruction": "Go on", "input": p[:30], "type": "code"} for p in pieces[:2]] + [{"prompt": p[:30], "type": "talk"} for p in words[:2]])
write("text", [{"text": p} for p in pieces + words])
PYTHON
}

# make_upcycle_study NAME FILE: study B with tiny models over the records of make_dialogs.
make_upcycle_study() {
    make_target_config
    cat > "$2" <<CFG
study: { name = "$1"; script = "upcycle"; dense = ""; tokenizer = ""; dense_config = "$work/target.json"; prompts = "$work/prompts.jsonl"; };
dataset: { max_length = 224; template = "tulu"; };
tokenizer: { dataset: { inputs = "text=$work/text.jsonl"; }; tokenizer: { vocab_size = 384; }; };
shard-pretrain: { dataset: { inputs = "text=$work/text.jsonl"; }; };
pretrain: { training: { max_steps = 6; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; }; };
upcycle: { convert: { experts = 4; experts_per_token = 2; }; };
shard-sft: { dataset: { total = 80; validation = 8; shuffle = true; inputs = ( { name = "code"; path = "$work/code.jsonl"; type = "code"; weight = 0.6; },
    { name = "talk"; path = "$work/talk.jsonl"; type = "talk"; weight = 0.4; } ); }; };
sft: { training: { objective = "sft"; max_steps = 6; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 2e-3; balance_scope = "step"; load_balance = "switch"; validation_steps = 3; }; };
shard-pairs: { dataset: { validation = 16; shuffle = true; inputs = ( { name = "pairs"; path = "$work/pairs.jsonl"; type = "code"; } ); }; };
reference: { score: { cache_dir = "$work/cache"; }; };
dpo: { training: { max_steps = 4; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 1e-3; dpo: { beta = 0.1; }; }; };
eval: { eval: { routing = true; only_answers = true; routing_permutations = 9; }; };
generate: { generate: { max_new_tokens = 12; template = "tulu"; }; };
CFG
}

# make_fuse_study NAME FILE: study D with tiny models over the records of make_dialogs.
make_fuse_study() {
    make_target_config
    head -8 "$work/code.jsonl" > "$work/code.test.jsonl"
    head -8 "$work/talk.jsonl" > "$work/talk.test.jsonl"
    cat > "$2" <<CFG
study: { name = "$1"; script = "fuse"; foundation = ""; sft = ""; tokenizer = ""; config = "$work/target.json"; prompts = "$work/prompts.jsonl"; routers = "token,layer"; teacher = "btm-token"; };
dataset: { max_length = 128; template = "tulu"; };
tokenizer: { dataset: { inputs = "text=$work/text.jsonl"; }; tokenizer: { vocab_size = 384; }; };
shard-foundation: { dataset: { inputs = "text=$work/text.jsonl"; }; };
foundation: { training: { max_steps = 6; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; }; };
shard-sft: { dataset: { inputs = "code=$work/code.jsonl"; }; };
sft: { training: { objective = "sft"; max_steps = 6; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; }; };
shard-fuse: { dataset: { validation = 6; shuffle = true; inputs = ( { name = "code"; path = "$work/code.jsonl"; type = "code"; samples = 24; },
    { name = "talk"; path = "$work/talk.jsonl"; type = "talk"; samples = 24; } ); }; };
btm: { fuse: { router_hidden = 8; }; training: { max_steps = 4; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; validation_steps = 2; }; };
teacher: { teacher: { k = 16; temperatures = [ 1.0, 2.0 ]; cache_dir = "$work/cache"; }; };
distil: { training: { max_steps = 4; batch_size = 4; gradient_accumulation_steps = 2; learning_rate = 3e-3; temperature = 2.0; validation_steps = 2; }; };
eval: { eval: { template = "tulu"; max_new_tokens = 8; categories = "code=$work/code.test.jsonl,talk=$work/talk.test.jsonl"; }; };
generate: { generate: { max_new_tokens = 8; template = "tulu"; }; };
CFG
}

# make_array_study NAME: $work/arrays.sh and $work/arrays.cfg: a tokenizer and a shard for each of three lists of records, as two arrays of which
# the second waits for the first one by one, a shard of the whole, and a line of text at the end.
make_array_study() {
    cat > "$work/arrays.cfg" <<CFG
study: { name = "$1"; };
dataset: { max_length = 96; };
tok: { tokenizer: { vocab_size = 300; }; };
CFG
    cat > "$work/arrays.sh" <<SCRIPT
#!/usr/bin/env bash
. "$PWD/jobs/lib.sh"
mb_usage() { echo "arrays.sh"; }
mb_parse_args "\$@"
mb_open_study
inputs=("a=$work/a.jsonl" "b=$work/b.jsonl" "a=$work/a.jsonl,b=$work/b.jsonl")
for i in 0 1 2; do mb_stage tok-\$i moe-shard tokenizer tok dataset.inputs="\${inputs[i]}"; done
mb_array tok tok-0 tok-1 tok-2
for i in 0 1 2; do mb_stage shard-\$i moe-shard build shard tokenizer.path=@tok-\$i dataset.inputs="\${inputs[i]}"; done
mb_array shard shard-0 shard-1 shard-2
mb_stage whole moe-shard build shard tokenizer.path=@tok-1 dataset.inputs="\${inputs[2]}"
mb_script say printf 'all is there\n'
mb_run_study
SCRIPT
    chmod +x "$work/arrays.sh"
}
