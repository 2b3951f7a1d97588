#!/usr/bin/env python3
"""Write src/text/normalize_tables.c: classes of characters as Hugging Face `tokenizers` has them, found by asking it.

Each step of HF takes its tables from another Rust crate with another version of Unicode (BertNormalizer's marks are
of Unicode 8, StripAccents' of Unicode 9, \\w of Unicode 16), so no library at hand has them all. Needs the Python
package `tokenizers` (made with 0.22.2).
"""
import base64
import os
import struct

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HEAD = """/* normalize_tables: classes of characters as Hugging Face `tokenizers` has them.
 *
 * Written by tests/golden/make_unicode.py, which asks HF about each character; do not edit by hand.
 */
#include "text/normalize_tables.h"

"""


def everything_is_x():
    """A Precompiled normalizer that makes an X of each character, or of each grapheme below six bytes."""
    array = [0] * (6 * 256)
    one, two, three, four, value = 256, 512, 768, 1024, 1280
    array[0] = one << 10
    array[value] = 1 << 31

    def unit(block, byte, target, leaf):
        at = block ^ byte
        array[at] = byte | leaf << 8 | (at ^ target) << 10

    for byte in range(1, 128):
        unit(one, byte, value, 1)
    for byte in range(0xC2, 0xF5):
        unit(one, byte, two if byte < 0xE0 else three if byte < 0xF0 else four, 0)
    for byte in range(0x80, 0xC0):
        unit(two, byte, value, 1)
        unit(three, byte, two, 0)
        unit(four, byte, three, 0)
    blob = struct.pack("<I", 4 * len(array)) + struct.pack("<%dI" % len(array), *array) + b"X\0"
    spec = '{"normalizer":{"type":"Precompiled","precompiled_charsmap":"%s"},"model":{"type":"Unigram","unk_id":0,"vocab":[["u",0.0]]}}'
    return Tokenizer.from_str(spec % base64.b64encode(blob).decode()).normalizer.normalize_str


def bert(**flags):
    return normalizers.BertNormalizer(**{**dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False), **flags})


def probes():
    strip = bert(strip_accents=True).normalize_str
    accents = normalizers.StripAccents().normalize_str
    punctuation = pre_tokenizers.Punctuation().pre_tokenize_str
    words = pre_tokenizers.Whitespace().pre_tokenize_str
    graphemes = everything_is_x()
    yield "mb_normalize_marks_bert", "nonspacing marks that BertNormalizer takes away", lambda c: strip(c) == ""
    yield "mb_normalize_marks", "marks that StripAccents takes away", lambda c: accents(c) == ""
    yield "mb_normalize_punctuation", "punctuation beyond ASCII", lambda c: c > "\x7f" and len(punctuation("a" + c + "a")) == 3
    yield "mb_normalize_words", "\\w of Rust's regex", lambda c: len(words("a" + c + "a")) == 1
    yield "mb_normalize_joined", "characters that never begin a grapheme behind a letter", lambda c: graphemes("a" + c) == "X"
    yield "mb_normalize_joining", "characters that a grapheme's next character joins", lambda c: graphemes(c + "a") == "X"
    yield ("mb_normalize_breaking", "controls, which nothing joins", lambda c: graphemes(c + "\u0300\u0300") == "XX")
    yield ("mb_normalize_linkers", "marks that join the consonants of an Indic syllable",
           lambda c: graphemes("a" + c) == "X" and graphemes("\u0915" + c + "\u0915\u0300") == "XXXX" and c not in "\u200d")
    yield ("mb_normalize_consonants", "the consonants they join",
           lambda c: "\u0800" <= c < "\u0e00" and graphemes("a" + c) != "X" and graphemes("\u0915\u094d" + c + "\u0300") == "XXXX")


def ranges(points):
    out = []
    for c in points:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def main():
    with open(os.path.join(HERE, "../../src/text/normalize_tables.c"), "w", encoding="ascii") as out:
        out.write(HEAD)
        for name, what, holds in probes():
            table = ranges([c for c in POINTS if holds(chr(c))])
            print(name, len(table))
            out.write("/* %s */\nstatic const uint32_t %s_ranges[][2] = {\n" % (what, name[3:]))
            for i in range(0, len(table), 4):
                out.write("    " + " ".join("{0x%X, 0x%X}," % tuple(r) for r in table[i:i + 4]) + "\n")
            out.write("};\nconst mb_normalize_table %s = {%s_ranges, %d};\n\n" % (name, name[3:], len(table)))


if __name__ == "__main__":
    main()
