"""One worker thread per flow: takes from its inbound, gives to its outbound, only while its duty is valid.

The election loop hands a duty over and takes it back; it never waits for a worker.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtimes.process.connectors import INBOUNDS, OUTBOUNDS
from runtimes.process.connectors.aside import now_text
from runtimes.process.connectors.base import (
    ConfigError,
    Inbound,
    Item,
    ItemChanged,
    ItemError,
    NotReady,
    Outbound,
    Refusing,
    Setting,
    State,
    Unavailable,
)
from runtimes.process.fitness import LOOK_AGAIN_SECONDS, LOOK_SECONDS, Fitness
from runtimes.process.masking import masked
from runtimes.process.permits import Duty, PermitEnded
from runtimes.process.transform import Transform
from runtimes.protocol import Component, ComponentKind, FlowReport, FlowSpec

TRIES = 3  # of an item that itself fails, before it is moved aside
TRY_AGAIN_SECONDS = (0.2, 1.0)
CHANGED_SECONDS = 1.0  # an item that changed or went away while it was read is left alone for so long, if it is offered still
ASIDE_SECONDS, ASIDE_LIMIT = 5.0, 300.0  # an item that could not even be moved aside is skipped for so long, doubling
AWAY_SECONDS, AWAY_LIMIT = 0.1, 1.0  # between asks of a source or target that is away
PREPARE_SECONDS = 2.0
STOPS_AGAIN_SECONDS = 0.5  # after an error while it stops
GAUGE_SECONDS = 5.0  # between two counts of what waits
KEEP_UP_SECONDS = 60.0  # between two looks at what the group remembers
SWEEP_SECONDS = 600.0  # between two looks for failed items that are kept no longer
SILENT_SECONDS = 30.0  # without an answer of the source, or three of its intervals where those are longer: then something is wrong …
DELIVERING_SECONDS = 300.0  # … but a long delivery of one item is work; a target that took nothing for longer is something wrong, too
HOLD_SECONDS = 600.0  # a target that took nothing for so long is not waited for with items in hand: its inbound may give them back
REST_LOOK_SECONDS = 5.0  # how often such a target is begun anew, to see whether it is back
SAY_SECONDS = 30.0  # between two log lines about one outage


@dataclass(slots=True)
class Trouble:
    """What an item has met so far."""

    tries: int
    again_at: float  # time.monotonic()
    reason: str
    aside_wait: float = ASIDE_SECONDS


class Flow:
    """A flow of this runtime. Public methods are called by the election loop and return at once."""

    def __init__(
        self, spec: FlowSpec, *, key: str, machine: str, data: Path, changed: Callable[[], None], log: Any, shared: State | None = None
    ) -> None:
        self.spec = spec
        self.prepared = False  # has everything been there at least once
        self.on = False  # the inbound really runs
        self.reason = "starting"
        self._log = log.bind(flow=spec.name)
        self._changed = changed
        self._setting = (spec.id, spec.name, key, machine, data, shared)
        self._inbound: Inbound = _made(INBOUNDS, spec.inbound, self._settings(spec.inbound, "inbound"))
        self._outbound: Outbound = _made(OUTBOUNDS, spec.outbound, self._settings(spec.outbound, "outbound"))
        self._transform = Transform(self._settings(spec.outbound, "outbound"))
        self._fitness = Fitness()
        self._wake = threading.Condition()
        self._duty: Duty | None = None
        self._closing = False
        self._working: Duty | None = None  # the duty the worker has not yet let go
        self._troubles: dict[str, Trouble] = {}
        self._taken = self._delivered = self._failed = 0
        self._last_activity = ""
        self._last_poll = 0.0  # wall clock: when the source last answered
        self._waiting: int | None = None
        self._pending: int | None = None
        self._kept: int | None = None
        self._again: int | None = None
        self._answered = 0.0  # when the source last answered, or an item was done with (time.monotonic())
        self._delivering = False
        self._broken = False  # it ended by an error that nobody foresaw, and went through no round since
        self._silent_since = ""
        self._owing_at = 0.0  # since when the target took nothing of what was offered (time.monotonic()) …
        self._owing_since = ""  # … and the same as a moment
        self._offered_at = 0.0  # when the inbound last offered anything (time.monotonic())
        self._rest_until = 0.0  # a target that can be begun, and still takes nothing, is tried again then (time.monotonic())
        self._counted: set[str] = set()  # items that were taken and not delivered yet: taken once, however often they are tried
        self._refused: set[str] = set()  # items that the target would not take: the others go first
        self._said = ""
        self._said_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"flow {spec.name}", daemon=True)

    def open(self) -> None:
        self._thread.start()
        threading.Thread(target=self._gauge, name=f"gauge of {self.spec.name}", daemon=True).start()

        if self.spec.group is not None:
            threading.Thread(target=self._look, name=f"looks at {self.spec.name}", daemon=True).start()

    def start(self, duty: Duty) -> None:
        """Run under this duty, once the worker has let go of the one before."""
        with self._wake:
            self._duty = duty
            self._wake.notify_all()

    def stop(self) -> None:
        """Take nothing more; what is in flight ends by its own duty's permit."""
        with self._wake:
            self._duty = None
            self._wake.notify_all()

    def abort(self) -> None:
        """The permit ended: cut what is in flight."""
        self.stop()
        if self._working is not None:
            self._inbound.abort()
            self._outbound.abort()

    def close(self) -> None:
        with self._wake:
            self._closing = True
            self._duty = None
            self._wake.notify_all()

    def turn(self, *, leads: bool) -> None:
        """Judge anew whether it could work here (fitness.py)."""
        self._fitness.turn(time.monotonic(), leads=leads)

    @property
    def ready(self) -> bool:
        return self.prepared and not self._fitness.reason

    @property
    def why_not_ready(self) -> str:
        return self._fitness.reason if self.prepared else self.reason

    @property
    def busy(self) -> bool:
        """Is an item between source and target, or the inbound not yet let go."""
        return self._working is not None

    @property
    def last_activity(self) -> str:
        return self._last_activity

    def report(self) -> FlowReport:
        return FlowReport(
            flow=self.spec.id,
            name=self.spec.name,
            on=self.on,
            group=self.spec.group,
            reason=self.reason,
            taken=self._taken,
            delivered=self._delivered,
            failed=self._failed,
            last_activity=self._last_activity,
            last_poll=_to_seconds(self._last_poll),
            waiting=self._waiting,
            pending=self._pending,
            kept=self._kept,
            again=self._again,
            silent_since=self._silence(time.monotonic()),
            undelivered_since=self._owing_since if self.on and self._owes(DELIVERING_SECONDS) else "",
        )

    def _owes(self, seconds: float) -> bool:
        """Has the target taken nothing for longer than this, though it was offered something?"""
        return bool(self._owing_at) and time.monotonic() - self._owing_at > seconds

    def _silence(self, now: float) -> str:
        """Since when this inbound, which is On, has had no answer of its source for longer than it should; empty while all is well."""
        limit = DELIVERING_SECONDS if self._delivering else max(SILENT_SECONDS, 3 * self._inbound.interval_seconds())
        if not self.on or not self._answered or now - self._answered <= limit:
            self._silent_since = ""
        elif not self._silent_since:
            self._silent_since = _text(time.time() - (now - self._answered))
        return self._silent_since

    # ------------------------------------------------------------------------------------------------------------------ the worker

    def _settings(self, component: Component, side: str) -> Setting:
        flow_id, name, key, machine, data, shared = self._setting
        return Setting(flow_id, name, component, side, key, machine, data, self._log, shared)

    def _run(self) -> None:
        self._prepare()
        while not self._closing:
            with self._wake:
                self._wake.wait_for(lambda: self._duty is not None or self._closing)
                duty = self._working = self._duty
            if duty is None:
                continue
            self._owing_at = self._rest_until = 0.0
            try:
                self._work(duty)
            except Exception as error:
                self._log.exception("the flow failed and starts again")
                self._broken = True
                self._say(f"failed: {error!r}; it starts again", bad=True)
                self._pause(duty, 1.0)
            finally:
                self._wind_up(duty)
                self._let_go(duty)
        self._inbound.abort()  # close what is open
        self._outbound.abort()
        self._transform.close()

    def _prepare(self) -> None:
        while not self._closing:
            try:
                self._inbound.prepare()
                self._outbound.prepare()
                self._transform.prepare()
            except (NotReady, OSError) as error:
                self._say(str(error), bad=True)
                self._changed()
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, PREPARE_SECONDS)
            else:
                self.prepared = True
                self._say("")
                self._changed()
                return

    def _work(self, duty: Duty) -> None:
        away = AWAY_SECONDS
        begun = False
        while self._wanted(duty):
            try:
                if not begun and not (begun := self._begin(duty)):
                    self._pause(duty, REST_LOOK_SECONDS)
                    continue
                quiet = self._round(duty)
                away = AWAY_SECONDS
            except PermitEnded:
                return
            except Unavailable as error:
                if begun and self._owes(HOLD_SECONDS) and (seconds := self._inbound.rest()):
                    begun, self._rest_until = False, time.monotonic() + seconds
                ails = self._see_whether_on(duty) if begun else ""
                if duty.valid():
                    self._say(ails or f"{error}; items wait in the source", bad=True)
                self._pause(duty, away)
                away = min(away * 2, AWAY_LIMIT)
            else:
                ails = self._see_whether_on(duty)
                self._say(ails, bad=bool(ails))
                if quiet:
                    self._pause(duty, self._inbound.wait_seconds())

    def _begin(self, duty: Duty) -> bool:
        """The outbound first: nothing is taken for a target that is away. False: it can be begun, but took nothing before: it is left
        alone for a while yet. Raises Unavailable."""
        try:
            self._outbound.begin(duty)
        except Unavailable:
            self._rest_until = 0.0  # now it is known to be away: once it can be begun again, it is back
            raise
        if time.monotonic() < self._rest_until:
            return False
        self._inbound.begin(duty)
        self._set_on(duty)
        return True

    def _wind_up(self, duty: Duty) -> None:
        """Stop what the inbound has running, and deliver what it had taken before, for as long as the duty lasts."""
        try:
            self._inbound.stop(duty)
        except Exception as error:
            self._failed_to_stop(error)
        while not self._stopped():
            try:
                for item in self._due(self._inbound.poll(duty) if duty.valid() else []):
                    self._one(item, duty, duty.check)
            except PermitEnded:
                pass
            except Unavailable as error:
                self._say(f"{error}; it stops", bad=True)
            except Exception as error:
                self._failed_to_stop(error)
            time.sleep(0.01)

    def _stopped(self) -> bool:
        """Asked again after an error: a worker that ended by it would never let go, and nobody could take over."""
        try:
            return self._inbound.stopped()
        except Exception as error:
            self._failed_to_stop(error)
            time.sleep(STOPS_AGAIN_SECONDS)
            return False

    def _failed_to_stop(self, error: Exception) -> None:
        self._log.exception("the flow failed while it stopped")
        self._say(f"failed while it stopped: {error!r}", bad=True)

    def _let_go(self, duty: Duty) -> None:
        with self._wake:
            self.on = False
            self._working = None
            if self._duty is duty and not duty.valid():
                self._duty = None
            if self._duty is not duty and self.reason == self._said:  # what it failed at is over: it does not try any more
                self.reason = self._said = ""
        self._changed()

    def _set_on(self, duty: Duty) -> None:
        """One that fails in every round would be On between two of its failures: it is so once it went through one."""
        self._answered = self._offered_at = time.monotonic()
        with self._wake:
            if self._duty is duty:
                self.on = not self._broken
        self._changed()

    def _see_whether_on(self, duty: Duty) -> str:
        """On is what really runs: a program that fails at every start was begun, and does not. Returns: why it does not."""
        self._broken = False
        ails = self._inbound.ailing()
        if self.on == bool(ails):
            with self._wake:
                self.on = not ails and self._duty is duty
            self._changed()
        return ails

    def _wanted(self, duty: Duty) -> bool:
        return self._duty is duty and duty.taking and duty.valid() and not self._closing

    def _round(self, duty: Duty) -> bool:
        """Every item that the inbound offers, once; True when there was nothing to do."""
        due = self._due(self._inbound.poll(duty))
        for item in due:
            if not self._wanted(duty):
                break
            self._one(item, duty, duty.check_take)
        return not due

    def _due(self, items: Sequence[Item]) -> list[Item]:
        """Those whose turn it is: what failed waits, what the target refused goes last."""
        answered = self._inbound.answered_at()
        if answered > self._last_poll:
            self._last_poll, self._answered = answered, time.monotonic()
        now = time.monotonic()
        if items:
            self._offered_at = now
        elif now - self._offered_at > SILENT_SECONDS:
            self._owing_at = 0.0  # what it was owed has gone elsewhere
        due = [item for item in items if item.id not in self._troubles or self._troubles[item.id].again_at <= now]
        due.sort(key=lambda item: item.id in self._refused)  # stable: only these go last
        if self._troubles or self._refused or self._counted:
            offered = {item.id for item in items}
            self._counted &= offered
            self._troubles = {key: trouble for key, trouble in self._troubles.items() if key in offered}
            self._refused &= offered
        return due

    def _one(self, item: Item, duty: Duty, check: Callable[[], None]) -> None:
        trouble = self._troubles.get(item.id)
        try:
            check()
            if item.id not in self._counted:
                self._counted.add(item.id)
                self._taken += 1
            if trouble is not None and trouble.tries >= TRIES:
                self._aside(item, duty, trouble)
                return
            self._last_activity = now_text()
            self._delivering = True
            made = self._transform.apply(item)
            if made is not None:
                self._give(made, duty)
            self._delivered += 1
            self._counted.discard(item.id)
            self._owing_at = 0.0
            self._troubles.pop(item.id, None)
            self._inbound.remove(item, duty)
        except ItemChanged as change:
            self._log.info(f"{item.name!r}: {change}; it is taken when it has settled")
            tries, again_at = trouble.tries if trouble else 0, time.monotonic() + CHANGED_SECONDS
            self._troubles[item.id] = Trouble(tries, again_at, str(change))
        except Refusing:
            self._refused.add(item.id)
            raise
        except ItemError as error:
            self._owing_at = 0.0
            self._failed_once(item, duty, trouble, masked(str(error)))  # the reason goes into the error folder too
        finally:
            self._delivering, self._answered = False, time.monotonic()

    def _give(self, item: Item, duty: Duty) -> None:
        try:
            self._outbound.deliver(item, duty)
        except Unavailable:
            if not self._owing_at:
                self._owing_at, self._owing_since = time.monotonic(), _text(time.time())
            raise

    def _failed_once(self, item: Item, duty: Duty, trouble: Trouble | None, reason: str) -> None:
        tries = (trouble.tries if trouble else 0) + 1
        self._log.warning(f"item {item.id} cannot be delivered (try {tries} of {TRIES}): {reason}", item=item.id)
        waits = TRY_AGAIN_SECONDS
        trouble = Trouble(tries, time.monotonic() + waits[min(tries, len(waits)) - 1], reason)
        self._troubles[item.id] = trouble
        if tries >= TRIES:
            self._aside(item, duty, trouble)

    def _aside(self, item: Item, duty: Duty, trouble: Trouble) -> None:
        """Move a failing item out of the way; when even that fails it stays in the source and the rest goes on. Raises PermitEnded."""
        duty.check()
        try:
            self._inbound.reject(item, trouble.reason, duty, trouble.tries)
        except Unavailable as error:
            self._log.error(f"item {item.id} stays in the source and is skipped for {trouble.aside_wait:g} s: {error}", item=item.id)
            trouble.again_at = time.monotonic() + trouble.aside_wait
            trouble.aside_wait = min(trouble.aside_wait * 2, ASIDE_LIMIT)
        else:
            self._failed += 1
            self._troubles.pop(item.id, None)
            self._log.error(f"item {item.id} was moved aside after {trouble.tries} tries: {trouble.reason}", item=item.id)

    def _gauge(self) -> None:
        """Count what waits and what failed, now and then: also where this runtime follows."""
        swept = kept_up = float("-inf")
        while not self._closing:
            try:
                if time.monotonic() - kept_up >= KEEP_UP_SECONDS:
                    self._inbound.keep_up()
                    kept_up = time.monotonic()
                if time.monotonic() - swept >= SWEEP_SECONDS:
                    self._inbound.failures.sweep()
                    swept = time.monotonic()
                self._waiting, self._pending = self._inbound.depth()
                self._kept = self._inbound.failures.count()
                self._again = self._inbound.failures.ordered()
            except Unavailable:
                self._waiting = self._pending = self._kept = self._again = None
            except Exception:
                self._log.exception("what waits in the source could not be counted")
            with self._wake:
                self._wake.wait_for(lambda: self._closing, GAUGE_SECONDS)

    def _look(self) -> None:
        """See now and then whether source and target are there: also where this runtime follows."""
        while not self._closing:
            try:
                self._inbound.check()
                self._outbound.check()
            except (NotReady, Unavailable) as error:
                self._fitness.failed(str(error))
                pause = LOOK_AGAIN_SECONDS
            except Exception as error:
                self._log.exception("source and target could not be looked at")
                self._fitness.failed(f"its source or target cannot be looked at: {error!r}")
                pause = LOOK_AGAIN_SECONDS
            else:
                self._fitness.passed()
                pause = LOOK_SECONDS
            with self._wake:
                self._wake.wait_for(lambda: self._closing, pause)

    def _pause(self, duty: Duty, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: not self._wanted(duty), seconds)

    def _say(self, reason: str, bad: bool = False) -> None:
        """Why the flow is off or what it last failed at: logged once, not at every try, and not at every other wording of it."""
        if reason != self.reason:
            self.reason = reason
            self._changed()
        now = time.monotonic()
        if bad and (not self._said or (reason != self._said and now - self._said_at >= SAY_SECONDS)):
            self._log.warning(reason)
            self._said, self._said_at = reason, now
        elif not bad and self._said:
            self._log.info("works again")
            self._said = ""


def _to_seconds(moment: float) -> str:
    """RFC 3339, to 5 s: it changes with every poll and shall not be news every time."""
    return datetime.fromtimestamp(moment - moment % 5, UTC).isoformat().replace("+00:00", "Z") if moment else ""


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _made(registry: dict[Any, Any], component: Component, setting: Setting) -> Any:
    kind = registry.get(component.kind)
    if kind is None:
        known = ", ".join(sorted(registry))
        if component.kind is ComponentKind.OTHER:
            raise ConfigError(
                f"flow {setting.flow}: its {setting.side} is of a kind that this machine's agent does not know yet: upgrade it"
            )
        raise ConfigError(f"flow {setting.flow}: {component.kind} is no kind of {setting.side}; use one of: {known}")
    return kind(setting)
