# ruff: noqa: E501 - a table reads better in long lines
"""Who leads: the decisions as a table. `now` is 100 s; a session seen 0.1 s ago lives, one seen 1 s ago has stood still for the TTL."""

from dataclasses import replace

import pytest

from runtimes.process.election import Action, GroupView, Own, SessionAction, decide, decide_session, single_node_cause
from runtimes.process.permits import ALWAYS
from runtimes.process.records import ControlRecord, Disabled, GroupMark, LeaderRecord, Observed, OpenRequest, SessionRecord
from runtimes.protocol import Cause, GroupSpec, IsolationPolicy, Preference, Status, Timing

NOW = 100.0
A, B, C = "external01.erp", "external02.erp", "external03.erp"
SPEC = GroupSpec(id="g", name="orders", failover=True, members=[A, B, C])
FRESH, STALE = NOW - 0.1, NOW - 1.0
EPOCH = 10**12 + 7


def seen(
    runtime: str,
    since: float = FRESH,
    *,
    ready: bool = True,
    preference: Preference = Preference.NONE,
    session: str = "",
    ttl: float = 1.0,
    release: int = 1,
) -> Observed:
    mark = GroupMark(ready=ready, on=False, preference=preference)
    return Observed(SessionRecord(session or f"{runtime}:1", 3, runtime, release, {"g": mark}, ttl), 50, since)


GONE = Observed(None, 0, FRESH)
ALL = {A: seen(A), B: seen(B), C: Observed(None, 0, FRESH)}
MIXED = {A: seen(A, release=2), B: seen(B, preference=Preference.LEADER), C: seen(C, release=2)}
A_LEADS = LeaderRecord(A, f"{A}:1", Cause.FIRST)
B_LEADS = LeaderRecord(B, f"{B}:1", Cause.FIRST)
NOBODY_OFF = ControlRecord()
OFF_A = ControlRecord({A: Disabled("r0", "operator")})
OFF_B = ControlRecord({B: Disabled("r0", "operator")})
OWN = Own(permit_until=NOW + 0.7, contact_until=NOW + 0.7)


def view(me: str = A, leader: LeaderRecord | None = A_LEADS, own: Own = OWN, **changes: object) -> GroupView:
    base = GroupView(SPEC, me, f"{me}:1", leader, 7 if leader else 0, sessions=ALL, own=own)
    return replace(base, **changes)  # type: ignore[arg-type]


def request(to: str | None = B, epoch: int = EPOCH, disabled: ControlRecord = NOBODY_OFF) -> ControlRecord:
    return ControlRecord(disabled.disabled, OpenRequest("r1", to, epoch, Cause.SWITCH, "operator"))


