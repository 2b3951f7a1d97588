#!/usr/bin/env python3
"""What share each member of a fused model had in its answers, by stage of the router, query and token.

    python3 analysis/router_stats.py RUN/answers [--by FIELD] [--out DIR] [--queries 40] [--stage NAME]
        [--full]

The path is a router_stats.h5 of `moe-infer ... show_router_stats=true`, or its folder with generated.jsonl
beside it. --by names a field of the records that groups the queries ("type", "source_dataset", ...).
Writes router_stats.html (one file: tables, figures and, where the shares of tokens were kept, every token
coloured by its members' shares), router_stats.json and figures; prints the tables.
What the numbers mean: docs/formats.md, router_stats.h5.
Contents: 1. reading  2. numbers  3. tables  4. figures  5. coloured text  6. command line
"""

import argparse
import html
import json
import math
import os
import sys

from mbfiles import open_h5, read_lines, text_of
from report import figure_html, section, write_html
from tables import as_text

# Members in order, as in the figures (Okabe-Ito).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C"]


# ---- 1. reading --------------------------------------------------------------------------------------------


def read_stats(path):
    """The file as a dictionary of arrays, with "members", "stages", "kind", and "tokens" (None when they were
    not kept)."""
    if os.path.isdir(path):
        path = os.path.join(path, "router_stats.h5")
    with open_h5(path, "moebatch-router-stats") as file:
        stats = {"path": path, "kind": text_of(file.attrs.get("kind", "")), "tokens": None}
        for name in ("record", "sample", "prompt_rows", "answer_rows", "prompt", "answer"):
            stats[name] = file[name][...]
        for name in ("members", "stages"):
            stats[name] = [text_of(value) for value in file[name][...]]
        if "tokens" in file:
            stats["tokens"] = {name: item[...] for name, item in file["tokens"].items()}
            stats["tokens"]["text"] = stats["tokens"]["text"].tobytes()
    return stats


def read_groups(stats, field):
    """The group of every query: the value of a field in generated.jsonl beside, or one group for all."""
    count = len(stats["record"])
    if field is None:
        return ["all queries"] * count
    path = os.path.join(os.path.dirname(os.path.abspath(stats["path"])), "generated.jsonl")
    groups = [row.get(field) for row in read_lines(path)]
    if len(groups) != count:
        raise ValueError(f"{path} has {len(groups)} answers, {stats['path']} {count}: they are of two runs")
    if all(group is None for group in groups):
        raise ValueError(f"{path}: no record has a field {field}")
    return ["(none)" if g is None else g if isinstance(g, str) else json.dumps(g) for g in groups]


# ---- 2. numbers --------------------------------------------------------------------------------------------


def by_group(stats, groups):
    """{group: {"queries", "prompt", "answer"}}: mean shares [stages, members] weighed by tokens; None where a
    part has none. Groups in the order in which they come."""
    import numpy

    result = {}
    for group in dict.fromkeys(groups):
        chosen = numpy.array([g == group for g in groups])
        entry = {"queries": int(chosen.sum())}
        for part in ("prompt", "answer"):
            rows = stats[part + "_rows"][chosen].astype(float)
            total = rows.sum()
            shares = numpy.nan_to_num(stats[part][chosen])
            entry[part] = (shares * rows[:, None, None]).sum(axis=0) / total if total > 0 else None
            entry[part + "_tokens"] = int(total)
        result[group] = entry
    return result


def query_shares(stats):
    """[queries, members]: share in the answer, all stages alike."""
    return stats["answer"].mean(axis=1)


# ---- 3. tables ---------------------------------------------------------------------------------------------


def three(value):
    """A share as '0.512'."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def group_table(stats, table):
    """Shares of every group, prompts and answers, all stages alike."""
    members = stats["members"]
    header = ["group", "queries"]
    header += [f"{name}, {part}" for part in ("prompts", "answers") for name in members]
    rows = []
    for group, entry in table.items():
        cells = [group, str(entry["queries"])]
        for part in ("prompt", "answer"):
            mean = None if entry[part] is None else entry[part].mean(axis=0)
            cells += [three(None if mean is None else float(mean[m])) for m in range(len(members))]
        rows.append(cells)
    return header, rows


def stage_table(stats, table):
    """Shares in the answers, one row per stage, a column per group and member (the last member is left out:
    it has the rest)."""
    members = stats["members"]
    shown = range(len(members) - 1) if len(members) > 1 else [0]
    header = ["stage"] + [f"{members[m]}, {group}" for group in table for m in shown]
    rows = [
        [name]
        + [
            three(None if entry["answer"] is None else float(entry["answer"][s, m]))
            for entry in table.values()
            for m in shown
        ]
        for s, name in enumerate(stats["stages"])
    ]
    return header, rows


# ---- 4. figures --------------------------------------------------------------------------------------------


def short_stage(name):
    """A stage's name below an axis."""
    return name.replace("layer ", "").replace("embedding", "emb")


