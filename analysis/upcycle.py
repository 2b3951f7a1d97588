#!/usr/bin/env python3
"""The report of an upcycling study: tables on the terminal, one HTML file with every figure inside.

    python3 analysis/upcycle.py checkpoints/<study>/<run> [--out DIR] [--no-figures]

The PNG files lie beside the HTML, under RUN/report. A folder with seed_<n> inside is reported over all its
seeds: means with their spread. Parts that are missing are named and left out. Without numpy, h5py or
matplotlib the tables are printed, figures left out.
Contents: 1. collecting  2. tables  3. verdicts  4. figures  5. page  6. command line
"""

import argparse
import html
import json
import math
import os
import sys

from mbfiles import open_runs
from report import figure_html, names_over, over_seeds, section, time_table, write_html
from tables import as_text, mean_of, percent, spread_of, with_spread, write_csv

MODELS = ("dense", "before", "sft", "dpo")  # in this order
LONG = {
    "dense": "dense model",
    "before": "before (upcycled)",
    "sft": "after SFT",
    "dpo": "after DPO",
}


# ---- 1. collecting -----------------------------------------------------------------------------------------


def loss_of(entry):
    """Mean loss per token of an entry of results.json, in nats; None without one."""
    if not entry:
        return None
    if entry.get("tokens"):
        return entry["nll"] / entry["tokens"]
    return math.log(entry["perplexity"]) if entry.get("perplexity") else None


def collect_model(run, model):
    """{"loss": {type: nats}, "routing": ..., "preference": {type: accuracy}} of one model."""
    results = run.json("eval-" + model, "results.json") or {}
    by_type = results.get("perplexity_by_type") or results.get("perplexity") or {}
    losses = {name: loss_of(entry) for name, entry in by_type.items()}
    losses["all"] = loss_of((results.get("perplexity") or {}).get("all"))
    judged = {} if model == "dense" else run.json("preference-" + model, "results.json") or {}
    return {
        "loss": losses,
        "routing": results.get("routing") or {},
        "preference": preference_of(judged),
    }


def preference_of(results):
    """{type or "all": {"accuracy": ..., "margin": ...}} of an evaluation on pairs."""
    found = dict(results.get("preference_by_type") or {})
    if results.get("preference"):
        table = results["preference"]
        found.update({"all": table} if "accuracy" in table else table)
    return found


def conversion_of(run):
    """What the conversion's record says of the function: {"difference", "preserved"}."""
    results = (run.json("upcycle", "done.json") or {}).get("results", {})
    return {
        "difference": results.get("max_logit_difference"),
        "preserved": results.get("function_preserved"),
    }


def collect_run(run):
    """Everything the tables need of one run."""
    return {
        "run": run,
        "models": {model: collect_model(run, model) for model in MODELS},
        "conversion": conversion_of(run),
    }


def types_of(data):
    """The types of data there are, in the order of the files; "all" is none."""
    found = []
    for item in data:
        for model in item["models"].values():
            found += [name for name in model["loss"] if name not in found and name != "all"]
    return found


def information(data, model, *keys, weighting="equal"):
    """One value per seed of the information between expert and type, over all layers."""
    return over_seeds(data, "models", model, "routing", weighting, *keys)


# ---- 2. tables ---------------------------------------------------------------------------------------------


def result_table(data):
    """One row per quantity, one column per model."""
    rows = []
    for name in types_of(data) + ["all"]:
        rows.append(
            [f"loss on answers, {name} (nats)"]
            + [with_spread(over_seeds(data, "models", m, "loss", name), "{:.3f}") for m in MODELS]
        )
    for label, keys, form in (
        ("mutual information expert : type (nats)", ("mutual_information",), "{:.4f}"),
        ("the same, types shuffled", ("shuffled_mean",), "{:.4f}"),
        ("share of the most possible", ("normalised",), "{:.4f}"),
    ):
        rows.append([label] + [with_spread(information(data, m, *keys), form) for m in MODELS])
    for name in preference_names(data):
        rows.append(
            [f"preference accuracy, {name}"]
            + [
                with_spread(over_seeds(data, "models", m, "preference", name, "accuracy"), "{:.3f}")
                for m in MODELS
            ]
        )
    rows.append(
        ["preference accuracy by reward, all"]
        + [
            with_spread(over_seeds(data, "models", m, "preference", "all", "reward_accuracy"), "{:.3f}")
            for m in MODELS
        ]
    )
    rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return ["held-back records and pairs"] + [LONG[m] for m in MODELS], rows


