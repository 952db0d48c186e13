"""Runs tests of a Python package, in the virtual environment that it is installed in.

Every test in the `test_*` modules below the package, or those with a part in their name. A line of JSON for each
goes to the report as soon as it is known: its name, with `problem` or `skipped` if that is so. A test that is left
out has as its reason the part that named it.
"""

import argparse
import importlib
import json
import pkgutil
import traceback
import unittest


class Result(unittest.TestResult):
    """Writes each test's outcome down. What goes wrong for a whole class is an outcome of the class."""

    def __init__(self, report):
        super().__init__()
        self.report = report

    def say(self, test, **more):
        print(json.dumps({"name": test.id(), **more}), file=self.report, flush=True)

    # testtools hands over details instead of an exception.
    def addError(self, test, err=None, details=None):
        self.say(test, problem=told(err, details))

    addFailure = addError

    def addSkip(self, test, reason=None, details=None):
        self.say(test, skipped=reason or details["reason"].as_text())

    def addSuccess(self, test, details=None):
        self.say(test)

    def addExpectedFailure(self, test, err=None, details=None):
        self.say(test)

    def addUnexpectedSuccess(self, test, details=None):
        self.say(test, problem="it was expected to fail, and did not")


def told(err, details):
    if err:
        return "".join(traceback.format_exception(*err))
    return "\n".join(detail.as_text() for name, detail in sorted(details.items()) if name.startswith("traceback"))


def modules(package):
    package = importlib.import_module(package)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.rsplit(".", 1)[1].startswith("test_"):
            yield importlib.import_module(module.name)


def cases(module):
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == module.__name__:
            yield value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report")
    parser.add_argument("package")
    parser.add_argument("--only", default="", help="only tests with this in their names")
    parser.add_argument("--without", action="append", default=[], help="leave tests with this in their names out")
    options = parser.parse_args()
    loader = unittest.TestLoader()
    with open(options.report, "w") as out:
        for module in modules(options.package):
            for case in cases(module):
                # A result remembers the last class, and would take it down once more before the next suite.
                chosen, result = unittest.TestSuite(), Result(out)
                for test in loader.loadTestsFromTestCase(case):
                    left_out = next((part for part in options.without if part in test.id()), None)
                    if options.only not in test.id():
                        continue
                    if left_out:
                        result.addSkip(test, left_out)
                    else:
                        chosen.addTest(test)
                chosen.run(result)



if __name__ == "__main__":
    main()
