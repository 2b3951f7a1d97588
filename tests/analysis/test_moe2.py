"""The report of an expert study: tables of one run and of several seeds, what is missing named, figures where
the libraries are there."""

import csv
import json
import os
import shutil
import tempfile
import unittest

from support import call_main, lacking

import moe2


def system(accuracy, gain):
    """A system of moe-gate's report with intervals of a tenth."""
    return {
        "accuracy": accuracy,
        "low": accuracy - 0.1,
        "high": accuracy + 0.1,
        "gain": gain,
        "gain_low": gain - 0.1,
        "gain_high": gain + 0.1,
    }


def report(shift=0.0):
    """A report.json of two experts and two sources."""
    systems = {
        "gate_top1": system(0.6 + shift, 0.3 + shift),
        "best_single": system(0.3, 0.0),
        "expert/a": system(0.3, 0.0),
        "expert/b": system(0.2, -0.1),
    }
    groups = {name: {"questions": 10, "systems": systems, "gate_picks": {}} for name in ("all", "source/x", "source/y")}
    return {"format": "moebatch-gate-report", "version": 1, "best_single": "a", "groups": groups}


def cost(member):
    """A latency.json or energy.json of moe-bench."""
    table = [[1.0, 2.0], [3.0, 4.0]]
    expert = {
        "prompt_tokens": [8, 16],
        "output_tokens": [1, 4],
        member: {key: table for key in ("p5", "p50", "p95", "mean", "min", "max")},
    }
    return {"source_text": "stated", "experts": {"a": expert, "b": expert}}


def subsets():
    """results.json of moe-subset, where one limit leaves nothing."""
    row = {
        "latency_limit": 1.0,
        "energy_limit": 2.0,
        "experts": ["a"],
        "latency": 0.5,
        "energy": 1.0,
        "train_accuracy": 0.5,
        "test_accuracy": 0.4,
        "test_optimum": 0.45,
        "retrained_test_accuracy": None,
    }
    empty = dict(row, train_accuracy=None, test_accuracy=None, test_optimum=None)
    tables = {name: [row] for name in ("auto_latency", "auto_energy", "pareto")}
    return {"questions": 20, "tables": dict(tables, latency=[empty], energy=[row])}


class Moe2Test(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def write(self, path, content):
        """A file of the run; objects as JSON."""
        path = os.path.join(self.folder, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content if isinstance(content, str) else json.dumps(content))

    def rows(self, path):
        """The rows of a CSV file."""
        with open(os.path.join(self.folder, path), encoding="utf-8", newline="") as file:
            return list(csv.reader(file))

    def make_run(self, prefix="", shift=0.0):
        """A run with every stage the report reads but the clusters and the table of all subsets."""
        self.write(prefix + "gate-report/report.json", report(shift))
        self.write(prefix + "costs/latency.json", cost("seconds"))
        self.write(prefix + "costs/energy.json", cost("joules"))
        self.write(prefix + "subset/results.json", subsets())
        self.write(prefix + "subset/smo_tables/both.csv", "a,b\n")
        self.write(prefix + "together/results.json", {"accuracy": {"all": {"accuracy": 0.55}}})
        self.write(prefix + "answers-base/results.json", {"questions": {"accuracy": {"all": {"accuracy": 0.25}}}})

    def test_tables_of_a_run(self):
        self.make_run()
        code, out, _ = call_main(moe2, self.folder, "--no-figures")
        self.assertEqual(code, 0)
        self.assertIn("energy: stated", out)
        systems = {row[0]: row[1:] for row in self.rows("accuracy/systems.csv")}
        self.assertEqual(systems["gate_top1"][:3], ["60.0 %", "50.0 %", "70.0 %"])
        self.assertEqual(systems["answering together"][0], "55.0 %")
        self.assertEqual(systems["base model"][0], "25.0 %")
        self.assertEqual([row[0] for row in self.rows("accuracy/experts.csv")], ["system", "expert/a", "expert/b"])
        self.assertEqual(self.rows("accuracy/by_source.csv")[0], ["system", "x", "y"])
        latency = self.rows("latency/latency.csv")
        self.assertEqual(len(latency), 1 + 2 * 2 * 2)
        self.assertEqual(latency[2][:4], ["a", "8", "4", "2"])
        self.assertTrue(os.path.isfile(os.path.join(self.folder, "smo_tables/both.csv")))

    def test_seeds_have_mean_and_spread(self):
        for seed, shift in ((0, -0.25), (1, 0.0), (2, 0.1)):
            self.make_run(f"seed_{seed}/", shift)
        code, _, _ = call_main(moe2, self.folder, "--no-figures")
        self.assertEqual(code, 0)
        rows = {row[0]: row[1:] for row in self.rows("accuracy/seeds.csv")}
        self.assertEqual(rows["gate_top1"], ["55.00 +- 18.03", "25.00 +- 18.03", "2 of 3"])
        self.assertNotIn("expert/a", rows)

    def test_missing_stages_are_named(self):
        self.write("gate-report/report.json", report())
        code, out, _ = call_main(moe2, self.folder, "--no-figures")
        self.assertEqual(code, 0)
        self.assertIn("costs/latency.json", out)
        self.assertIn("subset/results.json", out)

    def test_refused(self):
        code, _, err = call_main(moe2, self.folder, "--no-figures")
        self.assertEqual(code, 3)
        self.assertIn("gate-report/report.json", err)
        self.write("gate-report/report.json", {"format": "other"})
        code, _, err = call_main(moe2, self.folder, "--no-figures")
        self.assertEqual(code, 3)
        self.assertIn("is no report of moe-gate", err)
        self.assertEqual(call_main(moe2, os.path.join(self.folder, "none"))[0], 2)

    @unittest.skipIf(lacking("matplotlib", "h5py"), "matplotlib or h5py is not installed")
    def test_figures_leave_out_limits_that_nothing_meets(self):
        import h5py

        self.make_run()
        path = os.path.join(self.folder, "subset/subset.h5")
        with h5py.File(path, "w") as file:
            file.attrs["format"] = "moebatch-subset"
        code, out, _ = call_main(moe2, self.folder)
        self.assertEqual(code, 0, out)
        for name in ("accuracy", "experts", "latency", "energy", "pareto", "limits"):
            self.assertGreater(os.path.getsize(os.path.join(self.folder, "figures", name + ".png")), 5000)


if __name__ == "__main__":
    unittest.main()
