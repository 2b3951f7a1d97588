#!/usr/bin/env python3
"""Report of an expert study (jobs/moe2.sh): what gate and fusion are worth, what experts cost, which to keep.

    python3 analysis/moe2.py RUN [--no-figures]

RUN is a run folder, or one with seed_<n> folders. Into every run's folder go
    accuracy/     systems.md .csv (with intervals), by_source.csv, experts.csv (every expert on every source)
    latency/      latency.json, latency.csv (every expert and pair of lengths), energy/ likewise
    smo_tables/   the tables of moe-subset
    figures/      clusters, accuracy, experts, latency, energy, pareto, limits, parts (where a request's time goes)
and over several seeds RUN/accuracy/seeds.md .csv: mean and standard deviation of every system. What is missing
is named and left out. Exit codes: 0 done, 2 bad usage, 3 nothing to report or a broken file.
Contents: 1. accuracy  2. costs  3. subsets  4. figures  5. seeds  6. command line
"""

import argparse
import os
import shutil
import sys

from mbfiles import open_h5, open_runs, read_json
from tables import as_markdown, as_text, percent, with_spread, write_csv

CHOICES = ("gate_top1", "best_single", "oracle", "random", "chance")


# ---- 1. accuracy -------------------------------------------------------------------------------------------


def read_report(run):
    """report.json of moe-gate report, or None."""
    report = read_json(run.path("gate-report", "report.json"))
    if report is None:
        run.need("gate-report", "report.json")
    elif report.get("format") != "moebatch-gate-report":
        raise ValueError(f"{run.path('gate-report', 'report.json')}: is no report of moe-gate")
    return report


def systems_table(report, together, base):
    """Every system's accuracy with interval and its lead over the best single expert."""
    header = ["system", "accuracy", "low", "high", "lead", "lead_low", "lead_high"]
    rows = []
    for name, s in report["groups"]["all"]["systems"].items():
        rows.append([name] + [percent(s[key]) for key in ("accuracy", "low", "high", "gain", "gain_low", "gain_high")])
    for name, value in (("answering together", together), ("base model", base)):
        if value is not None:
            rows.append([name, percent(value)] + ["-"] * 5)
    return header, rows


def sources_table(report):
    """Accuracy of every system on every source."""
    groups = [name for name in report["groups"] if name.startswith("source/")]
    header = ["system"] + [name.split("/", 1)[1] for name in groups]
    systems = report["groups"]["all"]["systems"]
    rows = [[s] + [percent(report["groups"][g]["systems"][s]["accuracy"]) for g in groups] for s in systems]
    return header, rows


def write_accuracy(run, report):
    """The tables of accuracy/; returns the table of systems."""
    folder = run.path("accuracy")
    os.makedirs(folder, exist_ok=True)
    together = (read_json(run.path("together", "results.json")) or {}).get("accuracy")
    base = (read_json(run.path("answers-base", "results.json")) or {}).get("questions", {}).get("accuracy", {})
    systems = systems_table(report, accuracy_of(together), accuracy_of(base))
    with open(os.path.join(folder, "systems.md"), "w", encoding="utf-8") as file:
        file.write(as_markdown(*systems) + "\n")
    write_csv(os.path.join(folder, "systems.csv"), *systems)
    header, rows = sources_table(report)
    write_csv(os.path.join(folder, "by_source.csv"), header, [r for r in rows if not r[0].startswith("expert/")])
    write_csv(os.path.join(folder, "experts.csv"), header, [r for r in rows if r[0].startswith("expert/")])
    return systems


def accuracy_of(value):
    """A share out of a number, or a group of shares with "all" in it."""
    while isinstance(value, dict):
        value = value.get("accuracy", value.get("all"))
    return value


# ---- 2. costs ----------------------------------------------------------------------------------------------


def read_cost(run, what):
    """latency.json or energy.json of the joined measurement, or None."""
    cost = read_json(run.path("costs", f"{what}.json"))
    if cost is None:
        run.need("costs", f"{what}.json")
    return cost


def cost_rows(cost, member):
    """Rows expert, prompt, output, p50, p95, mean, min, max."""
    for name, expert in cost["experts"].items():
        for p, prompt in enumerate(expert["prompt_tokens"]):
            for o, output in enumerate(expert["output_tokens"]):
                yield [name, prompt, output] + [
                    f"{expert[member][key][p][o]:.6g}" for key in ("p50", "p95", "mean", "min", "max")
                ]


def write_cost(run, what, member):
    """Copy of the file and its table; returns the file's content."""
    cost = read_cost(run, what)
    if cost is None:
        return None
    folder = run.path(what)
    os.makedirs(folder, exist_ok=True)
    shutil.copyfile(run.path("costs", f"{what}.json"), os.path.join(folder, f"{what}.json"))
    header = ["expert", "prompt_tokens", "output_tokens", "p50", "p95", "mean", "min", "max"]
    write_csv(os.path.join(folder, f"{what}.csv"), header, list(cost_rows(cost, member)))
    return cost


# ---- 3. subsets --------------------------------------------------------------------------------------------


