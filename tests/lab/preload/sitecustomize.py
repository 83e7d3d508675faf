"""A clock of its own for the Python programs of one host of the lab (tests/lab/clock.py). Python imports this by itself at its start.

The real clock is never touched: what is patched are this interpreter's `time` and `datetime`. Monotonic time stays as it is.
"""

import os

_page = os.environ.get("LAB_CLOCK", "")


def _patch(path: str) -> None:
    import datetime
    import mmap
    import struct
    import time

    fields = struct.Struct("<dddd")  # step of the wall clock; boot clock: real moment, shown moment, rate from then on
    with open(path, "r+b") as file:  # noqa: PTH123 - every program of the host starts with this: no more imports than needed
        page = mmap.mmap(file.fileno(), fields.size)
    wall, wall_ns, gettime, gmtime, localtime = time.time, time.time_ns, time.clock_gettime, time.gmtime, time.localtime
    real = datetime.datetime

    def clock_gettime(clock: int) -> float:
        step, base, shown, rate = fields.unpack_from(page)
        if clock == time.CLOCK_BOOTTIME:
            return float(shown + (gettime(clock) - base) * rate)
        return gettime(clock) + (step if clock == time.CLOCK_REALTIME else 0.0)

    def now() -> float:
        return wall() + float(fields.unpack_from(page)[0])

    time.clock_gettime = clock_gettime
    time.time = now
    time.time_ns = lambda: wall_ns() + int(fields.unpack_from(page)[0] * 1e9)
    time.gmtime = lambda seconds=None: gmtime(now() if seconds is None else seconds)
    time.localtime = lambda seconds=None: localtime(now() if seconds is None else seconds)

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real)

    class Stepped(real, metaclass=Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.fromtimestamp(now(), tz)

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return real.fromtimestamp(now(), datetime.UTC).replace(tzinfo=None)

    datetime.datetime = Stepped  # type: ignore[misc]


if _page:
    _patch(_page)
if os.environ.get("LAB_DAWDLE") or os.environ.get("LAB_REMOVE"):
    import removed  # noqa: F401 - beside this file
