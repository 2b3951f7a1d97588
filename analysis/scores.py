#!/usr/bin/env python3
"""Scores of records: distributions of good and bad ones, AUC per kind of damage, AUC against cost.

python3 analysis/scores.py RUN/score/scores.h5 [--labels labels.jsonl] [--auc RUN/auc/auc.json] [--out DIR]
"""

import argparse
import sys

import numpy

from figures import BAD, DASHES, GOOD, MARKERS, colour, grid, legend_right, plt, save
from mbfiles import read_json, read_labels, read_scores
from tables import by_auc, damage_kinds


def kinds_of(table, labels):
    """Kind of every record of a score table; "" where it has no label."""
    return numpy.array(
        [labels.get((s, int(i)), "") for s, i in zip(table["source"], table["source_index"])], dtype=object
    )


def number(value, form="{:.3f}"):
    """A number as text; '-' for none."""
    return "-" if value is None or value != value else form.format(value)


# ---- histograms --------------------------------------------------------------------------------------------


def scale_of(values):
    """Range of a histogram: 0.5 to 99.5 % of the values, so that a far one does not press the rest
    together."""
    low, high = numpy.percentile(values, [0.5, 99.5])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def draw_histogram(axes, values, kinds):
    """Good against bad records, or all records when nothing is known."""
    groups = (
        [("good", values[kinds == "good"], GOOD), ("bad", values[(kinds != "good") & (kinds != "")], BAD)]
        if kinds is not None
        else [("all", values, GOOD)]
    )
    low, high = scale_of(values)
    for label, part, tint in groups:
        if len(part):
            axes.hist(
                numpy.clip(part, low, high),
                bins=40,
                range=(low, high),
                density=True,
                histtype="stepfilled",
                alpha=0.25,
                color=tint,
                linewidth=0,
            )
            axes.hist(
                numpy.clip(part, low, high),
                bins=40,
                range=(low, high),
                density=True,
                histtype="step",
                color=tint,
                linewidth=1.0,
                label=label,
            )


def plot_histograms(table, kinds=None):
    """A panel per score; scores where low is good are shown negated, so right is always better."""
    names = sorted(table["scores"])
    figure, panels = grid(len(names))
    for axes, name in zip(panels, names):
        values = table["scores"][name]
        known = numpy.isfinite(values)
        if known.any():
            heavy = name in ("perplexity", "length") and (values[known] < 0).all()
            shown = -numpy.log10(-values[known]) if heavy else values[known]
            draw_histogram(axes, shown, None if kinds is None else kinds[known])
            axes.set_xlabel("-log10 of the value" if heavy else "value")
        axes.set(title=name, yticks=[])
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        axes.locator_params(axis="x", nbins=4)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncol=2, handlelength=1.2)
    figure.suptitle("Distribution of every score (density; right is better)", x=0.01, ha="left")
    figure.tight_layout()
    return figure


def plot_by_kind(table, kinds, name):
    """One score by kind of damage: boxes from 25 to 75 %, whiskers from 5 to 95 %."""
    order = sorted(
        (k for k in set(kinds) if k),
        key=lambda k: (k != "good", numpy.median(table["scores"][name][kinds == k])),
    )
    figure, axes = plt.subplots(figsize=(6.4, 0.7 + 0.34 * len(order)))
    boxes = axes.boxplot(
        [table["scores"][name][kinds == k] for k in order],
        vert=False,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        widths=0.6,
        medianprops={"color": "black", "linewidth": 1.0},
        boxprops={"linewidth": 0.7},
        whiskerprops={"linewidth": 0.7},
        capprops={"linewidth": 0.7},
    )
    for kind, box in zip(order, boxes["boxes"]):
        box.set(facecolor=GOOD if kind == "good" else BAD, alpha=0.55)
    axes.set_yticks(range(1, len(order) + 1))
    axes.set_yticklabels(order)
    axes.invert_yaxis()
    axes.set(xlabel=f"{name} of the record", title=f"{name} by kind of record (box 25-75 %, whiskers 5-95 %)")
    return figure


