"""The report of an upcycling study, and the recipes of its data."""

import json
import os
import random
import shutil
import tempfile
import unittest

from support import call_main

import pairs
import upcycle
import upcycle_sources


def write(path, value):
    """A JSON file."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


def make_run(folder, sft=(2.0, 1.0), accuracy=0.8):
    """The records of a finished study with two types: losses after SFT, accuracy after DPO."""
    write(
        os.path.join(folder, "upcycle", "done.json"),
        {"results": {"max_logit_difference": 3e-7, "function_preserved": 1}},
    )
    for model, losses in (
        ("dense", (3.0, 4.0)),
        ("before", (3.0, 4.0)),
        ("sft", sft),
        ("dpo", (2.1, 1.1)),
    ):
        rows = {
            name: {"nll": 100 * loss, "tokens": 100, "perplexity": 0}
            for name, loss in zip(("code", "talk"), losses)
        }
        both = {"all": {"nll": 100 * sum(losses), "tokens": 200}}
        information = {"before": 0.01, "sft": 0.05, "dpo": 0.04}.get(model)
        routing = {
            "layers": [0],
            "equal": {
                "mutual_information": information,
                "shuffled_mean": 0.001,
                "normalised": 0.1,
                "layers": [{"mutual_information": information, "shuffled_mean": 0.001}],
            },
        }
        results = {"perplexity": dict(both, **rows), "perplexity_by_type": rows}
        write(
            os.path.join(folder, "eval-" + model, "results.json"),
            dict(results, routing=routing) if information else results,
        )
        if information:
            value = {"before": 0.4, "sft": 0.5, "dpo": accuracy}[model]
            entry = {"accuracy": value, "pairs": 10}
            write(
                os.path.join(folder, "preference-" + model, "results.json"),
                {"preference": {"all": entry}, "preference_by_type": {"code": entry}},
            )


class Report(unittest.TestCase):
    """analysis/upcycle.py on records made here."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-upcycle-")

    def tearDown(self):
        shutil.rmtree(self.folder)

    def report(self):
        code, out, err = call_main(upcycle, self.folder, "--no-figures")
        self.assertEqual(code, 0, err)
        with open(os.path.join(self.folder, "report", "report.json"), encoding="utf-8") as file:
            return out, json.load(file)

    def test_one_run(self):
        make_run(self.folder)
        out, summary = self.report()
        self.assertRegex(out, r"loss on answers, code \(nats\) +3\.000 +3\.000 +2\.000 +2\.100")
        self.assertRegex(out, r"loss on answers, all \(nats\) +3\.500 +3\.500 +1\.500 +1\.600")
        self.assertRegex(out, r"preference accuracy, all +- +0\.400 +0\.500 +0\.800")
        self.assertIn("the dense model's function is preserved, largest logit difference 3.0e-07", out)
        self.assertIn("lower in 2 of 2 (type, seed)", out)
        self.assertIn("0.0100 -> 0.0500 nats, 5.0 times", out)
        self.assertIn("0.500 -> 0.800, higher in 1 of 1 seeds", out)
        self.assertEqual(summary["models"]["sft"]["loss"]["talk"], [1.0])
        self.assertTrue(os.path.getsize(os.path.join(self.folder, "report", "report.html")) > 1000)

    def test_seeds_that_disagree_are_named(self):
        make_run(os.path.join(self.folder, "seed_0"))
        make_run(os.path.join(self.folder, "seed_1"), sft=(3.5, 1.2), accuracy=0.45)
        out, summary = self.report()
        self.assertRegex(out, r"loss on answers, code \(nats\) .* 2\.750 \+- 1\.061")
        self.assertIn("lower in 3 of 4 (type, seed); not always for code", out)
        self.assertIn("higher in 1 of 2 seeds", out)
        self.assertEqual(summary["seeds"], [0, 1])

    def test_half_a_run_and_none(self):
        make_run(self.folder)
        shutil.rmtree(os.path.join(self.folder, "preference-dpo"))
        out, _ = self.report()
        self.assertRegex(out, r"preference accuracy, all +- +0\.400 +0\.500 +-\n")
        self.assertIn("preference-dpo/results.json is not there", out)
        empty = tempfile.mkdtemp(dir=self.folder)
        self.assertEqual(call_main(upcycle, empty)[0], 3)
        self.assertEqual(call_main(upcycle, empty + "/none")[0], 2)


