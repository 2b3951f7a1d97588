"""The demo's data recipe and the exporter."""

import base64
import json
import os
import random
import shutil
import tempfile
import unittest

from support import call_main, lacking, run_script

import demo
import demo_damage
import demo_sources
import export_hf

TEXT = (
    "A record of ordinary prose, long enough to be spoilt in every way that the recipe knows.\n"
    "It has two lines, and each of them has words of its own. " * 2
)[:280]


def read(path):
    """The objects of a JSONL file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Damage(unittest.TestCase):
    """Every kind, on its own."""

    def spoilt(self, kind, seed=0, text=TEXT):
        return demo_damage.damage(
            kind, text, random.Random(seed), [TEXT[::-1], "other words of another record " * 8]
        )

    def test_length_stays(self):
        for kind in demo_damage.KINDS:
            for seed in range(20):
                spoilt = self.spoilt(kind, seed)
                self.assertNotEqual(spoilt, TEXT, kind)
                self.assertLessEqual(
                    abs(demo_sources.size(spoilt) - demo_sources.size(TEXT)),
                    3 if kind != "noise" else 0,
                    (kind, seed),
                )

    def test_words_and_characters_are_kept(self):
        self.assertEqual(sorted(self.spoilt("words").split()), sorted(TEXT.split()))
        self.assertEqual(sorted(self.spoilt("chars")), sorted(TEXT))
        self.assertEqual([c.isspace() for c in self.spoilt("chars")], [c.isspace() for c in TEXT])

    def test_noise_share(self):
        shares = [
            sum(a != b for a, b in zip(TEXT, self.spoilt("noise", seed))) / len(TEXT) for seed in range(200)
        ]
        self.assertGreater(min(shares), 0.04)
        self.assertLess(max(shares), 0.38)
        self.assertAlmostEqual(sum(shares) / len(shares), 0.2, delta=0.02)

    def test_base64_decodes_to_the_start(self):
        spoilt = self.spoilt("base64")
        self.assertTrue(TEXT.encode().startswith(base64.b64decode(spoilt[: len(spoilt) // 4 * 4])))

    def test_lines_repeat_one_line(self):
        origins = set()
        for seed in range(40):
            first, *others = self.spoilt("lines", seed).split("\n")
            self.assertTrue(all(line == first for line in others[:-1]))
            self.assertTrue(first.startswith(others[-1]))
            origins.add(first in demo_damage.BOILERPLATE)
        self.assertEqual(origins, {True, False})

    def test_same_seed_same_bytes(self):
        for kind in demo_damage.KINDS:
            self.assertEqual(self.spoilt(kind, 5), self.spoilt(kind, 5))

    def test_text_beyond_ascii(self):
        text = ("Übergröße naïve café — Ärger. " * 8).strip()
        for kind in demo_damage.KINDS:
            spoilt = self.spoilt(kind, 1, text)
            self.assertLessEqual(demo_sources.SHORTEST, demo_sources.size(spoilt))
            self.assertNotIn("\ufffd", spoilt)


class Sources(unittest.TestCase):
    """Text forms, on small inputs."""

    def test_troff(self):
        page = (
            '.TH X 2\n.SH NAME\nx \\- open \\fIa\\fP file\n.SH "SEE ALSO"\n.BR open (2),\n'
            '.BI "int " fd ;\n.PP\n'
            'One\n.\\" comment\ntwo\\(aqs.\n.TS\ntable\n.TE\n'
            ".nf\n  code\\e\n  more\n.fi\n"
        )
        self.assertEqual(
            demo_sources.man_paragraphs(page),
            ["NAME", "x - open a file", "SEE ALSO", "open(2), int fd;", "One two's.", "  code\\\n  more"],
        )
        self.assertEqual(demo_sources.man_paragraphs(".Dd today\n.Sh NAME\n"), [])

    def test_pod(self):
        text = (
            "code before\n\n=head1 The C<name> of it\n\nSee L<perlop/Quote> and L<the text|http://x>, "
            "B<I<both>>, C<< a->b >>, 1 E<lt> 2.X<index>\n\n    verbatim C<kept>\n\n"
            "=begin html\n\ndropped\n\n=end html\n\n=over\n\n=item first thing\n\nText.\n\n=cut\n\nmore code"
        )
        self.assertEqual(
            demo_sources.pod_paragraphs(text),
            [
                "The name of it",
                "See perlop in Quote and the text, both, a->b, 1 < 2.",
                "    verbatim C<kept>",
                "first thing",
                "Text.",
            ],
        )

    def test_wordnet(self):
        line = "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 002 @ 02083346 n 0000 "
        line += '@ 01317541 n 0000 | a member of the genus Canis; "it barks"  \n'
        self.assertEqual(
            demo_sources.wordnet_entry(line, "noun"),
            'dog, domestic dog, Canis familiaris (noun, animal): a member of the genus Canis; "it barks"',
        )

    def test_python(self):
        folder = tempfile.mkdtemp(prefix="mb-python-")
        body = "\n".join(f"        value_{i} = self.compute(value_{i - 1}) + other" for i in range(1, 6))
        with open(os.path.join(folder, "m.py"), "w", encoding="utf-8") as file:
            file.write(
                f'class Thing:\n    """A thing."""\n    def method(self, value_0, other):\n'
                f"{body}\n        return value_5\n"
            )
        found = demo_sources.python(folder)
        shutil.rmtree(folder)
        self.assertEqual(len(found), 1)
        self.assertTrue(found[0].startswith("def method(self, value_0, other):\n    value_1 ="))
        self.assertTrue(found[0].endswith("    return value_5"))

    def test_paragraphs_become_records_of_allowed_length(self):
        rng = random.Random(3)
        paragraphs = [" ".join(["word"] * rng.randint(5, 400)) + "." for _ in range(60)] + [
            ". ".join(["a sentence of words"] * 100)
        ]
        for record in demo_sources.usable(demo_sources.join_paragraphs(paragraphs, rng)):
            self.assertTrue(demo_sources.SHORTEST <= demo_sources.size(record) <= demo_sources.LONGEST)


class Demo(unittest.TestCase):
    """The recipe on this machine's packages, small."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="mb-demo-")
        cls.code, cls.out, cls.err = run_script("datasets/demo.py", cls.folder, "--scale", "0.05")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def setUp(self):
        if self.code == 3:
            self.skipTest(self.err.strip())

    def corpus(self):
        folder = os.path.join(self.folder, "corpus")
        return {name[:-6]: read(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}

    def test_counts_and_hashes(self):
        self.assertEqual(self.code, 0, self.err)
        with open(os.path.join(self.folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        self.assertEqual(manifest["files"]["pretrain.jsonl"]["records"], 800)
        self.assertEqual(manifest["files"]["heldout.jsonl"]["records"], 75)
        self.assertEqual(sum(len(rows) for rows in self.corpus().values()), 675)
        for name, entry in manifest["files"].items():
            self.assertEqual(len(read(os.path.join(self.folder, name))), entry["records"], name)
        self.assertTrue(demo.is_built(self.folder, {"options": manifest["options"]}))

    def test_lines_hold_text_and_id_only(self):
        for rows in list(self.corpus().values()) + [read(os.path.join(self.folder, "heldout.jsonl"))]:
            self.assertTrue(all(set(row) == {"text", "id"} for row in rows))
            self.assertTrue(all(150 <= len(row["text"].encode()) <= 900 for row in rows))
            self.assertEqual(len({row["id"] for row in rows}), len(rows))

    def test_labels(self):
        corpus, labels = self.corpus(), read(os.path.join(self.folder, "labels.jsonl"))
        self.assertEqual(
            {(r["source"], r["index"]) for r in labels},
            {(s, i) for s, rows in corpus.items() for i in range(len(rows))},
        )
        counts = {kind: sum(r["kind"] == kind for r in labels) for kind in ("good", *demo_damage.KINDS)}
        self.assertLessEqual(abs(counts["good"] - len(labels) / 2), len(corpus))
        bad = [counts[kind] for kind in demo_damage.KINDS]
        self.assertLessEqual(max(bad) - min(bad), 1)
        for row in labels:
            if row["kind"] == "base64":
                self.assertRegex(corpus[row["source"]][row["index"]]["text"], r"\A[A-Za-z0-9+/=]+\Z")

    def test_no_text_stands_twice(self):
        labels = {
            (r["source"], r["index"]): r["kind"] for r in read(os.path.join(self.folder, "labels.jsonl"))
        }
        # Repeated boilerplate lines of equal length may be equal: that is the damage.
        texts = [
            row["text"]
            for source, rows in self.corpus().items()
            for i, row in enumerate(rows)
            if labels[source, i] != "lines"
        ]
        texts += [
            row["text"]
            for name in ("pretrain", "heldout")
            for row in read(os.path.join(self.folder, name + ".jsonl"))
        ]
        self.assertEqual(len(texts) - len(set(texts)), 0)

    def test_same_seed_same_bytes_other_seed_others(self):
        hashes = []
        for seed in ("0", "0", "1"):
            folder = tempfile.mkdtemp(prefix="mb-demo-")
            self.assertEqual(
                run_script(
                    "datasets/demo.py",
                    folder,
                    "--scale",
                    "0.05",
                    "--seed",
                    seed,
                    "--quiet",
                    PYTHONHASHSEED=str(len(hashes)),
                )[0],
                0,
            )
            with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
                hashes.append({name: entry["sha256"] for name, entry in json.load(file)["files"].items()})
            shutil.rmtree(folder)
        self.assertEqual(hashes[0], hashes[1])
        self.assertTrue(all(hashes[0][name] != hashes[2][name] for name in hashes[0]))

    def test_built_data_is_left_alone(self):
        code, out, _ = run_script("datasets/demo.py", self.folder, "--scale", "0.05")
        self.assertEqual(code, 0)
        self.assertIn("already built", out)

    def test_corpus_inputs_name_the_files(self):
        with open(os.path.join(self.folder, "corpus.inputs"), encoding="utf-8") as file:
            pairs = dict(word.split("=", 1) for word in file.read().strip().split(","))
        self.assertEqual(set(pairs), set(self.corpus()))
        self.assertTrue(all(os.path.isfile(path) for path in pairs.values()))


class Refusals(unittest.TestCase):
    """Messages for what cannot work."""

    def test_too_few_sources(self):
        kept = dict(demo.SOURCES)
        try:
            demo.SOURCES.update({name: ((lambda: []), *kept[name][1:]) for name in ("perl", "man")})
            demo.SOURCES.update(
                {name: ((lambda: [TEXT]), *kept[name][1:]) for name in ("wordnet", "python", "fortunes")}
            )
            code, out, err = call_main(demo, os.path.join(tempfile.gettempdir(), "never-written"))
        finally:
            demo.SOURCES.update(kept)
        self.assertEqual(code, 3)
        self.assertIn("apt-get install perl-doc manpages manpages-dev", err)
        self.assertIn("path-exclude", out)

    def test_repeats_are_found(self):
        repeats = demo.Repeats()
        self.assertTrue(repeats.is_new(TEXT))
        self.assertFalse(repeats.is_new(TEXT.upper() + " and more"))
        self.assertTrue(
            repeats.is_new("Nothing of this was there before, not a single run of eight words of it.")
        )

    def test_share_out(self):
        self.assertEqual(demo.share_out(11, ["a", "b", "c"]), {"a": 4, "b": 4, "c": 3})

    def test_fields_of_the_exporter(self):
        self.assertEqual(export_hf.parse_fields("a,b=c"), [("a", "a"), ("b", "c")])
        self.assertEqual(export_hf.shape({"a": 1, "b": 2, "d": 3}, [("b", "c")]), {"c": 2})
        with self.assertRaisesRegex(export_hf.ExportError, "no field 'x'; there are: a"):
            export_hf.shape({"a": 1}, [("x", "x")])

    def test_exporter_without_its_library(self):
        blocked = tempfile.mkdtemp(prefix="mb-blocked-")
        with open(os.path.join(blocked, "datasets.py"), "w", encoding="utf-8") as file:
            file.write("raise ImportError('not here')\n")
        code, _, err = run_script(
            "datasets/export_hf.py", "some/set", "--out", os.path.join(blocked, "x.jsonl"), PYTHONPATH=blocked
        )
        shutil.rmtree(blocked)
        self.assertEqual(code, 3)
        self.assertIn("pip install datasets", err)

    @unittest.skipIf(lacking("pyarrow"), lacking("pyarrow"))
    def test_exporter_on_parquet(self):
        import pyarrow
        import pyarrow.parquet

        folder = tempfile.mkdtemp(prefix="mb-export-")
        pyarrow.parquet.write_table(
            pyarrow.table({"q": ["a", "é"], "n": [1, None]}), os.path.join(folder, "a.parquet")
        )
        code, _, err = run_script(
            "datasets/export_hf.py",
            folder,
            "--out",
            os.path.join(folder, "a.jsonl"),
            "--fields",
            "n,q=question",
            HF_HOME=os.path.join(folder, "cache"),
        )
        self.assertEqual(code, 0, err)
        self.assertEqual(
            read(os.path.join(folder, "a.jsonl")), [{"n": 1, "question": "a"}, {"n": None, "question": "é"}]
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    unittest.main()
