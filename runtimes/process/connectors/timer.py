"""Inbound `timer`: an item at each instant of a cron schedule. Its id is the instant, so the same one is known as the same."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from runtimes.process.connectors.aside import ErrorFolder
from runtimes.process.connectors.base import Inbound, Item, Origin, Setting, Unavailable, inbound
from runtimes.process.permits import Duty
from runtimes.protocol import ComponentKind

ONCE, EVERY, NONE = "once", "every", "none"
ON_TIME = timedelta(seconds=60)  # an instant that is looked at later than this was missed
AHEAD = timedelta(hours=1)  # what was remembered further ahead of the clock than this is taken for a clock that was wrong
CAUGHT_UP = 1000  # missed instants that are still fired with `every`
LOOK_BACK_DAYS = (1, 30, 1000)  # a schedule of every minute makes half a million instants a year


def wall_clock() -> datetime:
    return datetime.now(UTC)


def due(schedule: str, zone: ZoneInfo, last: datetime, now: datetime, missed: str) -> tuple[list[datetime], list[datetime]]:
    """Instants after `last` up to `now`: to fire, and to leave out; both oldest first. Pure.

    A missed one (looked at more than ON_TIME late) fires as `missed` says: only the latest of them (once), each, or none. Of more than
    CAUGHT_UP only the latest are looked at, however long ago the last one was.
    """
    found: list[datetime] = []
    for days in (*LOOK_BACK_DAYS, None):
        start = last if days is None else max(last, now - timedelta(days=days))
        found = _between(schedule, zone, start, now)
        if start == last or len(found) > CAUGHT_UP:
            break
    late = [moment for moment in found if now - moment > ON_TIME]
    timely = found[len(late) :]
    kept = {ONCE: late[-1:], EVERY: late[-CAUGHT_UP:], NONE: []}[missed]
    return kept + timely, late[: len(late) - len(kept)]


def _between(schedule: str, zone: ZoneInfo, after: datetime, until: datetime) -> list[datetime]:
    found = []
    for instant in CronSim(schedule, after.astimezone(zone)):
        moment = instant.astimezone(UTC)
        if moment > until:
            break
        if moment > after:
            found.append(moment)
    return found


@inbound(ComponentKind.TIMER)
class TimerInbound(Inbound):
    """Settings: schedule, time_zone, missed, content."""

    clock: Callable[[], datetime] = staticmethod(wall_clock)

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._schedule = setting.text("schedule")
        zone = setting.text("time_zone", "UTC")
        try:
            self._zone = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise setting.error("time_zone", f"names no time zone: {zone}", "write it as Europe/Amsterdam") from error
        try:
            if len(self._schedule.split()) != 5:
                raise CronSimError("not five fields")
            next(CronSim(self._schedule, datetime(2026, 1, 1, tzinfo=self._zone)))
        except (CronSimError, StopIteration) as error:
            what = str(error) or "it never comes"
            raise setting.error("schedule", f"is no schedule: {what}", "write five fields: minute hour day month weekday") from error
        self._missed = setting.choice("missed", (ONCE, EVERY, NONE))
        self._content = setting.text("content", "\n").strip()
        self.failures: ErrorFolder = ErrorFolder(setting.data / "errors" / setting.flow_id, setting)
        self._last: datetime | None = None
        self._waiting: list[Item] = []
        self._fired: list[datetime] = []  # done before an earlier one, which waits: not remembered yet

    def prepare(self) -> None:
        self.failures.prepare()

    def begin(self, duty: Duty) -> None:
        """Go on where the group's former leader was; a schedule begins with its first leadership."""
        self._waiting.clear()
        self._fired.clear()
        known = self._setting.state.read(duty).get("last")
        self._last = datetime.fromisoformat(known) if isinstance(known, str) else None
        if self._last is None:
            self._remember(self.clock(), duty)

    def poll(self, duty: Duty) -> Sequence[Item]:
        assert self._last is not None
        now, again = self.clock(), self.failures.offered(duty)
        if self._last - now > AHEAD:
            self._setting.log.warning(f"{self._told_ahead(now)}: that clock was wrong, so it goes on from now")
            self._remember(now, duty)
        if self._last - now > ON_TIME and not again:
            raise Unavailable(f"{self._told_ahead(now)}: nothing fires before that; correct the clocks of the machines")
        if not self._waiting:
            fired, left_out = due(self._schedule, self._zone, self._last, now, self._missed)
            if left_out:
                count = f"{len(left_out)}{' or more' if len(left_out) >= CAUGHT_UP else ''}"
                word = f"{count} missed instants up to {left_out[-1]:%Y-%m-%d %H:%M} UTC"
                self._setting.log.warning(f"{word} are left out, as the setting missed={self._missed} says")
            if left_out and not fired:
                self._remember(left_out[-1], duty)
            self._waiting = [self._item(moment, duty) for moment in fired]
        return [*again, *self._waiting]

    def remove(self, item: Item, duty: Duty) -> None:
        if self.failures.delivered(item):
            return
        self._done(item, duty)

    def reject(self, item: Item, reason: str, duty: Duty, tries: int) -> None:
        self.failures.put(item, reason, tries)
        if isinstance(item.handle, datetime):
            self._done(item, duty)

    def keep_up(self) -> None:
        self._setting.state.keep_up()

    def wait_seconds(self) -> float:
        return 0.25

    def abort(self) -> None:
        pass

    def _told_ahead(self, now: datetime) -> str:
        assert self._last is not None
        minutes = (self._last - now).total_seconds() / 60
        return f"the last instant, {self._last:%Y-%m-%d %H:%M} UTC, lies {minutes:.0f} minutes ahead of this clock"

    def _done(self, item: Item, duty: Duty) -> None:
        """The next leader begins after the last instant before which none waits: one that failed while later ones were delivered is not
        left out. When that cannot be kept, the item comes again under the same id."""
        left = [other for other in self._waiting if other.id != item.id]
        before = min((other.handle for other in left), default=None)
        fired = [*self._fired, item.handle]
        passed = [moment for moment in fired if before is None or moment < before]
        if passed:
            self._remember(max(passed), duty)
        self._fired = [moment for moment in fired if moment not in passed]
        self._waiting = left

    def _remember(self, moment: datetime, duty: Duty) -> None:
        self._setting.state.write(duty, {"last": moment.astimezone(UTC).isoformat()})
        self._last = moment

    def _item(self, moment: datetime, duty: Duty) -> Item:
        instant = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        local = moment.astimezone(self._zone).isoformat()
        text = self._content.replace("{instant}", instant).replace("{local}", local)
        data = (text or json.dumps({"instant": instant, "local": local, "schedule": self._schedule})).encode()
        key = hashlib.sha256(f"{self._setting.flow_id}\0{instant}".encode()).hexdigest()[:32]
        name = f"{self._setting.flow}-{instant.replace(':', '')}.{'txt' if text else 'json'}".encode()

        @contextmanager
        def opened() -> Iterator[Iterator[bytes]]:
            yield iter([data])

        origin = Origin(self._setting.flow, duty.group_name, duty.epoch, self._setting.machine)
        return Item(key, name, len(data), origin, opened, moment)
