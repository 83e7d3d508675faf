"""A started program: its guard, its page, its pipes. Used by the inbound `command`."""

import contextlib
import fcntl
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from runtimes.process.connectors.guard import PAGE, kill_below
from runtimes.process.permits import NEVER

MARK = "BATON_INSTANCE"  # unique per start, borne by every process of the tree
GUARD = str(Path(__file__).with_name("guard.py"))
PULSE_SECONDS = 0.05  # between two writes of the permit's end for the guard
LINE_LIMIT = 1024 * 1024  # bytes of one line; a longer one is cut and marked
PIPE_BYTES = 4096  # what a program may have written that nobody has read yet, and a crash loses
START_SECONDS = 5.0
END_SECONDS = 1.0  # of a start that did not come off, after SIGKILL
LINES_LIMIT, STOPPING_LINES_LIMIT = 100, 10_000  # lines that were read and wait; the latter while it stops
LINES_BYTES = 16 * 1024 * 1024  # and their bytes
UNREAD_SECONDS = 1.0
SAID_LINES, SAID_SECONDS = 50, 0.1  # for the log: whoever writes faster than this has to wait


class Line(NamedTuple):
    """A line of a program's output, without its line break."""

    text: bytes
    cut: bool = False  # it is longer than LINE_LIMIT: this is its beginning
    broken_off: bool = False  # the output ended without a line break: whether that was its end, its program's end tells


class Failed(Exception):  # noqa: N818 - says what happened
    """The program could not be started: the operating system's reason."""


class Hung(Failed):
    """The program did not start in time, and what was begun of it may not have ended yet: nothing may be started beside it."""

    def __init__(self, program: "Program", what: str) -> None:
        super().__init__(what)
        self.program = program


