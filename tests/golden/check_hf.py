#!/usr/bin/env python3
"""Cross-check of the engine with Hugging Face transformers and peft, on fresh random models.

    OMP_NUM_THREADS=1 python3 tests/golden/check_hf.py [--bin build/bin] [--seeds 1,2,3] [--only PART] [--keep DIR]

Needs torch, transformers (4.57 or 5.x: whichever is installed or on PYTHONPATH), peft, safetensors, h5py, numpy. Nothing is read but the programs, nothing written but a
temporary folder (--keep DIR: that folder instead). Each seed draws other sizes, weights and token ids.

What it proves, each against the reference's own forward and backward pass in f32 on the same folder:
  forward   moe-inspect forward: logits, router logits, last hidden state, for each sequence of different length
  gradients moe-inspect gradients objective=lm: loss over all targets, LM loss, transformers' auxiliary loss, every gradient
            (every family: grouped queries, tied heads, biases, windows, rope scalings, clip_qkv, norm_topk_prob, layers
            without experts, bf16 and f16 weights, index files, experts fused as 5.x saves them, both spellings of the
            fields, large weights); what moe-convert full writes of it loads in transformers and computes the same
  convert   moe-convert trash: original tensors byte for byte; closed: the source's logits; plain: loads in transformers and
            computes our trash routing; analysis/select_moe.py loads the converted model and computes ours;
            trash_expert_ratio changes no output; verify accepts it, and refuses a changed tensor
  lora      adapters of peft read by moe-inspect; merged by moe-convert (into bf16 and f16 too) and loaded by transformers;
            adapters of moe-train in peft; kinds of adapters that are not computed are refused
  bias      moe-train with training.router_bias_rate: what it writes computes the same through analysis/select_moe.py; as a
            stock model it is refused

Errors are max |ours - theirs| / max |theirs| per tensor. Where weights are large, f32 itself is further off than the limit:
the reference then also runs in f64, and ours may be off from that by four times what the reference's f32 is. Prints one line
per case and per failed check, and last the largest error of each kind. Exit code 1 when a check fails.
"""
import argparse
import copy
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
import h5py
import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, MixtralConfig, OlmoeConfig, Qwen2Config, Qwen3Config,
                          Qwen3MoeConfig)

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path += [HERE, os.path.join(HERE, "..", "..", "analysis")]
import select_moe  # noqa: F401  registers the type
from make_models import EAGER, names_of_4

LIMIT = 1e-4
LIMIT_CLOSED = 1e-6
COEF = 0.03  # of the auxiliary loss


class Failed(Exception):
    """A program ended with another exit code than the expected one."""


class Report:
    """Collects the errors of named checks and prints them."""

    def __init__(self):
        self.worst, self.failed, self.count = {}, 0, 0

    def add(self, part, case, what, error, limit=LIMIT):
        good = bool(error <= limit)  # NaN fails
        self.count += 1
        self.failed += not good
        self.worst[(part, what)] = max(self.worst.get((part, what), 0.0), error if error == error else math.inf)
        if not good:
            print(f"not ok {part:9} {case:44} {what:24} {error:9.2e}  limit {limit:.0e}", flush=True)

    def by_exact(self, part, case, what, ours, theirs, exact, limit):
        off = distance(theirs, exact)
        self.add(part, case, what + " (of f64)", distance(ours, exact), max(limit, 4 * off))

    def done(self, part, case):
        print(f"     . {part:9} {case}", flush=True)

    def finish(self):
        print(f"\n{'part':9} {'largest error of':26} {'':9}")
        for (part, what), error in sorted(self.worst.items()):
            print(f"{part:9} {what:26} {error:9.2e}")
        print(f"{self.count} checks, {self.failed} failed")
        return 1 if self.failed else 0


