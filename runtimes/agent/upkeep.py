"""etcd's database is kept small by itself: history goes after a minute, room that is free goes back to the disk, a full one is emptied.

etcd counts the size of its file, which never shrinks by itself, and refuses every write once that passes the quota: then nobody in the
environment can lead any more. `care_for` is pure; the router's supervisor does what it says, for its own member only.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtimes.agent.members import NotMade

QUOTA_BYTES = 2 * 1024**3  # etcd's own default
HISTORY_KEPT = "1m"  # nobody here reads the past; a watch that was away looks anew
COMPACT_AGAIN = 60.0  # seconds
DEFRAGMENT_AGAIN = 600.0  # a member that is defragmented answers nobody meanwhile
TURN_AGAIN = 30.0  # where it is another one's turn, or nobody could take over what is led here
RESCUE_AGAIN = 10.0
MEGABYTE = 1024**2


class Care(StrEnum):
    NOTHING = "nothing"
    COMPACT = "compact"  # forget history at once
    DEFRAGMENT = "defragment"  # in its turn, after what is led here was handed over
    RESCUE = "rescue"  # it is full and nobody can lead: both at once, and take the alarm back


@dataclass(frozen=True)
class Size:
    """As a member says of itself. Bytes."""

    file: int
    in_use: int
    revision: int
    full: bool = False  # the alarm NOSPACE stands

    @classmethod
    def of(cls, status: Mapping[str, Any], alarms: list[str]) -> "Size":
        """From the answer to /v3/maintenance/status."""
        header = status.get("header", {})
        file = int(status.get("dbSize", 0))
        return cls(file, int(status.get("dbSizeInUse", file)), int(header.get("revision", 0)), "NOSPACE" in alarms)


def care_for(size: Size, *, quota: int, idle: Mapping[Care, float]) -> Care:
    """What its database needs now. `idle`: seconds since each was done last; missing: never."""

    def rested(care: Care, seconds: float) -> bool:
        return idle.get(care, seconds) >= seconds

    if size.full:
        return Care.RESCUE if rested(Care.RESCUE, RESCUE_AGAIN) else Care.NOTHING
    if size.file >= quota / 4 and size.in_use <= size.file / 2 and rested(Care.DEFRAGMENT, DEFRAGMENT_AGAIN):
        return Care.DEFRAGMENT
    if size.in_use >= quota / 2 and rested(Care.COMPACT, COMPACT_AGAIN):
        return Care.COMPACT
    return Care.NOTHING


def presses(size: Size, *, quota: int) -> bool:
    """Is it nearly full, so that a moment without an answer is better than no leader anywhere."""
    return size.file >= quota * 3 / 4


def warning(size: Size, *, quota: int) -> str:
    """What people should know before it is full; empty below half of the quota."""
    if size.in_use < quota / 2:
        return ""
    used, limit = size.in_use // MEGABYTE, quota // MEGABYTE
    return f"its database holds {used} of {limit} MB: look for a flow that remembers much and changes it often"


Call = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


async def compact(call: Call, size: Size) -> None:
    """Forget all history up to now, and free its room. Raises: NotMade, but for history that is forgotten already."""
    try:
        await call("/v3/kv/compaction", {"revision": str(size.revision), "physical": True})
    except NotMade as error:
        if "compacted" not in str(error):
            raise


async def defragment(call: Call) -> None:
    """Give the free room back to the disk. The member answers nobody meanwhile. Raises: NotMade."""
    await call("/v3/maintenance/defragment", {})


async def disarm(call: Call, member_id: str) -> None:
    """Take this member's alarm back: writes are accepted again once none stands. Raises: NotMade."""
    await call("/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": str(int(member_id, 16)), "alarm": "NOSPACE"})
