"""Clean text records from files that Debian and Ubuntu packages install (standard library only).

A source is a name, the packages that bring it, and a function that returns candidate records in a fixed
order. Candidates are whole paragraphs, entries or functions; nothing here depends on the seed of the demo,
so the pool of text is the same for every seed. Contents: 1. shared helpers 2. WordNet 3. Python library 4.
fortunes 5. Perl manuals 6. manual pages
"""

import ast
import glob
import gzip
import os
import random
import re
import sys
import sysconfig
import textwrap

SHORTEST, LONGEST = 150, 900  # bytes of a record


# ---- 1. shared helpers -------------------------------------------------------------------------------------


def size(text):
    """Bytes of a text as it will stand in the file."""
    return len(text.encode("utf-8", "replace"))


def is_plain(text, letters=0.6):
    """Mostly letters, and free of control characters and of undecodable bytes?"""
    visible = [c for c in text if not c.isspace()]
    if not visible or "\ufffd" in text or any(ord(c) < 32 and c not in "\n\t" for c in text):
        return False
    return sum(c.isalpha() for c in visible) >= letters * len(visible)


def read_text(path):
    """A text file, plain or gzip; undecodable bytes become U+FFFD, which is_plain refuses."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        return file.read().decode("utf-8", "replace").replace("\r\n", "\n")


def split_long(paragraph):
    """Cut a paragraph that is too long for one record at sentence ends (or line ends)."""
    glue, border = ("\n", r"\n") if "\n" in paragraph else (" ", r"(?<=[.!?])\s+")
    pieces, piece = [], ""
    for sentence in re.split(border, paragraph):
        if piece and size(piece) + size(sentence) > LONGEST - 200:
            pieces.append(piece)
            piece = ""
        piece = piece + glue + sentence if piece else sentence
    return pieces + [piece]


def join_paragraphs(paragraphs, rng):
    """Consecutive paragraphs to records whose lengths spread over the allowed range."""
    records, parts, length = [], [], 0
    target = rng.randint(180, 700)
    for paragraph in paragraphs:
        for piece in split_long(paragraph) if size(paragraph) > LONGEST else [paragraph]:
            if length + size(piece) + 2 > LONGEST:
                records.append("\n\n".join(parts))
                parts, length = [], 0
            parts.append(piece)
            length += size(piece) + 2
            if length >= target:
                records.append("\n\n".join(parts))
                parts, length, target = [], 0, rng.randint(180, 700)
    return records + ["\n\n".join(parts)]


def usable(records, letters=0.6):
    """The records of allowed length and plain enough."""
    records = (record.strip("\n") for record in records)
    return [r for r in records if SHORTEST <= size(r) <= LONGEST and is_plain(r, letters)]


# ---- 2. WordNet: one entry per synset ----------------------------------------------------------------------

LEXICAL_FILES = (
    "all pert all Tops act animal artifact attribute body cognition communication event feeling food group "
    "location motive object person phenomenon plant possession process quantity relation shape state "
    "substance time body change cognition communication competition consumption contact creation emotion "
    "motion perception possession social "
    "stative weather ppl"
).split()


def wordnet_entry(line, part):
    """'dog, domestic dog (noun, animal): gloss' from a line of data.noun."""
    fields, gloss = line.rstrip().split(" | ", 1)
    fields = fields.split(" ")
    words = [
        re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    ]
    return f"{', '.join(words)} ({part}, {LEXICAL_FILES[int(fields[1])]}): {gloss.strip()}"


def wordnet(root="/usr/share/wordnet"):
    """Dictionary entries of WordNet 3.0."""
    entries = []
    for part in ("noun", "verb", "adj", "adv"):
        path = os.path.join(root, "data." + part)
        if os.path.exists(path):
            entries += [
                wordnet_entry(line, part) for line in read_text(path).splitlines() if line[:1].isdigit()
            ]
    return usable(entries)


# ---- 3. Python: functions, methods and class heads ---------------------------------------------------------

PYTHON_SKIPPED = (
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "dist-packages",
    "site-packages",
    "__phello__",
    "ensurepip",
)


def python_folders():
    """The folders that may hold the standard library: the system's, else this interpreter's own."""
    folders = sorted(
        glob.glob("/usr/lib/python3.*[0-9]"), key=lambda p: int(p.rsplit(".", 1)[1]), reverse=True
    )
    return [f for f in folders if os.path.exists(os.path.join(f, "argparse.py"))] or [
        sysconfig.get_paths()["stdlib"]
    ]


def python_files(folder):
    """All modules of the library in name order, without tests and tables."""
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(
            f for f in folders if f not in PYTHON_SKIPPED and not f.startswith(("config-", "__pycache__"))
        )
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield os.path.join(base, name)


def code_spans(tree):
    """First and last line of every function, and of the head of every class (up to its first method)."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield min([node.lineno] + [d.lineno for d in node.decorator_list]), node.end_lineno
        elif isinstance(node, ast.ClassDef):
            inner = [
                n.lineno
                for n in node.body
                if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            ]
            yield node.lineno, min(inner + [node.end_lineno + 1]) - 1


