"""One host's clock: steps of the wall clock, and a boot clock that runs faster or slower. Reaches its Python programs only, by preload."""

import mmap
import struct
import time
from pathlib import Path

FIELDS = struct.Struct("<dddd")  # step; real moment, shown moment, rate (preload/sitecustomize.py reads it)
PRELOAD = Path(__file__).parent / "preload"


def boot() -> float:
    """Seconds on CLOCK_BOOTTIME, which all hosts of the lab share."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class HostClock:
    """What the host's programs see; the judge asks `shown` to read moments that they wrote down."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(FIELDS.pack(0.0, 0.0, 0.0, 1.0))
        self.path = path
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), FIELDS.size)

    def environment(self, python_path: str) -> dict[str, str]:
        return {"LAB_CLOCK": str(self.path), "PYTHONPATH": f"{PRELOAD}:{python_path}"}

    def step(self, seconds: float) -> None:
        """The wall clock stands so far from the real one from now on."""
        _, *boot_clock = FIELDS.unpack_from(self._page)
        FIELDS.pack_into(self._page, 0, seconds, *boot_clock)

    def run_at(self, rate: float) -> None:
        """The boot clock runs that much faster (or slower) than the others' from now on."""
        now = boot()
        FIELDS.pack_into(self._page, 0, FIELDS.unpack_from(self._page)[0], now, self.shown(now), rate)

    def shown(self, now: float) -> float:
        """The host's boot clock at that real moment."""
        _, real, shown, rate = FIELDS.unpack_from(self._page)
        return float(shown + (now - real) * rate)
