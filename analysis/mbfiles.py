"""Read what the stages leave in a run folder: JSON records, HDF5 result files, labels.

    RUN/<stage>/done.json and the stage's own files; RUN/seed_<n>/<stage>/... when over several seeds.

Everything is opened read-only; a file that is not there is noted in `Run.missing` and gives None, so that
a report of half a run is half a report. h5py and numpy are imported only where a table needs them.
Contents: 1. JSON 2. HDF5 3. a run 4. labels and selections
"""

import glob
import json
import os
import re

# ---- 1. JSON -----------------------------------------------------------------------------------------------


def read_json(path):
    """The object in a JSON file; None when the file is missing. A broken file is a ValueError that names
    it."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not whole JSON ({error})") from error


def read_lines(path):
    """The objects of a JSONL file, one by one."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not whole JSON ({error})") from error


# ---- 2. HDF5 -----------------------------------------------------------------------------------------------


def open_h5(path, wanted=None):
    """An open h5py.File (use it with `with`); `wanted` is the format the file must name, None for any."""
    import h5py

    file = h5py.File(path, "r")
    found = text_of(file.attrs.get("format", ""))
    if wanted is not None and found and found != wanted:
        file.close()
        raise ValueError(f"{path}: its format is {found}, {wanted} was expected")
    return file


def text_of(value):
    """HDF5 strings come as bytes, numpy strings, or arrays of one."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_metrics(path):
    """{name: array} of a metrics.h5, with "step"; nested names keep their slash ("r_mean/0"). None when
    missing."""
    if not os.path.exists(path):
        return read_metrics_lines(os.path.splitext(path)[0] + ".jsonl")
    import h5py

    columns = {}
    with open_h5(path, "moebatch-metrics") as file:
        rows = file["step"].shape if "step" in file else None  # what is longer or shorter belongs to a table
        file.visititems(
            lambda name, item: (
                columns.__setitem__(name, item[...])
                if isinstance(item, h5py.Dataset)
                and item.ndim == 1
                and item.shape == rows
                and not is_table_step(file, name)
                else None
            )
        )
    return columns if "step" in columns else None


def is_table_step(file, name):
    """Are these the steps of a table of counts, "loads_step" of "loads"?"""
    table = name[: -len("_step")] if name.endswith("_step") else ""
    return table in file and getattr(file[table], "ndim", 0) == 3


def read_metrics_lines(path):
    """The same from the metrics.jsonl of a stage that has not published metrics.h5 yet; None when missing."""
    if not os.path.exists(path):
        return None
    import numpy

    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.endswith("}\n")]  # the last may be half written
    names = {
        name for row in rows for name, value in row.items() if name != "time" and not isinstance(value, list)
    }
    columns = {name: numpy.array([row.get(name, numpy.nan) for row in rows], dtype=float) for name in names}
    return columns if "step" in columns else None


def read_table(path, name):
    """(steps [m], counts [m, rows, columns]) of a table in metrics.h5, or in the metrics.jsonl beside; None
    when there is none."""
    import numpy

    lines = os.path.splitext(path)[0] + ".jsonl"
    if os.path.exists(path):
        with open_h5(path, "moebatch-metrics") as file:
            if name not in file or file[name].ndim != 3:
                return None
            return file[name + "_step"][...], file[name][...]
    if not os.path.exists(lines):
        return None
    with open(lines, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.endswith("}\n")]
    rows = [row for row in rows if isinstance(row.get(name), list)]
    if not rows:
        return None
    return numpy.array([row["step"] for row in rows]), numpy.array([row[name] for row in rows])


def read_routing(path):
    """A routing.h5 as a dictionary of arrays by name ("counts", "equal/mutual_information", ...), with the
    attributes of the file under "attributes" and those of all layers together under "all_layers"."""
    import h5py

    table = {"path": path, "all_layers": {}}
    with open_h5(path, "moebatch-routing") as file:
        table["attributes"] = {
            key: (
                text_of(value)
                if isinstance(value, (bytes, str)) or value.dtype.kind in "SO"
                else value.item()
            )
            for key, value in file.attrs.items()
        }

        def take(name, item):
            if isinstance(item, h5py.Dataset):
                table[name] = item[...]
                if "all_layers" in item.attrs:
                    table["all_layers"][name] = float(item.attrs["all_layers"])

        file.visititems(take)
    for needed in ("counts", "types", "layers", "tokens", "mutual_information"):
        if needed not in table:
            raise ValueError(f"{path}: no /{needed}: not a whole routing.h5")
    table["types"] = [text_of(name) for name in table["types"]]
    return table


# Scores whose lower value means a better record, for files that do not say.
LOWER_IS_BETTER = ("perplexity", "entropy", "length", "repeats")


def is_higher_better(file, name):
    """Does a high value of this score mean a good record? By the file's attributes, else by its name."""
    for holder, key in ((file["scores/" + name], "higher_is_better"), (file, "higher_is_better/" + name)):
        if key in holder.attrs:
            return bool(holder.attrs[key])
    return name not in LOWER_IS_BETTER


