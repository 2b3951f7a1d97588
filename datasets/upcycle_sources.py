"""Dialogue records of five types, from text that Debian and Ubuntu packages install (standard library only).

Every type is a function that returns a list of records in a fixed order; a record is {"prompt": messages,
"answer": text, "written": the object that goes to the file}: the same content in the form this type is
written in, so that a study meets the forms that users bring.

    general        dictionary questions            WordNet                      alpaca (instruction, input, output)
    conversation   chats of several turns          manual pages, Perl's FAQ     messages
    code           functions from their docstring  Python's library             alpaca with an input
    reasoning      word problems, worked steps     generated, seeded            qa (question, answer)
    creative       verses and quotations to go on  fortunes                     io (input, output)

Contents: 1. shared  2. general  3. conversation  4. code  5. reasoning  6. creative
"""

import ast
import glob
import os
import random
import re
import textwrap

from demo_sources import (
    code_spans,
    fortunes_entries,
    is_plain,
    man_files,
    man_paragraphs,
    pod_paragraphs,
    python_files,
    python_folders,
    read_text,
    size,
    wordnet_entry,
)

SHORTEST_ANSWER, LONGEST_ANSWER, LONGEST_PROMPT = 20, 320, 300  # bytes


# ---- 1. shared ---------------------------------------------------------------------------------------------


def user(text):
    """A message of the user."""
    return {"role": "user", "content": text}


def assistant(text):
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


def is_fit(prompt, answer, letters=0.5):
    """Of the allowed length, and plain text?"""
    asked = sum(size(message["content"]) for message in prompt)
    return (
        asked <= LONGEST_PROMPT
        and SHORTEST_ANSWER <= size(answer) <= LONGEST_ANSWER
        and is_plain(answer, letters)
        and all(is_plain(message["content"], letters) for message in prompt)
    )


def alpaca(instruction, given, output):
    """A record written as instruction, input, output."""
    asked = instruction + ("\n\n" + given if given else "")
    return {
        "prompt": [user(asked)],
        "answer": output,
        "written": {"instruction": instruction, "input": given, "output": output},
    }


def first_sentences(text, longest):
    """As many whole sentences from the start as fit; empty when not even one does."""
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        if size(kept) + size(sentence) + 1 > longest:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


# ---- 2. general --------------------------------------------------------------------------------------------

ASKED = ("What does {w} mean?", "Define {w}.", "Explain the {p} {w}.", "What is meant by the {p} {w}?")


def general(root="/usr/share/wordnet"):
    """Questions about words, answered by WordNet's gloss."""
    records, rng = [], random.Random("general")
    for part, name in (("noun", "noun"), ("verb", "verb"), ("adj", "adjective")):
        path = os.path.join(root, "data." + part)
        for line in read_text(path).splitlines() if os.path.exists(path) else []:
            if not line[:1].isdigit():
                continue
            head, gloss = wordnet_entry(line, name).split("): ", 1)
            words = head.split(" (")[0].split(", ")
            if len(words) > 4 or not words[0].islower():
                continue
            answer = f"{words[0]}: {gloss}" + (f" Also: {', '.join(words[1:])}." if words[1:] else "")
            record = alpaca(rng.choice(ASKED).format(w=words[0], p=name), "", answer)
            if size(answer) >= 60 and is_fit(record["prompt"], answer):
                records.append(record)
    return records


# ---- 3. conversation ---------------------------------------------------------------------------------------

GREETINGS = (
    "Hello!",
    "Hi there.",
    "Good morning!",
    "Hey,",
    "Hi, can you help me?",
    "Hello, a quick question.",
)
WELCOMES = ("Hello! What can I do for you?", "Hi! How can I help?", "Good to see you. What is it about?")
FOLLOW_UPS = ("Can you tell me more?", "And in more detail?", "How does it work?", "Go on, please.")
READING = ("What should I read next?", "Where can I find more?", "Which manual pages are related?")


def chat(*turns):
    """A chat of user and assistant in turns; the last one is the answer."""
    messages = [(user, assistant)[i % 2](text) for i, text in enumerate(turns)]
    return {
        "prompt": messages[:-1],
        "answer": messages[-1]["content"],
        "written": {"messages": messages},
    }


def manual_sections(paragraphs):
    """{heading in capitals: its paragraphs}."""
    sections, here = {}, None
    for paragraph in paragraphs:
        if re.fullmatch(r"[A-Z][A-Z ]+", paragraph):
            here = sections.setdefault(paragraph, [])
        elif here is not None:
            here.append(paragraph)
    return sections


