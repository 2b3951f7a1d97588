#!/usr/bin/env python3
"""Golden values of distillation: a head's row losses beside a teacher and their gradients, by PyTorch autograd in f64.

    python3 tests/golden/make_distil.py [file]      (default tests/golden/distil/distil.h5)

Needs torch, trl >= 1.16 (with what its GKD trainer imports), h5py, numpy. The distance is TRL's
GKDTrainer.generalized_jsd_loss over the tokens, or over k + 1 buckets: the teacher's k likeliest and the rest.
h and weight hold numbers that bf16 has. All from fixed seeds.

    h [N, D], weight [V, D], teacher [N, V] (ln p), targets [N], row_weight [N], ce [N]
    k<k>/ids, k<k>/logprob [N, k];  k<k>/T<T>/tail [N] = ln of the sum of p^(1/T) over the others
    k<k>/T<T>/beta<beta>/distance [N] (not times T^2), dh [N, D], dw [V, D]
        of sum of row_weight * (0.7 T^2 distance + 0.3 ce)
k = V is a dense teacher's, and a list's that leaves nothing out.
"""
import os
import sys

import h5py
import numpy as np
import torch
from trl.experimental.gkd.gkd_trainer import GKDTrainer

N, D, V = 6, 8, 64
DISTIL, TASK = 0.7, 0.3


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator)


def buckets(logits, ids, temperature):
    """Logits at T of the listed tokens, and of the rest as one where there is any."""
    listed = torch.gather(logits, 1, ids) / temperature
    if ids.shape[1] == V:
        return listed
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, ids, False)
    rest = torch.logsumexp((logits / temperature).masked_fill(~others, -torch.inf), -1, keepdim=True)
    return torch.cat([listed, rest], -1)


def distance(logits, teacher, ids, temperature, beta):
    """[N], by TRL: dense at T, or buckets that are at T already."""
    if ids.shape[1] == V:
        return GKDTrainer.generalized_jsd_loss(
            logits, teacher, beta=beta, temperature=temperature, reduction="none"
        ).sum(-1)
    return GKDTrainer.generalized_jsd_loss(
        buckets(logits, ids, temperature), buckets(teacher, ids, temperature), beta=beta, reduction="none"
    ).sum(-1)


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/distil/distil.h5"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    generator = torch.Generator().manual_seed(7)
    h = draw(generator, N, D).bfloat16().double()
    weight = (0.9 * draw(generator, V, D)).bfloat16().double()
    teacher = torch.log_softmax(0.6 * h @ weight.T + draw(generator, N, V).double(), -1).float().double()
    targets = torch.randint(0, V, (N,), generator=generator)
    row_weight = torch.tensor([0.25, -0.5, 0.0, 1.0, 0.125, 0.75], dtype=torch.float64)
    order = torch.argsort(teacher, -1, descending=True)
    ce = torch.nn.functional.cross_entropy(h @ weight.T, targets, reduction="none")
    with h5py.File(path, "w", track_order=False) as file:
        put = lambda name, x: file.create_dataset(name, data=x.detach().numpy().astype(np.float32))
        for name, x in {"h": h, "weight": weight, "teacher": teacher, "row_weight": row_weight, "ce": ce}.items():
            put(name, x)
        file["targets"] = targets.numpy().astype(np.int32)
        for k in (8, 50, V):
            ids = order[:, :k]
            file[f"k{k}/ids"] = ids.numpy().astype(np.int32)
            put(f"k{k}/logprob", torch.gather(teacher, 1, ids))
            for temperature in (1, 2, 3):
                if k < V:
                    put(f"k{k}/T{temperature}/tail", buckets(teacher, ids, temperature)[:, -1])
                for beta in (0, 0.5, 1):
                    x, w = h.clone().requires_grad_(True), weight.clone().requires_grad_(True)
                    logits = x @ w.T
                    d = distance(logits, teacher, ids, temperature, beta)
                    task = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                    loss = (row_weight * (DISTIL * temperature**2 * d + TASK * task)).sum()
                    dh, dw = torch.autograd.grad(loss, (x, w))
                    group = f"k{k}/T{temperature}/beta{beta}"
                    put(f"{group}/distance", d), put(f"{group}/dh", dh), put(f"{group}/dw", dw)
    print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
