#!/usr/bin/env python3
"""Golden values of the training losses: PyTorch autograd in f64, transformers' auxiliary loss, torch.optim.AdamW.

    python3 tests/golden/make_losses.py [folder]      (default tests/golden/losses)

Needs torch, transformers 4.x, h5py, numpy. Writes losses.h5 (< 200 KB) and a tiny model. All numbers from fixed seeds.
"""
import os
import sys

import h5py
import numpy as np
import torch
from torch.nn.functional import logsigmoid, softplus
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

L, E, GOOD, K = 3, 10, 8, 3
LENGTHS = [7, 4, 9, 2, 6, 4, 8, 2]  # four records, then their copies
RECORDS = 4
LOSS = [2.5, 3.75, 3.0, 2.875]


def draw(rows, experts, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(L, rows, experts, generator=generator) * 1.7).to(torch.float32)


def picks(logits):
    return torch.topk(torch.softmax(logits.double(), -1), K, dim=-1).indices


def put(file, name, logits, function):
    """Value and gradient of function(logits f64)."""
    x = logits.double().clone().requires_grad_(True)
    value = function(x)
    (gradient,) = torch.autograd.grad(value, x)
    group = file.create_group(name)
    group["value"] = np.float64(value.item())
    group["gradient"] = gradient.numpy().astype(np.float32)


def switch(x, experts):
    total = 0
    for layer in range(len(x)):
        p = torch.softmax(x[layer], -1)
        counts = torch.bincount(picks(x[layer].detach()).flatten(), minlength=experts).double()
        total = total + experts * (counts / counts.sum() * p.mean(0)).sum() / len(x)
    return total


def good_only(x, ids):
    """hf form over the good experts: renormalised softmax, picks among the good ones."""
    p = torch.softmax(x[..., :GOOD], -1).reshape(-1, GOOD).mean(0)
    counts = torch.bincount(ids.flatten(), minlength=E)[:GOOD].double()
    return GOOD * (K * counts / counts.sum() * p).sum()


def log_odds(x):
    return torch.logsumexp(x[..., :GOOD], -1) - torch.logsumexp(x[..., GOOD:], -1)


def segments(s):
    """[..., rows] -> [..., segments] means."""
    return torch.stack([part.mean(-1) for part in torch.split(s, LENGTHS, dim=-1)], -1)


def pair_rank(x, sharpness=4.0, share=0.3, weight=0.7):
    s = log_odds(x)
    means = segments(s)
    views = torch.cat([means, means.mean(0, keepdim=True)])
    loss_rank = copy_rank = 0
    for view in views:
        top = bottom = 0
        for i in range(RECORDS):
            for j in range(RECORDS):
                if LOSS[j] > LOSS[i]:
                    top = top + (LOSS[j] - LOSS[i]) * softplus(-sharpness * (view[i] - view[j]))
                    bottom += LOSS[j] - LOSS[i]
        loss_rank = loss_rank + top / bottom / len(views)
        copy_rank = copy_rank + softplus(-sharpness * (view[:RECORDS] - view[RECORDS:])).mean() / len(views)
    real = torch.sigmoid(s[:, : sum(LENGTHS[:RECORDS])])
    anchor = ((real.mean(-1) - 0.5) ** 2).mean()
    return (1 - share) * loss_rank + share * copy_rank + weight * anchor


def topk_ratio(x, ids):
    p = torch.softmax(x, -1)
    picked = torch.zeros_like(p).scatter(-1, ids, 1.0)
    picked[..., GOOD:] = 0
    return (p * picked).sum(-1)


def write_balance(file):
    logits = draw(260, E, 1)[:2]
    ids = picks(logits)
    file["balance/logits"] = logits.numpy()
    file["balance/ids"] = ids.numpy().astype(np.int32)
    put(file, "balance/hf", logits, lambda x: load_balancing_loss_func(tuple(x), E, K))
    put(file, "balance/switch", logits, lambda x: switch(x, E))
    put(file, "balance/good", logits, lambda x: good_only(x, ids))
    put(file, "balance/z", logits, lambda x: (torch.logsumexp(x, -1) ** 2).mean())


