#!/usr/bin/env python3
"""metrics.h5 of training stages as TensorBoard event files, or CSV; needs no TensorBoard package.

    python3 analysis/tensorboard.py RUN [--out RUN/tensorboard]     then: tensorboard --logdir RUN/tensorboard
    python3 analysis/tensorboard.py RUN --csv

An event file is a row of records (TFRecord: length, masked CRC-32C of it, data, masked CRC-32C of that), each
holding one Event of tensorflow/core/util/event.proto; scalars need six of its fields, which are written here
by hand. Every stage becomes one TensorBoard run. Contents: 1. records  2. protocol buffers  3. stages
"""

import argparse
import csv
import math
import os
import struct
import sys

from mbfiles import open_runs, read_metrics

# ---- 1. records --------------------------------------------------------------------------------------------


def crc_table():
    """Table of CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = crc_table()


def masked_crc(data):
    """CRC-32C, rotated and shifted as TFRecord asks for."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def record(data):
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


# ---- 2. protocol buffers -----------------------------------------------------------------------------------


def varint(value):
    """A whole number in groups of seven bits."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number, data):
    """A field of bytes: text or a message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def version_event(wall_time):
    """The first event of every file."""
    return varint(1 << 3 | 1) + struct.pack("<d", wall_time) + field(3, b"brain.Event:2")


def scalar_event(wall_time, step, values):
    """Event{wall_time = 1, step = 2, summary = 5{value = 1{tag = 1, simple_value = 2}}} of several
    scalars."""
    summary = b"".join(
        field(1, field(1, tag.encode()) + varint(2 << 3 | 5) + struct.pack("<f", value))
        for tag, value in values
    )
    return (
        varint(1 << 3 | 1) + struct.pack("<d", wall_time) + varint(2 << 3) + varint(step) + field(5, summary)
    )


# ---- 3. stages ---------------------------------------------------------------------------------------------


def rows_of(metrics):
    """(step, [(name, value)]) of every line, without what is not a number."""
    names = sorted(name for name in metrics if name != "step")
    for i, step in enumerate(metrics["step"]):
        yield int(step), [
            (name, float(metrics[name][i])) for name in names if not math.isnan(metrics[name][i])
        ]


def write_events(path, metrics, wall_time):
    """One event file; all events carry the time the stage ended, since metrics.h5 keeps no clock."""
    with open(path, "wb") as file:
        file.write(record(version_event(wall_time)))
        for step, values in rows_of(metrics):
            if values:
                file.write(record(scalar_event(wall_time, step, values)))


def write_table(path, metrics):
    """The same numbers as CSV, empty where a step has none."""
    names = sorted(name for name in metrics if name != "step")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step"] + names)
        for step, values in rows_of(metrics):
            known = dict(values)
            writer.writerow([step] + [repr(known[name]) if name in known else "" for name in names])


def export_run(run, out, as_csv):
    """Every stage of a run that has metrics; returns the paths."""
    paths = []
    for stage in run.stages():
        source = run.path(stage, "metrics.h5")
        metrics = read_metrics(source)
        if metrics is None:
            continue
        folder = os.path.join(out, f"seed_{run.seed}" if run.seed is not None else "", stage)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "metrics.csv" if as_csv else "events.out.tfevents.0.moebatch")
        write_table(path, metrics) if as_csv else write_events(path, metrics, os.path.getmtime(source))
        paths.append(path)
    return paths


def main(arguments=None):
    """Returns the exit code: 0 done, 3 when the run has no metrics."""
    parser = argparse.ArgumentParser(
        description="metrics.h5 of training stages as TensorBoard event files, or CSV."
    )
    parser.add_argument("run", help="run folder, with stages or seed_<n> folders inside")
    parser.add_argument("--out", help="folder to write to (default: RUN/tensorboard)")
    parser.add_argument("--csv", action="store_true", help="write CSV files")
    options = parser.parse_args(arguments)
    out = options.out or os.path.join(options.run, "tensorboard")
    paths = [path for run in open_runs(options.run) for path in export_run(run, out, options.csv)]
    for path in paths:
        print(path)
    if not paths:
        print(f"tensorboard.py: no stage of {options.run} has a metrics.h5", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
