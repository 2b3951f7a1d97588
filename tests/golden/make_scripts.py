#!/usr/bin/env python3
"""Write src/text/pretokenize_scripts.c: the scripts that Hugging Face's UnicodeScripts tells apart, found by asking it.

Numbers stand for scripts in the order of their first character; 0 is for characters that belong to any script
(the space, and all that HF's table does not have). Needs the Python package `tokenizers` (made with 0.22.2).
"""
import os

from tokenizers import pre_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
HEAD = """/* pretokenize_scripts: the script of a character as Hugging Face `tokenizers` has it.
 *
 * Written by tests/golden/make_scripts.py, which asks HF; do not edit by hand.
 */
#include "text/pretokenize_scripts.h"

#include <stddef.h>
#include <stdint.h>

/* First, last, number of the script. */
static const uint32_t scripts[][3] = {
"""
TAIL = """};

int mb_pretokenize_script(uint32_t c)
{
    size_t low = 0, high = sizeof scripts / sizeof scripts[0];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (c > scripts[middle][1])
            low = middle + 1;
        else
            high = middle;
    }
    const bool found = low < sizeof scripts / sizeof scripts[0] && c >= scripts[low][0];
    return found ? (int)scripts[low][2] : 0;
}
"""


def main():
    cut = pre_tokenizers.UnicodeScripts().pre_tokenize_str
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and cut(chr(c))]
    starts = {offsets[0] for _, offsets in cut("".join(map(chr, points)))}
    runs, known = [], []
    for i, c in enumerate(points):
        if i not in starts:
            if runs[-1][1] == c - 1:
                runs[-1][1] = c
            else:
                runs.append([c, c, runs[-1][2]])
            continue
        number = next((k for k, other in enumerate(known) if len(cut(other + chr(c))) == 1), len(known))
        if number == len(known):
            known.append(chr(c))
        if runs and runs[-1][1] == c - 1 and runs[-1][2] == number + 1:
            runs[-1][1] = c
        else:
            runs.append([c, c, number + 1])
    print(len(runs), "ranges,", len(known), "scripts")
    with open(os.path.join(HERE, "../../src/text/pretokenize_scripts.c"), "w", encoding="ascii") as out:
        out.write(HEAD)
        for i in range(0, len(runs), 4):
            out.write("    " + " ".join("{0x%X, 0x%X, %d}," % tuple(r) for r in runs[i:i + 4]) + "\n")
        out.write(TAIL)


if __name__ == "__main__":
    main()