@pytest.mark.parametrize(
    ("situation", "action", "status", "says"),
    [
        pytest.param(view(), Action.LEAD, Status.LEADER, "leads with epoch 1·7", id="the leader with a permit leads"),
        pytest.param(
            view(own=replace(OWN, contact_until=NOW + 0.04, trouble="no answer")), Action.FOLLOW, Status.ISOLATED, "no answer",
            id="a leader stops just before its permit ends",
        ),
        pytest.param(view(own=replace(OWN, permit_until=NOW)), Action.FOLLOW, Status.LEADER, "waits", id="a leader without a permit is off"),
        pytest.param(view(own=replace(OWN, held_off=True)), Action.FOLLOW, Status.FOLLOWER, "gave", id="an unknown give-up stays off"),
        pytest.param(
            view(own=Own(isolation=IsolationPolicy.RUN_ALONE, lost_since=NOW - 9)), Action.LEAD_ALONE, Status.SINGLE_NODE, "runs alone",
            id="cut off, and its group may run alone",
        ),
        pytest.param(
            view(own=Own(isolation=IsolationPolicy.RUN_ALONE, lost_since=NOW - 9, alone=True, outside="external02 does not accept it")),
            Action.FOLLOW, Status.ISOLATED, "external02 does not accept it", id="put out of the cluster, it never runs alone",
        ),
        pytest.param(view(own=Own()), Action.FOLLOW, Status.ISOLATED, "majority", id="without any contact a process is isolated"),
        pytest.param(view(B, unreadable=True), Action.FOLLOW, Status.ISOLATED, "newer", id="records of a newer program are left alone"),
        pytest.param(
            view(unreadable=True), Action.RELEASE, Status.ISOLATED, "gives leadership up",
            id="a leader that cannot read them leaves the group to who can",
        ),
        pytest.param(
            view(unreadable=True, own=Own(trouble="the router does not answer")), Action.FOLLOW, Status.ISOLATED, "does not answer",
            id="cut off comes first: what was read before is no cause",
        ),
        pytest.param(view(B), Action.FOLLOW, Status.FOLLOWER, f"follows {A}", id="a follower follows a living leader"),
        pytest.param(view(B, sessions={**ALL, A: GONE}), Action.TAKE, Status.FOLLOWER, "gone", id="proven death is followed at once"),
        pytest.param(
            view(B, sessions={**ALL, A: seen(A, STALE)}), Action.TAKE, Status.FOLLOWER, "stood still", id="a full TTL of silence is death"
        ),
        pytest.param(
            view(B, sessions={**ALL, A: seen(A, STALE + 0.01)}), Action.FOLLOW, Status.FOLLOWER, "follows", id="less than a TTL is not"
        ),
        pytest.param(
            view(B, sessions={**ALL, A: seen(A, NOW - 3.9, ttl=4.0)}), Action.FOLLOW, Status.FOLLOWER, "follows",
            id="a leader under a slower profile is given the TTL that it declares",
        ),
        pytest.param(
            view(B, sessions={**ALL, A: seen(A, NOW - 4.0, ttl=4.0)}), Action.TAKE, Status.FOLLOWER, "a full TTL (4 s)", id="and no more"
        ),
        pytest.param(
            view(B, sessions={**ALL, A: seen(A, NOW - 0.5, ttl=0.5)}), Action.TAKE, Status.FOLLOWER, "a full TTL (0.5 s)",
            id="one under a faster profile is followed sooner",
        ),
        pytest.param(
            view(B, timing=Timing(ttl=4.0, guard=0.8), sessions={**ALL, A: seen(A, STALE)}), Action.TAKE, Status.FOLLOWER, "(1 s)",
            id="whatever the taker's own profile",
        ),
        pytest.param(
            view(B, sessions={**ALL, A: Observed(None, 9, NOW - 3.9)}), Action.FOLLOW, Status.FOLLOWER, "follows",
            id="a session that a newer program wrote is given the longest TTL of all",
        ),
        pytest.param(
            view(control=request(), sessions={**ALL, B: seen(B, NOW - 3.0, ttl=4.0)}), Action.DRAIN, Status.LEADER, B,
            id="a candidate under a slower profile is fresh for its own TTL",
        ),
        pytest.param(
            view(B, sessions={**ALL, A: seen(A, session="other:1")}), Action.TAKE, Status.FOLLOWER, "another session",
            id="a leader that began anew leads no more",
        ),
        pytest.param(view(B, sessions={B: seen(B)}), Action.FOLLOW, Status.FOLLOWER, "follows", id="an unheard leader is not judged"),
        pytest.param(view(B, None), Action.TAKE, Status.FOLLOWER, "nobody has led", id="the first one takes"),
        pytest.param(
            view(B, LeaderRecord(None, None, Cause.RELEASE, "", A)), Action.TAKE, Status.FOLLOWER, "stopped cleanly", id="a vacant one is taken"
        ),
        pytest.param(view(B, None, replace(OWN, ready=False, reason="no folder")), Action.FOLLOW, Status.FOLLOWER, "no folder", id="not ready"),
        pytest.param(
            view(B, own=replace(OWN, ready=False, reason="no folder")), Action.FOLLOW, Status.FOLLOWER, "not ready to take over: no folder",
            id="a follower that could not take over says so",
        ),
        pytest.param(
            view(own=replace(OWN, ready=False, reason="no folder")), Action.DRAIN, Status.LEADER, "not ready any more: no folder",
            id="a leader that cannot work any more stops where another can",
        ),
        pytest.param(
            view(own=replace(OWN, ready=False, reason="no folder", drain_since=NOW)), Action.HAND_OVER, Status.LEADER, "hands over to external02",
            id="and hands over to it",
        ),
        pytest.param(
            view(own=replace(OWN, ready=False, reason="no folder"), sessions={**ALL, B: seen(B, ready=False)}), Action.LEAD, Status.LEADER,
            "it is not ready (no folder): nor is another member", id="it leads on where nobody else can either",
        ),
        pytest.param(
            view(own=replace(OWN, ready=False, drain_since=NOW), sessions={**ALL, B: seen(B, STALE)}), Action.LEAD, Status.LEADER,
            "nor is another member", id="who fell silent while it drained is nobody to give up to",
        ),
        pytest.param(
            view(own=replace(OWN, ready=False, reason="no folder"), control=OFF_B), Action.LEAD, Status.LEADER, "nor is another member",
            id="nor is a disabled one",
        ),
        pytest.param(view(B, None, replace(OWN, stopping=True)), Action.FOLLOW, Status.FOLLOWER, "stopping", id="a stopping one takes nothing"),
        pytest.param(
            view(B, None, replace(OWN, not_before=NOW + 1)), Action.FOLLOW, Status.FOLLOWER, "anew", id="a new cluster: a TTL is waited"
        ),
        pytest.param(
            view(B, None, sessions={**ALL, A: seen(A, preference=Preference.LEADER)}), Action.FOLLOW, Status.FOLLOWER, "goes first",
            id="the better preferred goes first",
        ),
        pytest.param(
            view(B, None, replace(OWN, vacant_since=NOW - 0.2), sessions={**ALL, A: seen(A, preference=Preference.LEADER)}),
            Action.TAKE, Status.FOLLOWER, "takes over", id="but for one renewal only",
        ),
        pytest.param(
            view(B, None, sessions={**ALL, A: seen(A, STALE, preference=Preference.LEADER)}), Action.TAKE, Status.FOLLOWER, "takes over",
            id="a silent better preferred one is not waited for",
        ),
        pytest.param(
            view(B, None, sessions={**ALL, A: seen(A, preference=Preference.LEADER)}, control=OFF_A), Action.TAKE, Status.FOLLOWER, "takes",
            id="nor a disabled one",
        ),
        pytest.param(view(B, None, control=OFF_B), Action.FOLLOW, Status.DISABLED, "operator", id="a disabled member never takes"),
        pytest.param(view(control=OFF_A), Action.DRAIN, Status.DISABLED, "draining", id="a disabled leader drains"),
        pytest.param(
            view(own=replace(OWN, drain_since=NOW), control=OFF_A), Action.HAND_OVER, Status.DISABLED, B, id="then hands over to a ready one"
        ),
        pytest.param(
            view(own=replace(OWN, drain_since=NOW), control=OFF_A, sessions={**ALL, B: seen(B, ready=False)}),
            Action.RELEASE, Status.DISABLED, "gives leadership up", id="or leaves the group to nobody",
        ),
        pytest.param(
            view(own=replace(OWN, drain_since=NOW - 0.5, busy=True, permit_until=NOW), control=OFF_A), Action.HAND_OVER, Status.DISABLED, B,
            id="a disabled leader drains no longer than its permit",
        ),
        pytest.param(view(own=replace(OWN, stopping=True, drain_since=NOW)), Action.HAND_OVER, Status.LEADER, B, id="stopping hands over"),
        pytest.param(view(control=request()), Action.DRAIN, Status.LEADER, "draining", id="a switch drains first"),
        pytest.param(
            view(control=request(), own=replace(OWN, drain_since=NOW - 1, busy=True)), Action.DRAIN, Status.LEADER, B, id="while in flight"
        ),
        pytest.param(view(control=request(), own=replace(OWN, drain_since=NOW)), Action.HAND_OVER, Status.LEADER, "operator", id="then gives"),
        pytest.param(
            view(control=request(None), own=replace(OWN, drain_since=NOW)), Action.HAND_OVER, Status.LEADER, B, id="Stop: any ready follower"
        ),
        pytest.param(
            view(control=request(None), own=replace(OWN, drain_since=NOW), sessions=MIXED), Action.HAND_OVER, Status.LEADER, C,
            id="Stop: the one on the leader's own release before a preferred one that was left behind",
        ),
        pytest.param(
            view(control=OFF_A, own=replace(OWN, drain_since=NOW), sessions=MIXED), Action.HAND_OVER, Status.DISABLED, C, id="Disable: the same"
        ),
        pytest.param(
            view(own=replace(OWN, stopping=True, drain_since=NOW), sessions=MIXED), Action.HAND_OVER, Status.LEADER, C, id="a stop: the same"
        ),
        pytest.param(
            view(own=replace(OWN, stopping=True, drain_since=NOW), sessions={**MIXED, C: GONE}), Action.HAND_OVER, Status.LEADER, B,
            id="an obsolete one before nobody",
        ),
        pytest.param(
            view(control=request(), own=replace(OWN, drain_since=NOW - 5, busy=True)), Action.CLOSE, Status.LEADER, "5 s", id="the drain limit"
        ),
        pytest.param(view(control=request(epoch=EPOCH - 1)), Action.CLOSE, Status.LEADER, "changed", id="a stale switch is closed"),
        pytest.param(view(control=request(A)), Action.CLOSE, Status.LEADER, "already", id="a switch to the leader is fulfilled"),
        pytest.param(
            view(control=request(), sessions={**ALL, B: seen(B, STALE)}), Action.CLOSE, Status.LEADER, "stood still", id="a silent candidate"
        ),
        pytest.param(view(control=request(disabled=OFF_B)), Action.CLOSE, Status.LEADER, "disabled", id="a disabled candidate"),
        pytest.param(view(control=request("x.erp")), Action.CLOSE, Status.LEADER, "no member", id="an unknown candidate"),
        pytest.param(
            view(control=request(None), sessions={A: seen(A), B: GONE, C: GONE}), Action.CLOSE, Status.LEADER, "Disable",
            id="Stop without a ready follower offers Disable",
        ),
    ],
)  # fmt: skip
def test_decide(situation: GroupView, action: Action, status: Status, says: str) -> None:
    decision = decide(situation, NOW)
    assert (decision.action, decision.status) == (action, status), decision.sentence
    assert says in decision.sentence


