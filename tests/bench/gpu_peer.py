"""The other side of bench_gpu.py: PyTorch + transformers on the same GPU, models and tokens. A process of its own for each task.

    gpu_peer.py ceiling
    gpu_peer.py make     --shape olmoe --model DIR                       random weights of the true shape
    gpu_peer.py score    --model DIR --shard FILE --variants eager,grouped_mm,batched_mm,compile [--masses FILE]
    gpu_peer.py train    --model DIR --shard FILE --kind router|lora|full --precision pure|autocast --variants eager,compile
    gpu_peer.py generate --model DIR --batch 8 --new 128

Prints a line "ROW {json}" for every variant as soon as it is measured, or why it does not run. Variants: eager; grouped_mm, batched_mm
(transformers 5's experts_implementation); compile: torch.compile of the fastest of those that can be compiled. Precision "pure" has
weights, gradients and AdamW's moments in bf16; "autocast" has them in f32 and computes in bf16, as moebatch does.
Records all have one length, so nothing is padded and no mask is given: attention takes its fastest path. LoRA is written out here, with
adapters in bf16: two thin products and an addition per projection.
"""

import argparse
import contextlib
import gc
import json
import sys
import time

import torch

import gpu_shapes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def say(**row):
    if DEVICE == "cuda":
        row.setdefault("peak_bytes", torch.cuda.max_memory_allocated())
        row.setdefault("reserved_bytes", torch.cuda.max_memory_reserved())
    print("ROW " + json.dumps(row), flush=True)


def clean():
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def why(error):
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


# ---- what the chip gives ----


def median_seconds(work, rounds):
    took = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2]


def ceiling(options):
    n = 512 if options.tiny else 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = median_seconds(lambda: [a @ b for _ in range(10)], 5) / 10
    x = torch.empty((1 << 22) if options.tiny else (1 << 31), dtype=torch.uint8, device=DEVICE).random_()
    y = torch.empty_like(x)
    y.copy_(x)
    copy = median_seconds(lambda: [y.copy_(x) for _ in range(5)], 5) / 5
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    say(variant="torch", bf16_flops=2 * n**3 / seconds, copy_bytes_per_s=2 * x.numel() / copy, device=name, cube=n)


# ---- models and data ----


def make(options):
    start = time.perf_counter()
    shape = gpu_shapes.shape_of(options.shape, options.tiny)
    size = gpu_shapes.write_model(shape, options.model, DEVICE)
    say(variant="made", bytes=size, seconds=time.perf_counter() - start)


