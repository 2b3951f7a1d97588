#!/usr/bin/env python3
"""Ids and loss masks of `moe-shard build`, token for token, beside those of TRL and of LLaMA-Factory, on real chat files.

usage: check_masks.py [--bin build/bin] [--data ../shared/data] [--packages build/venv-lf] [--write tests/golden/masks] [case ...]

Needs transformers, trl and llamafactory (their own code is run, nothing is copied here):
    pip install --no-deps --target build/venv-lf trl llamafactory omegaconf antlr4-python3-runtime==4.9.3
TRL: its training templates (chat_templates/*_training.jinja) with apply_chat_template(return_assistant_tokens_mask=True), as SFTTrainer does
with assistant_only_loss; pairs as DPOTrainer tokenises them. LLaMA-Factory: converter, template and processor classes of the package.
Every record of a file is compared; every difference is counted under its reason, with an example. A difference without a known reason ends
the program with 1. --write does the same with a small tokenizer made on the spot, and keeps it with a few records of each case and what the
references make of them, for tests/unit/store/test_golden_masks.c.
"""
import argparse
import collections
import copy
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types

import h5py

IGNORE = -100
CUT = 1 << 20


# ---- the references ----

def import_llamafactory():
    """Its data folder imports torchaudio, which text does not need: an empty module stands in where it is not installed."""
    try:
        __import__("torchaudio")
    except ImportError:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from llamafactory.data import converter, parser, template
    from llamafactory.data.processor import pairwise, supervised
    return types.SimpleNamespace(converter=converter, parser=parser, template=template, pairwise=pairwise, supervised=supervised)


class LlamaFactory:
    def __init__(self, tokenizer, template, form, ranking=False, **columns):
        lf = import_llamafactory()
        self.tokenizer = copy.deepcopy(tokenizer)
        self.template = copy.deepcopy(lf.template.TEMPLATES[template])
        self.template.fix_special_tokens(self.tokenizer)
        arguments = types.SimpleNamespace(cutoff_len=CUT, mask_history=False, train_on_prompt=False, media_dir="")
        attributes = lf.parser.DatasetAttr("file", "x", formatting=form, ranking=ranking, **columns)
        kind = lf.converter.AlpacaDatasetConverter if form == "alpaca" else lf.converter.SharegptDatasetConverter
        self.convert = kind(attributes, arguments)
        processor = lf.pairwise.PairwiseDatasetProcessor if ranking else lf.supervised.SupervisedDatasetProcessor
        self.process = processor(template=self.template, tokenizer=self.tokenizer, processor=None, data_args=arguments)

    def __call__(self, record):
        columns = {key: [value] for key, value in self.convert(record).items()}
        out = self.process.preprocess_dataset(columns)
        if "chosen_input_ids" in out:
            return [(out[side + "_input_ids"][0], [int(x != IGNORE) for x in out[side + "_labels"][0]]) for side in ("chosen", "rejected")]
        if not out.get("input_ids"):
            return None
        return [(out["input_ids"][0], [int(x != IGNORE) for x in out["labels"][0]])]


def trl_template(name):
    import trl
    return (pathlib.Path(trl.__file__).parent / "chat_templates" / (name + ".jinja")).read_text()


class Trl:
    """Conversations by a training template."""
    def __init__(self, tokenizer, template, messages):
        self.tokenizer, self.template, self.messages = tokenizer, trl_template(template), messages

    def __call__(self, record):
        messages, tools = self.messages(record)
        out = self.tokenizer.apply_chat_template(messages, tools=tools, chat_template=self.template, tokenize=True, return_dict=True,
                                                 return_assistant_tokens_mask=True)
        return [(out["input_ids"], out["assistant_masks"])]


class TrlPairs:
    """As tokenize_fn of trl's DPOTrainer: the completion begins where the ids of the prompt alone and those of either whole text part."""
    def __init__(self, tokenizer, template, sides):
        self.tokenizer, self.template, self.sides = tokenizer, trl_template(template) if template else None, sides

    def ids(self, messages, **more):
        return self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=True, return_dict=True, **more)["input_ids"]

    def __call__(self, record):
        from trl.data_utils import common_prefix_length
        prompt, chosen, rejected = self.sides(record)
        asked = self.ids(prompt, add_generation_prompt=True)
        whole = [self.ids(prompt + [answer]) for answer in (chosen, rejected)]
        first = min(common_prefix_length(asked, ids) for ids in whole)
        return [(ids, [0] * first + [1] * (len(ids) - first)) for ids in whole]


# ---- records ----

