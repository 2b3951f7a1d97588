"""Log-probabilities of moe-score beside transformers' own, record by record, on a real model and real records.

    build/venv/bin/python tests/golden/check_logprobs.py --model DIR --data FILE [--form alpaca] [--bin build/bin]
        [--records 60] [--max-length 256] [--adapter]

Needs torch, transformers, h5py (peft for --adapter, which puts a random LoRA on the model). The records are made into a shard
by moe-shard and scored by score.scores=logprob,mean_logprob; transformers computes the same sums in f32 from the shard's token
ids and loss mask. Prints the largest errors; exit code 1 above the limits.
"""
import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import torch
import transformers

LIMIT_SUM, LIMIT_MEAN = 1e-4, 1e-5  # nats, of a record and per token


def first_records(path, count):
    with open(path, encoding="utf-8") as stream:
        if stream.read(1) == "[":
            return json.loads("[" + stream.read())[:count]
        stream.seek(0)
        return [json.loads(line) for line in itertools.islice(stream, count)]


def run(*words):
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")


def add_adapter(model, folder):
    import peft

    torch.manual_seed(5)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    model.save_pretrained(folder)
    return model


def logprobs(model, tokens, offsets, mask, limit):
    """[(sum of ln p over the mask's tokens 2..n, their number)] by transformers."""
    rows = []
    for first, end in zip(offsets[:-1], offsets[1:]):
        ids = torch.tensor(tokens[first : min(end, first + limit)].astype(np.int64))[None]
        with torch.no_grad():
            logits = model(ids).logits[0].double()
        p = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        answers = torch.tensor(mask[first : first + ids.shape[1]][1:] != 0)
        rows.append((float(p[answers].sum()), int(answers.sum())))
    return np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--form", default="alpaca")
    parser.add_argument("--template", default="alpaca")
    parser.add_argument("--bin", default="build/bin")
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--adapter", action="store_true")
    args = parser.parse_args()
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        (work / "data.jsonl").write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in first_records(args.data, args.records)), encoding="utf-8")
        words = ["score.scores=logprob,mean_logprob", f"dataset.max_length={args.max_length}", f"model.path={args.model}"]
        if args.adapter:
            model = add_adapter(model, work / "adapter").eval()
            words.append(f"model.adapter={work / 'adapter'}")
        run(f"{args.bin}/moe-shard", "build", f"dataset.inputs=d={work / 'data.jsonl'}", f"dataset.form={args.form}",
            f"dataset.template={args.template}", "dataset.max_length=4096", f"tokenizer.path={args.model}", f"output.dir={work / 'shard'}")
        run(f"{args.bin}/moe-score", *words, f"dataset.path={work / 'shard/shard.h5'}", f"output.dir={work / 'scores'}")
        with h5py.File(work / "shard/shard.h5") as shard, h5py.File(work / "scores/scores.h5") as scores:
            offsets = shard["offsets"][:].astype(int)
            expected = logprobs(model, shard["tokens"][:], offsets, shard["loss_mask"][:], args.max_length)
            ours = {name: scores[f"scores/{name}"][:] for name in ("logprob", "targets", "mean_logprob")}
    has = expected[:, 1] > 0
    off_sum = np.abs(ours["logprob"] - expected[:, 0]).max(initial=0)
    off_mean = np.abs(ours["mean_logprob"][has] - expected[has, 0] / expected[has, 1]).max(initial=0)
    good = np.array_equal(ours["targets"], expected[:, 1]) and off_sum <= LIMIT_SUM * max(1, np.abs(expected[:, 0]).max() / 100)
    good = good and off_mean <= LIMIT_MEAN and np.isnan(ours["mean_logprob"][~has]).all()
    print(f"{len(expected)} records ({int((~has).sum())} without a target), {int(expected[:, 1].sum())} targets, sums to "
          f"{expected[:, 0].min():.1f}: largest error {off_sum:.2e} of a sum, {off_mean:.2e} per token: {'ok' if good else 'NOT OK'}")
    return not good


if __name__ == "__main__":
    sys.exit(main())
