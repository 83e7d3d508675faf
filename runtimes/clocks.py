"""When something happened, by the portal's clock, though a machine's own may be a day off. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from runtimes import protocol

READABLE_YEARS = (1970, 2400)  # clocks may be wrong, and zones and ages are added to what they say
TOLERATED_SECONDS = 2.0  # a clock off by less is believed: a report is under way for a while too


@dataclass(frozen=True)
class Clock:
    """A machine's clocks, as one report shows them."""

    now: datetime  # when the report came
    ahead_seconds: float | None  # the machine's clock minus the portal's; None: the report does not tell
    boot_id: str = ""
    at_boot: float | None = None  # boot-time clock when the report was made
    late_seconds: float = 0.0  # for how long it was under way, when that is longer than usual: the portal hung, or the way did

    @classmethod
    def of(
        cls, report: protocol.Report, now: datetime, *, boot_id: str = "", booted_at: datetime | None = None, late_before: float = 0.0
    ) -> "Clock":
        """`boot_id` and `booted_at`: which kernel the machine ran and when that had started, by its reports until now; `late_before`: for
        how long the last of them was under way. No way is shorter than none, so a report by which the same kernel would have started later
        was under way for as much longer. Only the second that is just as late was not: a machine makes its next report seconds after the
        one that is stuck, so it is the portal's clock that was set forward, or the machine's that stood still (a paused virtual one)."""
        late = 0.0
        if booted_at is not None and report.at_boot is not None and report.boot_id == boot_id:
            longer = (now - timedelta(seconds=report.at_boot) - booted_at).total_seconds()
            late = longer if longer > TOLERATED_SECONDS and abs(longer - late_before) > TOLERATED_SECONDS else 0.0
        at = read(report.at)
        ahead = (at - now).total_seconds() + late if at else None
        return cls(now, None if ahead is None else round(ahead, 3), report.boot_id, report.at_boot, late)

    @property
    def made_at(self) -> datetime:
        """When the report was made, in the portal's time."""
        return self.now - timedelta(seconds=self.late_seconds)

    @property
    def is_off(self) -> bool:
        return self.ahead_seconds is not None and abs(self.ahead_seconds) > TOLERATED_SECONDS

    def moment(self, text: str) -> datetime:
        """An RFC 3339 moment of the machine in the portal's time, never later than the report that tells it; when the report came for an
        empty or unreadable one."""
        at = read(text)
        if at is None:
            return self.now
        return min(self.now, at - timedelta(seconds=self.ahead_seconds or 0.0) if self.is_off else at)

    def text(self, text: str) -> str:
        """The same, as text; empty for an empty or unreadable one."""
        at = read(text)
        if at is None:
            return ""
        if not self.is_off and at <= self.now:
            return text[:40]
        return self.moment(text).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def sentence(self, text: str, moments: Iterable[str]) -> str:
        """A sentence of the machine that names these moments of its own ("12:03:41 UTC", after the day when it was another one), with them
        in the portal's time."""
        if not self.is_off:
            return text
        said: dict[str, str] = {}
        for moment in moments:
            day, _, time = moment.partition("T")
            at = self.moment(moment).astimezone(UTC)
            today = at.date() == self.now.astimezone(UTC).date()
            said[f"{time[:8]} UTC"] = said[f"{day} {time[:8]} UTC"] = f"{at:%H:%M:%S} UTC" if today else f"{at:%Y-%m-%d %H:%M:%S} UTC"
        words = sorted(said, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, words)), lambda found: said[found[0]], text) if words else text

    @property
    def booted_at(self) -> datetime | None:
        """When the machine's kernel started; None: the report does not tell."""
        return self.made_at - timedelta(seconds=self.at_boot) if self.at_boot is not None else None

    def instant(self, text: str, at_boot: float | None, boot_id: str) -> datetime:
        """An instant that was also noted on the boot-time clock: exact as long as the machine has not booted since, whatever was done
        to its clock meanwhile."""
        if at_boot is None or self.at_boot is None or not boot_id or boot_id != self.boot_id or at_boot > self.at_boot:
            return self.moment(text)
        return self.made_at - timedelta(seconds=self.at_boot - at_boot)


def in_words(ahead_seconds: float | None) -> str:
    """ "as the portal's", "1 day ahead of the portal's"; empty when it was not told."""
    if ahead_seconds is None:
        return ""
    off = abs(ahead_seconds)
    if off <= TOLERATED_SECONDS:
        return "as the portal's"
    span = (
        f"{off / 86400:.1f} days"
        if off >= 36 * 3600
        else f"{off / 3600:.1f} h"
        if off >= 5400
        else f"{off / 60:.0f} min"
        if off >= 90
        else f"{off:.0f} s"
    )
    return f"{span} {'ahead of' if ahead_seconds > 0 else 'behind'} the portal's"


def read(text: str) -> datetime | None:
    """A moment off the wire (RFC 3339, with its offset); None when it is empty, unreadable, or of a year nobody can reckon with."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo and READABLE_YEARS[0] <= at.year <= READABLE_YEARS[1] else None
