"""Our programs beside what a user would run instead (peer.py), same machine, same run, same model, tokens, dtype and threads.

Every row is measured in turns (ours, theirs, ours, theirs, ...) so that a machine that slows down slows both; medians and the ratio
of each pair are kept. Where the peer has variants (eager, torch.compile, grouped experts, bf16 weights or autocast) each runs once and
the fastest is the peer of the row. GFLOP/s are forward multiply-adds x 2 (x 3 for full training); their share of the ceiling is taken
from one large product of the same dtype, measured in this run by our own library. Prints a table, writes build/bench.json:
rows of name, unit, ours, peer, ratio, ceiling_share, threads, dtype, versions (and variant, range).

    bench.py --bin build/bin --native build/bench/native [--only WORD] [--rounds 2] [--quick]
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
COMMON = dict(max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False,
              attention_bias=False, initializer_range=0.02, pad_token_id=1, bos_token_id=0, eos_token_id=0, torch_dtype="float32")
MOE = dict(COMMON, model_type="olmoe", architectures=["OlmoeForCausalLM"], norm_topk_prob=False, clip_qkv=None, router_aux_loss_coef=0.01)
MODELS = {
    # name: config, records of a micro-batch, tokens of a record
    "tiny": (dict(MOE, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, num_experts=8,
                  num_experts_per_tok=2, vocab_size=2048), 16, 128),
    "moe": (dict(MOE, hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, num_experts=16,
                 num_experts_per_tok=4, vocab_size=32000), 8, 512),
    "dense": (dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                   num_attention_heads=12, num_key_value_heads=12, head_dim=64, mlp_bias=False, vocab_size=32000), 8, 512),
}
SHAPE_TEXT = {"tiny": "D 128, 4 layers, 8 experts top-2", "moe": "D 512, 8 layers, 16 experts top-4", "dense": "D 768, 12 layers, dense"}
VOCABULARY, MIX_RECORDS = 2048, 600


def flops_per_token(c, tokens):
    """Forward multiply-adds x 2 of one token: attention, experts or FFN, head."""
    d, layers = c["hidden_size"], c["num_hidden_layers"]
    attention = 4 * d * d + 2 * tokens / 2 * d
    ffn = 3 * d * c["intermediate_size"] * c.get("num_experts_per_tok", 1) + d * c.get("num_experts", 0)
    return 2 * (layers * (attention + ffn) + d * c["vocab_size"])


def call(command, **extra):
    """Run a program and return what it said."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **extra)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.stdout + result.stderr


