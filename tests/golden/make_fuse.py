#!/usr/bin/env python3
"""Make tests/golden/fuse: pairs of tiny models with the same tokenizer, and what they give as one model.

    python tests/golden/make_fuse.py            write everything (transformers 4.57)
    python tests/golden/make_fuse.py --check    compute again and compare with what is committed

Each case folder: foundation/ and sft/ (Hugging Face folders), expected.safetensors with
  ids [T] i32, offsets [S+1] i32; N rows: every token of a record that has a next one, which is its target
  ensemble.<mixing>.logits [N,V], .token_loss [N]         fixed weights WEIGHTS; mixing: probabilities (logits: ln of the mean), logits
  <level>.<tensor of the router>                          level: token, layer; drawn here
  <level>.logits, .token_loss, .router_logits.<s> [T,M]   s: stages of routers
  <level>.random.<s> [T,M], <level>.all.<tensor>          gradients of mean token loss + sum over stages of <random, router logits>
  <level>.btm [4]                                         loss, lm loss, balance, entropy of MISSION's router loss at BALANCE and SPARSITY
  <level>.btm.d_router_logits.<s> [T,M]                   of its balance and entropy terms
  <level>.btm.<tensor>                                    its gradients
The router is written here once more from its definition (docs/fuse.md), the models are transformers' own layers.
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import log_softmax, silu
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3Config

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fuse")
MEMBERS = ("foundation", "sft")
WEIGHTS = (0.3, 0.7)
HIDDEN = 6
EPS = 1e-6  # of the router's norms
BALANCE, SPARSITY = 0.3, 0.2  # larger than a training's, so that they are seen
LENGTHS = [7, 1, 11, 5]
COMMON = dict(num_hidden_layers=2, vocab_size=40, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, dtype="float32", use_cache=True)
LLAMA = dict(COMMON, hidden_size=16, intermediate_size=13, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
QWEN3 = dict(COMMON, hidden_size=20, intermediate_size=13, num_attention_heads=3, num_key_value_heads=1, head_dim=8, num_hidden_layers=3,
             use_sliding_window=True, sliding_window=4, max_window_layers=0,
             layer_types=["sliding_attention", "full_attention", "sliding_attention"])
MIXTRAL = dict(COMMON, hidden_size=16, intermediate_size=10, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
               num_experts_per_tok=2, sliding_window=None)
CASES = {  # family, fields of the foundation, what its sibling has otherwise
    "llama": (LlamaConfig, dict(LLAMA, rope_theta=100.0), dict(rope_theta=1000.0, rms_norm_eps=1e-5)),
    "qwen3": (Qwen3Config, QWEN3, {}),
    "mixtral": (MixtralConfig, MIXTRAL, {}),
}


# ---- the models ----

def randomise(model, generator):
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.2 * noise if "norm" in name else 0.35 * noise)


def nudge(model, source, generator):
    """A sibling: the foundation's weights, moved."""
    with torch.no_grad():
        state = dict(source.named_parameters())
        for name, value in sorted(model.named_parameters()):
            value.copy_(state[name] + (0.05 if "norm" in name else 0.2) * torch.randn(value.shape, generator=generator))


def make_models(case, seed):
    kind, fields, other = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    models = []
    for extra in ({}, other):
        config = kind(**dict(fields, **extra), attn_implementation="eager")
        models.append(AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval())
    randomise(models[0], generator)
    nudge(models[1], models[0], generator)
    return [m.requires_grad_(False) for m in models]


