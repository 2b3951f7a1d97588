#!/usr/bin/env python3
"""Which experts the tokens of each type of text go to, of one model or of several side by side.

    python3 analysis/specialisation.py before=RUN/eval-before sft=RUN/eval-sft dpo=RUN/eval-dpo [--out DIR]
        [--loads RUN/sft/metrics.h5]

Every path is a routing.h5 of `moe-eval eval.routing=true`, or its folder. The first label is what the others
are compared with. A label given several times is one model over several seeds. Writes specialisation.md,
specialisation.json and figures; prints the tables. What the numbers mean: docs/formats.md, routing.h5.
Contents: 1. reading  2. numbers  3. tables  4. figures of shares  5. figures of information  6. load over
training  7. command line
"""

import argparse
import json
import math
import os
import sys

from mbfiles import read_routing, read_table
from tables import as_markdown, as_text, mean_of, percent, spread_of, with_spread

PAGE = 6  # layers on one figure


# ---- 1. reading --------------------------------------------------------------------------------------------


def read_models(arguments):
    """{label: [routing of every seed]} from label=path words, in the order given."""
    models = {}
    for word in arguments:
        label, equals, path = word.partition("=")
        if not equals:
            label, path = os.path.basename(os.path.abspath(word)), word
        if os.path.isdir(path):
            path = os.path.join(path, "routing.h5")
        models.setdefault(label, []).append(read_routing(path))
    check_alike(models)
    return models


def check_alike(models):
    """ValueError where two files cannot be compared: other types, layers, experts, tokens or data."""
    first = next(iter(models.values()))[0]
    for tables in models.values():
        for table in tables:
            for name, a, b in (
                ("types", first["types"], table["types"]),
                ("layers with experts", list(first["layers"]), list(table["layers"])),
                ("experts", first["attributes"].get("experts"), table["attributes"].get("experts")),
                ("eval.routing_over", first["attributes"].get("over"), table["attributes"].get("over")),
            ):
                if a != b:
                    raise ValueError(f"{table['path']} and {first['path']} differ in {name}: {b} and {a}")
    for seeds in zip(*models.values()) if len({len(t) for t in models.values()}) == 1 else []:
        for table in seeds[1:]:
            if table["attributes"].get("shard") != seeds[0]["attributes"].get("shard"):
                raise ValueError(
                    f"{table['path']} and {seeds[0]['path']} were measured on different data; "
                    "evaluate the models on one shard"
                )


# ---- 2. numbers --------------------------------------------------------------------------------------------


def shares(table):
    """[types, layers, experts]: share of a type's picks in a layer; NaN without picks."""
    import numpy

    counts = table["counts"].astype(float)
    total = counts.sum(axis=2, keepdims=True)
    return numpy.divide(counts, total, out=numpy.full_like(counts, numpy.nan), where=total > 0)


def shuffled(table, prefix=""):
    """Mean and spread of the information that permuted types give: per layer, then over all layers; None
    without permutations."""
    values = table.get(prefix + "mutual_information_shuffled")
    if values is None:
        return None
    whole = values.mean(axis=1)
    ddof = 1 if len(values) > 1 else 0
    return {
        "mean": values.mean(axis=0),
        "sd": values.std(axis=0, ddof=ddof),
        "all_mean": float(whole.mean()),
        "all_sd": float(whole.std(ddof=ddof)),
    }


def summary_of(table):
    """The numbers of one file over all layers together."""
    import numpy

    entropy = table["entropy"]
    limit = math.log(table["counts"].shape[2])
    found = {
        "tokens": int(table["tokens"].sum()),
        "units": int(table["attributes"].get("units", 0)),
        "entropy_of_types": {
            name: None if numpy.isnan(row).any() else float(row.mean() / limit)
            for name, row in zip(table["types"], entropy)
        },
    }
    for prefix, name in (("", "as_they_come"), ("equal/", "equal")):
        whole, baseline = table["all_layers"], shuffled(table, prefix)
        found[name] = {
            "mutual_information": whole[prefix + "mutual_information"],
            "corrected": whole[prefix + "mutual_information_corrected"],
            "normalised": finite(whole[prefix + "mutual_information_normalised"]),
            "p_value": finite(whole[prefix + "mutual_information_p"]),
            "shuffled_mean": baseline["all_mean"] if baseline else None,
            "shuffled_sd": baseline["all_sd"] if baseline else None,
        }
    return found


