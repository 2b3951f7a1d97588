"""Our programs beside PyTorch + transformers, same machine, same run, same model and token counts.

For each model size: training steps (AdamW, full fine-tuning, f32) and forward passes with loss, tokens per second, measured in
turns (ours, theirs, ours, theirs ...) so that a machine that slows down slows both; medians and the ratio of each pair are printed.
Beside each rate: its share of what torch.mm does in f32 (2048 cubed). `make bench` runs this with the Python of build/venv.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

SIZES = {
    # name: config, records of a micro-batch, tokens of a record
    "demo (D 128, 4 layers, 8 experts top-2)": (
        dict(hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, num_experts=8,
             num_experts_per_tok=2, vocab_size=2048), 16, 128),
    "small (D 512, 8 layers, 16 experts top-4)": (
        dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, num_experts=16,
             num_experts_per_tok=4, vocab_size=2048), 8, 512),
}


def flops_per_token(c, tokens):
    """Forward multiply-adds x 2 of one token: attention, experts, head."""
    d, layers = c["hidden_size"], c["num_hidden_layers"]
    attention = 4 * d * d + 2 * tokens / 2 * d
    experts = 3 * d * c["intermediate_size"] * c["num_experts_per_tok"] + d * c["num_experts"]
    return 2 * (layers * (attention + experts) + d * c["vocab_size"])


def make_inputs(work, config, tokens, records, bin_dir):
    """A random model folder and a shard of records of equal length, both through our own programs."""
    full = dict(config, model_type="olmoe", architectures=["OlmoeForCausalLM"], max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0,
                hidden_act="silu", norm_topk_prob=False, tie_word_embeddings=False, attention_bias=False, clip_qkv=None, initializer_range=0.02,
                router_aux_loss_coef=0.01, pad_token_id=1, eos_token_id=0, torch_dtype="float32")
    (work / "config.json").write_text(json.dumps(full))
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(3000)]
    with open(work / "text.jsonl", "w") as out:
        for _ in range(records):
            out.write(json.dumps({"text": " ".join(rng.choice(words, tokens))}) + "\n")
    run([bin_dir / "moe-shard", "tokenizer", f"dataset.inputs=t={work}/text.jsonl", f"tokenizer.vocab_size={config['vocab_size']}", f"output.dir={work}/tok"])
    run([bin_dir / "moe-shard", "build", f"dataset.inputs=t={work}/text.jsonl", f"dataset.max_length={tokens}", f"tokenizer.path={work}/tok",
         f"output.dir={work}/shard"])
    run([bin_dir / "moe-convert", "init", f"convert.config={work}/config.json", f"tokenizer.path={work}/tok", f"output.dir={work}/init"])


def run(command):
    """Run a program of ours and return what it said."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def rate(text):
    """Tokens per second of a program's closing line."""
    return float(re.findall(r"\(([0-9.]+) tokens/s\)", text)[-1])


def ours_train(work, batch, steps, bin_dir):
    """Steps after the first, as for the other side: start-up and the checkpoint at the end are not training."""
    shutil.rmtree(work / "train", ignore_errors=True)
    run([bin_dir / "moe-train", f"model.path={work}/init/model", f"dataset.path={work}/shard/shard.h5", "training.objective=lm",
         f"training.batch_size={batch}", "training.gradient_accumulation_steps=1", f"training.max_steps={steps}", "training.learning_rate=1e-4",
         "training.weight_decay=0.01", "training.logging_steps=1", f"output.dir={work}/train"])
    lines = [json.loads(line) for line in open(work / "train" / "metrics.jsonl")]
    return (lines[-1]["tokens"] - lines[0]["tokens"]) / (lines[-1]["time"] - lines[0]["time"])


def ours_forward(work, bin_dir):
    shutil.rmtree(work / "score", ignore_errors=True)
    return rate(run([bin_dir / "moe-score", "score.scores=perplexity", f"model.path={work}/init/model", f"dataset.path={work}/shard/shard.h5",
                     f"output.dir={work}/score"]))


class Theirs:
    """The same model in transformers, eager experts loop, f32."""

    def __init__(self, config, batch, tokens):
        torch.manual_seed(0)
        self.model = OlmoeForCausalLM(OlmoeConfig(**config, max_position_embeddings=1024, output_router_logits=True))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01)
        self.ids = torch.randint(0, config["vocab_size"], (batch, tokens))
        self.mask = torch.ones_like(self.ids)

    def train(self, steps):
        start = time.perf_counter()
        for _ in range(steps):
            self.model(self.ids, attention_mask=self.mask, labels=self.ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return steps * self.ids.numel() / (time.perf_counter() - start)

    @torch.no_grad()
    def forward(self, steps):
        start = time.perf_counter()
        for _ in range(steps):
            self.model(self.ids, attention_mask=self.mask, labels=self.ids)
        return steps * self.ids.numel() / (time.perf_counter() - start)


def product_rate():
    """GFLOP/s of a large f32 product."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    return best


def show(what, pairs, flops, top):
    ours, theirs = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
    ratios = [p[0] / p[1] for p in pairs]
    print(f"  {what:8s} ours {ours:9.0f} tokens/s ({100 * ours * flops / 1e9 / top:3.0f} % of torch.mm)   transformers {theirs:9.0f} "
          f"({100 * theirs * flops / 1e9 / top:3.0f} %)   ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, default=Path("build/bin"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", help="only sizes whose name holds this word")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    top = product_rate()
    print(f"torch.mm f32 {top:.0f} GFLOP/s, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, (config, batch, tokens) in SIZES.items():
        if options.size and options.size not in name:
            continue
        work = Path(tempfile.mkdtemp(prefix="moebatch-bench."))
        try:
            make_inputs(work, config, tokens, 24 * batch, options.bin)
            theirs = Theirs(config, batch, tokens)
            theirs.train(1)
            steps = 24 if config["hidden_size"] < 256 else 4
            print(name)
            flops = flops_per_token(config, tokens)
            show("train", [(ours_train(work, batch, steps, options.bin), theirs.train(max(1, steps // 3))) for _ in range(options.rounds)], 3 * flops, top)
            show("forward", [(ours_forward(work, options.bin), theirs.forward(max(1, steps // 2))) for _ in range(options.rounds)], flops, top)
        finally:
            shutil.rmtree(work)


main()
