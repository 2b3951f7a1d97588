"""What the Python tests share: where the programs are, running one, which packages are there."""

import contextlib
import importlib
import io
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
for folder in ("analysis", "datasets", os.path.join("tests", "analysis")):
    if os.path.join(ROOT, folder) not in sys.path:
        sys.path.insert(0, os.path.join(ROOT, folder))


def lacking(*packages):
    """Why tests that need these packages are left out; None when all are there."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            return f"Python package {package} is not installed"
    return None


def run_script(path, *arguments, **environment):
    """(exit code, stdout, stderr) of a script of the project."""
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1", **environment),
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def call_main(module, *arguments):
    """(exit code, stdout, stderr) of a module's main, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = module.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def information(counts, equal=False):
    """What routing_information.c computes, by numpy in another way (entropies of the joint table): counts
    [types, experts] to {"mutual", "corrected", "normalised", "experts", "types"} in nats."""
    import numpy

    counts = numpy.asarray(counts, dtype=float)
    counts = counts[counts.sum(axis=1) > 0]
    picks = counts.sum(axis=1)
    weight = numpy.full(len(picks), 1 / len(picks)) if equal else picks / picks.sum()
    share = counts / picks[:, None]
    joint = share * weight[:, None]
    experts = joint.sum(axis=0)

    def entropy(values):
        values = values[values > 0]
        return float(-(values * numpy.log(values)).sum())

    mutual = entropy(experts) + entropy(weight) - entropy(joint.ravel())
    if equal:
        used = experts > 0
        variance = (weight[:, None] ** 2 * share * (1 - share) / picks[:, None]).sum(axis=0)
        cells = (counts > 0).sum(axis=1)
        excess = (weight * (cells - 1) / (2 * picks)).sum() - 0.5 * (variance[used] / experts[used]).sum()
    else:
        cells = (counts > 0).sum()
        excess = (cells - (experts > 0).sum() - len(picks) + 1) / (2 * picks.sum())
    least = min(entropy(experts), entropy(weight))
    return {
        "mutual": mutual,
        "corrected": mutual - excess,
        "normalised": mutual / least if least > 0 else numpy.nan,
        "experts": entropy(experts),
        "types": entropy(weight),
    }
