"""Commands that a deployment may have run on this machine: those on the machine's own list, and nothing else.

The list is `commands.toml` in the agent's home, written by the machine's administrator. It is read anew for every command, and refused
when others than its owner (root, or whom the agent runs as) may write it:

    [flush-cache]
    run = ["/usr/local/bin/flush-cache", "--all"]
    timeout_seconds = 30          # optional: at most so long, whatever the portal says

No argument comes from the portal. A command runs at most once: that it was begun is on disk before it begins.
"""

import asyncio
import contextlib
import os
import re
import signal
import stat
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from runtimes.agent import linux
from runtimes.agent.home import Home
from runtimes.protocol import CommandOrder, CommandReport, CommandStatus, Wire
from runtimes.spellings import MASK, pattern_of, where_to_cut

log = structlog.get_logger()
LIST = "commands.toml"
KEPT = 200  # ended commands remembered, so that none is run twice
OUTPUT_BYTES = 256 * 1024
LINE_LENGTH = 2_000
HELD_BACK = 16 * 1024  # bytes of a line without end that may be the beginning of a secret
LINES_PER_REPORT = 500
TERM_SECONDS = 2.0  # between SIGTERM and SIGKILL
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER")  # handed on; nothing else of the agent's


class NotListed(Exception):  # noqa: N818 - said by name
    """The command is not to be run; the message says why, with the remedy."""


@dataclass(frozen=True)
class Listed:
    run: tuple[str, ...]
    timeout_seconds: float | None = None


class Begun(Wire, frozen=True):
    id: str
    name: str
    status: CommandStatus = CommandStatus.RUNNING
    exit_status: int | None = None
    reason: str = ""
    lines: list[str] = []


class Remembered(Wire, frozen=True):
    commands: list[Begun] = []


@dataclass
class Command:
    order: CommandOrder
    status: CommandStatus = CommandStatus.RUNNING
    exit_status: int | None = None
    reason: str = ""
    lines: list[str] = field(default_factory=list)
    bytes: int = 0
    stored: int = 0  # lines that the portal has
    task: "asyncio.Task[None] | None" = None
    pattern: re.Pattern[str] | None = None  # of the secrets that its output must not show


def entries(path: Path) -> dict[str, Any]:
    """The machine's list, as it is written. Raises: NotListed."""
    try:
        facts = path.stat()
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise NotListed(f"this machine has no list of commands: its administrator writes it to {path}") from None
    if facts.st_uid not in (0, os.getuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotListed(f"{path} may be written by others than its owner, so nothing of it is run: chown it to root and chmod 600 it")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NotListed(f"{path} cannot be read: {error}") from None


def names(path: Path) -> list[str]:
    """Of the commands that would be run; none where the list itself is refused."""
    with contextlib.suppress(NotListed):
        found = entries(path)
        return sorted(name for name in found if _would_run(path, name, found))
    return []


def _would_run(path: Path, name: str, found: dict[str, Any]) -> bool:
    with contextlib.suppress(NotListed):
        return bool(_read(path, name, found.get(name)).run)
    return False


def listed(path: Path, name: str) -> Listed:
    """What the machine's list has under a name. Raises: NotListed."""
    return _read(path, name, entries(path).get(name))


def _read(path: Path, name: str, entry: Any) -> Listed:
    if not isinstance(entry, dict):
        raise NotListed(f"{name} is not on this machine's list of commands ({path})")
    run, limit = entry.get("run"), entry.get("timeout_seconds")
    if not isinstance(run, list) or not run or not all(isinstance(word, str) for word in run) or not run[0].startswith("/"):
        raise NotListed(f'{name} in {path} needs run = ["/absolute/path", "argument", …]')
    if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or limit <= 0):
        raise NotListed(f"timeout_seconds of {name} in {path} is no number of seconds")
    return Listed(tuple(run), float(limit) if limit is not None else None)