def write_tokenizer(folder):
    """A byte-level tokenizer without merges: three special tokens and letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789") + ["\u0120"]
    special = ["<unk>", "<s>", "</s>"]
    added = [dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for i, t in enumerate(special)]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    text = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=level, post_processor=None,
                decoder=level, model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                                          fuse_unk=False, byte_fallback=False, ignore_merges=False,
                                          vocab={t: i for i, t in enumerate(special + letters)}, merges=[]))
    write_json(os.path.join(folder, "tokenizer.json"), text)
    write_json(os.path.join(folder, "tokenizer_config.json"),
               dict(tokenizer_class="PreTrainedTokenizerFast", unk_token="<unk>", bos_token="<s>", eos_token="</s>"))


def write_json(path, text):
    with open(path, "w") as file:
        json.dump(text, file, indent=2, sort_keys=True)
        file.write("\n")


# ---- the router ----

def rms_norm(x, weight, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight


class Router:
    def __init__(self, stages, width, generator):
        """stages: parts of each."""
        self.parts, self.value = stages, {}
        for s, parts in enumerate(stages):
            wide = parts * width
            draw = lambda scale, *shape: (scale * torch.randn(*shape, generator=generator)).double()
            for p in range(parts):
                self.value[f"router.{s}.norm.{p}.weight"] = 1 + draw(0.2, width)
            self.value[f"router.{s}.gate_proj.weight"] = draw(1.5 / wide ** 0.5, HIDDEN, wide)
            self.value[f"router.{s}.up_proj.weight"] = draw(1.5 / wide ** 0.5, HIDDEN, wide)
            self.value[f"router.{s}.down_proj.weight"] = draw(0.7, len(MEMBERS), HIDDEN)
            self.value[f"router.{s}.down_proj.bias"] = draw(0.3, len(MEMBERS))
        self.value = {k: v.float().double().requires_grad_(True) for k, v in self.value.items()}

    def logits(self, s, parts):
        get = lambda name: self.value[f"router.{s}.{name}"]
        assert len(parts) == self.parts[s]
        z = torch.cat([rms_norm(x, get(f"norm.{p}.weight"), EPS) for p, x in enumerate(parts)], -1)
        u = silu(z @ get("gate_proj.weight").T) * (z @ get("up_proj.weight").T)
        return u @ get("down_proj.weight").T + get("down_proj.bias")


# ---- several models as one ----

def causal(length, window):
    t = torch.arange(length)
    seen = (t[None, :] <= t[:, None]) & (t[None, :] > t[:, None] - (window or length))
    return torch.zeros(length, length, dtype=torch.float64).masked_fill(~seen, float("-inf"))[None, None]


def run_layer(model, index, h):
    """Decoder layer `index` of the model on h [1,T,D]."""
    length, config = h.shape[1], model.config
    kinds = getattr(config, "layer_types", None)
    window = config.sliding_window if kinds and kinds[index] == "sliding_attention" else None
    position = torch.arange(length)[None]
    angles = model.model.rotary_emb(h, position)
    out = model.model.layers[index](h, attention_mask=causal(length, window), position_ids=position, position_embeddings=angles,
                                    cache_position=position[0], use_cache=False)
    return out[0] if isinstance(out, tuple) else out


def mix(weights, outputs):
    return sum(weights[:, m:m + 1] * x for m, x in enumerate(outputs))


def layer_level(models, router, ids, weigh=None):
    """One record: logits [T,V], router logits per stage. weigh(logits): the weights (softmax)."""
    weigh = weigh or (lambda logits: torch.softmax(logits, -1))
    routed = []

    def weights(parts):
        routed.append(router.logits(len(routed), parts))
        return weigh(routed[-1])

    outputs = [m.model.embed_tokens(ids) for m in models]
    h = mix(weights(outputs), outputs)
    for index in range(models[0].config.num_hidden_layers):
        outputs = [run_layer(m, index, h[None])[0] for m in models]
        h = mix(weights([h] + outputs), outputs)
    outputs = [m.model.norm(h) for m in models]
    w = weights([h] + outputs)
    return mix(w, [m.lm_head(x) for m, x in zip(models, outputs)]), routed


def token_level(models, router, ids):
    """One record: ln of the mixed probabilities [T,V], router logits."""
    finals, distributions = [], []
    for m in models:
        out = m.model(ids[None], use_cache=False)
        finals.append(out.last_hidden_state[0])
        distributions.append(log_softmax(m.lm_head(finals[-1]), -1))
    routed = router.logits(0, finals)
    w = log_softmax(routed, -1)
    return torch.logsumexp(torch.stack([w[:, m:m + 1] + p for m, p in enumerate(distributions)]), 0), [routed]


def ensemble(models, ids, mixing):
    logits = [m(ids[None], use_cache=False).logits[0] for m in models]
    if mixing == "logits":
        return sum(w * z for w, z in zip(WEIGHTS, logits))
    return torch.log(sum(w * torch.softmax(z, -1) for w, z in zip(WEIGHTS, logits)))


def records(ids, offsets):
    return [ids[a:b] for a, b in zip(offsets[:-1], offsets[1:])]


def rows_of(parts, ids):
    """Logits of the rows that have a next token, and the losses of those."""
    logits = torch.cat([z[:-1] for z in parts])
    targets = torch.cat([r[1:] for r in ids])
    return logits, -log_softmax(logits, -1)[torch.arange(len(targets)), targets]


# ---- what is expected ----

def spread(routed):
    """Balance M sum_m (mean w_m)^2 and mean entropy of w, averaged over the stages."""
    balance = entropy = 0
    for logits in routed:
        w = torch.softmax(logits, -1)
        balance = balance + len(MEMBERS) * (w.mean(0) ** 2).sum() / len(routed)
        entropy = entropy - (w * log_softmax(logits, -1)).sum(-1).mean() / len(routed)
    return balance, entropy


def gradients(value, router):
    found = torch.autograd.grad(value, list(router.value.values()), retain_graph=True)
    return dict(zip(router.value, found))


def level(name, run, router, ids, generator):
    results = [run(record) for record in ids]
    logits, losses = rows_of([r[0] for r in results], ids)
    stages = len(results[0][1])
    routed = [torch.cat([r[1][s] for r in results]) for s in range(stages)]
    random = [torch.randn(r.shape, generator=generator).double() * 0.02 for r in routed]
    balance, entropy = spread(routed)
    total = losses.mean() + BALANCE * balance + SPARSITY * entropy
    found = {"logits": logits, "token_loss": losses, "btm": torch.stack([total, losses.mean(), balance, entropy])}
    outside = torch.autograd.grad(BALANCE * balance + SPARSITY * entropy, routed, retain_graph=True)
    for s in range(stages):
        found.update({f"router_logits.{s}": routed[s], f"random.{s}": random[s], f"btm.d_router_logits.{s}": outside[s]})
    both = losses.mean() + sum((a * b).sum() for a, b in zip(routed, random))
    found.update({"all." + k: v for k, v in gradients(both, router).items()})
    found.update({"btm." + k: v for k, v in gradients(total, router).items()})
    found.update(router.value)
    return {f"{name}.{k}": v for k, v in found.items()}


def check_one_hot(models, router, ids):
    """At weights 1 and 0 the layers run one after another are transformers' own model."""
    for m, model in enumerate(models):
        for record in ids:
            logits, _ = layer_level(models, router, record, lambda z: torch.eye(len(models), dtype=z.dtype)[m].expand(z.shape))
            own = model(record[None], use_cache=False).logits[0]
            assert (logits - own).abs().max() <= 1e-5 * own.abs().max(), (m, (logits - own).abs().max())


