#!/usr/bin/env python3
"""The report of a data selection study: tables on the terminal, one HTML file with every figure inside.

    python3 analysis/report.py checkpoints/<study>/<run> [--labels labels.jsonl] [--selected good_mass]

The PNG files lie beside the HTML, under RUN/report. A folder with seed_<n> inside is reported over all its
seeds: means with their spread, and whether the selection beat random data in every one. Parts that are
missing are named and left out. Without numpy, h5py or matplotlib the tables are printed, figures left out.
Contents: 1. collecting  2. tables  3. verdicts  4. figures  5. HTML  6. command line
"""

import argparse
import base64
import html
import json
import os
import sys
from functools import partial

from mbfiles import find_labels, open_runs, read_json, read_labels, selected_kinds
from tables import (
    as_html,
    as_text,
    by_auc,
    damage_kinds,
    decimals,
    mean_of,
    percent,
    spread_of,
    with_spread,
    write_csv,
)

TARGETS = ("selected", "random", "all", "base")  # in this order, others behind


# ---- 1. collecting -----------------------------------------------------------------------------------------


def selection_hash(run, name):
    """Content hash of a selection's file, from its record."""
    done = read_json(run.path("select-" + name, "done.json")) or {}
    return done.get("outputs", {}).get("selected_data.jsonl")


def best_selection(run, given=None):
    """Name of the selection the target `selected` was trained on: given, recorded, else the first that is not
    random."""
    names = [name for name in run.parts("select-") if name != "random"]
    used = (read_json(run.path("shard-selected", "done.json")) or {}).get("inputs", {}).get("selected")
    recorded = [name for name in names if used and selection_hash(run, name) == used]
    for name in [given] + recorded + ["good_mass"] + names:
        if name in names:
            return name
    return None


def selection_of(run, target, given=None):
    """The selection a target was trained on: None for everything and for the base model."""
    if target == "selected":
        return best_selection(run, given)
    return target if target in run.parts("select-") else None


def good_share(kinds):
    """Share of good records among labelled ones; None when none is labelled."""
    total = sum(kinds.values())
    return kinds.get("good", 0) / total if total else None


def count_labels(labels):
    """{kind: count} of the whole corpus."""
    counts = {}
    for kind in labels.values():
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def collect_target(run, target, labels, given):
    """One row of the result: what the target was trained on and what came out."""
    results = run.json("eval-" + target, "results.json") or {}
    selection = selection_of(run, target, given)
    summary = run.json("select-" + selection, "summary.json") if selection else None
    any_summary = next(
        (s for s in (read_json(run.path("select-" + n, "summary.json")) for n in run.parts("select-")) if s),
        None,
    )
    row = {
        "perplexity": {
            name: entry.get("perplexity") for name, entry in results.get("perplexity", {}).items()
        },
        "tasks": results.get("results", {}),
        "selection": selection,
        "records": None,
        "tokens": None,
        "sources": {},
        "good": None,
    }
    if summary:
        row.update(
            records=summary.get("records"),
            tokens=summary.get("tokens"),
            sources={n: s["share"] for n, s in summary.get("sources", {}).items()},
        )
        row["good"] = good_share(selected_kinds(run, selection, labels)) if labels else None
    elif target == "all" and any_summary:
        total = sum(s["available"] for s in any_summary["sources"].values()) or 1
        row.update(
            records=any_summary.get("of"),
            sources={n: s["available"] / total for n, s in any_summary["sources"].items()},
            good=good_share(count_labels(labels)) if labels else None,
        )
    return row


def collect_run(run, options):
    """Everything the tables need of one run."""
    labels_path = find_labels(run, options.labels)
    labels = read_labels(labels_path) if labels_path else {}
    targets = sorted(
        set(run.parts("eval-")) | {"selected", "random", "all"},
        key=lambda t: (TARGETS.index(t) if t in TARGETS else len(TARGETS), t),
    )
    found = {target: collect_target(run, target, labels, options.selected) for target in targets}
    selections = {}
    for name in run.parts("select-"):
        summary = run.json("select-" + name, "summary.json")
        if summary:
            selections[name] = dict(
                summary, good=good_share(selected_kinds(run, name, labels)) if labels else None
            )
    return {
        "run": run,
        "labels": labels,
        "labels_path": labels_path,
        "targets": found,
        "selections": selections,
        "auc": with_variants(run),
    }


def over_seeds(data, *keys):
    """One value per seed along a path of keys; None where a seed lacks it."""
    values = []
    for item in data:
        for key in keys:
            item = item.get(key) if isinstance(item, dict) else None
        values.append(item)
    return values


