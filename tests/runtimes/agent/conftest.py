"""Real agents on real folders, and a little real portal for them to talk to."""

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtimes.agent.router import pick_port
from runtimes.protocol import (
    LIFELINE_FD_ENV,
    PRESENCE_FD_ENV,
    PROFILES,
    BundleContent,
    CertificateRequest,
    GroupSpec,
    JoinAnswer,
    Orders,
    Report,
    ReportAnswer,
    RouterOrder,
    RuntimeOrder,
    Timing,
    TimingProfile,
    decode,
    digest_of,
    encode,
)
from tests import PATIENCE
from tests.certified import Authority

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "one-time"


def eventually(what: Callable[[], Any], within: float = 10.0) -> Any:
    """Wait until `what()` is true, and return it."""
    until = time.monotonic() + within * PATIENCE
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < until, f"not within {PATIENCE:g} times {within} s"
        time.sleep(0.02)


def disk_full(*_: object, **__: object) -> None:
    """In the place of a write."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


class LittlePortal:
    """The agent's endpoints over real HTTP, for any number of machines (by bearer)."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        self.certifies_as_of: datetime | None = None  # None: now
        self.port = pick_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self.orders: dict[str, Orders] = {}
        self.reports: dict[str, list[Report]] = {}
        self.bundles: dict[str, bytes] = {}
        self.tokens = {TOKEN: "external01"}
        self.forgotten: set[str] = set()
        self.server: ThreadingHTTPServer | None = None
        self.connections: list[socket.socket] = []
        self.arrive()

    def arrive(self) -> None:
        portal = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                portal.connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/agent/v1/join/":
                    machine = portal.tokens.get(json.loads(body)["token"])
                    if machine is None:
                        self.answer(403, json.dumps({"detail": "the token is unknown, used or expired"}).encode())
                        return
                    joined = JoinAnswer(credential=f"secret-{machine}", machine=machine, environment="test", project="webshop")
                    self.answer(200, encode(joined))
                    return
                machine = self.machine()
                if machine is not None and self.path == "/agent/v1/certificate/":
                    router = portal.orders[machine].router
                    request = decode(CertificateRequest, body).request
                    given = portal.authority.answer(
                        request, machine, router.peer_host if router is not None else "", portal.certifies_as_of
                    )
                    self.answer(200, encode(given))
                    return
                if machine is not None:
                    portal.reports.setdefault(machine, []).append(decode(Report, body))
                    self.answer(200, encode(ReportAnswer(accepted=True, orders=portal.orders[machine])))

            def do_GET(self) -> None:
                if self.path == "/healthz":
                    self.answer(200, b"{}")
                    return
                machine = self.machine()
                if machine is None:
                    return
                if self.path.startswith("/agent/v1/bundles/"):
                    data = portal.bundles.get(self.path.split("/")[-2])
                    self.answer(200, data) if data is not None else self.answer(404, b"{}")
                    return
                after = int(self.path.split("after=")[1].split("&")[0])
                until = time.monotonic() + 2
                while time.monotonic() < until and portal.server is not None:
                    if portal.orders[machine].version > after:
                        self.answer(200, encode(portal.orders[machine]))
                        return
                    time.sleep(0.02)
                self.answer(204, b"")

            def machine(self) -> str | None:
                machine = self.headers["Authorization"].removeprefix("Bearer secret-")
                if machine in portal.forgotten:
                    self.answer(401, json.dumps({"detail": "unknown credential"}).encode())
                    return None
                portal.orders.setdefault(machine, Orders(version=0, namespace="/baton/1/"))
                return machine

            def answer(self, status: int, body: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def leave(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            server.shutdown()
            server.server_close()
            self.thread.join()
            for connection in self.connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self.connections.clear()

    def tell_trust(self) -> None:
        """All machines hear of what was revoked."""
        for machine, known in self.orders.items():
            trust = self.authority.trust(machine, known.router.peer_host if known.router is not None else "")
            self.orders[machine] = msgspec.structs.replace(known, version=known.version + 1, trust=trust)

    def order(self, machine: str, **fields: Any) -> None:
        version = self.orders[machine].version + 1 if machine in self.orders else 1
        router = fields.get("router")
        trust = self.authority.trust(machine, router.peer_host if router is not None else "")
        self.orders[machine] = Orders(version=version, namespace="/baton/1/", **({"trust": trust} | fields))

    def last(self, machine: str) -> Report | None:
        return self.reports[machine][-1] if self.reports.get(machine) else None

    def keep(self, content: BundleContent) -> str:
        data = encode(content)
        self.bundles[digest_of(data)] = data
        return digest_of(data)


class Host:
    """One machine: its folder, its agent, and a runner's pipes that end everything on it."""

    def __init__(self, folder: Path, portal: LittlePortal, name: str) -> None:
        self.home = folder / name
        self.portal = portal
        self.name = name
        self.agent: subprocess.Popen[bytes] | None = None
        self.lifeline, self.lifeline_write = os.pipe()
        self.presence, self.presence_write = os.pipe()
        self.log = folder / f"{name}.log"

    def start(self, *options: str, standin: bool = True, before: str = "pass") -> None:
        """Start the agent; `standin`: its runtimes run the stand-in program; `before`: Python statements, run first."""
        script = f"import sys; from runtimes.agent import supervisor, __main__ as m; {before};"
        if standin:
            script += "supervisor.PROCESS_MODULE = 'tests.runtimes.agent.standin';"
        script += "sys.exit(m.main(sys.argv[1:]))"
        given = options or ("--portal", self.portal.url, "--token", TOKEN if self.name == "external01" else self.name)
        with self.log.open("ab") as out:
            self.agent = subprocess.Popen(
                [sys.executable, "-c", script, "--home", str(self.home), *given],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                pass_fds=[self.lifeline, self.presence_write],
                env=os.environ
                | {LIFELINE_FD_ENV: str(self.lifeline), PRESENCE_FD_ENV: str(self.presence_write), "ETCD_BIN": "/usr/bin/etcd"},
            )

    def kill_agent(self, number: int = signal.SIGKILL) -> float:
        """Signal the agent. Returns: seconds until it was gone."""
        assert self.agent is not None
        began = time.monotonic()
        self.agent.send_signal(number)
        self.agent.wait(5)
        self.agent = None
        return time.monotonic() - began

    def runtime(self, key: str = "external01.erp") -> Any:
        """What the portal was last told of one runtime."""
        report = self.portal.last(self.name)
        return next((runtime for runtime in report.runtimes if runtime.key == key), None) if report is not None else None

    def ready(self, key: str = "external01.erp") -> Any:
        runtime = self.runtime(key)
        return runtime if runtime is not None and runtime.state == "ready" else None

    def folder(self, key: str = "external01.erp") -> Path:
        return self.home / "runtimes" / key

    def behave(self, how: str, key: str = "external01.erp") -> None:
        data = self.folder(key) / "data"
        data.mkdir(parents=True, exist_ok=True)
        (data / "behaviour").write_text(how)

    def end_lifeline(self) -> None:
        os.close(self.lifeline_write)
        self.lifeline_write = -1

    def all_gone(self, within: float) -> bool:
        """Do agent and all keepers end within so many seconds of the lifeline's end."""
        if self.presence_write >= 0:
            os.close(self.presence_write)
            self.presence_write = -1
        ready, _, _ = select.select([self.presence], [], [], within)
        return bool(ready) and os.read(self.presence, 1) == b""

    def reopen(self) -> None:
        """After everything has ended: the machine may be started again."""
        for end in (self.lifeline, self.presence):
            os.close(end)
        self.lifeline, self.lifeline_write = os.pipe()
        self.presence, self.presence_write = os.pipe()

    def close(self) -> None:
        if self.lifeline_write >= 0:
            self.end_lifeline()
        gone = self.all_gone(12)
        if self.agent is not None:
            if self.agent.poll() is None:
                self.agent.kill()
            self.agent.wait(5)
        os.close(self.lifeline)
        os.close(self.presence)
        assert gone, "a keeper was left behind"


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[LittlePortal]:
    portal = LittlePortal(tmp_path)
    yield portal
    portal.leave()


@pytest.fixture
def hosts(tmp_path: Path, portal: LittlePortal) -> Iterator[Callable[[str], Host]]:
    made: list[Host] = []

    def make(name: str) -> Host:
        portal.tokens.setdefault(name, name)
        made.append(Host(tmp_path, portal, name))
        return made[-1]

    yield make
    for host in made:
        if host.lifeline_write >= 0:
            host.end_lifeline()
    for host in made:
        host.close()


@pytest.fixture
def host(hosts: Callable[[str], Host]) -> Host:
    return hosts("external01")


def content(release: int = 1, **changes: Any) -> BundleContent:
    group = GroupSpec(id="g1", name="erp-orders", failover=True, members=["external01.erp", "external02.erp"])
    fields = {"environment": "test", "machine": "external01", "connector": "erp", "release": release, "flows": [], "groups": [group]}
    return BundleContent(**(fields | changes))


def erp(digest: str | None, release: int = 1, **changes: Any) -> RuntimeOrder:
    fields = {"key": "external01.erp", "connector": "erp", "running": True, "digest": digest, "release": release}
    return RuntimeOrder(**(fields | changes))


def cluster(*names: str, timing: Timing = PROFILES[TimingProfile.LAN]) -> dict[str, RouterOrder]:
    """Router orders of one new cluster on loopback."""
    ports = {name: pick_port("127.0.0.1") for name in names}
    members = {name: f"https://127.0.0.1:{port}" for name, port in ports.items()}
    return {
        name: RouterOrder(
            name=name,
            peer_host="127.0.0.1",
            peer_port=ports[name],
            cluster_token="test-1",
            members=members,
            heartbeat_ms=timing.etcd_heartbeat_ms,
            election_ms=timing.etcd_election_ms,
        )
        for name in names
    }


def listener() -> socket.socket:
    """Somebody else's program on a port."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", pick_port("127.0.0.1")))
    sock.listen()
    return sock
