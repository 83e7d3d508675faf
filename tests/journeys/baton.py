"""A real Baton on this host, started and stopped as a person would, and asked through its public API."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from portal import ports
from tests import PATIENCE

ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")


def until(look: Callable[[], T], within: float, what: str) -> T:
    """The first true answer. Fails naming what did not come about, and the last answer."""
    deadline = time.monotonic() + within * PATIENCE
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} times {within} s: {what} (last: {answer!r})"
        time.sleep(0.02)


def free_port() -> int:
    return next(port for port in range(24_000 + os.getpid() % 1000, ports.span().stop) if ports.is_free(port))


class Baton:
    """One BATON_HOME and the runner that works on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.output = home.parent / "runner.log"
        self.runner: subprocess.Popen[bytes] | None = None
        self.token = ""
        self.ready_after = 0.0  # seconds that the first start took
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.port}/api/v1/", auth=("admin", "baton"), timeout=10, trust_env=False)

    # ------------------------------------------------------------------------------------------------------ start, stop, look

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL", "MAKELEVEL")}
        environment |= {"BATON_HOME": str(self.home), "PORT": str(self.port), "ETCD_BIN": "/usr/bin/etcd"}
        with self.output.open("ab") as output:
            self.runner = subprocess.Popen(
                [sys.executable, "manage.py", "runstack"],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self, within: float) -> float:
        """Seconds until /readyz says 200."""
        began = time.monotonic()
        with httpx.Client(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    answer = client.get(f"http://127.0.0.1:{self.port}/readyz", timeout=3)
                    if answer.status_code == 200:
                        return time.monotonic() - began
                assert self.runner is not None
                assert self.runner.poll() is None, f"the runner ended:\n{self.said()}"
                assert time.monotonic() - began < within, f"not ready within {within} s:\n{self.said()}"
                time.sleep(0.1)

    def said(self) -> str:
        return self.output.read_text(errors="replace")[-6000:]

    def processes(self) -> dict[int, str]:
        """Every living process that has to do with this home, by its environment or its working directory."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                about = (folder / "environ").read_bytes() + os.fsencode((folder / "cwd").readlink())
                if os.fsencode(self.home) in about:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return found

    def children(self, words: str) -> list[int]:
        """The pids of the runner's own children with these words on their command line; empty while one is being restarted."""
        assert self.runner is not None
        found = []
        for pid, command in self.processes().items():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if words in command and parent == self.runner.pid:
                    found.append(pid)
        return found

    def listening(self) -> dict[int, str]:
        """Port -> address, as the kernel writes it, of every TCP socket on which a process of this home listens."""
        inodes = set()
        for pid in self.processes():
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(descriptor.readlink()))
        found = {}
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                address, _, port = columns[1].rpartition(":")
                if columns[3] == "0A" and f"socket:[{columns[9]}]" in inodes:
                    found[int(port, 16)] = address
        return found

    def stop(self, signal_number: int = signal.SIGTERM, *, group: bool = False) -> float:
        """Seconds until the runner and every process of this home are gone."""
        assert self.runner is not None
        began = time.monotonic()
        (os.killpg if group else os.kill)(self.runner.pid, signal_number)
        self.runner.wait(30)
        until(lambda: not self.processes(), 10, f"no process is left ({self.processes()})")
        return time.monotonic() - began

    def end(self) -> None:
        """After a test, whatever happened in it."""
        self.api.close()
        if self.runner is not None and self.runner.poll() is None:
            self.runner.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.runner.wait(15)
            self.runner.kill()
            self.runner.wait()

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`baton …` as an administrator types it, for project webshop on Test."""
        if not self.token:
            self.token = self.api.post("token/", json={"username": "admin", "password": "baton"}).json()["token"]
        known = {"URL": f"http://127.0.0.1:{self.port}", "TOKEN": self.token, "PROJECT": "webshop", "ENVIRONMENT": "test"}
        environment = os.environ | {f"BATON_{name}": value for name, value in known.items()}
        line = [sys.executable, "-m", "cli", *words]
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    # ---------------------------------------------------------------------------------------------------------------- groups

    def group(self, name: str) -> dict[str, Any]:
        answer = self.api.get("groups/", params={"environment": "test", "project": "webshop"})
        assert answer.status_code == 200, answer.text
        return next(group for group in answer.json()["results"] if group["name"] == name)

    def leader(self, name: str) -> str | None:
        """The machine whose member leads with state on, if one does."""
        group = self.group(name)
        leading = [member["machine"] for member in group["members"] if (member["status"], member["state"]) == ("leader", "on")]
        assert len(leading) <= 1, group
        return leading[0] if leading else None

    def member(self, name: str, machine: str) -> dict[str, Any]:
        return next(member for member in self.group(name)["members"] if member["machine"] == machine)

    def settled(self, name: str) -> tuple[str, str] | None:
        """(leader, follower) once one leads, on, and the other follows, off."""
        members = self.group(name)["members"]
        by_status = {(member["status"], member["state"]): member["machine"] for member in members}
        leader, follower = by_status.get(("leader", "on")), by_status.get(("follower", "off"))
        return (leader, follower) if leader and follower else None

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.api.post(path, json=body)

    def deploy(self) -> dict[str, Any]:
        """Deploy the active release on Test and wait for the end."""
        release = self.api.get("releases/", params={"project": "webshop"}).json()["results"][0]
        answer = self.post(f"releases/{release['id']}/deployments/", environment="test")
        assert answer.status_code == 202, answer.text
        where = answer.headers["Location"]
        live = ("pending", "running", "waiting")
        return until(lambda: (body := self.api.get(where).json())["status"] not in live and body, 60, f"{where} has ended")

    # ----------------------------------------------------------------------------------------------------------------- items

    def drop(self, data: bytes, name: str | bytes, *, system: str = "erp") -> str:
        """Put a file into a system's outbox, complete from its first moment there. Returns its SHA-256."""
        outbox = self.home / "demo" / system / "outbox"
        draft = outbox.parent / "draft"
        draft.write_bytes(data)
        os.rename(os.fsencode(draft), os.path.join(os.fsencode(outbox), os.fsencode(name)))  # noqa: PTH104, PTH118 - bytes
        return hashlib.sha256(data).hexdigest()

    def receipts(self) -> list[dict[str, Any]]:
        file = self.home / "demo" / "warehouse" / "received.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def received(self, digest: str, within: float = 10) -> dict[str, Any]:
        """The first receipt of these bytes, once it is there."""
        return until(lambda: next((line for line in self.receipts() if line["sha256"] == digest), None), within, f"{digest[:8]} arrived")


@pytest.fixture(scope="module")
def baton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Baton]:
    """A stack of its own for each file, at a place whose name is as awkward as a person's may be; ready."""
    home = tmp_path_factory.mktemp("journey") / "a home with spaces, and a name that is too long for a unix socket below it, surely so"
    home.mkdir()
    running = Baton(home)
    running.start()
    try:
        running.ready_after = running.wait_ready(within=120 * PATIENCE)
        yield running
    finally:
        running.end()
