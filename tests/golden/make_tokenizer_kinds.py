#!/usr/bin/env python3
"""Write tokenizer_kinds.jsonl: small whole tokenizers of every kind (kinds.py) with tricky strings, HF's ids and decoded texts.

Needs `tokenizers` (made with 0.22.2), `sentencepiece` and the shared data folder (MB_SHARED_DATA). Each line: kind, tokenizer
(its tokenizer.json), texts, ids (special tokens added), decoded (special tokens kept), plain (special tokens skipped).
"""
import json
import os
import random

import kinds

HERE = os.path.dirname(os.path.abspath(__file__))

def main():
    rng = random.Random(11)
    with open(os.path.join(HERE, "tokenizer_kinds.jsonl"), "w", encoding="utf-8") as out:
        for kind, tokenizer in kinds.build(0.08, 640, small=True).items():
            texts = ["", " ", "\u0301", "Hello  world, don't!", "\u4e16\u754c\u4f60\u597d\u3002"] + [kinds.random_text(rng)[:40] for _ in range(50)]
            ids = [tokenizer.encode(t).ids for t in texts]
            record = {"kind": kind, "tokenizer": json.loads(tokenizer.to_str()), "texts": texts, "ids": ids,
                      "decoded": [tokenizer.decode(i, skip_special_tokens=False) if i else "" for i in ids],
                      "plain": [tokenizer.decode(i) if i else "" for i in ids]}
            out.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