def cut_code(text, rng):
    """A function, cut at a line end when it is too long."""
    if size(text) <= LONGEST:
        return text
    kept, length, limit = [], 0, rng.randint(300, LONGEST)
    for line in text.split("\n"):
        if length + size(line) + 1 > limit:
            break
        kept.append(line)
        length += size(line) + 1
    return "\n".join(kept).rstrip()


def python(folder=None):
    """Functions and class heads of Python's standard library."""
    records, rng = [], random.Random("python")
    for path in python_files(folder or python_folders()[0]):
        text = read_text(path)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.split("\n")
        for first, last in sorted(code_spans(tree)):
            records.append(cut_code(textwrap.dedent("\n".join(lines[first - 1 : last])), rng))
    return usable(records, letters=0.5)


# ---- 4. fortunes -------------------------------------------------------------------------------------------


def fortunes_entries(root="/usr/share/games/fortunes"):
    """Entries of the fortune cookie files; drawings and translations are left out."""
    records = []
    for path in sorted(glob.glob(os.path.join(root, "*"))):
        name = os.path.basename(path)
        if (
            os.path.isfile(path)
            and not os.path.islink(path)
            and "." not in name
            and name not in ("ascii-art", "translate-me")
        ):
            records += [
                re.sub(r".\b", "", r) if "\b" in r else r.expandtabs(4)
                for r in re.split(r"\n%\n", read_text(path))
            ]
    return records


def fortunes(root="/usr/share/games/fortunes"):
    """Quotations and anecdotes of the fortune cookie files."""
    return usable(fortunes_entries(root))


# ---- 5. Perl manuals: POD to text --------------------------------------------------------------------------

POD_NAMES = {
    "lt": "<",
    "gt": ">",
    "verbar": "|",
    "sol": "/",
    "eacute": "é",
    "auml": "ä",
    "ouml": "ö",
    "uuml": "ü",
    "szlig": "ß",
}
# While codes are taken apart, a literal < or > is held by a character that no manual contains.
POD_HELD = str.maketrans({"<": "\ue000", ">": "\ue001"})
POD_RELEASED = str.maketrans({"\ue000": "<", "\ue001": ">"})


def pod_link(match):
    """The visible part of an L<> link."""
    text, bar, target = match.group(1).partition("|")
    return (
        (text if bar else target or text).replace('"', "").lstrip("/")
        if bar
        else text.replace('"', "").strip("/").replace("/", " in ")
    )