def preference_names(data):
    """Names under which there are accuracies, "all" first."""
    names = []
    for item in data:
        for model in item["models"].values():
            names += [name for name in model["preference"] if name not in names]
    return sorted(names, key=lambda name: name != "all")


def layer_table(data):
    """Mutual information layer by layer, types weighing the same."""
    layers = next(
        (
            model["routing"]["layers"]
            for item in data
            for model in item["models"].values()
            if model["routing"].get("layers")
        ),
        [],
    )
    rows = []
    for at, layer in enumerate(layers):
        row = [str(layer)]
        for model in MODELS[1:]:
            values = [
                entries[at].get("mutual_information") if entries and len(entries) > at else None
                for entries in over_seeds(data, "models", model, "routing", "equal", "layers")
            ]
            row.append(with_spread(values, "{:.4f}"))
        rows.append(row)
    return ["layer"] + [LONG[m] for m in MODELS[1:]], rows


def conversion_table(data):
    """Is the function of the dense model preserved?"""
    rows = []
    for item in data:
        found = item["conversion"]
        if found["difference"] is not None:
            rows.append(
                [
                    "-" if item["run"].seed is None else str(item["run"].seed),
                    f"{found['difference']:.2e}",
                    "yes" if found["preserved"] else "no",
                ]
            )
    return ["seed", "largest logit difference (relative)", "function preserved"], rows


def mix_table(run):
    """Records and tokens of every type in the mix, as they were reached."""
    mix = ((run.json("shard-sft", "done.json") or {}).get("results") or {}).get("mix") or {}
    rows = []
    for entry in mix.get("types") or []:
        rows.append(
            [
                entry["type"],
                str(entry["samples"]),
                percent(entry["sample_share"]),
                str(entry["tokens"]),
                percent(entry["token_share"]),
                str(entry["validation_samples"]),
            ]
        )
    return ["type", "records", "share", "tokens", "share of tokens", "held back"], rows


# ---- 3. verdicts -------------------------------------------------------------------------------------------


def seeds_better(first, second):
    """(seeds in which the second is higher, seeds compared, mean of both)."""
    pairs = [(a, b) for a, b in zip(first, second) if a is not None and b is not None]
    if not pairs:
        return None
    return (
        sum(b > a for a, b in pairs),
        len(pairs),
        mean_of([a for a, _ in pairs]),
        mean_of([b for _, b in pairs]),
    )


def loss_verdict(data, before, after):
    """Does the loss fall for every type in every seed?"""
    fallen, compared, rising = 0, 0, []
    for name in types_of(data):
        found = seeds_better(
            over_seeds(data, "models", after, "loss", name), over_seeds(data, "models", before, "loss", name)
        )
        if found:
            fallen, compared = fallen + found[0], compared + found[1]
            if found[0] < found[1]:
                rising.append(name)
    if not compared:
        return None
    text = f"loss {LONG[after]} against {LONG[before]}: lower in {fallen} of {compared} (type, seed)"
    return text + (f"; not always for {', '.join(rising)}" if rising else "")


def verdicts(data):
    """The study's result in sentences."""
    found = []
    kept = [item["conversion"] for item in data if item["conversion"]["difference"] is not None]
    if kept:
        worst = max(entry["difference"] for entry in kept)
        found.append(
            f"upcycled model: the dense model's function is {'' if all(e['preserved'] for e in kept) else 'not '}preserved, "
            f"largest logit difference {worst:.1e} of the largest logit"
        )
    found.append(loss_verdict(data, "before", "sft"))
    rise = seeds_better(
        information(data, "before", "mutual_information"), information(data, "sft", "mutual_information")
    )
    if rise:
        found.append(
            f"mutual information between expert and type after SFT: {rise[2]:.4f} -> {rise[3]:.4f} nats, "
            f"{rise[3] / rise[2]:.1f} times that of the random router, higher in {rise[0]} of {rise[1]} seeds"
        )
    better = seeds_better(
        over_seeds(data, "models", "sft", "preference", "all", "accuracy"),
        over_seeds(data, "models", "dpo", "preference", "all", "accuracy"),
    )
    if better:
        found.append(
            f"DPO: preference accuracy on held-back pairs {better[2]:.3f} -> {better[3]:.3f}, "
            f"higher in {better[0]} of {better[1]} seeds"
        )
    return [sentence for sentence in found if sentence]


