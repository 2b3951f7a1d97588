#!/usr/bin/env python3
"""Make tests/golden/models: tiny random models in Hugging Face form, with what transformers computes from them.

    python tests/golden/make_models.py             write everything (transformers 4.57, peft)
    python tests/golden/make_models.py --check     compare the committed expectations with the installed transformers
    python tests/golden/make_models.py --folder F  print how far a folder's logits (F, a converted model) are from golden case NAME:
                                                   --case NAME

Each case folder: config.json, model.safetensors, expected.safetensors with
  ids [T] i32, offsets [S+1] i32, logits [T,V], hidden [T,D] (after the final norm), token_loss [N] (next token inside each segment),
  router_logits.<l> [T,E'], random.<l> [T,E'] (R), gradients: lm.<name> of the mean token loss (some tensors),
  all.<name> of mean token loss + sum over layers of <R, router logits> (every tensor).
rotary.json: a list of rope settings with the frequencies and the attention factor that transformers makes of them.
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")
LENGTHS = [7, 12, 5]
COMMON = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, vocab_size=80,
              max_position_embeddings=64, pad_token_id=None, bos_token_id=1, eos_token_id=2, torch_dtype="float32")
MOE = dict(intermediate_size=12, num_experts=6, num_experts_per_tok=2)
# Rope scaling: sequences beyond the original 16 positions; a base at which pairs fall on each side of every bound.
STRETCH = dict(COMMON, hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
               vocab_size=40, rope_theta=10.0)
LONG = [44, 9, 64]
CASE_LENGTHS = {"llama_linear": LONG, "llama_llama3": LONG, "llama_yarn": LONG}
CASES = {
    "llama_tied": (LlamaConfig, dict(COMMON, intermediate_size=48, tie_word_embeddings=True), 0),
    "llama_bias": (LlamaConfig, dict(COMMON, intermediate_size=24, attention_bias=True, head_dim=12, num_hidden_layers=3,
                                     rope_theta=500.0, rms_norm_eps=1e-5), 0),
    "olmoe_plain": (OlmoeConfig, dict(COMMON, **MOE), 0),
    "olmoe_clip": (OlmoeConfig, dict(COMMON, **MOE, clip_qkv=0.9, norm_topk_prob=True, attention_bias=True,
                                     tie_word_embeddings=True), 0),
    # Two of the six experts are zero: written as select_moe with two trash experts.
    "select_moe": (OlmoeConfig, dict(COMMON, **dict(MOE, num_experts=6, num_experts_per_tok=3), norm_topk_prob=True), 2),
    "llama_linear": (LlamaConfig, dict(STRETCH, rope_scaling={"type": "linear", "factor": 4.0}), 0),
    "llama_llama3": (LlamaConfig, dict(STRETCH, rope_scaling={
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0,
        "original_max_position_embeddings": 16}), 0),
    "llama_yarn": (LlamaConfig, dict(STRETCH, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}), 0),
}
LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
# (rope_theta, head width, max_position_embeddings, rope_scaling)
ROTARY = [
    (10000.0, 128, 2048, {"rope_type": "default"}),
    (10000.0, 128, 16384, {"rope_type": "linear", "factor": 8.0}),
    (10000.0, 64, 4096, {"rope_type": "dynamic", "factor": 2.0}),
    (500000.0, 128, 131072, LLAMA31),
    (500000.0, 64, 131072, dict(LLAMA31, factor=32.0)),
    (1000000.0, 128, 131072, YARN),
    (10000.0, 64, 2048, {"type": "yarn", "factor": 8.0}),
    (10000.0, 64, 163840, dict(YARN, factor=40.0, original_max_position_embeddings=4096, mscale=1.0,
                               mscale_all_dim=0.8, beta_fast=32.0, beta_slow=1.0)),
    (150000.0, 64, 131072, dict(YARN, factor=32.0, original_max_position_embeddings=4096, truncate=False)),
    (10000.0, 32, 8192, dict(YARN, original_max_position_embeddings=2048, attention_factor=1.5, beta_fast=16.0,
                             beta_slow=2.0)),
]


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("norm.weight") or "layernorm" in name:
                value.copy_(1 + 0.2 * noise)
            elif name.endswith("gate.weight"):
                value.copy_(0.5 * noise)
            else:
                value.copy_(0.15 * noise)


def zero_trash(model, trash):
    with torch.no_grad():
        for layer in model.model.layers if trash else []:
            for expert in layer.mlp.experts[-trash:]:
                for value in expert.parameters():
                    value.zero_()


def segments(ids, offsets):
    return [ids[offsets[i]:offsets[i + 1]].long()[None] for i in range(len(offsets) - 1)]


def run(model, ids, offsets, moe):
    """Concatenated outputs of the segments, each run by itself."""
    logits, hidden, losses, routers = [], [], [], []
    for segment in segments(ids, offsets):
        kwargs = dict(output_router_logits=True) if moe else {}
        out = model(segment, output_hidden_states=True, use_cache=False, **kwargs)
        logits.append(out.logits[0])
        hidden.append(out.hidden_states[-1][0])
        losses.append(torch.nn.functional.cross_entropy(out.logits[0, :-1], segment[0, 1:], reduction="none"))
        routers.append(out.router_logits if moe else [])
    per_layer = [torch.cat([r[i] for r in routers]) for i in range(len(routers[0]))]
    return torch.cat(logits), torch.cat(hidden), torch.cat(losses), per_layer


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def expectations(model, seed, moe, lengths):
    generator = torch.Generator().manual_seed(seed + 1000)
    offsets = torch.tensor([0] + lengths).cumsum(0)
    ids = torch.randint(3, model.config.vocab_size, (int(offsets[-1]),), generator=generator)
    logits, hidden, losses, routers = run(model, ids, offsets, moe)
    randoms = [torch.randn(r.shape, generator=generator) * 0.01 for r in routers]
    result = {"ids": ids.int(), "offsets": offsets.int(), "logits": logits, "hidden": hidden, "token_loss": losses}
    lm = losses.mean()
    for name, value in gradients(model, lm).items():
        if any(part in name for part in ("mlp.gate.weight", "norm", "q_proj", "o_proj", "embed")):
            result["lm." + name] = value
    for name, value in gradients(model, lm + sum((a * b).sum() for a, b in zip(routers, randoms))).items():
        result["all." + name] = value
    for i, (r, z) in enumerate(zip(routers, randoms)):
        result[f"router_logits.{i}"], result[f"random.{i}"] = r, z
    return {k: v.detach().contiguous().clone() for k, v in result.items()}


def is_trash_tensor(name, experts):
    return any(f".experts.{e}." in name for e in experts)


def write_case(name, seed):
    kind, fields, trash = CASES[name]
    folder = os.path.join(ROOT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config = kind(**fields, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomise(model, seed)
    zero_trash(model, trash)
    expected = expectations(model, seed, kind is OlmoeConfig, CASE_LENGTHS.get(name, LENGTHS))
    gone = range(config.num_experts - trash, config.num_experts) if trash else []
    weights = {k: v.contiguous().clone() for k, v in model.state_dict().items()
               if not is_trash_tensor(k, gone) and not (config.tie_word_embeddings and k == "lm_head.weight")}
    expected = {k: v for k, v in expected.items() if not is_trash_tensor(k, gone)}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    save_file(expected, os.path.join(folder, "expected.safetensors"))
    text = json.loads(config.to_json_string(use_diff=False))
    keep = set(json.loads(config.to_json_string())) | set(fields) | {"rms_norm_eps", "rope_theta", "hidden_act"}
    text = {k: v for k, v in text.items() if k in keep and not k.startswith("_") and k != "attn_implementation"}
    text["architectures"] = [type(model).__name__]
    if trash:
        text.update(model_type="select_moe", base_model_type="olmoe", num_trash_experts=trash, trash_logit_bias=0.0,
                    num_experts=config.num_experts - trash, architectures=["SelectMoeForCausalLM"])
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(text, file, indent=2, sort_keys=True)
        file.write("\n")


def write_adapter(case, seed, name, targets):
    """A PEFT adapter on a case, with random A and B, and the logits of both together."""
    from peft import LoraConfig, get_peft_model
    base = os.path.join(ROOT, case)
    folder = os.path.join(ROOT, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", torch_dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in sorted(model.named_parameters()):
            if "lora_" in key:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    model.save_pretrained(folder)
    path = os.path.join(folder, "adapter_config.json")
    with open(path) as file:
        text = json.load(file)
    text.update(base_model_name_or_path="../" + case, target_modules=sorted(text["target_modules"]))
    with open(path, "w") as file:
        json.dump(text, file, indent=2, sort_keys=True)
        file.write("\n")
    readme = os.path.join(folder, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    source = load_file(os.path.join(base, "expected.safetensors"))
    logits = run(model, source["ids"], source["offsets"], False)[0]
    save_file({"logits": logits.detach().contiguous()}, os.path.join(folder, "expected.safetensors"))


def write_rotary():
    cases = []
    for theta, width, positions, scaling in ROTARY:
        fields = dict(rope_theta=theta, head_dim=width, max_position_embeddings=positions)
        config = LlamaConfig(**fields, rope_scaling=dict(scaling))
        frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](config, "cpu")
        cases.append(dict(fields, rope_scaling=scaling, attention_factor=factor, frequencies=frequencies.tolist()))
    with open(os.path.join(ROOT, "rotary.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, sort_keys=True) for case in cases) + "\n]\n")


def difference(folder, expected, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", torch_dtype=torch.float32).eval()
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits = run(model, expected["ids"], expected["offsets"], False)[0]
    return float((logits - expected["logits"]).abs().max() / expected["logits"].abs().max())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--folder")
    parser.add_argument("--adapter")
    parser.add_argument("--case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.folder:
        expected = load_file(os.path.join(ROOT, arguments.case, "expected.safetensors"))
        if arguments.adapter:
            own = os.path.join(arguments.adapter, "expected.safetensors")
            if os.path.exists(own):
                expected["logits"] = load_file(own)["logits"]
        print(f"{arguments.folder}: {difference(arguments.folder, expected, arguments.adapter):.2e}")
    elif arguments.check:
        for name in CASES:
            if not CASES[name][2]:
                folder = os.path.join(ROOT, name)
                expected = load_file(os.path.join(folder, "expected.safetensors"))
                print(f"{name}: {difference(folder, expected):.2e}")
    else:
        os.makedirs(ROOT, exist_ok=True)
        for i, name in enumerate(CASES):
            write_case(name, 11 + i)
        write_rotary()
        write_adapter("llama_tied", 31, "llama_adapter", ["q_proj", "v_proj", "down_proj"])
        write_adapter("olmoe_plain", 32, "olmoe_adapter", ["gate", "o_proj", "up_proj", "down_proj"])


if __name__ == "__main__":
    main()