def names_over(data, part):
    """Names under data[i][part] in the order of their first appearance."""
    names = []
    for item in data:
        names += [name for name in item[part] if name not in names]
    return names


# ---- 2. tables ---------------------------------------------------------------------------------------------


def result_table(data):
    """Target rows: perplexity, good share, records, tokens and the share of every source."""
    sources = []
    for item in data:
        for target in item["targets"].values():
            sources += [s for s in target["sources"] if s not in sources]
    shown = sources if len(sources) <= 8 else []
    rows = []
    for target in names_over(data, "targets"):
        value = partial(over_seeds, data, "targets", target)
        selection = next((s for s in value("selection") if s), None)
        label = target + (f" ({selection})" if selection and selection != target else "")
        records, tokens = mean_of(value("records")), mean_of(value("tokens"))
        rows.append(
            [
                label,
                with_spread(value("perplexity", "all")),
                percent(mean_of(value("good"))),
                "-" if records is None else f"{records:.0f}",
                "-" if tokens is None else f"{tokens:.0f}",
            ]
            + [percent(mean_of(value("sources", s))) for s in shown]
        )
    return ["trained on", "held-out perplexity", "good share", "records", "tokens"] + shown, rows


def selection_table(data):
    """Every selection there is, also those no target was trained on."""
    sources = []
    for item in data:
        for summary in item["selections"].values():
            sources += [s for s in summary["sources"] if s not in sources]
    rows = []
    for name in names_over(data, "selections"):
        value = partial(over_seeds, data, "selections", name)
        rows.append(
            [
                name,
                f"{mean_of(value('records')) or 0:.0f}",
                f"{mean_of(value('of')) or 0:.0f}",
                f"{mean_of(value('tokens')) or 0:.0f}",
                percent(mean_of(value("good"))),
            ]
            + [percent(mean_of(value("sources", s, "share"))) for s in sources]
        )
    return ["selection", "records", "of", "tokens", "good share"] + sources, rows


def source_table(data):
    """Held-out perplexity by source of the held-out text; no rows when it has one source."""
    targets = names_over(data, "targets")
    sources = []
    for item in data:
        for target in item["targets"].values():
            sources += [s for s in target["perplexity"] if s not in sources]
    if len([s for s in sources if s != "all"]) < 2:
        return ["held-out source"] + targets, []
    return ["held-out source"] + targets, [
        [s] + [with_spread(over_seeds(data, "targets", t, "perplexity", s)) for t in targets] for s in sources
    ]


def task_table(data, is_brief=False):
    """Accuracy of every task; brief: without the subjects of MMLU, whose mean stands beside them."""
    targets, tasks = names_over(data, "targets"), []
    for item in data:
        for target in item["targets"].values():
            tasks += [
                (task, m)
                for task, entry in target["tasks"].items()
                for m in ("acc,none", "acc_norm,none")
                if m in entry and (task, m) not in tasks
            ]
    if is_brief:
        tasks = [(task, metric) for task, metric in tasks if not task.startswith("mmlu_")]
    rows = [
        [task, metric.split(",")[0]]
        + [with_spread(over_seeds(data, "targets", t, "tasks", task, metric), "{:.4f}") for t in targets]
        for task, metric in tasks
    ]
    return ["task", "metric"] + targets, rows


def with_variants(run):
    """auc.json, with the router scores of the stages auc-<variant> as rows of their own; None without auc."""
    auc = run.json("auc", "auc.json")
    for name in sorted(os.listdir(run.folder)) if auc else []:
        other = run.json(name, "auc.json") if name.startswith("auc-") else None
        if other and "good_mass" in other["scores"]:
            auc["scores"][f"good_mass ({name[len('auc-') :].replace('-', ' ')})"] = other["scores"]["good_mass"]
    return auc


def merged_auc(data):
    """auc.json over the seeds: means of every number; None when no seed has one."""
    found = [item["auc"] for item in data if item["auc"]]
    if not found:
        return None
    scores = {}
    for name in found[0]["scores"]:
        entries = [auc["scores"][name] for auc in found if name in auc["scores"]]
        keys = [key for key in entries[0] if key != "layers"]
        scores[name] = {key: mean_of([entry.get(key) for entry in entries]) for key in keys}
        scores[name]["layers"] = [
            mean_of(list(values)) for values in zip(*(entry.get("layers") or [] for entry in entries))
        ]
        scores[name]["spread"] = spread_of([entry.get("all") for entry in entries])
    return {"scores": scores, "counts": found[0].get("counts", {})}


