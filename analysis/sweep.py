#!/usr/bin/env python3
"""Results of a sweep, gathered from the folders of its points.

python3 analysis/sweep.py RUN [--metric NAME] [--lower | --higher] [--out DIR] [--no-figures]

RUN is checkpoints/<study>/<run> of jobs/sweep.sh. Written: sweep.h5 (every number of every point), sweep.csv
(the same, best first), sweep.txt (what the terminal shows), sweep.png and sweep.pdf. A point without a result
is named with the first cause. Contents: 1. points  2. one point  3. metrics  4. tables  5. HDF5  6. figure
7. command line
"""

import argparse
import math
import os
import re
import sys

from mbfiles import Run, read_json, read_lines, read_metrics
from tables import as_text, write_csv

LOWER_IS_BETTER = ("perplexity", "loss", "nll", "bits_per_byte", "seconds", "joules", "latency", "least_loss")

# ---- 1. points ---------------------------------------------------------------------------------------------


def read_points(folder):
    """([key], [(number, {key: value})]) of RUN/points.tsv."""
    path = os.path.join(folder, "points.tsv")
    with open(path, encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t") for line in file if line.strip()]
    keys = lines[0][1:] if lines else []
    if not lines or lines[0][0] != "point" or not keys:
        raise ValueError(f"{path}: the first line must be 'point' and the swept keys, with tabs between")
    points = []
    for at, row in enumerate(lines[1:], 2):
        if len(row) != len(keys) + 1 or not row[0].isdigit():
            raise ValueError(f"{path}, line {at}: a point's number and {len(keys)} values were expected")
        points.append((int(row[0]), dict(zip(keys, row[1:]))))
    return keys, points


def read_settings(folder):
    """{name: value} of RUN/sweep.tsv: what jobs/sweep.sh noted of the study; empty when it is not there."""
    try:
        with open(os.path.join(folder, "sweep.tsv"), encoding="utf-8") as file:
            return dict(line.rstrip("\n").split("\t", 1) for line in file if "\t" in line)
    except FileNotFoundError:
        return {}


def short_names(keys):
    """{key: its shortest ending that no other key has}: training.lora.r is r where nothing else ends so."""
    found = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
        found[key] = next(
            (e for e in endings if not any(o != key and ("." + o).endswith("." + e) for o in keys)), key
        )
    return found


# ---- 2. one point ------------------------------------------------------------------------------------------


def point_folder(folder, number):
    """Where a point's stages lie: of a sweep over study.seed in a folder per seed."""
    name = f"point_{number:03d}"
    seeds = sorted(entry.path for entry in os.scandir(folder) if re.fullmatch(r"seed_\d+", entry.name))
    places = [os.path.join(place, name) for place in [folder] + seeds]
    return next((p for p in places if os.path.isdir(p) and Run(p).stages()), places[0])


def stages_of(run):
    """Stage folders of a point, without those that were kept aside as <stage>.1, <stage>.2, ..."""
    return [name for name in run.stages() if not re.search(r"\.\d+$", name)]


def first_failure(run, stages):
    """(stage, message) of the earliest recorded failure; a stage's own before what the job says of the point."""
    found = []
    for stage in stages:
        failure = read_json(run.path(stage, "failure.json"))
        if failure:
            found.append((str(failure.get("time", "")), stage, failure))
    if not found:
        failure = read_json(run.path("failure.json"))
        return ("", words_of_log(run, failure) or describe_failure(failure)) if failure else None
    _, stage, failure = min(found, key=lambda item: item[:2])
    return stage, describe_failure(failure)


def describe_failure(failure):
    """The message of a failure.json in one line, with the code when it says nothing."""
    message = " ".join(str(failure.get("message") or "").split())
    return message or f"ended with code {failure.get('code', '?')}"


def words_of_log(run, failure):
    """What a program wrote when the job only knows that it ended badly: the last error line of the element's
    log; None without one."""
    if "without a message of its own" not in str(failure.get("message")):
        return None
    try:
        with open(
            os.path.join(run.folder, "..", "logs", f"points-{failure.get('job')}.log"),
            encoding="utf-8",
            errors="replace",
        ) as file:
            found = [line for line in file if re.search(r"\berror\b", line, re.IGNORECASE)]
    except OSError:
        return None
    return " ".join(found[-1].split()) if found else None


def state_of(run, stages, last):
    """done, failed, running, unfinished or not started."""
    done = [stage for stage in stages if os.path.exists(run.path(stage, "done.json"))]
    is_complete = last in done if last else bool(done)
    failure = first_failure(run, [stage for stage in stages if stage not in done])
    if is_complete and len(done) == len(stages):
        return "done", None
    if failure:
        return "failed", failure
    if any(os.path.exists(run.path(stage, "lease")) for stage in stages if stage not in done):
        return "running", None
    return ("unfinished", None) if stages else ("not started", None)


def losses_of_stage(run, stage):
    """The finite losses of a stage's curve, in order; without h5py those of metrics.jsonl."""
    try:
        values = (read_metrics(run.path(stage, "metrics.h5")) or {}).get("loss", [])
    except ImportError:
        path = run.path(stage, "metrics.jsonl")
        values = [row.get("loss", math.nan) for row in read_lines(path)] if os.path.exists(path) else []
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def numbers_of_categories(categories):
    """{"<category>/perplexity", "<category>/accuracy": number} and the means over the categories, geometric for
    perplexity, under the plain names."""
    found = {}
    for key in ("perplexity", "accuracy"):
        own = {name: float(entry[key]) for name, entry in categories.items() if entry.get(key) is not None}
        found.update({f"{name}/{key}": value for name, value in own.items()})
        if own and key == "perplexity":
            found[key] = math.exp(sum(map(math.log, own.values())) / len(own))
        elif own:
            found[key] = sum(own.values()) / len(own)
    return found


def numbers_of_stage(run, stage, done):
    """{name: number} of a stage: its record's results, its evaluation, its loss curve."""
    found = {
        name: float(value)
        for name, value in (done.get("results") or {}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    results = read_json(run.path(stage, "results.json")) or {}
    sets = results.get("perplexity") or {}
    for name, entry in sets.items():
        prefix = "" if name == "all" else name + "/"
        if name == "all" or len(sets) > 2:
            found.update(
                {prefix + key: float(entry[key]) for key in ("perplexity", "bits_per_byte") if key in entry}
            )
    for task, entry in (results.get("results") or {}).items():
        for key, value in entry.items():
            if key.endswith(",none") and "_stderr" not in key and isinstance(value, (int, float)):
                found[f"{task}/{key[: -len(',none')]}"] = float(value)
    found.update(numbers_of_categories(results.get("categories") or {}))
    losses = losses_of_stage(run, stage)
    if losses:
        found.update({"final_loss": losses[-1], "least_loss": min(losses)})
    return found


def read_point(folder, number, values, last):
    """{"number", "values", "state", "failure", "metrics": {"<stage>/<name>": number}, "seconds"}."""
    run = Run(point_folder(folder, number))
    stages = stages_of(run)
    state, failure = state_of(run, stages, last)
    metrics, seconds = {}, 0.0
    for stage in stages:
        done = read_json(run.path(stage, "done.json"))
        if done:
            metrics.update(
                {f"{stage}/{name}": v for name, v in sorted(numbers_of_stage(run, stage, done).items())}
            )
            seconds += float((done.get("provenance") or {}).get("seconds") or 0)
    if seconds:
        metrics["seconds"] = seconds
    return {
        "number": number,
        "values": values,
        "state": state,
        "failure": failure,
        "metrics": metrics,
        "folder": run.folder,
    }


def read_sweep(folder):
    """{"name", "keys", "points", "metrics": names of all of them in order of appearance}."""
    keys, points = read_points(folder)
    last = read_settings(folder).get("last")
    found = [read_point(folder, number, values, last) for number, values in points]
    names = list(dict.fromkeys(name for point in found for name in point["metrics"]))
    path = os.path.abspath(folder).split(os.sep)
    return {
        "folder": folder,
        "name": "/".join(path[path.index("checkpoints") + 1 :] if "checkpoints" in path else path[-2:]),
        "keys": keys,
        "points": found,
        "metrics": sorted(names, key=lambda name: name == "seconds"),
    }


# ---- 3. metrics --------------------------------------------------------------------------------------------


def default_metric(names):
    """The evaluation's perplexity, else its accuracy, else a training stage's final loss, else the first. Of
    several stages the one on the selection counts, else the last."""
    for ending, start in (
        ("/perplexity", "eval"),
        ("/acc_norm", "eval"),
        ("/acc", "eval"),
        ("/final_loss", ""),
    ):
        found = [name for name in names if name.startswith(start) and name.endswith(ending)]
        plain = [name for name in found if name.count("/") == 1] or found
        if plain:
            return next((name for name in plain if "selected" in name.split("/", maxsplit=1)[0]), plain[-1])
    return names[0]


def find_metric(names, asked):
    """The metric of that name, or the default among those that end so or hold the words; ValueError with what
    there is when none does."""
    if not names:
        raise ValueError("no point has a number yet")
    if asked is None:
        return default_metric(names)
    if asked in names:
        return asked
    found = [n for n in names if n.endswith("/" + asked)] or [n for n in names if asked in n]
    if not found:
        raise ValueError(f"no metric is called {asked!r}; there are: {', '.join(names)}")
    return default_metric(found)


def is_lower_better(name):
    """By the last part of the name."""
    last = name.rsplit("/", maxsplit=1)[-1]
    return any(last == word or last.endswith("_" + word) for word in LOWER_IS_BETTER)


def by_metric(sweep, metric, lower):
    """Points that have the metric, best first; equal ones by number. Only finished points count."""
    found = [
        point
        for point in sweep["points"]
        if point["state"] == "done" and math.isfinite(point["metrics"].get(metric, math.nan))
    ]
    sign = 1 if lower else -1
    return sorted(found, key=lambda point: (sign * point["metrics"][metric], point["number"]))


# ---- 4. tables ---------------------------------------------------------------------------------------------


def shown_metrics(sweep, metric):
    """Columns of the short table: the metric, the same of other stages, the time."""
    last = metric.rsplit("/", maxsplit=1)[-1]
    others = [n for n in sweep["metrics"] if n != metric and n.count("/") == 1 and n.endswith("/" + last)]
    return [metric] + others[:3] + (["seconds"] if metric != "seconds" else [])


def number_text(value, name=""):
    """A number for people; '-' for none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.1f}" if name == "seconds" else f"{value:.6g}"


def short_table(sweep, metric, ranked):
    """(header, rows) for the terminal."""
    names, shown = short_names(sweep["keys"]), shown_metrics(sweep, metric)
    rows = [
        [str(point["number"])]
        + [point["values"][key] for key in sweep["keys"]]
        + [number_text(point["metrics"].get(name), name) for name in shown]
        for point in ranked
    ]
    return ["point"] + [names[key] for key in sweep["keys"]] + shown, rows


def full_table(sweep, ranked):
    """(header, rows) for the CSV: every point, those without a result behind, every metric."""
    numbers = {point["number"] for point in ranked}
    rest = [point for point in sweep["points"] if point["number"] not in numbers]
    rows = [
        [str(point["number"]), point["state"]]
        + [point["values"][key] for key in sweep["keys"]]
        + [repr(point["metrics"][n]) if n in point["metrics"] else "" for n in sweep["metrics"]]
        + [": ".join(filter(None, point["failure"])) if point["failure"] else ""]
        for point in ranked + rest
    ]
    return ["point", "state"] + sweep["keys"] + sweep["metrics"] + ["cause"], rows


def describe_values(sweep, point):
    """'r=16, learning_rate=0.001'."""
    names = short_names(sweep["keys"])
    return ", ".join(f"{names[key]}={value}" for key, value in point["values"].items())


def missing_lines(sweep, metric, ranked):
    """One line for every point that is not in the table: why."""
    lines, numbers = [], {point["number"] for point in ranked}
    for point in sweep["points"]:
        if point["number"] in numbers:
            continue
        text = f"  point {point['number']} ({describe_values(sweep, point)}): {point['state']}"
        if point["failure"]:
            stage, message = point["failure"]
            text += f"{' in ' + stage if stage else ''}: {message}"
        elif point["state"] == "done":
            text += f", but without {metric}"
        lines.append(text)
    return lines


def count_states(sweep):
    """'12 points: 10 done, 2 failed'."""
    order = ("done", "failed", "running", "unfinished", "not started")
    counts = {state: sum(point["state"] == state for point in sweep["points"]) for state in order}
    total = len(sweep["points"])
    return f"{total} point{'s' if total != 1 else ''}: " + ", ".join(
        f"{n} {state}" for state, n in counts.items() if n
    )


def text_of_sweep(sweep, metric, lower, ranked):
    """What sweep.txt and the terminal show."""
    lines = [f"{sweep['name']}: {count_states(sweep)}"]
    if metric is None:
        lines.append("no point has a result yet")
    else:
        lines += [f"best first by {metric}, {'lower' if lower else 'higher'} is better", ""]
        lines.append(as_text(*short_table(sweep, metric, ranked)))
    missing = missing_lines(sweep, metric, ranked)
    if missing:
        have = f"{len(ranked)} result{'s' if len(ranked) != 1 else ''}"
        lines += ["", f"The table has {have}; {len(missing)} of {len(sweep['points'])} points have none:"]
        lines += missing
    return "\n".join(lines) + "\n"


# ---- 5. HDF5 -----------------------------------------------------------------------------------------------


def number_of(text):
    """The value as a number; None when it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def numbers_of_key(sweep, key):
    """The key's values as numbers, point by point; None when one of them is none."""
    found = [number_of(point["values"][key]) for point in sweep["points"]]
    return None if any(value is None for value in found) else found


def write_h5(path, sweep, metric, lower, ranked):
    """sweep.h5, format moebatch-sweep version 1 (docs/sweep.md); written beside and renamed."""
    import h5py
    import numpy

    text = h5py.string_dtype("utf-8")
    points = sweep["points"]
    with h5py.File(path + ".tmp", "w") as file:
        file.attrs.update({"format": "moebatch-sweep", "version": 1, "study": sweep["name"]})
        file.attrs.update({"metric": metric or "", "higher_is_better": int(not lower)})
        file["point"] = numpy.array([point["number"] for point in points], "i8")
        file["order"] = numpy.array([point["number"] for point in ranked], "i8")
        file.create_dataset("state", data=[point["state"] for point in points], dtype=text)
        for place, at in (("failed_stage", 0), ("cause", 1)):
            cells = [(point["failure"] or ("", ""))[at] for point in points]
            file.create_dataset(place, data=cells, dtype=text)
        for key in sweep["keys"]:
            numbers = numbers_of_key(sweep, key)
            if numbers is not None:
                file["overrides/" + key] = numpy.array(numbers, "f8")
            else:
                cells = [point["values"][key] for point in points]
                file.create_dataset("overrides/" + key, data=cells, dtype=text)
        for name in sweep["metrics"]:
            file["metrics/" + name] = numpy.array(
                [point["metrics"].get(name, math.nan) for point in points], "f8"
            )
    os.replace(path + ".tmp", path)


# ---- 6. figure ---------------------------------------------------------------------------------------------


def axis_of(sweep, key):
    """(positions of all points, ticks or None, log scale?) of a key: its numbers, else one place per value."""
    numbers = numbers_of_key(sweep, key)
    if numbers is not None:
        low, high = min(numbers), max(numbers)
        return numbers, None, low > 0 and high / low >= 20
    names = list(dict.fromkeys(point["values"][key] for point in sweep["points"]))
    return [names.index(point["values"][key]) for point in sweep["points"]], names, False


def draw_key(axes, sweep, key, metric, lower):
    """The metric of every point against one key, and the best at each of its values."""
    positions, ticks, is_log = axis_of(sweep, key)
    pairs = [
        (x, point["metrics"][metric])
        for x, point in zip(positions, sweep["points"])
        if point["state"] == "done" and math.isfinite(point["metrics"].get(metric, math.nan))
    ]
    best = {}
    for x, y in pairs:
        best[x] = y if x not in best else (min if lower else max)(best[x], y)
    from figures import COLOURS

    axes.plot(*zip(*pairs), "o", markersize=4, color=COLOURS[7], alpha=0.7, label="points")
    axes.plot(*zip(*sorted(best.items())), "-", color=COLOURS[0], label="best")
    if is_log:
        axes.set_xscale("log")
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), ticks, rotation=30 if max(map(len, ticks)) > 8 else 0)
    axes.set(xlabel=short_names(sweep["keys"])[key])


def draw_map(axes, sweep, keys, metric, lower):
    """Heat map over two keys, the best of the points that share a cell; cells carry their numbers."""
    import numpy

    down, across = (
        sorted(
            {point["values"][key] for point in sweep["points"]},
            key=lambda text: (number_of(text) is None, number_of(text) or 0, text),
        )
        for key in keys
    )
    cells = numpy.full((len(down), len(across)), numpy.nan)
    for point in by_metric(sweep, metric, lower):
        i, j = down.index(point["values"][keys[0]]), across.index(point["values"][keys[1]])
        cells[i, j] = point["metrics"][metric] if numpy.isnan(cells[i, j]) else cells[i, j]
    image = axes.imshow(cells, aspect="auto", cmap="viridis_r" if lower else "viridis")
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    names = short_names(sweep["keys"])
    axes.set(xlabel=names[keys[1]], ylabel=names[keys[0]])
    axes.grid(False)
    if cells.size <= 100:
        for (i, j), value in numpy.ndenumerate(cells):
            tint = "white" if numpy.isfinite(value) and image.norm(value) > 0.5 else "black"
            axes.text(j, i, number_text(float(value)), ha="center", va="center", fontsize=8, color=tint)
    axes.figure.colorbar(image, ax=axes, shrink=0.9)


def draw_sweep(sweep, metric, lower):
    """One panel per key that takes more than one value; of two keys a heat map as well."""
    from figures import grid

    varied = [key for key in sweep["keys"] if len({p["values"][key] for p in sweep["points"]}) > 1]
    if not varied:
        return None
    figure, panels = grid(len(varied) + (len(varied) == 2), width=3.6, height=2.9)
    for axes, key in zip(panels, varied):
        draw_key(axes, sweep, key, metric, lower)
    panels[0].set_ylabel(metric)
    panels[0].legend()
    if len(varied) == 2:
        draw_map(panels[2], sweep, varied, metric, lower)
        panels[2].set_title(metric)
    figure.suptitle(f"{sweep['name']}: {count_states(sweep)}", x=0.01, ha="left")
    figure.tight_layout()
    return figure


def write_figure(folder, sweep, metric, lower):
    """sweep.png and sweep.pdf; returns why they were left out, or None."""
    try:
        from figures import save

        figure = draw_sweep(sweep, metric, lower)
    except ImportError as error:
        return f"figure left out: {error}; install python3-numpy and python3-matplotlib"
    if figure is None:
        return "figure left out: no key takes two values"
    figure.savefig(os.path.join(folder, "sweep.pdf"), bbox_inches="tight")
    save(figure, folder, "sweep")
    return None


# ---- 7. command line ---------------------------------------------------------------------------------------


def write_all(sweep, options):
    """Every output of a sweep; returns (text for the terminal, notes)."""
    metric = find_metric(sweep["metrics"], options.metric) if sweep["metrics"] or options.metric else None
    lower = options.lower or (not options.higher and metric is not None and is_lower_better(metric))
    ranked = by_metric(sweep, metric, lower) if metric else []
    text, notes = text_of_sweep(sweep, metric, lower, ranked), []
    folder = options.out or sweep["folder"]
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "sweep.txt"), "w", encoding="utf-8") as file:
        file.write(text)
    write_csv(os.path.join(folder, "sweep.csv"), *full_table(sweep, ranked))
    try:
        write_h5(os.path.join(folder, "sweep.h5"), sweep, metric, lower, ranked)
    except ImportError as error:
        notes.append(f"sweep.h5 left out: {error}; install python3-h5py")
    if ranked and not options.no_figures:
        notes.append(write_figure(folder, sweep, metric, lower))
    return text, [note for note in notes if note]


def main(arguments=None):
    """Returns the exit code: 0 done, 2 bad usage, 3 no sweep there or a broken file."""
    parser = argparse.ArgumentParser(description="Results of a sweep, gathered from its points.")
    parser.add_argument("run", help="run folder of jobs/sweep.sh")
    parser.add_argument("--metric", help="what to sort by, like eval-selected/perplexity or final_loss")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--lower", action="store_true", help="lower is better (default: by the metric's name)")
    group.add_argument("--higher", action="store_true", help="higher is better")
    parser.add_argument("--out", help="folder to write to (default: RUN)")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    options = parser.parse_args(arguments)
    if not os.path.isfile(os.path.join(options.run, "points.tsv")):
        print(f"sweep.py: {options.run}: no points.tsv there; jobs/sweep.sh writes it", file=sys.stderr)
        return 3
    try:
        sweep = read_sweep(options.run)
    except (OSError, ValueError) as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 3
    try:
        text, notes = write_all(sweep, options)
    except ValueError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    for note in notes:
        print(note)
    print(f"\ntables: {os.path.join(options.out or options.run, 'sweep.h5')}, sweep.csv, sweep.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
