"""One supervised program as the agent sees it: its keeper, its launches, its exits. Runtime processes and the etcd member alike."""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from runtimes.agent import linux
from runtimes.agent.decide import Keeping, restart_delay
from runtimes.agent.keeper import LOCKED, LONGEST_LOOK, SILENCE_SECONDS, STARTED, KeeperSpec, silence
from runtimes.agent.lines import INPUT_BYTES
from runtimes.protocol import (
    LIFELINE_FD_ENV,
    PRESENCE_FD_ENV,
    KeeperCommand,
    KeeperNews,
    LogLine,
    ProcessCommand,
    ProcessNews,
    TlsFiles,
    Wire,
    decode,
    encode,
)

log = structlog.get_logger()
ANSWER_SECONDS = 3.0  # a keeper that lives answers within this time
START_SECONDS = 15.0
NO_DATA: dict[str, Any] = {}


class CannotStart(Exception):  # noqa: N818 - said by name
    """A keeper said why it could not start its program."""


class LaunchRecord(Wire, frozen=True):
    """`launch.json`: the last launch, so that a restarted agent knows what runs, and a rebooted machine what ran."""

    launch: str
    starts: int
    boot: str
    ordered_stop: bool = False
    stood_down: bool = False  # it was ordered not to run: what runs next is what is ordered then, never this launch's bundle again
    collected: bool = False  # its end was seen and counted
    exits_in_a_row: int = 0
    what: msgspec.Raw = msgspec.Raw(b"{}")


