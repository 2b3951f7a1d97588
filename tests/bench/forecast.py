"""Forecasts beside runs: every case is forecast (by rates alone, no records), run for some steps, and compared.

    python3 tests/bench/forecast.py --bin build/bin --machine conf/machine/X.json [--only WORD] [--work build/forecast]

Needs the demo's data (`make demo` builds it). Prints per case forecast / run of: memory, the peak of anonymous and shared pages of the
process (pages of mapped files, which the system takes back when it wants, are left out); seconds of a step from the third on, where the
first two touch memory for the first time; seconds of the whole stage. With one thread (the default) seconds are those of its processor,
so that what else runs on the machine hardly counts. build/forecast.json has the rows.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time

COMMON = dict(attention_bias=False, hidden_act="silu", max_position_embeddings=1024, rms_norm_eps=1e-5, rope_theta=10000.0, initializer_range=0.02,
              eos_token_id=0, bos_token_id=None, pad_token_id=1, tie_word_embeddings=False, torch_dtype="float32")
MOE = dict(COMMON, model_type="olmoe", architectures=["OlmoeForCausalLM"], hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
           num_key_value_heads=8, num_experts=16, num_experts_per_tok=4, norm_topk_prob=False, router_aux_loss_coef=0.01, vocab_size=32000)
DENSE = dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
             num_key_value_heads=12, head_dim=64, mlp_bias=False, vocab_size=32000)
TINY = dict(MOE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, num_experts=8, num_experts_per_tok=2,
            vocab_size=2048)
LORA = ["training.peft_mode=lora", "training.lora.r=16"]


def train(model, data, steps, batch, *words, accumulation=1):
    return "moe-train", model, data, [f"training.max_steps={steps}", f"training.batch_size={batch}",
                                      f"training.gradient_accumulation_steps={accumulation}", "training.save_minutes=0", "training.logging_steps=1", *words]


CASES = {
    "tiny full f32": train("tiny", "short", 150, 8),
    "tiny warm-up f32": train("tiny-trash", "short", 100, 8, "training.objective=router_warmup"),
    "demo pretrain f32": train("demo", "short", 50, 16),
    "demo pretrain bf16": train("demo", "short", 50, 16, "model.dtype=bf16"),
    "demo pretrain, 4 micro-batches of 4": train("demo", "short", 40, 4, accumulation=4),
    "demo warm-up f32": train("demo-trash", "short", 30, 16, "training.objective=router_warmup"),
    "demo target full f32": train("target", "short", 80, 16),
    "demo target LoRA f32": train("target", "short", 80, 16, "training.peft_mode=lora", "training.lora.r=32", "training.lora.target_modules=all-linear"),
    "demo score f32": ("moe-score", "demo-trash", "few", ["score.scores=good_mass,good_logits,perplexity,entropy,length", "score.source_model=@demo"]),
    "moe full f32": train("moe", "long", 5, 4),
    "moe full bf16": train("moe", "long", 5, 4, "model.dtype=bf16"),
    "moe full bf16, recomputed": train("moe", "long", 5, 4, "model.dtype=bf16", "training.recompute=blocks"),
    "moe router bf16": train("moe", "long", 5, 4, "model.dtype=bf16", "training.trainable=router"),
    "moe warm-up bf16": train("moe-trash", "long", 5, 4, "model.dtype=bf16", "training.objective=router_warmup"),
    "moe LoRA bf16": train("moe", "long", 5, 4, "model.dtype=bf16", *LORA),
    "moe QLoRA int4": train("moe", "long", 5, 4, "model.dtype=bf16", "model.quantize=int4", *LORA),
    "moe score bf16": ("moe-score", "moe-trash", "few", ["score.scores=good_mass", "model.dtype=bf16"]),
    "dense full bf16": train("dense", "long", 5, 4, "model.dtype=bf16"),
    "dense LoRA f32": train("dense", "long", 5, 4, *LORA),
}


class Clock:
    """Looks at a running process: the peak of its own pages, seconds of its processor (one thread) or of the wall, and those at each line of metrics."""

    def __init__(self, threads, metrics):
        self.by_cpu, self.metrics, self.started = threads == 1, metrics, time.time()
        self.peak, self.seconds, self.at_line = 0, 0.0, {}

    def look(self, pid):
        try:
            with open(f"/proc/{pid}/status", encoding="utf-8") as file:
                self.peak = max(self.peak, 1024 * sum(int(line.split()[1]) for line in file if line.startswith(("RssAnon", "RssShmem"))))
            with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            return
        if self.by_cpu and fields[0] != "Z":
            self.seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        elif not self.by_cpu:
            self.seconds = time.time() - self.started
        if self.metrics and os.path.exists(self.metrics):
            with open(self.metrics, encoding="utf-8") as file:
                self.at_line.setdefault(sum(1 for _ in file), self.seconds)

    def step(self):
        """Seconds of a step from the third on."""
        lines = sorted(line for line in self.at_line if line >= 2)
        return (self.at_line[lines[-1]] - self.at_line[lines[0]]) / (lines[-1] - lines[0]) if len(lines) > 1 else None


class Check:
    def __init__(self, options):
        self.options = options
        self.work = os.path.abspath(options.work)
        self.environment = dict(os.environ, GOMP_SPINCOUNT="10000", OMP_NUM_THREADS=str(options.threads))
        os.makedirs(self.work, exist_ok=True)

    def call(self, program, *words, metrics=None):
        """Run it and look at it meanwhile."""
        command = [os.path.join(self.options.bin, program), *words]
        clock = Clock(self.options.threads, metrics)
        with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment) as process:
            while process.poll() is None:
                clock.look(process.pid)
                time.sleep(0.03)
            log.seek(0)
            said = log.read()
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{said[-2000:]}")
        return clock

    def make(self):
        """Tokenizer, shards and models, once."""
        at = lambda name: os.path.join(self.work, name)
        demo = "datasets/built/demo"
        if not os.path.exists(at("tok/done.json")):
            self.call("moe-shard", "tokenizer", f"dataset.inputs=pretrain={demo}/pretrain.jsonl", "tokenizer.vocab_size=2048", f"output.dir={at('tok')}")
        for name, length, least, source in (("short", 128, 2, f"{demo}/pretrain.jsonl"), ("long", 512, 512, f"{demo}/corpus/man.jsonl,b={demo}/pretrain.jsonl"),
                                            ("few", 256, 250, f"{demo}/heldout.jsonl")):
            self.call("moe-shard", "build", f"dataset.inputs=a={source}", f"dataset.max_length={length}", f"dataset.min_length={least}", "dataset.template=lines", f"tokenizer.path={at('tok')}",
                      f"output.dir={at('shard-' + name)}")
        configs = {"moe": MOE, "dense": DENSE, "tiny": TINY}
        for name, config in configs.items():
            with open(at(name + ".json"), "w", encoding="utf-8") as file:
                json.dump(config, file)
        paths = {name: at(name + ".json") for name in configs}
        paths |= {"demo": "conf/model/demo-selector.json", "target": "conf/model/demo-target.json"}
        for name, path in paths.items():
            self.call("moe-convert", "init", f"convert.config={path}", f"tokenizer.path={at('tok')}", f"output.dir={at('model-' + name)}")
        for name in ("tiny", "demo", "moe"):
            self.call("moe-convert", "trash", f"model.path={at('model-' + name)}/model", "convert.verify=false", f"output.dir={at('model-' + name)}-trash")

    def case(self, name):
        program, model, data, words = CASES[name]
        folder = os.path.join(self.work, "run-" + re.sub(r"[^a-z0-9]+", "-", name.lower()))
        where = lambda model: os.path.join(self.work, "model-" + model, "model")
        words = [f"model.path={where(model)}", f"dataset.path={self.work}/shard-{data}/shard.h5", f"output.dir={folder}", "run.force=true",
                 *(re.sub(r"@(\w+)", lambda found: where(found[1]), word) for word in words)]
        out = folder + ".json"
        self.call("moe-config", "forecast", f"program={program}", f"machine={self.options.machine}", f"threads={self.options.threads}", "history=none",
                  f"out={out}", "--", *words)
        with open(out, encoding="utf-8") as file:
            forecast = json.load(file)
        metrics = os.path.join(folder, "metrics.jsonl")
        shutil.rmtree(folder, ignore_errors=True)
        clock = self.call(program, *words, metrics=metrics)
        peak, seconds, step = clock.peak, clock.seconds, clock.step()
        with open(os.path.join(folder, "done.json"), encoding="utf-8") as file:
            results = json.load(file)["results"]
        row = dict(name=name, forecast_bytes=forecast["rank_bytes"], bytes=peak, forecast_seconds=forecast["seconds"], seconds=seconds, tokens=results["tokens"],
                   forecast_tokens=forecast["tokens"], forecast_step=forecast["compute_seconds"] / forecast["steps"] if step else None, step=step,
                   kinds=forecast["memory"], used={key: value for key, value in results.items() if key.startswith("memory_")})
        speed = f"step {row['forecast_step']:7.4f} / {step:7.4f} s = {row['forecast_step'] / step:5.2f}   " if step else ""
        print(f"{name:36s} memory {row['forecast_bytes'] / 2**20:6.0f} / {peak / 2**20:6.0f} MiB = {row['forecast_bytes'] / peak:5.2f} ({(peak - row['forecast_bytes']) / 2**20:+5.0f})   "
              f"{speed}stage {row['forecast_seconds']:6.2f} / {seconds:6.2f} s = {row['forecast_seconds'] / seconds:5.2f}"
              f"{'' if forecast['tokens'] == results['tokens'] else ', TOKENS DIFFER'}", flush=True)
        return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--work", default="build/forecast")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    check = Check(options)
    check.make()
    rows = [check.case(name) for name in CASES if re.search(options.only, name)]
    for key, a, b in (("memory", "forecast_bytes", "bytes"), ("step", "forecast_step", "step"), ("stage", "forecast_seconds", "seconds")):
        ratios = sorted(row[a] / row[b] for row in rows if row[b])
        print(f"{key}: forecast / run from {ratios[0]:.2f} to {ratios[-1]:.2f}, median {ratios[len(ratios) // 2]:.2f}")
    with open(options.work.rstrip("/") + ".json", "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