def auc_table(auc):
    """AUC of every score per kind, best first, with the price; over seeds the spread of `all` too."""
    kinds = damage_kinds(auc)
    rows = []
    for name in by_auc(auc):
        entry = auc["scores"][name]
        whole = decimals(entry.get("all")) + (
            f" +- {entry['spread']:.3f}" if entry.get("spread") is not None else ""
        )
        cost = entry.get("flops_per_token")
        rows.append(
            [name, whole]
            + [decimals(entry.get(k)) for k in kinds]
            + ["-" if cost is None else "0" if cost == 0 else f"{cost:.3g}"]
        )
    return ["score", "all"] + kinds + ["FLOPs/token"], rows


def time_table(data):
    """Seconds and program of every stage of the first run, from its done.json."""
    rows = []
    run = data[0]["run"]
    for stage in run.stages():
        done = read_json(run.path(stage, "done.json"))
        if done:
            provenance = done.get("provenance", {})
            seconds = provenance.get("seconds", done.get("seconds"))
            rows.append(
                [
                    stage,
                    str(done.get("program", "-")),
                    "-" if seconds is None else f"{seconds:.1f}",
                    str(provenance.get("ranks", "-")),
                    str(provenance.get("started", "-")),
                ]
            )
    rows.sort(key=lambda row: row[4])
    return ["stage", "program", "seconds", "ranks", "started"], rows


# ---- 3. verdicts -------------------------------------------------------------------------------------------


def compare(data, other):
    """One sentence: the selection against another target, seed by seed; None when nothing can be compared."""
    pairs = [
        (a, b)
        for a, b in zip(
            over_seeds(data, "targets", "selected", "perplexity", "all"),
            over_seeds(data, "targets", other, "perplexity", "all"),
        )
        if a and b
    ]
    if not pairs:
        return None
    wins = sum(a < b for a, b in pairs)
    change = 100 * (1 - sum(a for a, _ in pairs) / sum(b for _, b in pairs))
    size = f"perplexity {abs(change):.1f} % {'lower' if change >= 0 else 'higher'}"
    if len(pairs) == 1:
        return f"selected {'beats' if wins else 'does not beat'} {other}: {size}"
    verdict = (
        "beats" if wins == len(pairs) else "does not beat" if wins == 0 else "beats, but not in every seed,"
    )
    return f"selected {verdict} {other} ({wins} of {len(pairs)} seeds): {size} on average"


def verdicts(data):
    """The study's result in sentences."""
    found = [compare(data, other) for other in ("random", "all")]
    skewed = []
    for item in data[:1]:
        chosen, everything = item["targets"]["selected"], item["targets"]["all"]["sources"]
        skewed = [
            f"{s} {percent(share)} of the selection, {percent(everything[s])} of the corpus"
            for s, share in chosen["sources"].items()
            if everything.get(s) and not 0.5 <= share / everything[s] <= 2
        ]
    if skewed:
        found.append(
            "the selection is skewed: "
            + "; ".join(skewed)
            + " (a skewed selection can lose to random: see select.quota)"
        )
    return [sentence for sentence in found if sentence]


# ---- 4. figures --------------------------------------------------------------------------------------------


def result_figures(data):
    """Figures over all seeds: the result, AUC, cost."""
    from selection import plot_results
    from scores import plot_auc, plot_cost, plot_layers

    found = [
        (
            "result",
            plot_results(
                {t: over_seeds(data, "targets", t, "perplexity", "all") for t in names_over(data, "targets")}
            ),
            "Held-out perplexity of the targets.",
        )
    ]
    auc = merged_auc(data)
    if auc:
        found += [
            ("auc", plot_auc(auc), "AUC of every score per kind of damage."),
            ("auc-cost", plot_cost(auc), "AUC against the forward cost of getting the score."),
            ("auc-layers", plot_layers(auc), "AUC when one layer alone counts."),
        ]
    return found


