"""Shares of members: tables, figures and coloured text of a file whose numbers are known."""

import html.parser
import json
import os
import re
import tempfile
import unittest

from support import call_main, lacking

NO_PLOTS = lacking("numpy", "h5py", "matplotlib")
if NO_PLOTS is None:
    import h5py
    import numpy
    import router_stats

QUERIES = (
    ("math", "2+2=", "4 & <done>"),
    ("chat", 'He said "', 'hi"\n\tthere\u20ac'),
    ("math", "7*6=", "42"),
)


def write_file(folder, members=("foundation", "sft"), stages=4, keep_tokens=True, queries=QUERIES):
    """router_stats.h5 with a token per letter; the last member's share in an answer is 0.9 for math, 0.2 for
    chat, a little more at every stage, and 0.5 in prompts."""
    rows = []
    for kind, prompt, answer in queries:
        text = prompt + answer
        share = numpy.zeros((len(text), stages, len(members)), dtype=numpy.float32)
        for t in range(len(text)):
            last = 0.5 if t < len(prompt) else {"math": 0.9, "chat": 0.2}[kind]
            for s in range(stages):
                share[t, s, -1] = last + 0.01 * s
                share[t, s, :-1] = (1 - share[t, s, -1]) / (len(members) - 1)
        share[0] = numpy.nan
        rows.append((kind, prompt, answer, share))
    with h5py.File(os.path.join(folder, "router_stats.h5"), "w") as file:
        file.attrs["format"], file.attrs["kind"] = "moebatch-router-stats", "layer_level"
        file["members"] = [name.encode() for name in members]
        names = ["embedding"] + [f"layer {i}" for i in range(stages - 2)] + ["head"]
        file["stages"] = [name.encode() for name in (names if stages > 1 else ["token"])]
        file["record"], file["sample"] = numpy.arange(len(rows)), numpy.zeros(len(rows), dtype=int)
        file["prompt_rows"] = [len(row[1]) - 1 for row in rows]
        file["answer_rows"] = [len(row[2]) for row in rows]
        file["prompt"] = [row[3][1 : len(row[1])].astype(float).mean(axis=0) for row in rows]
        file["answer"] = [row[3][len(row[1]) :].astype(float).mean(axis=0) for row in rows]
        if keep_tokens:
            letters = [letter for row in rows for letter in row[1] + row[2]]
            file["tokens/offsets"] = numpy.cumsum([0] + [len(row[3]) for row in rows])
            file["tokens/ids"] = numpy.array([ord(c) for c in letters], dtype=numpy.uint32)
            file["tokens/share"] = numpy.concatenate([row[3] for row in rows])
            file["tokens/end"] = numpy.cumsum([len(c.encode()) for c in letters])
            file["tokens/text"] = numpy.frombuffer("".join(letters).encode(), dtype=numpy.uint8)
    with open(os.path.join(folder, "generated.jsonl"), "w", encoding="utf-8") as file:
        for kind, prompt, answer, _ in rows:
            file.write(json.dumps({"type": kind, "prompt": prompt, "generated_text": answer}) + "\n")


class Page(html.parser.HTMLParser):
    """Texts of the tokens, their titles and colours, by query; links to other files."""

    def __init__(self):
        super().__init__()
        self.queries, self.colours, self.titles, self.links = [], [], [], []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        found = [attrs.get(key, "data:") for key in ("src", "href")]
        self.links += [link for link in found if not link.startswith("data:")]
        if tag == "div" and attrs.get("class") == "q":
            self.queries.append("")
        if tag == "span" and "title" in attrs:
            self.inside = True
            self.titles.append(attrs["title"])
            self.colours.append(re.search("#[0-9a-f]{6}", attrs["style"]).group())

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "span"

    def handle_data(self, data):
        if self.inside:
            self.queries[-1] += data


def read_page(folder):
    """The page as Page."""
    page = Page()
    with open(os.path.join(folder, "router_stats.html"), encoding="utf-8") as file:
        page.feed(file.read())
    return page