def load(options, dtype):
    """From the folder; where that does not work, random values of the same shape (and said so)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    start = time.perf_counter()
    extra = {"device_map": DEVICE} if DEVICE == "cuda" else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, attn_implementation="sdpa", **extra)
        how = "loaded"
    except Exception as error:
        print(f"from_pretrained: {why(error)}; made from its config instead", flush=True)
        torch.manual_seed(0)
        with torch.device(DEVICE):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model), dtype=dtype, attn_implementation="sdpa")
        how = "made"
    model = model.to(DEVICE)
    print(f"{how} in {time.perf_counter() - start:.1f} s", flush=True)
    return model


def read_records(options):
    """[N, L] tokens of a shard whose records are all of one length."""
    import h5py

    with h5py.File(options.shard) as f:
        offsets, tokens = f["offsets"][:].astype("int64"), f["tokens"][:].astype("int64")
    length = int(offsets[1] - offsets[0])
    return torch.from_numpy(tokens[: len(offsets[:-1]) * length].reshape(-1, length)).to(DEVICE)


def set_variant(model, variant):
    """The module to call. Experts are switched in place; what this transformers cannot do is said."""
    experts = variant.removesuffix("+compile")
    has_experts = bool(getattr(model.config, "num_experts", 0))
    if has_experts and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager" if experts == "compile" else experts)
    elif has_experts and experts not in ("eager", "compile"):
        raise RuntimeError("this transformers has no experts_implementation")
    return variant.endswith("compile")


# ---- scoring ----


def masses(model, forward, records, trash):
    """Mean probability of the good experts over tokens and layers, of each record."""
    out = forward(input_ids=records, use_cache=False, output_router_logits=True)
    total = 0
    for logits in out.router_logits:
        total = total + torch.softmax(logits.float(), -1)[:, :-trash].sum(-1).view(records.shape).mean(1)
    return total / len(out.router_logits)


@torch.no_grad()
def score(options):
    model = load(options, torch.bfloat16).eval()
    records, trash = read_records(options)[: options.records], model.config.num_experts // 8
    for variant in options.variants:
        clean()
        try:
            forward = torch.compile(model.model) if set_variant(model, variant) else model.model
            batches = records.split(options.batch)
            first = masses(model, forward, batches[0], trash)
            for batch in batches[:2]:
                masses(model, forward, batch, trash)
            wait()
            start, values = time.perf_counter(), []
            for batch in batches:
                values.append(masses(model, forward, batch, trash))
            wait()
            took = time.perf_counter() - start
            say(variant=variant, rate=records.numel() / took, tokens=records.numel(), seconds=took)
            if options.masses and variant == options.variants[0]:
                open(options.masses, "w").write(json.dumps(torch.cat(values).double().tolist()))
            del first
        except Exception as error:
            say(variant=variant, failed=why(error))


# ---- training ----


class Lora(torch.nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        where = dict(device=base.weight.device, dtype=base.weight.dtype)
        self.a = torch.nn.Parameter(torch.randn(rank, base.in_features, **where) * 0.02)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank, **where))

    def forward(self, x):
        return self.base(x) + torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), self.b) * self.scale


def choose_trained(model, kind):
    if kind == "full":
        return
    for name, p in model.named_parameters():
        p.requires_grad_(kind == "router" and name.endswith("mlp.gate.weight"))
    if kind == "lora":
        for module in list(model.modules()):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                if isinstance(getattr(module, name, None), torch.nn.Linear):
                    setattr(module, name, Lora(getattr(module, name), 16, 32))


def train(options):
    autocast = options.precision == "autocast"
    model = load(options, torch.float32 if autocast else torch.bfloat16)
    choose_trained(model, options.kind)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    records = read_records(options)
    extra = {"output_router_logits": True} if getattr(model.config, "num_experts", 0) else {}
    context = torch.autocast(DEVICE, torch.bfloat16) if autocast else contextlib.nullcontext()
    for variant in options.variants:
        clean()
        try:
            forward = torch.compile(model) if set_variant(model, variant) else model
            optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=DEVICE == "cuda")

            def step(i):
                at = i * options.batch % (len(records) - options.batch + 1)
                ids = records[at : at + options.batch]
                with context:
                    loss = forward(input_ids=ids, labels=ids, use_cache=False, **extra).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                return loss

            for i in range(3):
                step(i)
            wait()
            start = time.perf_counter()
            for i in range(options.steps):
                loss = step(3 + i)
            wait()
            took = time.perf_counter() - start
            tokens = options.steps * options.batch * records.shape[1]
            say(variant=f"{variant} {options.precision}", rate=tokens / took, tokens=tokens, seconds=took, loss=float(loss))
            del optimizer
        except Exception as error:
            say(variant=f"{variant} {options.precision}", failed=why(error))
        for p in trained:
            p.grad = None


# ---- generation ----


@torch.no_grad()
def generate(options):
    model = load(options, torch.bfloat16).eval()
    ids = read_records(options)[: options.batch, :32].contiguous()

    def run(n):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)

    run(4)
    wait()
    start = time.perf_counter()
    run(options.new)
    wait()
    took = time.perf_counter() - start
    say(variant="eager", rate=options.batch * options.new / took, tokens=options.batch * options.new, seconds=took)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["ceiling", "make", "score", "train", "generate"])
    parser.add_argument("--tiny", action="store_true")
    for name in ("shape", "model", "shard", "masses"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--kind", default="full", choices=["full", "router", "lora"])
    parser.add_argument("--precision", default="pure", choices=["pure", "autocast"])
    parser.add_argument("--variants", default="eager", type=lambda text: text.split(","))
    for name, value in (("batch", 4), ("steps", 10), ("records", 64), ("new", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    globals()[options.task](options)
    versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers") if name in sys.modules}
    print("VERSIONS " + json.dumps(versions), flush=True)


main()