class Programs:
    """Runs the programs of one folder, one thread each."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)

    def run(self, name, *words, expect=0):
        done = subprocess.run([os.path.join(self.folder, name), *words, "threads=1"], capture_output=True, text=True)
        if done.returncode != expect:
            raise Failed(f"{name} {' '.join(words)}: exit {done.returncode}, not {expect}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def merge(self, place):
        self.run("moe-convert", "merge", f"model.path={place}/base", f"model.adapter={place}/adapter",
                 f"output.dir={place}/merged")

    def forward(self, model, ids, out, *words):
        self.run("moe-inspect", "forward", f"model={model}", f"tokens={ids}", f"out={out}", *words)
        with h5py.File(out) as file:
            return [{key: group[key][...] for key in group} for _, group in sorted(file.items())]


def distance(ours, theirs):
    theirs = np.asarray(theirs, np.float64)
    ours = np.asarray(ours, np.float64)
    if ours.shape != theirs.shape:
        return math.inf
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))


# ---- the reference in f64

class Double:
    """A copy of a model in f64; while entered, also the parts that transformers keeps in f32 compute in f64."""

    def __init__(self, model):
        self.model = copy.deepcopy(model).double()
        for module in self.model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = functools.partial(self.norm, module)
            if type(module).__name__.endswith("RotaryEmbedding"):
                module.forward = functools.partial(self.rotary, module)

    @staticmethod
    def norm(module, x):
        eps = getattr(module, "variance_epsilon", None) or module.eps
        return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    @staticmethod
    def rotary(module, x, position_ids):
        angles = torch.cat([(position_ids[..., None].float() * module.inv_freq.float()).double()] * 2, -1)
        return angles.cos() * module.attention_scaling, angles.sin() * module.attention_scaling

    def __enter__(self):
        self.softmax = torch.nn.functional.softmax
        torch.nn.functional.softmax = lambda x, dim=None, **more: self.softmax(x, dim=dim)
        return self.model

    def __exit__(self, *error):
        torch.nn.functional.softmax = self.softmax


# ---- models

def sizes(rng, **more):
    heads = int(rng.choice([2, 4, 6]))
    kv = int(rng.choice([h for h in (1, 2, 3, heads) if heads % h == 0]))
    head_width = int(rng.choice([4, 8, 16]))
    return dict(vocab_size=int(rng.integers(40, 200)), hidden_size=heads * head_width, num_hidden_layers=int(rng.integers(1, 4)),
                num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=int(rng.integers(3, 40)),
                max_position_embeddings=64, rope_theta=float(rng.choice([10000.0, 500000.0, 100.0])),
                rms_norm_eps=float(rng.choice([1e-6, 1e-5])), initializer_range=0.1, pad_token_id=0, bos_token_id=None,
                eos_token_id=1, **more)


def picks(rng, name="num_experts"):
    experts = int(rng.integers(4, 12))
    return {name: experts, "num_experts_per_tok": int(rng.integers(1, min(experts, 5))), "router_aux_loss_coef": COEF,
            "output_router_logits": True}


def llama(rng, **more):
    return LlamaConfig(**{**sizes(rng), **more})


def mistral(rng, **more):
    return MistralConfig(**{**sizes(rng), "sliding_window": int(rng.integers(1, 20)), **more})


def qwen2(rng, **more):
    return Qwen2Config(**{**sizes(rng), **more})


def qwen3(rng, **more):
    return Qwen3Config(**{**sizes(rng), "head_dim": int(rng.choice([4, 6, 10])), **more})


def olmoe(rng, **more):
    return OlmoeConfig(**{**sizes(rng), **picks(rng), **more})


def mixtral(rng, **more):
    return MixtralConfig(**{**sizes(rng), **picks(rng, "num_local_experts"), **more})


def qwen3_moe(rng, **more):
    return Qwen3MoeConfig(**{**sizes(rng), **picks(rng), "moe_intermediate_size": int(rng.integers(3, 20)),
                             "head_dim": int(rng.choice([4, 6, 10])), **more})


WINDOW = {"use_sliding_window": True, "sliding_window": 7}
STRETCHED = {"original_max_position_embeddings": 16, "factor": 4.0}
CASES = {
    "llama": {"plain": {}, "tied": {"tie_word_embeddings": True}, "bias": {"attention_bias": True}, "head_dim": {"head_dim": 6},
              "one kv head": {"num_key_value_heads": 1}, "large weights": {"initializer_range": 0.6},
              "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
              "yarn": {"rope_scaling": {"rope_type": "yarn", **STRETCHED}},
              "llama3": {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **STRETCHED}}},
    "mistral": {"window": {}, "no window": {"sliding_window": None}, "head_dim": {"head_dim": 6}, "window of 1": {"sliding_window": 1}},
    "qwen2": {"plain": {}, "tied": {"tie_word_embeddings": True}, "window": {**WINDOW, "max_window_layers": 1},
              "large weights": {"initializer_range": 0.6}},
    "qwen3": {"plain": {}, "bias": {"attention_bias": True}, "window": {**WINDOW, "max_window_layers": 0}},
    "olmoe": {"plain": {"norm_topk_prob": False}, "normalised": {"norm_topk_prob": True}, "tied": {"tie_word_embeddings": True},
              "clip": {"clip_qkv": 0.4}, "bias": {"attention_bias": True, "norm_topk_prob": True},
              "all picked": {"num_experts": 4, "num_experts_per_tok": 4}, "large weights": {"initializer_range": 0.7}},
    "mixtral": {"plain": {}, "window": {"sliding_window": 9}, "head_dim": {"head_dim": 6}},
    "qwen3_moe": {"plain": {}, "normalised": {"norm_topk_prob": True}, "window": WINDOW,
                  "some dense": {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
                  "first dense": {"num_hidden_layers": 3, "mlp_only_layers": [0], "tie_word_embeddings": True}},
}
FAMILIES = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "olmoe": olmoe, "mixtral": mixtral, "qwen3_moe": qwen3_moe}
MOE = ["olmoe", "mixtral", "qwen3_moe"]


def experts_of(config):
    return getattr(config, "num_local_experts", None) or getattr(config, "num_experts", 0)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **EAGER).eval()


def make(config, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, **EAGER)
    with torch.no_grad():  # norms and biases away from 1 and 0
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


def save(model, folder, form):
    """form: f32 | bf16 | f16 | sharded | dtype (5.x spelling of the fields; with 5.x its own names of tensors too)."""
    model = model.to({"bf16": torch.bfloat16, "f16": torch.float16}.get(form, torch.float32))
    more = {"save_original_format": False} if form == "dtype" and "experts_implementation" in EAGER else {}
    model.save_pretrained(folder, max_shard_size="20KB" if form == "sharded" else "5GB", **more)
    # f32 of the rounded weights; read again, as .to() has rounded the rotary frequencies too, and before the fields are
    # spelled as 4.x does not know them
    again = load(folder)
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    spelled = config.pop("dtype", None) or config.pop("torch_dtype", None) or "float32"
    if form == "dtype":
        config["dtype"] = spelled
        if "rope_parameters" not in config:
            config["rope_parameters"] = {"rope_type": "default", **(config.pop("rope_scaling", None) or {}),
                                         "rope_theta": config.pop("rope_theta")}
    else:
        config["torch_dtype"] = spelled
    with open(path, "w") as file:
        json.dump(config, file)
    return again


def draw_ids(rng, vocab, folder, lengths=None):
    lengths = lengths or [int(n) for n in rng.integers(2, 40, 4)]
    ids = [[int(i) for i in rng.integers(2, vocab, n)] for n in lengths]
    path = os.path.join(folder, "ids.json")
    with open(path, "w") as file:
        json.dump(ids, file)
    return ids, path


def padded(ids):
    longest = max(len(s) for s in ids)
    tokens = torch.tensor([s + [0] * (longest - len(s)) for s in ids])
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in ids])
    return tokens, mask, tokens.masked_fill(mask == 0, -100)


# ---- forward, gradients

def check_forward(report, programs, model, folder, ids, path, case, part="forward", words=(), target=None, limit=LIMIT):
    outputs = programs.forward(target or folder, path, os.path.join(folder, "o.h5"), *words)
    for sequence, ours in zip(ids, outputs):
        theirs = run_forward(model, sequence)
        exact = None
        for what in theirs:
            error = distance(ours[what], theirs[what])
            if error > limit:
                if exact is None:
                    with Double(model) as double:
                        exact = run_forward(double, sequence)
                report.by_exact(part, case, what, ours[what], theirs[what], exact[what], limit)
            else:
                report.add(part, case, what, error, limit)
    if len(outputs) != len(ids):
        report.add(part, case, "sequences", math.inf)


def run_forward(model, sequence):
    is_moe = experts_of(model.config) > 0
    with torch.no_grad():
        more = {"output_router_logits": True} if is_moe else {}
        out = model(input_ids=torch.tensor([sequence]), output_hidden_states=True, **more)
    found = {"logits": out.logits[0], "hidden": out.hidden_states[-1][0]}
    if is_moe:
        found["router_logits"] = torch.stack([r for r in out.router_logits if r is not None and len(r)])
    return found


def run_gradients(model, ids):
    tokens, mask, labels = padded(ids)
    model.zero_grad()
    out = model(input_ids=tokens, attention_mask=mask, labels=labels)
    out.loss.backward()
    found = {"loss": out.loss.item(), "loss_terms/lm_loss": out.loss.item()}
    if getattr(out, "aux_loss", None) is not None:
        found["loss_terms/balance"] = out.aux_loss.item()
        found["loss_terms/lm_loss"] -= COEF * out.aux_loss.item()
    for name, p in model.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        is_fused = "experts_implementation" in EAGER
        found.update({"grad/" + k: v for k, v in (names_of_4(name, gradient, model.config.model_type) if is_fused
                                                  else {name: gradient}).items()})
    return found


def check_gradients(report, programs, model, folder, ids, path, case):
    out = os.path.join(folder, "g.h5")
    programs.run("moe-inspect", "gradients", f"model={folder}", f"tokens={path}", "objective=lm", f"out={out}",
                 f"training.router_aux_loss_coef={COEF}", "training.load_balance=hf")
    theirs, exact = run_gradients(model, ids), None
    with h5py.File(out) as file:
        ours = {f"grad/{name}": file["grad"][name][...] for name in file["grad"]}
        ours.update({name: file[name][()] for name in theirs if not name.startswith("grad/") and name in file})
    report.add("gradients", case, "names differ", len(set(ours) ^ set(theirs)), 0)
    for name in sorted(set(ours) & set(theirs)):
        what = "gradients" if name.startswith("grad/") else name
        error = distance(ours[name], theirs[name])
        if error > LIMIT and np.abs(np.asarray(theirs[name])).max() < 1e-7:  # what cancels: a key's bias
            error = float(np.abs(ours[name]).max())
        if error > LIMIT:
            if exact is None:
                with Double(model) as double:
                    exact = run_gradients(double, ids)
            report.by_exact("gradients", case, what, ours[name], theirs[name], exact[name], LIMIT)
        else:
            report.add("gradients", case, what, error)


def part_engine(report, programs, seed, folder):
    rng = np.random.default_rng(seed)
    forms = ["f32", "bf16", "f16", "sharded", "dtype"]
    cases = [(family, n, c) for family in CASES for n, c in CASES[family].items()]
    for number, (family, name, more) in enumerate(cases):
        form = forms[(number + seed) % len(forms)]
        case = f"seed {seed} {family} {name}, {form}"
        place = os.path.join(folder, f"engine-{seed}-{number}")
        config = FAMILIES[family](rng, **more)
        model = save(make(config, seed * 100 + number), place, form)
        ids, path = draw_ids(rng, config.vocab_size, place)
        check_forward(report, programs, model, place, ids, path, case)
        check_gradients(report, programs, model, place, ids, path, case)
        check_written(report, programs, model, place, ids, case)
        report.done("engine", case)


def check_written(report, programs, model, place, ids, case):
    """What moe-convert full writes, loaded again by transformers."""
    programs.run("moe-convert", "full", f"model.path={place}", f"output.dir={place}/full")
    again = load(f"{place}/full/model")
    for sequence in ids:
        ours, theirs = run_forward(again, sequence), run_forward(model, sequence)
        for what in theirs:
            report.add("written", case, what, distance(ours[what], theirs[what]), 1e-6)


# ---- conversions

def tensors_of(folder):
    """name -> (dtype, shape, bytes) over all files."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), "pt") as file:
                for key in file.keys():
                    t = file.get_tensor(key)
                    found[key] = (t.dtype, tuple(t.shape), t.contiguous().view(torch.uint8).numpy().tobytes())
    return found


