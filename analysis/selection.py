#!/usr/bin/env python3
"""What was selected: share of every source, quality by rank, what the result was worth.

python3 analysis/selection.py RUN [--labels labels.jsonl] [--out DIR]
"""

import argparse
import sys

import numpy

from figures import DASHES, MARKERS, colour, legend_right, plt, save
from mbfiles import Run, find_labels, read_labels, read_scores
from scores import kinds_of
from tables import mean_of


def rank_in_source(values, source):
    """Order of all records when every source gives the same share: best first by the rank inside the
    source."""
    place = numpy.full(len(values), numpy.inf)
    for name in numpy.unique(source.astype(str)):
        members = numpy.flatnonzero((source == name) & numpy.isfinite(values))
        order = members[numpy.argsort(-values[members], kind="stable")]
        place[order] = (numpy.arange(len(order)) + 0.5) / max(1, len(order))
    order = numpy.argsort(place, kind="stable")
    return order[numpy.isfinite(place[order])]


def good_share_curve(is_good, order, points=200):
    """(share kept, share of good records among those kept), from 1 % of the labelled records on."""
    total = numpy.cumsum(is_good[order])
    kept = (
        numpy.unique(numpy.linspace(max(1, len(order) // 100), len(order), points).astype(int))
        if len(order)
        else numpy.array([], int)
    )
    return kept / max(1, len(order)), total[kept - 1] / kept


def plot_quality(table, kinds):
    """Good share against the share kept, for every score, with the oracle and chance."""
    labelled = kinds != ""
    is_good = (kinds[labelled] == "good").astype(float)
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    finals = []
    for name, values in table["scores"].items():
        x, y = good_share_curve(is_good, rank_in_source(values[labelled], table["source"][labelled]))
        if len(x):
            finals.append((y[numpy.searchsorted(x, 0.2)], name, x, y))
    for i, (_, name, x, y) in enumerate(sorted(finals, key=lambda f: -f[0])):
        axes.plot(100 * x, 100 * y, color=colour(name, i), linestyle=DASHES[i // 2 % 4], label=name)
    share = is_good.mean() if len(is_good) else 0
    lowest = min([share] + [y[x >= 0.03].min() for _, _, x, y in finals])
    x = numpy.linspace(0.01, 1, 200)
    axes.plot(
        100 * x,
        100 * numpy.minimum(1, share / x),
        color="black",
        linewidth=0.7,
        linestyle=":",
        label="oracle",
    )
    axes.set(
        xlabel="records kept, best first inside each source (%)",
        ylabel="good among those kept (%)",
        title="Quality by rank",
        xlim=(0, 100),
        ylim=(100 * lowest - 4, 103),
    )
    legend_right(axes)
    return figure


def plot_sources(selections):
    """Share of every source in every selection, dots on a line per source; the corpus as a bar behind."""
    names = list(next(iter(selections.values()))["sources"])
    available = {n: next(iter(selections.values()))["sources"][n]["available"] for n in names}
    total = sum(available.values()) or 1
    figure, axes = plt.subplots(figsize=(6.4, 1.0 + 0.36 * min(60, len(names))))
    rows = numpy.arange(len(names))
    axes.barh(rows, [100 * available[n] / total for n in names], height=0.62, color="#DDDDDD", label="corpus")
    for i, (label, summary) in enumerate(selections.items()):
        height = rows + (i - (len(selections) - 1) / 2) * 0.5 / max(1, len(selections))
        axes.plot(
            [100 * summary["sources"].get(n, {}).get("share", 0) for n in names],
            height,
            MARKERS[i % len(MARKERS)],
            markersize=5.5,
            color=colour(label, i),
            linestyle="none",
            label=label,
        )
    axes.set_yticks(rows)
    axes.set_yticklabels(names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="share of the records (%)", title="Sources of each selection")
    axes.set_xlim(left=0)
    legend_right(axes)
    return figure


def plot_results(values, unit="held-out perplexity per token (lower is better)"):
    """One row per target: a dot per seed, a bar at the mean; values is {target: [value per seed]}."""
    means = {n: mean_of(v) for n, v in values.items() if mean_of(v) is not None}
    # The untrained model may be far worse than all others: then it is named, not drawn, so that their
    # distances can be seen.
    others = [mean for name, mean in means.items() if name != "base"]
    is_far = bool(others) and means.get("base", 0) > max(others) + 3 * (max(others) - min(others))
    order = [n for n in means if not (n == "base" and is_far)]
    if not order:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.4 * len(order)))
    for row, name in enumerate(order):
        found = [v for v in values[name] if v is not None]
        mean = means[name]
        axes.plot(found, [row] * len(found), "o", markersize=5, color=colour(name, row), alpha=0.75)
        axes.plot([mean, mean], [row - 0.28, row + 0.28], color=colour(name, row), linewidth=1.4)
        axes.annotate(
            f"{mean:.4g}",
            (mean, row - 0.3),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )
    axes.set_yticks(range(len(order)))
    axes.set_yticklabels(order)
    axes.set_ylim(len(order) - 0.5, -0.75)
    axes.margins(x=0.12)
    seeds = max(len(v) for v in values.values())
    notes = ([f"dots: {seeds} seeds, line: mean"] if seeds > 1 else []) + (
        [f"untrained base: {means['base']:.4g}"] if is_far else []
    )
    axes.set(
        xlabel=unit, title="Target after the same training" + (f" ({'; '.join(notes)})" if notes else "")
    )
    return figure


def read_selections(run):
    """{name: summary} of every selection of a run."""
    found = {name: run.json("select-" + name, "summary.json") for name in run.parts("select-")}
    return {name: summary for name, summary in found.items() if summary is not None}


def main(arguments=None):
    """Figures of one run's selections."""
    parser = argparse.ArgumentParser(description="What was selected: share of every source, quality by rank.")
    parser.add_argument("run", help="run folder")
    parser.add_argument(
        "--labels", help="labels.jsonl (default: the one beside the corpus, when auc has run)"
    )
    parser.add_argument("--out", default=".", help="folder for the PNG files (default: here)")
    options = parser.parse_args(arguments)
    run = Run(options.run)
    selections, labels, table = (
        read_selections(run),
        find_labels(run, options.labels),
        read_scores(run.path("score", "scores.h5")),
    )
    if not selections and table is None:
        print(
            f"selection.py: {options.run} holds neither select-<name>/summary.json nor score/scores.h5",
            file=sys.stderr,
        )
        return 3
    if selections:
        print(save(plot_sources(selections), options.out, "selection-sources"))
    if table is not None and labels:
        print(
            save(plot_quality(table, kinds_of(table, read_labels(labels))), options.out, "selection-quality")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
