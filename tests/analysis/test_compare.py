"""Comparisons of models as tables and a figure: one file, several seeds, files that do not belong
together."""

import csv
import json
import os
import shutil
import tempfile
import unittest

from support import call_main, lacking

import compare

MODELS = ["foundation", "sft", "ensemble"]


def value(at, width, none=None):
    """A figure with its interval, and whether it leaves `none` out."""
    cell = {"value": at, "low": at - width, "high": at + width}
    if none is not None:
        cell["is_real"] = not at - width <= none <= at + width
    return cell


def cells(shift, judged=True):
    """The figures of all models; accuracy is None where nothing is judged."""
    empty = {"value": None, "low": None, "high": None}
    return {
        "models": {
            model: {
                "perplexity": value(20.0 - 3 * at + shift, 1.0),
                "accuracy": value(0.5 + 0.1 * at, 0.05) if judged else empty,
                "perplexity_ratio": value(1.0 - 0.1 * at, 0.05 * (at > 0), 1.0),
                "accuracy_difference": (
                    value(0.1 * at, 0.15 * (at > 0), 0.0) if judged else dict(empty, is_real=False)
                ),
            }
            for at, model in enumerate(MODELS)
        }
    }


def comparison(shift=0.0, **changes):
    """A compare.json as moe-eval writes it."""
    categories = {
        name: dict(
            cells(shift, name != "text"), file="f" + name, records=50, judged=0 if name == "text" else 50
        )
        for name in ("sop", "reasoning", "text")
    }
    cost = {
        model: {
            "parameters": 1e6,
            "flops_per_token": 1e6 * (1 + (model == "ensemble")),
            "relative_flops": 1.0 + (model == "ensemble"),
            "relative_scoring_time": 1.0 + 0.9 * (model == "ensemble"),
            "relative_decoding_time": None,
        }
        for model in MODELS
    }
    return dict(
        {
            "format": "moebatch-compare",
            "version": 1,
            "models": MODELS,
            "baseline": "foundation",
            "draws": 10000,
            "seed": 42,
            "level": 0.95,
            "categories": categories,
            "mean": cells(shift),
            "cost": cost,
        },
        **changes,
    )


@unittest.skipIf(lacking("matplotlib", "numpy"), lacking("matplotlib", "numpy"))
class Compare(unittest.TestCase):
    """compare.py on compare.json files made here."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-compare-")

    def tearDown(self):
        shutil.rmtree(self.folder)

    def write(self, table, *place):
        """A compare.json; its path."""
        path = os.path.join(self.folder, *place, "compare.json")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(table, file)
        return path

    def test_a_run(self):
        self.write(comparison(), "compare")
        code, text, err = call_main(compare, self.folder)
        self.assertEqual((code, err), (0, ""))
        report = os.path.join(self.folder, "report")
        self.assertGreater(os.path.getsize(os.path.join(report, "compare.png")), 20000)
        self.assertIn("20.00 [19.00, 21.00]", text)
        self.assertIn("0.800* [0.750, 0.850]", text)
        self.assertIn("+10.0 [-5.0, 25.0]", text)  # no star
        with open(os.path.join(report, "compare.md"), encoding="utf-8") as file:
            page = file.read()
        self.assertIn("| ensemble | 14.00 [13.00, 15.00] |", page)
        self.assertIn("sop 50 records (50 judged)", page)
        self.assertIn("| ensemble | 2.00 | 1.90 | - |", page)
        with open(os.path.join(report, "compare.csv"), encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(len(rows), 12)
        row = next(r for r in rows if (r["model"], r["category"]) == ("sft", "text"))
        self.assertEqual((row["perplexity"], row["accuracy"], row["perplexity_low"]), ("17.0", "", "16.0"))

    def test_seeds(self):
        for seed, shift in enumerate((0.0, 1.0, 2.0)):
            table = comparison(shift)
            if seed == 1:
                table["mean"]["models"]["ensemble"]["perplexity_ratio"]["is_real"] = False
            self.write(table, f"seed_{seed}", "compare")
        code, text, _ = call_main(compare, self.folder)
        self.assertEqual(code, 0)
        self.assertIn("21.00 +- 1.00", text)
        self.assertIn("3 comparison(s)", text)
        files = compare.read_files(compare.find_files([self.folder], "compare"))
        self.assertTrue(compare.combine(files, "sop", "ensemble", "perplexity_ratio")["is_real"])
        self.assertFalse(compare.combine(files, "mean", "ensemble", "perplexity_ratio")["is_real"])

    def test_without_accuracy(self):
        table = comparison()
        for name in table["categories"]:
            table["categories"][name].update(cells(0.0, False))
        table["mean"] = cells(0.0, False)
        code, text, _ = call_main(compare, self.write(table), "--out", os.path.join(self.folder, "out"))
        self.assertEqual(code, 0)
        self.assertNotIn("accuracy", text)

    def test_refused(self):
        a = self.write(comparison(), "a")
        for changes, words in (
            ({"models": MODELS[:2]}, "differ in models"),
            ({"baseline": "sft"}, "differ in baseline"),
            ({"format": "other"}, "is no comparison"),
        ):
            b = self.write(comparison(**changes), "b")
            code, _, err = call_main(compare, a, b, "--out", os.path.join(self.folder, "out"))
            self.assertEqual(code, 3)
            self.assertIn(words, err)
        self.assertEqual(call_main(compare, os.path.join(self.folder, "b", ".."), "--stage", "none")[0], 3)
