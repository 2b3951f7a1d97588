#!/usr/bin/env python3
"""Build the fusing demo's data: text that Debian and Ubuntu packages install, and generated records.

    python3 datasets/fuse_demo.py OUT_DIR [--seed 0] [--scale 1.0]

writes JSON lines:
    foundation/text.jsonl, foundation/reasoning.jsonl   what the foundation model is made from: broad text, word problems
    sft/sop_strict.jsonl                                what its sibling is over-fitted on: procedures only
    fuse/<set>.jsonl                                    what routers and students learn from; neither parent has seen it
    test/<set>.jsonl                                    one file per category of the final table
    prompts.jsonl                                       {"messages", "type": set, "reference"}: answers side by side, whose share in them
    manifest.json                                       counts, hashes, options, versions of the packages

Sets: broad (plain text), reasoning, sop_strict, mixed (fuse_sources.py). No record stands in two files, no text
in part. The same seed and package versions give the same bytes. Exit codes: 0 done, 2 bad usage, 3 too little
text. Contents: 1. drawing  2. writing  3. command line
"""

import argparse
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from demo import (
    MINIMUM_SOURCES,
    Repeats,
    is_built,
    mixed,
    package_versions,
    read_sources,
    recipe_hash,
    take_pretrain,
    write_lines,
)  # noqa: E402
from demo_sources import SOURCES  # noqa: E402
from fuse_sources import SETS  # noqa: E402
from upcycle_sources import assistant, user  # noqa: E402

# Records of each set: (for the parents, for routers and students, in the category file), before --scale.
COUNTS = {
    "broad": (6000, 400, 150),
    "reasoning": (12000, 400, 120),
    "sop_strict": (480, 400, 120),
    "mixed": (0, 400, 120),
}
PARENT = {"broad": "foundation/text", "reasoning": "foundation/reasoning", "sop_strict": "sft/sop_strict"}
TRIES = 200  # draws in vain before a set is called used up


# ---- 1. drawing --------------------------------------------------------------------------------------------


def draw_texts(count, seed, log):
    """`count` texts of all sources in equal parts, in random order, none repeating another; fewer if there are
    no more. And the sources that are missing."""
    candidates, missing = read_sources(log)
    repeats, pools = Repeats(), {}
    for name, records in candidates.items():
        order = list(records)
        random.Random(f"{seed}/broad/{name}").shuffle(order)
        pools[name] = pool = []
        for text in order:
            if len(pool) == count:
                break
            if repeats.is_new(text):
                pool.append(text)
    rows = mixed(take_pretrain(pools, count), f"{seed}/order") if candidates else []
    return [{"text": text, "source": source} for source, text in rows], missing


def draw_generated(name, counts, seed):
    """Records of a generated set, no two alike, those for the test file first; fewer when it is used up."""
    rng, seen, records = random.Random(f"{seed}/{name}"), set(), []
    for is_test, count in ((True, counts[2]), (False, counts[0] + counts[1])):
        end, tries = len(records) + count, 0
        while len(records) < end and tries < TRIES:
            record = SETS[name](rng, is_test)
            tries += 1
            if (key := json.dumps(record)) not in seen:
                seen.add(key)
                records.append(record)
                tries = 0
    return records


def draw_all(counts, seed, log):
    """{set: records for all three uses together}, and the missing sources."""
    texts, missing = draw_texts(sum(counts["broad"]), seed, log)
    drawn = {name: draw_generated(name, counts[name], seed) for name in SETS}
    return dict({"broad": texts}, **drawn), missing


# ---- 2. writing --------------------------------------------------------------------------------------------


def as_dialogs(records, seed):
    """Records of one kind as dialogs of one or two turns, so that a parent has met a second question."""
    rng, dialogs, at = random.Random(seed), [], 0
    while at < len(records):
        turns = records[at : at + rng.randint(1, 2)]
        at += len(turns)
        dialogs.append({"messages": [message for record in turns for message in messages_of(record)]})
    return dialogs


def messages_of(record):
    """A generated record as messages."""
    return record.get("messages") or [say(text) for say, text in zip((user, assistant), record.values())]


def asked(record, name):
    """A test record as a prompt, with what is expected."""
    *messages, last = messages_of(record)
    return {"messages": messages, "type": name, "reference": last["content"]}


def write_all(root, drawn, counts, prompts):
    """Every file but the manifest; the category files come first, so that a short source shortens the training.
    Returns {file name: entry}."""
    files, shown = {}, []
    for name, records in drawn.items():
        for_parents, for_fusing, for_test = counts[name]
        test, rest = records[:for_test], records[for_test:]
        parts = {f"test/{name}.jsonl": test, f"fuse/{name}.jsonl": rest[:for_fusing]}
        if for_parents:
            own = rest[for_fusing:]
            parts[PARENT[name] + ".jsonl"] = as_dialogs(own, name) if name in SETS else own
        for path, part in parts.items():
            files[path] = write_lines(root, path, part)
        if name in SETS:
            shown += [asked(record, name) for record in test[:prompts]]
    files["prompts.jsonl"] = write_lines(root, "prompts.jsonl", shown)
    return files


# ---- 3. command line ---------------------------------------------------------------------------------------


def parse(arguments):
    """Options; counts are multiplied by --scale."""
    parser = argparse.ArgumentParser(
        description="Build the data of the fusing demo: text of Debian and Ubuntu packages, and generated records."
    )
    parser.add_argument("out_dir", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="which records go where (default 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all counts (default 1.0)")
    parser.add_argument(
        "--prompts", type=int, default=6, help="prompts of each set for the routers' shares (default 6)"
    )
    parser.add_argument(
        "--force", action="store_true", help="build again even when the folder holds this very data"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(arguments)
    if options.scale <= 0 or options.prompts < 0:
        parser.error("--scale must be above 0, --prompts must not be negative")
    return options


def main(arguments=None):
    """Draw the records, write them; returns the exit code."""
    options = parse(arguments)
    log = (lambda text: None) if options.quiet else (lambda text: print(text, flush=True))
    started = time.time()
    counts = {name: [round(n * options.scale) for n in uses] for name, uses in COUNTS.items()}
    key = {
        "options": {"seed": options.seed, "counts": counts, "prompts": options.prompts},
        "recipe": recipe_hash(
            "demo.py", "demo_sources.py", "fuse_demo.py", "fuse_sources.py", "upcycle_sources.py"
        ),
        "packages": package_versions(),
    }
    if not options.force and is_built(options.out_dir, key):
        log(f"{options.out_dir}: already built from these packages and options")
        return 0
    log("reading text of installed packages")
    drawn, missing = draw_all(counts, options.seed, log)
    if len(SOURCES) - len(missing) < MINIMUM_SOURCES:
        wanted = " ".join(SOURCES[name][1].replace(",", "").split(" (")[0] for name in missing)
        print(
            f"fuse_demo.py: {len(SOURCES) - len(missing)} sources found, {MINIMUM_SOURCES} are needed: apt-get install {wanted}",
            file=sys.stderr,
        )
        return 3
    for name, records in drawn.items():
        if len(records) < sum(counts[name]):
            log(f"  warning: {name} has {len(records)} records, {sum(counts[name])} were asked: there are no more")
    files = write_all(options.out_dir, drawn, counts, options.prompts)
    with open(os.path.join(options.out_dir, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(dict(key, format="moebatch-fuse-data", version=1, files=files), file, indent=2, sort_keys=True)
        file.write("\n")
    for name, entry in files.items():
        log(f"  {name:28s} {entry['records']:6d} records {entry['bytes'] / 1e6:7.2f} MB")
    log(f"{options.out_dir}: built in {time.time() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
