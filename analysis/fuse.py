#!/usr/bin/env python3
"""The report of a fusing study: tables on the terminal, one HTML file with every figure inside.

    python3 analysis/fuse.py checkpoints/<study>/<run> [--out DIR] [--no-figures]

The PNG files lie beside the HTML, under RUN/report. A folder with seed_<n> inside is reported over all its
seeds: means with their spread. Parts that are missing are named and left out. Without numpy, h5py or
matplotlib the tables are printed, figures left out.
Contents: 1. collecting  2. tables  3. verdicts  4. figures  5. page  6. command line
"""

import argparse
import html
import json
import os
import sys

import compare
from mbfiles import open_runs
from report import figure_html, section, time_table, write_html
from tables import as_text, mean_of, spread_of, with_spread, write_csv

PARENTS = ("foundation", "sft")
ROUTERS = ("btm-token", "btm-layer")
FUSED = ("ensemble",) + ROUTERS
NEAR = 1.05  # times the better parent's perplexity: at or near it


# ---- 1. collecting -----------------------------------------------------------------------------------------


def best_row(metrics):
    """The row of metrics whose validation loss over all is the lowest; None when nothing was validated."""
    import numpy

    losses = (metrics or {}).get("validation/loss")
    if losses is None or not numpy.isfinite(losses).any():
        return None
    return int(numpy.nanargmin(losses))


def shares_of(metrics):
    """{kind of text: the first member's share on held-back records, mean over stages, at the best router}."""
    row, found = best_row(metrics), {}
    for name, values in (metrics or {}).items():
        parts = name.split("/")
        if row is not None and len(parts) == 4 and parts[0] == "validation" and parts[2:] == ["share", PARENTS[0]]:
            found[parts[1]] = float(values[row])
    return found


def collect_run(run):
    """Everything the tables need of one run."""
    item = {"run": run, "compare": run.json("compare", "compare.json"), "shares": {}}
    item["teacher"] = run.json("teacher", "results.json") if os.path.isdir(run.path("teacher")) else None
    for router in ROUTERS:
        if os.path.isdir(run.path(router)):
            try:
                item["shares"][router] = shares_of(run.metrics(router))
            except ImportError as error:
                run.missing.append(f"shares of {router} ({error})")
    return item


def comparisons(data):
    """The runs' comparisons, checked to be of the same models and categories."""
    return compare.read_files([item["run"].path("compare", "compare.json") for item in data if item["compare"]])


def values_of(files, column, model, figure):
    """One value per seed; None where there is none."""
    return [compare.cell_of(table, column, model)[figure]["value"] for table in files]


def kinds_of(data):
    """Kinds of text the routers were validated on, in the order of the files."""
    kinds = []
    for item in data:
        for shares in item["shares"].values():
            kinds += [kind for kind in shares if kind not in kinds]
    return kinds


def shares_over(data, router, kind):
    """One share per seed; None where there is none."""
    return [item["shares"].get(router, {}).get(kind) for item in data]


# ---- 2. tables ---------------------------------------------------------------------------------------------


def result_table(files):
    """One row per model: perplexity and accuracy in every category and on the mean, and the cost."""
    first = files[0]
    columns = list(first["categories"]) + [compare.MEAN]
    judged = [c for c in columns if any(v is not None for m in first["models"] for v in values_of(files, c, m, "accuracy"))]
    header = ["model"] + [f"ppl {c}" for c in columns] + [f"acc {c}" for c in judged] + ["cost"]
    rows = []
    for model in first["models"]:
        row = [model]
        for column in columns:
            values = values_of(files, column, model, "perplexity")
            row.append(with_spread(values, f"{{:.{compare.digits(mean_of(values) or 0)}f}}"))
        for column in judged:
            values = values_of(files, column, model, "accuracy")
            row.append(with_spread([None if v is None else 100 * v for v in values], "{:.1f}"))
        cost = compare.cost_of(files, model, "relative_flops")
        rows.append(row + ["-" if cost is None else f"{cost:.2f}"])
    return header, rows