def write_constraints(file):
    rows, real = sum(LENGTHS), sum(LENGTHS[:RECORDS])
    logits = draw(rows, E, 2)
    ids = picks(logits)
    file["constraint/logits"] = logits.numpy()
    file["constraint/ids"] = ids.numpy().astype(np.int32)
    file["constraint/offsets"] = np.cumsum([0] + LENGTHS).astype(np.int32)
    file["constraint/loss"] = np.array(LOSS)

    def of_real(function):
        return lambda x: function(log_odds(x)[:, :real])

    put(file, "constraint/beta_nll", logits, of_real(lambda s: -(0.5 * logsigmoid(s) + 2.0 * logsigmoid(-s)).mean()))
    put(file, "constraint/barrier", logits, of_real(lambda s: -(1.5 * logsigmoid(-s) + logsigmoid(s)).mean()))

    def moments(s):
        r = torch.sigmoid(s)
        return ((r.mean(-1) - 0.4) ** 2 + (r.var(-1, unbiased=False) - 0.05) ** 2).mean()

    put(file, "constraint/moment_matching", logits, of_real(moments))
    put(file, "constraint/pair_rank", logits, pair_rank)

    def topk(x):
        r = topk_ratio(x, ids)[:, :real].clamp(1e-6, 1 - 1e-6)
        return -(0.5 * torch.log(r) + 2.0 * torch.log(1 - r)).mean()

    put(file, "constraint/topk", logits, topk)


def write_adamw(file):
    generator = torch.Generator().manual_seed(3)
    matrix = torch.nn.Parameter(torch.randn(12, 5, generator=generator))
    vector = torch.nn.Parameter(torch.randn(7, generator=generator))
    gradients = torch.randn(20, 67, generator=generator) * 0.2
    file["adamw/start"] = torch.cat([matrix.detach().flatten(), vector.detach()]).numpy()
    file["adamw/gradients"] = gradients.numpy()
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [vector], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, 3, 20)
    after, norms = [], []
    for step in range(20):
        matrix.grad = gradients[step, :60].reshape(12, 5).clone()
        vector.grad = gradients[step, 60:].clone()
        norms.append(torch.nn.utils.clip_grad_norm_([matrix, vector], 1.0).item())
        optimizer.step()
        schedule.step()
        after.append(torch.cat([matrix.detach().flatten(), vector.detach()]).numpy().copy())
    file["adamw/after"] = np.stack(after)
    file["adamw/norms"] = np.array(norms)


def write_schedules(file):
    total = 40
    for name, make in (("linear", lambda o: get_linear_schedule_with_warmup(o, 6, total)),
                       ("cosine", lambda o: get_cosine_schedule_with_warmup(o, 6, total)),
                       ("constant", lambda o: get_constant_schedule_with_warmup(o, 6))):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make(optimizer)
        factors = []
        for _ in range(total):
            factors.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        file[f"schedule/{name}"] = np.array(factors)


def write_training(file, folder):
    """Eight steps of a tiny OLMoE on four records: transformers' own loss with its auxiliary loss, AdamW, clipping.

    No pad_token_id: with one, transformers trains no embedding row for it."""
    torch.manual_seed(5)
    config = OlmoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
        router_aux_loss_coef=0.05, output_router_logits=True, initializer_range=0.2, pad_token_id=None,
        bos_token_id=None, eos_token_id=None, use_cache=False,
    )
    model = OlmoeForCausalLM(config).float()
    model.save_pretrained(os.path.join(folder, "olmoe"))
    os.remove(os.path.join(folder, "olmoe", "generation_config.json"))
    lengths = [9, 14, 5, 12]
    tokens = torch.randint(0, 32, (4, max(lengths)))
    mask = torch.zeros_like(tokens)
    for i, length in enumerate(lengths):
        mask[i, :length] = 1
    labels = tokens.masked_fill(mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, 8)
    rows = []
    for _ in range(8):
        out = model(input_ids=tokens, attention_mask=mask, labels=labels)
        out.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rows.append([out.loss.item(), out.aux_loss.item(), norm.item()])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    records = [tokens[i, :n].numpy() for i, n in enumerate(lengths)]
    file["training/tokens"] = np.concatenate(records).astype(np.int32)
    file["training/lengths"] = np.array(lengths, dtype=np.int64)
    file["training/curve"] = np.array(rows)
    experts = "model.layers.1.mlp.experts.2.down_proj.weight"
    for name in ("model.layers.0.mlp.gate.weight", experts, "model.embed_tokens.weight"):
        file["training/after/" + name] = model.state_dict()[name].numpy()


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "losses")
    os.makedirs(folder, exist_ok=True)
    with h5py.File(os.path.join(folder, "losses.h5"), "w", libver=("earliest", "v110")) as file:
        write_balance(file)
        write_constraints(file)
        write_adamw(file)
        write_schedules(file)
        write_training(file, folder)
        file.attrs["torch"] = str(torch.__version__)


if __name__ == "__main__":
    main()
