"""Inbound `command`: any program, started with leadership and stopped with it. Its contract is in docs/commands.md.

Its items are, as the setting `items` says: none (it emits by itself, with the fencing helpers), the lines of its standard output, or the
files that it puts into a folder.
"""

import hashlib
import json
import os
import shlex
import shutil
import stat
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch

from runtimes.process.connectors.aside import Again, ErrorFolder
from runtimes.process.connectors.base import Inbound, Item, ItemError, NotReady, Origin, Setting, Unavailable, inbound, make_folder
from runtimes.process.connectors.file import SETTLE_SECONDS, FileInbound
from runtimes.process.connectors.program import END_SECONDS, LINE_LIMIT, MARK, START_SECONDS, Failed, Hung, Line, Lines, Program
from runtimes.process.masking import masked
from runtimes.process.permits import Duty
from runtimes.protocol import Component, ComponentKind

ALLOWED_ENV = "BATON_COMMANDS"  # of the agent: patterns of programs that its machine's administrator allows, colon-separated
PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "BATON_KEEPER_FOLDER")
BACKOFF_SECONDS, BACKOFF_LIMIT = 1.0, 30.0
STEADY_SECONDS = 60.0  # a program that ran for so long starts anew without the back-off of before
LONGEST_STOP = 4.5  # seconds: a hand-over, and the end of its runtime, wait for 5 s (the drain limit of every profile)
LAST_LINES_SECONDS = 0.3  # beyond LONGEST_STOP, for what it said last
SOUND_SECONDS = 5.0  # so long a program that failed has to run before its inbound is On again: one that fails at every start never is
DAEMON_SECONDS = 5.0  # a program that ends so soon, and leaves processes behind, wants to run in the background
LONGEST_WORDS = 200  # characters of what a program said last, in a reason
WAITING_LIMIT = 100  # lines in this process's hands
NONE, LINES, FOLDER = "none", "lines", "folder"


@dataclass(frozen=True, slots=True)
class Numbered:
    """Handle of an item that was a line."""

    number: int


