"""Curves of a stage that was validated."""

import json
import os
import shutil
import tempfile
import unittest

from support import call_main, lacking

NO_PLOTS = lacking("numpy", "h5py", "matplotlib")
if NO_PLOTS is None:
    import curves
    import fake
    import mbfiles


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class Validation(unittest.TestCase):
    """Lines per type, of a finished stage and of a running one."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-curves-")
        every = lambda f: (lambda s: f(s) if s % 5 == 0 else float("nan"))  # noqa: E731
        fake.write_metrics(
            self.folder,
            "sft",
            20,
            {
                "loss": lambda s: 3.0 - s / 20,
                "rewards/margins": lambda s: s / 10,
                "validation/loss": every(lambda s: 3.1 - s / 25),
                "validation/code/loss": every(lambda s: 2.1 - s / 25),
                "validation/gsm8k/loss": every(lambda s: 3.6 - s / 25),
                "validation/rewards/margins": every(lambda s: s / 12),
                "validation/code/rewards/margins": every(lambda s: s / 13),
            },
        )
        self.stage = os.path.join(self.folder, "sft")

    def tearDown(self):
        shutil.rmtree(self.folder)

    def test_types_and_terms(self):
        metrics = mbfiles.read_metrics(os.path.join(self.stage, "metrics.h5"))
        self.assertEqual(list(curves.validation_types(metrics)), ["code", "gsm8k", "all"])
        self.assertEqual(
            curves.validation_types(metrics, "rewards/margins"),
            {"code": "validation/code/rewards/margins", "all": "validation/rewards/margins"},
        )
        self.assertEqual(curves.validation_types({"loss": 1}), {})
        self.assertEqual(curves.validation_types(None), {})

    def test_figure_has_a_line_per_type_and_training(self):
        metrics = mbfiles.read_metrics(os.path.join(self.stage, "metrics.h5"))
        figure = curves.plot_validation(metrics)
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        self.assertEqual(list(lines), ["training", "code", "gsm8k", "all"])
        self.assertEqual(list(lines["code"].get_xdata()), [5, 10, 15, 20])
        self.assertAlmostEqual(lines["all"].get_ydata()[-1], 3.1 - 20 / 25)

    def test_command(self):
        for term in ("loss", "rewards/margins"):
            code, out, err = call_main(
                curves, self.stage, "--name", "validation", "--term", term, "--out", self.folder
            )
            self.assertEqual((code, err), (0, ""))
            with open(out.strip(), "rb") as file:
                self.assertEqual(file.read(8), b"\x89PNG\r\n\x1a\n")
        code, _, err = call_main(curves, self.stage, "--name", "validation", "--term", "none")
        self.assertEqual(code, 3)
        self.assertIn("no curve", err)

    def test_running_stage(self):
        os.remove(os.path.join(self.stage, "metrics.h5"))
        with open(os.path.join(self.stage, "metrics.jsonl"), "w", encoding="utf-8") as file:
            file.write(json.dumps({"step": 0, "validation/loss": 3.0, "validation/code/loss": 2.5}) + "\n")
            file.write(json.dumps({"step": 1, "loss": 3.2, "loads": [[1, 2]]}) + "\n")
        metrics = mbfiles.read_metrics(os.path.join(self.stage, "metrics.h5"))
        self.assertEqual(list(curves.validation_types(metrics)), ["code", "all"])


if __name__ == "__main__":
    unittest.main()
