#!/usr/bin/env python3
"""The answers of several models to the same prompts, side by side.

    python3 analysis/side_by_side.py RUN [--out DIR] [--show 5]
    python3 analysis/side_by_side.py before=A/generated.jsonl dpo=B/generated.jsonl --out DIR

RUN is a study's run folder with stages generate-<model>. Written: side_by_side.jsonl, an object per prompt in
the prompts' order: "prompt" (the text of the last question, or the prompt), "type" and "reference" where the
prompts have them, and for each model an object {"text", "finish_reason", "tokens", "logprob"};
side_by_side.txt and side_by_side.md, the same to read. The first prompts of every type are printed.
Exit codes: 0 done, 2 bad usage, 3 nothing to read, or files that answer different prompts.
Contents: 1. reading  2. joining  3. writing  4. command line
"""

import argparse
import json
import os
import re
import sys
import textwrap

from mbfiles import open_runs, read_lines

MODELS = ("dense", "before", "sft", "dpo")  # in this order, others behind
ANSWER = ("generated_text", "finish_reason", "tokens", "logprob", "sample")
ADDED = ANSWER + ("router_share",)  # by the program, beside what was asked
WIDTH = 100


# ---- 1. reading --------------------------------------------------------------------------------------------


def find_files(places):
    """[(model, path)] of "model=path" words, or of a run folder's stages."""
    if all("=" in place for place in places):
        return [tuple(place.split("=", 1)) for place in places]
    if len(places) > 1:
        raise ValueError("give one run folder, or model=file for each")
    run = open_runs(places[0])[0]
    names = sorted(run.parts("generate-"), key=lambda n: (MODELS.index(n) if n in MODELS else len(MODELS), n))
    paths = [(name, run.path("generate-" + name, "generated.jsonl")) for name in names]
    return [(name, path) for name, path in paths if os.path.exists(path)]


def question_of(row):
    """What was asked, as text: the last message, or the prompt as it stands."""
    for name in ("messages", "conversations", "prompt"):
        if isinstance(row.get(name), list) and row[name]:
            last = row[name][-1]
            return str(last.get("content", last.get("value", "")))
    if "instruction" in row:
        return "\n\n".join(filter(None, [row["instruction"], row.get("input")]))
    return str(row.get("prompt", row.get("question", row.get("text", ""))))


# ---- 2. joining --------------------------------------------------------------------------------------------


def asked_of(row):
    """The record without what the model added: by this rows of several files must agree."""
    return {name: value for name, value in row.items() if name not in ADDED}


def join(files):
    """[{"prompt", "type", "reference", "answers": {model: ...}}]; ValueError when the files answer different
    prompts."""
    names = [name for name, _ in files]
    for name in names:
        if names.count(name) > 1 or name in ("prompt", "type", "reference", ""):
            raise ValueError(f"a model cannot be called {name!r} here: give every model a name of its own")
    tables = {name: list(read_lines(path)) for name, path in files}
    (first, rows), *others = tables.items()
    for name, table in others:
        if len(table) != len(rows):
            raise ValueError(f"{name} has {len(table)} answers, {first} has {len(rows)}")
        for at, (a, b) in enumerate(zip(rows, table), 1):
            if asked_of(a) != asked_of(b):
                raise ValueError(f"answer {at}: {name} answers another prompt than {first}")
    joined = []
    for at, row in enumerate(rows):
        item = {"prompt": question_of(row)}
        item.update({name: row[name] for name in ("type", "reference") if name in row})
        item["answers"] = {
            name: {
                "text" if key == "generated_text" else key: table[at][key]
                for key in ANSWER
                if key in table[at]
            }
            for name, table in tables.items()
        }
        joined.append(item)
    return joined


# ---- 3. writing --------------------------------------------------------------------------------------------


def paragraph(label, text):
    """A labelled text, wrapped, its own line ends kept."""
    lines = []
    for line in str(text).strip("\n").split("\n"):
        lines += textwrap.wrap(line, WIDTH - 12, drop_whitespace=False, replace_whitespace=False) or [""]
    lines = lines or [""]
    return "\n".join(
        f"{label if i == 0 else '':>10}  {line.rstrip()}".rstrip() for i, line in enumerate(lines)
    )


def as_text(item):
    """One prompt and its answers, to read."""
    parts = [paragraph(item.get("type", "prompt"), item["prompt"])]
    if "reference" in item:
        parts.append(paragraph("reference", item["reference"]))
    parts += [
        paragraph(name, answer["text"] if answer["text"].strip() else "(nothing)")
        for name, answer in item["answers"].items()
    ]
    return "\n".join(parts)


def fenced(text):
    """A block of Markdown that shows the text as it is, whatever backquotes it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def as_markdown(number, item):
    """One prompt and its answers as a section, with how each ended and how long it is."""
    kind = f" ({item['type']})" if "type" in item else ""
    parts = [f"## {number}{kind}", fenced(item["prompt"])]
    if "reference" in item:
        parts += ["**reference**", fenced(str(item["reference"]))]
    for name, answer in item["answers"].items():
        facts = [str(answer.get("finish_reason", ""))]
        facts += [f"{answer['tokens']} tokens"] if "tokens" in answer else []
        parts += [f"**{name}** ({', '.join(filter(None, facts))})", fenced(answer["text"] or "(nothing)")]
    return "\n\n".join(parts)


def first_of_each(items, count):
    """The first `count` prompts, one of each type before a second of any."""
    seen, order = {}, []
    for at, item in enumerate(items):
        kind = item.get("type", "")
        order.append((seen.get(kind, 0), at))
        seen[kind] = seen.get(kind, 0) + 1
    return [items[at] for _, at in sorted(order)[:count]]


def write(folder, items):
    """side_by_side.jsonl, .txt and .md."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "side_by_side.jsonl"), "w", encoding="utf-8") as file:
        for item in items:
            row = {name: value for name, value in item.items() if name != "answers"}
            file.write(json.dumps(dict(row, **item["answers"]), ensure_ascii=False) + "\n")
    with open(os.path.join(folder, "side_by_side.txt"), "w", encoding="utf-8") as file:
        file.write(("\n" + "-" * WIDTH + "\n").join(as_text(item) for item in items) + "\n")
    with open(os.path.join(folder, "side_by_side.md"), "w", encoding="utf-8") as file:
        file.write("\n\n".join(as_markdown(number, item) for number, item in enumerate(items, 1)) + "\n")


# ---- 4. command line ---------------------------------------------------------------------------------------


def main(arguments=None):
    """Join, write, show; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="The answers of several models to the same prompts, side by side."
    )
    parser.add_argument("place", nargs="+", help="run folder, or model=generated.jsonl for each model")
    parser.add_argument("--out", help="folder to write to (default: RUN/side-by-side)")
    parser.add_argument("--show", type=int, default=5, help="prompts to print (default 5)")
    options = parser.parse_args(arguments)
    folder = options.out or (
        None if "=" in options.place[0] else os.path.join(options.place[0], "side-by-side")
    )
    if folder is None:
        parser.error("model=file words need --out")
    try:
        files = find_files(options.place)
        if not files:
            print(
                f"side_by_side.py: {options.place[0]} holds no generate-<model>/generated.jsonl",
                file=sys.stderr,
            )
            return 3
        items = join(files)
        write(folder, items)
    except (OSError, ValueError) as error:
        print(f"side_by_side.py: {error}", file=sys.stderr)
        return 3
    for item in first_of_each(items, options.show):
        print(as_text(item) + "\n")
    print(f"{len(items)} prompts, {len(files)} models: {os.path.join(folder, 'side_by_side.jsonl')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
