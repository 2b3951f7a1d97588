# moe-quantize: rounding to the nearest and GPTQ with figures before and after, an adapter merged first, the folder that other programs read, the
# same bytes on two ranks, refusals.

setup_file() {
    load common.bash
    mb_setup
    make_records
    make_target_config
    {
        "$bin/moe-shard" tokenizer dataset.inputs="a=$work/a.jsonl" tokenizer.vocab_size=384 output.dir="$work/tok"
        "$bin/moe-shard" build dataset.inputs="a=$work/a.jsonl" dataset.max_length=96 tokenizer.path="$work/tok" output.dir="$work/shard"
        "$bin/moe-convert" init convert.config="$work/target.json" tokenizer.path="$work/tok" output.dir="$work/init"
        "$bin/moe-train" model.path="$work/init/model" dataset.path="$work/shard/shard.h5" training.max_steps=150 training.batch_size=8 training.gradient_accumulation_steps=1 \
            training.learning_rate=3e-3 output.dir="$work/train"
        "$bin/moe-train" model.path="$work/train/final" dataset.path="$work/shard/shard.h5" training.peft_mode=lora training.lora.r=4 training.lora.lora_alpha=8 training.max_steps=10 \
            training.batch_size=4 training.gradient_accumulation_steps=1 training.learning_rate=3e-3 output.dir="$work/lora"
        for method in rtn gptq; do
            "$bin/moe-quantize" model.path="$work/train/final" quantize.method=$method $(data) quantize.group=32 output.dir="$work/$method"
        done
    } > "$work/setup.log" 2>&1 || { tail -20 "$work/setup.log" && false; }
}
setup() {
    load common.bash
    mb_setup
}

data() { echo "quantize.calibration=$work/shard/shard.h5 quantize.validation=$work/shard/shard.h5 quantize.samples=64"; }

check() { # check PYTHON: with load(path)
    "${MB_PYTHON:-python3}" - "$work" "$1" <<'PYTHON'
import json, struct, sys
work, code = sys.argv[1:]
load = lambda name: json.load(open(f"{work}/{name}"))
def header(name):
    with open(f"{work}/{name}", "rb") as f:
        return json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
exec(code)
PYTHON
}

@test "GPTQ keeps the perplexity better than rounding to the nearest; sizes are those of the files" {
    run check '
import os
rise = {}
for method in ("rtn", "gptq"):
    r = load(f"{method}/results.json")
    p = r["perplexity"]
    rise[method] = p["nll_after"] - p["nll_before"]
    assert r["method"] == method and r["matrices"] == 14 and abs(p["after"] / p["before"] - 1) < 0.1, r
    size = os.path.getsize(f"{work}/{method}/model/model.safetensors")
    assert r["bytes_after"] <= size < r["bytes_after"] + 20000 and r["bytes_after"] < r["bytes_before"]
print(rise)
assert rise["gptq"] < rise["rtn"] and rise["rtn"] > 0, rise
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "the folder is pack-quantized: int32 words, scales and shapes; the head and the embeddings are left alone" {
    run check '
config = load("gptq/model/config.json")["quantization_config"]
assert config["quant_method"] == "compressed-tensors" and config["format"] == "pack-quantized" and "lm_head" in config["ignore"]
tensors = header("gptq/model/model.safetensors")
name = "model.layers.0.mlp.gate_proj"
assert tensors[name + ".weight_packed"]["dtype"] == "I32" and tensors[name + ".weight_packed"]["shape"] == [48, 32 // 8]
assert tensors[name + ".weight_scale"]["shape"] == [48, 1] and tensors[name + ".weight_shape"]["shape"] == [2]
assert name + ".weight" not in tensors and "model.embed_tokens.weight" in tensors
assert sum(n.endswith("weight_packed") for n in tensors) == 14
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "other programs read it: evaluation, generation, a second look at its perplexity" {
    "$bin/moe-eval" model.path="$work/gptq/model" dataset.path="$work/shard/shard.h5" output.dir="$work/eval" > "$work/eval.log" 2>&1 || { cat "$work/eval.log"; false; }
    run "$bin/moe-infer" generate model.path="$work/gptq/model" prompt="static int" generate.max_new_tokens=6
    [ "$status" -eq 0 ] || { echo "$output"; false; }
    run check '
a, b = load("eval/results.json"), load("gptq/results.json")["perplexity"]["after"]
found = [v for v in json.dumps(a).replace(",", " ").replace("}", " ").split() if v.replace(".", "").isdigit() and abs(float(v) / b - 1) < 1e-4]
assert found, (a, b)
'
    [ "$status" -eq 0 ] || { echo "$output"; false; }
}

@test "an adapter is merged first: the bytes of merging by hand" {
    "$bin/moe-convert" merge model.path="$work/train/final" model.adapter="$work/lora/final" output.dir="$work/merged" > "$work/merge.log" 2>&1
    "$bin/moe-quantize" model.path="$work/train/final" model.adapter="$work/lora/final" $(data) quantize.group=32 output.dir="$work/own" > "$work/own.log" 2>&1
    "$bin/moe-quantize" model.path="$work/merged/model" $(data) quantize.group=32 output.dir="$work/by-hand" > "$work/hand.log" 2>&1
    cmp "$work/own/model/model.safetensors" "$work/by-hand/model/model.safetensors"
    ! cmp -s "$work/own/model/model.safetensors" "$work/gptq/model/model.safetensors"
}

@test "two ranks: the bytes of one; done is done" {
    need_mpi
    ranks 2 "$bin/moe-quantize" model.path="$work/train/final" $(data) quantize.group=32 output.dir="$work/two" > "$work/two.log" 2>&1 || { cat "$work/two.log"; false; }
    cmp "$work/two/model/model.safetensors" "$work/gptq/model/model.safetensors"
    run "$bin/moe-quantize" model.path="$work/train/final" $(data) quantize.group=32 output.dir="$work/gptq"
    [ "$status" -eq 0 ] && [[ $output == *"up to date"* ]]
}

@test "refused, naming what to do" {
    expect() { # expect CODE TEXT key=value...
        run "$bin/moe-quantize" "${@:3}" output.dir="$work/refused"
        [ "$status" -eq "$1" ] || { echo "$output"; return 1; }
        [[ $output == *"$2"* ]] || { echo "not said: $2 in $output" >&2; return 1; }
    }
    expect 2 "model.path is missing" quantize.method=rtn
    expect 2 "quantize.calibration" model.path="$work/train/final"
    expect 2 "quantize.group" model.path="$work/train/final" quantize.method=rtn quantize.group=48
    expect 2 "quantize.act_order" model.path="$work/train/final" quantize.method=rtn quantize.act_order=true
    expect 2 "$work/gptq/model" model.path="$work/gptq/model" quantize.method=rtn
    expect 2 "leave model.quantize and model.shard out" model.path="$work/train/final" quantize.method=rtn model.quantize=int8
    expect 3 "$work/none" model.path="$work/none" quantize.method=rtn
}
