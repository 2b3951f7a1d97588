#!/usr/bin/env python3
"""Golden integers of GPTQ, by the algorithm of Frantar et al. (2023) in numpy, f64, without blocks.

    python3 tests/golden/make_gptq.py [file]      (default tests/golden/gptq/gptq.h5)

Needs h5py and numpy. A matrix's columns are rounded one after another; the error of each, divided by the diagonal of
the upper Cholesky factor of the inverse Hessian, goes into all columns behind it (algorithm 1 of the paper). Scales
are those of compressed-tensors: max|w| / 7.5 of a group, taken when its first column is reached, or beforehand from
the matrix as given where columns are ordered by their activations. Inputs x (integers, so that H = x^T x is exact)
are correlated, of very different sizes, and in two cases some are never used. All from a fixed seed.

    case<i>/weight [N, K] f32, x [inputs, K] i8, q [N, K] i8, scale [N, K / group] f32, loss; attributes group,
    act_order
"""
import os
import sys

import h5py
import numpy as np

CASES = [  # rows, columns, group, act_order, inputs, columns never used
    (24, 128, 32, False, 300, 0),
    (24, 128, 64, True, 300, 0),
    (10, 128, 128, False, 40, 0),  # fewer inputs than columns
    (13, 86, 86, False, 200, 5),
    (7, 320, 320, False, 400, 0),  # a scale per row
    (7, 160, 16, True, 200, 3),
]
DAMPING = 0.01


def scale_of(group):
    return (np.abs(group).max(1).astype(np.float32) / np.float32(7.5)).astype(np.float32)


def gptq(weight, hessian, group, act_order):
    k = weight.shape[1]
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(k)
    w = weight.astype(np.float64)[:, order]
    h = hessian[order][:, order].copy()
    dead = np.diag(h) == 0
    mean = np.diag(h).mean()
    h[dead, dead] = mean
    w[:, dead] = 0
    h[np.diag_indices(k)] += DAMPING * mean
    upper = np.linalg.cholesky(np.linalg.inv(h)).T  # of the inverse: inv(h) = upper.T @ upper
    given = np.zeros_like(w)
    given[:, order] = w
    scale = np.stack([scale_of(given[:, g : g + group]) for g in range(0, k, group)], 1)
    q = np.zeros(w.shape, np.int8)
    loss = 0.0
    for i in range(k):
        place = order[i] // group
        if not act_order and i % group == 0:
            scale[:, place] = scale_of(w[:, i : i + group])
        s = scale[:, place].astype(np.float64)
        ratio = np.divide(w[:, i], s, out=np.zeros_like(s), where=s > 0)
        whole = np.clip(np.rint(ratio), -8, 7)
        q[:, order[i]] = whole
        error = (w[:, i] - whole * s) / upper[i, i]
        w[:, i + 1 :] -= np.outer(error, upper[i, i + 1 :])
        loss += (error**2).sum()
    return q, scale, loss


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/gptq/gptq.h5"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    draw = np.random.default_rng(11)
    with h5py.File(path, "w", libver=("v110", "v110"), track_order=False) as file:
        for i, (n, k, group, act_order, inputs, dead) in enumerate(CASES):
            mix = draw.normal(size=(k, k)) / np.sqrt(k) + np.eye(k)
            x = draw.normal(size=(inputs, k)) @ mix * np.exp(draw.normal(size=k))
            x = np.clip(np.rint(6 * x), -127, 127).astype(np.int8)
            x[:, np.flatnonzero(~x.any(0))] = 1
            x[:, draw.choice(k, dead, replace=False)] = 0
            weight = (draw.normal(size=(n, k)) * 0.05).astype(np.float32)
            hessian = x.T.astype(np.float64) @ x.astype(np.float64)
            q, scale, loss = gptq(weight, hessian, group, act_order)
            case = file.create_group(f"case{i}")
            case.attrs["group"], case.attrs["act_order"] = group, int(act_order)
            for name, value in (("weight", weight), ("x", x), ("q", q), ("scale", scale), ("loss", loss)):
                case.create_dataset(name, data=value)
    print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
