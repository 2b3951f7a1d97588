"""Golden log-likelihoods of lm-evaluation-harness: HFLM on stories260K over local multiple-choice files.

Usage: build/venv/bin/python tests/golden/make_choice.py [shared data folder]
Writes tests/golden/choice/choice.json. No questions are copied: the test reads the same files (MB_SHARED_DATA).
Tasks: `text` scores the choices' texts, `cut` the same with a model length of 48 (left truncation), `letters` lists the
choices in the context and scores " A", " B", ... (one-token continuations sharing a context, as MMLU does).
"""
import json
import os
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("MB_SHARED_DATA", os.path.join(HERE, "../../../shared/data"))
LETTERS = "ABCDEFGH"


def read(path, count):
    with open(os.path.join(DATA, path), encoding="utf-8") as file:
        return [json.loads(line) for _, line in zip(range(count), file)]


def letters(doc):
    lines = "".join(f"\n{LETTERS[i]}. {c}" for i, c in enumerate(doc["choices"]))
    return {"query": doc["query"].removesuffix("\nAnswer:") + lines + "\nAnswer:", "choices": list(LETTERS[: len(doc["choices"])]), "gold": doc["gold"]}


def run(folder, model, name, docs, max_length):
    path = os.path.join(folder, name + ".jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for doc in docs:
            file.write(json.dumps({k: doc[k] for k in ("query", "choices", "gold")}) + "\n")
    config = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": path}}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm", "acc_bytes")],
        "metadata": {"version": 1.0},
    }
    lm = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=8, max_length=max_length)
    results = lm_eval.simple_evaluate(model=lm, tasks=[config], task_manager=TaskManager(include_defaults=False), log_samples=True, bootstrap_iters=100)
    samples = sorted(results["samples"][name], key=lambda s: s["doc_id"])
    row = {k: v for k, v in results["results"][name].items() if not callable(v)}
    ids = [[[len(c), len(t)] for c, t in (lm._encode_pair(s["arguments"][i][0], s["arguments"][i][1]) for i in range(len(s["arguments"])))] for s in samples]
    return {
        "count": len(docs), "max_length": max_length, "results": row, "sample_keys": sorted(samples[0]),
        "result_keys": sorted(k for k in results if k not in ("samples",)),
        "n_samples": results["n-samples"][name], "higher_is_better": results["higher_is_better"][name],
        "loglik": [[float(r[0][0]) for r in s["resps"]] for s in samples],
        "greedy": [[bool(r[0][1]) for r in s["resps"]] for s in samples],
        "lengths": ids, "acc": [s["acc"] for s in samples], "acc_norm": [s["acc_norm"] for s in samples],
        "first_sample": {k: v for k, v in samples[0].items() if k in ("target", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash")},
    }


def main():
    torch.set_num_threads(1)
    model = os.path.join(DATA, "models/stories260K/hf")
    arc, social = "datasets/multiple-choice/arc_easy_test.jsonl", "datasets/multiple-choice/socialiqa_val.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        out = {"versions": {"lm_eval": lm_eval.__version__, "torch": torch.__version__}, "tasks": [
            {"name": "text", "file": arc, **run(folder, model, "text", read(arc, 40), 512)},
            {"name": "cut", "file": social, **run(folder, model, "cut", read(social, 20), 48)},
            {"name": "letters", "file": arc, **run(folder, model, "letters", [letters(d) for d in read(arc, 40)], 512)},
        ]}
    os.makedirs(os.path.join(HERE, "choice"), exist_ok=True)
    with open(os.path.join(HERE, "choice/choice.json"), "w", encoding="utf-8") as file:
        json.dump(out, file, indent=None, separators=(",", ":"))
        file.write("\n")


main()
