#!/usr/bin/env python3
"""Build the demo's data from text that Debian and Ubuntu packages install; needs plain Python 3.8 or newer.

    python3 datasets/demo.py OUT_DIR [--seed 0] [--scale 1.0]

writes, each line an object {"text": ..., "id": ...}:
    pretrain.jsonl         clean text for the source model and the tokenizer
    corpus/<source>.jsonl  what is to be selected from: equal sources, half of each spoilt, nothing says which
    heldout.jsonl          clean text for the final perplexity
    corpus.inputs          one line, "wordnet=.../corpus/wordnet.jsonl,...": what dataset.inputs takes
    labels.jsonl           {"source": name, "index": line from 0, "kind": "good" or a damage}, for the corpus
    manifest.json          counts, hashes, options, versions of the packages

No record stands in two of them, not even in part: a record that shares more than a quarter of its 8-word
sequences with an earlier one is dropped. The same seed and package versions give the same bytes.
Exit codes: 0 done, 2 bad usage, 3 too little text.
Contents: 1. pools without repeats  2. the corpus and its damage  3. writing  4. command line
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from demo_damage import KINDS, damage  # noqa: E402
from demo_sources import SOURCES, size  # noqa: E402

MINIMUM_SOURCES = 4


# ---- 1. pools without repeats ------------------------------------------------------------------------------


class Repeats:
    """Remembers every 8-word sequence of the records kept so far."""

    def __init__(self):
        self.seen = set()

    def is_new(self, text):
        """True, and remembered, unless a quarter of the text's sequences stood in earlier records."""
        words = re.findall(r"\w+", text.lower())
        runs = [" ".join(words[i : i + 8]) for i in range(max(1, len(words) - 7))]
        if sum(run in self.seen for run in runs) * 4 > len(runs):
            return False
        self.seen.update(runs)
        return True


def read_sources(log):
    """{source: candidates} of every source that is there, and the names of those that are not."""
    found, missing = {}, []
    for name, (function, package, place) in SOURCES.items():
        started = time.time()
        records = function()
        if records:
            found[name] = records
            log(f"  {name:10s} {len(records):6d} candidates from {place} ({time.time() - started:.1f} s)")
        else:
            missing.append(name)
            log(
                f"  {name:10s} nothing under {place}: install {package}"
                + (
                    "; if it is installed, the image drops them (path-exclude in /etc/dpkg/dpkg.cfg.d/)"
                    if name == "man"
                    else ""
                )
            )
    return found, missing


def draw_pools(candidates, wanted, seed):
    """Per source up to `wanted` records in random order, none of which repeats another of any source."""
    repeats, pools = Repeats(), {}
    for name, records in candidates.items():
        order = list(range(len(records)))
        random.Random(f"{seed}/pool/{name}").shuffle(order)
        pool = pools[name] = []
        for i in order:
            if len(pool) == wanted:
                break
            if repeats.is_new(records[i]):
                pool.append(records[i])
    return pools


