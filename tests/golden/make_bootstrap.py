#!/usr/bin/env python3
"""Golden values of measure/bootstrap: the same draws by another road, with numpy.

    python3 tests/golden/make_bootstrap.py [file]      (default tests/golden/bootstrap.json)

The counter generator (Philox4x32-10, Salmon et al. 2011) and the choice of a number below n (Lemire 2019) are
written out here in Python's integers; resampling takes rows by index where the C code counts how often each
comes; intervals are numpy.percentile.
"""

import json
import os
import sys

import numpy

BOOTSTRAP = 8  # the stream of resampling, base/rng.h
WORD = 0xFFFFFFFF


def philox(counter, key):
    """Ten rounds on four words of counter and two of key."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & WORD, (a >> 32) ^ c[3] ^ k[1], a & WORD]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return c


def below(seed, stream, sub, index, n):
    """A number in [0, n)."""
    for attempt in range(1 << 16):
        block = philox(
            (index & WORD, index >> 32, sub, stream ^ attempt << 16), (seed & WORD, seed >> 32)
        )
        for word in (block[1] << 32 | block[0], block[3] << 32 | block[2]):
            product = word * n
            if product % (1 << 64) >= (1 << 64) % n:
                return product >> 64
    raise AssertionError("never drawn")


def main():
    """Write the file."""
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "bootstrap.json")
    rng = numpy.random.default_rng(5)
    records, draws, seed, sub = 37, 400, 4711 << 20, 77
    hard = rng.gamma(2.0, 1.0, records)  # what models have in common
    tokens = rng.integers(1, 30, records)
    loss = [tokens * (hard + 0.1 * m + rng.normal(0, 0.05, records)) for m in range(2)]
    judged = (rng.random(records) < 0.7).astype(float)
    right = [judged * (rng.random(records) < p) for p in (0.5, 0.8)]
    columns = [(v, tokens) for v in loss] + [(v, judged) for v in right]
    rows = numpy.array(
        [
            [below(seed, BOOTSTRAP, sub, b * records + j, records) for j in range(records)]
            for b in range(draws)
        ]
    )
    drawn = numpy.array([[v[take].sum() / w[take].sum() for v, w in columns] for take in rows])
    statistics = {f"column {c}": drawn[:, c] for c in range(4)}
    statistics["difference of losses"] = drawn[:, 1] - drawn[:, 0]
    statistics["difference of shares"] = drawn[:, 3] - drawn[:, 2]
    result = {
        "records": records,
        "draws": draws,
        "seed": seed,
        "sub": sub,
        "columns": [{"value": list(map(float, v)), "weight": list(map(float, w))} for v, w in columns],
        "own": [float(v.sum() / w.sum()) for v, w in columns],
        "first_draws": drawn[:3].tolist(),
        "intervals": {
            name: {
                str(level): [
                    float(x) for x in numpy.percentile(values, [50 * (1 - level), 50 * (1 + level)])
                ]
                for level in (0.95, 0.8)
            }
            for name, values in statistics.items()
        },
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print(f"{path}: {records} records, {draws} draws")


if __name__ == "__main__":
    main()
