#!/usr/bin/env python3
"""Make tests/golden/sampling.json: what transformers makes of logits, and what it generates.

    python tests/golden/make_sampling.py           write it (transformers 4.57)
    python tests/golden/make_sampling.py --check   compare it with the installed transformers

warpers: cases of {temperature, top_k, top_p, min_p, repetition_penalty, seen, logits [V], probabilities [V]}: the
processors and warpers of generate() in its order, then softmax.
generate: {case of golden/models: [{prompt, ids}]}: greedy ids behind the prompt, to the model's last position.
"""
import argparse
import json
import os

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor,
                                                    TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(HERE, "sampling.json")
VOCAB = 37
RULES = [
    dict(), dict(temperature=0.3), dict(temperature=2.5), dict(top_k=1), dict(top_k=5), dict(top_k=36), dict(top_k=100),
    dict(top_p=0.0), dict(top_p=0.1), dict(top_p=0.5), dict(top_p=0.9), dict(top_p=0.999), dict(min_p=0.05), dict(min_p=0.5),
    dict(repetition_penalty=1.3), dict(repetition_penalty=0.7, temperature=0.9),
    dict(temperature=0.7, top_k=10, top_p=0.8), dict(temperature=1.4, top_k=20, top_p=0.95, min_p=0.1),
    dict(temperature=0.8, top_k=7, top_p=0.6, min_p=0.02, repetition_penalty=1.15),
]


def processors(rule):
    """As _get_logits_processor of transformers orders them."""
    steps = LogitsProcessorList()
    if rule.get("repetition_penalty", 1.0) != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(rule["repetition_penalty"]))
    if rule.get("temperature", 1.0) != 1.0:
        steps.append(TemperatureLogitsWarper(rule["temperature"]))
    if rule.get("top_k", 0):
        steps.append(TopKLogitsWarper(rule["top_k"]))
    if rule.get("top_p", 1.0) < 1.0:
        steps.append(TopPLogitsWarper(rule["top_p"]))
    if rule.get("min_p", 0.0) > 0:
        steps.append(MinPLogitsWarper(rule["min_p"]))
    return steps


def warpers():
    generator = torch.Generator().manual_seed(3)
    cases = []
    for i, rule in enumerate(RULES * 2):
        logits = 3 * torch.randn(1, VOCAB, generator=generator)
        if i >= len(RULES):  # equal values, at the border of top-k too
            logits = (logits / 1.5).round()
        if "min_p" not in rule and i >= len(RULES) and i % 3 == 0:
            logits[0, 4] = -float("inf")
        seen = torch.randint(0, VOCAB, (1, 9), generator=generator)
        scores = processors(rule)(seen, logits.clone())
        values = [x if x > -1e30 else None for x in logits[0].tolist()]  # None: minus infinity
        cases.append(dict(rule, seen=seen[0].tolist(), logits=values, probabilities=torch.softmax(scores, -1)[0].tolist()))
    return cases


def folders():
    root = os.path.join(HERE, "models")
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        if not os.path.exists(os.path.join(folder, "model.safetensors")):
            continue
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        if "CausalLM" in config.get("architectures", [""])[0] and config["model_type"] != "select_moe" and not name.endswith("_five"):
            yield name, folder


def generated(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    config, results = model.config, []
    generator = torch.Generator().manual_seed(4)
    for n in (n for n in (1, 5, 23) if n < config.max_position_embeddings):
        prompt = torch.randint(3, config.vocab_size, (1, n), generator=generator)
        count = min(40, config.max_position_embeddings - n)
        with torch.no_grad():
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count,
                                 min_new_tokens=count, eos_token_id=None, pad_token_id=0)
        results.append({"prompt": prompt[0].tolist(), "ids": out[0, n:].tolist()})
    return results


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    result = {"warpers": warpers(), "generate": {name: generated(folder) for name, folder in folders()}}
    if not check:
        with open(TARGET, "w", encoding="utf-8") as file:
            file.write("{\n\"warpers\": [\n" + ",\n".join(json.dumps(x) for x in result["warpers"]) + "\n],\n\"generate\": {\n"
                       + ",\n".join(json.dumps(k) + ": " + json.dumps(v) for k, v in result["generate"].items()) + "\n}\n}\n")
        return
    with open(TARGET, encoding="utf-8") as file:
        kept = json.load(file)
    for old, new in zip(kept["warpers"], result["warpers"], strict=True):
        assert max(abs(a - b) for a, b in zip(old["probabilities"], new["probabilities"], strict=True)) < 1e-5
    assert kept["generate"] == result["generate"]
    print("equal")


if __name__ == "__main__":
    main()