class Bench:
    def __init__(self, options):
        self.options, self.bin, self.work = options, options.bin, options.work
        self.threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
        self.rows, self.ceilings = [], {}
        self.environment = dict(os.environ, OMP_NUM_THREADS=str(self.threads), GOMP_SPINCOUNT="10000", TOKENIZERS_PARALLELISM="false",
                                RAYON_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
        if options.newest:
            self.environment["PYTHONPATH"] = str(options.newest)

    # ---- inputs ----

    def text(self):
        """Real text: clean records of the demo's recipe."""
        path = self.work / "data" / "pretrain.jsonl"
        if not path.exists():
            call([sys.executable, HERE.parent.parent / "datasets" / "demo.py", self.work / "data"])
        return path

    def tokenizer(self):
        folder = self.work / "tokenizer"
        if not folder.exists():
            call([self.bin / "moe-shard", "tokenizer", f"dataset.inputs=t={self.text()}", f"tokenizer.vocab_size={VOCABULARY}", f"output.dir={folder}"])
        return folder

    def shard(self, length):
        """Records of exactly `length` tokens (0: the text's own lengths, cut at 1024)."""
        folder = self.work / f"shard-{length}"
        if not folder.exists():
            source = self.work / "mix.jsonl"
            if not length:  # a few hundred records are enough for a rate
                lines = open(self.text(), encoding="utf-8").readlines()
                source.write_text("".join(lines[:: max(1, len(lines) // MIX_RECORDS)]), encoding="utf-8")
            if length:
                source = self.work / f"words-{length}.jsonl"
                rng = np.random.default_rng(0)
                words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(3000)]
                with open(source, "w") as out:
                    for _ in range(24 * 16):
                        out.write(json.dumps({"text": " ".join(rng.choice(words, length))}) + "\n")
            call([self.bin / "moe-shard", "build", f"dataset.inputs=t={source}", f"dataset.max_length={length or 1024}", f"tokenizer.path={self.tokenizer()}",
                  f"output.dir={folder}"])
        return folder / "shard.h5"

    def model(self, name):
        folder = self.work / f"model-{name}"
        if not folder.exists():
            (self.work / f"{name}.json").write_text(json.dumps(MODELS[name][0]))
            call([self.bin / "moe-convert", "init", f"convert.config={self.work}/{name}.json", f"tokenizer.path={self.tokenizer()}", f"output.dir={folder}"])
        return folder / "model"

    # ---- measuring ----

    def peer(self, task, **arguments):
        words = [sys.executable, HERE / "peer.py", task]
        for key, value in arguments.items():
            words += [f"--{key}", value]
        said = call(words, env=self.environment, timeout=900)
        return json.loads(next(line for line in said.splitlines() if line.startswith('{"rate"')))

    def fastest(self, variants, higher, task, **arguments):
        """The peer's best variant for this row; one that does not work is named and left out."""
        best, best_variant = None, None
        for variant in variants:
            try:
                result = self.peer(task, **arguments, **variant)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"    peer {variant} does not run: {str(error).strip().splitlines()[-1][:140]}", flush=True)
                continue
            print(f"    peer {' '.join(variant.values()):20s} {result['rate']:10.1f}", flush=True)
            if best is None or (result["rate"] > best["rate"]) == higher:
                best, best_variant = result, variant
        return best, best_variant

    def row(self, name, dtype, ours, theirs, flops=0, first=None, unit="tokens/s", lower=False, variant=""):
        """Take turns; keep medians and the range of the pairs' ratios."""
        pairs, versions = [], {}
        for i in range(self.options.rounds):
            mine = ours()
            result = first if i == 0 and first else theirs()
            versions = result["versions"]
            pairs.append((mine, result["rate"]))
        ratios = sorted((b / a if lower else a / b) for a, b in pairs)
        mine, peer = statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)
        share = mine * flops / 1e9 / self.ceiling(dtype) if flops else None
        self.rows.append(dict(name=name, unit=unit, ours=mine, peer=peer, ratio=statistics.median(ratios), ceiling_share=share, threads=self.threads,
                              dtype=dtype, versions=versions, variant=variant, range=[ratios[0], ratios[-1]]))
        gflops = f"{mine * flops / 1e9:6.0f} GFLOP/s = {100 * share:3.0f} % of ceiling" if flops else ""
        print(f"  {name:42s} {dtype:5s} ours {mine:10.4g}  peer {peer:10.4g} {unit:9s} ratio {statistics.median(ratios):5.2f} "
              f"({ratios[0]:.2f}-{ratios[-1]:.2f}) {gflops} {variant}", flush=True)

    def ceiling(self, dtype):
        if dtype not in self.ceilings:
            self.ceilings[dtype] = max(float(call([self.options.native, "ceiling", dtype], env=self.environment)) for _ in range(2))
            print(f"ceiling {dtype}: {self.ceilings[dtype]:.0f} GFLOP/s (2048 cubed, {self.threads} threads)", flush=True)
        return self.ceilings[dtype]

    # ---- rows ----

    def ours_train(self, name, dtype, kind, steps):
        folder, batch = self.work / "train", MODELS[name][1]
        shutil.rmtree(folder, ignore_errors=True)
        extra = {"full": [], "router": ["training.trainable=router"],
                 "lora": ["training.peft_mode=lora", "training.lora.r=16", "training.lora.lora_alpha=32"]}[kind]
        call([self.bin / "moe-train", f"model.path={self.model(name)}", f"dataset.path={self.shard(MODELS[name][2])}", "training.objective=lm",
              f"model.dtype={dtype}", f"training.batch_size={batch}", "training.gradient_accumulation_steps=1", f"training.max_steps={steps + 2}",
              "training.learning_rate=1e-4", "training.weight_decay=0.01", "training.logging_steps=1", f"output.dir={folder}", *extra],
             env=self.environment)
        lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
        first = lines[1]  # steps 1 and 2 settle memory: the optimiser's first touch, the arena's final size
        return (lines[-1]["tokens"] - first["tokens"]) / (lines[-1]["time"] - first["time"])

    def train(self, name, dtype, kind):
        config, batch, tokens = MODELS[name]
        steps = {"tiny": 20, "moe": 4, "dense": 3}[name]
        if self.options.quick:
            steps = max(2, steps // 2)
        arguments = dict(model=self.model(name), shard=self.shard(tokens), dtype=dtype, kind=kind, batch=str(batch), steps=str(steps))
        variants = [{"variant": "eager"}]
        if config["model_type"] == "olmoe":
            variants += [{"variant": "grouped_mm"}]
        else:
            variants += [{"variant": "compile"}]
        if dtype == "bf16" and kind == "full":
            variants += [dict(v, precision="autocast") for v in variants[:1]]
        first, best = self.fastest(variants, True, "train", **arguments)
        flops = flops_per_token(config, tokens) * {"full": 3, "router": 2, "lora": 2}[kind]
        self.row(f"train {kind}, {name}", dtype, lambda: self.ours_train(name, dtype, kind, steps), lambda: self.peer("train", **arguments, **best), flops,
                 first, variant=" ".join(best.values()))

    def score(self, name, dtype):
        every = 2 if self.options.quick else 1
        folder = self.work / "score"
        arguments = dict(model=self.model(name), shard=self.shard(0), dtype=dtype, every=str(every))

        def ours():
            shutil.rmtree(folder, ignore_errors=True)
            said = call([self.bin / "moe-score", "score.scores=good_mass", "model.trash_expert_ratio=0.125", f"model.path={self.model(name)}",
                         f"model.dtype={dtype}", f"dataset.path={self.shard(0)}", f"output.dir={folder}"], env=self.environment)
            return float(re.findall(r"\(([0-9.]+) tokens/s\)", said)[-1])

        first, best = self.fastest([{"variant": "eager"}, {"variant": "grouped_mm"}], True, "score", **arguments)
        self.row(f"score a real length mix, {name}", dtype, ours, lambda: self.peer("score", **arguments, **best), 0, first, variant=" ".join(best.values()))

    def generate(self, name, dtype, batch):
        prompts, out = self.work / f"prompts-{batch}.jsonl", self.work / "generate"
        new = 32 if self.options.quick else 128
        texts = [json.loads(line)["text"] for line in open(self.text())]
        with open(prompts, "w") as f:
            for text in texts[:batch]:
                f.write(json.dumps({"prompt": text[:80]}) + "\n")
        arguments = dict(model=self.model(name), dtype=dtype, batch=str(batch), new=str(new))

        def ours():
            shutil.rmtree(out, ignore_errors=True)
            said = call([self.bin / "moe-infer", "generate", f"model.path={self.model(name)}", f"model.dtype={dtype}", f"generate.inputs={prompts}",
                         f"generate.max_new_tokens={new}", "generate.ignore_eos=true", f"output.dir={out}"], env=self.environment)
            return float(re.findall(r"\(([0-9.]+) tokens/s\)", said)[-1])

        first, best = self.fastest([{"variant": "eager"}], True, "generate", **arguments)
        self.row(f"generate, batch {batch}, {name}", dtype, ours, lambda: self.peer("generate", **arguments, **best), 0, first, variant=" ".join(best.values()))

    def tokenize(self, name, tokenizer):
        arguments = dict(tokenizer=tokenizer, text=self.text())
        one = dict(self.environment, OMP_NUM_THREADS="1")
        self.row(f"tokenize, one thread, {name}", "-", lambda: float(call([self.options.native, "tokenize", tokenizer, self.text()], env=one)),
                 lambda: self.peer("tokenize", **arguments), unit="MB/s")

    def shards(self):
        path = self.shard(0)
        self.row("read shard records in random order", "-", lambda: float(call([self.options.native, "shard", path], env=self.environment)),
                 lambda: self.peer("shard", shard=path), unit="MB/s")

    def start(self):
        """Seconds from the call to the end of a program that says one line."""
        model = self.model("tiny")

        def timed(command):
            began = time.perf_counter()
            call(command, env=self.environment)
            return time.perf_counter() - began

        def ours():
            return statistics.median(timed([self.bin / "moe-train", "--help"]) for _ in range(9))

        def theirs():
            began = time.perf_counter()
            result = self.peer("start", model=model)
            return dict(result, rate=time.perf_counter() - began)

        self.row("start to first line", "-", ours, theirs, unit="s", lower=True)

    def run(self):
        everything = []
        for dtype in ("bf16", "f32"):
            for name in ("moe", "dense", "tiny"):
                kinds = ["full", "router", "lora"] if MODELS[name][0]["model_type"] == "olmoe" else ["full", "lora"]
                for kind in kinds:
                    if dtype == "bf16" or kind == "full":
                        everything.append((f"train {kind} {name} {dtype}", lambda n=name, d=dtype, k=kind: self.train(n, d, k)))
            everything.append((f"score moe {dtype}", lambda d=dtype: self.score("moe", d)))
            for name in ("moe", "dense"):
                for batch in (1, 8):
                    if dtype == "bf16" or batch == 8:
                        everything.append((f"generate {name} {batch} {dtype}", lambda n=name, d=dtype, b=batch: self.generate(n, d, b)))
        everything.append(("tokenize", lambda: self.tokenize("byte-level BPE", self.tokenizer() / "tokenizer.json")))
        for path in self.options.tokenizer or []:
            everything.append(("tokenize", lambda p=path: self.tokenize(p.parent.name, p)))
        everything += [("shard", self.shards), ("start", self.start)]
        for name, work in everything:
            if not self.options.only or all(word in name for word in self.options.only.split()):
                work()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=Path, default=Path("build/bin"))
    parser.add_argument("--native", type=Path, default=Path("build/bench/native"))
    parser.add_argument("--work", type=Path, default=Path("build/bench/work"))
    parser.add_argument("--newest", type=Path, help="folder with a newer transformers, put in front of the Python path")
    parser.add_argument("--tokenizer", type=Path, action="append", help="another tokenizer.json to measure")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", help="only rows whose name holds all these words: train score generate tokenize shard start, full router lora, "
                        "moe dense tiny, bf16 f32")
    parser.add_argument("--quick", action="store_true", help="fewer steps and records")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    for dtype in ("bf16", "f32"):
        bench.ceiling(dtype)
    bench.run()
    report = dict(ceilings_gflops=bench.ceilings, shapes=SHAPE_TEXT, date=time.strftime("%Y-%m-%d"), rows=bench.rows)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(bench.rows)} rows in {options.json}")


if __name__ == "__main__":
    main()
