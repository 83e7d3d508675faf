"""When permit pages turned On and Off, to half a millisecond: a small program of its own, for the judge's sampler shares its process with
everything else that a measurement does, and may not look for longer than a hand-over takes.

`python stopwatch.py PAGE...` prints a line per change, "<seconds on CLOCK_BOOTTIME> <number of the page> <0 or 1>", until its input is
closed; then the longest time without a look, in seconds.
"""

import contextlib
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

PAGE = struct.Struct("<dI4x")  # permit_until (boot time), on
EVERY = 0.0005  # seconds


class Stopwatch:
    """Watches these pages until it is left; then `turns` (page, at, on) and `longest_blind` in seconds are known."""

    def __init__(self, pages: list[Path]) -> None:
        self.pages = pages
        self.turns: list[tuple[Path, float, bool]] = []
        self.longest_blind = 0.0

    def __enter__(self) -> Self:
        words = [sys.executable, "-P", str(Path(__file__)), *map(str, self.pages)]
        self._program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._program.stdout is not None
        assert self._program.stdout.readline() == "watching\n"
        return self

    def __exit__(self, *_: object) -> None:
        said, _ = self._program.communicate(timeout=10)
        *turns, blind = said.splitlines()
        self.longest_blind = float(blind)
        for at, page, on in (line.split() for line in turns):
            self.turns.append((self.pages[int(page)], float(at), on == "1"))

    def gap(self, old: Path, new: Path) -> float:
        """Seconds from the last time that `old` turned Off before `new` turned On."""
        on_at = next(at for page, at, on in self.turns if page == new and on)
        return on_at - max(at for page, at, on in self.turns if page == old and not on and at <= on_at)


def watch(paths: list[str]) -> None:
    with contextlib.suppress(OSError):  # it takes little, and shall not wait for who takes much
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    known = [False] * len(files)
    print("watching", flush=True)
    blind, before, ends = 0.0, time.clock_gettime(time.CLOCK_BOOTTIME), False
    while not ends:
        ends = bool(select.select([0], [], [], EVERY)[0])  # then once more: nothing that was before is missed
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        blind, before = max(blind, now - before), now
        for number, file in enumerate(files):
            until, on = PAGE.unpack(os.pread(file, PAGE.size, 0))
            if known[number] != (on == 1 and until > now):
                known[number] = not known[number]
                print(now, number, int(known[number]))
    print(blind, flush=True)


if __name__ == "__main__":
    watch(sys.argv[1:])