DUE, LATE = NOW - 0.15, NOW - 0.31  # renewed so long ago: the next renewal, 0.2 s after it, may come any moment; is not to be waited for
DRAINED = replace(OWN, drain_since=NOW)
WAITS = f"until {B} has renewed its session"


@pytest.mark.parametrize(
    ("situation", "action", "says"),
    [
        pytest.param(view(control=request(), sessions={**ALL, B: seen(B, DUE)}), Action.LEAD, WAITS, id="its renewal is due"),
        pytest.param(view(control=request(), named={B: 49}), Action.DRAIN, "before", id="it has renewed since it was made a leader elsewhere"),
        pytest.param(view(control=request(), named={B: 51}), Action.LEAD, WAITS, id="it has not yet: a renewal comes at once"),
        pytest.param(view(control=request(), named={C: 51}), Action.DRAIN, "before", id="somebody else was made a leader"),
        pytest.param(view(control=request(), sessions={**ALL, B: seen(B, LATE)}), Action.DRAIN, "before", id="it is late"),
        pytest.param(view(control=request(), sessions={**ALL, B: seen(B, LATE)}, named={B: 51}), Action.DRAIN, "before", id="late, whatever it leads"),
        pytest.param(
            view(control=request(), sessions={**ALL, B: seen(B, DUE, ttl=4.0)}), Action.DRAIN, "before", id="under a slower profile it renews later"
        ),
        pytest.param(
            view(control=request(), own=DRAINED, sessions={**ALL, B: seen(B, DUE)}), Action.HAND_OVER, "hands over",
            id="who takes nothing any more waits for nothing",
        ),
        pytest.param(
            view(control=request(), own=replace(OWN, permit_until=NOW), sessions={**ALL, B: seen(B, DUE)}), Action.DRAIN, "before",
            id="nor who has no permit",
        ),
        pytest.param(view(own=replace(OWN, stopping=True), sessions={**ALL, B: seen(B, DUE)}), Action.LEAD, WAITS, id="a clean stop waits too"),
        pytest.param(
            view(own=replace(OWN, stopping=True), sessions={**ALL, B: GONE}), Action.DRAIN, "asked to stop", id="but not for nobody"
        ),
        pytest.param(
            view(own=replace(OWN, ready=False, reason="no folder"), sessions={**ALL, B: seen(B, DUE)}), Action.LEAD, WAITS,
            id="so does one that is not ready any more",
        ),
        pytest.param(view(control=OFF_A, sessions={**ALL, B: seen(B, DUE)}), Action.DRAIN, "disabled", id="a disabled one stops at once"),
    ],
)  # fmt: skip
def test_a_leader_goes_off_only_when_its_candidate_has_just_renewed(situation: GroupView, action: Action, says: str) -> None:
    """A give-up compares the candidate's session: one that is renewed in between has it refused, while the group is Off."""
    decision = decide(situation, NOW)
    assert (decision.action, says in decision.sentence) == (action, True), decision.sentence
    if says == WAITS:
        assert (decision.awaits, decision.again_at) == (B, situation.sessions[B].since + 0.3)


