#!/usr/bin/env python3
"""Build the expert demo's data: eight families of generated questions with options (moe2_sources.py).

    python3 datasets/moe2_demo.py OUT_DIR [--seed 0] [--scale 1.0]

writes JSON lines:
    train/<family>.jsonl    what the experts learn from
    gate/<family>.jsonl     what the gate learns from and is judged on: no expert has seen it
    pretrain.jsonl          {"text"}: plain text of the questions' words for tokenizer and base model; questions
                            in it are answered by guessing, so that the base model knows their form and no answer
    manifest.json           counts, hashes, options
Questions have the members of MMLU-Pro (question, options, answer, answer_index, category = the family), which
moe-merge recognises. No question stands in two files or twice, case aside, and none in the plain text. The same
seed gives the same bytes. Exit codes: 0 done, 2 bad usage. Contents: 1. drawing  2. writing  3. command line
"""

import argparse
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from demo import is_built, recipe_hash, write_lines  # noqa: E402
from moe2_sources import FAMILIES, plain  # noqa: E402

# Questions of each family for training and for the gate, before --scale.
COUNTS = {"train": 2500, "gate": 400}
PRETRAIN = 6000
LETTERS = "ABCDEFGHIJ"
TRIES = 1000  # draws in vain before a family is called used up


# ---- 1. drawing --------------------------------------------------------------------------------------------


def draw_question(rng, family):
    """One question with its options in random order."""
    question, right, wrong = FAMILIES[family](rng)
    options = [right] + wrong
    rng.shuffle(options)
    answer = options.index(right)
    return {
        "question": question,
        "options": options,
        "answer": LETTERS[answer],
        "answer_index": answer,
        "category": family,
    }


def draw_family(family, count, seed):
    """`count` questions of a family, no two of the same text; fewer when it is used up."""
    rng, seen, questions, tries = random.Random(f"{seed}/{family}"), set(), [], 0
    while len(questions) < count and tries < TRIES:
        question = draw_question(rng, family)
        tries += 1
        if (key := question["question"].lower()) not in seen:
            seen.add(key)
            questions.append(question)
            tries = 0
    return questions


def draw_plain(count, taken, seed):
    """Plain text that holds none of the questions."""
    rng, records = random.Random(f"{seed}/plain"), []
    while len(records) < count:
        text = plain(rng)
        if text.split("\n")[0].replace("Question: ", "").lower() not in taken:
            records.append({"text": text})
    return records


# ---- 2. writing --------------------------------------------------------------------------------------------


def write_all(root, counts, pretrain, seed):
    """Every file but the manifest, and the families that had too few. Returns ({file name: entry}, short)."""
    files, taken, short = {}, set(), []
    for family in FAMILIES:
        questions = draw_family(family, sum(counts.values()), seed)
        if len(questions) < sum(counts.values()):
            short.append(family)
        taken.update(question["question"].lower() for question in questions)
        for part, rows in (("gate", questions[: counts["gate"]]), ("train", questions[counts["gate"] :])):
            files[f"{part}/{family}.jsonl"] = write_lines(root, f"{part}/{family}.jsonl", rows)
    files["pretrain.jsonl"] = write_lines(root, "pretrain.jsonl", draw_plain(pretrain, taken, seed))
    return files, short


# ---- 3. command line ---------------------------------------------------------------------------------------


def parse(arguments):
    """Options; counts are multiplied by --scale."""
    parser = argparse.ArgumentParser(
        description="Build the data of the expert demo: eight families of generated questions."
    )
    parser.add_argument("out_dir", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="which questions are drawn (default 0)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all counts (default 1.0)")
    parser.add_argument(
        "--force", action="store_true", help="build again even when the folder holds this very data"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(arguments)
    if options.scale <= 0:
        parser.error("--scale must be above 0")
    return options


def main(arguments=None):
    """Draw the questions, write them; returns the exit code."""
    options = parse(arguments)
    log = (lambda text: None) if options.quiet else (lambda text: print(text, flush=True))
    started = time.time()
    counts = {part: max(1, round(n * options.scale)) for part, n in COUNTS.items()}
    pretrain = max(1, round(PRETRAIN * options.scale))
    key = {
        "options": {"seed": options.seed, "counts": counts, "pretrain": pretrain},
        "recipe": recipe_hash("demo.py", "moe2_demo.py", "moe2_sources.py"),
    }
    if not options.force and is_built(options.out_dir, key):
        log(f"{options.out_dir}: already built with these options")
        return 0
    files, short = write_all(options.out_dir, counts, pretrain, options.seed)
    for family in short:
        log(f"  warning: {family} has fewer questions than were asked: there are no more")
    with open(os.path.join(options.out_dir, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(dict(key, format="moebatch-moe2-data", version=1, files=files), file, indent=2, sort_keys=True)
        file.write("\n")
    for name, entry in files.items():
        log(f"  {name:24s} {entry['records']:6d} records {entry['bytes'] / 1e6:7.2f} MB")
    log(f"{options.out_dir}: built in {time.time() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