def write_subsets(run):
    """Copies of moe-subset's tables; its results, or None."""
    results = read_json(run.path("subset", "results.json"))
    if results is None:
        run.need("subset", "results.json")
        return None
    shutil.rmtree(run.path("smo_tables"), ignore_errors=True)
    shutil.copytree(run.path("subset", "smo_tables"), run.path("smo_tables"))
    return results


# ---- 4. figures --------------------------------------------------------------------------------------------


def draw_clusters(run, folder):
    """Records in the plane of their two principal components, by cluster."""
    import figures

    with open_h5(run.path("cluster", "clusters.h5"), "moebatch-clusters") as file:
        if "pca" not in file:
            return None
        points, labels, explained = file["pca"][:], file["labels"][:], file["pca_explained"][:]
    figure, (axes,) = figures.grid(1, 4.2, 3.4)
    for k in range(int(labels.max()) + 1):
        rows = points[labels == k][:2000]
        axes.scatter(rows[:, 0], rows[:, 1], s=3, color=figures.COLOURS[k % len(figures.COLOURS)], label=f"{k}: {int((labels == k).sum())}")
    axes.set_title("Clusters of the training questions")
    axes.set_xlabel(f"first component ({percent(explained[0])} of the variance)")
    axes.set_ylabel(f"second ({percent(explained[1])})")
    figures.legend_right(axes, markerscale=3, title="cluster: records")
    return figures.save(figure, folder, "clusters")


def draw_accuracy(report, folder):
    """Systems with their intervals."""
    import figures

    systems = {n: s for n, s in report["groups"]["all"]["systems"].items() if not n.startswith("expert/")}
    figure, (axes,) = figures.grid(1, 5.2, 0.24 * len(systems) + 0.9)
    for i, (name, s) in enumerate(reversed(systems.items())):
        kind = 0 if name in CHOICES else 1
        axes.barh(i, 100 * s["accuracy"], color=figures.COLOURS[kind], height=0.7)
        axes.plot([100 * s["low"], 100 * s["high"]], [i, i], color="black")
    axes.set_yticks(range(len(systems)), list(reversed(systems)))
    axes.set_xlabel("right answers, %, with intervals")
    axes.set_title("Choosing and fusing, on questions nobody learned from")
    return figures.save(figure, folder, "accuracy")


def draw_experts(report, folder):
    """Every expert on every source."""
    import figures

    groups = [name for name in report["groups"] if name.startswith("source/")]
    experts = [name for name in report["groups"]["all"]["systems"] if name.startswith("expert/")]
    values = [[100 * report["groups"][g]["systems"][e]["accuracy"] for g in groups] for e in experts]
    figure, (axes,) = figures.grid(1, 0.7 * len(groups) + 2, 0.36 * len(experts) + 1.4)
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", color="black" if value > 60 else "white", fontsize=7)
    axes.set_xticks(range(len(groups)), [g.split("/", 1)[1] for g in groups], rotation=40, ha="right")
    axes.set_yticks(range(len(experts)), [e.split("/", 1)[1] for e in experts])
    axes.grid(False)
    axes.set_title("Right answers of every expert, %")
    figure.colorbar(image, ax=axes, fraction=0.04)
    return figures.save(figure, folder, "experts")


def draw_cost(cost, member, unit, name, note, folder):
    """Cost against the prompt's length, a panel for each output length; bands are p5 to p95."""
    import figures

    outputs = next(iter(cost["experts"].values()))["output_tokens"]
    figure, panels = figures.grid(len(outputs))
    for o, axes in enumerate(panels):
        for i, (who, expert) in enumerate(cost["experts"].items()):
            table = expert[member]
            x = expert["prompt_tokens"]
            middle, low, high = ([row[o] for row in table[key]] for key in ("p50", "p5", "p95"))
            axes.plot(x, middle, marker="o", markersize=2.5, color=figures.colour(who, i), label=who)
            axes.fill_between(x, low, high, color=figures.colour(who, i), alpha=0.15, linewidth=0)
        axes.set_title(f"{outputs[o]} tokens out")
        axes.set_xlabel("tokens in")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel(unit)
    figures.legend_right(panels[-1])
    figure.text(0.01, -0.02, note, fontsize=6, va="top", wrap=True)
    figure.tight_layout()
    return figures.save(figure, folder, name)


def draw_pareto(run, results, folder):
    """All subsets, and those that nothing beats."""
    import figures

    front = results["tables"]["pareto"]
    figure, panels = figures.grid(2, 3.6, 2.8)
    with open_h5(run.path("subset", "subset.h5"), "moebatch-subset") as file:
        for axes, cost, unit in zip(panels, ("latency", "energy"), ("latency, s", "energy, J")):
            if "subsets" in file:
                x, y = file["subsets"][cost][1:], 100 * file["subsets"]["right"][1:] / results["questions"]
                axes.scatter(x, y, s=4, color="0.75", label="every subset")
            axes.scatter([r[cost] for r in front], [100 * r["train_accuracy"] for r in front], s=14, color=figures.COLOURS[0], label="front, chosen on")
            axes.scatter([r[cost] for r in front], [100 * r["test_accuracy"] for r in front], s=14, marker="x", color=figures.COLOURS[1], label="front, judged on")
            axes.set_xlabel(unit)
            axes.set_ylabel("right answers, %")
    panels[0].set_title("Subsets of the experts")
    figures.legend_right(panels[-1])
    figure.tight_layout()
    return figures.save(figure, folder, "pareto")