def pod_inline(text):
    """Resolve the formatting codes of a paragraph, innermost first."""
    text = re.sub(r"([A-Z])<<+\s+(.*?)\s+>>+", lambda m: m.group(2).translate(POD_HELD), text, flags=re.S)
    text = re.sub(r"E<(\w+)>", lambda m: POD_NAMES.get(m.group(1), "").translate(POD_HELD), text)
    for _ in range(4):
        text = re.sub(r"[XZ]<[^<>]*>", "", text)
        text = re.sub(r"L<([^<>]*)>", pod_link, text)
        text = re.sub(r"[IBCFS]<([^<>]*)>", r"\1", text)
    return text.translate(POD_RELEASED)


def pod_paragraphs(text):
    """The paragraphs of a POD file as plain text; blocks for other formats are dropped."""
    is_pod, skipped, found = False, False, []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        paragraph = paragraph.strip("\n")
        command = re.match(r"=(\w+)\s*(.*)", paragraph, flags=re.S)
        if command:
            word, rest = command.groups()
            is_pod = word != "cut"
            skipped = word == "begin" or (skipped and word != "end")
            if is_pod and not skipped and (word.startswith("head") or (word == "item" and len(rest) > 2)):
                found.append(pod_inline(" ".join(rest.split())))
        elif is_pod and not skipped and paragraph.strip():
            is_verbatim = paragraph[0] in " \t"
            found.append(paragraph.expandtabs(4) if is_verbatim else pod_inline(" ".join(paragraph.split())))
    return found


def perl(root="/usr/share/perl"):
    """Perl's manuals (perl-doc) and the manuals inside its modules."""
    records, rng = [], random.Random("perl")
    paths = {os.path.realpath(p) for p in glob.glob(os.path.join(root, "**", "*.pod"), recursive=True)}
    for path in sorted(paths):
        name = os.path.basename(path)
        if not re.match(r"perl(cn|jp|ko|tw|toc)\.pod$", name) and not name.endswith("delta.pod"):
            records += join_paragraphs(pod_paragraphs(read_text(path)), rng)
    return usable(records, letters=0.55)


# ---- 6. manual pages: troff to text ------------------------------------------------------------------------

TROFF_CHARACTERS = {
    "aq": "'",
    "cq": "'",
    "oq": "'",
    "dq": '"',
    "lq": '"',
    "rq": '"',
    "em": "--",
    "en": "-",
    "bu": "*",
    "ti": "~",
    "ha": "^",
    "mu": "x",
    "<=": "<=",
    ">=": ">=",
    "!=": "!=",
    "+-": "+-",
    "->": "->",
    "co": "(C)",
    "ga": "`",
    "at": "@",
    "sh": "#",
    "rs": "\\",
    "lB": "[",
    "rB": "]",
    "la": "<",
    "ra": ">",
    "ba": "|",
    "mi": "-",
    "pl": "+",
    "eq": "=",
    "**": "*",
    "sl": "/",
    "de": "degrees",
    "mc": "u",
    ":u": "ü",
    "'e": "é",
}
TROFF_BREAKS = {"PP", "P", "LP", "TP", "IP", "HP", "sp", "br", "TQ", "RS", "RE", "UE", "ME"}


def troff_inline(text):
    """Escapes of a line to plain characters."""
    text = re.sub(r'\\".*$', "", text)
    text = re.sub(
        r"\\f(\[[^\]]*\]|\(..|.)|\\s[-+]?\d+|\\[&%:/,|^c)]|\\v'[^']*'|\\h'[^']*'|\\m\[[^\]]*\]", "", text
    )
    text = re.sub(
        r"\\(?:\((..)|\[([^\]]*)\]|\*\((..))",
        lambda m: TROFF_CHARACTERS.get(m.group(1) or m.group(2) or m.group(3), ""),
        text,
    )
    return (
        text.replace("\\-", "-")
        .replace("\\ ", " ")
        .replace("\\~", " ")
        .replace("\\0", " ")
        .replace("\\'", "'")
        .replace("\\`", "`")
        .replace("\\.", ".")
        .replace("\\e", "\\")
    )


