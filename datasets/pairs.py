#!/usr/bin/env python3
"""Split files of records into SFT records and preference pairs with made worse answers; Python 3.8 or newer.

    python3 datasets/pairs.py --out OUT_DIR [--pairs 250] [--most 1500] [--prompts 4] [--seed 0] type=FILE ...

FILE: JSON lines or a JSON array, each also gzip, of records with question, answer / instruction, input,
output / input, output / messages / conversations (ShareGPT) / text. Written under OUT_DIR, no record in two
of them:
    pairs/<type>.jsonl   {"prompt": messages, "chosen": message, "rejected": message, "kind": ...}
    sft/<type>.jsonl     at most --most records as they were read
    rest/<type>.jsonl    the others, for pretraining
    prompts.jsonl        {"messages": ..., "type": ..., "reference": ...}: for generation side by side

Rejected answers, kinds in turn: `other` (the answer of another record of the type, of about the same length),
`loop` (its first half twice), `repeat` (one line of it again and again), `wrong` (another number after
"####", where the answer has one). For tests and demonstrations: real preferences are better. The same seed
and files give the same bytes.
Exit codes: 0 done, 2 bad usage, 3 unusable files.
Contents: 1. worse answers  2. reading records  3. splitting  4. command line
"""

import argparse
import gzip
import json
import os
import random
import re
import sys

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


# ---- 1. worse answers --------------------------------------------------------------------------------------


def wrong_result(answer, rng):
    """The same steps with another result at their end."""
    found = re.search(r"#### *(-?[\d,]+)", answer)
    result = int(found.group(1).replace(",", ""))
    other = result + rng.choice((-10, -5, -3, -2, -1, 1, 2, 3, 5, 10))
    head = answer[: found.start()].rstrip("\n")
    lines = head.split("\n")
    lines[-1] = re.sub(rf"= ?{result}\b", f"= {other}", lines[-1])
    return "\n".join(lines) + f"\n#### {other}"


