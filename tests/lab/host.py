"""One machine of the lab: what runs on it, and the faults that concern it alone, as verbs."""

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.clock import HostClock, boot
from tests.lab.judge import Stood
from tests.lab.network import Wire, inside, run

ROOT = Path(__file__).resolve().parents[2]
RESTART_SECONDS = 0.5  # after which a service manager would start a unit again
DISK_BYTES = 320 * 1024 * 1024  # of the router's folder: two logs of 64 MiB, the next one, and the database
NEXT_VERSION = "99.0"  # of the agent that a machine is upgraded to


@dataclass
class Unit:
    """What a service manager would keep running on a host: the agent; on core01 also portal, worker, beat and broker."""

    name: str
    start: Callable[[], int]
    wanted: bool = True
    pid: int = 0
    died_at: float = 0.0


@dataclass
class Host:
    """One machine. Verbs act at once and return."""

    name: str
    wire: Wire
    home: Path
    clock: HostClock
    connectors: tuple[str, ...]  # that run on it
    up: bool = True
    paused: bool = False
    isolated: bool = False
    units: dict[str, Unit] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    disk: Path | None = None  # where the router's own small disk is mounted
    squatter: socket.socket | None = None  # another program at the router's port
    upgraded: Path | None = None  # the other folder from which the agent runs since its upgrade
    stood: list[Stood] = field(default_factory=list)  # each time that something of it stood still
    acted_at: float = 0.0  # boot time of the last signal: finding the processes before it takes its time on a busy computer

    # ------------------------------------------------------------------------------------------------------------ its parts

    def part(self, name: str) -> list[int]:
        """Process ids of a part: agent, portal, worker, beat, broker, router, router-keeper, process:<connector>, keeper:<connector>."""
        if name in self.units:
            return [self.units[name].pid] if alive(self.units[name].pid) else []
        kind, _, connector = name.partition(":")
        folder = str(self.home / ("router" if kind.startswith("router") else f"runtimes/{self.name}.{connector}"))
        wanted = {
            "router": "/usr/bin/etcd",
            "process": "runtimes.process",
            "keeper": "runtimes.agent.keeper",
            "router-keeper": "runtimes.agent.keeper",
        }
        found = []
        for pid in self.wire.pids():
            words = command_of(pid)
            if wanted[kind] in words and any(folder in word for word in words):
                found.append(pid)
        return found

    def kill(self, *parts: str) -> bool:
        """Whether there was anything to kill; so for the next two."""
        return bool(self._signal(signal.SIGKILL, parts))

    def terminate(self, *parts: str) -> bool:
        return bool(self._signal(signal.SIGTERM, parts))

    def stop(self, *parts: str) -> bool:
        connectors = tuple(part.removeprefix("process:") for part in parts if part.startswith("process:"))
        if connectors:
            self.stood.append(Stood(self.name, connectors, boot()))
        pids = self._signal(signal.SIGSTOP, parts)
        self.stopped |= pids
        return bool(pids)

    def cont(self, *parts: str) -> None:
        """Continue these parts, or all that were stopped."""
        pids = {pid for part in parts for pid in self.part(part)} if parts else set(self.stopped)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped -= pids
        self._goes_on()

    def _goes_on(self) -> None:
        now = boot()
        for each in self.stood:
            each.until = min(each.until, now)

    def _signal(self, number: int, parts: tuple[str, ...]) -> set[int]:
        pids = [pid for part in parts for pid in self.part(part)]  # all are found first, so that they are hit together
        self.acted_at = boot()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return set(pids)

    def hold_down(self, *units: str) -> None:
        """Kill units and keep the service manager from starting them."""
        for name in units:
            self.units[name].wanted = False
        self.kill(*units)

    def whole(self, connectors: Iterable[str]) -> bool:
        """Does everything run that is to run here: units, the router, and (on an external machine) the runtimes."""
        wanted = [*self.units, "router", *(f"process:{connector}" for connector in connectors)]
        return self.up and not self.paused and all(self.part(name) for name in wanted)

    def allow(self) -> None:
        for unit in self.units.values():
            unit.wanted = True

    # --------------------------------------------------------------------------------------------------------- disk and port

    def mount_disk(self, image: Path) -> None:
        """Give the router's folder a disk of its own: a file with ext4 on a loop device, so that fsync costs what it costs. Raises:
        RuntimeError where this cannot be had."""
        folder = self.home / "router"
        folder.mkdir(mode=0o700)
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
        run("mount", "-o", "loop", str(image), str(folder))
        self.disk = folder
        shutil.rmtree(folder / "lost+found")

    def unmount_disk(self) -> None:
        if self.disk is not None:
            run("umount", "-l", str(self.disk))
            self.disk = None

    def fill_disk(self) -> None:
        """Not one byte more fits beside the router's data."""
        assert self.disk is not None
        with (self.disk / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free_disk(self) -> None:
        if self.disk is not None:
            (self.disk / "filler").unlink(missing_ok=True)

    def take_port(self, address: str, port: int, within: float = 2.0) -> bool:
        """End the router and put another program at its port before it is back."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            self.kill("router")
            with inside(self.wire.namespace):
                listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
                listener.listen(8)
            except OSError:
                listener.close()
                time.sleep(0.002)
                continue
            self.squatter = listener
            return True
        return False

    def free_port(self) -> None:
        if self.squatter is not None:
            self.squatter.close()
            self.squatter = None

    # -------------------------------------------------------------------------------------------------------------- upgrade

    def upgrade_agent(self) -> bool:
        """The agent ends in order and starts again as another version from another folder, as a package manager would do it."""
        folder = self.home.parent / f"agent-{NEXT_VERSION}"
        if not folder.exists():
            shutil.copytree(ROOT / "runtimes", folder / "runtimes", ignore=shutil.ignore_patterns("__pycache__", "migrations", "api"))
            facts = folder / f"baton_integration-{NEXT_VERSION}.dist-info"
            facts.mkdir()
            (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: baton-integration\nVersion: {NEXT_VERSION}\n")
        self.upgraded = None if self.upgraded else folder
        return self.terminate("agent")

    @property
    def python_path(self) -> str:
        return str(self.upgraded or ROOT)

    # --------------------------------------------------------------------------------------------------------- whole machine

    def isolate(self) -> bool:
        was_linked, self.isolated = not self.isolated, True
        self.wire.link(up=False)
        return was_linked

    def rejoin(self) -> None:
        self.wire.link(up=True)
        self.isolated = False

    def pause(self) -> bool:
        """The whole machine stands still. False where it is off."""
        self.paused = True
        self.stood.append(Stood(self.name, self.connectors, boot()))
        self.wire.freezer.freeze(self.wire.pids())
        return self.up

    def resume(self) -> None:
        self.wire.freezer.thaw(self.wire.pids())
        self.paused = False
        self._goes_on()

    def power_off(self) -> bool:
        """The link is cut before anything is killed, so that no farewell escapes. The disk stays. False where it was off before."""
        was_up, self.up = self.up, False
        self.isolate()
        if not self.paused:
            self.wire.freezer.freeze(self.wire.pids())  # one instant for all of them
        for pid in self.wire.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.resume()
        self.wire.kill_all()
        self.stopped.clear()
        self.free_port()
        return was_up

    def power_on(self) -> None:
        self.rejoin()
        for unit in self.units.values():
            unit.pid, unit.died_at, unit.wanted = 0, 0.0, True
        self.up = True  # from here on the service manager starts its units

    def look_after(self, now: float) -> None:
        """What a service manager does: start again what has died."""
        if not self.up or self.paused:
            return
        for unit in self.units.values():
            if not unit.wanted or alive(unit.pid):
                continue
            if unit.pid and not unit.died_at:
                unit.died_at = now
            if not unit.pid or now >= unit.died_at + RESTART_SECONDS:
                unit.pid, unit.died_at = unit.start(), 0.0


def alive(pid: int) -> bool:
    if not pid:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def end_of(file: Path, size: int = 1500) -> str:
    with contextlib.suppress(OSError), file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read().decode(errors="replace")
    return ""


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
