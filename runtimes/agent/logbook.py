"""The log of one kept program: its last lines in memory for the agent, all of them in a file of limited size."""

import contextlib
import io
import os
from collections import deque
from pathlib import Path

import msgspec

from runtimes.agent import linux
from runtimes.protocol import LogLevel, LogLine

LOG_LINES = 2_000
LOG_LINES_PER_NEWS = 200
LOG_LINE_BYTES = 8_000
LOG_FILE_BYTES = 2_000_000


def read_log_line(raw: bytes) -> tuple[LogLevel, str]:
    """Level and text of one line of output: structlog's and etcd's JSON are understood, anything else is an `info` line."""
    text = raw[:LOG_LINE_BYTES].decode("utf-8", "replace").replace("\0", "").rstrip()
    if text.startswith("{"):
        try:
            fields = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            return LogLevel.INFO, text
        if isinstance(fields, dict):
            level = str(fields.pop("level", "info")).lower()
            message = fields.pop("event", None) or fields.pop("msg", None)
            for noise in (
                "timestamp",
                "ts",
                "caller",
                "logger",
                "at",
                "runtime",
            ):
                fields.pop(noise, None)
            rest = " ".join(f"{name}={_readable(value)}" for name, value in fields.items() if value is not None)
            return LEVELS.get(level, LogLevel.INFO), f"{message} {rest}".rstrip()[:LOG_LINE_BYTES] if message else text
    return LogLevel.INFO, text


def _readable(value: object) -> object:
    """A measured number to three digits after the point: more is noise to a reader."""
    return round(value, 3) if isinstance(value, float) else value


LEVELS = {
    "debug": LogLevel.DEBUG,
    "info": LogLevel.INFO,
    "warn": LogLevel.WARNING,
    "warning": LogLevel.WARNING,
    "error": LogLevel.ERROR,
    "critical": LogLevel.ERROR,
    "dpanic": LogLevel.ERROR,
    "panic": LogLevel.ERROR,
    "fatal": LogLevel.ERROR,
}


def open_private(path: Path) -> io.FileIO:
    """A log file of mode 0600, unbuffered, for appending. The umask stays as it was: the program inherits it."""
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


class LogBook:
    """The last lines in memory, and all of them in a file of limited size."""

    def __init__(self, runtime: str, path: Path) -> None:
        self.runtime = runtime
        self.path = path
        self.lines: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.total = 0  # lines ever written
        self.partial = b""
        self.file = open_private(path)

    def feed(self, data: bytes) -> None:
        self._to_file(data)
        *lines, self.partial = (self.partial + data).split(b"\n")
        if len(self.partial) > LOG_LINE_BYTES:
            lines.append(self.partial)
            self.partial = b""
        for line in lines:
            if line.strip():
                self.add(*read_log_line(line))

    def finish(self) -> None:
        if self.partial.strip():
            self.add(*read_log_line(self.partial))
        self.partial = b""

    def say(self, level: LogLevel, text: str) -> None:
        """A line of the keeper itself."""
        self._to_file(f"keeper: {text}\n".encode())
        self.add(level, text)

    def add(self, level: LogLevel, text: str) -> None:
        self.lines.append(LogLine(runtime=self.runtime, at=linux.utc_now(), level=level, text=text))
        self.total += 1

    def since(self, cursor: int) -> tuple[list[LogLine], int]:
        """Lines after `cursor` (a former total), at most LOG_LINES_PER_NEWS of them, and the cursor behind them."""
        first = self.total - len(self.lines)
        found: list[LogLine] = []
        if cursor < first:
            found.append(
                LogLine(runtime=self.runtime, at=linux.utc_now(), level=LogLevel.WARNING, text=f"{first - cursor} log lines were dropped")
            )
            cursor = first
        upto = min(self.total, cursor + LOG_LINES_PER_NEWS)
        found += [self.lines[index - first] for index in range(cursor, upto)]
        return found, upto

    def _to_file(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the process
            if self.file.tell() + len(data) > LOG_FILE_BYTES:
                with contextlib.suppress(FileNotFoundError):  # it was, and no new one could be opened
                    self.path.replace(self.path.with_name(self.path.name + ".1"))
                former, self.file = self.file, open_private(self.path)
                former.close()
            self.file.write(data)
