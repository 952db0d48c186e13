"""Suite `fuzz`: Schemathesis makes requests out of the OpenAPI document that the server publishes, such as it
describes and others. Whatever they are, none is answered with a server error, and every answer has the shape that
the document promises.

`fuzz/hooks.py` puts ids that exist into them. Schemathesis is in `.venv-fuzz` (`fuzz/requirements.txt`), which is
made when it is missing. EVERGATE_FUZZ_SECONDS says how long it may take, EVERGATE_FUZZ_SEED repeats a run.
"""

import os
import pathlib
import random
import subprocess
import xml.etree.ElementTree

import upstream
from run import Outcome

HERE = pathlib.Path(__file__).resolve().parent / "fuzz"
VENV = HERE.parent.parent / ".venv-fuzz"
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def run(server, options):
    upstream.hosts(server)
    upstream.external(server)
    token = upstream.Admin(server).token
    directory = server.state.parent / "fuzz"
    directory.mkdir()
    seed = os.environ.get("EVERGATE_FUZZ_SEED") or str(random.randrange(2**32))
    seconds = os.environ.get("EVERGATE_FUZZ_SECONDS") or ("10" if options.fast else "120")
    report = directory / "report.xml"
    venv = upstream.virtual_environment(VENV, HERE / "requirements.txt", "Schemathesis")
    command = [venv / "bin/schemathesis", "run", f"{server.url}/evergate/v1/openapi.json", "--url", server.url,
               "--header", f"X-Auth-Token: {token}", "--checks", CHECKS, "--seed", seed, "--max-time", seconds,
               "--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off", "--no-color",
               "--report", "junit", "--report-junit-path", report]
    if options.fast:
        command += ["--phases", "fuzzing", "--max-examples", "10"]
    if options.only:
        command += ["--include-path-regex", options.only]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(HERE),
                   "SCHEMATHESIS_HOOKS": "hooks", "EVERGATE_FUZZ_URL": server.url, "EVERGATE_FUZZ_TOKEN": token}
    ended = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    outcomes = outcomes_of(report) if report.exists() else []
    if ended.returncode and not any(outcome.problem for outcome in outcomes):
        outcomes.append(Outcome("schemathesis", problem=f"it ended with {ended.returncode}: {ended.stdout[-3000:]}"
                                                        f"{ended.stderr[-1000:]}"))
    panics = [line for line in (server.state.parent / "server.log").read_text().splitlines() if "panicked" in line]
    outcomes.append(Outcome("nothing in the server panicked", problem="\n".join(panics) or None))
    for outcome in outcomes:
        if outcome.problem:
            outcome.problem += f"\nEVERGATE_FUZZ_SEED={seed} repeats it"
    return outcomes


def outcomes_of(report):
    """Every operation that was asked for, and what was wrong with its answers."""
    outcomes = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        problems = [(found.get("message") or "") + (found.text or "")
                    for kind in ("failure", "error") for found in case.findall(kind)]
        outcomes.append(Outcome(case.get("name"), problem="\n".join(problems)[:4000] or None))
    return outcomes
