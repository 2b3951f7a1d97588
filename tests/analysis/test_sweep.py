"""The table of a sweep, from points whose numbers are known."""

import csv
import os
import shutil
import tempfile
import unittest

from support import call_main, lacking, run_script

NO_PLOTS = lacking("numpy", "h5py", "matplotlib")
if NO_PLOTS is None:
    import fake
    import sweep

KEYS = ("finetune.training.lora.r", "finetune.training.learning_rate")
RANKS, RATES = ("4", "16"), ("1e-4", "1e-3", "1e-2")


def perplexity_of(number):
    """Point 4 is best."""
    return 100.0 + (number - 4) ** 2


def write_points(folder, keys=KEYS, rows=None):
    """points.tsv and sweep.tsv, as jobs/sweep.sh writes them."""
    rows = [(r, rate) for r in RANKS for rate in RATES] if rows is None else rows
    with open(os.path.join(folder, "points.tsv"), "w", encoding="utf-8") as file:
        file.write("\t".join(("point",) + tuple(keys)) + "\n")
        file.writelines(f"{number}\t" + "\t".join(row) + "\n" for number, row in enumerate(rows))
    with open(os.path.join(folder, "sweep.tsv"), "w", encoding="utf-8") as file:
        file.write("script\tselect-moe\nlast\teval-selected\noverride\ta.b=1\n")


def write_point(folder, number):
    """A finished point: a training stage and an evaluation."""
    root = os.path.join(folder, f"point_{number:03d}")
    fake.write_metrics(root, "finetune-selected", 20, {"loss": lambda step: 5.0 - 0.1 * step + (step == 20)})
    value = {"perplexity": perplexity_of(number), "bits_per_byte": 2.0}
    fake.write_json(
        os.path.join(root, "eval-selected", "results.json"),
        {
            "perplexity": {"all": value, "heldout": value},
            "results": {"arc_easy": {"acc,none": 0.1 * number, "acc_stderr,none": 0.01, "alias": "arc_easy"}},
        },
    )
    fake.write_done(root, "eval-selected")


