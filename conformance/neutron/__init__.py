"""Suite `neutron`: command lines of the client that came before `openstack`, in its last version; the documents have some.

`routers.cases` is written as the files of the suite `client` are. The program is in `.venv-neutron`
(`requirements.txt`), apart from the stock client, whose commands it would change; it is made when it is missing.
"""

import os
import pathlib
import subprocess

import client
import upstream

HERE = pathlib.Path(__file__).resolve().parent
VENV = HERE.parent.parent / ".venv-neutron"


def run(server, options):
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(server.clouds)
    files = [file for file in sorted(HERE.glob("*.cases")) if not options.only or options.only in file.stem]
    return [outcome for file in files for outcome in client.Session(file, Ran).play()]


class Ran(client.Ran):
    """One command that was run."""

    PROGRAM = "neutron"

    # These print a sentence, and know no `-f`.
    SAYING = {"delete", "update", "set", "clear", "add"}

    def prints(self, words):
        return words[0].rpartition("-")[2] not in self.SAYING

    def run(self, arguments, out, err):
        venv = upstream.virtual_environment(VENV, HERE / "requirements.txt", "the neutron client")
        return subprocess.run([venv / "bin/neutron", *arguments], stdout=out, stderr=err).returncode
