#!/usr/bin/env python3
"""Parquet, Arrow and Hugging Face data sets to JSONL, for a login node (moe-shard reads JSONL, JSON and CSV).

    python3 datasets/export_hf.py cais/mmlu --config all --split test --out sets/mmlu/test.jsonl
    python3 datasets/export_hf.py downloads/dolly --out dolly.jsonl --fields instruction,response=output

INPUT is a name on the hub, a folder or pattern of *.parquet / *.arrow / *.json(l) / *.csv files, or a folder
written by save_to_disk. Records are streamed: memory stays small whatever the size. The output is put in
place when whole; a name ending in .gz is compressed. Needs `pip install datasets` (which brings pyarrow) on
the node where it runs, nowhere else. Exit codes: 0 done, 1 failed, 2 bad usage, 3 bad input.
"""

import argparse
import datetime
import glob
import gzip
import json
import os
import sys

FORMS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json", ".csv": "csv"}


class ExportError(Exception):
    """A mistake of the user's, with the fix."""


def load_library():
    """The `datasets` package of Hugging Face: this folder has the same name, so it must not be on the path
    while importing."""
    here = os.path.dirname(os.path.abspath(__file__))
    hidden = {here, os.path.dirname(here)}
    kept, sys.path = sys.path, [p for p in sys.path if os.path.abspath(p or os.getcwd()) not in hidden]
    try:
        import datasets

        return datasets
    except ImportError as error:
        raise ExportError(
            f"Python package `datasets` is missing here ({error}): pip install datasets, on a login node"
        ) from error
    finally:
        sys.path = kept


def local_files(place):
    """Data files of a folder or pattern, all of one form; none when `place` is no local path."""
    paths = (
        sorted(glob.glob(os.path.join(place, "**", "*"), recursive=True))
        if os.path.isdir(place)
        else sorted(glob.glob(place))
    )
    paths = [
        p
        for p in paths
        if os.path.splitext(p)[1] in FORMS
        and os.path.basename(p) not in ("dataset_info.json", "dataset_dict.json", "state.json")
    ]
    forms = {FORMS[os.path.splitext(p)[1]] for p in paths}
    if len(forms) > 1:
        raise ExportError(
            f"{place}: files of several forms ({', '.join(sorted(forms))}): give a pattern, '{place}/*.csv'"
        )
    return paths, forms.pop() if forms else None


def open_rows(options):
    """An iterable over the records."""
    datasets = load_library()
    saved = os.path.isdir(options.input) and (
        os.path.exists(os.path.join(options.input, "state.json"))
        or os.path.exists(os.path.join(options.input, "dataset_dict.json"))
    )
    if saved:
        found = datasets.load_from_disk(options.input)
        return found[options.split] if isinstance(found, dict) else found
    paths, form = local_files(options.input)
    if paths:
        return datasets.load_dataset(
            form, data_files={options.split: paths}, split=options.split, streaming=True
        )
    if os.path.exists(options.input):
        raise ExportError(f"{options.input}: no {', '.join(sorted(FORMS))} files in it")
    return datasets.load_dataset(
        options.input, options.config, split=options.split, revision=options.revision, streaming=True
    )


def parse_fields(text):
    """'a,b=c' to [(a, a), (b, c)]: field of the data set, name in the output."""
    pairs = [(word.split("=", 1) + [word])[:2] for word in (text or "").split(",") if word]
    return [(old.strip(), new.strip()) for old, new in pairs]


def plain(value):
    """What JSON has no form for, in text: dates in ISO form, bytes as UTF-8 or refused."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ExportError(
        f"a value of type {type(value).__name__} has no JSON form: leave its field out with --fields"
    )


def shape(row, fields):
    """The record as it is written."""
    if not fields:
        return row
    missing = [old for old, _ in fields if old not in row]
    if missing:
        raise ExportError(f"no field {missing[0]!r}; there are: {', '.join(row)}")
    return {new: row[old] for old, new in fields}


def export(options):
    """Write the records; returns their number."""
    fields, count = parse_fields(options.fields), 0
    if os.path.dirname(options.out):
        os.makedirs(os.path.dirname(options.out), exist_ok=True)
    rows = open_rows(options)
    part = options.out + ".part"
    opener = gzip.open if options.out.endswith(".gz") else open
    with opener(part, "wt", encoding="utf-8", newline="\n") as file:
        for row in rows:
            if options.limit and count == options.limit:
                break
            file.write(
                json.dumps(shape(row, fields), ensure_ascii=False, default=plain, allow_nan=False) + "\n"
            )
            count += 1
            if count % 100000 == 0:
                print(f"  {count} records", file=sys.stderr, flush=True)
    if count == 0:
        os.remove(part)
        raise ExportError(f"{options.input}: split {options.split!r} has no records")
    os.replace(part, options.out)
    return count


def parse(arguments):
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="Parquet, Arrow and Hugging Face data sets to JSONL.")
    parser.add_argument("input", help="name on the hub, folder, pattern, or a folder of save_to_disk")
    parser.add_argument("--out", required=True, help="file to write, *.jsonl or *.jsonl.gz")
    parser.add_argument("--config", help="configuration of a set on the hub (MMLU: all, ARC: ARC-Easy)")
    parser.add_argument("--split", default="train", help="default train")
    parser.add_argument(
        "--revision", help="commit or tag of a set on the hub; give it for results that can be repeated"
    )
    parser.add_argument("--fields", help="field,field=new_name,...: only these, in this order (default: all)")
    parser.add_argument("--limit", type=int, default=0, help="at most so many records (default: all)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Returns the exit code."""
    options = parse(arguments)
    try:
        count = export(options)
    except (ExportError, UnicodeDecodeError) as error:
        print(f"export_hf.py: {error}", file=sys.stderr)
        return 3
    except (OSError, ValueError) as error:
        print(f"export_hf.py: {options.input}: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {count} records")
    return 0


if __name__ == "__main__":
    sys.exit(main())