def manual_chat(sections, rng, command):
    """What is it for, more about it, what to read next: as many turns as the page has answers for."""
    name = re.match(r"([\w:.]+)[^-]* -+ (.+)", (sections.get("NAME") or [""])[0])
    more = first_sentences(" ".join((sections.get("DESCRIPTION") or [""])[:1]), 260)
    related = (sections.get("SEE ALSO") or [""])[0]
    if not name or not more:
        return None
    what, purpose = name.group(1), name.group(2).rstrip(".")
    turns = [f"{rng.choice(GREETINGS)} What is {what} for?", f"{what} ({command}): {purpose}."]
    if rng.random() < 0.3:
        turns = [rng.choice(GREETINGS), rng.choice(WELCOMES), f"What is {what} for?", turns[-1]]
    turns += [rng.choice(FOLLOW_UPS), more]
    if related and rng.random() < 0.4:
        turns += [rng.choice(READING), f"See {first_related(related)}."]
    return chat(*turns)


def first_related(text):
    """The first few names of a SEE ALSO."""
    return ", ".join(re.split(r",\s*", text.rstrip("."))[:4])


def faq_chats(text, rng):
    """Question, first paragraph of the answer, and the second one when asked for more."""
    paragraphs, found = pod_paragraphs(text), []
    for i, question in enumerate(paragraphs):
        if not question.endswith("?") or size(question) > 140:
            continue
        answers = [
            first_sentences(p, 280)
            for p in paragraphs[i + 1 : i + 4]
            if not p.startswith((" ", "(")) and not p.endswith("?")
        ]
        answers = [a for a in answers if a]
        if len(answers) > 1:
            found.append(
                chat(f"{rng.choice(GREETINGS)} {question}", answers[0], rng.choice(FOLLOW_UPS), answers[1])
            )
        elif answers:
            found.append(chat(rng.choice(GREETINGS), rng.choice(WELCOMES), question, answers[0]))
    return found


def conversation(man="/usr/share/man", perl="/usr/share/perl"):
    """Chats about manual pages (Linux and Perl) and Perl's list of questions."""
    records, rng = [], random.Random("conversation")
    for path in man_files(man):
        section = re.search(r"\.(\d)", os.path.basename(path))
        records.append(
            manual_chat(
                manual_sections(man_paragraphs(read_text(path))),
                rng,
                f"section {section.group(1) if section else 1}",
            )
        )
    pods = {os.path.realpath(p) for p in glob.glob(os.path.join(perl, "**", "*.pod"), recursive=True)}
    for path in sorted(pods):
        text = read_text(path)
        if os.path.basename(path).startswith("perlfaq"):
            records += faq_chats(text, rng)
        elif not path.endswith("delta.pod"):
            records.append(manual_chat(manual_sections(pod_paragraphs(text)), rng, "Perl"))
    return [r for r in records if r and is_fit(r["prompt"][-1:], r["answer"]) and chat_size(r) <= 500]


def chat_size(record):
    """Bytes of all turns."""
    return sum(size(message["content"]) for message in record["written"]["messages"])


# ---- 4. code -----------------------------------------------------------------------------------------------


def function_record(node, lines):
    """A function as a task: head and docstring given, the body is the answer. None without a docstring."""
    docstring = ast.get_docstring(node)
    first = node.body[0]
    if not docstring or len(node.body) < 2 or node.decorator_list:
        return None
    head = textwrap.dedent("\n".join(lines[node.lineno - 1 : first.lineno - 1]))
    body = "\n".join(lines[first.end_lineno : node.end_lineno])
    indent = " " * (node.col_offset)
    body = "\n".join(line[len(indent) :] if line.startswith(indent) else line for line in body.split("\n"))
    summary = docstring.split("\n\n")[0].strip()
    given = head.strip() + "\n    " + '"""' + " ".join(summary.split()) + '"""'
    return alpaca("Write the body of this Python function.", given, body.strip("\n"))


def code(folder=None):
    """Functions of Python's standard library."""
    records = []
    for path in python_files(folder or python_folders()[0]):
        text = read_text(path)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.split("\n")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                record = function_record(node, lines)
                if record and is_fit(record["prompt"], record["answer"], letters=0.4):
                    records.append(record)
    return records


# ---- 5. reasoning ------------------------------------------------------------------------------------------

NAMES = "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Kate Leo Mia Noah Olga Paul Rosa Sam Tina Uma".split()
THINGS = "apples books coins eggs marbles pencils shells stamps stickers tickets buttons cards".split()
PLACES = "school library market garden harbour museum station workshop".split()