def read(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line.strip()]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def alpaca_messages(r):
    asked = r["instruction"] + ("\n" + r["input"] if r.get("input") else "")
    return [turn("user", asked), turn("assistant", r["output"])], None


def qa_messages(r):
    return [turn("user", r["question"]), turn("assistant", r["answer"])], None


def call(text):
    calls = json.loads(text)
    return [{"type": "function", "function": c} for c in (calls if isinstance(calls, list) else [calls])]


def chat_messages(r):
    """ShareGPT turns as the messages transformers takes."""
    names = {"human": "user", "gpt": "assistant", "observation": "tool", "system": "system"}
    messages = [turn("assistant", "", tool_calls=call(m["value"])) if m["from"] == "function_call" else turn(names[m["from"]], m["value"])
                for m in r["conversations"]]
    if r.get("system"):
        messages.insert(0, turn("system", r["system"]))
    tools = json.loads(r["tools"]) if r.get("tools") else None
    tools = [t if t.get("type") == "function" else {"type": "function", "function": t} for t in tools] if tools else None
    return messages, tools


def dpo_sides(r):
    messages, _ = chat_messages(r)
    return messages, turn("assistant", r["chosen"]["value"]), turn("assistant", r["rejected"]["value"])


def hh_sides(r):
    """hh-rlhf's text, parted at its marks; what both sides share is the prompt."""
    def parse(text):
        out = []
        for piece in text.split("\n\nHuman:")[1:]:
            human, *answers = piece.split("\n\nAssistant:")
            out.append(turn("user", human.strip()))
            out += [turn("assistant", answer.strip()) for answer in answers]
        return out
    chosen, rejected = parse(r["chosen"]), parse(r["rejected"])
    return chosen[:-1], chosen[-1], rejected[-1]


# ---- ours ----

