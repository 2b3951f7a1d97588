"""Answers of several models to one file of prompts, joined; files of different prompts are refused."""

import json
import os
import shutil
import tempfile
import unittest

from support import call_main

import side_by_side

PROMPTS = [
    {"question": "What is 2 + 3?", "reference": "5", "type": "math", "id": 7},
    {
        "messages": [{"role": "user", "content": "Hello"}, {"role": "user", "content": "Who are you?"}],
        "type": "chat",
    },
    {"instruction": "Translate.", "input": "Haus", "type": "chat"},
    {"prompt": "Once `upon` a ```time", "type": "math"},
]


class SideBySide(unittest.TestCase):
    """side_by_side.py on generated.jsonl files made here."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-side-")

    def tearDown(self):
        shutil.rmtree(self.folder)

    def answers(self, name, prompts=None, stage=None):
        """generated.jsonl of a model, as moe-infer writes it; its path."""
        path = os.path.join(self.folder, stage or "generate-" + name, "generated.jsonl")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            for number, prompt in enumerate(PROMPTS if prompts is None else prompts):
                row = dict(
                    prompt,
                    generated_text=f"{name} says {number}\nand ends" if number else "",
                    finish_reason="length" if number else "stop",
                    tokens=10 + number,
                    logprob=-1.5,
                )
                file.write(json.dumps(row) + "\n")
        return path

    def joined(self, folder):
        """The lines of side_by_side.jsonl."""
        with open(os.path.join(folder, "side_by_side.jsonl"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def test_files(self):
        out = os.path.join(self.folder, "out")
        words = [f"{name}={self.answers(name)}" for name in ("sft", "before")]
        code, text, err = call_main(side_by_side, *words, "--out", out, "--show", "2")
        self.assertEqual((code, err), (0, ""))
        rows = self.joined(out)
        self.assertEqual(
            [row["prompt"] for row in rows],
            ["What is 2 + 3?", "Who are you?", "Translate.\n\nHaus", "Once `upon` a ```time"],
        )
        self.assertEqual((rows[0]["reference"], rows[0]["type"]), ("5", "math"))
        self.assertNotIn("reference", rows[1])
        self.assertEqual(
            rows[2]["before"],
            {"text": "before says 2\nand ends", "finish_reason": "length", "tokens": 12, "logprob": -1.5},
        )
        self.assertEqual(list(rows[0])[-2:], ["sft", "before"])
        self.assertIn("What is 2 + 3?", text)
        self.assertIn("Who are you?", text)
        self.assertNotIn("Haus", text)
        self.assertIn("4 prompts, 2 models", text)

    def test_pages_to_read(self):
        out = os.path.join(self.folder, "out")
        call_main(side_by_side, "sft=" + self.answers("sft"), "--out", out)
        with open(os.path.join(out, "side_by_side.md"), encoding="utf-8") as file:
            page = file.read()
        self.assertIn("## 1 (math)\n\n```text\nWhat is 2 + 3?\n```\n\n**reference**\n\n```text\n5\n```", page)
        self.assertIn("**sft** (stop, 10 tokens)\n\n```text\n(nothing)\n```", page)
        self.assertIn("````text\nOnce `upon` a ```time\n````", page)
        with open(os.path.join(out, "side_by_side.txt"), encoding="utf-8") as file:
            self.assertIn("       sft  sft says 1\n            and ends", file.read())

    def test_a_run_folder(self):
        for name in ("dpo", "other", "before"):
            self.answers(name)
        code, _, _ = call_main(side_by_side, self.folder)
        self.assertEqual(code, 0)
        row = self.joined(os.path.join(self.folder, "side-by-side"))[1]
        self.assertEqual(list(row), ["prompt", "type", "before", "dpo", "other"])

    def test_other_prompts_are_refused(self):
        changed = [dict(PROMPTS[0], id=8)] + PROMPTS[1:]
        for prompts, words in (
            (changed, "answer 1: b answers another prompt"),
            (PROMPTS[:3], "has 3 answers"),
        ):
            a, b = self.answers("a"), self.answers("b", prompts)
            code, _, err = call_main(side_by_side, "a=" + a, "b=" + b, "--out", self.folder)
            self.assertEqual(code, 3)
            self.assertIn(words, err)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "side_by_side.jsonl")))

    def test_names_are_refused(self):
        a = self.answers("a")
        for words in (("a=" + a, "a=" + a), ("prompt=" + a,)):
            code, _, err = call_main(side_by_side, *words, "--out", self.folder)
            self.assertEqual(code, 3)
            self.assertIn("a name of its own", err)

    def test_several_answers_per_prompt(self):
        twice = [dict(prompt, sample=sample) for prompt in PROMPTS for sample in (0, 1)]
        a, b = self.answers("a", twice), self.answers("b", twice)
        code, _, _ = call_main(side_by_side, "a=" + a, "b=" + b, "--out", self.folder)
        self.assertEqual(code, 0)
        rows = self.joined(self.folder)
        self.assertEqual([row["a"]["sample"] for row in rows], [0, 1] * 4)

    def test_nothing_to_read(self):
        self.assertEqual(call_main(side_by_side, self.folder)[0], 3)
        code, _, err = call_main(side_by_side, "a=" + self.folder + "/none.jsonl", "--out", self.folder)
        self.assertEqual(code, 3)
        self.assertIn("none.jsonl", err)