def shop(rng):
    """Buying, and the change."""
    name, thing, n, price = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 12), rng.randint(2, 15)
    total = n * price
    paid = total + rng.randint(1, 40)
    return (
        f"{name} buys {n} {thing} for {price} dollars each and pays with {paid} dollars. How much change is left?",
        [
            f"The {thing} cost {n} * {price} = {total} dollars.",
            f"The change is {paid} - {total} = {paid - total} dollars.",
        ],
        paid - total,
    )


def sharing(rng):
    """Collecting, and sharing in equal parts."""
    a, b, thing, friends, each = (
        rng.choice(NAMES),
        rng.choice(NAMES),
        rng.choice(THINGS),
        rng.randint(2, 9),
        rng.randint(2, 15),
    )
    total = friends * each
    first = rng.randint(1, total - 1)
    return (
        f"{a} has {first} {thing} and {b} brings {total - first} more. They share them equally among {friends} friends. "
        f"How many {thing} does each friend get?",
        [
            f"Together they have {first} + {total - first} = {total} {thing}.",
            f"Each friend gets {total} / {friends} = {each} {thing}.",
        ],
        each,
    )


def walking(rng):
    """Way there and back, over several days."""
    name, place, km, days = rng.choice(NAMES), rng.choice(PLACES), rng.randint(2, 12), rng.randint(2, 9)
    extra = rng.randint(1, 20)
    daily, total = 2 * km, 2 * km * days
    return (
        f"The {place} is {km} km from home. {name} goes there and back on {days} days, and walks {extra} km more on Sunday. "
        "How many km is that in all?",
        [
            f"There and back is 2 * {km} = {daily} km.",
            f"In {days} days that is {days} * {daily} = {total} km.",
            f"With Sunday it is {total} + {extra} = {total + extra} km.",
        ],
        total + extra,
    )


def ages(rng):
    """Ages of three people."""
    a, b, c = rng.sample(NAMES, 3)
    young, more, times = rng.randint(3, 15), rng.randint(2, 12), rng.randint(2, 4)
    middle = young + more
    return (
        f"{a} is {young} years old. {b} is {more} years older than {a}, and {c} is {times} times as old as {b}. How old is {c}?",
        [
            f"{b} is {young} + {more} = {middle} years old.",
            f"{c} is {times} * {middle} = {times * middle} years old.",
        ],
        times * middle,
    )


def boxes(rng):
    """Boxes, of which some things are given away."""
    name, thing, n, each = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 9), rng.randint(3, 20)
    total = n * each
    gone = rng.randint(1, total - 1)
    return (
        f"{name} fills {n} boxes with {each} {thing} each and then gives away {gone} {thing}. How many {thing} remain?",
        [
            f"There are {n} * {each} = {total} {thing}.",
            f"After giving away {gone} there remain {total} - {gone} = {total - gone} {thing}.",
        ],
        total - gone,
    )


def reasoning(count=4000):
    """Word problems with their steps and "#### n" at the end, as GSM8K writes them."""
    rng, seen, records = random.Random("reasoning"), set(), []
    while len(records) < count:
        question, steps, result = rng.choice((shop, sharing, walking, ages, boxes))(rng)
        if question in seen:
            continue
        seen.add(question)
        answer = "\n".join(steps) + f"\n#### {result}"
        records.append(
            {
                "prompt": [user(question)],
                "answer": answer,
                "written": {"question": question, "answer": answer},
            }
        )
    return records


# ---- 6. creative -------------------------------------------------------------------------------------------

BEGINNINGS = ("Go on with this:", "Finish this piece:", "Continue:", "How could this go on?")


def creative(root="/usr/share/games/fortunes"):
    """Verses, anecdotes and sayings of the fortune files: the first part is given, the rest is the answer."""
    records, rng = [], random.Random("creative")
    for text in fortunes_entries(root):
        lines = [line.rstrip() for line in text.strip("\n").split("\n")]
        cut = max(1, len(lines) // 2)
        start, rest = "\n".join(lines[:cut]), "\n".join(lines[cut:])
        if len(lines) < 2 or size(start) < 25:
            continue
        prompt = f"{rng.choice(BEGINNINGS)}\n\n{start}"
        record = {"prompt": [user(prompt)], "answer": rest, "written": {"input": prompt, "output": rest}}
        if is_fit(record["prompt"], rest, letters=0.6):
            records.append(record)
    return records


TYPES = {
    "general": (general, "alpaca", "wordnet-base"),
    "conversation": (conversation, "messages", "manpages, manpages-dev, perl-doc"),
    "code": (code, "alpaca", "python3 (libpython3-stdlib)"),
    "reasoning": (reasoning, "qa", "none: generated"),
    "creative": (creative, "io", "fortunes"),
}
