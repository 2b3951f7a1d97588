"""Questions of the expert demo, generated (standard library only): eight families of small tasks with options.

Every family is a function (random generator) that returns (question, right answer, wrong answers). The families
share words, names, letters and numbers, and need different skills; a small model learns any one of them from
some thousand questions, and answers the others by chance.

    sums        adding and taking away in a one-line story        4 options, 23,328 questions
    alphabet    the first of four words in the alphabet           4 options, 491,400
    backwards   four letters in reverse order                     4 options, 11,880
    who         one of three people by what they have             3 options, 5,227,200
    pattern     how a pattern of colours goes on                  4 options, 5,148
    count       how often a letter stands in a row                4 options, 8,184
    days        a weekday up to three days after another one   4 options, 9,072
    largest     the largest of four numbers                       4 options, 5,527,200

Contents: 1. words  2. families  3. plain text
"""

import string

# ---- 1. words ----------------------------------------------------------------------------------------------

NAMES = "Ann Bob Cara Dan Eve Finn Gina Hugo Ida Jon Kim Leo".split()
THINGS = "apples books cards coins cups eggs keys pens plums shells stamps stones".split()
WORDS = (
    "arm bag bed boat cake car cloud cow dog door ear farm fish fork glove hand hat hill house jar knife lake "
    "leaf milk moon nest owl pan"
).split()
COLOURS = "red blue green black white pink brown grey gold lime rose teal".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LETTERS = string.ascii_lowercase[:12]
LARGEST_NUMBER = 50


def listed(words):
    """'a, b, c or d'"""
    return ", ".join(words[:-1]) + " or " + words[-1]


def others(rng, right, pool, count):
    """`count` members of a pool that are not the right answer."""
    return rng.sample([word for word in pool if word != right], count)


# ---- 2. families -------------------------------------------------------------------------------------------


def sums(rng):
    """A story of one line: some, and more, or some given away."""
    name, thing, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(1, 9), rng.randint(1, 9)
    if rng.random() < 0.5:
        told, result = f"{name} has {a} {thing} and gets {b} more.", a + b
    else:
        a, b = a + b, a
        told, result = f"{name} has {a} {thing} and loses {b}.", a - b
    near = [n for n in range(max(0, result - 4), result + 5) if n != result]
    return f"{told} How many now?", str(result), [str(n) for n in rng.sample(near, 3)]


def alphabet(rng):
    """The word that a dictionary has first."""
    words = rng.sample(WORDS, 4)
    first = min(words)
    return f"Which word comes first in the alphabet: {listed(words)}?", first, [w for w in words if w != first]


def backwards(rng):
    """Letters in reverse; wrong answers have them in another order."""
    letters = rng.sample(LETTERS, 4)
    right, wrong = " ".join(reversed(letters)), set()
    while len(wrong) < 3:
        order = " ".join(rng.sample(letters, 4))
        if order != right:
            wrong.add(order)
    return f"Write backwards: {' '.join(letters)}", right, sorted(wrong)


def who(rng):
    """Three people and what each has."""
    people, things = rng.sample(NAMES, 3), rng.sample(THINGS, 3)
    right = rng.randrange(3)
    told = ", ".join(f"{name} has {thing}" for name, thing in zip(people, things))
    return f"{told}. Who has {things[right]}?", people[right], people[:right] + people[right + 1 :]


def pattern(rng):
    """Three colours, or two of which one stands twice, again and again."""
    a, b, c = rng.sample(COLOURS, 3)
    unit = rng.choice(((a, b, c), (a, b, c), (a, a, b), (a, b, b), (a, b, a)))
    length = rng.randint(6, 8)
    right = unit[length % 3]
    shown = [unit[i % 3] for i in range(length)]
    wrong = sorted(set(unit) - {right})
    wrong += rng.sample([colour for colour in COLOURS if colour not in unit], 3 - len(wrong))
    return f"What comes next: {' '.join(shown)}", right, wrong


def count(rng):
    """How often a letter stands in a row of two letters."""
    (letter, other), times = rng.sample(LETTERS, 2), rng.randint(1, 5)
    row = [letter] * times + [other] * (6 - times)
    rng.shuffle(row)
    question = f"How many times is {letter} here: {' '.join(row)}"
    return question, str(times), others(rng, str(times), "12345", 3)


def days(rng):
    """A weekday one to three days after another one."""
    name, thing, verb = rng.choice(NAMES), rng.choice(THINGS), rng.choice(("buys", "finds", "sells"))
    day, step = rng.randrange(7), rng.randint(1, 3)
    right = DAYS[(day + step) % 7]
    when = f"{step} day{'s' if step > 1 else ''} after {DAYS[day]}"
    return f"{name} {verb} {thing} {when}. When?", right, others(rng, right, DAYS, 3)


def largest(rng):
    """The largest of four numbers."""
    numbers = rng.sample(range(1, LARGEST_NUMBER + 1), 4)
    right = max(numbers)
    question = f"Which number is the largest: {listed([str(n) for n in numbers])}?"
    return question, str(right), [str(n) for n in numbers if n != right]


FAMILIES = {f.__name__: f for f in (sums, alphabet, backwards, who, pattern, count, days, largest)}


# ---- 3. plain text -----------------------------------------------------------------------------------------


def said(rng):
    """A sentence of the same words that tells nothing about any answer."""
    a, b = rng.sample(NAMES, 2)
    return rng.choice(
        (
            f"{a} and {b} have {rng.randint(0, 18)} {rng.choice(THINGS)}.",
            f"{a} came on {rng.choice(DAYS)} and {b} on {rng.choice(DAYS)}.",
            f"{a} saw a {rng.choice(WORDS)}, a {rng.choice(WORDS)} and a {rng.choice(WORDS)}.",
            f"The {rng.choice(WORDS)} is {rng.choice(COLOURS)}, the {rng.choice(WORDS)} is {rng.choice(COLOURS)}.",
            f"{b} wrote {' '.join(rng.choices(LETTERS, k=rng.randint(3, 7)))} on it.",
            f"It is number {rng.randint(1, LARGEST_NUMBER)}, not {rng.randint(1, LARGEST_NUMBER)}.",
        )
    )


def guessed(rng):
    """A question with one of its options as the answer, the right one by chance alone."""
    question, right, wrong = rng.choice(list(FAMILIES.values()))(rng)
    return f"Question: {question}\nAnswer: {rng.choice([right] + wrong)}"


def plain(rng):
    """A record of text: some sentences, or a question answered by guessing."""
    if rng.random() < 0.5:
        return guessed(rng)
    return " ".join(said(rng) for _ in range(rng.randint(2, 4)))