# ---- 4. figures --------------------------------------------------------------------------------------------


def plot_losses(data):
    """Loss per type, one group per type, one bar per model; None without losses."""
    from figures import colour, legend_right, plt

    names = types_of(data)
    models = [m for m in MODELS[1:] if any(over_seeds(data, "models", m, "loss", n) != [None] for n in names)]
    if not names or not models:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        values = [over_seeds(data, "models", model, "loss", name) for name in names]
        axes.bar(
            [x + (i - (len(models) - 1) / 2) * width for x in range(len(names))],
            [mean_of(v) or 0 for v in values],
            width * 0.92,
            yerr=[spread_of(v) or 0 for v in values],
            color=colour(None, i),
            label=LONG[model],
            error_kw={"linewidth": 0.8},
        )
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="loss on answers (nats per token)", title="Held-back records, by type")
    axes.grid(axis="x", visible=False)
    legend_right(axes)
    return figure


def validation_lines(metrics, term):
    """{type: (steps, values)} of "validation/<type>/<term>" curves."""
    import numpy

    found = {}
    for key, values in (metrics or {}).items():
        name = key[len("validation/") : -len(term) - 1]
        if key == f"validation/{name}/{term}" and name and "/" not in name:
            known = numpy.isfinite(values)
            if known.any():
                found[name] = (metrics["step"][known], values[known])
    return found


def plot_validation(metrics, terms, title):
    """Validation curves of a stage, one line per type, one panel per (term, label); None without any."""
    from figures import colour, legend_right, plt

    panels = [(label, validation_lines(metrics, term)) for term, label in terms]
    panels = [(label, lines) for label, lines in panels if lines]
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(1.2 + 3.6 * len(panels), 2.9), squeeze=False)
    for panel, (label, lines) in zip(axes[0], panels):
        for i, (name, (step, values)) in enumerate(lines.items()):
            panel.plot(step, values, "o-", markersize=3, color=colour(None, i), label=name)
        panel.set(xlabel="optimiser step", ylabel=label)
    axes[0][0].set_title(title)
    legend_right(axes[0][-1])
    figure.tight_layout()
    return figure


def curve_figures(run):
    """Figures of one run's training stages."""
    from curves import plot_stages, plot_terms

    sft, dpo = run.metrics("sft"), run.metrics("dpo")
    made = {name: run.metrics(name) for name in ("pretrain",) if os.path.isdir(run.path(name))}
    return [
        (
            "validation",
            plot_validation(sft, [("lm_loss", "loss on answers (nats per token)")], "SFT: held-back records"),
            "Validation loss by type over SFT.",
        ),
        (
            "dpo",
            plot_validation(
                dpo,
                [
                    ("rewards/accuracies", "share with the higher reward"),
                    ("rewards/margins", "reward margin"),
                ],
                "DPO: held-back pairs",
            ),
            "Held-back pairs over DPO, by type: share whose chosen answer has the higher reward (none before the first step, when all rewards are 0), and the mean margin.",
        ),
        ("sft-terms", plot_terms(sft, "SFT"), "Terms of the SFT loss."),
        (
            "pretrain",
            plot_stages(made, "loss", "The dense model"),
            "Training loss of the model made on the spot.",
        ),
    ]


def result_figures(data):
    """Figures over all seeds."""
    return [
        (
            "losses",
            plot_losses(data),
            "Loss on the answers of held-back records; over seeds with one standard deviation.",
        ),
    ]


def routing_figures(data):
    """Where the tokens of each type go, before and after, and the load over training, as specialisation.py
    draws them."""
    from specialisation import all_figures, load_figures, read_models

    paths = [
        f"{LONG[model]}={path}"
        for model in MODELS[1:]
        for path in (item["run"].path("eval-" + model, "routing.h5") for item in data)
        if os.path.exists(path)
    ]
    if not paths:
        return []
    models = read_models(paths)
    layers = next(iter(models.values()))[0]["layers"]
    path = data[0]["run"].path("sft", "metrics.h5")
    return all_figures(models) + (load_figures(path, "SFT", layers) if os.path.exists(path) else [])


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
        lambda: routing_figures(data),
        lambda: curve_figures(data[0]["run"]),
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


# ---- 5. page -----------------------------------------------------------------------------------------------


def answers_html(run):
    """The answers side by side, where that stage has run."""
    path = run.path("side-by-side", "side_by_side.txt")
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return f"<h2>Answers side by side</h2>\n<pre>{html.escape(file.read())}</pre>"