class Program:
    """Keeper side of one program. `changed` is called after every change worth a look, from the event loop."""

    def __init__(
        self, name: str, folder: Path, changed: Callable[[], None], store: Callable[[ProcessNews], None], write: Callable[[LogLine], None]
    ) -> None:
        self.name = name
        self.folder = folder
        self.changed = changed
        self.store = store  # puts an event or outcome into the spool before it is acknowledged; OSError: the keeper shall keep it
        self.write = write  # takes one line of the program's log
        self.news: KeeperNews | None = None
        self.silent = ""  # why its keeper is not believed; empty while it speaks
        self.keeping = Keeping.GONE
        self.looked = False  # was it looked for since this agent started
        self.launching = False  # a keeper is being started
        self.stopping = ""
        self.exit_reason = ""
        self.exits_in_a_row = 0
        self.start_again_at = 0.0  # monotonic
        self.unclean_launch: str | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._stored = 0
        self._full = False  # the last thing that was to be stored could not be written down
        self.record: LaunchRecord | None = None
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            self.record = decode(LaunchRecord, (folder / "launch.json").read_bytes())
        if self.record is not None:
            self.exits_in_a_row = self.record.exits_in_a_row

    # -------------------------------------------------------------------------------------------------------------- facts

    @property
    def starts(self) -> int:
        return self.record.starts if self.record is not None else 0

    @property
    def pid(self) -> int | None:
        return self.news.pid if self.news is not None and self.keeping is Keeping.ALIVE else None

    @property
    def ready(self) -> bool:
        return self.pid is not None and self.news is not None and self.news.ready and not self.hangs

    @property
    def hangs(self) -> str:
        """Why nothing its process said last may be believed; empty while it answers."""
        return self.silent or self.news.hangs if self.news is not None and self.pid is not None else ""

    # ------------------------------------------------------------------------------------------------------------- attach

    async def attach(self) -> None:
        """Find the living keeper, or the record of how the last launch ended."""
        try:
            await self._attach()
        finally:
            self.looked = True

    async def _attach(self) -> None:
        if not linux.is_locked(self.folder / "keeper.lock"):
            self.keeping = Keeping.GONE
            self._collect()
            return
        try:
            with linux.short_path(self.folder / "keeper.sock") as short:
                opening = asyncio.open_unix_connection(short, limit=2 * INPUT_BYTES)
                reader, writer = await asyncio.wait_for(opening, ANSWER_SECONDS)
            writer.write(encode(KeeperCommand()) + b"\n")  # an agent, not an onlooker: it gets the log lines
            first = decode(KeeperNews, await asyncio.wait_for(reader.readline(), ANSWER_SECONDS))
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError):
            # it may be ending this very moment: then the lock is free now
            self.keeping = Keeping.STUCK if linux.is_locked(self.folder / "keeper.lock") else Keeping.GONE
            if self.keeping is Keeping.GONE:
                self._collect()
            return
        if self.record is None or self.record.launch != first.launch:
            self._stored = 0
        self._writer = writer
        self.keeping = Keeping.ALIVE
        self._reading = asyncio.create_task(self._read(reader, writer))
        self._hear(first)

    @staticmethod
    async def glance(folder: Path) -> KeeperNews | None:
        """What a living keeper says of its program, without becoming its agent; None when nobody answers."""
        try:
            with linux.short_path(folder / "keeper.sock") as short:
                reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(short, limit=2 * INPUT_BYTES), ANSWER_SECONDS)
            try:
                return decode(KeeperNews, await asyncio.wait_for(reader.readline(), ANSWER_SECONDS))
            finally:
                writer.close()
        except PermissionError:
            raise
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError):
            return None

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for line in self._lines(reader):
                self._hear(decode(KeeperNews, line))
        except Exception as error:  # whatever it is: who stops listening without a word believes what was said last for ever
            log.error("keeper_unreadable", program=self.name, text=f"The keeper of {self.name} sent news that cannot be read: {error}.")
        finally:
            writer.close()
        self._writer, self.silent = None, ""
        await self._await_release()
        self.changed()

    async def _lines(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """Until the keeper hangs up. One that stands still does not: it is known by its silence, while this agent was awake."""
        looked_at, silent_for = linux.boot_seconds(), 0.0
        reading = asyncio.ensure_future(reader.readline())
        try:
            while True:
                await asyncio.wait({reading}, timeout=LONGEST_LOOK)
                now, before = linux.boot_seconds(), looked_at
                looked_at = now
                if reading.done():
                    silent_for, self.silent = 0.0, ""
                    line = reading.result()
                    if not line:
                        return
                    reading = asyncio.ensure_future(reader.readline())
                    yield line
                    continue
                silent_for = silence(silent_for, now - before)
                if silent_for > SILENCE_SECONDS and not self.silent and self.news is not None and self.news.speaks:
                    self.silent = f"the keeper of {self.name} has not answered for {SILENCE_SECONDS:g} s (pid {self.news.keeper_pid})"
                    log.error("keeper_silent", program=self.name, text=f"{self.silent[0].upper()}{self.silent[1:]}.")
                    self.changed()
        finally:
            reading.cancel()

    async def _await_release(self) -> None:
        """The connection has ended; the keeper drops its lock within a moment, or it is only the connection that broke."""
        for _ in range(200):
            if not linux.is_locked(self.folder / "keeper.lock"):
                self.keeping = Keeping.GONE
                self._collect()
                return
            await asyncio.sleep(0.005)
        self.keeping = Keeping.STUCK

    def _hear(self, news: KeeperNews) -> None:
        for line in news.log:
            self.write(line)
        self._store(news)
        if news.ready and self.exits_in_a_row:
            self.exits_in_a_row = 0
            self._remember(exits_in_a_row=0)
        self.news = msgspec.structs.replace(news, log=[])
        self.changed()

    def _store(self, news: KeeperNews) -> None:
        self._take(news)
        if news.pending and news.pending[0][0] <= self._stored:
            self.send(KeeperCommand(acknowledge=self._stored))

    def _take(self, news: KeeperNews) -> None:
        """Into the spool what is not written there yet. On a full disk it is reported from memory, and the keeper keeps it too: it comes
        again with the next news."""
        full = False
        for number, item in [item for item in news.pending if item[0] > self._stored]:
            try:
                self.store(item)
            except OSError as error:
                if not self._full:
                    said = f"What {self.name} tells cannot be written down ({error}); its keeper keeps it."
                    log.error("news_not_kept", program=self.name, text=said)
                full = self._full = True
            if not full:
                self._stored, self._full = number, False

    def send(self, command: KeeperCommand) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(command) + b"\n")

    def tell(self, command: ProcessCommand) -> None:
        self.send(KeeperCommand(to_process=command))

    # -------------------------------------------------------------------------------------------------------- launch, stop

    async def launch(
        self,
        launch: str,
        argv: list[str],
        what: object,
        *,
        environment: dict[str, str] = NO_DATA,
        permit: Path | None = None,
        runtime: str | None = None,
        etcd: str | None = None,
        tls: TlsFiles | None = None,
        namespace: str = "",
        lifeline_seconds: float = 4.0,
        after_locks: str = "",
        grace_seconds: float = 0.0,
        without: str = "",
    ) -> None:
        """Start a keeper with its program. Raises: CannotStart."""
        spec = KeeperSpec(
            name=self.name,
            launch=launch,
            folder=str(self.folder),
            argv=argv,
            environment=linux.python_environment() | environment,
            permit=str(permit) if permit else None,
            runtime=runtime,
            etcd=etcd,
            tls=tls,
            namespace=namespace,
            previous_launch=self.unclean_launch,
            lifeline_seconds=lifeline_seconds,
            after_locks=after_locks,
            grace_seconds=grace_seconds,
            without=without,
        )
        linux.write_atomically(self.folder / "spec.json", encode(spec), durable=False)
        self.record = LaunchRecord(
            launch=launch,
            starts=self.starts + 1,
            boot=linux.boot_id(),
            exits_in_a_row=self.exits_in_a_row,
            what=msgspec.Raw(encode(what)),
        )
        self._remember()
        self.news, self.stopping, self._stored = None, "", 0
        self.launching = True
        try:
            await self._launch_keeper()
        finally:
            self.launching = False

    async def _launch_keeper(self) -> None:
        status, said = await self._run_keeper()
        if status == LOCKED:
            self.keeping = Keeping.STUCK
            raise CannotStart("another keeper still holds its lock")
        if status != STARTED:
            self._ended(was_ready=False)
            raise CannotStart(said or f"its keeper ended with status {status}")
        self.unclean_launch = None
        await self.attach()

    async def _run_keeper(self) -> tuple[int, str]:
        held = [int(os.environ[name]) for name in (LIFELINE_FD_ENV, PRESENCE_FD_ENV) if os.environ.get(name, "").isdigit()]
        process = await asyncio.create_subprocess_exec(
            *linux.python_command("runtimes.agent.keeper"),
            str(self.folder / "spec.json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=held,
            env=os.environ | linux.python_environment(),
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), START_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            return -1, f"its keeper did not report within {START_SECONDS:g} s"
        return process.returncode or 0, said.decode("utf-8", "replace").strip()

    def stop(self, because: str, within: float) -> None:
        """Ask the keeper to end the program: SIGTERM, after `within` seconds SIGKILL of its whole tree."""
        if self.keeping is not Keeping.ALIVE or self.stopping:
            return
        self.stopping = because
        self._remember(ordered_stop=True)
        self.send(KeeperCommand(stop_within=within))

    def stand_down(self) -> None:
        """It is ordered not to run; survives a restart of the agent."""
        if self.record is not None and not self.record.stood_down:
            self._remember(stood_down=True)

    # --------------------------------------------------------------------------------------------------------------- ends

    def _collect(self) -> None:
        """Take over how the last launch ended, once."""
        if self.record is None or self.record.collected:
            return
        last: KeeperNews | None = None
        with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
            last = decode(KeeperNews, (self.folder / "exit.json").read_bytes())
        if last is None and self.news is not None and self.news.pid is None:
            last = self.news  # its keeper's last word; there was no room to write it down
        if last is not None and last.launch == self.record.launch:
            self._take(last)
            if self.news is None:  # nobody was connected when it ended
                for line in last.log:
                    self.write(line)
            self.exit_reason = last.exit_reason
            self._ended(was_ready=last.was_ready)
            return
        self.unclean_launch = self.record.launch
        rebooted = self.record.boot != linux.boot_id()
        self.exit_reason = "the machine restarted" if rebooted else "its keeper was killed"
        self._ended(was_ready=rebooted or self.news is None or self.news.was_ready)

    def _ended(self, *, was_ready: bool) -> None:
        ordered = self.record is not None and self.record.ordered_stop
        if was_ready or ordered:
            self.exits_in_a_row = 0
        else:
            self.exits_in_a_row += 1
        self.start_again_at = time.monotonic() + restart_delay(self.exits_in_a_row)
        self._remember(collected=True, exits_in_a_row=self.exits_in_a_row)
        said = "has ended" if ordered else "has ended unexpectedly"
        log.log(
            20 if ordered else 30, "program_ended", program=self.name, text=f"{self.name} {said}: {self.exit_reason or 'could not start'}."
        )
        self.stopping = ""

    def forget_back_off(self) -> None:
        """A new order deserves a fresh try."""
        self.exits_in_a_row = 0
        self.start_again_at = 0.0

    def _remember(self, **changes: object) -> None:
        assert self.record is not None
        self.record = msgspec.structs.replace(self.record, **changes)
        try:
            linux.write_atomically(self.folder / "launch.json", encode(self.record), durable=False)
        except OSError as error:  # a full disk; what an agent that starts meanwhile then knows is older
            log.error("launch_not_recorded", program=self.name, text=f"What is known of {self.name} cannot be written down: {error}.")

    def what(self, kind: type[Any]) -> Any:
        """What the last launch was started with; None when there was none."""
        if self.record is None:
            return None
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(self.record.what, type=kind)
        return None

    async def let_go(self) -> None:
        """Close the connection; keeper and program go on."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()


def new_launch() -> str:
    """Unique per started process."""
    return uuid.uuid4().hex