class Program:
    """One start of a program. It is over when `ended` gives its exit; nothing of its tree is left then.

    Args:
        until: gives the end of the permit (seconds on the boot clock) at any time; the tree is killed when it passes.
        taken: gets each line of standard output, and blocks while there is no room; None: output goes to `said` too.
        said: gets each line for the log.
        wanted: asked while the start takes its time: no more waiting once it is not wanted any more.

    Raises:
        Failed: it could not be started. Hung: nor could that be ended at once.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        until: Callable[[], float],
        wanted: Callable[[], bool],
        said: Callable[[bytes], None],
        lines: "Lines | None" = None,
        answers: bool = False,
    ) -> None:
        self.pid: int | None = None
        self.left = 0  # processes that it left behind when it ended, and that were killed
        self.started = time.monotonic()
        self._until = until
        self._said = said
        self._deaf = False  # it does not read its standard input
        self._status: int | None = None
        self._over = threading.Event()
        self._mark = environment.get(MARK, "")
        handle = os.memfd_create("permit", os.MFD_CLOEXEC)
        os.truncate(handle, PAGE.size)
        self._page = mmap.mmap(handle, PAGE.size)
        self._closed = threading.Lock()
        PAGE.pack_into(self._page, 0, until())
        report, reporting = os.pipe2(os.O_CLOEXEC)
        (output, writing), (errors, complaining) = _small_pipe(), _small_pipe()
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", GUARD, str(handle), str(reporting), str(os.getpid()), *argv],
                stdin=subprocess.PIPE if answers else subprocess.DEVNULL,
                stdout=writing,
                stderr=complaining,
                cwd=folder,
                env=dict(environment),
                pass_fds=[handle, reporting],
                bufsize=0,
            )
        except OSError as error:
            for end in (report, output, errors):
                os.close(end)
            self._page.close()
            raise Failed(str(error)) from error
        finally:
            for end in (reporting, handle, writing, complaining):
                os.close(end)
        self._output, self._errors = (os.fdopen(end, "rb", buffering=0) for end in (output, errors))
        paced = Paced(said, self._over)
        self._threads = [
            threading.Thread(target=self._pulse, name="permit of a command", daemon=True),
            threading.Thread(target=_read, args=(self._errors, paced), name="errors of a command", daemon=True),
            threading.Thread(target=_read, args=(self._output, paced, lines), name="output of a command", daemon=True),
        ]
        self._report = os.fdopen(report, "rb", buffering=0)
        for thread in self._threads:
            thread.start()
        told = self._told(wanted)
        first = self._report.readline().decode("utf-8", "replace").strip() if told else ""
        if first.startswith("pid "):
            self.pid = int(first.removeprefix("pid "))
            return
        self.kill()
        if self.wait(END_SECONDS) is None:
            raise Hung(self, "it does not start: its file system may not answer")
        self.close()
        late = f"it did not start within {START_SECONDS:g} s: its file system may not answer" if wanted() else "it is not wanted any more"
        raise Failed(first.removeprefix("error ") or (late if not told else "its guard ended before it could start it"))

    def _told(self, wanted: Callable[[], bool]) -> bool:
        """Has its guard said how the start went?"""
        deadline = time.monotonic() + START_SECONDS
        while not select.select([self._report], [], [], 0.02)[0]:
            if time.monotonic() >= deadline or not wanted():
                return False
        return True

    def write(self, data: bytes) -> None:
        """To its standard input; what it does not read within UNREAD_SECONDS, or cannot any more, is dropped. It then waits for nothing
        more until the program has read."""
        if self._guard.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            descriptor = self._guard.stdin.fileno()
            if not select.select([], [descriptor], [], 0.0 if self._deaf else UNREAD_SECONDS)[1]:
                if not self._deaf:
                    self._said(b"the command does not read its standard input: acknowledgements are dropped")
                self._deaf = True
                return
            self._deaf = False
            os.write(descriptor, data)

    def terminate(self) -> None:
        """SIGTERM to the program."""
        with contextlib.suppress(ProcessLookupError):
            self._guard.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole tree; never blocks."""
        with self._closed:
            if self._page.closed:
                return
            PAGE.pack_into(self._page, 0, NEVER)
        self._until = lambda: NEVER
        if self._guard.returncode is None:
            kill_below(self._guard.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._guard.pid, signal.SIGCONT)
                os.kill(self._guard.pid, signal.SIGUSR1)

    def ended(self) -> int | None:
        """The wait status once the tree is empty; None while anything of it runs."""
        if self._status is None and self._guard.poll() is not None:
            text = self._report.read().decode("utf-8", "replace").split()
            if "left" in text:
                self.left = int(text[text.index("left") + 1])
            if "status" in text:
                self._status = int(text[text.index("status") + 1])
            else:  # its guard was killed, so nobody waits for its tree
                self._sweep()
                self._status = signal.SIGKILL
        return self._status

    def wait(self, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while self.ended() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self._status

    def close(self) -> None:
        """Let go of page and pipes, once it has ended."""
        self._over.set()
        for thread in self._threads:
            thread.join(1)
        with self._closed:
            if not self._page.closed:
                self._page.close()
        for pipe in (self._guard.stdin, self._output, self._errors, self._report):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _sweep(self) -> None:
        """Kill whatever bears this start's mark in its environment."""
        mark = f"{MARK}={self._mark}".encode()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and (left := _marked(mark)):
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _pulse(self) -> None:
        while not self._over.wait(PULSE_SECONDS):
            with self._closed:
                if self._page.closed:
                    return
                PAGE.pack_into(self._page, 0, self._until())


class Paced:
    """Passes lines on to the log, so many at a time: a program that floods it neither drowns the others' lines nor keeps a processor busy.
    Once the program is over nobody waits."""

    def __init__(self, said: Callable[[bytes], None], over: threading.Event) -> None:
        self._said, self._over = said, over
        self._lock = threading.Lock()
        self._count, self._since, self._told = 0, 0.0, False

    def __call__(self, line: bytes) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._since >= SAID_SECONDS:
                self._count, self._since = 0, now
            elif self._count >= SAID_LINES:
                if not self._told:
                    self._told = True
                    self._said(b"the command writes more than %d lines a second for the log: it has to wait" % (SAID_LINES / SAID_SECONDS))
                self._over.wait(self._since + SAID_SECONDS - now)
                self._count, self._since = 0, time.monotonic()
            self._count += 1
        self._said(line)


class Lines:
    """Lines waiting to be delivered: bounded, so that a program that writes faster than the target takes has to wait."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._bytes = 0
        self._room = threading.Condition()
        self._most: float = LINES_LIMIT
        self._held_back = False  # somebody had to wait since it was asked last

    def put(self, line: Line) -> None:
        with self._room:
            self._held_back = self._held_back or not self._has_room()
            self._room.wait_for(self._has_room)
            self._lines.append(line)
            self._bytes += len(line.text)

    def take(self, *, broken_off: bool) -> Line | None:
        """The next one; one that was broken off only where that is wanted."""
        with self._room:
            if not self._lines or (self._lines[0].broken_off and not broken_off):
                return None
            line = self._lines.popleft()
            self._bytes -= len(line.text)
            self._room.notify_all()
            return line

    def held_back(self) -> bool:
        """Does the program have to wait, or had it to since this was asked last: it may stand in the middle of a write."""
        with self._room:
            held, self._held_back = self._held_back or not self._has_room(), False
            return held

    def widen(self) -> None:
        """It stops: what it still has to say shall not hold it up, unless it says far too much."""
        self._set(STOPPING_LINES_LIMIT)

    def release(self) -> None:
        """It has ended: hold nobody back any more. What its pipe still has is little."""
        self._set(float("inf"))

    def _set(self, most: float) -> None:
        with self._room:
            self._most = most
            self._room.notify_all()

    def _has_room(self) -> bool:
        return self._most == float("inf") or (len(self._lines) < self._most and self._bytes < LINES_BYTES)

    def __len__(self) -> int:
        return len(self._lines)


def _marked(mark: bytes) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found


def _small_pipe() -> tuple[int, int]:
    """Its reading and its writing end. Made small before anything is in it: the kernel makes no pipe smaller than what it holds."""
    ends = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return ends


def _read(pipe: IO[bytes], said: Callable[[bytes], None], lines: Lines | None = None) -> None:
    """Lines of a pipe until its end."""
    with contextlib.suppress(OSError, ValueError):
        kept, cut = b"", False
        while data := os.read(pipe.fileno(), PIPE_BYTES):
            *whole, kept = (kept + data).split(b"\n")
            for text in whole:
                if not cut:
                    _pass_on(Line(text), said, lines)
                cut = False  # its beginning was passed on, its end is dropped here
            if len(kept) > LINE_LIMIT:
                if not cut:
                    _pass_on(Line(kept[:LINE_LIMIT], cut=True), said, lines)
                kept, cut = b"", True
        if kept and not cut:
            _pass_on(Line(kept, broken_off=True), said, lines)


def _pass_on(line: Line, said: Callable[[bytes], None], lines: Lines | None) -> None:
    if lines is None:
        said(line.text)
    else:
        lines.put(line._replace(text=line.text.removesuffix(b"\r")))
