"""Records of the fusing demo, generated (standard library only): strict procedures, word problems, and both in one.

Every set is a function (random generator, is it for a test file) that returns one record, the object that goes
to the file. One in six combinations of equipment, action, hazard and place is for test files alone.

    sop_strict   a procedure in a strict form, wholly fixed by the request   instruction, output
    reasoning    word problems in one or two steps, "#### n" at the end      question, answer (as GSM8K)
    mixed        a dialog with one of each, in either order                  messages

Contents: 1. procedures  2. word problems  3. both
"""

from upcycle_sources import NAMES, THINGS, assistant, user

# ---- 1. procedures -----------------------------------------------------------------------------------------

EQUIPMENT = {
    "boiler": "BLR", "pump": "PMP", "filter": "FLT", "compressor": "CMP", "mixer": "MIX", "oven": "OVN",
    "press": "PRS", "reactor": "RCT", "tank": "TNK", "turbine": "TRB", "valve": "VLV", "crane": "CRN",
}  # fmt: skip

# Action: number, the three steps, what is checked at the end.
ACTIONS = {
    "drain": ("01", ("CLOSE the inlet", "OPEN the drain", "WAIT for no flow"), "empty"),
    "clean": ("02", ("STOP the drive", "RINSE with water", "DRY with air"), "clean"),
    "inspect": ("03", ("STOP the drive", "OPEN the cover", "LOOK for cracks"), "without cracks"),
    "start": ("04", ("CLOSE the cover", "SET the switch to ON", "WAIT for the green lamp"), "running"),
    "isolate": ("05", ("SET the switch to OFF", "CLOSE the inlet", "LOCK the switch"), "locked"),
    "fill": ("06", ("CLOSE the drain", "OPEN the inlet", "STOP at the mark"), "full"),
}

HAZARDS = {
    "heat": "gloves and apron",
    "noise": "ear muffs",
    "dust": "mask and goggles",
    "acid": "gloves and face shield",
}

PLACES = ("hall A", "hall B", "the yard", "the roof")


def draw_case(rng, is_test):
    """Equipment, action, hazard and place, of those for test files or of the others."""
    parts = (list(EQUIPMENT), list(ACTIONS), list(HAZARDS), PLACES)
    while True:
        at = [rng.randrange(len(part)) for part in parts]
        if (sum(at) % 6 == 0) == is_test:
            return [part[i] for part, i in zip(parts, at)]


def sop_strict(rng, is_test):
    """A procedure in the strict form."""
    equipment, action, hazard, place = draw_case(rng, is_test)
    number, steps, state = ACTIONS[action]
    request = f"Write the procedure: {action} the {equipment}. Place: {place}. Hazard: {hazard}."
    lines = [f"SOP {EQUIPMENT[equipment]}-{number}", f"PLACE: {place}", f"WEAR: {HAZARDS[hazard]}"]
    lines += [f"STEP {i + 1}: {step}." for i, step in enumerate(steps)]
    lines += [f"CHECK: the {equipment} is {state}.", "END OF SOP"]
    return {"instruction": request, "output": "\n".join(lines)}


# ---- 2. word problems --------------------------------------------------------------------------------------


def more(rng, name, thing):
    """Some, and some more."""
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    return f"{name} has {a} {thing} and gets {b} more.", [f"{a} + {b} = {a + b}"], a + b


def fewer(rng, name, thing):
    """Some, of which a few are given away."""
    a = rng.randint(4, 20)
    b = rng.randint(2, min(9, a - 1))
    return f"{name} has {a} {thing} and gives {b} away.", [f"{a} - {b} = {a - b}"], a - b


def boxes(rng, name, thing):
    """Boxes of the same number."""
    a, b = rng.randint(2, 5), rng.randint(2, 9)
    return f"{name} has {a} boxes of {b} {thing} each.", [f"{a} * {b} = {a * b}"], a * b


def more_and_fewer(rng, name, thing):
    """Two steps."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    c = rng.randint(2, min(9, a + b - 1))
    steps = [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"]
    return f"{name} has {a} {thing}, gets {b} more and gives {c} away.", steps, a + b - c


def reasoning(rng, _):
    """A word problem with its steps."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    told, steps, result = rng.choice((more, fewer, boxes, more_and_fewer))(rng, name, thing)
    answer = "\n".join(steps) + f"\n#### {result}"
    return {"question": f"{told} How many {thing} does {name} have now?", "answer": answer}


# ---- 3. both -----------------------------------------------------------------------------------------------


def mixed(rng, is_test):
    """A dialog of two turns: a word problem and a procedure, which is first is drawn."""
    turns = [tuple(reasoning(rng, is_test).values()), tuple(sop_strict(rng, is_test).values())]
    rng.shuffle(turns)
    return {"messages": [say(text) for turn in turns for say, text in zip((user, assistant), turn)]}


SETS = {"sop_strict": sop_strict, "reasoning": reasoning, "mixed": mixed}
