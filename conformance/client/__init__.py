"""Suite `client`: command lines of the stock OpenStack client, with checks on what they print.

Case files (`*.cases` beside this file) read like a session at a shell:

    # A comment.
    @demo                           commands that follow are those of the cloud evergate-demo
    $ network create net1           must succeed; it is run with `-f json` where it prints anything
    mtu = 1450                      an attribute of what it printed, as text
    NET := id                       remembers an attribute; $NET stands for it in later lines
    rows = 2                        of a list
    row Name=net1 Shared=False      some row of a list has all of these
    no row Name=net1                none has
    ! network show nothing          must fail
    ~ No Network found              and say so
    - only with a host              the commands of the rest of the file are skipped: why

The client is not changed in any way. It is imported once, and its own `main` runs in a fork of this process for
each command: starting a Python for each would take longer than all the commands.
"""

import json
import os
import pathlib
import re
import shlex
import sys
import tempfile
import traceback

from run import Outcome

HERE = pathlib.Path(__file__).resolve().parent


def run(server, options):
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(server.clouds)
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(with_tokens(server.clouds))
    files = sorted(HERE.glob("*.cases"))
    if options.only:
        files = [file for file in files if options.only in file.stem]
    return [outcome for file in files for outcome in Session(file).play()]


def with_tokens(path):
    """Writes the clouds with tokens for passwords: checking a password is slow on purpose, also for us."""
    import openstackclient.shell  # noqa: F401: before the forks, for all of them
    import yaml

    clouds = yaml.safe_load(path.read_text())
    for name, cloud in clouds["clouds"].items():
        ran = Ran(name, "token issue")
        if "id" not in ran.attributes():
            raise SystemExit(f"no token for {name}: {ran.said()}")
        auth = {key: cloud["auth"][key] for key in ("auth_url", "project_name", "project_domain_name")}
        cloud.update(auth_type="v3token", auth={**auth, "token": ran.attributes()["id"]})
    preload()
    own = path.with_name("clouds-with-tokens.yaml")
    own.write_text(yaml.safe_dump(clouds))
    return own


def preload():
    """Imports what commands import, so that no fork does it again."""
    import importlib
    import pkgutil

    import openstackclient.network.v2 as commands

    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{module.name}")
    for name in ["openstack.network.v2._proxy", "openstack.identity.v3._proxy", "openstackclient.network.client",
                 "openstackclient.identity.client", "openstackclient.common.clientmanager"]:
        importlib.import_module(name)


class Session:
    """One case file: later commands may use what earlier ones made. `ran` runs one."""

    def __init__(self, file, ran=None):
        self.name, self.lines, self.ran = file.stem, file.read_text().splitlines(), ran or Ran
        self.cloud, self.values = "evergate-admin", {}

    def play(self):
        outcomes, current = [], None
        for number, line in enumerate(self.lines, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            if line.startswith("- "):
                outcomes.append(Outcome(f"{self.name}:{number}", skipped=line[2:]))
                break
            if line.startswith("@"):
                self.cloud = f"evergate-{line[1:]}"
                continue
            if line[0] in "$!":
                current = self.command(number, line)
                outcomes.append(current.outcome)
            elif current is None:
                outcomes.append(Outcome(f"{self.name}:{number}", problem="a check before any command"))
            elif not current.outcome.problem:
                current.outcome.problem = self.check(line, current)
        return outcomes

    def filled(self, text):
        return re.sub(r"\$([A-Z][A-Z0-9_]*)", lambda match: str(self.values.get(match[1], match[0])), text)

    def command(self, number, line):
        text = self.filled(line[1:].strip())
        ran = self.ran(self.cloud, text)
        expected = line[0] == "$"
        problem = None
        if (ran.status == 0) != expected:
            problem = f"ended with {ran.status}: {ran.said()}"
        ran.outcome = Outcome(f"{self.name}:{number} {ran.PROGRAM} {text}", problem)
        return ran

    def check(self, line, ran):
        """Makes one check; answers what is wrong."""
        line = self.filled(line)
        if line.startswith("~ "):
            return None if line[2:] in ran.said() else f"expected {line[2:]!r} in what it said: {ran.said()}"
        if match := re.fullmatch(r"([A-Z][A-Z0-9_]*) := (.+)", line):
            if match[2] not in ran.attributes():
                return f"there is no {match[2]} in {ran.attributes()}"
            self.values[match[1]] = ran.attributes()[match[2]]
            return None
        if match := re.fullmatch(r"rows = (\d+)", line):
            return None if len(ran.rows()) == int(match[1]) else f"expected {match[1]} rows: {ran.rows()}"
        if match := re.fullmatch(r"(no )?row (.+)", line):
            wanted = [part.split("=", 1) for part in shlex.split(match[2])]
            found = any(all(shown(row.get(key)) == value for key, value in wanted) for row in ran.rows())
            return None if found != bool(match[1]) else f"{line!r} is not so: {ran.rows()}"
        if match := re.fullmatch(r"([\w:() -]+?) (=|has) ?(.*)", line):
            key, relation, value = match.groups()
            if key not in ran.attributes():
                return f"there is no {key!r} in {ran.attributes()}"
            found = shown(ran.attributes()[key])
            good = found == value if relation == "=" else value in found
            return None if good else f"{key} is {found!r} instead of {value!r}"
        return f"unknown check {line!r}"


def shown(value):
    """A value as case files write it: what is no text as JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


class Ran:
    """One command that was run: its status and what it printed."""

    PROGRAM = "openstack"

    # These print nothing, and know no `-f`.
    SILENT = {"delete", "set", "unset", "add", "remove"}

    def __init__(self, cloud, text):
        words = shlex.split(text)
        arguments = ["--os-cloud", cloud, *words, *(["-f", "json"] if self.prints(words) else [])]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            self.status = self.run(arguments, out, err)
            out.seek(0)
            err.seek(0)
            self.out, self.err, self.outcome = out.read(), err.read(), None

    def prints(self, words):
        return not self.SILENT & set(words[1:5])

    def run(self, arguments, out, err):
        child = os.fork()
        if child == 0:
            become_the_client(arguments, out, err)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def said(self):
        return (self.out + self.err).strip()

    def attributes(self):
        printed = self.printed()
        return printed if isinstance(printed, dict) else {}

    def rows(self):
        printed = self.printed()
        return printed if isinstance(printed, list) else []

    def printed(self):
        try:
            return json.loads(self.out)
        except ValueError:
            return None


def become_the_client(arguments, out, err):
    """Runs the client in this process and ends it."""
    status = 1
    try:
        sys.stdout, sys.stderr = out, err
        from openstackclient import shell

        status = shell.main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc(file=err)
    finally:
        out.flush()
        err.flush()
        os._exit(status or 0)
