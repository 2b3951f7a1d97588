"""How much of the time the GPU worked, and on what.

    timeline.py cupti FILE [--marker adamw] [--top 25]      FILE of timeline.c: true times, gaps included
    timeline.py ncu FILE --seconds S [--marker adamw]       FILE of `ncu --csv --metrics gpu__time_duration.sum`: kernel times only; S is what
                                                            one step takes without the profiler, which runs kernels one by one

The window begins at the end of the second group of marker kernels (a step's optimiser) and ends at the last one's end; without markers
it is the middle six tenths of the record. Busy is the union of what ran; the gap share is the rest of the window, in which the GPU
waited for the host.
"""

import argparse
import csv
import json
import shutil
import subprocess
from collections import defaultdict


def plain_names(names):
    """Mangled names as people read them, without arguments; unchanged where there is no c++filt."""
    names = sorted(set(names))
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    shown = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True).stdout.splitlines() if tool and names else names
    return {name: text.split("(")[0].replace("void ", "")[:90] for name, text in zip(names, shown if len(shown) == len(names) else names)}


def read_cupti(path):
    """(start, end, kind, name) in order of start."""
    records = []
    for line in open(path, errors="replace"):
        parts = line.rstrip("\n").split(",", 3)
        if len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
            records.append((int(parts[1]), int(parts[2]), parts[0], parts[3]))
    return sorted(records)


def read_ncu(path):
    """The same from a table of durations, laid end to end."""
    lines = [line for line in open(path, errors="replace") if line.startswith('"')]
    records, at = [], 0
    scale = {"ns": 1, "nsecond": 1, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9}
    for row in csv.DictReader(lines):
        if row.get("Metric Name") == "gpu__time_duration.sum":
            took = float(row["Metric Value"].replace(",", "")) * scale[row["Metric Unit"]]
            records.append((at, at + took, "kernel", row["Kernel Name"]))
            at += took
    return records


def window_of(records, marker, between=16):
    """(begin, end, steps between them or None). Markers with at most `between` other records in between are one group."""
    groups, others = [], between + 1
    for _, end, _, name in records:
        if marker not in name.lower():
            others += 1
            continue
        if others > between:
            groups.append(end)
        groups[-1], others = end, 0
    if len(groups) >= 3:
        return groups[1], groups[-1], len(groups) - 2
    first, last = records[0][0], max(r[1] for r in records)
    return first + (last - first) // 5, last - (last - first) // 5, None


def summarise(records, marker="adamw", top=25, wall_seconds=None, between=16):
    begin, end, steps = window_of(records, marker, between)
    inside = [r for r in records if r[0] >= begin and r[1] <= end]
    if not inside:
        return {"failed": "nothing in the window"}
    busy, reached, gaps = 0, begin, []
    for start, stop, _, name in inside:
        if start > reached:
            gaps.append((start - reached, name))
        busy += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    if end > reached:
        gaps.append((end - reached, "the end"))
    names, sums = plain_names(r[3] for r in inside), defaultdict(lambda: [0, 0])
    for start, stop, kind, name in inside:
        entry = sums[names[name] if kind == "kernel" else f"({kind})"]
        entry[0] += stop - start
        entry[1] += 1
    window = (end - begin) if wall_seconds is None else wall_seconds * 1e9 * (steps or 1)
    kinds = defaultdict(int)
    for start, stop, kind, _ in inside:
        kinds[kind] += stop - start
    return dict(steps=steps, window_ms=window / 1e6, busy_ms=busy / 1e6, gap_share=1 - busy / window, launches=len(inside),
                launches_per_step=len(inside) / steps if steps else None, by_kind_ms={kind: t / 1e6 for kind, t in kinds.items()},
                gaps_over_10us=sum(1 for g, _ in gaps if g > 1e4), gaps_over_10us_ms=sum(g for g, _ in gaps if g > 1e4) / 1e6,
                longest_gaps=[(round(g / 1e3, 1), names.get(name, name)) for g, name in sorted(gaps, reverse=True)[:8]],
                top=[(name, t / 1e6, n, t / window) for name, (t, n) in sorted(sums.items(), key=lambda item: -item[1][0])[:top]])


def text_of(title, s):
    if "failed" in s:
        return f"{title}: {s['failed']}\n"
    lines = [f"{title}: window {s['window_ms']:.2f} ms ({s['steps'] or '?'} steps), busy {s['busy_ms']:.2f} ms, gap share {100 * s['gap_share']:.1f} %, "
             f"{s['launches']} launches" + (f" ({s['launches_per_step']:.0f} a step)" if s["launches_per_step"] else "")
             + f"; gaps over 10 us: {s['gaps_over_10us']}, {s['gaps_over_10us_ms']:.2f} ms"]
    lines += [f"  {100 * share:5.1f} %  {ms:10.3f} ms  {n:6d} x {1e3 * ms / n:9.1f} us  {name}" for name, ms, n, share in s["top"]]
    lines += ["  longest gaps: " + ", ".join(f"{g} us before {name[:48]}" for g, name in s["longest_gaps"])]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("form", choices=["cupti", "ncu"])
    parser.add_argument("file")
    parser.add_argument("--marker", default="adamw")
    parser.add_argument("--top", type=int, default=25)
    parser.add_argument("--between", type=int, default=16, help="most other records inside a group of markers")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--title", default="timeline")
    parser.add_argument("--json")
    options = parser.parse_args()
    records = (read_cupti if options.form == "cupti" else read_ncu)(options.file)
    if not records:
        raise SystemExit(f"{options.file}: nothing recorded")
    found = summarise(records, options.marker, options.top, options.seconds, options.between)
    print(text_of(options.title, found), end="")
    if options.json:
        with open(options.json, "w") as out:
            json.dump(found, out, indent=1)


if __name__ == "__main__":
    main()