@inbound(ComponentKind.COMMAND)
class CommandInbound(Inbound):
    """Settings: program, arguments, environment, items, outbox, acknowledge, stop_seconds, again_seconds, health_seconds."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._named = setting.text("program")
        if "\n" in self._named:
            raise setting.error("program", "has more than one line", "put the arguments into their own setting")
        self._arguments = setting.rows("arguments")
        self._own = setting.pairs("environment", "=")
        self._items = setting.choice("items", (NONE, LINES, FOLDER))
        self._answers = setting.choice("acknowledge", ("no", "yes")) == "yes"
        self._stop_seconds = min(setting.number("stop_seconds", 4.0, 0.1, 60.0), LONGEST_STOP)  # more was allowed once
        self._again = setting.number("again_seconds", 1.0, 0.1, 86400.0)
        self._health = setting.number("health_seconds", 0.0, 0.0, 3600.0)
        self._folder = setting.data / "commands" / setting.flow_id
        self._health_file = self._folder / ".healthy"
        self._health_seen, self._health_at = 0, 0.0  # its time (ns) as last seen, and when that was seen first (time.monotonic())
        self._outbox = setting.folder("outbox", setting.data / "outbox" / setting.flow_id)
        self._files: FileInbound | None = None
        errors = ErrorFolder(setting.data / "errors" / setting.flow_id, setting)
        if self._items == FOLDER:
            component = Component(kind=ComponentKind.FILE, settings={"folder": str(self._outbox)})
            self._files = FileInbound(replace(setting, component=component))
            errors = self._files.failures
        self.failures: ErrorFolder = errors
        self._program: Program | None = None
        self._hung: Program | None = None  # a start that has not come to its end
        self._finding: Future[str] | None = None  # a look at the program's path, likewise
        self._lines = Lines()
        self._waiting: deque[Item] = deque()
        self._number = 0
        self._instance = ""
        self._backoff = BACKOFF_SECONDS
        self._next_start = 0.0  # time.monotonic()
        self._what, self._sentence, self._failed = "", "", False
        self._sound_since = 0.0  # time.monotonic(): of the last start that came off
        self._was_killed = False  # its last end: what it was about to write it may have written in part
        self._did_well = False  # its last end was a good one: between two such runs nothing is wrong
        self._last_words = ""  # the last line of its standard error (of output too, where that is no items), masked
        self._answered = 0.0  # wall clock
        self._kill_at = 0.0  # time.monotonic(), once it stops
        self._stops_by = 0.0  # likewise: with its last lines
        self._duty: Duty | None = None  # under which it stops
        self._stopping = False

    def prepare(self) -> None:
        self._resolved()
        make_folder(self._folder, "the working folder of the command")
        if self._files is not None:
            self._files.prepare()
        else:
            self.failures.prepare()

    def check(self) -> None:
        self._resolved()

    def begin(self, duty: Duty) -> None:
        self._stopping = False
        self._next_start, self._backoff, self._sentence, self._failed, self._did_well = 0.0, BACKOFF_SECONDS, "", False, False
        if self._files is not None:
            self._files.begin(duty)
        duty.check_take()
        self._start(duty)

    def poll(self, duty: Duty) -> Sequence[Item]:
        self._collect(duty)
        items = list(self._waiting)
        if self._files is not None:
            items += self._files.poll(duty)
        elif not self._stopping:
            items = [*self.failures.offered(duty), *items]
        if self._stopping:
            return items
        self._look_after(duty)
        if self._program is None and not items and self._failed:
            raise Unavailable(self._sentence)
        return items

    def remove(self, item: Item, duty: Duty) -> None:
        if isinstance(item.handle, Numbered):
            self._forget(item)
            self._answer(delivered=item.id, line=item.handle.number)
        elif self._files is not None:
            self._files.remove(item, duty)
        else:
            self.failures.delivered(item)

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        if self._files is not None and not isinstance(item.handle, Again):
            self._files.reject(item, reason, duty, tries)
            return
        self.failures.put(item, reason, tries)
        if isinstance(item.handle, Numbered):
            self._forget(item)
            self._answer(failed=item.id, line=item.handle.number)

    def wait_seconds(self) -> float:
        return 0.02 if self._items == LINES else 0.1

    def abort(self) -> None:
        if self._program is not None:
            self._program.kill()

    def answered_at(self) -> float:
        """A start is no answer yet: that it runs for a while is, and an item, and a good end until the next start."""
        if self._is_sound() or (self._did_well and not self._failed):
            self._answered = time.time()
        return self._answered

    def ailing(self) -> str:
        return self._sentence if self._failed and not self._is_sound() else ""

    def _is_sound(self) -> bool:
        return self._program is not None and time.monotonic() - self._sound_since >= SOUND_SECONDS

    def depth(self) -> tuple[int | None, int | None]:
        return self._files.depth() if self._files is not None else (None, None)

    def stop(self, duty: Duty) -> None:
        self._stopping, self._duty = True, duty
        self._kill_at = time.monotonic() + self._stop_seconds
        self._stops_by = time.monotonic() + LONGEST_STOP + LAST_LINES_SECONDS
        self._lines.widen()
        if self._program is not None:
            self._program.terminate()

    def stopped(self) -> bool:
        """After its drain limit the tree is killed; what nobody took by then is kept among the failed items, or repeated by who waits
        for acknowledgements."""
        if self._program is not None:
            if time.monotonic() >= self._kill_at:
                self._setting.log.warning(f"the command did not stop within {self._stop_seconds:g} s of SIGTERM: it is killed")
                self._program.kill()
                self._kill_at = time.monotonic() + START_SECONDS
            if (status := self._program.ended()) is None:
                return False
            self._close(self._program, status)
            takes = self._stop_seconds if self._files is None else max(self._stop_seconds, 2 * SETTLE_SECONDS)
            self._kill_at = min(time.monotonic() + takes, self._stops_by)
            self._setting.log.info("the command has stopped")
        if self._duty is not None and self._duty.valid() and time.monotonic() < self._kill_at and self._has_left():
            return False
        self._give_up_lines()
        return True

    def _has_left(self) -> bool:
        """Is there anything of it that nobody has taken yet. Files are looked at too: another machine would never take them."""
        if self._files is not None:
            with suppress(Unavailable):
                return bool(self._files.depth()[0])
        return bool(self._waiting or len(self._lines))

    # ---------------------------------------------------------------------------------------------------------------- the program

    def _resolved(self) -> str:
        """The program's path. Raises NotReady: a follower that lacks it says so before it has to lead."""
        found = shutil.which(self._named)
        if found is None:
            raise NotReady(f"the program {self._named} is not on this machine or not executable: install it, or correct its setting")
        real = os.path.realpath(found)
        facts = os.stat(real)  # noqa: PTH116
        if facts.st_mode & stat.S_ISUID and os.geteuid() not in (0, facts.st_uid):
            raise NotReady(f"the program {real} runs as another user than this runtime, which could not end it: let the agent run as root")
        allowed = os.environ.get(ALLOWED_ENV)
        if allowed is not None and not any(fnmatch(real, pattern) for pattern in allowed.split(":") if pattern):
            raise NotReady(
                f"this machine does not allow the program {real}: its administrator names those it allows in {ALLOWED_ENV} of the agent"
            )
        return found

    def _found(self, duty: Duty) -> str:
        """`_resolved`, for which a file system that does not answer is waited for START_SECONDS at most. Raises NotReady, Failed."""
        if self._finding is None or self._finding.done():  # an old answer counts no more
            self._finding = Future()
            threading.Thread(target=_settle, args=(self._finding, self._resolved), name="looks for a command", daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        while not self._finding.done():
            if time.monotonic() >= deadline or not (duty.taking and duty.valid()):
                raise Failed(f"{self._named} cannot be looked at: its file system does not answer")
            wait([self._finding], timeout=0.02)
        found, self._finding = self._finding, None
        return found.result()

    def _environment(self, duty: Duty) -> dict[str, str]:
        setting = self._setting
        inherited = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("LC_")}
        return {
            **inherited,
            **self._own,
            "BATON_GROUP": duty.group_name,
            "BATON_GROUP_ID": duty.group or "",
            "BATON_EPOCH": str(duty.epoch),
            "BATON_FLOW": setting.flow,
            "BATON_FLOW_ID": setting.flow_id,
            "BATON_RUNTIME": setting.key,
            "BATON_MACHINE": setting.machine,
            MARK: self._instance,
            "BATON_MESSAGE_PREFIX": f"{setting.flow_id}-",
            "BATON_FOLDER": str(self._folder),
            "BATON_OUTBOX": str(self._outbox) if self._items == FOLDER else "",
            "BATON_HEALTH_FILE": str(self._health_file),
            "BATON_STOP_SECONDS": f"{self._stop_seconds:g}",
        }

    def _start(self, duty: Duty) -> None:
        """Raises Unavailable."""
        self._instance = f"{self._setting.flow_id}-{duty.epoch}-{uuid.uuid4().hex[:8]}"
        self._lines, self._number, self._last_words = Lines(), 0, ""
        try:
            if self._hung is not None:
                if self._hung.ended() is None:
                    raise Hung(self._hung, "its last start has not ended yet: its file system may not answer")
                self._hung.close()
                self._hung = None
            argv = [self._found(duty), *self._arguments]
            self._health_file.write_bytes(b"")
            self._program = Program(
                argv,
                environment=self._environment(duty),
                folder=self._folder,
                until=lambda: duty.until,
                wanted=lambda: duty.taking and duty.valid(),
                said=self._said,
                lines=self._lines if self._items == LINES else None,
                answers=self._answers,
            )
        except (Failed, NotReady, OSError) as error:
            if isinstance(error, Hung):
                self._hung = error.program
            self._again_later(f"the command {self._named} cannot be started: {error}", failed=True)
            raise Unavailable(self._sentence) from error
        self._sound_since = time.monotonic()
        if self._failed:
            self._sentence = f"{self._what}; it was started again a moment ago"
        self._setting.log.info(f"the command runs: {shlex.join([argv[0]])}, pid {self._program.pid}, instance {self._instance}")

    def _look_after(self, duty: Duty) -> None:
        """Restart what has ended, end what is not healthy. Raises Unavailable."""
        program = self._program
        if program is None:
            if time.monotonic() >= self._next_start and not self._waiting and not len(self._lines):
                self._start(duty)
            return
        status = program.ended()
        if status is None:
            if self._health and (age := self._age_of_health()) > self._health:
                program.kill()
                if (status := program.wait(END_SECONDS)) is None:
                    self._sound_since, self._failed = time.monotonic(), True
                    self._sentence = (
                        f"the command gave no sign of health for {age:.0f} s and does not end: its file system may not answer; "
                        "nothing is started beside it"
                    )
                    raise Unavailable(self._sentence)
                self._end(program, status, f"the command gave no sign of health for {age:.0f} s", failed=True)
            return
        what, daemon = f"the command ended: {exit_words(status)}", False
        if program.left:
            what += f", and left processes behind ({program.left}), which were killed: let it stay in the foreground"
            daemon = time.monotonic() - program.started < DAEMON_SECONDS
        self._end(program, status, what, failed=status != 0 or daemon)

    def _end(self, program: Program, status: int, what: str, *, failed: bool) -> None:
        if time.monotonic() - program.started >= STEADY_SECONDS:
            self._backoff = BACKOFF_SECONDS
        self._close(program, status)
        self._again_later(what, failed=failed)

    def _close(self, program: Program, status: int) -> None:
        self._lines.release()
        program.close()
        self._program, self._was_killed = None, os.WIFSIGNALED(status)

    def _again_later(self, what: str, *, failed: bool) -> None:
        wait = self._backoff if failed else self._again
        self._backoff = min(self._backoff * 2, BACKOFF_LIMIT) if failed else BACKOFF_SECONDS
        self._next_start = time.monotonic() + wait
        if failed and self._last_words:
            what += f" (it said last: “{self._last_words}”)"
        self._what, self._failed, self._did_well = what, failed, not failed
        self._sentence = f"{what}; next start at {datetime.fromtimestamp(time.time() + wait, UTC):%H:%M:%S} UTC"
        (self._setting.log.warning if failed else self._setting.log.info)(f"{what}; it starts again after {wait:g} s")

    def _age_of_health(self) -> float:
        """Seconds since its file was seen to change: a step of the clock, which its time would tell, is no sign of illness. Nor is it one
        that it waits until its lines are taken."""
        try:
            touched = self._health_file.stat().st_mtime_ns
        except FileNotFoundError:
            return float("inf")
        if self._lines.held_back() or touched != self._health_seen:
            self._health_seen, self._health_at = touched, time.monotonic()
        return time.monotonic() - self._health_at

    def _said(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._setting.log.info(text)
            words = masked(text)  # before it is cut: never within a secret
            self._last_words = words if len(words) <= LONGEST_WORDS else f"{words[: LONGEST_WORDS - 1]}…"

    # ------------------------------------------------------------------------------------------------------------------ its lines

    def _collect(self, duty: Duty) -> None:
        over = self._program is None  # only then it is known whether a line without its end was its last
        while len(self._waiting) < WAITING_LIMIT and (line := self._lines.take(broken_off=over)) is not None:
            if (item := self._counted(line, duty)) is not None:
                self._answered = time.time()
                self._waiting.append(item)

    def _counted(self, line: Line, duty: Duty) -> Item | None:
        """The item of its next line; None: it is none, or half of one, which is kept."""
        self._number += 1
        item = self._item(line, duty) if line.text else None
        if item is not None and line.broken_off and self._was_killed:
            self._keep(item, "the command was killed before it had written this line to its end")
            return None
        return item

    def _item(self, line: Line, duty: Duty) -> Item:
        """A line that is a JSON object with an `id` is known by it for ever; any other by its number since the start."""
        text, cut = line.text, line.cut
        facts: object = None
        if text.startswith(b"{") and not cut:
            with suppress(ValueError, RecursionError):
                facts = json.loads(text)
        own = facts.get("id") if isinstance(facts, dict) else None
        known = f"{self._setting.flow_id}\0{own}" if isinstance(own, str | int) and own != "" else f"{self._instance}\0{self._number}"
        name = b"%s-%d.%s" % (self._setting.flow.encode(), self._number, b"json" if facts is not None else b"txt")
        origin = Origin(self._setting.flow, duty.group_name, duty.epoch, self._setting.machine)

        @contextmanager
        def opened() -> Iterator[Iterator[bytes]]:
            if cut:
                raise ItemError(f"the line is longer than {LINE_LIMIT} bytes: let the program write files instead (items: folder)")
            yield iter([text])

        return Item(hashlib.sha256(known.encode()).hexdigest()[:32], name, len(text), origin, opened, Numbered(self._number))

    def _forget(self, item: Item) -> None:
        with suppress(ValueError):
            self._waiting.remove(item)

    def _answer(self, **facts: str | int) -> None:
        if self._program is not None and self._answers:
            self._program.write(json.dumps(facts).encode() + b"\n")

    def _give_up_lines(self) -> None:
        """Nothing is lost silently: lines that were taken from a program that does not wait for acknowledgements are kept."""
        left = list(self._waiting)
        self._waiting.clear()
        while (line := self._lines.take(broken_off=True)) is not None:
            if (item := self._counted(line, Duty(None, "", 0, 0.0))) is not None:
                left.append(item)
        alone, together = left[:WAITING_LIMIT], left[WAITING_LIMIT:]
        for item in alone:
            self._keep(item, "the flow stopped before the target took it")
        if together:
            what = f"these {len(together)} lines: tried again they go out as one item"
            self._keep(self._joined(together), f"the flow stopped before the target took {what}")

    def _keep(self, item: Item, reason: str) -> None:
        """Among the failed items; a program that waits for acknowledgements says it again."""
        if self._answers:
            return
        try:
            self.failures.put(item, reason, 0)
        except Unavailable as error:
            self._setting.log.error(f"item {item.id} is lost: {reason}, and {error}", item=item.id)

    def _joined(self, lines: list[Item]) -> Item:
        """One item of many lines, with an id of its own: under that of one of them a target that had this one would drop them all."""
        first, last = lines[0], lines[-1]
        known = hashlib.sha256("\0".join(line.id for line in lines).encode()).hexdigest()[:32]

        @contextmanager
        def opened() -> Iterator[Iterator[bytes]]:
            yield (text for line in lines for text in _texts(line))

        name = b"%s-%d-%d.txt" % (self._setting.flow.encode(), first.handle.number, last.handle.number)
        return replace(first, id=known, name=name, size=sum(line.size + 1 for line in lines), open=opened, handle=None)


def exit_words(status: int) -> str:
    """A wait status in words."""
    return f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit status {os.waitstatus_to_exitcode(status)}"


def _texts(line: Item) -> Iterator[bytes]:
    with suppress(ItemError), line.open() as chunks:
        yield from chunks
        yield b"\n"


def _settle(finding: "Future[str]", look: Callable[[], str]) -> None:
    try:
        finding.set_result(look())
    except BaseException as error:  # whoever waits for it gets it
        finding.set_exception(error)
