"""The runtime's log: JSON lines on standard output (the keeper reads the pipe), written by a thread of their own.

A reader that stands still must not stop the election: what does not fit into the buffer is dropped and counted.
"""

import queue
import sys
import threading
import time
from typing import Any

import structlog

from runtimes.process.masking import MaskedStream, mask_event

KEPT_LINES = 2000


class _Journal:
    """A file-like object for structlog."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue(KEPT_LINES)
        self._dropped = 0
        threading.Thread(target=self._run, name="journal", daemon=True).start()

    def write(self, line: str) -> int:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1
        return len(line)

    def flush(self) -> None:
        pass

    def drain(self, seconds: float) -> None:
        """Wait until everything is written, at most so long."""
        deadline = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            try:
                if self._dropped:
                    dropped, self._dropped = self._dropped, 0
                    sys.stdout.write(f'{{"event":"{dropped} log lines were dropped: nobody read them","level":"warning"}}\n')
                sys.stdout.write(line)
                sys.stdout.flush()
            except (OSError, ValueError):
                pass  # the reader is gone
            self._lines.task_done()


_journal: _Journal | None = None


def configure() -> None:
    """Send structlog's lines to standard output: `timestamp` (RFC 3339 UTC), `level`, `event`, and what was bound. Secrets are masked,
    also in what anything else writes to standard error."""
    global _journal
    sys.stderr = MaskedStream(sys.stderr)
    _journal = _Journal()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            mask_event,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=_journal),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )


def drain(seconds: float = 0.5) -> None:
    if _journal is not None:
        _journal.drain(seconds)


def logger(**bound: Any) -> Any:
    return structlog.get_logger(**bound)
