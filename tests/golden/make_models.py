#!/usr/bin/env python3
"""Make tests/golden/models: tiny random models in Hugging Face form, with what transformers computes from them.

    python tests/golden/make_models.py             write everything (transformers 4.57, peft)
    PYTHONPATH=<folder of transformers 5> python tests/golden/make_models.py --five
                                                   write the <case>_five folders: the same models as 5.x spells and saves them, with
                                                   its logits; ends with an error when its logits or gradients are not those of 4.x
    python tests/golden/make_models.py --check     compare the committed expectations with the installed transformers
    python tests/golden/make_models.py --folder F  print how far a folder's logits (F, a converted model) are from golden case NAME:
                                                   --case NAME

Each case folder: config.json, model.safetensors, expected.safetensors with
  ids [T] i32, offsets [S+1] i32, logits [T,V], hidden [T,D] (after the final norm), token_loss [N] (next token inside each segment),
  router_logits.<l> [T,E'], random.<l> [T,E'] (R), gradients: lm.<name> of the mean token loss (some tensors),
  all.<name> of mean token loss + sum over layers of <R, router logits> (every tensor);
  bf16.<any of these> [1]: how far transformers itself is off in bf16, |bf16 - f32| / |f32| over the tensor.
rotary.json: a list of rope settings with the frequencies and the attention factor that transformers makes of them.
"""
import argparse
import copy
import json
import os
import shutil
import types

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig, OlmoeConfig, Qwen2Config, Qwen3Config,
                          Qwen3MoeConfig)
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
EDGE = [5, 6, 1, 13]  # at and over the edge of a window of 5, and alone
CASE_LENGTHS = {"llama_linear": LONG, "llama_llama3": LONG, "llama_yarn": LONG, "llama_dynamic": [44, 9, 16, 17], "llama_longrope": LONG,
                "mistral": EDGE, "qwen2": EDGE, "qwen3": EDGE, "mixtral": EDGE, "qwen3_moe": EDGE, "select_mixtral": [6, 1, 9],
                "select_qwen3_moe": [6, 1, 9]}
SMALL = dict(num_hidden_layers=2, vocab_size=40, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, torch_dtype="float32")
MIXTRAL = dict(SMALL, hidden_size=16, intermediate_size=7, num_attention_heads=4, num_key_value_heads=1, head_dim=6,
               num_local_experts=6, num_experts_per_tok=2)
QWEN3_MOE = dict(SMALL, hidden_size=20, intermediate_size=11, moe_intermediate_size=6, num_attention_heads=3, num_key_value_heads=3,
                 head_dim=4, num_experts=7, num_experts_per_tok=3)