def check_bytes(report, case, source, target, experts):
    before, after = tensors_of(source), tensors_of(target)
    changed = 0
    for name, (dtype, shape, data) in before.items():
        new = after.get(name)
        is_gate = name.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight"))
        if new is None or new[0] != dtype or (new[2][:len(data)] if is_gate else new[2]) != data:
            changed += 1
            print(f"       changed: {name}")
        elif is_gate and not (new[1][0] > experts and new[1][1:] == shape[1:]):
            changed += 1
            print(f"       gate has shape {new[1]}, was {shape}")
    report.add("convert", case, "tensors changed", changed + len(set(after) - set(before)), 0)


def part_convert(report, programs, seed, folder):
    rng = np.random.default_rng(1000 + seed)
    for number, (init, form, more) in enumerate([("normal", "f32", {"norm_topk_prob": True}), ("closed", "f32", {}),
                                                 ("normal", "bf16", {}), ("closed", "sharded", {"norm_topk_prob": True})]):
        case = f"seed {seed} {init} {form} {more or ''}"
        place = os.path.join(folder, f"convert-{seed}-{number}")
        source = os.path.join(place, "source")
        family = MOE[(number + seed) % len(MOE)]
        case += " " + family
        config = FAMILIES[family](rng, **(more if family != "mixtral" else {}))
        model = save(make(config, seed * 100 + number), source, form)
        experts = experts_of(config)
        ids, path = draw_ids(rng, config.vocab_size, place)
        trash = int(rng.integers(1, 4))
        programs.run("moe-convert", "trash", f"model.path={source}", f"convert.trash_init={init}",
                     f"convert.trash_experts={trash}", "convert.trash_init_std=0.3", f"convert.seed={seed}",
                     f"output.dir={place}/trash")
        converted = f"{place}/trash/model"
        check_bytes(report, case, source, converted, experts)
        before = programs.forward(source, path, f"{place}/a.h5")
        ours = programs.forward(converted, path, f"{place}/b.h5")
        for a, b in zip(before, ours):
            if b["router_logits"].shape[2] != experts + trash:
                report.add("convert", case, "trash rows", math.inf)
            if init == "closed":
                report.add("convert", case, "closed logits", distance(b["logits"], a["logits"]), LIMIT_CLOSED)
        select = load(converted)
        for sequence, b in zip(ids, ours):
            for what, theirs in run_forward(select, sequence).items():
                report.add("convert", case, "select_moe.py " + what, distance(theirs, b[what]))
        if init == "normal":
            programs.run("moe-convert", "plain", f"model.path={converted}", f"output.dir={place}/plain")
            plain = load(f"{place}/plain/model")
            check_forward(report, programs, plain, source, ids, path, case, part="plain", target=converted)
        declared = programs.forward(source, path, f"{place}/c.h5", "model.trash_expert_ratio=0.25")
        for a, b in zip(before, declared):
            report.add("convert", case, "declared trash", distance(b["logits"], a["logits"]), 0)
        pair = (f"model.path={source}", f"convert.target={converted}")
        programs.run("moe-convert", "verify", *pair, f"output.dir={place}/v1")
        damage(converted, rng)
        programs.run("moe-convert", "verify", *pair, f"output.dir={place}/v2", expect=3)
        report.done("convert", case)


