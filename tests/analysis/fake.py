"""Result files of a study that never ran: every file the analysis reads, with numbers that are known
beforehand.

python3 tests/analysis/fake.py OUT_DIR [--seeds 0,1,2]
"""

import argparse
import json
import os
import random
import sys

SOURCES = ("wordnet", "python", "fortunes", "perl", "man")
KINDS = ("words", "chars", "noise", "base64", "lines", "fragments", "html")
LAYERS = 4
# score: (AUC of every kind, FLOPs per token, higher is better)
SCORES = {
    "good_mass": ([0.70, 0.99, 0.95, 0.99, 0.73, 0.91, 0.98], 2.1e6, True),
    "perplexity": ([0.94, 0.99, 0.99, 0.99, 0.64, 0.99, 0.99], 5.2e6, False),
    "entropy": ([0.73, 0.97, 0.92, 0.97, 0.68, 0.77, 0.97], 2.2e6, False),
    "bytes_per_token": ([0.53, 0.99, 0.98, 0.99, 0.64, 0.80, 0.99], 0.0, True),
    "random": ([0.5] * 7, 0.0, True),
}
PERPLEXITY = {"selected": 177.0, "random": 217.0, "all": 222.0, "base": 903.0}


def write_json(path, value):
    """A JSON file, folders made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)


def write_done(root, stage, inputs=None, outputs=None):
    """The record of a stage."""
    write_json(
        os.path.join(root, stage, "done.json"),
        {
            "program": "moe-" + stage.split("-")[0],
            "stage": stage,
            "inputs": inputs or {},
            "outputs": outputs or {},
            "config": {},
            "provenance": {"seconds": 12.5, "ranks": 1, "started": "2024-01-01T00:00:00Z"},
        },
    )


def make_corpus(per_source, rng):
    """[(source, index, kind)]: half of every source good, kinds in turn."""
    rows = []
    for source in SOURCES:
        kinds = ["good" if i % 2 else KINDS[(i // 2) % len(KINDS)] for i in range(per_source)]
        rng.shuffle(kinds)
        rows += [(source, i, kind) for i, kind in enumerate(kinds)]
    return rows


def write_labels(path, corpus):
    """labels.jsonl of the corpus."""
    with open(path, "w", encoding="utf-8") as file:
        for source, index, kind in corpus:
            file.write(json.dumps({"source": source, "index": index, "kind": kind}) + "\n")


def score_values(name, corpus, rng):
    """Values whose AUC per kind is about what SCORES says: two normal distributions a known distance
    apart."""
    from statistics import NormalDist

    aucs, _, higher = SCORES[name]
    shift = {kind: -(2**0.5) * NormalDist().inv_cdf(auc) for kind, auc in zip(KINDS, aucs)}
    values = [rng.gauss(shift.get(kind, 0.0), 1) for _, _, kind in corpus]
    if name == "perplexity":
        return [10 ** (2 - 0.2 * v) for v in values]
    return [0.5 + 0.06 * v if higher else 1.5 - 0.1 * v for v in values]


def write_scores(root, corpus, labels, rng):
    """score/scores.h5; returns {name: values}."""
    import h5py
    import numpy

    values = {name: score_values(name, corpus, rng) for name in SCORES}
    os.makedirs(os.path.join(root, "score"), exist_ok=True)
    with h5py.File(os.path.join(root, "score", "scores.h5"), "w") as file:
        file.attrs.update({"format": "moebatch-scores", "version": 1})
        for name in SCORES:
            file["scores/" + name] = numpy.array(values[name])
            file.attrs["flops_per_token/" + name] = SCORES[name][1]
            file.attrs["higher_is_better/" + name] = int(SCORES[name][2])
        mass = numpy.array(values["good_mass"])
        file["layers/good_mass"] = (
            mass[:, None] + numpy.array([rng.gauss(0, 0.02) for _ in range(LAYERS)])
        ).astype("f4")
        file["source"] = numpy.array([SOURCES.index(s) for s, _, _ in corpus], "u2")
        file["source_index"] = numpy.array([i for _, i, _ in corpus], "i8")
        beside = os.path.join(os.path.dirname(labels), "corpus")
        file["source_files"] = [os.path.join(beside, s + ".jsonl").encode() for s in SOURCES]
        file["source_names"] = [s.encode() for s in SOURCES]
    return values


def write_selection(root, name, corpus, order):
    """select-<name>: JSONL, summary, HDF5."""
    import h5py

    folder = os.path.join(root, "select-" + name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "selected_data.jsonl"), "w", encoding="utf-8") as file:
        for rank, i in enumerate(order):
            file.write(
                json.dumps(
                    {
                        "source_dataset": corpus[i][0],
                        "source_index": corpus[i][1],
                        "text": "text",
                        "quality_score": 1.0 - rank / len(order),
                        "id": str(i),
                    }
                )
                + "\n"
            )
    sources = {}
    for source in SOURCES:
        count = sum(corpus[i][0] == source for i in order)
        sources[source] = {
            "available": sum(row[0] == source for row in corpus),
            "selected": count,
            "share": count / len(order),
        }
    write_json(
        os.path.join(folder, "summary.json"),
        {
            "score": name,
            "records": len(order),
            "of": len(corpus),
            "tokens": 120 * len(order),
            "sources": sources,
        },
    )
    with h5py.File(os.path.join(folder, "selection.h5"), "w") as file:
        file["record"] = list(order)
        file["quality_score"] = [1.0 - rank / len(order) for rank in range(len(order))]
    write_done(root, "select-" + name, outputs={"selected_data.jsonl": "hash of " + name})


def best_of(values, corpus, share, higher):
    """Record numbers of the best share of every source, best first."""
    chosen = []
    for source in SOURCES:
        members = sorted(
            (i for i, row in enumerate(corpus) if row[0] == source),
            key=lambda i: -values[i] if higher else values[i],
        )
        chosen += members[: round(share * len(members))]
    return sorted(chosen, key=lambda i: -values[i] if higher else values[i])


def write_metrics(root, stage, steps, curves):
    """metrics.h5 of a training stage: {name: function of the step}."""
    import h5py
    import numpy

    os.makedirs(os.path.join(root, stage), exist_ok=True)
    step = numpy.arange(1, steps + 1)
    with h5py.File(os.path.join(root, stage, "metrics.h5"), "w") as file:
        file.attrs.update({"format": "moebatch-metrics", "version": 1})
        file["step"] = step
        for name, curve in curves.items():
            file[name] = numpy.array([curve(int(s)) for s in step], dtype=float)
    write_done(root, stage)


def write_training(root, rng):
    """Curves of every training stage."""
    loss = lambda low: (lambda s: low + 3.5 / (1 + s / 30) + rng.gauss(0, 0.08))  # noqa: E731
    for stage, low, steps in (
        ("pretrain", 3.7, 400),
        ("pretrain-target", 4.4, 60),
        ("finetune-selected", 4.9, 150),
        ("finetune-random", 5.4, 150),
        ("finetune-all", 5.4, 150),
    ):
        write_metrics(
            root,
            stage,
            steps,
            {
                "loss": loss(low),
                "lm_loss": loss(low),
                "learning_rate": lambda s: 3e-3 * (1 - s / 400),
                "provenance/tokens_per_second": lambda s: 11000.0,
            },
        )
    warm = {
        "loss": loss(4.2),
        "lm_loss": loss(3.8),
        "balance": lambda s: 1.1 + rng.gauss(0, 0.02),
        "constraint": loss(0.3),
        "loss_rank": loss(0.2),
        "copy_rank": loss(0.1),
        "anchor": lambda s: 0.01 + 0.05 / s,
        "mean_ratio": lambda s: 0.8 - 0.3 * s / 200,
        "single_records": lambda s: 0.0,
        "learning_rate": lambda s: 1e-3 * (1 - s / 200),
    }
    for layer in range(LAYERS):
        warm[f"r_mean/{layer}"] = (
            lambda s, layer=layer: 0.8 - (0.25 + 0.03 * layer) * (1 - 0.98**s) + rng.gauss(0, 0.005)
        )
        warm[f"r_var/{layer}"] = lambda s, layer=layer: 0.004 + 0.00002 * s
    write_metrics(root, "warmup", 200, warm)


def write_auc(root, corpus):
    """auc/auc.json and its record."""
    counts = {
        "good": sum(k == "good" for _, _, k in corpus),
        **{kind: sum(k == kind for _, _, k in corpus) for kind in KINDS},
    }
    scores = {}
    for name, (aucs, flops, _) in SCORES.items():
        scores[name] = {
            "all": sum(aucs) / len(aucs),
            **dict(zip(KINDS, aucs)),
            "layers": [0.81, 0.88, 0.88, 0.91] if name == "good_mass" else [],
            "flops_per_token": flops,
        }
    write_json(os.path.join(root, "auc", "auc.json"), {"scores": scores, "counts": counts})
    write_done(root, "auc", {"labels": "hash of the labels"})


def write_run(root, labels, corpus, seed=0):
    """A whole run: every stage the report reads."""
    rng = random.Random(f"fake/{seed}")
    values = write_scores(root, corpus, labels, rng)
    for name in ("good_mass", "perplexity"):
        write_selection(root, name, corpus, best_of(values[name], corpus, 0.2, SCORES[name][2]))
    write_selection(root, "random", corpus, rng.sample(range(len(corpus)), len(corpus) // 5))
    for target, value in PERPLEXITY.items():
        whole = value * (1 + 0.01 * seed)
        table = {
            "all": {"perplexity": whole, "nll": 1.0, "tokens": 100, "records": 10},
            "heldout": {"perplexity": whole, "nll": 1.0, "tokens": 100, "records": 10},
        }
        write_json(os.path.join(root, "eval-" + target, "results.json"), {"perplexity": table})
        write_done(root, "eval-" + target)
    write_done(root, "shard-selected", inputs={"selected": "hash of good_mass"})
    write_training(root, rng)
    write_auc(root, corpus)


def write_routing(path, counts, types, shuffled=None, **attributes):
    """routing.h5 of counts [types, layers, experts] and `shuffled` [permutations, layers]."""
    import h5py
    import numpy
    from support import information

    counts = numpy.asarray(counts)
    kinds, layers, experts = counts.shape
    shuffled = numpy.full((4, layers), 0.001) if shuffled is None else numpy.asarray(shuffled)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(
            {
                "format": "moebatch-routing",
                "version": 1,
                "model": "m",
                "shard": "s",
                "over": "all",
                "experts": experts,
                "trash": 0,
                "picks": 2,
                "units": 40,
                **attributes,
            }
        )
        file["types"] = numpy.array(types, dtype="S16")
        file["layers"] = numpy.arange(layers)
        file["records"] = numpy.full(kinds, 40 // kinds)
        file["tokens"] = counts[:, 0].sum(axis=1) // 2
        file["counts"] = counts
        file["entropy"] = numpy.array(
            [[information(row)["experts"] for row in t] for t in counts[:, :, None]]
        )
        for prefix, equal in (("", False), ("equal/", True)):
            found = [information(counts[:, layer], equal) for layer in range(layers)]
            for name, key in (
                ("mutual_information", "mutual"),
                ("mutual_information_corrected", "corrected"),
                ("mutual_information_normalised", "normalised"),
            ):
                file[prefix + name] = [item[key] for item in found]
                file[prefix + name].attrs["all_layers"] = numpy.mean([item[key] for item in found])
            file[prefix + "mutual_information_p"] = numpy.full(layers, 0.2)
            file[prefix + "mutual_information_p"].attrs["all_layers"] = 0.2
            file[prefix + "mutual_information_shuffled"] = shuffled


def write_study(root, seeds=(), per_source=280):
    """A run folder, or one with seed_<n> inside; returns the path of the labels."""
    os.makedirs(root, exist_ok=True)
    corpus = make_corpus(per_source, random.Random("corpus"))
    labels = os.path.join(root, "labels.jsonl")
    write_labels(labels, corpus)
    for seed in seeds:
        write_run(os.path.join(root, f"seed_{seed}"), labels, corpus, seed)
    if not seeds:
        write_run(root, labels, corpus)
    return labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Result files of a study that never ran.")
    parser.add_argument("out_dir")
    parser.add_argument("--seeds", default="", help="comma-separated; none: one run without seed folders")
    parser.add_argument("--per-source", type=int, default=280)
    given = parser.parse_args()
    print(write_study(given.out_dir, [int(s) for s in given.seeds.split(",") if s], given.per_source))
    sys.exit(0)