def build_page(folder, data, figures, notes):
    """Tables and figures in reading order; returns the path of the page."""
    seeds = [str(item["run"].seed) for item in data if item["run"].seed is not None]
    title = "From a dense model to experts: " + os.path.basename(os.path.abspath(os.path.join(folder, "..")))
    spread = f"Mean over seeds {', '.join(seeds)}, spread: one standard deviation." if len(seeds) > 1 else ""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p class=dim>{html.escape(spread)}</p>"]
    parts += [f"<p class=verdict>{html.escape(sentence)}</p>" for sentence in verdicts(data)]
    parts += [
        section(
            "Result",
            result_table(data),
            "Held-back records and pairs, in no training data. Mutual information with types of equal weight, over all layers.",
        ),
        section("The conversion", conversion_table(data)),
        section("The mix of data", mix_table(data[0]["run"])),
        section("Mutual information by layer", layer_table(data), "Nats, types of equal weight."),
    ]
    parts += ["<h2>Figures</h2>" if figures else ""] + [
        figure_html(path, caption) for _, path, caption in figures
    ]
    parts += [answers_html(data[0]["run"]), section("Stages", time_table(data))]
    if notes:
        parts.append(
            "<h2>Left out</h2>\n<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"
        )
    path = os.path.join(folder, "report.html")
    write_html(path, title, parts)
    return path


def write_summary(folder, data):
    """report.json and result.csv, for other programs."""
    summary = {
        "seeds": [item["run"].seed for item in data],
        "verdicts": verdicts(data),
        "conversion": [item["conversion"] for item in data],
        "models": {
            model: {
                "loss": {n: over_seeds(data, "models", model, "loss", n) for n in types_of(data) + ["all"]},
                "mutual_information": information(data, model, "mutual_information"),
                "mutual_information_shuffled": information(data, model, "shuffled_mean"),
                "preference_accuracy": {
                    n: over_seeds(data, "models", model, "preference", n, "accuracy")
                    for n in preference_names(data)
                },
            }
            for model in names_over(data, "models")
        },
    }
    with open(os.path.join(folder, "report.json"), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=2, sort_keys=True)
        file.write("\n")
    write_csv(os.path.join(folder, "result.csv"), *result_table(data))


# ---- 6. command line ---------------------------------------------------------------------------------------


def notes_of(data, problems):
    """Everything that is missing, once."""
    notes = []
    for item in data:
        prefix = f"seed {item['run'].seed}: " if item["run"].seed is not None else ""
        notes += [f"{prefix}{name} is not there" for name in item["run"].missing]
    return notes + problems


def print_tables(data, notes, page):
    """What the terminal shows at the end of a study."""
    count = len(data)
    print(f"\nResult over {count} seeds (mean +- standard deviation)" if count > 1 else "\nResult")
    print(as_text(*result_table(data)))
    mix = mix_table(data[0]["run"])
    if mix[1]:
        print("\nThe mix of data\n" + as_text(*mix))
    for sentence in verdicts(data):
        print("  " + sentence)
    if notes:
        print("\nleft out: " + "; ".join(notes))
    print(f"\nreport: {page}")


def main(arguments=None):
    """Returns the exit code: 0 done, 2 bad usage, 3 nothing to report or a broken file."""
    parser = argparse.ArgumentParser(description="Report of an upcycling study.")
    parser.add_argument("run", help="run folder, with stages or with seed_<n> folders inside")
    parser.add_argument("--out", help="folder to write to (default: RUN/report)")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.run):
        print(f"upcycle.py: {options.run}: no such folder", file=sys.stderr)
        return 2
    runs = open_runs(options.run)
    if not any(run.parts("eval-") for run in runs):
        print(
            f"upcycle.py: {options.run} holds no stages eval-<model> and no seed_<n> folders", file=sys.stderr
        )
        return 3
    folder = options.out or os.path.join(options.run, "report")
    try:
        data = [collect_run(run) for run in runs]
        os.makedirs(folder, exist_ok=True)
        figures, problems = ([], []) if options.no_figures else draw_all(data, folder)
        notes = notes_of(data, problems)
        page = build_page(folder, data, figures, notes)
        write_summary(folder, data)
    except (OSError, ValueError) as error:
        print(f"upcycle.py: {error}", file=sys.stderr)
        return 3
    print_tables(data, notes, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