def read_scores(path):
    """A score table: {"scores": {name: values, higher is better}, "source": names per record, "source_index":
    ..., "layers": {name: [N, L]}}."""
    if not os.path.exists(path):
        return None
    import numpy

    with open_h5(path, "moebatch-scores") as file:
        names = [text_of(name) for name in file["source_names"][...]]
        table = {
            "source": numpy.array(names, dtype=object)[file["source"][...].astype(int)],
            "source_index": file["source_index"][...],
            "source_names": names,
            "scores": {},
            "layers": {name: item[...] for name, item in file.get("layers", {}).items()},
        }
        for name, item in file["scores"].items():
            values = item[...].astype(float)
            table["scores"][name] = values if is_higher_better(file, name) else -values
    return table


# ---- 3. a run ----------------------------------------------------------------------------------------------


class Run:
    """One run folder: its stages and their files."""

    def __init__(self, path, seed=None):
        self.folder = path
        self.seed = seed
        self.missing = []

    def path(self, *names):
        """A path inside the run."""
        return os.path.join(self.folder, *names)

    def need(self, *names):
        """The path when it is there; None, and noted as missing, when not."""
        path = self.path(*names)
        if os.path.exists(path):
            return path
        name = "/".join(names)
        if name not in self.missing:
            self.missing.append(name)
        return None

    def json(self, *names):
        """A JSON file of a stage, or None."""
        path = self.need(*names)
        return read_json(path) if path else None

    def metrics(self, stage):
        """Curves of a training stage, or None."""
        found = read_metrics(self.path(stage, "metrics.h5"))
        if found is None:
            self.need(stage, "metrics.h5")
        return found

    def stages(self, prefix=""):
        """Names of the stages that start so, in name order; not the earlier results kept beside them as <stage>.1,
        <stage>.2, ..."""
        found = sorted(
            os.path.basename(p.rstrip("/")) for p in glob.glob(self.path(glob.escape(prefix) + "*") + "/")
        )
        kept = {name for name in found if re.sub(r"\.\d+$", "", name) in set(found) - {name}}
        return [name for name in found if name != "report" and name not in kept]

    def parts(self, prefix):
        """What follows the prefix: parts("eval-") is ["all", "base", "random", "selected"]."""
        return [name[len(prefix) :] for name in self.stages(prefix)]


def open_runs(folder):
    """The runs under a folder: [Run] of the folder itself, or one per seed_<n>."""
    seeds = [
        (int(m.group(1)), p)
        for p in glob.glob(os.path.join(glob.escape(folder), "seed_*"))
        if (m := re.fullmatch(r"seed_(\d+)", os.path.basename(p)))
    ]
    return [Run(path, seed) for seed, path in sorted(seeds)] or [Run(folder)]


# ---- 4. labels and selections ------------------------------------------------------------------------------


def read_labels(path):
    """{(source, index): kind} of a labels.jsonl."""
    labels = {}
    for row in read_lines(path):
        try:
            labels[row["source"], row["index"]] = row["kind"]
        except KeyError as error:
            raise ValueError(f"{path}: a label without {error}; each needs source, index and kind") from error
    return labels


def labels_beside(run):
    """labels.jsonl beside the files the corpus was sharded from, or one folder above; None without one."""
    path = run.path("score", "scores.h5")
    if not os.path.exists(path):
        return None
    try:
        with open_h5(path) as file:
            sources = [text_of(name) for name in file["source_files"][...]] if "source_files" in file else []
    except ImportError:
        return None
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for source in sources:
        for place in (os.path.dirname(source), os.path.dirname(os.path.dirname(source))):
            for base in ("", root):
                found = os.path.join(base, place, "labels.jsonl")
                if os.path.isfile(found):
                    return found
    return None


def find_labels(run, given=None):
    """Path of the labels: the one given, else the one beside the corpus if the stage auc has run; or None."""
    return given or (labels_beside(run) if os.path.isdir(run.path("auc")) else None)


def selected_kinds(run, name, labels):
    """{kind: count} of a selection's records, from its selected_data.jsonl; empty when it cannot be known."""
    path = run.path("select-" + name, "selected_data.jsonl")
    counts = {}
    if labels and os.path.exists(path):
        for row in read_lines(path):
            kind = labels.get((row["source_dataset"], row["source_index"]))
            if kind is not None:
                counts[kind] = counts.get(kind, 0) + 1
    return counts