def damage(folder, rng):
    """Changes one element of one original tensor."""
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    path = os.path.join(folder, files[int(rng.integers(len(files)))])
    tensors = load_file(path)
    name = sorted(tensors)[int(rng.integers(len(tensors)))]
    tensors[name].view(-1)[0] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})


# ---- adapters

ADAPTERS = {
    "attention": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
    "all-linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 16},
    "rslora": {"target_modules": ["k_proj", "o_proj", "down_proj", "w2"], "r": 5, "lora_alpha": 7, "use_rslora": True},
    "regex": {"target_modules": r".*layers\.0\..*(q_proj|o_proj)", "r": 2},
    "patterns": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*v_proj": 32}},
    "layers": {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [1]},
}
FUSED = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "r": 3, "lora_alpha": 5}
REFUSED = {"use_dora": {"use_dora": True}, "modules_to_save": {"modules_to_save": ["lm_head"]}}


def part_lora(report, programs, seed, folder):
    rng = np.random.default_rng(2000 + seed)
    adapters = dict(ADAPTERS, **({"fused": FUSED, "fused again": FUSED} if "experts_implementation" in EAGER else {}))
    for number, (name, options) in enumerate(adapters.items()):
        family = (MOE if name.startswith("fused") else list(FAMILIES))[(number + seed) % (3 if name.startswith("fused") else 7)]
        case = f"seed {seed} {family} {name}"
        place = os.path.join(folder, f"lora-{seed}-{number}")
        config = FAMILIES[family](rng, num_hidden_layers=2)
        model = save(make(config, seed * 100 + number), f"{place}/base", "f32")
        ids, path = draw_ids(rng, config.vocab_size, place)
        with_adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0 if "experts_implementation" in EAGER else 0.1, **options)).eval()
        with torch.no_grad():
            for key, p in with_adapter.named_parameters():
                if "lora_" in key:
                    p.copy_(torch.randn_like(p) * 0.1)
        with_adapter.save_pretrained(f"{place}/adapter")
        try:
            check_forward(report, programs, with_adapter, f"{place}/base", ids, path, case, part="lora",
                          words=[f"adapter={place}/adapter"])
            programs.merge(place)
            merged = load(f"{place}/merged/model")
            for sequence in ids:
                with torch.no_grad():
                    a, b = (m(input_ids=torch.tensor([sequence])).logits[0] for m in (merged, with_adapter))
                report.add("lora", case, "merged logits", distance(a, b))
        except Failed as error:
            print(f"       {error}")
            report.add("lora", case, "program", math.inf)
        report.done("lora", case)
    for check in (merge_rounded, refuse_adapters, train_adapter):
        try:
            check(report, programs, seed, rng, folder)
        except Failed as error:
            print(f"       {error}")
            report.add("lora", f"seed {seed} {check.__name__}", "program", math.inf)