def finite(value):
    """The number, None where it is none."""
    return float(value) if math.isfinite(value) else None


def favourites(table):
    """Per layer and type the expert whose share stands out most from its mean over the types:
    [(layer, type, expert, share, times)]; types without tokens are left out."""
    import numpy

    found, part = [], shares(table)
    known = [t for t in range(len(table["types"])) if table["tokens"][t] > 0]
    for at, layer in enumerate(table["layers"]):
        mean = part[known, at].mean(axis=0)
        for t in known:
            times = numpy.divide(part[t, at], mean, out=numpy.zeros_like(mean), where=mean > 0)
            expert = int(numpy.argmax(part[t, at] - mean))
            found.append(
                (int(layer), table["types"][t], expert, float(part[t, at, expert]), float(times[expert]))
            )
    return found


def compare(models):
    """Sentences: every model against the first, seed by seed."""
    found = []
    labels = list(models)
    for label in labels[1:]:
        pairs = [
            (a["all_layers"]["equal/mutual_information"], b["all_layers"]["equal/mutual_information"])
            for a, b in zip(models[labels[0]], models[label])
        ]
        before, after = mean_of([a for a, _ in pairs]), mean_of([b for _, b in pairs])
        rises = sum(b > a for a, b in pairs)
        times = f" ({after / before:.1f} times)" if before > 0 else ""
        seeds = f", higher in {rises} of {len(pairs)} seeds" if len(pairs) > 1 else ""
        found.append(
            f"{label}: information between expert and type {after:.4f} nats, "
            f"{labels[0]}: {before:.4f}{times}{seeds}"
        )
    return found


# ---- 3. tables ---------------------------------------------------------------------------------------------


def plus_minus(mean, spread):
    """'0.0019 +- 0.0004'; '-' without permutations."""
    return "-" if mean is None else f"{mean:.4f} +- {spread:.4f}"


def information_table(models):
    """A row per model over all layers; over several seeds means with their spread."""
    rows = []
    for label, tables in models.items():
        found = [summary_of(table) for table in tables]

        def over(kind, key, found=found):
            return [item[kind][key] for item in found]

        rows.append(
            [
                label,
                with_spread(over("equal", "mutual_information"), "{:.4f}"),
                plus_minus(
                    mean_of(over("equal", "shuffled_mean")), mean_of(over("equal", "shuffled_sd")) or 0
                ),
                percent(mean_of(over("equal", "normalised"))),
                with_spread(over("as_they_come", "mutual_information"), "{:.4f}"),
                plus_minus(
                    mean_of(over("as_they_come", "shuffled_mean")),
                    mean_of(over("as_they_come", "shuffled_sd")) or 0,
                ),
                (
                    "-"
                    if over("equal", "p_value")[0] is None
                    else f"{max(v for v in over('equal', 'p_value')):.3f}"
                ),
            ]
        )
    return [
        "model",
        "I(expert; type), equal types",
        "types permuted",
        "of most",
        "types as they come",
        "types permuted",
        "p",
    ], rows


def entropy_table(models):
    """Rows per type: records, tokens, entropy of its experts as a share of ln E, per model."""
    first = next(iter(models.values()))[0]
    rows = []
    for t, name in enumerate(first["types"]):
        row = [name, str(int(first["records"][t])), str(int(first["tokens"][t]))]
        for tables in models.values():
            row.append(percent(mean_of([summary_of(table)["entropy_of_types"][name] for table in tables])))
        rows.append(row)
    return ["type", "records", "tokens"] + [f"entropy, {label}" for label in models], rows


