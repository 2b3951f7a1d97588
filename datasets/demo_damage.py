"""Seven ways to spoil a good record, each leaving it within the allowed length (standard library only).

The kinds are those of the study the demo repeats: words or characters shuffled, 10-30 % character noise,
base64, repeated lines (half the record's own line, half web boilerplate), glued fragments of other
records, HTML junk. Every function takes the text, a random.Random and a list of other texts (only
`fragments` uses it).
"""

import base64
import re
import string

from demo_sources import LONGEST, SHORTEST, size

BOILERPLATE = (
    "Click here to read more",
    "Subscribe to our newsletter and never miss an update!",
    "Share this on Facebook | Twitter | Pinterest",
    "We use cookies to give you the best experience on our website.",
    "Copyright 2019 All rights reserved. Privacy policy | Terms of use",
    "You must be logged in to post a comment.",
    "Home > Products > Category > Page 1 of 24 > Next",
    "Buy now! Free shipping on all orders over $50",
    "Loading, please wait...",
    "Advertisement - continue reading below",
    "Sign up today and get 10% off your first order",
    "This page requires JavaScript. Please enable it in your browser.",
    "Related posts: no related posts.",
    "Page not found (404)",
)
HTML_WORDS = (
    "nav",
    "menu",
    "item",
    "content",
    "wrapper",
    "col",
    "row",
    "btn",
    "link",
    "footer",
    "header",
    "widget",
    "post",
    "sidebar",
    "img",
    "box",
    "ad",
)
HTML_TAGS = ("div", "span", "li", "ul", "td", "tr", "a", "p", "section", "table")


def cut(spoilt, text):
    """Cut to the bytes of the record, so that length says nothing about the damage."""
    return spoilt.encode()[: size(text)].decode("utf-8", "ignore")


def words(text, rng, others):
    """The words in another order; spaces and line ends stay where they are."""
    parts = re.split(r"(\s+)", text)
    shuffled = parts[::2]
    rng.shuffle(shuffled)
    parts[::2] = shuffled
    return "".join(parts)


def chars(text, rng, others):
    """The characters in another order; spaces and line ends stay where they are."""
    letters = [c for c in text if not c.isspace()]
    rng.shuffle(letters)
    return "".join(c if c.isspace() else letters.pop() for c in text)


def noise(text, rng, others):
    """10 to 30 % of the characters replaced by random printable ones."""
    share = rng.uniform(0.1, 0.3)
    symbols = string.ascii_letters + string.digits + string.punctuation
    return "".join(rng.choice(symbols) if rng.random() < share else c for c in text)


def encoded(text, rng, others):
    """The record in base64, cut to length."""
    return cut(base64.b64encode(text.encode()).decode(), text)


def lines(text, rng, others):
    """One line again and again, to about the length of the record."""
    third = size(text) // 3
    own = [line for line in text.split("\n") if 20 <= size(line) <= third] or [text[:third]]
    line = rng.choice(own if rng.random() < 0.5 else BOILERPLATE)
    return cut("\n".join([line] * (size(text) // size(line) + 1)), text)


def fragments(text, rng, others):
    """Pieces of 8 to 30 characters of other records, glued without regard to words."""
    pieces, length = [], 0
    while length < size(text):
        other = rng.choice(others)
        start = rng.randrange(max(1, len(other) - 30))
        pieces.append(other[start : start + rng.randint(8, 30)].replace("\n", " "))
        length += size(pieces[-1])
    return cut("".join(pieces), text)


def html_piece(rng):
    """One piece of markup without content."""
    tag, name, number = rng.choice(HTML_TAGS), rng.choice(HTML_WORDS), rng.randint(1, 9999)
    forms = (
        f'<{tag} class="{name}-{number} {rng.choice(HTML_WORDS)}">',
        f"</{tag}></{rng.choice(HTML_TAGS)}>",
        f'<{tag} id="{name}{number}" style="width:{number}px">',
        f'<a href="/{name}/{number}.html">&nbsp;</a>',
        f'<img src="/img/{name}_{number}.png" alt="">',
        "&nbsp;&raquo;&nbsp;",
        f'<script src="/js/{name}.{number}.min.js"></script>',
        f'<li class="{name}"><a href="#{name}{number}">',
        "<br /><br />\n",
    )
    return rng.choice(forms)


def html(text, rng, others):
    """Markup with nothing in it, to about the length of the record."""
    pieces, length = [], 0
    while length < size(text):
        pieces.append(html_piece(rng))
        length += size(pieces[-1])
    return cut("".join(pieces), text)


KINDS = {
    "words": words,
    "chars": chars,
    "noise": noise,
    "base64": encoded,
    "lines": lines,
    "fragments": fragments,
    "html": html,
}


def damage(kind, text, rng, others):
    """A spoilt copy of text that differs from it and is no shorter than SHORTEST nor longer than LONGEST
    bytes."""
    for _ in range(20):
        spoilt = KINDS[kind](text, rng, others)
        if spoilt != text and SHORTEST <= size(spoilt) <= LONGEST:
            return spoilt
    return cut(spoilt.ljust(size(text), "."), text)
