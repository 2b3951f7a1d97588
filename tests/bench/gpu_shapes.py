"""The models that bench_gpu.py measures: their shapes, their tensors in Hugging Face names with random values, and one count of operations
for both sides.

Operations are multiply-adds x 2 of the work that was asked, whoever does it:
  dense     every product of a token: projections, router, the K experts it is sent to (or the FFN)
  attention scores and values over the keys a query sees, (length + 1) / 2 on average
  head      D x V
Scoring asks for the router's masses of all layers: no head, and not the last layer's experts, which nothing reads.
Training with one forward pass of F = dense + head: full 3 F (forward, gradient of inputs, gradient of weights), LoRA and router-only 2 F (the
weight gradients of what trains are under 1 % and left out); attention counts 3 times in each (its backward has both gradients).
What a program computes a second time does not count.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMON = dict(hidden_act="silu", attention_bias=False, attention_dropout=0.0, initializer_range=0.02, bos_token_id=0, eos_token_id=0, pad_token_id=None,
              torch_dtype="bfloat16", use_cache=True)
OLMOE = dict(COMMON, model_type="olmoe", architectures=["OlmoeForCausalLM"], norm_topk_prob=False, clip_qkv=None, router_aux_loss_coef=0.01,
             rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=4096, tie_word_embeddings=False)
LLAMA = dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=131072,
             tie_word_embeddings=True, mlp_bias=False,
             rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192))
QWEN = dict(COMMON, model_type="qwen3", architectures=["Qwen3ForCausalLM"], rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=40960,
            tie_word_embeddings=True)

SHAPES = {
    "olmoe": dict(OLMOE, hidden_size=2048, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16, num_experts=64,
                  num_experts_per_tok=8, vocab_size=50304),
    "llama": dict(LLAMA, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                  vocab_size=128256),
    "qwen": dict(QWEN, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                 vocab_size=151936),
}
TINY = {
    "olmoe": dict(OLMOE, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, num_experts=16,
                  num_experts_per_tok=2, vocab_size=2048),
    "llama": dict(LLAMA, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                  vocab_size=2048),
    "qwen": dict(QWEN, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                 vocab_size=2048),
}
NAMES = {"olmoe": "OLMoE-1B-7B", "llama": "Llama-3.2-1B", "qwen": "Qwen3-1.7B"}


def shape_of(name, tiny):
    return (TINY if tiny else SHAPES)[name]


def head_width(c):
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def tensors(c):
    """(name, shape, is a norm) of every tensor of the checkpoint, in file order."""
    d, f, w = c["hidden_size"], c["intermediate_size"], head_width(c)
    q, kv, e = c["num_attention_heads"] * w, c["num_key_value_heads"] * w, c.get("num_experts", 0)
    yield "model.embed_tokens.weight", (c["vocab_size"], d), False
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (d,), True
        yield at + "post_attention_layernorm.weight", (d,), True
        for name, shape in (("q", (q, d)), ("k", (kv, d)), ("v", (kv, d)), ("o", (d, q))):
            yield f"{at}self_attn.{name}_proj.weight", shape, False
        if c["model_type"] == "olmoe":  # over the whole width; Qwen3's are of one head
            yield at + "self_attn.q_norm.weight", (q,), True
            yield at + "self_attn.k_norm.weight", (kv,), True
        if c["model_type"] == "qwen3":
            yield at + "self_attn.q_norm.weight", (w,), True
            yield at + "self_attn.k_norm.weight", (w,), True
        if e:
            yield at + "mlp.gate.weight", (e, d), False
        for expert in [f"experts.{i}." for i in range(e)] or [""]:
            yield f"{at}mlp.{expert}gate_proj.weight", (f, d), False
            yield f"{at}mlp.{expert}up_proj.weight", (f, d), False
            yield f"{at}mlp.{expert}down_proj.weight", (d, f), False
    yield "model.norm.weight", (d,), True
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], d), False


def write_model(c, folder, device, seed=0):
    """config.json and model.safetensors in bf16: norms 1, the rest normal with standard deviation 0.02. Returns bytes."""
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c, indent=1) + "\n")
    generator = torch.Generator(device).manual_seed(seed)
    head, end, places = {"__metadata__": {"format": "pt"}}, 0, []
    for name, shape, is_norm in tensors(c):
        size = 2 * torch.Size(shape).numel()
        head[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        places.append((end, shape, is_norm))
        end += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 64 + 56)  # so that the data begins at a multiple of 64 bytes
    path = folder / "model.safetensors"
    with open(path, "wb") as out, ThreadPoolExecutor(8) as pool:
        out.truncate(8 + len(text) + end)
        os.pwrite(out.fileno(), len(text).to_bytes(8, "little") + text, 0)
        waiting = []
        for at, shape, is_norm in places:
            if is_norm:
                value = torch.ones(shape, dtype=torch.bfloat16)
            else:
                value = (torch.randn(shape, generator=generator, device=device, dtype=torch.float32) * 0.02).to(torch.bfloat16).cpu()
            raw = memoryview(value.contiguous().view(torch.uint8).numpy()).cast("B")
            waiting.append(pool.submit(os.pwrite, out.fileno(), raw, 8 + len(text) + at))
            if len(waiting) > 64:
                waiting.pop(0).result()
        for job in waiting:
            job.result()
    return 8 + len(text) + end


def parameters(c):
    """(all, met by one token without the embedding table)"""
    total = sum(int_product(shape) for _, shape, _ in tensors(c))
    d, e, k = c["hidden_size"], c.get("num_experts", 0), c.get("num_experts_per_tok", 0)
    idle = c["num_hidden_layers"] * (e - k) * 3 * d * c["intermediate_size"] if e else 0
    table = 0 if c["tie_word_embeddings"] else c["vocab_size"] * d
    return total, total - idle - table


def int_product(shape):
    n = 1
    for x in shape:
        n *= x
    return n


def flops_per_token(c, kind, length):
    """kind: score, forward, full, lora, router. See the head of this file."""
    d, f, w, layers = c["hidden_size"], c["intermediate_size"], head_width(c), c["num_hidden_layers"]
    q, kv, e, k = c["num_attention_heads"] * w, c["num_key_value_heads"] * w, c.get("num_experts", 0), c.get("num_experts_per_tok", 1)
    ffn = 3 * d * f * k
    dense = 2 * layers * (d * (q + 2 * kv) + q * d + ffn + d * e)
    attention = 4 * layers * q * (length + 1) / 2
    head = 2 * d * c["vocab_size"]
    if kind == "score":
        return dense - 2 * ffn + attention
    times = {"forward": 1, "full": 3, "lora": 2, "router": 2}[kind]
    return times * (dense + head) + (1 if kind == "forward" else 3) * attention
