#!/usr/bin/env python3
"""Build the upcycling demo's data from text that Debian and Ubuntu packages install; Python 3.8 or newer.

    python3 datasets/upcycle_demo.py OUT_DIR [--seed 0] [--scale 1.0]

writes JSON lines:
    pretrain.jsonl       plain text for the dense model and the tokenizer
    sft/<type>.jsonl     records of five types, each in a form of its own (upcycle_sources.py)
    pairs/<type>.jsonl   {"prompt": messages, "chosen": message, "rejected": message, "kind": ...}
    prompts.jsonl        {"messages": ..., "type": ..., "reference": the record's own answer}
    manifest.json        counts, hashes, options, versions of the packages

Rejected answers are made as pairs.py says, prompts are for generation side by side. No record stands in two of
these files, and no text of the records in pretrain.jsonl. The same seed and package versions give the same
bytes. Exit codes: 0 done, 2 bad usage, 3 too little text.
Contents: 1. records without repeats  2. writing  3. command line
"""

import argparse
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from demo import (
    Repeats,
    is_built,
    mixed,
    package_versions,
    read_sources,
    recipe_hash,
    take_pretrain,
    write_lines,
)  # noqa: E402
from demo_sources import size  # noqa: E402
from pairs import make_pairs  # noqa: E402
from upcycle_sources import TYPES  # noqa: E402

SHARES = {"general": 0.30, "conversation": 0.25, "code": 0.20, "reasoning": 0.15, "creative": 0.10}


# ---- 1. records without repeats ----------------------------------------------------------------------------


def text_of(record):
    """All of a record's text."""
    return "\n".join([message["content"] for message in record["prompt"]] + [record["answer"]])


def draw_records(wanted, seed, log):
    """{type: records in random order}, at most wanted[type] each, none repeating another; and the memory of
    them."""
    repeats, drawn = Repeats(), {}
    for name, (function, _, package) in TYPES.items():
        started = time.time()
        records = function()
        random.Random(f"{seed}/{name}").shuffle(records)
        kept, seen = [], set()
        for record in records:
            if len(kept) == wanted[name]:
                break
            # Word problems are written after patterns: there only the whole text counts.
            whole = text_of(record)
            if whole not in seen and (repeats.is_new(record["answer"]) or name == "reasoning"):
                kept.append(record)
                seen.add(whole)
        drawn[name] = kept
        log(
            f"  {name:13s} {len(kept):6d} of {len(records)} records ({package}; {time.time() - started:.1f} s)"
        )
    return drawn, repeats


def draw_pretrain(repeats, count, seed, log):
    """Plain text of all sources that are there, in equal parts, without what the records above say."""
    candidates, _ = read_sources(log)
    pools = {}
    for name, records in candidates.items():
        order = list(records)
        random.Random(f"{seed}/pretrain/{name}").shuffle(order)
        pools[name] = pool = []
        for text in order:
            if len(pool) == count:
                break
            if repeats.is_new(text):
                pool.append(text)
    return mixed(take_pretrain(pools, count), f"{seed}/order")


# ---- 2. writing --------------------------------------------------------------------------------------------


def write_all(root, drawn, rows, options):
    """Every file but the manifest; returns {file name: entry}."""
    files, prompts = {}, []
    files["pretrain.jsonl"] = write_lines(
        root, "pretrain.jsonl", [{"text": text, "source": source} for source, text in rows]
    )
    for name, records in drawn.items():
        shown, pairs = (
            records[: options.prompts],
            records[options.prompts : options.prompts + options.pairs // len(TYPES)],
        )
        rest = records[len(shown) + len(pairs) :]
        prompts += [{"messages": r["prompt"], "type": name, "reference": r["answer"]} for r in shown]
        files[f"sft/{name}.jsonl"] = write_lines(root, f"sft/{name}.jsonl", [r["written"] for r in rest])
        files[f"pairs/{name}.jsonl"] = write_lines(
            root,
            f"pairs/{name}.jsonl",
            make_pairs([(r["prompt"], r["answer"]) for r in pairs], f"{options.seed}/pairs/{name}"),
        )
    files["prompts.jsonl"] = write_lines(root, "prompts.jsonl", prompts)
    return files


def write_manifest(root, key, files):
    """What was built, from what."""
    with open(os.path.join(root, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(
            dict(key, format="moebatch-upcycle-data", version=1, files=files), file, indent=2, sort_keys=True
        )
        file.write("\n")


# ---- 3. command line ---------------------------------------------------------------------------------------


def parse(arguments):
    """Options; counts are multiplied by --scale."""
    parser = argparse.ArgumentParser(
        description="Build the data of the upcycling demo from text that Debian and Ubuntu packages install."
    )
    parser.add_argument("out_dir", help="folder to write to")
    parser.add_argument(
        "--seed", type=int, default=0, help="which records go where, and the worse answers (default 0)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the counts (default 1.0)")
    parser.add_argument(
        "--pretrain", type=int, default=12000, help="texts for the dense model (default 12000)"
    )
    parser.add_argument(
        "--records", type=int, default=4400, help="records for SFT, over all types (default 4400)"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=1500,
        help="preference pairs, over all types in equal parts (default 1500)",
    )
    parser.add_argument(
        "--prompts", type=int, default=4, help="prompts of each type for generation (default 4)"
    )
    parser.add_argument(
        "--force", action="store_true", help="build again even when the folder holds this very data"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(arguments)
    if options.scale <= 0 or min(options.pretrain, options.records, options.pairs, options.prompts) < 0:
        parser.error("--scale must be above 0, counts must not be negative")
    for name in ("pretrain", "records", "pairs"):
        setattr(options, name, round(getattr(options, name) * options.scale))
    return options


def main(arguments=None):
    """Draw the records, make the pairs, write them; returns the exit code."""
    options = parse(arguments)
    log = (lambda text: None) if options.quiet else (lambda text: print(text, flush=True))
    started = time.time()
    key = {
        "options": {n: getattr(options, n) for n in ("seed", "pretrain", "records", "pairs", "prompts")},
        "recipe": recipe_hash(
            "demo.py",
            "demo_damage.py",
            "demo_sources.py",
            "pairs.py",
            "upcycle_demo.py",
            "upcycle_sources.py",
        ),
        "packages": package_versions(),
    }
    if not options.force and is_built(options.out_dir, key):
        log(f"{options.out_dir}: already built from these packages and options")
        return 0
    log("reading text of installed packages")
    each = options.prompts + options.pairs // len(TYPES)
    drawn, repeats = draw_records(
        {name: round(share * options.records) + each for name, share in SHARES.items()}, options.seed, log
    )
    short = [
        f"{name} (packages: {TYPES[name][2]})" for name, records in drawn.items() if len(records) < 2 * each
    ]
    if short:
        print(f"upcycle_demo.py: too few records of {'; '.join(short)}", file=sys.stderr)
        return 3
    rows = draw_pretrain(repeats, options.pretrain, options.seed, log)
    files = write_all(options.out_dir, drawn, rows, options)
    write_manifest(options.out_dir, key, files)
    for name, entry in files.items():
        log(f"  {name:26s} {entry['records']:6d} records {entry['bytes'] / 1e6:7.2f} MB")
    log(
        f"{options.out_dir}: built in {time.time() - started:.1f} s, {sum(size(t) for _, t in rows) / 1e6:.1f} MB of plain text"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
