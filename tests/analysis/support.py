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
