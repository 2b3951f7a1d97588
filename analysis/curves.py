#!/usr/bin/env python3
"""Curves of training stages from their metrics.h5.

python3 analysis/curves.py RUN/pretrain RUN/finetune-selected [--name loss] [--out DIR]
python3 analysis/curves.py RUN/sft --name validation [--term loss]      one curve per type of record
"""

import argparse
import os
import sys

import numpy

from figures import colour, grid, legend_right, plt, save, smooth
from mbfiles import read_metrics

LABELS = {
    "loss": "loss (nats per token)",
    "lm_loss": "LM loss (nats per token)",
    "balance": "load balance loss",
    "z_loss": "router z loss",
    "constraint": "constraint loss",
    "loss_rank": "loss_rank (nats)",
    "copy_rank": "copy_rank (nats)",
    "anchor": "anchor",
    "mean_ratio": "mean good mass r",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "single_records": "records without a pair",
}


def draw_line(axes, metrics, name, label, tint, window=None):
    """One curve: the values faint, their running mean on top."""
    known = numpy.isfinite(metrics[name])
    step, values = metrics["step"][known], metrics[name][known]
    window = window or max(1, len(values) // 25)
    if window > 1:
        axes.plot(step, values, color=tint, linewidth=0.5, alpha=0.35)
    axes.plot(step, smooth(values, window), color=tint, label=label)


def plot_stages(stages, name="loss", title=""):
    """One panel, one curve per stage: stages is {label: metrics}; None when no stage has the curve."""
    stages = {label: m for label, m in stages.items() if m is not None and name in m}
    if not stages:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    for i, (label, metrics) in enumerate(stages.items()):
        draw_line(axes, metrics, name, label, colour(label, i))
    axes.set(xlabel="optimiser step", ylabel=LABELS.get(name, name), title=title)
    legend_right(axes)
    return figure


def plot_terms(metrics, title=""):
    """Small panels, one per term of a stage's loss and its learning rate."""
    names = [
        n
        for n in LABELS
        if metrics is not None
        and n in metrics
        and numpy.isfinite(metrics[n]).any()
        and (n != "single_records" or metrics[n].any())
    ]
    if not names:
        return None
    figure, panels = grid(len(names), height=2.1)
    for i, (axes, name) in enumerate(zip(panels, names)):
        draw_line(axes, metrics, name, name, colour(None, 0))
        axes.set(title=LABELS[name], xlabel="optimiser step" if i + 3 >= len(names) else "")
    figure.suptitle(title, x=0.01, ha="left")
    figure.tight_layout()
    return figure


def validation_types(metrics, term="loss"):
    """{type: metric's name} of a validated term, "all" last; empty when the stage was not validated."""
    found, start, end = {}, "validation/", "/" + term
    for name in sorted(metrics or {}):
        if name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(term):
            kind = name[len(start) : -len(end)]
            if start + kind not in metrics:  # else a term that has a slash of its own
                found[kind] = name
    if start + term in (metrics or {}):
        found["all"] = start + term
    return found


def plot_validation(metrics, term="loss", title=""):
    """One panel: a validated term by type and over all, beside what training saw; None when there is none."""
    types = validation_types(metrics, term)
    if not types:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    if term in metrics:
        known = numpy.isfinite(metrics[term])
        axes.plot(metrics["step"][known], metrics[term][known], color="#8C8C8C", linewidth=0.5, label="training")
    for i, (kind, name) in enumerate(types.items()):
        known = numpy.isfinite(metrics[name])
        is_all = kind == "all"
        axes.plot(
            metrics["step"][known],
            metrics[name][known],
            color="#000000" if is_all else colour(None, i),
            marker="o",
            markersize=3,
            linewidth=1.8 if is_all else 1.1,
            label=kind,
        )
    axes.set(xlabel="optimiser step", ylabel="validation: " + LABELS.get(term, term), title=title)
    legend_right(axes)
    return figure


def main(arguments=None):
    """Draw one curve of several stages."""
    parser = argparse.ArgumentParser(description="Curves of training stages from their metrics.h5.")
    parser.add_argument("stage", nargs="+", help="stage folder")
    parser.add_argument(
        "--name",
        default="loss",
        help="which curve (default loss); 'terms' draws all of the first stage, 'validation' one by type",
    )
    parser.add_argument("--term", default="loss", help="with --name validation: which term (default loss)")
    parser.add_argument("--out", default=".", help="folder for the PNG (default: here)")
    options = parser.parse_args(arguments)
    stages = {
        os.path.basename(os.path.abspath(p)): read_metrics(os.path.join(p, "metrics.h5"))
        for p in options.stage
    }
    first = next(iter(stages.values()))
    if options.name == "terms":
        figure = plot_terms(first)
    elif options.name == "validation":
        figure = plot_validation(first, options.term, next(iter(stages)))
    else:
        figure = plot_stages(stages, options.name)
    if figure is None:
        print(f"curves.py: no curve {options.name!r} in {', '.join(options.stage)}", file=sys.stderr)
        return 3
    print(save(figure, options.out, f"curves-{options.name.replace('/', '-')}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