class Pairs(unittest.TestCase):
    """datasets/pairs.py: worse answers, and files split."""

    def test_kinds(self):
        answer = "There are 3 * 4 = 12 eggs.\nThat leaves 12 - 2 = 10 eggs.\n#### 10"
        wrong = pairs.wrong_result(answer, random.Random(1))
        self.assertEqual(wrong.split("\n")[0], answer.split("\n")[0])
        self.assertNotIn("#### 10", wrong)
        self.assertEqual(wrong.split("#### ")[1], wrong.split("= ")[2].split(" ")[0])
        self.assertEqual(pairs.kinds_for(answer)[-1], "wrong")
        self.assertNotIn("wrong", pairs.kinds_for("no number"))
        self.assertEqual(pairs.looped("one two three four"), "one two one two")
        self.assertEqual(pairs.other_answer("abc", ["abc", "x", "abd"], random.Random(0)), "abd")
        self.assertTrue(pairs.repeated("one line\nanother line").startswith("one line\none line"))

    def test_a_file_is_split_without_overlap(self):
        folder = tempfile.mkdtemp(prefix="mb-pairs-")
        self.addCleanup(shutil.rmtree, folder)
        records = [
            {"question": f"What is {i} and {i}?", "answer": f"That is {2 * i}.\n#### {2 * i}"}
            for i in range(40)
        ]
        path = os.path.join(folder, "in.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        options = ["--out", folder, "--pairs", "10", "--most", "20", "--prompts", "2", "sums=" + path]
        self.assertEqual(call_main(pairs, *options)[0], 0)
        parts = {
            name: pairs.read_records(os.path.join(folder, name, "sums.jsonl"))
            for name in ("pairs", "sft", "rest")
        }
        self.assertEqual([len(parts[name]) for name in ("pairs", "sft", "rest")], [10, 20, 8])
        asked = [row["prompt"][-1]["content"] for row in parts["pairs"]]
        asked += [row["question"] for row in parts["sft"] + parts["rest"]]
        asked += [
            r["messages"][-1]["content"] for r in pairs.read_records(os.path.join(folder, "prompts.jsonl"))
        ]
        self.assertEqual(sorted(asked), sorted(record["question"] for record in records))
        for row in parts["pairs"]:
            self.assertNotEqual(row["chosen"]["content"], row["rejected"]["content"])
        first = json.dumps(parts, sort_keys=True)
        self.assertEqual(call_main(pairs, *options)[0], 0)
        again = {name: pairs.read_records(os.path.join(folder, name, "sums.jsonl")) for name in parts}
        self.assertEqual(json.dumps(again, sort_keys=True), first)
        self.assertEqual(call_main(pairs, "--out", folder, "x=" + path + ".none")[0], 3)

    def test_forms(self):
        turns = [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": "{}"},
        ]
        self.assertEqual(
            pairs.dialog_of({"conversations": turns}), ([{"role": "user", "content": "Hi"}], "Hello")
        )
        self.assertEqual(
            pairs.dialog_of({"instruction": "Do", "input": "it", "output": "Done"})[0][0]["content"],
            "Do\n\nit",
        )
        self.assertIsNone(pairs.dialog_of({"text": "short"}))


class Sources(unittest.TestCase):
    """datasets/upcycle_sources.py: what needs no package."""

    def test_word_problems_are_right(self):
        records = upcycle_sources.reasoning(300)
        self.assertEqual(len({r["prompt"][0]["content"] for r in records}), 300)
        for record in records:
            steps, _, result = record["answer"].rpartition("\n#### ")
            for line in steps.split("\n"):
                left, right = line.rsplit(" = ", 1)
                words = left.split(" ")
                term = [w for w in words if w.isdigit() or w in "+-*/"][-3:]
                self.assertEqual(
                    eval(" ".join(term)), int(right.split(" ")[0]), line
                )  # pylint: disable=eval-used
            self.assertEqual(int(right.split(" ")[0]), int(result))
        self.assertEqual(records, upcycle_sources.reasoning(300))

    def test_a_function_becomes_a_task(self):
        import ast

        text = 'def double(x):\n    """Twice x."""\n    y = 2 * x\n    return y\n'
        record = upcycle_sources.function_record(ast.parse(text).body[0], text.split("\n"))
        self.assertEqual(record["answer"], "    y = 2 * x\n    return y")
        self.assertEqual(record["written"]["input"], 'def double(x):\n    """Twice x."""')

    def test_a_manual_page_becomes_a_chat(self):
        sections = {
            "NAME": ["getenv, secure_getenv - get an environment variable"],
            "DESCRIPTION": ["The getenv() function searches. It returns a pointer."],
            "SEE ALSO": ["putenv(3), setenv(3), environ(7)"],
        }
        record = upcycle_sources.manual_chat(sections, random.Random(0), "section 3")
        roles = [message["role"] for message in record["written"]["messages"]]
        self.assertEqual(roles, ["user", "assistant"] * (len(roles) // 2))
        self.assertIn("getenv (section 3): get an environment variable.", json.dumps(record["written"]))
        self.assertIsNone(upcycle_sources.manual_chat({}, random.Random(0), "section 3"))