def fail_point(folder, number, stage, message, time="2024-01-01T00:00:00Z"):
    """A point whose stage says why it failed."""
    path = os.path.join(folder, f"point_{number:03d}", stage, "failure.json")
    fake.write_json(path, {"code": 3, "message": message, "rank": 0, "time": time})


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class SixPoints(unittest.TestCase):
    """Two keys, 2 x 3 points: four done, one failed, one not started."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="mb-sweep-")
        write_points(cls.folder)
        for number in (0, 2, 3, 4):
            write_point(cls.folder, number)
        fail_point(cls.folder, 1, "finetune-selected", "no record fits:\n max_length = 2")
        fail_point(cls.folder, 1, "eval-selected", "no adapter there", "2024-01-01T00:00:09Z")
        fake.write_json(os.path.join(cls.folder, "point_001", "failure.json"), {"code": 3, "message": "see the log"})
        cls.code, cls.out, cls.err = call_main(sweep, cls.folder)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def path(self, name):
        """A file of the sweep."""
        return os.path.join(self.folder, name)

    def test_best_first(self):
        self.assertEqual((self.code, self.err), (0, ""))
        lines = self.out.split("\n")
        start = next(i for i, line in enumerate(lines) if line.startswith("point")) + 2
        rows = [line.split() for line in lines[start : start + 4]]
        self.assertEqual([row[0] for row in rows], ["4", "3", "2", "0"])
        self.assertEqual(rows[0], ["4", "16", "1e-3", "100", "25.0"])
        self.assertIn("best first by eval-selected/perplexity, lower is better", self.out)

    def test_failed_points_are_named_with_the_first_cause(self):
        self.assertIn("6 points: 4 done, 1 failed, 1 not started", self.out)
        self.assertIn("The table has 4 results; 2 of 6 points have none:", self.out)
        self.assertIn(
            "  point 1 (r=4, learning_rate=1e-3): failed in finetune-selected: no record fits: max_length = 2\n",
            self.out,
        )
        self.assertIn("  point 5 (r=16, learning_rate=1e-2): not started\n", self.out)

    def test_text_file_is_what_the_terminal_shows(self):
        with open(self.path("sweep.txt"), encoding="utf-8") as file:
            self.assertTrue(self.out.startswith(file.read()))

    def test_csv_has_every_point_and_metric(self):
        with open(self.path("sweep.csv"), encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([row["point"] for row in rows], ["4", "3", "2", "0", "1", "5"])
        self.assertEqual(rows[0]["finetune.training.learning_rate"], "1e-3")
        self.assertEqual(float(rows[0]["eval-selected/arc_easy/acc"]), 0.4)
        self.assertEqual(float(rows[0]["finetune-selected/final_loss"]), 4.0)
        self.assertAlmostEqual(float(rows[0]["finetune-selected/least_loss"]), 3.1)
        self.assertEqual(rows[4]["cause"], "finetune-selected: no record fits: max_length = 2")
        self.assertNotIn("eval-selected/arc_easy/acc_stderr", rows[0])

    def test_h5_tables(self):
        import h5py

        with h5py.File(self.path("sweep.h5")) as file:
            self.assertEqual(file.attrs["format"], "moebatch-sweep")
            self.assertEqual(file.attrs["metric"], "eval-selected/perplexity")
            self.assertEqual(file.attrs["higher_is_better"], 0)
            self.assertEqual(list(file["point"]), list(range(6)))
            self.assertEqual(list(file["order"]), [4, 3, 2, 0])
            self.assertEqual(file["state"].asstr()[1], "failed")
            self.assertEqual(file["failed_stage"].asstr()[1], "finetune-selected")
            self.assertEqual(list(file["overrides"]["finetune.training.learning_rate"]), [1e-4, 1e-3, 1e-2] * 2)
            values = file["metrics/eval-selected/perplexity"][...]
            self.assertEqual(values[4], 100.0)
            self.assertTrue(values[1] != values[1])

    def test_figure(self):
        for name, magic in (("sweep.png", b"\x89PNG"), ("sweep.pdf", b"%PDF")):
            with open(self.path(name), "rb") as file:
                self.assertEqual(file.read(4), magic)

    def test_another_metric(self):
        out = tempfile.mkdtemp(prefix="mb-sweep-")
        try:
            code, text, _ = call_main(sweep, self.folder, "--metric", "acc", "--out", out)
            self.assertEqual(code, 0)
            self.assertIn("best first by eval-selected/arc_easy/acc, higher is better", text)
            self.assertEqual(os.path.exists(os.path.join(out, "sweep.h5")), True)
        finally:
            shutil.rmtree(out)
        code, _, err = call_main(sweep, self.folder, "--metric", "bleu")
        self.assertEqual(code, 2)
        self.assertIn("no metric is called 'bleu'; there are: eval-selected/arc_easy/acc", err)


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class OddSweeps(unittest.TestCase):
    """What can be missing or unusual."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-sweep-")

    def tearDown(self):
        shutil.rmtree(self.folder)

    def test_nothing_done_yet(self):
        write_points(self.folder)
        os.makedirs(os.path.join(self.folder, "point_002", "finetune-selected"))
        with open(os.path.join(self.folder, "point_002", "finetune-selected", "lease"), "w", encoding="utf-8"):
            pass
        code, out, _ = call_main(sweep, self.folder)
        self.assertEqual(code, 0)
        self.assertIn("6 points: 1 running, 5 not started", out)
        self.assertIn("no point has a result yet", out)
        self.assertTrue(os.path.exists(os.path.join(self.folder, "sweep.h5")))

    def test_values_that_are_no_numbers(self):
        write_points(self.folder, ("select.select.score",), (("good_mass",), ("perplexity",)))
        write_point(self.folder, 0)
        write_point(self.folder, 1)
        import h5py

        self.assertEqual(call_main(sweep, self.folder)[0], 0)
        with h5py.File(os.path.join(self.folder, "sweep.h5")) as file:
            self.assertEqual(file["overrides/select.select.score"].asstr()[0], "good_mass")
        self.assertTrue(os.path.exists(os.path.join(self.folder, "sweep.pdf")))

    def test_a_result_of_an_older_attempt_is_not_counted(self):
        write_points(self.folder)
        write_point(self.folder, 0)
        root = os.path.join(self.folder, "point_000")
        os.rename(os.path.join(root, "eval-selected"), os.path.join(root, "eval-selected.1"))
        fail_point(self.folder, 0, "eval-selected", "killed")
        _, out, _ = call_main(sweep, self.folder)
        self.assertIn("point 0 (r=4, learning_rate=1e-4): failed in eval-selected: killed", out)
        self.assertIn("The table has 0 results", out)

    def test_a_failure_without_words_of_its_own_is_looked_up_in_the_log(self):
        write_points(self.folder)
        fake.write_json(
            os.path.join(self.folder, "point_000", "failure.json"),
            {"code": 2, "job": "7_0", "message": "ended with code 2, without a message of its own; see the log"},
        )
        os.makedirs(os.path.join(self.folder, "logs"))
        with open(os.path.join(self.folder, "logs", "points-7_0.log"), "w", encoding="utf-8") as file:
            file.write("[moe-train] error: training.lora.r: 0 is too small\nselect-moe.sh: stage x ended with code 2\n")
        self.assertIn("failed: [moe-train] error: training.lora.r: 0 is too small", call_main(sweep, self.folder)[1])

    def test_no_sweep_and_broken_tables(self):
        code, _, err = call_main(sweep, self.folder)
        self.assertEqual(code, 3)
        self.assertIn("no points.tsv", err)
        write_points(self.folder, rows=(("4",),))
        code, _, err = call_main(sweep, self.folder)
        self.assertEqual(code, 3)
        self.assertIn("points.tsv, line 2: a point's number and 2 values were expected", err)

    def test_as_a_program(self):
        write_points(self.folder)
        write_point(self.folder, 0)
        code, out, err = run_script("analysis/sweep.py", self.folder, "--no-figures")
        self.assertEqual((code, err), (0, ""))
        self.assertIn("The table has 1 result; 5 of 6 points have none:", out)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "sweep.png")))


if __name__ == "__main__":
    unittest.main()
