#!/usr/bin/env python3
"""Runs conformance suites against a real `evergate server` on loopback.

    conformance/run.py                        every suite
    conformance/run.py client                 one suite
    conformance/run.py client --only routers  one case file of it
    conformance/run.py tempest --only tags    tests with this in their names
    conformance/run.py client --fast          what CI runs

The server is `target/debug/evergate` (or `--evergate PATH`), started here with a state directory of its own
and stopped at the end. Each suite is a module in this directory with

    run(server, options) -> [Outcome]

where `server` says how to reach the server ([`Server`]) and an outcome is a name and what was wrong, if
anything. A new suite is a new module and a line in SUITES. What a suite cannot check it lists itself, with
the reason, so that the summary tells it.
"""

import argparse
import collections
import dataclasses
import importlib
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

SUITES = ["client", "neutron", "fuzz", "sdk", "tempest", "terraform"]

# The server starts in well under a second; a loaded machine gets more.
START_PATIENCE = 60


@dataclasses.dataclass
class Outcome:
    """One check: `problem` is None where it went well; `skipped` says why it was not made."""

    name: str
    problem: str | None = None
    skipped: str | None = None


@dataclasses.dataclass
class Server:
    """A running server: its root URL, a clouds.yaml with the clouds evergate-admin and evergate-demo, its state."""

    url: str
    clouds: pathlib.Path
    process: subprocess.Popen
    evergate: pathlib.Path
    state: pathlib.Path

    @classmethod
    def start(cls, evergate, directory):
        directory.chmod(0o700)
        config, address = directory / "server.conf", directory / "address"
        config.write_text(f"[DEFAULT]\nstate_path = {directory}/state\nbind_host = 127.0.0.1\nbind_port = 0\n"
                          # Hosts that suites make up report once.
                          "agent_down_time = 86400\n")
        with open(directory / "server.log", "wb") as log:
            command = [str(evergate), "server", "--config-file", str(config), "--address-file", str(address)]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_PATIENCE
        while not address.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise SystemExit("the server did not start:\n" + (directory / "server.log").read_text())
            time.sleep(0.05)
        state = directory / "state"
        return cls(f"http://{address.read_text().strip()}", state / "clouds.yaml", process, evergate, state)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all when none is named")
    parser.add_argument("--evergate", type=pathlib.Path, default=HERE.parent / "target/debug/evergate")
    parser.add_argument("--only", help="only cases whose file, or tests whose name, has this in it")
    parser.add_argument("--fast", action="store_true", help="only what CI runs")
    options = parser.parse_args()
    unknown = set(options.suites) - set(SUITES)
    if unknown:
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="evergate-conformance-") as scratch:
        server = Server.start(options.evergate, pathlib.Path(scratch))
        try:
            failed = sum(report(suite, server, options) for suite in options.suites or SUITES)
        finally:
            server.stop()
        if failed:
            print((pathlib.Path(scratch) / "server.log").read_text()[-4000:], file=sys.stderr)
    sys.exit(1 if failed else 0)


def report(suite, server, options):
    """Runs a suite and prints what came of it; answers how many checks failed."""
    started = time.monotonic()
    outcomes = importlib.import_module(suite).run(server, options)
    for outcome in outcomes:
        if outcome.problem:
            print(f"FAILED {suite}: {outcome.name}\n    " + outcome.problem.replace("\n", "\n    "))
    reasons = collections.defaultdict(list)
    for outcome in outcomes:
        if outcome.skipped:
            reasons[outcome.skipped].append(outcome.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"skipped {suite}: {names[0]}{more}: {reason}")
    failed = sum(1 for outcome in outcomes if outcome.problem)
    skipped = sum(1 for outcome in outcomes if outcome.skipped)
    passed = len(outcomes) - failed - skipped
    took = time.monotonic() - started
    print(f"{suite}: {passed} passed, {failed} failed, {skipped} skipped in {took:.0f} s")
    if not passed:
        print(f"FAILED {suite}: nothing was checked")
        return failed + 1
    return failed


if __name__ == "__main__":
    # Suites import this module by its name; it is the same one.
    sys.modules["run"] = sys.modules["__main__"]
    main()