def share_table(data):
    """The foundation's share on held-back records by kind of text, a row per router."""
    kinds, rows = kinds_of(data), []
    for router in ROUTERS:
        cells = [with_spread(shares_over(data, router, kind), "{:.3f}") for kind in kinds]
        if any(cell != "-" for cell in cells):
            rows.append([router] + cells)
    return ["router"] + kinds, rows


def teacher_table(data):
    """What the stored teacher holds and costs."""
    rows = []
    for item in data:
        found = item["teacher"]
        if found:
            rows.append(
                [
                    "-" if item["run"].seed is None else str(item["run"].seed),
                    str(found["rows"]),
                    f"{found['k']} of {found['vocab']}",
                    found["dtype"],
                    f"{found['bytes_per_token']:.0f}",
                    f"{found['dense_bytes_per_token']:.0f}",
                    f"{found['mass_mean']:.4f}",
                    f"{found['mass_p5']:.4f}",
                ]
            )
    return [
        "seed",
        "tokens",
        "kept",
        "dtype",
        "bytes a token",
        "whole",
        "mass in the kept, mean",
        "5th percentile",
    ], rows


# ---- 3. verdicts -------------------------------------------------------------------------------------------


def ratios(files, model):
    """{category: perplexity over that of the better parent, one per seed}."""
    return {
        column: [
            compare.cell_of(table, column, model)["perplexity"]["value"]
            / min(compare.cell_of(table, column, parent)["perplexity"]["value"] for parent in PARENTS)
            for table in files
        ]
        for column in files[0]["categories"]
    }


def fused_verdict(files, model):
    """Is a fused model at or near the better parent everywhere?"""
    found = ratios(files, model)
    near = sum(value <= NEAR for values in found.values() for value in values)
    each = ", ".join(f"{column} {mean_of(values):.3f}" for column, values in found.items())
    return (
        f"{model}: perplexity over that of the better parent: {each}; "
        f"at most {NEAR} times in {near} of {sum(map(len, found.values()))} (category, seed)"
    )


def student_verdict(files, model):
    """Is the student better than both parents on the mean, at what cost?"""
    parts = []
    for figure, words, sign, scale, form in (
        ("perplexity", "mean perplexity", -1, 1, "{:.3f}"),
        ("accuracy", "mean accuracy in %", 1, 100, "{:.1f}"),
    ):
        own = values_of(files, compare.MEAN, model, figure)
        parents = {parent: values_of(files, compare.MEAN, parent, figure) for parent in PARENTS}
        if None in own or any(None in values for values in parents.values()):
            continue
        better = sum(all(sign * a > sign * values[i] for values in parents.values()) for i, a in enumerate(own))
        says = ", ".join(f"{name} {form.format(scale * mean_of(values))}" for name, values in parents.items())
        parts.append(
            f"{words} {form.format(scale * mean_of(own))} ({says}), better than both in {better} of {len(own)} seeds"
        )
    cost = compare.cost_of(files, model, "relative_flops")
    return f"{model}: {'; '.join(parts)}; cost {cost:.2f} of one model"


def share_verdict(data, router):
    """On which text does the router ask the foundation most and least?"""
    means = {kind: mean_of(shares_over(data, router, kind)) for kind in kinds_of(data)}
    means = {kind: value for kind, value in means.items() if value is not None}
    if len(means) < 2:
        return None
    most, least = max(means, key=means.get), min(means, key=means.get)
    return f"{router}: the foundation's share is largest on {most} ({means[most]:.2f}), smallest on {least} ({means[least]:.2f})"


def verdicts(data, files):
    """The study's result in sentences."""
    models = files[0]["models"]
    if not all(parent in models for parent in PARENTS):
        return []
    found = [fused_verdict(files, model) for model in FUSED if model in models]
    found += [student_verdict(files, model) for model in ("distilled", "control") if model in models]
    found += [share_verdict(data, router) for router in ROUTERS]
    return [sentence for sentence in found if sentence]


# ---- 4. figures --------------------------------------------------------------------------------------------


