"""How cost grows: milliseconds of a scoring pass against tokens, experts that exist, record length and ranks. Figure and JSON.

    scaling.py --bin build/bin --out build/bench/scaling [--dtype bf16]

Each point is a random OLMoE-like model (D 256, 4 layers, top-2) scored by moe-score; the median of three runs. Expected: straight in
tokens; flat in the number of experts at equal picks, but for the gate and thinner products; in the record's length a constant (the
matrices) plus a straight line (attention); two ranks of one thread each take half the time of one.
"""

import argparse
import json
import os
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
from bench import MOE, call

BASE = dict(MOE, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, num_experts=8,
            num_experts_per_tok=2, vocab_size=2048, max_position_embeddings=8192)


class Scaling:
    def __init__(self, options):
        self.bin, self.work, self.dtype = options.bin, options.out / "work", options.dtype
        self.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = self.work / "tokenizer"
        rng = np.random.default_rng(0)
        self.words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(3000)]
        self.rng = rng
        if not self.tokenizer.exists():
            self.write(self.work / "seed.jsonl", 400, 200)
            call([self.bin / "moe-shard", "tokenizer", f"dataset.inputs=t={self.work}/seed.jsonl", "tokenizer.vocab_size=2048", f"output.dir={self.tokenizer}"])

    def write(self, path, records, words):
        with open(path, "w") as out:
            for _ in range(records):
                out.write(json.dumps({"text": " ".join(self.rng.choice(self.words, words))}) + "\n")

    def shard(self, tokens, length):
        folder = self.work / f"shard-{tokens}-{length}"
        if not folder.exists():
            self.write(self.work / "text.jsonl", tokens // length, length)
            call([self.bin / "moe-shard", "build", f"dataset.inputs=t={self.work}/text.jsonl", f"dataset.max_length={length}", f"tokenizer.path={self.tokenizer}",
                  f"output.dir={folder}"])
        return folder / "shard.h5"

    def model(self, experts):
        folder = self.work / f"model-{experts}"
        if not folder.exists():
            (self.work / "config.json").write_text(json.dumps(dict(BASE, num_experts=experts)))
            call([self.bin / "moe-convert", "init", f"convert.config={self.work}/config.json", f"tokenizer.path={self.tokenizer}", f"output.dir={folder}"])
        return folder / "model"

    def seconds(self, tokens=65536, length=256, experts=8, ranks=0):
        """Of the scoring itself, loss of every token. ranks 0: one process, all threads; else so many ranks of one thread."""
        out, times = self.work / "score", []
        environment = dict(os.environ, GOMP_SPINCOUNT="10000")
        launcher = []
        if ranks:
            environment["OMP_NUM_THREADS"] = "1"
            launcher = ["mpirun", "--allow-run-as-root", "--bind-to", "core", "-n", str(ranks)]
        for _ in range(3):
            shutil.rmtree(out, ignore_errors=True)
            said = call([*launcher, self.bin / "moe-score", "score.scores=perplexity", f"model.path={self.model(experts)}", f"model.dtype={self.dtype}",
                         f"dataset.path={self.shard(tokens, length)}", f"output.dir={out}"], env=environment)
            times.append(tokens / float(re.findall(r"\(([0-9.]+) tokens/s\)", said)[-1]))
        return statistics.median(times)


def measure(s):
    result = {
        "tokens": [(t, s.seconds(tokens=t)) for t in (16384, 32768, 65536, 131072)],
        "experts": [(e, s.seconds(experts=e)) for e in (4, 8, 16, 32, 64)],
        "length": [(n, s.seconds(length=n)) for n in (128, 512, 1024, 2048, 4096, 8192)],
        "ranks": [(r, s.seconds(tokens=262144, ranks=r)) for r in (1, 2)],
    }
    lengths, times = np.array([p[0] for p in result["length"]]), np.array([p[1] for p in result["length"]])
    slope, constant = np.polyfit(lengths, times, 1)
    result["attention_share_at_8192"] = float(slope * 8192 / (constant + slope * 8192))
    result["speedup_of_two_ranks"] = result["ranks"][0][1] / result["ranks"][1][1]
    return result


def draw(result, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4))
    labels = {"tokens": "tokens scored", "experts": "experts (top-2)", "length": "tokens of a record", "ranks": "ranks of one thread"}
    for axis, (key, label) in zip(axes, labels.items()):
        x, y = zip(*result[key])
        axis.plot(x, y, "o-")
        axis.set_xlabel(label)
        axis.set_ylim(0, max(y) * 1.15)
    axes[0].set_ylabel("seconds")
    figure.suptitle("Scoring pass: cost")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, default=Path("build/bin"))
    parser.add_argument("--out", type=Path, default=Path("build/bench/scaling"))
    parser.add_argument("--dtype", default="bf16")
    options = parser.parse_args()
    result = measure(Scaling(options))
    for key in ("tokens", "experts", "length", "ranks"):
        print(f"{key:8s}", "  ".join(f"{x}: {y:.3f} s" for x, y in result[key]))
    print(f"attention's share at 8192 tokens {result['attention_share_at_8192']:.2f}; two ranks are {result['speedup_of_two_ranks']:.2f} x one")
    (options.out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    try:
        draw(result, options.out / "scaling.png")
    except ImportError:
        print("no matplotlib: no figure")


if __name__ == "__main__":
    main()
