"""Specialisation: what moe-eval writes against numpy; tables and figures of files whose numbers are known."""

import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import unittest

from support import ROOT, call_main, information, lacking

NO_PLOTS = lacking("numpy", "h5py", "matplotlib")
BIN = os.environ.get("MB_BIN", os.path.join(ROOT, "build", "bin"))
NO_PROGRAMS = NO_PLOTS or (
    None if os.access(os.path.join(BIN, "moe-eval"), os.X_OK) else f"{BIN}/moe-eval is not built"
)
if NO_PLOTS is None:
    import fake
    import h5py
    import mbfiles
    import numpy
    import specialisation

TYPES = ("math", "chat", "code")
CONFIG = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "vocab_size": 300,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def program(name, *arguments):
    """Run a program of the project; its words when it fails."""
    done = subprocess.run(
        [os.path.join(BIN, name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()


def write_records(folder):
    """Three types of text with words of their own, in one JSONL each; returns the inputs' configuration."""
    draw = random.Random("specialisation")
    words = {
        "math": "one two three plus minus times equals sum 7 12 40".split(),
        "chat": "hello you there thanks please tell me what of the weather".split(),
        "code": "int return for while { } ; struct static void = ( )".split(),
    }
    groups = []
    for name in TYPES:
        path = os.path.join(folder, name + ".jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for _ in range(24):
                file.write(
                    json.dumps({"text": " ".join(draw.choices(words[name], k=draw.randint(3, 60)))}) + "\n"
                )
        groups.append(f'{{ name = "{name}-file"; path = "{path}"; form = "text"; type = "{name}"; }}')
    path = os.path.join(folder, "mix.cfg")
    with open(path, "w", encoding="utf-8") as file:
        file.write("dataset: { inputs = ( " + ", ".join(groups) + " ); };\n")
    return path


@unittest.skipIf(NO_PROGRAMS, NO_PROGRAMS)
class Programs(unittest.TestCase):
    """routing.h5 and results.json of moe-eval against numpy."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="mb-routing-")
        at = lambda *names: os.path.join(cls.folder, *names)  # noqa: E731
        mix = write_records(cls.folder)
        fake.write_json(at("config.json"), CONFIG)
        program("moe-shard", "tokenizer", mix, "tokenizer.vocab_size=300", "output.dir=" + at("tok"))
        program("moe-shard", "build", mix, "tokenizer.path=" + at("tok"), "output.dir=" + at("shard"))
        program(
            "moe-convert",
            "init",
            "convert.config=" + at("config.json"),
            "tokenizer.path=" + at("tok"),
            "output.dir=" + at("init"),
        )
        program(
            "moe-eval",
            "model.path=" + at("init", "model"),
            "dataset.path=" + at("shard", "shard.h5"),
            "eval.routing=true",
            "eval.routing_permutations=30",
            "eval.tile_tokens=256",
            "output.dir=" + at("eval"),
        )
        cls.table = mbfiles.read_routing(at("eval", "routing.h5"))
        cls.results = mbfiles.read_json(at("eval", "results.json"))
        with h5py.File(at("shard", "shard.h5"), "r") as shard:
            names = [mbfiles.text_of(name) for name in shard["type_names"][...]]
            cls.types = numpy.array(names, dtype=object)[shard["type"][...]]
            cls.lengths = numpy.diff(shard["offsets"][...].astype(int)).clip(max=96)
            cls.tokens, cls.offsets = shard["tokens"][...], shard["offsets"][...]

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_tokens_and_picks(self):
        self.assertEqual(sorted(self.table["types"]), sorted(TYPES))
        for t, name in enumerate(self.table["types"]):
            tokens = int(self.lengths[self.types == name].sum())
            self.assertEqual(int(self.table["tokens"][t]), tokens)
            self.assertEqual(int(self.table["records"][t]), int((self.types == name).sum()))
            self.assertEqual(set(self.table["counts"][t].sum(axis=1)), {2 * tokens})
            self.assertEqual(set(self.table["first_counts"][t].sum(axis=1)), {tokens})
            numpy.testing.assert_allclose(self.table["mass"][t].sum(axis=1), tokens, rtol=1e-7)
        self.assertEqual(self.table["attributes"]["units"], 72)

    def test_shares_and_entropies(self):
        share = self.table["counts"] / self.table["counts"].sum(axis=2, keepdims=True)
        numpy.testing.assert_allclose(self.table["share"], share, rtol=1e-14)
        entropy = -(share * numpy.log(numpy.where(share > 0, share, 1))).sum(axis=2)
        numpy.testing.assert_allclose(self.table["entropy"], entropy, rtol=1e-12)

    def test_information(self):
        for prefix, equal in (("", False), ("equal/", True)):
            found = [information(self.table["counts"][:, layer], equal) for layer in range(3)]
            for name, key in (
                ("mutual_information", "mutual"),
                ("mutual_information_corrected", "corrected"),
                ("mutual_information_normalised", "normalised"),
                ("expert_entropy", "experts"),
            ):
                expected = [item[key] for item in found]
                numpy.testing.assert_allclose(self.table[prefix + name], expected, rtol=1e-9, atol=1e-12)
            mean = numpy.mean([item["mutual"] for item in found])
            self.assertAlmostEqual(self.table["all_layers"][prefix + "mutual_information"], mean, 12)

    def test_permuted_types(self):
        """The words differ by type, so no permutation of the records comes near."""
        for prefix in ("", "equal/"):
            shuffled, found = (
                self.table[prefix + "mutual_information_shuffled"],
                self.table[prefix + "mutual_information"],
            )
            self.assertEqual(shuffled.shape, (30, 3))
            p = (1 + (shuffled >= found).sum(axis=0)) / 31
            numpy.testing.assert_allclose(self.table[prefix + "mutual_information_p"], p, rtol=1e-14)
            whole = self.table["all_layers"][prefix + "mutual_information"]
            self.assertGreater(whole, shuffled.mean(axis=1).mean() + 5 * shuffled.mean(axis=1).std(ddof=1))

    def test_summary(self):
        summary = self.results["routing"]
        equal, base = summary["equal"], self.table["equal/mutual_information_shuffled"].mean(axis=1)
        self.assertEqual(summary["types"], self.table["types"])
        self.assertAlmostEqual(
            equal["mutual_information"], self.table["all_layers"]["equal/mutual_information"], 14
        )
        self.assertAlmostEqual(equal["shuffled_mean"], base.mean(), 12)
        self.assertAlmostEqual(equal["shuffled_sd"], base.std(ddof=1), 12)
        self.assertEqual(len(equal["layers"]), 3)

    def test_perplexity_by_type(self):
        by_type, whole = self.results["perplexity_by_type"], self.results["perplexity"]["all"]
        self.assertEqual(sorted(by_type), sorted(TYPES))
        self.assertAlmostEqual(sum(e["nll"] for e in by_type.values()), whole["nll"], 6)
        for name in TYPES:
            self.assertEqual(by_type[name]["nll"], self.results["perplexity"][name + "-file"]["nll"])


def counts_of(strength, layers=4, experts=8):
    """Routing where a type goes to an expert of its own `strength` times as often as to the others."""
    counts = numpy.full((3, layers, experts), 100)
    for t in range(3):
        counts[t, :, t] = int(100 * strength)
    return counts * numpy.array([1, 2, 4])[:, None, None]


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class Tables(unittest.TestCase):
    """specialisation.py on files whose numbers are known."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mb-specialisation-")
        for name, strength in (("before", 1), ("sft", 4)):
            for seed in (0, 1):
                fake.write_routing(self.path(name, seed), counts_of(strength + 0.1 * seed), TYPES)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def path(self, name, seed=0):
        return os.path.join(self.folder, f"{name}-{seed}", "routing.h5")

    def run_on(self, *arguments):
        code, out, err = call_main(specialisation, *arguments, "--out", self.folder)
        return code, out, err

    def test_two_models(self):
        code, out, err = self.run_on(
            "before=" + os.path.dirname(self.path("before")), "sft=" + self.path("sft")
        )
        self.assertEqual((code, err), (0, ""))
        expected = information(counts_of(4)[:, 0], True)["mutual"]
        self.assertIn(f"sft: information between expert and type {expected:.4f} nats, before: 0.0000", out)
        self.assertIn("0: 36 % (2.0x)", out)
        for name in ("share", "information", "entropy"):
            self.assertTrue(os.path.exists(os.path.join(self.folder, f"specialisation-{name}.png")))
        with open(os.path.join(self.folder, "specialisation.json"), encoding="utf-8") as file:
            found = json.load(file)["models"]["sft"]
        self.assertAlmostEqual(found["mean"], expected, 12)
        self.assertEqual(found["stands_out"][2]["expert"], 2)
        self.assertAlmostEqual(found["stands_out"][2]["share"], 4 / 11, 12)
        with open(os.path.join(self.folder, "specialisation.md"), encoding="utf-8") as file:
            page = file.read()
        self.assertIn("| sft | " + f"{expected:.4f} | 0.0010 +- 0.0000 |", page)
        self.assertIn("](specialisation-share.png)", page)

    def test_seeds(self):
        words = [f"{name}={self.path(name, seed)}" for name in ("before", "sft") for seed in (0, 1)]
        code, out, _ = self.run_on(*words, "--no-figures")
        values = [information(counts_of(4 + 0.1 * s)[:, 0], True)["mutual"] for s in (0, 1)]
        mean, spread = sum(values) / 2, abs(values[0] - values[1]) / math.sqrt(2)
        self.assertEqual(code, 0)
        self.assertIn(f"{mean:.4f} +- {spread:.4f}", out)
        self.assertIn("higher in 2 of 2 seeds", out)

    def test_many_layers_and_experts(self):
        for name in ("before", "sft"):
            fake.write_routing(self.path(name, 9), counts_of(3, layers=14, experts=64), TYPES, trash=4)
        code, out, err = self.run_on("before=" + self.path("before", 9), "sft=" + self.path("sft", 9))
        self.assertEqual((code, err), (0, ""))
        self.assertIn("specialisation-share-3.png", out)

    def test_what_cannot_be_compared_is_refused(self):
        fake.write_routing(self.path("other"), counts_of(1), ("a", "b", "c"))
        fake.write_routing(self.path("data"), counts_of(1), TYPES, shard="another")
        fake.write_routing(self.path("answers"), counts_of(1), TYPES, over="answers")
        for name, words in (("other", "differ in types"), ("data", "different data"), ("answers", "over")):
            code, _, err = self.run_on("a=" + self.path("before"), "b=" + self.path(name))
            self.assertEqual(code, 3)
            self.assertIn(words, err)
        self.assertEqual(self.run_on(os.path.join(self.folder, "nothing.h5"))[0], 3)

    def test_without_permutations(self):
        with h5py.File(self.path("sft"), "a") as file:
            del file["mutual_information_shuffled"], file["equal/mutual_information_shuffled"]
            for name in ("mutual_information_p", "equal/mutual_information_p"):
                file[name].attrs["all_layers"] = numpy.nan
        code, out, err = self.run_on("sft=" + self.path("sft"))
        self.assertEqual((code, err), (0, ""))
        row = next(line for line in out.split("\n") if line.startswith("sft "))
        self.assertEqual(row.split()[2], "-")

    def test_loads(self):
        metrics = os.path.join(self.folder, "train", "metrics.h5")
        fake.write_metrics(self.folder, "train", 20, {"loss": lambda s: 1.0 / s})
        loads = numpy.arange(5 * 4 * 8).reshape(5, 4, 8)
        with h5py.File(metrics, "a") as file:
            file["loads"] = loads
            file["loads_step"] = [1, 5, 10, 15, 20]
        columns = mbfiles.read_metrics(metrics)
        self.assertEqual(sorted(columns), ["loss", "step"])
        steps, found = mbfiles.read_table(metrics, "loads")
        numpy.testing.assert_array_equal(found, loads)
        self.assertEqual(list(steps), [1, 5, 10, 15, 20])
        code, out, err = self.run_on("sft=" + self.path("sft"), "--loads", metrics)
        self.assertEqual((code, err), (0, ""))
        self.assertIn("loads-train.png", out)
        code, _, err = self.run_on("sft=" + self.path("sft"), "--loads", self.path("sft") + ".none")
        self.assertEqual(code, 3)
        self.assertIn("no loads of experts", err)

    def test_loads_of_a_running_stage(self):
        path = os.path.join(self.folder, "metrics.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for step in (1, 2):
                file.write(json.dumps({"step": step, "loss": 2.0, "loads": [[1, 3], [2, 2]]}) + "\n")
            file.write('{"step": 3, "lo')
        columns = mbfiles.read_metrics(os.path.join(self.folder, "metrics.h5"))
        self.assertEqual(sorted(columns), ["loss", "step"])
        steps, loads = mbfiles.read_table(os.path.join(self.folder, "metrics.h5"), "loads")
        self.assertEqual((list(steps), loads.shape), ([1, 2], (2, 2, 2)))

    def test_heat_maps_for_reports(self):
        found = specialisation.plot_shares([("before", self.path("before")), ("sft", self.path("sft"))])
        self.assertEqual([name for name, _, _ in found], ["specialisation-share"])
        self.assertEqual(specialisation.plot_shares([]), [])
        from figures import plt

        plt.close("all")