def merge_rounded(report, programs, seed, rng, folder):
    """A base stored in bf16 or f16, as most are: merged weights within a unit in the last place of peft's, rounded alike."""
    for form, limit in [("bf16", 2.0 ** -7), ("f16", 2.0 ** -10)]:
        place = os.path.join(folder, f"rounded-{seed}-{form}")
        model = save(make(llama(rng), seed), f"{place}/base", form)
        with_adapter = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4, lora_alpha=8))
        with torch.no_grad():
            for key, p in with_adapter.named_parameters():
                if "lora_" in key:
                    p.copy_(torch.randn_like(p) * 0.1)
        with_adapter.save_pretrained(f"{place}/adapter")
        programs.merge(place)
        merged = load(f"{place}/merged/model")
        theirs = dict(with_adapter.merge_and_unload().named_parameters())
        for key, p in merged.named_parameters():
            report.add("lora", f"seed {seed} {form}", "merged " + form, distance(p.detach(), theirs[key].detach()), limit)
        report.done("lora", f"seed {seed} merge into {form}")


def refuse_adapters(report, programs, seed, rng, folder):
    """What would change the function and is not computed must end with code 3, not with other logits."""
    for name, options in REFUSED.items():
        place = os.path.join(folder, f"refused-{seed}-{name}")
        model = save(make(llama(rng), seed), f"{place}/base", "f32")
        _, path = draw_ids(rng, model.config.vocab_size, place)
        with_adapter = get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj", "v_proj"], **options}))
        with_adapter.save_pretrained(f"{place}/adapter")
        programs.run("moe-inspect", "forward", f"model={place}/base", f"tokens={path}", f"out={place}/o.h5",
                     f"adapter={place}/adapter", expect=3)
        report.add("lora", f"seed {seed} {name}", "refused", 0.0)


