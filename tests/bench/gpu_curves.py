"""The same training on the CPU and on the GPU: loss curves side by side, and the GPU's twice, bit for bit.

    gpu_curves.py --out DIR [--backend cuda] [--steps 100] [--against cpu] [--tiny]

A mixture of experts (D 128, 4 layers, 8 experts, top-2) on made-up text with a pattern in it, so that the loss falls. f32: every step's loss
within 1e-3 of the other backend's, relative; bf16 within 1e-2. Twice on the same backend: every number of metrics.jsonl but the times, and
every byte of the weights. Exit 1 when one of it does not hold; DIR/curves.json has the curves.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = dict(model_type="olmoe", architectures=["OlmoeForCausalLM"], hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=4, num_experts=8, num_experts_per_tok=2, vocab_size=512, max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0,
              hidden_act="silu", tie_word_embeddings=False, attention_bias=False, initializer_range=0.02, pad_token_id=1, bos_token_id=0, eos_token_id=0,
              norm_topk_prob=False, clip_qkv=None, router_aux_loss_coef=0.01, torch_dtype="float32")
KINDS = [("full", "f32", 1e-3, []), ("full", "bf16", 1e-2, []), ("router", "f32", 1e-3, ["training.trainable=router"]),
         ("lora", "bf16", 1e-2, ["training.peft_mode=lora", "training.lora.r=16", "training.lora.lora_alpha=32", "training.lora.lora_dropout=0.1"])]


class Curves:
    def __init__(self, options, work):
        self.options, self.work = options, work
        self.environment = dict(os.environ, MB_COMM="self", GOMP_SPINCOUNT="10000")

    def program(self, name, *words):
        command = [ROOT / "run", name] if (ROOT / "run").exists() else [self.options.bin / name]
        done = subprocess.run([str(w) for w in (*command, *words)], capture_output=True, text=True, cwd=ROOT, env=self.environment, timeout=self.options.limit)
        if done.returncode:
            raise RuntimeError(f"{name} {' '.join(map(str, words))}: {(done.stdout + done.stderr)[-800:]}")

    def inputs(self):
        rng, words = random.Random(1), [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "te", "so") for b in ("ba", "ne", "ti", "do", "pu")]
        text = self.work / "text.jsonl"
        with open(text, "w") as out:
            for _ in range(400):
                at, line = rng.randrange(len(words)), []
                for _ in range(60):  # a word is followed by one of two
                    line.append(words[at])
                    at = (at * 7 + rng.randrange(2) * 3 + 1) % len(words)
                out.write(json.dumps({"text": " ".join(line)}) + "\n")
        (self.work / "config.json").write_text(json.dumps(CONFIG))
        self.program("moe-shard", "tokenizer", f"dataset.inputs=t={text}", "tokenizer.vocab_size=400", f"output.dir={self.work}/tokenizer")
        self.program("moe-shard", "build", f"dataset.inputs=t={text}", "dataset.max_length=128", f"tokenizer.path={self.work}/tokenizer",
                     f"output.dir={self.work}/shard")
        self.program("moe-convert", "init", f"convert.config={self.work}/config.json", f"tokenizer.path={self.work}/tokenizer", f"output.dir={self.work}/init")

    def train(self, backend, kind, dtype, extra, name):
        folder = self.work / name
        self.program("moe-train", f"backend={backend}", f"model.path={self.work}/init/model", f"dataset.path={self.work}/shard/shard.h5", "training.objective=lm",
                     f"model.dtype={dtype}", "training.batch_size=8", "training.gradient_accumulation_steps=2", f"training.max_steps={self.options.steps}",
                     "training.learning_rate=5e-4" if kind == "full" else "training.learning_rate=2e-3", "training.logging_steps=1", f"output.dir={folder}", *extra)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        numbers = [{k: v for k, v in line.items() if k != "time" and not k.startswith("provenance/")} for line in lines]
        weights = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.safetensors"))}
        shutil.rmtree(folder)
        return numbers, weights

    def compare(self, kind, dtype, allowed, extra):
        against, _ = self.train(self.options.against, kind, dtype, extra, "against")
        first, weights = self.train(self.options.backend, kind, dtype, extra, "first")
        again, weights_again = self.train(self.options.backend, kind, dtype, extra, "again")
        worst, step = max((abs(a["loss"] - b["loss"]) / abs(a["loss"]), a["step"]) for a, b in zip(against, first))
        first_difference = next((a["step"] for a, b in zip(first, again) if a != b), None)
        found = dict(kind=kind, dtype=dtype, steps=len(first), allowed=allowed, worst=worst, worst_step=step, is_near=worst <= allowed and len(first) == len(against),
                     is_same=first_difference is None and len(first) == len(again), first_difference=first_difference, files=len(weights),
                     same_weights=weights == weights_again and len(weights) > 0, start=first[0]["loss"], end=first[-1]["loss"],
                     fell=first[-1]["loss"] < first[0]["loss"],
                     curve=[a["loss"] for a in first], against=[a["loss"] for a in against])
        verdict = "ok" if found["is_near"] and found["is_same"] and found["same_weights"] and found["fell"] else "FAILED"
        print(f"{verdict}: {kind} {dtype}: loss {found['start']:.4f} -> {found['end']:.4f}; {self.options.backend} against {self.options.against} at most {worst:.2e} "
              f"(step {step}, allowed {allowed:.0e}); again: numbers {'same' if found['is_same'] else f'differ from step {first_difference}'}, "
              f"weights {'same' if found['same_weights'] else 'differ'}", flush=True)
        return found, verdict == "ok"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/bin")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--against", default="cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=float, default=200, help="seconds of one program")
    parser.add_argument("--tiny", action="store_true", help="ten steps")
    options = parser.parse_args()
    options.bin = options.bin.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    options.steps = 10 if options.tiny else options.steps
    rows, good = [], True
    with tempfile.TemporaryDirectory(prefix="mb-curves-") as work:
        curves = Curves(options, Path(work))
        curves.inputs()
        for kind, dtype, allowed, extra in KINDS:
            try:
                row, is_good = curves.compare(kind, dtype, allowed, extra)
            except Exception as error:
                row, is_good = dict(kind=kind, dtype=dtype, failed=str(error)), False
                print(f"FAILED: {kind} {dtype}: {error}", flush=True)
            rows.append(row)
            good = good and is_good
    (options.out / "curves.json").write_text(json.dumps(rows) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