IDLE = {"mixtral", "qwen3_moe"}  # some expert of theirs must have no token
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
    "llama_dynamic": (LlamaConfig, dict(STRETCH, max_position_embeddings=16, rope_scaling={"rope_type": "dynamic", "factor": 4.0}), 0),
    "llama_longrope": (LlamaConfig, dict(STRETCH, original_max_position_embeddings=16, rope_scaling={
        "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.3, 1.5, 1.5],
        "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0]}), 0),
    "mistral": (MistralConfig, dict(SMALL, hidden_size=20, intermediate_size=13, num_attention_heads=4, num_key_value_heads=2,
                                    head_dim=6, sliding_window=5), 0),
    "qwen2": (Qwen2Config, dict(SMALL, num_hidden_layers=3, hidden_size=18, intermediate_size=11, num_attention_heads=3,
                                num_key_value_heads=1, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5,
                                max_window_layers=1, rope_theta=1000.0), 0),
    "qwen3": (Qwen3Config, dict(SMALL, hidden_size=20, intermediate_size=13, num_attention_heads=3, num_key_value_heads=1, head_dim=8,
                                attention_bias=True, use_sliding_window=True, sliding_window=5,
                                layer_types=["sliding_attention", "full_attention"]), 0),
    "mixtral": (MixtralConfig, dict(MIXTRAL, sliding_window=5), 0),
    "qwen3_moe": (Qwen3MoeConfig, dict(QWEN3_MOE, num_hidden_layers=5, decoder_sparse_step=2, mlp_only_layers=[3], norm_topk_prob=True,
                                       tie_word_embeddings=True), 0),
    "select_mixtral": (MixtralConfig, dict(MIXTRAL), 2),
    "select_qwen3_moe": (Qwen3MoeConfig, dict(QWEN3_MOE, num_hidden_layers=3, mlp_only_layers=[1]), 3),
    # Routers that pick by probability + bias (BIASED): written as select_moe, without trash and with.
    "biased_mixtral": (MixtralConfig, dict(MIXTRAL), 0),
    "biased_qwen3_moe": (Qwen3MoeConfig, dict(QWEN3_MOE, num_hidden_layers=3, mlp_only_layers=[1]), 2),
}
BIASED = {"biased_mixtral": 0.3, "biased_qwen3_moe": 0.2}  # standard deviation of the bias
FIVE = ["llama_tied", "llama_yarn", "llama_longrope", "olmoe_plain", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"]
EAGER = dict(attn_implementation="eager", **({} if transformers.__version__.startswith("4.") else {"experts_implementation": "eager"}))
MOE_KINDS = (OlmoeConfig, MixtralConfig, Qwen3MoeConfig)
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
# (rope_theta, head width, max_position_embeddings, original_max_position_embeddings, rope_scaling, length of the sequence)
SHORT, FAR = [1.0 + 0.05 * i for i in range(16)], [1.0 + 0.5 * i for i in range(16)]
ROTARY_LONG = [
    (10000.0, 64, 4096, None, {"rope_type": "dynamic", "factor": 2.0}, 4096),
    (10000.0, 64, 4096, None, {"rope_type": "dynamic", "factor": 2.0}, 4097),
    (500000.0, 32, 2048, None, {"rope_type": "dynamic", "factor": 4.0}, 8000),
    (10000.0, 32, 131072, 4096, {"rope_type": "longrope", "short_factor": SHORT, "long_factor": FAR}, 4096),
    (10000.0, 32, 131072, 4096, {"rope_type": "longrope", "short_factor": SHORT, "long_factor": FAR}, 4097),
    (10000.0, 32, 8192, 4096, {"type": "longrope", "short_factor": SHORT, "long_factor": FAR, "attention_factor": 1.25}, 8192),
    (10000.0, 32, 8192, None, {"rope_type": "longrope", "short_factor": SHORT, "long_factor": FAR, "factor": 4.0}, 8192),
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


def moe_of(layer):
    """The mixture of experts of a layer, None when it is dense."""
    moe = getattr(layer, "block_sparse_moe", None) or layer.mlp
    return moe if hasattr(moe, "experts") else None


def zero_trash(model, trash):
    with torch.no_grad():
        for layer in model.model.layers if trash else []:
            for expert in moe_of(layer).experts[-trash:] if moe_of(layer) else []:
                for value in expert.parameters():
                    value.zero_()


def pick_by_bias(block, bias, picks, normalises):
    """A mixture of 4.x that picks by probability + bias and weighs by probability: the definition, one token after the other."""
    def forward(self, hidden_states):
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = self.gate(rows)
        results = []
        for row, probability in zip(rows, logits.float().softmax(-1)):
            numbers = sorted(range(len(bias)), key=lambda e: -float(probability[e].detach() + bias[e]))[:picks]
            total = sum(probability[e] for e in numbers) if normalises else 1
            results.append(sum((probability[e] / total).to(row.dtype) * self.experts[e](row) for e in numbers))
        return torch.stack(results).reshape(hidden_states.shape), logits

    block.forward = types.MethodType(forward, block)  # one that a copy of the model has on its own blocks


def add_biases(model, name, trash, seed):
    """Biases of the experts that compute; name of the tensor -> value."""
    found, generator = {}, torch.Generator().manual_seed(seed + 500)
    mixtral = model.config.model_type == "mixtral"
    for i, layer in enumerate(model.model.layers):
        if moe_of(layer) is None:
            continue
        bias = BIASED[name] * torch.randn(len(moe_of(layer).experts), generator=generator)
        if trash:
            bias[-trash:] = 0
        pick_by_bias(moe_of(layer), bias, model.config.num_experts_per_tok, mixtral or model.config.norm_topk_prob)
        found[f"model.layers.{i}.{'block_sparse_moe' if mixtral else 'mlp'}.gate.e_score_correction_bias"] = bias
    return found


def segments(ids, offsets):
    return [ids[offsets[i]:offsets[i + 1]].long()[None] for i in range(len(offsets) - 1)]


def run(model, ids, offsets, moe):
    """Concatenated outputs of the segments, each run by itself (a fresh rope: dynamic ones remember what came before)."""
    logits, hidden, losses, routers = [], [], [], []
    inner = model.model if hasattr(model.model, "rotary_emb") else model.model.model
    rope = inner.rotary_emb
    for segment in segments(ids, offsets):
        kwargs = dict(output_router_logits=True) if moe else {}
        inner.rotary_emb = copy.deepcopy(rope)
        out = model(segment, output_hidden_states=True, use_cache=False, **kwargs)
        logits.append(out.logits[0].float())
        hidden.append(out.hidden_states[-1][0].float())
        losses.append(torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), segment[0, 1:], reduction="none"))
        routers.append([r for r in out.router_logits if r is not None and len(r)] if moe else [])
    inner.rotary_emb = rope
    per_layer = [torch.cat([r[i] for r in routers]).float() for i in range(len(routers[0]))]
    return torch.cat(logits), torch.cat(hidden), torch.cat(losses), per_layer


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: torch.zeros_like(value) if value.grad is None else value.grad.clone() for name, value in model.named_parameters()}


def outputs(model, ids, offsets, moe, randoms):
    """What a model computes, in f32: name -> tensor; randoms: made when None, of the right shapes."""
    logits, hidden, losses, routers = run(model, ids, offsets, moe)
    result = {"logits": logits, "hidden": hidden, "token_loss": losses}
    randoms = randoms or [torch.randn(r.shape, generator=torch.Generator().manual_seed(77 + i)) * 0.01 for i, r in enumerate(routers)]
    for i, r in enumerate(routers):
        result[f"router_logits.{i}"], result[f"random.{i}"] = r, randoms[i]
    loss = losses.mean() + sum((a * b).sum() for a, b in zip(routers, randoms))
    result.update({"all." + name: value.float() for name, value in gradients(model, loss).items()})
    return {k: v.detach().contiguous().clone() for k, v in result.items()}


def own_error(model, ids, offsets, moe, exact):
    """How far the model in bf16 is off from its f32 outputs."""
    randoms = [exact[f"random.{i}"] for i in range(len(exact)) if f"random.{i}" in exact]
    rough = outputs(copy.deepcopy(model).bfloat16(), ids, offsets, moe, randoms)
    return {"bf16." + k: ((rough[k] - v).norm() / v.norm().clamp_min(1e-20))[None] for k, v in exact.items() if k in rough and "random" not in k}


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
    result = {k: v.detach().contiguous().clone() for k, v in result.items()}
    result.update(own_error(model, ids, offsets, moe, result))
    return result


def idle_experts(expected, picks):
    """How many experts of all layers get no token."""
    layers = [v for k, v in expected.items() if k.startswith("router_logits.")]
    return sum(v.shape[1] - len(set(v.topk(picks, dim=-1).indices.flatten().tolist())) for v in layers)


def is_trash_tensor(name, experts):
    return any(f".experts.{e}." in name for e in experts)


def make_model(name, seed):
    kind, fields, trash = CASES[name]
    config = kind(**fields, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomise(model, seed)
    zero_trash(model, trash)
    model.biases = add_biases(model, name, trash, seed) if name in BIASED else {}
    return config, model, expectations(model, seed, kind in MOE_KINDS, CASE_LENGTHS.get(name, LENGTHS))


def config_text(name, config, model):
    kind, fields, trash = CASES[name]
    text = json.loads(config.to_json_string(use_diff=False))
    keep = set(json.loads(config.to_json_string())) | set(fields) | {"rms_norm_eps", "rope_theta", "hidden_act"}
    text = {k: v for k, v in text.items() if k in keep and not k.startswith("_") and k != "attn_implementation"}
    text["architectures"] = [type(model).__name__]
    if trash or name in BIASED:
        experts = "num_local_experts" if kind is MixtralConfig else "num_experts"
        text.update(model_type="select_moe", base_model_type=config.model_type, num_trash_experts=trash, trash_logit_bias=0.0,
                    architectures=["SelectMoeForCausalLM"])
        text[experts] -= trash
    if name in BIASED:
        text["router_bias"] = True
    return text


def write_json(path, text):
    with open(path, "w") as file:
        json.dump(text, file, indent=2, sort_keys=True)
        file.write("\n")


def write_case(name, seed):
    kind, fields, trash = CASES[name]
    folder = os.path.join(ROOT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    config, model, expected = make_model(name, seed)
    while name in IDLE and idle_experts(expected, config.num_experts_per_tok) == 0:
        seed += 100
        config, model, expected = make_model(name, seed)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", 0)
    gone = range(experts - trash, experts) if trash else []
    weights = {k: v.contiguous().clone() for k, v in model.state_dict().items()
               if not is_trash_tensor(k, gone) and not (config.tie_word_embeddings and k == "lm_head.weight")}
    weights.update(model.biases)
    expected = {k: v for k, v in expected.items() if not is_trash_tensor(k, gone)}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    save_file(expected, os.path.join(folder, "expected.safetensors"))
    write_json(os.path.join(folder, "config.json"), config_text(name, config, model))


def names_of_4(name, value, model_type):
    """A gradient of a fused 5.x tensor as those of 4.x: name -> tensor."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return {name.replace(".mlp.gate.", ".block_sparse_moe.gate.") if model_type == "mixtral" else name: value}
    stem, part = name.rsplit(".", 1)
    gate, up, down = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    stem = stem.replace(".mlp.", ".block_sparse_moe.") if model_type == "mixtral" else stem
    found = {}
    for e, rows in enumerate(value):
        halves = {down: rows} if part == "down_proj" else dict(zip((gate, up), rows.chunk(2)))
        found.update({f"{stem}.{e}.{k}.weight": v for k, v in halves.items()})
    return found


def write_five(name):
    """The case as transformers 5 spells and, unconverted, saves it, and its logits. Weights only where they look different."""
    source, folder = os.path.join(ROOT, name), os.path.join(ROOT, name + "_five")
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(source, **EAGER, dtype=torch.float32).eval()
    expected = load_file(os.path.join(source, "expected.safetensors"))
    randoms = [expected[f"random.{i}"] for i in range(len(expected)) if f"random.{i}" in expected]
    moe = bool(randoms)
    found = outputs(model, expected["ids"], expected["offsets"], moe, randoms)
    for key in [k for k in found if k.startswith("all.")]:
        parts = names_of_4(key[len("all."):], found.pop(key), model.config.model_type)
        found.update({"all." + k: v for k, v in parts.items()})
    worst = max((float((v - expected[k]).abs().max() / expected[k].abs().max().clamp_min(1e-6)), k) for k, v in found.items())
    missing = {k for k in expected if k.startswith("all.")} - set(found)
    print(f"{name}: 5.x and 4.x differ by {worst[0]:.1e} ({worst[1]})")
    if worst[0] > 3e-5 or missing:
        raise SystemExit(f"{name}: transformers 5 computes something else {sorted(missing)}")
    model.save_pretrained(folder, save_original_format=False)
    if not moe:
        os.remove(os.path.join(folder, "model.safetensors"))
    for extra in ("generation_config.json", "README.md"):
        if os.path.exists(os.path.join(folder, extra)):
            os.remove(os.path.join(folder, extra))
    keep = ("logits", "hidden", "token_loss")
    save_file({k: v for k, v in found.items() if k in keep or k.startswith("router_logits")}, os.path.join(folder, "expected.safetensors"))


def write_adapter(case, seed, name, targets, **more):
    """A PEFT adapter on a case, with random A and B, and the logits of both together."""
    from peft import LoraConfig, get_peft_model
    base = os.path.join(ROOT, case)
    folder = os.path.join(ROOT, name)
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(base, **EAGER, dtype=torch.float32)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM", **more)
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
    text.update(base_model_name_or_path="../" + case, target_modules=targets if isinstance(targets, str) else sorted(text["target_modules"]))
    write_json(path, text)
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
    for theta, width, positions, original, scaling, length in ROTARY_LONG:
        fields = dict(rope_theta=theta, head_dim=width, max_position_embeddings=positions)
        if original:
            fields["original_max_position_embeddings"] = original
        config = LlamaConfig(**fields, rope_scaling=dict(scaling))
        frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](config, "cpu", seq_len=length)
        cases.append(dict(fields, rope_scaling=scaling, length=length, attention_factor=factor, frequencies=frequencies.tolist()))
    with open(os.path.join(ROOT, "rotary.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case, sort_keys=True) for case in cases) + "\n]\n")


def difference(folder, expected, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(folder, **EAGER, dtype=torch.float32).eval()
    if adapter:
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits = run(model, expected["ids"], expected["offsets"], False)[0]
    return float((logits - expected["logits"]).abs().max() / expected["logits"].abs().max())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--five", action="store_true")
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
    elif arguments.five:
        for name in FIVE:
            write_five(name)
        fused = dict(target_parameters=["experts.gate_up_proj", "experts.down_proj"], alpha_pattern={r".*\.down_proj": 11})
        write_adapter("olmoe_plain", 41, "olmoe_adapter_five", ["q_proj"], **fused)
        write_adapter("mixtral", 42, "mixtral_adapter_five", ["o_proj"], target_parameters=["experts.down_proj", "mlp.gate.weight"])
    elif arguments.check:
        for name in CASES:
            if not CASES[name][2] and name not in BIASED:
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
        write_adapter("qwen2", 33, "qwen2_adapter", r".*layers\.[12]\..*(q_proj|up_proj)", rank_pattern={"up_proj": 5},
                      alpha_pattern={r"(?:.*)layers\.\d+\.mlp\.up_proj": 11})
        write_adapter("mixtral", 34, "mixtral_adapter", ["q_proj", "w1", "w2", "w3"], use_rslora=True)
        write_adapter("qwen3_moe", 35, "qwen3_moe_adapter", ["gate_proj", "v_proj"], layers_to_transform=[1, 3], alpha_pattern={"v_proj": 4})


if __name__ == "__main__":
    main()
