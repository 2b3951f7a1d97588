#!/usr/bin/env python3
"""Several models on the same category files: perplexity, accuracy and what they cost.

    python3 analysis/compare.py RUN [--out DIR] [--stage compare]
    python3 analysis/compare.py FOLDER/compare.json [MORE/compare.json ...] --out DIR

RUN is a run folder with a stage `compare` (moe-eval compare), or one with seed_<n> folders with one each.
Written: compare.png (error bars per category and model; means over the categories against relative cost),
compare.md and compare.csv; the tables are printed. One file: the bars are its bootstrap intervals. Several:
the values are means over the files, the bars and spreads their standard deviations, and a difference counts
as real where it is in every file, to the same side.
Exit codes: 0 done, 2 bad usage, 3 nothing to read, or files of different models or categories.
Contents: 1. reading  2. numbers  3. tables  4. figure  5. command line
"""

import argparse
import math
import os
import sys

from mbfiles import open_runs, read_json
from tables import as_markdown, as_text, write_csv

MEAN = "mean"
FIGURES = ("perplexity", "accuracy", "perplexity_ratio", "accuracy_difference")
COSTS = (
    ("relative_flops", "FLOPs per token"),
    ("relative_scoring_time", "time of scoring a token"),
    ("relative_decoding_time", "time of decoding a token"),
)


# ---- 1. reading --------------------------------------------------------------------------------------------


def find_files(places, stage):
    """Paths of compare.json: those named, or the stage's of a run folder and its seeds."""
    if all(os.path.isfile(place) for place in places):
        return list(places)
    found = []
    for place in places:
        own = os.path.join(place, "compare.json")
        runs = [own] if os.path.isfile(own) else [run.path(stage, "compare.json") for run in open_runs(place)]
        found += [path for path in runs if os.path.isfile(path)]
    return found


def read_files(paths):
    """The comparisons, checked to be of the same models and categories."""
    files = []
    for path in paths:
        table = read_json(path)
        if table is None or table.get("format") != "moebatch-compare":
            raise ValueError(f"{path}: is no comparison of moe-eval compare")
        first = files[0] if files else table
        for name, a, b in (
            ("models", first["models"], table["models"]),
            ("categories", list(first["categories"]), list(table["categories"])),
            ("baseline", first["baseline"], table["baseline"]),
        ):
            if a != b:
                raise ValueError(f"{path} and {paths[0]} differ in {name}: {b} and {a}")
        files.append(table)
    return files


# ---- 2. numbers --------------------------------------------------------------------------------------------


def cell_of(table, column, model):
    """The figures of one model in one category, or in the mean."""
    part = table["mean"] if column == MEAN else table["categories"][column]
    return part["models"][model]


def combine(files, column, model, figure):
    """{"value", "low", "high", "is_real"} over all files; None where there is no value."""
    cells = [cell_of(table, column, model)[figure] for table in files]
    values = [cell["value"] for cell in cells]
    if any(value is None for value in values):
        return None
    none = 1.0 if figure == "perplexity_ratio" else 0.0
    sides = {value > none for value in values}
    is_real = all(cell.get("is_real") for cell in cells) and len(sides) == 1
    if len(cells) == 1:
        return dict(cells[0], is_real=is_real)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return {"value": mean, "low": mean - spread, "high": mean + spread, "is_real": is_real}


def cost_of(files, model, name):
    """Mean of a relative cost over the files; None when one has none."""
    values = [table["cost"][model].get(name) for table in files]
    return None if None in values else sum(values) / len(values)


# ---- 3. tables ---------------------------------------------------------------------------------------------


def digits(value):
    """About four digits."""
    size = abs(value)
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def as_cell(found, figure, is_alone):
    """'12.31 [11.90, 12.80]', or '12.31 +- 0.45' over several files; a star where a difference is real."""
    if found is None:
        return "-"
    scale = 100 if figure.startswith("accuracy") else 1
    places = 1 if scale == 100 else digits(found["value"])
    sign = "+" if figure == "accuracy_difference" and found["value"] >= 0 else ""
    text = f"{sign}{scale * found['value']:.{places}f}" + ("*" if found["is_real"] else "")
    low, high = found.get("low"), found.get("high")
    if low is None or (low == high and figure in FIGURES[2:]):
        return text
    if is_alone:
        return f"{text} [{scale * low:.{places}f}, {scale * high:.{places}f}]"
    return f"{text} +- {scale * (high - low) / 2:.{places}f}"