def make_shard(programs, rng, place):
    """A new folder with a tokenizer and place/shard/shard.h5 of random words, by our programs."""
    os.makedirs(place)
    words = ["alpha", "beta", "gamma", "delta", "words", "of", "a", "small", "corpus"]
    with open(f"{place}/corpus.jsonl", "w") as file:
        for _ in range(40):
            file.write(json.dumps({"text": " ".join(rng.choice(words, 20))}) + "\n")
    data = f"dataset.inputs=c={place}/corpus.jsonl"
    programs.run("moe-shard", "tokenizer", data, "tokenizer.vocab_size=290", f"output.dir={place}/tokenizer")
    tokenizer = next(r for r, _, files in os.walk(f"{place}/tokenizer") if "tokenizer.json" in files)
    programs.run("moe-shard", "build", data, f"tokenizer.path={tokenizer}", f"output.dir={place}/shard")


def train_adapter(report, programs, seed, rng, folder):
    """A few LoRA steps with our programs; the adapter in peft."""
    place = os.path.join(folder, f"trained-{seed}")
    make_shard(programs, rng, place)
    # peft 0.21 with transformers 5 fuses experts' adapters itself, and computes its own wrongly where gate and up have one but down has none
    experts = "q_proj,gate_proj,up_proj,down_proj" if "experts_implementation" in EAGER else "o_proj,gate_proj"
    for family, targets in [("llama", "all-linear"), ("olmoe", experts), ("qwen2", "q_proj,down_proj"),
                            ("mixtral", "o_proj,w1,w2,w3")]:
        case = f"seed {seed} {family} trained {targets}"
        base = f"{place}/{family}-{len(targets)}"
        config = FAMILIES[family](rng, vocab_size=300, num_hidden_layers=2)
        model = save(make(config, seed), base, "f32")
        ids, path = draw_ids(rng, 290, base)
        programs.run("moe-train", f"model.path={base}", f"dataset.path={place}/shard/shard.h5", "training.peft_mode=lora",
                     "training.lora.r=4", "training.lora.lora_alpha=16", f"training.lora.target_modules={targets}",
                     f"training.lora.use_rslora={'true' if targets == 'all-linear' else 'false'}", "training.learning_rate=0.05",
                     "training.max_steps=4", "training.batch_size=4", "training.gradient_accumulation_steps=2",
                     f"output.dir={base}/run")
        theirs = PeftModel.from_pretrained(model, f"{base}/run/final").eval()
        moved = max(float(p.detach().abs().max()) for key, p in theirs.named_parameters() if "lora_B" in key)
        report.add("lora", case, "adapter untrained", 0.0 if moved > 1e-3 else math.inf)
        check_forward(report, programs, theirs, base, ids, path, case, part="lora", words=[f"adapter={base}/run/final"])
        report.done("lora", case)