def plot_shares(data):
    """The foundation's share by kind of text, a bar per router; over seeds with one standard deviation."""
    from figures import colour, legend_right, plt

    kinds, routers = kinds_of(data), [r for r in ROUTERS if any(item["shares"].get(r) for item in data)]
    if not kinds or not routers:
        return None
    figure, axes = plt.subplots(figsize=(6.0, 2.9))
    width = 0.8 / len(routers)
    for i, router in enumerate(routers):
        values = [shares_over(data, router, kind) for kind in kinds]
        axes.bar(
            [x + (i - (len(routers) - 1) / 2) * width for x in range(len(kinds))],
            [mean_of(v) or 0 for v in values],
            width * 0.92,
            yerr=[spread_of(v) or 0 for v in values],
            color=colour(None, i),
            label=router,
            error_kw={"linewidth": 0.8},
        )
    axes.axhline(0.5, color="#808080", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(ylabel="share of the foundation", ylim=(0, 1), title="Held-back records, by kind of text")
    axes.grid(axis="x", visible=False)
    legend_right(axes)
    return figure


def answer_figures(run):
    """Shares in the answers to the prompts, as router_stats.py draws them."""
    import router_stats

    found = []
    for router in ROUTERS:
        folder = run.path("generate-" + router)
        if not os.path.exists(os.path.join(folder, "router_stats.h5")):
            continue
        stats = router_stats.read_stats(folder)
        groups = router_stats.read_groups(stats, "type")
        figure = router_stats.stage_figure(stats, router_stats.by_group(stats, groups))
        found.append((f"answers-{router}", figure, f"{router}: shares in the answers to the prompts, by stage."))
    return found


def curve_figures(run):
    """Validation losses of routers and students, and training losses of models made on the spot."""
    from curves import plot_stages, plot_validation

    found = []
    for stage, term, title in (
        ("btm-token", "lm_loss", "Router by token: held-back records"),
        ("btm-layer", "lm_loss", "Router by layer: held-back records"),
        ("distil", "task_loss", "Student: held-back records"),
        ("control", "loss", "The same student without a teacher: held-back records"),
    ):
        if os.path.isdir(run.path(stage)):
            metrics = run.metrics(stage)
            has_term = f"validation/{term}" in (metrics or {})
            figure = plot_validation(metrics, term if has_term else "loss", title)
            found.append((f"validation-{stage}", figure, f"{title}, loss by kind of text."))
    made = {name: run.metrics(name) for name in PARENTS if os.path.isdir(run.path(name))}
    found.append(("parents", plot_stages(made, "loss", "The parents"), "Training loss of models made on the spot."))
    return found


def draw_all(data, files, folder):
    """[(name, path, caption)] of every figure that could be drawn, and why others could not."""
    try:
        from figures import save
        import numpy  # noqa: F401
        import h5py  # noqa: F401
    except ImportError as error:
        return [], [f"figures left out: {error}; install python3-numpy, python3-h5py and python3-matplotlib"]
    caption = "Perplexity and accuracy by category, and their means against the cost."
    paths, problems = [("compare", compare.draw(folder, files), caption)], []
    text = "Share of the foundation in the routers' mixtures on held-back records, mean over stages."
    for make in (
        lambda: [("shares", plot_shares(data), text)],
        lambda: answer_figures(data[0]["run"]),
        lambda: curve_figures(data[0]["run"]),
    ):
        try:
            paths += [
                (name, save(figure, folder, name), says) for name, figure, says in make() if figure is not None
            ]
        except (OSError, KeyError, ValueError) as error:
            problems.append(f"figures left out: {type(error).__name__}: {error}")
    return paths, problems


# ---- 5. page -----------------------------------------------------------------------------------------------


def answers_html(run):
    """The answers side by side, where that stage has run."""
    path = run.path("side-by-side", "side_by_side.txt")
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return f"<h2>Answers side by side</h2>\n<pre>{html.escape(file.read())}</pre>"


def build_page(folder, data, files, figures, notes):
    """Tables and figures in reading order; returns the path of the page."""
    seeds = [str(item["run"].seed) for item in data if item["run"].seed is not None]
    title = "Two models as one: " + os.path.basename(os.path.abspath(os.path.join(folder, "..")))
    spread = f"Mean over seeds {', '.join(seeds)}, spread: one standard deviation." if len(seeds) > 1 else ""
    note = "Mean: geometric for perplexity. Cost: FLOPs of a token, times those of the foundation."
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p class=dim>{html.escape(spread)}</p>"]
    parts += [f"<p class=verdict>{html.escape(sentence)}</p>" for sentence in verdicts(data, files)]
    parts += [section("Result", result_table(files), note)]
    parts += [section(name, (header, rows)) for name, header, rows in compare.make_tables(files)]
    parts += [
        section("Whose share on which text", share_table(data), "Share of the foundation on held-back records."),
        section("The stored teacher", teacher_table(data)),
    ]
    parts += ["<h2>Figures</h2>" if figures else ""] + [figure_html(path, text) for _, path, text in figures]
    parts += [answers_html(data[0]["run"]), section("Stages", time_table(data))]
    if notes:
        parts.append("<h2>Left out</h2>\n<ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in notes) + "</ul>")
    path = os.path.join(folder, "report.html")
    write_html(path, title, parts)
    return path


def write_summary(folder, data, files):
    """report.json and result.csv, for other programs."""
    columns = list(files[0]["categories"]) + [compare.MEAN]
    summary = {
        "seeds": [item["run"].seed for item in data],
        "verdicts": verdicts(data, files),
        "models": {
            model: {
                **{f: {c: values_of(files, c, model, f) for c in columns} for f in ("perplexity", "accuracy")},
                "relative_flops": compare.cost_of(files, model, "relative_flops"),
            }
            for model in files[0]["models"]
        },
        "shares": [item["shares"] for item in data],
        "teacher": [item["teacher"] for item in data],
    }
    with open(os.path.join(folder, "report.json"), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=2)
        file.write("\n")
    write_csv(os.path.join(folder, "result.csv"), *result_table(files))


# ---- 6. command line ---------------------------------------------------------------------------------------


def notes_of(data, problems):
    """Everything that is missing, once."""
    notes = []
    for item in data:
        prefix = f"seed {item['run'].seed}: " if item["run"].seed is not None else ""
        notes += [f"{prefix}{name} is not there" for name in item["run"].missing]
    return notes + problems


def halves(table):
    """A wide table in parts that fit a terminal: perplexities, accuracies with the cost."""
    header, rows = table
    cut = next((i for i, name in enumerate(header) if name.startswith("acc ")), len(header) - 1)
    yield header[:cut], [row[:cut] for row in rows]
    yield header[:1] + header[cut:], [row[:1] + row[cut:] for row in rows]


def print_tables(data, files, notes, page):
    """What the terminal shows at the end of a study."""
    count = len(files)
    print(f"\nResult over {count} seeds (mean +- standard deviation)" if count > 1 else "\nResult")
    print("\n\n".join(as_text(*part) for part in halves(result_table(files))))
    shares = share_table(data)
    if shares[1]:
        print("\nShare of the foundation on held-back records\n" + as_text(*shares))
    for sentence in verdicts(data, files):
        print("  " + sentence)
    if notes:
        print("\nleft out: " + "; ".join(notes))
    print(f"\nreport: {page}")


def main(arguments=None):
    """Returns the exit code: 0 done, 2 bad usage, 3 nothing to report or a broken file."""
    parser = argparse.ArgumentParser(description="Report of a fusing study.")
    parser.add_argument("run", help="run folder, with stages or with seed_<n> folders inside")
    parser.add_argument("--out", help="folder to write to (default: RUN/report)")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.run):
        print(f"fuse.py: {options.run}: no such folder", file=sys.stderr)
        return 2
    folder = options.out or os.path.join(options.run, "report")
    try:
        data = [collect_run(run) for run in open_runs(options.run)]
        files = comparisons(data)
        if not files:
            print(f"fuse.py: {options.run} holds no compare/compare.json and no seed_<n> folders", file=sys.stderr)
            return 3
        os.makedirs(folder, exist_ok=True)
        figures, problems = ([], []) if options.no_figures else draw_all(data, files, folder)
        notes = notes_of(data, problems)
        page = build_page(folder, data, files, figures, notes)
        write_summary(folder, data, files)
    except (OSError, ValueError) as error:
        print(f"fuse.py: {error}", file=sys.stderr)
        return 3
    print_tables(data, files, notes, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