class Commands:
    """`take` the latest orders; `report` what became of them."""

    def __init__(self, home: Home, changed: Callable[[], None], machine: str = "", secrets: Callable[[], Iterable[str]] = tuple) -> None:
        self.home = home
        self.secrets = secrets  # of what runs here: no line of any output shows them
        self.changed = changed
        self.machine = machine
        self.commands: dict[str, Command] = {}
        for begun in (home.read("commands.json", Remembered) or Remembered()).commands:
            known = Command(CommandOrder(id=begun.id, name=begun.name, timeout_seconds=0), begun.status, begun.exit_status, begun.reason)
            known.lines = list(begun.lines)
            if begun.status is CommandStatus.RUNNING:
                known.status, known.reason = CommandStatus.FAILED, f"the agent ended while {begun.name} ran: how it ended is not known"
            self.commands[begun.id] = known
        self.ordered: set[str] = set(self.commands)
        self._names: tuple[tuple[int, ...], list[str]] = ((), [])  # what the list was when it was read last, and what it had

    def names(self) -> list[str]:
        """Of the commands that the machine's own list would let run; the file is read again only when it changed."""
        path = self.home.root / LIST
        try:
            facts = path.stat()
            seen: tuple[int, ...] = (facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode, facts.st_uid)
        except OSError:
            seen = ()
        if seen != self._names[0]:
            self._names = (seen, names(path) if seen else [])
        return self._names[1]

    def take(self, orders: list[CommandOrder]) -> None:
        """Begin what is new, end what is ordered no more."""
        self.ordered = {order.id for order in orders}
        for order in orders:
            if order.id not in self.commands:
                self.commands[order.id] = command = Command(order)
                if self._remember():
                    command.task = asyncio.create_task(self._run(command))
                else:
                    command.status = CommandStatus.FAILED
                    command.reason = f"{order.name} was not begun: the agent's disk is full, so it could not be kept from running twice"
        for key, command in self.commands.items():
            if key not in self.ordered and command.task is not None and not command.task.done():
                command.task.cancel()

    def report(self) -> list[CommandReport]:
        return [
            CommandReport(
                id=key,
                # The end is told with the last of its lines.
                status=command.status if len(command.lines) - command.stored <= LINES_PER_REPORT else CommandStatus.RUNNING,
                exit_status=command.exit_status,
                reason=command.reason,
                first=command.stored,
                lines=command.lines[command.stored : command.stored + LINES_PER_REPORT],
            )
            for key, command in self.commands.items()
            if key in self.ordered
        ]

    def stored(self, reports: list[CommandReport]) -> None:
        """The portal has these lines."""
        for report in reports:
            command = self.commands.get(report.id)
            if command is not None:
                command.stored = max(command.stored, report.first + len(report.lines))
                if command.stored < len(command.lines):
                    self.changed()

    async def close(self) -> None:
        tasks = [command.task for command in self.commands.values() if command.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- one command

    async def _run(self, command: Command) -> None:
        order, command.pattern = command.order, pattern_of(self.secrets())
        try:
            entry = listed(self.home.root / LIST, order.name)
            limit = min(order.timeout_seconds, entry.timeout_seconds or order.timeout_seconds)
            log.info("command_begins", text=f"A deployment runs {order.name} here: {entry.run[0]}.")
            command.exit_status = await self._execute(command, entry, limit)
            command.status = CommandStatus.SUCCEEDED if command.exit_status == 0 else CommandStatus.FAILED
            command.reason = "" if command.exit_status == 0 else f"{order.name} ended with exit status {command.exit_status}"
        except NotListed as no:
            command.status, command.reason = CommandStatus.FAILED, str(no)
        except TimeoutError:
            command.status, command.reason = CommandStatus.FAILED, f"{order.name} was ended: it took longer than {limit:g} s"
        except asyncio.CancelledError:
            command.status, command.reason = CommandStatus.FAILED, f"{order.name} was ended: its order was taken back"
        except OSError as error:
            command.status, command.reason = CommandStatus.FAILED, f"{order.name} cannot be started: {error.strerror or error}"
        finally:
            self._remember()
            self.changed()
        level = 20 if command.status is CommandStatus.SUCCEEDED else 30
        log.log(level, "command_ended", text=f"{order.name}: {command.status}. {command.reason}".strip())

    async def _execute(self, command: Command, entry: Listed, limit: float) -> int:
        """Exit status. Raises: TimeoutError, OSError. However it is left, nothing of the command runs on."""
        me = os.getpid()
        process = await asyncio.create_subprocess_exec(
            *entry.run,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={**{name: os.environ[name] for name in ENVIRONMENT if name in os.environ}, "BATON_MACHINE": self.machine},
            preexec_fn=lambda: linux.die_with_parent(me),
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(limit):
                rest = b""
                while data := await process.stdout.read(16 * 1024):
                    *whole, rest = (rest + data).split(b"\n")
                    self._say(command, whole)
                    if len(rest) > HELD_BACK + LINE_LENGTH:
                        rest = self._say_part(command, rest)
                self._say(command, [rest] if rest else [])
                return await process.wait()
        finally:
            await _end_tree(process)

    def _say_part(self, command: Command, line: bytes) -> bytes:
        """Of a line without end; what may be the beginning of a secret stays for the next look. Returns: what is left."""
        text = line.decode("utf-8", "surrogateescape")
        at = where_to_cut(text, len(text) - HELD_BACK, command.pattern)
        self._say(command, [text[:at].encode("utf-8", "surrogateescape")])
        return text[at:].encode("utf-8", "surrogateescape")

    def _say(self, command: Command, lines: list[bytes]) -> None:
        for line in lines:
            if command.bytes > OUTPUT_BYTES:
                return
            command.bytes += len(line) + 1
            text = line.decode(errors="replace").rstrip("\r").replace("\x00", "\N{REPLACEMENT CHARACTER}")
            text = (command.pattern.sub(MASK, text) if command.pattern is not None else text)[:LINE_LENGTH]
            left_out = command.bytes > OUTPUT_BYTES
            command.lines.append(f"(output beyond {OUTPUT_BYTES // 1024} KiB is left out)" if left_out else text)
        if lines:
            self.changed()

    def _remember(self) -> bool:
        """False: not on disk."""
        begun = [
            Begun(
                id=key,
                name=command.order.name,
                status=command.status,
                exit_status=command.exit_status,
                reason=command.reason,
                lines=command.lines if key in self.ordered else [],
            )
            for key, command in list(self.commands.items())[-KEPT:]
        ]
        return self.home.remember("commands.json", Remembered(commands=begun))


async def _end_tree(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to everything the command started, SIGKILL to what is left."""
    for number, patience in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, TERM_SECONDS)):
        left = [*linux.descendants(process.pid)] if process.returncode is None else []
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if process.returncode is not None and number is signal.SIGTERM:
            continue
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), patience)