@unittest.skipIf(NO_PLOTS, NO_PLOTS)
class RouterStats(unittest.TestCase):
    """router_stats.py over written files."""

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="mb-router-stats-")
        self.folder = self.temporary.name
        self.addCleanup(self.temporary.cleanup)

    def test_tables(self):
        """Groups, stages and their means."""
        write_file(self.folder)
        code, out, err = call_main(router_stats, self.folder, "--by", "type")
        self.assertEqual((code, err), (0, ""))
        lines = [line.split() for line in out.splitlines()]
        self.assertIn(["math", "2", "0.485", "0.515", "0.085", "0.915"], lines)
        self.assertIn(["chat", "1", "0.485", "0.515", "0.785", "0.215"], lines)
        self.assertIn(["head", "0.070", "0.770"], lines)
        with open(os.path.join(self.folder, "router_stats.json"), encoding="utf-8") as file:
            found = json.load(file)
        self.assertEqual((found["members"], found["stages"][1]), (["foundation", "sft"], "layer 0"))
        self.assertEqual(found["groups"]["math"]["answer_tokens"], 12)
        for name in ("router_stats_stages.png", "router_stats_queries.png"):
            with open(os.path.join(self.folder, name), "rb") as file:
                self.assertEqual(file.read(8), b"\x89PNG\r\n\x1a\n")

    def test_coloured_text(self):
        """Every letter once and escaped, with its numbers; colours by share; nothing from elsewhere."""
        write_file(self.folder)
        code, _, _ = call_main(router_stats, self.folder, "--by", "type", "--no-figures")
        page = read_page(self.folder)
        self.assertEqual(code, 0)
        self.assertEqual(page.queries, [prompt + answer for _, prompt, answer in QUERIES])
        self.assertEqual(page.links, [])
        self.assertEqual(page.colours[0], "#ffffff")
        self.assertIn("foundation 0.085\nsft 0.915", page.titles[4])
        self.assertIn("layer 0: 0.09 0.91", page.titles[4])
        red, blue = (tuple(int(page.colours[i][k : k + 2], 16) for k in (1, 3, 5)) for i in (4, 23))
        self.assertGreater(red[0], red[2] + 60)  # towards sft's orange
        self.assertGreater(blue[2], blue[0] + 60)  # towards foundation's blue
        for colour in page.colours:  # black letters stay legible
            r, g, b = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
            self.assertGreater(0.299 * r + 0.587 * g + 0.114 * b, 110)

    def test_choice_of_queries(self):
        """As many of every group as there is room for."""
        self.assertEqual(router_stats.choose(["a", "a", "a", "b", "c"], 4), [0, 1, 3, 4])
        write_file(self.folder)
        arguments = ["--by", "type", "--queries", "2", "--stage", "head", "--full", "--no-figures"]
        call_main(router_stats, self.folder, *arguments)
        page = read_page(self.folder)
        self.assertEqual(page.queries, ["".join(QUERIES[0][1:]), "".join(QUERIES[1][1:])])
        self.assertIn("sft 0.930", page.titles[4])

    def test_other_files(self):
        """Three members, a token router, no tokens, no answers, other files."""
        write_file(self.folder, members=("a", "b", "c"), stages=1, keep_tokens=False)
        code, out, _ = call_main(router_stats, self.folder)
        self.assertEqual(code, 0)
        self.assertIn("router_stats_tokens=true", out)
        self.assertEqual(read_page(self.folder).queries, [])
        os.remove(os.path.join(self.folder, "router_stats.h5"))
        self.assertEqual(call_main(router_stats, self.folder)[0], 3)
        with h5py.File(os.path.join(self.folder, "router_stats.h5"), "w") as file:
            file.attrs["format"] = "moebatch-scores"
        code, _, err = call_main(router_stats, self.folder)
        self.assertEqual(code, 3)
        self.assertIn("moebatch-router-stats", err)

    def test_groups_of_another_run(self):
        """A field that is not there, and answers of another run."""
        write_file(self.folder)
        code, _, err = call_main(router_stats, self.folder, "--by", "kind", "--no-figures")
        self.assertEqual(code, 3)
        self.assertIn("no record has a field kind", err)
        with open(os.path.join(self.folder, "generated.jsonl"), "a", encoding="utf-8") as file:
            file.write("{}\n")
        code, _, err = call_main(router_stats, self.folder, "--by", "type", "--no-figures")
        self.assertEqual(code, 3)
        self.assertIn("two runs", err)


if __name__ == "__main__":
    unittest.main()
