#!/usr/bin/env python3
"""The router over its warm-up: softmax mass on the good experts per layer, from the warm-up's metrics.h5.

python3 analysis/router.py RUN/warmup [--out DIR]
"""

import argparse
import os
import sys

import numpy

from figures import COLOURS, DASHES, legend_right, plt, save
from mbfiles import read_metrics


def layer_series(metrics, name):
    """(step, values [L, n]) of "<name>/<layer>" curves in layer order; None when there are none."""
    layers = (
        sorted(
            (
                int(key.split("/")[1])
                for key in metrics
                if key.startswith(name + "/") and key.split("/")[1].isdigit()
            )
        )
        if metrics
        else []
    )
    if not layers:
        return None
    values = numpy.stack([metrics[f"{name}/{layer}"] for layer in layers])
    known = numpy.isfinite(values).any(axis=0)
    return metrics["step"][known], values[:, known]


def step_edges(step):
    """Borders between the columns of a heat map."""
    middle = (step[1:] + step[:-1]) / 2
    return numpy.concatenate([[step[0] - 0.5], middle, [step[-1] + 0.5]])


def plot_heat(step, means):
    """Layers down, steps across, colour the mean mass on good experts."""
    figure, axes = plt.subplots(figsize=(6.4, 1.2 + 0.24 * min(len(means), 40)))
    mesh = axes.pcolormesh(
        step_edges(step.astype(float)),
        numpy.arange(len(means) + 1) - 0.5,
        means,
        cmap="viridis",
        shading="flat",
    )
    axes.set(xlabel="optimiser step", ylabel="MoE layer", title="Mean softmax mass on good experts")
    axes.set_yticks(range(0, len(means), max(1, len(means) // 8)))
    axes.invert_yaxis()
    axes.grid(False)
    figure.colorbar(mesh, ax=axes, label="r (share of mass)", pad=0.02)
    return figure


def plot_lines(step, means, variances):
    """One line per layer, a band of one standard deviation over tokens where known and layers are few."""
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    for layer, mean in enumerate(means):
        tint = (
            COLOURS[layer % len(COLOURS)]
            if len(means) <= 8
            else plt.get_cmap("viridis")(layer / (len(means) - 1))
        )
        axes.plot(
            step,
            mean,
            color=tint,
            linestyle=DASHES[layer // len(COLOURS) % 4] if len(means) <= 8 else "-",
            label=f"layer {layer}" if len(means) <= 16 else None,
        )
        if variances is not None and len(means) <= 4:
            spread = numpy.sqrt(numpy.maximum(variances[layer], 0))
            axes.fill_between(step, mean - spread, mean + spread, color=tint, alpha=0.10, linewidth=0)
    axes.set(
        xlabel="optimiser step",
        ylabel="r (share of mass)",
        title="Mass on good experts by layer"
        + (" (band: 1 s.d.)" if variances is not None and len(means) <= 4 else ""),
        ylim=(0, 1),
    )
    legend_right(axes)
    return figure


def plot_router(metrics):
    """[(name, figure)] of what the warm-up recorded; empty when it has no per-layer curves."""
    means, variances = layer_series(metrics, "r_mean"), layer_series(metrics, "r_var")
    if means is None:
        return []
    return [
        ("router-heat", plot_heat(*means)),
        ("router-lines", plot_lines(*means, variances[1] if variances else None)),
    ]


def main(arguments=None):
    """Draw the two figures of one warm-up."""
    parser = argparse.ArgumentParser(description="The router over its warm-up.")
    parser.add_argument("stage", help="folder of the warm-up stage")
    parser.add_argument("--out", default=".", help="folder for the PNG files (default: here)")
    options = parser.parse_args(arguments)
    figures = plot_router(read_metrics(os.path.join(options.stage, "metrics.h5")))
    if not figures:
        print(f"router.py: {options.stage}/metrics.h5 has no r_mean/<layer> curves", file=sys.stderr)
        return 3
    for name, figure in figures:
        print(save(figure, options.out, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
