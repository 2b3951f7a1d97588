#!/usr/bin/env python3
"""Cross-check of moe-convert upcycle with Hugging Face transformers, on fresh random models.

    OMP_NUM_THREADS=1 python3 tests/golden/check_upcycle.py [--bin build/bin] [--seeds 1,2,3] [--only PART] [--keep DIR]

Needs torch, transformers (4.57 or 5.x: whichever is installed or on PYTHONPATH), peft, safetensors, h5py, numpy. Nothing is read but the programs, nothing written but a
temporary folder (--keep DIR: that folder instead). Each seed draws other sizes, weights and token ids.

What it proves, everything computed by transformers in f32 on the folders as written:
  same      the upcycled model loads in transformers and has the dense model's logits (1e-5 of the largest), and ours: Llama with
            rope scalings, tied heads, head_dim of its own; Mistral with and without window; Qwen3 with biases, windows, some
            layers left dense; f32, bf16, f16, sharded, 5.x spelling; shards in virtual groups with all scaling on down
  formula   any granularity, groups or none, scaling none, megatron or down, softmax before or after top-k: the dense model with
            its feed-forward networks replaced by the mixture's formula written out in torch; cubic scaling in virtual groups
            also as a dense model of scaled matrices
  siblings  experts from several models in turn, all else their mean
  prompts   gates from hidden states of prompts, positive and negative, by the formula of convert_upcycle_prompts.h

Exit code 1 when a check fails.
"""
import argparse
import copy
import json
import math
import os
import shutil
import sys
import tempfile
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
import transformers
from safetensors import safe_open

from check_hf import (Failed, Programs, Report, check_forward, distance, draw_ids, llama, load, make, mistral, qwen3, run_forward,
                      save)

LIMIT = 1e-5
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16, "factor": 4.0}
YARN = {"rope_type": "yarn", "original_max_position_embeddings": 16, "factor": 4.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0}
SAME = [(llama, {"rope_scaling": LLAMA3, "head_dim": 6}), (llama, {"tie_word_embeddings": True}), (llama, {"rope_scaling": YARN}),
        (llama, {"num_key_value_heads": 1}), (mistral, {"sliding_window": 5}), (mistral, {"sliding_window": None, "head_dim": 6}),
        (qwen3, {}), (qwen3, {"attention_bias": True, "tie_word_embeddings": True}), (qwen3, WINDOW),
        (qwen3, {"num_hidden_layers": 4, "layers": "0,2-3"})]
FORMS = ["f32", "sharded", "dtype", "bf16", "f16"]


def upcycle(programs, source, place, *words, **options):
    said = programs.run("moe-convert", "upcycle", f"model.path={source}", f"output.dir={place}",
                        *[f"convert.{k}={v}" for k, v in options.items()], *words)
    return f"{place}/model", "function preserved: yes" in said


def make_dense(rng, family, seed, place, form="f32", **more):
    """A dense model whose intermediate_size is 24; returns (model in f32, folder)."""
    config = family(rng, **{"intermediate_size": 24, "num_hidden_layers": 3, **more})
    return save(make(config, seed), place, form), place


def tensors(folder):
    found = {}
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), "pt") as file:
                found.update({key: file.get_tensor(key).float() for key in file.keys()})
    return found


def gates_of(folder):
    """layer -> gate [E, D]."""
    return {int(k.split(".")[2]): v for k, v in tensors(folder).items() if k.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight"))}


def logits(model, ids):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([s])).logits[0] for s in ids]


def compare(report, part, case, what, ours, theirs, limit=LIMIT):
    for a, b in zip(ours, theirs):
        report.add(part, case, what, distance(a, b), limit)


# ---- the same function

def part_same(report, programs, seed, folder):
    rng = np.random.default_rng(seed)
    for number, (family, more) in enumerate(SAME):
        more = dict(more)
        layers = {"layers": more.pop("layers")} if "layers" in more else {}
        form = FORMS[(number + seed) % len(FORMS)]
        g = [1, 1, 2, 3, 4][(number + 2 * seed) % 5]
        groups = int(rng.integers(2, 5))
        options = dict(experts=groups * g, experts_per_token=int(rng.integers(1, groups + 1)) * g, granularity=g, seed=seed, **layers)
        case = f"seed {seed} {family.__name__} {form} {more or ''} g={g}"
        place = os.path.join(folder, f"same-{seed}-{number}")
        if form in ("bf16", "f16") and g == 3:
            options["dtype"] = "f32"  # 3 times a 16-bit number is rounded
        dense, source = make_dense(rng, family, seed * 100 + number, f"{place}/dense", form, **more)
        ids, path = draw_ids(rng, dense.config.vocab_size, place)
        target, kept = upcycle(programs, source, f"{place}/moe", router_init_std=0.5, **options)
        report.add("same", case, "says preserved", 0 if kept else math.inf)
        moe = load(target)
        kind = {"llama": "mixtral", "mistral": "mixtral", "qwen3": "qwen3_moe"}[family.__name__]
        report.add("same", case, "model type", 0 if moe.config.model_type == kind else math.inf)
        compare(report, "same", case, "transformers", logits(moe, ids), logits(dense, ids))
        ours = [o["logits"] for o in programs.forward(target, path, f"{place}/o.h5")]
        compare(report, "same", case, "ours and the dense", ours, logits(dense, ids))
        check_forward(report, programs, moe, target, ids, path, case, part="same")
        programs.run("moe-convert", "verify", f"model.path={source}", f"convert.target={target}", f"output.dir={place}/v")
        report.done("same", case)