# ---- routers that pick by a bias

def part_bias(report, programs, seed, folder):
    rng = np.random.default_rng(5000 + seed)
    place = os.path.join(folder, f"bias-{seed}")
    make_shard(programs, rng, place)
    for number, family in enumerate(MOE):
        form = ["f32", "bf16"][(number + seed) % 2]
        case = f"seed {seed} {family} {form}"
        base = f"{place}/{family}"
        config = FAMILIES[family](rng, vocab_size=300, num_hidden_layers=2)
        save(make(config, seed), base, form)
        ids, path = draw_ids(rng, 290, base)
        programs.run("moe-train", f"model.path={base}", f"dataset.path={place}/shard/shard.h5", "training.router_bias_rate=0.03",
                     "training.learning_rate=0.001", "training.max_steps=8", "training.batch_size=4",
                     "training.gradient_accumulation_steps=2", f"output.dir={base}/run")
        trained = f"{base}/run/final"
        model = load(trained)
        check_forward(report, programs, model, base, ids, path, case, part="bias", target=trained)
        biases = [b for name, b in model.named_buffers() if name.endswith(select_moe.BIAS)]
        found = run_forward(model, ids[0])["logits"]
        moved = max(float(bias.abs().max()) for bias in biases)
        report.add("bias", case, "bias of f32", 0.0 if all(b.dtype == torch.float32 for b in biases) and moved > 0.02 else math.inf)
        for bias in biases:
            bias.zero_()
        report.add("bias", case, "bias that counts", 0.0 if distance(run_forward(model, ids[0])["logits"], found) > 1e-3 else math.inf)
        programs.run("moe-convert", "plain", f"model.path={trained}", f"output.dir={base}/plain", expect=2)
        report.done("bias", case)


PARTS = {"engine": part_engine, "convert": part_convert, "lora": part_lora, "bias": part_bias}


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
    folder = options.keep or tempfile.mkdtemp(prefix="check_hf.")
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