def llama_tokenizer(base, folder):
    """A tokenizer with Llama 3's marks: the base's table, a begin mark put in front by the post-processor."""
    from transformers import AutoTokenizer
    spec = json.loads((base / "tokenizer.json").read_text())
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    next_id = 1 + max(max(spec["model"]["vocab"].values()), max(a["id"] for a in spec["added_tokens"]))
    ids = {mark: next_id + i for i, mark in enumerate(marks)}
    spec["added_tokens"] += [{"id": i, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                             for mark, i in ids.items()]
    begin = {"SpecialToken": {"id": marks[0], "type_id": 0}}
    spec["post_processor"] = {"type": "TemplateProcessing", "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
                              "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                              "special_tokens": {marks[0]: {"id": marks[0], "ids": [ids[marks[0]]], "tokens": [marks[0]]}}}
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": marks[0], "eos_token": marks[4]}))
    return AutoTokenizer.from_pretrained(folder)


def build(options, path, case, tokenizer, work):
    out = work / case.name.replace("/", "-")
    inputs = json.dumps([{"name": "x", "path": str(path), "form": case.form}])
    command = [options.bin / "moe-shard", "build", "dataset.inputs=" + inputs, "dataset.template=" + case.ours, f"dataset.max_length={CUT}",
               f"tokenizer.path={tokenizer}", f"output.dir={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{case.name}: {done.stderr}")
    rows = collections.defaultdict(list)
    with h5py.File(out / "shard.h5") as f:
        offsets, tokens, mask, index = f["offsets"][:], f["tokens"][:], f["loss_mask"][:], f["source_index"][:]
    for n, i in enumerate(index):
        rows[int(i)].append((tokens[offsets[n]:offsets[n + 1]].tolist(), mask[offsets[n]:offsets[n + 1]].tolist()))
    bad = {}
    notes = pathlib.Path(str(out / "shard.h5") + ".bad.jsonl")
    if notes.exists():
        bad = {note["index"]: note["problem"] for note in map(json.loads, notes.read_text().splitlines())}
    return rows, bad


def small_tokenizer(data, folder, end):
    """A byte-level BPE of 700 ids over the chat files, with both families' marks, small enough to be kept."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer
    texts = [json.dumps(r, ensure_ascii=False) for file in ("alpaca/alpaca_en_first500.json", "chat/glaive_toolcall_en.json") for r in read(data / file)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, special_tokens=marks, show_progress=False,
                                                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": "<|endoftext|>"}
    if end == "<|eot_id|>":
        config["bos_token"] = "<|begin_of_text|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    return AutoTokenizer.from_pretrained(folder)


# ---- comparison ----

def behind_system(ids, mask, end):
    """Without the system block, which LLaMA-Factory writes in its own way where there are tools and no system text."""
    at = ids.index(end) + 2
    return (ids[at:], mask[at:]) if 1 not in mask[:at] else (ids, mask)


def differ(tokenizer, ours, theirs):
    """The reason of a difference, with what it looks like; None when there is none."""
    (a, ma), (b, mb) = ours, theirs
    if a == b and ma == mb:
        return None
    if a != b:
        text = [tokenizer.decode(x, skip_special_tokens=False) for x in (a, b)]
        at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        shown = " / ".join(repr(tokenizer.decode(x[max(0, at - 2):at + 4], skip_special_tokens=False)) for x in (a, b))
        if text[0] == text[1]:
            return "ids: one text, other token borders (messages tokenised one by one)", shown
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        rest = behind_system(b, mb, end)
        if text[1].startswith("<|im_start|>system\n\n\n# Tools") and rest == behind_system(a, ma, end):
            return "system block: theirs has two line feeds before '# Tools' where there is no system text; all behind it is equal", shown
        if text[1].startswith("<|im_start|>system\n<|im_end|>") and rest == (a, ma):
            return "system block: theirs has an empty one where the list of tools is empty; all behind it is equal", shown
        return "UNKNOWN text", shown
    at = [i for i, (x, y) in enumerate(zip(ma, mb)) if x != y]
    pieces = collections.Counter((tokenizer.decode([a[i]], skip_special_tokens=False), "ours" if ma[i] else "theirs") for i in at)
    starts = all(tokenizer.decode(a[:i], skip_special_tokens=False).endswith("<|im_start|>assistant") for i in at)
    if set(pieces) == {("\n", "theirs")} and starts:
        return "mask: theirs counts the line feed behind '<|im_start|>assistant' too", ""
    return "UNKNOWN mask", str(pieces)


def compare(options, case, tokenizer, path, work, golden):
    rows, bad = build(options, path, case, tokenizer.name_or_path, work)
    records = read(path)
    reasons, examples, equal, accounted = collections.Counter(), {}, 0, 0
    kept = []
    for i, record in enumerate(records):
        try:
            theirs = case.reference(record)
        except Exception as error:  # their code refuses the record
            reasons[f"record: theirs fails ({type(error).__name__})"] += 1
            examples.setdefault("record: theirs fails", str(error)[:100])
            accounted += i in rows or i in bad
            continue
        if i not in rows:
            reasons["record: ours leaves it out: " + bad[i]] += 1
            accounted += 1
            continue
        accounted += 1
        if theirs is None:
            reasons["record: theirs leaves it out"] += 1
            continue
        found = [differ(tokenizer, a, b) for a, b in zip(rows[i], theirs)]
        found = [f for f in found if f is not None]
        if len(rows[i]) != len(theirs):
            found = [("UNKNOWN number of sides", "")]
        if not found:
            equal += 1
            if len(kept) < 2 and len(json.dumps(record)) < 1000:
                kept.append({"index": i, "record": record, "sides": [{"ids": a, "mask": "".join(map(str, m))} for a, m in theirs]})
        for reason, shown in found[:1]:
            reasons[reason] += 1
            examples.setdefault(reason, f"record {i}: {shown}")
    print(f"{case.name:34} {len(records):6} records, {equal:6} equal token for token")
    assert accounted == len(records), (case.name, accounted)
    for reason, count in reasons.most_common():
        print(f"{'':34} {count:6} {reason}\n{'':41} {examples.get(reason, '')}")
    if kept:
        folder = pathlib.Path(tokenizer.name_or_path).name
        golden.append({"case": case.name, "template": case.ours, "form": case.form, "tokenizer": folder, "records": kept})
    return not any(reason.startswith("UNKNOWN") for reason in reasons)


Case = collections.namedtuple("Case", "name file form tokenizer ours reference")


def cases(qwen, llama):
    alpaca = {"en": "alpaca/alpaca_en_first500.json", "zh": "alpaca/alpaca_zh.json"}
    gsm = {"prompt": "question", "query": None, "response": "answer"}
    chat = {"tools": "tools"}
    pair = {"chosen": "chosen", "rejected": "rejected"}
    for name, file in alpaca.items():
        yield Case(f"trl/qwen2.5/alpaca-{name}", file, "alpaca", qwen, "qwen2.5", Trl(qwen, "qwen2_5_training", alpaca_messages))
        yield Case(f"trl/qwen3/alpaca-{name}", file, "alpaca", qwen, "qwen3", Trl(qwen, "qwen3_training", alpaca_messages))
        yield Case(f"trl/llama3/alpaca-{name}", file, "alpaca", llama, "llama3", Trl(llama, "llama3_training", alpaca_messages))
        for theirs, ours in (("qwen", "qwen2.5"), ("chatml", "chatml"), ("qwen3", "qwen3-train"), ("qwen3_nothink", "chatml"), ("alpaca", "alpaca-lf")):
            yield Case(f"lf/{theirs}/alpaca-{name}", file, "alpaca", qwen, ours, LlamaFactory(qwen, theirs, "alpaca"))
        yield Case(f"lf/llama3/alpaca-{name}", file, "alpaca", llama, "llama3", LlamaFactory(llama, "llama3", "alpaca"))
    yield Case("trl/qwen3/gsm8k", "gsm8k/test.jsonl", "qa", qwen, "qwen3", Trl(qwen, "qwen3_training", qa_messages))
    yield Case("trl/llama3/gsm8k", "gsm8k/test.jsonl", "qa", llama, "llama3", Trl(llama, "llama3_training", qa_messages))
    yield Case("lf/qwen/gsm8k", "gsm8k/test.jsonl", "qa", qwen, "qwen2.5", LlamaFactory(qwen, "qwen", "alpaca", **gsm))
    yield Case("lf/llama3/gsm8k", "gsm8k/test.jsonl", "qa", llama, "llama3", LlamaFactory(llama, "llama3", "alpaca", **gsm))
    tool = "chat/glaive_toolcall_en.json"
    yield Case("trl/qwen2.5/glaive", tool, "sharegpt", qwen, "qwen2.5", Trl(qwen, "qwen2_5_training", chat_messages))
    yield Case("trl/qwen3/glaive", tool, "sharegpt", qwen, "qwen3-train", Trl(qwen, "qwen3_training", chat_messages))
    yield Case("lf/qwen/glaive", tool, "sharegpt", qwen, "qwen2.5", LlamaFactory(qwen, "qwen", "sharegpt", **chat))
    yield Case("lf/qwen3/glaive", tool, "sharegpt", qwen, "qwen3-train", LlamaFactory(qwen, "qwen3", "sharegpt", **chat))
    yield Case("lf/qwen3_nothink/glaive", tool, "sharegpt", qwen, "chatml", LlamaFactory(qwen, "qwen3_nothink", "sharegpt", **chat))
    dpo, hh = "preference/dpo_en.json", "preference/hh-harmless-a.jsonl"
    for name, file, sides in (("dpo", dpo, dpo_sides), ("hh", hh, hh_sides)):
        yield Case(f"trl/qwen2.5/{name} (pairs)", file, "pair", qwen, "qwen2.5", TrlPairs(qwen, "qwen2_5", sides))
        yield Case(f"trl/qwen3/{name} (pairs)", file, "pair", qwen, "qwen3", TrlPairs(qwen, "qwen3", sides))
        yield Case(f"trl/llama3/{name} (pairs)", file, "pair", llama, "llama3", TrlPairs(llama, "llama3", sides))
    yield Case("lf/qwen/dpo (pairs)", dpo, "pair", qwen, "qwen2.5", LlamaFactory(qwen, "qwen", "sharegpt", True, **pair))
    yield Case("lf/qwen3/dpo (pairs)", dpo, "pair", qwen, "qwen3", LlamaFactory(qwen, "qwen3", "sharegpt", True, **pair))
    yield Case("lf/llama3/dpo (pairs)", dpo, "pair", llama, "llama3", LlamaFactory(llama, "llama3", "sharegpt", True, **pair))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/bin"))
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data"))
    parser.add_argument("--packages", default="build/venv-lf")
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("case", nargs="*", help="only cases whose name holds one of these")
    options = parser.parse_args()
    sys.path.insert(1, os.path.abspath(options.packages))
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    from transformers import AutoTokenizer
    fine, golden = True, []
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        if options.write:
            qwen = small_tokenizer(options.data / "datasets", options.write / "qwen", "<|im_end|>")
            llama = small_tokenizer(options.data / "datasets", options.write / "llama", "<|eot_id|>")
        else:
            qwen = AutoTokenizer.from_pretrained(options.data / "tokenizers/qwen3")
            llama = llama_tokenizer(options.data / "tokenizers/qwen3", work / "llama")
        for case in cases(qwen, llama):
            if not options.case or any(word in case.name for word in options.case):
                fine = compare(options, case, case.tokenizer, options.data / "datasets" / case.file, work, golden) and fine
    if options.write:
        lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in golden]
        (options.write / "masks.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