LOST = Own(permit_until=NOW - 3, contact_until=NOW - 3, trouble="no answer", isolation=IsolationPolicy.RUN_ALONE, lost_since=NOW - 3)


@pytest.mark.parametrize(
    ("own", "changes", "action", "status", "says"),
    [
        pytest.param(LOST, {}, Action.LEAD_ALONE, Status.SINGLE_NODE, "no answer", id="lost for three TTLs"),
        pytest.param(replace(LOST, alone=True), {}, Action.LEAD_ALONE, Status.SINGLE_NODE, "runs alone", id="and on"),
        pytest.param(LOST, {"leader": None}, Action.LEAD_ALONE, Status.SINGLE_NODE, "alone", id="whoever led: it cannot know"),
        pytest.param(LOST, {"leader": B_LEADS}, Action.LEAD_ALONE, Status.SINGLE_NODE, "alone", id="a follower too"),
        pytest.param(replace(LOST, lost_since=NOW - 2.9), {}, Action.FOLLOW, Status.ISOLATED, "about to", id="for less than three TTLs"),
        pytest.param(replace(LOST, isolation=IsolationPolicy.STOP), {}, Action.FOLLOW, Status.ISOLATED, "isolated", id="never under stop"),
        pytest.param(
            replace(LOST, isolation=IsolationPolicy.STOP, alone=True), {}, Action.FOLLOW, Status.ISOLATED, "isolated", id="not even when On"
        ),
        pytest.param(
            Own(isolation=IsolationPolicy.RUN_ALONE), {}, Action.FOLLOW, Status.ISOLATED, "isolated", id="nothing was asked yet"
        ),
        pytest.param(LOST, {"control": OFF_A}, Action.FOLLOW, Status.DISABLED, "isolated", id="disabled"),
        pytest.param(replace(LOST, disabled=True), {}, Action.FOLLOW, Status.DISABLED, "isolated", id="remembered as disabled"),
        pytest.param(
            replace(LOST, unread=True), {"unreadable": True}, Action.FOLLOW, Status.ISOLATED, "cannot be read",
            id="a newer program's word of who is disabled",
        ),
        pytest.param(LOST, {"unreadable": True}, Action.LEAD_ALONE, Status.SINGLE_NODE, "alone", id="its word of who leads is no reason"),
        pytest.param(replace(LOST, stopping=True), {}, Action.FOLLOW, Status.ISOLATED, "stopping", id="not for a stopping runtime"),
        pytest.param(replace(LOST, stopping=True, alone=True), {}, Action.DRAIN, Status.SINGLE_NODE, "draining", id="stopping drains"),
        pytest.param(
            replace(OWN, isolation=IsolationPolicy.RUN_ALONE, alone=True), {"leader": B_LEADS}, Action.FOLLOW, Status.FOLLOWER, "follows",
            id="a majority is back and another leads",
        ),
        pytest.param(
            replace(OWN, isolation=IsolationPolicy.RUN_ALONE, alone=True), {"leader": None}, Action.TAKE, Status.FOLLOWER, "takes over",
            id="a majority is back and nobody leads",
        ),
    ],
)  # fmt: skip
def test_without_a_majority(own: Own, changes: dict[str, object], action: Action, status: Status, says: str) -> None:
    decision = decide(view(**{"own": own, **changes}), NOW)  # type: ignore[arg-type]
    assert (decision.action, decision.status) == (action, status), decision.sentence
    assert says in decision.sentence


