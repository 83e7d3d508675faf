"""The right to take and to emit, with its end. Read by the worker threads, written by the election loop only."""

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from runtimes.protocol import PERMIT

Clock = Callable[[], float]
NEVER = float("-inf")
ALWAYS = float("inf")


def boot_clock() -> float:
    """Seconds on CLOCK_BOOTTIME: it goes on while the machine is suspended and no time setting moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Of the kernel whose boot_clock() this is: changes with every boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class PermitEnded(Exception):  # noqa: N818 - says what happened
    """This runtime may not take or emit any more: the item stays where it is."""


class Duty:
    """One leadership of one group by this process, or the standing right of a single node or an ungrouped flow (epoch 0, no end).

    A voided duty never comes back: a later leadership is another object, so a worker of the old one cannot emit under its permit.
    """

    __slots__ = ("_clock", "_taking", "_until", "_void", "epoch", "group", "group_name")

    def __init__(self, group: str | None, group_name: str, epoch: int, until: float, clock: Clock = boot_clock) -> None:
        self.group = group  # id; None: an ungrouped flow
        self.group_name = group_name
        self.epoch = epoch
        self._until = until
        self._clock = clock
        self._taking = True
        self._void = False

    @property
    def until(self) -> float:
        """End of the permit in seconds on the boot-time clock; NEVER once voided."""
        return NEVER if self._void else self._until

    @property
    def taking(self) -> bool:
        return self._taking and not self._void

    def valid(self) -> bool:
        return not self._void and self._clock() < self._until

    def extend(self, until: float) -> None:
        self._until = max(self._until, until)

    def stop_taking(self) -> None:
        self._taking = False

    def resume(self) -> None:
        """Take again: the drain was given up."""
        self._taking = True

    def void(self) -> None:
        self._void = True

    def check_take(self) -> None:
        """Ask immediately before an item is taken.

        Raises:
            PermitEnded: nothing more may be taken.
        """
        if not self._taking:
            raise PermitEnded("this group takes nothing more here")
        self.check()

    def check(self) -> None:
        """Ask immediately before an emit is committed.

        Raises:
            PermitEnded: the permit is over.
        """
        if not self.valid():
            raise PermitEnded("the permit to emit has ended")


class PermitPage:
    """The file that process and keeper map (protocol.PERMIT): On past the permit's end tells the keeper that this process hangs."""

    def __init__(self, path: str) -> None:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < PERMIT.size:
                os.ftruncate(descriptor, PERMIT.size)
            self._page = mmap.mmap(descriptor, PERMIT.size)
        finally:
            os.close(descriptor)
        self.off()

    def on(self, until: float) -> None:
        """Some group is On; the earliest of the permits ends at `until`. The end is written before the flag."""
        PERMIT.pack_into(self._page, 0, until, self.read()[1])
        PERMIT.pack_into(self._page, 0, until, 1)

    def off(self) -> None:
        PERMIT.pack_into(self._page, 0, self.read()[0], 0)

    def read(self) -> tuple[float, bool]:
        until, on = PERMIT.unpack_from(self._page, 0)
        return float(until), bool(on)

    def close(self) -> None:
        self._page.close()