def expectations(models, seed):
    generator = torch.Generator().manual_seed(seed + 1000)
    config = models[0].config
    offsets = torch.tensor([0] + LENGTHS).cumsum(0)
    ids = torch.randint(3, config.vocab_size, (int(offsets[-1]),), generator=generator)
    parts = records(ids, offsets)
    models = [m.double() for m in models]
    found = {"ids": ids.int(), "offsets": offsets.int()}
    for mixing in ("probabilities", "logits"):
        logits, losses = rows_of([ensemble(models, r, mixing) for r in parts], parts)
        found.update({f"ensemble.{mixing}.logits": logits, f"ensemble.{mixing}.token_loss": losses})
    count = len(MEMBERS)
    token = Router([count], config.hidden_size, generator)
    layer = Router([count] + [count + 1] * (config.num_hidden_layers + 1), config.hidden_size, generator)
    check_one_hot(models, layer, parts)
    found.update(level("token", lambda r: token_level(models, token, r), token, parts, generator))
    found.update(level("layer", lambda r: layer_level(models, layer, r), layer, parts, generator))
    return {k: (v if v.dtype == torch.int32 else v.detach().float()).contiguous().clone() for k, v in found.items()}


# ---- files ----

def config_text(config, model):
    text = json.loads(config.to_json_string(use_diff=False))
    keep = set(json.loads(config.to_json_string())) | {"rms_norm_eps", "rope_theta", "hidden_act", "num_hidden_layers"}
    text = {k: v for k, v in text.items() if k in keep and not k.startswith("_") and k != "attn_implementation"}
    text["architectures"] = [type(model).__name__]
    return text


def write_case(case, seed):
    folder = os.path.join(ROOT, case)
    shutil.rmtree(folder, ignore_errors=True)
    models = make_models(case, seed)
    for name, model in zip(MEMBERS, models):
        own = os.path.join(folder, name)
        os.makedirs(own)
        weights = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
        save_file(weights, os.path.join(own, "model.safetensors"), metadata={"format": "pt"})
        write_json(os.path.join(own, "config.json"), config_text(model.config, model))
        write_tokenizer(own)
    save_file(expectations(models, seed), os.path.join(folder, "expected.safetensors"))


def check_case(case, seed):
    folder = os.path.join(ROOT, case)
    models = [AutoModelForCausalLM.from_pretrained(os.path.join(folder, m), attn_implementation="eager", dtype=torch.float32).eval()
              .requires_grad_(False) for m in MEMBERS]
    expected, found = load_file(os.path.join(folder, "expected.safetensors")), expectations(models, seed)
    worst = max((float((found[k].double() - v.double()).abs().max() / v.double().abs().max().clamp_min(1e-6)), k) for k, v in expected.items())
    print(f"{case}: {len(expected)} tensors, worst difference {worst[0]:.1e} ({worst[1]})")
    if worst[0] > 3e-5 or set(found) != set(expected):
        raise SystemExit(f"{case}: this is not what is committed")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for i, case in enumerate(CASES):
        (check_case if arguments.check else write_case)(case, 51 + i)


if __name__ == "__main__":
    main()
