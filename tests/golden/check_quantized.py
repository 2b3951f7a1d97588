#!/usr/bin/env python3
"""Cross-check of moe-quantize's folders with transformers and compressed-tensors, on fresh random models.

    OMP_NUM_THREADS=1 build/venv/bin/python tests/golden/check_quantized.py [--bin build/bin] [--seeds 1,2] [FOLDER ...]

Needs torch, transformers 4.57 or 5, compressed-tensors (checked: 4.57.6 and 5.24.0, 0.20.0), h5py, numpy. For every family:
  integers   those of method=rtn are compressed-tensors' own for the same weights (its scales and its quantize), bit for bit
  weights    what compressed-tensors unpacks and multiplies out is what our reader means (f32, bit for bit)
  logits     of the folder in transformers, and of moe-inspect on the same folder: max |ours - theirs| / max |theirs|
             (weights stored in f32, bf16, f16; columns the group divides and columns it does not; experts)
transformers 5 fuses experts as it loads and takes one group size for all of them: experts whose columns the group
does not divide (mixtral-ragged) are for 4.x alone.
FOLDERs that moe-quantize wrote (by GPTQ, of trained models) get the last check. Exit code 1 when one fails.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
import h5py
import numpy as np
import torch
import transformers
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

LIMIT = 1e-5
SMALL = dict(num_hidden_layers=2, vocab_size=90, max_position_embeddings=64, hidden_size=64, num_attention_heads=4,
             num_key_value_heads=2, bos_token_id=1, eos_token_id=2)
CASES = {
    "llama": (LlamaConfig, dict(SMALL, intermediate_size=172, tie_word_embeddings=True), torch.float32, 32),
    "llama-bf16": (LlamaConfig, dict(SMALL, intermediate_size=128, attention_bias=True), torch.bfloat16, 64),
    "llama-f16": (LlamaConfig, dict(SMALL, intermediate_size=101), torch.float16, 32),  # a scale per row
    "qwen2": (Qwen2Config, dict(SMALL, intermediate_size=96), torch.float32, 32),
    "qwen3": (Qwen3Config, dict(SMALL, intermediate_size=96, head_dim=20), torch.float32, 64),
    "olmoe": (OlmoeConfig, dict(SMALL, intermediate_size=32, num_experts=5, num_experts_per_tok=2), torch.float32, 32),
    "mixtral": (MixtralConfig, dict(SMALL, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2), torch.float32, 32),
    "mixtral-ragged": (MixtralConfig, dict(SMALL, intermediate_size=44, num_local_experts=4, num_experts_per_tok=2), torch.bfloat16, 32),
    "qwen3_moe": (Qwen3MoeConfig, dict(SMALL, intermediate_size=80, moe_intermediate_size=32, num_experts=6, head_dim=16,
                                       num_experts_per_tok=2, mlp_only_layers=[0]), torch.float32, 32),
}


class Programs:
    def __init__(self, folder):
        self.folder = folder

    def run(self, name, *words):
        done = subprocess.run([os.path.join(self.folder, name), *words, "threads=1"], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{name} {' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    def logits(self, folder, ids, place):
        tokens, out = os.path.join(place, "ids.json"), os.path.join(place, "out.h5")
        json.dump([ids], open(tokens, "w"))
        self.run("moe-inspect", "forward", f"model={folder}", f"tokens={tokens}", f"out={out}")
        with h5py.File(out) as file:
            return next(iter(file.values()))["logits"][...]


def logits_off(programs, folder, place):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = np.random.default_rng(3).integers(3, model.config.vocab_size, 40).tolist()
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    off = np.abs(programs.logits(folder, ids, place) - theirs).max() / np.abs(theirs).max()
    return off


def tensors(folder):
    found = {}
    for path in glob.glob(os.path.join(folder, "*.safetensors")):
        found.update(load_file(path))
    return found


def check_integers(source, made):
    """Matrices; integers that are not theirs; scales that are not."""
    count = off_q = off_scale = 0
    for name, words in made.items():
        if not name.endswith("_packed"):
            continue
        weight = source[name.removesuffix("_packed")].float()
        scale, stored = made[name.replace("_packed", "_scale")].float(), made[name.replace("_packed", "_scale")].dtype
        shape = made[name.replace("_packed", "_shape")].tolist()
        assert shape == list(weight.shape), (name, shape)
        group = shape[1] // scale.shape[1]
        args = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=group)
        parts = weight.reshape(shape[0], -1, group)
        theirs, zero = calculate_qparams(parts.amin(2), parts.amax(2), args)
        theirs = theirs.to(stored).float()
        q = quantize(weight, theirs, None, args, dtype=torch.int8)
        mine = unpack_from_int32(words, 4, torch.Size(shape))
        off_q += (q != mine).sum().item()
        off_scale += (theirs != scale).sum().item()
        count += 1
        assert torch.equal(dequantize(mine, scale, None, args).float(), mine.float() * scale.repeat_interleave(group, 1))
    return count, off_q, off_scale


def check_case(programs, case, seed, place):
    config_class, fields, dtype, group = CASES[case]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_class(**fields)).eval()
    for p in model.parameters():
        p.data = torch.randn_like(p) * (0.05 if p.dim() > 1 else 0.2) + (0 if p.dim() > 1 else 1)
    source, out = os.path.join(place, "source"), os.path.join(place, "out")
    model.to(dtype).save_pretrained(source)
    programs.run("moe-quantize", f"model.path={source}", "quantize.method=rtn", f"quantize.group={group}", f"output.dir={out}")
    made = os.path.join(out, "model")
    count, off_q, off_scale = check_integers(tensors(source), tensors(made))
    off = logits_off(programs, made, place)
    good = off <= LIMIT and off_q == 0 and off_scale == 0 and count > 0
    print(f"{'ok' if good else 'NOT OK'} {case} seed {seed}: {count} matrices, {off_q} integers and {off_scale} scales differ, "
          f"logits {off:.2g}")
    return good


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("folders", nargs="*")
    options = parser.parse_args()
    programs = Programs(options.bin)
    good = True
    if not options.folders:
        for case in CASES:
            if case == "mixtral-ragged" and not transformers.__version__.startswith("4."):
                continue
            for seed in options.seeds.split(","):
                with tempfile.TemporaryDirectory() as place:
                    good &= check_case(programs, case, int(seed), place)
    for folder in options.folders:
        with tempfile.TemporaryDirectory() as place:
            off = logits_off(programs, folder, place)
        print(f"{'ok' if off <= LIMIT else 'NOT OK'} {folder}: logits {off:.2g}")
        good &= off <= LIMIT
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
