"""Runs a real Keystone on a free port of the loopback, with a new SQLite database, for tests.

    serve.py DIRECTORY PASSWORD

makes in DIRECTORY all that Keystone keeps, an administrator with PASSWORD, and the file `port` once it listens.
Everything happens in this one process, because importing Keystone takes longer than all else.
"""

import base64
import os
import pathlib
import socketserver
import sys
import wsgiref.simple_server as simple

directory, password = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
sys.argv = sys.argv[:1]
configuration = directory / "keystone.conf"
configuration.write_text(f"""\
[database]
connection = sqlite:///{directory}/keystone.sqlite
[fernet_tokens]
key_repository = {directory}/fernet
[fernet_receipts]
key_repository = {directory}/fernet
[credential]
key_repository = {directory}/fernet
[token]
expiration = 3600
# How long an expired token is still told of to a service that asks for it.
allow_expired_window = 3600
[identity]
# Cheap hashes: nothing here is worth guarding.
password_hash_algorithm = bcrypt
password_hash_rounds = 4
[cache]
enabled = false
""")
keys = directory / "fernet"
keys.mkdir(mode=0o700)
for name in ("0", "1"):
    (keys / name).write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
os.environ["OS_KEYSTONE_CONFIG_FILES"] = str(configuration)

from keystone.server import wsgi  # noqa: E402

application = wsgi.initialize_public_application()

from keystone.cmd import bootstrap  # noqa: E402
from keystone.common.sql import upgrades  # noqa: E402

upgrades.offline_sync_database_to_version()
# The application has loaded them, and they can be loaded only once.
bootstrap.backends.load_backends = dict
first = bootstrap.Bootstrapper()
first.admin_password, first.admin_username, first.project_name = password, "admin", "admin"
first.admin_role_name, first.immutable_roles = "admin", False
first.service_name = first.region_id = None
first.admin_url = first.public_url = first.internal_url = None
first.bootstrap()


class Server(socketserver.ThreadingMixIn, simple.WSGIServer):
    daemon_threads = True


class Quiet(simple.WSGIRequestHandler):
    def log_message(self, *_):
        pass


server = simple.make_server("127.0.0.1", 0, application, server_class=Server, handler_class=Quiet)
beside = directory / "port.new"
beside.write_text(str(server.server_port))
beside.rename(directory / "port")
server.serve_forever()
