#!/usr/bin/env python3
"""Compare moe-inspect's ids and decoded texts with Hugging Face `tokenizers` on random Unicode strings and all texts of the shared data.

    check_tokenizers.py --bin build/bin [--count 100000] [--seed 1] [--kinds xlmr,wordpiece] [--data] [--speed]

Kinds: the tokenizers of the shared data, and small ones of every other kind trained on the spot (kinds.py). Each string is
encoded with and without special tokens, its ids are decoded with and without them. --data does the same for the texts of
../shared/data/datasets. --speed measures HF on one thread (processor time), text by text and as a batch. Code points that differ in a way that
is known are in DIFFERENT: strings that have one are counted apart; the rest must be equal to the last id.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
import kinds  # noqa: E402  (after the environment)
from tokenizers import Tokenizer  # noqa: E402

SHARED = ["gpt2", "llama2", "olmoe", "qwen3"]

# Code points whose properties differ between our tables and HF's, with what differs.
DIFFERENT = {}


def run(folder, mode, tokenizer, lines, **options):
    source, target = os.path.join(folder, "in.jsonl"), os.path.join(folder, "out.jsonl")
    with open(source, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    words = [os.path.join(ARGS.bin, "moe-inspect"), mode, "tokenizer=" + tokenizer, "input=" + source, "out=" + target]
    subprocess.run(words + ["%s=%s" % (k, str(v).lower()) for k, v in options.items()], check=True, stdout=subprocess.DEVNULL)
    with open(target, encoding="utf-8") as out:
        return [json.loads(line) for line in out]


def report(kind, what, text, ours, theirs):
    print("%s: %s differ for %s\n  ours %s\n  HF   %s" % (kind, what, ascii(text)[:300], ascii(ours)[:300], ascii(theirs)[:300]))


def compare(kind, folder, path, texts):
    """Number of (strings, differences, strings apart)."""
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bad = apart = 0
    for special in (False, True):
        theirs = [tokenizer.encode(text, add_special_tokens=special).ids for text in texts]
        ours = run(folder, "encode", path, texts, add_special_tokens=special)
        for text, a, b in zip(texts, ours, theirs):
            if a == b:
                continue
            if any(ord(c) in DIFFERENT for c in text):
                apart += 1
                continue
            bad += 1
            if bad <= ARGS.show:
                report(kind, "ids", text, a, b)
        decoded = run(folder, "decode", path, theirs, skip_special_tokens=special)
        for ids, a in zip(theirs, decoded):
            b = tokenizer.decode(ids, skip_special_tokens=special) if ids else ""
            bad += a != b
            if a != b and bad <= ARGS.show:
                report(kind, "decoded", ids, a, b)
    return len(texts), bad, apart


def measure(kind, path, name, texts):
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = sum(len(t.encode()) for t in texts) / 1e6
    times = {"batch": [], "each": []}
    for _ in range(3):
        start = time.process_time()
        tokenizer.encode_batch(texts)
        middle = time.process_time()
        for text in texts:
            tokenizer.encode(text)
        times["batch"].append(middle - start)
        times["each"].append(time.process_time() - middle)
    print("%s %s: HF %s" % (kind, name, ", ".join("%s %.2f MB/s" % (k, size / min(v)) for k, v in times.items())))


def main():
    folder = tempfile.mkdtemp()
    paths = {kind: os.path.join(kinds.DATA, "tokenizers", kind, "tokenizer.json") for kind in SHARED}
    wanted = ARGS.kinds.split(",") if ARGS.kinds else None
    if wanted is None or any(k not in paths for k in wanted):
        for kind, tokenizer in kinds.build(ARGS.scale, ARGS.size).items():
            paths[kind] = os.path.join(ARGS.keep or folder, kind + ".json")
            tokenizer.save(paths[kind])
    differences = 0
    data = list(kinds.all_data_texts()) if ARGS.data else []
    for kind, path in paths.items():
        if wanted is not None and kind not in wanted:
            continue
        if ARGS.speed:
            for name in ("text/c4.jsonl", "alpaca/alpaca_zh.json"):
                measure(kind, path, name, kinds.data_texts(name))
            continue
        rng = random.Random("%d %s" % (ARGS.seed, kind))
        texts = data if ARGS.data else [""] + [kinds.random_text(rng) for _ in range(ARGS.count)]
        strings, bad, apart = compare(kind, folder, path, texts)
        print("%s: %d strings, %d differences, %d with code points listed apart" % (kind, strings, bad, apart), flush=True)
        differences += bad
    for point, what in sorted(DIFFERENT.items()):
        print("listed apart: U+%04X %s" % (point, what))
    return differences > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", help="only these, by commas")
    parser.add_argument("--show", type=int, default=5, help="differences shown of a kind")
    parser.add_argument("--scale", type=float, default=1.0, help="of the training texts")
    parser.add_argument("--size", type=int, default=3000, help="of the trained vocabularies")
    parser.add_argument("--keep", help="folder that keeps the trained tokenizers")
    parser.add_argument("--data", action="store_true")
    parser.add_argument("--speed", action="store_true")
    ARGS = parser.parse_args()
    sys.exit(main())
