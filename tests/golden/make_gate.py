#!/usr/bin/env python3
"""Golden values of the gate: PyTorch's loss, gradients, AdamW steps and temperature on a small network.

    python3 tests/golden/make_gate.py [file]      (default tests/golden/gate/gate.h5)

Needs torch, h5py, numpy. Soft targets as torch's cross_entropy takes them, in f64; two rows have no target and are left
out of the mean. AdamW (torch.optim, weight decay 0.1 on the matrices alone) does STEPS steps on the whole batch. All
numbers from a fixed seed; < 20 KB.
"""
import os
import sys

import h5py
import numpy as np
import torch

D, H, X, N, STEPS, RATE, DECAY = 6, 19, 5, 12, 5, 0.02, 0.1


def loss_of(gate, x, target):
    z = torch.nn.functional.gelu(x @ gate["w1"].T + gate["b1"]) @ gate["w2"].T + gate["b2"]
    kept = target.sum(1) > 0
    return torch.nn.functional.cross_entropy(z[kept], target[kept]), z


def best_temperature(z, target):
    kept = target.sum(1) > 0
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    lbfgs = torch.optim.LBFGS([log_t], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        lbfgs.zero_grad()
        loss = torch.nn.functional.cross_entropy(z[kept] / log_t.exp(), target[kept])
        loss.backward()
        return loss

    lbfgs.step(closure)
    return log_t.exp().item(), closure().item()


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/gate/gate.h5"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator).double()
    x = draw(N, D).float().double()
    gate = {"w1": draw(H, D), "b1": draw(H), "w2": draw(X, H), "b2": draw(X)}
    gate = {name: (0.5 * value).float().double().requires_grad_(True) for name, value in gate.items()}
    right = torch.randint(0, 2, (N, X), generator=generator).double()
    right[3], right[8], right[5] = 0, 0, 1
    target = (right / right.sum(1, keepdim=True).clamp(min=1)).float().double()
    loss, z = loss_of(gate, x, target)
    gradient = torch.autograd.grad(loss, list(gate.values()))
    sharp = (3 * draw(N, X)).float().double()
    says = torch.softmax(sharp / 1.8 + 0.5 * draw(N, X), -1).float().double()
    says[2] = 0
    temperature, calibrated = best_temperature(sharp, says)
    with h5py.File(path, "w", libver=("v110", "v110"), track_order=False) as file:
        put = lambda name, value: file.create_dataset(name, data=value.detach().numpy().astype(np.float32))
        put("x", x), put("target", target), put("logits", z), put("sharp", sharp), put("says", says)
        for (name, value), g in zip(gate.items(), gradient):
            put(name, value), put(f"gradient/{name}", g)
        optimiser = torch.optim.AdamW(
            [{"params": [gate["w1"], gate["w2"]], "weight_decay": DECAY},
             {"params": [gate["b1"], gate["b2"]], "weight_decay": 0.0}], lr=RATE)
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss_of(gate, x, target)[0].backward()
            optimiser.step()
        for name, value in gate.items():
            put(f"after/{name}", value)
        file["loss"], file["loss_after"] = loss.item(), loss_of(gate, x, target)[0].item()
        file["temperature"], file["loss_calibrated"] = temperature, calibrated
    print(path, os.path.getsize(path), "bytes; loss", loss.item(), "temperature", temperature)


if __name__ == "__main__":
    main()