def make_tables(files):
    """[(title, header, rows)]: the four figures, then the cost."""
    first = files[0]
    base, columns = first["baseline"], list(first["categories"]) + [MEAN]
    titles = (
        "perplexity (mean: geometric)",
        "accuracy in %",
        f"perplexity over that of {base} (* real)",
        f"accuracy less that of {base}, in points (* real)",
    )
    tables = []
    for figure, title in zip(FIGURES, titles):
        rows = [
            [model] + [as_cell(combine(files, c, model, figure), figure, len(files) == 1) for c in columns]
            for model in first["models"]
        ]
        if any(cell != "-" for row in rows for cell in row[1:]):
            tables.append((title, ["model"] + columns, rows))
    costs = [(name, [cost_of(files, model, name) for model in first["models"]]) for name, _ in COSTS]
    rows = [
        [model] + ["-" if values[at] is None else f"{values[at]:.2f}" for _, values in costs]
        for at, model in enumerate(first["models"])
    ]
    tables.append((f"cost, times that of {base}", ["model"] + [label for _, label in COSTS], rows))
    return tables


def csv_rows(files):
    """A row per model and category: every figure with its ends, and the relative costs."""
    first = files[0]
    header = ["model", "category"]
    for figure in FIGURES:
        header += [figure, figure + "_low", figure + "_high"]
    header += [name for name, _ in COSTS]
    rows = []
    for model in first["models"]:
        for column in list(first["categories"]) + [MEAN]:
            row = [model, column]
            for figure in FIGURES:
                found = combine(files, column, model, figure) or {}
                row += [found.get(end) for end in ("value", "low", "high")]
            rows.append(row + [cost_of(files, model, name) for name, _ in COSTS])
    return header, [["" if cell is None else cell for cell in row] for row in rows]


def write_tables(folder, files, tables):
    """compare.md and compare.csv."""
    says = ", ".join(
        f"{name} {part['records']} records ({part['judged']} judged)"
        for name, part in files[0]["categories"].items()
    )
    how = (
        f"Intervals hold {100 * files[0]['level']:g} % of {files[0]['draws']} draws over records."
        if len(files) == 1
        else f"Means and standard deviations over {len(files)} runs."
    )
    parts = ["# Models compared", f"{says}. {how}"]
    parts += [f"## {title}\n\n{as_markdown(header, rows)}" for title, header, rows in tables]
    parts.append("![perplexity, accuracy and cost](compare.png)")
    with open(os.path.join(folder, "compare.md"), "w", encoding="utf-8") as file:
        file.write("\n\n".join(parts) + "\n")
    write_csv(os.path.join(folder, "compare.csv"), *csv_rows(files))


# ---- 4. figure ---------------------------------------------------------------------------------------------


def draw_value(axes, x, found, scale, style):
    """One point with its bar."""
    if found is None:
        return
    value = scale * found["value"]
    low, high = (found["value"] if found.get(end) is None else found[end] for end in ("low", "high"))
    bars = [[max(0, value - scale * low)], [max(0, scale * high - value)]]
    axes.errorbar([x], [value], yerr=bars, linestyle="none", capsize=2, elinewidth=1, markersize=4.5, **style)


def draw_categories(axes, files, figure, styles):
    """Categories along x, a point per model beside each other."""
    models, columns = files[0]["models"], list(files[0]["categories"]) + [MEAN]
    step = 0.8 / len(models)
    for at, column in enumerate(columns):
        for k, model in enumerate(models):
            x = at + (k - (len(models) - 1) / 2) * step
            scale = 100 if figure == "accuracy" else 1
            draw_value(axes, x, combine(files, column, model, figure), scale, styles[model])
        if at:
            axes.axvline(at - 0.5, color="#D0D0D0", linewidth=0.6)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.grid(axis="x", visible=False)