def repeated(answer):
    """Its first line (or first half) again and again, to the same length."""
    has_lines = "\n" in answer
    line = answer.split("\n")[0] if has_lines else answer[: max(10, len(answer) // 2)].rsplit(" ", 1)[0]
    text = ("\n" if has_lines else " ").join([line] * (len(answer) // max(1, len(line)) + 1))
    return text[: max(len(answer), len(line) + 10)]


def other_answer(answer, others, rng):
    """The answer of another record: of some drawn ones the one nearest in length, which then tells nothing."""
    drawn = [rng.choice(others) for _ in range(12)]
    return min(
        (text for text in drawn if text != answer), key=lambda t: abs(len(t) - len(answer)), default=""
    )


def looped(answer):
    """Its first half twice, cut at a line end or a space: the way small models lose the thread."""
    middle = len(answer) // 2
    glue = "\n" if "\n" in answer[:middle].strip() else " "
    cut = answer.rfind(glue, 0, middle)
    return answer[:cut] + glue + answer[:cut] if cut > 0 else ""


def worse(kind, answer, others, rng):
    """A worse answer of this kind; None when it is no other answer than the record's own."""
    text = {
        "other": lambda: other_answer(answer, others, rng),
        "loop": lambda: looped(answer),
        "repeat": lambda: repeated(answer),
        "wrong": lambda: wrong_result(answer, rng),
    }[kind]()
    return text if text.strip() and text != answer else None


def kinds_for(answer):
    """The kinds of worse answers this one can have."""
    return ("other", "loop", "repeat") + (("wrong",) if re.search(r"#### *-?\d", answer) else ())


def make_pairs(dialogs, seed):
    """Preference pairs of [(prompt messages, answer)], one of each, kinds in turn."""
    rng, pairs, others = random.Random(seed), [], [answer for _, answer in dialogs]
    for i, (prompt, answer) in enumerate(dialogs):
        kinds = kinds_for(answer)
        for k in range(len(kinds)):
            kind = kinds[(i + k) % len(kinds)]
            text = worse(kind, answer, others, rng)
            if text:
                pairs.append(
                    {
                        "prompt": prompt,
                        "chosen": {"role": "assistant", "content": answer},
                        "rejected": {"role": "assistant", "content": text},
                        "kind": kind,
                    }
                )
                break
    return pairs


# ---- 2. reading records ------------------------------------------------------------------------------------


def read_records(path):
    """The objects of a JSON array or of JSON lines, plain or gzip."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        text = file.read().decode("utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def dialog_of(record):
    """(prompt messages, answer) of a record; None when it has no answer to an open question."""
    if "question" in record and "answer" in record:
        return [{"role": "user", "content": record["question"]}], record["answer"]
    if "output" in record:
        asked = "\n\n".join(filter(None, [record.get("instruction"), record.get("input")]))
        return [{"role": "user", "content": asked}], record["output"]
    turns = record.get("messages") or [
        {"role": turn["from"], "content": turn["value"]} for turn in record.get("conversations", [])
    ]
    if turns:
        return dialog_of_turns(turns)
    return dialog_of_text(record.get("text", ""))


def dialog_of_turns(turns):
    """The turns before the first tool is called, up to their last answer; None when there is none."""
    plain = []
    for turn in turns:
        role = ROLES.get(turn["role"])
        if role is None:
            break
        plain.append({"role": role, "content": turn["content"]})
    while plain and plain[-1]["role"] != "assistant":
        plain.pop()
    if len(plain) < 2 or plain[-2]["role"] != "user":
        return None
    return plain[:-1], plain[-1]["content"]


def dialog_of_text(text):
    """Plain text: its first sentence is the prompt, what follows the answer."""
    first, _, rest = text.partition(". ")
    if len(first) < 20 or len(rest) < 40:
        return None
    return [{"role": "user", "content": first + "."}], rest


def is_short(dialog, longest):
    """Not longer than so many characters in all?"""
    prompt, answer = dialog
    return bool(answer.strip()) and sum(len(m["content"]) for m in prompt) + len(answer) <= longest


# ---- 3. splitting ------------------------------------------------------------------------------------------


def write_lines(path, objects):
    """JSON lines, put in place when whole."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(o, ensure_ascii=False) + "\n" for o in objects)
    os.replace(path + ".part", path)


def split_file(name, path, options):
    """Write the parts of one file; returns its prompts for generation."""
    records = read_records(path)
    random.Random(f"{options.seed}/{name}").shuffle(records)
    dialogs, rest = [], []
    for record in records:
        dialog = dialog_of(record) if len(dialogs) < options.pairs + options.prompts else None
        if dialog and is_short(dialog, options.longest):
            dialogs.append(dialog)
        else:
            rest.append(record)
    if len(dialogs) < min(2, options.pairs) or not rest:
        raise ValueError(
            f"{path}: {len(dialogs)} of {len(records)} records make a pair, {len(rest)} are left"
        )
    prompts, dialogs = dialogs[: options.prompts], dialogs[options.prompts :]
    pairs = make_pairs(dialogs, f"{options.seed}/pairs/{name}")
    write_lines(os.path.join(options.out, "pairs", name + ".jsonl"), pairs)
    write_lines(os.path.join(options.out, "sft", name + ".jsonl"), rest[: options.most])
    if rest[options.most :]:
        write_lines(os.path.join(options.out, "rest", name + ".jsonl"), rest[options.most :])
    print(
        f"{name}: {len(records)} records: {len(pairs)} pairs, {len(rest[: options.most])} for SFT, "
        f"{len(rest[options.most :])} left"
    )
    return [{"messages": prompt, "type": name, "reference": answer} for prompt, answer in prompts]


# ---- 4. command line ---------------------------------------------------------------------------------------


def main(arguments=None):
    """Split every file; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Split files of records into SFT records and preference pairs."
    )
    parser.add_argument("files", nargs="+", metavar="type=FILE", help="records of one type")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--pairs", type=int, default=250, help="pairs of each type (default 250)")
    parser.add_argument(
        "--most", type=int, default=1500, help="SFT records of each type at most (default 1500)"
    )
    parser.add_argument("--prompts", type=int, default=4, help="prompts of each type (default 4)")
    parser.add_argument(
        "--longest",
        type=int,
        default=1200,
        help="characters of a pair's prompt and answer at most (default 1200)",
    )
    parser.add_argument("--seed", type=int, default=0, help="which records go where, and the worse answers")
    options = parser.parse_args(arguments)
    for word in options.files:
        name, _, path = word.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not path:
            parser.error(f"'{word}': type=FILE is needed")
    prompts = []
    try:
        for word in options.files:
            prompts += split_file(*word.split("=", 1), options)
        write_lines(os.path.join(options.out, "prompts.jsonl"), prompts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"pairs.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