def score_figures(item):
    """Figures of one run's score table and selections."""
    from mbfiles import read_scores
    from scores import kinds_of, plot_by_kind, plot_histograms
    from selection import plot_quality, plot_sources

    run, found = item["run"], []
    if item["selections"]:
        found.append(
            (
                "sources",
                plot_sources(item["selections"]),
                "Share of every source in each selection, beside its share of the corpus.",
            )
        )
    path = run.need("score", "scores.h5")
    table = read_scores(path) if path else None
    if table is None:
        return found
    kinds = kinds_of(table, item["labels"]) if item["labels"] else None
    if kinds is not None and (kinds != "").any():
        found.append(
            ("quality", plot_quality(table, kinds), "Good records among the best x % of every source.")
        )
        if "good_mass" in table["scores"]:
            found.append(
                (
                    "good-mass",
                    plot_by_kind(table, kinds, "good_mass"),
                    "The router's score by kind of record.",
                )
            )
    found.append(
        (
            "scores",
            plot_histograms(table, kinds),
            "Distribution of every score" + (" for good and bad records." if kinds is not None else "."),
        )
    )
    return found


def training_figures(run):
    """Figures of one run's training stages."""
    from curves import plot_stages, plot_terms
    from router import plot_router

    warmup = run.metrics("warmup")
    tunes = {
        name: run.metrics("finetune-" + name)
        for name in sorted(run.parts("finetune-"), key=lambda t: (TARGETS + (t,)).index(t))
    }
    made = {
        name: run.metrics(name) for name in ("pretrain", "pretrain-target") if os.path.isdir(run.path(name))
    }
    captions = {
        "router-heat": "The router over its warm-up, layer by layer.",
        "router-lines": "The same, as lines.",
    }
    found = [(name, figure, captions[name]) for name, figure in plot_router(warmup)] if warmup else []
    found.append(("warmup-terms", plot_terms(warmup, "Router warm-up"), "Terms of the warm-up's loss."))
    found.append(
        (
            "finetune",
            plot_stages(tunes, "loss", "Fine-tuning of the target"),
            "Training loss of the targets; each on its own data, so the levels do not compare.",
        )
    )
    found.append(
        (
            "pretrain",
            plot_stages(made, "loss", "Models made on the spot"),
            "Training loss of the models made on the spot.",
        )
    )
    return found


def draw_all(data, folder):
    """[(name, path, caption)] of every figure that could be drawn, and why others could not."""
    try:
        from figures import save
        import numpy  # noqa: F401
        import h5py  # noqa: F401
    except ImportError as error:
        return [], [f"figures left out: {error}; install python3-numpy, python3-h5py and python3-matplotlib"]
    paths, problems = [], []
    for make in (
        lambda: result_figures(data),
        lambda: score_figures(data[0]),
        lambda: training_figures(data[0]["run"]),
    ):
        try:
            paths += [
                (name, save(figure, folder, name), caption)
                for name, figure, caption in make()
                if figure is not None
            ]
        except (OSError, KeyError, ValueError) as error:
            problems.append(f"figures left out: {type(error).__name__}: {error}")
    return paths, problems


