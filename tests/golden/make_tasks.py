#!/usr/bin/env python3
"""tasks.json: prompts, choices and request ids of lm-evaluation-harness for made-up documents, for tests/unit/text/test_tasks.c.

usage: make_tasks.py [shared data folder] > tests/golden/tasks.json
Needs lm_eval, datasets, tokenizers. The harness's own task files and request rule run; only the download of documents is replaced.
"""
import json
import pathlib
import sys

import datasets
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager, get_task_dict
from tokenizers import Tokenizer

ARC = [
    {"question": "Which is hottest?", "choices": {"text": ["ice", "the Sun", " space", "5"], "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
    {"question": "  Spaces \u00e9\u65e5 {{x}} ", "choices": {"text": ["\u00e9t\u00e9", "a\nb", "c "], "label": ["1", "2", "3"]}, "answerKey": "3"},
    {"question": "12", "choices": {"text": ["a", "b", "c", "d", "e"], "label": ["A", "B", "C", "D", "E"]}, "answerKey": "E"},
]
HELLASWAG = [
    {"activity_label": "Baking", "ctx_a": "A man  bakes.", "ctx_b": "then HE [step] Eats  It", "label": "2",
     "endings": ["Sings. [title] Next", " [substeps] the  end", "[a] x [b\n] y]", "   three   spaces "]},
    {"activity_label": "\u00dcber", "ctx_a": " [header] How to x [title] Do", "ctx_b": "", "label": "0", "endings": ["\u0130I", "a", "b", "c"]},
    {"activity_label": "Greek", "ctx_a": "a", "ctx_b": "\u03b1\u03a3 \u039f\u0394\u039f\u03a3, \u03a3\u0391\u03a3. \u0130X\u00df \u01c4 \u1e9e", "label": "3",
     "endings": ["a", "b", "c", "d"]},
    {"activity_label": "Sharp", "ctx_a": "a", "ctx_b": "\u00dfTRASSE", "label": "1", "endings": ["a", "b", "c", "d"]},
    {"activity_label": "Lig", "ctx_a": "a", "ctx_b": "\ufb01NE", "label": "1", "endings": ["a", "b", "c", "d"]},
    {"activity_label": "Dz", "ctx_a": "a", "ctx_b": "\u01c4A", "label": "1", "endings": ["a", "b", "c", "d"]},
]
MMLU_DEV = [{"question": f" dev {i}\n", "choices": [f"a{i}", "b, \"c\"", "", "\u00e9"], "answer": i % 4, "subject": "high_school_us_history"}
            for i in range(5)]
MMLU = [{"question": "\tWhat,\nthen?  ", "choices": ["x", "y ", " z", "\u65e5"], "answer": 3, "subject": "high_school_us_history"},
        {"question": "Q", "choices": ["1", "2", "3", "4"], "answer": 0, "subject": "high_school_us_history"}]

CONTEXTS = [("Question: a?\nAnswer:", " yes"), ("ends with space  ", "x y"), ("ends with feed\n", " a"), ("", " alone"), ("", "alone"),
            ("\u3000\t ", " only space"), ("\u00e9\u00a0", " \u65e5\u672c\u8a9e"), ("{bos}marked", " up"), ("", "{bos}marked"), ("The capital of", "\u2014 France"),
            ("Answer:", " A"), ("Answer:", "A"), ("word", "piece"), ("1", "23")]


def local_tasks(docs):
    def download(self, dataset_kwargs=None, **kwargs):
        splits = docs[self.config.task]
        self.dataset = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()})
    ConfigurableTask.download = download
    return get_task_dict(list(docs), TaskManager())


def prompts(task, docs, shots):
    out = []
    for doc in (task.test_docs() if task.has_test_docs() else task.validation_docs()):
        context = task.fewshot_context(doc, shots)
        choices = task.doc_to_choice(doc)
        gold = task.doc_to_target(doc)
        out.append({"context": context, "choices": choices, "gold": int(gold)})
    assert len(out) == len(docs)
    return out


class Encoder(TemplateLM):
    """The harness's request rule over a plain tokenizer."""
    def __init__(self, tokenizer, bos, eos):
        self.backend = "causal"
        self.tokenizer_ = tokenizer
        self.prefix = bos if bos is not None else eos
        self.bos = tokenizer.id_to_token(self.prefix)
        self.requests = []

    eot_token_id = property(lambda self: self.prefix)
    prefix_token_id = property(lambda self: self.prefix)

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.bos)
        return self.tokenizer_.encode(string, add_special_tokens=add_special_tokens).ids

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        self.requests = requests
        return []

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        raise NotImplementedError


class Request:
    def __init__(self, *args):
        self.args = args


def request_ids(shared):
    out = {}
    for name, bos, eos in (("gpt2", "<|endoftext|>", "<|endoftext|>"), ("llama2", "<s>", "</s>"), ("qwen3", None, "<|im_end|>"), ("olmoe", None, "<|endoftext|>")):
        tokenizer = Tokenizer.from_file(str(shared / "tokenizers" / name / "tokenizer.json"))
        encoder = Encoder(tokenizer, tokenizer.token_to_id(bos) if bos else None, tokenizer.token_to_id(eos))
        pairs = [(c.replace("{bos}", encoder.bos), k.replace("{bos}", encoder.bos)) for c, k in CONTEXTS]
        encoder.loglikelihood([Request(c, k) for c, k in pairs], disable_tqdm=True)
        out[name] = [{"context": c, "continuation": k, "context_ids": ci, "continuation_ids": ki} for (c, k), ci, ki in encoder.requests]
    return out


def main():
    shared = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    name = "mmlu_high_school_us_history"
    tasks = local_tasks({"arc_easy": {"train": ARC, "validation": ARC, "test": ARC}, "hellaswag": {"train": HELLASWAG, "validation": HELLASWAG},
                         name: {"test": MMLU, "dev": MMLU_DEV}})
    out = {
        "arc_easy": {"docs": ARC, "expected": prompts(tasks["arc_easy"], ARC, 0)},
        "hellaswag": {"docs": HELLASWAG, "expected": prompts(tasks["hellaswag"], HELLASWAG, 0)},
        "mmlu": {"docs": MMLU, "dev": MMLU_DEV, "expected": {str(n): prompts(tasks[name], MMLU, n) for n in (0, 5)}},
        "requests": request_ids(shared),
    }
    json.dump(out, sys.stdout, ensure_ascii=False, indent=1)
    print()


main()