def stage_figure(stats, table):
    """A panel per group: the members' shares in the answers by stage, stacked to 1."""
    import numpy
    from figures import grid, plt

    members, stages = stats["members"], stats["stages"]
    known = {group: entry for group, entry in table.items() if entry["answer"] is not None}
    width = min(9.0, max(3.4, 1.4 + 0.42 * len(stages)))
    figure, panels = grid(len(known), width=width, height=2.7, most_columns=1 if width > 6 else 2)
    at = numpy.arange(len(stages))
    for axes, (group, entry) in zip(panels, known.items()):
        below = numpy.zeros(len(stages))
        for m, name in enumerate(members):
            axes.bar(at, entry["answer"][:, m], 0.82, bottom=below, color=COLOURS[m % 8], label=name)
            below += entry["answer"][:, m]
        if len(members) == 2:
            axes.axhline(0.5, color="white", linewidth=1, linestyle="--")
        axes.set_title(f"{group} ({entry['queries']} queries)")
        axes.set_ylim(0, 1)
        axes.set_xlim(-0.6, len(stages) - 0.4)
        axes.grid(axis="x", visible=False)
        step = max(1, len(stages) // 16)
        few = list(range(0, len(stages) - step, step)) + [len(stages) - 1]
        axes.set_xticks([at[i] for i in few], [short_stage(stages[i]) for i in few])
        if len(stages) > 3:
            axes.set_xlabel("stage of the router (numbers: layers)")
        axes.set_ylabel("share")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plt.figure(figure.number)
    return figure


def query_figure(stats, groups):
    """Every answer a dot: the last member's share (of each member but the first, when there are more), by
    group; the bar is the group's mean over its queries."""
    import numpy
    from figures import grid

    members, names = stats["members"], list(dict.fromkeys(groups))
    share = query_shares(stats)
    shown = list(range(1, len(members))) or [0]
    figure, panels = grid(len(shown), width=5.6, height=1.1 + 0.42 * len(names), most_columns=1)
    for axes, m in zip(panels, shown):
        for row, name in enumerate(names):
            values = share[[g == name for g in groups], m]
            spread = ((numpy.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.55  # the same on every run
            look = {"markersize": 3, "alpha": 0.45, "markeredgewidth": 0, "color": COLOURS[m % 8]}
            axes.plot(values, row + spread, "o", **look)
            axes.plot([values.mean()] * 2, [row - 0.38, row + 0.38], color="black", linewidth=1.8)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        low, high = axes.get_xlim()
        wider = max(0, 0.2 - (high - low)) / 2
        axes.set_xlim(max(-0.02, low - wider), min(1.02, high + wider))
        axes.axvline(1 / len(members), color="grey", linewidth=0.8, linestyle="--")
        axes.set_xlabel(f"share of {members[m]} in the answer (bar: mean; dashed: equal shares)")
    figure.tight_layout()
    return figure


def draw(stats, groups, table, folder):
    """[(path, caption)], and notes on what was left out."""
    try:
        from figures import save
    except ImportError as error:
        return [], [f"figures left out: {error}; install python3-matplotlib"]
    found = []
    if any(entry["answer"] is not None for entry in table.values()):
        found.append(
            (
                save(stage_figure(stats, table), folder, "router_stats_stages"),
                "Share of each member in the answers, by stage of the router, mean over a group's tokens.",
            )
        )
        found.append(
            (
                save(query_figure(stats, groups), folder, "router_stats_queries"),
                "Share in the answer of every query, all stages alike.",
            )
        )
    return found, []


# ---- 5. coloured text --------------------------------------------------------------------------------------

STYLE = """<style>.q{margin:1em 0;padding:.6em .8em;border:1px solid #ddd;border-radius:6px}
.q h3{font-size:.95em;margin:0 0 .4em;color:#333;font-weight:600}
.t{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2em 0;
font:14px/1.75 ui-monospace,Menlo,Consolas,monospace}
.t span{border-radius:2px;color:#111}.p span{border-bottom:2px dotted #bbb}
.key{display:flex;flex-wrap:wrap;gap:1.2em;align-items:center;position:sticky;top:0;background:#fff;
padding:.5em 0;border-bottom:1px solid #ddd;z-index:1}
.bar{display:inline-block;width:9em;height:1em;border:1px solid #999;vertical-align:-.15em;margin:0 .4em}
</style>"""


def rgb(colour):
    """(r, g, b) of '#rrggbb'."""
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def tint(shares, full):
    """Background of a token: white at equal shares, towards a member's colour as its share goes to `full`.
    Never darker than black letters can be read on."""
    equal = 1 / len(shares)
    if full <= equal:
        return "#ffffff"
    out = [255.0, 255.0, 255.0]
    for m, share in enumerate(shares):
        strength = 0.62 * min(1.0, max(0.0, (share - equal) / (full - equal)))
        for c, value in enumerate(rgb(COLOURS[m % 8])):
            out[c] += strength * (value - 255)
    return "#" + "".join(f"{int(min(255, max(0, round(v)))):02x}" for v in out)


def token_spans(stats, query, shares, full):
    """(prompt, answer) of a query as HTML; shares: of all tokens, [tokens, members], NaN for the first."""
    tokens, members, stages = stats["tokens"], stats["members"], stats["stages"]
    first, end = int(tokens["offsets"][query]), int(tokens["offsets"][query + 1])
    prompt = int(stats["prompt_rows"][query]) + 1
    at = int(tokens["end"][first - 1]) if first > 0 else 0
    parts = ["", ""]
    for t in range(first, end):
        piece = tokens["text"][at : int(tokens["end"][t])].decode("utf-8", "replace")
        at = int(tokens["end"][t])
        if piece == "":
            continue
        number = t - first
        title = f"token {number} (id {int(tokens['ids'][t])})"
        if number == 0:
            title += ", the first: nothing foretold it"
            colour = "#ffffff"
        else:
            colour = tint([float(v) for v in shares[t]], full)
            title += "".join(f"\n{name} {float(v):.3f}" for name, v in zip(members, shares[t]))
            if len(stages) > 1:
                title += "\n" + "".join(
                    f"\n{name}: {' '.join(f'{float(v):.2f}' for v in row)}"
                    for name, row in zip(stages, tokens["share"][t])
                )
        title = html.escape(title, quote=True)
        parts[number >= prompt] += (
            f'<span style="background:{colour}" title="{title}">{html.escape(piece)}</span>'
        )
    return parts


def token_shares(stats, stage):
    """[tokens, members]: of one stage, or all alike."""
    share = stats["tokens"]["share"].astype(float)
    return share.mean(axis=1) if stage is None else share[:, stats["stages"].index(stage)]


def full_at(shares, is_full):
    """The share at which a colour is full: 1, or what all but the last percent of tokens stay below."""
    import numpy

    known = shares[~numpy.isnan(shares).any(axis=1)]
    if is_full or len(known) == 0:
        return 1.0
    return float(min(1.0, max(numpy.quantile(known.max(axis=1), 0.99), 1 / shares.shape[1] + 0.01)))


def legend(stats, full, stage):
    """What the colours mean."""
    members = stats["members"]
    equal = 1 / len(members)
    items = ""
    for m, name in enumerate(members):
        others = [(1 - full) / max(1, len(members) - 1)] * len(members)
        others[m] = full
        fade = f"background:linear-gradient(90deg,#fff,{tint(others, full)})"
        items += (
            f'<span><span class=bar style="{fade}"></span>'
            f"{html.escape(name)} {equal:.2f} &rarr; {full:.2f}</span>"
        )
    what = "mean over all stages" if stage is None else f"stage {html.escape(stage)}"
    return (
        f"<div class=key>{items}"
        f"<span class=dim>{what}; dotted: prompt; point at a token for its numbers</span></div>"
    )


def coloured_queries(stats, groups, limit, stage, is_full):
    """The HTML of the first queries of every group, in turn, up to the limit."""
    shares = token_shares(stats, stage)
    full = full_at(shares, is_full)
    chosen = choose(groups, limit)
    parts = ["<h2>Text by member</h2>", STYLE, legend(stats, full, stage)]
    for query in chosen:
        prompt, answer = token_spans(stats, query, shares, full)
        share = ", ".join(f"{n} {v:.3f}" for n, v in zip(stats["members"], query_shares(stats)[query]))
        sample = f", sample {int(stats['sample'][query])}" if stats["sample"].max() > 0 else ""
        head = f"record {int(stats['record'][query])}{sample}, {groups[query]}; answer: {share}"
        parts.append(
            f"<div class=q><h3>{html.escape(head)}</h3>"
            f"<div class='t p'>{prompt}</div><div class=t>{answer}</div></div>"
        )
    if len(chosen) < len(groups):
        parts.append(f"<p class=dim>{len(chosen)} of {len(groups)} queries are shown.</p>")
    return "\n".join(parts)


def choose(groups, limit):
    """Numbers of at most `limit` queries, as many of every group as there is room for, in order."""
    waiting = {}
    for query, group in enumerate(groups):
        waiting.setdefault(group, []).append(query)
    chosen = []
    while len(chosen) < limit and any(waiting.values()):
        for queries in waiting.values():
            if queries and len(chosen) < limit:
                chosen.append(queries.pop(0))
    return sorted(chosen)


# ---- 6. command line ---------------------------------------------------------------------------------------


def write_json(path, stats, table):
    """The tables for other programs."""
    value = {
        "members": stats["members"],
        "stages": stats["stages"],
        "kind": stats["kind"],
        "groups": {
            group: {
                key: (item.tolist() if hasattr(item, "tolist") else item) for key, item in entry.items()
            }
            for group, entry in table.items()
        },
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def build_page(path, stats, groups, table, figures, options):
    """Tables, figures and coloured text in one file."""
    parts = [
        "<h1>Shares of the members</h1>",
        f"<p class=dim>{html.escape(stats['kind'])} router over {html.escape(', '.join(stats['members']))}; "
        f"{len(groups)} answers. A token belongs to the row that foretold it.</p>",
        section("By group", group_table(stats, table), "Mean over tokens, all stages alike."),
        section("By stage", stage_table(stats, table), "Mean over the answers' tokens.")
        if len(stats["stages"]) > 1
        else "",
    ]
    parts += [figure_html(image, caption) for image, caption in figures]
    if stats["tokens"] is not None and groups:
        parts.append(coloured_queries(stats, groups, options.queries, options.stage, options.full))
    write_html(path, "Shares of the members", parts)


def main(arguments=None):
    """Returns the exit code: 0 done, 2 bad usage, 3 nothing to read or a broken file."""
    parser = argparse.ArgumentParser(description="Shares of a fused model's members in its answers.")
    parser.add_argument("path", help="router_stats.h5, or the folder that holds it")
    parser.add_argument("--by", metavar="FIELD", help="group queries by this field of generated.jsonl")
    parser.add_argument("--out", help="folder to write to (default: that of the file)")
    parser.add_argument("--queries", type=int, default=40, help="queries shown as coloured text (40)")
    parser.add_argument("--stage", help="colour by this stage instead of the mean over all")
    parser.add_argument("--full", action="store_true", help="colours over the whole range of shares, 0 to 1")
    parser.add_argument("--no-figures", action="store_true", help="tables and text only")
    options = parser.parse_args(arguments)
    try:
        stats = read_stats(options.path)
        if options.stage is not None and options.stage not in stats["stages"]:
            parser.error(f"--stage {options.stage}: the stages are {', '.join(stats['stages'])}")
        groups = read_groups(stats, options.by)
        table = by_group(stats, groups)
        folder = options.out or os.path.dirname(os.path.abspath(stats["path"]))
        os.makedirs(folder, exist_ok=True)
        figures, notes = ([], []) if options.no_figures else draw(stats, groups, table, folder)
        page = os.path.join(folder, "router_stats.html")
        build_page(page, stats, groups, table, figures, options)
        write_json(os.path.join(folder, "router_stats.json"), stats, table)
    except (OSError, KeyError, ValueError, ImportError) as error:
        print(f"router_stats.py: {error}", file=sys.stderr)
        return 3
    print(as_text(*group_table(stats, table)))
    if len(stats["stages"]) > 1:
        print("\n" + as_text(*stage_table(stats, table)))
    if stats["tokens"] is None:
        notes.append("text is not coloured: moe-infer keeps tokens' shares with router_stats_tokens=true")
    for line in notes + [image for image, _ in figures] + [page]:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
