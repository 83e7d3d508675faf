"""When an environment may be changed: windows and freezes in its own time zone. Pure; time is an argument."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from portal.errors import Invalid

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class Window:
    """Open on these weekdays (0 is Monday) from `opens` until before `closes`; closing at or before opening means the next day."""

    days: frozenset[int]
    opens: time
    closes: time

    def holds(self, wall: datetime) -> bool:
        now, today = wall.time(), wall.weekday()
        if self.opens < self.closes:
            return today in self.days and self.opens <= now < self.closes
        return (today in self.days and now >= self.opens) or ((today - 1) % 7 in self.days and now < self.closes)

    @property
    def words(self) -> str:
        return f"{days_in_words(self.days)} {self.opens:%H:%M}–{self.closes:%H:%M}"


@dataclass(frozen=True)
class Freeze:
    starts_at: datetime
    ends_at: datetime
    reason: str


@dataclass(frozen=True)
class Calendar:
    zone: ZoneInfo
    windows: Sequence[Window] = ()
    freezes: Sequence[Freeze] = ()


@dataclass(frozen=True)
class Verdict:
    """May the environment be changed at a moment; if not, why, and the next moment at which it may (None: not foreseeable)."""

    open: bool
    sentence: str = ""
    next_at: datetime | None = None


def days_in_words(days: frozenset[int]) -> str:
    """ "Mon–Fri", "every day", "Mon, Wed"."""
    ordered = sorted(days)
    if len(ordered) == 7:
        return "every day"
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{DAYS[ordered[0]]}–{DAYS[ordered[-1]]}"
    return ", ".join(DAYS[day] for day in ordered)


def in_zone(moment: datetime, zone: ZoneInfo) -> str:
    """ "Mon 4 Jan 2027 08:00 Europe/Amsterdam" """
    wall = moment.astimezone(zone)
    return f"{wall:%a} {wall.day} {wall:%b %Y %H:%M} {zone.key}"


def verdict(calendar: Calendar, at: datetime) -> Verdict:
    """Open, or the reason and the next moment at which it is."""
    reason = _closed(calendar, at)
    if not reason:
        return Verdict(True, next_at=at)
    following = next((moment for moment in _candidates(calendar, at) if not _closed(calendar, moment)), None)
    when = f"Next allowed: {in_zone(following, calendar.zone)}." if following else "No window opens in the year after."
    return Verdict(False, f"{reason} {when}", following)


def _closed(calendar: Calendar, at: datetime) -> str:
    for freeze in calendar.freezes:
        if freeze.starts_at <= at < freeze.ends_at:
            return f"It is frozen until {in_zone(freeze.ends_at, calendar.zone)}: {freeze.reason.rstrip('.')}."
    wall = at.astimezone(calendar.zone).replace(tzinfo=None)
    if calendar.windows and not any(window.holds(wall) for window in calendar.windows):
        words = ", ".join(window.words for window in calendar.windows)
        return f"Its deployment windows are {words} ({calendar.zone.key})."
    return ""


def _candidates(calendar: Calendar, at: datetime) -> Iterator[datetime]:
    """Moments after `at` at which something may open, in order: ends of freezes, and openings in the eight days after each."""
    ends = {freeze.ends_at for freeze in calendar.freezes if freeze.ends_at > at}
    moments = set(ends)
    for base in {at, *ends}:
        first = base.astimezone(calendar.zone).date()
        for days in range(9):
            day = first + timedelta(days=days)
            for window in calendar.windows:
                if day.weekday() in window.days:
                    # In a gap of the clocks this is the moment after it; of two such moments the first.
                    moments.add(datetime.combine(day, window.opens, calendar.zone).astimezone(UTC))
    yield from sorted(moment for moment in moments if moment > at)


# ------------------------------------------------------------------------------------------------------------- times of a zone


FURTHEST = timedelta(days=5 * 366)  # nobody plans further, and calendars end


def refuse_far(moment: datetime, now: datetime, *, field: str) -> None:
    """Raises Invalid for a moment more than 5 years away."""
    if abs(moment - now) > FURTHEST:
        raise Invalid("Choose a time within 5 years.", field=field)


def instant(wall: datetime, zone: ZoneInfo, *, second: bool | None = None, field: str = "at") -> datetime:
    """The moment (UTC) that a wall clock of the zone shows. `second` says which of two, when the clocks are set back.

    Raises:
        Invalid: the clocks skip that time, or show it twice and `second` does not say which.
    """
    try:
        early, late = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    except OverflowError:  # at the ends of the calendar
        raise Invalid("Choose a time within 5 years.", field=field) from None
    if early == late:
        return early
    day = f"{wall:%a} {wall.day} {wall:%b %Y}"
    if early.astimezone(zone).replace(tzinfo=None) != wall:
        before, after = sorted((early, late))
        raise Invalid(
            f"{wall:%H:%M} does not exist on {day} in {zone.key}: the clocks are set forward. "
            f"Choose {before.astimezone(zone):%H:%M} or {after.astimezone(zone):%H:%M}.",
            field=field,
        )
    if second is None:
        raise Invalid(
            f"{wall:%H:%M} happens twice on {day} in {zone.key}, because the clocks are set back: choose the first "
            f"({early:%H:%M} UTC) or the second ({late:%H:%M} UTC).",
            field=field,
        )
    return late if second else early