def layer_table(models):
    """Rows per layer: information with types of equal weight beside what permuted types give, per model."""
    first = next(iter(models.values()))[0]
    rows = []
    for at, layer in enumerate(first["layers"]):
        row = [str(int(layer))]
        for tables in models.values():
            row.append(with_spread([float(t["equal/mutual_information"][at]) for t in tables], "{:.4f}"))
            base = shuffled(tables[0], "equal/")
            row.append(plus_minus(base["mean"][at], base["sd"][at]) if base else "-")
        rows.append(row)
    return ["layer"] + [text for label in models for text in (label, f"{label}, permuted")], rows


def favourite_table(models):
    """Rows per layer and type: the expert that stands out, its share, how many times its mean over types."""
    found = {label: favourites(tables[0]) for label, tables in models.items()}
    rows = []
    for i, (layer, name, _, _, _) in enumerate(next(iter(found.values()))):
        row = [str(layer), name]
        for label in models:
            _, _, expert, share, times = found[label][i]
            row.append(f"{expert}: {100 * share:.0f} % ({times:.1f}x)")
        rows.append(row)
    return ["layer", "type"] + list(models), rows


def all_tables(models):
    """[(title, note, table)] in reading order."""
    first = next(iter(models.values()))[0]["attributes"]
    over = "answer tokens" if first.get("over") == "answers" else "all tokens"
    return [
        (
            "Information between expert and type",
            f"nats, over all layers, {over}; permuted: types permuted over {first.get('units', '?')} records "
            "(the independent units), mean and standard deviation. A router nobody trained tells types apart "
            "too, by their words: what training added is the difference between the models.",
            information_table(models),
        ),
        ("Per layer", "nats, types of equal weight", layer_table(models)),
        (
            "Entropy of the experts of a type",
            "mean over layers, share of ln E; low: the type uses few experts",
            entropy_table(models),
        ),
        (
            "The expert that stands out",
            "expert: its share of the type's tokens (times its mean share over the types)"
            + ("; first seed" if any(len(t) > 1 for t in models.values()) else ""),
            favourite_table(models),
        ),
    ]


# ---- 4. figures of shares ----------------------------------------------------------------------------------


def tick_places(count, most=16):
    """Every expert labelled while they are few, else every 2nd, 4th, ..."""
    step = 1
    while count / step > most:
        step *= 2
    return list(range(0, count, step))