def share_out(total, names):
    """total in as equal parts as whole numbers allow."""
    return {name: total // len(names) + (i < total % len(names)) for i, name in enumerate(names)}


def take_pretrain(pools, total):
    """`total` records, equal shares first; what a small source lacks comes from the others."""
    wanted, taken = share_out(total, list(pools)), {name: [] for name in pools}
    for name, pool in pools.items():
        taken[name], pools[name] = pool[: wanted[name]], pool[wanted[name] :]
    while sum(map(len, taken.values())) < total and any(pools.values()):
        missing = total - sum(map(len, taken.values()))
        rich = [name for name in pools if pools[name]]
        for name, more in share_out(missing, rich).items():
            taken[name] += pools[name][:more]
            pools[name] = pools[name][more:]
    return taken


# ---- 2. the corpus and its damage --------------------------------------------------------------------------


def spoil(records, share, seed, first_kind=0):
    """Spoil a share of the records, kinds in turn; returns (text, kind) pairs in a new random order."""
    rng = random.Random(f"{seed}/damage")
    kinds = list(KINDS)
    bad_count = round(share * len(records))
    bad, good = records[:bad_count], records[bad_count:]
    pairs = [(text, "good") for text in good]
    for i, text in enumerate(bad):
        kind = kinds[(first_kind + i) % len(kinds)]
        pairs.append((damage(kind, text, rng, bad), kind))
    rng.shuffle(pairs)
    return pairs


def build_corpus(pools, options):
    """{source: [(text, kind)]}: equal sources, `--bad` of each spoilt; kinds go on from source to source, so
    shares are equal."""
    corpus, first_kind = {}, 0
    for name, count in share_out(options.corpus, list(pools)).items():
        corpus[name] = spoil(pools[name][:count], options.bad, f"{options.seed}/{name}", first_kind)
        pools[name] = pools[name][count:]
        first_kind += sum(kind != "good" for _, kind in corpus[name])
    return corpus


def mixed(parts, seed):
    """[(source, text)] of all sources in one random order."""
    rows = [(name, text) for name, texts in parts.items() for text in texts]
    random.Random(seed).shuffle(rows)
    return rows


def build_splits(candidates, options):
    """All splits: {"heldout": rows, "pretrain": rows, "corpus": {source: pairs}}; sources shrink together
    when one is short."""
    names = list(candidates)
    need = max(share_out(options.corpus, names).values()) + max(share_out(options.heldout, names).values())
    pools = draw_pools(candidates, need + options.pretrain, options.seed)
    short = [
        f"{name} has {len(pools[name])} records of the {need} needed"
        for name in names
        if len(pools[name]) < need
    ]
    if short:
        raise SystemExit(bad_data("; ".join(short) + "; use a smaller --scale, --corpus or --heldout"))
    heldout = {}
    for name, count in share_out(options.heldout, names).items():
        heldout[name], pools[name] = pools[name][:count], pools[name][count:]
    corpus = build_corpus(pools, options)
    pretrain = take_pretrain(pools, options.pretrain)
    for name in names:
        pretrain[name] = [
            text for text, _ in spoil(pretrain[name], options.pretrain_bad, f"{options.seed}/pretrain/{name}")
        ]
    return {
        "heldout": mixed(heldout, f"{options.seed}/heldout"),
        "pretrain": mixed(pretrain, f"{options.seed}/order"),
        "corpus": corpus,
    }


# ---- 3. writing --------------------------------------------------------------------------------------------


def write_lines(root, name, objects):
    """One JSON object per line, put in place when whole; returns the file's entry for the manifest."""
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    data = "".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects).encode()
    with open(path + ".part", "wb") as file:
        file.write(data)
    os.replace(path + ".part", path)
    return {"records": len(objects), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def count_by(items):
    """How often each item stands in a list, in name order."""
    items = list(items)
    return {item: items.count(item) for item in sorted(set(items))}


def write_mixed(root, name, rows):
    """A split of several sources."""
    entry = write_lines(
        root, f"{name}.jsonl", [{"text": text, "id": f"{name}-{i:06d}"} for i, (_, text) in enumerate(rows)]
    )
    entry["text_bytes"] = sum(size(text) for _, text in rows)
    entry["sources"] = count_by(source for source, _ in rows)
    return entry


def write_splits(root, splits):
    """Every file but the manifest; returns {file name: entry}."""
    files, labels = {}, []
    for name in ("pretrain", "heldout"):
        files[f"{name}.jsonl"] = write_mixed(root, name, splits[name])
    for source, pairs in splits["corpus"].items():
        name = f"corpus/{source}.jsonl"
        files[name] = write_lines(
            root, name, [{"text": text, "id": f"{source}-{i:06d}"} for i, (text, _) in enumerate(pairs)]
        )
        files[name]["text_bytes"] = sum(size(text) for text, _ in pairs)
        labels += [{"source": source, "index": i, "kind": kind} for i, (_, kind) in enumerate(pairs)]
    with open(os.path.join(root, "corpus.inputs"), "w", encoding="utf-8") as file:
        file.write(
            ",".join(
                f"{source}={os.path.join(root, 'corpus', source + '.jsonl')}" for source in splits["corpus"]
            )
            + "\n"
        )
    files["labels.jsonl"] = write_lines(root, "labels.jsonl", labels)
    files["labels.jsonl"]["kinds"] = count_by(label["kind"] for label in labels)
    return files


def package_versions():
    """{package: version} of the sources' packages as dpkg knows it; empty where there is no dpkg."""
    packages = [p for name in SOURCES for p in re.findall(r"[a-z][a-z0-9-]+", SOURCES[name][1])]
    try:
        run = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"] + packages,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return {}
    return dict(line.split(" ", 1) for line in run.stdout.decode().splitlines())


def recipe_hash(*names):
    """Hash of a recipe's own files: a changed recipe builds again."""
    here, total = os.path.dirname(os.path.abspath(__file__)), hashlib.sha256()
    for name in names:
        with open(os.path.join(here, name), "rb") as file:
            total.update(file.read())
    return total.hexdigest()


def is_built(root, key):
    """Does the folder hold what this command would build, byte for byte?"""
    try:
        with open(os.path.join(root, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        for name, entry in manifest["files"].items():
            with open(os.path.join(root, name), "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() != entry["sha256"]:
                    return False
        return all(manifest.get(name) == value for name, value in key.items())
    except (OSError, ValueError, KeyError):
        return False


# ---- 4. command line ---------------------------------------------------------------------------------------


def bad_data(message):
    """Say what is wrong with the input; 3 is the exit code for it."""
    print(f"demo.py: {message}", file=sys.stderr)
    return 3


def parse(arguments):
    """Options; counts are multiplied by --scale."""
    parser = argparse.ArgumentParser(
        description="Build the demo's data sets from text that Debian and Ubuntu packages install."
    )
    parser.add_argument("out_dir", help="folder to write to")
    parser.add_argument(
        "--seed", type=int, default=0, help="which records go where, and the damage (default 0)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the three counts (default 1.0)")
    parser.add_argument(
        "--pretrain", type=int, default=16000, help="records for pretraining (default 16000, about 7 MB)"
    )
    parser.add_argument(
        "--pretrain-bad", type=float, default=0.0, help="share of them that is spoilt (default 0)"
    )
    parser.add_argument(
        "--corpus", type=int, default=13500, help="records of the corpus, over all sources (default 13500)"
    )
    parser.add_argument(
        "--bad", type=float, default=0.5, help="share of the corpus that is spoilt (default 0.5)"
    )
    parser.add_argument(
        "--heldout", type=int, default=1500, help="clean records for the final perplexity (default 1500)"
    )
    parser.add_argument(
        "--force", action="store_true", help="build again even when the folder holds this very data"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = parser.parse_args(arguments)
    for name in ("bad", "pretrain_bad"):
        if not 0 <= getattr(options, name) <= 1:
            parser.error(f"--{name.replace('_', '-')} is a share: give a number from 0 to 1")
    if options.scale <= 0 or min(options.pretrain, options.corpus, options.heldout) < 0:
        parser.error("--scale must be above 0, counts must not be negative")
    for name in ("pretrain", "corpus", "heldout"):
        setattr(options, name, round(getattr(options, name) * options.scale))
    return options


def main(arguments=None):
    """Read the sources, draw the splits, write them; returns the exit code."""
    options = parse(arguments)
    log = (lambda text: None) if options.quiet else (lambda text: print(text, flush=True))
    started = time.time()
    key = {
        "options": {
            n: getattr(options, n) for n in ("seed", "pretrain", "pretrain_bad", "corpus", "bad", "heldout")
        },
        "recipe": recipe_hash("demo.py", "demo_damage.py", "demo_sources.py"),
        "packages": package_versions(),
    }
    if not options.force and is_built(options.out_dir, key):
        log(f"{options.out_dir}: already built from these packages and options")
        return 0
    log("reading text of installed packages")
    candidates, missing = read_sources(log)
    if len(candidates) < MINIMUM_SOURCES:
        return bad_data(
            f"{len(candidates)} sources found, {MINIMUM_SOURCES} are needed: apt-get install "
            + " ".join(SOURCES[n][1].replace(",", "").split(" (")[0] for n in missing)
        )
    splits = build_splits(candidates, options)
    files = write_splits(options.out_dir, splits)
    manifest = dict(key, format="moebatch-demo-data", version=1, missing_sources=missing, files=files)
    with open(os.path.join(options.out_dir, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2, sort_keys=True)
        file.write("\n")
    reached = files["pretrain.jsonl"]["records"]
    if reached < options.pretrain:
        log(f"  warning: pretrain.jsonl has {reached} records, {options.pretrain} were asked: no more text")
    for name, entry in files.items():
        log(f"  {name:22s} {entry['records']:6d} records {entry['bytes'] / 1e6:7.2f} MB")
    log(f"{options.out_dir}: built in {time.time() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
