#!/usr/bin/env python3
"""Run the Python tests and print one TAP line each: "ok 1 - name", "not ok 2 - name", "ok 3 - x # SKIP why".

python3 tests/analysis/run.py [PATTERN]     only tests whose name contains PATTERN
"""

import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


class TapResult(unittest.TestResult):
    """Counts tests and prints their lines; a failure's text follows as comments, with the command that
    repeats it."""

    def __init__(self):
        super().__init__()
        self.number = 0
        self.failed = 0

    def line(self, test, is_ok, note=""):
        """One TAP line."""
        self.number += 1
        self.failed += not is_ok
        print(f"{'ok' if is_ok else 'not ok'} {self.number} - {test.id()}{note}", flush=True)

    def addSuccess(self, test):
        self.line(test, True)

    def addSkip(self, test, reason):
        self.line(test, True, f" # SKIP {reason}")

    def addFailure(self, test, err):
        self.line(test, False)
        print("# repeat: python3 tests/analysis/run.py " + test.id())
        for line in self._exc_info_to_string(err, test).rstrip().split("\n"):
            print("# " + line, flush=True)

    addError = addFailure

    def addExpectedFailure(self, test, err):
        self.line(test, False, " (an expected failure is no result)")


def flatten(suite):
    """All tests of a suite."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def main():
    """Returns 0 when all passed, 1 else."""
    sys.path[:0] = [HERE, os.path.join(ROOT, "analysis"), os.path.join(ROOT, "datasets")]
    os.chdir(ROOT)
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    tests = [
        test
        for test in flatten(unittest.defaultTestLoader.discover(HERE, "test_*.py"))
        if pattern in test.id()
    ]
    result = TapResult()
    unittest.TestSuite(tests).run(result)
    print(f"1..{result.number}")
    return 1 if result.failed or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