def draw_panel(axes, values, types, norm, annotate):
    """One layer of one model: types down, experts across."""
    from figures import plt

    mesh = axes.imshow(values, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    axes.set_xticks(tick_places(values.shape[1]))
    axes.set_yticks(range(len(types)))
    axes.grid(False)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if not annotate:
        return mesh
    for t, row in enumerate(values):
        for e, value in enumerate(row):
            if math.isfinite(value):
                tint = plt.get_cmap("RdBu_r")(norm(value))
                dark = 0.299 * tint[0] + 0.587 * tint[1] + 0.114 * tint[2] < 0.5
                axes.text(
                    e,
                    t,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="w" if dark else "k",
                )
    return mesh


def share_norm(values, experts):
    """Colours from 0 over the even share 1/E (white) to the largest share of any panel."""
    import numpy
    from matplotlib.colors import TwoSlopeNorm

    largest = float(numpy.nanmax(values))
    return TwoSlopeNorm(vmin=0, vcenter=1 / experts, vmax=max(largest, 1.5 / experts))


def mark_bar(bar, norm, experts):
    """Ticks of a colour bar of shares, the even share among them."""
    even = 1 / experts
    ticks = [0, even] + [v for v in (norm.vmax / 2, norm.vmax) if v > 1.6 * even]
    bar.set_ticks(ticks, labels=[f"{100 * v:.3g} %" + ("\n(even)" if v == even else "") for v in ticks])
    bar.outline.set_visible(False)


def draw_shares(models, at):
    """Heat maps of some layers (places `at`): a row of panels per layer, a column per model, one scale."""
    import numpy
    from figures import plt

    labels = list(models)
    types, experts = models[labels[0]][0]["types"], models[labels[0]][0]["counts"].shape[2]
    layers = models[labels[0]][0]["layers"]
    parts = {label: numpy.nanmean([shares(t) for t in tables], axis=0) for label, tables in models.items()}
    norm = share_norm(numpy.stack(list(parts.values())), experts)
    annotate = experts <= 16 and len(labels) * experts <= 40
    width = min(6.5, max(2.4, 0.34 * experts if annotate else 0.14 * experts + 1.2))
    height = max(0.9, 0.27 * len(types) + 0.25)
    figure, panels = plt.subplots(
        len(at),
        len(labels),
        figsize=(width * len(labels) + 2.2, height * len(at) + 1.0),
        squeeze=False,
        layout="constrained",
    )
    for row, place in enumerate(at):
        for column, label in enumerate(labels):
            axes = panels[row][column]
            mesh = draw_panel(axes, parts[label][:, place], types, norm, annotate)
            axes.set_yticklabels(types if column == 0 else [])
            if row < len(at) - 1:
                axes.set_xticklabels([])
            if row == 0:
                axes.set_title(label)
        panels[row][0].set_ylabel(f"layer {int(layers[place])}")
    for axes in panels[-1]:
        axes.set_xlabel("expert" + trash_note(models[labels[0]][0]))
    bar = figure.colorbar(mesh, ax=panels, shrink=min(1.0, 3.0 / (height * len(at))), pad=0.015, aspect=18)
    mark_bar(bar, norm, experts)
    bar.set_label("share of the type's picks" + (" (cells: %)" if annotate else ""), labelpad=8)
    figure.suptitle("Share of tokens per expert, by type of text" + seed_note(models), x=0.01, ha="left")
    return figure


def trash_note(table):
    """Which experts are trash, for the axis."""
    trash, experts = table["attributes"].get("trash", 0), table["counts"].shape[2]
    return f" ({experts - trash} to {experts - 1}: trash)" if trash > 0 else ""


def seed_note(models):
    """What a figure over several seeds shows."""
    count = max(len(tables) for tables in models.values())
    return f" (mean of {count} seeds)" if count > 1 else ""


# ---- 5. figures of information -----------------------------------------------------------------------------


def layer_axis(axes, layers):
    """Layers across, by their numbers."""
    places = tick_places(len(layers), 12)
    axes.set_xticks([layers[i] for i in places])
    axes.set_xlabel("layer")
    if len(layers) == 1:
        axes.set_xlim(layers[0] - 0.5, layers[0] + 0.5)


def plot_information(models):
    """Information per layer, a line per model, with what permuted types give as a band of 2 standard
    deviations below."""
    import numpy
    from figures import COLOURS, MARKERS, legend_right, plt

    layers = [int(v) for v in next(iter(models.values()))[0]["layers"]]
    figure, axes = plt.subplots(figsize=(6.8, 3.2), layout="constrained")
    for i, (label, tables) in enumerate(models.items()):
        tint, values = COLOURS[i % 7], numpy.stack([t["equal/mutual_information"] for t in tables])
        axes.plot(layers, values.mean(axis=0), color=tint, marker=MARKERS[i % 8], markersize=4.5, label=label)
        if len(tables) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(layers, low, high, color=tint, alpha=0.15, linewidth=0)
        base = shuffled(tables[0], "equal/")
        if base:
            axes.plot(layers, base["mean"], color=tint, linestyle=":", linewidth=1.2)
            axes.fill_between(
                layers,
                base["mean"] - 2 * base["sd"],
                base["mean"] + 2 * base["sd"],
                color=tint,
                alpha=0.2,
                linewidth=0,
            )
    seeds = "; band: lowest to highest seed" if seed_note(models) else ""
    axes.set(ylabel="I(expert; type), nats", title=f"What the expert says about the type{seeds}")
    axes.set_ylim(bottom=0)
    layer_axis(axes, layers)
    legend_right(axes, title="dotted: types permuted\n(mean, 2 s.d.)", title_fontsize=9, alignment="left")
    return figure


def plot_entropy(models):
    """Entropy of every type's experts per layer, a panel per model."""
    import numpy
    from figures import COLOURS, DASHES, grid

    first = next(iter(models.values()))[0]
    layers, limit = [int(v) for v in first["layers"]], math.log(first["counts"].shape[2])
    figure, panels = grid(len(models), width=3.0, height=2.7, most_columns=4)
    for axes, (label, tables) in zip(panels, models.items()):
        entropy = numpy.mean([table["entropy"] for table in tables], axis=0)
        for t, name in enumerate(first["types"]):
            axes.plot(
                layers,
                entropy[t],
                color=COLOURS[t % 7],
                linestyle=DASHES[t // 7 % 4],
                marker="o",
                markersize=3,
                label=name,
            )
        axes.axhline(limit, color="#666666", linewidth=0.8, linestyle="--", label="all alike, ln E")
        axes.set(title=label, ylim=(0, 1.06 * limit))
        layer_axis(axes, layers)
    panels[0].set_ylabel("entropy of experts, nats")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle("How many experts a type spreads over" + seed_note(models), x=0.01, ha="left")
    figure.tight_layout()
    return figure


# ---- 6. load over training ---------------------------------------------------------------------------------


def plot_loads(steps, loads, layers, title):
    """Share of all picks per expert over training: a panel per layer, steps across, experts down."""
    import numpy
    from figures import plt
    from router import step_edges

    experts = loads.shape[2]
    part = loads / numpy.maximum(loads.sum(axis=2, keepdims=True), 1)
    norm = share_norm(part, experts)
    columns = 2 if len(layers) in (2, 4) else min(3, len(layers))
    rows = -(-len(layers) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.1 * columns + 1.4, 2.1 * rows + 0.5), squeeze=False, layout="constrained"
    )
    edges = (
        step_edges(steps.astype(float)) if len(steps) > 1 else numpy.array([steps[0] - 0.5, steps[0] + 0.5])
    )
    for spare in panels.flat[len(layers) :]:
        spare.remove()
    panels = list(panels.flat[: len(layers)])
    for place, axes in enumerate(panels):
        mesh = axes.pcolormesh(
            edges, numpy.arange(experts + 1) - 0.5, part[:, place].T, cmap="RdBu_r", norm=norm, shading="flat"
        )
        axes.set_title(f"layer {layers[place]}")
        axes.set_yticks(tick_places(experts, 8))
        axes.invert_yaxis()
        axes.grid(False)
        if place % columns == 0:
            axes.set_ylabel("expert")
        if place + columns >= len(layers):
            axes.set_xlabel("optimiser step")
    bar = figure.colorbar(mesh, ax=panels, shrink=min(1.0, 1.6 / rows), pad=0.02, aspect=16)
    mark_bar(bar, norm, experts)
    bar.set_label("share of all picks", labelpad=8)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def load_figures(path, name, opt_layers=None):
    """[(name, figure, caption)] of /loads in the metrics of a stage; empty when it has none."""
    found = read_table(path, "loads")
    if found is None:
        return []
    steps, loads = found
    layers = [int(v) for v in opt_layers] if opt_layers is not None else list(range(loads.shape[1]))
    if len(layers) != loads.shape[1]:
        raise ValueError(
            f"{path}: loads of {loads.shape[1]} layers, the model has {len(layers)} with experts"
        )
    pages = range(0, len(layers), 2 * PAGE)
    return [
        (
            f"loads-{name}" + (f"-{number}" if len(pages) > 1 else ""),
            plot_loads(
                steps,
                loads[:, first : first + 2 * PAGE].astype(float),
                layers[first : first + 2 * PAGE],
                f"Load of the experts over training, {name}",
            ),
            f"Share of all picks per expert over the training {name}; white is an even load.",
        )
        for number, first in enumerate(pages, 1)
    ]


def share_figures(models):
    """[(name, figure, caption)] of the heat maps, some layers on each."""
    count = len(next(iter(models.values()))[0]["layers"])
    pages = range(0, count, PAGE)
    return [
        (
            "specialisation-share" + (f"-{number}" if len(pages) > 1 else ""),
            draw_shares(models, list(range(first, min(first + PAGE, count)))),
            "Share of a type's picks per expert and layer; white is an even share.",
        )
        for number, first in enumerate(pages, 1)
    ]


def plot_shares(files):
    """The heat maps of [(label, path)], for reports; empty when there are no files."""
    return share_figures(read_models([f"{label}={path}" for label, path in files])) if files else []


def all_figures(models):
    """[(name, figure, caption)] of shares, information and entropy."""
    found = share_figures(models)
    found.append(
        (
            "specialisation-information",
            plot_information(models),
            "Information between expert and type per layer, types of equal weight, and what types permuted "
            "over the records give.",
        )
    )
    found.append(
        (
            "specialisation-entropy",
            plot_entropy(models),
            "Entropy of the experts of every type; the dashed line is an even use of all.",
        )
    )
    return found


# ---- 7. command line ---------------------------------------------------------------------------------------


def report_of(models):
    """Everything as one object for other programs."""
    first = next(iter(models.values()))[0]
    return {
        "types": first["types"],
        "layers": [int(v) for v in first["layers"]],
        "experts": int(first["counts"].shape[2]),
        "over": first["attributes"].get("over"),
        "models": {
            label: {
                "files": [t["path"] for t in tables],
                "seeds": [summary_of(t) for t in tables],
                "mean": mean_of([t["all_layers"]["equal/mutual_information"] for t in tables]),
                "spread": spread_of([t["all_layers"]["equal/mutual_information"] for t in tables]),
                "layers": [
                    {
                        "equal": [float(v) for v in t["equal/mutual_information"]],
                        "as_they_come": [float(v) for v in t["mutual_information"]],
                    }
                    for t in tables
                ],
                "stands_out": [
                    dict(zip(("layer", "type", "expert", "share", "times"), row))
                    for row in favourites(tables[0])
                ],
            }
            for label, tables in models.items()
        },
        "verdicts": compare(models),
    }


def write_markdown(path, models, figures):
    """The tables and figures for a README."""
    with open(path, "w", encoding="utf-8") as file:
        for sentence in compare(models):
            file.write(f"- {sentence}\n")
        for title, note, (header, rows) in all_tables(models):
            file.write(f"\n## {title}\n\n{note}\n\n{as_markdown(header, rows)}\n")
        for image, caption in figures:
            file.write(f"\n![{caption}]({os.path.basename(image)})\n")


def draw(models, options):
    """[(path, caption)] of all figures, and notes on those left out."""
    try:
        from figures import save
    except ImportError as error:
        return [], [f"figures left out: {error}; install python3-matplotlib"]
    layers = next(iter(models.values()))[0]["layers"]
    found = all_figures(models)
    for word in options.loads:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = os.path.basename(os.path.dirname(os.path.abspath(word))), word
        loads = load_figures(path, name, layers)
        if not loads:
            raise ValueError(
                f"{path}: no loads of experts; train with a router that learns, or leave --loads out"
            )
        found += loads
    return [(save(figure, options.out, name), caption) for name, figure, caption in found], []


def main(arguments=None):
    """Returns the exit code: 0 done, 2 bad usage, 3 nothing to read or a broken file."""
    parser = argparse.ArgumentParser(description="Which experts the types of text go to.")
    parser.add_argument(
        "model", nargs="+", metavar="label=path", help="routing.h5, or the folder that holds it"
    )
    parser.add_argument(
        "--loads",
        action="append",
        default=[],
        metavar="label=metrics.h5",
        help="draw the load of the experts over this training (may be given several times)",
    )
    parser.add_argument("--out", default=".", help="folder to write to (default: here)")
    parser.add_argument("--no-figures", action="store_true", help="tables only")
    options = parser.parse_args(arguments)
    try:
        models = read_models(options.model)
        os.makedirs(options.out, exist_ok=True)
        figures, notes = ([], []) if options.no_figures else draw(models, options)
        write_markdown(os.path.join(options.out, "specialisation.md"), models, figures)
        with open(os.path.join(options.out, "specialisation.json"), "w", encoding="utf-8") as file:
            json.dump(report_of(models), file, indent=2)
            file.write("\n")
    except (OSError, KeyError, ValueError) as error:
        print(f"specialisation.py: {error}", file=sys.stderr)
        return 3
    for title, note, (header, rows) in all_tables(models):
        print(f"\n{title}: {note}\n{as_text(header, rows)}")
    print()
    for sentence in compare(models) + notes + [path for path, _ in figures]:
        print(sentence)
    return 0


if __name__ == "__main__":
    sys.exit(main())