def troff_words(rest):
    """Arguments of a macro: quoted ones may hold spaces."""
    return [
        a if a is not None and q else b
        for q, a, b in (
            (m.group(0).startswith('"'), m.group(1), m.group(2))
            for m in re.finditer(r'"([^"]*)"|((?:\\ |\S)+)', rest)
        )
    ]


def troff_macro(name, rest):
    """The text a font macro puts into the paragraph; None when it is no font macro."""
    if name in ("B", "I", "SM", "SB"):
        return troff_inline(" ".join(troff_words(rest)))
    if name in ("BR", "RB", "IR", "RI", "BI", "IB"):
        return troff_inline("".join(troff_words(rest)))
    return None


def man_paragraphs(text):
    """The paragraphs of a man(7) page; pages in mdoc and tables give nothing."""
    if re.search(r"^\.Dd", text, flags=re.M):
        return []
    found, lines, is_verbatim, until = [], [], False, None
    for line in text.replace("\\\n", "").split("\n"):
        macro = re.match(r"[.']\s*([A-Za-z]*)\s*(.*)", line)
        if until is not None:
            until = None if line.startswith(until) else until
            continue
        if macro is None:
            lines.append(troff_inline(line) if line.strip() or is_verbatim else "")
            continue
        name, rest = macro.groups()
        if troff_macro(name, rest) is not None:
            lines.append(troff_macro(name, rest))
        elif name in ("TS", "de", "ig", "EQ"):
            until = {"TS": ".TE", "EQ": ".EN"}.get(name, "..")
        elif name in ("SH", "SS") or name in TROFF_BREAKS or name in ("nf", "fi", "EX", "EE"):
            found.append(("\n" if is_verbatim else " ").join(lines))
            is_verbatim = name in ("nf", "EX") or (is_verbatim and name not in ("fi", "EE", "SH", "SS"))
            lines = []
            if name in ("SH", "SS"):
                found.append(troff_inline(" ".join(troff_words(rest))))
    found.append(("\n" if is_verbatim else " ").join(lines))
    found = [p.strip("\n") if "\n" in p else " ".join(p.split()) for p in found]
    return [p for p in found if p.strip() and "SPDX-License" not in p]


def man_files(root):
    """Pages of the packages manpages and manpages-dev, so that other installed packages do not change the
    text."""
    paths = set()
    for package in ("manpages", "manpages-dev"):
        listing = f"/var/lib/dpkg/info/{package}.list"
        if root == "/usr/share/man" and os.path.exists(listing):
            paths.update(
                line
                for line in read_text(listing).splitlines()
                if line.startswith(root + "/man") and line.endswith(".gz")
            )
    paths = paths or set(glob.glob(os.path.join(root, "man[2-8]", "*")))
    return sorted(p for p in paths if os.path.isfile(p) and not os.path.islink(p))


def manual(root="/usr/share/man"):
    """The Linux manual pages."""
    records, rng = [], random.Random("man")
    for path in man_files(root):
        records += join_paragraphs(man_paragraphs(read_text(path)), rng)
    return usable(records, letters=0.55)


SOURCES = {
    "wordnet": (wordnet, "wordnet-base", "/usr/share/wordnet"),
    "python": (python, "python3 (libpython3-stdlib)", "/usr/lib/python3.*"),
    "fortunes": (fortunes, "fortunes", "/usr/share/games/fortunes"),
    "perl": (perl, "perl-doc", "/usr/share/perl"),
    "man": (manual, "manpages, manpages-dev", "/usr/share/man"),
}


if __name__ == "__main__":  # what is there on this machine
    for source, (function, package, place) in SOURCES.items():
        records = function()
        total = sum(map(size, records))
        print(f"{source:10s} {len(records):7d} records {total:10d} bytes   {place} ({package})")
        for record in random.Random(0).sample(
            records, min(int(sys.argv[1]) if len(sys.argv) > 1 else 0, len(records))
        ):
            print("-" * 60 + "\n" + record)