def draw_limits(results, folder):
    """What limits cost: chosen on, judged on, the best there was, a gate of its own."""
    import figures

    tables = [
        (f"{form}{kind}", f"{kind}_limit")
        for form in ("", "auto_")
        for kind in ("latency", "energy")
        if any(r["train_accuracy"] is not None for r in results["tables"][f"{form}{kind}"])
    ]
    if not tables:
        return None
    figure, panels = figures.grid(len(tables), most_columns=2)
    lines = (("train_accuracy", "chosen on", "-"), ("test_accuracy", "judged on", "-"), ("test_optimum", "best there", ":"), ("retrained_test_accuracy", "gate of its own", "--"))
    for axes, (table, key) in zip(panels, tables):
        rows = results["tables"][table]
        for i, (member, label, style) in enumerate(lines):
            points = [(r[key], 100 * r[member]) for r in rows if r.get(member) is not None]
            if points:
                axes.plot(*zip(*points), style, marker="o", markersize=2.5, color=figures.COLOURS[i], label=label)
        axes.set_xlabel("latency limit, s" if key == "latency_limit" else "energy limit, J")
        axes.set_title(table.replace("_", " "))
    panels[0].set_ylabel("right answers, %")
    figures.legend_right(panels[-1])
    figure.tight_layout()
    return figures.save(figure, folder, "limits")


def draw_all(run, report, costs, results):
    """Paths of the figures that could be drawn."""
    folder = run.path("figures")
    made = [draw_accuracy(report, folder), draw_experts(report, folder)]
    if os.path.isfile(run.path("cluster", "clusters.h5")):
        made.append(draw_clusters(run, folder))
    for what, member, unit in (("latency", "seconds", "seconds"), ("energy", "joules", "joules")):
        if costs.get(what) is not None:
            note = costs[what].get("source_text", "")
            made.append(draw_cost(costs[what], member, unit, what, note, folder))
    if results is not None:
        made += [draw_pareto(run, results, folder), draw_limits(results, folder)]
    return [path for path in made if path]


# ---- 5. seeds ----------------------------------------------------------------------------------------------


def seeds_table(reports):
    """Mean and standard deviation of every system that all runs have."""
    names = [n for n in reports[0]["groups"]["all"]["systems"] if all(n in r["groups"]["all"]["systems"] for r in reports)]
    rows = []
    for name in names:
        if name.startswith("expert/"):
            continue
        found = [r["groups"]["all"]["systems"][name] for r in reports]
        leads = [100 * s["gain"] for s in found]
        clear = sum(s["gain_low"] > 0 for s in found)
        rows.append([name, with_spread([100 * s["accuracy"] for s in found]), with_spread(leads), f"{clear} of {len(found)}"])
    return ["system", "accuracy, %", "lead over the best single", "interval above 0"], rows


# ---- 6. command line ---------------------------------------------------------------------------------------


def report_run(run, draws):
    """One run's folders; its report, or None."""
    report = read_report(run)
    if report is None:
        return None
    systems = write_accuracy(run, report)
    costs = {what: write_cost(run, what, member) for what, member in (("latency", "seconds"), ("energy", "joules"))}
    results = write_subsets(run)
    figures = draw_all(run, report, costs, results) if draws else []
    print(as_text(*systems))
    if costs["energy"] is not None:
        print("energy: " + costs["energy"]["source_text"])
    print(f"{len(figures)} figures in {run.path('figures')}")
    return report


def main(arguments=None):
    """Returns the exit code: 0 done, 2 bad usage, 3 nothing to report or a broken file."""
    parser = argparse.ArgumentParser(description="Report of an expert study.")
    parser.add_argument("run", help="run folder, with stages or with seed_<n> folders inside")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.run):
        print(f"moe2.py: {options.run}: no such folder", file=sys.stderr)
        return 2
    runs = open_runs(options.run)
    try:
        reports = [r for r in (report_run(run, not options.no_figures) for run in runs) if r is not None]
    except (OSError, ValueError, KeyError) as error:
        print(f"moe2.py: {error}", file=sys.stderr)
        return 3
    missing = [f"{run.path()}: {name}" for run in runs for name in run.missing]
    if missing:
        print("left out, not there: " + "; ".join(missing))
    if not reports:
        print(f"moe2.py: {options.run} holds no gate-report/report.json", file=sys.stderr)
        return 3
    if len(reports) > 1:
        table = seeds_table(reports)
        folder = os.path.join(options.run, "accuracy")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "seeds.md"), "w", encoding="utf-8") as file:
            file.write(as_markdown(*table) + "\n")
        write_csv(os.path.join(folder, "seeds.csv"), *table)
        print(as_text(*table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