# ---- AUC ---------------------------------------------------------------------------------------------------


def plot_auc(auc):
    """Scores down, kinds across; 0.5 is chance."""
    kinds = ["all"] + damage_kinds(auc)
    names = by_auc(auc)
    values = numpy.array(
        [
            [auc["scores"][n].get(k) if auc["scores"][n].get(k) is not None else numpy.nan for k in kinds]
            for n in names
        ],
        dtype=float,
    )
    figure, axes = plt.subplots(figsize=(1.9 + 0.68 * len(kinds), 0.9 + 0.33 * len(names)))
    mesh = axes.imshow(values, cmap="PuOr", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in numpy.ndenumerate(values):
        axes.text(
            column,
            row,
            number(value, "{:.2f}"),
            ha="center",
            va="center",
            fontsize=9,
            color="white" if abs(value - 0.5) > 0.28 else "black",
        )
    axes.set_xticks(range(len(kinds)))
    axes.set_xticklabels(kinds, rotation=30, ha="right")
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names)
    axes.set_title("AUC: P(good record scores above a bad one)")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.colorbar(mesh, ax=axes, pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1]).set_label("AUC (0.5: chance)")
    return figure


def plot_layers(auc):
    """AUC of each layer taken alone; None when no score has layers."""
    layered = {
        name: [numpy.nan if v is None else v for v in entry["layers"]]
        for name, entry in auc["scores"].items()
        if entry.get("layers")
    }
    if not layered:
        return None
    figure, axes = plt.subplots(figsize=(6.0, 3.0))
    for i, (name, values) in enumerate(sorted(layered.items())):
        axes.plot(
            range(len(values)),
            values,
            marker="o",
            markersize=3.5,
            color=colour(name, i),
            linestyle=DASHES[i % 4],
            label=name,
        )
    axes.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
    axes.set(xlabel="MoE layer taken alone", ylabel="AUC, all kinds", title="AUC by layer (dotted: chance)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_right(axes)
    return figure


def plot_cost(auc):
    """AUC against FLOPs per token, the price of a score; scores that need no model stand at the left."""
    names = [name for name in by_auc(auc) if auc["scores"][name].get("all") is not None]
    costs = {name: auc["scores"][name].get("flops_per_token") or 0 for name in names}
    if not any(costs.values()):
        return None
    free = min(cost for cost in costs.values() if cost > 0) / 4
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for i, name in enumerate(names):
        place = (costs[name] or free, auc["scores"][name]["all"])
        label = name if costs[name] else name + " (no model)"
        axes.plot(
            *place, MARKERS[i % len(MARKERS)], markersize=7, alpha=0.85, color=colour(name, i), label=label
        )
    axes.axhline(0.5, color="black", linewidth=0.6, linestyle=":")
    axes.axvline(free * 2, color="#8C8C8C", linewidth=0.6)
    axes.set(xscale="log", xlim=(free / 1.6, max(costs.values()) * 1.6))
    axes.set(xlabel="FLOPs per token (left of the line: 0)", ylabel="AUC, all kinds")
    axes.set_title("What a score costs and what it tells (dotted: chance)")
    legend_right(axes)
    return figure


def main(arguments=None):
    """Figures of one score table."""
    parser = argparse.ArgumentParser(description="Scores of records: distributions and AUC.")
    parser.add_argument("scores", help="scores.h5")
    parser.add_argument("--labels", help="labels.jsonl: {source, index, kind}")
    parser.add_argument("--auc", help="auc.json of moe-select auc")
    parser.add_argument("--out", default=".", help="folder for the PNG files (default: here)")
    options = parser.parse_args(arguments)
    table = read_scores(options.scores)
    if table is None:
        print(f"scores.py: {options.scores} is not there; moe-score writes it", file=sys.stderr)
        return 3
    kinds = kinds_of(table, read_labels(options.labels)) if options.labels else None
    print(save(plot_histograms(table, kinds), options.out, "scores-histograms"))
    auc = read_json(options.auc) if options.auc else None
    if auc is not None:
        print(save(plot_auc(auc), options.out, "scores-auc"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