# ---- the formula

class Mixture(torch.nn.Module):
    """sum over the top K of w_k * down (silu(gate x) * up x), experts [(gate, up, down)]."""

    def __init__(self, gate, experts, picks, normalise):
        super().__init__()
        self.gate, self.experts, self.picks, self.normalise = gate, experts, picks, normalise

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.softmax(rows @ self.gate.T, -1).topk(self.picks)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(rows)
        for t in range(rows.shape[0]):
            for w, e in zip(weights[t], chosen[t]):
                gate, up, down = self.experts[int(e)]
                out[t] += w * (down @ (torch.nn.functional.silu(gate @ rows[t]) * (up @ rows[t])))
        return out.reshape(x.shape)


def shard_of(mlp, g, s, scale):
    f = mlp.gate_proj.weight.shape[0] // g
    part = slice(s * f, (s + 1) * f)
    return (mlp.gate_proj.weight[part] * scale[0], mlp.up_proj.weight[part] * scale[1], mlp.down_proj.weight[:, part] * scale[2])


def mixture_of(dense, givers, gates, options, normalise=True):
    """dense with the mixtures of `givers` (dense models) in the place of its networks."""
    g, experts, picks = options["granularity"], options["experts"], options["experts_per_token"]
    factor = g if normalise else experts / g * g * g / picks
    scale = {"none": (1, 1, 1), "down": (1, 1, factor), "megatron": (factor ** (1 / 3),) * 3}[options["scaling"]]
    model = copy.deepcopy(dense)
    for i, layer in enumerate(model.model.layers):
        parts = [shard_of(givers[e // g % len(givers)].model.layers[i].mlp, g, e % g, scale) for e in range(experts)]
        layer.mlp = Mixture(gates[i], parts, picks, normalise)
    return model


def part_formula(report, programs, seed, folder):
    rng = np.random.default_rng(1000 + seed)
    for number in range(12):
        family = [llama, qwen3, mistral][number % 3]
        g = [1, 2, 3, 4, 6][(number + seed) % 5]
        groups = int(rng.integers(2, 5))
        is_virtual = bool(rng.integers(2)) or g == 1
        normalise = family is not qwen3 or bool(rng.integers(2))
        picks = int(rng.integers(1, groups + 1)) * g if is_virtual else int(rng.integers(1, groups * g + 1))
        scaling = ["none", "megatron", "down"][int(rng.integers(3))]
        options = dict(experts=groups * g, experts_per_token=picks, granularity=g, scaling=scaling, seed=seed)
        case = f"seed {seed} {family.__name__} {options} {'groups' if is_virtual else ''} {'' if normalise else 'not normalised'}"
        place = os.path.join(folder, f"formula-{seed}-{number}")
        dense, source = make_dense(rng, family, seed * 100 + number, f"{place}/dense")
        ids, path = draw_ids(rng, dense.config.vocab_size, place)
        target, _ = upcycle(programs, source, f"{place}/moe", router_init_std=0.5, virtual_groups=str(is_virtual).lower(),
                            norm_topk_prob=str(normalise).lower(), **options)
        gates = gates_of(target)
        for gate in gates.values():
            rows = gate.reshape(groups, g, -1)
            report.add("formula", case, "rows of a group equal", 0 if bool((rows == rows[:, :1]).all()) == (is_virtual) else math.inf)
        moe = load(target)
        compare(report, "formula", case, "transformers", logits(moe, ids), logits(mixture_of(dense, [dense], gates, options, normalise), ids))
        compare(report, "formula", case, "ours", [o["logits"] for o in programs.forward(target, path, f"{place}/o.h5")], logits(moe, ids))
        if is_virtual and normalise:
            s = g ** (1 / 3)
            scale = {"none": (1, 1, 1 / g), "down": (1, 1, 1), "megatron": (s, s, s / g)}[scaling]
            scaled = copy.deepcopy(dense)
            with torch.no_grad():
                for layer in scaled.model.layers:
                    for p, x in zip((layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj), scale):
                        p.weight.mul_(x)
            compare(report, "formula", case, "dense, scaled", logits(moe, ids), logits(scaled, ids))
        report.done("formula", case)


# ---- siblings

def part_siblings(report, programs, seed, folder):
    rng = np.random.default_rng(2000 + seed)
    for number, family in enumerate([llama, qwen3]):
        for is_source in (False, True):
            case = f"seed {seed} {family.__name__} {'with' if is_source else 'without'} the source"
            place = os.path.join(folder, f"siblings-{seed}-{number}-{int(is_source)}")
            state = rng.bit_generator.state
            models = []
            for i in range(3):
                rng.bit_generator.state = state  # the same sizes
                models.append(make_dense(rng, family, seed * 100 + i, f"{place}/dense-{i}", ["f32", "sharded", "bf16"][i]))
            ids, path = draw_ids(rng, models[0][0].config.vocab_size, place)
            options = dict(experts=8, experts_per_token=4, granularity=2, scaling="down", seed=seed)
            target, _ = upcycle(programs, models[0][1], f"{place}/moe", f"convert.siblings={models[1][1]},{models[2][1]}",
                                router_init_std=0.5, source_is_sibling=str(is_source).lower(), **options)
            givers = [m for m, _ in models[0 if is_source else 1:]]
            mean = copy.deepcopy(givers[0])
            with torch.no_grad():
                for name, p in mean.named_parameters():
                    p.copy_(torch.stack([dict(g.named_parameters())[name].double() for g in givers]).mean(0))
            moe = load(target)
            compare(report, "siblings", case, "transformers", logits(moe, ids), logits(mixture_of(mean, givers, gates_of(target), options), ids))
            compare(report, "siblings", case, "ours", [o["logits"] for o in programs.forward(target, path, f"{place}/o.h5")], logits(moe, ids))
            report.done("siblings", case)


# ---- prompts

def write_tokenizer(folder):
    letters = {chr(ord("a") + i): i for i in range(26)}
    with open(f"{folder}/tokenizer.json", "w") as file:
        json.dump({"version": "1.0", "added_tokens": [{"id": 26, "content": "<s>", "special": True, "single_word": False, "lstrip": False,
                                                       "rstrip": False, "normalized": False}], "normalizer": None, "pre_tokenizer": None,
                   "decoder": None, "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                   "special_tokens": {"<s>": {"id": "<s>", "ids": [26], "tokens": ["<s>"]}}},
                   "model": {"type": "BPE", "merges": [], "vocab": {**letters, "<s>": 26}}}, file)
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump({"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}, file)


def inner_means(model, ids):
    """layer -> mean over tokens (BOS left out) of what enters the feed-forward network."""
    found, hooks = {}, []
    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.mlp.register_forward_pre_hook(lambda _, args, i=i: found.__setitem__(i, args[0][0, 1:].double().mean(0))))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return found


def part_prompts(report, programs, seed, folder):
    rng = np.random.default_rng(3000 + seed)
    for number, family in enumerate([llama, qwen3, mistral]):
        case = f"seed {seed} {family.__name__}"
        place = os.path.join(folder, f"prompts-{seed}-{number}")
        dense, source = make_dense(rng, family, seed * 100 + number, f"{place}/dense", vocab_size=60)
        write_tokenizer(source)
        n, margin = 4, 1.7
        words = [(e, "".join(chr(int(c)) for c in rng.integers(97, 123, int(rng.integers(1, 30)))), j == 2)
                 for e in range(n) for j in range(2 + (e % 2))]
        with open(f"{place}/prompts.jsonl", "w") as file:
            for e, text, negative in words:
                file.write(json.dumps({"expert": e, "text": text, **({"negative": True} if negative else {})}) + "\n")
        means = [(e, inner_means(dense, [26] + [ord(c) - 97 for c in text]), negative) for e, text, negative in words]
        target, kept = upcycle(programs, source, f"{place}/moe", experts=n, router_init="prompts", prompts=f"{place}/prompts.jsonl",
                               prompts_margin=margin)
        report.add("prompts", case, "says preserved", 0 if kept else math.inf)
        for layer, gate in gates_of(target).items():
            good = torch.stack([torch.stack([m[layer] for e, m, bad in means if e == x and not bad]).mean(0) for x in range(n)])
            bad = [[m[layer] for e, m, negative in means if e == x and negative] for x in range(n)]
            v = good - torch.stack([torch.stack(b).mean(0) if b else torch.zeros_like(good[0]) for b in bad])
            v = v - v.mean(0)
            v = v / v.norm(dim=1, keepdim=True)
            table = good @ v.T
            own = torch.stack([table[e, e] - (table[e].sum() - table[e, e]) / (n - 1) for e in range(n)]).mean()
            report.add("prompts", case, "gates", distance(gate, v * margin / own), 1e-4)
        report.done("prompts", case)


PARTS = {"same": part_same, "formula": part_formula, "siblings": part_siblings, "prompts": part_prompts}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", default="build/bin", help="folder of the programs")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated seeds")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part only")
    parser.add_argument("--keep", help="work in this new folder and leave it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    folder = options.keep or tempfile.mkdtemp(prefix="check_upcycle.")
    os.makedirs(folder, exist_ok=True)
    report, programs = Report(), Programs(options.bin)
    try:
        for seed in (int(s) for s in options.seeds.split(",")):
            for name, part in PARTS.items():
                if options.only in (None, name):
                    try:
                        part(report, programs, seed, folder)
                    except Failed as error:
                        print(f"not ok {name}: {error}", flush=True)
                        report.add(name, f"seed {seed}", "program", math.inf)
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