# ---- 5. HTML -----------------------------------------------------------------------------------------------

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;
padding:0 1em;color:#1a1a1a}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin:.8em 0;display:block;overflow-x:auto}
th,td{padding:.25em .7em;text-align:left;border-bottom:1px solid #e4e4e4;white-space:nowrap}
th{border-bottom:1px solid #888}.n{text-align:right;font-variant-numeric:tabular-nums}
figure{margin:1.2em 0}img{max-width:100%;height:auto}
figcaption{color:#555;font-size:.9em}.verdict{font-weight:600}.dim{color:#555}"""


def section(title, table, note=""):
    """A heading with a table; nothing when the table is empty."""
    header, rows = table
    return (
        f"<h2>{html.escape(title)}</h2>\n<p class=dim>{html.escape(note)}</p>\n{as_html(header, rows)}"
        if rows
        else ""
    )


def figure_html(path, caption):
    """A figure inside the page."""
    with open(path, "rb") as file:
        data = base64.b64encode(file.read()).decode()
    text = html.escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def write_html(path, title, parts):
    """One file that needs no other."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        )
        file.write(f"<style>{STYLE}</style></head><body>\n")
        file.write("\n".join(part for part in parts if part) + "\n</body></html>\n")


def build_page(folder, data, figures, notes):
    """Tables and figures in reading order; returns the path of the page."""
    seeds = [str(item["run"].seed) for item in data if item["run"].seed is not None]
    title = "Selecting data with a router: " + os.path.basename(os.path.abspath(os.path.join(folder, "..")))
    auc, first = merged_auc(data), f"Figures of single runs show seed {seeds[0]}." if len(seeds) > 1 else ""
    spread = f"Mean over seeds {', '.join(seeds)}, spread: one standard deviation." if len(seeds) > 1 else ""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=dim>{html.escape(' '.join(filter(None, [spread, first])))}</p>",
    ]
    parts += [f"<p class=verdict>{html.escape(sentence)}</p>" for sentence in verdicts(data)]
    parts += [
        section(
            "Result",
            result_table(data),
            "The same target, trained in the same way for the same steps on each choice of data; "
            "perplexity per token of held-out clean text.",
        ),
        section("By source of the held-out text", source_table(data)),
        section("Tasks", task_table(data)),
    ]
    parts.append(
        section(
            "AUC of every score",
            auc_table(auc) if auc else ([], []),
            "P(a good record scores above a bad one), per kind of damage; 0.5 is chance.",
        )
    )
    parts += [section("Selections", selection_table(data))]
    parts += ["<h2>Figures</h2>" if figures else ""] + [
        figure_html(path, caption) for _, path, caption in figures
    ]
    parts += [section("Stages", time_table(data))]
    parts += [
        (
            "<h2>Left out</h2>\n<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"
            if notes
            else ""
        )
    ]
    path = os.path.join(folder, "report.html")
    write_html(path, title, parts)
    return path


# ---- 6. command line ---------------------------------------------------------------------------------------


def notes_of(data, problems):
    """Everything that is missing, once."""
    notes = []
    for item in data:
        prefix = f"seed {item['run'].seed}: " if item["run"].seed is not None else ""
        notes += [f"{prefix}{name} is not there" for name in item["run"].missing]
    if not any(item["labels"] for item in data):
        notes.append("no labels known: no good share (give --labels)")
    return notes + problems


def write_summary(folder, data, auc):
    """report.json and CSV tables, for other programs."""
    summary = {
        "seeds": [item["run"].seed for item in data],
        "verdicts": verdicts(data),
        "auc": auc["scores"] if auc else None,
        "targets": {},
    }
    for target in names_over(data, "targets"):
        values = over_seeds(data, "targets", target, "perplexity", "all")
        summary["targets"][target] = {
            "perplexity": values,
            "mean": mean_of(values),
            "spread": spread_of(values),
            "good": over_seeds(data, "targets", target, "good"),
            "selection": over_seeds(data, "targets", target, "selection"),
        }
    with open(os.path.join(folder, "report.json"), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=2, sort_keys=True)
        file.write("\n")
    write_csv(os.path.join(folder, "result.csv"), *result_table(data))
    if auc:
        write_csv(os.path.join(folder, "auc.csv"), *auc_table(auc))


def print_tables(data, auc, notes, page):
    """What the terminal shows at the end of a study."""
    seeds = [item["run"].seed for item in data]
    print(
        "\n"
        + (f"Result over {len(seeds)} seeds (mean +- standard deviation)" if len(seeds) > 1 else "Result")
        + "\n"
        + as_text(*result_table(data))
    )
    for title, table in (
        ("By source of the held-out text", source_table(data)),
        ("Tasks", task_table(data, True)),
    ):
        if table[1]:
            print(f"\n{title}\n" + as_text(*table))
    for sentence in verdicts(data):
        print("  " + sentence)
    if auc:
        print("\nAUC: P(good record scores above a bad one); 0.5 is chance\n" + as_text(*auc_table(auc)))
    if notes:
        print("\nleft out: " + "; ".join(notes))
    print(f"\nreport: {page}")


def main(arguments=None):
    """Returns the exit code: 0 done, 2 bad usage, 3 nothing to report or a broken file."""
    parser = argparse.ArgumentParser(description="Report of a data selection study.")
    parser.add_argument("run", help="run folder, with stages or with seed_<n> folders inside")
    parser.add_argument(
        "--labels",
        help="labels.jsonl of the corpus (default: the one beside the corpus, when the stage auc has run)",
    )
    parser.add_argument(
        "--selected", help="selection the target `selected` was trained on (default: as recorded)"
    )
    parser.add_argument("--out", help="folder to write to (default: RUN/report)")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.run):
        print(f"report.py: {options.run}: no such folder", file=sys.stderr)
        return 2
    runs = open_runs(options.run)
    if not any(run.stages() for run in runs):
        print(f"report.py: {options.run} holds no stages and no seed_<n> folders", file=sys.stderr)
        return 3
    folder = options.out or os.path.join(options.run, "report")
    try:
        data = [collect_run(run, options) for run in runs]
        os.makedirs(folder, exist_ok=True)
        figures, problems = ([], []) if options.no_figures else draw_all(data, folder)
        auc = merged_auc(data)
        notes = notes_of(data, problems)
        page = build_page(folder, data, figures, notes)
        write_summary(folder, data, auc)
    except (OSError, ValueError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 3
    print_tables(data, auc, notes, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
