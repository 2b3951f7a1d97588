"""One measurement of PyTorch + transformers (or HF tokenizers): what a user would run instead. Prints one JSON object.

    peer.py train    --model DIR --shard FILE --dtype bf16 --kind full|router|lora --batch 8 --steps 3 --variant eager
    peer.py score    --model DIR --shard FILE --dtype bf16 --tokens 8192 --variant eager   (padded batches, longest records first)
    peer.py generate --model DIR --dtype bf16 --batch 8 --new 128 --variant eager
    peer.py tokenize --tokenizer FILE --text FILE
    peer.py shard    --shard FILE
    peer.py start    --model DIR

Variants: eager; compile (torch.compile of the model); for experts also grouped_mm (transformers 5's
experts_implementation; batched_mm asks for 32 GiB at these shapes). Full fine-tuning in bf16: "pure" keeps weights and AdamW's moments in bf16, "autocast" keeps them in f32 as
moebatch does; both are peers. A warm-up step comes before the clock starts.
"""

import argparse
import contextlib
import json
import os
import sys
import time

THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))


def seconds_of(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def load_model(options, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    extra = {}
    if options.variant == "grouped_mm":
        extra["experts_implementation"] = options.variant
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="sdpa", **extra)
    return model


def records(path, limit=1024):
    """Token lists of a shard."""
    import h5py

    with h5py.File(path) as f:
        offsets, tokens = f["offsets"][:].astype("int64"), f["tokens"][:].astype("int64")
    return [tokens[a:b][:limit] for a, b in zip(offsets[:-1], offsets[1:]) if b > a]


def torch_dtype(name):
    import torch

    return torch.bfloat16 if name == "bf16" else torch.float32


# ---- training ----


def prepare_training(options):
    """The model with what trains, and the context its forward runs in."""
    import torch

    autocast = options.dtype == "bf16" and options.precision == "autocast"
    model = load_model(options, torch.float32 if autocast else torch_dtype(options.dtype))
    if options.kind == "router":
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith("mlp.gate.weight"))
    if options.kind == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"))
    model.train()
    step_model = torch.compile(model) if options.variant == "compile" else model
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    return model, step_model, context


def train(options):
    import numpy as np
    import torch

    model, step_model, context = prepare_training(options)
    rows = records(options.shard)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    extra = {"output_router_logits": True} if getattr(model.config, "num_experts", 0) else {}

    def step(i):
        batch = rows[i * options.batch : (i + 1) * options.batch]
        ids = torch.from_numpy(np.stack(batch))
        with context:
            loss = step_model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False, **extra).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return ids.numel()

    step(0)
    tokens, start = 0, time.perf_counter()
    for i in range(options.steps):
        tokens += step(1 + i)
    return {"rate": tokens / (time.perf_counter() - start), "unit": "tokens/s"}


# ---- scoring, generation ----


def score(options):
    """Router logits of every record: padded batches of about --tokens tokens, longest records first, no LM head."""
    import torch

    model = load_model(options, torch_dtype(options.dtype)).eval()
    rows = sorted(records(options.shard), key=len, reverse=True)[:: options.every]
    batches, at = [], 0
    while at < len(rows):
        n = max(1, options.tokens // len(rows[at]))
        batches.append(rows[at : at + n])
        at += n
    forward = torch.compile(model.model) if options.variant == "compile" else model.model

    @torch.no_grad()
    def run(batch):
        longest = len(batch[0])
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = torch.from_numpy(row)
            mask[i, : len(row)] = 1
        out = forward(input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True)
        total = 0.0
        for logits in out.router_logits:
            p = torch.softmax(logits.float(), -1)[:, :-2].sum(-1).view(len(batch), -1)
            total += ((p * mask).sum(1) / mask.sum(1)).sum().item()
        return total

    run(batches[-1])
    elapsed = seconds_of(lambda: [run(b) for b in batches])
    return {"rate": sum(len(r) for r in rows) / elapsed, "unit": "tokens/s"}


def generate(options):
    import torch

    model = load_model(options, torch_dtype(options.dtype)).eval()
    torch.manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (options.batch, 32))
    mask = torch.ones_like(ids)

    def run(n):
        model.generate(ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)

    run(4)
    elapsed = seconds_of(lambda: run(options.new))
    return {"rate": options.batch * options.new / elapsed, "unit": "tokens/s"}


# ---- data, start ----


def tokenize(options):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(options.tokenizer)
    texts = [json.loads(line)["text"] for line in open(options.text, encoding="utf-8")]
    size = sum(len(t.encode()) for t in texts)
    tokenizer.encode(texts[0])
    one = seconds_of(lambda: [tokenizer.encode(t) for t in texts])
    many = seconds_of(lambda: tokenizer.encode_batch(texts))
    return {"rate": size / min(one, many) / 1e6, "unit": "MB/s"}


def shard(options):
    """Every record once, in random order, through h5py."""
    import h5py
    import numpy as np

    with h5py.File(options.shard) as f:
        offsets, tokens = f["offsets"][:].astype("int64"), f["tokens"]
        order = np.random.default_rng(0).permutation(len(offsets) - 1)[:20000]
        elapsed = seconds_of(lambda: [tokens[offsets[i] : offsets[i + 1]] for i in order])
        size = int(sum(offsets[i + 1] - offsets[i] for i in order)) * 4
    return {"rate": size / elapsed / 1e6, "unit": "MB/s"}


def start(options):
    """Nothing but the imports and the configuration a script begins with."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401

    AutoConfig.from_pretrained(options.model)
    return {"rate": 0, "unit": "s"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["train", "score", "generate", "tokenize", "shard", "start"])
    for name in ("model", "shard", "tokenizer", "text"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--precision", default="pure", choices=["pure", "autocast"])
    parser.add_argument("--kind", default="full", choices=["full", "router", "lora"])
    parser.add_argument("--variant", default="eager")
    for name, value in (("batch", 8), ("steps", 3), ("tokens", 8192), ("new", 128), ("every", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    result = globals()[options.task](options)
    versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers", "tokenizers", "peft", "h5py") if name in sys.modules}
    print(json.dumps({**result, "versions": versions}))


main()
