"""The report on result files whose numbers are known."""

import json
import os
import re
import shutil
import sys
import tempfile
import unittest

from support import ROOT, call_main, lacking, run_script

NO_PLOTS = lacking("numpy", "h5py", "matplotlib")
if NO_PLOTS is None:
    import fake
    import report


def row_of(text, start):
    """The table row that starts so, as words."""
    return next(line.split() for line in text.split("\n") if line.startswith(start))


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class OneRun(unittest.TestCase):
    """A run without seed folders."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="mb-report-")
        fake.write_study(cls.folder)
        cls.code, cls.out, cls.err = call_main(report, cls.folder)
        with open(os.path.join(cls.folder, "report", "report.html"), encoding="utf-8") as file:
            cls.page = file.read()

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_exit_code_and_path(self):
        self.assertEqual((self.code, self.err), (0, ""))
        self.assertIn(f"report: {os.path.join(self.folder, 'report', 'report.html')}", self.out)
        self.assertNotIn("left out", self.out)

    def test_perplexities(self):
        self.assertEqual(row_of(self.out, "selected (good_mass)")[2], "177.00")
        self.assertEqual(row_of(self.out, "random ")[1], "217.00")
        self.assertEqual(row_of(self.out, "all ")[1], "222.00")
        self.assertIn("selected beats random: perplexity 18.4 % lower", self.out)

    def test_good_share_is_that_of_the_selection(self):
        import mbfiles

        labels = mbfiles.read_labels(os.path.join(self.folder, "labels.jsonl"))
        with open(
            os.path.join(self.folder, "select-good_mass", "selected_data.jsonl"), encoding="utf-8"
        ) as file:
            kinds = [labels[r["source_dataset"], r["source_index"]] for r in map(json.loads, file)]
        expected = 100 * kinds.count("good") / len(kinds)
        self.assertEqual(row_of(self.out, "selected (good_mass)")[3], f"{expected:.1f}")
        self.assertEqual(row_of(self.out, "all ")[2], "50.0")

    def test_source_shares(self):
        self.assertEqual(row_of(self.out, "selected (good_mass)")[7:], ["20.0", "%"] * 5)

    def test_auc_table_is_sorted_and_priced(self):
        names = [line.split()[0] for line in self.out.split("AUC:")[1].split("\n")[3:8]]
        self.assertEqual(names, ["perplexity", "good_mass", "entropy", "bytes_per_token", "random"])
        self.assertEqual(
            row_of(self.out.split("AUC:")[1], "good_mass"),
            "good_mass 0.893 0.700 0.990 0.950 0.990 0.730 0.910 0.980 2.1e+06".split(),
        )

    def test_page_is_self_contained(self):
        images = re.findall(r'<img [^>]*src="([^"]*)"', self.page)
        self.assertGreaterEqual(len(images), 12)
        self.assertTrue(all(src.startswith("data:image/png;base64,") for src in images))
        self.assertNotRegex(self.page, r"<(script|link)\b|https?://")
        self.assertIn("177.00", self.page)

    def test_png_files_beside(self):
        found = {name for name in os.listdir(os.path.join(self.folder, "report")) if name.endswith(".png")}
        self.assertLessEqual(
            {
                f"{n}.png"
                for n in (
                    "result",
                    "auc",
                    "auc-cost",
                    "auc-layers",
                    "sources",
                    "quality",
                    "scores",
                    "good-mass",
                    "router-heat",
                    "finetune",
                    "warmup-terms",
                )
            },
            found,
        )

    def test_summary_for_programs(self):
        with open(os.path.join(self.folder, "report", "report.json"), encoding="utf-8") as file:
            summary = json.load(file)
        self.assertEqual(summary["targets"]["selected"]["perplexity"], [177.0])
        self.assertEqual(summary["targets"]["selected"]["selection"], ["good_mass"])
        self.assertIsNone(summary["targets"]["selected"]["spread"])


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class SeveralSeeds(unittest.TestCase):
    """Means, spreads and verdicts over seeds."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-report-")
        fake.write_study(self.folder, seeds=(0, 1, 2), per_source=70)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def test_mean_and_spread(self):
        _, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertEqual(row_of(out, "selected (good_mass)")[2:5], ["178.77", "+-", "1.77"])
        self.assertIn("selected beats random (3 of 3 seeds)", out)
        self.assertEqual(row_of(out.split("AUC:")[1], "good_mass")[1:4], ["0.893", "+-", "0.000"])

    def test_one_lost_seed_is_said(self):
        path = os.path.join(self.folder, "seed_1", "eval-random", "results.json")
        fake.write_json(path, {"perplexity": {"all": {"perplexity": 150.0}}})
        _, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertIn("beats, but not in every seed, random (2 of 3 seeds)", out)

    def test_missing_seed_counts_as_missing(self):
        os.remove(os.path.join(self.folder, "seed_2", "eval-selected", "results.json"))
        _, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertIn("(2 of 2 seeds)", out)
        self.assertIn("seed 2: eval-selected/results.json is not there", out)


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class Incomplete(unittest.TestCase):
    """Half of a run gives half of a report."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-report-")
        fake.write_study(self.folder, per_source=70)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def test_without_labels_and_auc(self):
        shutil.rmtree(os.path.join(self.folder, "auc"))
        code, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertEqual(code, 0)
        self.assertIn("no labels known", out)
        self.assertEqual(row_of(out, "selected (good_mass)")[3], "-")
        self.assertIn("auc/auc.json is not there", out)

    def test_selection_is_found_by_its_hash(self):
        fake.write_done(self.folder, "shard-selected", inputs={"selected": "hash of perplexity"})
        _, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertIn("\nselected (perplexity) ", out)
        _, out, _ = call_main(report, self.folder, "--no-figures", "--selected", "good_mass")
        self.assertIn("\nselected (good_mass) ", out)

    def test_curves_of_a_running_stage(self):
        import mbfiles

        path = os.path.join(self.folder, "pretrain", "metrics.h5")
        os.remove(path)
        with open(path[:-2] + "jsonl", "w", encoding="utf-8") as file:
            file.write('{"step": 10, "loss": 5.5}\n{"step": 20, "loss": 5.25, "lr": 0.5}\n{"step": 30, "lo')
        found = mbfiles.read_metrics(path)
        self.assertEqual((list(found["step"]), list(found["loss"])), ([10, 20], [5.5, 5.25]))
        self.assertEqual(set(found), {"step", "loss", "lr"})

    def test_labels_given(self):
        shutil.rmtree(os.path.join(self.folder, "auc"))
        _, out, _ = call_main(
            report, self.folder, "--labels", os.path.join(self.folder, "labels.jsonl"), "--no-figures"
        )
        self.assertGreater(float(row_of(out, "selected (good_mass)")[3]), 80)

    def test_only_evaluations(self):
        for name in os.listdir(self.folder):
            if not name.startswith("eval-"):
                path = os.path.join(self.folder, name)
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        code, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertEqual(code, 0)
        self.assertIn("selected beats random", out)

    def test_tasks(self):
        for target, accuracy in (("selected", 0.5), ("random", 0.25)):
            tasks = {
                "arc_easy": {"acc,none": accuracy, "acc_norm,none": accuracy + 0.1},
                "mmlu": {"acc,none": accuracy},
                "mmlu_law": {"acc,none": 0.75},
            }
            fake.write_json(os.path.join(self.folder, "eval-" + target, "results.json"), {"results": tasks})
        _, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertEqual(row_of(out, "arc_easy"), ["arc_easy", "acc", "0.5000", "0.2500", "-", "-"])
        self.assertNotIn("mmlu_law", out)
        with open(os.path.join(self.folder, "report", "report.html"), encoding="utf-8") as file:
            self.assertIn("mmlu_law", file.read())

    def test_skewed_selection_is_named(self):
        path = os.path.join(self.folder, "select-good_mass", "summary.json")
        with open(path, encoding="utf-8") as file:
            summary = json.load(file)
        for name, share in zip(fake.SOURCES, (0.45, 0.44, 0.05, 0.03, 0.03)):
            summary["sources"][name]["share"] = share
        fake.write_json(path, summary)
        _, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertIn("the selection is skewed: wordnet 45.0 % of the selection, 20.0 % of the corpus", out)

    def test_broken_json_is_named(self):
        with open(os.path.join(self.folder, "eval-all", "results.json"), "w", encoding="utf-8") as file:
            file.write('{"perplexity": ')
        code, _, err = call_main(report, self.folder, "--no-figures")
        self.assertEqual(code, 3)
        self.assertIn("eval-all/results.json: not whole JSON", err)

    def test_null_auc(self):
        path = os.path.join(self.folder, "auc", "auc.json")
        with open(path, encoding="utf-8") as file:
            auc = json.load(file)
        auc["scores"]["random"].update(all=None, words=None)
        fake.write_json(path, auc)
        code, out, _ = call_main(report, self.folder, "--no-figures")
        self.assertEqual(code, 0)
        self.assertEqual(row_of(out.split("AUC:")[1], "random")[1:3], ["-", "-"])

    def test_figures_of_what_is_there(self):
        for name in ("score", "warmup", "finetune-all"):
            shutil.rmtree(os.path.join(self.folder, name))
        fake.write_json(
            os.path.join(self.folder, "auc", "auc.json"),
            {"scores": {"random": {"all": None, "layers": []}}, "counts": {"good": 3}},
        )
        code, out, _ = call_main(report, self.folder)
        self.assertEqual(code, 0)
        self.assertNotIn("figures left out", out)
        self.assertIn("score/scores.h5 is not there", out)
        found = set(os.listdir(os.path.join(self.folder, "report")))
        self.assertLessEqual({"result.png", "auc.png", "sources.png", "finetune.png"}, found)
        self.assertTrue(found.isdisjoint({"scores.png", "router-heat.png", "auc-cost.png"}))

    def test_empty_and_missing_folders(self):
        empty = tempfile.mkdtemp(prefix="mb-report-")
        self.assertEqual(call_main(report, empty, "--no-figures")[0], 3)
        os.rmdir(empty)
        self.assertEqual(call_main(report, empty, "--no-figures")[0], 2)

    def test_tables_without_plotting_packages(self):
        blocked = tempfile.mkdtemp(prefix="mb-blocked-")
        for name in ("numpy", "h5py", "matplotlib"):
            with open(os.path.join(blocked, name + ".py"), "w", encoding="utf-8") as file:
                file.write("raise ImportError('not here')\n")
        code, out, err = run_script("analysis/report.py", self.folder, PYTHONPATH=blocked)
        shutil.rmtree(blocked)
        self.assertEqual((code, err), (0, ""))
        self.assertIn("177.00", out)
        self.assertIn("figures left out", out)


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class Scripts(unittest.TestCase):
    """The small programs, and the numbers behind the figures."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="mb-scripts-")
        cls.labels = fake.write_study(cls.folder, per_source=70)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_each_draws_its_figures(self):
        import curves
        import router
        import scores
        import selection

        where = ("--out", os.path.join(self.folder, "png"))
        stage = lambda name: os.path.join(self.folder, name)  # noqa: E731
        for module, arguments in (
            (curves, (stage("pretrain"), stage("finetune-all"))),
            (curves, (stage("warmup"), "--name", "terms")),
            (router, (stage("warmup"),)),
            (scores, (stage("score/scores.h5"), "--labels", self.labels, "--auc", stage("auc/auc.json"))),
            (selection, (self.folder,)),
        ):
            code, out, err = call_main(module, *arguments, *where)
            self.assertEqual((code, err), (0, ""))
            for path in out.split():
                with open(path, "rb") as file:
                    self.assertEqual(file.read(8), b"\x89PNG\r\n\x1a\n")

    def test_missing_inputs_are_named(self):
        import router
        import scores

        self.assertEqual(call_main(scores, os.path.join(self.folder, "nothing.h5"))[0], 3)
        self.assertEqual(call_main(router, os.path.join(self.folder, "pretrain"))[0], 3)

    def test_scores_are_turned_so_that_high_is_good(self):
        import mbfiles
        import scores

        table = mbfiles.read_scores(os.path.join(self.folder, "score", "scores.h5"))
        kinds = scores.kinds_of(table, mbfiles.read_labels(self.labels))
        for name in ("good_mass", "perplexity", "entropy"):
            values = table["scores"][name]
            self.assertGreater(values[kinds == "good"].mean(), values[kinds == "chars"].mean(), name)

    def test_rank_in_source_keeps_sources_equal(self):
        import numpy
        from selection import good_share_curve, rank_in_source

        values = numpy.array([5.0, 4.0, 3.0, 2.0, 0.4, 0.3, 0.2, 0.1, numpy.nan])
        source = numpy.array(["a"] * 4 + ["b"] * 5, dtype=object)
        order = rank_in_source(values, source)
        self.assertEqual(len(order), 8)
        self.assertEqual(sorted(order[:2]), [0, 4])
        self.assertEqual(sorted(order[:4]), [0, 1, 4, 5])
        kept, good = good_share_curve(numpy.array([1, 0, 0, 0, 1, 0, 0, 0, 0.0]), order, 8)
        self.assertEqual(list(good[:2]), [1.0, 1.0])
        self.assertAlmostEqual(good[-1], 0.25)
        self.assertAlmostEqual(kept[-1], 1.0)

    def test_tensorboard_records(self):
        import struct

        sys.modules.pop("tensorboard", None)
        import tensorboard

        # RFC 3720 appendix B.4: CRC-32C of 32 zero bytes is 0x8a9136aa; TFRecord masks it.
        crc = 0x8A9136AA
        self.assertEqual(
            tensorboard.masked_crc(bytes(32)), (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        )
        out = os.path.join(self.folder, "tb")
        code, text, _ = call_main(tensorboard, self.folder, "--out", out)
        self.assertEqual(code, 0)
        path = next(p for p in text.split() if "/pretrain/" in p)
        with open(path, "rb") as file:
            data = file.read()
        count = position = 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            self.assertEqual(
                struct.unpack_from("<I", data, position + 8)[0],
                tensorboard.masked_crc(data[position : position + 8]),
            )
            body = data[position + 12 : position + 12 + length]
            self.assertEqual(
                struct.unpack_from("<I", data, position + 12 + length)[0], tensorboard.masked_crc(body)
            )
            position, count = position + 16 + length, count + 1
        self.assertEqual(count, 401)

    def test_metrics_as_csv(self):
        import tensorboard

        code, text, _ = call_main(
            tensorboard, self.folder, "--csv", "--out", os.path.join(self.folder, "csv")
        )
        self.assertEqual(code, 0)
        with open(next(p for p in text.split() if "/warmup/" in p), encoding="utf-8") as file:
            lines = file.read().split("\n")
        self.assertIn("r_mean/3", lines[0].split(","))
        self.assertEqual(len(lines), 202)


if __name__ == "__main__":
    os.chdir(ROOT)
    unittest.main()
