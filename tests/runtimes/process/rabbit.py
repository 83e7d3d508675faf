"""A real RabbitMQ for tests (Debian's rabbitmq-server): loopback only, on ports of its own, everything it writes in one folder.

It and its epmd (Erlang's port mapper, also of its own) are children of the test and ended by pid.
"""

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import amqp

from tests.certified import Authority
from tests.runtimes.process.lab import free_port, until

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
USER, PASSWORD = "erp", "s3cret-of-erp"
SMALL = 4 * 1024 * 1024  # bytes of a message that this broker takes


def _hashed(password: str) -> str:
    """As RabbitMQ keeps a password (rabbit_password_hashing_sha256)."""
    salt = os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class Rabbit:
    """Users: erp (everything), guest-of-erp (may sign in, has no permission). Virtual hosts: /, other (nobody's). Policy: queues
    named full-… take one message and refuse the next."""

    def __init__(self, home: Path) -> None:
        assert SERVER.exists(), "apt install rabbitmq-server"
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.port, self.tls_port, epmd_port = home, free_port(), free_port(), free_port()
        self.authority = Authority(home / "tls")
        self.tls = self.authority.files("broker")
        self.log = home / "server.log"
        (home / "definitions.json").write_text(json.dumps(self._definitions()))
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlisteners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self.tls.authority}\nssl_options.certfile = {self.tls.machine}\n"
            f"ssl_options.keyfile = {self.tls.machine}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n"
            f"load_definitions = {home}/definitions.json\nmax_message_size = {SMALL}\ndisk_free_limit.absolute = 1MB\nlog.file = false\n"
            "log.console = true\nlog.console.level = warning\n"
        )
        (home / "enabled_plugins").write_text("[].\n")
        self.environment = {
            "PATH": "/usr/lib/rabbitmq/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(home),  # of the Erlang cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_NODENAME": f"baton{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1 +sbwt none",
        }
        epmd = shutil.which("epmd")
        assert epmd
        self.epmd = subprocess.Popen([epmd, "-address", "127.0.0.1", "-port", str(epmd_port)], env=self.environment)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(SERVER)], env=self.environment, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until(self._answers, 60, "RabbitMQ answers")
        except BaseException:
            self.close()
            raise
        self.client = self.connect()

    def _definitions(self) -> dict[str, Any]:
        users = {USER: PASSWORD, "guest-of-erp": PASSWORD}
        full = {"max-length": 1, "overflow": "reject-publish"}
        rights = {"user": USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
        none = {"user": "guest-of-erp", "vhost": "/", "configure": "^$", "write": "^$", "read": "^$"}
        return {
            "users": [
                {"name": name, "password_hash": _hashed(word), "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ""}
                for name, word in users.items()
            ],
            "vhosts": [{"name": "/"}, {"name": "other"}],
            "permissions": [rights, none],
            "policies": [{"vhost": "/", "name": "full", "pattern": "^full-", "apply-to": "queues", "priority": 0, "definition": full}],
        }

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            self.connect().close()
        except (amqp.AMQPError, OSError):
            return False
        return True

    def connect(self) -> Any:
        made = amqp.Connection(f"127.0.0.1:{self.port}", userid=USER, password=PASSWORD, login_method="PLAIN", connect_timeout=5)
        try:
            made.connect()
        except (amqp.AMQPError, OSError):
            made.collect()
            raise
        made.sock.settimeout(10)
        return made

    def on_channel(self, act: Callable[[Any], Any]) -> Any:
        """Do something as the broker's administrator would."""
        channel = self.client.channel()
        channel.auto_decode = False
        try:
            return act(channel)
        finally:
            channel.close()

    def queue(self, name: str, **more: Any) -> str:
        self.on_channel(lambda channel: channel.queue_declare(name, durable=True, auto_delete=False, **more))
        return name

    def publish(self, queue: str, *bodies: bytes, exchange: str = "", **properties: Any) -> None:
        """Persistent, and confirmed."""

        def act(channel: Any) -> None:
            for number, body in enumerate(bodies):
                own = {"message_id": f"{queue}-{number}"} | properties
                own = {name: value for name, value in own.items() if value is not None}
                channel.basic_publish_confirm(amqp.Message(body, delivery_mode=2, **own), exchange, queue, timeout=10)

        self.on_channel(act)

    def count(self, queue: str) -> int:
        """Messages that are ready."""
        return int(self.on_channel(lambda channel: channel.queue_declare(queue, passive=True).message_count))

    def take(self, queue: str) -> Any:
        """One message, or None."""
        return self.on_channel(lambda channel: channel.basic_get(queue, no_ack=True))

    def delete(self, queue: str) -> None:
        self.on_channel(lambda channel: channel.queue_delete(queue))

    def control(self, *words: str) -> None:
        """rabbitmqctl."""
        command = ["/usr/lib/rabbitmq/bin/rabbitmqctl", "--node", self.environment["RABBITMQ_NODENAME"], *words]
        subprocess.run(command, env=self.environment, check=True, timeout=60, capture_output=True)

    def signal(self, number: signal.Signals) -> None:
        """To the whole broker, not to its port mapper."""
        os.killpg(self.process.pid, number)

    def close(self) -> None:
        for made in filter(None, [getattr(self, "client", None)]):
            try:
                made.sock.settimeout(1)
                made.close()
            except (amqp.AMQPError, OSError):
                made.collect()
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                self.signal(number)
            except ProcessLookupError:
                pass
        self.process.wait(10)
        self.epmd.terminate()
        self.epmd.wait(5)


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
