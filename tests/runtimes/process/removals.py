"""The rules of docs/failover.md, "Sessions are observed records", each with the way to take it out of the product, by the test alone, and
a story that breaks an invariant without it.

A rule that a transaction carries is removed on its way to the store; a rule that the process keeps by itself is removed by a patch.

Not here, because no invariant depends on it alone: a hand-over compares the candidate's session (so that it goes to somebody living; a
leader record that names a dead session gives nobody a permit), and a lost session voids every permit before the next one starts (they
have ended by then, or else nobody could have replaced the session).
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from runtimes.process import election, farewell
from runtimes.process.coordination import Coordinator, Result
from runtimes.process.election import Action, GroupView, SessionDecision
from runtimes.process.loop import Runtime
from runtimes.process.permits import NEVER, Duty
from runtimes.process.records import Observed
from runtimes.process.seat import Seat
from tests.runtimes.process.world import LAN, WAN, Operation, Process, Step, World, key_of, play

Wire = Callable[[Process, Operation], Operation]
Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Removal:
    """One rule, a story for which it is needed, and how the product is without it."""

    rule: str
    story: Sequence[Step]
    wire: Wire | None = None
    patch: Patch | None = None

    def without(self, act: Callable[..., World], *words: Any) -> World:
        """Call `act` with the rule removed; it passes `wire=` on to the World that it makes."""
        with pytest.MonkeyPatch.context() as monkey:
            if self.patch is not None:
                self.patch(monkey)
            return act(*words, wire=self.wire)

    def play_without(self, steps: Sequence[Step]) -> World:
        return self.without(play, steps)


def kind(process: Process, operation: Operation) -> str:
    """What a transaction is for: take, give-up, farewell, end, or renewal (a start is one too)."""
    _, success, _ = operation
    if any("request_delete_range" in each for each in success):
        return "farewell" if process.ended else "end"
    for each in success:
        if "request_put" in each and key_of(each).startswith("/leaders/"):
            record = json.loads(base64.b64decode(each["request_put"]["value"]))
            return "take" if record["runtime"] == process.key else "give-up"
    return "renewal"


def without_comparison(of: str, what: Callable[[Process, str], bool]) -> Wire:
    def wire(process: Process, operation: Operation) -> Operation:
        compare, success, failure = operation
        if kind(process, operation) == of:
            compare = [each for each in compare if not what(process, key_of(each))]
        return compare, success, failure

    return wire


def without_rewrite(of: str) -> Wire:
    def wire(process: Process, operation: Operation) -> Operation:
        compare, success, failure = operation
        if kind(process, operation) == of:
            success = [each for each in success if not ("request_put" in each and _own_session(process, key_of(each)))]
        return compare, success, failure

    return wire


def without_reading_control(process: Process, operation: Operation) -> Operation:
    compare, success, failure = operation
    if kind(process, operation) == "renewal" and process.coordinator.heard:
        success = [each for each in success if not ("request_range" in each and key_of(each).startswith("/control/"))]
    return compare, success, failure


def _own_session(process: Process, key: str) -> bool:
    return key == f"/sessions/{process.key}"


def _other_session(process: Process, key: str) -> bool:
    return key.startswith("/sessions/") and not _own_session(process, key)


def _leader(_: Process, key: str) -> bool:
    return key.startswith("/leaders/")


def _control(_: Process, key: str) -> bool:
    return key.startswith("/control/")


# ------------------------------------------------------------------------------------------------------------------- patches


def _grant(change: Callable[[Coordinator, float], float]) -> Patch:
    def patch(monkey: pytest.MonkeyPatch) -> None:
        real = Coordinator._grant
        monkey.setattr(Coordinator, "_grant", lambda self, until: real(self, change(self, until)))

    return patch


def _grant_whatever_is_named(monkey: pytest.MonkeyPatch) -> None:
    real = Coordinator._grant

    def grant(self: Coordinator, until: float) -> None:
        before = dict(self.permits)
        real(self, until)
        self.permits.update({group: until for group, end in before.items() if end != NEVER})

    monkey.setattr(Coordinator, "_grant", grant)
    monkey.setattr(GroupView, "mine", property(lambda view: view.own.permit_until != NEVER or _mine(view)))


def _mine(view: GroupView) -> bool:
    return view.leader is not None and view.leader.runtime == view.me and view.leader.session == view.session


def _grant_by_runtime_alone(monkey: pytest.MonkeyPatch) -> None:
    real = Coordinator.leader

    def leader(self: Coordinator, group: str) -> Any:
        record, revision = real(self, group)
        if record is not None and record.runtime == self.me:
            record = msgspec.structs.replace(record, session=self.session)
        return record, revision

    monkey.setattr(Coordinator, "leader", leader)


def _grant_by_a_read(monkey: pytest.MonkeyPatch) -> None:
    real = Coordinator._adopt_own

    def adopt(self: Coordinator) -> None:
        real(self)
        if self.started:
            self._grant(self.sent_at + self.timing.ttl - self.timing.guard)

    monkey.setattr(Coordinator, "_adopt_own", adopt)


def _permit_without_end(monkey: pytest.MonkeyPatch) -> None:
    monkey.setattr(Duty, "valid", lambda duty: not duty._void)


def _hasty(monkey: pytest.MonkeyPatch) -> None:
    real = election.vacancy

    def vacancy(view: GroupView, now: float) -> Any:
        return real(replace(view, sessions={key: _older(seen, 0.4 * seen.ttl) for key, seen in view.sessions.items()}), now)

    monkey.setattr(election, "vacancy", vacancy)


def _older(seen: Observed, by: float) -> Observed:
    return replace(seen, since=seen.since - by)


def _own_ttl_instead_of_the_leaders(monkey: pytest.MonkeyPatch) -> None:
    monkey.setattr(Observed, "ttl", LAN.ttl)


def _watch_from_the_question(monkey: pytest.MonkeyPatch) -> None:
    real = Coordinator._observe
    monkey.setattr(Coordinator, "_observe", lambda self, runtime, entry, received: real(self, runtime, entry, min(received, self.sent_at)))


def _give_up_while_on(monkey: pytest.MonkeyPatch) -> None:
    real = Seat.off

    def off(seat: Seat) -> None:
        if seat.decision is None or seat.decision.action not in (Action.HAND_OVER, Action.RELEASE):
            real(seat)

    monkey.setattr(Seat, "off", off)


def _back_on_after_an_unknown_give_up(monkey: pytest.MonkeyPatch) -> None:
    real = Coordinator.give_up

    async def give_up(self: Coordinator, view: GroupView, *words: Any) -> Result:
        before = self.permits[view.spec.id]
        result = await real(self, view, *words)
        if result == Result.UNKNOWN:
            self.permits[view.spec.id] = before
            self.held_off.discard(view.spec.id)
        return result

    monkey.setattr(Coordinator, "give_up", give_up)


def _start_at_once(monkey: pytest.MonkeyPatch) -> None:
    real = election.decide_session

    def decide(observed: Observed | None, *words: Any) -> SessionDecision:
        return real(observed and _older(observed, observed.ttl), *words)

    monkey.setattr("runtimes.process.loop.decide_session", decide)


def _end_while_on(monkey: pytest.MonkeyPatch) -> None:
    monkey.setattr(Runtime, "_void_all", lambda self: None)


def _farewell_to_anybody(monkey: pytest.MonkeyPatch) -> None:
    class Anybody(str):
        def startswith(self, *_: Any) -> bool:
            return True

    real = farewell._session_of
    monkey.setattr(farewell, "_session_of", lambda kv: Anybody(real(kv)))


REMOVALS = {
    "renew-own": Removal(
        "a renewal succeeds only on the own last write",
        [("go_on", 1.0), ("twin", "A"), ("go_on", 1.0), ("link", "A", "mute"), ("go_on", 0.4), ("ready", "A", False), ("go_on", 1.0)],
        without_comparison("renewal", _own_session),
    ),
    "renew-control": Removal(
        "a renewal reads control",
        [("stop", "B"), ("disable", "A", "h"), ("watch", "C", False), ("go_on", 0.06), ("disable", "C", "h"), ("go_on", 1.0)],
        without_reading_control,
    ),
    "permit-guard": Removal(
        "a permit ends a guard before the TTL",
        [("go_on", 0.02), ("pause", "A"), ("go_on", 1.0)],
        patch=_grant(lambda self, until: until + self.timing.guard),
    ),
    "permit-sent": Removal(
        "a permit counts from before the request left",
        [
            ("go_on", 0.48),
            ("link", "A", "slow"),
            ("go_on", 0.32),
            ("link", "A", "fine"),
            ("go_on", 0.04),
            ("link", "A", "lost"),
            ("go_on", 1.08),
        ],
        patch=_grant(lambda self, until: self._clock() + self.timing.ttl - self.timing.guard),
    ),
    "permit-named": Removal(
        "a permit is for the groups that this very answer names",
        [("go_on", 0.06), ("pause", "A"), ("go_on", 1.0), ("resume", "A"), ("go_on", 0.1)],
        patch=_grant_whatever_is_named,
    ),
    "permit-session": Removal(
        "a leader is a session, not only a runtime",
        [("crash_proven_late", "A"), ("go_on", 0.4), ("crash_proven", "B"), ("start", "B"), ("go_on", 0.1)],
        patch=_grant_by_runtime_alone,
    ),
    "permit-read": Removal(
        "a read never gives a permit",
        [
            ("go_on", 0.5),
            ("link", "A", "mute"),
            ("go_on", 0.24),
            ("link", "A", "slow"),
            ("go_on", 0.34),
            ("link", "A", "fine"),
            ("go_on", 0.02),
            ("link", "A", "lost"),
            ("go_on", 1.0),
        ],
        patch=_grant_by_a_read,
    ),
    "permit-end": Removal(
        "nothing is emitted after the permit's end", [("go_on", 0.02), ("pause", "A"), ("go_on", 1.0)], patch=_permit_without_end
    ),
    "take-ttl": Removal(
        "a take waits until the session has stood still for a full TTL",
        [("stop", "A"), ("disable", "B", "h"), ("go_on", 0.06), ("twin", "A"), ("pause", "C"), ("go_on", 1.0)],
        patch=_hasty,
    ),
    "take-declared": Removal(
        "a taker waits for the TTL that the leader's own session declares",
        [
            ("go_on", 0.5),
            ("crash_proven", "A"),
            ("start", "A", WAN),
            ("go_on", 2.0),
            ("switch", "A"),
            ("go_on", 1.5),
            ("pause", "A"),
            ("go_on", 3.0),
        ],
        patch=_own_ttl_instead_of_the_leaders,
    ),
    "take-receipt": Removal(
        "the TTL counts from the receipt of the answer",
        [("go_on", 0.4), ("go_on", 0.4), ("go_on", 0.4), ("pause", "A"), ("go_on", 1.0)],
        patch=_watch_from_the_question,
    ),
    "take-leader": Removal(
        "a take finds the leader as it was seen", [("disable", "A", "g"), ("go_on", 0.4)], without_comparison("take", _leader)
    ),
    "take-session": Removal(
        "a take finds the leader's session as it was watched",
        [
            ("go_on", 1.56),
            ("link", "A", "lost"),
            ("link", "B", "acts-late"),
            ("go_on", 0.9),
            ("link", "A", "fine"),
            ("go_on", 0.16),
            ("link", "A", "lost"),
            ("commit", 0),
            ("go_on", 0.28),
        ],
        without_comparison("take", _other_session),
    ),
    "take-control": Removal(
        "a take finds control unchanged",
        [
            ("crash", "C"),
            ("go_on", 1.5),
            ("link", "A", "lost"),
            ("link", "B", "acts-late"),
            ("go_on", 1.0),
            ("disable", "B"),
            ("commit", 0),
        ],
        without_comparison("take", _control),
    ),
    "take-own": Removal(
        "a take succeeds only on the own last write",
        [
            ("disable", "C", "g"),
            ("link", "B", "acts-late"),
            ("crash", "A"),
            ("go_on", 1.0),
            ("crash", "B"),
            ("start", "B"),
            ("link", "B", "acts-late"),
            ("go_on", 1.3),
            ("switch", "B", "h"),
            ("go_on", 0.3),
            ("link", "B", "lost"),
            ("commit", 0),
            ("go_on", 0.3),
        ],
        without_comparison("take", _own_session),
    ),
    "take-rewrite": Removal(
        "a take rewrites the own session",
        [
            ("go_on", 0.44),
            ("switch", "C", "g"),
            ("go_on", 0.56),
            ("crash_proven", "C"),
            ("go_on", 0.06),
            ("link", "A", "lost"),
            ("go_on", 0.92),
        ],
        without_rewrite("take"),
    ),
    "give-up-off": Removal(
        "a group is Off before its give-up leaves",
        [("go_on", 0.44), ("link", "A", "acts-slow"), ("switch", "B"), ("go_on", 0.36)],
        patch=_give_up_while_on,
    ),
    "give-up-own": Removal(
        "a give-up succeeds only on the own last write",
        [
            ("go_on", 0.5),
            ("link", "A", "acts-late"),
            ("ready", "A", False),
            ("go_on", 0.06),
            ("pause", "B"),
            ("ready", "A", True),
            ("go_on", 0.5),
            ("link", "A", "lost"),
            ("commit", 0),
            ("resume", "B"),
            ("go_on", 0.1),
        ],
        without_comparison("give-up", _own_session),
    ),
    "give-up-rewrite": Removal(
        "a give-up rewrites the own session",
        [("go_on", 0.5), ("ready", "A", False), ("go_on", 0.04), ("link", "A", "lost"), ("go_on", 1.0)],
        without_rewrite("give-up"),
    ),
    "give-up-leader": Removal(
        "a give-up finds the group still its own",
        [
            ("go_on", 0.5),
            ("link", "A", "acts-late"),
            ("ready", "A", False),
            ("go_on", 0.04),
            ("pause", "B"),
            ("crash", "A"),
            ("go_on", 1.3),
            ("commit", 0),
            ("resume", "B"),
            ("go_on", 0.1),
        ],
        without_comparison("give-up", _leader),
    ),
    "give-up-control": Removal(
        "a give-up finds control unchanged",
        [("go_on", 0.5), ("link", "A", "acts-late"), ("ready", "A", False), ("go_on", 0.06), ("disable", "B"), ("commit", 0)],
        without_comparison("give-up", _control),
    ),
    "give-up-unknown": Removal(
        "after an unknown give-up the group stays Off until a later renewal",
        [
            ("go_on", 0.44),
            ("link", "A", "acts-late"),
            ("ready", "A", False),
            ("go_on", 0.14),
            ("link", "A", "lost"),
            ("pause", "B"),
            ("ready", "A", True),
            ("go_on", 0.36),
            ("commit", 0),
            ("resume", "B"),
            ("go_on", 0.2),
        ],
        patch=_back_on_after_an_unknown_give_up,
    ),
    "give-up-to-somebody": Removal(
        "a leader that is not ready gives up only to a member that is",
        [("go_on", 0.5), ("ready", "B", False), ("ready", "C", False), ("go_on", 0.5), ("ready", "A", False), ("go_on", 0.3)],
        patch=lambda monkey: monkey.setattr(election, "_somebody_else_can", lambda view, now: True),
    ),
    "start-still": Removal(
        "a session starts only where none stands or it has stood still",
        [("crash_proven_late", "B"), ("twin", "C"), ("stop", "A"), ("go_on", 0.4)],
        patch=_start_at_once,
    ),
    "end-void": Removal(
        "every permit is void before the own session ends",
        [("go_on", 0.5), ("link", "A", "slow"), ("orphan", "A"), ("go_on", 0.3)],
        patch=_end_while_on,
    ),
    "farewell-launch": Removal(
        "a keeper ends only the dead process's session",
        [("twin", "A"), ("stop", "A"), ("go_on", 1.0), ("start", "A"), ("farewell_again", "A"), ("go_on", 0.02)],
        patch=_farewell_to_anybody,
    ),
    "farewell-revision": Removal(
        "a keeper ends only the write that it read",
        [
            ("go_on", 0.5),
            ("crash_proven_late", "A"),
            ("start", "A"),
            ("go_on", 2.5),
            ("switch", "A"),
            ("go_on", 0.5),
            ("commit", 0),
            ("go_on", 0.1),
        ],
        without_comparison("farewell", lambda *_: True),
    ),
}