def plain_numbers(axes, ends):
    """Where values lie far apart, a logarithmic axis whose ticks read as 5, 10, 20 ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    bounds = [end for end in ends if end is not None and end > 0]
    if not bounds or max(bounds) < 4 * min(bounds):
        return
    axes.set_yscale("log")
    axes.set_ylim(0.75 * min(bounds), 1.35 * max(bounds))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def ends_of(files, figure):
    """All values and ends of one figure, for the range of an axis."""
    columns = list(files[0]["categories"]) + [MEAN]
    found = [combine(files, column, model, figure) for column in columns for model in files[0]["models"]]
    return [cell[end] for cell in found if cell for end in ("value", "low", "high")]


def beside(costs):
    """Places along x: models of about one cost stand side by side."""
    wide = max(costs) - min(costs) or 0.5
    places, order = list(costs), sorted(range(len(costs)), key=lambda at: costs[at])
    while order:
        group = [at for at in order if costs[at] - costs[order[0]] < 0.03 * wide]
        order = order[len(group) :]
        middle = sum(costs[at] for at in group) / len(group)
        for k, at in enumerate(sorted(group)):
            places[at] = middle + (k - (len(group) - 1) / 2) * 0.025 * wide
    return places


def draw_cost(axes, files, figure, styles):
    """The mean over categories against the relative FLOPs."""
    scale = 100 if figure == "accuracy" else 1
    found = [(model, combine(files, MEAN, model, figure)) for model in files[0]["models"]]
    places = beside([cost_of(files, model, "relative_flops") for model, _ in found])
    for (model, cell), x in zip(found, places):
        draw_value(axes, x, cell, scale, styles[model])
    axes.set_xlabel("FLOPs per token, times those of " + files[0]["baseline"])
    axes.margins(x=0.1)


def draw(folder, files):
    """compare.png; returns its path."""
    import figures

    plt = figures.plt
    models = files[0]["models"]
    styles = {
        model: {"color": figures.COLOURS[k % 8], "marker": figures.MARKERS[k % 8], "label": model}
        for k, model in enumerate(models)
    }
    has_accuracy = any(combine(files, MEAN, model, "accuracy") for model in models)
    shown = ["perplexity"] + (["accuracy"] if has_accuracy else [])
    has_ratio = len(models) > 1 and all(combine(files, MEAN, m, "perplexity_ratio") for m in models)
    rows = ["perplexity"] + (["perplexity_ratio"] if has_ratio else []) + shown[1:]
    titles = {
        "perplexity": "perplexity (lower is better)",
        "perplexity_ratio": f"perplexity over that of {files[0]['baseline']}, on the same records",
        "accuracy": "accuracy, %",
    }
    width = min(14, max(7.5, 1.2 + 0.17 * len(models) * (len(files[0]["categories"]) + 1)))
    figure = plt.figure(figsize=(width, 2.4 * len(rows) + 2.7), layout="constrained")
    grid = figure.add_gridspec(len(rows) + 1, len(shown))
    for row, name in enumerate(rows):
        axes = figure.add_subplot(grid[row, :])
        draw_categories(axes, files, name, styles)
        axes.set_title(titles[name])
        if name != "accuracy":
            plain_numbers(axes, ends_of(files, name))
        if name == "perplexity_ratio":
            axes.axhline(1, color="#000000", linewidth=0.7)
    for column, name in enumerate(shown):
        axes = figure.add_subplot(grid[len(rows), column])
        draw_cost(axes, files, name, styles)
        axes.set_title("mean accuracy, %" if column else "geometric mean perplexity")
    handles, labels = axes.get_legend_handles_labels()
    own = dict(zip(labels, handles))
    columns = min(len(models), 4 if len(models) > 6 else 6)
    figure.legend(own.values(), own.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=columns)
    return figures.save(figure, folder, "compare")


# ---- 5. command line ---------------------------------------------------------------------------------------


def main(arguments=None):
    """Read, write, show; returns the exit code."""
    parser = argparse.ArgumentParser(description="Several models on the same category files.")
    parser.add_argument("place", nargs="+", help="run folder, or compare.json files")
    parser.add_argument("--out", help="folder to write to (default: RUN/report)")
    parser.add_argument("--stage", default="compare", help="the stage of a run folder (default compare)")
    options = parser.parse_args(arguments)
    folder = options.out or (
        os.path.join(options.place[0], "report") if os.path.isdir(options.place[0]) else None
    )
    if folder is None:
        parser.error("compare.json files need --out")
    try:
        paths = find_files(options.place, options.stage)
        if not paths:
            print(f"compare.py: {options.place[0]} holds no {options.stage}/compare.json", file=sys.stderr)
            return 3
        files = read_files(paths)
        tables = make_tables(files)
        os.makedirs(folder, exist_ok=True)
        write_tables(folder, files, tables)
        path = draw(folder, files)
    except (OSError, ValueError, KeyError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 3
    for title, header, rows in tables:
        print(f"{title}\n{as_text(header, rows)}\n")
    print(f"{len(files[0]['models'])} models, {len(files)} comparison(s): {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
