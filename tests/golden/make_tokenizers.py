#!/usr/bin/env python3
"""Write tokenizers.jsonl: tricky strings with the ids that Hugging Face `tokenizers` gives them.

Needs the Python package `tokenizers` (made with 0.22.2) and the shared data folder (MB_SHARED_DATA).
Each line: tokenizer (folder in the shared data), patch (members laid over its tokenizer.json, member by member; absent: none),
texts, ids (special tokens added), decoded (special tokens skipped).
"""
import json
import os
import random
import tempfile

from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.environ.get("MB_SHARED_DATA", os.path.join(HERE, "../../../shared/data"))
GPT2, LLAMA2, STORIES = "tokenizers/gpt2", "tokenizers/llama2", "models/stories260K/hf"
WHOLE = [GPT2, "tokenizers/olmoe", "tokenizers/qwen3", LLAMA2, STORIES]

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")

TRICKY = [
    "", " ", "  ", "\n", "\t\t \n\n  \r\n", " " * 30, "a" + " " * 50 + "b", "Hello world", " Hello", "Hello  world ",
    "don't I'LL we've 'S '\u017f 's", "x\u0000y\u0001\u001f\u007f\u0080\u009f", "\u00a0\u1680\u180e\u2003\u2028\u3000\ufeffx",
    "caf\u00e9 cafe\u0301 \u212b \u1e9b\u0323 \u0344", "e\u0301\u0316\u0300 q\u0307\u0323", "\uac00\u1100\u1161\u11a8 \uac00\u11a8",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f44d\U0001f3fd",
    "1234567 3.14159 \u00bd \u00b2 \u0664\u0662 \u2167", "\ufb01\ufb02 \u01c5 \u0130I\u0131 \u03a3\u03c2 \u00df \u1e9e",
    "<|endoftext|>", "a<|endoftext|>b <|endoftext|> c", "<s>hi</s> <unk><s>", "<|im_start|>user\nhi<|im_end|>\n<think>\n\n</think>",
    "|||IP_ADDRESS||| |||EMAIL_ADDRESS|||<|padding|>", "<|endoftext|<|endoftext|>>", "<0x0A><0xE4>", "\u2581\u2581a \u2581 b",
    "\u0120the\u010a", "http://a.b/c?d=1&e=%20#f", "for (int i = 0; i < n; i++) {\n    x[i] += 1;\n}\n", "\U00013c43's \U0001b155 \u1c89",
    "\u0952\u0d3b \u08d3\u0301 \U00011935\U00011930", "\U0010ffff\ue000\ufffe", "antidisestablishmentarianism" * 4, "ab" * 60,
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
]
POOLS = [(0x20, 0x7E), (0x00, 0x20), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x900, 0xDFF), (0x1100, 0x11FF), (0x2000, 0x2BFF),
         (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFB4F), (0x10000, 0x1FAFF), (0x1F300, 0x1F6FF)]


def random_text(rng):
    parts = []
    for _ in range(rng.randint(1, 8)):
        if rng.random() < 0.35:
            parts.append(rng.choice(TRICKY)[:24])
        else:
            low, high = rng.choice(POOLS)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5))))
    return "".join(parts)


def split(pattern, behavior, invert=False):
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}, BYTES]}}


def added(token_id, content, **flags):
    token = {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {**token, **flags}


def patches():
    """(folder, patch) of tokenizers that use the parts which the five whole ones do not."""
    metaspace = [{"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut}
                 for scheme in ("always", "first", "never") for cut in (True, False)]
    out = [(STORIES, {"normalizer": None, "pre_tokenizer": m, "decoder": m}) for m in metaspace]
    out += [(STORIES, {"model": {"fuse_unk": fuse, "byte_fallback": False}}) for fuse in (True, False)]
    out += [(STORIES, {"model": {"byte_fallback": False, "unk_token": None}}),
            (STORIES, {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True}]}, "decoder": None})]
    out += [(STORIES, {"normalizer": {"type": form}}) for form in ("NFD", "NFKD", "NFKC", "Lowercase")]
    out += [(STORIES, {"normalizer": None, "pre_tokenizer": {"type": "Digits", "individual_digits": one}}) for one in (True, False)]
    flags = [dict(lstrip=True), dict(rstrip=True), dict(single_word=True), dict(lstrip=True, rstrip=True, normalized=True)]
    for flag in flags:
        tokens = [added(0, "<unk>", special=True), added(1, "<s>", special=True, **flag), added(2, "</s>", special=True),
                  added(512, "Hello", **flag), added(513, "  ", **flag), added(485, "\u00e9", **flag), added(514, "wor", **flag)]
        out += [(STORIES, {"added_tokens": tokens}), (STORIES, {"added_tokens": tokens, "normalizer": {"type": "NFC"}})]
    out += [(GPT2, split({"Regex": "\\s+"}, b, i)) for b, i in (("Removed", False), ("MergedWithPrevious", False), ("MergedWithNext", True),
                                                              ("Contiguous", True))]
    out += [(GPT2, {**split({"Regex": LLAMA3}, "Isolated"), "model": {"ignore_merges": True}}),
            (GPT2, {"pre_tokenizer": {**BYTES, "add_prefix_space": True, "use_regex": True}})]
    return out


def lay_over(base, patch):
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key == "model":
            lay_over(base[key], value)
        else:
            base[key] = value


def line(folder, patch, texts):
    with open(os.path.join(DATA, folder, "tokenizer.json"), encoding="utf-8") as file:
        spec = json.load(file)
    lay_over(spec, patch)
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(spec, file)
        file.flush()
        tokenizer = Tokenizer.from_file(file.name)
    ids = [tokenizer.encode(text).ids for text in texts]
    record = {"tokenizer": folder, "patch": patch, "texts": texts, "ids": ids, "decoded": [tokenizer.decode(i) for i in ids]}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def main():
    rng = random.Random(20240711)
    with open(os.path.join(HERE, "tokenizers.jsonl"), "w", encoding="utf-8") as out:
        for folder in WHOLE:
            out.write(line(folder, {}, TRICKY + [random_text(rng) for _ in range(28)]))
        for folder, patch in patches():
            out.write(line(folder, patch, TRICKY[::3] + [random_text(rng) for _ in range(6)] + ["  Hello  world Hello  \u00e9 the\u00e9"]))


if __name__ == "__main__":
    main()