@pytest.mark.parametrize(
    ("leader", "sessions", "cause"),
    [
        pytest.param(None, ALL, Cause.FIRST, id="nobody led before"),
        pytest.param(A_LEADS, {**ALL, A: GONE}, Cause.CRASH, id="the keeper ended the session"),
        pytest.param(A_LEADS, {**ALL, A: seen(A, STALE)}, Cause.SILENCE, id="the session stood still"),
        pytest.param(LeaderRecord(None, None, Cause.DISABLE, "ann", A), ALL, Cause.DISABLE, id="the leader was disabled"),
        pytest.param(LeaderRecord(None, None, Cause.NOT_READY, "", A), ALL, Cause.NOT_READY, id="the leader was not ready any more"),
    ],
)
def test_a_take_tells_why(leader: LeaderRecord | None, sessions: dict[str, Observed], cause: Cause) -> None:
    assert decide(view(B, leader, sessions=sessions), NOW).cause == cause


@pytest.mark.parametrize(
    ("observed", "started", "action"),
    [
        pytest.param(None, False, SessionAction.LOOK, id="nothing read yet"),
        pytest.param(GONE, False, SessionAction.START, id="no session stands"),
        pytest.param(seen(A, FRESH), False, SessionAction.WAIT, id="another process may live"),
        pytest.param(seen(A, STALE), False, SessionAction.START, id="it has stood still for a TTL"),
        pytest.param(seen(A, STALE, ttl=4.0), False, SessionAction.WAIT, id="the one before ran under a slower profile"),
        pytest.param(seen(A, FRESH), True, SessionAction.RENEW, id="the own session is renewed"),
    ],
)
def test_a_session_starts_only_where_none_can_live(observed: Observed | None, started: bool, action: SessionAction) -> None:
    assert decide_session(observed, f"{A}:1", started, NOW).action == action


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        pytest.param(SPEC, None, id="a failover group, whether or not its machine has a router"),
        pytest.param(GroupSpec(id="g", name="g", failover=True, members=[A]), "no peer", id="no peer"),
        pytest.param(GroupSpec(id="g", name="g", failover=False, members=[A, B]), "not on", id="failover is off"),
    ],
)
def test_a_single_node_tells_its_cause(spec: GroupSpec, says: str | None) -> None:
    cause = single_node_cause(spec, A)
    assert cause is None if says is None else cause is not None and says in cause


@pytest.mark.parametrize(
    ("lost_since", "about_to"), [pytest.param(NOW - 1, True, id="cut off"), pytest.param(ALWAYS, False, id="it stood still")]
)
def test_only_who_is_about_to_run_alone_says_so(lost_since: float, about_to: bool) -> None:
    said = decide(view(own=Own(isolation=IsolationPolicy.RUN_ALONE, lost_since=lost_since)), NOW)
    assert (said.status, "about to run alone" in said.sentence) == (Status.ISOLATED, about_to)
